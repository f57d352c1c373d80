/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* architecture.md 1, as calls. A unit of the journal is a block (calibrated methods; the head comes after the last block) or
 * one linear (data-free methods); its bytes: per linear, its manifest entry as JSON and its encoded qtensor. */
#define _DEFAULT_SOURCE
#include "quant/pipeline.h"

#include "core/progress.h"
#include "core/thread.h"
#include "quant/manifest.h"
#include "quant/sidecars.h"

#include <nettle/sha2.h>
#include <string.h>
#include <unistd.h>

const lq_opt lq_run_options[] = {
    {"format", NULL, LQ_OPT_STRING, offsetof(lq_run_opts, format), "NAME", NULL, NULL, 0, 0, 0, "gptq, lqt ... (lquant list formats); default: OUT's suffix, else gptq"},
    {"shard-size", "max-shard-size,ss", LQ_OPT_SIZE, offsetof(lq_run_opts, shard_size), "SIZE", "5GB", NULL, 0, 0, 0, "largest file of a checkpoint folder"},
    {"max-memory", NULL, LQ_OPT_SIZE, offsetof(lq_run_opts, max_memory), "SIZE", NULL, NULL, 0, 0, 0, "activations beyond it go to disk; default: a quarter of the machine's"},
    {"work-dir", "w", LQ_OPT_STRING, offsetof(lq_run_opts, work_dir), "DIR", NULL, NULL, 0, 0, 0, "where they go; default: TMPDIR or /tmp"},
    {"resume", NULL, LQ_OPT_CHOICE, offsetof(lq_run_opts, resume), NULL, "auto", "auto|never|only", 0, 0, 0, "continue an interrupted run"},
    {"overwrite", NULL, LQ_OPT_SET, offsetof(lq_run_opts, overwrite), NULL, NULL, NULL, 0, 0, 1, "replace OUT once the new one is complete"},
    {"max-fallback", NULL, LQ_OPT_REAL, offsetof(lq_run_opts, max_fallback), "PERCENT", "0.5", NULL, 0, 100, 0, "linears that may fall back before the run fails (exit 6)"},
    {"dry-run", NULL, LQ_OPT_SET, offsetof(lq_run_opts, dry_run), NULL, NULL, NULL, 0, 0, 1, "print the plan from headers and stop"},
    {"report", NULL, LQ_OPT_STRING, offsetof(lq_run_opts, report), "FILE", NULL, NULL, 0, 0, 0, "write the run's JSON report (times, peaks, every linear)"},
    {0}};

void lq_run_sets(lq_run *run, lq_optset *sets) {
    static const lq_opt none[] = {{0}};
    const lq_method *m = run->recipe.method;
    sets[0] = (lq_optset){m->opts ? m->opts : none, run->recipe.opts, m->name};
    sets[1] = (lq_optset){lq_plan_options, &run->plan_opts, "what"};
    sets[2] = (lq_optset){lq_corpus_option_table, &run->corpus_opts, "calibration"};
    sets[3] = (lq_optset){lq_run_options, &run->opts, "run"};
    sets[LQ_RUN_SETS] = (lq_optset){0};
}

typedef struct road {
    lq_ctx *ctx;
    lq_run *run;
    lq_source *src;
    lq_model *model;
    lq_plan plan;
    lq_rows rows;
    lq_job job;
    lq_sink *sink;
    lq_source *back;           /* the written checkpoint, read again */
    lq_cache *resid;
    uint64_t cache_budget;
    lq_buf unit;               /* the unit being built */
    json_t *inputs, *options, *modules;
    lq_progress bar;
    uint32_t fallbacks;
    double start, err_sum;
    uint32_t err_n;
} road;

/* ---- before any weight is touched ---- */

