/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What every writer shares: each catalog row is put exactly once and as the catalog says, sidecars stay byte for byte,
 * config.json gains one key without a change to its other bytes. */
#include "formats/sink.h"

#include "formats/config_splice.h"
#include "formats/write.h"

#include <string.h>

const lq_format *const lq_formats[] = {
    &lq_format_gptq,
    &lq_format_gptq_v2,
    &lq_format_ct,
    &lq_format_awq,
    &lq_format_fp8,
    &lq_format_mlx,
    &lq_format_modelopt,
    &lq_format_bnb,
    &lq_format_bitnet,
    &lq_format_squeezellm,
    &lq_format_lqt,
    &lq_format_fp,
    &lq_format_gguf,
    NULL,
};

const lq_format *lq_format_by_name(const char *name) {
    for (const lq_format *const *f = lq_formats; *f; f++)
        if (!strcmp((*f)->name, name)) return *f;
    return NULL;
}

static lq_status rows_check(lq_ctx *ctx, const lq_format *f, const lq_catalog *cat) {
    for (size_t i = 0; i < cat->n; i++) {
        const lq_row *r = &cat->rows[i];
        if (!r->quantize && r->out_dtype == LQ_NONE) return lq_fail(ctx, LQ_ERR_INTERNAL, "'%s' has no output type", r->name);
        lq_status st = r->quantize ? f->accept(ctx, &r->scheme, lq_row_rows(r), lq_row_cols(r)) : LQ_OK;
        if (st) return lq_note(ctx, st, "format %s: '%s'", f->name, r->name);
    }
    return LQ_OK;
}

void lq_sink_abandon(lq_sink **s) {
    if (!*s) return;
    if ((*s)->priv) (*s)->format->abandon(*s);
    lq_free((*s)->priv);
    lq_free((*s)->seen);
    lq_free((char *)(*s)->dir);
    lq_free(*s);
    *s = NULL;
}

static lq_status sink_new(lq_ctx *ctx, const lq_format *f, const lq_catalog *cat, const lq_sink_opts *opts, lq_sink **out) {
    *out = NULL;
    LQ_TRY(rows_check(ctx, f, cat));
    lq_sink *s = *out = LQ_NEW(lq_sink);
    if (!s) return lq_oom(ctx, sizeof *s);
    *s = (lq_sink){.ctx = ctx, .format = f, .cat = cat, .opts = *opts};
    s->seen = lq_alloc(cat->n);
    s->priv = lq_alloc(f->priv_size);
    lq_status st = s->seen && s->priv ? LQ_OK : lq_oom(ctx, cat->n + f->priv_size);
    if (!st && f->check) st = f->check(s);
    if (st) lq_sink_abandon(out);
    return st;
}

lq_status lq_sink_check(lq_ctx *ctx, const lq_format *f, const lq_catalog *cat, const lq_sink_opts *opts) {
    lq_sink *s;
    LQ_TRY(sink_new(ctx, f, cat, opts, &s));
    lq_sink_abandon(&s);
    return LQ_OK;
}

lq_status lq_sink_open(lq_ctx *ctx, const lq_format *f, const char *dir, const lq_catalog *cat, const lq_sink_opts *opts, lq_sink **out) {
    lq_sink *s;
    *out = NULL;
    LQ_TRY(sink_new(ctx, f, cat, opts, &s));
    lq_status st = (s->dir = lq_strdup(dir)) ? f->open(s) : lq_oom(ctx, strlen(dir));
    if (st) {
        lq_sink_abandon(&s);
        return lq_note(ctx, st, "%s", dir);
    }
    *out = s;
    return LQ_OK;
}

static lq_status claim(lq_sink *s, const lq_row *r, bool quantized) {
    size_t i = (size_t)(r - s->cat->rows);
    if (r->quantize != quantized)
        return lq_fail(s->ctx, LQ_ERR_INTERNAL, "'%s' was planned %s, but arrives %s", r->name, r->quantize ? "quantized" : "kept", quantized ? "quantized" : "kept");
    if (s->seen[i]) return lq_fail(s->ctx, LQ_ERR_INTERNAL, "'%s' arrives twice", r->name);
    s->seen[i] = 1;
    return LQ_OK;
}

static lq_status qtensor_fits(lq_ctx *ctx, const lq_row *r, const lq_qtensor *q) {
    if (q->rows != lq_row_rows(r) || q->cols != lq_row_cols(r))
        return lq_fail(ctx, LQ_ERR_INTERNAL, "shape %u x %u, planned %u x %u", q->rows, q->cols, lq_row_rows(r), lq_row_cols(r));
    if (!lq_scheme_eq(&q->sch, &r->scheme)) {
        char got[64], want[64];
        return lq_fail(ctx, LQ_ERR_INTERNAL, "scheme %s, planned %s", lq_scheme_name(&q->sch, got, sizeof got), lq_scheme_name(&r->scheme, want, sizeof want));
    }
    return lq_qtensor_check(ctx, q, LQ_ERR_QUALITY);
}

