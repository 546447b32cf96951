/* Exact sums of float32 numbers, as the limbs of exact/limbs.py.

   Adding and subtracting 1.5 * 2^e rounds a number to a multiple of 2^(e - 52). The numbers of a
   block are below 2^(e - GROWTH), where GROWTH is two more than the bits of their count, so the sum
   of these multiples is below 2^53 of them: it is exact in any order. What is left of a number is
   exact too, and at most half a multiple, so the next step has a smaller e. Each step takes 39 bits,
   and each pass over a block takes two steps, which reach 2^54 below the largest number at least. */
#include "loops.h"
#include "vectors.h"

#define SUM_BLOCK 4096
#define GROWTH 14
#define STEP_BITS (53 - GROWTH)
#define PASSES 4 /* of 277 bits from the largest float32 to the smallest, each takes 78 */
#define INFINITE 0x7f800000

/* Take a step off numbers, and return the multiples. */
INLINE doubles taken_from(doubles *x, double offset) {
  doubles multiples = (*x + offset) - offset;
  *x -= multiples;
  return multiples;
}

/* Add the multiples of the last two of some steps. Returns whether a number has something left. */
INLINE int take(const float *x, int64_t n, const double *offsets, int steps, double *first,
                double *second) {
  doubles firsts[LANES] = {{0}}, seconds[LANES] = {{0}}, left[LANES];
  longs some = {0};
  for (int64_t i = 0; i < n; i += LANES * W) {
    EACH left[v] = widen(load_floats(x + i + v * W));
    for (int k = 0; k < steps - 2; k++) EACH taken_from(&left[v], offsets[k]);
    EACH firsts[v] += taken_from(&left[v], offsets[steps - 2]);
    EACH seconds[v] += taken_from(&left[v], offsets[steps - 1]);
    EACH some |= left[v] != 0;
  }
  *first = sum_of((firsts[0] + firsts[1]) + (firsts[2] + firsts[3]));
  *second = sum_of((seconds[0] + seconds[1]) + (seconds[2] + seconds[3]));
  return any_of(some);
}

/* Add a multiple of 2^-149 below 2^142. */
static void add_number(double x, int64_t limbs[FLOAT_LIMBS]) {
  int exponent;
  int64_t units = (int64_t)ldexp(frexp(x, &exponent), 53);
  int shift = exponent - 53 + 149;
  if (shift < 0) { /* the last bits are 0 */
    units >>= -shift;
    shift = 0;
  }
  __int128 shifted = (__int128)units << shift % 32;
  const int first = shift / 32; /* at most 7 */
  limbs[first] += (int64_t)(shifted & UINT32_MAX);
  shifted >>= 32;
  if (first + 2 < FLOAT_LIMBS) {
    limbs[first + 1] += (int64_t)(shifted & UINT32_MAX);
    limbs[first + 2] += (int64_t)(shifted >> 32);
  } else {
    limbs[first + 1] += (int64_t)shifted;
  }
}

/* The largest magnitude of n numbers, as bits. */
static int32_t largest_bits(const float *x, int64_t n) {
  ints largest[LANES] = {{0}};
  for (int64_t i = 0; i < n; i += LANES * W) {
    ints bits[LANES], larger[LANES];
    EACH bits[v] = (ints)load_floats(x + i + v * W) & INT32_MAX;
    EACH larger[v] = bits[v] > largest[v];
    EACH largest[v] = (bits[v] & larger[v]) | (largest[v] & ~larger[v]);
  }
  int32_t found = 0;
  EACH for (int i = 0; i < W; i++) found = largest[v][i] > found ? largest[v][i] : found;
  return found;
}

/* Count NaN and infinities, and replace them by 0. */
static void set_aside(float *x, int64_t n, int64_t specials[3]) {
  for (int64_t i = 0; i < n; i++) {
    if (isfinite(x[i])) continue;
    specials[isnan(x[i]) ? 0 : x[i] > 0 ? 1 : 2]++;
    x[i] = 0;
  }
}

/* Add n numbers; n is a multiple of LANES * W. Returns whether all are finite, else adds none. */
static int add_block(const float *x, int64_t n, int64_t limbs[FLOAT_LIMBS]) {
  const int32_t largest = largest_bits(x, n);
  if (largest >= INFINITE) return 0;
  if (largest == 0) return 1;
  const int field = largest >> 23; /* 0 for subnormal numbers, which are below 2^-126 */
  int exponent = (field ? field : 1) - 126 + GROWTH;
  double offsets[2 * PASSES], first, second;
  int some = 1;
  for (int steps = 2; some && steps <= 2 * PASSES; steps += 2) {
    offsets[steps - 2] = ldexp(1.5, exponent);
    offsets[steps - 1] = ldexp(1.5, exponent - STEP_BITS);
    /* A constant number of steps, so that the compiler unrolls those of most blocks. */
    some = steps == 2 ? take(x, n, offsets, 2, &first, &second)
                      : take(x, n, offsets, steps, &first, &second);
    add_number(first, limbs);
    add_number(second, limbs);
    exponent -= 2 * STEP_BITS;
  }
  return 1;
}

static void add_exactly(const float *x, int64_t n, struct exact_sum *sum) {
  for (int64_t start = 0; start < n; start += SUM_BLOCK) {
    int64_t count = n - start < SUM_BLOCK ? n - start : SUM_BLOCK;
    const int64_t padded = (count + LANES * W - 1) / (LANES * W) * (LANES * W);
    if (padded == count && add_block(x + start, count, sum->limbs)) continue;
    float copy[SUM_BLOCK] = {0};
    memcpy(copy, x + start, (size_t)count * sizeof *x);
    set_aside(copy, count, sum->specials);
    add_block(copy, padded, sum->limbs);
  }
}