static lq_status choose_format(road *r, const lq_format **out) {
    const char *name = r->run->opts.format, *dot = strrchr(lq_path_base(r->run->out ? r->run->out : ""), '.');
    for (const lq_format *const *f = lq_formats; !name && *f && dot; f++)
        if ((*f)->ext && !strcmp((*f)->ext, dot)) name = (*f)->name;
    if (!name) name = r->run->plan_opts.asym ? "gptq_v2" : "gptq";
    if (!strcmp(name, "gptq") && r->run->plan_opts.asym) name = "gptq_v2"; /* v1 cannot hold a zero point of 0 */
    *out = lq_format_by_name(name);
    if (*out) return LQ_OK;
    return lq_fail(r->ctx, LQ_ERR_USAGE, "unknown format '%s'; lquant list formats prints the known ones", name);
}

static lq_status open_and_plan(road *r) {
    const lq_format *format;
    const lq_method *method = r->run->recipe.method;
    LQ_TRY(choose_format(r, &format));
    LQ_TRY(lq_source_open(r->ctx, r->run->in, &r->src));
    lq_log(r->ctx, LQ_LOG_INFO, "input %s: %s, %zu tensors", r->run->in, r->src->reader->what, r->src->n);
    LQ_TRY(lq_model_open(r->ctx, r->src, method->needs == 0, &r->model));
    LQ_TRY(lq_plan_make(r->ctx, &r->model->cat, &r->run->plan_opts, method, r->run->recipe.opts, format, &r->plan));
    lq_log(r->ctx, LQ_LOG_INFO, "plan: %s to format %s, %u linears at %.3f bits per weight, %u kept, %.1f MB -> %.1f MB", method->name, format->name,
           r->plan.n_quantized, lq_plan_bpw(&r->plan), r->plan.n_kept, (double)r->plan.bytes_source / 1e6,
           (double)(r->plan.bytes_quantized + r->plan.bytes_kept) / 1e6);
    return LQ_OK;
}

static lq_status gather_rows(road *r) {
    if (!r->plan.method->needs) {
        lq_log(r->ctx, LQ_LOG_INFO, "%s is data-free: no calibration text is used", r->plan.method->name);
        return LQ_OK;
    }
    lq_tokenizer *t = NULL;
    LQ_TRY(lq_tokenizer_open(r->ctx, r->src, &t));
    lq_status st = lq_corpus_build(r->ctx, t, r->src, &r->run->corpus_opts, r->model->par.max_ctx, r->model->par.vocab, &r->rows);
    lq_tokenizer_free(&t);
    return st;
}

static lq_status describe(road *r, char fingerprint[65]) {
    lq_status st;
    lq_buf text = {0};
    lq_optset sets[LQ_RUN_SETS + 1];
    lq_run_sets(r->run, sets);
    if (!r->plan.method->needs) sets[2] = (lq_optset){lq_run_options, &r->run->opts, NULL}; /* calibration decides nothing */
    r->inputs = lq_manifest_inputs(r->ctx, r->src, &st);
    if (st) return st;
    r->options = lq_opts_json(sets, "max-memory,work-dir,resume,overwrite,dry-run,report,group-size,format,max-fallback,file,save-tokens,nsamples,seqlen,seed");
    json_t *all = r->options ? json_pack("{s:s, s:O, s:O, s:s}", "lquant", LQ_VERSION, "inputs", r->inputs, "options", r->options, "calibration", r->rows.hash) : NULL;
    if (!all) return lq_oom(r->ctx, 256);
    json_object_set_new(r->options, "method", json_string(r->plan.method->name));
    json_object_set_new(r->options, "format", json_string(r->plan.format->name));
    json_object_set_new(r->options, "group-size", json_integer(r->plan.group));
    st = lq_json_dump(r->ctx, all, &text);
    json_decref(all);
    lq_sha *sha = st ? NULL : lq_sha_new();
    if (sha) {
        lq_sha_add(sha, text.v, text.n);
        lq_sha_end(&sha, fingerprint);
    } else if (!st) {
        st = lq_oom(r->ctx, 256);
    }
    lq_buf_free(&text);
    return st;
}

static lq_status check_disk(road *r) {
    char *dir = lq_strdup(r->run->out);
    char *slash = dir ? strrchr(dir, '/') : NULL;
    if (slash) slash[slash == dir] = 0;
    uint64_t have = lq_disk_free(slash ? dir : "."), want = 2 * r->plan.bytes_quantized + r->plan.bytes_kept;
    lq_free(dir);
    if (have >= want) return LQ_OK;
    return lq_fail(r->ctx, LQ_ERR_RESOURCE, "%s: about %.1f MB are needed, %.1f MB are free", r->run->out, (double)want / 1e6, (double)have / 1e6);
}

