/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Activations rounded at run time, and the product with quantized weights that stays exact. */
#ifndef LQ_ACT_H
#define LQ_ACT_H
#include "kernels/kernels.h"

/* Largest |code|: I8 127, E4M3 448, BOOL 1. 0: no activation type. */
float lq_act_top(lq_dtype t);
/* Tiles of a token of `cols` activations: one, or one per act.tile columns. */
uint32_t lq_act_tiles(const lq_act *a, uint32_t cols);
/* One token x[cols] to codes (as floats: integers, E4M3 values or +-1) and the step of each tile; x ~ step * code.
 *   I8, E4M3   step = absmax / top (dynamic) or `fixed` (static); code = round(x top / absmax), round(x / fixed), saturated.
 *              An absmax below 1e-30 gives code 0.
 *   BOOL       step = mean |x|, code = sign(x), of 0: +1
 * apart[cols] (NULL: none): columns computed elsewhere: code 0, not in the absmax or mean. With a threshold (act.outlier > 0) every
 * |x| >= it is left out alike; the caller adds its product. Returns cols, or the first column that is NaN or infinite.
 * Source: ZeroQuant (arXiv 2206.01861), LLM.int8 (2208.07339), BiPFT; algorithms.md 2, 3. */
uint32_t lq_act_quantize(const lq_act *a, float fixed, const uint8_t *apart, const float *x, uint32_t cols, float *code, float *step);
/* The same token straight into `to`, for packed weights p whose scheme rounds to I8 and leaves nothing out, without a permutation. */
uint32_t lq_act_pack(const lq_kernels *k, const lq_packed *p, const float *x, lq_packed_token to);
/* Nearest E4M3 value, ties to even, saturating at 448: lq_e4m3_f32(lq_f32_e4m3(v)), fast. v finite. */
float lq_act_e4m3(float v);

/* The largest number of columns whose products of codes a float sums exactly, at most 1024; 0: these codes are no integers. */
uint32_t lq_act_panel(const lq_scheme *s);
#endif
