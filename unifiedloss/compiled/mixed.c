/* The elementwise losses of calls with more than float32 numbers; see `struct mixed`. Part of
   elementwise.c.

   A chunk takes two passes. The first stores what the formulas give, with the bounds of their
   errors. The second multiplies by the factors, rounds to a form, and flags what the bounds do not
   decide. Flagged numbers are then looked at one by one, because a quotient of exact numbers is
   often half way between two numbers of a half type, and no bound decides that. */
#include "halves.h"

/* Products and quotients of exact numbers are decided within these sizes. */
#define LEAST_EXACT 0x1p-400
#define MOST_EXACT 0x1p400

/* What the formulas give for a chunk. */
struct chunk {
  double loss[CHUNK], loss_error[CHUNK], slope[CHUNK], slope_error[CHUNK];
  int64_t bad[CHUNK];
};

/* Factors of the numbers of a chunk: `each` or else `common`, over `over`. */
struct multiplier {
  const double *each;
  double common, over;
  double units; /* of U: the error of the factors, of the product, and of the ends of an interval */
  int exact;    /* whether the numerators and `over` have no error */
};

/* m numbers of a form as float32. */
static void read_form(enum form form, const void *x, int64_t m, float *to) {
  int64_t i = 0;
  for (; i + W <= m; i += W) store_floats(to + i, load_form(form, number_at(form, x, i)));
  if (i == m) return;
  uint32_t last[W] = {0};
  memcpy(last, number_at(form, x, i), (size_t)(m - i) * size_of_form(form));
  const floats numbers = load_form(form, last);
  memcpy(to + i, &numbers, (size_t)(m - i) * sizeof *to);
}

/* m targets as float32. Only integers that no loss takes may be rounded. */
static void read_targets(int kind, const void *x, int64_t m, float *to) {
  if (kind == UINT8)
    for (int64_t i = 0; i < m; i++) to[i] = ((const uint8_t *)x)[i];
  else if (kind == INT8)
    for (int64_t i = 0; i < m; i++) to[i] = ((const int8_t *)x)[i];
  else if (kind == INT32)
    for (int64_t i = 0; i < m; i++) to[i] = (float)((const int32_t *)x)[i];
  else if (kind == INT64)
    for (int64_t i = 0; i < m; i++) to[i] = (float)((const int64_t *)x)[i];
  else
    read_form((enum form)kind, x, m, to);
}

/* The binary cross-entropy of targets (1 - s) t + s / 2, with a pos_weight for each. */
INLINE struct found smoothed_error(double smoothing, doubles z, doubles t, doubles q, doubles e) {
  const double keep = 1.0 - smoothing, share = smoothing / 2;
  /* Up to 5 U instead of U: keep, both products, the sum, and 1 - t. */
  struct found f = of_answers(z, e, q * (keep * t + share), keep * (1.0 - t) + share, 4);
  f.bad |= no_answer(t);
  return f;
}

/* The same of probabilities. */
INLINE struct found found_of(const struct mixed *w, doubles p, doubles t, doubles q, int plain) {
  const double keep = 1.0 - w->smoothing, share = w->smoothing / 2;
  return of_probabilities(w->clip, p, t, q * (keep * t + share), keep * (1.0 - t) + share, plain,
                          4);
}

