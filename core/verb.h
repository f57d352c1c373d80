/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A verb of the command line, and the flags every verb has. lquant.c lists the verbs, each folder's cmd_*.c owns its own. */
#ifndef LQ_VERB_H
#define LQ_VERB_H
#include "core/options.h"

typedef struct lq_verb {
    const char *name, *aliases;   /* aliases comma-separated or NULL */
    const char *args, *what;      /* "IN OUT", one line */
    /* argv without program and verb. name: the spelling that was used (a recipe such as "gptq:bits=3" comes here too). Results
     * on stdout, the rest through ctx->log; the return value is the exit code. */
    lq_status (*run)(lq_ctx *ctx, const char *name, int argc, char **argv);
} lq_verb;
extern const lq_verb lq_verb_quantize, lq_verb_llama_quantize, lq_verb_convert, lq_verb_calibrate, lq_verb_merge;          /* quant/ */
extern const lq_verb lq_verb_eval, lq_verb_run, lq_verb_bench, lq_verb_inspect, lq_verb_verify, lq_verb_diff; /* eval/ */

typedef struct lq_common {
    int64_t threads;
    int level, json, help;
    const char *device, *isa;
    bool devices;             /* set by a verb that takes more than the CPU: eval/loaded.h knows their names */
} lq_common;
extern const lq_opt lq_common_options[]; /* -t/--threads --device --isa -q -v --json -h/--help */
/* Threads, log level and instruction sets take effect; a device that is not the CPU is LQ_ERR_UNSUPPORTED unless the verb takes some, a tier of instruction
 * sets this machine has not LQ_ERR_USAGE. */
lq_status lq_common_apply(lq_ctx *ctx, const lq_common *c);
/* What every verb begins with: defaults, flags, --help (printed by `help`; the verb then ends: c->help is set), the common flags. */
lq_status lq_verb_begin(lq_ctx *ctx, const lq_optset *sets, const lq_common *c, int argc, char **argv, const char **pos, size_t max_pos, size_t *n_pos,
                        void (*help)(const lq_optset *sets));
#endif
