/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Reading a model from disk: one view of logical tensors over every input format. A quantized linear appears as one
 * entry (dtype LQ_NONE, scheme set), whatever tensors its format splits it into. */
#ifndef LQ_SOURCE_H
#define LQ_SOURCE_H
#include "core/json.h"
#include "core/qtensor.h"
#include "formats/gguf.h"

typedef struct lq_entry {
    const char *name;        /* Hugging Face or GGUF name as stored; a quantized linear is "<module>.weight" */
    lq_dtype dtype;          /* LQ_NONE: quantized, see scheme. A ggml block type: it is read either way, as blocks and as its scheme's codes */
    uint32_t ndim;           /* 0..4 */
    uint64_t shape[LQ_DIMS];     /* Hugging Face order (rows, cols); GGUF dims reversed */
    uint64_t bytes;          /* stored bytes of all its parts */
    lq_scheme scheme;        /* of codes; bits 0: a float type, or blocks without one */
    const float *block_scale; /* NVFP4 in GGUF: the F32 of each matrix of the entry, which is not in its blocks; NULL: 1. The reader's */
    uint64_t q_bytes;        /* quantized: what lq_qtensor_bytes counts; 0: the scheme says it all (lq_entry_q_bytes) */
} lq_entry;

typedef struct lq_source lq_source;

typedef struct lq_reader {   /* one row per input format */
    const char *name, *what; /* "safetensors", "Hugging Face folder" */
    /* Does path look like mine? config is the parsed config.json of the folder (or beside a .safetensors file) or NULL. */
    bool (*probe)(const char *path, const json_t *config);
    lq_status (*open)(lq_ctx *, lq_source *);
    lq_status (*read)(lq_ctx *, lq_source *, size_t i, uint64_t row0, uint64_t rows, void *out);
    lq_status (*read_q)(lq_ctx *, lq_source *, size_t i, lq_qtensor *out); /* NULL: format is never quantized */
    lq_status (*sidecar)(lq_ctx *, lq_source *, size_t i, lq_buf *out);
    lq_status (*manifest)(lq_ctx *, lq_source *, lq_buf *out); /* NULL: it is a file in the folder or beside the file */
    void (*close)(lq_source *);
} lq_reader;
extern const lq_reader *const lq_readers[]; /* probed in order; NULL ends */

struct lq_source {
    const lq_reader *reader;
    char *path;              /* as given, without a trailing slash */
    lq_entry *entries;
    size_t n, cap;
    json_t *config;          /* parsed config.json, of the folder or beside a .safetensors file, or NULL */
    const lq_gguf *gguf;     /* metadata of a GGUF; NULL otherwise */
    char **sidecars;         /* names of files that travel with the weights, sorted (config.json among them) */
    size_t n_sidecars;
    char **weight_files;     /* paths of the files that hold tensors, sorted: hashed for the manifest */
    size_t n_weight_files;
    void *index, *priv;      /* name lookup; the reader's own */
};

/* Probe, open, check every header (users.md 6b), read no tensor data. Errors: LQ_ERR_FORMAT naming file and tensor,
 * LQ_ERR_UNSUPPORTED for a known but unread format. */
lq_status lq_source_open(lq_ctx *ctx, const char *path, lq_source **out);
void lq_source_free(lq_source **s);
long lq_source_find(const lq_source *s, const char *name); /* -1: absent */
/* What lq_source_read counts: a row is the contiguous innermost dimension, leading dimensions are flattened; a 1-D tensor has one
 * row per element (of a block type: one row), a 0-D tensor one row of one element. rows * cols = elements. */
uint64_t lq_entry_rows(const lq_entry *e);
uint64_t lq_entry_cols(const lq_entry *e);
uint64_t lq_entry_q_bytes(const lq_entry *e); /* codes, planes, tables and extras of a quantized entry as stored, everything counted */
/* rows [row0, row0+rows) of entry i in its stored type, row-major: rows * lq_dtype_row_bytes(dtype, lq_entry_cols) bytes. */
lq_status lq_source_read(lq_ctx *ctx, lq_source *s, size_t i, uint64_t row0, uint64_t rows, void *out);
/* A whole quantized entry. out owns itself; slot is left zero (the model sets it). Every index, scale and zero is checked. */
lq_status lq_source_read_q(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *out);
/* The same for rows [row0, row0 + rows) of an entry of blocks that has a scheme, of one matrix of a stack; row r of out is their row
 * order[r] (a permutation of 0 .. rows - 1; NULL: r). */
lq_status lq_source_read_blocks(lq_ctx *ctx, lq_source *s, size_t i, uint64_t row0, uint32_t rows, const uint32_t *order, lq_qtensor *out);
/* A sidecar by name: LQ_OK with out->v NULL when there is none. */
lq_status lq_source_sidecar(lq_ctx *ctx, lq_source *s, const char *name, lq_buf *out);
/* The manifest of the run that made this model; no sidecar, since it describes these bytes only. out->v NULL when there is none. */
lq_status lq_source_manifest(lq_ctx *ctx, lq_source *s, lq_buf *out);

/* For readers. `open` fills entries with lq_source_add (name copied) and the file lists with lq_source_add_file; afterwards the
 * entries are indexed for it, duplicate names refused. `close` is called after a failed `open` too. */
lq_status lq_source_add(lq_ctx *ctx, lq_source *s, const lq_entry *e);
lq_status lq_source_add_file(lq_ctx *ctx, lq_source *s, bool weights, const char *name); /* weights: a path; else a sidecar's name */
lq_status lq_source_index(lq_ctx *ctx, lq_source *s); /* again, after entries changed */
char *lq_source_dir(const lq_source *s);              /* the folder, or the one that holds the file; caller frees */

/* A quantized checkpoint in safetensors is opened in two layers (formats/modules.h): its reader opens the same path raw. No probing happens
 * under an explicit reader, so the quantization_config does not get in the way. */
lq_status lq_source_open_as(lq_ctx *ctx, const lq_reader *reader, const char *path, lq_source **out);
lq_status lq_source_inherit(lq_ctx *ctx, lq_source *s, const lq_source *raw);
extern const lq_reader lq_reader_fp8, lq_reader_mlx, lq_reader_modelopt;
extern const lq_reader lq_reader_ct;
extern const lq_reader lq_reader_awq, lq_reader_gguf, lq_reader_gptq, lq_reader_lqt, lq_reader_safetensors;
extern const lq_reader lq_reader_bitnet, lq_reader_bnb, lq_reader_squeezellm;
#endif
