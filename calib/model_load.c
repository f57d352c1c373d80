/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Tensor data into memory: read in slabs of rows, views undone, decoded when asked, every value finite. */
#include "calib/master.h"
#include "calib/model.h"
#include "calib/rotate.h"

#include "core/num.h"
#include "core/thread.h"

#include <string.h>

enum { SLAB = 4 << 20, SLICE = 64 };

typedef struct shape { uint64_t rows, cols; size_t bytes; } shape; /* bytes: of a stored row */

/* As the source counts rows: all extents but the last; a vector has rows of one element. */
static shape shape_of(const lq_row *r) {
    shape s = {.rows = r->ndim ? r->shape[0] : 1, .cols = r->ndim > 1 ? r->shape[r->ndim - 1] : 1};
    for (uint32_t i = 1; i + 1 < r->ndim; i++) s.rows *= r->shape[i];
    if (r->view == LQ_VIEW_TRANSPOSED) s.rows = r->shape[1], s.cols = r->shape[0];
    s.bytes = r->dtype == LQ_NONE ? 0 : lq_dtype_row_bytes(r->dtype, s.cols);
    return s;
}

/* Model row that stored row r is. */
static uint64_t model_row(const lq_row *row, uint64_t r) { return row->view == LQ_VIEW_ROWS ? row->view_rows[r] : r; }

typedef struct job { /* a slab on its way from src to dst */
    const lq_kernels *k;
    const lq_row *row;
    shape s;
    uint64_t row0, rows;
    const char *src;
    char *dst;
    bool f32;
    int64_t *bad; /* [slices] stored element, counted from row0, that is not finite; -1 */
} job;

static int64_t bad_float(const float *v, uint64_t n) {
    for (uint64_t i = 0; i < n; i++)
        if ((lq_f32_bits(v[i]) & 0x7f800000u) == 0x7f800000u) return (int64_t)i;
    return -1;
}

static int64_t bad_half(const uint16_t *v, uint64_t n, uint16_t exponent) {
    for (uint64_t i = 0; i < n; i++)
        if ((v[i] & exponent) == exponent) return (int64_t)i;
    return -1;
}

/* A block whose scales are finite has finite weights: decoded piece by piece only to find out. */
static int64_t bad_blocks(const job *j, const char *src) {
    float v[1024];
    const lq_dtype_info *t = &lq_dtypes[j->row->dtype];
    for (uint64_t at = 0; at < j->s.cols;) {
        uint64_t n = j->s.cols - at < 1024 ? j->s.cols - at : 1024;
        j->k->decode(j->row->dtype, src + at / t->block * t->bytes, v, n);
        int64_t bad = bad_float(v, n);
        if (bad >= 0) return (int64_t)at + bad;
        at += n;
    }
    return -1;
}

static int64_t one_row(const job *j, const char *src, char *dst) {
    lq_dtype t = j->row->dtype;
    if (j->f32) {
        j->k->decode(t, src, (float *)(void *)dst, j->s.cols);
        return bad_float((const float *)(void *)dst, j->s.cols);
    }
    memcpy(dst, src, j->s.bytes);
    if (t == LQ_F32) return bad_float((const float *)(void *)dst, j->s.cols);
    if (t == LQ_F16) return bad_half((const uint16_t *)(void *)dst, j->s.cols, 0x7c00);
    if (t == LQ_BF16) return bad_half((const uint16_t *)(void *)dst, j->s.cols, 0x7f80);
    return lq_dtype_is_weight(t) ? bad_blocks(j, src) : -1;
}

