/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Parameters -> the config.json that says them, for sources that have none. What a family alone has, its own `config` adds. Rope settings are
 * spelled as before transformers 5 (rope_theta, rope_scaling), which both read. */
#include "calib/arch.h"

#include "core/num.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A double that prints as the float it came from: 1e-5 and not 9.99999974737875e-06. */
double lq_params_shortest(float f) {
    char text[32];
    double d = f;
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)f);
        d = strtod(text, NULL);
        if ((float)d == f) break;
    }
    return d;
}

static json_t *numbers(const double *v, uint32_t n) {
    json_t *list = json_array();
    for (uint32_t i = 0; list && i < n; i++)
        if (json_array_append_new(list, json_real(lq_params_shortest((float)v[i])))) return json_decref(list), NULL;
    return list;
}

static json_t *longrope(const lq_family *f, const lq_params *p) {
    const lq_rope *r = &p->rope;
    double usual = lq_rope_long_scale((double)p->max_ctx / r->original, r->original), scale = r->scale != 0 ? r->scale : 1;
    json_t *o = json_pack("{s:s, s:o, s:o}", "rope_type", "longrope", "short_factor", numbers(r->div, r->dim / 2), "long_factor", numbers(r->long_div, r->dim / 2));
    if (o && fabs(scale / usual - 1) > 1e-6) json_object_set_new(o, "attention_factor", json_real(lq_params_shortest((float)scale)));
    if (o && !f->long_context) json_object_set_new(o, "original_max_position_embeddings", json_integer(r->original)); /* Phi-3 has it beside the rope settings */
    return o;
}

static json_t *yarn(const lq_rope *r) {
    double usual = r->factor > 1 ? 0.1 * log(r->factor) + 1 : 1;
    json_t *o = json_pack("{s:s, s:f, s:f, s:f, s:i}", "rope_type", "yarn", "factor", r->factor, "beta_fast", r->high, "beta_slow", r->low, "original_max_position_embeddings", (int)r->original);
    if (o && fabs(r->scale / usual - 1) > 1e-6) json_object_set_new(o, "attention_factor", json_real(r->scale));
    if (o && !r->whole) json_object_set_new(o, "truncate", json_false());
    return o;
}

static json_t *scaling(lq_ctx *ctx, const lq_family *f, const lq_params *p, lq_status *st) {
    double factor = p->rope.factor, low = p->rope.low, high = p->rope.high;
    int original = (int)p->rope.original;
    *st = LQ_OK;
    switch (p->rope.kind) {
    case LQ_ROPE_LONGROPE: return longrope(f, p);
    case LQ_ROPE_YARN: return yarn(&p->rope);
    case LQ_ROPE_LINEAR:
    case LQ_ROPE_DYNAMIC: return json_pack("{s:s, s:f}", "rope_type", lq_rope_names[p->rope.kind], "factor", factor);
    case LQ_ROPE_DEFAULT:
        if (!p->rope.div) return json_null();
        original = 8192;
        if (lq_rope_recover(&p->rope, &factor, &low, &high)) break;
        *st = lq_fail(ctx, LQ_ERR_UNSUPPORTED, "tensor 'rope_freqs.weight' fits no llama3 rope scaling that config.json could say");
        return NULL;
    default: break;
    }
    return json_pack("{s:s, s:f, s:f, s:f, s:i}", "rope_type", "llama3", "factor", factor, "low_freq_factor", low, "high_freq_factor", high,
                     "original_max_position_embeddings", original);
}

/* The share of a head that turns, such that head_dim times it, cut to a whole number, is dim again. */
static double share(uint32_t dim, uint32_t head_dim) {
    double part = (double)dim / head_dim;
    return (uint32_t)(head_dim * part) == dim ? part : nextafter(part, 1);
}

static bool turns(const lq_arch *a) {
    for (const lq_op *op = a->block; op->kind; op++)
        if (op->kind == LQ_OP_ROPE) return true;
    return false;
}

static void rope_out(const lq_family *f, const lq_params *p, json_t *c) {
    json_object_set_new(c, lq_params_key(f, "rope_theta"), json_real(p->rope.base));
    if (f->partial != 0) json_object_set_new(c, lq_params_key(f, "partial_rotary_factor"), json_real(share(p->rope.dim, p->head_dim)));
    if (f->long_context) json_object_set_new(c, "original_max_position_embeddings", json_integer(p->rope.original));
    if (p->two_ropes) json_object_set_new(c, "rope_local_base_freq", json_real(p->local_rope.base));
}

