/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* config.json -> parameters (the other way: params_to_hf.c). Absent keys mean what transformers makes of them; rope settings are
 * read where it wrote them before version 5 (rope_theta, rope_scaling) and since (rope_parameters). */
#include "calib/arch.h"

#include "core/num.h"

#include <string.h>

enum { MAX_HIDDEN = 1 << 20, MAX_FFN = 1 << 22, MAX_LAYERS = 1024, MAX_HEADS = 4096, MAX_HEAD_DIM = 1024, MAX_VOCAB = 1 << 24, MAX_CTX = 1 << 28 };

/* def <= 0: required */
static lq_status u32(lq_ctx *ctx, const json_t *c, const char *key, int64_t def, int64_t hi, uint32_t *out) {
    int64_t v;
    LQ_TRY(lq_json_int(ctx, c, key, def <= 0, def, 1, hi, &v));
    *out = (uint32_t)v;
    return LQ_OK;
}

const char *lq_params_key(const lq_family *f, const char *key) {
    for (const lq_respelled *k = f->keys; k && k->from; k++)
        if (!strcmp(k->from, key)) return k->to;
    return key;
}

static lq_status sizes(lq_ctx *ctx, const lq_family *f, const json_t *c, lq_params *p) {
    LQ_TRY(u32(ctx, c, lq_params_key(f, "hidden_size"), f->hidden, MAX_HIDDEN, &p->hidden));
    LQ_TRY(u32(ctx, c, lq_params_key(f, "intermediate_size"), f->ffn ? f->ffn : (int64_t)f->ffn_times * p->hidden, MAX_FFN, &p->ffn));
    LQ_TRY(u32(ctx, c, lq_params_key(f, "num_hidden_layers"), f->layers, MAX_LAYERS, &p->n_layers));
    LQ_TRY(u32(ctx, c, lq_params_key(f, "vocab_size"), f->vocab, MAX_VOCAB, &p->vocab));
    LQ_TRY(u32(ctx, c, lq_params_key(f, "max_position_embeddings"), f->max_ctx, MAX_CTX, &p->max_ctx));
    LQ_TRY(u32(ctx, c, lq_params_key(f, "num_attention_heads"), f->heads, MAX_HEADS, &p->n_heads));
    LQ_TRY(u32(ctx, c, lq_params_key(f, "num_key_value_heads"), f->kv_heads ? f->kv_heads : p->n_heads, MAX_HEADS, &p->n_kv_heads));
    if (p->n_heads % p->n_kv_heads)
        return lq_fail(ctx, LQ_ERR_FORMAT, "'num_key_value_heads' %u does not divide 'num_attention_heads' %u", p->n_kv_heads, p->n_heads);
    uint32_t head_dim = f->head_dim ? f->head_dim : p->hidden / p->n_heads;
    if (!head_dim) return lq_fail(ctx, LQ_ERR_FORMAT, "'num_attention_heads' %u exceeds 'hidden_size' %u", p->n_heads, p->hidden);
    LQ_TRY(u32(ctx, c, lq_params_key(f, "head_dim"), head_dim, MAX_HEAD_DIM, &p->head_dim));
    if (p->head_dim % 2) return lq_fail(ctx, LQ_ERR_FORMAT, "head_dim is %u, rotary positions need an even one", p->head_dim);
    return LQ_OK;
}

lq_status lq_params_act(lq_ctx *ctx, const lq_family *f, const char *name, lq_actfn *out) {
    static const lq_respelled same[] = {{"swish", "silu"}, {"gelu_python", "gelu"}, {"gelu_new", "gelu_pytorch_tanh"}, {"gelu_fast", "gelu_pytorch_tanh"},
                                        {"gelu_accurate", "gelu_pytorch_tanh"}, {"gelu_python_tanh", "gelu_pytorch_tanh"}};
    if (!name) name = f->act ? f->act : "silu";
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        if (!strcmp(name, same[i].from)) name = same[i].to;
    if (f->gelu_is_tanh && !strcmp(name, "gelu")) name = "gelu_pytorch_tanh";
    for (int i = 0; i < LQ_ACTFN_N; i++) {
        *out = (lq_actfn)i;
        if (!strcmp(name, lq_actfn_names[i])) return LQ_OK;
    }
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "activation '%s' is not supported", name);
}

static lq_status activation(lq_ctx *ctx, const lq_family *f, const json_t *c, lq_params *p) {
    const char *name;
    LQ_TRY(lq_json_string(ctx, c, f->act_key ? f->act_key : "hidden_act", false, &name));
    return lq_params_act(ctx, f, name, &p->act);
}

