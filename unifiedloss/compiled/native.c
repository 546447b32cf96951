/* The losses of native mode in float32. Compiled once per instruction set; see native.h. */
#include "labels.h"
#include "native.h"
#include "vectors.h"

/* Vectors of float32 in the machine's width. */
#define N (2 * W)
typedef float singles __attribute__((vector_size(8 * W), aligned(4)));
typedef int32_t flags __attribute__((vector_size(8 * W), aligned(4)));

#define STEP (LANES * N)   /* numbers that are computed together */
#define SUMMED (16 * STEP) /* numbers that are added in float32, before float64 takes over */
#define LOG_GROUP 64       /* rows whose logarithms are computed together */

INLINE singles load(const float *x) { return *(const singles *)x; }
INLINE void store(float *to, singles x) { *(singles *)to = x; }
INLINE singles every(float x) { return (singles){0} + x; }

INLINE singles pick(flags condition, singles yes, singles no) {
  return (singles)((condition & (flags)yes) | (~condition & (flags)no));
}

/* a * b + c, rounded once or twice. */
INLINE singles fused(singles a, singles b, singles c) {
#if W == 8
  return (singles)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (singles)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

/* The larger number; b where one is NaN. */
INLINE singles larger_of(singles a, singles b) {
#if W == 8
  return (singles)_mm512_max_ps((__m512)a, (__m512)b);
#elif W == 4
  return (singles)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return pick(a > b, a, b);
#endif
}

INLINE double total_of(singles x) {
  float part[N];
  double sum = 0;
  memcpy(part, &x, sizeof part);
  for (int i = 0; i < N; i++) sum += (double)part[i];
  return sum;
}

/* The sum of the numbers as float64, which loses no digits of long sums of equal numbers. */
INLINE doubles wide_sum(singles x) {
  floats low, high;
  memcpy(&low, &x, sizeof low);
  memcpy(&high, (const char *)&x + sizeof low, sizeof high);
  return widen(low) + widen(high);
}

/* Coefficients of q in e^r = 1 + r + r^2 q(r) for |r| <= log(2) / 2, from tools/coefficients.py,
   which proves that they leave out less than 0.2 of half an epsilon of float32. */
static const float EXP_Q_SINGLE[5] = {0x1.000000p-1f, 0x1.5554dep-3f, 0x1.55551ap-5f,
                                      0x1.120b62p-7f, 0x1.6d10fcp-10f};

/* e^x 2^power for x <= 0; 0 where that is below the smallest normal number. A NaN stays a NaN.

   As `exp_of` in vectors.h. The number that rounds to an integer holds `power` too, so that the
   last bits become the exponent of the scaled result. */
INLINE void scaled_exp(singles x[LANES], int power) {
  const float rounder = 0x1.8p23f + (float)power, least = (float)(-126 - power) * 0x1.62e42ep-1f;
  singles t[LANES], k[LANES], r[LANES], s[LANES], a[LANES], b[LANES];
  flags gone[LANES];
  EACH gone[v] = x[v] < least;
  EACH x[v] = larger_of(every(least), x[v]);
  EACH t[v] = fused(x[v], every(0x1.715476p0f), every(rounder));
  EACH k[v] = t[v] - rounder;
  EACH r[v] = fused(k[v], every(-0x1.62e4p-1f), x[v]); /* a product of 16 bits and 8: exact */
  EACH r[v] = fused(k[v], every(-0x1.7f7d1cp-20f), r[v]);
  EACH s[v] = r[v] * r[v];
  EACH a[v] = fused(every(EXP_Q_SINGLE[1]), r[v], every(EXP_Q_SINGLE[0]));
  EACH b[v] = fused(every(EXP_Q_SINGLE[3]), r[v], every(EXP_Q_SINGLE[2]));
  EACH b[v] = fused(every(EXP_Q_SINGLE[4]), s[v], b[v]);
  EACH a[v] = fused(b[v], s[v], a[v]);
  EACH a[v] = 1.0f + fused(s[v], a[v], r[v]);
  EACH a[v] = (singles)((flags)a[v] + ((flags)t[v] << 23));
  EACH x[v] = (singles)((flags)a[v] & ~gone[v]);
}

/* --------------------------------------------------------------------- cross-entropy of logits */

/* With the largest logit m of a row, the loops compute e_c = e^(z_c - m) 2^POWER, so that the slopes
   of all but the rarest classes are normal numbers before their factor makes them larger. */
#define POWER 48

/* The largest of k numbers, without those that are NaN. */
INLINE float largest_of(const float *restrict z, int64_t k) {
  singles most[LANES];
  EACH most[v] = every(-INFINITY);
  int64_t i = 0;
  for (; i + STEP <= k; i += STEP) EACH most[v] = larger_of(load(z + i + v * N), most[v]);
  for (; i + N <= k; i += N) most[0] = larger_of(load(z + i), most[0]);
  most[0] = larger_of(larger_of(most[0], most[1]), larger_of(most[2], most[3]));
  float m = -INFINITY;
  for (int j = 0; j < N; j++) m = most[0][j] > m ? most[0][j] : m;
  for (; i < k; i++) m = z[i] > m ? z[i] : m;
  return m;
}

/* Fill e with the scaled exponentials of a row, and 0 for its label y, and return their sum. */
INLINE double exponentials_of(const float *restrict z, int64_t k, int64_t y, float most,
                              float *restrict e) {
  double sum = 0;
  for (int64_t b = 0; b < k; b += SUMMED) {
    const int64_t end = k - b < SUMMED ? k : b + SUMMED;
    singles part[LANES] = {0};
    for (int64_t i = b; i < end; i += STEP) {
      const int64_t m = end - i < STEP ? end - i : STEP;
      singles x[LANES];
      /* The next row, because the search for its largest logit would wait for it. */
      for (int64_t j = 0; j < STEP; j += 16) __builtin_prefetch(z + k + i + j);
      if (m < STEP || (uint64_t)(y - i) < STEP) {
        float some[STEP];
        for (int64_t j = 0; j < STEP; j++) some[j] = j < m && i + j != y ? z[i + j] : -INFINITY;
        EACH x[v] = load(some + v * N) - most;
        scaled_exp(x, POWER);
        EACH store(some + v * N, x[v]);
        if (e) memcpy(e + i, some, (size_t)m * sizeof *e);
      } else {
        EACH x[v] = load(z + i + v * N) - most;
        scaled_exp(x, POWER);
        if (e) EACH store(e + i + v * N, x[v]);
      }
      EACH part[v] += x[v];
    }
    sum += total_of((part[0] + part[1]) + (part[2] + part[3]));
  }
  return sum;
}

/* Multiply the exponentials of a row by its factor, and divide them by their sum. */
INLINE void slopes_of_row(float *restrict e, int64_t k, int64_t y, double others, double total,
                          double factor) {
  float first = 1, ratio = (float)(factor / total);
  if (fabs(factor) < 0x1p-50) { /* the ratio would have lost digits */
    first = 1 / (float)(1LL << POWER);
    ratio = (float)(factor / (total * (double)first));
  }
  int64_t c = 0;
  if (first == 1)
    for (; c + N <= k; c += N) store(e + c, load(e + c) * ratio);
  for (; c < k; c++) e[c] = e[c] * first * ratio;
  e[y] = (float)(-others / total * factor);
}

static int64_t native_cross_entropy(const struct native *a, int64_t first, int64_t last,
                                    double *sum) {
  const int64_t k = a->classes;
  const double unit = (double)(1LL << POWER);
  double gap[LOG_GROUP + W], rest[LOG_GROUP + W], total = 0;
  int64_t unknown = 0;
  for (int64_t b = first; b < last; b += LOG_GROUP) {
    const int64_t count = last - b < LOG_GROUP ? last - b : LOG_GROUP;
    for (int64_t r = 0; r < count; r++) {
      const int64_t row = b + r;
      const float *z = a->predictions + row * k;
      float *slopes = a->slopes ? a->slopes + row * k : NULL;
      const int64_t y = class_of(a->targets, a->label_size, a->label_signed, a->classes, row);
      gap[r] = rest[r] = 0;
      if ((a->todo && !a->todo[row]) || y < 0) {
        unknown += !a->todo || a->todo[row];
        if (slopes) memset(slopes, 0, (size_t)k * sizeof *slopes);
        continue;
      }
      const float most = largest_of(z, k);
      singles own[LANES];
      EACH own[v] = every(z[y] - most);
      scaled_exp(own, POWER);
      const double others = exponentials_of(z, k, y, most, slopes);
      const double all_terms = others + (double)own[0][0];
      /* log(1 + others) if the label has the largest logit. Else its distance from it, and the
         logarithm of the sum, in which the largest logit has the term 1. */
      if (!(most < INFINITY)) {
        rest[r] = NAN;
      } else if (z[y] == most) {
        rest[r] = others / unit;
      } else {
        gap[r] = (double)most - (double)z[y];
        rest[r] = (all_terms - unit) / unit;
      }
      if (slopes)
        slopes_of_row(slopes, k, y, others, all_terms, a->factor ? a->factor[row] : a->scale);
    }
    for (int64_t r = count; r % W; r++) rest[r] = 0;
    for (int64_t r = 0; r < count; r += W)
      store_doubles(rest + r, log1p_of(load_doubles(rest + r)));
    for (int64_t r = 0; r < count; r++) {
      const float loss = (float)(gap[r] + rest[r]);
      if (a->losses) a->losses[b + r] = loss;
      total += (double)loss;
    }
  }
  *sum = total;
  return unknown;
}

/* ------------------------------------------------------------------------- elementwise losses */

/* A vector of losses and slopes, and which of them are unknown. */
struct element {
  singles loss, slope;
  flags unknown;
};

typedef struct element element_of(const struct native *a, singles p, singles t, singles e);

INLINE struct element squared_single(const struct native *a, singles p, singles t, singles e) {
  (void)a, (void)e;
  const singles d = p - t;
  return (struct element){d * d, d, (flags){0}};
}

INLINE struct element huber_single(const struct native *a, singles p, singles t, singles e) {
  (void)e;
  const float half_delta = (float)(0.5 * a->parameter), delta = (float)a->parameter;
  /* Half the error, because the error may overflow where the loss does not. */
  const singles d = p - t, half = 0.5f * p - 0.5f * t, size = pick(half < 0, -half, half);
  const singles far = (float)(2 * a->parameter) * (size - (float)(0.25 * a->parameter));
  singles slope = pick(d < -delta, every(-delta), d);
  slope = pick(d > delta, every(delta), slope);
  return (struct element){pick(size > half_delta, far, 0.5f * d * d), slope, (flags){0}};
}

/* Coefficients of A in log(1 + e) = 2 w (1 + w^2 A(w^2)) with w = e / (2 + e), for w^2 <= 1 / 9,
   from tools/coefficients.py, which proves that they leave out less than 0.3 of half an epsilon. */
static const float LOG_A_SINGLE[4] = {0x1.55554cp-2f, 0x1.99ad6cp-3f, 0x1.21249ap-3f,
                                      0x1.12f59ap-3f};

/* See `binary_error` in elementwise.c; e = e^-|z|. */
INLINE struct element binary_single(const struct native *a, singles z, singles t, singles e) {
  const singles size = (singles)((flags)z & INT32_MAX), no = 1.0f - t;
  const singles yes = (float)a->parameter * t, one = 1.0f + e, two = 2.0f + e;
  const singles inverse = 1.0f / (one * two), w = e * (one * inverse), v = w * w;
  singles log = fused(fused(every(LOG_A_SINGLE[3]), v, every(LOG_A_SINGLE[2])), v * v,
                      fused(every(LOG_A_SINGLE[1]), v, every(LOG_A_SINGLE[0])));
  log = fused(2.0f * w, v * log, 2.0f * w);
  const singles larger = two * inverse, smaller = e * larger;
  const flags positive = z >= 0;
  struct element x;
  x.loss = pick(positive, no, yes) * size + (yes + no) * log;
  x.slope = pick(positive, larger, smaller) * no - pick(positive, smaller, larger) * yes;
  /* The caller gives infinite logits their limits, and counts tiny targets as 0. */
  x.unknown = ~((t >= 0x1p-126f) | (t == 0)) | ~(t <= 1.0f) | ~(size < INFINITY);
  return x;
}

/* e^-|z|, below the smallest normal number too: e^x 2^24 has all digits, and then loses some. */
INLINE void tails(singles e[LANES], const singles z[LANES]) {
  EACH e[v] = (singles)((flags)z[v] | INT32_MIN);
  scaled_exp(e, 24);
  EACH e[v] *= 0x1p-24f;
}

/* Compute m elements, a whole number of steps. */
INLINE flags compute_singles(const struct native *a, element_of *formula, float unit,
                             const float *p, const float *t, const double *factor, int64_t m,
                             float *losses, float *slopes, doubles *sum) {
  flags unknown = {0};
  doubles sums[2] = {0};
  for (int64_t i = 0; i < m; i += STEP) {
    singles x[LANES], y[LANES], e[LANES];
    EACH x[v] = load(p + i + v * N);
    EACH y[v] = load(t + i + v * N);
    if (formula == binary_single) tails(e, x);
    EACH {
      const int64_t at = i + v * N;
      const struct element found = formula(a, x[v], y[v], e[v]);
      unknown |= found.unknown;
      sums[v % 2] += wide_sum(found.loss);
      if (losses) store(losses + at, found.loss);
      if (!slopes) continue;
      singles by = every((float)(a->scale * (double)unit));
      if (factor)
        for (int j = 0; j < N; j++) by[j] = (float)(factor[at + j] * (double)unit);
      store(slopes + at, found.slope * by);
    }
  }
  *sum = sums[0] + sums[1];
  return unknown;
}

INLINE int64_t elements_of(const struct native *a, element_of *formula, float unit, int64_t first,
                           int64_t last, double *sum) {
  float pad_p[NATIVE_STEP], pad_t[NATIVE_STEP], pad_losses[NATIVE_STEP], pad_slopes[NATIVE_STEP];
  double pad_factor[NATIVE_STEP], total = 0;
  int64_t unknown = 0;
  for (int64_t b = first; b < last; b += NATIVE_STEP) {
    const int64_t m = last - b < NATIVE_STEP ? last - b : NATIVE_STEP;
    const float *p = a->predictions + b, *t = (const float *)a->targets + b;
    const double *factor = a->factor ? a->factor + b : NULL;
    float *losses = a->losses ? a->losses + b : NULL, *slopes = a->slopes ? a->slopes + b : NULL;
    const int padded = a->todo || m % STEP;
    int64_t steps = m;
    if (padded) { /* with elements whose loss and slope are 0 */
      steps = (m + STEP - 1) / STEP * STEP;
      for (int64_t i = 0; i < steps; i++) {
        const int counts = i < m && (!a->todo || a->todo[b + i]);
        pad_p[i] = counts ? p[i] : formula == binary_single ? -1000.0f : 0.0f;
        pad_t[i] = counts ? t[i] : 0.0f;
        pad_factor[i] = counts && factor ? factor[i] : 0.0;
      }
      p = pad_p;
      t = pad_t;
      if (factor) factor = pad_factor;
      if (losses) losses = pad_losses;
      if (slopes) slopes = pad_slopes;
    }
    doubles part;
    flags some;
    if (factor)
      some = compute_singles(a, formula, unit, p, t, factor, steps, losses, slopes, &part);
    else if (slopes)
      some = compute_singles(a, formula, unit, p, t, NULL, steps, losses, slopes, &part);
    else
      some = compute_singles(a, formula, unit, p, t, NULL, steps, losses, NULL, &part);
    for (int j = 0; j < N; j++) unknown += some[j] != 0;
    total += sum_of(part);
    if (padded && losses) memcpy(a->losses + b, losses, (size_t)m * sizeof *losses);
    for (int64_t i = 0; padded && slopes && i < m; i++)
      a->slopes[b + i] = a->todo && !a->todo[b + i] ? 0.0f : slopes[i];
  }
  *sum = total;
  return unknown;
}

static int64_t native_binary(const struct native *a, int64_t first, int64_t last, double *sum) {
  return elements_of(a, binary_single, 1, first, last, sum);
}

/* The slope 2 (p - t) may overflow where its product with a small factor does not. */
static int64_t native_squared(const struct native *a, int64_t first, int64_t last, double *sum) {
  return elements_of(a, squared_single, 2, first, last, sum);
}

static int64_t native_huber(const struct native *a, int64_t first, int64_t last, double *sum) {
  return elements_of(a, huber_single, 1, first, last, sum);
}