/* The first pass of a loss. m is a whole number of steps. */
INLINE void find(const struct elements *a, formula *loss_of, int of_logits, const float *p,
                 const float *t, const double *q, int64_t m, struct chunk *c) {
  const int plain = a->mixed->smoothing == 0 && !q && a->pos_weight == 1;
  for (int64_t i = 0; i < m; i += LANES * W) {
    doubles x[LANES], y[LANES], e[LANES];
    EACH x[v] = widen(load_floats(p + i + v * W));
    EACH y[v] = widen(load_floats(t + i + v * W));
    if (loss_of == NULL && of_logits) {
      EACH e[v] = clamp(-magnitude(x[v]), -700.0, 0.0);
      exp_of(e);
    }
    EACH {
      const int64_t at = i + v * W;
      doubles weight = q ? load_doubles(q + at) : all(a->pos_weight);
      struct found f = loss_of     ? loss_of(a, x[v], y[v])
                       : of_logits ? smoothed_error(a->mixed->smoothing, x[v], y[v], weight, e[v])
                                   : found_of(a->mixed, x[v], y[v], weight, plain);
      if (!a->mixed->no_losses) {
        store_doubles(c->loss + at, f.loss);
        store_doubles(c->loss_error + at, f.loss_error);
      }
      if (a->slopes) {
        store_doubles(c->slope + at, f.slope);
        store_doubles(c->slope_error + at, f.slope_error);
      }
      memcpy(c->bad + at, &f.bad, sizeof f.bad);
    }
  }
}

typedef void finder(const struct elements *a, const float *p, const float *t, const double *q,
                    int64_t m, struct chunk *c);

static void find_binary(const struct elements *a, const float *p, const float *t, const double *q,
                        int64_t m, struct chunk *c) {
  find(a, NULL, 1, p, t, q, m, c);
}

static void find_probabilities(const struct elements *a, const float *p, const float *t,
                               const double *q, int64_t m, struct chunk *c) {
  find(a, NULL, 0, p, t, q, m, c);
}

static void find_squared(const struct elements *a, const float *p, const float *t, const double *q,
                         int64_t m, struct chunk *c) {
  (void)q;
  find(a, squared_error, 1, p, t, NULL, m, c);
}

static void find_huber(const struct elements *a, const float *p, const float *t, const double *q,
                       int64_t m, struct chunk *c) {
  (void)q;
  find(a, huber_error, 1, p, t, NULL, m, c);
}

/* The second pass: x times its factor, rounded to a form. `to` receives numbers of that form, or
   float32 numbers that hold them, and `flags` what is undecided. Returns whether anything is. */
INLINE int round_all(enum form form, enum form stored, const double *x, const double *error,
                     const struct multiplier *by, int64_t m, void *to, int64_t *flags) {
  longs some = {0};
  for (int64_t i = 0; i < m; i += W) {
    doubles factor = (by->each ? load_doubles(by->each + i) : all(by->common)) / by->over;
    doubles number = load_doubles(x + i) * factor;
    doubles wide =
        magnitude(load_doubles(error + i) * factor) + magnitude(number) * (by->units * U);
    longs unknown = {0};
    doubles rounded;
    if (form == FLOAT32) {
      floats low = narrow(number - wide) + 0.0f, high = narrow(number + wide);
      rounded = widen(low);
      unknown = ~(rounded == widen(high));
    } else {
      rounded = decided_half(form, number, wide, &unknown);
      /* An exact number is decided, also half way between two. */
      unknown &= (wide != 0) | ~(magnitude(number) < 0x1p900);
    }
    store_form(stored, (char *)to + i * (int64_t)size_of_form(stored), rounded);
    memcpy(flags + i, &unknown, sizeof unknown);
    some |= unknown;
  }
  return any_of(some);
}

static __attribute__((noinline)) int round_numbers(enum form form, enum form stored,
                                                   const double *x, const double *error,
                                                   const struct multiplier *by, int64_t m, void *to,
                                                   int64_t *flags) {
  if (form == FLOAT32) return round_all(FLOAT32, FLOAT32, x, error, by, m, to, flags);
  if (form == BFLOAT16) return round_all(BFLOAT16, stored, x, error, by, m, to, flags);
  return round_all(FLOAT16, stored, x, error, by, m, to, flags);
}

