/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What a GGUF says of a model: metadata keys, vocabulary, and where each catalog row goes, as llama.cpp's loader wants them. */
#ifndef LQ_GGUF_META_H
#define LQ_GGUF_META_H
#include "calib/model.h"
#include "calib/tokenizer.h"
#include "core/options.h"
#include "formats/gguf_write.h"

typedef struct lq_gguf_opts {
    const char *name;        /* general.name; NULL: the folder's or file's */
    const lq_strlist *override_kv; /* keys said otherwise, "KEY=TYPE:VALUE"; outlives the metadata; NULL: none */
    const char *pre;         /* tokenizer.ggml.pre when the words of a tokenizer are cut in a way nobody has named; NULL: refused then */
} lq_gguf_opts;

/* Everything but what the plan decides (general.file_type, general.quantization_version: lq_gguf_meta_types). From a GGUF its own keys are copied.
 * LQ_ERR_UNSUPPORTED names what llama.cpp does not run or have a place for. What is left out is logged. No tensor data is read. */
lq_status lq_gguf_meta_make(lq_ctx *ctx, const lq_model *m, const lq_gguf_opts *o, lq_gguf_meta **out);
/* general.file_type (llama.cpp's number of a mixture or type) and the version of the block types. */
void lq_gguf_meta_types(lq_gguf_meta *m, uint32_t file_type);

/* gguf_vocab.c: tokenizer.ggml.* of a tokenizer, padded with [PADn] to `rows` tokens; chat template and special tokens from src. */
lq_status lq_gguf_vocab(lq_ctx *ctx, lq_source *src, uint32_t rows, const char *pre, lq_gguf_meta *m);
#endif