/* Stored row r becomes column row0 + r, piece by piece: rows 0.. of it are s.cols apart, which is what it has. */
static int64_t one_column(const job *j, uint64_t r) {
    enum { PIECE = 256 };
    double aligned[PIECE];
    char *piece = (char *)aligned;
    size_t size = lq_dtypes[j->row->dtype].bytes, unit = j->f32 ? 4 : size;
    for (uint64_t at = 0; at < j->s.cols; at += PIECE) {
        job part = *j;
        part.s.cols = j->s.cols - at < PIECE ? j->s.cols - at : PIECE;
        part.s.bytes = part.s.cols * size;
        int64_t bad = one_row(&part, j->src + r * j->s.bytes + at * size, piece);
        for (uint64_t c = 0; c < part.s.cols; c++) memcpy(j->dst + ((at + c) * j->s.rows + j->row0 + r) * unit, piece + c * unit, unit);
        if (bad >= 0) return (int64_t)at + bad;
    }
    return -1;
}

static void convert_slice(void *arg, size_t i) {
    const job *j = arg;
    uint64_t end = (i + 1) * SLICE < j->rows ? (i + 1) * SLICE : j->rows;
    size_t stride = j->f32 ? j->s.cols * 4 : j->s.bytes;
    for (uint64_t r = i * SLICE; r < end; r++) {
        int64_t bad = j->row->view == LQ_VIEW_TRANSPOSED
                          ? one_column(j, r)
                          : one_row(j, j->src + r * j->s.bytes, j->dst + model_row(j->row, j->row0 + r) * stride);
        if (bad >= 0 && j->bad[i] < 0) j->bad[i] = (int64_t)(r * j->s.cols) + bad;
    }
}

static lq_status finite(lq_ctx *ctx, const job *j) {
    for (uint64_t i = 0; i < (j->rows + SLICE - 1) / SLICE; i++) {
        if (j->bad[i] < 0) continue;
        uint64_t r = model_row(j->row, j->row0 + (uint64_t)j->bad[i] / j->s.cols), c = (uint64_t)j->bad[i] % j->s.cols;
        if (j->row->view == LQ_VIEW_TRANSPOSED) {
            uint64_t swap = r;
            r = c;
            c = swap;
        }
        return lq_fail(ctx, LQ_ERR_FORMAT, "tensor '%s': row %llu, column %llu is NaN or infinite", j->row->name, (unsigned long long)r,
                       (unsigned long long)c);
    }
    return LQ_OK;
}

/* What a file stores too much is exact in the type it stores: fp32, or a half that its own norms are multiplied in. */
static void take_off(const lq_row *row, bool f32, void *data) {
    lq_dtype t = f32 ? LQ_F32 : row->dtype;
    for (uint64_t i = 0; row->view_add != 0 && i < lq_row_elems(row); i++) {
        float v;
        char *at = (char *)data + i * lq_dtypes[t].bytes;
        lq_dtype_decode(t, at, &v, 1);
        v -= row->view_add;
        lq_dtype_encode(t, &v, at, 1);
    }
}

/* All of a float row (dtype not NONE) into dst. */
static lq_status read_rows(lq_ctx *ctx, lq_model *m, const lq_row *row, bool f32, void *dst) {
    lq_status st = LQ_OK;
    shape s = shape_of(row);
    if (!lq_row_elems(row)) return LQ_OK;
    if (!s.bytes) return lq_fail(ctx, LQ_ERR_FORMAT, "tensor '%s': rows of %llu do not fit its type", row->name, (unsigned long long)s.cols);
    uint64_t per = SLAB / s.bytes ? SLAB / s.bytes : 1;
    if (per > s.rows) per = s.rows;
    job j = {.k = m->k, .row = row, .s = s, .dst = dst, .f32 = f32};
    char *slab = lq_alloc(per * s.bytes);
    size_t slices = (per + SLICE - 1) / SLICE;
    if (!slab || !(j.bad = LQ_NEWN(int64_t, slices))) LQ_GO(lq_oom(ctx, per * s.bytes));
    j.src = slab;
    uint64_t unit = row->ndim == 2 && m->src->entries[row->source].ndim == 1 ? s.cols : 1; /* one row, stored as a vector */
    for (j.row0 = 0; j.row0 < s.rows; j.row0 += j.rows) {
        j.rows = s.rows - j.row0 < per ? s.rows - j.row0 : per;
        LQ_GO(lq_source_read(ctx, m->src, (size_t)row->source, (row->row0 + j.row0) * unit, j.rows * unit, slab));
        for (size_t i = 0; i < slices; i++) j.bad[i] = -1;
        lq_parallel_for((j.rows + SLICE - 1) / SLICE, convert_slice, &j);
        LQ_GO(finite(ctx, &j));
        LQ_GO(lq_check_cancel(ctx));
    }
    take_off(row, f32, dst);
done:
    lq_free(slab);
    lq_free(j.bad);
    return st;
}

