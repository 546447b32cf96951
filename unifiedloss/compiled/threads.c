/* See threads.h. Compiled once, for the lowest level. */
#include "threads.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#define THREADS 1
#endif

#define STACK (1 << 20) /* bytes; the loops keep up to 130,000 there, and musl gives as many */
#define LEAST 50000     /* predictions that are worth a thread, which takes tens of microseconds */

unsigned keep_subnormals(void) {
#if defined(__SSE2__)
  unsigned before = _mm_getcsr();
  _mm_setcsr(0x1f80);
  return before;
#else
  return 0;
#endif
}

void restore(unsigned before) {
#if defined(__SSE2__)
  _mm_setcsr(before);
#else
  (void)before;
#endif
}

int64_t parts_of(int64_t threads, int64_t steps, int64_t predictions) {
  int64_t parts = predictions / LEAST;
  if (parts > threads) parts = threads;
  if (parts > steps) parts = steps;
  if (parts > MOST_THREADS) parts = MOST_THREADS;
  return parts > 1 ? parts : 1;
}

struct part {
  work_of_part *work;
  void *context;
  int64_t number, first, last;
};

static void run(const struct part *part) {
  part->work(part->context, part->number, part->first, part->last);
}

#if defined(THREADS)
static void *in_thread(void *given) {
  keep_subnormals(); /* each thread has its own setting, and this one ends */
  run(given);
  return NULL;
}
#endif

void run_parts(int64_t parts, int64_t n, int64_t step, work_of_part *work, void *context) {
  struct part each[MOST_THREADS];
  const int64_t steps = (n + step - 1) / step;
  for (int64_t i = 0; i < parts; i++) {
    const int64_t last = (i + 1) * steps / parts * step;
    each[i] = (struct part){work, context, i, i * steps / parts * step, last < n ? last : n};
  }
#if defined(THREADS)
  pthread_t threads[MOST_THREADS];
  int started[MOST_THREADS] = {0};
  pthread_attr_t large;
  if (parts > 1 && pthread_attr_init(&large) == 0) {
    pthread_attr_setstacksize(&large, STACK);
    for (int64_t i = 1; i < parts; i++)
      started[i] = pthread_create(&threads[i], &large, in_thread, &each[i]) == 0;
    pthread_attr_destroy(&large);
  }
  for (int64_t i = 0; i < parts; i++)
    if (!started[i]) run(&each[i]);
  for (int64_t i = 1; i < parts; i++)
    if (started[i]) pthread_join(threads[i], NULL);
#else
  for (int64_t i = 0; i < parts; i++) run(&each[i]);
#endif
}
