/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* GGUF metadata -> parameters, for every architecture with a name there. Keys: formats.md 6.2; what is special about one: gguf_form.c and the
 * traits of its row; what the metadata does not say (biases, tied head, vocabulary, norms) follows from the tensors that are there. */
#include "calib/gguf_form.h"

#include "core/num.h"

#include <stdio.h>
#include <string.h>

enum { MAX_HIDDEN = 1 << 20, MAX_FFN = 1 << 22, MAX_LAYERS = 1024, MAX_HEADS = 4096, MAX_HEAD_DIM = 1024, MAX_VOCAB = 1 << 24, MAX_CTX = 1 << 28, MAX_EXPERTS = 4096 };

typedef struct reader {
    lq_ctx *ctx;
    const lq_arch *a;
    lq_source *src;
    const lq_gguf *g;
    const char *prefix;      /* general.architecture */
    lq_params *p;
    char key[128];
} reader;

/* -- keys -------------------------------------------------------------------------------------------------------------- */

static const lq_gguf_kv *find(reader *r, const char *suffix) {
    snprintf(r->key, sizeof r->key, "%s.%s", r->prefix, suffix);
    return lq_gguf_find(r->g, r->key);
}

/* A number; an array (some files have one entry per layer) must hold one value throughout. def < 0: required. */
static lq_status number(reader *r, const char *suffix, double def, double lo, double hi, double *out) {
    const lq_gguf_kv *kv = find(r, suffix);
    *out = def;
    if (!kv) return def >= 0 ? LQ_OK : lq_fail(r->ctx, LQ_ERR_FORMAT, "metadata key '%s' is missing", r->key);
    if (lq_gguf_elem(kv) == LQ_GGUF_STRING || !lq_gguf_len(kv)) return lq_fail(r->ctx, LQ_ERR_FORMAT, "metadata key '%s' is not a number", r->key);
    *out = lq_gguf_num(kv, 0);
    for (uint64_t i = 1; i < lq_gguf_len(kv); i++)
        if (lq_gguf_num(kv, i) != *out) return lq_fail(r->ctx, LQ_ERR_UNSUPPORTED, "metadata key '%s' differs between layers", r->key);
    if (!(*out >= lo && *out <= hi)) return lq_fail(r->ctx, LQ_ERR_FORMAT, "metadata key '%s' is %g, expected %g to %g", r->key, *out, lo, hi);
    return LQ_OK;
}

static lq_status u32(reader *r, const char *suffix, double def, double lo, double hi, uint32_t *out) {
    double v;
    *out = 0;
    LQ_TRY(number(r, suffix, def, lo, hi, &v));
    if (v != floor(v)) return lq_fail(r->ctx, LQ_ERR_FORMAT, "metadata key '%s' is %g, expected an integer", r->key, v);
    *out = (uint32_t)v;
    return LQ_OK;
}

static lq_status sizes(reader *r) {
    lq_params *p = r->p;
    uint32_t value_dim, experts;
    LQ_TRY(u32(r, "embedding_length", -1, 1, MAX_HIDDEN, &p->hidden));
    LQ_TRY(u32(r, "feed_forward_length", -1, 1, MAX_FFN, &p->ffn));
    LQ_TRY(u32(r, "block_count", -1, 1, MAX_LAYERS, &p->n_layers));
    LQ_TRY(u32(r, "context_length", -1, 1, MAX_CTX, &p->max_ctx));
    LQ_TRY(u32(r, "attention.head_count", -1, 1, MAX_HEADS, &p->n_heads));
    LQ_TRY(u32(r, "attention.head_count_kv", p->n_heads, 1, MAX_HEADS, &p->n_kv_heads));
    LQ_TRY(u32(r, "expert_count", 0, 0, MAX_EXPERTS, &experts));
    if (experts && !r->a->family.moe.n) return lq_fail(r->ctx, LQ_ERR_UNSUPPORTED, "mixture of experts (%s %u) is not supported", r->key, experts);
    if (p->n_heads % p->n_kv_heads) return lq_fail(r->ctx, LQ_ERR_FORMAT, "metadata sizes do not fit: %u heads, %u kv heads", p->n_heads, p->n_kv_heads);
    LQ_TRY(u32(r, "attention.key_length", p->hidden / p->n_heads, 1, MAX_HEAD_DIM, &p->head_dim));
    LQ_TRY(u32(r, "attention.value_length", p->hidden / p->n_heads, 1, MAX_HEAD_DIM, &value_dim));
    if (!(p->head_dim % 2) && value_dim == p->head_dim) return LQ_OK;
    return lq_fail(r->ctx, LQ_ERR_UNSUPPORTED, "heads of %u (keys) and %u (values) are not supported, they must be equal and even", p->head_dim, value_dim);
}

