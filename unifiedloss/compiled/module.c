/* The Python module `unifiedloss.compiled._loops`: it reads arguments, chooses the loops of a level,
   and releases the GIL.

   Arrays arrive as addresses, because an array of bfloat16 has no buffer and NumPy's headers are not
   needed then. The caller has checked their shapes, dtypes and layouts. The only states
   are xla.c's and has_f16c. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include "call.h"
#include "parallel.h"
#include "threads.h"

#define RELEASED 20000 /* predictions from which on the GIL is released */

struct level {
  const char *name;
  const struct loops *loops;
};

#if defined(__x86_64__)
extern const struct loops loops_v2, loops_v3, loops_v4;
static const struct level LEVELS[] = {{"v2", &loops_v2}, {"v3", &loops_v3}, {"v4", &loops_v4}};
#else
extern const struct loops loops_neon;
static const struct level LEVELS[] = {{"neon", &loops_neon}};
#endif
#define COUNT ((long)(sizeof LEVELS / sizeof LEVELS[0]))

#if defined(__x86_64__)
/* Whether the processor converts float16; not every clang knows this feature by its name.

   Asked at import alone: in a virtual machine the host answers, which takes longer than a small
   loss. */
static int has_f16c;
static void ask_processor(void) {
  unsigned a, b, c, d;
  has_f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#else
static void ask_processor(void) {}
#endif

/* Whether this processor runs a level. clang does not know the names of levels here, so the features
   that the loops use stand for them. */
static int runs(long level) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  int v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
  int v3 = v2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi2") && has_f16c;
  int v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
  return level == 2 ? v4 : level == 1 ? v3 : v2;
#else
  return level == 0;
#endif
}

const struct loops *loops_at(long level) {
  return level >= 0 && level < COUNT && runs(level) ? LEVELS[level].loops : NULL;
}

/* The next arguments, one after the other; an error is left for PyErr_Occurred. */
struct arguments {
  PyObject *const *next;
};

static int64_t integer(struct arguments *a) { return PyLong_AsLongLong(*a->next++); }
static double number(struct arguments *a) { return PyFloat_AsDouble(*a->next++); }
static void *address(struct arguments *a) {
  return (void *)(uintptr_t)PyLong_AsUnsignedLongLong(*a->next++);
}

/* The form of numbers, of which Python code knows the number. */
static enum form form(struct arguments *a) {
  int64_t number = integer(a);
  if (!PyErr_Occurred() && (number < FLOAT32 || number > FLOAT16))
    PyErr_SetString(PyExc_ValueError, "the form of the numbers is out of range");
  return (enum form)number;
}

static const struct loops *loops_of(struct arguments *a) {
  long level = PyLong_AsLong(*a->next++);
  if (PyErr_Occurred()) return NULL;
  const struct loops *loops = loops_at(level);
  if (loops) return loops;
  PyErr_SetString(PyExc_ValueError, "this processor has no such level");
  return NULL;
}

static int has(Py_ssize_t given, Py_ssize_t wanted) {
  if (given == wanted) return 1;
  PyErr_Format(PyExc_TypeError, "%zd arguments are needed, not %zd", wanted, given);
  return 0;
}

/* Targets that are not single classes, or NULL. */
static const struct soft *read_soft(struct arguments *a, struct soft *soft) {
  const int given = (int)integer(a);
  soft->targets = address(a);
  soft->form = form(a);
  soft->stride = integer(a);
  soft->least = number(a);
  soft->smoothing = number(a);
  soft->class_weights = address(a);
  soft->by_position = (int)integer(a);
  soft->clip = address(a);
  return given ? soft : NULL;
}
static int is_form(int64_t x) { return x >= FLOAT32 && x <= FLOAT16; }

