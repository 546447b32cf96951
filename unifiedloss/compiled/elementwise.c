/* The elementwise losses. Compiled once per instruction set.

   Each loss has one function of a vector of predictions and targets. It gives the loss and the slope
   with a bound of each, and the driver rounds, adds and flags. */
#include "loops.h"
#include "vectors.h"

#define CHUNK 1024

/* What a loss knows about a vector of elements. */
struct found {
  doubles loss, loss_error;   /* the loss, and a bound of its error */
  doubles slope, slope_error; /* its slope, and a bound of its error */
  longs bad;                  /* elements whose formulas do not hold: infinite, NaN, out of range */
};

typedef struct found formula(const struct elements *a, doubles p, doubles t);

/* Whether these numbers have at most 26 bits, so that their squares are exact. */
INLINE longs is_short(doubles x) { return ((longs)x & 0x7ffffffLL) == 0; }

INLINE longs is_power_of_two(double x) { return ((longs)all(x) & 0xfffffffffffffLL) == 0; }

INLINE struct found squared_error(const struct elements *a, doubles p, doubles t) {
  (void)a;
  struct found f;
  doubles d, lost = two_sums(p, -t, &d);
  f.loss = d * d;
  f.loss_error = choose(is_short(d), (doubles){0}, f.loss * (4 * U));
  f.slope = 2.0 * d;
  f.slope_error = (doubles){0};
  f.bad = lost != 0; /* also where one is infinite or NaN */
  return f;
}

INLINE struct found huber_error(const struct elements *a, doubles p, doubles t) {
  struct found f;
  doubles d, lost = two_sums(p, -t, &d);
  doubles slope = clamp(d, -a->delta, a->delta), half = 0.5 * slope, rest = d - half;
  /* Both formulas are slope * (d - slope / 2). */
  f.loss = slope * rest;
  /* A product with a power of two is exact. |d| >= |half|, so rest is exact where subtracting it
     gives half again. The square of a short number is exact too. */
  longs inside = slope == d, far = d - rest == half;
  longs exact = (inside & is_short(d)) | (~inside & far & is_power_of_two(a->delta));
  f.loss_error = choose(exact, (doubles){0}, f.loss * (4 * U));
  f.slope = slope;
  f.slope_error = (doubles){0};
  f.bad = lost != 0;
  return f;
}

/* With e = e^-|z| and the weights `yes` of positive answers and `no` of others:
   loss = yes max(-z, 0) + no max(z, 0) + (yes + no) log(1 + e), and the slope is
   no sigma(z) - yes sigma(-z), where the sigmoids are 1 / (1 + e) and e / (1 + e). The bounds hold
   for weights with an error of U; one more unit of theirs adds one to each. */
INLINE struct found of_answers(doubles z, doubles e, doubles yes, doubles no, double more) {
  struct found f;
  doubles size = magnitude(z), larger = 1.0 / (1.0 + e), smaller = e * larger;
  longs positive = z >= 0;
  f.loss = choose(positive, no, yes) * size + (yes + no) * log1p_up_to_1(e);
  f.loss_error = f.loss * ((18 + more) * U);
  doubles up = choose(positive, larger, smaller) * no;
  doubles down = choose(positive, smaller, larger) * yes;
  f.slope = up - down;
  f.slope_error = (up + down) * ((12 + more) * U);
  f.bad = ~(size < INFINITY);
  return f;
}

/* Targets that are no answers, and those below the smallest normal number, which count as 0. The
   caller computes these. */
INLINE longs no_answer(doubles t) { return ~((t >= 0x1p-126) | (t == 0)) | ~(t <= 1.0); }

/* The weights are q t and 1 - t, with q the weight of positive targets. */
INLINE struct found binary_error(const struct elements *a, doubles z, doubles t, doubles e) {
  struct found f = of_answers(z, e, a->pos_weight * t, 1.0 - t, 0);
  f.bad |= no_answer(t);
  return f;
}

/* Round a number in [low, high] to float32; the result is 1 if both ends round to the same. */
INLINE int rounds(double low, double high, float *to) {
  *to = (float)low + 0.0f; /* no -0 */
  return (float)low == (float)high;
}

/* The loss of a hard target, |z| + log(1 + e^-|z|) or the logarithm alone. |z| is exact and often
   half way between two float32 numbers, and the logarithm decides the rounding. Returns whether the
   loss is known. */
