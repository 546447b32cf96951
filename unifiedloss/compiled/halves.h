/* Numbers of float32, bfloat16 and float16: loops read them exactly, and round float64 to them once.

   A cast from float64 to a half type by way of float32 would round twice. Subnormal numbers of the
   half types are read and written; those of float32 must not be flushed meanwhile. */
#ifndef UNIFIEDLOSS_HALVES_H
#define UNIFIEDLOSS_HALVES_H

#include "loops.h"
#include "vectors.h"

typedef uint16_t halves __attribute__((vector_size(2 * W), aligned(2), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * W), aligned(4)));

/* W numbers, exactly. */
INLINE floats load_form(enum form form, const void *x) {
  if (form == FLOAT32) return load_floats(x);
  const halves bits = *(const halves *)x;
  if (form == BFLOAT16) return (floats)(__builtin_convertvector(bits, words) << 16);
#if W == 8
  return (floats)_mm256_cvtph_ps((__m128i)bits);
#elif defined(__F16C__)
  return (floats)_mm_cvtph_ps(_mm_loadl_epi64(x));
#else
  const words wide = __builtin_convertvector(bits, words), size = (wide & 0x7fff) << 13;
  /* The exponents differ by 112, and the product normalizes subnormal numbers. */
  const words finite = (words)((floats)size * 0x1p112f);
  const words special = (words)(size >= 0x7c00 << 13) & 0x7f800000;
  return (floats)(finite | special | (wide & 0x8000) << 16);
#endif
}

/* Write W numbers that the form holds, or beyond its range, which become infinite; any of float32. */
INLINE void store_form(enum form form, void *to, doubles x) {
  const floats numbers = narrow(x);
  if (form == FLOAT32) {
    store_floats(to, numbers);
  } else if (form == BFLOAT16) {
    *(halves *)to = __builtin_convertvector((words)numbers >> 16, halves);
  } else {
#if W == 8
    *(halves *)to = (halves)_mm256_cvtps_ph((__m256)numbers, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
    _mm_storel_epi64(to, _mm_cvtps_ph((__m128)numbers, _MM_FROUND_TO_NEAREST_INT));
#else
    const words bits = (words)numbers, sign = bits >> 16 & 0x8000;
    const floats size = (floats)(bits & 0x7fffffff);
    const words finite = (words)(size * 0x1p-112f) >> 13;
    const words large = (words)(size >= 65536.0f), nan = (words)(size != size);
    *(halves *)to = __builtin_convertvector(
        sign | (nan & 0x7e00) | (large & 0x7c00) | (~(large | nan) & finite), halves);
#endif
  }
}

INLINE doubles at_least(doubles x, double least) {
#if W == 8
  return (doubles)_mm512_max_pd((__m512d)x, _mm512_set1_pd(least));
#elif W == 4
  return (doubles)_mm256_max_pd((__m256d)x, _mm256_set1_pd(least));
#else
  return choose(x > least, x, all(least));
#endif
}

/* x rounded to bfloat16 or float16: to nearest, ties to even. A zero is +0. A result beyond the
   range stays finite until `store_form` writes it. NaN and numbers from 2^970 on become NaN.

   With 2^e <= |x| < 2^(e + 1) and p bits, adding and subtracting 1.5 * 2^(e + 53 - p) rounds to a
   multiple of 2^(e + 1 - p), as it does below the smallest normal number with the e of that one. */
INLINE doubles rounded_to_half(enum form form, doubles x, doubles *power) {
  const double spread = form == BFLOAT16 ? 0x1.8p45 : 0x1.8p42; /* p is 8 or 11 */
  const double least = form == BFLOAT16 ? 0x1p-126 : 0x1p-14;
  *power = at_least((doubles)((longs)x & 0x7ff0000000000000LL), least);
  const doubles shift = *power * spread;
  return (x + shift) - shift;
}

/* The numbers within `error` of x, rounded; *undecided receives ones where not all round alike, and
   where x is 2^970 or more, infinite or a NaN.

   A half type's nearest midpoint is 2^(e - p) - |x - result| away from x. It is half as far on the
   other side of a result that is a power of two, so the error must be below half of that. */
INLINE doubles decided_half(enum form form, doubles x, doubles error, longs *undecided) {
  doubles power, result = rounded_to_half(form, x, &power);
  const double half = form == BFLOAT16 ? 0x1p-8 : 0x1p-11;
  const doubles room = power * half - magnitude(x - result);
  *undecided |= ~(error + error < room);
  return result;
}

/* x rounded to any form, as float32 holds it. */
INLINE float rounded_to(enum form form, double x) {
  if (form == FLOAT32) return (float)x + 0.0f; /* no -0 */
  doubles power;
  const double result = rounded_to_half(form, all(x), &power)[0];
  const double most = form == BFLOAT16 ? 0x1.fep127 : 65504.0;
  if (fabs(x) >= 0x1p970 || fabs(result) > most) return x > 0 ? INFINITY : -INFINITY;
  return (float)result;
}

#endif
