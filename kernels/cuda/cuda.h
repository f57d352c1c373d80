/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The accelerator seam: C names only, no CUDA types. A device is a table of functions; a build without CUDA links stub.c, whose
 * device is none, and the same kernel sources compiled for the CPU are the device "emu" (kernels/cuda/emu/).
 *
 * Weights on a device lie in tiles of 512 bytes, one 16-byte load per lane of a warp: lane 4 g + q holds rows g and g + 8 of
 * sixteen, and of each step of 16 columns the four from 4 q on. For a field of f bits (kernels/packed.h) a tile covers 256 / f
 * columns:
 *
 *   bits of row g + 8 h, column 16 s + 4 q + b:   word s / (4 / f), from bit 8 b + f (s mod (4 / f)) + 4 h on;  8 bits: word 2 s + h, bit 8 b
 *
 * so one word holds operands of mma for halves and for bytes alike. A chunk is the columns of a tile of the narrowest field: its
 * tiles of the first field, then that of the second. Chunks of a row tile follow each other. Scales and zeros are the packed layout's. */
#ifndef LQ_CUDA_H
#define LQ_CUDA_H
#include "kernels/packed.h"

enum { LQ_DEVICE_EXPERTS = 1024, LQ_DEVICE_N = 16, LQ_DEVICE_BRANCHES = 4, LQ_DEVICE_MARKS = 4096 }; /* tokens of one pass over the weights */

typedef struct lq_device_matrix { /* pointers are the device's */
    uint32_t rows, cols, tiles, chunks;
    uint32_t seg, segs;
    uint8_t fields[2], bits;
    uint8_t scale, zero;     /* lq_dtype of params */
    uint8_t grid, zero_kind; /* lq_grid_kind, lq_zero_kind */
    int32_t bias, times;     /* A(code) = times code - bias where that is so (times 1 for INT); times 0: it is not */
    float up, shift;         /* of E4M3 scales */
    uint32_t seg_bytes;
    bool tables;             /* rows have tables of their own: params are they, and neither scales nor zeros are */
    uint16_t table[16];      /* halves: values of codes of up to 4 bits, where the grid is no INT and rows have none of their own */
    const void *codes;       /* [tiles][chunks] */
    const void *params;      /* [tiles][segs]; tables: [tiles][16][2^bits] halves */
    const uint32_t *perm;    /* [cols] or NULL */
} lq_device_matrix;

/* What a model's forward pass needs beside its packed matrices. Tensors are fp32 [n][width] in device memory; a NULL gain is 1, a NULL shift 0.
 * Whatever changes from one step of decoding to the next (ids, positions) is read from device memory, so a recorded pass serves every step. */
typedef struct lq_device_dense {           /* a matrix of floats */
    uint32_t rows, cols;
    uint8_t dtype;                         /* LQ_F32, LQ_F16, LQ_BF16 */
    const void *w;                         /* [rows][cols] */
    const int32_t *pick;                   /* of dense: [n] which matrix a token is multiplied by, of several one behind the other; NULL: this one */
} lq_device_dense;

typedef struct lq_device_norm {
    const float *gain, *shift;             /* [d] */
    float eps;
    uint8_t layernorm;                     /* else RMSNorm */
} lq_device_norm;

typedef struct lq_device_tokens {          /* where n tokens stand: token t at position pos[t] of sequence seq[t] */
    uint32_t n;
    const uint32_t *pos, *seq;             /* [n]; seq NULL: all of sequence 0 */
    uint32_t reach;                        /* no position is larger than this (host's bound: grids are sized by it) */
} lq_device_tokens;

typedef struct lq_device_kv {              /* keys and values of one layer */
    uint8_t dtype;                         /* LQ_F32, LQ_F16; LQ_I8, LQ_E4M3: with a step per token and head, or the fixed ones */
    uint32_t heads, dim, room;             /* kv heads; positions of a sequence */
    void *keys, *values;                   /* [sequences][room][heads][dim] */
    float *key_step, *value_step;          /* [sequences][room][heads]; NULL: key_fixed, value_fixed */
    float key_fixed, value_fixed;
} lq_device_kv;

typedef struct lq_device_attn {
    uint32_t heads, window;                /* q heads; 0: no window */
    float scale, cap;                      /* scores are scale q k, then cap tanh(s / cap) where cap > 0 */
} lq_device_attn;

