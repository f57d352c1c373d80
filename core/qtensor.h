/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The IR: one quantized matrix, rows = out features, cols = in features.
 *
 *   w[r][perm[c]] = s(r,c) * (A(q[r][c]) - z(r,c))        zero_kind CODE (NONE: z = 0)
 *   w[r][perm[c]] = s(r,c) *  A(q[r][c]) - z(r,c)         zero_kind MIN
 *
 * With PRESCALE every weight of a column is multiplied by prescale[column]: y = Q (x * prescale). A() is the grid, s() and z() are planes. lq_qtensor_decode_row() is the definition; kernels, writers and tests are
 * judged against it. */
#ifndef LQ_QTENSOR_H
#define LQ_QTENSOR_H
#include "core/dtype.h"
#include "core/mem.h"

typedef enum lq_grid_kind {
    LQ_GRID_INT, LQ_GRID_E2M1, LQ_GRID_E3M2, LQ_GRID_E4M3, LQ_GRID_E5M2, LQ_GRID_LUT,
    LQ_GRID_F16, LQ_GRID_BF16, LQ_GRID_F32 /* the code is the float itself: a matrix a method changed and left unquantized */
} lq_grid_kind;
/* What lut holds when grid.kind is LUT (in grid.bias): the method's own values, or a fixed table that lq_qtensor_init fills. */
typedef enum lq_lut_id {
    LQ_LUT_DATA, LQ_LUT_NF4, LQ_LUT_FP4, LQ_LUT_SIGN,
    LQ_LUT_IQ4,  /* ggml's 16 uneven values, -127 .. 113 */
    LQ_LUT_QUAD, /* -1 0 1 2                             */
    LQ_LUT_N
} lq_lut_id;
typedef enum lq_zero_kind { LQ_ZERO_NONE, LQ_ZERO_CODE, LQ_ZERO_MIN } lq_zero_kind;

typedef struct lq_grid {     /* what a stored code means before scaling               */
    lq_grid_kind kind;
    uint8_t bits;            /* stored bits per code, 1..16; 32 for F32               */
    uint8_t vec;             /* weights per code: 1 (2/4/8: vector codebooks, later)  */
    int32_t bias;            /* INT: A(q) = q - bias; 8 = symmetric int4, 0 = asym. LUT: lq_lut_id */
} lq_grid;

#define LQ_FLAT UINT32_MAX   /* tile_r: tiles run over the flattened matrix           */
/* sig of an F32 plane whose values are what a format makes of a positive F32 number that it stores */
enum { LQ_SIG_127TH = 127, LQ_SIG_INVERSE = 254 }; /* number / 127 (bitsandbytes' SCB), 1 / number (BitNet's weight_scale) */
typedef struct lq_plane_desc { /* a parameter per tile of the matrix                  */
    lq_dtype dtype;          /* LQ_NONE: absent. F32 F16 BF16 E4M3 E8M0 U8 I8         */
    uint8_t sig;             /* significant bits the values are rounded to; 0: all of the dtype's. F16 with 8 is exact in BF16 too; or LQ_SIG_*.
                              * U8, I8: bits in use, 6 = 0 .. 63, -32 .. 31 */
    uint32_t tile_r, tile_c; /* weights covered by one element; 0 = the whole axis    */
    lq_dtype parent;         /* second-level scale, LQ_NONE when elements are final   */
    uint32_t span;           /* row-major elements per parent element; 0 = all        */
    bool divides;            /* an element is divided by its parent, not multiplied   */
} lq_plane_desc;

typedef enum lq_act_kind { LQ_ACT_NONE, LQ_ACT_DYNAMIC, LQ_ACT_STATIC } lq_act_kind;
enum { LQ_ACT_BITNET = 3 };
typedef struct lq_act {      /* how the activations of this linear are quantized      */
    lq_act_kind kind;
    lq_dtype dtype;
    uint32_t tile;           /* 0: per token                                          */
    float outlier;           /* LLM.int8 threshold, |x| >= it; 0: off                 */
    uint8_t scope;           /* 0: per row, 1: per batch column, codes of the activations in F16 (bitsandbytes), 2: steps in F16 (ggml's Q8_0; of no file),
                              * LQ_ACT_BITNET: x times 127 (1 / max), max at least 1e-5, as transformers' BitLinear rounds */
} lq_act;

