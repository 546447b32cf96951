/* The loops of one instruction set, compiled as one unit. LOOPS is their name. */
#include "cross_entropy.c"
#include "elementwise.c"
#include "halves.h"
#include "native.c"
#include "second_tier.c"
#include "soft_second.c"
#include "soft_targets.c"
#include "sums.c"
#include "wide.c"

static void each_exp(double *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    doubles one[LANES] = {all(x[i])};
    exp_of(one);
    x[i] = one[0][0];
  }
}

static void each_log1p(double *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] = log1p_one(x[i]);
}

static void each_half(double *x, int64_t n, enum form form) {
  for (int64_t i = 0; i < n; i += W) {
    double some[W] = {0}, *to = n - i < W ? some : x + i;
    memcpy(some, x + i, (size_t)(n - i < W ? n - i : W) * sizeof *x);
    doubles power;
    uint16_t bits[W];
    store_form(form, bits, rounded_to_half(form, load_doubles(some), &power));
    store_doubles(to, widen(load_form(form, bits)));
    if (to == some) memcpy(x + i, some, (size_t)(n - i) * sizeof *x);
  }
}

const struct loops LOOPS = {
    cross_entropy,
    soft_cross_entropy,
    binary_cross_entropy,
    mean_squared_error,
    huber,
    second_tier,
    soft_second_tier,
    {wide_cross_entropy, wide_binary_cross_entropy, wide_squared_error, wide_huber_error},
    sum_in_pairs,
    add_exactly,
    each_exp,
    each_log1p,
    each_half,
    of_pairs,
    {native_cross_entropy, native_binary, native_squared, native_huber},
};
