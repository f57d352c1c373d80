/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A verb of the command line; lquant.c lists them, each folder's cmd_*.c owns its own. */
#ifndef LQ_VERB_H
#define LQ_VERB_H
#include "core/status.h"

typedef struct lq_verb {
    const char *name, *aliases;   /* aliases comma-separated or NULL */
    const char *args, *what;      /* "IN OUT", one line */
    /* argv without program and verb. name: the spelling that was used (a recipe such as "awq,gptq" comes here too). Results on
     * stdout, the rest through ctx->log; the return value is the exit code. */
    lq_status (*run)(lq_ctx *ctx, const char *name, int argc, char **argv);
} lq_verb;
extern const lq_verb lq_verb_quantize, lq_verb_convert, lq_verb_plan; /* quant/ */
extern const lq_verb lq_verb_eval, lq_verb_run, lq_verb_inspect;      /* eval/ */
extern const lq_verb lq_verb_list;
#endif
