/* Pairs of float64: the unevaluated sum of two vectors, of which the second is small beside the
   first. Their exponential and logarithm.

   The errors of single operations on pairs, some U^2, are far below those of the functions. */
#ifndef UNIFIEDLOSS_PAIRS_H
#define UNIFIEDLOSS_PAIRS_H

#include "vectors.h"

/* Numbers that Python gives to the loops, because C has no type for their digits:
   log(2) / STEPS in three parts, of which the first two have 32 bits; the same in two parts; and
   2^(j / STEPS) for j from 0 to STEPS - 1, each as a high and a low part. */
#define POWER_BITS 8
#define STEPS (1 << POWER_BITS)
#define STEP_PARTS 0
#define STEP_HIGH 3
#define STEP_LOW 4
#define POWERS 5

struct pairs {
  doubles high, low;
};

/* high + low as a pair, where high is not smaller than low. */
INLINE struct pairs pair_of(doubles high, doubles low) {
  doubles sum = high + low;
  return (struct pairs){sum, low - (sum - high)};
}

INLINE struct pairs exactly(doubles x) { return (struct pairs){x, all(0)}; }

INLINE struct pairs minus(struct pairs x) { return (struct pairs){-x.high, -x.low}; }

INLINE struct pairs choose_pair(longs condition, struct pairs yes, struct pairs no) {
  return (struct pairs){choose(condition, yes.high, no.high), choose(condition, yes.low, no.low)};
}

/* Where x is a power of two, 0 or infinite, so that a product with it is exact. */
INLINE longs is_power(doubles x) { return ((longs)x & 0xfffffffffffffLL) == 0; }

/* a * b = *product + the result, without an error (Dekker). */
INLINE doubles two_products(doubles a, doubles b, doubles *product) {
  doubles p = a * b;
  *product = p;
#if defined(__FMA__)
  return muladd(a, b, -p);
#else
  const double split = 0x1p27 + 1;
  doubles a_high = split * a - (split * a - a), b_high = split * b - (split * b - b);
  doubles a_low = a - a_high, b_low = b - b_high;
  return a_low * b_low - (((p - a_high * b_high) - a_low * b_high) - a_high * b_low);
#endif
}

/* a b, with an error below 4 U^2 of it, and exact where b is a power of two. */
INLINE struct pairs times(struct pairs a, doubles b) {
  doubles product, low = two_products(a.high, b, &product);
  return pair_of(product, low + a.low * b);
}

/* a b, with an error below 8 U^2 of it. */
INLINE struct pairs product_of(struct pairs a, struct pairs b) {
  doubles product, low = two_products(a.high, b.high, &product);
  return pair_of(product, low + muladd(a.high, b.low, a.low * b.high));
}

/* a / b, with an error below 16 U^2 of it. */
INLINE struct pairs over(struct pairs a, struct pairs b) {
  doubles first = a.high / b.high, product, low = two_products(first, b.high, &product);
  doubles rest = ((a.high - product) - low) + (a.low - first * b.low);
  return pair_of(first, rest / b.high);
}

/* a + b, with an error below 4 U^2 of the sum of the magnitudes. */
INLINE struct pairs plus(struct pairs a, struct pairs b) {
  doubles sum, lost = two_sums(a.high, b.high, &sum);
  return pair_of(sum, lost + (a.low + b.low));
}

/* e^(x + more) = power (1 + p + p_low) with |p| below 0.0014 and |p_low| below 2^-31. */
struct factors {
  struct pairs power;
  doubles p, p_low;
};

/* Entries of the table of powers. */
INLINE struct pairs powers_at(const double *table, longs entry) {
#if W == 8
  __m512i at = (__m512i)(entry + entry);
  return (struct pairs){(doubles)_mm512_i64gather_pd(at, table, 8),
                        (doubles)_mm512_i64gather_pd(at, table + 1, 8)};
#elif W == 4
  __m256d even = _mm256_loadu2_m128d(table + 2 * entry[2], table + 2 * entry[0]);
  __m256d odd = _mm256_loadu2_m128d(table + 2 * entry[3], table + 2 * entry[1]);
  return (struct pairs){(doubles)_mm256_unpacklo_pd(even, odd),
                        (doubles)_mm256_unpackhi_pd(even, odd)};
#else
  struct pairs power = exactly(all(0));
  for (int v = 0; v < W; v++) {
    power.high[v] = table[2 * entry[v]];
    power.low[v] = table[2 * entry[v] + 1];
  }
  return power;
#endif
}

