/* The binary cross-entropy of probabilities. Part of elementwise.c.

   With the weights `yes` and `no` of the answers, loss = yes cost(p) + no cost(1 - p) with
   cost(x) = -log x, and the slope is no / (1 - p) - yes / p. The rules of `struct clip` change p in
   the logarithms and the slope. 1 - p is exact for p >= 2^-29, and else has an error of U. */

/* log x for 2^-1000 < x <= 2, where x - 1 has an error of U, with a relative error below 10 U.

   x = 2^k m with 1 / sqrt(2) <= m < sqrt(2). For k = 0, m - 1 is the given x - 1, else it is exact.
   w = f / (2 + f) with |w| <= 0.172 errs by 2 U, and by 1.3 U more where f errs by U; 2 artanh adds
   less than 2 U. k log(2) errs by 1.3 U and is at most twice as large as the result, of which the
   logarithm of m is at most as large. */
INLINE doubles log_near(doubles x, doubles minus_1) {
  longs bits = (longs)x + (0x3ff0000000000000LL - 0x3fe6a09e667f3bcdLL);
  longs k = (bits >> 52) - 1023;
  doubles m = (doubles)((longs)x - (k << 52));
  doubles f = choose(k == 0, minus_1, m - 1.0);
  doubles exponent = (doubles)(k + 0x4338000000000000LL) - 0x1.8p52;
  return exponent * 0x1.62e42fefa39efp-1 + twice_artanh(f / (2.0 + f));
}

/* The loss of probabilities p and targets t, whose weights have an error of 1 + `more` U. */
INLINE struct found of_probabilities(const struct clip *c, doubles p, doubles t, doubles yes,
                                     doubles no, int plain, double more) {
  struct found f;
  const double added = c->rule == ADDED ? c->added : 0;
  doubles rest = 1.0 - p, apart = p - 1.0;
  longs zero = p == 0, one = p == 1.0;
  /* Where a number is 0, its logarithm is not used. */
  doubles x = choose(zero & (added == 0), all(1.0), p + added);
  doubles y = choose(one & (added == 0), all(1.0), rest + added);
  doubles cost = -log_near(x, apart + added), other = -log_near(y, added - p);
  doubles up = no / y, down = yes / x;
  double units = 8;
  f.bad = ~((p >= 0x1p-126) | zero) | ~(p <= 1.0) | no_answer(t);
  longs inside = ~(longs){0};
  if (c->rule == CLIPPED) {
    longs below = p<c->low, above = p> c->high;
    inside = ~(below | above);
    cost = choose(below, all(c->costs[0]), choose(above, all(c->costs[1]), cost));
    other = choose(below, all(c->complements[0]), choose(above, all(c->complements[1]), other));
    /* The others are infinite, which is left, or have no weight. */
    f.bad |= inside & ((zero & (yes != 0)) | (one & (no != 0)));
  } else if (c->rule == CLAMPED) {
    cost = choose(zero, all(100.0), cost); /* no smaller p has a logarithm below -100 */
    other = choose(one, all(100.0), other);
    doubles spread = p * rest;
    longs small = spread < c->least;
    /* A spread that its error of 2 U leaves on either side is left. */
    f.bad |= magnitude(spread - c->least) <= c->least * (4 * U);
    spread = choose(small, all(c->least), spread);
    up = p * no / spread;
    down = rest * yes / spread;
    units = 10;
  } else if (c->rule == UNCLIPPED) {
    f.bad |= (zero & (yes != 0)) | (one & (no != 0));
  }
  if (c->rule == UNCLIPPED || c->rule == CLIPPED) {
    up = choose(one & inside, (doubles){0}, up);
    down = choose(zero & inside, (doubles){0}, down);
  }
  doubles first = yes * cost, second = no * other;
  f.loss = first + second;
  f.loss_error = (magnitude(first) + magnitude(second)) * ((14 + more) * U);
  f.slope = choose(inside, up - down, (doubles){0});
  f.slope_error = choose(inside, (up + down) * ((units + more) * U), (doubles){0});
  if (plain && c->rule != ADDED) { /* (p - t) over p (1 - p) */
    longs nothing = (p == t) & ~zero & ~one;
    f.slope = choose(nothing, (doubles){0}, f.slope);
    f.slope_error = choose(nothing, (doubles){0}, f.slope_error);
  }
  return f;
}
