/* The second tier of a cross-entropy with dense targets or smoothed labels: single slopes, in pairs
   of float64. Compiled once per instruction set.

   With the notation of soft_targets.c, a slope is T q_c - tau_c for q_c = e_c / (1 + s), and at the
   largest logit R - T s / (1 + s), where R is the sum of the other tau. q and s / (1 + s) are slopes
   of second_tier.c, with its bound of their errors. A tau errs by 12 U^2, and the sums, which have
   no negative terms, by 4 U^2 for each addition that a term passes through. */
#include "softmax.h"

/* What the targets of a row have in common. */
struct row_targets {
  struct pairs sum, others, weight; /* T, R, and what multiplies the row */
};

INLINE struct pairs product(struct pairs a, struct pairs b) {
  return plus(times(a, b.high), times(a, b.low));
}

/* tau of W classes, and in *weighted what they add to the weight of the row. Lanes from k on are 0. */
INLINE struct pairs targets_at(const struct second *a, int64_t row, int64_t label,
                               const int64_t columns[W], struct pairs *weighted) {
  const struct soft *soft = a->soft;
  const double smoothing = soft->smoothing, *w = soft->class_weights;
  double keep, rest = two_sum(1, -smoothing, &keep);
  const struct pairs kept = {all(keep), all(rest)};
  struct pairs share = over(exactly(all(smoothing)), exactly(all((double)a->classes)));
  doubles t = {0}, weights = {0};
  for (int v = 0; v < W; v++) {
    const int64_t c = columns[v] < a->classes ? columns[v] : 0;
    const double read =
        soft->targets ? ((const float *)soft->targets)[row * soft->stride + c] : c == label;
    t[v] = read >= soft->least ? read : 0;
    weights[v] = columns[v] < a->classes ? (w ? w[c] : 1) : 0;
  }
  const struct pairs tau = plus(times(kept, t), share);
  *weighted = times(exactly(t), weights);
  if (!soft->by_position) return times(tau, weights);
  return times(tau, choose(weights == 0, weights, all(1)));
}

static struct pairs sum_of_lanes(struct pairs x) {
  struct pairs sum = exactly(all(0));
  for (int v = 0; v < W; v++) sum = plus(sum, (struct pairs){all(x.high[v]), all(x.low[v])});
  return sum;
}

static struct row_targets targets_of(const struct second *a, int64_t row, int64_t label,
                                     int64_t top) {
  struct pairs others = exactly(all(0)), weight = others, at_top = others;
  for (int64_t i = 0; i < a->classes; i += W) {
    int64_t columns[W];
    longs is_top;
    for (int v = 0; v < W; v++) {
      columns[v] = i + v;
      is_top[v] = i + v == top ? -1 : 0;
    }
    struct pairs weighted, tau = targets_at(a, row, label, columns, &weighted);
    weight = plus(weight, weighted);
    const struct pairs own = {choose(is_top, tau.high, all(0)), choose(is_top, tau.low, all(0))};
    at_top = plus(at_top, own);
    others = plus(
        others, (struct pairs){choose(is_top, all(0), tau.high), choose(is_top, all(0), tau.low)});
  }
  struct row_targets found;
  found.others = sum_of_lanes(others);
  /* Smoothing keeps the sum of a one-hot target. */
  found.sum = a->soft->targets || a->soft->class_weights ? plus(found.others, sum_of_lanes(at_top))
                                                         : exactly(all(1));
  found.weight = a->soft->by_position ? sum_of_lanes(weight) : exactly(all(1));
  return found;
}

static void soft_second_tier(const struct second *a) {
  struct row row = {0};
  struct row_targets targets = {0};
  const double sums = ((double)a->classes / W + 2 * W + 32) * (4 * U * U);
  for (int64_t i = 0; i < a->n;) {
    const int64_t at = a->rows[i], label = a->labels[i];
    const float *z = a->logits + at * a->stride;
    if (row.logits != z) {
      row = row_of(a, z);
      targets = targets_of(a, at, label, row.top);
    }
    int64_t columns[W], count = 0;
    longs is_top;
    struct pairs factors[3] = {exactly(all(1)), exactly(all(1)), exactly(all(1))};
    for (; count < W && i + count < a->n && a->rows[i + count] == at; count++) {
      columns[count] = a->columns[i + count];
      for (int f = 0; f < 3; f++) factors[f].high[count] = a->factors[f * a->n + i + count];
    }
    for (int64_t v = count; v < W; v++) columns[v] = columns[0];
    for (int v = 0; v < W; v++) is_top[v] = columns[v] == row.top ? -1 : 0;
    double error;
    struct pairs unused, share = slopes_at(a, &row, columns, row.top, &error);
    const struct pairs tau = targets_at(a, at, label, columns, &unused);
    const struct pairs own = {choose(is_top, targets.others.high, -tau.high),
                              choose(is_top, targets.others.low, -tau.low)};
    const struct pairs first = product(share, targets.sum);
    struct pairs x = plus(first, own);
    doubles radius = (magnitude(first.high) + magnitude(own.high)) * (error + sums + 0x1p-90);
    struct pairs all_factors = targets.weight;
    for (int f = 0; f < 3; f++) all_factors = product(all_factors, factors[f]);
    all_factors = over(all_factors, (struct pairs){all(a->divisor[0]), all(a->divisor[1])});
    x = product(x, all_factors);
    radius = radius * magnitude(all_factors.high) * (1 + 0x1p-40) +
             magnitude(x.high) * (a->divisor[2] + sums + 0x1p-90) + 0x1p-500;
    for (int64_t v = 0; v < count; v++)
      a->left[i + v] =
          !(fabs(row.largest) < INFINITY &&
            rounds_once(a->slope_form, x.high[v], x.low[v], radius[v], a->results + i + v));
    i += count;
  }
}
