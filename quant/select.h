/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The k largest or smallest of many values without sorting them. */
#ifndef LQ_SELECT_H
#define LQ_SELECT_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* mark[i] = value for the k largest (smallest) of the keys [n] >= 0 (never NaN) whose mark is 0; of equal keys the first ones. Exactly
 * k are marked, or all there are. One thread, O(n). */
void lq_select(const float *key, size_t n, size_t k, bool largest, uint8_t value, uint8_t *mark);
#endif