typedef struct lq_device_sparse {          /* what is added to a matrix: CSR entries, kept columns, a low-rank product; counts 0: none. Columns are x's own */
    uint32_t rows, cols, kept, rank;
    uint64_t nnz;
    const uint32_t *start, *col;           /* [rows + 1], [nnz] */
    const void *value;                     /* [nnz] halves */
    const uint32_t *kept_col;              /* [kept] */
    const void *kept_w;                    /* [rows][kept] halves */
    const void *low_a, *low_b;             /* [rows][rank], [rank][cols] halves */
} lq_device_sparse;

typedef struct lq_device_rest {            /* what rounding has left out of the codes, for matrices that lq_device_splits: a product takes both from one pass over the weights */
    uint32_t *where;                       /* [n][ld / 32] bit i of word c: column 32 c + i, in stored order, is left out */
    uint16_t *value;                       /* [n][ld / 4][2][4] halves: x (within +-65504) of four columns in the order 0 2 1 3, then what those leave of x; 0 where the column
                                            * is in the codes; nothing for words that are 0. NULL: there is none */
} lq_device_rest;

enum { LQ_DEVICE_PARTS = 3, LQ_DEVICE_JOINT = 16 }; /* parts of a product; tokens for which joining pays */

typedef struct lq_device_product {         /* a few matrices times the same x, and what comes before and after, as one launch; the bits of the single operations where those are gemv or idot */
    uint32_t n, parts;
    struct {
        const lq_device_matrix *m;         /* lq_device_alike to the first */
        const float *bias;                 /* [rows] or NULL */
        float *y;                          /* [n][rows]; it is not x */
    } part[LQ_DEVICE_PARTS];
    const float *x;                        /* [n][cols]; codes not NULL: instead of it what round makes; step not NULL and no codes: the codes that act makes, step what they are worth */
    uint32_t tile;                         /* of x and step: columns of a step, 0: all (lq_device_steps) */
    const lq_device_norm *norm;            /* x is its input; NULL: none. Only of x without step */
    const int8_t *codes;
    const float *step;
    const int32_t *sum;
    lq_device_rest rest;                   /* of codes, value not NULL: added as lq_device_round has left it. Many tokens in one pass: of one part, nothing after it */
    const int32_t *pick;                   /* [n] whose matrices a token is multiplied by: the pick-th of several alike, codes, parameters and perm one behind the other
                                            * from part's own on; NULL: part's. Any n */
    bool glu, add;                         /* glu: part[0].y = act(v of the first) times v of the second, if there is one; add: y += scale v */
    int act;
    float scale;
} lq_device_product;

typedef struct lq_device_turn {            /* rope of q and k, both in place, then kv_put: one launch */
    const lq_device_kv *kv;
    float *q, *k;
    const float *v, *cos, *sin;
    uint32_t heads, rot;                   /* of q */
    bool pairs;
} lq_device_turn;

typedef struct lq_device_round {           /* how activations are rounded: lq_act_quantize of calib/act.h, which is the definition, bit for bit */
    lq_act act;                            /* dtype I8 or BOOL */
    float fixed;                           /* the step of LQ_ACT_STATIC */
    const uint8_t *apart;                  /* [cols] 1: code 0, in no absmax; NULL: no such column */
    float *rest;                           /* act.outlier > 0: [2][n][cols], weight-column order: x left out of the codes for it as halves (within +-65504), then
                                            * what those leave of x; 0 elsewhere */
    lq_device_rest left;                   /* act.outlier > 0: instead of rest; value NULL: not */
    uint8_t *mark;                         /* act.scope 1: [cols] scratch (a column with an outlier in one of the n tokens is left out of all; codes are of x
                                            * rounded to F16, where that is finite; rest is of x) */
    const int32_t *pick;                   /* not NULL: row t is for the pick[t]-th of several matrices alike: its order of columns is the pick[t]-th behind m's, its step of LQ_ACT_STATIC */
    const float *fixes;                    /* fixes[pick[t]] where this is not NULL */
    float *worth;                          /* of act: not NULL: its y are codes, and these are their steps, [n][tiles of a token] */
    const lq_device_norm *norm;            /* not NULL, act.outlier 0 or act.scope not 1: what is rounded is norm(x), also left in normed[n][cols] */
    float *normed;
} lq_device_round;