lq_status lq_params_real(lq_ctx *ctx, const json_t *o, const char *key, bool required, double def, double lo, double hi, double *out) {
    LQ_TRY(lq_json_real(ctx, o, key, required, def, out));
    if (*out < lo || *out > hi) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is %g, expected %g to %g", key, *out, lo, hi);
    return LQ_OK;
}

/* 'layer_types' when present; else, Qwen: layers from max_window_layers on, Gemma: all but every so many. */
static lq_status windows_by_layer(lq_ctx *ctx, const lq_family *f, const json_t *c, lq_params *p) {
    const json_t *types = json_object_get(c, "layer_types");
    int64_t first, every = f->window_every;
    LQ_TRY(lq_json_int(ctx, c, "max_window_layers", false, 28, 0, 1 << 20, &first));
    if (f->window_every_key) LQ_TRY(lq_json_int(ctx, c, f->window_every_key, false, every, 1, 1 << 20, &every));
    if (types && !json_is_null(types) && json_array_size(types) != p->n_layers)
        return lq_fail(ctx, LQ_ERR_FORMAT, "'layer_types' has %zu entries, expected %u", json_array_size(types), p->n_layers);
    if (!(p->layer_window = lq_alloc(p->n_layers))) return lq_oom(ctx, p->n_layers);
    for (uint32_t i = 0; i < p->n_layers; i++) {
        p->layer_window[i] = f->windows == LQ_WINDOW_ALTERNATE ? (i + 1) % every != 0 : (int64_t)i >= first;
        if (f->windows == LQ_WINDOW_EVEN_LAYERS) p->layer_window[i] = i % 2 == 0 && (int64_t)i < first;
        if (!json_is_array(types)) continue;
        const char *t = json_string_value(json_array_get(types, i));
        p->layer_window[i] = t && !strcmp(t, "sliding_attention");
        if (!t || (!p->layer_window[i] && strcmp(t, "full_attention")))
            return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "layer type '%s' is not supported", t ? t : "(not a string)");
    }
    return LQ_OK;
}

static lq_status window(lq_ctx *ctx, const lq_family *f, const json_t *c, lq_params *p) {
    if (f->windows == LQ_WINDOW_NONE) return LQ_OK;
    bool use = true;
    if (f->windows == LQ_WINDOW_BY_LAYER || f->windows >= LQ_WINDOW_EVEN_LAYERS) LQ_TRY(lq_json_bool(ctx, c, "use_sliding_window", false, &use));
    const json_t *v = json_object_get(c, "sliding_window");
    bool none = !use || (v ? json_is_null(v) : !f->window); /* an explicit null: none; an absent key: the family's */
    if (none && f->windows != LQ_WINDOW_ALTERNATE) return LQ_OK;
    if (!none) LQ_TRY(u32(ctx, c, "sliding_window", f->window, MAX_CTX, &p->window));
    return f->windows >= LQ_WINDOW_BY_LAYER && f->windows != LQ_WINDOW_SWITCHED ? windows_by_layer(ctx, f, c, p) : LQ_OK;
}

static lq_status switches(lq_ctx *ctx, const lq_family *f, const json_t *c, lq_params *p) {
    p->qkv_bias = f->qkv_bias;
    p->qk_norm = f->qk_norm;
    if (f->attention_bias) {
        bool bias;
        LQ_TRY(lq_json_bool(ctx, c, "attention_bias", f->qkv_bias && f->o_plain, &bias));
        p->qkv_bias = bias || (f->qkv_bias && !f->o_plain);
        p->o_bias = bias && !f->o_plain;
    }
    if (f->mlp_bias) LQ_TRY(lq_json_bool(ctx, c, "mlp_bias", false, &p->mlp_bias));
    return lq_json_bool(ctx, c, "tie_word_embeddings", f->tied, &p->tied);
}

lq_status lq_params_from_hf(lq_ctx *ctx, const lq_arch *arch, const json_t *c, lq_params *p) {
    double eps;
    LQ_TRY(sizes(ctx, &arch->family, c, p));
    LQ_TRY(activation(ctx, &arch->family, c, p));
    LQ_TRY(lq_params_real(ctx, c, lq_params_key(&arch->family, "rms_norm_eps"), false, arch->family.eps ? arch->family.eps : 1e-6, 0, 1, &eps));
    p->norm_eps = (float)eps;
    p->layernorm = arch->family.layernorm;
    LQ_TRY(lq_params_rope_hf(ctx, arch, c, p));
    LQ_TRY(window(ctx, &arch->family, c, p));
    return switches(ctx, &arch->family, c, p);
}
