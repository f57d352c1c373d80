/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "core/status.h"

#include <stdio.h>
#include <string.h>

const char *lq_status_text(lq_status st) {
    switch (st) {
#define X(name, value, text) \
    case LQ_##name: return text;
        LQ_STATUS_LIST(X)
#undef X
    }
    return "unknown status";
}

lq_status lq_fail(lq_ctx *ctx, lq_status st, const char *fmt, ...) {
    if (!ctx) return st;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(ctx->msg, sizeof ctx->msg, fmt, ap);
    va_end(ap);
    ctx->status = st;
    return st;
}

lq_status lq_note(lq_ctx *ctx, lq_status st, const char *fmt, ...) {
    if (!ctx) return st;
    char head[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(head, sizeof head - 2, fmt, ap);
    va_end(ap);
    strcat(head, ": ");
    ctx->status = st;
    if (!strncmp(ctx->msg, head, strlen(head))) return st; /* two floors name the same tensor: once is enough */
    size_t n = strlen(head), old = strlen(ctx->msg), room = sizeof ctx->msg - 1 - n;
    memmove(ctx->msg + n, ctx->msg, old < room ? old : room);
    memcpy(ctx->msg, head, n);
    ctx->msg[n + (old < room ? old : room)] = 0;
    return st;
}

void lq_log(lq_ctx *ctx, lq_level level, const char *fmt, ...) {
    if (!ctx || !ctx->log || level > ctx->level) return;
    char line[2048];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    ctx->log(ctx->log_user, level, line);
}

lq_status lq_check_cancel(lq_ctx *ctx) {
    if (ctx && ctx->cancel && *ctx->cancel)
        return lq_fail(ctx, LQ_STOPPED, "interrupted; run the same command again to continue");
    return LQ_OK;
}
