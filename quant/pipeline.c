/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The road as calls: open, plan, check resources, gather rows, describe the job, stream, assemble, read back, rename. */
#define _DEFAULT_SOURCE
#include "quant/road.h"

#include "calib/rotate.h"
#include "quant/manifest.h"
#include "quant/statistics.h"

#include <string.h>
#include <unistd.h>

const lq_opt lq_run_options[] = {
    {"format", NULL, LQ_OPT_STRING, offsetof(lq_run_opts, format), "F[,F...]", NULL, NULL, 0, 0, 0, "one of `lquant list formats`; several go to OUT/F each; default: OUT's suffix"},
    {"pre", NULL, LQ_OPT_STRING, offsetof(lq_run_opts, pre), "NAME", NULL, NULL, 0, 0, 0, "~gguf: llama.cpp's pre-tokenizer when the tokenizer's is not recognised"},
    {"override-kv", NULL, LQ_OPT_LIST, offsetof(lq_run_opts, override_kv), "KEY=TYPE:VALUE", NULL, NULL, 0, 0, 0, "~gguf: another value of a key; TYPE: int, float, bool, str; repeatable"},
    {"include-weights", NULL, LQ_OPT_LIST, offsetof(lq_run_opts, include), "NAME", NULL, NULL, 0, 0, 0, "~an importance matrix is used for tensors of such GGUF names alone; repeatable"},
    {"exclude-weights", NULL, LQ_OPT_LIST, offsetof(lq_run_opts, exclude), "NAME", NULL, NULL, 0, 0, 0, "~... for all but these"},
    {"target", NULL, LQ_OPT_LIST, offsetof(lq_run_opts, target), "RUNTIME[,tp=N]", NULL, NULL, 0, 0, 0,
     "refuse what that runtime will not load (lquant list targets); repeatable"},
    {"shard-size", "max-shard-size,ss", LQ_OPT_SIZE, offsetof(lq_run_opts, shard_size), "SIZE", "5GB", NULL, 0, 0, 0, "~largest file of a checkpoint folder"},
    {"max-memory", NULL, LQ_OPT_SIZE, offsetof(lq_run_opts, max_memory), "SIZE", NULL, NULL, 0, 0, 0, "~activations beyond it go to disk; default: a quarter of the machine's"},
    {"work-dir", "w", LQ_OPT_STRING, offsetof(lq_run_opts, work_dir), "DIR", NULL, NULL, 0, 0, 0, "~where they go; default: TMPDIR or /tmp"},
    {"stats", "imatrix,hessians", LQ_OPT_STRING, offsetof(lq_run_opts, stats), "FILE", NULL, NULL, 0, 0, 0, "statistics of `lquant calibrate` instead of running the model"},
    {"resume", NULL, LQ_OPT_CHOICE, offsetof(lq_run_opts, resume), NULL, "auto", "auto|never|only", 0, 0, 0, "~continue an interrupted run"},
    {"overwrite", NULL, LQ_OPT_SET, offsetof(lq_run_opts, overwrite), NULL, NULL, NULL, 0, 0, 1, "replace OUT once the new one is complete"},
    {"fisher", NULL, LQ_OPT_STRING, offsetof(lq_run_opts, fisher), "FILE", NULL, NULL, 0, 0, 0, "~squeezellm: sensitivities of every weight (safetensors) instead of calibration"},
    {"max-fallback", NULL, LQ_OPT_REAL, offsetof(lq_run_opts, max_fallback), "PERCENT", "0.5", NULL, 0, 100, 0, "~linears that may fall back before the run fails (exit 6)"},
    {"rotate", NULL, LQ_OPT_CHOICE, offsetof(lq_run_opts, rotate), NULL, "none", LQ_ROTATION_CHOICES, 0, 0, 0, "spread outliers over all channels; the function stays the same"},
    {"rotate-seed", NULL, LQ_OPT_INT, offsetof(lq_run_opts, rotate_seed), "N", "0", NULL, 0, 1e15, 0, "~another random rotation"},
    {"expert-prior", NULL, LQ_OPT_REAL, offsetof(lq_run_opts, experts.prior), "X", "1", NULL, 0, 1000, 0,
     "~weight of the layer's statistics in those of an expert that few tokens reach; 0: none"},
    {"expert-prior-tokens", NULL, LQ_OPT_INT, offsetof(lq_run_opts, experts.prior_tokens), "N", "0", NULL, 0, 1 << 30, 0,
     "~an expert with N tokens has half that weight; 0: as many as it has inputs"},
    {"expert-weights", NULL, LQ_OPT_CHOICE, offsetof(lq_run_opts, experts.flat), NULL, "gate", "gate|flat", 0, 0, 0,
     "~tokens of an expert count by their gate probability squared, or alike"},
    {"kv-scales", NULL, LQ_OPT_SET, offsetof(lq_run_opts, kv_scales), NULL, NULL, NULL, 0, 0, 1, "~store the calibrated scales of keys and values (eval --kv int8 --kv-scales)"},
    {"target-correction", NULL, LQ_OPT_SET, offsetof(lq_run_opts, target_correction), NULL, NULL, NULL, 0, 0, 1, "~aim at what the unquantized model puts out, not at the weights; any method"},
    {"true-sequential", NULL, LQ_OPT_SET, offsetof(lq_run_opts, true_sequential), NULL, NULL, NULL, 0, 0, 1, NULL},
    {"dry-run", NULL, LQ_OPT_SET, offsetof(lq_run_opts, dry_run), NULL, NULL, NULL, 0, 0, 1, "print the plan from headers and stop"},
    {"report", NULL, LQ_OPT_STRING, offsetof(lq_run_opts, report), "FILE", NULL, NULL, 0, 0, 0, "~write the run's JSON report (times, peaks, every linear)"},
    {0}};

