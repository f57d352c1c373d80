/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The checkpoint, from the journal: sidecars, kept tensors, quantized linears, manifest; then read back. */
#include "quant/road.h"

#include "quant/manifest.h"
#include "quant/sidecars.h"

#include <string.h>

static lq_status put_linear(road *r, json_t *entry, const void *p, size_t n) {
    lq_qtensor q;
    lq_outcome o = lq_manifest_outcome(entry);
    r->fallbacks += o.fallback[0] != 0;
    if (o.err_h >= 0) {
        r->err_sum += o.err_h;
        r->err_n++;
    }
    if (json_array_append(r->modules, entry)) return lq_oom(r->ctx, 64);
    LQ_TRY(lq_qtensor_decode(r->ctx, p, n, &q));
    r->bytes_held += lq_qtensor_bytes(&q);
    r->bytes_packed += o.bytes_packed;
    r->zeros += o.zeros * q.rows * q.cols;
    lq_status st = lq_sink_put(r->sink, &q);
    lq_qtensor_free(&q);
    return st;
}

static lq_status put_kept(road *r, const lq_row *row) {
    uint64_t n = lq_row_elems(row), bytes = n / lq_dtypes[row->out_dtype].block * lq_dtypes[row->out_dtype].bytes;
    char *out = lq_alloc(bytes);
    float *x = NULL;
    lq_status st = out ? LQ_OK : lq_oom(r->ctx, bytes);
    if (!st && row->out_dtype == row->dtype) {
        st = lq_model_read_stored(r->ctx, r->model, row, out);
    } else if (!st) {
        x = lq_calloc(n, 4);
        st = x ? lq_model_read_f32(r->ctx, r->model, row, x) : lq_oom(r->ctx, 4 * n);
        if (!st) lq_dtype_encode(row->out_dtype, x, out, n);
    }
    if (!st) st = lq_sink_put_fp(r->sink, row, out, bytes);
    lq_free(x);
    lq_free(out);
    return st;
}

static lq_status note_folded(road *r, json_t *entry, const void *p, size_t n) {
    const lq_row *row = lq_unit_kept_row(r, entry);
    (void)p, (void)n;
    if (!row) return lq_fail(r->ctx, LQ_ERR_FORMAT, "%s: a unit does not fit the model", r->job.journal);
    r->changed[row - r->model->cat.rows] = 1;
    return json_array_append(r->folded, json_object_get(entry, "kept")) ? lq_oom(r->ctx, 64) : LQ_OK;
}

static lq_status put_folded(road *r, json_t *entry, const void *p, size_t n) { return lq_sink_put_fp(r->sink, lq_unit_kept_row(r, entry), p, n); }

static lq_status note_choice(road *r, json_t *entry, const void *p, size_t n) {
    (void)p, (void)n;
    return json_array_append(r->transforms, entry) ? lq_oom(r->ctx, 64) : LQ_OK;
}

/* Which kept tensors come from the journal instead of the source. */
static lq_status find_folded(road *r) {
    if (!r->changed) r->changed = lq_alloc(r->model->cat.n + 1);
    r->folded = json_array();
    r->transforms = json_array();
    if (!r->changed || !r->folded || !r->transforms) return lq_oom(r->ctx, r->model->cat.n);
    return lq_unit_each_done(r, &(lq_unit_reader){.kept = note_folded});
}