/* Queued in order; every sum in an order fixed by the shape. NULL, or what went wrong. */
typedef struct lq_device_ops {
    /* y[n][rows]: any n. gemm decodes the codes once for all tokens (activations rounded to halves, sums fp32). */
    const char *(*dense)(const lq_device_dense *w, const float *x, uint32_t n, float *y);
    const char *(*gemm)(const lq_device_matrix *m, const float *x, uint32_t n, float *y);
    const char *(*sparse)(const lq_device_sparse *s, const float *x, uint32_t n, float *y); /* y += */
    /* rows ids[n] of a matrix: y[n][cols] */
    const char *(*embed)(const lq_device_dense *w, const int32_t *ids, uint32_t n, float *y);
    const char *(*embed_packed)(const lq_device_matrix *m, const int32_t *ids, uint32_t n, float *y);
    const char *(*norm)(const lq_device_norm *o, const float *x, uint32_t d, uint32_t n, float *y); /* y may be x */
    /* in place; cos, sin [positions][rot / 2]; pairs: (2j, 2j + 1) instead of (j, j + rot / 2) */
    const char *(*rope)(float *x, uint32_t heads, uint32_t dim, uint32_t rot, int pairs, const float *cos, const float *sin, const lq_device_tokens *at);
    const char *(*glu)(int actfn, const float *gate, const float *up, float *y, uint64_t n); /* up NULL: 1 */
    const char *(*add)(float *y, const float *x, float scale, uint64_t n);                   /* y += scale x */
    const char *(*bias)(float *y, const float *b, uint32_t width, uint32_t n);
    const char *(*clamp)(const float *x, float most, float *y, uint64_t n);
    const char *(*token_gate)(const float *x, const float *gate, uint32_t width, uint32_t n, float *y);
    /* y[n][rows]: from each token's x[width], runs of `run` floats; run i begins at first + i * step */
    const char *(*split)(const float *x, uint32_t width, uint32_t first, uint32_t run, uint32_t step, uint32_t rows, uint32_t n, float *y);
    const char *(*kv_put)(const lq_device_kv *kv, const float *k, const float *v, const lq_device_tokens *at);
    /* out[n][heads * dim] of q[n][heads * dim], over positions up to each token's own */
    const char *(*attn)(const lq_device_attn *a, const lq_device_kv *kv, const float *q, const lq_device_tokens *at, float *out);
    /* nll[n] = log sum exp(logits[t]) - logits[t][target[t]]; best[n] the first largest; either NULL */
    const char *(*score)(const float *logits, uint32_t vocab, uint32_t n, const int32_t *target, double *nll, int32_t *best);
    /* n tokens as lq_packed_i has them, for idot: codes[n][ld], step[n][segs], sum[n][segs]. A token that is not finite gets steps of NaN. */
    const char *(*round)(const lq_device_matrix *m, const lq_device_round *o, const float *x, uint32_t n, int8_t *codes, float *step, int32_t *sum);
    /* y[n][cols] = step times code as floats, of E4M3, I8 or BOOL (act.outlier 0): what matrices multiply that idot has not; or code and step apart (worth). Columns apart: 0; not finite: NaN. */
    const char *(*act)(const lq_device_round *o, const float *x, uint32_t cols, uint32_t n, float *y);
    const char *(*scale)(float *x, float times, float cap, uint64_t n); /* in place: times x, then cap tanh(x / cap) where cap > 0 */
    const char *(*scatter)(float *y, const float *x, const int32_t *ids, const float *weight, uint32_t width, uint32_t n); /* y[ids[i]] += weight[i] x[i], ids distinct */
    const char *(*product)(const lq_device_product *p);
    const char *(*turn)(const lq_device_turn *t, const lq_device_tokens *at);
    /* Experts of n tokens by their scores[n][experts]: softmax as lq_softmax_c has it, the k largest (the lower of equals), their shares of 1 where `shares`, times `times`;
     * of each token in ascending order: pick[2][n * k] (twice the same), weight[n * k]; token[n * k]: i / k. At most LQ_DEVICE_EXPERTS experts. scores are changed. */
    const char *(*route)(float *scores, uint32_t experts, uint32_t n, uint32_t k, int shares, float times, int32_t *pick, float *weight, int32_t *token);
    /* y[n][width] += weight[t * k + i] x[t * k + i] for i < k, one after the other */
    const char *(*merge)(float *y, const float *x, const float *weight, uint32_t k, uint32_t width, uint32_t n);
    const char *(*move)(void *to, const void *from, uint64_t bytes); /* a copy of a multiple of 16; to NULL: only reads them */
} lq_device_ops;

