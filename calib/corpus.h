/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Sample text to token rows.
 *
 * Documents: a plain text is one; JSON lines, and the elements of a .json array, give one each, from `input_ids` (token ids, taken as they are: no BOS, no
 * concatenation), `messages` (through a chat template) or `text`. Text documents are tokenized one by one and, unless
 * no_concat, their ids are joined in file order. The stream is cut into consecutive windows of seqlen ids, BOS included
 * where the rule asks for one and the window does not begin with it anyway; a tail shorter than a window is dropped unless
 * nothing else is left. When there are more windows than nsamples, `seed` selects nsamples of them without replacement,
 * kept in stream order (Knuth's algorithm S over PCG32, stream 27). */
#ifndef LQ_CORPUS_H
#define LQ_CORPUS_H
#include "calib/tokenizer.h"
#include "core/options.h"

typedef enum lq_bos { LQ_BOS_AUTO, LQ_BOS_ALWAYS, LQ_BOS_NEVER } lq_bos;

typedef struct lq_corpus_opts {
    lq_strlist files;          /* FILE[:num=N][:field=NAME], or "random": nsamples rows of random ids; empty: the built-in text */
    int64_t nsamples, seqlen, seed;
    int bos;                   /* lq_bos; auto: as the tokenizer does */
    const char *chat_template; /* NULL or "auto": the model's; "none": contents joined by newlines; else a file */
    const char *save_tokens;   /* NULL, or a JSON-lines file of {"input_ids": [...]} to create: exactly the rows used */
    int parse_special;         /* special tokens spelt out in plain text are recognised (always in chat templates' output) */
    int no_concat;             /* every document is cut by itself; its shorter last window is kept */
} lq_corpus_opts;
extern const lq_opt lq_corpus_option_table[]; /* -f --nsamples --seqlen --seed --bos --chat-template ... */

typedef struct lq_rows {       /* token rows of one length, but for documents shorter than it (no_concat, input_ids) */
    int32_t *ids;              /* [n][seqlen], zero behind a shorter row */
    uint32_t *len;             /* [n] 1..seqlen */
    size_t n, seqlen;
    uint64_t used, dropped;    /* rows the text gave and that were used / not used */
    bool bos;                  /* windows begin with BOS */
    char hash[65];             /* sha256 of the ids as little-endian int32, row after row */
    char *source;              /* "built-in text (lquant calibration 1)", or base names; for log and manifest */
} lq_rows;
/* max_ctx clips seqlen, short texts the length or the number of rows, each said in one log line; refused only when no row is
 * left (LQ_ERR_FORMAT) or an id is outside the vocabulary. src may be NULL when no chat template of the model is needed. */
lq_status lq_corpus_build(lq_ctx *ctx, const lq_tokenizer *t, lq_source *src, const lq_corpus_opts *o, uint32_t max_ctx, uint32_t vocab, lq_rows *out);
void lq_rows_free(lq_rows *r);

/* A text: file bytes, zstd-decompressed when they begin with its magic. */
lq_status lq_text_load(lq_ctx *ctx, const char *path, lq_buf *out);
/* The text built into the binary, decompressed, and its name. */
lq_status lq_text_builtin(lq_ctx *ctx, lq_buf *out);
extern const char lq_text_builtin_name[];
/* Decompressed bytes when data[n] begins with zstd's magic, else a copy; at most LQ_TEXT_MAX. */
enum { LQ_TEXT_MAX = 1 << 30 };
lq_status lq_text_unpack(lq_ctx *ctx, const char *name, const void *data, size_t n, lq_buf *out);
#endif
