/* The losses of float64 predictions, in pairs of float64. Compiled once per instruction set.

   Each result is a pair with a bound of its error, the radius, which is 0 where the pair is exact:
   only an exact pair decides a tie. A result that its radius decides is rounded; the caller computes
   the others, and those outside of the range where products have no error. */
#include "labels.h"
#include "loops.h"
#include "pairs.h"

#define FAREST (-620.0)  /* arguments from 0 to this one have exponentials that are pairs */
#define DEEPEST (-860.0) /* the exponential of a smaller argument rounds to 0 under every factor */
#define LARGEST_FACTOR 0x1p150
#define LEAST_RESULT 0x1p-850 /* a smaller one may have lost its low part */
#define EXP_ERROR 0x1p-80
#define WIDE_CHUNK 512

struct rounded {
  doubles value;
  longs bad; /* where the radius does not decide it */
};

/* Round what lies within `radius` of a pair. A radius that is not 0 has room for the rounding of its
   sum with the low part, 2^-106 of the pair. */
INLINE struct rounded rounded_of(struct pairs x, doubles radius) {
  doubles first = x.high + (x.low - radius), last = x.high + (x.low + radius);
  longs known = (first == last) & (magnitude(first) < INFINITY);
  return (struct rounded){first + 0.0, ~known}; /* no -0 */
}

/* A radius for what products lose by underflow, except where the result is 0. */
INLINE doubles floor_unless(longs zero) { return choose(zero, all(0), all(LEAST_RESULT)); }

/* Multiply a pair within *radius by a number. */
INLINE struct pairs weighted(struct pairs x, doubles by, doubles *radius) {
  x = times(x, by);
  *radius = *radius * magnitude(by);
  *radius += choose(is_power(by), all(0), magnitude(x.high) * 0x1p-102);
  return x;
}

/* The factor of slopes: a pair, and whether it is an exact power of two. Its error is below that of
   the divisor and 2^-100 of it. */
struct factor {
  struct pairs pair;
  longs exact;
};

INLINE doubles at(const double *array, int64_t i, double otherwise) {
  return array ? load_doubles(array + i) : all(otherwise);
}

INLINE struct factor factor_of(const struct wide *a, doubles upstream, doubles weight,
                               doubles own) {
  struct factor f;
  f.pair = times(times(exactly(upstream), weight), own);
  f.exact = is_power(upstream) & is_power(weight) & is_power(own);
  if (a->divisor[0] != 1 || a->divisor[1] != 0 || a->divisor[2] != 0) {
    f.pair = over(f.pair, (struct pairs){all(a->divisor[0]), all(a->divisor[1])});
    f.exact &= is_power(all(a->divisor[0])) & (all(a->divisor[1] + a->divisor[2]) == 0);
  }
  return f;
}

/* ------------------------------------------------------------------------------ cross-entropy */

/* What the losses of W rows need: the largest logit, that of the label, and the sum over all others
   than the largest. */
struct row_group {
  doubles largest, own;
  struct pairs others;
  longs known; /* whether the slopes of a row are decided */
};

/* The first `count` numbers of a vector, and another one in the places after them. */
INLINE doubles load_some(const double *x, int64_t count, double otherwise) {
#if W == 8
  return (doubles)_mm512_mask_loadu_pd((__m512d)all(otherwise), (__mmask8)((1 << count) - 1), x);
#elif W == 4
  longs given = (longs){0, 1, 2, 3} < count;
  return choose(given, (doubles)_mm256_maskload_pd(x, (__m256i)given), all(otherwise));
#else
  return (doubles){x[0], count > 1 ? x[1] : otherwise};
#endif
}

INLINE doubles larger(doubles a, doubles b) { /* b where one is NaN */
#if W == 8
  return (doubles)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif W == 4
  return (doubles)_mm256_max_pd((__m256d)a, (__m256d)b);
#else
  return choose(a > b, a, b);
#endif
}