/* -- tensors that are there -------------------------------------------------------------------------------------------- */

static const lq_entry *tensor(const reader *r, const char *name) {
    long i = lq_source_find(r->src, name);
    return i < 0 ? NULL : &r->src->entries[i];
}

/* Whether block 0 (or the file) has what the architecture calls by this name. */
static bool is_there(const reader *r, const lq_arch_name *t) {
    char name[128];
    const char *mark = t->gguf ? strstr(t->gguf, "%d") : NULL;
    if (!t->gguf) return false;
    if (mark) snprintf(name, sizeof name, "%.*s0%s", (int)(mark - t->gguf), t->gguf, mark + 2);
    else snprintf(name, sizeof name, "%s", t->gguf);
    return tensor(r, name) != NULL;
}

/* A feature is on where a tensor is that only it has; a second norm where all of its tensors are. */
static void features(reader *r) {
    lq_params *p = r->p;
    p->tied = true;
    for (const lq_arch_name *t = r->a->names; t->role; t++) {
        bool *on = t->only_if == LQ_FEAT_QK_NORM ? &p->qk_norm : t->only_if == LQ_FEAT_QKV_BIAS ? &p->qkv_bias : t->only_if == LQ_FEAT_O_BIAS ? &p->o_bias :
                   t->only_if == LQ_FEAT_MLP_BIAS ? &p->mlp_bias : t->only_if == LQ_FEAT_HEAD_BIAS ? &p->head_bias : NULL;
        if (on && is_there(r, t)) *on = true;
        if (t->only_if == LQ_FEAT_UNTIED && is_there(r, t)) p->tied = false;
        if (t->only_if == LQ_FEAT_TWO_NORMS && !is_there(r, t)) p->one_norm = true;
    }
}

static lq_status vocabulary(reader *r) {
    const char *name = lq_arch_tensor(r->a, LQ_R_EMBED, LQ_PART_WEIGHT)->gguf;
    const lq_entry *e = tensor(r, name);
    if (!e || e->ndim != 2 || e->shape[0] < 1 || e->shape[0] > MAX_VOCAB) return lq_fail(r->ctx, LQ_ERR_FORMAT, "tensor '%s' is missing or no matrix", name);
    r->p->vocab = (uint32_t)e->shape[0];
    return LQ_OK;
}

/* -- rope -------------------------------------------------------------------------------------------------------------- */

static lq_status read_factor(reader *r, const lq_gguf_factor *f, lq_rope *rope) {
    const lq_entry *e = tensor(r, f->name);
    double **out = (double **)(void *)((char *)rope + f->at);
    uint32_t half = rope->dim / 2;
    if (e->ndim != 1 || e->shape[0] != half || e->dtype != LQ_F32)
        return lq_fail(r->ctx, LQ_ERR_FORMAT, "tensor '%s': %s of %u dimensions, [%llu ..], expected F32 [%u]", f->name, lq_dtypes[e->dtype].name, e->ndim, (unsigned long long)(e->ndim ? e->shape[0] : 0), half);
    if (*out) return lq_fail(r->ctx, LQ_ERR_FORMAT, "tensor '%s': the frequencies have other divisors already", f->name);
    float *v = LQ_NEWN(float, half);
    lq_status st = v && (*out = LQ_NEWN(double, half)) ? lq_source_read(r->ctx, r->src, (size_t)(e - r->src->entries), 0, half, v) : lq_oom(r->ctx, half * 8);
    for (uint32_t j = 0; j < half && !st; j++) {
        (*out)[j] = v[j];
        if (!(v[j] >= 1e-3f && v[j] <= 1e6f)) st = lq_fail(r->ctx, LQ_ERR_FORMAT, "tensor '%s': divisor %u is %g, expected 0.001 to 1e6", f->name, j, (double)v[j]);
    }
    lq_free(v);
    return st;
}

