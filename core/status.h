/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Status codes, the error chain and the log: what every function of the house returns and says. */
#ifndef LQ_STATUS_H
#define LQ_STATUS_H
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Name, value = the process exit code, sentence head. */
#define LQ_STATUS_LIST(X)                                   \
    X(OK, 0, "ok")                                          \
    X(ERR_INTERNAL, 1, "internal error")                    \
    X(ERR_USAGE, 2, "usage")                                \
    X(ERR_FORMAT, 3, "input rejected")                      \
    X(ERR_UNSUPPORTED, 4, "unsupported")                    \
    X(ERR_RESOURCE, 5, "out of resources")                  \
    X(ERR_QUALITY, 6, "quality gate failed")                \
    X(ERR_MISMATCH, 7, "job mismatch")                      \
    X(ERR_IO, 8, "output error")                            \
    X(STOPPED, 75, "stopped, resumable")

typedef enum lq_status {
#define X(name, value, text) LQ_##name = value,
    LQ_STATUS_LIST(X)
#undef X
} lq_status;

typedef enum lq_level { LQ_LOG_ERROR, LQ_LOG_WARN, LQ_LOG_INFO, LQ_LOG_DEBUG } lq_level;
typedef void (*lq_log_fn)(void *user, lq_level level, const char *line); /* line without newline */

/* One per run, used from one thread. Holds the error chain ("outer: inner: sentence") of the last failure. */
typedef struct lq_ctx {
    char msg[2048];
    lq_status status;
    lq_log_fn log;              /* NULL: silent */
    void *log_user;
    lq_level level;             /* lines above it are dropped */
    int answer;                 /* exit code of a verb that did not fail: what diff says */
    const volatile int *cancel; /* NULL, or a flag set by a signal handler: long loops stop with LQ_STOPPED */
} lq_ctx;

#if defined(__GNUC__)
#define LQ_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define LQ_PRINTF(f, a)
#endif

/* Start a new error sentence; returns st, so that `return lq_fail(...)` reads well. ctx may be NULL. */
lq_status lq_fail(lq_ctx *ctx, lq_status st, const char *fmt, ...) LQ_PRINTF(3, 4);
/* Put context in front of the sentence on the way out ("file.safetensors: ..."); returns st. */
lq_status lq_note(lq_ctx *ctx, lq_status st, const char *fmt, ...) LQ_PRINTF(3, 4);
void lq_log(lq_ctx *ctx, lq_level level, const char *fmt, ...) LQ_PRINTF(3, 4);
/* LQ_STOPPED with a sentence when the cancel flag is set, else LQ_OK. */
lq_status lq_check_cancel(lq_ctx *ctx);
const char *lq_status_text(lq_status st); /* "input rejected" */

#define LQ_TRY(x)                         \
    do {                                  \
        lq_status try_st_ = (x);          \
        if (try_st_) return try_st_;      \
    } while (0)
/* Needs `lq_status st` and a label `done`. */
#define LQ_GO(x)                          \
    do {                                  \
        st = (x);                         \
        if (st) goto done;                \
    } while (0)
#endif