static lq_status read_blocks(lq_ctx *ctx, lq_model *m, const lq_row *row, lq_qtensor *q) {
    uint32_t rows = lq_row_rows(row), *stored = row->view == LQ_VIEW_ROWS ? LQ_NEWN(uint32_t, rows) : NULL;
    if (row->view == LQ_VIEW_ROWS && !stored) return lq_oom(ctx, rows * sizeof *stored);
    for (uint32_t r = 0; stored && r < rows; r++) stored[model_row(row, r)] = r;
    lq_status st = lq_source_read_blocks(ctx, m->src, (size_t)row->source, row->row0, rows, stored, q);
    q->slot = row->slot;
    lq_free(stored);
    return st;
}

lq_status lq_model_read_q(lq_ctx *ctx, lq_model *m, const lq_row *row, lq_qtensor *q) {
    if (m->src->entries[row->source].dtype != LQ_NONE) return read_blocks(ctx, m, row, q);
    LQ_TRY(lq_source_read_q(ctx, m->src, (size_t)row->source, q));
    q->slot = row->slot;
    if (q->rows == lq_row_rows(row) && q->cols == lq_row_cols(row) && row->view == LQ_VIEW_PLAIN) return LQ_OK;
    lq_status st = lq_fail(ctx, LQ_ERR_INTERNAL, "tensor '%s': quantized as %u x %u, expected %u x %u", row->name, q->rows, q->cols,
                           lq_row_rows(row), lq_row_cols(row));
    lq_qtensor_free(q);
    return st;
}

typedef struct dequant { const lq_kernels *k; const lq_qtensor *q; float *out; } dequant;
static void dequant_slice(void *arg, size_t i) {
    const dequant *d = arg;
    uint32_t r0 = (uint32_t)i * SLICE, nr = d->q->rows - r0 < SLICE ? d->q->rows - r0 : SLICE;
    d->k->dequant(d->q, r0, nr, d->out + (size_t)r0 * d->q->cols);
}

static lq_status read_q_f32(lq_ctx *ctx, lq_model *m, const lq_row *row, float *out) {
    lq_qtensor q;
    LQ_TRY(lq_model_read_q(ctx, m, row, &q));
    lq_parallel_for((q.rows + SLICE - 1) / SLICE, dequant_slice, &(dequant){m->k, &q, out});
    int64_t bad = bad_float(out, (uint64_t)q.rows * q.cols);
    lq_status st = LQ_OK;
    if (bad >= 0)
        st = lq_fail(ctx, LQ_ERR_FORMAT, "tensor '%s': row %lld, column %lld is NaN or infinite", row->name, (long long)(bad / q.cols), (long long)(bad % q.cols));
    lq_qtensor_free(&q);
    return st;
}

lq_status lq_model_read_raw(lq_ctx *ctx, lq_model *m, const lq_row *row, float *out) {
    if (row->dtype == LQ_NONE) return read_q_f32(ctx, m, row, out);
    if (!lq_dtype_is_weight(row->dtype))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "tensor '%s': type %s is not a weight", row->name, lq_dtypes[row->dtype].name);
    LQ_TRY(read_rows(ctx, m, row, true, out));
    if (lq_is_master(m, row)) lq_master_round(out, lq_row_elems(row));
    return LQ_OK;
}

lq_status lq_model_read_f32(lq_ctx *ctx, lq_model *m, const lq_row *row, float *out) {
    LQ_TRY(lq_model_read_raw(ctx, m, row, out));
    return m->rotation ? lq_rotation_apply(ctx, m, row, out) : LQ_OK;
}

