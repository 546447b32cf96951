/* Vectors of the machine's width, and the exponential and the logarithm on them.

   Every file that includes this one is compiled once per instruction set. The results of the loops
   do not depend on the instruction set, because each is either the correctly rounded one or is left
   undecided. The compiler may not contract products and sums, because `two_sum` needs each operation
   rounded. `muladd` contracts where the instruction set can, and every bound holds with and
   without. */
#ifndef UNIFIEDLOSS_VECTORS_H
#define UNIFIEDLOSS_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

/* The number of float64 in a vector. */
#if defined(__AVX512F__)
#define W 8
#elif defined(__AVX__)
#define W 4
#else
#define W 2
#endif

typedef float floats __attribute__((vector_size(4 * W), aligned(4)));
typedef double doubles __attribute__((vector_size(8 * W), aligned(8)));
typedef int32_t ints __attribute__((vector_size(4 * W), aligned(4)));
typedef int64_t longs __attribute__((vector_size(8 * W), aligned(8)));

#define INLINE static inline __attribute__((always_inline))

/* Half the distance from 1 to the next float64: the unit of all error bounds. */
#define U 0x1p-53

/* Vectors that are computed at a time. A chain of multiply-adds waits for itself, and a small
   scheduler does not look far enough ahead to fill the time with the next chain. */
#define LANES 4
#define EACH _Pragma("GCC unroll 4") for (int v = 0; v < LANES; v++)

INLINE floats load_floats(const float *x) { return *(const floats *)x; }
INLINE void store_floats(float *to, floats x) { *(floats *)to = x; }
INLINE doubles load_doubles(const double *x) { return *(const doubles *)x; }
INLINE void store_doubles(double *to, doubles x) { *(doubles *)to = x; }

INLINE doubles widen(floats x) {
#if W == 8
  return (doubles)_mm512_cvtps_pd((__m256)x);
#elif W == 4
  return (doubles)_mm256_cvtps_pd((__m128)x);
#else
  return __builtin_convertvector(x, doubles);
#endif
}

/* Round to float32, to nearest and ties to even. */
INLINE floats narrow(doubles x) {
#if W == 8
  return (floats)_mm512_cvtpd_ps((__m512d)x);
#elif W == 4
  return (floats)_mm256_cvtpd_ps((__m256d)x);
#else
  return __builtin_convertvector(x, floats);
#endif
}

INLINE doubles all(double x) { return (doubles){0} + x; }

INLINE doubles choose(longs condition, doubles yes, doubles no) {
  return (doubles)((condition & (longs)yes) | (~condition & (longs)no));
}

/* Values between two bounds; a NaN stays a NaN. */
INLINE doubles clamp(doubles x, double low, double high) {
  doubles least = all(low), most = all(high);
#if W == 8 /* min and max return their second operand where one is NaN */
  return (doubles)_mm512_min_pd((__m512d)most, _mm512_max_pd((__m512d)least, (__m512d)x));
#elif W == 4
  return (doubles)_mm256_min_pd((__m256d)most, _mm256_max_pd((__m256d)least, (__m256d)x));
#else
  x = choose(x < least, least, x);
  return choose(x > most, most, x);
#endif
}

