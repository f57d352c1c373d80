/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The kernels in plain C: the definition the others are judged against. */
#ifndef LQ_KERNELS_REF_H
#define LQ_KERNELS_REF_H
#include "kernels/kernels.h"

void lq_dequant_c(const lq_qtensor *q, uint32_t r0, uint32_t nr, float *out);
void lq_decode_c(lq_dtype t, const void *src, float *dst, size_t n);
void lq_gemv_c(const lq_qtensor *q, uint32_t r0, uint32_t nr, const float *x, float *y);
void lq_gemv_fp_c(lq_dtype t, const void *w, size_t stride, uint32_t nr, uint32_t cols, const float *x, float *y);
void lq_rmsnorm_c(const float *x, const float *gain, float eps, uint32_t d, float *y);
void lq_layernorm_c(const float *x, const float *gain, const float *shift, float eps, uint32_t d, float *y);
void lq_rope_c(float *x, uint32_t heads, uint32_t dim, uint32_t rot, const float *cos, const float *sin);
void lq_rope_pairs_c(float *x, uint32_t heads, uint32_t dim, uint32_t rot, const float *cos, const float *sin);
void lq_glu_c(lq_actfn f, const float *gate, const float *up, float *y, size_t n);
void lq_softmax_c(float *x, size_t n, float scale);
double lq_logsumexp_c(const float *x, size_t n);
void lq_add_c(float *y, const float *x, size_t n);
void lq_packed_dequant_c(const lq_packed *p, uint32_t t0, uint32_t nt, float *out);
void lq_packed_gemv_c(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_x *x, float *y, size_t ldy);
void lq_packed_idot_c(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_i *x, double *acc);
uint32_t lq_absmax_c(const float *x, size_t n);
int32_t lq_round8_c(const float *x, float inv, size_t n, int8_t *code);
void lq_narrow_c(const double *x, float *y, size_t n);
void lq_packed_digits_c(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_d *x, float *y, size_t ldy);
bool lq_digits_c(const float *x, uint32_t n, int8_t *d, int32_t sum[LQ_DIGITS], float *step);
void lq_kv8_c(lq_dtype t, const void *src, float step, float *dst, size_t n);
void lq_kv4_c(const void *src, float low, float step, float *dst, size_t n);
void lq_attn_scores_c(const float *q, uint32_t heads, uint32_t d, const float *keys, size_t ld, uint32_t n, float *score, size_t lds);
void lq_attn_mix_c(const float *w, size_t ldw, uint32_t heads, uint32_t n, const float *values, size_t ld, uint32_t d, float *out);
void lq_panel_sums_c(const float *a, const float *b, uint32_t n, double *sum, size_t ld);
double lq_dot_c(const float *a, const float *b, size_t n);
enum { LQ_X_ADDED = LQ_X_OUTLIERS | LQ_X_OUTLIER_COLS | LQ_X_LOWRANK };
typedef void (*lq_decode_fn)(lq_dtype t, const void *src, float *dst, size_t n);
/* After the codes of rows [r0, r0+nr) stand in out / in y: what LQ_X_ADDED brings, bit-equal to the definition / summed in fp64. */
void lq_dequant_extras(const lq_qtensor *q, uint32_t r0, uint32_t nr, float *out, lq_decode_fn decode);
void lq_gemv_extras(const lq_qtensor *q, uint32_t r0, uint32_t nr, const float *x, float *y);
/* Its parts: low rank, of t[n] = rows [k0, k0 + n) of b times x; all the rest. */
void lq_gemv_low(const lq_qtensor *q, uint32_t r0, uint32_t nr, uint32_t k0, uint32_t n, const double *t, float *y);
void lq_gemv_sparse(const lq_qtensor *q, uint32_t r0, uint32_t nr, const float *x, float *y);
/* The dtype whose bits are the codes of an unpermuted matrix of floats, else LQ_NONE: such rows are read like stored weights. */
lq_dtype lq_qtensor_floats(const lq_qtensor *q);
/* Sum over stored columns [c0, c0 + n) of A(q[r][c]) code[c]; both integers. */
int64_t lq_codes_dot_c(const lq_qtensor *q, uint32_t r, uint32_t c0, uint32_t n, const float *code);
float lq_exp_c(float x); /* for tests: the exponential of ref/exp.h, unpacked */
#endif
