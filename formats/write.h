/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What writers share among themselves; callers include formats/sink.h. */
#ifndef LQ_WRITE_H
#define LQ_WRITE_H
#include "formats/safetensors.h"
#include "formats/sink.h"

extern const lq_format lq_format_ct;
extern const lq_format lq_format_awq, lq_format_gptq, lq_format_gptq_v2, lq_format_lqt, lq_format_fp;
extern const lq_format lq_format_bnb, lq_format_gguf;
extern const lq_format lq_format_bitnet, lq_format_squeezellm;
extern const lq_format lq_format_fp8, lq_format_mlx, lq_format_modelopt;
/* A sidecar as a file of sink->dir; refuses to overwrite. */
lq_status lq_folder_sidecar(lq_sink *s, const char *name, const void *data, size_t n);
/* A kept row, or one on a grid of floats, as a tensor of a safetensors folder; the name stays the catalog's. */
static inline lq_st_tensor lq_st_tensor_of_row(const lq_row *r) {
    lq_st_tensor t = {.name = r->name, .dtype = r->quantize ? lq_grid_dtype(r->scheme.grid.kind) : r->out_dtype, .ndim = r->ndim};
    for (uint32_t i = 0; i < r->ndim; i++) t.shape[i] = lq_row_stored(r, i);
    return t;
}
#endif
