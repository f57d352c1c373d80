/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "core/qtensor.h"

#include "core/blocks.h"
#include "core/num.h"
#include "core/pack.h"

#include <stdio.h>
#include <string.h>

static bool plane_eq(const lq_plane_desc *a, const lq_plane_desc *b) {
    return a->dtype == b->dtype && a->sig == b->sig && a->tile_r == b->tile_r && a->tile_c == b->tile_c && a->parent == b->parent && a->span == b->span && a->divides == b->divides;
}

bool lq_scheme_eq(const lq_scheme *a, const lq_scheme *b) {
    return a->grid.kind == b->grid.kind && a->grid.bits == b->grid.bits && a->grid.vec == b->grid.vec && a->grid.bias == b->grid.bias &&
           a->zero_kind == b->zero_kind && plane_eq(&a->scale, &b->scale) && plane_eq(&a->zero, &b->zero) &&
           a->act.kind == b->act.kind && a->act.dtype == b->act.dtype && a->act.tile == b->act.tile &&
           a->act.outlier == b->act.outlier && a->act.scope == b->act.scope && a->extra == b->extra && a->rank == b->rank &&
           a->sparse == b->sparse;
}

lq_scheme lq_scheme_int(int bits, int group, bool sym) {
    uint32_t tile = group > 0 ? (uint32_t)group : 0;
    lq_scheme s = {.grid = {.kind = LQ_GRID_INT, .bits = (uint8_t)bits, .vec = 1, .bias = sym ? 1 << (bits - 1) : 0},
                   .zero_kind = sym ? LQ_ZERO_NONE : LQ_ZERO_CODE,
                   .scale = {.dtype = LQ_F16, .sig = 8, .tile_r = 1, .tile_c = tile}};
    if (!sym) s.zero = (lq_plane_desc){.dtype = LQ_U8, .tile_r = 1, .tile_c = tile};
    return s;
}

const char *lq_scheme_name(const lq_scheme *s, char *buf, size_t n) {
    static const char *const kinds[] = {"int", "e2m1-", "e3m2-", "e4m3-", "e5m2-", "lut", "f", "bf", "f"};
    static const char *const luts[] = {"lut", "nf", "fp", "sign", "iq", "quad"}, *const acts[] = {"", "-a", "-static-a"};
    const char *kind = s->grid.kind == LQ_GRID_LUT ? luts[s->grid.bias] : kinds[s->grid.kind], *zero = "";
    char tile[40] = "", act[40] = "", more[40] = "";
    if (s->scale.parent == LQ_F16 && lq_gguf_block_type(s) != LQ_NONE) { /* two levels are what ggml calls them */
        snprintf(buf, n, "%s", lq_dtypes[lq_gguf_block_type(s)].name);
        return buf;
    }
    if (s->grid.kind == LQ_GRID_INT) zero = s->zero_kind == LQ_ZERO_MIN ? "-min" : s->zero_kind == LQ_ZERO_NONE ? "-sym" : s->zero.dtype == LQ_U8 ? "-asym" : "-fz";
    if (s->scale.dtype != LQ_NONE) {
        if (s->scale.tile_r == LQ_FLAT) snprintf(tile, sizeof tile, "-block%u", s->scale.tile_c);
        else if (s->scale.tile_r != 1) snprintf(tile, sizeof tile, s->scale.tile_r ? "-%ux%u" : "-tensor", s->scale.tile_r, s->scale.tile_c);
        else snprintf(tile, sizeof tile, s->scale.tile_c ? "-g%u" : "-row", s->scale.tile_c);
    }
    if (s->act.kind) snprintf(act, sizeof act, "%s%u%s", acts[s->act.kind], 8 * lq_dtypes[s->act.dtype].bytes, s->act.outlier > 0 ? "-outliers" : "");
    if (s->extra & LQ_X_PRESCALE) strcat(more, "-prescale");
    if (s->extra & LQ_X_OUTLIERS) strcat(more, "-sparse");
    if (s->extra & LQ_X_OUTLIER_COLS) strcat(more, "-cols");
    if (s->extra & LQ_X_LOWRANK) snprintf(more + strlen(more), sizeof more - strlen(more), "-r%u", s->rank);
    snprintf(buf, n, "%s%u%s%s%s%s", kind, s->grid.bits, zero, tile, act, more);
    return buf;
}

