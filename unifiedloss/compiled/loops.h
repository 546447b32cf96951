/* The loops of exact mode, and what they read and write.

   A loop of the first tier computes every position in float64 and rounds each number whose error
   bound decides the rounding. It lists or flags the others, and the caller computes those. */
#ifndef UNIFIEDLOSS_LOOPS_H
#define UNIFIEDLOSS_LOOPS_H

#include <stddef.h>
#include <stdint.h>
#include "native.h"

/* The dtypes of numbers. The half types are arrays of uint16_t. */
enum form { FLOAT32, BFLOAT16, FLOAT16 };

static inline size_t size_of_form(enum form form) { return form == FLOAT32 ? 4 : 2; }

/* The number with this index, or NULL of none. */
static inline void *number_at(enum form form, const void *x, int64_t i) {
  return x ? (char *)x + i * (int64_t)size_of_form(form) : NULL;
}

/* The sum of the losses that were rounded, as high + low with an error below `error`. */
struct total {
  double high, low, error;
};

/* The targets of a cross-entropy that are not single classes: (1 - smoothing) t + smoothing / K. */
struct soft {
  const void *targets; /* t, or NULL where labels say which is 1 */
  enum form form;
  int64_t stride; /* as in `struct rows` */
  double least;   /* smaller targets count as 0 */
  double smoothing;
  const double *class_weights; /* which multiply the targets, or NULL */
  int by_position;             /* the sum of their products with t multiplies the row instead */
};

/* A cross-entropy of logits with class indices; one row per position. */
struct rows {
  const void *logits;
  enum form form;             /* of the logits */
  int64_t n, classes, stride; /* stride: from one row to the next, in elements */
  const void *labels;
  int label_size, label_signed; /* bytes of a label, and whether it has a sign */
  const struct soft *soft;      /* or NULL */
  const uint8_t *todo;          /* 1 for the positions to compute, or NULL for all */
  const double *weight;         /* the weight of each loss, or NULL for 1 */
  const double *factor;         /* the factor of each row's slopes, or NULL for `scale` */
  double scale;
  enum form loss_form, slope_form; /* to which the results are rounded */
  float *losses; /* receives the losses; untouched, like `slopes`, where nothing is to do */
  void *slopes;  /* receives the gradient, n * classes numbers of `slope_form`, or NULL */
  uint8_t *left; /* zeros; receives 1 where nothing of a position is computed */
  double *room;  /* `room_of(classes)` numbers */
  /* Receives what is undecided elsewhere: row * classes + class for a slope, ~row for a loss. */
  int64_t *elements;
  int64_t capacity; /* of `elements` */
};

/* Single results of a cross-entropy, for its second tier. Those of a row are next to each other. */
struct second {
  const float *logits;
  int64_t classes, stride;
  int64_t n;
  const int64_t *rows, *labels;
  const int64_t *columns; /* the class of a slope, or -1 for the loss */
  const double *factors;  /* three numbers for each result, whose product multiplies it: 3 * n */
  const double *divisor;  /* of the slopes: high part, low part, relative error */
  const double *step;     /* log(2) / 64 in three parts; the first two have 32 bits */
  const double *powers;   /* 2^(j / 64) for j from 0 to 63: 64 high parts, then 64 low parts */
  enum form loss_form, slope_form; /* to which the results are rounded */
  const struct soft *soft; /* or NULL; then there are no losses, and its targets are float32 */
  float *results;
  uint8_t *left; /* receives 1 where a result is undecided; 0 elsewhere */
};

/* An elementwise loss: the binary cross-entropy of logits, the squared error, the Huber loss. */
struct elements {
  const float *predictions, *targets;
  int64_t n;
  const uint8_t *todo;
  const double *weight;
  const double *factor;
  double scale;       /* as in `struct rows` */
  int scale_is_exact; /* whether `scale` is a power of two, so that a product with it is exact */
  double divisor;     /* the integer below 2^28 that `scale` is the inverse of, or 0 */
  double delta;       /* of the Huber loss */
  double pos_weight;  /* of the binary cross-entropy */
  float *losses;      /* or NULL, where only their sum is wanted */
  float *slopes;
  uint8_t *left; /* as in `struct rows`, or NULL where only their number is wanted */
};

#define FLOAT_LIMBS 9

/* An exact sum of float32 numbers: limbs of 32 bits in units of 2^-149, and how many numbers are
   NaN, +inf and -inf; see exact/limbs.py. */
struct exact_sum {
  int64_t limbs[FLOAT_LIMBS], specials[3];
};

typedef int64_t loop_of_rows(const struct rows *, int64_t *elements, struct total *);
typedef int64_t loop_of_elements(const struct elements *, struct total *);

struct loops {
  /* Each returns the number of positions in `left`. A loop of rows leaves the number of undecided
     `elements` in *elements, also where it exceeds their capacity. */
  loop_of_rows *cross_entropy, *soft_cross_entropy;
  loop_of_elements *binary_cross_entropy, *mean_squared_error, *huber;
  void (*second_tier)(const struct second *), (*soft_second_tier)(const struct second *);
  void (*add_exactly)(const float *, int64_t n, struct exact_sum *);
  /* For tests of their bounds: functions of each number, in place. */
  void (*exp)(double *x, int64_t n);
  void (*log1p)(double *x, int64_t n);
  void (*halves)(double *x, int64_t n, enum form form); /* rounded, written, and read again */
  struct native_loops native;
};

/* Where in `rows.room` the room of one more row begins, after that of a group of rows; and how many
   float64 it must hold, with that of two rows of float32. The loops write up to 64 numbers past the
   end of each. */
static inline int64_t spare_room(int64_t classes) { return (classes > 2048 ? classes : 2048) + 64; }
static inline int64_t room_of(int64_t classes) { return spare_room(classes) + 2 * (classes + 64); }

#endif