static json_t *manifest(road *r, json_t *changes) {
    json_t *cal = r->needs     ? lq_manifest_calibration(&r->rows, r->run->corpus_opts.seed)
                  : r->stats.n ? json_pack("{s:s, s:s, s:O}", "statistics", lq_path_base(r->run->opts.stats), "sha256", r->rows.hash, "of",
                                           json_object_get(r->stats.identity, "calibration"))
                               : json_null();
    json_t *changed = json_array();
    const char *key;
    json_t *v;
    json_object_foreach(changes, key, v) json_array_append_new(changed, json_string(key));
    if (r->plan.format->quant_config) json_array_append_new(changed, json_string("quantization_config"));
    json_t *m = json_pack("{s:i, s:s, s:O, s:O, s:o, s:o, s:O, s:o}", "schema", 1, "lquant", LQ_VERSION, "inputs", r->inputs, "options", r->options,
                     "calibration", cal, "config_changes", changed, "modules", r->modules, "kept", lq_manifest_kept(&r->model->cat));
    if (m && r->run->recipe.n_xforms && (json_object_set(m, "transforms", r->transforms) || json_object_set(m, "folded", r->folded))) {
        json_decref(m);
        return NULL;
    }
    return m;
}

lq_status lq_assemble(road *r) {
    json_t *meta = json_pack("{s:[s], s:b, s:b}", "quantizer", "lquant:" LQ_VERSION, "static_groups", 1, "true_sequential", r->needs != 0);
    json_t *damp = json_object_get(r->options, "damp-percent");
    if (meta && damp) json_object_set(meta, "damp_percent", damp);
    json_t *changes = lq_sidecars_changes(r->model, LQ_NONE);
    lq_sink_opts so = {.shard_size = r->run->opts.shard_size, .meta = meta, .config = changes, .gguf = r->gguf};
    lq_buf text = {0};
    lq_status st;
    r->modules = json_array();
    if (!meta || !changes || !r->modules) { st = lq_oom(r->ctx, 256); goto done; }
    LQ_GO(find_folded(r));
    LQ_GO(lq_job_clean(r->ctx, &r->job));
    lq_gguf_out_finish(r->gguf, &r->model->cat, -1);
    LQ_GO(lq_sink_open(r->ctx, r->plan.format, r->job.partial, &r->model->cat, &so, &r->sink));
    LQ_GO(lq_sidecars_write(r->ctx, r->src, r->model, r->sink));
    if (r->kv_max) LQ_GO(lq_sidecars_kv(r->ctx, r->kv_max, r->model->par.n_layers, r->sink));
    for (size_t i = 0; i < r->model->cat.n; i++)
        if (!r->model->cat.rows[i].quantize && !r->changed[i]) LQ_GO(put_kept(r, &r->model->cat.rows[i]));
    LQ_GO(lq_unit_each_done(r, &(lq_unit_reader){.linear = put_linear, .kept = put_folded, .choice = note_choice}));
    json_t *m = manifest(r, changes);
    if (!m) { st = lq_oom(r->ctx, 256); goto done; }
    if (!r->plan.format->ext) { /* a folder: the manifest also lists what was written */
        LQ_GO(lq_sink_close(&r->sink));
        json_t *outputs = lq_manifest_outputs(r->ctx, r->job.partial, &st);
        if (!st && json_object_set_new(m, "outputs", outputs)) st = lq_oom(r->ctx, 256);
    }
    if (!st) st = lq_json_dump(r->ctx, m, &text);
    json_decref(m);
    LQ_GO(st);
    if (r->sink) {
        LQ_GO(lq_sink_sidecar(r->sink, "lquant-manifest.json", text.v, text.n));
        LQ_GO(lq_sink_close(&r->sink));
    } else {
        char *path = lq_path_join(r->job.partial, "lquant-manifest.json");
        st = path ? lq_write_file(r->ctx, path, text.v, text.n) : lq_oom(r->ctx, 256);
        lq_free(path);
    }
done:
    lq_sink_abandon(&r->sink);
    lq_buf_free(&text);
    json_decref(meta);
    json_decref(changes);
    return st;
}

/* A matrix of floats comes back as an ordinary tensor. */
static lq_status compare_floats(road *r, const lq_qtensor *want, size_t i, bool *same) {
    const lq_entry *e = &r->back->entries[i];
    size_t row = (size_t)want->cols * want->sch.grid.bits / 8;
    *same = e->dtype == lq_grid_dtype(want->sch.grid.kind) && lq_entry_rows(e) == want->rows && lq_entry_cols(e) == want->cols;
    if (!*same) return LQ_OK;
    char *got = lq_alloc(row * want->rows);
    lq_status st = got ? lq_source_read(r->ctx, r->back, i, 0, want->rows, got) : lq_oom(r->ctx, row * want->rows);
    for (uint32_t k = 0; k < want->rows && !st; k++) *same &= !memcmp(got + k * row, want->codes + k * want->row_bytes, row);
    lq_free(got);
    return st;
}