/* a * b = *high + the result, without an error (Dekker), for numbers of moderate sizes. */
static double two_product(double a, double b, double *high) {
  const double c = 0x1.0000002p27 * a, d = 0x1.0000002p27 * b;
  const double a1 = c - (c - a), a2 = a - a1, b1 = d - (d - b), b2 = b - b1;
  *high = a * b;
  return ((a1 * b1 - *high) + a1 * b2 + a2 * b1) + a2 * b2;
}

static int is_moderate(double x) { return fabs(x) >= LEAST_EXACT && fabs(x) <= MOST_EXACT; }

/* x times numerator over divisor, three exact numbers, rounded to a form. Where two results are
   possible, the quotient is compared with the number half way between them, by products without an
   error. Returns whether the result is known. */
static int exact_quotient(enum form form, double x, double numerator, double divisor, float *to) {
  const double q = x * numerator / divisor, error = 4 * U * fabs(q);
  const float low = rounded_to(form, q - error), high = rounded_to(form, q + error);
  if (low == high) {
    *to = low;
    return 1;
  }
  if (!is_moderate(x) || !is_moderate(numerator) || !is_moderate(divisor)) return 0;
  const double middle = 0.5 * ((double)low + (double)high);
  /* Both results are next to each other, and finite. */
  if (rounded_to(form, nextafter(middle, -INFINITY)) != low ||
      rounded_to(form, nextafter(middle, INFINITY)) != high || !is_moderate(middle))
    return 0;
  double left, right;
  const double left_low = two_product(x, numerator, &left);
  const double right_low = two_product(middle, divisor, &right);
  const double apart = left != right ? left - right : left_low - right_low;
  *to = apart > 0 ? high : apart < 0 ? low : rounded_to(form, middle); /* the even one */
  return 1;
}

/* Look at the flagged numbers one by one; those that are known are written, and their flags
   cleared. `bad` are left. Returns whether a flag remains. */
static int decide_ties(enum form form, enum form stored, const double *x, const double *error,
                       const struct multiplier *by, const int64_t *bad, int64_t m, void *to,
                       int64_t *flags) {
  int some = 0;
  for (int64_t i = 0; i < m; i++) {
    if (!flags[i]) continue;
    float found;
    if (bad[i] || error[i] != 0 || !by->exact ||
        !exact_quotient(form, x[i], by->each ? by->each[i] : by->common, by->over, &found)) {
      some = 1;
      continue;
    }
    flags[i] = 0;
    float numbers[W] = {found};
    uint32_t bits[W];
    store_form(stored, bits, widen(load_floats(numbers)));
    memcpy((char *)to + i * (int64_t)size_of_form(stored), bits, size_of_form(stored));
  }
  return some;
}

/* Room for a chunk, and where it goes. */
struct rooms {
  float p[CHUNK], t[CHUNK], losses[CHUNK], slopes[CHUNK];
  double q[CHUNK], weight[CHUNK], factor[CHUNK];
  int64_t of_loss[CHUNK], of_slope[CHUNK]; /* flags */
  struct chunk chunk;
};

/* Compute the formulas of m elements from `start` on. The loss and the slope are 0 of elements that
   `todo` does not want, and of those that fill the last step. Returns the number with these. */
