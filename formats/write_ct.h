/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The storage formats of compressed-tensors, one row each; write_ct.c makes the config over them. */
#ifndef LQ_WRITE_CT_H
#define LQ_WRITE_CT_H
#include "formats/folder.h"

typedef struct lq_ct_family {
    const char *name;        /* "pack-quantized": `format` of a config group */
    bool (*mine)(const lq_scheme *s);
    /* LQ_OK or LQ_ERR_UNSUPPORTED naming the nearest scheme that fits. Scales and activations are checked by the caller. */
    lq_status (*accept)(lq_ctx *ctx, const lq_scheme *s, uint32_t rows, uint32_t cols);
    size_t (*parts)(const lq_row *r, lq_part_spec out[LQ_PARTS_MAX]); /* all but those of the activations */
    void (*pack)(const lq_qtensor *q, const char *suffix, void *out);
} lq_ct_family;

extern const lq_ct_family lq_ct_packed, lq_ct_int, lq_ct_float, lq_ct_mxfp8, lq_ct_mxfp4, lq_ct_nvfp4;

typedef enum lq_ct_tile { LQ_CT_TENSOR, LQ_CT_CHANNEL, LQ_CT_GROUP, LQ_CT_BLOCK, LQ_CT_OTHER } lq_ct_tile;
lq_ct_tile lq_ct_tile_of(const lq_plane_desc *d); /* `strategy`; OTHER: it has none */
lq_part_spec lq_ct_scale_part(const lq_row *r);
void lq_ct_scale_pack(const lq_qtensor *q, void *out);
#endif
