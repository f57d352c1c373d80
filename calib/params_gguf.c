/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* GGUF metadata -> parameters of the Llama-like families. Keys: formats.md 6.2; what the metadata does not say (biases, tied
 * head, vocabulary) follows from the tensors that are there. */
#include "calib/arch.h"

#include "core/num.h"

#include <stdio.h>

static const lq_gguf_kv *find(const lq_gguf *g, const lq_arch *a, const char *suffix) {
    char key[128];
    snprintf(key, sizeof key, "%s.%s", a->gguf_archs[0], suffix);
    return lq_gguf_find(g, key);
}

/* A number; an array (some files have one entry per layer) must hold one value throughout. def < 0: required. */
static lq_status number(lq_ctx *ctx, const lq_gguf *g, const lq_arch *a, const char *suffix, double def, double lo, double hi, double *out) {
    const lq_gguf_kv *kv = find(g, a, suffix);
    *out = def;
    if (!kv) return def >= 0 ? LQ_OK : lq_fail(ctx, LQ_ERR_FORMAT, "metadata key '%s.%s' is missing", a->gguf_archs[0], suffix);
    if (lq_gguf_elem(kv) == LQ_GGUF_STRING || !lq_gguf_len(kv))
        return lq_fail(ctx, LQ_ERR_FORMAT, "metadata key '%s' is not a number", lq_gguf_kv_key(kv));
    *out = lq_gguf_num(kv, 0);
    for (uint64_t i = 1; i < lq_gguf_len(kv); i++)
        if (lq_gguf_num(kv, i) != *out) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "metadata key '%s' differs between layers", lq_gguf_kv_key(kv));
    if (!(*out >= lo && *out <= hi))
        return lq_fail(ctx, LQ_ERR_FORMAT, "metadata key '%s' is %g, expected %g to %g", lq_gguf_kv_key(kv), *out, lo, hi);
    return LQ_OK;
}

static lq_status u32(lq_ctx *ctx, const lq_gguf *g, const lq_arch *a, const char *suffix, double def, double hi, uint32_t *out) {
    double v;
    *out = 0;
    LQ_TRY(number(ctx, g, a, suffix, def, 0, hi, &v));
    if (v != floor(v)) return lq_fail(ctx, LQ_ERR_FORMAT, "metadata key '%s.%s' is %g, expected an integer", a->gguf_archs[0], suffix, v);
    *out = (uint32_t)v;
    return LQ_OK;
}

static const lq_gguf_tensor *tensor(const lq_gguf *g, const char *name) {
    for (size_t i = 0; i < lq_gguf_count(g); i++)
        if (!strcmp(lq_gguf_tensor_at(g, i)->name, name)) return lq_gguf_tensor_at(g, i);
    return NULL;
}

static bool has(const lq_gguf *g, const lq_arch *a, lq_role role, lq_part part) {
    char name[128];
    const lq_arch_name *t = lq_arch_tensor(a, role, part);
    if (!t || !t->gguf) return false;
    const char *mark = strstr(t->gguf, "%d");
    if (mark) snprintf(name, sizeof name, "%.*s0%s", (int)(mark - t->gguf), t->gguf, mark + 2);
    else snprintf(name, sizeof name, "%s", t->gguf);
    return tensor(g, name) != NULL;
}

