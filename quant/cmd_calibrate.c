/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* lquant calibrate: statistics of a model's activations into a file. lquant merge: several such files into one. */
#include "calib/rotate.h"
#include "core/verb.h"
#include "quant/gather.h"
#include "quant/importance.h"
#include "quant/manifest.h"
#include "quant/pipeline.h"
#include "quant/statistics.h"

#include <string.h>
#include <unistd.h>

enum { MERGE_MAX = 4096 };

typedef struct args {
    lq_common common;
    lq_corpus_opts corpus;
    const char *output, *work_dir;
    int hessians, samples, overwrite, rotate;
    int64_t rotate_seed;
    uint64_t max_memory;
} args;

static const lq_opt options[] = {
    {"output", "o", LQ_OPT_STRING, offsetof(args, output), "STATS", NULL, NULL, 0, 0, 0, "the file to write; NAME.gguf, NAME.dat: llama.cpp's importance matrix"},
    {"hessians", NULL, LQ_OPT_SET, offsetof(args, hessians), NULL, NULL, NULL, 0, 0, 1, "with the Gram matrices gptq and others need: 4 k^2 bytes per input of k columns"},
    {"samples", NULL, LQ_OPT_SET, offsetof(args, samples), NULL, NULL, NULL, 0, 0, 1, "tokens' activations too, for smoothquant's search: 4096 k bytes per k columns"},
    {"rotate", NULL, LQ_OPT_CHOICE, offsetof(args, rotate), NULL, "none", LQ_ROTATION_FIXED, 0, 0, 0, "statistics of the model rotated so"},
    {"rotate-seed", NULL, LQ_OPT_INT, offsetof(args, rotate_seed), "N", "0", NULL, 0, 1e15, 0, "another random rotation"},
    {"max-memory", NULL, LQ_OPT_SIZE, offsetof(args, max_memory), "SIZE", NULL, NULL, 0, 0, 0, "activations beyond it go to disk; default: a quarter of the machine's"},
    {"work-dir", "w", LQ_OPT_STRING, offsetof(args, work_dir), "DIR", NULL, NULL, 0, 0, 0, "where they go; default: TMPDIR or /tmp"},
    {"overwrite", NULL, LQ_OPT_SET, offsetof(args, overwrite), NULL, NULL, NULL, 0, 0, 1, "replace STATS once the new file is complete"},
    {0}};

typedef struct collect { lq_ctx *ctx; const lq_model *m; lq_stats_writer *w; } collect;

static lq_status on_stage(void *user, const lq_stage *stage, const lq_stats *stats) {
    collect *c = user;
    char name[256];
    const lq_row *leader = lq_statistics_leader(&c->m->cat, stage->lin[0]->row);
    return leader ? lq_stats_put(c->ctx, c->w, lq_row_module(leader, name, sizeof name), stats) : LQ_OK;
}

static lq_status list_items(lq_ctx *ctx, const lq_model *m, lq_stats_item **out, size_t *n) {
    char module[256];
    *n = 0;
    lq_stats_item *items = *out = LQ_NEWN(lq_stats_item, m->cat.n + 1);
    if (!items) return lq_oom(ctx, m->cat.n * sizeof *items);
    for (size_t i = 0; i < m->cat.n; i++) {
        const lq_row *row = &m->cat.rows[i];
        if (lq_statistics_leader(&m->cat, row) != row) continue;
        items[*n] = (lq_stats_item){lq_strdup(lq_row_module(row, module, sizeof module)), lq_row_cols(row)};
        if (!items[(*n)++].name) return lq_oom(ctx, sizeof module);
    }
    return LQ_OK;
}

static lq_status write_stats(lq_ctx *ctx, const args *a, lq_source *src, lq_model *m, const lq_rows *rows, const char *dir) {
    lq_stats_item *items = NULL;
    size_t n = 0;
    json_t *inputs = NULL, *identity = NULL;
    collect c = {.ctx = ctx, .m = m};
    uint64_t machine = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    lq_status st;
    inputs = lq_manifest_inputs(ctx, src, &st);
    if (!st && !(identity = lq_statistics_identity(m, inputs, rows, a->corpus.seed))) st = lq_oom(ctx, 256);
    if (!st) st = list_items(ctx, m, &items, &n);
    unsigned extra = (a->hessians ? LQ_NEED_GRAM : 0) | (a->samples ? LQ_NEED_SAMPLES : 0);
    if (!st) st = lq_stats_create(ctx, dir, items, n, extra, identity, &c.w);
    lq_gather g = {.rows = rows, .needs = LQ_NEED_ABSMAX | LQ_NEED_SQUARES | extra, .work_dir = a->work_dir,
                   .cache_budget = a->max_memory ? a->max_memory : machine / 4, .on_stage = on_stage, .user = &c};
    if (!st) st = lq_gather_run(ctx, m, &g);
    if (!st) st = lq_stats_finish(ctx, &c.w);
    lq_stats_abandon(&c.w);
    for (size_t i = 0; items && i < n; i++) lq_free((char *)items[i].name);
    lq_free(items);
    json_decref(inputs);
    json_decref(identity);
    return st;
}