uint32_t lq_run_sets(lq_run *run, lq_optset sets[LQ_RUN_SETS + 1]) {
    uint32_t n = lq_recipe_sets(&run->recipe, sets);
    sets[n] = (lq_optset){lq_plan_options, &run->plan_opts, "what"};
    sets[n + 1] = (lq_optset){lq_corpus_option_table, &run->corpus_opts, "calibration"};
    sets[n + 2] = (lq_optset){lq_run_options, &run->opts, "run"};
    sets[n + 3] = (lq_optset){0};
    return n;
}

/* ---- before any weight is touched ---- */

/* The recipe's own, gptq where it can hold the type, an ordinary folder for floats, else our own. */
static lq_status natural_format(road *r, const char **name) {
    const char *natural[] = {lq_recipe_format(&r->run->recipe), "gptq", "safetensors"};
    lq_scheme s;
    LQ_TRY(lq_plan_base(r->ctx, &r->run->plan_opts, r->run->recipe.method, r->run->recipe.opts, &s));
    for (size_t i = 0; i < sizeof natural / sizeof *natural && !*name; i++) {
        const lq_format *f = natural[i] ? lq_format_by_name(natural[i]) : NULL;
        if (f && !f->accept(NULL, &s, 1024, 1024 * (s.scale.tile_c ? s.scale.tile_c : 1))) *name = natural[i];
    }
    if (!*name) lq_log(r->ctx, LQ_LOG_INFO, "format lqt: no format of the method's holds this type");
    if (!*name) *name = "lqt";
    return LQ_OK;
}

/* Another format than the natural one where a target does not load that. */
static lq_status format_for_targets(road *r, const char **name) {
    lq_scheme s;
    if (!r->targets.n) return LQ_OK;
    LQ_TRY(lq_plan_base(r->ctx, &r->run->plan_opts, r->run->recipe.method, r->run->recipe.opts, &s));
    const char *better = lq_legal_choose(*name, &s, &r->targets);
    for (uint32_t g = 64; !better && g >= 32 && !r->run->plan_opts.group && s.scale.tile_r == 1 && s.scale.tile_c; g /= 2) { /* lq_legal_plan will choose it */
        s.scale.tile_c = g;
        if (s.zero_kind) s.zero.tile_c = g;
        better = lq_legal_choose(*name, &s, &r->targets);
    }
    if (better && strcmp(better, *name)) lq_log(r->ctx, LQ_LOG_INFO, "format %s: the target does not load %s", better, *name);
    if (better) *name = better;
    return LQ_OK;
}

