/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Rotary settings of config.json. They lie where transformers wrote them before version 5 (rope_theta, rope_scaling) or since
 * (rope_parameters, maybe one object for each kind of layer). Absent keys mean what transformers makes of them. */
#include "calib/arch.h"

#include "core/num.h"

enum { MAX_CTX = 1 << 28 };

static lq_status set_kind(lq_ctx *ctx, const lq_family *f, const char *type, lq_rope *out) {
    if (!strcmp(type, "su")) type = "longrope";
    if (!strcmp(type, "mrope")) type = "default"; /* three axes of an image's position; in text they are one */
    if (f->long_context && !strcmp(type, "yarn")) type = "longrope"; /* its name in the first Phi-3 files */
    for (int i = 0; i < LQ_ROPE_KIND_N; i++) {
        out->kind = (lq_rope_kind)i;
        if (!strcmp(type, lq_rope_names[i])) return LQ_OK;
    }
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "rope type '%s' is not supported (default, linear, llama3, yarn, dynamic and longrope are)", type);
}

static lq_status kind(lq_ctx *ctx, const lq_family *f, const json_t *r, lq_rope *out) {
    const char *type;
    LQ_TRY(lq_json_string(ctx, r, "rope_type", false, &type));
    if (!type) LQ_TRY(lq_json_string(ctx, r, "type", false, &type));
    return set_kind(ctx, f, type ? type : "default", out);
}

static lq_status rotated(lq_ctx *ctx, const lq_family *f, const json_t *c, const json_t *r, uint32_t head_dim, lq_rope *out) {
    double part;
    LQ_TRY(lq_json_real(ctx, c, lq_params_key(f, "partial_rotary_factor"), false, f->partial ? f->partial : 1, &part));
    LQ_TRY(lq_json_real(ctx, r, "partial_rotary_factor", false, part, &part));
    if (!f->partial && part != 1)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "rotary positions on part of a head ('partial_rotary_factor' %g) are not supported in this family", part);
    out->dim = part > 0 && part <= 1 ? (uint32_t)(head_dim * part) : 0;
    if (out->dim && out->dim % 2 == 0) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_FORMAT, "'partial_rotary_factor' is %g: rotary positions need an even part of a head of %u", part, head_dim);
}

static lq_status factors(lq_ctx *ctx, const json_t *r, const char *key, uint32_t n, double **out) {
    const json_t *list = json_object_get(r, key);
    if (!json_is_array(list) || json_array_size(list) != n)
        return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' has %zu entries, expected %u", key, json_array_size(list), n);
    if (!(*out = LQ_NEWN(double, n))) return lq_oom(ctx, n * 8);
    for (uint32_t j = 0; j < n; j++) {
        (*out)[j] = json_number_value(json_array_get(list, j));
        if (!((*out)[j] >= 1e-3 && (*out)[j] <= 1e6))
            return lq_fail(ctx, LQ_ERR_FORMAT, "'%s': entry %u is %g, expected 0.001 to 1e6", key, j, (*out)[j]);
    }
    return LQ_OK;
}

static lq_status original(lq_ctx *ctx, const lq_family *f, const json_t *c, const json_t *r, uint32_t max_ctx, lq_rope *out) {
    int64_t v;
    LQ_TRY(lq_json_int(ctx, r, "original_max_position_embeddings", false, max_ctx, 1, MAX_CTX, &v));
    if (f->long_context) LQ_TRY(lq_json_int(ctx, c, "original_max_position_embeddings", false, f->long_context, 1, MAX_CTX, &v));
    out->original = (uint32_t)v;
    return LQ_OK;
}

static lq_status read_llama3(lq_ctx *ctx, const json_t *r, lq_rope *out) {
    LQ_TRY(lq_params_real(ctx, r, "low_freq_factor", true, 1, 1e-3, 1e6, &out->low));
    LQ_TRY(lq_params_real(ctx, r, "high_freq_factor", true, 4, 1e-3, 1e6, &out->high));
    if (out->high > out->low) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_FORMAT, "'high_freq_factor' %g is not above 'low_freq_factor' %g", out->high, out->low);
}

static double magnitude(double factor, double m) { return factor <= 1 ? 1 : 0.1 * m * log(factor) + 1; }

