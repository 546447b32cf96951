/* The cross-entropy of probabilities, or of log-probabilities. Part of soft_targets.c.

   With the tau_c and T of soft_targets.c, loss = sum of tau_c cost_c with cost_c = -log q_c, and
   the slope by p_c is M / S - tau_c / p_c, or 0 where p_c is clipped:

     without shares     q = clip(p)                            M = 0
     BEFORE the clip    q = clip(p / S), S = sum of p          M = sum of tau of unclipped classes
     AFTER the clip     q = clip(p) / S, S = sum of clip(p)    M = T

   Only BEFORE has the slope M / S also where it clips. For the largest p, which may be next to S,
   cost = log1p(R / p), where R is the sum of the others, and the slope is (M - tau) / S - tau R /
   (S p). So the loss has no negative terms, and neither part of a slope cancels.

   With h = height(k), in units U: tau errs by 4, and its sums by h + 5; S and R err by h + 3, and q
   by h + 4. Shares other than the largest are at most 1 / 2, so that log q errs by (h + 4) / 0.69 +
   10 of it, and log1p(R / p) by h + 14. So the loss errs by 2.5 h + 28 with the weight (3); without
   shares, by h + 20. tau / p errs by 5, the factor by 6; M / S by 2 h + 9; tau R / (S p) by 2 h +
   13. */

/* p as the loss reads it: below the smallest normal number it is 0, and by rounding it may exceed
   1. Returns in *bad what is no probability. */
INLINE doubles read_probability(const struct clip *c, doubles p, longs *bad) {
  *bad |= ~((p > -c->tiny) & (p <= c->most));
  p = choose(p < c->tiny, all(0), p);
  return c->shares ? p : choose(p > 1.0, all(1), p);
}

/* Where a number is in the interval of the clip, below it, or above. */
struct sides {
  longs inside, below, above;
};

INLINE struct sides sides_of(const struct clip *c, doubles p) {
  if (c->rule != CLIPPED) return (struct sides){~(longs){0}, {0}, {0}};
  const longs below = p<c->low, above = p> c->high;
  return (struct sides){~(below | above), below, above};
}

/* Rows whose gradient becomes 0 at a time. For single rows memset takes five times as long. */
#define CLEARED 64

static void clear_gradient(const struct rows *a, int64_t row) {
  const int64_t size = a->classes * (int64_t)size_of_form(a->slope_form), rest = a->n - row;
  char *g = (char *)a->slopes + row * size;
  if (a->todo)
    memset(g, 0, (size_t)size);
  else if (row % CLEARED == 0)
    memset(g, 0, (size_t)(size * (rest < CLEARED ? rest : CLEARED)));
}

