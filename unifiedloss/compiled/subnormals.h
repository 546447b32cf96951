/* Subnormal numbers must stay: frameworks may have told the processor to replace them by 0. */
#ifndef UNIFIEDLOSS_SUBNORMALS_H
#define UNIFIEDLOSS_SUBNORMALS_H

#if defined(__SSE2__)
#include <immintrin.h>
#endif

static inline unsigned keep_subnormals(void) {
#if defined(__SSE2__)
  unsigned before = _mm_getcsr();
  _mm_setcsr(0x1f80);
  return before;
#else
  return 0;
#endif
}

static inline void restore(unsigned before) {
#if defined(__SSE2__)
  _mm_setcsr(before);
#else
  (void)before;
#endif
}

#endif
