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
    lq_dtype dtype;          /* LQ_NONE: quantized, see scheme */
    uint32_t ndim;           /* 0..4 */
    uint64_t shape[4];       /* Hugging Face order (rows, cols); GGUF dims reversed */
    uint64_t bytes;          /* stored bytes of all its parts */
    lq_scheme scheme;
} lq_entry;

typedef struct lq_source lq_source;

typedef struct lq_reader {   /* one row per input format */
    const char *name, *what; /* "safetensors", "Hugging Face folder" */
    /* Does path look like mine? config is the parsed config.json of the folder (or of the folder that holds the file) or NULL. */
    bool (*probe)(const char *path, const json_t *config);
    lq_status (*open)(lq_ctx *, lq_source *);
    lq_status (*read)(lq_ctx *, lq_source *, size_t i, uint64_t row0, uint64_t rows, void *out);
    lq_status (*read_q)(lq_ctx *, lq_source *, size_t i, lq_qtensor *out); /* NULL: format is never quantized */
    lq_status (*sidecar)(lq_ctx *, lq_source *, size_t i, lq_buf *out);
    void (*close)(lq_source *);
} lq_reader;
extern const lq_reader *const lq_readers[]; /* probed in order; NULL ends */

struct lq_source {
    const lq_reader *reader;
    char *path;              /* as given, without a trailing slash */
    lq_entry *entries;
    size_t n;
    json_t *config;          /* parsed config.json; NULL for GGUF and bare safetensors */
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
/* rows [row0, row0+rows) of entry i in its stored type, row-major; 1-D and 0-D tensors count as one row per element / one row. */
lq_status lq_source_read(lq_ctx *ctx, lq_source *s, size_t i, uint64_t row0, uint64_t rows, void *out);
/* A whole quantized entry. out owns itself; slot is left zero (the model sets it). Every index, scale and zero is checked. */
lq_status lq_source_read_q(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *out);
/* A sidecar by name: LQ_OK with out->v NULL when there is none. */
lq_status lq_source_sidecar(lq_ctx *ctx, lq_source *s, const char *name, lq_buf *out);
/* For readers: append an entry (name copied), then index them once. Duplicate names are refused. */
lq_status lq_source_add(lq_ctx *ctx, lq_source *s, const lq_entry *e);
lq_status lq_source_index(lq_ctx *ctx, lq_source *s);
#endif
