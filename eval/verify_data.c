/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Every tensor read: codes with their planes by the reader that checks them, floats and blocks slab by slab. */
#include "eval/verify_impl.h"

#include "core/num.h"

#include <inttypes.h>
#include <string.h>

enum { SLAB = 4 << 20, GROUP = 32 };

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

static void tell(verify *v, const lq_entry *e, const tally *t, uint32_t group) {
    uint64_t cols = lq_entry_cols(e);
    if (t->bad)
        lq_verify_find(v, LQ_SEV_ERROR, "nan", e->name, "%" PRIu64 " of %" PRIu64 " values are NaN or infinite, the first at row %" PRIu64 ", column %" PRIu64, t->bad, t->n,
                       (uint64_t)t->first_bad / cols, (uint64_t)t->first_bad % cols);
    if (e->ndim < 2 || !t->n) return;
    if (t->zero == t->n) lq_verify_find(v, LQ_SEV_WARNING, "zeros", e->name, "every weight is 0");
    else if (t->zero_groups * 100 > t->groups)
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

static void codes(verify *v, size_t i) {
    const lq_entry *e = &v->raw->entries[i];
    lq_qtensor q;
    tally t = {0};
    if (!lq_verify_ok(v, lq_source_read_q(&v->quiet, v->raw, i, &q), LQ_SEV_ERROR, "codes", e->name)) return;
    uint32_t group = group_of(&q.sch, q.cols);
    float *row = lq_calloc(q.cols, sizeof *row);
    if (!row) v->st = lq_oom(v->ctx, q.cols * sizeof *row);
    for (uint32_t r = 0; row && r < q.rows; r++) {
        lq_qtensor_decode_row(&q, r, row);
        look(&t, row, q.cols, group);
    }
    if (row) tell(v, e, &t, group);
    if (row && q.sch.scale.dtype != LQ_NONE) planes(v, e, &q);
    v->out->weights += t.n;
    lq_free(row);
    lq_qtensor_free(&q);
}

/* ---- floats and blocks ---- */

static bool is_fp8(lq_dtype t) { return t == LQ_E4M3 || t == LQ_E5M2; }

static void fp8(tally *t, lq_dtype type, const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float x = type == LQ_E4M3 ? lq_e4m3_f32(p[i]) : lq_e5m2_f32(p[i]);
        look(t, &x, 1, 1);
    }
}

static void plain(verify *v, size_t i) {
    const lq_entry *e = &v->raw->entries[i];
    uint64_t rows = lq_entry_rows(e), cols = lq_entry_cols(e), row = lq_dtype_row_bytes(e->dtype, cols);
    if ((!lq_dtype_is_weight(e->dtype) && !is_fp8(e->dtype)) || !row || !rows) return;
    uint64_t per = SLAB / row ? SLAB / row : 1;
    if (per > rows) per = rows;
    char *slab = lq_calloc((size_t)per, (size_t)row);
    float *x = lq_calloc((size_t)per, (size_t)cols * sizeof *x);
    tally t = {0};
    if (!slab || !x) v->st = lq_oom(v->ctx, (size_t)(per * row));
    for (uint64_t r = 0; r < rows && !v->st; r += per) {
        uint64_t n = rows - r < per ? rows - r : per;
        if (!lq_verify_ok(v, lq_source_read(&v->quiet, v->raw, i, r, n, slab), LQ_SEV_ERROR, "read", e->name)) break;
        if (is_fp8(e->dtype)) {
            fp8(&t, e->dtype, (const uint8_t *)slab, (size_t)(n * cols));
            continue;
        }
        lq_dtype_decode(e->dtype, slab, x, (size_t)(n * cols));
        look(&t, x, (size_t)(n * cols), GROUP);
        if (lq_check_cancel(v->ctx)) v->st = LQ_STOPPED;
    }
    if (!v->st) tell(v, e, &t, GROUP);
    v->out->weights += t.n;
    lq_free(slab);
    lq_free(x);
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