static PyObject *cross_entropy(PyObject *module, PyObject *const *given, Py_ssize_t count) {
  (void)module;
  if (!has(count, 30)) return NULL;
  struct arguments a = {given};
  const struct loops *loops = loops_of(&a);
  if (!loops) return NULL;
  const int64_t threads = integer(&a);
  struct rows rows = {0};
  rows.form = form(&a);
  rows.loss_form = form(&a);
  rows.slope_form = form(&a);
  rows.logits = address(&a);
  rows.n = integer(&a);
  rows.classes = integer(&a);
  rows.stride = integer(&a);
  rows.labels = address(&a);
  rows.label_size = (int)integer(&a);
  rows.label_signed = (int)integer(&a);
  rows.todo = address(&a);
  rows.weight = address(&a);
  rows.factor = address(&a);
  rows.scale = number(&a);
  rows.losses = address(&a);
  rows.slopes = address(&a);
  rows.left = address(&a);
  rows.elements = address(&a);
  rows.capacity = integer(&a);
  struct soft soft;
  rows.soft = read_soft(&a, &soft);
  if (PyErr_Occurred()) return NULL;
  if (rows.n < 0 || rows.classes < 1 || rows.classes > INT64_MAX / 64) {
    PyErr_SetString(PyExc_ValueError, "rows and classes are out of range");
    return NULL;
  }
  struct total total = {0};
  int64_t left, elements = 0;
  unsigned before = keep_subnormals();
  if (rows.n > RELEASED / rows.classes) {
    Py_BEGIN_ALLOW_THREADS
    left = exact_rows(loops, &rows, threads, &elements, &total);
    Py_END_ALLOW_THREADS
  } else {
    left = exact_rows(loops, &rows, 1, &elements, &total);
  }
  restore(before);
  if (left < 0) return PyErr_NoMemory();
  return Py_BuildValue("LLddd", (long long)left, (long long)elements, total.high, total.low,
                       total.error);
}

static PyObject *elementwise(PyObject *const *given, Py_ssize_t count, enum loss loss) {
  if (!has(count, 13)) return NULL;
  struct arguments a = {given};
  const struct loops *loops = loops_of(&a);
  if (!loops) return NULL;
  const int64_t threads = integer(&a);
  loop_of_elements *loop = elementwise_loop(loops, loss);
  struct elements e = {0};
  e.predictions = address(&a);
  e.targets = address(&a);
  e.n = integer(&a);
  e.todo = address(&a);
  e.scale = number(&a);
  e.scale_is_exact = (int)integer(&a);
  e.divisor = number(&a);
  e.delta = e.pos_weight = number(&a);
  e.losses = address(&a);
  e.slopes = address(&a);
  e.left = address(&a);
  if (PyErr_Occurred()) return NULL;
  struct total total = {0};
  int64_t left;
  unsigned before = keep_subnormals();
  if (e.n > RELEASED) {
    Py_BEGIN_ALLOW_THREADS
    left = exact_elements(loop, &e, threads, &total);
    Py_END_ALLOW_THREADS
  } else {
    left = loop(&e, &total);
  }
  restore(before);
  if (left < 0) return PyErr_NoMemory();
  return Py_BuildValue("Lddd", (long long)left, total.high, total.low, total.error);
}

static PyObject *binary_cross_entropy(PyObject *module, PyObject *const *given, Py_ssize_t count) {
  (void)module;
  return elementwise(given, count, BINARY_CROSS_ENTROPY);
}

static PyObject *mean_squared_error(PyObject *module, PyObject *const *given, Py_ssize_t count) {
  (void)module;
  return elementwise(given, count, MEAN_SQUARED_ERROR);
}

static PyObject *huber(PyObject *module, PyObject *const *given, Py_ssize_t count) {
  (void)module;
  return elementwise(given, count, HUBER);
}

/* Whether float32 numbers without any factor but `scale` are all that a call has. */
static int is_simple(const struct elements *e) {
  const struct mixed *w = e->mixed;
  return w->read == FLOAT32 && w->target == FLOAT32 && w->form == FLOAT32 &&
         w->loss_form == FLOAT32 && w->stored == FLOAT32 && w->size == 1 && w->loss_scale == 1 &&
         w->smoothing == 0 && !w->pos_weights && !w->clip && !w->no_losses && !e->weight &&
         !e->factor;
}