static uint32_t tiles(uint32_t size, uint32_t tile) { return tile ? (size + tile - 1) / tile : 1; }

uint32_t lq_plane_cols(const lq_plane_desc *d, uint32_t cols) { return tiles(cols, d->tile_c); }

size_t lq_plane_count(const lq_plane_desc *d, uint32_t rows, uint32_t cols) {
    if (d->dtype == LQ_NONE) return 0;
    if (d->tile_r == LQ_FLAT) return ((size_t)rows * cols + d->tile_c - 1) / d->tile_c;
    return (size_t)tiles(rows, d->tile_r) * tiles(cols, d->tile_c);
}

static size_t parents(const lq_plane_desc *d, size_t count) {
    if (d->parent == LQ_NONE || !count) return 0;
    return d->span ? (count + d->span - 1) / d->span : 1;
}

static uint64_t plane_bytes(const lq_plane_desc *d, uint32_t rows, uint32_t cols) {
    size_t n = lq_plane_count(d, rows, cols);
    bool whole = (d->dtype == LQ_U8 || d->dtype == LQ_I8) && d->sig; /* formats store the bits in use */
    uint64_t bytes = whole ? ((uint64_t)n * d->sig + 7) / 8 : (uint64_t)n * lq_dtypes[d->dtype].bytes;
    return bytes + (uint64_t)parents(d, n) * lq_dtypes[d->parent].bytes;
}

/* Codes, planes, tables and low rank: what does not depend on the data. */
static uint64_t dense_bytes(const lq_scheme *s, uint32_t rows, uint32_t cols) {
    uint64_t n = ((uint64_t)cols * s->grid.bits + 7) / 8 * rows + plane_bytes(&s->scale, rows, cols);
    if (s->zero_kind != LQ_ZERO_NONE) /* integer zero points take as many bits as a code in every format */
        n += s->zero.dtype == LQ_U8 && s->zero.parent == LQ_NONE ? ((uint64_t)lq_plane_count(&s->zero, rows, cols) * s->grid.bits + 7) / 8 : plane_bytes(&s->zero, rows, cols);
    if (s->grid.kind == LQ_GRID_LUT && s->grid.bias == LQ_LUT_DATA) n += ((uint64_t)2 << s->grid.bits) * (s->extra & LQ_X_LUT_PER_ROW ? rows : 1);
    if (s->extra & LQ_X_PRESCALE) n += 4 * (uint64_t)cols;
    return n + (s->extra & LQ_X_LOWRANK ? 2 * (uint64_t)s->rank * ((uint64_t)rows + cols) : 0);
}

static uint64_t csr_bytes(uint64_t n, uint32_t rows, uint32_t cols) { return n * (cols <= 65536 ? 4 : 6) + 4 * ((uint64_t)rows + 1); }
static uint64_t cols_bytes(uint64_t n, uint32_t rows) { return n * (4 + 2 * (uint64_t)rows); }

uint64_t lq_scheme_bytes(const lq_scheme *s, uint32_t rows, uint32_t cols) {
    uint64_t n = dense_bytes(s, rows, cols);
    if (s->extra & LQ_X_OUTLIERS) n += csr_bytes((uint64_t)rows * cols * s->sparse / 10000, rows, cols);
    if (s->extra & LQ_X_OUTLIER_COLS) n += cols_bytes(s->sparse < cols ? s->sparse : cols, rows);
    return n;
}

uint64_t lq_qtensor_bytes(const lq_qtensor *q) {
    uint64_t n = dense_bytes(&q->sch, q->rows, q->cols);
    if (q->sch.extra & LQ_X_OUTLIERS) n += csr_bytes(q->outliers.n, q->rows, q->cols);
    if (q->sch.extra & LQ_X_OUTLIER_COLS) n += cols_bytes(q->outlier_cols.n, q->rows);
    return n;
}

double lq_scheme_bpw(const lq_scheme *s, uint32_t rows, uint32_t cols) {
    return 8.0 * (double)lq_scheme_bytes(s, rows, cols) / ((double)rows * cols);
}

static bool plane_init(lq_arena *mem, const lq_plane_desc *d, lq_plane *p, uint32_t rows, uint32_t cols) {
    size_t n = lq_plane_count(d, rows, cols);
    if (!n) return true;
    p->v = lq_arena_alloc(mem, n * lq_dtypes[d->dtype].bytes);
    if (p->v && parents(d, n)) return (p->parent = lq_arena_alloc(mem, parents(d, n) * lq_dtypes[d->parent].bytes)) != NULL;
    return p->v != NULL;
}

