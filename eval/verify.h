/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What a runtime would choke on in a checkpoint, anybody's: every finding, not the first one. */
#ifndef LQ_VERIFY_H
#define LQ_VERIFY_H
#include "core/json.h"

typedef enum lq_severity { LQ_SEV_ERROR, LQ_SEV_WARNING, LQ_SEV_NOTE } lq_severity; /* will fail or give wrong numbers; may; worth knowing */
extern const char *const lq_severities[]; /* "error", "warning", "note" */

typedef struct lq_finding {
    lq_severity severity;
    const char *code;        /* static: "scales", "index", "tied-head" ...: what kind of thing, for scripts */
    char *where;             /* file, tensor or config key; owned */
    char *text;              /* one sentence; owned */
} lq_finding;

typedef struct lq_verified {
    lq_finding *v;
    size_t n, count[3];      /* count: by severity */
    char format[64];         /* reader that opened it; "" when none did */
    size_t tensors, quantized; /* entries; those in codes */
    uint64_t weights, bytes; /* decoded and looked at */
    bool model;              /* it was bound to an architecture */
} lq_verified;

/* LQ_OK when all could be looked at, whatever was found; else what stopped it: no such path, no memory, cancelled. data false: headers and
 * side files only, no tensor is read. */
lq_status lq_verify(lq_ctx *ctx, const char *path, bool data, lq_verified *out);
void lq_verified_free(lq_verified *v);
json_t *lq_verified_json(const lq_verified *v, const char *path); /* new reference; NULL: out of memory */
#endif