/* An elementwise loss of a call with more than float32 numbers. */
static PyObject *mixed(PyObject *module, PyObject *const *given, Py_ssize_t count) {
  (void)module;
  if (!has(count, 32)) return NULL;
  struct arguments a = {given};
  const struct loops *loops = loops_of(&a);
  if (!loops) return NULL;
  const int64_t threads = integer(&a), loss = integer(&a);
  struct elements e = {0};
  struct mixed w = {0};
  e.mixed = &w;
  e.n = integer(&a);
  w.size = integer(&a);
  const int64_t read = integer(&a), target = integer(&a), form = integer(&a);
  const int64_t loss_form = integer(&a), stored = integer(&a), factor = integer(&a);
  e.delta = e.pos_weight = number(&a);
  w.smoothing = number(&a);
  w.pos_weights = address(&a);
  w.period = integer(&a);
  w.inner = integer(&a);
  w.loss_scale = number(&a);
  e.scale = number(&a);
  w.over = number(&a);
  e.scale_is_exact = (int)integer(&a);
  w.weight_is_exact = (int)integer(&a);
  w.factor_is_exact = (int)integer(&a);
  w.no_losses = (int)integer(&a);
  w.clip = address(&a);
  e.predictions = address(&a);
  e.targets = address(&a);
  e.todo = address(&a);
  e.weight = address(&a);
  e.factor = address(&a);
  e.losses = address(&a);
  e.slopes = address(&a);
  e.left = address(&a);
  if (PyErr_Occurred()) return NULL;
  if (loss <= CROSS_ENTROPY || loss >= LOSSES || e.n < 0 || w.size < 1 || !is_form(read) ||
      !is_form(form) || !is_form(loss_form) || !is_form(stored) || target < 0 || target > INT64 ||
      target == FLOAT64 || factor < 0 || factor > FLOAT64) {
    PyErr_SetString(PyExc_ValueError, "the loss, a form or the shape is out of range");
    return NULL;
  }
  w.read = (enum form)read;
  w.target = (int)target;
  w.form = (enum form)form;
  w.loss_form = (enum form)loss_form;
  w.stored = (enum form)stored;
  w.factor = (int)factor;
  if (is_simple(&e)) {
    e.mixed = NULL;
    e.scale /= w.over;
  }
  loop_of_elements *loop = elementwise_loop(loops, (enum loss)loss);
  struct total total = {0};
  int64_t left;
  unsigned before = keep_subnormals();
  if (e.n > RELEASED / w.size) {
    Py_BEGIN_ALLOW_THREADS
    left = exact_elements(loop, &e, threads, &total);
    Py_END_ALLOW_THREADS
  } else {
    left = loop(&e, &total);
  }
  restore(before);
  if (left < 0) return PyErr_NoMemory();
  return Py_BuildValue("Lddd", (long long)left, total.high, total.low, total.error);
}

static PyObject *second_tier(PyObject *module, PyObject *const *given, Py_ssize_t count) {
  (void)module;
  if (!has(count, 24)) return NULL;
  struct arguments a = {given};
  const struct loops *loops = loops_of(&a);
  if (!loops) return NULL;
  struct second s = {0};
  s.logits = address(&a);
  s.classes = integer(&a);
  s.stride = integer(&a);
  s.n = integer(&a);
  s.rows = address(&a);
  s.labels = address(&a);
  s.columns = address(&a);
  s.factors = address(&a);
  s.divisor = address(&a);
  s.constants = address(&a);
  s.loss_form = form(&a);
  s.slope_form = form(&a);
  struct soft soft;
  s.soft = read_soft(&a, &soft);
  s.results = address(&a);
  s.left = address(&a);
  if (PyErr_Occurred()) return NULL;
  unsigned before = keep_subnormals();
  Py_BEGIN_ALLOW_THREADS(s.soft ? loops->soft_second_tier : loops->second_tier)
  (&s);
  Py_END_ALLOW_THREADS
  restore(before);
  Py_RETURN_NONE;
}

