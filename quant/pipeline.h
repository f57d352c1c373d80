/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The road from a model to a checkpoint: open, plan, calibrate block by block, quantize, write, read back, rename. The only
 * file that knows everybody. */
#ifndef LQ_PIPELINE_H
#define LQ_PIPELINE_H
#include "calib/corpus.h"
#include "calib/forward.h"
#include "quant/job.h"
#include "quant/legal.h"
#include "quant/plan.h"
#include "quant/recipe.h"
#include "quant/rotate_choice.h"

typedef struct lq_run_opts {
    const char *format;           /* NULL: by OUT's suffix, else one every target loads, else the method's own */
    lq_strlist target;            /* runtimes that are to load the result */
    uint64_t shard_size, max_memory; /* max_memory 0: a quarter of the machine's */
    const char *pre;              /* gguf: tokenizer.ggml.pre when the tokenizer's is not recognised */
    lq_strlist override_kv;       /* gguf: keys said otherwise */
    lq_strlist include, exclude;  /* parts of tensors' names that an importance matrix is, is not used for */
    const char *work_dir, *report, *fisher, *stats; /* stats: a file of `lquant calibrate` */
    int resume, overwrite, dry_run, true_sequential; /* always sequential: the flag is accepted */
    int rotate;                   /* LQ_ROTATION_* */
    int64_t rotate_seed;
    lq_expert_opts experts;       /* mixtures of experts only */
    int kv_scales;                /* the ranges of keys and values go with the checkpoint */
    int target_correction;        /* linears aim at the unquantized model's output */
    double max_fallback;          /* percent of linears that may fall back before the run fails with LQ_ERR_QUALITY */
} lq_run_opts;
extern const lq_opt lq_run_options[];

typedef struct lq_run {
    const char *in, *out;
    lq_recipe recipe;
    lq_plan_opts plan_opts;
    lq_corpus_opts corpus_opts;
    lq_run_opts opts;
    void (*on_plan)(void *user, const lq_plan *plan); /* called once the plan stands; may be NULL */
    void *user;
} lq_run;

/* The option tables of a run: the recipe's elements, then plan, calibration, run, end. Returns the index of plan's: the defaults of
 * those before come with the recipe, of the others by lq_opts_defaults(ctx, sets + index). */
enum { LQ_RUN_SETS = LQ_RECIPE_SETS + 3 };
uint32_t lq_run_sets(lq_run *run, lq_optset sets[LQ_RUN_SETS + 1]);

/* Runs it. *report: a JSON object for --json and --report (new reference; set even when some steps failed, may be NULL). A dry
 * run ends after on_plan and writes nothing. */
lq_status lq_pipeline_run(lq_ctx *ctx, lq_run *run, json_t **report);
#endif