static lq_status factors(reader *r, lq_rope *rope) {
    for (const lq_gguf_factor *f = lq_gguf_factors; f->name; f++) {
        if (!(r->a->gguf & f->trait) || !tensor(r, f->name)) continue;
        if (f->kind != LQ_ROPE_DEFAULT) rope->kind = f->kind;
        LQ_TRY(read_factor(r, f, rope));
    }
    if (rope->kind != LQ_ROPE_LONGROPE || (rope->div && rope->long_div)) return LQ_OK;
    return lq_fail(r->ctx, LQ_ERR_FORMAT, "longrope scaling wants rope_factors_long.weight and rope_factors_short.weight");
}

static lq_status scaling(reader *r, lq_rope *rope) {
    const lq_gguf_kv *kv = find(r, "rope.scaling.type");
    size_t len;
    const char *type = kv ? lq_gguf_str(kv, 0, &len) : NULL;
    LQ_TRY(number(r, "rope.scaling.factor", 1, 0, 1e6, &rope->factor));
    if (type && !strcmp(type, "linear")) rope->kind = rope->factor == 1 ? LQ_ROPE_DEFAULT : LQ_ROPE_LINEAR;
    else if (type && !strcmp(type, "yarn")) rope->kind = LQ_ROPE_YARN;
    else if (type && !strcmp(type, "longrope")) rope->kind = LQ_ROPE_LONGROPE;
    else if (type && strcmp(type, "none")) return lq_fail(r->ctx, LQ_ERR_UNSUPPORTED, "rope scaling '%s' is not supported (none, linear, yarn and longrope are)", type);
    if (!type && rope->factor != 1 && rope->factor != 0) rope->kind = LQ_ROPE_LINEAR; /* older files: a factor without a type */
    if ((rope->kind == LQ_ROPE_LINEAR || rope->kind == LQ_ROPE_YARN) && rope->factor < 1e-3)
        return lq_fail(r->ctx, LQ_ERR_FORMAT, "%s rope scaling with factor %g", lq_rope_names[rope->kind], rope->factor);
    return LQ_OK;
}

/* llama.cpp runs every yarn with ramp ends at 32 and 1 turns and the factor 0.1 ln(factor) + 1 on top of attn_factor. */
static lq_status yarn(reader *r, lq_rope *rope, double attn) {
    double fast, slow, ext, own;
    LQ_TRY(number(r, "rope.scaling.yarn_beta_fast", 32, 0, 1e6, &fast));
    LQ_TRY(number(r, "rope.scaling.yarn_beta_slow", 1, 0, 1e6, &slow));
    LQ_TRY(number(r, "rope.scaling.yarn_ext_factor", 1, -1, 1e6, &ext));
    LQ_TRY(number(r, "rope.scaling.yarn_attn_factor", 1, -1, 1e6, &own));
    if (fast != 32 || slow != 1 || (ext != 1 && ext >= 0) || (own != 1 && own >= 0))
        return lq_fail(r->ctx, LQ_ERR_UNSUPPORTED, "yarn with beta_fast %g, beta_slow %g, ext_factor %g, attn_factor %g: 32, 1, 1, 1 are supported", fast, slow, ext, own);
    rope->high = fast;
    rope->low = slow;
    rope->whole = true;
    rope->scale = (rope->factor > 1 ? 0.1 * log(rope->factor) + 1 : 1) * attn;
    return LQ_OK;
}