/* A loss of float64 predictions; see `struct wide`. */
static PyObject *wide(PyObject *module, PyObject *const *given, Py_ssize_t count) {
  (void)module;
  if (!has(count, 23)) return NULL;
  struct arguments a = {given};
  const struct loops *loops = loops_of(&a);
  if (!loops) return NULL;
  const int64_t threads = integer(&a), loss = integer(&a);
  struct wide w = {0};
  w.predictions = address(&a);
  w.n = integer(&a);
  w.classes = integer(&a);
  w.stride = integer(&a);
  w.targets = address(&a);
  w.label_size = (int)integer(&a);
  w.label_signed = (int)integer(&a);
  w.todo = address(&a);
  w.weight = address(&a);
  w.own = address(&a);
  w.upstreams = address(&a);
  w.upstream = number(&a);
  for (int i = 0; i < 3; i++) w.divisor[i] = number(&a);
  w.parameter = number(&a);
  w.constants = address(&a);
  w.losses = address(&a);
  w.slopes = address(&a);
  w.left = address(&a);
  if (PyErr_Occurred()) return NULL;
  if (loss < 0 || loss >= LOSSES || w.n < 0 || w.classes < 1 || w.classes > INT64_MAX / 64) {
    PyErr_SetString(PyExc_ValueError, "the loss, rows or classes are out of range");
    return NULL;
  }
  int64_t left;
  unsigned before = keep_subnormals();
  Py_BEGIN_ALLOW_THREADS
  left = exact_wide(loops->wide[loss], &w, threads);
  Py_END_ALLOW_THREADS
  restore(before);
  if (left < 0) return PyErr_NoMemory();
  return PyLong_FromLongLong((long long)left);
}

/* The sum of float64 numbers as a pair, and a bound of its error. */
static PyObject *sum_in_pairs(PyObject *module, PyObject *const *given, Py_ssize_t count) {
  (void)module;
  if (!has(count, 3)) return NULL;
  struct arguments a = {given};
  const struct loops *loops = loops_of(&a);
  if (!loops) return NULL;
  const double *numbers = address(&a);
  const int64_t n = integer(&a);
  if (PyErr_Occurred()) return NULL;
  struct total total;
  unsigned before = keep_subnormals();
  Py_BEGIN_ALLOW_THREADS
  loops->sum_in_pairs(numbers, n, &total);
  Py_END_ALLOW_THREADS
  restore(before);
  return Py_BuildValue("ddd", total.high, total.low, total.error);
}

/* Memory that Python code names by its address, or by an object whose buffer it is. */
struct memory {
  Py_buffer buffers[4];
  int count;
};

/* The next memory, of at least `size` bytes in C order; NULL for the address 0, or with an error. */
static void *memory(struct arguments *a, struct memory *m, int64_t size, int flags) {
  if (PyLong_Check(*a->next)) return address(a);
  Py_buffer *buffer = &m->buffers[m->count];
  if (PyErr_Occurred() || PyObject_GetBuffer(*a->next++, buffer, flags) < 0) return NULL;
  m->count++;
  if (buffer->len >= size) return buffer->buf;
  PyErr_SetString(PyExc_ValueError, "a buffer is shorter than its shape says");
  return NULL;
}

static void release(struct memory *m) {
  while (m->count) PyBuffer_Release(&m->buffers[--m->count]);
}

/* Compute a call. The result is None where the loss is written, else what the loop left: the flags
   of undecided positions, the numbers of undecided elements, and the total. */
