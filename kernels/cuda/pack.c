/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/cuda/cuda.h"

#include "core/num.h"
#include "core/thread.h"

#include <string.h>

enum { TILE_BYTES = 512, STEP = 16 };

static uint32_t narrow(const lq_packed *p) { return p->fields[1] ? p->fields[1] : p->fields[0]; }

uint32_t lq_device_chunk(const lq_packed *p) { return 256 / narrow(p); }

static size_t chunk_bytes(const lq_packed *p) { return (size_t)TILE_BYTES * (p->fields[0] + p->fields[1]) / narrow(p); }

static uint32_t chunks_of(const lq_packed *p) { return (p->q.cols + lq_device_chunk(p) - 1) / lq_device_chunk(p); }

size_t lq_device_bytes(const lq_packed *p) { return (size_t)p->tiles * chunks_of(p) * chunk_bytes(p); }

typedef struct place { size_t at; uint32_t shift; } place; /* byte of a chunk, bit in it */

/* Field i of row r (0 .. 15), column c of a chunk. */
static place place_of(const lq_packed *p, int i, uint32_t r, uint32_t c) {
    uint32_t f = p->fields[i], wide = 256 / f, in = c % wide, s = in / STEP, h = r / 8, lane = r % 8 * 4 + in % STEP / 4;
    size_t tile = (size_t)TILE_BYTES * (i ? (size_t)p->fields[0] / narrow(p) : 0) + (size_t)TILE_BYTES * (c / wide);
    return f == 8 ? (place){tile + 16 * lane + 4 * (2 * s + h) + in % 4, 0} : (place){tile + 16 * lane + 4 * (s / (4 / f)) + in % 4, f * (s % (4 / f)) + 4 * h};
}

typedef struct job { const lq_packed *p; uint8_t *out; const uint8_t *in; lq_packed *back; } job;

static void pack_tile(void *arg, size_t t) {
    const job *j = arg;
    const lq_packed *p = j->p;
    uint32_t wide = lq_device_chunk(p), chunks = chunks_of(p);
    uint8_t *dst = j->out + t * chunks * chunk_bytes(p);
    memset(dst, 0, chunks * chunk_bytes(p));
    for (uint32_t r = 0; r < LQ_TILE && t * LQ_TILE + r < p->q.rows; r++)
        for (uint32_t c = 0; c < p->q.cols; c++) {
            uint32_t code = lq_packed_code(p, (uint32_t)t * LQ_TILE + r, c);
            for (int i = 0; i < 2 && p->fields[i]; code >>= p->fields[i++]) {
                place a = place_of(p, i, r, c % wide);
                dst[c / wide * chunk_bytes(p) + a.at] |= (uint8_t)((code & ((1u << p->fields[i]) - 1)) << a.shift);
            }
        }
}

void lq_pack_device(const lq_packed *p, uint8_t *out) { lq_parallel_for(p->tiles, pack_tile, &(job){.p = p, .out = out}); }

static void unpack_tile(void *arg, size_t t) {
    const job *j = arg;
    const lq_packed *p = j->back;
    uint32_t wide = lq_device_chunk(p), chunks = chunks_of(p);
    const uint8_t *src = j->in + t * chunks * chunk_bytes(p);
    memset(p->codes + t * p->tile_bytes, 0, p->tile_bytes);
    for (uint32_t r = 0; r < LQ_TILE && t * LQ_TILE + r < p->q.rows; r++)
        for (uint32_t c = 0; c < p->q.cols; c++) {
            uint32_t code = 0;
            for (int i = 0, done = 0; i < 2 && p->fields[i]; done += p->fields[i++]) {
                place a = place_of(p, i, r, c % wide);
                code |= (src[c / wide * chunk_bytes(p) + a.at] >> a.shift & ((1u << p->fields[i]) - 1)) << done;
            }
            lq_packed_set_code(p, (uint32_t)t * LQ_TILE + r, c, code);
        }
}

