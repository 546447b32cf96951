/* The second tier of a cross-entropy: single losses and slopes of rows, in pairs of float64.
   Compiled once per instruction set.

   With m the largest logit and s the sum of e^(z_c - m) over the other classes:

     loss = (m - z_y) + log(1 + s)    slope_c = e^(z_c - m) / (1 + s)

   and the slope of the label y is minus the share of the others. docs/exactness.md derives the
   bounds. */
#include "halves.h"
#include "loops.h"
#include "pairs.h"

#define LOWEST (-690.0) /* below this argument an exponential counts as 0 */
#define LOG_ERROR 0x1p-66

/* e^(z - m), where z is not above m; 0 below LOWEST. */
INLINE struct pairs shifted_exponential(const struct second *a, doubles z, double m) {
  doubles x, more = two_sums(z, all(-m), &x);
  longs deep = x < LOWEST; /* where z is infinite, `more` is a NaN */
  struct pairs e =
      exponential_of(a->constants, choose(deep, all(0), x), choose(deep, all(0), more));
  return choose_pair(deep, exactly(all(0)), e);
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
    struct pairs e = shifted_exponential(a, widen(load_floats(from)), m);
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
  struct pairs tail = logarithm_of(a->constants, row->others), loss;
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
  struct pairs e = shifted_exponential(a, logits, row->largest);
  /* Of the label, minus the sum of the others. It cancels nothing, because e is at most half of the
     total where it is not the largest. */
  struct pairs rest = plus(total, minus(e));
  rest = choose_pair(top, row->others, rest);
  e = choose_pair(own, minus(rest), e);
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
      radius += choose(is_power(factors[f]), all(0), magnitude(x.high) * (4 * U * U));
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