/* NF4: quantiles of the normal distribution (Dettmers et al. 2023, arXiv 2305.14314); FP4: bitsandbytes' order of codes. */
static const float nf4[16] = {-1, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f,
                              -0.09105003625154495f, 0, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
                              0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1};
static const int8_t iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}; /* ggml-common.h: kvalues_iq4nl */
static const float fp4[8] = {0, 0.0052083333f, 0.66666667f, 1, 0.33333333f, 0.5f, 0.16666667f, 0.25f};

void lq_lut_fill(const lq_grid *g, float *lut) {
    for (uint32_t i = 0; i < 1u << g->bits; i++) switch (g->bias) {
        case LQ_LUT_NF4: lut[i] = nf4[i & 15]; break;
        case LQ_LUT_FP4: lut[i] = i & 8 ? -fp4[i & 7] : fp4[i & 7]; break;
        case LQ_LUT_SIGN: lut[i] = i & 1 ? 1 : -1; break;
        case LQ_LUT_IQ4: lut[i] = iq4[i & 15]; break;
        case LQ_LUT_QUAD: lut[i] = (float)(i & 3) - 1; break;
        default: break;
        }
}

lq_status lq_qtensor_outliers(lq_ctx *ctx, lq_qtensor *q, uint32_t n) {
    lq_csr *o = &q->outliers;
    o->n = n;
    bool ok = (o->row = lq_arena_alloc(q->mem, ((size_t)q->rows + 1) * 4)) && (o->col = lq_arena_alloc(q->mem, (size_t)n * 4 + 4)) &&
              (o->v = lq_arena_alloc(q->mem, (size_t)n * 2 + 2));
    return ok ? LQ_OK : lq_oom(ctx, (size_t)n * 6);
}

lq_status lq_qtensor_outlier_cols(lq_ctx *ctx, lq_qtensor *q, uint32_t n) {
    lq_cols *o = &q->outlier_cols;
    o->n = n;
    bool ok = (o->idx = lq_arena_alloc(q->mem, (size_t)n * 4 + 4)) && (o->v = lq_arena_alloc(q->mem, (size_t)n * q->rows * 2 + 2));
    return ok ? LQ_OK : lq_oom(ctx, (size_t)n * q->rows * 2);
}

lq_status lq_qtensor_init(lq_ctx *ctx, lq_qtensor *q, const lq_scheme *s, lq_slot slot, uint32_t rows, uint32_t cols) {
    *q = (lq_qtensor){.sch = *s, .slot = slot, .rows = rows, .cols = cols, .err_w = -1, .err_h = -1};
    q->row_bytes = (((size_t)cols * s->grid.bits + 7) / 8 + 15) / 16 * 16;
    bool ok = (q->mem = lq_arena_new()) && (q->codes = lq_arena_alloc(q->mem, q->row_bytes * rows + 64)) &&
              plane_init(q->mem, &s->scale, &q->scale, rows, cols) && plane_init(q->mem, &s->zero, &q->zero, rows, cols);
    if (ok && s->grid.kind == LQ_GRID_LUT) {
        q->n_lut = s->extra & LQ_X_LUT_PER_ROW ? rows : 1;
        ok = (q->lut = lq_arena_alloc(q->mem, ((size_t)4 << s->grid.bits) * q->n_lut));
        if (ok && q->n_lut == 1) lq_lut_fill(&s->grid, q->lut);
    }
    if (ok && s->extra & LQ_X_LOWRANK)
        ok = (q->lr.a = lq_arena_alloc(q->mem, (size_t)2 * rows * s->rank)) && (q->lr.b = lq_arena_alloc(q->mem, (size_t)2 * cols * s->rank));
    if (ok && s->extra & LQ_X_PRESCALE) ok = (q->prescale = lq_arena_alloc(q->mem, (size_t)cols * 4));
    if (ok && s->extra & LQ_X_PERM) ok = (q->perm = lq_arena_alloc(q->mem, (size_t)cols * 4));
    if (ok) return LQ_OK;
    lq_qtensor_free(q);
    return lq_oom(ctx, (size_t)lq_scheme_bytes(s, rows, cols));
}