static __attribute__((noinline)) int64_t find_from(const struct elements *a, finder *find_chunk,
                                                   int64_t start, int64_t m, const uint8_t *todo,
                                                   struct rooms *r) {
  const struct mixed *w = a->mixed;
  const int64_t steps = (m + LANES * W - 1) / (LANES * W) * (LANES * W);
  const void *predictions = number_at(w->read, a->predictions, start);
  const void *targets = (const char *)a->targets + start * bytes_of(w->target);
  const float *p = predictions, *t = targets;
  const int whole = m == steps && !todo;
  if (w->read != FLOAT32 || !whole) {
    read_form(w->read, predictions, m, r->p);
    p = r->p;
  }
  if (w->target != FLOAT32 || !whole) {
    read_targets(w->target, targets, m, r->t);
    t = r->t;
  }
  for (int64_t i = 0; !whole && i < steps; i++) {
    if (i < m && (!todo || todo[i])) continue;
    r->p[i] = r->t[i] = 0.0f;
  }
  if (w->pos_weights) {
    int64_t place = (w->first + start) / w->inner % w->period, rest = (w->first + start) % w->inner;
    for (int64_t i = 0; i < steps; i++) {
      r->q[i] = w->pos_weights[place];
      if (++rest < w->inner) continue;
      rest = 0;
      if (++place == w->period) place = 0;
    }
  }
  find_chunk(a, p, t, w->pos_weights ? r->q : NULL, steps, &r->chunk);
  for (int64_t i = 0; !whole && i < steps; i++) {
    if (i < m && (!todo || todo[i])) continue;
    r->chunk.loss[i] = r->chunk.loss_error[i] = r->chunk.slope[i] = r->chunk.slope_error[i] = 0;
    r->chunk.bad[i] = 0;
  }
  return steps;
}

/* The factors of losses and slopes; without those of each position. */
static struct multiplier of_losses(const struct elements *a) {
  const struct mixed *w = a->mixed;
  const int some = a->weight || w->loss_scale != 1 || w->size > 1;
  /* A weight has an error of 2 U, and the scale and the quotient each one. */
  struct multiplier f = {NULL, w->loss_scale, (double)w->size, some ? 8 : 0, w->weight_is_exact};
  return f;
}

static struct multiplier of_slopes(const struct elements *a) {
  const struct mixed *w = a->mixed;
  /* A numerator has an error of 3 U, the divisor and the quotient one each. */
  struct multiplier f = {NULL, a->scale, w->over * (double)w->size, a->scale_is_exact ? 0 : 10,
                         w->factor_is_exact};
  return f;
}

/* Add the losses of a chunk that no flag leaves out. */
static void add_losses(const float *losses, const int64_t *flags, int64_t m, double *sum,
                       double *size) {
  doubles sums[2] = {{0}}, sizes[2] = {{0}};
  int64_t i = 0;
  for (; i + 2 * W <= m; i += 2 * W)
    for (int v = 0; v < 2; v++) {
      longs left;
      memcpy(&left, flags + i + v * W, sizeof left);
      doubles x = (doubles)((longs)widen(load_floats(losses + i + v * W)) & ~left);
      sums[v] += x;
      sizes[v] += magnitude(x);
    }
  double last = 0, last_size = 0;
  for (; i < m; i++) {
    if (flags[i]) continue;
    last += (double)losses[i];
    last_size += fabs((double)losses[i]);
  }
  *sum = sum_of(sums[0] + sums[1]) + last;
  *size = sum_of(sizes[0] + sizes[1]) + last_size;
}

/* Round the slopes of a chunk into the gradient. Returns whether any is left undecided, and has its
   flag. Elements that are not wanted keep what they have. */
static int slopes_into(const struct elements *a, const struct multiplier *by, int64_t start,
                       int64_t m, int64_t steps, const uint8_t *todo, struct rooms *r) {
  const enum form form = a->mixed->form;
  const int64_t size = (int64_t)size_of_form(form);
  char *gradient = (char *)a->slopes + start * size;
  const int direct = m == steps && !todo;
  void *to = direct ? (void *)gradient : (void *)r->slopes;
  struct chunk *c = &r->chunk;
  int some = round_numbers(form, form, c->slope, c->slope_error, by, steps, to, r->of_slope);
  if (some)
    some = decide_ties(form, form, c->slope, c->slope_error, by, c->bad, m, to, r->of_slope);
  if (direct) return some;
  if (!todo)
    memcpy(gradient, r->slopes, (size_t)(m * size));
  else
    for (int64_t i = 0; i < m; i++)
      if (todo[i]) memcpy(gradient + i * size, (char *)r->slopes + i * size, (size_t)size);
  return some;
}

