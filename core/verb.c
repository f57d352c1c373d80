/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "core/verb.h"

#include "core/cpu.h"
#include "core/thread.h"

#include <string.h>

const lq_opt lq_common_options[] = {
    {"threads", "t", LQ_OPT_INT, offsetof(lq_common, threads), "N", "0", NULL, 0, 4096, 0, "threads; 0: every core; never changes a result"},
    {"device", "d", LQ_OPT_STRING, offsetof(lq_common, device), "NAME", "cpu", NULL, 0, 0, 0, "~eval, run, bench: cpu, cuda or emu (emulated); +ahead: kernels begin early"},
    {"isa", NULL, LQ_OPT_STRING, offsetof(lq_common, isa), "NAME", "auto", NULL, 0, 0, 0, "~kernels of this tier of instruction sets at most; lquant list kernels"},
    {"json", NULL, LQ_OPT_SET, offsetof(lq_common, json), NULL, NULL, NULL, 0, 0, 1, "one JSON object on stdout"},
    {"quiet", "q", LQ_OPT_SET, offsetof(lq_common, level), NULL, NULL, NULL, 0, 0, LQ_LOG_WARN, "warnings and errors only"},
    {"verbose", "v", LQ_OPT_SET, offsetof(lq_common, level), NULL, NULL, NULL, 0, 0, LQ_LOG_DEBUG, "more detail on stderr"},
    {"help", "h", LQ_OPT_SET, offsetof(lq_common, help), NULL, NULL, NULL, 0, 0, 1, "this text"},
    {0}};

lq_status lq_common_apply(lq_ctx *ctx, const lq_common *c) {
    if (c->device && strcmp(c->device, "cpu") && !c->devices)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "--device %s: this verb computes on: cpu", c->device);
    LQ_TRY(lq_cpu_limit(ctx, c->isa ? c->isa : "auto"));
    lq_threads_set((int)c->threads);
    if (c->level) ctx->level = (lq_level)c->level;
    return LQ_OK;
}

lq_status lq_verb_begin(lq_ctx *ctx, const lq_optset *sets, const lq_common *c, int argc, char **argv, const char **pos, size_t max_pos, size_t *n_pos,
                        void (*help)(const lq_optset *sets)) {
    LQ_TRY(lq_opts_defaults(ctx, sets));
    LQ_TRY(lq_opts_parse(ctx, sets, argc, argv, pos, max_pos, n_pos));
    if (!c->help) return lq_common_apply(ctx, c);
    help(sets);
    return LQ_OK;
}
