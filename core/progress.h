/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Progress: a bar with ETA on a terminal, else one line per finished unit, at most
 * one a second; always on stderr. */
#ifndef LQ_PROGRESS_H
#define LQ_PROGRESS_H
#include "core/status.h"

typedef struct lq_progress { lq_ctx *ctx; const char *what; double total, done, start, said; bool tty, quiet; } lq_progress;
/* total: sum of the costs that will be passed to lq_progress_step (any unit, e.g. weights). what: static text, "block". */
lq_progress lq_progress_start(lq_ctx *ctx, const char *what, double total);
/* cost more is done; the sentence says what ("12/30 rel_err 0.021"). Redraws the bar, or logs one line with the ETA. */
void lq_progress_step(lq_progress *p, double cost, const char *fmt, ...) LQ_PRINTF(3, 4);
void lq_progress_end(lq_progress *p); /* clears the bar */
#endif
