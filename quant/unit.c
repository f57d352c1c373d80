/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "quant/road.h"

#include "quant/manifest.h"

#include <stdlib.h>
#include <string.h>

static bool add_frame(lq_buf *b, const void *p, uint64_t n) { return lq_buf_add(b, &n, sizeof n) && lq_buf_add(b, p, n); }

lq_status lq_unit_add(road *r, const lq_row *row, const lq_qtensor *q, const lq_outcome *o) {
    lq_buf bytes = {0};
    json_t *m = lq_manifest_module(row, q, o);
    char *text = m ? json_dumps(m, JSON_COMPACT) : NULL;
    json_decref(m);
    lq_status st = text ? lq_qtensor_encode(r->ctx, q, &bytes) : lq_oom(r->ctx, 256);
    if (!st && !(add_frame(&r->unit, text, strlen(text)) && add_frame(&r->unit, bytes.v, bytes.n))) st = lq_oom(r->ctx, bytes.n);
    lq_buf_free(&bytes);
    free(text);
    return st;
}

/* Walks the frames of a unit: entry (JSON) and bytes of each linear. */
static lq_status walk(road *r, const lq_buf *unit, lq_linear_fn fn) {
    for (size_t at = 0; at < unit->n;) {
        uint64_t n[2];
        const char *part[2];
        for (int i = 0; i < 2; i++) {
            if (unit->n - at < 8) return lq_fail(r->ctx, LQ_ERR_FORMAT, "%s: a unit ends early", r->job.journal);
            memcpy(&n[i], unit->v + at, 8);
            part[i] = unit->v + (at += 8);
            if (n[i] > unit->n - at) return lq_fail(r->ctx, LQ_ERR_FORMAT, "%s: a unit ends early", r->job.journal);
            at += n[i];
        }
        json_t *entry;
        LQ_TRY(lq_json_parse(r->ctx, r->job.journal, part[0], n[0], &entry));
        lq_status st = fn(r, entry, part[1], n[1]);
        json_decref(entry);
        LQ_TRY(st);
    }
    return LQ_OK;
}

lq_status lq_unit_finish(road *r, uint32_t unit) {
    lq_status st = lq_job_store(r->ctx, &r->job, unit, &r->unit);
    lq_buf_free(&r->unit);
    return st;
}

lq_status lq_unit_each(road *r, uint32_t unit, lq_linear_fn fn) {
    lq_buf bytes;
    LQ_TRY(lq_job_load(r->ctx, &r->job, unit, &bytes));
    lq_status st = walk(r, &bytes, fn);
    lq_buf_free(&bytes);
    return st;
}

lq_status lq_unit_each_done(road *r, lq_linear_fn fn) {
    uint32_t units = r->needs ? r->model->par.n_layers + 1 : (uint32_t)r->model->cat.n;
    for (uint32_t u = 0; u < units; u++)
        if (lq_job_has(&r->job, u)) LQ_TRY(lq_unit_each(r, u, fn));
    return LQ_OK;
}