static lq_status check_memory(road *r) {
    uint64_t machine = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE), block = 0, k = 0;
    for (uint32_t b = 0; b < r->model->par.n_layers; b++)
        if (lq_model_block_bytes(r->model, (int32_t)b, LQ_LOAD_F32) > block) block = lq_model_block_bytes(r->model, (int32_t)b, LQ_LOAD_F32);
    for (size_t i = 0; i < r->model->cat.n; i++)
        if (r->model->cat.rows[i].quantize && lq_row_cols(&r->model->cat.rows[i]) > k) k = lq_row_cols(&r->model->cat.rows[i]);
    uint64_t need = block + 28 * k * k + (64u << 20), budget = r->run->opts.max_memory;
    r->cache_budget = machine / 4;
    if (!budget) return LQ_OK;
    if (budget < need)
        return lq_fail(r->ctx, LQ_ERR_RESOURCE, "--max-memory %llu: a block with its statistics takes %llu bytes", (unsigned long long)budget, (unsigned long long)need);
    r->cache_budget = budget - need;
    return LQ_OK;
}

/* ---- one linear ---- */

static bool add_frame(lq_buf *b, const void *p, uint64_t n) { return lq_buf_add(b, &n, sizeof n) && lq_buf_add(b, p, n); }

static lq_status record(road *r, const lq_row *row, const lq_qtensor *q, const lq_outcome *o) {
    lq_buf bytes = {0};
    json_t *m = lq_manifest_module(row, o);
    char *text = m ? json_dumps(m, JSON_COMPACT) : NULL;
    json_decref(m);
    lq_status st = text ? lq_qtensor_encode(r->ctx, q, &bytes) : lq_oom(r->ctx, 256);
    if (!st && !(add_frame(&r->unit, text, strlen(text)) && add_frame(&r->unit, bytes.v, bytes.n))) st = lq_oom(r->ctx, bytes.n);
    lq_buf_free(&bytes);
    free(text);
    return st;
}

struct decode { const lq_kernels *k; const lq_qtensor *q; float *w; };
static void decode_slice(void *arg, size_t i) {
    struct decode *d = arg;
    uint32_t r0 = (uint32_t)i * 32, nr = d->q->rows - r0 < 32 ? d->q->rows - r0 : 32;
    d->k->dequant(d->q, r0, nr, d->w + (size_t)r0 * d->q->cols);
}

static lq_status quantize_linear(road *r, const lq_row *row, float *w, const lq_stats *stats) {
    const lq_method *m = r->plan.method;
    lq_weights in = {.slot = row->slot, .name = row->name, .rows = lq_row_rows(row), .cols = lq_row_cols(row), .w = w};
    lq_outcome o = {.method = m->name, .err_h = -1, .err_h_rtn = -1, .err_w = -1, .damp = -1};
    lq_qtensor q = {0};
    LQ_TRY(lq_check_cancel(r->ctx));
    lq_status st = m->quantize(r->ctx, r->run->recipe.opts, &in, &row->scheme, stats, &q, &o);
    if (st) return lq_note(r->ctx, st, "%s", row->name);
    q.slot = row->slot;
    struct decode d = {r->model->k, &q, w};
    lq_parallel_for((q.rows + 31) / 32, decode_slice, &d); /* the rest of the block runs on the quantized weights */
    st = record(r, row, &q, &o);
    lq_qtensor_free(&q);
    if (o.fallback[0]) lq_log(r->ctx, LQ_LOG_WARN, "%s: fell back to %s: %s", row->name, o.method, o.fallback);
    lq_log(r->ctx, LQ_LOG_DEBUG, "%s: %s rel_err %.5f (rtn %.5f) damp %.3g", row->name, o.method, o.err_h, o.err_h_rtn, o.damp);
    return st;
}

/* ---- units ---- */