static json_t *layer_types(const lq_params *p) {
    json_t *list = json_array();
    for (uint32_t l = 0; list && l < p->n_layers; l++) json_array_append_new(list, json_string(p->layer_window && p->layer_window[l] ? "sliding_attention" : "full_attention"));
    return list;
}

static void windows_out(const lq_family *f, const lq_params *p, json_t *c) {
    if (f->windows == LQ_WINDOW_NONE) return;
    json_object_set_new(c, "sliding_window", p->window ? json_integer(p->window) : json_null());
    if (f->windows == LQ_WINDOW_BY_LAYER || f->windows >= LQ_WINDOW_EVEN_LAYERS) json_object_set_new(c, "use_sliding_window", json_boolean(p->window > 0));
    if (f->windows == LQ_WINDOW_BY_LAYER && p->window && !p->layer_window) json_object_set_new(c, "max_window_layers", json_integer(0));
    if (p->layer_window || f->windows == LQ_WINDOW_ALTERNATE) json_object_set_new(c, "layer_types", layer_types(p));
}

static lq_status biases_out(lq_ctx *ctx, const lq_family *f, const lq_params *p, json_t *c) {
    if (f->attention_bias && !f->o_plain && !f->qkv_bias && p->qkv_bias != p->o_bias)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "biases on %s alone: 'attention_bias' of config.json means q, k, v and o", p->o_bias ? "o" : "q, k and v");
    if (f->attention_bias) json_object_set_new(c, "attention_bias", json_boolean(f->o_plain ? p->qkv_bias : p->o_bias));
    if (f->mlp_bias) json_object_set_new(c, "mlp_bias", json_boolean(p->mlp_bias));
    return LQ_OK;
}

static void sizes_out(const lq_family *f, const lq_params *p, json_t *c) {
    static const struct { const char *key; size_t at; } sizes[] = {
        {"hidden_size", offsetof(lq_params, hidden)}, {"intermediate_size", offsetof(lq_params, ffn)}, {"num_hidden_layers", offsetof(lq_params, n_layers)},
        {"num_attention_heads", offsetof(lq_params, n_heads)}, {"vocab_size", offsetof(lq_params, vocab)}, {"max_position_embeddings", offsetof(lq_params, max_ctx)}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        json_object_set_new(c, lq_params_key(f, sizes[i].key), json_integer(*(const uint32_t *)(const void *)((const char *)p + sizes[i].at)));
    bool classic = f->layernorm; /* in most of these a head's width is a property that cannot be set */
    if (!classic || p->head_dim != p->hidden / p->n_heads) json_object_set_new(c, "head_dim", json_integer(p->head_dim));
    if (!classic || p->n_kv_heads != p->n_heads) json_object_set_new(c, lq_params_key(f, "num_key_value_heads"), json_integer(p->n_kv_heads));
}

lq_status lq_params_to_hf(lq_ctx *ctx, const lq_arch *arch, const lq_params *p, json_t **out) {
    const lq_family *f = &arch->family;
    lq_status st;
    *out = NULL;
    json_t *rope = scaling(ctx, f, p, &st), *c = NULL;
    if (st) return st;
    if (rope) c = json_pack("{s:[s], s:s, s:b}", "architectures", f->hf_class, "model_type", arch->model_types[0], "tie_word_embeddings", p->tied);
    if (!c) return json_decref(rope), lq_oom(ctx, 0);
    sizes_out(f, p, c);
    json_object_set_new(c, lq_params_key(f, "rms_norm_eps"), json_real(lq_params_shortest(p->norm_eps)));
    json_object_set_new(c, f->act_key ? f->act_key : "hidden_act", json_string(lq_actfn_names[p->act]));
    if (turns(arch)) rope_out(f, p, c), json_object_set(c, "rope_scaling", rope);
    json_decref(rope);
    windows_out(f, p, c);
    st = biases_out(ctx, f, p, c);
    if (st) return json_decref(c), st;
    *out = c;
    return LQ_OK;
}