static bool is_rotated(const lq_model *m, const lq_row *row) { return m->rotation && lq_turn_any(lq_rotation_turn(m, row)); }

/* What reads give is not what is stored. */
static bool is_made(const lq_model *m, const lq_row *row) { return is_rotated(m, row) || lq_is_master(m, row); }

static bool is_float(lq_dtype t) { return t == LQ_F32 || t == LQ_F16 || t == LQ_BF16; }

/* Type a row has in memory: what is rotated is no longer on the grid of a block type or of codes. */
static lq_dtype type_of(const lq_model *m, const lq_row *row) {
    if (lq_is_master(m, row)) return is_rotated(m, row) ? LQ_F32 : LQ_NONE;
    if (lq_dtypes[row->dtype].block > 1 && row->scheme.act.kind) return LQ_NONE; /* lq_model_round_like_ggml */
    return !is_float(row->dtype) && is_rotated(m, row) ? LQ_F32 : row->dtype;
}

static lq_status read_turned(lq_ctx *ctx, lq_model *m, const lq_row *row, lq_dtype type, void *out) {
    uint64_t n = lq_row_elems(row);
    float *x = lq_calloc(n, sizeof *x);
    lq_status st = x ? lq_model_read_f32(ctx, m, row, x) : lq_oom(ctx, n * sizeof *x);
    if (!st) lq_dtype_encode(type, x, out, n);
    int64_t bad = st || type != LQ_F16 ? -1 : bad_half(out, n, 0x7c00);
    if (bad >= 0) st = lq_fail(ctx, LQ_ERR_UNSUPPORTED, "tensor '%s': rotated, %g is past the range of F16", row->name, (double)x[bad]);
    lq_free(x);
    return st;
}

lq_status lq_model_read_stored(lq_ctx *ctx, lq_model *m, const lq_row *row, void *out) {
    if (row->dtype == LQ_NONE) return lq_fail(ctx, LQ_ERR_INTERNAL, "tensor '%s' is quantized", row->name);
    if (!is_made(m, row)) return read_rows(ctx, m, row, false, out);
    if (!is_float(row->dtype)) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "tensor '%s': a rotated tensor cannot stay %s", row->name, lq_dtypes[row->dtype].name);
    return read_turned(ctx, m, row, row->dtype, out);
}

static bool is_matrix(const lq_row *r) { return r->part == LQ_PART_WEIGHT && r->ndim == 2; }

static size_t padded(uint64_t n) { return (size_t)((n + 63) / 64 * 64); }

static const lq_scheme *scheme_of(const lq_model *m, const lq_row *r) { return lq_is_master(m, r) ? &lq_master_scheme : &r->scheme; }

/* Is it multiplied, not only looked up? */
static bool is_multiplied(const lq_model *m, const lq_row *r) { return r->slot.role != LQ_R_POS_EMBED && (r->slot.role != LQ_R_EMBED || m->par.tied); }

lq_status lq_model_round_like_ggml(lq_ctx *ctx, lq_model *m) {
    for (size_t i = 0; i < m->cat.n; i++) {
        lq_row *r = &m->cat.rows[i];
        uint32_t block = r->source < 0 ? 1 : lq_dtypes[m->src->entries[r->source].dtype].block;
        if (block < 2 || !is_matrix(r) || !is_multiplied(m, r)) continue;
        if (!r->scheme.grid.bits) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "tensor '%s': %s is multiplied as floats here, its activations cannot be rounded", r->name, lq_dtypes[r->dtype].name);
        r->scheme.act = (lq_act){.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .tile = block == 256 ? 256 : 32, .scope = block == 256 ? 0 : 2};
    }
    return LQ_OK;
}

/* Held packed: codes, or blocks that a source reads as codes. */
static bool is_packed(const lq_model *m, const lq_row *r, lq_load how) {
    const lq_scheme *s = scheme_of(m, r);
    if (how != LQ_LOAD_PACKED || !is_matrix(r) || !is_multiplied(m, r) || !s->grid.bits) return false;
    lq_dtype type = type_of(m, r);
    return (type == LQ_NONE || lq_dtypes[type].block > 1) && lq_packed_fits(s, lq_row_rows(r), lq_row_cols(r));
}

