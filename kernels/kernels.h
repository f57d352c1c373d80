/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The kernel table. A kernel is serial, works on a slice the caller owns and keeps no state; callers split work with
 * lq_parallel_for over fixed slices. The C entries are the definition; others override them at lq_kernels_init. */
#ifndef LQ_KERNELS_H
#define LQ_KERNELS_H
#include "core/cpu.h"
#include "kernels/packed.h"

typedef enum lq_actfn { LQ_ACTFN_SILU, LQ_ACTFN_GELU_TANH, LQ_ACTFN_GELU, LQ_ACTFN_RELU, LQ_ACTFN_RELU2, LQ_ACTFN_N } lq_actfn;
extern const char *const lq_actfn_names[LQ_ACTFN_N]; /* as in hidden_act: "silu", "gelu_pytorch_tanh", "gelu", "relu", "relu2" (the square of relu) */

enum { LQ_PANEL = 32 }; /* columns of activations side by side: [n][LQ_PANEL] */

typedef struct lq_kernels {
    const char *name;   /* "c", "avx2", "avxvnni", "avx512", "avx512vnni", "neon", "dotprod" */
    uint32_t few;       /* up to so many tokens packed_gemv is faster than packed_dequant and OpenBLAS's sgemm */
    /* Rows [r0, r0+nr) of q into out[nr][cols], weight-column order; bit-equal to lq_qtensor_decode_row (NaN payloads apart). */
    void (*dequant)(const lq_qtensor *q, uint32_t r0, uint32_t nr, float *out);
    /* n stored weights to float; bit-equal to lq_dtype_decode (the payload of a NaN may differ). */
    void (*decode)(lq_dtype t, const void *src, float *dst, size_t n);
    /* y[nr] = rows [r0, r0+nr) of q times x[cols]; no bias. */
    void (*gemv)(const lq_qtensor *q, uint32_t r0, uint32_t nr, const float *x, float *y);
    /* y[nr] = w[nr][cols] (stored as t, row stride in bytes) times x */
    void (*gemv_fp)(lq_dtype t, const void *w, size_t stride, uint32_t nr, uint32_t cols, const float *x, float *y);
    void (*rmsnorm)(const float *x, const float *gain, float eps, uint32_t d, float *y); /* one token; y may be x */
    /* One token, in place: per head of `dim`, the pair (j, j + rot/2), j < rot/2, turned by the angle of cos[j], sin[j]. */
    void (*rope)(float *x, uint32_t heads, uint32_t dim, uint32_t rot, const float *cos, const float *sin);
    void (*rope_pairs)(float *x, uint32_t heads, uint32_t dim, uint32_t rot, const float *cos, const float *sin); /* the pair (2j, 2j + 1) */
    void (*glu)(lq_actfn f, const float *gate, const float *up, float *y, size_t n); /* y = f(gate) * up */
    void (*softmax)(float *x, size_t n, float scale); /* in place: softmax(scale * x) */
    /* log sum exp of n values; NaN when one is NaN. -log p of value t is this minus x[t]. */
    double (*logsumexp)(const float *x, size_t n);
    void (*add)(float *y, const float *x, size_t n); /* y += x */
    /* One token: y = (x - mean) / sqrt(variance + eps) * gain + shift; NULL: 1 and 0; y may be x. */
    void (*layernorm)(const float *x, const float *gain, const float *shift, float eps, uint32_t d, float *y);
    /* n values of a small KV cache: step * src[i], src I8 or E4M3; low + step * nibble i, the low nibble of a byte first. The bits of C. */
    void (*kv8)(lq_dtype t, const void *src, float step, float *dst, size_t n);
    void (*kv4)(const void *src, float low, float step, float *dst, size_t n);
    double (*dot)(const float *a, const float *b, size_t n); /* products exact, sums in fp64 in a fixed order */
    /* A query each of `heads` heads that share keys: score[h * lds + j] = q[h][d] times keys[j * ld ..], j < n; and out[h][d] += w[h * ldw + j] times
     * values[j * ld ..], in the order of j. Sums in fp32: within (d / 16 + 4) eps sum |q k| and n eps sum |w v|. The bits of C. */
    void (*attn_scores)(const float *q, uint32_t heads, uint32_t d, const float *keys, size_t ld, uint32_t n, float *score, size_t lds);
    void (*attn_mix)(const float *w, size_t ldw, uint32_t heads, uint32_t n, const float *values, size_t ld, uint32_t d, float *out);
    /* sum[i * ld + j] += sum over n tokens of a[t][i] b[t][j], i, j < LQ_PANEL: by fma in fp32 from 0 in the order of the tokens, one addition in fp64.
     * Within (n + 1) eps / 2 sum |a b|. The bits of C. */
    void (*panel_sums)(const float *a, const float *b, uint32_t n, double *sum, size_t ld);
    /* The codes of tiles [t0, t0 + nt) of a packed matrix, what extras add left out. Decoded into out[rows of these tiles][cols], weight-column
     * order: bit-equal to lq_qtensor_decode_row. */
    void (*packed_dequant)(const lq_packed *p, uint32_t t0, uint32_t nt, float *out);
    /* Times n tokens: y[t * ldy + r], r the row of the matrix. Within k eps sum ((|s A| + |s z|) |x| + |s| 2^-127); a MIN
     * counts as |z|. */
    void (*packed_gemv)(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_x *x, float *y, size_t ldy);
    /* Times rounded activations, for schemes that have them: acc[n][nt * 16], whole sums of a segment exact, then sum over segments g in ascending order of
     * step[g] (s sum - z' ones), z' = s z or a MIN's z, each operation rounded to fp64; K types are summed by whole spans (kernels/spans.h). Rows behind
     * the last give 0. All variants give the same bits. */
    void (*packed_idot)(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_i *x, double *acc);
    /* The largest |x| as the bits of a float: from 0x7f800000 on when some x is infinite or NaN. n = 0: 0. */
    uint32_t (*absmax)(const float *x, size_t n);
    /* code = x inv to the nearest whole number, ties to even, at most 127 either way; x inv no NaN. Returns the sum of the codes. */
    int32_t (*round8)(const float *x, float inv, size_t n, int8_t *code);
    void (*narrow)(const double *x, float *y, size_t n);
    /* n floats, a multiple of 16, as digits (lq_packed_d): d[n / 4][4][4], the sum of each, the step; are they near? */
    lq_digits_fn digits;
    /* packed_gemv of activations in digits, where lq_packed_whole() says so: sums of a block exact, S0 of A(code) d0 and M of A(code) (256 d1 + d2), then
     * over the blocks y = fma(s, v, y), v = step / whole * (65536 S0 + M), less the zeros' share fma(-z, step * sum of x, v or, for a MIN, y). Same
     * bits everywhere. Within (3 + 3 blocks) eps sum ((|s A| + |s z|) |x|) + 2^-23 sum over blocks max |x| sum (|s A| + |s z|). */
    void (*packed_digits)(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_d *x, float *y, size_t ldy);
} lq_kernels;

/* C first, then the overrides of the tiers (core/cpu.h) in mask in ascending order: where two have an entry the later one wins. */
void lq_kernels_init(lq_kernels *k, unsigned mask);
const lq_kernels *lq_kernels_best(void);             /* chosen once, of the tiers that lq_cpu_used() says */
#endif
