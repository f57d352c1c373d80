/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Sample text to token rows of one length. */
#ifndef LQ_CORPUS_H
#define LQ_CORPUS_H
#include "calib/tokenizer.h"
#include "core/options.h"

typedef enum lq_bos { LQ_BOS_AUTO, LQ_BOS_ALWAYS, LQ_BOS_NEVER } lq_bos;

typedef struct lq_corpus_opts {
    lq_strlist files;         /* empty: the built-in text */
    int64_t nsamples, seqlen, seed;
    int bos;                  /* lq_bos */
    const char *chat_template; /* NULL or "auto": the model's; "none": contents joined by newlines; else a file */
    const char *save_tokens;  /* NULL, or a JSON-lines file of {"input_ids": [...]} to write: exactly the rows used */
    int parse_special;
} lq_corpus_opts;
extern const lq_opt lq_corpus_option_table[]; /* -f --nsamples --seqlen --seed --bos --chat-template --save-tokens --parse-special */

typedef struct lq_rows {      /* token rows; the last ones may be shorter than seqlen only when a document is */
    int32_t *ids;             /* [n][seqlen] */
    size_t n, seqlen;
    uint64_t used, dropped;   /* rows the text gave and that were used / not used */
    char hash[65];            /* sha256 of the ids as little-endian int32, row after row */
    char *source;             /* "built-in text (lquant calibration 1)", or base names; for log and manifest */
} lq_rows;
/* max_ctx clips seqlen (said in one log line), as do short texts the number of rows; never refused unless no row is left. */
lq_status lq_corpus_build(lq_ctx *ctx, const lq_tokenizer *t, lq_source *src, const lq_corpus_opts *o, uint32_t max_ctx, uint32_t vocab, lq_rows *out);
/* Rows of uniformly random ids (the data-free calibration of ZeroQuant). */
void lq_rows_free(lq_rows *r);
/* A whole evaluation text: file bytes, zstd-decompressed when compressed. */
lq_status lq_text_load(lq_ctx *ctx, const char *path, lq_buf *out);
/* The text built into the binary, decompressed. */
lq_status lq_text_builtin(lq_ctx *ctx, lq_buf *out);
#endif
