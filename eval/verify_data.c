/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Every tensor read: codes with their planes by the reader that checks them, floats and blocks slab by slab. */
#include "eval/verify_impl.h"

#include "core/num.h"
#include "core/thread.h"

#include <inttypes.h>
#include <string.h>

enum { SLAB = 4 << 20, GROUP = 32, ROWS = 64, PART = 1 << 16 }; /* PART: whole groups and whole blocks of any type */

typedef struct tally { uint64_t n, bad, zero_groups, groups, zero; int64_t first_bad; } tally;

static void look(tally *t, const float *w, size_t n, uint32_t group) {
    for (size_t i = 0; i < n; i += group) {
        bool zero = true;
        size_t end = i + group < n ? i + group : n;
        for (size_t k = i; k < end; k++) {
            bool bad = (lq_f32_bits(w[k]) & 0x7f800000u) == 0x7f800000u;
            if (bad && !t->bad++) t->first_bad = (int64_t)(t->n + k);
            zero = zero && w[k] == 0;
            t->zero += w[k] == 0;
        }
        t->groups++;
        t->zero_groups += zero;
    }
    t->n += n;
}

/* Parts in order: the same tally however they were shared out. */
static void add_up(tally *t, const tally *parts, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (parts[i].bad && !t->bad) t->first_bad = parts[i].first_bad;
        t->n = parts[i].n;
        t->bad += parts[i].bad;
        t->zero += parts[i].zero;
        t->groups += parts[i].groups;
        t->zero_groups += parts[i].zero_groups;
    }
}

/* Of two bits, whole groups of zeros are no sign of damage. */
static bool is_coarse(const lq_entry *e) {
    if (e->scheme.grid.bits) return e->scheme.grid.bits <= 2;
    return lq_dtypes[e->dtype].block > 1 && 8.0 * lq_dtypes[e->dtype].bytes < 2.7 * lq_dtypes[e->dtype].block;
}

static void tell(verify *v, const lq_entry *e, const tally *t, uint32_t group) {
    uint64_t cols = lq_entry_cols(e);
    if (t->bad)
        lq_verify_find(v, LQ_SEV_ERROR, "nan", e->name, "%" PRIu64 " of %" PRIu64 " values are NaN or infinite, the first at row %" PRIu64 ", column %" PRIu64, t->bad, t->n,
                       (uint64_t)t->first_bad / cols, (uint64_t)t->first_bad % cols);
    if (e->ndim < 2 || !t->n) return;
    if (t->zero == t->n) lq_verify_find(v, LQ_SEV_WARNING, "zeros", e->name, "every weight is 0");
    else if (t->zero_groups * 100 > t->groups && !is_coarse(e))
        lq_verify_find(v, LQ_SEV_WARNING, "zeros", e->name, "%" PRIu64 " of %" PRIu64 " groups of %u weights are all 0", t->zero_groups, t->groups, group);
}

/* ---- codes ---- */

static uint32_t group_of(const lq_scheme *s, uint32_t cols) {
    uint32_t g = s->scale.dtype != LQ_NONE && s->scale.tile_c ? s->scale.tile_c : GROUP;
    return g < cols ? g : cols;
}

/* Mean of A(q) - z. Off by one step, the zero points were stored by one convention and named by the other. */
static double mean_step(const lq_qtensor *q) {
    const lq_scheme *s = &q->sch;
    double sum = 0;
    uint64_t n = 0;
    for (uint32_t r = 0; r < q->rows; r += 1 + q->rows / 64)
        for (uint32_t c = 0; c < q->cols; c++) {
            float scale = lq_plane_get(&s->scale, &q->scale, lq_plane_index(&s->scale, q->cols, r, c));
            if (scale == 0) continue;
            sum += (double)lq_qtensor_code_weight(q, r, c) / scale;
            n++;
        }
    return n ? sum / (double)n : 0;
}

static void planes(verify *v, const lq_entry *e, const lq_qtensor *q) {
    const lq_scheme *s = &q->sch;
    size_t n = lq_plane_count(&s->scale, q->rows, q->cols), zero = 0, negative = 0;
    for (size_t i = 0; i < n; i++) {
        float x = lq_plane_get(&s->scale, &q->scale, i);
        zero += x == 0;
        negative += x < 0;
    }
    if (zero * 100 > n) lq_verify_find(v, LQ_SEV_WARNING, "scales", e->name, "%zu of %zu scales are 0: their weights are gone", zero, n);
    if (negative && s->grid.kind != LQ_GRID_INT) lq_verify_find(v, LQ_SEV_WARNING, "scales", e->name, "%zu of %zu scales are negative", negative, n);
    if (s->grid.kind == LQ_GRID_INT && s->zero_kind == LQ_ZERO_CODE && s->zero.dtype == LQ_U8) {
        double m = mean_step(q);
        v->zeroed++;
        v->off_by_one += m > 0.75 || m < -0.75;
    }
}

typedef struct decoding { const lq_qtensor *q; tally *parts; float *rows; uint32_t group; } decoding;

