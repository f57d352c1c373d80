/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The x86 variants, by file; each is called only on machines that have its instruction set. */
#ifndef LQ_X86_H
#define LQ_X86_H
#include "kernels/ref/ref.h"

#define LQ_INLINE static inline __attribute__((always_inline)) /* fields, kinds and counts are constants in every caller */

void lq_dequant_avx2(const lq_qtensor *q, uint32_t r0, uint32_t nr, float *out);
void lq_dequant_avx512(const lq_qtensor *q, uint32_t r0, uint32_t nr, float *out);
void lq_decode_avx2(lq_dtype t, const void *src, float *dst, size_t n);
void lq_gemv_avx2(const lq_qtensor *q, uint32_t r0, uint32_t nr, const float *x, float *y);
void lq_gemv_avx512(const lq_qtensor *q, uint32_t r0, uint32_t nr, const float *x, float *y);
void lq_gemv_fp_avx2(lq_dtype t, const void *w, size_t stride, uint32_t nr, uint32_t cols, const float *x, float *y);
void lq_gemv_fp_avx512(lq_dtype t, const void *w, size_t stride, uint32_t nr, uint32_t cols, const float *x, float *y);
void lq_rmsnorm_avx2(const float *x, const float *gain, float eps, uint32_t d, float *y);
void lq_glu_avx2(lq_actfn f, const float *gate, const float *up, float *y, size_t n);
void lq_glu_avx512(lq_actfn f, const float *gate, const float *up, float *y, size_t n);
void lq_softmax_avx2(float *x, size_t n, float scale);
void lq_softmax_avx512(float *x, size_t n, float scale);
double lq_logsumexp_avx2(const float *x, size_t n);
double lq_logsumexp_avx512(const float *x, size_t n);
void lq_layernorm_avx2(const float *x, const float *gain, const float *shift, float eps, uint32_t d, float *y);
void lq_add_avx2(float *y, const float *x, size_t n);
void lq_rope_avx2(float *x, uint32_t heads, uint32_t dim, uint32_t rot, const float *cos, const float *sin);
void lq_rope_pairs_avx2(float *x, uint32_t heads, uint32_t dim, uint32_t rot, const float *cos, const float *sin);
void lq_kv8_avx2(lq_dtype t, const void *src, float step, float *dst, size_t n);
void lq_kv4_avx2(const void *src, float low, float step, float *dst, size_t n);
void lq_attn_scores_avx2(const float *q, uint32_t heads, uint32_t d, const float *keys, size_t ld, uint32_t n, float *score, size_t lds);
void lq_attn_mix_avx2(const float *w, size_t ldw, uint32_t heads, uint32_t n, const float *values, size_t ld, uint32_t d, float *out);
void lq_attn_scores_avx512(const float *q, uint32_t heads, uint32_t d, const float *keys, size_t ld, uint32_t n, float *score, size_t lds);
void lq_attn_mix_avx512(const float *w, size_t ldw, uint32_t heads, uint32_t n, const float *values, size_t ld, uint32_t d, float *out);
void lq_panel_sums_avx2(const float *a, const float *b, uint32_t n, double *sum, size_t ld);
void lq_panel_sums_avx512(const float *a, const float *b, uint32_t n, double *sum, size_t ld);
double lq_dot_avx2(const float *a, const float *b, size_t n);
void lq_packed_dequant_avx2(const lq_packed *p, uint32_t t0, uint32_t nt, float *out);
void lq_packed_gemv_avx2(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_x *x, float *y, size_t ldy);
void lq_packed_idot_avx2(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_i *x, double *acc);
void lq_packed_idot_avxvnni(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_i *x, double *acc);
void lq_packed_gemv_avx512(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_x *x, float *y, size_t ldy);
void lq_packed_idot_vnni(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_i *x, double *acc);
uint32_t lq_absmax_avx2(const float *x, size_t n);
int32_t lq_round8_avx2(const float *x, float inv, size_t n, int8_t *code);
void lq_narrow_avx2(const double *x, float *y, size_t n);
uint32_t lq_absmax_avx512(const float *x, size_t n);
int32_t lq_round8_avx512(const float *x, float inv, size_t n, int8_t *code);
void lq_narrow_avx512(const double *x, float *y, size_t n);
bool lq_digits_avx512(const float *x, uint32_t n, int8_t *d, int32_t sum[LQ_DIGITS], float *step);
void lq_packed_digits_vnni(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_d *x, float *y, size_t ldy);
#endif
