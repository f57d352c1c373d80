/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* safetensors container: header in, header out. Spec: huggingface/safetensors README; hardening: users.md 6b. */
#ifndef LQ_SAFETENSORS_H
#define LQ_SAFETENSORS_H
#include "core/dtype.h"
#include "core/json.h"

typedef struct lq_st_tensor { const char *name; lq_dtype dtype; uint32_t ndim; uint64_t shape[8]; uint64_t offset, bytes; } lq_st_tensor; /* offset: absolute in the file */
typedef struct lq_st_file { lq_file file; lq_st_tensor *tensors; size_t n; lq_arena *mem; } lq_st_file;
lq_status lq_st_open(lq_ctx *ctx, const char *path, lq_st_file *out);
void lq_st_close(lq_st_file *f);

/* Writing: all tensors (name, dtype, shape) are known first; shards and offsets follow from them, so data may come in any order.
 * Shards fill up to shard_size in the order given; inside a shard offsets go by the format's alignment rank, then name. */
typedef struct lq_st_writer lq_st_writer;
lq_status lq_st_create(lq_ctx *ctx, const char *dir, const lq_st_tensor *tensors, size_t n, uint64_t shard_size, lq_st_writer **out);
lq_status lq_st_put(lq_ctx *ctx, lq_st_writer *w, const char *name, const void *data, size_t bytes); /* the whole tensor, once */
/* Refuses when a tensor is missing; fsyncs, writes model.safetensors.index.json when there are several shards. */
lq_status lq_st_finish(lq_ctx *ctx, lq_st_writer **w);
void lq_st_abandon(lq_st_writer **w);
#endif