void lq_qtensor_free(lq_qtensor *q) {
    lq_arena *mem = q->mem; /* q itself may live in it */
    *q = (lq_qtensor){0};
    lq_arena_free(&mem);
}

static float scalar_get(lq_dtype t, const void *v, size_t i) {
    switch (t) {
    case LQ_F32: return ((const float *)v)[i];
    case LQ_F16: return lq_f16_f32(((const uint16_t *)v)[i]);
    case LQ_BF16: return lq_bf16_f32(((const uint16_t *)v)[i]);
    case LQ_E4M3: return lq_e4m3_f32(((const uint8_t *)v)[i]);
    case LQ_E8M0: return lq_e8m0_f32(((const uint8_t *)v)[i]);
    case LQ_U8: return ((const uint8_t *)v)[i];
    case LQ_I8: return ((const int8_t *)v)[i];
    default: return 0;
    }
}

float lq_plane_get(const lq_plane_desc *d, const lq_plane *p, size_t i) {
    float v = d->dtype == LQ_U8 && p->lut ? p->lut[((const uint8_t *)p->v)[i]] : scalar_get(d->dtype, p->v, i);
    if (d->parent == LQ_NONE) return v;
    float up = scalar_get(d->parent, p->parent, d->span ? i / d->span : 0);
    return (d->divides ? v / up : v * up) + p->offset;
}

/* U8 and I8 of sig bits (0: all 8): nearest, clamped */
static float round_whole(const lq_plane_desc *d, float v) {
    int bits = d->sig && d->sig < 8 ? d->sig : 8;
    float low = d->dtype == LQ_I8 ? -(float)(1 << (bits - 1)) : 0, top = low + (float)((1 << bits) - 1);
    return v < low ? low : v > top ? top : rintf(v);
}

static bool is_computed(uint8_t sig) { return sig == LQ_SIG_127TH || sig == LQ_SIG_INVERSE; }

static float computed(uint8_t sig, float number) { return sig == LQ_SIG_127TH ? number / 127 : 1 / number; }

static int trailing_zeros(float v) {
    uint32_t bits = lq_f32_bits(v) | 1u << 23;
    int n = 0;
    while (!(bits >> n & 1)) n++;
    return n;
}

bool lq_sig_stored(uint8_t sig, float v, float *number) {
    float at = sig == LQ_SIG_127TH ? v * 127 : 1 / v, near[3] = {nextafterf(at, 0), at, nextafterf(at, INFINITY)};
    *number = 0;
    if (v == 0 && sig == LQ_SIG_127TH) return true;
    for (int i = 0; i < 3 && v > 0; i++)
        if (isfinite(near[i]) && computed(sig, near[i]) == v && (*number == 0 || trailing_zeros(near[i]) > trailing_zeros(*number))) *number = near[i];
    return *number > 0;
}

static float round_computed(uint8_t sig, float v) {
    float number;
    return lq_sig_stored(sig, v, &number) ? v : sig == LQ_SIG_127TH ? v * 127 / 127 : 1 / (1 / v);
}

float lq_plane_round(const lq_plane_desc *d, float v) {
    if (d->dtype == LQ_U8 || d->dtype == LQ_I8) return round_whole(d, v);
    if (is_computed(d->sig)) return round_computed(d->sig, v);
    if (d->sig) v = lq_round_sig(v, d->sig);
    switch (d->dtype) {
    case LQ_F16: return lq_f16_f32(lq_f32_f16(v));
    case LQ_BF16: return lq_bf16_f32(lq_f32_bf16(v));
    case LQ_E4M3: return lq_e4m3_f32(lq_f32_e4m3(v));
    case LQ_E8M0: return lq_e8m0_f32(lq_f32_e8m0(v));
    default: return v;
    }
}

static uint8_t nearest_entry(const float *lut, float v) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < 256; i++)
        if (fabsf(lut[i] - v) < fabsf(lut[best] - v)) best = i;
    return (uint8_t)best;
}