typedef struct lq_device {
    const char *name;                      /* "cuda", "emu" */
    bool (*available)(void);
    const char *(*describe)(void);         /* device and capability in words, or why there is none; never NULL */
    void *(*alloc)(size_t n);              /* device memory; NULL when out */
    void (*release)(void *p);
    bool (*put)(void *to, const void *from, size_t n);
    bool (*get)(void *to, const void *from, size_t n);
    /* What is queued between record and end becomes a pass that replay queues again; NULL where the device cannot (the caller queues anew). */
    const char *(*record)(void);
    const char *(*end)(void **pass);
    const char *(*replay)(void *pass);
    void (*forget)(void *pass);
    /* Between record and end: what is queued from here on waits only for what came before the first branch and for its own branch, i < LQ_DEVICE_BRANCHES; end joins
     * them. Nothing that uses scratch (attn, sparse, score) may be in two of them. */
    const char *(*branch)(uint32_t i);
    const char *(*wait)(void);             /* for all that is queued */
    /* y[n][rows] = codes of m times x[n][cols] (both fp32, weight-column order); activations are rounded to halves (beyond 65504:
     * infinite), sums are fp32 in a fixed order. NULL, or what went wrong. */
    const char *(*gemv)(const lq_device_matrix *m, const float *x, uint32_t n, float *y);
    /* For matrices whose `times` is not 0: y[n][rows] of rounded activations as lq_packed_i has them: x[n][ld] in stored order, step[n][segs], sum[n][segs]. One segment: the bits of
     * packed_idot rounded to fp32. Several: whole sums of at most 256 columns, scaled and added in fp32. */
    const char *(*idot)(const lq_device_matrix *m, const int8_t *x, const float *step, const int32_t *sum, uint32_t n, float *y);
    const lq_device_ops *ops;
    uint64_t (*launches)(void);            /* kernels queued since the program began; of a recorded pass once */
    /* The device's clock where the queue has come to: mark i < LQ_DEVICE_MARKS, which a recorded pass sets at every replay; and the seconds from there to mark i + 1, once
     * both have passed (negative: unknown). */
    const char *(*mark)(uint32_t i);
    double (*lasted)(uint32_t i);
    double (*joules)(void);                /* used by the device since some moment; negative: cannot be read */
    double (*peak)(void);                  /* bytes a second of its memory by its clock and width, or by its name; 0: unknown */
    /* Kernels queued or recorded from here on may begin before the one in front of them has ended: they ask for weights, then wait for it. The same bits either way; off at
     * first. False: this device cannot (it stays off). */
    bool (*ahead)(bool on);
    void *(*stream)(void);                 /* what the vendor's libraries queue on to be in order with this; NULL: there are none */
} lq_device;

const lq_device *lq_device_cuda(void);     /* never NULL */
const lq_device *lq_device_emu(void);      /* never NULL */

/* The columns of a chunk, and the bytes of all codes on a device. */
uint32_t lq_device_chunk(const lq_packed *p);
size_t lq_device_bytes(const lq_packed *p);
/* Scales and zeros, which have one level there: [tiles][segs] 16 scales, 16 zeros, in out[lq_device_param_bytes]; or tables of a row's own. */
uint64_t lq_device_param_bytes(const lq_packed *p);
void lq_device_params(const lq_packed *p, uint8_t *out);
/* Codes of p into out[lq_device_bytes] and back; exact inverses. */
void lq_pack_device(const lq_packed *p, uint8_t *out);
void lq_unpack_device(const uint8_t *in, lq_packed *p);
/* Has the device's gemv this matrix? A grid of whole numbers, E4M3, or a table that halves hold exactly or within their rounding. */
bool lq_device_fits(const lq_packed *p);
/* May they be parts of one product? */
bool lq_device_alike(const lq_device_matrix *a, const lq_device_matrix *b);
/* Has it a kernel that multiplies what lq_device_rest has of activations as well? One segment of whole numbers of 8 bits, without zeros. */
bool lq_device_splits(const lq_device_matrix *m);
/* Has it a kernel for activations of E4M3, a step for `tile` columns of a token (0: all)? The same grid, segments and steps of whole chunks. */
bool lq_device_steps(const lq_device_matrix *m, uint32_t tile);
/* Everything of m but its pointers. */
lq_device_matrix lq_device_shape(const lq_packed *p);
/* Puts a matrix on the device; false: out of memory. drop releases it. */
bool lq_device_put(const lq_device *d, const lq_packed *p, lq_device_matrix *m);
/* The same where codes, params and perm of m name room for it. */
bool lq_device_fill(const lq_device *d, const lq_packed *p, lq_device_matrix *m);
void lq_device_drop(const lq_device *d, lq_device_matrix *m);
#endif
