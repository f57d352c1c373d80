/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* safetensors container: header in, header out. Spec: huggingface/safetensors README; hardening: users.md 6b. */
#ifndef LQ_SAFETENSORS_H
#define LQ_SAFETENSORS_H
#include "core/dtype.h"
#include "core/json.h"

typedef struct lq_st_tensor {
    const char *name;
    lq_dtype dtype;
    uint32_t ndim;
    uint64_t shape[LQ_DIMS];
    uint64_t offset, bytes; /* offset: absolute in the file */
} lq_st_tensor;
typedef struct lq_st_file { lq_file file; lq_st_tensor *tensors; size_t n; lq_arena *mem; } lq_st_file; /* tensors by offset */

/* The header, completely checked; no tensor data is read. Errors: LQ_ERR_FORMAT with file, tensor and byte, LQ_ERR_UNSUPPORTED
 * for an element type of the format that lquant does not read. *out needs lq_st_close only after LQ_OK. */
lq_status lq_st_open(lq_ctx *ctx, const char *path, lq_st_file *out);
lq_status lq_st_open_file(lq_ctx *ctx, lq_file *f, lq_st_file *out); /* takes f over, closes it on error */
void lq_st_close(lq_st_file *f);
bool lq_st_dtype_ok(lq_dtype t); /* does the format know this type? (ggml blocks: no) */

/* Writing: all tensors (name, dtype, shape; offset and bytes are ignored) are known first; shards and offsets follow from them,
 * so data may come in any order. Shards fill up to shard_size (0: one shard) in the order given; inside a shard offsets go by the
 * format's alignment rank, then name. dir exists; files are created as "model.safetensors" or "model-00001-of-0000N.safetensors". */
typedef struct lq_st_writer lq_st_writer;
lq_status lq_st_create(lq_ctx *ctx, const char *dir, const lq_st_tensor *tensors, size_t n, uint64_t shard_size, lq_st_writer **out);
lq_status lq_st_put(lq_ctx *ctx, lq_st_writer *w, const char *name, const void *data, size_t bytes); /* the whole tensor, once */
/* Rows [row0, row0+rows) of the leading dimension (for data that never is in memory at once); the last row completes the tensor,
 * so rows come in ascending order. */
lq_status lq_st_put_rows(lq_ctx *ctx, lq_st_writer *w, const char *name, uint64_t row0, uint64_t rows, const void *data, size_t bytes);
lq_status lq_st_sync(lq_ctx *ctx, lq_st_writer *w); /* what was put is on the disk */
/* Refuses when a tensor is missing; fsyncs, writes model.safetensors.index.json when there are several shards. *w = NULL always. */
lq_status lq_st_finish(lq_ctx *ctx, lq_st_writer **w);
void lq_st_abandon(lq_st_writer **w);
#endif