/* The largest and the smallest of k numbers, without those that are NaN. */
INLINE void extremes(const double *z, int64_t k, double *largest, double *least) {
  doubles most[2] = {all(-INFINITY), all(-INFINITY)}, negative[2] = {most[0], most[0]};
  int64_t i = 0;
  for (; i + 2 * W <= k; i += 2 * W)
    for (int v = 0; v < 2; v++) {
      doubles x = load_doubles(z + i + v * W);
      most[v] = larger(x, most[v]);
      negative[v] = larger(-x, negative[v]);
    }
  for (; i < k; i += W) {
    doubles x = load_some(z + i, k - i, z[i]);
    most[0] = larger(x, most[0]);
    negative[0] = larger(-x, negative[0]);
  }
  most[0] = larger(most[0], most[1]);
  negative[0] = larger(negative[0], negative[1]);
  double m = -INFINITY, n = -INFINITY;
  for (int v = 0; v < W; v++) {
    m = most[0][v] > m ? most[0][v] : m;
    n = negative[0][v] > n ? negative[0][v] : n;
  }
  *largest = m;
  *least = -n;
}

/* e^(z - m) of k numbers into `high` and `low`, which have room for a whole number of vectors, and
   their sum without one of the largest. `deep` where a number may be below FAREST. Returns whether a
   term is neither a pair nor 0. */
INLINE int wide_exponentials(const double *c, const double *z, int64_t k, double m, int deep,
                             double *high, double *low, double others[2]) {
  struct pairs sum = exactly(all(0));
  longs tops = {0}, gaps = {0};
  for (int64_t i = 0; i < k; i += W) {
    doubles logits = k - i < W ? load_some(z + i, k - i, m) : load_doubles(z + i);
    doubles x, more = two_sums(logits, all(-m), &x);
    longs top = x == 0, below = {0};
    if (deep) {
      below = x < FAREST; /* where z is infinite, `more` is a NaN */
      gaps |= below & (x > DEEPEST);
      x = choose(below, all(0), x);
      more = choose(below, all(0), more);
    }
    struct pairs e = exponential_of(c, x, more);
    if (deep) e = choose_pair(below, exactly(all(0)), e);
    store_doubles(high + i, e.high);
    store_doubles(low + i, e.low);
    doubles lost = two_sums(sum.high, choose(top, all(0), e.high), &sum.high);
    sum.low += lost + e.low;
    tops -= top;
  }
  const int64_t padding = (W - k % W) % W;
  int64_t equal = -1 - padding;
  for (int v = 0; v < W; v++) equal += tops[v];
  double total = (double)equal, rest = 0;
  for (int v = 0; v < W && v < k; v++) rest += two_sum(total, sum.high[v], &total) + sum.low[v];
  others[1] = two_sum(total, rest, &others[0]);
  return any_of(gaps);
}

/* e times a factor, rounded into `slopes`; `small` where a result may be below LEAST_RESULT and not
   0. Returns whether all are decided. */
INLINE int scale_row(const double *high, const double *low, int64_t k, struct pairs factor,
                     double error, int small, double *slopes) {
  longs bad = {0};
  for (int64_t i = 0; i < k; i += W) {
    struct pairs e = {load_doubles(high + i), load_doubles(low + i)}, x;
    x.low = two_products(e.high, factor.high, &x.high);
    x.low += muladd(e.high, factor.low, e.low * factor.high);
    struct rounded r = rounded_of(x, x.high * error);
    bad |= r.bad;
    if (small) bad |= (magnitude(x.high) < LEAST_RESULT) & (e.high != 0) & (factor.high != 0);
    if (k - i < W)
      memcpy(slopes + i, &r.value, (size_t)(k - i) * sizeof *slopes);
    else
      store_doubles(slopes + i, r.value);
  }
  return !any_of(bad);
}

INLINE double of_row(const double *array, int64_t i, double otherwise) {
  return array ? array[i] : otherwise;
}

/* A bound of the relative error of the sum of exponentials. */
INLINE double sum_error(const struct wide *a) {
  const double additions = (double)a->classes / W + W + 8;
  return EXP_ERROR + additions * U * (additions * U);
}

/* The slopes of a row, from its exponentials and their sum without that of the largest logit m.
   Returns whether all are decided. */