/* a * b + c, rounded once or twice. */
INLINE doubles muladd(doubles a, doubles b, doubles c) {
#if W == 8
  return (doubles)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  return (doubles)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

INLINE doubles magnitude(doubles x) { return (doubles)((longs)x & INT64_MAX); }

INLINE double sum_of(doubles x) {
#if W == 8
  return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
#elif W == 4
  return (x[0] + x[2]) + (x[1] + x[3]);
#else
  return x[0] + x[1];
#endif
}

INLINE int any_of(longs x) {
  int64_t some = 0;
  for (int i = 0; i < W; i++) some |= x[i];
  return some != 0;
}

INLINE int any_of_floats(ints x) {
  int32_t some = 0;
  for (int i = 0; i < W; i++) some |= x[i];
  return some != 0;
}

/* a + b = *sum + the result, without an error (Knuth). */
INLINE double two_sum(double a, double b, double *sum) {
  double s = a + b, shadow = s - a;
  *sum = s;
  return (a - (s - shadow)) + (b - shadow);
}

/* high + low rounded to odd: towards zero, and then the last bit set if that was inexact. Rounding
   the result to float32 is as good as rounding the sum itself. */
INLINE double to_odd(double high, double low) {
  double sum, lost = two_sum(high, low, &sum);
  int64_t bits;
  memcpy(&bits, &sum, sizeof bits);
  if (lost != 0 && !(bits & 1)) bits += (lost > 0) == (sum > 0) ? 1 : -1;
  memcpy(&sum, &bits, sizeof bits);
  return sum;
}

INLINE doubles two_sums(doubles a, doubles b, doubles *sum) {
  doubles s = a + b, shadow = s - a;
  *sum = s;
  return (a - (s - shadow)) + (b - shadow);
}

/* Coefficients of q in e^r = 1 + r + r^2 q(r) for |r| <= log(2) / 2, from tools/coefficients.py,
   which proves that they leave out less than 0.2 U of e^r. */
static const double EXP_Q[10] = {
    0x1.0000000000001p-1,  0x1.5555555555556p-3,  0x1.5555555553d68p-5,  0x1.11111111109b5p-7,
    0x1.6c16c17889f3cp-10, 0x1.a01a01a7c2f2cp-13, 0x1.a019b914881bap-16, 0x1.71de0db2eb873p-19,
    0x1.28917c9f3a495p-22, 0x1.af389eea54156p-26};

/* e^x for -708 <= x <= 708, with a relative error below 3 U. A NaN stays a NaN.

   x = k log(2) + r. Adding 3 * 2^51 rounds to an integer k and leaves k in the last bits, which
   become the exponent. The first part of log(2) has 33 bits, so its product with k is exact. */
INLINE void exp_of(doubles x[LANES]) {
  doubles shifted[LANES], k[LANES], r[LANES], s[LANES];
  doubles a[LANES], b[LANES], c[LANES], d[LANES], e[LANES];
  EACH shifted[v] = muladd(x[v], all(0x1.71547652b82fep0), all(0x1.8p52));
  EACH k[v] = shifted[v] - 0x1.8p52;
  EACH r[v] = muladd(k[v], all(-0x1.62e42fef00000p-1), x[v]);
  EACH r[v] = muladd(k[v], all(-0x1.473de6af278edp-34), r[v]);
  EACH s[v] = r[v] * r[v];
  /* Estrin's scheme, because its five products do not wait for each other. */
  EACH a[v] = muladd(all(EXP_Q[1]), r[v], all(EXP_Q[0]));
  EACH b[v] = muladd(all(EXP_Q[3]), r[v], all(EXP_Q[2]));
  EACH c[v] = muladd(all(EXP_Q[5]), r[v], all(EXP_Q[4]));
  EACH d[v] = muladd(all(EXP_Q[7]), r[v], all(EXP_Q[6]));
  EACH e[v] = muladd(all(EXP_Q[9]), r[v], all(EXP_Q[8]));
  EACH a[v] = muladd(b[v], s[v], a[v]);
  EACH c[v] = muladd(d[v], s[v], c[v]);
  EACH b[v] = s[v] * s[v];
  EACH c[v] = muladd(e[v], b[v], c[v]);
  EACH a[v] = muladd(c[v], b[v], a[v]);
  EACH x[v] = 1.0 + muladd(s[v], a[v], r[v]);
  EACH x[v] = (doubles)((longs)x[v] + ((longs)shifted[v] << 52));
}

/* Coefficients of A in log(1 + e) = 2 w (1 + w^2 A(w^2)) with w = e / (2 + e), for w^2 <= 1 / 9,
   from tools/coefficients.py, which proves that they leave out less than 0.1 U of it. */
static const double LOG_A[10] = {0x1.5555555555555p-2, 0x1.999999999a3ddp-3, 0x1.24924923d44bfp-3,
                                 0x1.c71c72714381cp-4, 0x1.745cf0b0d0765p-4, 0x1.3b18b2967986cp-4,
                                 0x1.10ac75c001f86p-4, 0x1.eb9060a13a603p-5, 0x1.687a63b6d1ffep-5,
                                 0x1.4b0a323296698p-4};

/* 2 artanh(w) = log((1 + w) / (1 - w)) for w^2 <= 1 / 9. */
INLINE doubles twice_artanh(doubles w) {
  doubles z = w * w, z2 = z * z, z4 = z2 * z2, twice = 2.0 * w;
  doubles low =
      muladd(muladd(all(LOG_A[3]), z, all(LOG_A[2])), z2, muladd(all(LOG_A[1]), z, all(LOG_A[0])));
  doubles middle =
      muladd(muladd(all(LOG_A[7]), z, all(LOG_A[6])), z2, muladd(all(LOG_A[5]), z, all(LOG_A[4])));
  doubles top = muladd(all(LOG_A[9]), z, all(LOG_A[8]));
  doubles a = muladd(z4, muladd(z4, top, middle), low);
  return twice + twice * (z * a);
}

/* log(1 + x) for 0 <= x <= 1, with the bound of `log1p_of`. */
INLINE doubles log1p_up_to_1(doubles x) { return twice_artanh(x / (2.0 + x)); }

/* log(1 + x) for 0 <= x < 2^1000, with a relative error below 8 U. A NaN stays a NaN.

   Up to 1, w is computed from x itself. Beyond, 1 + x = 2^k m with 1 <= m < 2, and k log(2) is at
   least as large as the rest, so the rounding of 1 + x is within the bound. */
INLINE doubles log1p_of(doubles x) {
  longs large = x > 1.0;
  doubles y = 1.0 + x;
  longs k = (((longs)y >> 52) - 1023) & large; /* y is positive */
  doubles m = (doubles)(((longs)y & 0xfffffffffffffLL) | 0x3ff0000000000000LL);
  doubles f = choose(large, m - 1.0, x);
  doubles exponent = (doubles)(k + 0x4338000000000000LL) - 0x1.8p52;
  return exponent * 0x1.62e42fefa39efp-1 + twice_artanh(f / (2.0 + f));
}

INLINE double log1p_one(double x) { return log1p_of(all(x))[0]; }

#endif