/* Walks the frames of a unit: entry (JSON) and bytes of each linear. */
static lq_status each_linear(road *r, const lq_buf *unit, lq_status (*fn)(road *, json_t *entry, const void *p, size_t n)) {
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

static lq_status finish_unit(road *r, uint32_t unit) {
    lq_status st = lq_job_store(r->ctx, &r->job, unit, &r->unit);
    lq_buf_free(&r->unit);
    return st;
}

static double row_cost(const lq_row *row) { return row->quantize ? (double)lq_row_elems(row) : 0; }

static lq_status data_free(road *r) {
    for (size_t i = 0; i < r->model->cat.n; i++) {
        const lq_row *row = &r->model->cat.rows[i];
        if (!row->quantize) continue;
        if (!lq_job_has(&r->job, (uint32_t)i)) {
            float *w = lq_calloc(lq_row_elems(row), 4);
            lq_status st = w ? lq_model_read_f32(r->ctx, r->model, row, w) : lq_oom(r->ctx, 4 * lq_row_elems(row));
            if (!st) st = quantize_linear(r, row, w, NULL);
            lq_free(w);
            LQ_TRY(st);
            LQ_TRY(finish_unit(r, (uint32_t)i));
        }
        lq_progress_step(&r->bar, row_cost(row), "%s", row->name);
    }
    return LQ_OK;
}

static lq_status on_stage(void *user, int32_t block, const lq_stage *stage, const lq_stats *stats) {
    road *r = user;
    (void)block;
    for (uint32_t i = 0; i < stage->n; i++)
        if (stage->lin[i]->row->quantize) LQ_TRY(quantize_linear(r, stage->lin[i]->row, stage->lin[i]->w, stats));
    return LQ_OK;
}

static lq_status replay_linear(road *r, json_t *entry, const void *p, size_t n) {
    (void)entry;
    lq_qtensor q;
    LQ_TRY(lq_qtensor_decode(r->ctx, p, n, &q));
    lq_layer *layer = q.slot.block >= 0 && (uint32_t)q.slot.block < r->model->par.n_layers ? &r->model->layers[q.slot.block] : &r->model->outer;
    lq_linear *lin = q.slot.role < LQ_R_N ? &layer->lin[q.slot.role] : NULL;
    lq_status st = LQ_OK;
    if (!lin || !lin->w || lin->rows != q.rows || lin->cols != q.cols) st = lq_fail(r->ctx, LQ_ERR_FORMAT, "%s: a unit does not fit the model", r->job.journal);
    else {
        struct decode d = {r->model->k, &q, lin->w};
        lq_parallel_for((q.rows + 31) / 32, decode_slice, &d);
    }
    lq_qtensor_free(&q);
    return st;
}

/* A finished block of an interrupted run: its codes take the place of the weights, only the forward is run again. */
static lq_status replay_block(road *r, uint32_t b) {
    lq_buf unit;
    LQ_TRY(lq_job_load(r->ctx, &r->job, b, &unit));
    lq_status st = each_linear(r, &unit, replay_linear);
    lq_buf_free(&unit);
    return st;
}

static double block_cost(const road *r, int32_t b) {
    double cost = 0;
    for (size_t i = 0; i < r->model->cat.n; i++)
        if (r->model->cat.rows[i].slot.block == b) cost += row_cost(&r->model->cat.rows[i]);
    return cost;
}

static lq_status run_block(road *r, uint32_t b) {
    bool done = lq_job_has(&r->job, b);
    lq_stage_hook hook = {.needs = done ? 0 : r->plan.method->needs, .on_stage = done ? NULL : on_stage, .user = r};
    LQ_TRY(lq_check_cancel(r->ctx));
    lq_status st = lq_model_load(r->ctx, r->model, (int32_t)b, LQ_LOAD_F32);
    if (!st && done) st = replay_block(r, b);
    if (!st) st = lq_block_calibrate(r->ctx, r->model, (int32_t)b, r->resid, r->rows.len, &hook, r->cache_budget / 2, r->run->opts.work_dir);
    lq_model_unload(r->model, (int32_t)b);
    LQ_TRY(st);
    if (!done) LQ_TRY(finish_unit(r, b));
    lq_progress_step(&r->bar, block_cost(r, (int32_t)b), "%u/%u%s", b + 1, r->model->par.n_layers, done ? " (done before)" : "");
    return LQ_OK;
}

static lq_status start_stream(road *r) {
    uint32_t d = r->model->par.hidden;
    size_t T = r->rows.seqlen;
    LQ_TRY(lq_cache_new(r->ctx, r->rows.n, r->cache_budget / 2, r->run->opts.work_dir, &r->resid));
    LQ_TRY(lq_model_load(r->ctx, r->model, -1, LQ_LOAD_STORED));
    float *x = lq_calloc(T * d, 4);
    lq_status st = x ? LQ_OK : lq_oom(r->ctx, T * d * 4);
    for (size_t i = 0; i < r->rows.n && !st; i++) {
        for (size_t t = 0; t < r->rows.len[i]; t++) lq_embed(r->model, r->rows.ids[i * T + t], x + t * d);
        st = lq_cache_put(r->ctx, r->resid, i, x, (size_t)r->rows.len[i] * d);
    }
    lq_free(x);
    lq_model_unload(r->model, -1);
    return st;
}

/* The head reads the final-normed stream; it goes last, through the same path. */
static lq_status run_head(road *r) {
    const lq_row *row = lq_catalog_find(&r->model->cat, (lq_slot){.block = -1, .role = LQ_R_HEAD, .expert = -1}, LQ_PART_WEIGHT);
    uint32_t unit = r->model->par.n_layers, d = r->model->par.hidden;
    if (!row || !row->quantize || lq_job_has(&r->job, unit)) return LQ_OK;
    size_t T = r->rows.seqlen;
    lq_stats stats = {0};
    float *x = lq_calloc(T * d, 4), *w = lq_calloc(lq_row_elems(row), 4);
    lq_status st = x && w ? lq_model_load(r->ctx, r->model, -1, LQ_LOAD_STORED) : lq_oom(r->ctx, 4 * lq_row_elems(row));
    if (!st) st = lq_stats_init(r->ctx, &stats, r->plan.method->needs, d);
    for (size_t i = 0; i < r->rows.n && !st; i++) {
        uint32_t len = r->rows.len[i];
        st = lq_cache_get(r->ctx, r->resid, i, x, (size_t)len * d);
        for (size_t t = 0; t < len; t++) r->model->k->rmsnorm(x + t * d, r->model->outer.norm[LQ_R_FINAL_NORM], r->model->par.norm_eps, d, x + t * d);
        if (!st) st = lq_stats_add(r->ctx, &stats, x, len);
    }
    if (!st) st = lq_model_read_f32(r->ctx, r->model, row, w);
    if (!st) st = quantize_linear(r, row, w, &stats);
    lq_stats_free(&stats);
    lq_model_unload(r->model, -1);
    lq_free(x);
    lq_free(w);
    return st ? st : finish_unit(r, unit);
}

static lq_status calibrated(road *r) {
    LQ_TRY(start_stream(r));
    for (uint32_t b = 0; b < r->model->par.n_layers; b++) {
        lq_status st = run_block(r, b);
        if (st) return lq_note(r->ctx, st, "block %u", b);
    }
    LQ_TRY(run_head(r));
    if (lq_cache_spilled(r->resid)) lq_log(r->ctx, LQ_LOG_INFO, "activations: %.1f MB were kept on disk", (double)lq_cache_spilled(r->resid) / 1e6);
    lq_cache_free(&r->resid);
    return LQ_OK;
}

/* ---- writing and reading back ---- */

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
    lq_status st = lq_sink_put(r->sink, &q);
    lq_qtensor_free(&q);
    return st;
}

