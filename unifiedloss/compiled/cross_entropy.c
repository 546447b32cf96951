/* The cross-entropy of logits with class indices. Compiled once per instruction set.

   With e_c = e^(z_c), S the sum of e_c over the other classes than the label y, and T = S + e_y:

     loss = log(1 + S / e_y)    slope_c = e_c / T    slope_y = -S / T

   Nothing is subtracted, so nothing cancels. Rows are not shifted by their largest logit, because
   that costs a pass; a row whose sums leave the range of float64 is computed again with a shift. */
#include "labels.h"
#include "loops.h"
#include "vectors.h"

#define GROUP 2048 /* logits of short rows that are computed together */
#define BLOCK 256  /* terms that are added before TwoSum takes over */
#define LARGEST_SUM 1e130
#define LARGEST_RATIO 0x1p800

/* Most additions that a term passes through in `sum_row`: those of its block's four accumulators,
   the rest of a block, and the sum of the accumulators. */
static double height(int64_t k) {
  double most = BLOCK / (4 * W) + 16;
  return k < most ? (double)k : most;
}

/* e = e^(z - shift) for m numbers. e has room for a whole number of steps of LANES * W. */
INLINE void exponentials(const float *restrict z, int64_t m, double shift, double *restrict e) {
  int64_t i = 0;
  for (; i + LANES * W <= m; i += LANES * W) {
    doubles x[LANES];
  EACH x[v] = clamp(widen(load_floats(z + i + v * W)) - shift, -700.0, 700.0);
    exp_of(x);
    EACH store_doubles(e + i + v * W, x[v]);
  }
  if (i == m) return;
  float rest[LANES * W] = {0};
  memcpy(rest, z + i, (size_t)(m - i) * sizeof *z);
  doubles x[LANES];
  EACH x[v] = clamp(widen(load_floats(rest + v * W)) - shift, -700.0, 700.0);
  exp_of(x);
  EACH store_doubles(e + i + v * W, x[v]);
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

/* The loss A + log(1 + s) of one row, with A = m - z_y for the largest logit m, and s the sum of
   e^(z_c - m) over the other classes. A is exact and often half way between two float32 numbers,
   and log(1 + s) decides the rounding however small it is. Returns whether the loss is known. */
static int pair_loss(const float *restrict z, int64_t k, int64_t y, float *loss) {
  int64_t top = 0;
  float least = z[0];
  for (int64_t c = 0; c < k; c++) {
    if (!(z[c] <= z[top])) top = c; /* also at a NaN */
    if (z[c] < least) least = z[c];
  }
  double m = z[top], sum, s = 0, small = 0;
  if (!(fabs(m) < INFINITY) || z[y] == -INFINITY) return 0;
  double lost = two_sum(m, -(double)z[y], &sum);
  for (int64_t b = 0; b < k; b += LANES * W) {
    double rest[LANES * W];
    doubles x[LANES], each = {0};
    for (int64_t j = 0; j < LANES * W; j++)
      rest[j] = b + j < k && b + j != top ? (double)z[b + j] - m : -700.0;
    EACH x[v] = clamp(load_doubles(rest + v * W), -700.0, 700.0);
    exp_of(x);
    EACH each += x[v];
    small += two_sum(s, sum_of(each), &s);
  }
  double tail = log1p_one(s + small), span = fmin(m - (double)least, 800.0);
  /* z - m is rounded, which the exponential multiplies by |z - m|; the padding adds e^-700 each. */
  double radius = tail * ((40 + span) * U) + 2 * U * fabs(lost) + (double)(k + LANES * W) * 1e-303;
  float low = (float)to_odd(sum, lost + (tail - radius));
  float high = (float)to_odd(sum, lost + (tail + radius));
  *loss = low + 0.0f; /* no -0 */
  return low == high && high < INFINITY;
}

/* One row's gradient, and its undecided elements. Returns their number. */
INLINE int64_t slopes_of(const struct rows *a, int64_t row, int64_t y, const double *restrict e,
                         double others, double ratio, double error, int64_t found) {
  float *restrict g = a->slopes + row * a->classes;
  double below = ratio * (1 - error), above = ratio * (1 + error);
  ints differ = {0};
  int64_t c = 0, k = a->classes, undecided = 0;
  for (; c + W <= k; c += W) {
    doubles x = load_doubles(e + c);
    floats low = narrow(x * below), high = narrow(x * above);
    store_floats(g + c, low + 0.0f); /* no -0 */
    differ |= low != high;
  }
  int some = any_of_floats(differ);
  for (; c < k; c++) {
    float low = (float)(e[c] * below), high = (float)(e[c] * above);
    g[c] = low + 0.0f;
    some |= low != high;
  }
  float low = (float)(-others * below), high = (float)(-others * above);
  g[y] = low + 0.0f;
  if (!some && low == high) return 0;
  for (c = 0; c < k; c++) {
    if (c == y ? low == high : (float)(e[c] * below) == (float)(e[c] * above)) continue;
    if (found + undecided < a->capacity) a->elements[found + undecided] = row * k + c;
    undecided++;
  }
  return undecided;
}

static int64_t cross_entropy(const struct rows *a, int64_t *elements, struct total *total) {
  const int64_t k = a->classes, n = a->n;
  const int64_t step = k < GROUP ? GROUP / k : 1;
  /* The sum errs by height + 4 with the exponentials, e_y by 3, log1p by 8, the weight by 2; the
     rest is for the quotient, the products and their bounds. */
  const double sums = height(k) * U, loss_error = sums + 22 * U, slope_error = sums + 20 * U;
  double *restrict e = a->room;
  double others[GROUP + W], own[GROUP + W], logs[GROUP + W];
  double high = 0, low = 0, size = 0;
  int64_t left = 0, found = 0;
  for (int64_t b = 0; b < n; b += step) {
    const int64_t count = n - b < step ? n - b : step;
    const float *z = a->logits + b * a->stride;
    if (count == 1 && a->todo && !a->todo[b]) {
      own[0] = 1; /* its exponentials are not read */
    } else if (a->stride == k) {
      exponentials(z, count * k, 0.0, e);
    } else {
      for (int64_t r = 0; r < count; r++) exponentials(z + r * a->stride, k, 0.0, e + r * k);
    }
    for (int64_t r = 0; r < count; r++) {
      int64_t y = a->todo && !a->todo[b + r] ? -1 : label_of(a, b + r);
      others[r] = own[r] = 1.0;
      if (y < 0) continue;
      own[r] = e[r * k + y];
      e[r * k + y] = 0.0;
      others[r] = sum_row(e + r * k, k);
    }
    for (int64_t r = count; r % W; r++) others[r] = own[r] = 1.0;
    for (int64_t r = 0; r < count; r += W)
      store_doubles(logs + r, log1p_of(load_doubles(others + r) / load_doubles(own + r)));
    for (int64_t r = 0; r < count; r++) {
      const int64_t row = b + r;
      if (a->todo && !a->todo[row]) continue;
      const int64_t y = label_of(a, row);
      double sum = others[r] + own[r], loss = logs[r];
      if (a->weight) loss *= a->weight[row];
      float down = (float)(loss * (1 - loss_error)), up = (float)(loss * (1 + loss_error));
      int in_range = sum > 1 / LARGEST_SUM && sum < LARGEST_SUM;
      int known = y >= 0 && in_range && own[r] > 1 / LARGEST_SUM && down == up;
      if (y >= 0 && !known && !a->weight)
        known = pair_loss(z + r * a->stride, k, y, &down);
      double *restrict powers = e + r * k;
      int fits = y >= 0 && sum == sum; /* no NaN */
      if (fits && a->slopes) {
        if (!in_range) {
          double most = -INFINITY;
          for (int64_t c = 0; c < k; c++) most = fmax(most, (double)z[r * a->stride + c]);
          /* The row's own place has no room for a whole number of steps. */
          powers = e + spare_room(k);
          exponentials(z + r * a->stride, k, most, powers);
          own[r] = powers[y];
          powers[y] = 0.0;
          others[r] = sum_row(powers, k);
          sum = others[r] + own[r];
        }
        /* z - m is rounded, which e^(z - m) multiplies by |z - m|, and beyond 700 it is 0. */
        double error = slope_error + (in_range ? 0 : 800 * U);
        double ratio = (a->factor ? a->factor[row] : a->scale) / sum;
        fits = fabs(ratio) < LARGEST_RATIO; /* not so for a NaN, after a shift by an infinity */
        if (fits) found += slopes_of(a, row, y, powers, others[r], ratio, error, found);
      }
      a->losses[row] = down + 0.0f;
      if (!fits) {
        a->left[row] = 1;
        left++;
        continue;
      }
      if (!known) {
        if (found < a->capacity) a->elements[found] = ~row;
        found++;
        continue;
      }
      low += two_sum(high, (double)a->losses[row], &high);
      size += fabs((double)a->losses[row]);
    }
  }
  *elements = found;
  total->high = high;
  total->low = low;
  /* TwoSum loses nothing, and adding its errors loses n^2 U^2 of the magnitudes. */
  total->error = (double)n * U * (double)n * U * size;
  return left;
}