void lq_unpack_device(const uint8_t *in, lq_packed *p) { lq_parallel_for(p->tiles, unpack_tile, &(job){.back = p, .in = in}); }

bool lq_device_fits(const lq_packed *p) {
    const lq_scheme *s = &p->q.sch;
    return s->grid.kind == LQ_GRID_INT || s->grid.kind == LQ_GRID_E4M3 || s->grid.bits <= 4;
}

/* A(code) = times code - bias */
static void set_line(const lq_grid *g, lq_device_matrix *m) {
    bool sign = g->kind == LQ_GRID_LUT && g->bias == LQ_LUT_SIGN, quad = g->kind == LQ_GRID_LUT && g->bias == LQ_LUT_QUAD;
    m->times = g->kind == LQ_GRID_INT || quad ? 1 : sign ? 2 : 0;
    m->bias = g->kind == LQ_GRID_INT ? g->bias : 1;
}

/* Params as the device has them: of one level. */
static lq_dtype flat(lq_dtype t, bool up) { return up ? LQ_F32 : t; }
static uint32_t seg_bytes(const lq_packed *p) { return p->span ? LQ_TILE * (uint32_t)(lq_dtypes[flat(p->scale, p->up_scale)].bytes + lq_dtypes[flat(p->zero, p->up_zero)].bytes) : (uint32_t)p->seg_bytes; }

static bool has_tables(const lq_packed *p) { return p->q.sch.extra & LQ_X_LUT_PER_ROW; }

uint64_t lq_device_param_bytes(const lq_packed *p) {
    if (has_tables(p)) return (uint64_t)p->tiles * LQ_TILE * (2u << p->q.sch.grid.bits);
    return (uint64_t)p->tiles * p->segs * seg_bytes(p);
}

static void put_tables(const lq_packed *p, uint8_t *out) {
    const uint32_t codes = 1u << p->q.sch.grid.bits;
    memset(out, 0, (size_t)lq_device_param_bytes(p));
    for (uint32_t r = 0; r < p->q.rows; r++)
        for (uint32_t i = 0; i < codes; i++, out += 2) {
            const uint16_t v = lq_f32_f16(lq_grid_value(&p->q, r, i));
            memcpy(out, &v, sizeof v);
        }
}

static void flat_plane(const lq_packed *p, uint32_t tile, uint32_t g, bool zero, uint8_t *dst) {
    uint32_t rows = p->q.rows - tile * LQ_TILE < LQ_TILE ? p->q.rows - tile * LQ_TILE : LQ_TILE;
    bool up = zero ? p->up_zero : p->up_scale;
    lq_dtype t = zero ? p->zero : p->scale;
    if (!up) memcpy(dst, lq_packed_params(p, tile, g) + (zero ? LQ_TILE * lq_dtypes[p->scale].bytes : 0), LQ_TILE * lq_dtypes[t].bytes);
    for (uint32_t i = 0; up && i < rows; i++) {
        float v = zero ? lq_packed_zero(p, tile * LQ_TILE + i, g) : lq_packed_scale(p, tile * LQ_TILE + i, g);
        memcpy(dst + i * sizeof v, &v, sizeof v);
    }
}

void lq_device_params(const lq_packed *p, uint8_t *out) {
    size_t scales = LQ_TILE * lq_dtypes[flat(p->scale, p->up_scale)].bytes;
    if (has_tables(p)) put_tables(p, out);
    else if (!p->span) memcpy(out, p->params, lq_device_param_bytes(p));
    for (uint32_t tile = 0; p->span && tile < p->tiles; tile++)
        for (uint32_t g = 0; g < p->segs; g++, out += seg_bytes(p)) {
            flat_plane(p, tile, g, false, out);
            flat_plane(p, tile, g, true, out + scales);
        }
}