static int hard_loss(double z, double t, float *to) {
  if (t != 0 && t != 1) return 0;
  doubles x[LANES] = {all(fmax(-fabs(z), -700.0))};
  exp_of(x);
  double apart = (z >= 0) == (t == 0) ? fabs(z) : 0.0, rest = log1p_of(x[0])[0], ends[2];
  for (int i = 0; i < 2; i++) ends[i] = to_odd(apart, rest * (1 + (i ? 16 : -16) * U));
  return rounds(ends[0], ends[1], to);
}

/* A slope over an integer divisor, where it is a quotient of exact numbers. Many are half way
   between two float32 numbers, which no bound decides. Returns whether it is known. */
static int tied_slope(double slope, double divisor, float *to) {
  const double q = slope / divisor, error = 8 * U;
  float low = (float)(q * (1 - error)), high = (float)(q * (1 + error));
  if (q < 0) {
    float swap = low;
    low = high;
    high = swap;
  }
  if (nextafterf(low, INFINITY) != high || !(fabsf(low) > 0x1p-126f)) return 0;
  double middle = 0.5 * ((double)low + (double)high);
  double product = middle * divisor; /* 25 bits and 28 */
  int32_t bits;
  memcpy(&bits, &low, sizeof bits);
  *to = slope > product || (slope == product && (bits & 1)) ? high : low;
  return 1;
}

/* The ends of the intervals that hold the losses and slopes of a chunk. */
struct ends {
  double loss_low[CHUNK], loss_high[CHUNK], slope_low[CHUNK], slope_high[CHUNK], slope[CHUNK];
  int64_t bad[CHUNK];
};

struct sums {
  doubles sum[LANES];
  longs bad;
  ints differ;
};

/* Compute m elements, a whole number of steps. Note in `s` whether any is undecided, and store the
   intervals in `ends` if it is given. */
INLINE void compute(const struct elements *a, formula *loss_of, const float *p, const float *t,
                    int64_t m, float *losses, float *slopes, struct sums *s, struct ends *ends) {
  const int binary = loss_of == NULL;
  for (int64_t i = 0; i < m; i += LANES * W) {
    doubles x[LANES], y[LANES], e[LANES];
    EACH x[v] = widen(load_floats(p + i + v * W));
    EACH y[v] = widen(load_floats(t + i + v * W));
    if (binary) {
      EACH e[v] = clamp(-magnitude(x[v]), -700.0, 0.0);
      exp_of(e);
    }
    EACH {
      const int64_t at = i + v * W;
      struct found f = binary ? binary_error(a, x[v], y[v], e[v]) : loss_of(a, x[v], y[v]);
      doubles lower = f.loss - f.loss_error, upper = f.loss + f.loss_error;
      floats low = narrow(lower), high = narrow(upper);
      low += 0.0f; /* no -0 */
      s->differ |= low != high;
      s->bad |= f.bad;
      store_floats(losses + at, low);
      s->sum[v] += widen(low);
      if (ends) {
        store_doubles(ends->loss_low + at, lower);
        store_doubles(ends->loss_high + at, upper);
        memcpy(ends->bad + at, &f.bad, sizeof f.bad);
      }
      if (!slopes) continue;
      doubles by = all(a->scale), slope = f.slope * by;
      /* 8 U cover the factor, the product, and the rounding of both ends. */
      doubles wide = magnitude(f.slope_error * by) + magnitude(slope) * (8 * U);
      if (a->scale_is_exact) wide = magnitude(f.slope_error * by);
      lower = slope - wide;
      upper = slope + wide;
      low = narrow(lower) + 0.0f;
      high = narrow(upper);
      s->differ |= low != high;
      store_floats(slopes + at, low);
      if (ends) {
        store_doubles(ends->slope_low + at, lower);
        store_doubles(ends->slope_high + at, upper);
        store_doubles(ends->slope + at, f.slope);
      }
    }
  }
}

