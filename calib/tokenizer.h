/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Byte-pair tokenizers: byte-level (GPT-2, Llama-3, Qwen) and SentencePiece-style with byte fallback (Llama-2,
 * Mistral), from tokenizer.json, vocab.json + merges.txt, or GGUF metadata. Same ids as the `tokenizers` package. */
#ifndef LQ_TOKENIZER_H
#define LQ_TOKENIZER_H
#include "formats/source.h"

typedef struct lq_tokenizer lq_tokenizer;
typedef struct lq_ids { int32_t *v; size_t n, cap; } lq_ids;
void lq_ids_free(lq_ids *ids);
bool lq_ids_add(lq_ids *ids, int32_t id); /* false: out of memory */

/* From whatever the source carries; vocab_size bounds ids (0: no bound). LQ_ERR_UNSUPPORTED names an unknown kind. */
lq_status lq_tokenizer_open(lq_ctx *ctx, lq_source *src, lq_tokenizer **out);
lq_status lq_tokenizer_from_json(lq_ctx *ctx, const char *name, const char *text, size_t n, lq_tokenizer **out);
void lq_tokenizer_free(lq_tokenizer **t);

/* Appends the ids of text[n]. special: add what the post-processor adds (BOS ...). parse: added tokens that are special
 * are recognised in the text (the `tokenizers` default); false: they are plain text. Invalid UTF-8: each maximal
 * ill-formed subsequence (Unicode 3.9; what Python's errors="replace" does) becomes U+FFFD first. On an error out is as
 * it was. May be called from several threads at once. */
lq_status lq_tokenizer_encode(lq_ctx *ctx, const lq_tokenizer *t, const char *text, size_t n, bool special, bool parse,
                              lq_ids *out);
/* Bytes of the ids, appended; half a character comes out as it is, ids of no token are left out; skip_special drops
 * special tokens. For streaming, decode prefixes and print the difference. */
lq_status lq_tokenizer_decode(lq_ctx *ctx, const lq_tokenizer *t, const int32_t *ids, size_t n, bool skip_special,
                              lq_buf *out);
int32_t lq_tokenizer_bos(const lq_tokenizer *t); /* -1: none */
int32_t lq_tokenizer_eos(const lq_tokenizer *t);
bool lq_tokenizer_adds_bos(const lq_tokenizer *t);
int32_t lq_tokenizer_id(const lq_tokenizer *t, const char *token); /* -1: absent */
const char *lq_tokenizer_token(const lq_tokenizer *t, int32_t id); /* NULL: out of range; borrowed */
size_t lq_tokenizer_size(const lq_tokenizer *t);
const char *lq_tokenizer_kind(const lq_tokenizer *t); /* "byte-level BPE", for logs */
/* tokenizer.json that `tokenizers` reads to the same ids: what `convert` writes for a GGUF. New reference. */
lq_status lq_tokenizer_json(lq_ctx *ctx, const lq_tokenizer *t, json_t **out);
#endif
