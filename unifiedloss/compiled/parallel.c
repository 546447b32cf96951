/* See parallel.h. Compiled once, for the lowest level. */
#include "parallel.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "threads.h"

#define ROWS 64    /* rows that exact mode computes in one thread at least */
#define CHUNK 1024 /* elements, likewise */
#define WIDE_ROWS 8
#define SUMS 1024 /* partial sums of native mode */

/* Results of the parts of an exact loop. */
struct parts {
  const struct loops *loops;
  const struct rows *rows;
  loop_of_elements *loop;
  const struct elements *elements;
  struct total totals[MOST_THREADS];
  int64_t left[MOST_THREADS], found[MOST_THREADS];
  double *rooms;  /* of all parts */
  int64_t *lists; /* of undecided elements, of all parts */
};

/* a + b = *sum + the result, without an error (Knuth). */
static double two_sum_of(double a, double b, double *sum) {
  double s = a + b, shadow = s - a;
  *sum = s;
  return (a - (s - shadow)) + (b - shadow);
}

/* Add the totals of the parts, whose number decides how they round: the error bound says so, and
   the caller rounds only what that bound decides. */
static void add_totals(const struct total *totals, int64_t parts, struct total *total) {
  *total = totals[0];
  for (int64_t i = 1; i < parts; i++) {
    const double lost = two_sum_of(total->high, totals[i].high, &total->high);
    total->low += totals[i].low + lost;
    /* The sums of the lower parts and of the errors are rounded. */
    total->error +=
        totals[i].error + 0x1p-52 * (fabs(total->low) + fabs(totals[i].low) + fabs(lost));
    total->error *= 1 + 0x1p-50;
  }
}

#define AFTER(pointer, count) ((pointer) ? (pointer) + (count) : NULL)

static void part_of_rows(void *context, int64_t part, int64_t first, int64_t last) {
  struct parts *all = context;
  struct rows rows = *all->rows;
  rows.n = last - first;
  rows.logits = number_at(rows.form, rows.logits, first * rows.stride);
  rows.labels = (const char *)rows.labels + first * rows.label_size;
  rows.todo = AFTER(rows.todo, first);
  rows.weight = AFTER(rows.weight, first);
  rows.factor = AFTER(rows.factor, first);
  rows.losses = AFTER(rows.losses, first);
  rows.slopes = number_at(rows.slope_form, rows.slopes, first * rows.classes);
  rows.left += first;
  rows.room = all->rooms + part * room_of(rows.classes);
  rows.elements = all->lists + part * rows.capacity;
  struct soft soft;
  if (rows.soft) {
    soft = *rows.soft;
    soft.targets = number_at(soft.form, soft.targets, first * soft.stride);
    rows.soft = &soft;
  }
  loop_of_rows *loop = rows.soft ? all->loops->soft_cross_entropy : all->loops->cross_entropy;
  all->left[part] = loop(&rows, &all->found[part], &all->totals[part]);
  const int64_t listed = all->found[part] < rows.capacity ? all->found[part] : rows.capacity;
  for (int64_t i = 0; i < listed; i++)
    rows.elements[i] += rows.elements[i] < 0 ? -first : first * rows.classes; /* ~row of a loss */
}

int64_t exact_rows(const struct loops *loops, const struct rows *rows, int64_t threads,
                   int64_t *elements, struct total *total) {
  const int64_t parts = parts_of(threads, (rows->n + ROWS - 1) / ROWS, rows->n * rows->classes);
  struct parts *all = malloc(sizeof *all);
  double *rooms = malloc((size_t)(parts * room_of(rows->classes)) * sizeof *rooms);
  int64_t *lists = malloc((size_t)(parts * rows->capacity + 1) * sizeof *lists), left = -1;
  if (all && rooms && lists) {
    all->loops = loops;
    all->rows = rows;
    all->rooms = rooms;
    all->lists = lists;
    run_parts(parts, rows->n, ROWS, part_of_rows, all);
    add_totals(all->totals, parts, total);
    left = *elements = 0;
    for (int64_t i = 0; i < parts; i++) {
      for (int64_t j = 0; j < all->found[i] && j < rows->capacity; j++)
        if (*elements + j < rows->capacity)
          rows->elements[*elements + j] = lists[i * rows->capacity + j];
      *elements += all->found[i];
      left += all->left[i];
    }
  }
  free(all);
  free(rooms);
  free(lists);
  return left;
}

static void part_of_elements(void *context, int64_t part, int64_t first, int64_t last) {
  struct parts *all = context;
  struct elements e = *all->elements;
  struct mixed mixed;
  e.n = last - first;
  if (e.mixed) {
    mixed = *e.mixed;
    mixed.first += first * mixed.size;
    e.mixed = &mixed;
  }
  const int64_t start = first * (e.mixed ? mixed.size : 1);
  e.predictions = (const char *)e.predictions + start * bytes_of(e.mixed ? mixed.read : FLOAT32);
  e.targets = (const char *)e.targets + start * bytes_of(e.mixed ? mixed.target : FLOAT32);
  e.todo = AFTER(e.todo, first);
  e.weight = AFTER(e.weight, first);
  e.factor = AFTER((const char *)e.factor, first * bytes_of(e.mixed ? mixed.factor : FLOAT64));
  e.losses = AFTER((char *)e.losses, first * bytes_of(e.mixed ? mixed.stored : FLOAT32));
  e.slopes = AFTER((char *)e.slopes, start * bytes_of(e.mixed ? mixed.form : FLOAT32));
  e.left = AFTER(e.left, first);
  all->left[part] = all->loop(&e, &all->totals[part]);
}