static int wide_slopes(const struct wide *a, int64_t i, int64_t label, struct pairs others,
                       double m, double least) {
  const int64_t k = a->classes;
  const double own = ((const double *)a->predictions + i * a->stride)[label];
  double *high = a->room, *low = a->room + k + 2 * W, *slopes = a->slopes + i * k;
  struct factor f = factor_of(a, all(of_row(a->upstreams, i, a->upstream)),
                              all(of_row(a->weight, i, 1)), all(of_row(a->own, i, 1)));
  if (!(fabs(f.pair.high[0]) <= LARGEST_FACTOR)) return 0;
  struct pairs total = plus(exactly(all(1)), others), ratio = over(f.pair, total);
  /* The error of e, and that of the part of the sum that is not 1. */
  const double error = EXP_ERROR + sum_error(a) + a->divisor[2] + 0x1p-95;
  for (int64_t v = k; v < k + W; v++) high[v] = low[v] = 0; /* the padding is decided */
  const int small = least - m < -100 || fabs(ratio.high[0]) < 0x1p-600;
  int known = small ? scale_row(high, low, k, ratio, error, 1, slopes)
                    : scale_row(high, low, k, ratio, error, 0, slopes);
  /* Of the label, minus the sum of the others. It cancels nothing, because e is at most half of the
     total where it is not the largest. */
  struct pairs e = {all(high[label]), all(low[label])};
  struct pairs rest = own == m ? others : plus(total, minus(e));
  struct pairs slope = minus(product_of(rest, ratio));
  doubles radius = magnitude(slope.high) * (2 * error);
  radius += floor_unless((rest.high == 0) | (ratio.high == 0));
  struct rounded r = rounded_of(slope, radius);
  slopes[label] = r.value[0];
  return known && r.bad[0] == 0;
}

/* Compute the slopes of a row, and place v of what its loss needs. */
static void wide_row(const struct wide *a, int64_t i, int64_t label, struct row_group *g, int v) {
  const int64_t k = a->classes;
  const double *z = a->predictions + i * a->stride;
  double *high = a->room, *low = a->room + k + 2 * W, m, least, others[2];
  extremes(z, k, &m, &least);
  if (!(fabs(m) < INFINITY)) return;
  const int gap = least - m < FAREST
                      ? wide_exponentials(a->constants, z, k, m, 1, high, low, others)
                      : wide_exponentials(a->constants, z, k, m, 0, high, low, others);
  /* Not where a logit is NaN. A sum of 0 is exact, or far below every other term. */
  const double s = others[0];
  if (gap || !(s == 0 || (s > 0x1p-800 && s < INFINITY))) return;
  g->largest[v] = m;
  g->own[v] = z[label];
  g->others.high[v] = s;
  g->others.low[v] = others[1];
  const struct pairs sum = {all(s), all(others[1])};
  g->known[v] = a->slopes == NULL || wide_slopes(a, i, label, sum, m, least) ? -1 : 0;
}

/* The losses of W rows, of which `wanted` are stored, rounded where that is decided. */
static longs wide_losses(const struct wide *a, int64_t first, longs wanted,
                         const struct row_group *g) {
  doubles weight = all(1), own = all(1);
  for (int v = 0; v < W; v++) {
    if (!wanted[v]) continue;
    weight[v] = of_row(a->weight, first + v, 1);
    own[v] = of_row(a->own, first + v, 1);
  }
  struct pairs tail = logarithm_of(a->constants, g->others), loss;
  doubles apart, lost = two_sums(g->largest, -g->own, &apart);
  doubles rest = two_sums(apart, tail.high, &loss.high);
  doubles radius = log_error(tail) + tail.high * sum_error(a) +
                   (magnitude(rest) + magnitude(lost) + magnitude(tail.low)) * (2 * U);
  loss.low = rest + (lost + tail.low);
  loss = weighted(pair_of(loss.high, loss.low), weight, &radius);
  loss = weighted(loss, own, &radius);
  struct rounded r = rounded_of(loss, radius + floor_unless((apart == 0) & (tail.high == 0)));
  for (int v = 0; v < W; v++)
    if (wanted[v]) a->losses[first + v] = r.value[v];
  return g->known & ~r.bad & (magnitude(weight * own) <= LARGEST_FACTOR);
}

