/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Between dtype.c and dtype_lattice.c: a block of 256 weights to floats. */
#ifndef LQ_DTYPE_IMPL_H
#define LQ_DTYPE_IMPL_H
#include <stdint.h>

void lq_block_iq1_s(const uint8_t *b, float *y);
void lq_block_iq1_m(const uint8_t *b, float *y);
void lq_block_iq2_xxs(const uint8_t *b, float *y);
void lq_block_iq2_xs(const uint8_t *b, float *y);
void lq_block_iq2_s(const uint8_t *b, float *y);
void lq_block_iq3_xxs(const uint8_t *b, float *y);
void lq_block_iq3_s(const uint8_t *b, float *y);
#endif