/* Compute a chunk again, element by element, and return the number of undecided elements. */
static int64_t decide(const struct elements *a, formula *loss_of, const struct ends *ends,
                      const float *p, const float *t, int64_t m, float *losses, float *slopes,
                      uint8_t *left) {
  int64_t undecided = 0;
  for (int64_t i = 0; i < m; i++) {
    int known = !ends->bad[i];
    if (known && !rounds(ends->loss_low[i], ends->loss_high[i], losses + i))
      known = loss_of == NULL && a->pos_weight == 1 &&
              hard_loss((double)p[i], (double)t[i], losses + i);
    if (known && slopes && !rounds(ends->slope_low[i], ends->slope_high[i], slopes + i))
      known =
          loss_of != NULL && a->divisor != 0 && tied_slope(ends->slope[i], a->divisor, slopes + i);
    left[i] = (uint8_t)!known;
    undecided += !known;
  }
  return undecided;
}

/* Whether every position of a chunk is to be computed. */
INLINE int all_todo(const uint8_t *todo, int64_t m) {
  uint8_t all = 1;
  for (int64_t i = 0; i < m; i++) all &= todo[i];
  return all;
}

INLINE int64_t evaluate(const struct elements *a, formula *loss_of, struct total *total) {
  float pad_p[CHUNK], pad_t[CHUNK], pad_losses[CHUNK], pad_slopes[CHUNK];
  double high = 0, low = 0, size = 0;
  int64_t left = 0;
  struct ends ends;
  uint8_t unknown[CHUNK];
  for (int64_t b = 0; b < a->n; b += CHUNK) {
    const int64_t m = a->n - b < CHUNK ? a->n - b : CHUNK;
    const float *p = (const float *)a->predictions + b, *t = (const float *)a->targets + b;
    float *losses = a->losses ? (float *)a->losses + b : pad_losses;
    float *slopes = a->slopes ? (float *)a->slopes + b : NULL;
    const int whole = a->todo == NULL || all_todo(a->todo + b, m);
    const int padded = m % (LANES * W) != 0 || !whole;
    int64_t steps = m;
    if (padded) { /* with elements whose loss and slope are 0, and positions that are not wanted */
      steps = (m + LANES * W - 1) / (LANES * W) * (LANES * W);
      for (int64_t i = 0; i < steps; i++) {
        const int wanted = i < m && (whole || a->todo[b + i]);
        pad_p[i] = wanted ? p[i] : loss_of ? 0.0f : -1000.0f;
        pad_t[i] = wanted ? t[i] : 0.0f;
      }
      p = pad_p;
      t = pad_t;
      losses = pad_losses;
      if (slopes) slopes = pad_slopes;
    }
    struct sums s = {0};
    if (slopes)
      compute(a, loss_of, p, t, steps, losses, slopes, &s, NULL);
    else
      compute(a, loss_of, p, t, steps, losses, NULL, &s, NULL);
    double sum = 0;
    if (any_of_floats(s.differ) || any_of(s.bad)) {
      struct sums again = {0};
      compute(a, loss_of, p, t, steps, losses, slopes, &again, &ends);
      left += decide(a, loss_of, &ends, p, t, m, losses, slopes, unknown);
      if (a->left) memcpy(a->left + b, unknown, (size_t)m);
      for (int64_t i = 0; i < m; i++) {
        if (!unknown[i]) sum += (double)losses[i];
      }
    } else {
      sum = sum_of((s.sum[0] + s.sum[1]) + (s.sum[2] + s.sum[3]));
    }
    low += two_sum(high, sum, &high);
    size += sum; /* no loss is negative */
    for (int64_t i = 0; padded && i < m; i++) {
      if (!whole && !a->todo[b + i]) continue;
      if (a->losses) ((float *)a->losses)[b + i] = pad_losses[i];
      if (a->slopes) ((float *)a->slopes)[b + i] = pad_slopes[i];
    }
  }
  total->high = high;
  total->low = low;
  /* A loss passes through all additions of a chunk at most. */
  total->error = ((double)a->n * U + CHUNK + 8) * U * size;
  return left;
}

#include "probabilities.c"
#include "mixed.c"

static int64_t binary_cross_entropy(const struct elements *a, struct total *total) {
  if (!a->mixed) return evaluate(a, NULL, total);
  return evaluate_mixed(a, a->mixed->clip ? find_probabilities : find_binary, total);
}

static int64_t mean_squared_error(const struct elements *a, struct total *total) {
  return a->mixed ? evaluate_mixed(a, find_squared, total) : evaluate(a, squared_error, total);
}

static int64_t huber(const struct elements *a, struct total *total) {
  return a->mixed ? evaluate_mixed(a, find_huber, total) : evaluate(a, huber_error, total);
}
