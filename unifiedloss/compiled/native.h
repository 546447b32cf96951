/* The loops of native mode on float32 numbers, and what they read and write.

   They round at every step, within the bounds of the conformance suite. What they compute for a
   position depends neither on its neighbours nor on the number of threads. */
#ifndef UNIFIEDLOSS_NATIVE_H
#define UNIFIEDLOSS_NATIVE_H

#include <stdint.h>

/* Positions of a loss: rows of logits with class indices, or elements, which are rows of one. */
struct native {
  const float *predictions;
  const void *targets;          /* labels, or float32 numbers */
  int64_t n, classes;           /* positions, and predictions of each */
  int label_size, label_signed; /* bytes of a label, and whether it has a sign */
  const uint8_t *todo;          /* 1 for positions that count, or NULL for all */
  const double *factor;         /* the factor of each position's slopes, or NULL for `scale` */
  double scale;
  double parameter; /* delta of the Huber loss, pos_weight of the binary cross-entropy */
  float *losses;    /* receives the losses, or NULL where only their sum is wanted */
  float *slopes;    /* receives the gradient, or NULL; like the losses, 0 where nothing counts */
};

/* A loop computes the positions from `first` to `last`. It returns how many of them it does not
   know, because a label is no class or a number is outside of its formulas, and leaves the sum of
   the losses in *sum. */
typedef int64_t native_loop(const struct native *a, int64_t first, int64_t last, double *sum);

/* What one thread computes at least: elements, which a loop computes together, and rows. */
#define NATIVE_STEP 1024
#define NATIVE_ROWS 16

struct native_loops {
  native_loop *cross_entropy, *binary_cross_entropy, *mean_squared_error, *huber;
};

#endif