static PyObject *call(PyObject *module, PyObject *const *given, Py_ssize_t count) {
  (void)module;
  if (!has(count, 16)) return NULL;
  struct arguments a = {given};
  struct memory m = {0};
  struct call c = {0};
  c.level = (long)integer(&a);
  c.threads = integer(&a);
  int64_t loss = integer(&a);
  c.n = integer(&a);
  c.classes = integer(&a);
  c.label_size = (int)integer(&a);
  c.label_signed = (int)integer(&a);
  c.form = form(&a);
  c.slope_form = form(&a);
  c.parameter = number(&a);
  c.divisor = number(&a);
  c.upstream = number(&a);
  if (PyErr_Occurred()) return NULL;
  c.loss = (enum loss)loss;
  if (loss < 0 || loss >= LOSSES || c.n < 1 || c.classes < 1 || c.classes > INT64_MAX / 64 / c.n ||
      !loops_at(c.level)) {
    PyErr_SetString(PyExc_ValueError, "the level, the loss or the shape is out of range");
    return NULL;
  }
  const int64_t size = c.n * c.classes;
  c.predictions = memory(&a, &m, size * (int64_t)size_of_form(c.form), PyBUF_SIMPLE);
  c.targets = memory(&a, &m, c.n * c.label_size, PyBUF_SIMPLE);
  c.slopes = memory(&a, &m, size * (int64_t)size_of_form(c.slope_form), PyBUF_WRITABLE);
  float *value = memory(&a, &m, sizeof *value, PyBUF_WRITABLE);
  PyObject *found = NULL;
  struct left left;
  int state;
  if (PyErr_Occurred()) goto end;
  if (c.n > RELEASED / c.classes) {
    Py_BEGIN_ALLOW_THREADS
    state = compute_call(&c, value, &left);
    Py_END_ALLOW_THREADS
  } else {
    state = compute_call(&c, value, &left);
  }
  if (state == NO_MEMORY) {
    PyErr_NoMemory();
  } else if (state == DECIDED) {
    found = Py_NewRef(Py_None);
  } else {
    found = Py_BuildValue(
        "y#y#Lddd", (const char *)left.which, (Py_ssize_t)c.n, (const char *)left.numbers,
        (Py_ssize_t)(left.elements * (int64_t)sizeof *left.numbers), (long long)left.positions,
        left.total.high, left.total.low, left.total.error);
    forget(&left);
  }
end:
  release(&m);
  return found;
}

/* The exact sum of float32 numbers: their limbs, and how many are NaN, +inf and -inf. */
static PyObject *exact_sum(PyObject *module, PyObject *const *given, Py_ssize_t count) {
  (void)module;
  if (!has(count, 3)) return NULL;
  struct arguments a = {given};
  const struct loops *loops = loops_of(&a);
  if (!loops) return NULL;
  const float *numbers = address(&a);
  const int64_t n = integer(&a);
  if (PyErr_Occurred()) return NULL;
  struct exact_sum found = {{0}, {0}};
  unsigned before = keep_subnormals();
  if (n > RELEASED) {
    Py_BEGIN_ALLOW_THREADS
    loops->add_exactly(numbers, n, &found);
    Py_END_ALLOW_THREADS
  } else {
    loops->add_exactly(numbers, n, &found);
  }
  restore(before);
  return PyBytes_FromStringAndSize((const char *)&found, sizeof found);
}

/* The exact sum of the losses of an elementwise loss, as in `exact_sum`; None where one of them is
   undecided. */
static PyObject *sum_of_losses(PyObject *module, PyObject *const *given, Py_ssize_t count) {
  (void)module;
  if (!has(count, 7)) return NULL;
  struct arguments a = {given};
  const struct loops *loops = loops_of(&a);
  if (!loops) return NULL;
  const int64_t threads = integer(&a), loss = integer(&a);
  struct elements e = {0};
  e.predictions = address(&a);
  e.targets = address(&a);
  e.n = integer(&a);
  e.delta = e.pos_weight = number(&a);
  if (PyErr_Occurred()) return NULL;
  if (loss <= CROSS_ENTROPY || loss >= LOSSES || e.n < 0) {
    PyErr_SetString(PyExc_ValueError, "the loss or the number of elements is out of range");
    return NULL;
  }
  struct exact_sum found = {{0}, {0}};
  int64_t left;
  unsigned before = keep_subnormals();
  Py_BEGIN_ALLOW_THREADS
  left = sum_of_elements(loops, elementwise_loop(loops, (enum loss)loss), &e, threads, &found);
  Py_END_ALLOW_THREADS
  restore(before);
  if (left < 0) return PyErr_NoMemory();
  if (left) Py_RETURN_NONE;
  return PyBytes_FromStringAndSize((const char *)&found, sizeof found);
}

static PyObject *apply(PyObject *const *given, Py_ssize_t count, int logarithm) {
  if (!has(count, 3)) return NULL;
  struct arguments a = {given};
  const struct loops *loops = loops_of(&a);
  if (!loops) return NULL;
  double *x = address(&a);
  int64_t n = integer(&a);
  if (PyErr_Occurred()) return NULL;
  unsigned before = keep_subnormals();
  (logarithm ? loops->log1p : loops->exp)(x, n);
  restore(before);
  Py_RETURN_NONE;
}