static lq_status rope(reader *r) {
    lq_params *p = r->p;
    lq_rope *rope = &p->rope;
    double attn;
    LQ_TRY(u32(r, "rope.dimension_count", p->head_dim, 1, MAX_HEAD_DIM, &rope->dim));
    if (rope->dim > p->head_dim || rope->dim % 2 || (rope->dim != p->head_dim && !r->a->family.partial))
        return lq_fail(r->ctx, LQ_ERR_UNSUPPORTED, "heads of %u of which %u are rotary are not supported in '%s'", p->head_dim, rope->dim, r->a->name);
    LQ_TRY(number(r, "rope.freq_base", 10000, 1, 1e15, &rope->base));
    LQ_TRY(scaling(r, rope));
    LQ_TRY(number(r, "rope.scaling.attn_factor", 1, 1e-3, 1e3, &attn));
    LQ_TRY(u32(r, "rope.scaling.original_context_length", p->max_ctx, 1, MAX_CTX, &rope->original));
    LQ_TRY(factors(r, rope));
    double usual = lq_rope_long_scale((double)p->max_ctx / rope->original, rope->original);
    if (rope->kind == LQ_ROPE_LONGROPE) rope->scale = fabs(attn / usual - 1) < 1e-6 ? usual : attn; /* the key has but a float of it */
    if (rope->kind == LQ_ROPE_YARN) LQ_TRY(yarn(r, rope, attn));
    rope->pairs = p->local_rope.pairs = r->a->family.rope_pairs;
    p->two_ropes = r->a->family.local_theta != 0;
    if (!p->two_ropes) return LQ_OK;
    p->local_rope.dim = rope->dim;
    return number(r, "rope.freq_base_swa", 10000, 1, 1e15, &p->local_rope.base);
}

/* -- windows ----------------------------------------------------------------------------------------------------------- */

/* Which layers: a list, or all but every so many. */
static lq_status window_layers(reader *r) {
    lq_params *p = r->p;
    const lq_gguf_kv *kv = find(r, "attention.sliding_window_pattern");
    bool list = kv && lq_gguf_is_array(kv);
    uint32_t every = r->a->family.window_every;
    if (list && (lq_gguf_len(kv) != p->n_layers || lq_gguf_elem(kv) == LQ_GGUF_STRING))
        return lq_fail(r->ctx, LQ_ERR_FORMAT, "metadata key '%s' has %llu entries, expected %u", r->key, (unsigned long long)lq_gguf_len(kv), p->n_layers);
    if (!list && !kv && !every) return LQ_OK; /* all */
    if (kv && !list) LQ_TRY(u32(r, "attention.sliding_window_pattern", every, 1, MAX_CTX, &every));
    if (!(p->layer_window = lq_alloc(p->n_layers))) return lq_oom(r->ctx, p->n_layers);
    for (uint32_t l = 0; l < p->n_layers; l++) p->layer_window[l] = list ? lq_gguf_num(kv, l) != 0 : (l + 1) % every != 0;
    return LQ_OK;
}

static lq_status window(reader *r) {
    const lq_family *f = &r->a->family;
    if (f->windows == LQ_WINDOW_NONE) return LQ_OK;
    bool always = r->a->gguf & LQ_GGUF_CAPS; /* Gemma 2 */
    LQ_TRY(u32(r, "attention.sliding_window", always ? f->window : 0, 0, MAX_CTX, &r->p->window));
    if (f->windows < LQ_WINDOW_BY_LAYER || f->windows == LQ_WINDOW_SWITCHED || !r->p->window) return LQ_OK;
    return window_layers(r);
}

/* -- experts ----------------------------------------------------------------------------------------------------------- */