lq_status lq_sink_put(lq_sink *s, const lq_qtensor *q) {
    const lq_row *r = lq_catalog_find(s->cat, q->slot, LQ_PART_WEIGHT);
    if (!r)
        return lq_fail(s->ctx, LQ_ERR_INTERNAL, "no row for block %d role %u expert %d", (int)q->slot.block, q->slot.role, q->slot.expert);
    LQ_TRY(claim(s, r, true));
    lq_status st = qtensor_fits(s->ctx, r, q);
    if (!st) st = s->format->put(s, r, q);
    return st ? lq_note(s->ctx, st, "writing '%s'", r->name) : LQ_OK;
}

void lq_transpose(const void *data, size_t rows, size_t cols, size_t unit, void *out) {
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++) memcpy((char *)out + (j * rows + i) * unit, (const char *)data + (i * cols + j) * unit, unit);
}

static lq_status put_transposed(lq_sink *s, const lq_row *r, const char *data, size_t bytes) {
    char *turned = lq_alloc(bytes);
    if (!turned) return lq_oom(s->ctx, bytes);
    lq_transpose(data, lq_row_rows(r), lq_row_cols(r), lq_dtypes[r->out_dtype].bytes, turned);
    lq_status st = s->format->put_fp(s, r, turned, bytes);
    lq_free(turned);
    return st;
}

lq_status lq_sink_put_fp(lq_sink *s, const lq_row *r, const void *data, size_t bytes) {
    LQ_TRY(claim(s, r, false));
    uint64_t want = lq_row_elems(r) / lq_dtypes[r->out_dtype].block * lq_dtypes[r->out_dtype].bytes;
    lq_status st = bytes != want ? lq_fail(s->ctx, LQ_ERR_INTERNAL, "%zu bytes, expected %llu", bytes, (unsigned long long)want)
                   : r->transposed && !s->format->gguf ? put_transposed(s, r, data, bytes)
                                   : s->format->put_fp(s, r, data, bytes);
    return st ? lq_note(s->ctx, st, "writing '%s'", r->name) : LQ_OK;
}

lq_status lq_sink_sidecar(lq_sink *s, const char *name, const void *data, size_t n) {
    if (!lq_name_is_plain(name)) return lq_fail(s->ctx, LQ_ERR_FORMAT, "'%s' is no plain file name", name);
    return s->format->sidecar(s, name, data, n);
}

lq_status lq_sink_sync(lq_sink *s) { return s->format->sync(s); }

lq_status lq_sink_close(lq_sink **s) {
    lq_ctx *ctx = (*s)->ctx;
    lq_status st = LQ_OK;
    for (size_t i = 0; i < (*s)->cat->n && !st; i++)
        if (!(*s)->seen[i]) st = lq_fail(ctx, LQ_ERR_QUALITY, "'%s' was never written", (*s)->cat->rows[i].name);
    if (!st) st = (*s)->format->close(*s);
    if (!st) st = lq_dir_sync(ctx, (*s)->dir);
    lq_sink_abandon(s);
    return st;
}

/* -- config.json ----------------------------------------------------------------------------------------------------- */

static lq_status all_changes(lq_sink *s, json_t **out) {
    json_t *quant = NULL;
    *out = s->opts.config ? json_copy((json_t *)s->opts.config) : json_object();
    if (!*out) return lq_oom(s->ctx, 64);
    if (!s->format->quant_config) return LQ_OK;
    if (!(quant = s->format->quant_config(s)) || json_object_set_new(*out, "quantization_config", quant)) return lq_oom(s->ctx, 64);
    json_t *more = s->format->config ? s->format->config(s) : NULL;
    bool ok = !s->format->config || (more && !json_object_update(*out, more));
    json_decref(more);
    return ok ? LQ_OK : lq_oom(s->ctx, 64);
}

lq_status lq_sink_config(lq_sink *s, const char *text, size_t n) {
    json_t *doc = NULL, *changes = NULL;
    lq_buf out = {0};
    lq_status st = lq_json_parse(s->ctx, "config.json", text, n, &doc);
    if (st) return st;
    if (!json_is_object(doc)) {
        st = lq_fail(s->ctx, LQ_ERR_FORMAT, "config.json: not an object");
        goto done;
    }
    if (s->format->quant_config && json_object_get(doc, "quantization_config") && !json_object_get(s->opts.config, "quantization_config")) {
        st = lq_fail(s->ctx, LQ_ERR_UNSUPPORTED, "config.json: it has a quantization_config already; the input is quantized");
        goto done;
    }
    LQ_GO(all_changes(s, &changes));
    LQ_GO(lq_config_splice(s->ctx, text, n, doc, changes, &out));
    st = lq_sink_sidecar(s, "config.json", out.v, out.n);
done:
    lq_buf_free(&out);
    json_decref(changes);
    json_decref(doc);
    return st;
}