static lq_status choose_format(road *r, const lq_format **out) {
    const char *name = NULL;
    LQ_TRY(lq_outputs_parse(r->ctx, r->run->opts.format, r->run->out, &r->outs));
    if (!r->run->opts.format) {
        if (r->outs.n) name = r->outs.format[0]->name;
        else LQ_TRY(natural_format(r, &name));
        LQ_TRY(format_for_targets(r, &name));
        lq_outputs_one(&r->outs, lq_format_by_name(name));
    }
    for (size_t i = 1; i < r->outs.n && r->outs.format[0] && r->outs.format[0]->kept; i++) { /* one that keeps the source's types comes first */
        const lq_format *f = r->outs.format[i];
        r->outs.format[i] = r->outs.format[0];
        r->outs.format[0] = f;
    }
    *out = r->outs.format[0];
    r->run->plan_opts.also = r->outs.format + 1;
    return *out ? LQ_OK : lq_fail(r->ctx, LQ_ERR_USAGE, "unknown format '%s'; lquant list formats prints the known ones", name);
}

/* Static activations take their step from calibration, whatever the method. */
static lq_status static_needs(road *r) {
    for (size_t i = 0; i < r->model->cat.n; i++) {
        const lq_row *row = &r->model->cat.rows[i];
        if (row->quantize && row->scheme.act.kind == LQ_ACT_STATIC) r->needs |= LQ_NEED_ABSMAX;
    }
    if (r->needs && !r->model->arch) return lq_fail(r->ctx, LQ_ERR_UNSUPPORTED, "static activations need calibration, and this architecture cannot be run");
    return LQ_OK;
}

static lq_status rotate(road *r, const lq_format *format) {
    const lq_run *run = r->run;
    int choice = run->opts.rotate;
    lq_verdict v = {0};
    if (choice == LQ_ROTATION_AUTO) {
        if (run->opts.stats) return lq_fail(r->ctx, LQ_ERR_USAGE, "--rotate auto with --stats: statistics are of one rotation; say which");
        if (run->opts.dry_run) return lq_log(r->ctx, LQ_LOG_INFO, "--rotate auto: decided by the run, the plan is of the model as it is"), LQ_OK;
        lq_rotation_judge j = {&run->plan_opts, run->recipe.method, run->recipe.opts, format, &run->corpus_opts, (uint64_t)256 << 20, run->opts.work_dir};
        LQ_TRY(lq_rotation_judged(r->ctx, r->model, run->opts.rotate_seed, &j, &v));
        choice = v.choice;
    }
    if (choice) LQ_TRY(lq_rotation_set(r->ctx, r->model, choice, run->opts.rotate_seed));
    if (!run->opts.rotate) return LQ_OK;
    const lq_rotation *is = r->model->rotation;
    r->rotation = json_pack("{s:b, s:b, s:I}", "stream", is && is->what & LQ_ROTATE_STREAM, "heads", is && is->what & LQ_ROTATE_HEADS, "seed", (json_int_t)run->opts.rotate_seed);
    if (!r->rotation) return lq_oom(r->ctx, 64);
    if (v.linears) json_object_set_new(r->rotation, "loss", json_real(v.plain));
    if (v.linears) json_object_set_new(r->rotation, "loss_rotated", json_real(v.rotated));
    return LQ_OK;
}

static lq_status plan_for_targets(road *r) {
    const lq_run *run = r->run;
    lq_model *m = r->model;
    for (size_t i = r->outs.n; i-- > 0;) { /* the first one's plan stands */
        const lq_format *format = r->outs.format[i];
        lq_legal_case c = {&m->cat, format->name, m->cat.model_type ? m->cat.model_type : "", m->par.n_heads, m->par.n_kv_heads, lq_params_short_window(&m->par)};
        lq_legal_run legal = {&run->plan_opts, run->recipe.method, run->recipe.opts, format, &r->targets};
        LQ_TRY(lq_legal_plan(r->ctx, &legal, &c, &r->plan));
        if (!r->targets.n) lq_legal_notes(r->ctx, &c);
    }
    return LQ_OK;
}

