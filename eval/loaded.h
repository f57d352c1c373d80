/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A model opened from a path and ready to run, and what it weighs. */
#ifndef LQ_LOADED_H
#define LQ_LOADED_H
#include "calib/model.h"
#include "calib/tokenizer.h"

typedef struct lq_loaded {
    lq_source *src;
    lq_model *m;
    lq_tokenizer *tok;    /* NULL unless asked for */
    double seconds;       /* spent on opening and loading */
} lq_loaded;
/* Opens path and its tokenizer, checks every header; no tensor data are read. */
lq_status lq_loaded_open(lq_ctx *ctx, const char *path, bool tokenizer, lq_loaded *out);
/* Is this a device of ours, and here? NULL and "cpu" are. LQ_ERR_UNSUPPORTED says what is expected or missing. */
lq_status lq_loaded_device(lq_ctx *ctx, const char *name);
/* Every tensor into memory: codes in the layout that this machine's kernels stream, where they have one; the rest in its stored type. device: NULL or
 * "cpu"; "cuda", "emu": onto that one (calib/held.h). One that is not there, an unknown name: LQ_ERR_UNSUPPORTED. */
lq_status lq_loaded_read(lq_ctx *ctx, lq_loaded *l, const char *device);
void lq_loaded_close(lq_loaded *l);

typedef struct lq_weight {    /* from headers alone */
    uint64_t bytes;           /* stored bytes of every tensor */
    uint64_t params;          /* elements of every tensor; codes count as the weights they stand for */
    uint64_t linears, quantized;
    double bpw;               /* bits per weight of the quantized linears with scales, zeros and tables; when none is
                               * quantized, of the blocks' linears as stored */
    double bpw_all;           /* 8 * bytes / params */
} lq_weight;
lq_weight lq_weight_of(const lq_model *m);
/* Bytes of one stored row of the catalog. */
uint64_t lq_weight_row_bytes(const lq_model *m, const lq_row *r);
#endif
