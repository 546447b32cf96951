/* The cross-entropy of logits with dense targets, or with smoothed class indices. Compiled once per
   instruction set.

   With tau_c = w_c (keep t_c + share), keep = 1 - smoothing, share = smoothing / K, their sum T, the
   largest logit m, e_c = e^(z_c - m), and s the sum of e_c over the other classes than that of m:

     loss = sum of tau_c (m - z_c) + T log(1 + s)    slope_c = T e_c / (1 + s) - tau_c

   No part of the loss is negative. The slope of the largest logit is (T - tau_c) - T s / (1 + s), with
   T - tau_c added from the other classes. A slope is a difference, so its error is a share of the sum
   of both parts.

   With h = height(k), in units U:
     tau_c errs by 4 (keep, share, their products and sum, the class weight), its sum by h + 5;
     m - z_c errs by 1, and the sum of tau_c (m - z_c) by h + 7;
     e_c errs by 3 and by the error of m - z_c, s by h + 4 and that error, log(1 + s) by 8 more;
     so the loss errs by 2 h + 19 with its weight (2), and by the error of m - z_c;
     T e_c / (1 + s) errs by 2 h + 18 with the factor (4), and by that error twice.
   The rest of 2 h + 30 is for the products with these bounds and the ends of the intervals. */
#include "softmax.h"

/* A logit of -inf is farther than this from the largest one. A loss that reaches LARGEST_LOSS has
   such a part, or a target that is infinite or a NaN. */
#define FARTHEST 0x1p1000
#define LARGEST_LOSS 0x1p600

/* The largest and the smallest logit of a row, and the smallest magnitude. A NaN may be ignored. */
struct range {
  int64_t top;
  double most, least, smallest;
};

INLINE floats choose_floats(ints condition, floats yes, floats no) {
  return (floats)((condition & (ints)yes) | (~condition & (ints)no));
}

static __attribute__((noinline)) struct range range_of(const float *restrict z, int64_t k) {
  floats most = (floats){0} - INFINITY, least = -most, smallest = least;
  float largest = -INFINITY, lowest = INFINITY, size = INFINITY;
  int64_t c = 0;
  for (; c + W <= k; c += W) {
    const floats x = load_floats(z + c), apart = (floats)((ints)x & INT32_MAX);
    most = choose_floats(x > most, x, most);
    least = choose_floats(x < least, x, least);
    smallest = choose_floats(apart < smallest, apart, smallest);
  }
  for (int v = 0; v < W; v++) {
    largest = most[v] > largest ? most[v] : largest;
    lowest = least[v] < lowest ? least[v] : lowest;
    size = smallest[v] < size ? smallest[v] : size;
  }
  for (; c < k; c++) {
    largest = z[c] > largest ? z[c] : largest;
    lowest = z[c] < lowest ? z[c] : lowest;
    size = fabsf(z[c]) < size ? fabsf(z[c]) : size;
  }
  for (c = 0; c + W <= k && !any_of_floats(load_floats(z + c) == largest);) c += W;
  while (c < k - 1 && z[c] != largest) c++;
  return (struct range){c, largest, lowest, size};
}

/* The relative error of e^(z - m) by the rounding of z - m. float64 holds the difference of two
   float32 numbers that are not 2^28 times smaller than it; beyond 700 the exponential counts as 0. */
static double error_of_shift(const struct range *range) {
  const double span = range->most - range->least;
  return range->smallest * 0x1p28 >= span ? 0 : fmin(span, 800) * U;
}

/* Not inlined, because these loops add rows in many places, and the module is to stay small. */
static __attribute__((noinline)) double add_row(const double *x, int64_t k) {
  return sum_row(x, k);
}

/* The sum of x_c min(m - z_c, FARTHEST), of positive terms, with an error as in `sum_row`. */
static double sum_apart(const double *restrict x, const float *restrict z, double m, int64_t k) {
  double high = 0, low = 0;
  for (int64_t b = 0; b < k; b += BLOCK) {
    const int64_t end = k - b < BLOCK ? k : b + BLOCK;
    int64_t i = b;
    doubles s[LANES] = {{0}};
    for (; i + LANES * W <= end; i += LANES * W) {
      doubles apart[LANES];
      EACH apart[v] = clamp(m - widen(load_floats(z + i + v * W)), 0, FARTHEST);
      EACH s[v] = muladd(load_doubles(x + i + v * W), apart[v], s[v]);
    }
    for (; i + W <= end; i += W)
      s[0] = muladd(load_doubles(x + i), clamp(m - widen(load_floats(z + i)), 0, FARTHEST), s[0]);
    double sum = sum_of((s[0] + s[1]) + (s[2] + s[3]));
    for (; i < end; i++) {
      const double apart = m - (double)z[i];
      sum += x[i] * (apart > FARTHEST ? FARTHEST : apart);
    }
    low += two_sum(high, sum, &high);
  }
  return high + low;
}

