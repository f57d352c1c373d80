/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "calib/chat.h"

lq_status lq_chat_render(lq_ctx *ctx, const char *template_text, size_t n, const json_t *messages, const char *bos, const char *eos,
                         bool add_generation_prompt, lq_buf *out) {
    (void)template_text, (void)n, (void)messages, (void)bos, (void)eos, (void)add_generation_prompt, (void)out;
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "chat templates are not read yet; give --chat-template none");
}