/* Peng et al. 2023, section 3.4: cos and sin grow by 0.1 ln(factor) + 1; DeepSeek states two such terms instead. */
static lq_status read_yarn(lq_ctx *ctx, const json_t *r, lq_rope *out) {
    double m, all;
    LQ_TRY(lq_params_real(ctx, r, "beta_fast", false, 32, 1e-3, 1e6, &out->high));
    LQ_TRY(lq_params_real(ctx, r, "beta_slow", false, 1, 1e-3, 1e6, &out->low));
    LQ_TRY(lq_json_bool(ctx, r, "truncate", true, &out->whole));
    LQ_TRY(lq_params_real(ctx, r, "mscale", false, 0, 0, 1e3, &m));
    LQ_TRY(lq_params_real(ctx, r, "mscale_all_dim", false, 0, 0, 1e3, &all));
    double scale = m > 0 && all > 0 ? magnitude(out->factor, m) / magnitude(out->factor, all) : magnitude(out->factor, 1);
    return lq_params_real(ctx, r, "attention_factor", false, scale, 1e-3, 1e3, &out->scale);
}

static lq_status read_longrope(lq_ctx *ctx, const json_t *r, lq_rope *out) {
    LQ_TRY(factors(ctx, r, "short_factor", out->dim / 2, &out->div));
    LQ_TRY(factors(ctx, r, "long_factor", out->dim / 2, &out->long_div));
    return lq_params_real(ctx, r, "attention_factor", false, lq_rope_long_scale(out->factor, out->original), 1e-3, 1e3, &out->scale);
}

static lq_status one(lq_ctx *ctx, const lq_family *f, const json_t *c, const json_t *r, double base, const lq_params *p, lq_rope *out) {
    LQ_TRY(lq_params_real(ctx, r, "rope_theta", false, base, 1, 1e15, &out->base));
    LQ_TRY(rotated(ctx, f, c, r, p->head_dim, out));
    LQ_TRY(kind(ctx, f, r, out));
    if (out->kind == LQ_ROPE_DEFAULT) return LQ_OK;
    LQ_TRY(original(ctx, f, c, r, p->max_ctx, out));
    bool stated = out->kind != LQ_ROPE_LONGROPE; /* longrope: by how much the context grew */
    LQ_TRY(lq_params_real(ctx, r, "factor", stated, (double)p->max_ctx / out->original, 1e-3, 1e6, &out->factor));
    switch (out->kind) {
    case LQ_ROPE_LLAMA3: return read_llama3(ctx, r, out);
    case LQ_ROPE_YARN: return read_yarn(ctx, r, out);
    case LQ_ROPE_LONGROPE: return read_longrope(ctx, r, out);
    case LQ_ROPE_DYNAMIC: out->original = p->max_ctx; return LQ_OK;
    default: return LQ_OK;
    }
}

/* The object of one kind of layer; NULL when settings are not per kind. */
static const json_t *of_kind(const json_t *r, const char *kind) {
    const json_t *o = json_object_get(r, kind);
    return json_is_object(o) ? o : NULL;
}

static lq_status kinds(lq_ctx *ctx, const lq_family *f, const json_t *r, bool *nested) {
    const char *key;
    json_t *v;
    *nested = false;
    json_object_foreach((json_t *)r, key, v) {
        if (!json_is_object(v)) continue;
        if (f->windows < LQ_WINDOW_BY_LAYER || (strcmp(key, "full_attention") && strcmp(key, "sliding_attention")))
            return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "rope settings per kind of layer ('%s') are not supported in this family", key);
        *nested = true;
    }
    return LQ_OK;
}

lq_status lq_params_rope_hf(lq_ctx *ctx, const lq_arch *arch, const json_t *c, lq_params *p) {
    const lq_family *f = &arch->family;
    const json_t *r = json_object_get(c, "rope_scaling");
    double base, local;
    bool nested;
    if (!r || json_is_null(r) || (json_is_object(r) && !json_object_size(r))) r = json_object_get(c, "rope_parameters");
    if (r && !json_is_null(r) && !json_is_object(r)) return lq_fail(ctx, LQ_ERR_FORMAT, "rope settings are not an object");
    LQ_TRY(lq_params_real(ctx, c, lq_params_key(f, "rope_theta"), false, f->rope_theta ? f->rope_theta : 10000, 1, 1e15, &base));
    LQ_TRY(kinds(ctx, f, r, &nested));
    p->rope.pairs = p->local_rope.pairs = f->rope_pairs;
    LQ_TRY(one(ctx, f, c, nested ? of_kind(r, "full_attention") : r, base, p, &p->rope));
    p->two_ropes = nested || f->local_theta;
    if (!p->two_ropes) return LQ_OK;
    LQ_TRY(lq_params_real(ctx, c, "rope_local_base_freq", false, f->local_theta ? f->local_theta : base, 1, 1e15, &local));
    return one(ctx, f, c, nested ? of_kind(r, "sliding_attention") : NULL, local, p, &p->local_rope);
}
