/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Granite 3 (IBM): the Llama block with four stated multipliers.
 *
 *   x = m_e E[id];  scores = m_a q k;  x += m_r branch;  logits = head(norm(x)) / s */
#include "calib/arch.h"

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

const lq_arch lq_arch_granite = {
    .name = "granite", .model_types = (const char *const[]){"granite", NULL}, .gguf_rope_pairs = true,
    .block = lq_llama_block, .names = lq_llama_names, .params_hf = params,
    .family = {.hidden = 4096, .ffn = 11008, .layers = 32, .heads = 32, .vocab = 32000, .max_ctx = 2048, .attention_bias = true, .mlp_bias = true,
               .hf_class = "GraniteForCausalLM"}};