enum {
    LQ_X_PERM = 1, LQ_X_HADAMARD = 4,
    LQ_X_PRESCALE = 2,       /* a factor per weight column, alone among the extras                       */
    LQ_X_OUTLIERS = 8,       /* a sparse matrix is added to the codes' values                            */
    LQ_X_LOWRANK = 16,       /* a product of two thin matrices is added                                  */
    LQ_X_LUT_PER_ROW = 32,
    LQ_X_OUTLIER_COLS = 64,  /* some columns are kept in F16 and multiplied by activations as they are   */
};

typedef struct lq_scheme {   /* the TYPE of a quantized matrix: comparable, no data   */
    lq_grid grid;
    lq_zero_kind zero_kind;
    lq_plane_desc scale, zero;
    lq_act act;
    uint32_t extra;          /* LQ_X_*                                                */
    uint16_t rank;           /* LOWRANK: columns of A                                 */
    uint16_t sparse;         /* OUTLIERS: at most this many in 10 000 weights of a matrix; OUTLIER_COLS: at most this many columns */
} lq_scheme;

typedef struct lq_slot {     /* identity of a stored matrix; never a string           */
    int32_t block;           /* -1: before or after the blocks                        */
    uint16_t role;           /* lq_role of core/catalog.h                             */
    int16_t expert;          /* -1: none                                              */
} lq_slot;

typedef struct lq_plane { void *v, *parent; const float *lut; float offset; } lq_plane;

typedef struct lq_csr {      /* sparse F16 values, added on top of the codes' */
    uint32_t n;              /* values                                        */
    uint32_t *row;           /* [rows + 1] where a row begins                 */
    uint32_t *col;           /* [n] weight column, ascending in a row         */
    uint16_t *v;             /* [n] F16                                       */
} lq_csr;

typedef struct lq_cols {     /* columns kept in F16; their codes mean 0 and their activations are neither rounded nor part of an absmax */
    uint32_t n;
    uint32_t *idx;           /* [n] weight column, ascending */
    uint16_t *v;             /* [rows][n] F16                */
} lq_cols;

typedef struct lq_lowrank {  /* + a b; the rank is the scheme's */
    uint16_t *a;             /* [rows][rank] F16 */
    uint16_t *b;             /* [rank][cols] F16 */
} lq_lowrank;

typedef struct lq_qtensor {
    lq_scheme sch;
    lq_slot slot;
    uint32_t rows, cols;     /* true shape; padding belongs to writers                */
    size_t row_bytes;        /* stride of codes, multiple of 16; 16 readable bytes follow the last row */
    uint8_t *codes;          /* canonical bitstream along cols, row after row         */
    lq_plane scale, zero;
    float *lut;              /* [n_lut][1 << bits]; n_lut = 1 or rows                 */
    uint32_t n_lut;
    uint32_t *perm;          /* [cols] stored column c is weight column perm[c]; NULL = identity */
    lq_csr outliers;         /* LQ_X_OUTLIERS                                         */
    lq_cols outlier_cols;    /* LQ_X_OUTLIER_COLS                                     */
    lq_lowrank lr;           /* LQ_X_LOWRANK                                          */
    float *prescale;         /* [cols] LQ_X_PRESCALE: activations are multiplied by it before the codes  */
    float *bias;             /* [rows] linear bias; NULL: none                        */
    float act_scale;         /* step of static activations; 0: none                   */
    double err_w, err_h;     /* |W-Q|^2/|W|^2 and tr(dHd')/tr(WHW'), filled by the pipeline; negative: not measured */
    lq_arena *mem;           /* owner of every pointer above                          */
} lq_qtensor;

