/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The layout that kernels stream: sixteen rows side by side, so that a lane is a row and no sum crosses lanes.
 *
 *   tile    16 rows x all columns (stored order), contiguous; rows behind the last and columns behind cols have code 0
 *   unit    32 columns of a tile: for every field of the code its vectors of 64 bytes, low field first
 *   field   a code of b bits is cut into fields of 8, 4, 2 or 1 bits: 8, 4, 2, 1; 3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2; 7 is stored as 8
 *   vector  bits f p .. f p + f - 1 of byte 4 i + j belong to row i = 0 .. 15, column 4 p + j of the 32 / f columns the vector covers
 *           (f bits, p = 0 .. 8 / f - 1, j = 0 .. 3):
 *
 *             f = 4:   byte   | row 0: k+0|k+4  k+1|k+5  k+2|k+6  k+3|k+7 | row 1: ...        low|high nibble
 *             f = 2:            k+0|k+4|k+8|k+12 ...          f = 1: k+0|k+4| .. |k+28 ...     f = 8: k+0 k+1 k+2 k+3
 *
 *   so the 32-bit lane of a row shifted right by 8 j + f p has column 4 p + j at its foot, and vector & (2^f - 1) 0x01010101 << f p holds
 *   four adjacent columns for a dot product of bytes. AVX2 reads a vector as two halves of eight rows.
 *   params  per tile and segment of columns: 16 scales, then 16 zeros, so w = s A(code) - z as core/qtensor.h has it
 *   ups     where those are whole bytes times an F16 of `span` segments (GGUF's K types): per tile and span 16 F16 of the scales, then of the zeros
 *
 * Scales and zeros stay in the qtensor as well (their second levels too), so unpacking gives back every bit. */
#ifndef LQ_PACKED_H
#define LQ_PACKED_H
#include "core/qtensor.h"

enum {
    LQ_TILE = 16,        /* rows of a tile */
    LQ_UNIT = 32,        /* columns of a unit */
    LQ_PACKED_PAD = 8192 /* readable bytes behind codes: how far ahead a kernel may prefetch or read */
};

typedef struct lq_packed {
    lq_qtensor q;         /* all of the matrix but its codes (NULL): shape, scheme, planes, tables, permutation, extras; owned */
    uint32_t tiles, units;
    uint32_t seg, segs;   /* columns of a segment: a multiple of 16, or all; how many */
    uint8_t fields[2];    /* bits; the second 0 when there is one */
    lq_dtype scale, zero; /* as stored in params: F32 F16 E8M0 E4M3 U8 I8, LQ_NONE: 1 / F32 F16 U8 I8, LQ_NONE: 0 */
    float up, shift;      /* a scale of E4M3 is its value times up, plus shift */
    uint32_t span, spans; /* segments that share an up, 0: none do; how many such runs a tile has */
    bool up_scale, up_zero; /* a scale, a zero is its value times its up, plus shift, zero_shift */
    float zero_shift;
    size_t tile_bytes;    /* units * 64 * (fields[0] + fields[1]) */
    size_t seg_bytes;     /* 16 scales and 16 zeros */
    size_t up_bytes;      /* 16 ups of each */
    uint8_t *codes;       /* [tiles] of tile_bytes, 64-byte aligned */
    uint8_t *params;      /* [tiles][segs] of seg_bytes, 16-byte aligned */
    uint8_t *ups;         /* [tiles][spans] of up_bytes */
} lq_packed;

/* Can this layout hold a matrix of the scheme? INT of 1 to 8 bits, tables and small floats of up to 4 bits, E4M3, whose planes are constant
 * over runs of 16 columns or whole rows; activations not rounded, or rounded to integers under an integer grid. Whole floats are read as they lie. */
bool lq_packed_holds(const lq_scheme *s, uint32_t rows, uint32_t cols);
/* And have its kernels here? Tables of a row's own (in q.lut) are held for a device (kernels/cuda/cuda.h); here they are read as they lie. */
bool lq_packed_fits(const lq_scheme *s, uint32_t rows, uint32_t cols);
uint64_t lq_packed_bytes(const lq_scheme *s, uint32_t rows, uint32_t cols); /* memory that packing takes, the parts kept in q not counted */
/* q is left as it is and may be freed; p owns itself. Not held: LQ_ERR_INTERNAL. */
lq_status lq_pack(lq_ctx *ctx, const lq_qtensor *q, lq_packed *p);
/* The exact inverse: a qtensor equal in every bit. */
lq_status lq_unpack(lq_ctx *ctx, const lq_packed *p, lq_qtensor *q);
void lq_packed_free(lq_packed *p);

/* Stored code of row r, stored column c. */
uint32_t lq_packed_code(const lq_packed *p, uint32_t r, uint32_t c);
void lq_packed_set_code(const lq_packed *p, uint32_t r, uint32_t c, uint32_t code); /* where it was 0 */
/* Scale and zero of row r in segment g as floats. */
float lq_packed_scale(const lq_packed *p, uint32_t r, uint32_t g);
float lq_packed_zero(const lq_packed *p, uint32_t r, uint32_t g);
static inline const uint8_t *lq_packed_params(const lq_packed *p, uint32_t tile, uint32_t g) { return p->params + ((size_t)tile * p->segs + g) * p->seg_bytes; }
static inline const uint8_t *lq_packed_ups(const lq_packed *p, uint32_t tile, uint32_t g) { return p->ups + ((size_t)tile * p->spans + g / p->span) * p->up_bytes; }
/* Of all tiles: params and ups; codes too. */
static inline uint64_t lq_packed_param_bytes(const lq_packed *p) { return (uint64_t)p->tiles * (p->segs * p->seg_bytes + p->spans * p->up_bytes); }
static inline uint64_t lq_packed_all_bytes(const lq_packed *p) { return (uint64_t)p->tiles * p->tile_bytes + lq_packed_param_bytes(p); }
static inline uint32_t lq_packed_ld(const lq_packed *p) { return p->units * LQ_UNIT; }

/* Activations as the kernels read them. */
typedef struct lq_packed_x {
    uint32_t n;       /* tokens */
    const float *x;   /* [n][ld] in stored order, 0 behind cols */
    const float *sum; /* [n][segs] their sums, where there are zeros; else NULL */
} lq_packed_x;
typedef struct lq_packed_i {
    uint32_t n;
    const int8_t *x;    /* [n][ld] rounded activations, -127 .. 127, stored order, 0 behind cols */
    const int32_t *sum; /* [n][segs] */
    const float *step;  /* [n][segs] what a code is worth */
} lq_packed_i;

/* Activations as whole numbers of 24 bits, for kernels that multiply bytes: in blocks (a segment, or runs of LQ_DIGIT_BLOCK of a longer one)
 * x = step (65536 d0 + 256 d1 + d2) + rest, |rest| <= step / 2 <= 1.01 * 2^-23 max |x| of the block, or 2^-127. Near: the rest is at most 2^-16 of
 * the mean |x| of the numbers in the block that are not 0, the largest left out; a block of numbers that are not all finite is not near, has a
 * NaN for its step and no digits. */
enum { LQ_DIGITS = 3, LQ_DIGIT_BLOCK = 256 };
typedef struct lq_packed_d {
    uint32_t n, blocks, per; /* tokens; blocks of a token; of a segment */
    const int8_t *x;         /* [n][ld / 4][4][4] signed digits to base 256 of four columns, d0 first, then d1, d2 and 0; stored order, 0 behind cols */
    const int32_t *sum;      /* [n][blocks][LQ_DIGITS] */
    const float *step;       /* [n][blocks] powers of two */
    bool near;               /* all blocks are */
} lq_packed_d;

/* Bytes of scratch, and x made of n tokens [n][cols] in weight-column order in it (or borrowed where it is already so). */
size_t lq_packed_x_bytes(const lq_packed *p, uint32_t n);
lq_packed_x lq_packed_x_make(const lq_packed *p, const float *x, uint32_t n, void *scratch);
/* The same in parts: what it will be, and token t of it. */
lq_packed_x lq_packed_x_of(const lq_packed *p, const float *x, uint32_t n, void *scratch);
void lq_packed_x_put(const lq_packed *p, const float *x, uint32_t t, const lq_packed_x *to);
/* The same of rounded activations that are whole floats in stored order, steps per tile of the scheme's act [n][tiles]. */
size_t lq_packed_i_bytes(const lq_packed *p, uint32_t n);
typedef struct lq_packed_token { int8_t *x; int32_t *sum; float *step; } lq_packed_token; /* [ld], [segs], [segs]: where token t of n is written */
lq_packed_token lq_packed_i_token(const lq_packed *p, uint32_t n, void *scratch, uint32_t t);
void lq_packed_i_put(const lq_packed *p, const float *code, const float *step, lq_packed_token to);
lq_packed_i lq_packed_i_of(const lq_packed *p, uint32_t n, void *scratch, uint32_t t0, uint32_t some); /* tokens [t0, t0 + some) of the n */
lq_packed_i lq_packed_i_make(const lq_packed *p, const float *code, const float *step, uint32_t n, void *scratch);
/* Digits: where A(code) times lq_packed_whole() is a whole number below 256, whole activations or not; 0: it is not. */
float lq_packed_whole(const lq_packed *p);
size_t lq_packed_d_bytes(const lq_packed *p, uint32_t n);
/* digits: the kernel table's. */
typedef bool (*lq_digits_fn)(const float *x, uint32_t n, int8_t *d, int32_t sum[LQ_DIGITS], float *step);
lq_packed_d lq_packed_d_make(const lq_packed *p, lq_digits_fn digits, const float *x, uint32_t n, void *scratch);
/* Columns [*c, return value) of block b. */
static inline uint32_t lq_packed_block(const lq_packed *p, uint32_t per, uint32_t b, uint32_t *c) {
    uint32_t at = b / per * p->seg, end = p->q.cols - at < p->seg ? p->q.cols : at + p->seg;
    *c = at + b % per * LQ_DIGIT_BLOCK;
    return end - *c < LQ_DIGIT_BLOCK ? end : *c + LQ_DIGIT_BLOCK;
}
#endif