/* The row of a class index where no other prediction is read. Returns whether all is known. */
static __attribute__((noinline)) int label_row(const struct rows *a, int64_t row, int64_t y) {
  if (a->slopes) clear_gradient(a, row);
  if (y < 0) return 0;
  const struct clip *clip = a->soft->clip;
  float own[W] = {0}, to;
  floats_of(a->form, number_at(a->form, a->logits, row * a->stride + y), 1, own);
  const float *number = a->form == FLOAT32 ? (const float *)a->logits + row * a->stride + y : own;
  const doubles x = all(*number), weight = all(a->weight ? a->weight[row] : 1);
  const doubles of_class = all(a->soft->class_weights ? a->soft->class_weights[y] : 1);
  struct pairs slope = times(exactly(-of_class), all(a->factor ? a->factor[row] : a->scale));
  /* A number without an error may be half way between two results. */
  double error = clip->factor_is_exact ? 0 : 12 * U;
  if (clip->rule == LOGARITHMS) {
    const struct pairs one = times(exactly(-x), of_class), loss = times(one, weight);
    const int exact = one.low[0] == 0 || is_power(weight)[0];
    const double radius = exact ? 0 : fabs(loss.high[0]) * (8 * U * U);
    if (!rounds_once(a->loss_form, loss.high[0], loss.low[0], radius, &to)) return 0;
  } else {
    longs bad = {0};
    const doubles p = read_probability(clip, x, &bad);
    const struct sides is = sides_of(clip, p);
    if (bad[0] || (p[0] == 0 && is.inside[0])) return 0;
    doubles cost = -log_near(choose(is.inside, p, all(1)), choose(is.inside, p - 1.0, all(0)));
    cost = choose(is.below, all(clip->costs[0]), choose(is.above, all(clip->costs[1]), cost));
    const double loss = cost[0] * of_class[0] * weight[0];
    to = rounded_to(a->loss_form, loss * (1 - 20 * U));
    if (to != rounded_to(a->loss_form, loss * (1 + 20 * U))) return 0;
    if (!is.inside[0]) {
      slope = exactly(all(0));
    } else if (is_power(p)[0]) {
      slope = times(slope, 1.0 / p);
    } else {
      slope = exactly(slope.high / p);
      error = 12 * U;
    }
  }
  a->losses[row] = to;
  if (!a->slopes) return 1;
  if (!rounds_once(a->slope_form, slope.high[0], slope.low[0], fabs(slope.high[0]) * error, &to))
    return 0;
  float numbers[W];
  store_form(a->slope_form, numbers, all(to));
  memcpy(number_at(a->slope_form, a->slopes, row * a->classes + y), numbers,
         size_of_form(a->slope_form));
  return 1;
}

/* The rooms of a row, each with spare numbers at its end: what the loss adds, p and then what a
   slope subtracts, and what the shares add to it. */
struct class_rooms {
  double *e, *down, *up;
};

/* Read the probabilities of a row into `down`, and clipped ones into `e`. Returns whether all are
   probabilities. */
static int read_row(const struct clip *clip, const float *p, int64_t k, struct class_rooms *r) {
  longs bad = {0};
  for (int64_t c = 0; c < k; c += W) {
    float last[W] = {0};
    const float *from = p + c;
    if (k - c < W) from = memcpy(last, from, (size_t)(k - c) * sizeof *last);
    const doubles x = read_probability(clip, widen(load_floats(from)), &bad);
    store_doubles(r->down + c, x);
    if (clip->shares == AFTER) {
      const doubles clipped = clamp(x, clip->low, clip->high);
      store_doubles(r->e + c, clipped);
    } else {
      store_doubles(r->e + c, x);
    }
  }
  return !any_of(bad);
}

/* The second pass: e becomes tau cost, down tau / p, and up what is moved by the sum. `sum` is S,
   with an error of `margin` of it. Returns whether it is known where the clip is. */
static int cost_row(const struct clip *clip, const double *tau, int64_t k, double sum,
                    double margin, struct class_rooms *r) {
  longs bad = {0};
  for (int64_t c = 0; c < k; c += W) {
    const doubles p = load_doubles(r->down + c), t = load_doubles(tau + c);
    doubles q = load_doubles(r->e + c);
    const doubles x = q;
    if (clip->shares) q = q / sum;
    const struct sides is = sides_of(clip, clip->shares == BEFORE ? q : p);
    if (clip->shares == BEFORE) bad |= magnitude(q - clip->low) <= clip->low * margin;
    const longs zero = q == 0;
    bad |= zero & is.inside & (t != 0);
    const doubles read = choose(zero, all(1), q);
    doubles cost = -log_near(read, read - 1.0);
    if (clip->shares != AFTER)
      cost = choose(is.below, all(clip->costs[0]), choose(is.above, all(clip->costs[1]), cost));
    store_doubles(r->e + c, t * cost);
    store_doubles(r->down + c, choose(is.inside & ~zero, t / x, all(0)));
    if (clip->shares)
      store_doubles(r->up + c, choose(is.inside, clip->shares == AFTER ? all(1) : t, all(0)));
  }
  return !any_of(bad);
}

