/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* llama.cpp's importance matrices: the mean square of every input column of every matrix, by the tensor's GGUF name. Read and written in
 * both forms (sources: llama.cpp's tools/imatrix, common/imatrix-loader):
 *
 *   GGUF    general.type "imatrix", imatrix.datasets [string], imatrix.chunk_count, imatrix.chunk_size (u32); tensors, all F32:
 *           NAME.in_sum2 [cols, mats]: sum of x^2 over tokens, NAME.counts [1, mats]: tokens
 *   legacy  i32 n, then n times: i32 length, name, i32 ncall, i32 nval, f32 v[nval] = mean x^2 times ncall; i32 chunks, i32 length, dataset
 *
 * mats: 1, or the experts stacked in one tensor. */
#ifndef LQ_IMATRIX_H
#define LQ_IMATRIX_H
#include "core/os.h"

typedef struct lq_importance {
    const char *name;        /* "blk.0.attn_q.weight" */
    uint32_t cols, mats;
    float *mean;             /* [mats][cols] mean of x^2; 1 for an expert that no token reached */
    float *count;            /* [mats] tokens; legacy: ncall */
} lq_importance;

typedef struct lq_imatrix {
    lq_importance *entries;
    size_t n;
    char *dataset;           /* the first one's name, or NULL */
    uint32_t chunks, chunk_size;
    struct lq_nameset *names;
    lq_arena *mem;           /* owner of all the above */
} lq_imatrix;

/* Does the file look like one? GGUF or legacy; a safetensors file of statistics does not. */
bool lq_imatrix_is(const char *path);
/* Every value finite and not negative, names unique, shapes agreeing; else LQ_ERR_FORMAT naming the entry. */
lq_status lq_imatrix_read(lq_ctx *ctx, const char *path, lq_imatrix *out);
const lq_importance *lq_imatrix_find(const lq_imatrix *m, const char *name); /* NULL: absent */
/* Leaves the entries whose name holds one of the texts; keep false: those whose name holds none. */
lq_status lq_imatrix_keep(lq_ctx *ctx, lq_imatrix *m, const char *const *texts, size_t n, bool keep);
void lq_imatrix_free(lq_imatrix *m);
/* A new entry (mean and count zeroed) or the one of that name; NULL: no memory, or of another shape. */
lq_importance *lq_imatrix_add(lq_imatrix *m, const char *name, uint32_t cols, uint32_t mats);
/* Into a new file; legacy where the name does not end in ".gguf". */
lq_status lq_imatrix_write(lq_ctx *ctx, const char *path, const lq_imatrix *m);
#endif
