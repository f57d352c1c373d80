/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A written GGUF, read back: rows lie where the metadata placed them and decode to the floats the codes mean. */
#include "quant/road.h"

#include <string.h>

static lq_status missing(road *r, const char *name) { return lq_fail(r->ctx, LQ_ERR_QUALITY, "%s: is not in the written file", name); }

static const lq_gguf_place *place_of(const road *r, const lq_row *row) { return &r->gguf->places[row - r->model->cat.rows]; }

/* A type whose blocks have a scale beside them: rows as codes. */
static lq_status compare_scaled(road *r, size_t i, const lq_gguf_place *p, const lq_qtensor *want, bool *same) {
    lq_qtensor got;
    float *a = lq_calloc(want->cols, 4), *b = lq_calloc(want->cols, 4);
    lq_status st = a && b ? LQ_OK : lq_oom(r->ctx, want->cols * 8);
    if (!st) st = lq_source_read_blocks(r->ctx, r->back, i, (uint64_t)p->at * want->rows, want->rows, NULL, &got);
    for (uint32_t k = 0; k < want->rows && !st && *same; k++) {
        lq_qtensor_decode_row(&got, k, a);
        lq_qtensor_decode_row(want, p->rows ? p->rows[k] : k, b);
        for (uint32_t c = 0; c < want->cols; c++) *same &= a[c] == b[c];
    }
    if (!st) lq_qtensor_free(&got);
    lq_free(a);
    lq_free(b);
    return st;
}

lq_status lq_gguf_compare(road *r, const lq_row *row, const lq_qtensor *want, bool *same) {
    const lq_gguf_place *p = place_of(r, row);
    long i = lq_source_find(r->back, p->name);
    if (i < 0) return missing(r, p->name);
    const lq_entry *e = &r->back->entries[i];
    uint64_t first = (uint64_t)p->at * want->rows;
    *same = lq_entry_cols(e) == want->cols && lq_entry_rows(e) == (uint64_t)want->rows * (p->of ? p->of : 1);
    if (*same && e->block_scale) return compare_scaled(r, (size_t)i, p, want, same);
    size_t bytes = *same ? lq_dtype_row_bytes(e->dtype, want->cols) : 0;
    char *stored = lq_alloc(bytes);
    float *got = lq_calloc(want->cols, 4), *mean = lq_calloc(want->cols, 4);
    lq_status st = stored && got && mean ? LQ_OK : lq_oom(r->ctx, bytes);
    for (uint32_t k = 0; k < want->rows && !st && *same; k++) {
        st = lq_source_read(r->ctx, r->back, (size_t)i, first + k, 1, stored);
        if (st) break;
        lq_dtype_decode(e->dtype, stored, got, want->cols);
        lq_qtensor_decode_row(want, p->rows ? p->rows[k] : k, mean);
        for (uint32_t c = 0; c < want->cols; c++) *same &= got[c] == mean[c];
    }
    lq_free(stored);
    lq_free(got);
    lq_free(mean);
    return st;
}

/* A row of the file against the one it was made of. */
static bool is_row(const lq_gguf_place *p, lq_dtype t, const char *got, const char *from, size_t bytes) {
    if (p->add == 0) return !memcmp(got, from, bytes);
    for (size_t at = 0; at < bytes; at += lq_dtypes[t].bytes) {
        float a, b;
        lq_dtype_decode(t, got + at, &a, 1);
        lq_dtype_decode(t, from + at, &b, 1);
        if (a != b + p->add) return false;
    }
    return true;
}

lq_status lq_gguf_compare_kept(road *r, const lq_row *row, const void *data, size_t n, bool *same) {
    const lq_gguf_place *p = place_of(r, row);
    *same = true;
    if (!p->name) return LQ_OK;
    long i = lq_source_find(r->back, p->name);
    if (i < 0) return missing(r, p->name);
    const lq_entry *e = &r->back->entries[i];
    uint64_t mats = p->of ? p->of : 1, rows = lq_entry_rows(e) / mats;
    *same = rows && e->bytes == n * mats && n % rows == 0;
    char *got = *same ? lq_alloc(n) : NULL;
    if (!*same || !got) return *same ? lq_oom(r->ctx, n) : LQ_OK;
    lq_status st = lq_source_read(r->ctx, r->back, (size_t)i, p->at * rows, rows, got);
    for (uint64_t k = 0; k < rows && !st && *same; k++) *same = is_row(p, e->dtype, got + k * (n / rows), (const char *)data + (p->rows ? p->rows[k] : k) * (n / rows), n / rows);
    lq_free(got);
    return st;
}
