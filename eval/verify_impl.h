/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Shared by the parts of verify. */
#ifndef LQ_VERIFY_IMPL_H
#define LQ_VERIFY_IMPL_H
#include "calib/model.h"
#include "eval/verify.h"

typedef struct verify {
    lq_ctx *ctx;
    lq_ctx quiet;            /* of the calls whose refusals become findings */
    const char *path;
    bool dir, gguf;
    lq_source *src;          /* by its own reader; NULL: refused */
    lq_source *raw;          /* src, or the plain tensors where the reader refuses */
    lq_model *m;             /* NULL: not bound */
    json_t *config;          /* config.json as far as it parses; owned; NULL */
    lq_verified *out;
    size_t off_by_one, zeroed; /* quantized matrices whose codes lie about a step below (above) their zero points */
    lq_status st;            /* what stops all: no memory, cancelled */
} verify;

void lq_verify_find(verify *v, lq_severity s, const char *code, const char *where, const char *fmt, ...) LQ_PRINTF(5, 6);
/* False: the call failed; unless that stops everything, its sentence is a finding. */
bool lq_verify_ok(verify *v, lq_status st, lq_severity s, const char *code, const char *where);
void lq_verify_files(verify *v);   /* headers, index, hashes, side files */
void lq_verify_gguf(verify *v);    /* the hash of a GGUF's data that it says itself */
void lq_verify_config(verify *v);  /* lists of modules, heads, layers, token ids, GGUF keys */
void lq_verify_data(verify *v);    /* every block decoded */
#endif
