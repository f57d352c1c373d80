/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Chat templates as data: the subset of Jinja that published templates use, with step, depth and size limits, no I/O. */
#ifndef LQ_CHAT_H
#define LQ_CHAT_H
#include "core/json.h"

/* messages: array of {role, content}. bos, eos: token texts (may be ""). Unknown construct: LQ_ERR_UNSUPPORTED naming it. */
lq_status lq_chat_render(lq_ctx *ctx, const char *template_text, size_t n, const json_t *messages, const char *bos, const char *eos,
                         bool add_generation_prompt, lq_buf *out);
/* The template a source carries (chat_template.jinja, tokenizer_config.json, GGUF metadata); out->v NULL when none. */
struct lq_source;
lq_status lq_chat_template(lq_ctx *ctx, struct lq_source *src, lq_buf *out);
#endif
