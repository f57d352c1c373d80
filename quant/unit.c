/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "quant/road.h"

#include "calib/fold.h"
#include "quant/manifest.h"

#include <stdlib.h>
#include <string.h>

/* Adds a frame; takes the reference to entry (NULL: out of memory). */
static lq_status add_frame(road *r, json_t *entry, const lq_buf *data) {
    char *text = entry ? json_dumps(entry, JSON_COMPACT) : NULL;
    uint64_t n[2] = {text ? strlen(text) : 0, data->n};
    json_decref(entry);
    bool ok = text && lq_buf_add(&r->unit, &n[0], 8) && lq_buf_add(&r->unit, text, n[0]) && lq_buf_add(&r->unit, &n[1], 8) &&
              (!n[1] || lq_buf_add(&r->unit, data->v, n[1]));
    free(text);
    return ok ? LQ_OK : lq_oom(r->ctx, 256 + data->n);
}

lq_status lq_unit_add(road *r, const lq_row *row, const lq_qtensor *q, const lq_outcome *o) {
    lq_buf bytes = {0};
    lq_status st = lq_qtensor_encode(r->ctx, q, &bytes);
    if (!st) st = add_frame(r, lq_manifest_module(row, q, o), &bytes);
    lq_buf_free(&bytes);
    return st;
}

lq_status lq_unit_add_kept(road *r, const lq_row *row) {
    lq_buf bytes = {0};
    lq_status st = lq_fold_store(r->ctx, r->model, row, &bytes);
    if (!st) st = add_frame(r, json_pack("{s:s}", "kept", row->name), &bytes);
    lq_buf_free(&bytes);
    return st;
}

lq_status lq_unit_add_choice(road *r, const json_t *entry) { return add_frame(r, json_deep_copy(entry), &(lq_buf){0}); }

const lq_row *lq_unit_kept_row(road *r, const json_t *entry) {
    const char *name = json_string_value(json_object_get(entry, "kept"));
    const lq_catalog *c = &r->model->cat;
    for (size_t i = 0; name && i < c->n; i++)
        if (!c->rows[i].quantize && !strcmp(c->rows[i].name, name)) return &c->rows[i];
    return NULL;
}

static lq_status visit(road *r, const lq_unit_reader *fn, json_t *entry, const void *p, size_t n) {
    lq_frame_fn f = json_object_get(entry, "kept") ? fn->kept : json_object_get(entry, "site") ? fn->choice : fn->linear;
    return f ? f(r, entry, p, n) : LQ_OK;
}

static lq_status walk(road *r, const lq_buf *unit, const lq_unit_reader *fn) {
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
        lq_status st = visit(r, fn, entry, part[1], n[1]);
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

lq_status lq_unit_each(road *r, uint32_t unit, const lq_unit_reader *fn) {
    lq_buf bytes;
    LQ_TRY(lq_job_load(r->ctx, &r->job, unit, &bytes));
    lq_status st = walk(r, &bytes, fn);
    lq_buf_free(&bytes);
    return st;
}

lq_status lq_unit_each_done(road *r, const lq_unit_reader *fn) {
    uint32_t units = r->by_block ? r->model->par.n_layers + 2 : (uint32_t)r->model->cat.n;
    /* blocks, the head, the embedding */
    for (uint32_t u = 0; u < units; u++)
        if (lq_job_has(&r->job, u)) LQ_TRY(lq_unit_each(r, u, fn));
    return LQ_OK;
}