static int64_t wide_cross_entropy(const struct wide *a) {
  int64_t left = 0;
  for (int64_t first = 0; first < a->n; first += W) {
    struct row_group group = {{0}, {0}, {{0}, {0}}, {0}};
    longs wanted = {0};
    for (int v = 0; v < W && first + v < a->n; v++) {
      const int64_t i = first + v;
      if (a->todo && !a->todo[i]) continue;
      wanted[v] = -1;
      const int64_t label = class_of(a->targets, a->label_size, a->label_signed, a->classes, i);
      if (label >= 0) wide_row(a, i, label, &group, v);
    }
    const longs undecided = wanted & ~wide_losses(a, first, wanted, &group);
    for (int v = 0; v < W && any_of(undecided); v++) {
      if (!undecided[v]) continue;
      a->left[first + v] = 1;
      left++;
    }
  }
  return left;
}

/* -------------------------------------------------------------------------- elementwise losses */

/* What a loss knows about a vector of elements. */
struct wide_found {
  struct pairs loss, slope;
  doubles loss_radius, slope_radius;
};

typedef struct wide_found wide_formula(const struct wide *a, doubles p, doubles t);

/* d^2, and its radius. */
INLINE struct pairs square_of(struct pairs d, doubles *radius) {
  struct pairs square;
  square.low = two_products(d.high, d.high, &square.high);
  square.low += 2.0 * d.high * d.low;
  *radius = choose(d.low == 0, all(0), square.high * 0x1p-102);
  return square;
}

INLINE struct wide_found wide_squared(const struct wide *a, doubles p, doubles t) {
  (void)a;
  struct wide_found f;
  struct pairs d;
  d.low = two_sums(p, -t, &d.high);
  f.loss = square_of(d, &f.loss_radius);
  f.slope = (struct pairs){2.0 * d.high, 2.0 * d.low};
  f.slope_radius = all(0);
  return f;
}

/* d^2 / 2 up to delta, and delta (|d| - delta / 2) beyond. */
INLINE struct wide_found wide_huber(const struct wide *a, doubles p, doubles t) {
  struct wide_found f;
  struct pairs d;
  d.low = two_sums(p, -t, &d.high);
  const doubles delta = all(a->parameter);
  const longs negative = d.high < 0;
  struct pairs size = choose_pair(negative, minus(d), d);
  const longs beyond = (size.high > delta) | ((size.high == delta) & (size.low > 0));
  struct pairs near = square_of(d, &f.loss_radius), far;
  doubles high, middle = two_sums(size.high, -0.5 * delta, &high), low;
  doubles lost = two_sums(middle, size.low, &low);
  doubles far_radius = choose(lost == 0, all(0), high * 0x1p-102);
  far = weighted(pair_of(high, low), delta, &far_radius);
  f.loss = choose_pair(beyond, far, (struct pairs){0.5 * near.high, 0.5 * near.low});
  f.loss_radius = choose(beyond, far_radius, 0.5 * f.loss_radius);
  f.slope = choose_pair(beyond, exactly(choose(negative, -delta, delta)), d);
  f.slope_radius = all(0);
  return f;
}

/* With e = e^-|z| and q the weight of positive targets:
   loss = q t max(-z, 0) + (1 - t) max(z, 0) + (q t + 1 - t) log(1 + e), and the slope is
   (1 - t) sigma(z) - q t sigma(-z), where the sigmoids are 1 / (1 + e) and e / (1 + e). */
INLINE struct wide_found wide_binary(const struct wide *a, doubles z, doubles t) {
  struct wide_found f;
  doubles size = magnitude(z);
  const longs fits = (size <= -FAREST) & (t <= 1.0) & ((t >= 0x1p-126) | (t == 0));
  const longs positive = z >= 0;
  struct pairs e = exponential_of(a->constants, choose(fits, -size, all(0)), all(0));
  struct pairs yes, no;
  yes.low = two_products(all(a->parameter), t, &yes.high);
  no.low = two_sums(all(1), -t, &no.high);
  struct pairs tail = logarithm_of(a->constants, e), both = plus(yes, no);
  struct pairs apart = times(choose_pair(positive, no, yes), size);
  struct pairs logs = product_of(both, tail);
  f.loss = plus(apart, logs);
  f.loss_radius =
      both.high * (log_error(tail) + tail.high * (2 * EXP_ERROR)) + f.loss.high * 0x1p-100;
  struct pairs top = over(exactly(all(1)), plus(exactly(all(1)), e)), tip = product_of(e, top);
  struct pairs up = product_of(no, choose_pair(positive, top, tip));
  struct pairs down = product_of(yes, choose_pair(positive, tip, top));
  f.slope = plus(up, minus(down));
  f.slope_radius = (up.high + down.high) * (2 * EXP_ERROR);
  f.loss_radius = choose(fits, f.loss_radius, all(INFINITY));
  return f;
}

