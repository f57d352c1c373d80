/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Registry of architectures and what is derived by walking their tables. */
#include "calib/arch.h"

#include "core/num.h"

const lq_arch *const lq_archs[] = {&lq_arch_llama, &lq_arch_mistral, &lq_arch_qwen2, &lq_arch_qwen3,
                                   &lq_arch_mixtral, &lq_arch_qwen2_moe, &lq_arch_qwen3_moe, &lq_arch_olmoe,

                                  &lq_arch_gemma, &lq_arch_gemma2, &lq_arch_gemma3, &lq_arch_granite, NULL};

static bool is_listed(const char *const *list, const char *name) {
    for (; *list; list++)
        if (!strcmp(*list, name)) return true;
    return false;
}

const lq_arch *lq_arch_by_model_type(const char *model_type) {
    for (const lq_arch *const *a = lq_archs; *a; a++)
        if (is_listed((*a)->model_types, model_type)) return *a;
    return NULL;
}

const lq_arch *lq_arch_by_gguf(const char *architecture) {
    for (const lq_arch *const *a = lq_archs; *a; a++)
        if (is_listed((*a)->gguf_archs, architecture)) return *a;
    return NULL;
}

const lq_arch_name *lq_arch_tensor(const lq_arch *a, lq_role role, lq_part part) {
    for (const lq_arch_name *t = a->names; t->role; t++)
        if (t->role == role && t->part == part) return t;
    return NULL;
}

void lq_params_free(lq_params *p) {
    lq_free(p->layer_window);
    lq_free(p->layer_dense);
    for (lq_rope *r = &p->rope; r; r = r == &p->rope ? &p->local_rope : NULL) {
        lq_free(r->div);
        lq_free(r->long_div);
    }
    *p = (lq_params){0};
}

bool lq_params_has(const lq_params *p, lq_feature f) {
    switch (f) {
    case LQ_FEAT_ALWAYS: return true;
    case LQ_FEAT_QK_NORM: return p->qk_norm;
    case LQ_FEAT_QKV_BIAS: return p->qkv_bias;
    case LQ_FEAT_O_BIAS: return p->o_bias;
    case LQ_FEAT_MLP_BIAS: return p->mlp_bias;
    case LQ_FEAT_UNTIED: return !p->tied;
    case LQ_FEAT_ROPE_TENSOR: return p->rope_tensor;
    case LQ_FEAT_CLIP_QKV: return p->clip_qkv > 0;
    case LQ_FEAT_MOE: return p->n_experts > 0;
    case LQ_FEAT_SHARED: return p->n_experts && p->shared_ffn;
    case LQ_FEAT_DENSE: return !p->n_experts || p->layer_dense;
    }
    return false;
}

bool lq_params_at(const lq_params *p, lq_feature f, uint32_t layer) {
    bool dense = !p->n_experts || (p->layer_dense && p->layer_dense[layer]);
    if (f == LQ_FEAT_DENSE) return dense;
    return lq_params_has(p, f) && !(dense && (f == LQ_FEAT_MOE || f == LQ_FEAT_SHARED));
}

uint32_t lq_params_dim(const lq_params *p, lq_dim d) {
    switch (d) {
    case LQ_DIM_NONE: return 0;
    case LQ_DIM_HIDDEN: return p->hidden;
    case LQ_DIM_FFN: return p->ffn;
    case LQ_DIM_VOCAB: return p->vocab;
    case LQ_DIM_Q: return p->n_heads * p->head_dim;
    case LQ_DIM_KV: return p->n_kv_heads * p->head_dim;
    case LQ_DIM_HEAD: return p->head_dim;
    case LQ_DIM_HALF_HEAD: return p->head_dim / 2;
    case LQ_DIM_ONE: return 1;
    case LQ_DIM_EXPERTS: return p->n_experts;
    case LQ_DIM_EXPERT_FFN: return p->expert_ffn;
    case LQ_DIM_SHARED_FFN: return p->shared_ffn;
    }
    return 0;
}

uint32_t lq_params_window(const lq_params *p, uint32_t layer) {
    return p->layer_window && !p->layer_window[layer] ? 0 : p->window;
}

const lq_rope *lq_params_rope(const lq_params *p, uint32_t layer) {
    return p->two_ropes && p->layer_window && p->layer_window[layer] ? &p->local_rope : &p->rope;
}

uint32_t lq_arch_stages(const lq_arch *a, const lq_params *p, uint32_t layer, int32_t stage[LQ_MAX_OPS]) {
    int32_t of[T_N], n = 0; /* the stage that reads a tensor as it is now; -1: none yet */
    for (int t = 0; t < T_N; t++) of[t] = -1;
    uint32_t i = 0;
    for (; i < LQ_MAX_OPS && a->block[i].kind; i++) {
        const lq_op *op = &a->block[i];
        stage[i] = -1;
        if (!lq_params_at(p, op->only_if, layer)) continue;
        if (op->kind == LQ_OP_ROUTE) stage[i] = n++;
        if (op->kind == LQ_OP_LINEAR) {
            if (of[op->in[0]] < 0) of[op->in[0]] = n++;
            stage[i] = of[op->in[0]];
        }
        of[op->out & ~LQ_OUT_ADD] = -1;
    }
    return i;
}

void lq_arch_widths(const lq_arch *a, const lq_params *p, uint32_t width[T_N]) {
    memset(width, 0, T_N * sizeof *width);
    width[T_RESID] = p->hidden;
    for (const lq_op *op = a->block; op->kind; op++) {
        if (!lq_params_has(p, op->only_if)) continue;
        const lq_arch_name *t = op->kind == LQ_OP_LINEAR ? lq_arch_tensor(a, op->role, LQ_PART_WEIGHT) : NULL;
        width[op->out & ~LQ_OUT_ADD] = t ? lq_params_dim(p, t->rows) : width[op->in[0]];
    }
}
