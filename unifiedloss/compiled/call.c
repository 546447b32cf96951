/* Computes a call without weights and masks; see call.h. */
#include "call.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "parallel.h"
#include "threads.h"

#define UNIT 0x1p-53
#define LARGEST_DIVISOR 0x1p28 /* up to here the loops decide ties of slopes over integers */
#define FEW 32 /* undecided elements that there is room for at first, beside a loss of each row */

static int is_power_of_two(double x) {
  int exponent;
  return fabs(frexp(x, &exponent)) == 0.5;
}

static int rows_of(const struct call *c, const struct loops *loops, struct left *left) {
  struct rows rows = {0};
  rows.logits = c->predictions;
  rows.form = c->form;
  rows.slope_form = c->slope_form;
  rows.n = c->n;
  rows.classes = rows.stride = c->classes;
  rows.labels = c->targets;
  rows.label_size = c->label_size;
  rows.label_signed = c->label_signed;
  rows.scale = c->upstream / c->divisor;
  rows.slopes = c->slopes;
  rows.left = left->which = calloc((size_t)c->n, 1);
  rows.losses = malloc((size_t)c->n * sizeof *rows.losses);
  rows.capacity = c->n + FEW;
  rows.elements = left->numbers = malloc((size_t)rows.capacity * sizeof *left->numbers);
  int complete = 0;
  while (rows.losses && rows.elements && rows.left && !complete) {
    left->positions = exact_rows(loops, &rows, c->threads, &left->elements, &left->total);
    if (left->positions < 0) break; /* no memory */
    complete = left->elements <= rows.capacity;
    if (complete) break;
    free(left->numbers);
    rows.capacity = left->elements;
    rows.elements = left->numbers = malloc((size_t)rows.capacity * sizeof *left->numbers);
  }
  free(rows.losses);
  return complete;
}

loop_of_elements *elementwise_loop(const struct loops *loops, enum loss loss) {
  return loss == BINARY_CROSS_ENTROPY ? loops->binary_cross_entropy
         : loss == MEAN_SQUARED_ERROR ? loops->mean_squared_error
                                      : loops->huber;
}

static int elements_of(const struct call *c, const struct loops *loops, struct left *left) {
  struct elements e = {0};
  e.predictions = c->predictions;
  e.targets = c->targets;
  e.n = c->n;
  e.scale = c->upstream / c->divisor;
  e.scale_is_exact = is_power_of_two(c->upstream) && is_power_of_two(c->divisor);
  e.divisor = c->upstream == 1 && c->divisor > 1 && c->divisor < LARGEST_DIVISOR ? c->divisor : 0;
  e.delta = e.pos_weight = c->parameter;
  e.slopes = c->slopes;
  loop_of_elements *loop = elementwise_loop(loops, c->loss);
  left->positions = exact_elements(loop, &e, c->threads, &left->total);
  if (left->positions <= 0) return left->positions == 0;
  /* Again with flags, because filling them in every call would take a tenth of its time. */
  e.left = left->which = calloc((size_t)c->n, 1);
  if (!e.left) return 0;
  left->positions = exact_elements(loop, &e, c->threads, &left->total);
  return left->positions >= 0;
}

/* The sum over the divisor, rounded. Returns whether the bound of the sum decides it. */
static int rounded(const struct total *t, double divisor, float *value) {
  if (!isfinite(t->high)) {
    *value = (float)t->high;
    return 1;
  }
  double mean = (t->high + t->low) / divisor;
  /* The sum of both parts, the quotient and the ends of the interval are rounded. */
  double width = t->error / divisor + 6 * UNIT * fabs(mean);
  float first = (float)(mean - width), last = (float)(mean + width);
  *value = first + 0.0f; /* no -0 */
  return first == last;
}

int compute_call(const struct call *c, float *value, struct left *left) {
  const struct loops *loops = loops_at(c->level);
  memset(left, 0, sizeof *left);
  if (!loops) return NO_MEMORY;
  unsigned before = keep_subnormals();
  int decided = 0,
      complete = c->loss == CROSS_ENTROPY ? rows_of(c, loops, left) : elements_of(c, loops, left);
  if (complete && !left->positions && !left->elements)
    decided = rounded(&left->total, c->divisor, value);
  restore(before);
  if (!complete || decided) forget(left);
  return !complete ? NO_MEMORY : decided ? DECIDED : UNDECIDED;
}

void forget(struct left *left) {
  free(left->which);
  free(left->numbers);
  left->which = NULL;
  left->numbers = NULL;
}
