/* Run the parts of a loop in several threads, which start with the call and end before it returns.

   There is no pool, because a pool of a forked child has no threads and never answers. */
#ifndef UNIFIEDLOSS_THREADS_H
#define UNIFIEDLOSS_THREADS_H

#include <stdint.h>

#define MOST_THREADS 256

/* Compute the items from `first` to `last`, as part number `part`. */
typedef void work_of_part(void *context, int64_t part, int64_t first, int64_t last);

/* Into how many parts a loop over `steps` steps with `predictions` predictions is cut. */
int64_t parts_of(int64_t threads, int64_t steps, int64_t predictions);

/* Cut n items into parts at multiples of `step`, and run each part in a thread, the first in this
   one. A part whose thread cannot be started runs in this thread too. */
void run_parts(int64_t parts, int64_t n, int64_t step, work_of_part *work, void *context);

/* Subnormal numbers must stay: frameworks may have told the processor to replace them by 0. Returns
   what `restore` takes. */
unsigned keep_subnormals(void);
void restore(unsigned before);

#endif
