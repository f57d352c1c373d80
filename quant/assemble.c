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

/* The step of E4M3 keys or values; a block that saw nothing gets 1. */
static lq_status put_kv(road *r, const lq_row *row) {
    float most = r->kv_max[2 * (size_t)row->slot.block + (row->slot.role == LQ_R_V_SCALE)], step = most > 0 ? most / 448 : 1;
    return lq_sink_put_fp(r->sink, row, &step, sizeof step);
}

static lq_status note_folded(road *r, json_t *entry, const void *p, size_t n) {
    const lq_row *row = lq_unit_kept_row(r, entry);
    (void)p, (void)n;
    if (!row) return lq_fail(r->ctx, LQ_ERR_FORMAT, "%s: a unit does not fit the model", r->job.journal);
    r->changed[row - r->model->cat.rows] = 1;
    return json_array_append(r->folded, json_object_get(entry, "kept")) ? lq_oom(r->ctx, 64) : LQ_OK;
}

static lq_status put_folded(road *r, json_t *entry, const void *p, size_t bytes) {
    const lq_row *row = lq_unit_kept_row(r, entry);
    lq_dtype was = r->planned[row - r->model->cat.rows];
    if (row->out_dtype == was) return lq_sink_put_fp(r->sink, row, p, bytes);
    uint64_t n = lq_row_elems(row);
    float *x = lq_calloc(n, 4);
    void *out = lq_calloc(n, lq_dtypes[row->out_dtype].bytes);
    lq_status st = x && out && lq_dtypes[was].block == 1 && bytes == n * lq_dtypes[was].bytes ? LQ_OK : lq_oom(r->ctx, 4 * n);
    if (!st) lq_dtype_decode(was, p, x, n);
    if (!st) lq_dtype_encode(row->out_dtype, x, out, n);
    if (!st) st = lq_sink_put_fp(r->sink, row, out, n * lq_dtypes[row->out_dtype].bytes);
    lq_free(x);
    lq_free(out);
    return st;
}

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

static json_t *calibration(const road *r) {
    if (r->needs) return lq_manifest_calibration(&r->rows, r->run->corpus_opts.seed);
    if (r->imatrix.n) return json_pack("{s:s, s:s}", "importance matrix", lq_path_base(r->run->opts.stats), "sha256", r->rows.hash);
    if (!r->stats.n) return json_null();
    return json_pack("{s:s, s:s, s:O}", "statistics", lq_path_base(r->run->opts.stats), "sha256", r->rows.hash, "of", json_object_get(r->stats.identity, "calibration"));
}

static json_t *options_of(const road *r, const lq_format *format) {
    json_t *options = json_copy(r->options); /* the same bytes whatever else the run writes */
    if (options) json_object_set_new(options, "format", json_string(format->name));
    return options;
}

/* What is known before the first tensor: a GGUF's keys come first. */
static json_t *made_how(const road *r, const lq_format *format) {
    return json_pack("{s:i, s:s, s:O, s:o, s:o}", "schema", 1, "lquant", LQ_VERSION, "inputs", r->inputs, "options", options_of(r, format), "calibration", calibration(r));
}

static json_t *manifest(road *r, const lq_format *format, json_t *changes) {
    json_t *changed = json_array();
    const char *key;
    json_t *v;
    json_object_foreach(changes, key, v) json_array_append_new(changed, json_string(key));
    if (format->quant_config) json_array_append_new(changed, json_string("quantization_config"));
    json_t *m = json_pack("{s:i, s:s, s:O, s:o, s:o, s:o, s:O, s:o}", "schema", 1, "lquant", LQ_VERSION, "inputs", r->inputs, "options", options_of(r, format),
                     "calibration", calibration(r), "config_changes", changed, "modules", r->modules, "kept", lq_manifest_kept(&r->model->cat));
    if (m && r->run->recipe.n_xforms && (json_object_set(m, "transforms", r->transforms) || json_object_set(m, "folded", r->folded))) {
        json_decref(m);
        return NULL;
    }
    return m;
}

