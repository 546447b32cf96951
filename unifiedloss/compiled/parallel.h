/* The loops over several threads. Results have the same bits for every number of threads. */
#ifndef UNIFIEDLOSS_PARALLEL_H
#define UNIFIEDLOSS_PARALLEL_H

#include "loops.h"
#include "native.h"

/* Each returns what its loop returns, or -1 if there is too little memory. */

/* `rows` has no room yet. */
int64_t exact_rows(const struct loops *loops, const struct rows *rows, int64_t threads,
                   int64_t *elements, struct total *total);

int64_t exact_elements(loop_of_elements *loop, const struct elements *e, int64_t threads,
                       struct total *total);

/* `a` has no room yet. */
int64_t exact_wide(wide_loop *loop, const struct wide *a, int64_t threads);

/* The exact sum of the losses; no pointer of `e` to its results is set. */
int64_t sum_of_elements(const struct loops *loops, loop_of_elements *loop, const struct elements *e,
                        int64_t threads, struct exact_sum *sum);

int64_t native_positions(native_loop *loop, const struct native *a, int64_t step, int64_t threads,
                         double *sum);

#endif