/* One row. Returns whether everything is known. */
static int probabilities_row(const struct rows *a, int64_t row) {
  const struct soft *soft = a->soft;
  const struct clip *clip = soft->clip;
  const int64_t k = a->classes, y = soft->targets ? -1 : label_of(a, row);
  if (!soft->targets && !clip->shares && soft->smoothing == 0) return label_row(a, row, y);
  if (!soft->targets && y < 0) return 0;
  double *tau = a->room + spare_room(k), *room = tau + k + 64;
  struct class_rooms r = {a->room, room + k + 64, room + 2 * (k + 64)};
  const float *p = number_at(a->form, a->logits, row * a->stride);
  p = floats_of(a->form, p, k, (float *)room);
  const double base = y < 0 ? 0 : tau[y];
  double of_row;
  if (!targets_of_row(a, row, y, tau, (float *)room + k + 64, r.e, &of_row)) return 0;
  memset(tau + k, 0, W * sizeof *tau);
  int known = read_row(clip, p, k, &r);
  const double h = height(k);
  int64_t top = 0;
  double others = 0, own = 0, sum = 1, rest = 0;
  if (clip->shares) {
    top = range_of(p, k).top;
    own = r.e[top];
    r.e[top] = 0;
    others = add_row(r.e, k);
    r.e[top] = own;
    sum = others + own;
    known &= sum > 0;
  }
  const double at_top = tau[top], read = r.down[top];
  known = known && cost_row(clip, tau, k, sum, (h + 8) * U, &r);
  double positive = 0, negative = 0, moved = 0;
  if (known && clip->shares) {
    double cost = log1p_one(others / own);
    int inside = 1;
    if (clip->shares == BEFORE) {
      /* The share is within the interval where the others have no less than the gap. */
      const double least = clip->gap * sum;
      known = !(clip->gap > 0 && fabs(others - least) <= least * (2 * h + 16) * U);
      const int below = own / sum < clip->low, above = others < least;
      inside = !below && !above;
      if (!inside) cost = clip->costs[above];
    } else {
      inside = read >= clip->low && read <= clip->high;
    }
    r.e[top] = at_top * cost;
    r.down[top] = r.up[top] = 0;
    tau[top] = 0;
    /* M without the largest share. */
    rest = add_row(clip->shares == BEFORE ? r.up : tau, k);
    tau[top] = at_top;
    const int moves = inside || clip->shares == AFTER;
    moved = (rest + (moves ? at_top : 0)) / sum;
    positive = inside || clip->shares == BEFORE ? rest / sum : 0;
    negative = inside ? at_top * (others / sum) / own : 0;
    if (clip->shares == BEFORE)
      for (int64_t c = 0; c < k; c++) r.up[c] = 1;
  } else if (known) {
    negative = r.down[0];
    memset(r.up, 0, (size_t)(k + W) * sizeof *r.up);
  }
  if (y >= 0) tau[y] = base;
  if (!known) return 0;
  const double of_weight = soft->by_position ? (h + 8) * U : 0;
  const double loss = add_row(r.e, k) * ((a->weight ? a->weight[row] : 1) * of_row);
  const double error = (clip->shares ? 3 * h + 36 : h + 26) * U + of_weight;
  a->losses[row] = rounded_to(a->loss_form, loss * (1 - error));
  if (a->losses[row] != rounded_to(a->loss_form, loss * (1 + error)) ||
      !(fabs(loss) < LARGEST_LOSS))
    return 0;
  if (!a->slopes) return 1;
  const double factor = (a->factor ? a->factor[row] : a->scale) * of_row;
  const double of_slope = (clip->shares ? 2 * h + 28 : 18) * U + of_weight;
  const struct slope slope = {moved * factor, factor, of_slope};
  if (!(fabs(slope.ratio) < LARGEST_RATIO && fabs(factor) < LARGEST_RATIO)) return 0;
  return gradient_of_row(a, row, &slope, r.up, r.down, top, positive * factor, negative * factor,
                         a->capacity) == 0;
}