int64_t exact_elements(loop_of_elements *loop, const struct elements *e, int64_t threads,
                       struct total *total) {
  const int64_t size = e->mixed ? e->mixed->size : 1;
  const int64_t step = (CHUNK + size - 1) / size; /* positions */
  const int64_t parts = parts_of(threads, (e->n + step - 1) / step, e->n * size);
  struct parts *all = malloc(sizeof *all);
  if (!all) return -1;
  all->loop = loop;
  all->elements = e;
  run_parts(parts, e->n, step, part_of_elements, all);
  add_totals(all->totals, parts, total);
  int64_t left = 0;
  for (int64_t i = 0; i < parts; i++) left += all->left[i];
  free(all);
  return left;
}

struct wide_parts {
  wide_loop *loop;
  const struct wide *a;
  int64_t left[MOST_THREADS];
  double *rooms;
};

static void part_of_wide(void *context, int64_t part, int64_t first, int64_t last) {
  struct wide_parts *all = context;
  struct wide a = *all->a;
  a.n = last - first;
  a.predictions += first * a.stride;
  a.targets = (const char *)a.targets + first * a.label_size;
  a.todo = AFTER(a.todo, first);
  a.weight = AFTER(a.weight, first);
  a.own = AFTER(a.own, first);
  a.upstreams = AFTER(a.upstreams, first);
  a.losses += first;
  a.slopes = AFTER(a.slopes, first * a.classes);
  a.left += first;
  a.room = all->rooms + part * wide_room_of(a.classes);
  all->left[part] = all->loop(&a);
}

int64_t exact_wide(wide_loop *loop, const struct wide *a, int64_t threads) {
  const int64_t step = a->classes > 1 ? WIDE_ROWS : CHUNK;
  const int64_t parts = parts_of(threads, (a->n + step - 1) / step, a->n * a->classes);
  struct wide_parts *all = malloc(sizeof *all);
  double *rooms = malloc((size_t)(parts * wide_room_of(a->classes)) * sizeof *rooms);
  int64_t left = -1;
  if (all && rooms) {
    all->loop = loop;
    all->a = a;
    all->rooms = rooms;
    run_parts(parts, a->n, step, part_of_wide, all);
    left = 0;
    for (int64_t i = 0; i < parts; i++) left += all->left[i];
  }
  free(all);
  free(rooms);
  return left;
}

struct exact_sums {
  const struct loops *loops;
  loop_of_elements *loop;
  const struct elements *elements;
  struct exact_sum sums[MOST_THREADS];
  int64_t left[MOST_THREADS];
};

static void part_of_sum(void *context, int64_t part, int64_t first, int64_t last) {
  struct exact_sums *all = context;
  float losses[4 * CHUNK]; /* they stay in the first cache until they are added */
  for (int64_t b = first; b < last; b += 4 * CHUNK) {
    struct elements e = *all->elements;
    e.n = last - b < 4 * CHUNK ? last - b : 4 * CHUNK;
    e.predictions = (const float *)e.predictions + b;
    e.targets = (const float *)e.targets + b;
    e.losses = losses;
    struct total total;
    all->left[part] += all->loop(&e, &total);
    all->loops->add_exactly(losses, e.n, &all->sums[part]);
  }
}

int64_t sum_of_elements(const struct loops *loops, loop_of_elements *loop, const struct elements *e,
                        int64_t threads, struct exact_sum *sum) {
  const int64_t parts = parts_of(threads, (e->n + CHUNK - 1) / CHUNK, e->n);
  struct exact_sums *all = calloc(1, sizeof *all);
  if (!all) return -1;
  all->loops = loops;
  all->loop = loop;
  all->elements = e;
  run_parts(parts, e->n, CHUNK, part_of_sum, all);
  int64_t left = 0;
  for (int64_t i = 0; i < parts; i++) {
    left += all->left[i];
    for (int k = 0; k < FLOAT_LIMBS; k++) sum->limbs[k] += all->sums[i].limbs[k];
    for (int k = 0; k < 3; k++) sum->specials[k] += all->sums[i].specials[k];
  }
  free(all);
  return left;
}

/* The sums of steps, which are the same for every number of parts. */
struct sums {
  native_loop *loop;
  const struct native *a;
  int64_t step, unknown[MOST_THREADS];
  double of_step[SUMS];
};

static void part_of_native(void *context, int64_t part, int64_t first, int64_t last) {
  struct sums *s = context;
  for (int64_t b = first; b < last; b += s->step)
    s->unknown[part] +=
        s->loop(s->a, b, last - b < s->step ? last : b + s->step, s->of_step + b / s->step);
}

int64_t native_positions(native_loop *loop, const struct native *a, int64_t step, int64_t threads,
                         double *sum) {
  struct sums s;
  s.loop = loop;
  s.a = a;
  s.step = step * ((a->n + step * SUMS - 1) / (step * SUMS));
  const int64_t steps = (a->n + s.step - 1) / s.step;
  const int64_t parts = parts_of(threads, steps, a->n * a->classes);
  memset(s.unknown, 0, (size_t)parts * sizeof *s.unknown);
  run_parts(parts, a->n, s.step, part_of_native, &s);
  int64_t unknown = 0;
  *sum = 0;
  for (int64_t i = 0; i < steps; i++) *sum += s.of_step[i];
  for (int64_t i = 0; i < parts; i++) unknown += s.unknown[i];
  return unknown;
}