lq_device_matrix lq_device_shape(const lq_packed *p) {
    const lq_qtensor *q = &p->q;
    lq_device_matrix m = {.rows = q->rows, .cols = q->cols, .tiles = p->tiles, .chunks = chunks_of(p), .seg = p->seg, .segs = p->segs,
                          .fields = {p->fields[0], p->fields[1]}, .bits = q->sch.grid.bits, .scale = (uint8_t)flat(p->scale, p->up_scale), .zero = (uint8_t)flat(p->zero, p->up_zero),
                          .grid = (uint8_t)q->sch.grid.kind, .zero_kind = (uint8_t)q->sch.zero_kind, .up = p->up,
                          .shift = p->shift, .seg_bytes = seg_bytes(p), .tables = has_tables(p)};
    set_line(&q->sch.grid, &m);
    for (uint32_t i = 0; m.grid != LQ_GRID_INT && !m.tables && m.bits <= 4 && i < 16; i++) m.table[i] = lq_f32_f16(lq_grid_value(q, 0, i & ((1u << m.bits) - 1)));
    return m;
}

bool lq_device_alike(const lq_device_matrix *a, const lq_device_matrix *b) {
    bool shape = a->cols == b->cols && a->seg == b->seg && a->segs == b->segs && a->bits == b->bits && a->fields[0] == b->fields[0] && a->fields[1] == b->fields[1];
    bool kind = a->grid == b->grid && a->scale == b->scale && a->zero == b->zero && a->zero_kind == b->zero_kind && a->bias == b->bias && a->times == b->times && a->tables == b->tables;
    return shape && kind && !memcmp(a->table, b->table, sizeof a->table);
}

bool lq_device_splits(const lq_device_matrix *m) {
    return m->fields[0] == 8 && !m->fields[1] && m->times == 1 && m->segs == 1 && m->zero_kind == LQ_ZERO_NONE && (uint64_t)m->cols * 127 * 255 < 1u << 31;
}

bool lq_device_steps(const lq_device_matrix *m, uint32_t tile) {
    const uint32_t chunk = 256 / 8;
    return m->grid == LQ_GRID_E4M3 && m->zero_kind == LQ_ZERO_NONE && (m->segs == 1 || m->seg % chunk == 0) && (!tile || tile >= m->cols || tile % chunk == 0);
}

bool lq_device_fill(const lq_device *d, const lq_packed *p, lq_device_matrix *m) {
    size_t n = lq_device_bytes(p), params = lq_device_param_bytes(p), perm = p->q.perm ? (size_t)p->q.cols * 4 : 0;
    uint8_t *codes = lq_alloc(n), *flat_params = lq_alloc(params);
    const void *const at[] = {m->codes, m->params, m->perm};
    *m = lq_device_shape(p);
    m->codes = at[0], m->params = at[1], m->perm = perm ? at[2] : NULL;
    bool ok = codes && flat_params;
    if (ok) {
        lq_pack_device(p, codes);
        lq_device_params(p, flat_params);
        ok = d->put((void *)m->codes, codes, n) && d->put((void *)m->params, flat_params, params) && (!perm || d->put((void *)m->perm, p->q.perm, perm));
    }
    lq_free(codes);
    lq_free(flat_params);
    return ok;
}

bool lq_device_put(const lq_device *d, const lq_packed *p, lq_device_matrix *m) {
    size_t perm = p->q.perm ? (size_t)p->q.cols * 4 : 0;
    *m = (lq_device_matrix){.codes = d->alloc(lq_device_bytes(p) + 16), .params = d->alloc((size_t)lq_device_param_bytes(p) + 16), .perm = perm ? d->alloc(perm) : NULL};
    if (m->codes && m->params && (!perm || m->perm) && lq_device_fill(d, p, m)) return true;
    lq_device_drop(d, m);
    return false;
}

void lq_device_drop(const lq_device *d, lq_device_matrix *m) {
    d->release((void *)m->codes);
    d->release((void *)m->params);
    d->release((void *)m->perm);
    m->codes = m->params = m->perm = NULL;
}