/* llama.cpp's form. */
static lq_status write_imatrix(lq_ctx *ctx, const args *a, lq_model *m, const lq_rows *rows, const char *dir, const char *name) {
    uint64_t machine = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    lq_imatrix im = {0};
    char *path = lq_path_join(dir, name);
    if (a->hessians || a->samples)
        return lq_free(path), lq_fail(ctx, LQ_ERR_USAGE, "--%s: llama.cpp's importance matrix has diagonals only; name STATS without .gguf or .dat", a->hessians ? "hessians" : "samples");
    lq_status st = path ? lq_importance_gather(ctx, m, rows, a->max_memory ? a->max_memory : machine / 4, a->work_dir, &im) : lq_oom(ctx, 256);
    if (!st) im.dataset = rows->source;
    if (!st) st = lq_imatrix_write(ctx, path, &im);
    lq_imatrix_free(&im);
    lq_free(path);
    return st;
}

static lq_status into_file(lq_ctx *ctx, lq_job *job, const char *name, lq_status st) {
    if (!st) return lq_job_finish(ctx, job, name);
    lq_ctx quiet = {0};
    if (job->partial) lq_remove_tree(&quiet, job->partial);
    return st;
}

static lq_status calibrate(lq_ctx *ctx, const args *a, const char *in, const char *out) {
    lq_source *src = NULL;
    lq_model *m = NULL;
    lq_tokenizer *t = NULL;
    lq_rows rows = {0};
    lq_job job = {0};
    double start = lq_now();
    lq_status st;
    LQ_GO(lq_source_open(ctx, in, &src));
    LQ_GO(lq_model_open(ctx, src, false, &m));
    if (a->rotate) LQ_GO(lq_rotation_set(ctx, m, a->rotate, a->rotate_seed));
    LQ_GO(lq_tokenizer_open(ctx, src, &t));
    LQ_GO(lq_corpus_build(ctx, t, src, &a->corpus, m->par.max_ctx, m->par.vocab, &rows));
    LQ_GO(lq_job_open(ctx, &job, in, out, "calibrate", LQ_RESUME_NEVER, a->overwrite));
    const char *llama = lq_importance_form(out);
    LQ_GO(into_file(ctx, &job, llama ? llama : "model.safetensors", llama ? write_imatrix(ctx, a, m, &rows, job.partial, llama) : write_stats(ctx, a, src, m, &rows, job.partial)));
    if (a->common.json) printf("{\"schema\": 1, \"out\": \"%s\", \"rows\": %zu, \"seqlen\": %zu, \"hessians\": %s, \"sha256\": \"%s\"}\n", lq_path_base(out), rows.n, rows.seqlen, a->hessians ? "true" : "false", rows.hash);
    else printf("%s: statistics of %zu rows of %zu tokens%s, %.1f s\n", out, rows.n, rows.seqlen, a->hessians ? " with Hessians" : "", lq_now() - start);
done:
    lq_job_close(&job);
    lq_rows_free(&rows);
    lq_tokenizer_free(&t);
    lq_model_free(&m);
    lq_source_free(&src);
    return st;
}

static void help(const lq_optset *sets) {
    printf("lquant calibrate [flags] IN -o STATS\n  statistics of the activations, for --stats of every method and for merge; also called imatrix\n\n");
    lq_opts_help(stdout, sets);
    printf("\nexamples:\n"
           "  lquant calibrate SmolLM2 -f calib.txt -o smol.stats\n"
           "  lquant calibrate --hessians SmolLM2 -o smol.stats        then: lquant gptq --stats smol.stats SmolLM2 OUT\n"
           "  lquant calibrate --seqlen 512 SmolLM2 -f calib.txt -o smol.imatrix.gguf\n");
}