bool lq_scheme_eq(const lq_scheme *a, const lq_scheme *b);
/* INT grid with group scales, the family of GPTQ: bits 2..8, group -1 or a divisor of cols; sym: bias 2^(bits-1), no zero plane. */
lq_scheme lq_scheme_int(int bits, int group, bool sym);
/* Short name, e.g. "int4-sym-g128", "int3-asym-row"; buf of at least 64 bytes, returned. */
const char *lq_scheme_name(const lq_scheme *s, char *buf, size_t n);
/* Elements of a plane for a matrix of this shape (row-major: tile rows x tile cols). 0 when absent. */
size_t lq_plane_count(const lq_plane_desc *d, uint32_t rows, uint32_t cols);
/* Tile columns per row of tiles. */
uint32_t lq_plane_cols(const lq_plane_desc *d, uint32_t cols);
/* Bytes of codes, planes, tables and extras of a matrix of this scheme: exact storage, row padding not counted; sparse parts at
 * the most the scheme allows. */
uint64_t lq_scheme_bytes(const lq_scheme *s, uint32_t rows, uint32_t cols);
uint64_t lq_qtensor_bytes(const lq_qtensor *q); /* the same with the sparse parts as they are */
double lq_scheme_bpw(const lq_scheme *s, uint32_t rows, uint32_t cols); /* bits per weight, scales and zeros included */

/* Fresh arena, zeroed codes and planes (lut, perm, low rank when the scheme says so; the sparse parts are empty). */
lq_status lq_qtensor_init(lq_ctx *ctx, lq_qtensor *q, const lq_scheme *s, lq_slot slot, uint32_t rows, uint32_t cols);
void lq_qtensor_free(lq_qtensor *q);
/* Room for n sparse values or columns of a qtensor whose scheme has them: arrays zeroed, in its arena. */
lq_status lq_qtensor_outliers(lq_ctx *ctx, lq_qtensor *q, uint32_t n);
lq_status lq_qtensor_outlier_cols(lq_ctx *ctx, lq_qtensor *q, uint32_t n);
/* A plane element as float / stored from float with one rounding to the plane's dtype and sig. With a second level the element
 * is stored relative to its parent, which the caller has set before. */
float lq_plane_get(const lq_plane_desc *d, const lq_plane *p, size_t i);
void lq_plane_set(const lq_plane_desc *d, lq_plane *p, size_t i, float v);
float lq_plane_round(const lq_plane_desc *d, float v); /* what set then get would give, without a second level */
/* The number that a format stores for v, a value of a plane with sig LQ_SIG_*: of several the one with most trailing zeros; false: there is none. */
bool lq_sig_stored(uint8_t sig, float v, float *number);
size_t lq_plane_index(const lq_plane_desc *d, uint32_t cols, uint32_t r, uint32_t c); /* element that covers weight (r, c) */
void lq_lut_fill(const lq_grid *g, float *lut); /* lut[1 << bits] of a fixed table; LQ_LUT_DATA: untouched */
/* A(code): what a stored code of row r means before scaling. */
float lq_grid_value(const lq_qtensor *q, uint32_t r, uint32_t code);
/* What the stored code at (r, c) alone gives: stored column c, planes applied, extras not. */
float lq_qtensor_code_weight(const lq_qtensor *q, uint32_t r, uint32_t c);
lq_dtype lq_grid_dtype(lq_grid_kind k); /* the dtype whose bits are the codes of a float grid; LQ_NONE for the others */
/* w[cols] of row r, weight-column order: low rank and sparse values added, outlier columns set. Part of decode_row. */
void lq_qtensor_add_extras(const lq_qtensor *q, uint32_t r, float *w);
void lq_qtensor_add_sparse(const lq_qtensor *q, uint32_t r, float *w); /* the same without low rank */
/* out[cols], weight-column order: THE definition of the value of a qtensor. */
void lq_qtensor_decode_row(const lq_qtensor *q, uint32_t r, float *out);
/* Same scheme, shape and every stored bit equal (errors not compared). */
bool lq_qtensor_eq(const lq_qtensor *a, const lq_qtensor *b);
#endif