/* Bytes of a row in the layer's own allocation. */
static uint64_t row_memory(const lq_model *m, const lq_row *r, lq_load how) {
    if (!is_matrix(r) || how == LQ_LOAD_F32) return padded(lq_row_elems(r) * 4);
    if (is_packed(m, r, how)) return padded(sizeof(lq_packed));
    lq_dtype type = type_of(m, r);
    if (type == LQ_NONE) return padded(sizeof(lq_qtensor));
    return padded((uint64_t)lq_row_rows(r) * lq_dtype_row_bytes(type, lq_row_cols(r)));
}

static bool belongs(const lq_row *r, int32_t b) { return r->slot.block == b && r->slot.role != LQ_R_UNKNOWN && !lq_role_is_kv(r->slot.role); }

static uint64_t own_memory(const lq_model *m, int32_t b, lq_load how) {
    uint64_t n = 64;
    for (size_t i = 0; i < m->cat.n; i++)
        if (belongs(&m->cat.rows[i], b)) n += row_memory(m, &m->cat.rows[i], how);
    return n;
}

/* Bytes of a row outside it. */
static uint64_t codes_memory(const lq_model *m, const lq_row *r, lq_load how) {
    uint32_t rows = lq_row_rows(r), cols = lq_row_cols(r);
    const lq_scheme *s = scheme_of(m, r);
    if (is_packed(m, r, how)) return lq_packed_bytes(s, rows, cols) + lq_scheme_bytes(s, rows, cols) - ((uint64_t)rows * cols * s->grid.bits + 7) / 8;
    return is_matrix(r) && how != LQ_LOAD_F32 && type_of(m, r) == LQ_NONE ? lq_scheme_bytes(s, rows, cols) : 0;
}

uint64_t lq_model_block_bytes(const lq_model *m, int32_t b, lq_load how) {
    uint64_t n = own_memory(m, b, how);
    for (size_t i = 0; i < m->cat.n; i++)
        if (belongs(&m->cat.rows[i], b)) n += codes_memory(m, &m->cat.rows[i], how);
    return n;
}

static lq_layer *layer(lq_model *m, int32_t b) { return b < 0 ? &m->outer : &m->layers[b]; }

static lq_status load_codes(lq_ctx *ctx, lq_model *m, const lq_row *r, lq_qtensor *q) {
    LQ_TRY((lq_is_master(m, r) ? lq_master_linear : lq_model_read_q)(ctx, m, r, q));
    if (r->scheme.act.kind) q->sch.act = r->scheme.act; /* its own, or one it is to have */
    return LQ_OK;
}

static lq_status load_packed(lq_ctx *ctx, lq_model *m, const lq_row *r, lq_linear *lin, lq_packed *p) {
    lq_qtensor q;
    LQ_TRY(load_codes(ctx, m, r, &q));
    lin->dtype = LQ_NONE;
    lin->q = &p->q;
    if (!lq_packed_fits(&q.sch, q.rows, q.cols)) { /* its header said less */
        p->q = q;
        return LQ_OK;
    }
    lin->packed = p;
    lq_status st = lq_pack(ctx, &q, p);
    lq_qtensor_free(&q);
    return st ? lq_note(ctx, st, "tensor '%s'", r->name) : LQ_OK;
}

static lq_status load_matrix(lq_ctx *ctx, lq_model *m, const lq_row *r, lq_load how, lq_linear *lin, char *mem) {
    lin->slot = r->slot;
    lin->row = r;
    lin->rows = lq_row_rows(r);
    lin->cols = lq_row_cols(r);
    if (how == LQ_LOAD_F32) {
        lin->dtype = LQ_F32;
        lin->w = mem;
        return lq_model_read_f32(ctx, m, r, lin->w);
    }
    if (is_packed(m, r, how)) return load_packed(ctx, m, r, lin, (lq_packed *)(void *)mem);
    lin->dtype = type_of(m, r);
    if (lin->dtype != r->dtype && lin->dtype != LQ_NONE) return lq_model_read_f32(ctx, m, r, lin->w = mem);
    if (lin->dtype != LQ_NONE) return lq_model_read_stored(ctx, m, r, lin->w = mem);
    LQ_TRY(load_codes(ctx, m, r, (lq_qtensor *)(void *)mem));
    lin->q = (lq_qtensor *)(void *)mem;
    return LQ_OK;
}