/* tau = keep t + share, times class weights unless they multiply positions. Returns whether all
   targets are targets. */
static int fill_targets(const struct soft *a, double keep, double share, const float *restrict t,
                        int64_t k, double *restrict tau) {
  const double *restrict w = a->by_position ? NULL : a->class_weights;
  const double least = a->least;
  longs bad = {0};
  int64_t c = 0;
  for (; c + W <= k; c += W) {
    doubles x = widen(load_floats(t + c));
    bad |= ~((x > -least) & (x < INFINITY));
    x = choose(x >= least, x, all(0));
    x = muladd(x, all(keep), all(share));
    store_doubles(tau + c, w ? x * load_doubles(w + c) : x);
  }
  int some = any_of(bad);
  for (; c < k; c++) {
    const double x = t[c];
    some |= !(x > -least && x < INFINITY);
    tau[c] = (keep * (x >= least ? x : 0) + share) * (w ? w[c] : 1);
  }
  return !some;
}

/* The sum of w_c t_c, which multiplies the position. */
static double weight_of_position(const struct soft *a, const float *restrict t, int64_t k,
                                 double *restrict room) {
  for (int64_t c = 0; c < k; c++)
    room[c] = a->class_weights[c] * (t[c] >= a->least ? (double)t[c] : 0);
  return add_row(room, k);
}

/* What the slopes e_c ratio - tau_c factor of a row have in common. */
struct slope {
  double ratio, factor, error;
};

INLINE doubles between_parts(const struct slope *s, doubles e, doubles tau, doubles *width) {
  const double of_e = fabs(s->ratio) * s->error, of_tau = fabs(s->factor) * s->error;
  *width = muladd(e, all(of_e), tau * of_tau);
  return e * s->ratio - tau * s->factor;
}

/* Round numbers within `width` of x; *differ receives ones where they do not round alike. */
INLINE doubles round_parts(enum form form, doubles x, doubles width, longs *differ) {
  if (form != FLOAT32) return decided_half(form, x, width, differ);
  const doubles low = widen(narrow(x - width)), high = widen(narrow(x + width));
  *differ |= low != high;
  return low + 0.0; /* no -0 */
}

INLINE int round_row(enum form form, const struct slope *s, const double *restrict e,
                     const double *restrict tau, int64_t k, void *restrict g) {
  longs differ = {0};
  doubles width;
  int64_t c = 0;
  for (; c + W <= k; c += W) {
    const doubles x = between_parts(s, load_doubles(e + c), load_doubles(tau + c), &width);
    store_form(form, number_at(form, g, c), round_parts(form, x, width, &differ));
  }
  if (c == k) return any_of(differ);
  double parts[2][W] = {{0}};
  float last[W];
  memcpy(parts[0], e + c, (size_t)(k - c) * sizeof *e);
  memcpy(parts[1], tau + c, (size_t)(k - c) * sizeof *tau);
  const doubles x = between_parts(s, load_doubles(parts[0]), load_doubles(parts[1]), &width);
  store_form(form, last, round_parts(form, x, width, &differ));
  memcpy(number_at(form, g, c), last, (size_t)(k - c) * size_of_form(form));
  return any_of(differ);
}

/* Round the slope of one class. Returns whether it is decided. */
INLINE int round_part(enum form form, double positive, double negative, double error, void *to) {
  longs differ = {0};
  float all_alike[W];
  const double width = error * (fabs(positive) + fabs(negative));
  store_form(form, all_alike, round_parts(form, all(positive - negative), all(width), &differ));
  memcpy(to, all_alike, size_of_form(form));
  return !differ[0];
}

/* A row's gradient, and its undecided elements. Returns their number. At the largest logit the parts
   are those given, and e and tau hold 0. */
static __attribute__((noinline)) int64_t gradient_of_row(const struct rows *a, int64_t row,
                                                         const struct slope *s, const double *e,
                                                         const double *tau, int64_t top,
                                                         double positive, double negative,
                                                         int64_t found) {
  const enum form form = a->slope_form;
  const int64_t k = a->classes;
  void *g = number_at(form, a->slopes, row * k);
  int some = form == FLOAT32    ? round_row(FLOAT32, s, e, tau, k, g)
             : form == BFLOAT16 ? round_row(BFLOAT16, s, e, tau, k, g)
                                : round_row(FLOAT16, s, e, tau, k, g);
  some |= !round_part(form, positive, negative, s->error, number_at(form, g, top));
  if (!some) return 0;
  int64_t undecided = 0;
  for (int64_t c = 0; c < k; c++) {
    const double own = c == top ? positive : e[c] * s->ratio;
    const double other = c == top ? negative : tau[c] * s->factor;
    if (round_part(form, own, other, s->error, number_at(form, g, c))) continue;
    if (found + undecided < a->capacity) a->elements[found + undecided] = row * k + c;
    undecided++;
  }
  return undecided;
}