static PyObject *exponential(PyObject *module, PyObject *const *given, Py_ssize_t count) {
  (void)module;
  return apply(given, count, 0);
}

static PyObject *logarithm(PyObject *module, PyObject *const *given, Py_ssize_t count) {
  (void)module;
  return apply(given, count, 1);
}

static PyObject *halves(PyObject *module, PyObject *const *given, Py_ssize_t count) {
  (void)module;
  if (!has(count, 4)) return NULL;
  struct arguments a = {given};
  const struct loops *loops = loops_of(&a);
  if (!loops) return NULL;
  double *x = address(&a);
  int64_t n = integer(&a), form = integer(&a);
  if (PyErr_Occurred()) return NULL;
  unsigned before = keep_subnormals();
  loops->halves(x, n, (enum form)form);
  restore(before);
  Py_RETURN_NONE;
}

/* e^x or log(1 + x) of pairs, in place. */
static PyObject *of_pairs(PyObject *module, PyObject *const *given, Py_ssize_t count) {
  (void)module;
  if (!has(count, 6)) return NULL;
  struct arguments a = {given};
  const struct loops *loops = loops_of(&a);
  if (!loops) return NULL;
  const double *constants = address(&a);
  double *high = address(&a), *low = address(&a);
  const int64_t n = integer(&a), logarithm = integer(&a);
  if (PyErr_Occurred()) return NULL;
  unsigned before = keep_subnormals();
  loops->of_pairs(constants, high, low, n, logarithm != 0);
  restore(before);
  Py_RETURN_NONE;
}