/* Whether slope / divisor, which is near a pair that lies half way between two numbers, is so itself.
   Then *value is it rounded. */
static int is_tie(struct pairs slope, double divisor, struct pairs near, double *value) {
  double high, low = two_sum(near.high[0], near.low[0], &high);
  int exponent;
  if (fabs(frexp(low, &exponent)) > 0.75) exponent++;
  low = ldexp(copysign(0.5, low), exponent);
  /* (high + low) divisor - slope = 0 in four exact sums; the product with low is exact too. */
  doubles product, rest = two_products(all(high), all(divisor), &product);
  double first, second, third, lost[3];
  lost[0] = two_sum(product[0], -slope.high[0], &first);
  lost[1] = two_sum(first, rest[0], &second);
  lost[2] = two_sum(low * divisor, -slope.low[0], &third);
  *value = high + low + 0.0;
  return lost[0] == 0 && second == -third && lost[1] == -lost[2];
}

/* Round the slope of an element that its radius leaves undecided. Returns whether it is a tie, and
   the loss is decided. */
INLINE int tied(const struct wide *a, wide_formula *formula, double p, double t, double *to) {
  if (a->weight || a->upstreams || a->divisor[1] != 0 || a->divisor[2] != 0) return 0;
  if (!is_power(all(a->upstream))[0]) return 0;
  struct wide_found f = formula(a, all(p), all(t));
  if (rounded_of(f.loss, f.loss_radius + floor_unless(f.slope.high == 0)).bad[0]) return 0;
  struct pairs slope = times(f.slope, all(a->upstream));
  struct pairs near = over(slope, exactly(all(a->divisor[0])));
  if (f.slope_radius[0] != 0 || !(fabs(near.high[0]) > 2 * LEAST_RESULT)) return 0;
  return is_tie(slope, a->divisor[0], near, to);
}

/* Compute a chunk of whole vectors. Returns whether all are decided; `bad` says which are not. */
INLINE int wide_chunk(const struct wide *a, wide_formula *formula, const double *p, const double *t,
                      const double *weight, const double *upstream, int slopes, int64_t m,
                      struct factor shared, double *losses, double *to, int64_t *bad) {
  longs any = {0};
  for (int64_t i = 0; i < m; i += W) {
    struct wide_found f = formula(a, load_doubles(p + i), load_doubles(t + i));
    if (weight) f.loss = weighted(f.loss, load_doubles(weight + i), &f.loss_radius);
    const longs zero = f.slope.high == 0; /* only then can a loss be 0 */
    struct rounded r = rounded_of(f.loss, f.loss_radius + floor_unless(zero));
    longs undecided = r.bad;
    store_doubles(losses + i, r.value);
    if (slopes) {
      struct factor by = shared;
      if (weight || upstream)
        by = factor_of(a, at(upstream, i, a->upstream), at(weight, i, 1), all(1));
      struct pairs x = product_of(f.slope, by.pair);
      doubles radius = f.slope_radius * magnitude(by.pair.high);
      radius += choose(by.exact, all(0), magnitude(x.high) * (a->divisor[2] + 0x1p-99));
      r = rounded_of(x, radius + floor_unless(zero | (by.pair.high == 0)));
      undecided |= r.bad;
      store_doubles(to + i, r.value);
    }
    any |= undecided;
    memcpy(bad + i, &undecided, sizeof undecided);
  }
  return !any_of(any);
}