static lq_status plan_kv(road *r) {
    if (!r->run->opts.kv_scales) return LQ_OK;
    for (size_t i = 0; i < r->outs.n; i++)
        if (!r->outs.format[i]->kv_scales)
            return lq_fail(r->ctx, LQ_ERR_UNSUPPORTED, "--kv-scales: format %s has no place for scales of keys and values; compressed-tensors and lqt have", r->outs.format[i]->name);
    return lq_model_add_kv(r->ctx, r->model);
}

/* A method that ruins most models is asked before work starts. */
static lq_status try_first(road *r) {
    const lq_method *m = r->plan.method;
    const lq_row *row = NULL;
    for (size_t i = 0; i < r->model->cat.n && !row; i++)
        if (r->model->cat.rows[i].quantize) row = &r->model->cat.rows[i];
    if (!m->tries_first || !row || r->model->par.master) return LQ_OK;
    lq_qtensor q;
    lq_outcome o;
    float *w = LQ_NEWN(float, lq_row_elems(row));
    lq_status st = w ? lq_model_read_f32(r->ctx, r->model, row, w) : lq_oom(r->ctx, 4 * lq_row_elems(row));
    lq_weights in = {.slot = row->slot, .name = row->name, .rows = lq_row_rows(row), .cols = lq_row_cols(row), .w = w};
    if (!st && !(st = m->quantize(r->ctx, r->run->recipe.opts, &in, &row->scheme, NULL, &q, &o))) lq_qtensor_free(&q);
    lq_free(w);
    return st;
}

/* llama-quantize's --include-weights, --exclude-weights. */
static lq_status select_weights(road *r) {
    const lq_strlist *in = &r->run->opts.include, *out = &r->run->opts.exclude;
    if (!in->n && !out->n) return LQ_OK;
    if (in->n && out->n) return lq_fail(r->ctx, LQ_ERR_USAGE, "--include-weights and --exclude-weights: one of them");
    if (!r->imatrix.n) return lq_fail(r->ctx, LQ_ERR_USAGE, "--%s-weights: of an importance matrix, and there is none (--imatrix FILE)", in->n ? "include" : "exclude");
    LQ_TRY(lq_imatrix_keep(r->ctx, &r->imatrix, in->n ? in->v : out->v, in->n ? in->n : out->n, in->n > 0));
    return r->imatrix.n ? LQ_OK : lq_fail(r->ctx, LQ_ERR_USAGE, "--%s-weights: nothing of the importance matrix is left", in->n ? "include" : "exclude");
}

