/* The second tier of a cross-entropy: single losses and slopes of rows, in pairs of float64.
   Compiled once per instruction set.

   With m the largest logit and s the sum of e^(z_c - m) over the other classes:

     loss = (m - z_y) + log(1 + s)    slope_c = e^(z_c - m) / (1 + s)

   and the slope of the label y is minus the share of the others. docs/exactness.md derives the
   bounds. The errors of single operations on pairs, some U^2, are far below those
   of the functions. */
#include "halves.h"
#include "loops.h"
#include "vectors.h"

#define STEPS 64        /* table entries from 1 to 2 */
#define LOWEST (-690.0) /* below this argument an exponential counts as 0 */
#define LOG_ERROR 0x1p-66

struct pairs {
  doubles high, low;
};

/* high + low as a pair, where high is not smaller than low. */
INLINE struct pairs pair_of(doubles high, doubles low) {
  doubles sum = high + low;
  return (struct pairs){sum, low - (sum - high)};
}

INLINE struct pairs exactly(doubles x) { return (struct pairs){x, all(0)}; }

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

/* e^(x + more) = power (1 + p + p_low) with |p| below 0.0055 and |p_low| below 2^-25. */
struct factors {
  struct pairs power;
  doubles p, p_low;
};

/* For -690 <= x < 700 and |more| <= 2^-44. p + p_low errs by less than 2^-75, and by less than 2^-67
   of p where the power is 1. */
INLINE struct factors factors_of(const struct second *a, doubles x, doubles more) {
  struct factors f;
  /* x = (k / 64) log(2) + r + rest. The products with the first two parts of log(2) / 64, and the
     first difference, are exact. */
  doubles shifted = x * (STEPS * 0x1.71547652b82fep0) + 0x1.8p52, k = shifted - 0x1.8p52;
  doubles r, rest = two_sums(x - k * a->step[0], -(k * a->step[1]), &r);
  rest = (rest - k * a->step[2]) + more;
  /* 2^(k / 64) is a table entry times 2^(k // 64). */
  longs entry = (longs)shifted & (STEPS - 1);
  doubles scale = (doubles)((((longs)shifted - entry) << 46) + 0x3ff0000000000000LL);
  for (int v = 0; v < W; v++) {
    f.power.high[v] = a->powers[entry[v]];
    f.power.low[v] = a->powers[STEPS + entry[v]];
  }
  f.power.high *= scale;
  f.power.low *= scale;
  /* e^r - 1 = r + r^2 / 2 + cubic. */
  doubles square, square_low = two_products(r, r, &square);
  doubles series = muladd(r, all(1.0 / 40320), all(1.0 / 5040));
  series = muladd(r, series, all(1.0 / 720));
  series = muladd(r, series, all(1.0 / 120));
  series = muladd(r, series, all(1.0 / 24));
  series = muladd(r, series, all(1.0 / 6));
  doubles cubic = r * square * series;
  f.p_low = two_sums(r, 0.5 * square, &f.p);
  f.p_low += (0.5 * square_low + cubic) + rest * (1.0 + (f.p + cubic));
  return f;
}

/* power (p + p_low) = *product + the result, with an error below 2^-76 of the power. */
INLINE doubles rest_of(struct factors f, doubles *product) {
  doubles low = two_products(f.power.high, f.p, product);
  return low + (f.power.high * f.p_low + f.power.low * (1.0 + f.p));
}

/* e^(z - m), where z is not above m, with a relative error below 2^-74, and an absolute one below
   2^-990. */
INLINE struct pairs exponential_of(const struct second *a, doubles z, double m) {
  doubles x, more = two_sums(z, all(-m), &x);
  longs deep = x < LOWEST; /* where z is infinite, `more` is a NaN */
  struct factors f = factors_of(a, choose(deep, all(0), x), choose(deep, all(0), more));
  doubles product, low = rest_of(f, &product), high, lost = two_sums(f.power.high, product, &high);
  struct pairs e = pair_of(high, lost + low);
  return (struct pairs){choose(deep, all(0), e.high), choose(deep, all(0), e.low)};
}

/* log(1 + s) for s >= 0: one Newton step, y + (1 + s - e^y) / (1 + s). */
INLINE struct pairs logarithm_of(const struct second *a, struct pairs s) {
  doubles y = log1p_of(s.high), off, product, lost[3];
  struct factors f = factors_of(a, y, all(0));
  doubles low = rest_of(f, &product);
  /* For small s, 1 - power is 0, and s - power p keeps its relative error. */
  lost[0] = two_sums(all(1), -f.power.high, &off);
  lost[1] = two_sums(off, s.high, &off);
  lost[2] = two_sums(off, -product, &off);
  off += ((lost[0] + lost[1]) + lost[2]) + (s.low - low);
  return pair_of(y, off / (1.0 + s.high));
}

/* What the results of a row share: its largest logit, and s with a bound of its relative error,
   beside the 2^-990 of each term. */
struct row {
  const float *logits;
  int64_t top;
  double largest, error;
  struct pairs others;
};

/* Add e^(z - m) for `count` numbers in each place of a vector. */
INLINE struct pairs add_exponentials(const struct second *a, const float *z, int64_t count,
                                     double m, struct pairs sum) {
  for (int64_t i = 0; i < count; i += W) {
    float last[W];
    const float *from = z + i;
    if (count - i < W) {
      for (int64_t v = 0; v < W; v++) last[v] = i + v < count ? z[i + v] : -INFINITY;
      from = last;
    }
    struct pairs e = exponential_of(a, widen(load_floats(from)), m);
    doubles lost = two_sums(sum.high, e.high, &sum.high);
    sum.low += lost + e.low;
  }
  return sum;
}

