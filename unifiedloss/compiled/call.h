/* A call without weights and masks, from the arrays as a framework holds them to its rounded loss. */
#ifndef UNIFIEDLOSS_CALL_H
#define UNIFIEDLOSS_CALL_H

#include <stddef.h>
#include "loops.h"

enum loss { CROSS_ENTROPY, BINARY_CROSS_ENTROPY, MEAN_SQUARED_ERROR, HUBER, LOSSES };

struct call {
  long level;
  int64_t threads; /* the most to use */
  enum loss loss;
  int64_t n, classes; /* classes is 1 for the elementwise losses, whose targets are float32 */
  int label_size, label_signed;
  enum form form, slope_form; /* of the predictions, and of the gradient */
  double parameter;           /* delta of the Huber loss, pos_weight of the binary cross-entropy */
  double divisor;  /* an integer that float64 holds: the losses are added and divided by it */
  double upstream; /* from 2^-150 to 2^150 in size */
  const void *predictions, *targets;
  void *slopes; /* receives the gradient, or NULL */
};

/* What the loop of a call left undecided. */
struct left {
  struct total total;
  int64_t positions, elements;
  uint8_t *which;   /* n flags, `rows.left` or `elements.left`; NULL where none is set */
  int64_t *numbers; /* `rows.elements` */
};

enum { UNDECIDED, DECIDED, NO_MEMORY };

/* The loops of a level, or NULL if this processor has none. */
const struct loops *loops_at(long level);

/* Compute a call. DECIDED: *value is the loss. UNDECIDED: `left` says what is left, and holds memory
   that `forget` frees. */
/* The loop of an elementwise loss. */
loop_of_elements *elementwise_loop(const struct loops *, enum loss);

int compute_call(const struct call *, float *value, struct left *);
void forget(struct left *);

/* A custom call of XLA's; see xla.c. */
void unifiedloss_xla(void **out, const void **in, const char *text, size_t length, void *status);

/* From now on such calls give NaN where they need Python code. Returns how many still run some. */
int64_t unifiedloss_xla_end(void);

#endif
