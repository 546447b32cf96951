/* A call as XLA's custom calls on the CPU make it, in the calling convention without a header of
   XLA's ("api_version 0" in jax.ffi): pointers to the results, pointers to the operands, and a text.

   The text starts with integers: level, threads, loss, n, classes, bytes of a label, whether it has a
   sign, the forms of the predictions and of the gradient, the bits of the parameter, the divisor, the number of examples, whether there is a gradient, and
   whether there are upstream gradients. Examples have the same shape and lie one after the other.

   operands: predictions, targets, and upstream gradients, float32, one an example
   results: losses, the number of undecided calls (only so that there are always several), gradient

   Python code computes what a loop leaves, and any example that no loop takes. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "call.h"
#include "threads.h"

#define NUMBERS 14
#define LONGEST 320 /* characters of the integers */

#define SMALLEST_UPSTREAM 0x1p-150
#define LARGEST_UPSTREAM 0x1p150

static int read_numbers(const char *text, size_t length, int64_t *numbers) {
  char copy[LONGEST + 1];
  size_t size = length < LONGEST ? length : LONGEST;
  memcpy(copy, text, size);
  copy[size] = 0;
  char *at = copy, *end;
  for (int i = 0; i < NUMBERS; i++, at = end) {
    numbers[i] = strtoll(at, &end, 10);
    if (end == at) return 0;
  }
  return 1;
}

static PyObject *view(const void *memory, int64_t size, int flags) {
  if (!memory) return Py_NewRef(Py_None);
  return PyMemoryView_FromMemory((char *)memory, (Py_ssize_t)size, flags);
}

/* How many calls run Python code now, and whether no more may, because the interpreter ends: it stops
   a thread that wants its lock then, and XLA waits for that thread. */
static int64_t asking;
static int ended;

int64_t unifiedloss_xla_end(void) {
  __atomic_store_n(&ended, 1, __ATOMIC_SEQ_CST);
  return __atomic_load_n(&asking, __ATOMIC_SEQ_CST);
}

/* The size of the predictions or of the gradient. */
static size_t size_of(const struct call *c, enum form form) {
  return (size_t)(c->n * c->classes) * size_of_form(form);
}

static void fill_nan(const struct call *c, float *value) {
  *value = NAN;
  /* Bytes of ones are a NaN in every form. */
  if (c->slopes) memset(c->slopes, 0xff, size_of(c, c->slope_form));
}

/* Let Python compute what is left of a call, or all of it where `left` is NULL. Where that fails the
   results are NaN, because there is nobody to raise an error to. */
static void finish(const struct call *c, const float *upstream, const struct left *left,
                   float *value, const char *text, size_t length) {
  PyGILState_STATE state = PyGILState_Ensure();
  PyObject *module = PyImport_ImportModule("unifiedloss.exact.xla"), *done = NULL;
  if (module) {
    PyObject *known = left ? Py_BuildValue("(NNLddd)", view(left->which, c->n, PyBUF_READ),
                                           view(left->numbers, left->elements * 8, PyBUF_READ),
                                           (long long)left->positions, left->total.high,
                                           left->total.low, left->total.error)
                           : Py_NewRef(Py_None);
    done = PyObject_CallMethod(module, "finish", "y#NNNNNN", text, (Py_ssize_t)length,
                               view(c->predictions, (int64_t)size_of(c, c->form), PyBUF_READ),
                               view(c->targets, c->n * c->label_size, PyBUF_READ),
                               view(c->slopes, (int64_t)size_of(c, c->slope_form), PyBUF_WRITE),
                               view(value, sizeof *value, PyBUF_WRITE),
                               view(upstream, sizeof *upstream, PyBUF_READ), known);
  }
  if (!done) {
    PyErr_WriteUnraisable(module);
    fill_nan(c, value);
  }
  Py_XDECREF(done);
  Py_XDECREF(module);
  PyGILState_Release(state);
}

void unifiedloss_xla(void **out, const void **in, const char *text, size_t length, void *status) {
  (void)status;
  int64_t numbers[NUMBERS];
  if (!read_numbers(text, length, numbers)) return;
  struct call c = {0};
  c.level = (long)numbers[0];
  c.threads = numbers[1];
  c.loss = (enum loss)numbers[2];
  c.n = numbers[3];
  c.classes = numbers[4];
  c.label_size = (int)numbers[5];
  c.label_signed = (int)numbers[6];
  c.form = (enum form)numbers[7];
  c.slope_form = (enum form)numbers[8];
  memcpy(&c.parameter, &numbers[9], sizeof c.parameter);
  c.divisor = (double)numbers[10];
  const int64_t size = c.n * c.classes;
  const float *upstreams = numbers[13] ? in[2] : NULL;
  float *values = out[0];
  *(int32_t *)out[1] = 0;
  for (int64_t i = 0; i < numbers[11]; i++) {
    c.predictions = number_at(c.form, in[0], i * size);
    c.targets = (const char *)in[1] + i * c.n * c.label_size;
    c.slopes = numbers[12] ? number_at(c.slope_form, out[2], i * size) : NULL;
    unsigned before = keep_subnormals();
    c.upstream = upstreams ? (double)upstreams[i] : 1.0;
    restore(before);
    const double u = fabs(c.upstream);
    const int in_range = u >= SMALLEST_UPSTREAM && u <= LARGEST_UPSTREAM;
    struct left left;
    int state = in_range ? compute_call(&c, values + i, &left) : NO_MEMORY;
    if (state == DECIDED) continue;
    ++*(int32_t *)out[1];
    __atomic_add_fetch(&asking, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&ended, __ATOMIC_SEQ_CST))
      fill_nan(&c, values + i);
    else
      finish(&c, upstreams ? upstreams + i : NULL, state == UNDECIDED ? &left : NULL, values + i,
             text, length);
    __atomic_sub_fetch(&asking, 1, __ATOMIC_SEQ_CST);
    if (state == UNDECIDED) forget(&left);
  }
}