static lq_status each_unit(road *r, lq_status (*fn)(road *, json_t *, const void *, size_t)) {
    uint32_t units = r->plan.method->needs ? r->model->par.n_layers + 1 : (uint32_t)r->model->cat.n;
    for (uint32_t u = 0; u < units; u++) {
        if (!lq_job_has(&r->job, u)) continue;
        lq_buf unit;
        LQ_TRY(lq_job_load(r->ctx, &r->job, u, &unit));
        lq_status st = each_linear(r, &unit, fn);
        lq_buf_free(&unit);
        LQ_TRY(st);
    }
    return LQ_OK;
}

static lq_status put_kept(road *r, const lq_row *row) {
    uint64_t n = lq_row_elems(row), bytes = n * lq_dtypes[row->out_dtype].bytes;
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

static json_t *manifest(road *r) {
    json_t *cal = r->plan.method->needs ? lq_manifest_calibration(&r->rows, r->run->corpus_opts.seed) : json_null();
    return json_pack("{s:i, s:s, s:O, s:O, s:o, s:[s], s:O, s:o}", "schema", 1, "lquant", LQ_VERSION, "inputs", r->inputs, "options", r->options,
                     "calibration", cal, "config_changes", "quantization_config", "modules", r->modules, "kept", lq_manifest_kept(&r->model->cat));
}

static lq_status assemble(road *r) {
    json_t *meta = json_pack("{s:[s], s:b, s:b}", "quantizer", "lquant:" LQ_VERSION, "static_groups", 1, "true_sequential", 1);
    json_t *damp = json_object_get(r->options, "damp-percent");
    if (meta && damp) json_object_set(meta, "damp_percent", damp);
    lq_sink_opts so = {.shard_size = r->run->opts.shard_size, .meta = meta};
    lq_buf text = {0};
    lq_status st;
    r->modules = json_array();
    if (!meta || !r->modules) { st = lq_oom(r->ctx, 256); goto done; }
    LQ_GO(lq_job_clean(r->ctx, &r->job));
    LQ_GO(lq_sink_open(r->ctx, r->plan.format, r->job.partial, &r->model->cat, &so, &r->sink));
    LQ_GO(lq_sidecars_write(r->ctx, r->src, r->model, r->sink));
    for (size_t i = 0; i < r->model->cat.n; i++)
        if (!r->model->cat.rows[i].quantize) LQ_GO(put_kept(r, &r->model->cat.rows[i]));
    LQ_GO(each_unit(r, put_linear));
    json_t *m = manifest(r);
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
    return st;
}

/* What was written is read back by another code path and compared with the codes the method chose. */
static lq_status compare_linear(road *r, json_t *entry, const void *p, size_t n) {
    const char *module = json_string_value(json_object_get(entry, "name"));
    char *name = lq_strf("%s.weight", module ? module : "");
    lq_qtensor want = {0}, got = {0};
    lq_status st = name ? lq_qtensor_decode(r->ctx, p, n, &want) : lq_oom(r->ctx, 256);
    long i = st ? -1 : lq_source_find(r->back, name);
    if (!st && i < 0) st = lq_fail(r->ctx, LQ_ERR_QUALITY, "%s: is not in the written checkpoint", name);
    if (!st) st = lq_source_read_q(r->ctx, r->back, (size_t)i, &got);
    if (!st && !lq_qtensor_eq(&want, &got)) st = lq_fail(r->ctx, LQ_ERR_QUALITY, "%s: reads back differently from what was written", name);
    lq_qtensor_free(&want);
    lq_qtensor_free(&got);
    lq_free(name);
    return st;
}

static char *result_file(const road *r) { return r->plan.format->ext ? lq_strf("model%s", r->plan.format->ext) : NULL; }

static lq_status read_back(road *r) {
    char *file = result_file(r), *path = file ? lq_path_join(r->job.partial, file) : lq_strdup(r->job.partial);
    lq_status st = path ? lq_source_open(r->ctx, path, &r->back) : lq_oom(r->ctx, 256);
    if (!st) st = each_unit(r, compare_linear);
    lq_source_free(&r->back);
    lq_free(path);
    lq_free(file);
    return st;
}

static lq_status check_quota(road *r) {
    double share = 100.0 * r->fallbacks / r->plan.n_quantized;
    if (share <= r->run->opts.max_fallback) return LQ_OK;
    return lq_fail(r->ctx, LQ_ERR_QUALITY, "%u of %u linears fell back (%.1f %%, --max-fallback %.1f); the report says why", r->fallbacks, r->plan.n_quantized,
                   share, r->run->opts.max_fallback);
}

static json_t *report(road *r, lq_status st) {
    json_t *v = json_pack("{s:i, s:s, s:s, s:s, s:f, s:I, s:f, s:I, s:I, s:I, s:f, s:b}", "schema", 1, "status", lq_status_text(st), "in", r->run->in, "out",
                          r->run->out ? r->run->out : "", "seconds", lq_now() - r->start, "peak_memory", (json_int_t)lq_peak_rss(), "bits_per_weight",
                          lq_plan_bpw(&r->plan), "bytes_quantized", (json_int_t)r->plan.bytes_quantized, "bytes_kept", (json_int_t)r->plan.bytes_kept,
                          "fallbacks", (json_int_t)r->fallbacks, "mean_rel_err", r->err_n ? r->err_sum / r->err_n : 0.0, "resumed", r->job.resumed);
    if (!v) return NULL;
    if (r->options) json_object_set(v, "options", r->options);
    if (r->inputs) json_object_set(v, "inputs", r->inputs);
    if (r->rows.n) json_object_set_new(v, "calibration", lq_manifest_calibration(&r->rows, r->run->corpus_opts.seed));
    if (r->modules) json_object_set(v, "modules", r->modules);
    if (r->model) json_object_set_new(v, "kept", lq_manifest_kept(&r->model->cat));
    return v;
}

static lq_status save_report(road *r, json_t *v) {
    if (!r->run->opts.report || !v) return LQ_OK;
    lq_buf text;
    LQ_TRY(lq_json_dump(r->ctx, v, &text));
    lq_status st = lq_remove_tree(r->ctx, r->run->opts.report);
    if (!st) st = lq_write_file(r->ctx, r->run->opts.report, text.v, text.n);
    lq_buf_free(&text);
    return st;
}

static lq_status work(road *r) {
    char fingerprint[65];
    LQ_TRY(check_memory(r));
    LQ_TRY(check_disk(r));
    LQ_TRY(gather_rows(r));
    LQ_TRY(describe(r, fingerprint));
    LQ_TRY(lq_job_open(r->ctx, &r->job, r->run->in, r->run->out, fingerprint, (lq_resume)r->run->opts.resume, r->run->opts.overwrite));
    if (r->job.resumed) lq_log(r->ctx, LQ_LOG_INFO, "continuing the run in %s", r->job.partial);
    r->bar = lq_progress_start(r->ctx, r->plan.method->needs ? "block" : "linear", (double)r->plan.weights);
    lq_status st = r->plan.method->needs ? calibrated(r) : data_free(r);
    lq_progress_end(&r->bar);
    LQ_TRY(st);
    LQ_TRY(assemble(r));
    LQ_TRY(read_back(r));
    LQ_TRY(check_quota(r));
    char *file = result_file(r);
    st = lq_job_finish(r->ctx, &r->job, file);
    lq_free(file);
    return st;
}

static void leave(road *r) {
    lq_sink_abandon(&r->sink);
    lq_cache_free(&r->resid);
    lq_buf_free(&r->unit);
    lq_rows_free(&r->rows);
    lq_job_close(&r->job);
    lq_model_free(&r->model);
    lq_source_free(&r->src);
    json_decref(r->inputs);
    json_decref(r->options);
    json_decref(r->modules);
}

lq_status lq_pipeline_run(lq_ctx *ctx, lq_run *run, json_t **out) {
    road r = {.ctx = ctx, .run = run, .start = lq_now()};
    *out = NULL;
    lq_status st = open_and_plan(&r);
    if (!st && run->on_plan) run->on_plan(run->user, &r.plan);
    if (!st && run->opts.dry_run) {
        *out = report(&r, st);
        leave(&r);
        return LQ_OK;
    }
    if (!st) st = work(&r);
    if (st) lq_job_fail(ctx, &r.job, st);
    *out = report(&r, st);
    lq_status saved = st ? LQ_OK : save_report(&r, *out);
    if (!st && r.fallbacks) lq_log(ctx, LQ_LOG_WARN, "%u linears fell back; see the manifest", r.fallbacks);
    leave(&r);
    return st ? st : saved;
}
