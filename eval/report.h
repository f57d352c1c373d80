/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The result of one evaluation: as JSON (schema 1), as a line for people, and read back as a base. */
#ifndef LQ_REPORT_H
#define LQ_REPORT_H
#include "eval/divergence.h"
#include "eval/loaded.h"

typedef struct lq_eval_result {     /* everything borrowed */
    const char *model;              /* path as given */
    const lq_eval_plan *plan;
    const lq_eval_text *text;
    const lq_ppl *ppl;
    lq_weight weight;
    double seconds, load_seconds;   /* of scoring; of reading the model */
    bool decode, ggml;              /* ggml: activations rounded as llama.cpp does */
    const char *base;               /* NULL: none */
    double base_nll, base_ppl, base_ppl_stderr;
    lq_paired diff;                 /* chunk NLLs: model minus base */
    const lq_kld *kld;              /* NULL: not measured */
} lq_eval_result;
lq_status lq_eval_json(lq_ctx *ctx, const lq_eval_result *r, json_t **out);  /* new reference */
lq_status lq_eval_lines(lq_ctx *ctx, const lq_eval_result *r, lq_buf *out);

/* A former result as base: the chunk NLLs of a --json file, refused (LQ_ERR_USAGE) unless protocol, chunks, tokens, text and
 * BOS rule are those of the plan. chunk_nll has plan->chunks cells. */
lq_status lq_eval_base_read(lq_ctx *ctx, const char *path, const lq_eval_plan *plan, const lq_eval_text *text, lq_ppl *out);
/* Does the path hold a result (a regular file that begins with '{') rather than a model? */
bool lq_eval_is_result(const char *path);
#endif
