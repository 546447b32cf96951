/* The cross-entropy of logits with class indices. Compiled once per instruction set.

   With e_c = e^(z_c), S the sum of e_c over the other classes than the label y, and T = S + e_y:

     loss = log(1 + S / e_y)    slope_c = e_c / T    slope_y = -S / T

   Nothing is subtracted, so nothing cancels. Rows are not shifted by their largest logit, because
   that costs a pass; a row whose sums leave the range of float64 is computed again with a shift. */
#include "softmax.h"

#define GROUP 2048 /* logits of short rows that are computed together */
#define LARGEST_SUM 1e130

/* The loss A + log(1 + s) of one row, with A = m - z_y for the largest logit m, and s the sum of
   e^(z_c - m) over the other classes. A is exact and often half way between two float32 numbers,
   and log(1 + s) decides the rounding however small it is. Returns whether the loss is known. */
static int pair_loss(enum form form, const float *restrict z, int64_t k, int64_t y, float *loss) {
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
  float low = rounded_to(form, to_odd(sum, lost + (tail - radius)));
  float high = rounded_to(form, to_odd(sum, lost + (tail + radius)));
  *loss = low;
  return low == high && high < INFINITY;
}

/* Round the slopes e_c ratio of a row, which err by `error`. Returns whether one is undecided. */
INLINE int round_floats(const double *restrict e, int64_t k, double ratio, double error,
                        float *restrict g) {
  const double below = ratio * (1 - error), above = ratio * (1 + error);
  ints differ = {0};
  int64_t c = 0;
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
  return some;
}

INLINE int round_halves(enum form form, const double *restrict e, int64_t k, double ratio,
                        double error, uint16_t *restrict g) {
  const double width = fabs(ratio) * error;
  longs undecided = {0};
  int64_t c = 0;
  for (; c + W <= k; c += W) {
    const doubles x = load_doubles(e + c);
    store_form(form, g + c, decided_half(form, x * ratio, x * width, &undecided));
  }
  if (c == k) return any_of(undecided);
  double rest[W] = {0};
  uint16_t last[W];
  memcpy(rest, e + c, (size_t)(k - c) * sizeof *e);
  const doubles x = load_doubles(rest);
  store_form(form, last, decided_half(form, x * ratio, x * width, &undecided));
  memcpy(g + c, last, (size_t)(k - c) * sizeof *g);
  return any_of(undecided);
}

/* A slope near x, as `round_floats` and `round_halves` round it. Returns whether it is decided. */
INLINE int round_slope(enum form form, double x, double error, void *to) {
  if (form == FLOAT32) {
    float low = (float)(x * (1 - error)), high = (float)(x * (1 + error));
    *(float *)to = low + 0.0f;
    return low == high;
  }
  longs undecided = {0};
  uint16_t all_alike[W];
  store_form(form, all_alike, decided_half(form, all(x), all(fabs(x) * error), &undecided));
  memcpy(to, all_alike, sizeof *all_alike);
  return !undecided[0];
}

/* One row's gradient, and its undecided elements. Returns their number. */
INLINE int64_t slopes_of(const struct rows *a, int64_t row, int64_t y, const double *restrict e,
                         double others, double ratio, double error, int64_t found) {
  const enum form form = a->slope_form;
  const int64_t k = a->classes;
  void *g = number_at(form, a->slopes, row * k);
  int some = form == FLOAT32    ? round_floats(e, k, ratio, error, g)
             : form == BFLOAT16 ? round_halves(BFLOAT16, e, k, ratio, error, g)
                                : round_halves(FLOAT16, e, k, ratio, error, g);
  some |= !round_slope(form, -others * ratio, error, number_at(form, g, y));
  if (!some) return 0;
  int64_t undecided = 0;
  for (int64_t c = 0; c < k; c++) {
    if (round_slope(form, (c == y ? -others : e[c]) * ratio, error, number_at(form, g, c)))
      continue;
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
    const void *z = number_at(a->form, a->logits, b * a->stride);
    if (count == 1 && a->todo && !a->todo[b]) {
      own[0] = 1; /* its exponentials are not read */
    } else if (a->stride == k) {
      exponentials(a->form, z, count * k, 0.0, e);
    } else {
      for (int64_t r = 0; r < count; r++)
        exponentials(a->form, number_at(a->form, z, r * a->stride), k, 0.0, e + r * k);
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
      float down = rounded_to(a->loss_form, loss * (1 - loss_error));
      float up = rounded_to(a->loss_form, loss * (1 + loss_error));
      int in_range = sum > 1 / LARGEST_SUM && sum < LARGEST_SUM;
      int known = y >= 0 && in_range && own[r] > 1 / LARGEST_SUM && down == up;
      /* The row's own place has no room for a whole number of steps. */
      double *restrict spare = e + spare_room(k);
      const void *own_logits = number_at(a->form, z, r * a->stride);
      if (y >= 0 && !known && !a->weight)
        known =
            pair_loss(a->loss_form, floats_of(a->form, own_logits, k, (float *)spare), k, y, &down);
      double *restrict powers = e + r * k;
      int fits = y >= 0 && sum == sum; /* no NaN */
      if (fits && a->slopes) {
        if (!in_range) {
          const float *each = floats_of(a->form, own_logits, k, (float *)spare);
          double most = -INFINITY;
          for (int64_t c = 0; c < k; c++) most = fmax(most, (double)each[c]);
          powers = spare;
          exponentials(a->form, own_logits, k, most, powers);
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
      a->losses[row] = down;
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
