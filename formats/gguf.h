/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* GGUF v2/v3 container: metadata and tensor table, read and checked (users.md 6b); no tensor data, no meaning.
 * Spec: ggml docs/gguf.md. */
#ifndef LQ_GGUF_H
#define LQ_GGUF_H
#include "core/dtype.h"
#include "core/os.h"

typedef enum lq_gguf_type {
    LQ_GGUF_U8, LQ_GGUF_I8, LQ_GGUF_U16, LQ_GGUF_I16, LQ_GGUF_U32, LQ_GGUF_I32, LQ_GGUF_F32, LQ_GGUF_BOOL,
    LQ_GGUF_STRING, LQ_GGUF_ARRAY, LQ_GGUF_U64, LQ_GGUF_I64, LQ_GGUF_F64, LQ_GGUF_TYPE_N
} lq_gguf_type;

typedef struct lq_gguf lq_gguf;
typedef struct lq_gguf_tensor {
    const char *name;
    lq_dtype dtype;
    uint32_t ndim;
    uint64_t ne[4];       /* ne[0] contiguous, as in the file */
    uint64_t offset;      /* absolute in the file */
    uint64_t bytes;
} lq_gguf_tensor;
typedef struct lq_gguf_kv lq_gguf_kv; /* one metadata value */

lq_status lq_gguf_open(lq_ctx *ctx, const lq_file *f, lq_gguf **out); /* f must stay open while tensors are read; metadata is copied */
void lq_gguf_free(lq_gguf **g);
size_t lq_gguf_count(const lq_gguf *g);
const lq_gguf_tensor *lq_gguf_tensor_at(const lq_gguf *g, size_t i);
size_t lq_gguf_kv_count(const lq_gguf *g);
const lq_gguf_kv *lq_gguf_kv_at(const lq_gguf *g, size_t i);
const char *lq_gguf_kv_key(const lq_gguf_kv *kv);
const lq_gguf_kv *lq_gguf_find(const lq_gguf *g, const char *key); /* NULL: absent */
/* Element type (of the array's elements for an array) and count (1 for a scalar). kv may be NULL: count 0. */
bool lq_gguf_is_array(const lq_gguf_kv *kv);
lq_gguf_type lq_gguf_elem(const lq_gguf_kv *kv);
uint64_t lq_gguf_len(const lq_gguf_kv *kv);
/* Element i as a number (bool: 0/1; string: 0) or as a string (NULL when it is none; *n its length, NUL-terminated too). */
double lq_gguf_num(const lq_gguf_kv *kv, uint64_t i);
const char *lq_gguf_str(const lq_gguf_kv *kv, uint64_t i, size_t *n);
uint64_t lq_gguf_bits(const lq_gguf_kv *kv, uint64_t i); /* a number's bytes as stored, zero-extended; 0: no such number */
#endif