/* Metadata do not say which blocks have no experts: those without a router. */
static lq_status dense_blocks(reader *r) {
    lq_params *p = r->p;
    uint32_t dense = 0;
    if (!(p->layer_dense = lq_alloc(p->n_layers))) return lq_oom(r->ctx, p->n_layers);
    for (uint32_t b = 0; b < p->n_layers; b++) {
        char name[64];
        snprintf(name, sizeof name, "blk.%u.ffn_gate_inp.weight", b);
        dense += p->layer_dense[b] = !tensor(r, name);
    }
    if (dense == p->n_layers) p->n_experts = p->top_k = 0;
    if (dense && p->n_experts) return LQ_OK;
    lq_free(p->layer_dense);
    p->layer_dense = NULL;
    return LQ_OK;
}

static lq_status experts(reader *r) {
    const struct lq_moe_keys *k = &r->a->family.moe;
    lq_params *p = r->p;
    if (!k->n) return LQ_OK;
    LQ_TRY(u32(r, "expert_count", -1, 1, MAX_EXPERTS, &p->n_experts));
    LQ_TRY(u32(r, "expert_used_count", -1, 1, MAX_EXPERTS, &p->top_k));
    if (p->top_k > p->n_experts) return lq_fail(r->ctx, LQ_ERR_FORMAT, "%u experts per token of %u", p->top_k, p->n_experts);
    p->expert_ffn = p->ffn;
    if (k->ffn) LQ_TRY(u32(r, "expert_feed_forward_length", -1, 1, MAX_FFN, &p->expert_ffn));
    if (k->shared_ffn) LQ_TRY(u32(r, "expert_shared_feed_forward_length", -1, 1, MAX_FFN, &p->shared_ffn));
    p->norm_topk = lq_gguf_norm_topk(r->a);
    return dense_blocks(r);
}

/* -- all --------------------------------------------------------------------------------------------------------------- */

static lq_status act(reader *r) {
    const lq_gguf_kv *kv = lq_gguf_find(r->g, "lquant.hidden_act");
    size_t n;
    const char *name = kv ? lq_gguf_str(kv, 0, &n) : NULL;
    return name ? lq_params_act(r->ctx, &r->a->family, name, &r->p->act) : lq_gguf_act(r->ctx, r->a, &r->p->act);
}

static lq_status settings(reader *r) {
    lq_params *p = r->p;
    double v;
    for (const lq_gguf_setting *s = lq_gguf_settings; s->suffix; s++) {
        if (!(r->a->gguf & s->trait)) continue;
        LQ_TRY(number(r, s->suffix, (double)s->absent, 0, 1e30, &v));
        *(float *)(void *)((char *)p + s->at) = (float)v;
    }
    if (r->a->gguf & LQ_GGUF_BY_BLOCKS) p->attn_scale = (float)lq_gguf_attn_scale(r->a, p);
    if (r->a->gguf & LQ_GGUF_EMBED_SQRT) p->embed_scale = (float)sqrt((double)p->hidden);
    p->norm_plus_one = r->a->gguf & LQ_GGUF_GAIN_ONE;
    p->parallel = r->a->gguf & LQ_GGUF_PARALLEL;
    if (!(r->a->gguf & LQ_GGUF_PARALLEL_KEY)) return LQ_OK;
    LQ_TRY(number(r, "use_parallel_residual", -1, 0, 1, &v));
    p->parallel = v != 0;
    return LQ_OK;
}

lq_status lq_params_from_gguf(lq_ctx *ctx, const lq_arch *a, lq_source *src, lq_params *p) {
    size_t n;
    double eps;
    reader r = {.ctx = ctx, .a = a, .src = src, .g = src->gguf, .p = p, .prefix = lq_gguf_str(lq_gguf_find(src->gguf, "general.architecture"), 0, &n)};
    LQ_TRY(sizes(&r));
    p->layernorm = a->family.layernorm;
    LQ_TRY(number(&r, p->layernorm ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon", -1, 0, 1, &eps));
    p->norm_eps = (float)eps;
    LQ_TRY(act(&r));
    LQ_TRY(rope(&r));
    LQ_TRY(window(&r));
    LQ_TRY(vocabulary(&r));
    features(&r);
    LQ_TRY(settings(&r));
    return experts(&r);
}