void lq_plane_set(const lq_plane_desc *d, lq_plane *p, size_t i, float v) {
    if (d->parent != LQ_NONE) {
        float up = scalar_get(d->parent, p->parent, d->span ? i / d->span : 0);
        v = d->divides ? (v - p->offset) * up : up != 0 ? (v - p->offset) / up : 0;
    }
    if (d->dtype == LQ_U8 && p->lut) {
        ((uint8_t *)p->v)[i] = nearest_entry(p->lut, v);
        return;
    }
    v = lq_plane_round(d, v);
    switch (d->dtype) {
    case LQ_F32: ((float *)p->v)[i] = v; break;
    case LQ_F16: ((uint16_t *)p->v)[i] = lq_f32_f16(v); break;
    case LQ_BF16: ((uint16_t *)p->v)[i] = lq_f32_bf16(v); break;
    case LQ_E4M3: ((uint8_t *)p->v)[i] = lq_f32_e4m3(v); break;
    case LQ_E8M0: ((uint8_t *)p->v)[i] = lq_f32_e8m0(v); break;
    case LQ_U8: ((uint8_t *)p->v)[i] = (uint8_t)v; break;
    case LQ_I8: ((int8_t *)p->v)[i] = (int8_t)v; break;
    default: break;
    }
}

size_t lq_plane_index(const lq_plane_desc *d, uint32_t cols, uint32_t r, uint32_t c) {
    if (d->tile_r == LQ_FLAT) return ((size_t)r * cols + c) / d->tile_c;
    size_t tr = d->tile_r ? r / d->tile_r : 0, tc = d->tile_c ? c / d->tile_c : 0;
    return tr * tiles(cols, d->tile_c) + tc;
}

