/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Perplexity by named protocols, on the kernels that ship.
 *
 * A protocol cuts the ids of one text into n = T / ctx chunks without overlap (the tail is dropped) and scores, in each, the
 * predictions made at positions first .. ctx-2:
 *
 *   nll(p) = logsumexp(logits_p) - logits_p[id_(p+1)],  ppl = exp(mean nll)
 *
 *   gptq-2048     BOS only where the tokenizer puts it, at the very start; first = 0. Mean over chunks of chunk means; its
 *                 standard error over chunk means (one chunk: over tokens). GPTQ, AWQ and SmoothQuant papers.
 *   gptq-max      the same at the model's own context.
 *   llamacpp-512  BOS, where the vocabulary adds it, in front of the text and again over the first id of each chunk;
 *                 first = ctx / 2; at least two chunks; special tokens in the text are plain text; standard error over
 *                 tokens. llama.cpp tools/perplexity. */
#ifndef LQ_PERPLEXITY_H
#define LQ_PERPLEXITY_H
#include "calib/corpus.h"
#include "calib/forward.h"

typedef struct lq_protocol {
    const char *name, *what;    /* "gptq-2048" */
    const char *stem;           /* "gptq": the printed name is stem-ctx */
    uint32_t ctx;               /* tokens of a chunk; 0: the model's context */
    uint32_t min_chunks;
    bool bos_per_chunk;         /* first token of each chunk replaced by BOS when the tokenizer adds it */
    bool parse_special;         /* special tokens spelt out in the text are recognised */
    bool stderr_tokens;         /* standard error over tokens, not over chunk means */
    uint32_t (*first)(uint32_t ctx); /* first position whose prediction is scored */
} lq_protocol;
extern const lq_protocol lq_protocols[]; /* name NULL ends */
const lq_protocol *lq_protocol_find(const char *name); /* NULL: unknown */

typedef struct lq_eval_text {   /* a text as one protocol sees it */
    lq_ids ids;
    char sha256[65];            /* of the text's bytes, decompressed */
    char *name;                 /* base name of the file without .zst and .txt */
    int bos;                    /* lq_bos */
    uint32_t bos_added;         /* 1: the ids begin with a BOS that is not in the text */
    int32_t bos_id;             /* what bos_per_chunk writes; -1: nothing */
} lq_eval_text;
lq_status lq_eval_text_load(lq_ctx *ctx, const lq_tokenizer *t, const lq_protocol *p, const char *path, int bos, uint32_t vocab, lq_eval_text *out);
void lq_eval_text_free(lq_eval_text *t);

typedef struct lq_eval_plan {   /* what will be scored */
    const lq_protocol *protocol;
    char name[64];              /* with the length actually used, "gptq-256" */
    uint32_t ctx, first, chunks;
    uint64_t tokens;            /* scored predictions: chunks * (ctx - 1 - first) */
    uint32_t both;              /* the base, if there is one, runs on the first so many chunks; 0: on all */
} lq_eval_plan;
/* ctx 0: the protocol's; clipped to max_ctx with a log line. chunks 0: all. A text too short for the protocol: LQ_ERR_FORMAT
 * that says how many tokens there are and how many are needed. */
lq_status lq_eval_plan_make(lq_ctx *ctx, const lq_protocol *p, const lq_eval_text *t, uint32_t want_ctx, uint32_t chunks, uint32_t max_ctx, lq_eval_plan *out);

typedef struct lq_ppl {
    double *chunk_nll;          /* [chunks] mean NLL of a chunk, nats */
    uint32_t chunks;
    double nll, nll_stderr;
    double ppl, ppl_stderr;     /* ppl_stderr = ppl * nll_stderr */
} lq_ppl;
void lq_ppl_free(lq_ppl *p);

typedef struct lq_kld {         /* KL(base || model) per scored token, nats */
    double mean, stderr_, median, p99, p999, max;
    double top1, top1_stderr;   /* share of tokens on which both give the same most likely token */
    uint64_t tokens;
} lq_kld;

/* Runs m, whose tensors must be loaded, over the plan. decode: token by token through the KV cache and GEMV. base, base_ppl
 * and kld come together or are all NULL: then both models run side by side on slices of tokens of the first plan->both chunks; logits are
 * never kept. kv: cache of m (not of base); NULL: fp32. */
lq_status lq_ppl_run(lq_ctx *ctx, const lq_model *m, const lq_kv_opts *kv, const lq_eval_text *t, const lq_eval_plan *plan, bool decode, lq_ppl *out,
                     const lq_model *base, lq_ppl *base_ppl, lq_kld *kld);
#endif
