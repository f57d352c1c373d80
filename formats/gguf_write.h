/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Writing GGUF v3: metadata as it will lie in the file, then tensors at places that follow from the catalog alone. Spec: ggml docs/gguf.md. */
#ifndef LQ_GGUF_WRITE_H
#define LQ_GGUF_WRITE_H
#include "core/catalog.h"
#include "formats/gguf.h"

#define LQ_GGUF_KEY_MANIFEST "lquant.manifest"     /* JSON: inputs with their hashes, settings, calibration */
#define LQ_GGUF_KEY_BYTES "lquant.data.bytes"      /* u64: from the first tensor to the end of the file */
#define LQ_GGUF_KEY_HASH "lquant.data.sha256"      /* of those bytes */

/* -- metadata ---------------------------------------------------------------------------------------------------------- */

/* Where a catalog row lies in the file. */
typedef struct lq_gguf_place {
    const char *name;        /* of the file's tensor; NULL: the row is not stored (a head that is the embedding) */
    const char *also;        /* a second tensor with the same data (a tied head where the runtime wants one); NULL: none */
    const uint32_t *rows;    /* [rows] file row i is matrix row rows[i]; NULL: as it is */
    uint32_t at, of;         /* the at-th of `of` matrices in one tensor of that name (experts); of 0: a tensor of its own */
    float add;               /* to every element of a kept row (norms that multiply by 1 + w) */
} lq_gguf_place;

typedef struct lq_gguf_extra { const char *name; uint32_t n; const float *v; } lq_gguf_extra; /* F32 [n], no row of the catalog */

typedef struct lq_gguf_meta { /* what a GGUF says of a model; made by calib. Strings, arrays: in mem */
    lq_buf kv;               /* n_kv key-value pairs as they lie in the file */
    uint64_t n_kv;
    bool failed;             /* a put ran out of memory */
    bool hashed;             /* the file says its data's size and SHA-256: LQ_GGUF_KEY_BYTES, LQ_GGUF_KEY_HASH, the writer's own last pairs */
    const char *const *override; /* [n_override] rules of lq_gguf_override that have the last word; borrowed */
    size_t n_override;
    lq_gguf_place *places;   /* [n_places], of the catalog's rows in their order */
    size_t n_places;
    lq_gguf_extra *extras;
    size_t n_extras;
    lq_arena *mem;
} lq_gguf_meta;

/* places: n zeroed ones. */
lq_status lq_gguf_meta_new(lq_ctx *ctx, size_t n_places, lq_gguf_meta **out);
void lq_gguf_meta_free(lq_gguf_meta **m);
/* One key-value pair behind the others; out of memory sets failed, which lq_gguf_meta_check reports. Keys are not compared: the caller puts each once. */
void lq_gguf_put_u32(lq_gguf_meta *m, const char *key, uint32_t v);
void lq_gguf_put_f32(lq_gguf_meta *m, const char *key, float v);
void lq_gguf_put_bool(lq_gguf_meta *m, const char *key, bool v);
void lq_gguf_put_text(lq_gguf_meta *m, const char *key, const char *s, size_t n);
void lq_gguf_put_str(lq_gguf_meta *m, const char *key, const char *s);
void lq_gguf_put_u16(lq_gguf_meta *m, const char *key, uint16_t v);
void lq_gguf_put_i32(lq_gguf_meta *m, const char *key, int32_t v);
/* An array: the head, then n elements by lq_gguf_add_*. */
void lq_gguf_put_array(lq_gguf_meta *m, const char *key, lq_gguf_type elem, uint64_t n);
void lq_gguf_add_text(lq_gguf_meta *m, const char *s, size_t n);
void lq_gguf_add_f32(lq_gguf_meta *m, float v);
void lq_gguf_add_u32(lq_gguf_meta *m, uint32_t v);
void lq_gguf_add_bool(lq_gguf_meta *m, bool v);
void lq_gguf_put_copy(lq_gguf_meta *m, const lq_gguf_kv *kv); /* as another file has it, every type */
/* Takes a pair out; false: there was none (gguf_edit.c). */
bool lq_gguf_drop(lq_gguf_meta *m, const char *key);
/* llama-quantize's --override-kv, "KEY=TYPE:VALUE", TYPE int (stored as u32), float, bool or str: in place of the key's pair or anew. Else LQ_ERR_USAGE. */
lq_status lq_gguf_override(lq_ctx *ctx, lq_gguf_meta *m, const char *rule);
lq_status lq_gguf_meta_check(lq_ctx *ctx, const lq_gguf_meta *m);

/* -- container --------------------------------------------------------------------------------------------------------- */

typedef struct lq_gguf_info { /* a tensor of the file */
    const char *name;        /* below 64 bytes */
    lq_dtype dtype;          /* one that GGUF has */
    uint32_t ndim;           /* 1..4 */
    uint64_t ne[4];          /* ne[0] contiguous */
    uint64_t offset, bytes;  /* set by lq_gguf_create; absolute */
} lq_gguf_info;

typedef struct lq_gguf_writer lq_gguf_writer;
/* Header and table written, room for the data reserved. infos: offset and bytes are filled in, otherwise borrowed until the call returns. */
lq_status lq_gguf_create(lq_ctx *ctx, const char *path, const lq_gguf_meta *m, lq_gguf_info *infos, size_t n, lq_gguf_writer **out);
/* Bytes of tensor data at an absolute offset, any order. */
lq_status lq_gguf_write(lq_ctx *ctx, lq_gguf_writer *w, uint64_t offset, const void *data, size_t n);
lq_status lq_gguf_write_sync(lq_ctx *ctx, lq_gguf_writer *w);
lq_status lq_gguf_finish(lq_ctx *ctx, lq_gguf_writer **w); /* fsync, close */
void lq_gguf_write_abandon(lq_gguf_writer **w);
/* SHA-256 of the bytes of a file from offset to its end. */
lq_status lq_gguf_hash(lq_ctx *ctx, const lq_file *f, uint64_t offset, char hex[65]);

/* -- parts (gguf_split.c) ----------------------------------------------------------------------------------------------- */

/* "STEM-00002-of-00004.gguf" of "STEM.gguf" or "STEM"; caller frees; NULL: out of memory. */
char *lq_gguf_part_name(const char *path, size_t i, size_t n);
/* A complete file as n parts beside it, a tensor in the part where the i-th file of `like` has it (what none has: the first); keys in the first.
 * The parts get their names when all are complete, the first last; then the whole file is gone. n <= 1: nothing to do. LQ_ERR_IO when a name is taken. */
lq_status lq_gguf_split_like(lq_ctx *ctx, const char *path, char *const *like, size_t n, bool overwrite);
#endif