/* For -690 <= x < 700 and |more| <= 2^-44. p + p_low errs by less than 2^-81, and by less than 2^-71
   of p where the power is 1.

   x + more = (k / STEPS) log(2) + r + rest with |r| <= 2^-9.5 and |rest| <= 2^-43, and
   e^r - 1 = r + r^2 / 2 + cubic, where cubic < 2^-31.1 is computed with five roundings. */
INLINE struct factors factors_of(const double *c, doubles x, doubles more) {
  struct factors f;
  doubles shifted = muladd(x, all(STEPS * 0x1.71547652b82fep0), all(0x1.8p52));
  doubles k = shifted - 0x1.8p52, r, rest;
#if defined(__FMA__)
  /* A multiple of 2^-62, as x and the step are where k is not 0, and below 2^-9: it is exact. */
  r = muladd(k, all(-c[STEP_HIGH]), x);
  rest = muladd(k, all(-c[STEP_LOW]), more);
#else
  /* The products with the first two parts, and the first difference, are exact. */
  rest = two_sums(x - k * c[STEP_PARTS], -(k * c[STEP_PARTS + 1]), &r);
  rest = (rest - k * c[STEP_PARTS + 2]) + more;
#endif
  /* 2^(k / STEPS) is a table entry times 2^(k // STEPS). */
  longs entry = (longs)shifted & (STEPS - 1);
  doubles scale = (doubles)((((longs)shifted - entry) << (52 - POWER_BITS)) + 0x3ff0000000000000LL);
  f.power = powers_at(c + POWERS, entry);
  f.power.high *= scale;
  f.power.low *= scale;
  doubles square, square_low = two_products(r, r, &square);
  doubles series = muladd(r, all(1.0 / 5040), all(1.0 / 720));
  series = muladd(r, series, all(1.0 / 120));
  series = muladd(r, series, all(1.0 / 24));
  series = muladd(r, series, all(1.0 / 6));
  doubles half = 0.5 * square, cubic = r * square * series;
  f.p = r + half;
  f.p_low = (half - (f.p - r)) + muladd(all(0.5), square_low, cubic);
  f.p_low = muladd(rest, 1.0 + (f.p + cubic), f.p_low);
  return f;
}

/* power (p + p_low) = *product + the result, with an error below 2^-82 of the power beside that of
   p + p_low. */
INLINE doubles rest_of(struct factors f, doubles *product) {
  doubles low = two_products(f.power.high, f.p, product);
  return low + muladd(f.power.high, f.p_low, muladd(f.power.low, f.p, f.power.low));
}

/* e^(x + more) for -690 <= x < 700 and |more| <= 2^-44, with a relative error below 2^-80 and an
   absolute one below 2^-1070. e^0 is exactly 1. */
INLINE struct pairs exponential_of(const double *c, doubles x, doubles more) {
  struct factors f = factors_of(c, x, more);
  doubles product, low = rest_of(f, &product), high = f.power.high + product;
  return pair_of(high, (product - (high - f.power.high)) + low);
}

/* log(1 + s) for s >= 0: one Newton step, y + (1 + s - e^y) / (1 + s). `log_error` bounds the error
   beside that of s.

   y errs by 8 U of it, and the step by the square of that. Where the power is not 1, y is above
   2^-9.6. */
INLINE struct pairs logarithm_of(const double *c, struct pairs s) {
  doubles y = log1p_of(s.high), off, product, lost[3];
  struct factors f = factors_of(c, y, all(0));
  doubles low = rest_of(f, &product);
  /* For small s, 1 - power is 0, and s - power p keeps its relative error. */
  lost[0] = two_sums(all(1), -f.power.high, &off);
  lost[1] = two_sums(off, s.high, &off);
  lost[2] = two_sums(off, -product, &off);
  off += ((lost[0] + lost[1]) + lost[2]) + (s.low - low);
  return pair_of(y, off / (1.0 + s.high));
}

/* 2^-79, or 2^-70 of a small logarithm. */
INLINE doubles log_error(struct pairs logarithm) {
  doubles relative = logarithm.high * 0x1p-70;
  return choose(relative < 0x1p-79, relative, all(0x1p-79));
}

#endif