static void decode_part(void *arg, size_t i) {
    const decoding *d = arg;
    const lq_qtensor *q = d->q;
    uint32_t r0 = (uint32_t)i * ROWS, r1 = q->rows - r0 < ROWS ? q->rows : r0 + ROWS;
    float *row = d->rows + (size_t)lq_worker() * q->cols;
    tally *t = &d->parts[i];
    t->n = (uint64_t)r0 * q->cols;
    for (uint32_t r = r0; r < r1; r++) {
        lq_qtensor_decode_row(q, r, row);
        look(t, row, q->cols, d->group);
    }
}

static bool decode(verify *v, const lq_qtensor *q, uint32_t group, tally *t) {
    size_t n = (q->rows + ROWS - 1) / ROWS;
    decoding d = {q, LQ_NEWN(tally, n), lq_calloc((size_t)q->cols * (size_t)lq_threads(), sizeof(float)), group};
    bool ok = d.parts && d.rows;
    if (ok) {
        lq_parallel_for(n, decode_part, &d);
        add_up(t, d.parts, n);
    } else v->st = lq_oom(v->ctx, n * sizeof *d.parts + (size_t)q->cols * sizeof(float));
    lq_free(d.parts);
    lq_free(d.rows);
    return ok;
}

static void codes(verify *v, size_t i) {
    const lq_entry *e = &v->raw->entries[i];
    lq_qtensor q;
    tally t = {0};
    if (!lq_verify_ok(v, lq_source_read_q(&v->quiet, v->raw, i, &q), LQ_SEV_ERROR, "codes", e->name)) return;
    uint32_t group = group_of(&q.sch, q.cols);
    if (decode(v, &q, group, &t)) {
        tell(v, e, &t, group);
        if (q.sch.scale.dtype != LQ_NONE) planes(v, e, &q);
    }
    v->out->weights += t.n;
    lq_qtensor_free(&q);
}

/* ---- floats and blocks ---- */

static bool is_fp8(lq_dtype t) { return t == LQ_E4M3 || t == LQ_E5M2; }

typedef struct slab { lq_dtype type; const char *data; float *x; tally *parts; size_t n; uint64_t before; } slab;

static void look_part(void *arg, size_t i) {
    const slab *b = arg;
    size_t from = i * PART, n = b->n - from < PART ? b->n - from : PART;
    const uint8_t *data = (const uint8_t *)b->data + from / lq_dtypes[b->type].block * lq_dtypes[b->type].bytes;
    b->parts[i] = (tally){.n = b->before + from};
    if (!is_fp8(b->type)) lq_dtype_decode(b->type, data, b->x + from, n);
    for (size_t k = 0; k < n && is_fp8(b->type); k++) b->x[from + k] = b->type == LQ_E4M3 ? lq_e4m3_f32(data[k]) : lq_e5m2_f32(data[k]);
    look(&b->parts[i], b->x + from, n, is_fp8(b->type) ? 1 : GROUP);
}

static void plain(verify *v, size_t i) {
    const lq_entry *e = &v->raw->entries[i];
    uint64_t rows = lq_entry_rows(e), cols = lq_entry_cols(e), row = lq_dtype_row_bytes(e->dtype, cols);
    if ((!lq_dtype_is_weight(e->dtype) && !is_fp8(e->dtype)) || !row || !rows) return;
    uint64_t per = SLAB / row ? SLAB / row : 1;
    if (per > rows) per = rows;
    char *data = lq_calloc((size_t)per, (size_t)row);
    slab b = {.type = e->dtype, .data = data, .x = lq_calloc((size_t)per, (size_t)cols * sizeof(float)), .parts = LQ_NEWN(tally, (size_t)(per * cols / PART + 1))};
    tally t = {0};
    if (!data || !b.x || !b.parts) v->st = lq_oom(v->ctx, (size_t)(per * row));
    for (uint64_t r = 0; r < rows && !v->st; r += per) {
        uint64_t n = rows - r < per ? rows - r : per;
        if (!lq_verify_ok(v, lq_source_read(&v->quiet, v->raw, i, r, n, data), LQ_SEV_ERROR, "read", e->name)) break;
        b.before = r * cols;
        b.n = (size_t)(n * cols);
        lq_parallel_for((b.n + PART - 1) / PART, look_part, &b);
        add_up(&t, b.parts, (b.n + PART - 1) / PART);
        if (lq_check_cancel(v->ctx)) v->st = LQ_STOPPED;
    }
    if (!v->st) tell(v, e, &t, GROUP);
    v->out->weights += t.n;
    lq_free(data);
    lq_free(b.x);
    lq_free(b.parts);
}

void lq_verify_data(verify *v) {
    for (size_t i = 0; v->raw && i < v->raw->n && !v->st; i++) {
        if (v->raw->entries[i].dtype == LQ_NONE) codes(v, i);
        else plain(v, i);
        if (!v->st && lq_check_cancel(v->ctx)) v->st = LQ_STOPPED;
    }
    if (v->zeroed && v->off_by_one * 10 >= v->zeroed * 8)
        lq_verify_find(v, LQ_SEV_ERROR, "zero-points", "qzeros", "codes lie about one step from their zero points in %zu of %zu matrices: zero points of one convention (z or z - 1) under the name of the other",
                       v->off_by_one, v->zeroed);
}