static lq_status open_and_plan(road *r) {
    const lq_format *format;
    const lq_method *method = r->run->recipe.method;
    r->needs = lq_method_needs(method, r->run->recipe.opts);
    if (r->run->recipe.n_xforms) r->needs |= LQ_NEED_GRAM; /* a run that calibrates anyway measures what it does */
    r->run->plan_opts.recipe_type = lq_recipe_type(&r->run->recipe);
    if (r->run->opts.kv_scales) r->needs |= LQ_NEED_ABSMAX;
    if (r->run->opts.target_correction) r->needs |= LQ_NEED_GRAM | LQ_NEED_CROSS;
    LQ_TRY(lq_fisher_open(r));
    LQ_TRY(lq_targets_parse(r->ctx, &r->run->opts.target, &r->targets));
    LQ_TRY(choose_format(r, &format));
    LQ_TRY(lq_source_open(r->ctx, r->run->in, &r->src));
    lq_log(r->ctx, LQ_LOG_INFO, "input %s: %s, %zu tensors", r->run->in, r->src->reader->what, r->src->n);
    LQ_TRY(lq_model_open(r->ctx, r->src, r->needs == 0 && !r->run->opts.stats, &r->model));
    r->model->expert_opts = r->run->opts.experts;
    LQ_TRY(plan_kv(r));
    if (r->run->opts.stats && lq_imatrix_is(r->run->opts.stats)) LQ_TRY(lq_imatrix_read(r->ctx, r->run->opts.stats, &r->imatrix));
    LQ_TRY(select_weights(r));
    if (r->imatrix.n && r->run->opts.rotate) return lq_fail(r->ctx, LQ_ERR_USAGE, "--rotate: an importance matrix is of the model as it is");
    r->run->plan_opts.imatrix = r->imatrix.n != 0;
    LQ_TRY(rotate(r, format));
    LQ_TRY(lq_xforms_accept(r));
    LQ_TRY(plan_for_targets(r));
    LQ_TRY(try_first(r));
    for (size_t i = 0; i < r->outs.n && !r->gguf; i++) LQ_TRY(lq_gguf_out_make(r->ctx, r->outs.format[i], r->model, &(lq_gguf_opts){.pre = r->run->opts.pre, .override_kv = &r->run->opts.override_kv}, &r->gguf));
    LQ_TRY(lq_xforms_check(r));
    LQ_TRY(static_needs(r));
    LQ_TRY(lq_stored_open(r));
    LQ_TRY(lq_assemble_check(r));
    r->by_block = r->needs || (r->stats.n && r->run->recipe.n_xforms);
    lq_log(r->ctx, LQ_LOG_INFO, "plan: %s to format %s, %u linears at %.3f bits per weight, %u kept, %.1f MB -> %.1f MB", method->name, format->name,
           r->plan.n_quantized, lq_plan_bpw(&r->plan), r->plan.n_kept, (double)r->plan.bytes_source / 1e6,
           (double)(r->plan.bytes_quantized + r->plan.bytes_kept) / 1e6);
    return LQ_OK;
}

static lq_status gather_rows(road *r) {
    if (r->imatrix.n) {
        lq_log(r->ctx, LQ_LOG_INFO, "importance matrix %s: %zu entries, %u chunks", r->run->opts.stats, r->imatrix.n, r->imatrix.chunks);
        return LQ_OK;
    }
    if (r->stats.n) {
        lq_log(r->ctx, LQ_LOG_INFO, "statistics of %s: no calibration text is used", r->run->opts.stats);
        return LQ_OK;
    }
    if (!r->needs) {
        lq_log(r->ctx, LQ_LOG_INFO, "%s is data-free: no calibration text is used", r->plan.method->name);
        return LQ_OK;
    }
    lq_tokenizer *t = NULL;
    LQ_TRY(lq_tokenizer_open(r->ctx, r->src, &t));
    lq_status st = lq_corpus_build(r->ctx, t, r->src, &r->run->corpus_opts, r->model->par.max_ctx, r->model->par.vocab, &r->rows);
    lq_tokenizer_free(&t);
    return st;
}

static lq_status describe_fisher(road *r) {
    char hex[65];
    LQ_TRY(lq_sha_file(r->ctx, r->run->opts.fisher, hex));
    return json_object_set_new(r->options, "fisher-sha256", json_string(hex)) ? lq_oom(r->ctx, 128) : LQ_OK;
}

static json_t *target_names(const road *r) {
    json_t *list = json_array();
    for (size_t i = 0; i < r->run->opts.target.n; i++) json_array_append_new(list, json_string(r->run->opts.target.v[i]));
    return list;
}

/* What becomes of every tensor, whatever decided it. */
static lq_status add_plan(road *r, lq_buf *text) {
    bool ok = true;
    for (size_t i = 0; i < r->model->cat.n && ok; i++) {
        const lq_row *row = &r->model->cat.rows[i];
        char scheme[64];
        ok = lq_buf_addf(text, "%s %s\n", row->name, row->quantize ? lq_scheme_name(&row->scheme, scheme, sizeof scheme) : lq_dtypes[row->out_dtype].name);
    }
    return ok ? LQ_OK : lq_oom(r->ctx, text->n);
}