/* The memory of an argument, which an array lends, or NULL for None. */
static void *lent(PyObject *array, Py_buffer *buffer, int to_write) {
  if (array == Py_None) return NULL;
  if (PyObject_GetBuffer(array, buffer, to_write ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0) return NULL;
  return buffer->buf;
}

/* Whether a buffer that is given holds n items of some bytes. */
static int fits(const Py_buffer *buffer, int64_t n, int64_t size) {
  return !buffer->obj || (buffer->len % size == 0 && buffer->len / size == n);
}

/* Arrays come as buffers here, which takes a fifth of the time of asking them for addresses. */
static PyObject *native(PyObject *module, PyObject *const *given, Py_ssize_t count) {
  (void)module;
  if (!has(count, 16)) return NULL;
  struct arguments a = {given};
  const struct loops *loops = loops_of(&a);
  if (!loops) return NULL;
  const int64_t threads = integer(&a), which = integer(&a);
  struct native n = {0};
  n.classes = integer(&a);
  n.label_size = (int)integer(&a);
  n.label_signed = (int)integer(&a);
  n.scale = number(&a);
  n.parameter = number(&a);
  const double divisor = number(&a);
  if (PyErr_Occurred()) return NULL;
  Py_buffer buffers[7] = {{0}};
  n.predictions = lent(a.next[0], &buffers[0], 0);
  if (!PyErr_Occurred()) n.targets = lent(a.next[1], &buffers[1], 0);
  if (!PyErr_Occurred()) n.todo = lent(a.next[2], &buffers[2], 0);
  if (!PyErr_Occurred()) n.factor = lent(a.next[3], &buffers[3], 0);
  if (!PyErr_Occurred()) n.losses = lent(a.next[4], &buffers[4], 1);
  if (!PyErr_Occurred()) n.slopes = lent(a.next[5], &buffers[5], 1);
  /* The quotient goes to memory, because reading it as a float of Python and rounding that again
     would lose it where the caller replaces subnormal numbers by 0. */
  float *quotient = PyErr_Occurred() ? NULL : lent(a.next[6], &buffers[6], 1);
  const int64_t size = (int64_t)sizeof(float), all = buffers[0].len / size;
  if (n.classes > 0) n.n = all / n.classes;
  if (!PyErr_Occurred() &&
      (!n.predictions || !n.targets || n.classes < 1 || n.label_size < 1 || n.label_size > 8 ||
       which < 0 || which > 3 || !fits(&buffers[0], n.n * n.classes, size) ||
       !fits(&buffers[1], n.n, which ? size : n.label_size) || !fits(&buffers[2], n.n, 1) ||
       !fits(&buffers[3], n.n, sizeof(double)) || !fits(&buffers[4], n.n, size) ||
       !fits(&buffers[5], all, size) || !fits(&buffers[6], 1, size)))
    PyErr_SetString(PyExc_ValueError, "the arrays do not belong together");
  double sum = 0;
  int64_t unknown = 0;
  if (!PyErr_Occurred()) {
    native_loop *const all_loops[] = {loops->native.cross_entropy,
                                      loops->native.binary_cross_entropy,
                                      loops->native.mean_squared_error, loops->native.huber};
    const int64_t step = which ? NATIVE_STEP : NATIVE_ROWS;
    unsigned before = keep_subnormals();
    if (all > RELEASED) {
      Py_BEGIN_ALLOW_THREADS
      unknown = native_positions(all_loops[which], &n, step, threads, &sum);
      Py_END_ALLOW_THREADS
    } else {
      unknown = native_positions(all_loops[which], &n, step, 1, &sum);
    }
    if (quotient) *quotient = (float)(sum / divisor);
    restore(before);
  }
  for (int i = 0; i < 7; i++)
    if (buffers[i].obj) PyBuffer_Release(&buffers[i]);
  return PyErr_Occurred() ? NULL : Py_BuildValue("Ld", (long long)unknown, sum);
}

static PyObject *levels(PyObject *module, PyObject *ignored) {
  (void)module;
  (void)ignored;
  PyObject *names = PyList_New(0);
  for (long i = 0; names && i < COUNT; i++) {
    if (!runs(i)) continue;
    PyObject *name = PyUnicode_FromString(LEVELS[i].name);
    if (!name || PyList_Append(names, name) < 0) Py_CLEAR(names);
    Py_XDECREF(name);
  }
  return names;
}

/* What `jax.ffi.register_ffi_target` takes. */
static PyObject *xla_target(PyObject *module, PyObject *ignored) {
  (void)module;
  (void)ignored;
  return PyCapsule_New((void *)(uintptr_t)unifiedloss_xla, NULL, NULL);
}

static PyObject *xla_end(PyObject *module, PyObject *ignored) {
  (void)module;
  (void)ignored;
  return PyLong_FromLongLong(unifiedloss_xla_end());
}

/* Let this thread keep subnormal numbers. Returns what `restored` takes. */
static PyObject *kept(PyObject *module, PyObject *ignored) {
  (void)module;
  (void)ignored;
  return PyLong_FromUnsignedLong(keep_subnormals());
}

static PyObject *restored(PyObject *module, PyObject *before) {
  (void)module;
  const unsigned long setting = PyLong_AsUnsignedLong(before);
  if (PyErr_Occurred()) return NULL;
  restore((unsigned)setting);
  Py_RETURN_NONE;
}

#define FAST(name) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, NULL}
static PyMethodDef METHODS[] = {FAST(cross_entropy),
                                FAST(binary_cross_entropy),
                                FAST(mean_squared_error),
                                FAST(huber),
                                FAST(mixed),
                                FAST(call),
                                FAST(native),
                                FAST(second_tier),
                                FAST(wide),
                                FAST(of_pairs),
                                FAST(sum_in_pairs),
                                FAST(exact_sum),
                                FAST(sum_of_losses),
                                FAST(exponential),
                                FAST(logarithm),
                                FAST(halves),
                                {"levels", levels, METH_NOARGS, NULL},
                                {"xla_target", xla_target, METH_NOARGS, NULL},
                                {"xla_end", xla_end, METH_NOARGS, NULL},
                                {"kept", kept, METH_NOARGS, NULL},
                                {"restored", restored, METH_O, NULL},
                                {NULL, NULL, 0, NULL}};

static PyModuleDef_Slot SLOTS[] = {{0, NULL}};
static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "_loops", NULL, 0, METHODS, SLOTS, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__loops(void) {
  ask_processor();
  return PyModuleDef_Init(&MODULE);
}
