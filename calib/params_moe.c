/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What a mixture of experts adds to the parameters: how many, how wide, which blocks, how routed. Absent keys mean what transformers makes
 * of them. */
#include "calib/arch.h"

enum { MAX_EXPERTS = 4096, MAX_FFN = 1 << 22, MAX_STEP = 1 << 20 };

static lq_status u32(lq_ctx *ctx, const json_t *c, const char *key, int64_t absent, int64_t hi, uint32_t *out) {
    int64_t v;
    LQ_TRY(lq_json_int(ctx, c, key, false, absent, 1, hi, &v));
    *out = (uint32_t)v;
    return LQ_OK;
}

static lq_status check_top_k(lq_ctx *ctx, const lq_params *p) {
    if (p->top_k && p->top_k <= p->n_experts) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_FORMAT, "%u experts per token of %u", p->top_k, p->n_experts);
}

static lq_status keep_dense(lq_params *p) {
    uint32_t dense = 0;
    for (uint32_t b = 0; b < p->n_layers; b++) dense += p->layer_dense[b];
    if (dense == p->n_layers) p->n_experts = p->top_k = 0;
    if (dense && p->n_experts) return LQ_OK;
    lq_free(p->layer_dense);
    p->layer_dense = NULL;
    return LQ_OK;
}

/* Block i has experts unless it is named in mlp_only_layers or i + 1 is no multiple of decoder_sparse_step. */
static lq_status dense_layers(lq_ctx *ctx, const json_t *c, lq_params *p) {
    const json_t *only = json_object_get(c, "mlp_only_layers"), *v;
    uint32_t step;
    LQ_TRY(u32(ctx, c, "decoder_sparse_step", 1, MAX_STEP, &step));
    if (only && !json_is_null(only) && !json_is_array(only)) return lq_fail(ctx, LQ_ERR_FORMAT, "'mlp_only_layers' is not a list");
    if (!(p->layer_dense = lq_calloc(p->n_layers, 1))) return lq_oom(ctx, p->n_layers);
    for (uint32_t i = 0; i < p->n_layers; i++) p->layer_dense[i] = (i + 1) % step != 0;
    size_t i;
    json_array_foreach(only, i, v) {
        if (!json_is_integer(v)) return lq_fail(ctx, LQ_ERR_FORMAT, "'mlp_only_layers' holds something that is no integer");
        if (json_integer_value(v) >= 0 && json_integer_value(v) < p->n_layers) p->layer_dense[json_integer_value(v)] = 1;
    }
    return keep_dense(p);
}

lq_status lq_params_moe_hf(lq_ctx *ctx, const lq_arch *arch, const json_t *c, lq_params *p) {
    const struct lq_moe_keys *k = &arch->family.moe;
    double clip;
    LQ_TRY(lq_params_from_hf(ctx, arch, c, p));
    LQ_TRY(u32(ctx, c, k->n, k->n_absent, MAX_EXPERTS, &p->n_experts));
    LQ_TRY(u32(ctx, c, "num_experts_per_tok", k->top_k_absent, MAX_EXPERTS, &p->top_k));
    LQ_TRY(check_top_k(ctx, p));
    p->expert_ffn = p->ffn;
    if (k->ffn) LQ_TRY(u32(ctx, c, k->ffn, k->ffn_absent, MAX_FFN, &p->expert_ffn));
    if (k->shared_ffn) LQ_TRY(u32(ctx, c, k->shared_ffn, k->shared_absent, MAX_FFN, &p->shared_ffn));
    p->norm_topk = k->norm_always;
    if (k->norm_key) LQ_TRY(lq_json_bool(ctx, c, "norm_topk_prob", false, &p->norm_topk));
    if (k->qkv_bias_key) LQ_TRY(lq_json_bool(ctx, c, "qkv_bias", true, &p->qkv_bias));
    if (k->clip) {
        LQ_TRY(lq_params_real(ctx, c, "clip_qkv", false, 0, 0, 1e30, &clip));
        p->clip_qkv = (float)clip;
    }
    return k->sparse_keys ? dense_layers(ctx, c, p) : LQ_OK;
}

static json_t *dense_list(const lq_params *p) {
    json_t *list = json_array();
    for (uint32_t b = 0; list && p->layer_dense && b < p->n_layers; b++)
        if (p->layer_dense[b]) json_array_append_new(list, json_integer(b));
    return list;
}

lq_status lq_params_moe_to_hf(lq_ctx *ctx, const lq_arch *a, const lq_params *p, json_t **out) {
    const struct lq_moe_keys *k = &a->family.moe;
    LQ_TRY(lq_params_to_hf(ctx, a, p, out));
    int bad = json_object_set_new(*out, k->n, json_integer(p->n_experts)) | json_object_set_new(*out, "num_experts_per_tok", json_integer(p->top_k));
    if (k->ffn) bad |= json_object_set_new(*out, k->ffn, json_integer(p->expert_ffn));
    if (k->shared_ffn) bad |= json_object_set_new(*out, k->shared_ffn, json_integer(p->shared_ffn));
    if (k->norm_key) bad |= json_object_set_new(*out, "norm_topk_prob", json_boolean(p->norm_topk));
    if (k->qkv_bias_key) bad |= json_object_set_new(*out, "qkv_bias", json_boolean(p->qkv_bias));
    if (k->sparse_keys) bad |= json_object_set_new(*out, "decoder_sparse_step", json_integer(1)) | json_object_set_new(*out, "mlp_only_layers", dense_list(p));
    if (k->clip) bad |= json_object_set_new(*out, "clip_qkv", p->clip_qkv > 0 ? json_real(p->clip_qkv) : json_null());
    if (!bad) return LQ_OK;
    json_decref(*out);
    *out = NULL;
    return lq_oom(ctx, 256);
}