static lq_status describe(road *r, char fingerprint[65]) {
    lq_status st;
    lq_buf text = {0};
    lq_optset sets[LQ_RUN_SETS + 1];
    uint32_t n = lq_run_sets(r->run, sets);
    if (!r->needs) sets[n + 1] = (lq_optset){lq_run_options, &r->run->opts, NULL}; /* calibration decides nothing */
    r->inputs = lq_manifest_inputs(r->ctx, r->src, &st);
    if (st) return st;
    if (r->stats.n) LQ_TRY(lq_statistics_fit(r->ctx, &r->stats, r->model, r->inputs));
    if (r->stats.n || r->imatrix.n) LQ_TRY(lq_sha_file(r->ctx, r->run->opts.stats, r->rows.hash));
    for (uint32_t i = 1; i < n; i++) sets[i] = sets[n]; /* a transform's options stand with its name */
    r->options = lq_opts_json(sets, "max-memory,target,work-dir,resume,overwrite,dry-run,true-sequential,report,stats,group-size,format,max-fallback,fisher,file,save-tokens,nsamples,seqlen,seed,chat-template");
    if (!r->options) return lq_oom(r->ctx, 256);
    if (n > 1 && json_object_set_new(r->options, "recipe", lq_recipe_json(&r->run->recipe))) return lq_oom(r->ctx, 256);
    json_object_set_new(r->options, "method", json_string(r->plan.method->name));
    if (r->rotation) json_object_set(r->options, "rotation", r->rotation);
    json_object_set_new(r->options, "format", json_string(r->outs.many ? r->run->opts.format : r->plan.format->name));
    json_object_set_new(r->options, "group-size", json_integer(r->plan.group));
    if (r->targets.n && r->run->plan_opts.keep_unfit) json_object_set_new(r->options, "target", target_names(r)); /* it decides what is kept */
    json_t *all = json_pack("{s:s, s:O, s:O, s:s}", "lquant", LQ_VERSION, "inputs", r->inputs, "options", r->options, "calibration", r->rows.hash);
    if (!all) return lq_oom(r->ctx, 256);
    if (r->fisher) st = describe_fisher(r);
    if (!st) st = lq_json_dump(r->ctx, all, &text);
    if (!st) st = add_plan(r, &text);
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
    uint64_t have = lq_disk_free(slash ? dir : "."), want = (1 + r->outs.n) * r->plan.bytes_quantized + r->outs.n * r->plan.bytes_kept;
    lq_free(dir);
    if (have >= want) return LQ_OK;
    return lq_fail(r->ctx, LQ_ERR_RESOURCE, "%s: about %.1f MB are needed, %.1f MB are free", r->run->out, (double)want / 1e6, (double)have / 1e6);
}

static lq_status check_memory(road *r) {
    uint64_t machine = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE), block = 0, k = 0, largest = 0;
    for (uint32_t b = 0; b < r->model->par.n_layers; b++)
        if (lq_model_block_bytes(r->model, (int32_t)b, LQ_LOAD_F32) > block) block = lq_model_block_bytes(r->model, (int32_t)b, LQ_LOAD_F32);
    for (size_t i = 0; i < r->model->cat.n; i++) {
        const lq_row *row = &r->model->cat.rows[i];
        if (row->quantize && lq_row_cols(row) > k) k = lq_row_cols(row);
        if (row->quantize && lq_row_elems(row) > largest) largest = lq_row_elems(row);
    }
    uint64_t need = block + 16 * k * k + (64u << 20) + lq_experts_bytes(r->model, r->needs), budget = r->run->opts.max_memory;
    if (r->needs & LQ_NEED_CROSS) need += 20 * k * k + 32 * k * k; /* statistics: a triangle and two squares more; the correction's four squares */
    if (r->run->recipe.n_xforms) need += 16 * largest + 4ull * LQ_SAMPLES * k; /* a search's copies of one linear, sampled tokens */
    r->cache_budget = machine / 4;
    if (!budget) return LQ_OK;
    if (budget < need)
        return lq_fail(r->ctx, LQ_ERR_RESOURCE, "--max-memory %llu: a block with its statistics takes %llu bytes", (unsigned long long)budget, (unsigned long long)need);
    r->cache_budget = budget - need;
    return LQ_OK;
}