/* As llama-quantize records it. */
static void note_imatrix(road *r) {
    lq_gguf_put_str(r->gguf, "quantize.imatrix.file", lq_path_base(r->run->opts.stats));
    if (r->imatrix.dataset) lq_gguf_put_str(r->gguf, "quantize.imatrix.dataset", r->imatrix.dataset);
    lq_gguf_put_u32(r->gguf, "quantize.imatrix.entries_count", (uint32_t)r->imatrix.n);
    lq_gguf_put_u32(r->gguf, "quantize.imatrix.chunks_count", r->imatrix.chunks);
}

/* Of one output: what is counted while the units go by. */
static lq_status count_anew(road *r) {
    r->fallbacks = r->err_n = 0;
    r->err_sum = r->zeros = 0;
    r->bytes_held = r->bytes_packed = 0;
    json_decref(r->modules);
    json_decref(r->folded);
    json_decref(r->transforms);
    r->folded = r->transforms = NULL;
    return (r->modules = json_array()) ? find_folded(r) : lq_oom(r->ctx, 64);
}

static json_t *meta_of(const road *r) {
    json_t *meta = json_pack("{s:[s], s:b, s:b}", "quantizer", "lquant:" LQ_VERSION, "static_groups", 1, "true_sequential", r->needs != 0);
    json_t *damp = json_object_get(r->options, "damp-percent");
    if (meta && damp) json_object_set(meta, "damp_percent", damp);
    return meta;
}

static lq_status put_tensors(road *r) {
    for (size_t i = 0; i < r->model->cat.n; i++) {
        const lq_row *row = &r->model->cat.rows[i];
        if (!row->quantize && !r->changed[i]) LQ_TRY(r->kv_max && lq_role_is_kv(row->slot.role) ? put_kv(r, row) : put_kept(r, row));
    }
    return lq_unit_each_done(r, &(lq_unit_reader){.linear = put_linear, .kept = put_folded, .choice = note_choice});
}

/* In a file it is a sidecar; in a folder it comes last and also lists what was written. */
static lq_status put_manifest(road *r, const lq_format *format, const char *dir, json_t *changes) {
    json_t *m = manifest(r, format, changes), *outputs;
    lq_buf text = {0};
    char *path = NULL;
    lq_status st = m ? LQ_OK : lq_oom(r->ctx, 256);
    if (!format->ext && !st) {
        LQ_GO(lq_sink_close(&r->sink));
        outputs = lq_manifest_outputs(r->ctx, dir, &st);
        if (!st && json_object_set_new(m, "outputs", outputs)) st = lq_oom(r->ctx, 256);
    }
    LQ_GO(st);
    LQ_GO(lq_json_dump(r->ctx, m, &text));
    if (format->ext) {
        LQ_GO(lq_sink_sidecar(r->sink, "lquant-manifest.json", text.v, text.n));
        st = lq_sink_close(&r->sink);
    } else {
        path = lq_path_join(dir, "lquant-manifest.json");
        st = path ? lq_write_file(r->ctx, path, text.v, text.n) : lq_oom(r->ctx, 256);
    }
done:
    lq_free(path);
    lq_buf_free(&text);
    json_decref(m);
    return st;
}

static lq_status write_one(road *r, const lq_format *format, const char *dir) {
    json_t *meta = meta_of(r), *changes = lq_sidecars_changes(r->model, LQ_NONE);
    lq_sink_opts so = {.shard_size = r->run->opts.shard_size, .meta = meta, .config = changes, .gguf = format->gguf ? r->gguf : NULL};
    if (format->gguf && r->imatrix.n) note_imatrix(r);
    lq_status st = meta && changes ? count_anew(r) : lq_oom(r->ctx, 256);
    if (!st && format->gguf) st = lq_gguf_out_manifest(r->ctx, r->gguf, made_how(r, format));
    if (st) goto done;
    if (format->gguf) lq_gguf_out_finish(r->gguf, &r->model->cat, r->plan.file_type);
    LQ_GO(lq_sink_open(r->ctx, format, dir, &r->model->cat, &so, &r->sink));
    LQ_GO(lq_sidecars_write(r->ctx, r->src, r->model, r->sink));
    LQ_GO(put_tensors(r));
    st = put_manifest(r, format, dir, changes);
done:
    lq_sink_abandon(&r->sink);
    json_decref(meta);
    json_decref(changes);
    return st;
}

