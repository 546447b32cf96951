/* Class indices of any integer type. */
#ifndef UNIFIEDLOSS_LABELS_H
#define UNIFIEDLOSS_LABELS_H

#include <stdint.h>

/* The label of a row, or -1 where it is no class. */
static inline __attribute__((always_inline)) int64_t class_of(const void *labels, int size,
                                                              int has_sign, int64_t classes,
                                                              int64_t row) {
  int64_t y;
  switch (has_sign ? -size : size) {
    case -1: y = ((const int8_t *)labels)[row]; break;
    case 1: y = ((const uint8_t *)labels)[row]; break;
    case -2: y = ((const int16_t *)labels)[row]; break;
    case 2: y = ((const uint16_t *)labels)[row]; break;
    case -4: y = ((const int32_t *)labels)[row]; break;
    case 4: y = ((const uint32_t *)labels)[row]; break;
    default: /* an unsigned label of 2^63 or more becomes negative, and is no class either */
      y = ((const int64_t *)labels)[row];
  }
  return y >= 0 && y < classes ? y : -1;
}

#endif