INLINE int64_t wide_elements(const struct wide *a, wide_formula *formula) {
  double pads[6][WIDE_CHUNK];
  int64_t bad[WIDE_CHUNK], left = 0;
  const struct factor shared = factor_of(a, all(a->upstream), all(1), all(1));
  for (int64_t b = 0; b < a->n; b += WIDE_CHUNK) {
    const int64_t m = a->n - b < WIDE_CHUNK ? a->n - b : WIDE_CHUNK;
    const double *from[4] = {(const double *)a->predictions + b, (const double *)a->targets + b,
                             a->weight ? a->weight + b : NULL,
                             a->upstreams ? a->upstreams + b : NULL};
    double *losses = a->losses + b, *slopes = a->slopes ? a->slopes + b : NULL;
    const uint8_t *todo = a->todo ? a->todo + b : NULL;
    int whole = m % W == 0;
    for (int64_t i = 0; todo && i < m; i++) whole &= todo[i];
    const int64_t steps = (m + W - 1) / W * W;
    if (!whole) { /* elements that are not wanted are decided */
      for (int array = 0; array < 4; array++) {
        if (!from[array]) continue;
        for (int64_t i = 0; i < steps; i++) {
          const int wanted = i < m && (!todo || todo[i]);
          pads[array][i] = wanted ? from[array][i] : array / 2; /* factors of 1 */
        }
        from[array] = pads[array];
      }
      losses = pads[4];
      slopes = slopes ? pads[5] : NULL;
    }
    int decided;
    if (from[2] || from[3])
      decided = wide_chunk(a, formula, from[0], from[1], from[2], from[3], slopes != NULL, steps,
                           shared, losses, slopes, bad);
    else if (slopes)
      decided = wide_chunk(a, formula, from[0], from[1], NULL, NULL, 1, steps, shared, losses,
                           slopes, bad);
    else
      decided =
          wide_chunk(a, formula, from[0], from[1], NULL, NULL, 0, steps, shared, losses, NULL, bad);
    for (int64_t i = 0; !decided && i < m; i++) {
      if (!bad[i] || (todo && !todo[i])) continue;
      if (slopes && tied(a, formula, from[0][i], from[1][i], slopes + i)) continue;
      a->left[b + i] = 1;
      left++;
    }
    for (int64_t i = 0; !whole && i < m; i++) {
      if (todo && !todo[i]) continue;
      a->losses[b + i] = losses[i];
      if (slopes) a->slopes[b + i] = slopes[i];
    }
  }
  return left;
}

static int64_t wide_binary_cross_entropy(const struct wide *a) {
  return wide_elements(a, wide_binary);
}

static int64_t wide_squared_error(const struct wide *a) { return wide_elements(a, wide_squared); }

static int64_t wide_huber_error(const struct wide *a) { return wide_elements(a, wide_huber); }

/* The sum of float64 numbers as a pair. What an addition of high parts loses goes to a low part
   without an error; the error is what additions of low parts lose. */
static void sum_in_pairs(const double *x, int64_t n, struct total *total) {
  doubles highs[LANES] = {{0}}, lows[LANES] = {{0}}, errors[LANES] = {{0}};
  for (int64_t i = 0; i < n; i += W) {
    const int v = i / W % LANES;
    doubles term = n - i < W ? load_some(x + i, n - i, 0) : load_doubles(x + i);
    doubles lost = two_sums(highs[v], term, &highs[v]);
    errors[v] += magnitude(two_sums(lows[v], lost, &lows[v]));
  }
  double high = 0, low = 0, error = 0;
  for (int v = 0; v < LANES; v++)
    for (int i = 0; i < W; i++) {
      const double lost = two_sum(high, highs[v][i], &high);
      error += fabs(two_sum(low, lost, &low)) + fabs(two_sum(low, lows[v][i], &low));
      error += errors[v][i];
    }
  total->low = two_sum(high, low, &total->high);
  /* The errors are added in float64, of which a sum of n numbers errs by less than n U of it. */
  total->error = error * (1 + 4 * U * ((double)n + 64));
}

static void of_pairs(const double *c, double *high, double *low, int64_t n, int logarithm) {
  for (int64_t i = 0; i < n; i++) {
    struct pairs x = {all(high[i]), all(low[i])};
    x = logarithm ? logarithm_of(c, x) : exponential_of(c, x.high, x.low);
    high[i] = x.high[0];
    low[i] = x.low[0];
  }
}
