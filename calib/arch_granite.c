/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Granite 3 (IBM): the Llama block with four stated multipliers.
 *
 *   x = m_e E[id];  scores = m_a q k;  x += m_r branch;  logits = head(norm(x)) / s */
#include "calib/arch.h"

#include <math.h>

static lq_status params(lq_ctx *ctx, const lq_arch *a, const json_t *c, lq_params *p) {
    double embed, attn, resid, logits;
    LQ_TRY(lq_params_from_hf(ctx, a, c, p));
    LQ_TRY(lq_params_real(ctx, c, "embedding_multiplier", false, 1, 1e-6, 1e6, &embed));
    LQ_TRY(lq_params_real(ctx, c, "attention_multiplier", false, 1, 1e-6, 1e6, &attn));
    LQ_TRY(lq_params_real(ctx, c, "residual_multiplier", false, 1, 1e-6, 1e6, &resid));
    LQ_TRY(lq_params_real(ctx, c, "logits_scaling", false, 1, 1e-6, 1e6, &logits));
    p->embed_scale = (float)embed;
    p->attn_scale = (float)attn;
    p->resid_scale = (float)resid;
    p->logit_div = (float)logits;
    return LQ_OK;
}

static lq_status config(lq_ctx *ctx, const lq_arch *a, const lq_params *p, json_t **out) {
    double attn = p->attn_scale != 0 ? lq_params_shortest(p->attn_scale) : 1 / sqrt((double)p->head_dim);
    LQ_TRY(lq_params_to_hf(ctx, a, p, out));
    json_object_set_new(*out, "embedding_multiplier", json_real(p->embed_scale != 0 ? lq_params_shortest(p->embed_scale) : 1));
    json_object_set_new(*out, "attention_multiplier", json_real(attn));
    json_object_set_new(*out, "residual_multiplier", json_real(p->resid_scale != 0 ? lq_params_shortest(p->resid_scale) : 1));
    json_object_set_new(*out, "logits_scaling", json_real(p->logit_div != 0 ? lq_params_shortest(p->logit_div) : 1));
    return LQ_OK;
}

const lq_arch lq_arch_granite = {
    .name = "granite", .model_types = (const char *const[]){"granite", NULL}, .gguf_archs = (const char *const[]){"granite", NULL},
    .gguf = LQ_GGUF_ROPE_PAIRS | LQ_GGUF_DIVISORS | LQ_GGUF_LONG | LQ_GGUF_O_BIAS | LQ_GGUF_MULTIPLIERS,
    .block = lq_llama_block, .names = lq_llama_names, .params_hf = params, .config = config,
    .family = {.hidden = 4096, .ffn = 11008, .layers = 32, .heads = 32, .vocab = 32000, .max_ctx = 2048, .attention_bias = true, .mlp_bias = true,
               .hf_class = "GraniteForCausalLM"}};