static struct row row_of(const struct second *a, const float *z) {
  const int64_t k = a->classes;
  struct row row = {z, 0, 0, 0, exactly(all(0))};
  for (int64_t c = 1; c < k; c++)
    if (z[c] > z[row.top]) row.top = c;
  const double m = row.largest = z[row.top];
  struct pairs each = add_exponentials(a, z, row.top, m, row.others);
  each = add_exponentials(a, z + row.top + 1, k - row.top - 1, m, each);
  double high = 0, low = 0;
  for (int v = 0; v < W; v++) low += two_sum(high, each.high[v], &high) + each.low[v];
  low = two_sum(high, low, &high);
  const double additions = (double)k / W + W + 8;
  row.error = 0x1p-73 + additions * U * (additions * U);
  row.others = (struct pairs){all(high), all(low)};
  return row;
}

/* The loss (m - z_y) + log(1 + s), and in *radius a bound of its error. */
INLINE struct pairs loss_of(const struct second *a, const struct row *row, double own,
                            doubles *radius) {
  struct pairs tail = logarithm_of(a, row->others), loss;
  doubles apart, lost = two_sums(all(row->largest), all(-own), &apart);
  doubles low = two_sums(apart, tail.high, &loss.high);
  *radius = tail.high * (LOG_ERROR + row->error) + (double)a->classes * 0x1p-990 +
            (magnitude(low) + magnitude(lost) + magnitude(tail.low)) * (2 * U);
  loss.low = low + (lost + tail.low);
  return pair_of(loss.high, loss.low);
}

/* The slopes at some columns, and in *error a bound of their relative errors. */
INLINE struct pairs slopes_at(const struct second *a, const struct row *row,
                              const int64_t columns[W], int64_t label, double *error) {
  doubles logits;
  longs own, top;
  for (int v = 0; v < W; v++) {
    logits[v] = row->logits[columns[v]];
    own[v] = columns[v] == label ? -1 : 0;
    top[v] = columns[v] == row->top ? -1 : 0;
  }
  struct pairs total = plus(exactly(all(1)), row->others);
  struct pairs e = exponential_of(a, logits, row->largest);
  /* Of the label, minus the sum of the others. It cancels nothing, because e is at most half of the
     total where it is not the largest. */
  struct pairs rest = plus(total, (struct pairs){-e.high, -e.low});
  rest.high = choose(top, row->others.high, rest.high);
  rest.low = choose(top, row->others.low, rest.low);
  e.high = choose(own, -rest.high, e.high);
  e.low = choose(own, -rest.low, e.low);
  *error = 2 * row->error + 0x1p-73;
  return over(e, total);
}

/* Round a number within `radius` of high + low. Returns whether that decides the rounding. */
static int rounds_once(enum form form, double high, double low, double radius, float *to) {
  /* `low` and the radius are rounded when they are added. */
  radius = radius * (1 + 0x1p-40) + fabs(low) * (2 * U);
  float first = rounded_to(form, to_odd(high, low - radius));
  float last = rounded_to(form, to_odd(high, low + radius));
  *to = first;
  return first == last && fabsf(first) < INFINITY;
}

static void second_tier(const struct second *a) {
  struct row row = {0};
  for (int64_t i = 0; i < a->n;) {
    const int64_t at = a->rows[i], label = a->labels[i];
    const float *z = a->logits + at * a->stride;
    if (row.logits != z) row = row_of(a, z);
    /* One loss, or some slopes of a row. */
    const int is_loss = a->columns[i] < 0;
    int64_t columns[W], count = 0;
    doubles factors[3] = {all(1), all(1), all(1)};
    for (; count < W && i + count < a->n && a->rows[i + count] == at; count++) {
      if ((a->columns[i + count] < 0) != is_loss || (is_loss && count)) break;
      columns[count] = a->columns[i + count];
      for (int f = 0; f < 3; f++) factors[f][count] = a->factors[f * a->n + i + count];
    }
    for (int64_t v = count; v < W; v++) columns[v] = columns[0];
    double error = 0;
    doubles radius = all(0);
    struct pairs x = is_loss ? loss_of(a, &row, (double)z[label], &radius)
                             : slopes_at(a, &row, columns, label, &error);
    for (int f = 0; f < 3; f++) {
      x = times(x, factors[f]);
      radius *= magnitude(factors[f]);
      /* A product with a power of two is exact. */
      longs mantissa = (longs)factors[f] & 0xfffffffffffffLL;
      radius += choose(mantissa == 0, all(0), magnitude(x.high) * (4 * U * U));
    }
    if (!is_loss) {
      x = over(x, (struct pairs){all(a->divisor[0]), all(a->divisor[1])});
      /* 2^-500 is above the absolute errors of the exponentials, under every factor, and far below
         a float32. */
      radius = magnitude(x.high) * (error + a->divisor[2] + 0x1p-90) + 0x1p-500;
    }
    const int known = fabs(row.largest) < INFINITY;
    const enum form form = is_loss ? a->loss_form : a->slope_form;
    for (int64_t v = 0; v < count; v++)
      a->left[i + v] =
          !(known && rounds_once(form, x.high[v], x.low[v], radius[v], a->results + i + v));
    i += count;
  }
}
