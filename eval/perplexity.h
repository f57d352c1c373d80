/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Perplexity by named protocols, on the kernels that ship. */
#ifndef LQ_PERPLEXITY_H
#define LQ_PERPLEXITY_H
#include "calib/corpus.h"
#include "calib/forward.h"

typedef struct lq_protocol {
    const char *name, *what;    /* "gptq-2048" */
    uint32_t ctx;               /* tokens of a chunk */
    bool bos_per_chunk;         /* first token of each chunk replaced by BOS when the vocabulary adds it */
    uint32_t (*first)(uint32_t ctx); /* first predicted position that is scored */
} lq_protocol;
extern const lq_protocol lq_protocols[]; /* name NULL ends */

typedef struct lq_ppl {
    char protocol[64];          /* with the length actually used, "gptq-256" */
    uint64_t tokens;            /* scored predictions */
    uint32_t chunks, ctx;
    double *chunk_nll;          /* [chunks] mean NLL of a chunk, nats */
    double nll, nll_stderr;     /* mean, and its standard error over tokens' chunk means */
    double ppl, ppl_stderr;
} lq_ppl;
void lq_ppl_free(lq_ppl *p);
#endif