/* The factors of m positions from `start` on, times `scale`. */
static void read_factors(const struct elements *a, int64_t start, int64_t m, struct rooms *r) {
  const int kind = a->mixed->factor;
  const void *from = (const char *)a->factor + start * bytes_of(kind);
  if (kind != FLOAT64) read_form((enum form)kind, from, m, r->p);
  for (int64_t i = 0; i < m; i++)
    r->factor[i] = (kind == FLOAT64 ? ((const double *)from)[i] : (double)r->p[i]) * a->scale;
}

/* Write the losses of m positions from `start` on, from their room. */
static void write_losses(const struct elements *a, int64_t start, int64_t m, const uint8_t *todo,
                         struct rooms *r) {
  const enum form stored = a->mixed->stored;
  const int64_t size = (int64_t)size_of_form(stored);
  float bits[CHUNK];
  char *to = (char *)a->losses + start * size, *from = (char *)bits;
  for (int64_t i = 0; i < m; i += W)
    store_form(stored, from + i * size, widen(load_floats(r->losses + i)));
  if (!todo) memcpy(to, from, (size_t)(m * size));
  for (int64_t i = 0; todo && i < m; i++)
    if (todo[i]) memcpy(to + i * size, from + i * size, (size_t)size);
}

/* Calls whose positions are single elements. */
static int64_t evaluate_elements(const struct elements *a, finder *find_chunk, struct total *total,
                                 struct rooms *r) {
  struct multiplier by_loss = of_losses(a), by_slope = of_slopes(a);
  struct chunk *c = &r->chunk;
  double high = 0, low = 0, sizes = 0;
  int64_t undecided = 0;
  for (int64_t b = 0; b < a->n; b += CHUNK) {
    const int64_t m = a->n - b < CHUNK ? a->n - b : CHUNK;
    const uint8_t *todo = a->todo && !all_todo(a->todo + b, m) ? a->todo + b : NULL;
    const int64_t steps = find_from(a, find_chunk, b, m, todo, r);
    const int padded = steps != m || todo;
    if (a->weight) {
      for (int64_t i = 0; i < steps; i++)
        r->weight[i] = i < m && (!todo || todo[i]) ? a->weight[b + i] * a->mixed->loss_scale : 1.0;
      by_loss.each = r->weight;
    }
    if (a->factor) {
      read_factors(a, b, m, r);
      for (int64_t i = 0; padded && i < steps; i++)
        if (i >= m || (todo && !todo[i])) r->factor[i] = 1.0;
      by_slope.each = r->factor;
    }
    const enum form form = a->mixed->loss_form, stored = a->mixed->stored;
    const int direct = a->losses && !padded && stored == FLOAT32;
    float *losses = direct ? (float *)a->losses + b : r->losses;
    longs bad = {0};
    for (int64_t i = 0; i < steps; i += W) bad |= *(const longs *)(c->bad + i);
    const int wanted = !a->mixed->no_losses;
    int some = any_of(bad);
    if (wanted)
      some |=
          round_numbers(form, FLOAT32, c->loss, c->loss_error, &by_loss, steps, losses, r->of_loss);
    if (some && wanted)
      decide_ties(form, FLOAT32, c->loss, c->loss_error, &by_loss, c->bad, m, losses, r->of_loss);
    if (a->slopes && slopes_into(a, &by_slope, b, m, steps, todo, r)) some = 1;
    if (some)
      for (int64_t i = 0; i < m; i++) {
        const int left = c->bad[i] || (wanted && r->of_loss[i]) || (a->slopes && r->of_slope[i]);
        r->of_loss[i] = left ? -1 : 0;
        if (todo && !todo[i]) continue;
        undecided += left;
        if (a->left) a->left[b + i] = (uint8_t)left;
      }
    if (a->losses && !direct) write_losses(a, b, m, todo, r);
    if (stored != FLOAT32 || !wanted) continue;
    double sum, size;
    add_losses(losses, r->of_loss, m, &sum, &size);
    low += two_sum(high, sum, &high);
    sizes += size;
  }
  total->high = high;
  total->low = low;
  /* A loss passes through all additions of a chunk at most. */
  total->error = ((double)a->n * U + CHUNK + 8) * U * sizes;
  return undecided;
}