/* The catalog row a linear's entry is about. */
static const lq_row *row_of(road *r, lq_slot slot) { return lq_catalog_find(&r->model->cat, slot, LQ_PART_WEIGHT); }

/* A matrix of floats comes back as an ordinary tensor, turned where its name is stored so. */
static lq_status compare_floats(road *r, const lq_qtensor *want, size_t i, bool *same) {
    const lq_entry *e = &r->back->entries[i];
    const lq_row *row = row_of(r, want->slot);
    size_t unit = want->sch.grid.bits / 8, width = want->cols * unit, bytes = width * want->rows;
    bool turn = row && row->transposed;
    *same = e->dtype == lq_grid_dtype(want->sch.grid.kind) && lq_entry_rows(e) == (turn ? want->cols : want->rows) && lq_entry_cols(e) == (turn ? want->rows : want->cols);
    if (!*same) return LQ_OK;
    char *got = lq_alloc(bytes), *back = turn ? lq_alloc(bytes) : NULL;
    lq_status st = got && (back || !turn) ? lq_source_read(r->ctx, r->back, i, 0, lq_entry_rows(e), got) : lq_oom(r->ctx, bytes);
    if (!st && turn) lq_transpose(got, want->cols, want->rows, unit, back);
    for (uint32_t k = 0; k < want->rows && !st; k++) *same &= !memcmp((turn ? back : got) + k * width, want->codes + k * want->row_bytes, width);
    lq_free(back);
    lq_free(got);
    return st;
}

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
    if (!st && r->writing->gguf) {
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
    if (row->out_dtype != r->planned[row - r->model->cat.rows]) return LQ_OK;
    if (r->writing->gguf) {
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

static lq_status read_back(road *r, const char *path) {
    lq_status st = lq_source_open(r->ctx, path, &r->back);
    if (!st) st = lq_unit_each_done(r, &(lq_unit_reader){.linear = compare_linear, .kept = compare_kept});
    lq_source_free(&r->back);
    return st;
}

/* Types of kept tensors in the output that is written next. */
static void set_types(road *r, const lq_format *format) {
    for (size_t i = 0; i < r->model->cat.n; i++) {
        lq_row *row = &r->model->cat.rows[i];
        row->out_dtype = r->planned[i];
        if (format && format != r->plan.format && format->kept && !row->quantize) row->out_dtype = format->kept(row, r->planned[i]);
    }
}

static lq_status one_output(road *r, size_t i) {
    char *dir = lq_outputs_dir(&r->outs, i, &r->job), *path = dir ? lq_outputs_path(&r->outs, i, dir) : NULL;
    r->writing = r->outs.format[i];
    set_types(r, r->writing);
    lq_status st = path ? write_one(r, r->writing, dir) : lq_oom(r->ctx, 256);
    if (!st) st = read_back(r, path);
    lq_free(dir);
    lq_free(path);
    return st && r->outs.many ? lq_note(r->ctx, st, "format %s", r->writing->name) : st;
}

static lq_status note_types(road *r) {
    if (!r->planned && !(r->planned = LQ_NEWN(lq_dtype, r->model->cat.n + 1))) return lq_oom(r->ctx, r->model->cat.n);
    for (size_t i = 0; i < r->model->cat.n; i++) r->planned[i] = r->model->cat.rows[i].out_dtype;
    return LQ_OK;
}

lq_status lq_assemble_check(road *r) {
    lq_status st = note_types(r);
    for (size_t i = 0; i < r->outs.n && !st; i++) {
        const lq_format *f = r->outs.format[i];
        set_types(r, f);
        st = lq_sink_check(r->ctx, f, &r->model->cat, &(lq_sink_opts){.gguf = f->gguf ? r->gguf : NULL});
        if (st && r->outs.many) lq_note(r->ctx, st, "format %s", f->name);
    }
    if (r->planned) set_types(r, NULL);
    return st;
}

lq_status lq_assemble(road *r) {
    LQ_TRY(lq_outputs_begin(r->ctx, &r->outs, &r->job));
    LQ_TRY(note_types(r));
    lq_status st = LQ_OK;
    for (size_t i = 0; i < r->outs.n && !st; i++) st = one_output(r, i);
    set_types(r, NULL);
    return st;
}
