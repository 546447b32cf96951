/* What the loops of the cross-entropy share: exponentials of logits, and sums over a row. */
#ifndef UNIFIEDLOSS_SOFTMAX_H
#define UNIFIEDLOSS_SOFTMAX_H

#include "halves.h"
#include "labels.h"
#include "loops.h"
#include "vectors.h"

#define BLOCK 256 /* terms that are added before TwoSum takes over */
#define LARGEST_RATIO 0x1p800

/* Most additions that a term passes through in `sum_row`: those of its block's four accumulators,
   the rest of a block, and the sum of the accumulators. */
static double height(int64_t k) {
  double most = BLOCK / (4 * W) + 16;
  return k < most ? (double)k : most;
}

INLINE doubles numbers_at(enum form form, const void *x, int64_t i) {
  return widen(load_form(form, number_at(form, x, i)));
}

INLINE void exponentials_from(enum form form, const void *restrict z, int64_t m, double shift,
                              double *restrict e) {
  int64_t i = 0;
  for (; i + LANES * W <= m; i += LANES * W) {
    doubles x[LANES];
    EACH x[v] = clamp(numbers_at(form, z, i + v * W) - shift, -700.0, 700.0);
    exp_of(x);
    EACH store_doubles(e + i + v * W, x[v]);
  }
  if (i == m) return;
  float rest[LANES * W] = {0};
  memcpy(rest, number_at(form, z, i), (size_t)(m - i) * size_of_form(form));
  doubles x[LANES];
  EACH x[v] = clamp(numbers_at(form, rest, v * W) - shift, -700.0, 700.0);
  exp_of(x);
  EACH store_doubles(e + i + v * W, x[v]);
}

/* e = e^(z - shift) for m numbers. e has room for a whole number of steps of LANES * W. */
INLINE void exponentials(enum form form, const void *z, int64_t m, double shift, double *e) {
  switch (form) {
    case FLOAT32: exponentials_from(FLOAT32, z, m, shift, e); break;
    case BFLOAT16: exponentials_from(BFLOAT16, z, m, shift, e); break;
    case FLOAT16: exponentials_from(FLOAT16, z, m, shift, e);
  }
}

/* The sum of k positive numbers, with an error below (height(k) + 1) U of it. */
INLINE double sum_row(const double *restrict e, int64_t k) {
  double high = 0, low = 0;
  for (int64_t b = 0; b < k; b += BLOCK) {
    int64_t end = k - b < BLOCK ? k : b + BLOCK, i = b;
    doubles s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    for (; i + 4 * W <= end; i += 4 * W) {
      s0 += load_doubles(e + i);
      s1 += load_doubles(e + i + W);
      s2 += load_doubles(e + i + 2 * W);
      s3 += load_doubles(e + i + 3 * W);
    }
    for (; i + W <= end; i += W) s0 += load_doubles(e + i);
    double sum = sum_of((s0 + s1) + (s2 + s3));
    for (; i < end; i++) sum += e[i];
    low += two_sum(high, sum, &high);
  }
  return high + low;
}

INLINE int64_t label_of(const struct rows *a, int64_t row) {
  return class_of(a->labels, a->label_size, a->label_signed, a->classes, row);
}

/* The k numbers of a row in float32, in `room` where they must be converted. */
static const float *floats_of(enum form form, const void *z, int64_t k, float *room) {
  if (form == FLOAT32) return z;
  int64_t i = 0;
  for (; i + W <= k; i += W) store_floats(room + i, load_form(form, number_at(form, z, i)));
  if (i < k) {
    uint16_t rest[W] = {0};
    memcpy(rest, number_at(form, z, i), (size_t)(k - i) * sizeof *rest);
    const floats last = load_form(form, rest);
    memcpy(room + i, &last, (size_t)(k - i) * sizeof *room);
  }
  return room;
}

#endif
