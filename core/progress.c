/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "core/progress.h"

#include "core/os.h"

#include <stdio.h>
#include <stdlib.h>

lq_progress lq_progress_start(lq_ctx *ctx, const char *what, double total) {
    bool plain = getenv("NO_COLOR") || getenv("CI") || !lq_is_tty(2);
    bool quiet = !ctx || !ctx->log || ctx->level < LQ_LOG_INFO;
    return (lq_progress){.ctx = ctx, .what = what, .total = total > 0 ? total : 1, .start = lq_now(), .tty = !plain, .quiet = quiet};
}

static void eta_text(double s, char *buf, size_t n) {
    if (s < 90) snprintf(buf, n, "%.0fs", s);
    else if (s < 5400) snprintf(buf, n, "%.0fm", s / 60);
    else snprintf(buf, n, "%.1fh", s / 3600);
}

void lq_progress_step(lq_progress *p, double cost, const char *fmt, ...) {
    p->done += cost;
    if (p->quiet) return;
    char text[512], eta[32];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    double share = p->done / p->total, now = lq_now(), spent = now - p->start;
    if (!p->tty && now - p->said < 1 && share < 1) return;
    p->said = now;
    eta_text(share > 0 ? spent * (1 - share) / share : 0, eta, sizeof eta);
    if (!p->tty) {
        lq_log(p->ctx, LQ_LOG_INFO, "%s %s eta %s", p->what, text, eta);
        return;
    }
    static const char full[] = "####################";
    fprintf(stderr, "\r\033[K%s [%-20.*s] %3.0f%% eta %s  %s", p->what, (int)(share * 20 > 20 ? 20 : share * 20), full, 100 * share, eta, text);
    fflush(stderr);
}

void lq_progress_end(lq_progress *p) {
    if (p->tty && !p->quiet) fprintf(stderr, "\r\033[K");
}