static lq_status load_row(lq_ctx *ctx, lq_model *m, const lq_row *r, lq_load how, lq_layer *l, char *mem) {
    if (is_matrix(r)) return load_matrix(ctx, m, r, how, lq_layer_linear(l, r->slot.role, r->slot.expert), mem);
    LQ_TRY(lq_model_read_f32(ctx, m, r, (float *)(void *)mem));
    const lq_arch_name *of = lq_arch_tensor(m->arch, (lq_role)r->slot.role, LQ_PART_WEIGHT);
    if (r->part == LQ_PART_BIAS && of && of->cols) lq_layer_linear(l, r->slot.role, r->slot.expert)->bias = (float *)(void *)mem;
    else if (r->part == LQ_PART_BIAS) l->shift[r->slot.role] = (float *)(void *)mem;
    else l->norm[r->slot.role] = (float *)(void *)mem;
    if (r->part == LQ_PART_WEIGHT && m->par.norm_plus_one)
        for (uint64_t i = 0; i < lq_row_elems(r); i++) ((float *)(void *)mem)[i] += 1;
    return LQ_OK;
}

lq_status lq_model_load(lq_ctx *ctx, lq_model *m, int32_t b, lq_load how) {
    if (!m->arch || b < -1 || b >= (int32_t)m->par.n_layers) return lq_fail(ctx, LQ_ERR_INTERNAL, "block %d of a model that has none", b);
    lq_layer *l = layer(m, b);
    if (l->loaded) return LQ_OK;
    uint64_t bytes = own_memory(m, b, how);
    char *mem = l->mem = bytes < SIZE_MAX ? lq_alloc((size_t)bytes) : NULL;
    if (!mem) return lq_oom(ctx, (size_t)bytes);
    lq_status st = LQ_OK;
    if (b >= 0 && lq_params_at(&m->par, LQ_FEAT_MOE, (uint32_t)b)) {
        l->experts = LQ_NEWN(lq_linear, (size_t)m->par.n_experts * LQ_EXPERT_ROLES);
        if (!l->experts) LQ_GO(lq_oom(ctx, m->par.n_experts * sizeof *l->experts));
        l->n_experts = m->par.n_experts;
    }
    for (size_t i = 0; i < m->cat.n; i++) {
        const lq_row *r = &m->cat.rows[i];
        if (!belongs(r, b)) continue;
        LQ_GO(load_row(ctx, m, r, how, l, mem));
        mem += row_memory(m, r, how);
    }
    l->loaded = true;
done:
    if (st) lq_model_unload(m, b);
    return st;
}

lq_status lq_model_load_all(lq_ctx *ctx, lq_model *m, lq_load how) {
    LQ_TRY(lq_model_load(ctx, m, -1, how));
    for (uint32_t b = 0; b < m->par.n_layers; b++) LQ_TRY(lq_model_load(ctx, m, (int32_t)b, how));
    return LQ_OK;
}

static void free_codes(lq_linear *lin) {
    if (lin->packed) lq_packed_free(lin->packed);
    else if (lin->q) lq_qtensor_free(lin->q);
}

void lq_model_unload(lq_model *m, int32_t b) {
    lq_layer *l = layer(m, b);
    for (int r = 0; r < LQ_R_N; r++) free_codes(&l->lin[r]);
    for (size_t i = 0; i < (size_t)l->n_experts * LQ_EXPERT_ROLES; i++) free_codes(&l->experts[i]);
    lq_free(l->experts);
    lq_free(l->mem);
    *l = (lq_layer){0};
}