/* The catalog row a linear's entry is about. */
static const lq_row *row_of(road *r, lq_slot slot) { return lq_catalog_find(&r->model->cat, slot, LQ_PART_WEIGHT); }

static lq_status compare_codes(road *r, const lq_qtensor *want, size_t i, bool *same) {
    lq_qtensor got;
    LQ_TRY(lq_source_read_q(r->ctx, r->back, i, &got));
    *same = lq_qtensor_eq(want, &got);
    lq_qtensor_free(&got);
    return LQ_OK;
}

/* What was written is read back by another code path and compared with the codes the method chose. */
static lq_status compare_linear(road *r, json_t *entry, const void *p, size_t n) {
    const char *module = json_string_value(json_object_get(entry, "name"));
    char *name = lq_strf("%s.weight", module ? module : "");
    bool same = true;
    lq_qtensor want = {0};
    lq_status st = name ? lq_qtensor_decode(r->ctx, p, n, &want) : lq_oom(r->ctx, 256);
    if (!st && r->gguf) {
        st = lq_gguf_compare(r, row_of(r, want.slot), &want, &same);
        goto done;
    }
    long i = st ? -1 : lq_source_find(r->back, name);
    if (!st && i < 0) st = lq_fail(r->ctx, LQ_ERR_QUALITY, "%s: is not in the written checkpoint", name);
    if (!st) st = r->back->entries[i].dtype != LQ_NONE ? compare_floats(r, &want, (size_t)i, &same) : compare_codes(r, &want, (size_t)i, &same);
done:
    if (!st && !same) st = lq_fail(r->ctx, LQ_ERR_QUALITY, "%s: reads back differently from what was written", name);
    lq_qtensor_free(&want);
    lq_free(name);
    return st;
}

static lq_status compare_kept(road *r, json_t *entry, const void *p, size_t n) {
    const lq_row *row = lq_unit_kept_row(r, entry);
    if (!row || row->ndim != 1) return LQ_OK; /* what a matrix looks like in a file is its format's business */
    bool same = true;
    if (r->gguf) {
        lq_status st = lq_gguf_compare_kept(r, row, p, n, &same);
        return st || same ? st : lq_fail(r->ctx, LQ_ERR_QUALITY, "%s: reads back differently from what was written", row->name);
    }
    long i = lq_source_find(r->back, row->name);
    if (i < 0) return lq_fail(r->ctx, LQ_ERR_QUALITY, "%s: is not in the written checkpoint", row->name);
    char *got = lq_alloc(n);
    lq_status st = got ? lq_source_read(r->ctx, r->back, (size_t)i, 0, row->shape[0], got) : lq_oom(r->ctx, n);
    if (!st && memcmp(got, p, n)) st = lq_fail(r->ctx, LQ_ERR_QUALITY, "%s: reads back differently from what was written", row->name);
    lq_free(got);
    return st;
}

char *lq_result_file(const road *r) { return r->plan.format->ext ? lq_strf("model%s", r->plan.format->ext) : NULL; }

lq_status lq_read_back(road *r) {
    char *file = lq_result_file(r), *path = file ? lq_path_join(r->job.partial, file) : lq_strdup(r->job.partial);
    lq_status st = path ? lq_source_open(r->ctx, path, &r->back) : lq_oom(r->ctx, 256);
    if (!st) st = lq_unit_each_done(r, &(lq_unit_reader){.linear = compare_linear, .kept = compare_kept});
    lq_source_free(&r->back);
    lq_free(path);
    lq_free(file);
    return st;
}
