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

/* How probabilities are read. `compiled.CLIP` is this struct. */
enum rule { UNCLIPPED, CLIPPED, CLAMPED, ADDED, LOGARITHMS };
enum shares { NO_SHARES, BEFORE, AFTER };
struct clip {
  int64_t rule;          /* an `enum rule` */
  double low, high;      /* CLIPPED: numbers below and above these are clipped */
  double costs[2];       /* of the bounds: -log p, at low and at high */
  double complements[2]; /* -log(1 - p) */
  double added;          /* ADDED: to p and 1 - p in their logarithms; at most 2^-10 */
  double least;          /* CLAMPED: the least p (1 - p) that divides a slope */
  /* Of the cross-entropy: */
  int64_t shares;          /* an `enum shares`: when numbers are divided by the sum of their row */
  double gap;              /* 1 minus the upper bound */
  double tiny, most;       /* numbers below count as 0; numbers above are no probabilities */
  int64_t factor_is_exact; /* whether `factor` and `scale` have no error */
};

/* The targets of a cross-entropy that are not single classes of logits:
   (1 - smoothing) t + smoothing / K. */
struct soft {
  const void *targets; /* t, or NULL where labels say which is 1 */
  enum form form;
  int64_t stride; /* as in `struct rows` */
  double least;   /* smaller targets count as 0 */
  double smoothing;
  const double *class_weights; /* which multiply the targets, or NULL */
  int by_position;             /* the sum of their products with t multiplies the row instead */
  const struct clip *clip;     /* how predictions are read that are probabilities, or NULL */
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
  const int64_t *columns;  /* the class of a slope, or -1 for the loss */
  const double *factors;   /* three numbers for each result, whose product multiplies it: 3 * n */
  const double *divisor;   /* of the slopes: high part, low part, relative error */
  const double *constants; /* see pairs.h */
  enum form loss_form, slope_form; /* to which the results are rounded */
  const struct soft *soft; /* or NULL; then there are no losses, and its targets are float32 */
  float *results;
  uint8_t *left; /* receives 1 where a result is undecided; 0 elsewhere */
};

/* How targets and factors are stored: as numbers of a form, or as one of these. */
enum other { FLOAT64 = 3, UINT8, INT8, INT32, INT64 };

/* The bytes of a number of an `enum form` or an `enum other`. */
static inline int64_t bytes_of(int kind) {
  static const int8_t bytes[] = {4, 2, 2, 8, 1, 1, 4, 8};
  return bytes[kind];
}

/* What a call has beyond float32 numbers, one weight and one factor for each loss. */
struct mixed {
  enum form read;      /* how predictions are stored */
  enum form form;      /* the form of the slopes */
  enum form loss_form; /* what losses are rounded to */
  enum form stored;    /* how they are stored; if not as float32, they are not added */
  int target, factor;  /* each an `enum form` or an `enum other` */
  int64_t size;        /* the elements of a position, whose losses are averaged; else 1 */
  double smoothing;    /* of the binary cross-entropy */
  /* One pos_weight for each element of an axis, with so many elements from one to the next; the
     call is `first` elements into the axes. Or NULL. */
  const double *pos_weights;
  int64_t period, inner, first;
  double loss_scale;       /* multiplies the losses */
  double over;             /* divides the slopes, whose factors and `scale` are numerators here */
  const struct clip *clip; /* or NULL for logits */
  int no_losses;           /* whether only slopes are wanted */
  int weight_is_exact, factor_is_exact; /* whether these have no error, `over` included */
};

/* An elementwise loss: the binary cross-entropy of logits, the squared error, the Huber loss. Where
   `mixed` is set, `weight`, `factor`, `todo` and `left` have an entry for each position. */
struct elements {
  const void *predictions, *targets; /* float32, unless `mixed` says otherwise */
  int64_t n;
  const uint8_t *todo;
  const double *weight; /* only of `mixed`, like `factor` */
  const void *factor;
  double scale;       /* as in `struct rows` */
  int scale_is_exact; /* whether `scale` is a power of two, so that a product with it is exact */
  double divisor;     /* the integer below 2^28 that `scale` is the inverse of, or 0 */
  double delta;       /* of the Huber loss */
  double pos_weight;  /* of the binary cross-entropy */
  void *losses;       /* or NULL, where only their sum is wanted */
  void *slopes;
  uint8_t *left; /* as in `struct rows`, or NULL where only their number is wanted */
  const struct mixed *mixed;
};

/* A loss of float64 predictions: rows of logits with class indices, or elements with numbers. */
struct wide {
  const double *predictions;
  int64_t n, classes, stride;   /* as in `struct rows`; 1 and 1 for elements */
  const void *targets;          /* labels, or float64 numbers */
  int label_size, label_signed; /* as in `struct rows` */
  const uint8_t *todo;
  const double *weight, *own; /* factors of each result, or NULL for 1 */
  const double *upstreams;
  double upstream;         /* of each slope, or one for all */
  double divisor[3];       /* of the slopes: high part, low part, relative error */
  double parameter;        /* delta or pos_weight, as in `struct elements` */
  const double *constants; /* see pairs.h */
  double *losses, *slopes; /* untouched where nothing is to do; no slopes where NULL */
  uint8_t *left;           /* zeros; receives 1 where something of a position is undecided */
  double *room;            /* `wide_room_of(classes)` numbers, for rows */
};

#define FLOAT_LIMBS 9

/* An exact sum of float32 numbers: limbs of 32 bits in units of 2^-149, and how many numbers are
   NaN, +inf and -inf; see exact/limbs.py. */
struct exact_sum {
  int64_t limbs[FLOAT_LIMBS], specials[3];
};

typedef int64_t loop_of_rows(const struct rows *, int64_t *elements, struct total *);
typedef int64_t wide_loop(const struct wide *); /* returns the number of positions in `left` */

typedef int64_t loop_of_elements(const struct elements *, struct total *);

struct loops {
  /* Each returns the number of positions in `left`. A loop of rows leaves the number of undecided
     `elements` in *elements, also where it exceeds their capacity. */
  loop_of_rows *cross_entropy, *soft_cross_entropy;
  loop_of_elements *binary_cross_entropy, *mean_squared_error, *huber;
  void (*second_tier)(const struct second *), (*soft_second_tier)(const struct second *);
  wide_loop *wide[4]; /* in the order of enum loss */
  void (*sum_in_pairs)(const double *, int64_t n, struct total *);
  void (*add_exactly)(const float *, int64_t n, struct exact_sum *);
  /* For tests of their bounds: functions of each number, in place. */
  void (*exp)(double *x, int64_t n);
  void (*log1p)(double *x, int64_t n);
  void (*halves)(double *x, int64_t n, enum form form); /* rounded, written, and read again */
  void (*of_pairs)(const double *constants, double *high, double *low, int64_t n, int logarithm);
  struct native_loops native;
};

/* Where in `rows.room` the room of one more row begins, after that of a group of rows; and how many
   float64 it must hold, with that of two rows of float32. The loops write up to 64 numbers past the
   end of each. */
static inline int64_t spare_room(int64_t classes) { return (classes > 2048 ? classes : 2048) + 64; }
static inline int64_t room_of(int64_t classes) { return spare_room(classes) + 4 * (classes + 64); }

/* The same for `wide.room`: exponentials in two parts. */
static inline int64_t wide_room_of(int64_t classes) { return 2 * (classes + 16); }

#endif
