/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Registry of architectures and what is derived by walking their tables. */
#include "calib/arch.h"

#include "core/num.h"

const lq_arch *const lq_archs[] = {
    &lq_arch_llama,
    &lq_arch_mistral,
    &lq_arch_qwen2,
    &lq_arch_qwen3,
    &lq_arch_mixtral,
    &lq_arch_qwen2_moe,
    &lq_arch_qwen3_moe,
    &lq_arch_olmoe,
    &lq_arch_gemma,
    &lq_arch_gemma2,
    &lq_arch_gemma3,
    &lq_arch_granite,
    &lq_arch_phi3,
    &lq_arch_glm,
    &lq_arch_glm4,
    &lq_arch_bitnet,
    &lq_arch_qwen2_vl,
    &lq_arch_qwen3_vl,
    &lq_arch_opt,
    &lq_arch_gpt2,
    &lq_arch_gpt_neox,
    &lq_arch_falcon,
    &lq_arch_phi,
    NULL,
};

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

const lq_arch *lq_arch_by_gguf(const char *architecture, bool experts, bool window) {
    const lq_arch *found = NULL;
    for (const lq_arch *const *a = lq_archs; *a; a++) {
        if (!(*a)->gguf_archs || !is_listed((*a)->gguf_archs, architecture) || ((*a)->family.moe.n != NULL) != experts) continue;
        if (!found || (window && found->family.windows == LQ_WINDOW_NONE)) found = *a;
    }
    return found;
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

bool lq_params_has(const lq_params *p, uint8_t only_if) {
    if (only_if & LQ_UNLESS) return !lq_params_has(p, only_if & ~LQ_UNLESS);
    switch ((lq_feature)only_if) {
    case LQ_FEAT_ALWAYS: return true;
    case LQ_FEAT_QK_NORM: return p->qk_norm;
    case LQ_FEAT_QKV_BIAS: return p->qkv_bias;
    case LQ_FEAT_O_BIAS: return p->o_bias;
    case LQ_FEAT_MLP_BIAS: return p->mlp_bias;
    case LQ_FEAT_UNTIED: return !p->tied;
    case LQ_FEAT_CLIP_QKV: return p->clip_qkv > 0;
    case LQ_FEAT_MOE: return p->n_experts > 0;
    case LQ_FEAT_SHARED: return p->n_experts && p->shared_ffn;
    case LQ_FEAT_DENSE: return !p->n_experts || p->layer_dense;
    case LQ_FEAT_POST_NORM: return p->post_norm;
    case LQ_FEAT_PARALLEL: return p->parallel;
    case LQ_FEAT_ONE_NORM: return p->parallel && p->one_norm;
    case LQ_FEAT_TWO_NORMS: return p->parallel && !p->one_norm;
    case LQ_FEAT_NORM_GAIN: return !p->plain_norm;
    case LQ_FEAT_FINAL_NORM: return !p->no_final_norm && !p->plain_norm;
    case LQ_FEAT_PROJ: return p->embed_dim > 0;
    case LQ_FEAT_HEAD_BIAS: return p->head_bias;
    }
    return false;
}

bool lq_params_at(const lq_params *p, uint8_t only_if, uint32_t layer) {
    bool dense = !p->n_experts || (p->layer_dense && p->layer_dense[layer]);
    if (only_if == LQ_FEAT_DENSE) return dense;
    return lq_params_has(p, only_if) && !(dense && (only_if == LQ_FEAT_MOE || only_if == LQ_FEAT_SHARED));
}

uint32_t lq_params_dim(const lq_params *p, uint8_t d) {
    switch ((lq_dim)(d & ~LQ_TRANSPOSED)) {
    case LQ_DIM_NONE: return 0;
    case LQ_DIM_HIDDEN: return p->hidden;
    case LQ_DIM_FFN: return p->ffn;
    case LQ_DIM_VOCAB: return p->vocab;
    case LQ_DIM_Q: return p->n_heads * p->head_dim;
    case LQ_DIM_KV: return p->n_kv_heads * p->head_dim;
    case LQ_DIM_HEAD: return p->head_dim;
    case LQ_DIM_ONE: return 1;
    case LQ_DIM_EXPERTS: return p->n_experts;
    case LQ_DIM_EXPERT_FFN: return p->expert_ffn;
    case LQ_DIM_SHARED_FFN: return p->shared_ffn;
    case LQ_DIM_EMBED: return p->embed_dim ? p->embed_dim : p->hidden;
    case LQ_DIM_POSITIONS: return p->max_ctx + p->pos_offset;
    case LQ_DIM_QKV: return (p->n_heads + 2 * p->n_kv_heads) * p->head_dim;
    case LQ_DIM_GATE_UP: return 2 * p->ffn;
    }
    return 0;
}

uint32_t lq_params_window(const lq_params *p, uint32_t layer) {
    return p->layer_window && !p->layer_window[layer] ? 0 : p->window;
}

uint32_t lq_params_short_window(const lq_params *p) {
    for (uint32_t l = 0; l < p->n_layers; l++)
        if (lq_params_window(p, l) && lq_params_window(p, l) < p->max_ctx) return lq_params_window(p, l);
    return 0;
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
        bool part = op->kind == LQ_OP_SPLIT || op->kind == LQ_OP_SPLIT_HEADS;
        width[op->out & ~LQ_OUT_ADD] = t ? lq_params_dim(p, t->rows) : part ? lq_part_rows(p, op->role) : width[op->in[0]];
    }
}

uint32_t lq_part_rows(const lq_params *p, lq_role part) {
    return lq_params_dim(p, part == LQ_R_Q ? LQ_DIM_Q : part == LQ_R_K || part == LQ_R_V ? LQ_DIM_KV : LQ_DIM_FFN);
}

lq_role lq_arch_holder(const lq_arch *a, const lq_params *p, lq_role part, lq_op_kind *how) {
    *how = LQ_OP_LINEAR;
    for (const lq_op *op = a->block; op->kind; op++) {
        if ((op->kind != LQ_OP_SPLIT && op->kind != LQ_OP_SPLIT_HEADS) || op->role != part || !lq_params_has(p, op->only_if)) continue;
        *how = op->kind;
        for (const lq_op *lin = op; lin-- > a->block;)
            if (lin->kind == LQ_OP_LINEAR && lin->out == op->in[0] && lq_params_has(p, lin->only_if)) return lin->role;
    }
    return part;
}

uint32_t lq_split_row(const lq_params *p, lq_op_kind how, lq_role part, uint32_t i) {
    uint32_t q = p->n_heads * p->head_dim, kv = p->n_kv_heads * p->head_dim, d = p->head_dim, per = p->n_heads / p->n_kv_heads;
    if (how == LQ_OP_SPLIT) return i + (part == LQ_R_K ? q : part == LQ_R_V ? q + kv : part == LQ_R_UP ? p->ffn : 0);
    if (how != LQ_OP_SPLIT_HEADS) return i;
    uint32_t head = i / d, group = part == LQ_R_Q ? head / per : head, in = part == LQ_R_Q ? head % per : part == LQ_R_K ? per : per + 1;
    return (group * (per + 2) + in) * d + i % d;
}