/* Calls whose positions are rows of elements, of which the losses are averaged. */
static int64_t evaluate_averages(const struct elements *a, finder *find_chunk, struct total *total,
                                 struct rooms *r) {
  struct multiplier by_loss = of_losses(a), by_slope = of_slopes(a);
  struct chunk *c = &r->chunk;
  const int64_t size = a->mixed->size;
  double high = 0, low = 0, sizes = 0;
  int64_t undecided = 0;
  for (int64_t row = 0; row < a->n; row++) {
    if (a->todo && !a->todo[row]) continue;
    if (a->factor) {
      read_factors(a, row, 1, r);
      by_slope.common = *r->factor;
    }
    if (a->weight) by_loss.common = a->weight[row] * a->mixed->loss_scale;
    double mean = 0, lower = 0, error = 0;
    int64_t none = 0;
    int left = 0, exact = 1;
    for (int64_t b = 0; b < size; b += CHUNK) {
      const int64_t m = size - b < CHUNK ? size - b : CHUNK;
      const int64_t steps = find_from(a, find_chunk, row * size + b, m, NULL, r);
      /* The losses are added without an error, until the lower parts are. */
      doubles sum = {0}, lost = {0}, errors = {0};
      longs bad = {0}, inexact = {0};
      for (int64_t i = 0; i < steps; i += W) {
        bad |= *(const longs *)(c->bad + i);
        if (a->mixed->no_losses) continue;
        doubles lower_part = two_sums(sum, load_doubles(c->loss + i), &sum);
        inexact |= (lower_part != 0) | (load_doubles(c->loss_error + i) != 0);
        lost += lower_part;
        errors += load_doubles(c->loss_error + i);
      }
      for (int v = 0; v < W; v++) {
        double part = two_sum(mean, sum[v], &mean);
        exact &= part == 0;
        lower += part + lost[v];
        error += errors[v];
      }
      exact &= !any_of(inexact);
      left |= any_of(bad);
      if (a->slopes) left |= slopes_into(a, &by_slope, row * size + b, m, steps, NULL, r);
    }
    if (a->mixed->no_losses) {
      undecided += left;
      if (a->left) a->left[row] = (uint8_t)left;
      continue;
    }
    double loss = mean + lower, wide = exact ? 0 : error * (1 + 0x1p-20) + 2 * U * fabs(loss);
    float rounded;
    int64_t flag = 0;
    double numbers[W] = {loss}, errors[W] = {wide};
    int64_t flags[W];
    float results[W];
    if (round_numbers(a->mixed->loss_form, FLOAT32, numbers, errors, &by_loss, W, results, flags) &&
        flags[0])
      flag = decide_ties(a->mixed->loss_form, FLOAT32, numbers, errors, &by_loss, &none, 1, results,
                         flags);
    rounded = results[0];
    left |= flag != 0;
    undecided += left;
    if (a->left) a->left[row] = (uint8_t)left;
    if (a->losses) {
      *r->losses = rounded;
      write_losses(a, row, 1, NULL, r);
    }
    if (left) continue;
    low += two_sum(high, (double)rounded, &high);
    sizes += fabs((double)rounded);
  }
  total->high = high;
  total->low = low;
  total->error = ((double)a->n * U + 8) * U * sizes;
  return undecided;
}

static int64_t evaluate_mixed(const struct elements *a, finder *find_chunk, struct total *total) {
  struct rooms rooms;
  return a->mixed->size > 1 ? evaluate_averages(a, find_chunk, total, &rooms)
                            : evaluate_elements(a, find_chunk, total, &rooms);
}