static lq_status check_quota(road *r) {
    double share = 100.0 * r->fallbacks / r->plan.n_quantized;
    if (share <= r->run->opts.max_fallback) return LQ_OK;
    return lq_fail(r->ctx, LQ_ERR_QUALITY, "%u of %u linears fell back (%.1f %%, --max-fallback %.1f); the report says why", r->fallbacks, r->plan.n_quantized,
                   share, r->run->opts.max_fallback);
}

/* Zeros in a dense store cost what other codes cost. */
static json_t *pruning(const road *r, uint64_t bytes) {
    double share = r->plan.weights ? r->zeros / (double)r->plan.weights : 0;
    lq_log(r->ctx, LQ_LOG_INFO, "%.1f %% of the weights are 0; the file saves nothing by them, a store without them would take %.1f MB instead of %.1f MB", 100 * share,
           (double)r->bytes_packed / 1e6, (double)bytes / 1e6);
    return json_pack("{s:f, s:i, s:I}", "zeros", share, "bytes_saved", 0, "bytes_packed", (json_int_t)r->bytes_packed);
}

static json_t *report(road *r, lq_status st) {
    uint64_t bytes = r->bytes_held ? r->bytes_held : r->plan.bytes_quantized; /* the plan's figure allows for all the sparse values there may be */
    json_t *v = json_pack("{s:i, s:s, s:s, s:s, s:f, s:I, s:f, s:I, s:I, s:I, s:f, s:b}", "schema", 1, "status", lq_status_text(st), "in", r->run->in, "out",
                          r->run->out ? r->run->out : "", "seconds", lq_now() - r->start, "peak_memory", (json_int_t)lq_peak_rss(), "bits_per_weight",
                          r->plan.weights ? 8.0 * (double)bytes / (double)r->plan.weights : 0.0, "bytes_quantized", (json_int_t)bytes, "bytes_kept", (json_int_t)r->plan.bytes_kept,
                          "fallbacks", (json_int_t)r->fallbacks, "mean_rel_err", r->err_n ? r->err_sum / r->err_n : 0.0, "resumed", r->job.resumed);
    if (!v) return NULL;
    if (r->options) json_object_set(v, "options", r->options);
    if (r->inputs) json_object_set(v, "inputs", r->inputs);
    if (r->bytes_packed) json_object_set_new(v, "pruning", pruning(r, bytes));
    if (r->rows.n) json_object_set_new(v, "calibration", lq_manifest_calibration(&r->rows, r->run->corpus_opts.seed));
    if (r->rotation) json_object_set(v, "rotation", r->rotation);
    if (r->modules) json_object_set(v, "modules", r->modules);
    if (json_array_size(r->transforms)) json_object_set(v, "transforms", r->transforms);
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
    LQ_TRY(lq_stream_run(r));
    LQ_TRY(lq_assemble(r));
    LQ_TRY(check_quota(r));
    return lq_outputs_finish(r->ctx, &r->outs, &r->job);
}

static void leave(road *r) {
    lq_sink_abandon(&r->sink);
    lq_gguf_meta_free(&r->gguf);
    lq_cache_free(&r->resid);
    lq_cache_free(&r->twin);
    lq_free(r->kv_max);
    lq_buf_free(&r->unit);
    lq_rows_free(&r->rows);
    lq_stored_forget(r);
    lq_stats_free(&r->item);
    lq_stats_close(&r->stats);
    lq_imatrix_free(&r->imatrix);
    lq_job_close(&r->job);
    lq_model_free(&r->model);
    lq_source_free(&r->src);
    lq_source_free(&r->fisher);
    json_decref(r->inputs);
    json_decref(r->rotation);
    json_decref(r->options);
    json_decref(r->modules);
    json_decref(r->transforms);
    json_decref(r->folded);
    lq_free(r->changed);
    lq_free(r->planned);
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