static lq_status run_calibrate(lq_ctx *ctx, const char *name, int argc, char **argv) {
    args a = {0};
    const char *pos[2];
    size_t n;
    const lq_optset sets[] = {{options, &a, "statistics"}, {lq_corpus_option_table, &a.corpus, "calibration"}, {lq_common_options, &a.common, NULL}, {0}};
    lq_status st;
    LQ_GO(lq_verb_begin(ctx, sets, &a.common, argc, argv, pos, 2, &n, help));
    if (a.common.help) goto done;
    if (n > 1 && !a.output) a.output = pos[1];
    if (!n || !a.output) LQ_GO(lq_fail(ctx, LQ_ERR_USAGE, "lquant %s [flags] IN -o STATS: %s is missing", name, n ? "-o STATS" : "IN"));
    st = calibrate(ctx, &a, pos[0], a.output);
done:
    lq_opts_free(sets);
    return st;
}

const lq_verb lq_verb_calibrate = {"calibrate", "imatrix", "IN -o STATS", "statistics of a model's activations into a file", run_calibrate};

typedef struct merge_args { lq_common common; const char *output; int overwrite; } merge_args;

static const lq_opt merge_options[] = {
    {"output", "o", LQ_OPT_STRING, offsetof(merge_args, output), "STATS", NULL, NULL, 0, 0, 0, "the file to write"},
    {"overwrite", NULL, LQ_OPT_SET, offsetof(merge_args, overwrite), NULL, NULL, NULL, 0, 0, 1, "replace it once the new one is complete"},
    {0}};

static void warn_of_same(lq_ctx *ctx, const lq_stats_file *a, const lq_stats_file *b) {
    if (json_equal(json_object_get(a->identity, "calibration"), json_object_get(b->identity, "calibration")))
        lq_log(ctx, LQ_LOG_WARN, "%s and %s were gathered on the same text", a->st.file.path, b->st.file.path);
}

static lq_status merge(lq_ctx *ctx, const merge_args *a, const char **in, size_t n) {
    lq_stats_file *files = LQ_NEWN(lq_stats_file, n);
    lq_job job = {0};
    lq_status st = files ? LQ_OK : lq_oom(ctx, n * sizeof *files);
    for (size_t i = 0; i < n && !st; i++) {
        if (lq_path_exists(a->output) && lq_path_same(in[i], a->output)) st = lq_fail(ctx, LQ_ERR_USAGE, "%s: is an input; choose another output", a->output);
        if (!st) st = lq_stats_open(ctx, in[i], &files[i]);
        if (!st && i) warn_of_same(ctx, &files[i - 1], &files[i]);
    }
    if (!st) st = lq_job_open(ctx, &job, in[0], a->output, "merge", LQ_RESUME_NEVER, a->overwrite);
    if (!st) st = into_file(ctx, &job, "model.safetensors", lq_stats_merge(ctx, files, n, job.partial));
    if (!st) printf("%s: %zu files merged\n", a->output, n);
    for (size_t i = 0; files && i < n; i++) lq_stats_close(&files[i]);
    lq_free(files);
    lq_job_close(&job);
    return st;
}

static void merge_help(const lq_optset *sets) {
    printf("lquant merge STATS... -o OUT\n  statistics of disjoint texts (lquant calibrate) added up\n\n");
    lq_opts_help(stdout, sets);
    printf("\nexamples:\n"
           "  lquant merge web.stats code.stats -o all.stats\n"
           "  lquant merge part-*.stats -o all.stats --overwrite\n"
           "  lquant merge web.stats code.stats -o all.stats && lquant awq --stats all.stats SmolLM2 OUT\n");
}

static lq_status run_merge(lq_ctx *ctx, const char *name, int argc, char **argv) {
    merge_args a = {0};
    const char **pos = LQ_NEWN(const char *, MERGE_MAX);
    size_t n = 0;
    const lq_optset sets[] = {{merge_options, &a, "merge"}, {lq_common_options, &a.common, NULL}, {0}};
    lq_status st = pos ? LQ_OK : lq_oom(ctx, MERGE_MAX * sizeof *pos);
    if (!st) st = lq_verb_begin(ctx, sets, &a.common, argc, argv, pos, MERGE_MAX, &n, merge_help);
    if (!st && !a.common.help) {
        if (!n || !a.output) st = lq_fail(ctx, LQ_ERR_USAGE, "lquant %s STATS... -o OUT: %s is missing", name, n ? "-o OUT" : "STATS");
        if (!st) st = merge(ctx, &a, pos, n);
    }
    lq_free(pos);
    return st;
}

const lq_verb lq_verb_merge = {"merge", NULL, "STATS... -o OUT", "statistics files of disjoint texts into one", run_merge};