static lq_status sizes(lq_ctx *ctx, const lq_arch *a, const lq_gguf *g, lq_params *p) {
    uint32_t experts, value_dim, rope_dim;
    LQ_TRY(u32(ctx, g, a, "embedding_length", -1, 1 << 20, &p->hidden));
    LQ_TRY(u32(ctx, g, a, "feed_forward_length", -1, 1 << 22, &p->ffn));
    LQ_TRY(u32(ctx, g, a, "block_count", -1, 1024, &p->n_layers));
    LQ_TRY(u32(ctx, g, a, "context_length", -1, 1 << 28, &p->max_ctx));
    LQ_TRY(u32(ctx, g, a, "attention.head_count", -1, 4096, &p->n_heads));
    LQ_TRY(u32(ctx, g, a, "attention.head_count_kv", p->n_heads, 4096, &p->n_kv_heads));
    LQ_TRY(u32(ctx, g, a, "expert_count", 0, 4096, &experts));
    if (experts && !a->family.moe.n) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "mixture of experts (%s.expert_count %u) is not supported", a->gguf_archs[0], experts);
    if (!p->hidden || !p->ffn || !p->n_layers || !p->max_ctx || !p->n_heads || !p->n_kv_heads || p->n_heads % p->n_kv_heads)
        return lq_fail(ctx, LQ_ERR_FORMAT, "metadata sizes do not fit: embedding %u, feed-forward %u, blocks %u, context %u, heads %u, kv heads %u",
                       p->hidden, p->ffn, p->n_layers, p->max_ctx, p->n_heads, p->n_kv_heads);
    LQ_TRY(u32(ctx, g, a, "attention.key_length", p->hidden / p->n_heads, 1024, &p->head_dim));
    LQ_TRY(u32(ctx, g, a, "attention.value_length", p->head_dim, 1024, &value_dim));
    LQ_TRY(u32(ctx, g, a, "rope.dimension_count", p->head_dim, 1024, &rope_dim));
    if (!p->head_dim || p->head_dim % 2 || value_dim != p->head_dim || rope_dim != p->head_dim)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "heads of %u (keys), %u (values) and %u (rotary) are not supported, they must be equal and even",
                       p->head_dim, value_dim, rope_dim);
    return LQ_OK;
}

static lq_status rope(lq_ctx *ctx, const lq_arch *a, const lq_gguf *g, lq_params *p) {
    p->rope.dim = p->head_dim;
    LQ_TRY(number(ctx, g, a, "rope.freq_base", 10000, 1, 1e15, &p->rope.base));
    const lq_gguf_kv *kv = find(g, a, "rope.scaling.type");
    size_t len;
    const char *type = kv ? lq_gguf_str(kv, 0, &len) : NULL;
    if (type && !strcmp(type, "linear")) p->rope.kind = LQ_ROPE_LINEAR;
    else if (type && strcmp(type, "none")) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "rope scaling '%s' is not supported (none and linear are)", type);
    LQ_TRY(number(ctx, g, a, "rope.scaling.factor", 1, 0, 1e6, &p->rope.factor));
    if (!type && p->rope.factor != 1 && p->rope.factor != 0) p->rope.kind = LQ_ROPE_LINEAR; /* older files: a factor without a type */
    if (p->rope.kind == LQ_ROPE_LINEAR && p->rope.factor < 1e-3)
        return lq_fail(ctx, LQ_ERR_FORMAT, "linear rope scaling with factor %g", p->rope.factor);
    return LQ_OK;
}

lq_status lq_params_from_gguf(lq_ctx *ctx, const lq_arch *a, const lq_gguf *g, lq_params *p) {
    double eps;
    LQ_TRY(sizes(ctx, a, g, p));
    LQ_TRY(number(ctx, g, a, "attention.layer_norm_rms_epsilon", -1, 0, 1, &eps));
    p->norm_eps = (float)eps;
    p->act = LQ_ACTFN_SILU;
    LQ_TRY(rope(ctx, a, g, p));
    if (a->family.windows != LQ_WINDOW_NONE) LQ_TRY(u32(ctx, g, a, "attention.sliding_window", 0, 1 << 28, &p->window));
    const lq_gguf_tensor *embed = tensor(g, lq_arch_tensor(a, LQ_R_EMBED, LQ_PART_WEIGHT)->gguf);
    if (!embed || embed->ndim != 2 || embed->ne[1] < 1 || embed->ne[1] > 1 << 24)
        return lq_fail(ctx, LQ_ERR_FORMAT, "tensor '%s' is missing or no matrix", lq_arch_tensor(a, LQ_R_EMBED, LQ_PART_WEIGHT)->gguf);
    p->vocab = (uint32_t)embed->ne[1];
    p->tied = !has(g, a, LQ_R_HEAD, LQ_PART_WEIGHT);
    p->qkv_bias = has(g, a, LQ_R_Q, LQ_PART_BIAS);
    p->o_bias = has(g, a, LQ_R_O, LQ_PART_BIAS);
    p->mlp_bias = has(g, a, LQ_R_GATE, LQ_PART_BIAS);
    p->qk_norm = has(g, a, LQ_R_Q_NORM, LQ_PART_WEIGHT);
    p->rope_tensor = has(g, a, LQ_R_ROPE_DIV, LQ_PART_WEIGHT);
    return LQ_OK;
}