float lq_grid_value(const lq_qtensor *q, uint32_t r, uint32_t code) {
    static const float e2m1[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    switch (q->sch.grid.kind) {
    case LQ_GRID_INT: return (float)((int32_t)code - q->sch.grid.bias);
    case LQ_GRID_E2M1: return code & 8 ? -e2m1[code & 7] : e2m1[code & 7];
    case LQ_GRID_E4M3: return lq_e4m3_f32((uint8_t)code);
    case LQ_GRID_E5M2: return lq_e5m2_f32((uint8_t)code);
    case LQ_GRID_F16: return lq_f16_f32((uint16_t)code);
    case LQ_GRID_BF16: return lq_bf16_f32((uint16_t)code);
    case LQ_GRID_F32: return lq_bits_f32(code);
    case LQ_GRID_LUT: return q->lut[((size_t)(q->n_lut > 1 ? r : 0) << q->sch.grid.bits) + code];
    case LQ_GRID_E3M2: break;
    }
    float m = (float)(code & 3);
    int e = (int)(code >> 2 & 7);
    float v = e ? ldexpf(4 + m, e - 5) : ldexpf(m, -4); /* OCP MX FP6 E3M2: bias 3 */
    return code & 32 ? -v : v;
}

lq_dtype lq_grid_dtype(lq_grid_kind k) { return k == LQ_GRID_F16 ? LQ_F16 : k == LQ_GRID_BF16 ? LQ_BF16 : k == LQ_GRID_F32 ? LQ_F32 : LQ_NONE; }

void lq_qtensor_add_sparse(const lq_qtensor *q, uint32_t r, float *w) {
    const lq_cols *kept = &q->outlier_cols;
    if (q->sch.extra & LQ_X_OUTLIERS && q->outliers.n)
        for (uint32_t i = q->outliers.row[r]; i < q->outliers.row[r + 1]; i++) w[q->outliers.col[i]] += lq_f16_f32(q->outliers.v[i]);
    if (q->sch.extra & LQ_X_OUTLIER_COLS)
        for (uint32_t i = 0; i < kept->n; i++) w[kept->idx[i]] = lq_f16_f32(kept->v[(size_t)r * kept->n + i]);
}

void lq_qtensor_add_extras(const lq_qtensor *q, uint32_t r, float *w) {
    uint32_t rank = q->sch.extra & LQ_X_LOWRANK ? q->sch.rank : 0;
    for (uint32_t k = 0; k < rank; k++) {
        float a = lq_f16_f32(q->lr.a[(size_t)r * rank + k]);
        for (uint32_t c = 0; c < q->cols; c++) w[c] += a * lq_f16_f32(q->lr.b[(size_t)k * q->cols + c]);
    }
    lq_qtensor_add_sparse(q, r, w);
}

float lq_qtensor_code_weight(const lq_qtensor *q, uint32_t r, uint32_t c) {
    const lq_scheme *s = &q->sch;
    float a = lq_grid_value(q, r, lq_code_get(q->codes + (size_t)r * q->row_bytes, s->grid.bits, c)), scale = 1, zero = 0;
    if (s->scale.dtype != LQ_NONE) scale = lq_plane_get(&s->scale, &q->scale, lq_plane_index(&s->scale, q->cols, r, c));
    if (s->zero_kind != LQ_ZERO_NONE) zero = lq_plane_get(&s->zero, &q->zero, lq_plane_index(&s->zero, q->cols, r, c));
    return s->zero_kind == LQ_ZERO_MIN ? scale * a - zero : scale * (a - zero);
}

void lq_qtensor_decode_row(const lq_qtensor *q, uint32_t r, float *out) {
    for (uint32_t c = 0; c < q->cols; c++) out[q->perm ? q->perm[c] : c] = lq_qtensor_code_weight(q, r, c);
    for (uint32_t c = 0; q->prescale && c < q->cols; c++) out[c] *= q->prescale[c];
    if (q->sch.extra & (LQ_X_OUTLIERS | LQ_X_OUTLIER_COLS | LQ_X_LOWRANK)) lq_qtensor_add_extras(q, r, out);
}

static bool bytes_eq(const void *a, const void *b, size_t n) { return !n || !memcmp(a, b, n); }

static bool plane_bits_eq(const lq_plane_desc *d, const lq_plane *a, const lq_plane *b, uint32_t rows, uint32_t cols) {
    size_t n = lq_plane_count(d, rows, cols), m = parents(d, n);
    return bytes_eq(&a->offset, &b->offset, sizeof a->offset) && bytes_eq(a->v, b->v, n * lq_dtypes[d->dtype].bytes) &&
           bytes_eq(a->parent, b->parent, m * lq_dtypes[d->parent].bytes) && !a->lut == !b->lut && (!a->lut || bytes_eq(a->lut, b->lut, 256 * sizeof *a->lut));
}

static bool sparse_eq(const lq_qtensor *a, const lq_qtensor *b) {
    const lq_csr *x = &a->outliers, *y = &b->outliers;
    if (x->n != y->n) return false;
    return !x->n || (bytes_eq(x->row, y->row, ((size_t)a->rows + 1) * 4) && bytes_eq(x->col, y->col, (size_t)x->n * 4) && bytes_eq(x->v, y->v, (size_t)x->n * 2));
}

static bool extras_eq(const lq_qtensor *a, const lq_qtensor *b) {
    const lq_cols *x = &a->outlier_cols, *y = &b->outlier_cols;
    size_t rank = a->sch.extra & LQ_X_LOWRANK ? a->sch.rank : 0;
    return sparse_eq(a, b) && bytes_eq(a->prescale, b->prescale, a->prescale ? (size_t)a->cols * 4 : 0) && x->n == y->n && bytes_eq(x->idx, y->idx, (size_t)x->n * 4) && bytes_eq(x->v, y->v, (size_t)x->n * a->rows * 2) &&
           bytes_eq(a->lr.a, b->lr.a, rank * a->rows * 2) && bytes_eq(a->lr.b, b->lr.b, rank * a->cols * 2);
}

bool lq_qtensor_eq(const lq_qtensor *a, const lq_qtensor *b) {
    if (!lq_scheme_eq(&a->sch, &b->sch) || a->rows != b->rows || a->cols != b->cols || a->n_lut != b->n_lut) return false;
    if (!a->perm != !b->perm || !a->bias != !b->bias || !bytes_eq(&a->act_scale, &b->act_scale, sizeof a->act_scale)) return false;
    for (uint32_t r = 0; r < a->rows; r++)
        if (memcmp(a->codes + r * a->row_bytes, b->codes + r * b->row_bytes, ((size_t)a->cols * a->sch.grid.bits + 7) / 8)) return false;
    return plane_bits_eq(&a->sch.scale, &a->scale, &b->scale, a->rows, a->cols) &&
           plane_bits_eq(&a->sch.zero, &a->zero, &b->zero, a->rows, a->cols) &&
           (!a->perm || !memcmp(a->perm, b->perm, (size_t)a->cols * 4)) && (!a->bias || !memcmp(a->bias, b->bias, (size_t)a->rows * 4)) &&
           bytes_eq(a->lut, b->lut, ((size_t)4 << a->sch.grid.bits) * a->n_lut) && extras_eq(a, b);
}