INLINE double share_of(const struct rows *a) { return a->soft->smoothing / (double)a->classes; }

/* The tau of a row, and in *of_row what multiplies the row beside the sample weight. `tau` holds
   those of no label where there are labels, and then only that at y changes. Returns whether all
   targets are targets. */
static __attribute__((noinline)) int targets_of_row(const struct rows *a, int64_t row, int64_t y,
                                                    double *tau, float *room, double *scratch,
                                                    double *of_row) {
  const struct soft *soft = a->soft;
  const int64_t k = a->classes;
  const double keep = 1 - soft->smoothing, share = share_of(a);
  *of_row = 1;
  if (y >= 0) {
    const double own = keep + share;
    tau[y] = soft->class_weights ? own * soft->class_weights[y] : own;
    return 1;
  }
  const enum form form = soft->form;
  const float *t = floats_of(form, number_at(form, soft->targets, row * soft->stride), k, room);
  if (!fill_targets(soft, keep, share, t, k, tau)) return 0;
  if (soft->by_position) *of_row = weight_of_position(soft, t, k, scratch);
  return 1;
}

/* One row. Returns whether anything of it is computed, then with *known saying whether the loss is,
   and *found counting undecided slopes. */
static int soft_row(const struct rows *a, int64_t row, int *known, int64_t *found) {
  const struct soft *soft = a->soft;
  const int64_t k = a->classes, y = soft->targets ? -1 : label_of(a, row);
  double *restrict e = a->room, *restrict tau = e + spare_room(k), *room = tau + k + 64;
  const float *z = number_at(a->form, a->logits, row * a->stride);
  z = floats_of(a->form, z, k, (float *)room);
  if (!soft->targets && y < 0) return 0;
  const struct range range = range_of(z, k);
  if (!(fabs(range.most) < INFINITY)) return 0;
  double of_row;
  const double base = y < 0 ? 0 : tau[y], keep = 1 - soft->smoothing, share = share_of(a);
  if (!targets_of_row(a, row, y, tau, (float *)room + k + 64, e, &of_row)) return 0;
  const double weight = (a->weight ? a->weight[row] : 1) * of_row;
  const double factor = (a->factor ? a->factor[row] : a->scale) * of_row;
  const double apart = sum_apart(tau, z, range.most, k);
  const double at_top = tau[range.top];
  tau[range.top] = 0;
  /* Smoothing keeps the sum of a one-hot target. */
  const int sums_to_1 = y >= 0 && !soft->class_weights;
  const double rest =
      sums_to_1 ? share * (double)(k - 1) + (range.top == y ? 0 : keep) : add_row(tau, k);
  const double sum = sums_to_1 ? 1 : rest + at_top;
  exponentials(FLOAT32, z, k, range.most, e);
  e[range.top] = 0;
  const double others = add_row(e, k), total = 1 + others;
  const double shift = error_of_shift(&range), error = (2 * height(k) + 30) * U;
  /* The weight of a position errs by as much as a sum. */
  const double of_weight = soft->by_position ? (height(k) + 8) * U : 0;
  const double loss = (apart + sum * log1p_one(others)) * weight;
  const double of_loss = error + shift + of_weight;
  const double ratio = factor * sum / total;
  const int fits = apart < LARGEST_LOSS && others < INFINITY && fabs(ratio) < LARGEST_RATIO &&
                   fabs(factor) < LARGEST_RATIO;
  if (fits) {
    const float down = rounded_to(a->loss_form, loss * (1 - of_loss));
    *known = down == rounded_to(a->loss_form, loss * (1 + of_loss));
    a->losses[row] = down;
    if (a->slopes) {
      const struct slope slope = {ratio, factor, error + 2 * shift + of_weight};
      *found += gradient_of_row(a, row, &slope, e, tau, range.top, rest * factor,
                                sum * factor * (others / total), *found);
    }
  }
  tau[range.top] = at_top;
  if (y >= 0) tau[y] = base;
  return fits;
}

#include "class_probabilities.c"

static int64_t soft_cross_entropy(const struct rows *a, int64_t *elements, struct total *total) {
  const struct soft *soft = a->soft;
  double *tau = a->room + spare_room(a->classes);
  double high = 0, low = 0, size = 0;
  int64_t left = 0, found = 0;
  const double share = share_of(a);
  for (int64_t c = 0; c < a->classes; c++)
    tau[c] = soft->class_weights ? soft->class_weights[c] * share : share;
  for (int64_t row = 0; row < a->n; row++) {
    if (a->todo && !a->todo[row]) continue;
    int known = 1;
    if (!(soft->clip ? probabilities_row(a, row) : soft_row(a, row, &known, &found))) {
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
  *elements = found;
  total->high = high;
  total->low = low;
  /* As for `cross_entropy`. */
  total->error = (double)a->n * U * (double)a->n * U * size;
  return left;
}
