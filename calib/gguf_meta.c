/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Keys of architectures and places of tensors. Facts: llama.cpp's loader (src/models, llama-model.cpp) and its converter, October 2026;
 * where those run something else than the model says, it is refused here. */
#include "calib/gguf_form.h"
#include "calib/gguf_meta.h"

#include "core/num.h"

#include <stdio.h>
#include <string.h>

typedef struct maker {
    lq_ctx *ctx;
    const lq_model *m;
    const lq_arch *a;
    const char *arch;        /* general.architecture */
    lq_gguf_meta *out;
    char key[128];
} maker;

#define REFUSE(ctx, ...) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "GGUF: " __VA_ARGS__)

/* -- what llama.cpp does not run --------------------------------------------------------------------------------------- */

static bool is_gelu(lq_actfn a) { return a == LQ_ACTFN_GELU || a == LQ_ACTFN_GELU_TANH; }

static lq_status check_windows(maker *k) {
    uint32_t w = lq_params_short_window(&k->m->par);
    if (w && !(k->a->gguf & LQ_GGUF_WINDOW))
        lq_log(k->ctx, LQ_LOG_WARN, "GGUF: llama.cpp has no sliding window for '%s'; texts longer than %u tokens compute differently there", k->arch, w);
    return LQ_OK;
}

static lq_status check_rope(maker *k) {
    const lq_rope *r = &k->m->par.rope;
    const char *name = k->m->arch->name;
    double mscale = r->factor > 1 ? 0.1 * log(r->factor) + 1 : 1;
    if (r->kind == LQ_ROPE_LLAMA3 && !(k->a->gguf & LQ_GGUF_DIVISORS)) REFUSE(k->ctx, "llama.cpp reads no rope_freqs.weight for '%s' (rope type llama3)", name);
    if (r->kind == LQ_ROPE_LONGROPE && !(k->a->gguf & LQ_GGUF_LONG)) REFUSE(k->ctx, "llama.cpp reads no rope_factors for '%s' (rope type longrope)", name);
    if (r->kind == LQ_ROPE_YARN && (!r->whole || fabs(r->scale - mscale) > 1e-6))
        REFUSE(k->ctx, "llama.cpp's yarn has whole ramp ends and the attention factor 0.1 ln(%g) + 1, not %g", r->factor, r->scale);
    if (r->kind == LQ_ROPE_YARN && (fabs(r->high - 32) > 1e-6 || fabs(r->low - 1) > 1e-6))
        REFUSE(k->ctx, "llama.cpp runs yarn of '%s' with beta_fast 32 and beta_slow 1, this model has %g and %g", k->arch, r->high, r->low);
    if (r->kind == LQ_ROPE_DYNAMIC) lq_log(k->ctx, LQ_LOG_WARN, "GGUF: llama.cpp has no dynamic rope scaling; texts beyond %u tokens compute differently there", k->m->par.max_ctx);
    for (uint32_t l = 0; l < k->m->par.n_layers && !k->m->par.window; l++)
        if (lq_params_rope(&k->m->par, l) != r) REFUSE(k->ctx, "llama.cpp gives no layer of '%s' a rope of its own where there is no window", name);
    if (k->m->par.two_ropes && k->m->par.local_rope.kind != LQ_ROPE_DEFAULT) REFUSE(k->ctx, "llama.cpp does not scale the rope of layers with a window");
    return LQ_OK;
}

static lq_status check_experts(maker *k) {
    const lq_params *p = &k->m->par;
    if (!p->n_experts) return LQ_OK;
    if (p->norm_topk != lq_gguf_norm_topk(k->a))
        REFUSE(k->ctx, "llama.cpp's '%s' %s the probabilities of the chosen experts (norm_topk_prob)", k->arch, p->norm_topk ? "does not normalise" : "normalises");
    for (uint32_t l = 0; l < p->n_layers; l++)
        if (!lq_params_at(p, LQ_FEAT_MOE, l)) REFUSE(k->ctx, "llama.cpp's '%s' has experts in every layer, layer %u has an ordinary MLP", k->arch, l);
    return LQ_OK;
}

static lq_status check_math(maker *k) {
    const lq_params *p = &k->m->par;
    const char *name = k->m->arch->name;
    bool gelu = k->a->gguf & LQ_GGUF_GELU;
    if (gelu ? !is_gelu(p->act) : p->act != LQ_ACTFN_SILU)
        REFUSE(k->ctx, "llama.cpp runs '%s' with %s, this model has %s", k->arch, gelu ? "gelu" : "silu", lq_actfn_names[p->act]);
    if (p->act == LQ_ACTFN_GELU) lq_log(k->ctx, LQ_LOG_WARN, "GGUF: llama.cpp computes gelu by tanh, this model asks for the exact one");
    if (!strcmp(name, "falcon") && !p->parallel) REFUSE(k->ctx, "llama.cpp's Falcon has parallel attention only");
    if (k->a->gguf & LQ_GGUF_NO_BIAS && (p->qkv_bias || p->mlp_bias)) REFUSE(k->ctx, "llama.cpp's '%s' has no biases", k->arch);
    if (p->o_bias && !(k->a->gguf & LQ_GGUF_O_BIAS)) REFUSE(k->ctx, "llama.cpp's '%s' has no bias of the output projection", k->arch);
    if (k->a->gguf & LQ_GGUF_QKV_BIAS && !p->qkv_bias) REFUSE(k->ctx, "llama.cpp's '%s' wants attention biases", k->arch);
    if (!strcmp(name, "gpt2") && p->attn_scale != 0) REFUSE(k->ctx, "llama.cpp always scales attention scores of GPT-2");
    if (!strcmp(name, "olmoe") && (p->clip_qkv != 0 || p->n_kv_heads != p->n_heads)) REFUSE(k->ctx, "llama.cpp's OLMoE has neither clip_qkv nor shared kv heads");
    if (k->a->gguf & LQ_GGUF_SQUARE && p->n_heads * p->head_dim != p->hidden)
        REFUSE(k->ctx, "llama.cpp's '%s' wants heads as wide as the stream: %u x %u, the stream has %u", k->arch, p->n_heads, p->head_dim, p->hidden);
    return LQ_OK;
}

/* llama.cpp derives the scale of Gemma's scores from the number of blocks. */
static lq_status check_gemma(maker *k) {
    const lq_params *p = &k->m->par;
    if (k->a->gguf & LQ_GGUF_CAPS && (p->attn_cap == 0 || p->logit_cap == 0)) REFUSE(k->ctx, "llama.cpp always caps scores and logits of '%s', this model has no such cap", k->arch);
    if (!(k->a->gguf & LQ_GGUF_BY_BLOCKS)) return LQ_OK;
    double theirs = lq_gguf_attn_scale(k->a, p);
    if (fabs(p->attn_scale / theirs - 1) < 1e-6) return LQ_OK;
    REFUSE(k->ctx, "llama.cpp scales attention scores of a '%s' of %u blocks by %.6g, this model (query_pre_attn_scalar) by %.6g", k->arch, p->n_layers, theirs, (double)p->attn_scale);
}

static lq_status check_all(maker *k) {
    LQ_TRY(check_math(k));
    LQ_TRY(check_gemma(k));
    LQ_TRY(check_rope(k));
    LQ_TRY(check_experts(k));
    return check_windows(k);
}

/* -- keys -------------------------------------------------------------------------------------------------------------- */

static const char *key(maker *k, const char *suffix) {
    snprintf(k->key, sizeof k->key, "%s.%s", k->arch, suffix);
    return k->key;
}
static void u32(maker *k, const char *suffix, uint32_t v) { lq_gguf_put_u32(k->out, key(k, suffix), v); }
static void f32(maker *k, const char *suffix, double v) { lq_gguf_put_f32(k->out, key(k, suffix), (float)v); }

static void sizes(maker *k) {
    const lq_params *p = &k->m->par;
    u32(k, "vocab_size", p->vocab);
    u32(k, "context_length", p->max_ctx);
    u32(k, "embedding_length", p->hidden);
    u32(k, "block_count", p->n_layers);
    u32(k, "feed_forward_length", p->ffn);
    u32(k, "attention.head_count", p->n_heads);
    u32(k, "attention.head_count_kv", p->n_kv_heads);
    u32(k, "attention.key_length", p->head_dim);
    u32(k, "attention.value_length", p->head_dim);
    f32(k, p->layernorm ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon", (double)p->norm_eps);
    if (p->n_experts) {
        u32(k, "expert_count", p->n_experts);
        u32(k, "expert_used_count", p->top_k);
        u32(k, "expert_feed_forward_length", p->expert_ffn);
        if (p->shared_ffn) u32(k, "expert_shared_feed_forward_length", p->shared_ffn);
    }
}

static void rope(maker *k) {
    const lq_params *p = &k->m->par;
    const lq_rope *r = &p->rope;
    if (!r->dim || !strcmp(k->arch, "gpt2")) return;
    u32(k, "rope.dimension_count", r->dim);
    f32(k, "rope.freq_base", r->base);
    if (p->two_ropes) f32(k, "rope.freq_base_swa", p->local_rope.base);
    if (r->kind == LQ_ROPE_LINEAR || r->kind == LQ_ROPE_YARN) {
        lq_gguf_put_str(k->out, key(k, "rope.scaling.type"), lq_rope_names[r->kind]);
        f32(k, "rope.scaling.factor", r->factor);
    }
    if (r->kind == LQ_ROPE_YARN || r->kind == LQ_ROPE_LONGROPE) u32(k, "rope.scaling.original_context_length", r->original);
    if (r->kind == LQ_ROPE_LONGROPE) {
        lq_gguf_put_str(k->out, key(k, "rope.scaling.type"), "longrope");
        f32(k, "rope.scaling.attn_factor", r->scale != 0 ? r->scale : 1);
    }
}

/* Three axes of a position; in text they are one, so how pairs are dealt out decides nothing. */
static void sections(maker *k) {
    const json_t *c = k->m->config, *r = json_object_get(c, "rope_scaling"), *list;
    if (!json_is_object(r)) r = json_object_get(c, "rope_parameters");
    list = json_object_get(r, "mrope_section");
    lq_gguf_put_array(k->out, key(k, "rope.dimension_sections"), LQ_GGUF_I32, 4);
    for (size_t i = 0; i < 4; i++) lq_gguf_add_u32(k->out, list ? (uint32_t)json_integer_value(json_array_get(list, i)) : i ? 0 : k->m->par.rope.dim / 2);
}

/* Written wherever the model has them: what llama.cpp passes over, readers of ours do not. Phi-3 wants the key in any case. */
static void windows(maker *k) {
    const lq_params *p = &k->m->par;
    if (p->window || !strcmp(k->arch, "phi3")) u32(k, "attention.sliding_window", p->window);
    if (!p->window || (!p->layer_window && !(k->a->gguf & LQ_GGUF_WINDOW))) return;
    lq_gguf_put_array(k->out, key(k, "attention.sliding_window_pattern"), LQ_GGUF_BOOL, p->n_layers);
    for (uint32_t l = 0; l < p->n_layers; l++) lq_gguf_add_bool(k->out, lq_params_window(p, l) != 0);
}

static lq_status family(maker *k) {
    const lq_params *p = &k->m->par;
    lq_actfn act;
    for (const lq_gguf_setting *t = lq_gguf_settings; t->suffix; t++) {
        float v = *(const float *)(const void *)((const char *)p + t->at);
        if (k->a->gguf & t->trait && (v != 0 || t->absent != 0)) f32(k, t->suffix, v != 0 ? (double)v : (double)t->absent);
    }
    if (k->a->gguf & LQ_GGUF_PARALLEL_KEY) lq_gguf_put_bool(k->out, key(k, "use_parallel_residual"), p->parallel);
    if (!strcmp(k->arch, "falcon")) lq_gguf_put_str(k->out, key(k, "tensor_data_layout"), "jploski");
    LQ_TRY(lq_gguf_act(k->ctx, k->a, &act));
    if (act != p->act) lq_gguf_put_str(k->out, "lquant.hidden_act", lq_actfn_names[p->act]); /* for us: llama.cpp has one per architecture */
    return LQ_OK;
}

static void general(maker *k, const lq_gguf_opts *o) {
    lq_gguf_put_str(k->out, "general.architecture", k->arch);
    lq_gguf_put_str(k->out, "general.type", "model");
    lq_gguf_put_str(k->out, "general.name", o->name ? o->name : lq_path_base(k->m->src->path));
    lq_gguf_put_str(k->out, "lquant.version", LQ_VERSION);
}

void lq_gguf_meta_types(lq_gguf_meta *m, uint32_t file_type) {
    lq_gguf_put_u32(m, "general.file_type", file_type);
    lq_gguf_put_u32(m, "general.quantization_version", 2);
}

/* -- divisors of frequencies ------------------------------------------------------------------------------------------- */

static lq_status add_extra(maker *k, const char *name, uint32_t n, float **v) {
    lq_gguf_meta *o = k->out;
    if (!o->extras) o->extras = lq_arena_alloc(o->mem, 2 * sizeof *o->extras);
    *v = lq_arena_alloc(o->mem, n * sizeof **v);
    if (!o->extras || !*v) return lq_oom(k->ctx, n * sizeof **v);
    o->extras[o->n_extras++] = (lq_gguf_extra){name, n, *v};
    return LQ_OK;
}

/* What the frequencies are divided by: base^(-2j/d) over lq_rope_inv_freq. */
static lq_status llama3_divisors(maker *k) {
    lq_rope plain = k->m->par.rope;
    uint32_t half = plain.dim / 2;
    float *v;
    LQ_TRY(add_extra(k, "rope_freqs.weight", half, &v));
    double *f = LQ_NEWN(double, 2 * (size_t)half);
    if (!f) return lq_oom(k->ctx, 16 * (size_t)half);
    lq_rope_inv_freq(&k->m->par.rope, k->m->par.max_ctx, f);
    plain.kind = LQ_ROPE_DEFAULT;
    plain.div = NULL;
    lq_rope_inv_freq(&plain, k->m->par.max_ctx, f + half);
    for (uint32_t j = 0; j < half; j++) v[j] = (float)(f[half + j] / f[j]);
    lq_free(f);
    return LQ_OK;
}

/* Those of a GGUF are as they were. */
static lq_status factors(maker *k) {
    const lq_rope *r = &k->m->par.rope;
    float *v;
    if (r->kind == LQ_ROPE_LLAMA3) return llama3_divisors(k);
    for (const lq_gguf_factor *f = lq_gguf_factors; f->name; f++) {
        const double *div = *(double *const *)(const void *)((const char *)r + f->at);
        if (!(k->a->gguf & f->trait) || !div || (f->kind == LQ_ROPE_LONGROPE) != (r->kind == LQ_ROPE_LONGROPE)) continue;
        LQ_TRY(add_extra(k, f->name, r->dim / 2, &v));
        for (uint32_t j = 0; j < r->dim / 2; j++) v[j] = (float)div[j];
    }
    return LQ_OK;
}

/* -- places ------------------------------------------------------------------------------------------------------------ */

static lq_status lay_rows(maker *k, const lq_row *row, lq_gguf_place *p) {
    lq_gguf_lay lay;
    if (row->slot.role == LQ_R_UNKNOWN) return LQ_OK;
    LQ_TRY(lq_gguf_lay_of(k->ctx, k->a, &k->m->par, (lq_role)row->slot.role, row->part, row->ndim, k->out->mem, &lay));
    p->rows = lay.rows;
    p->add = lay.add;
    return LQ_OK;
}

static lq_status place_row(maker *k, const lq_row *row, lq_gguf_place *p) {
    const lq_params *par = &k->m->par;
    if (row->slot.role == LQ_R_UNKNOWN) {
        lq_log(k->ctx, LQ_LOG_WARN, "GGUF: '%s' is left out: llama.cpp has no such tensor", row->name);
        return LQ_OK;
    }
    p->name = row->gguf_name;
    if (!p->name) REFUSE(k->ctx, "llama.cpp has no place for '%s' in '%s'", row->name, k->arch);
    if (row->slot.role == LQ_R_HEAD && k->a->gguf & LQ_GGUF_NO_HEAD) REFUSE(k->ctx, "llama.cpp's '%s' multiplies by the embedding; this model has a head of its own", k->arch);
    if (lq_role_is_expert((lq_role)row->slot.role)) p->at = (uint32_t)row->slot.expert, p->of = par->n_experts;
    if (row->slot.role == LQ_R_EMBED && par->tied && k->a->gguf & LQ_GGUF_HEAD) p->also = "output.weight";
    return lay_rows(k, row, p);
}

static lq_status places(maker *k) {
    for (size_t i = 0; i < k->m->cat.n; i++) LQ_TRY(place_row(k, &k->m->cat.rows[i], &k->out->places[i]));
    return LQ_OK;
}

/* -- a GGUF as input --------------------------------------------------------------------------------------------------- */

static bool is_ours(const char *name) { /* said anew, or true of the old file alone */
    static const char *const names[] = {"general.file_type", "general.quantization_version", "general.alignment", "split.", "quantize.imatrix.", "lquant.data."};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strncmp(name, names[i], strlen(names[i]))) return true;
    return false;
}

/* A row of a GGUF goes where it was: its view says how its rows lay there. */
static lq_status place_again(maker *k, const lq_row *row, lq_gguf_place *p) {
    p->name = row->gguf_name ? row->gguf_name : row->name;
    if (lq_role_is_expert((lq_role)row->slot.role)) p->at = (uint32_t)row->slot.expert, p->of = k->m->par.n_experts;
    return k->a ? lay_rows(k, row, p) : LQ_OK;
}

static lq_status copy(maker *k) {
    const lq_gguf *g = k->m->src->gguf;
    for (size_t i = 0; i < lq_gguf_kv_count(g); i++)
        if (!is_ours(lq_gguf_kv_key(lq_gguf_kv_at(g, i)))) lq_gguf_put_copy(k->out, lq_gguf_kv_at(g, i));
    for (size_t i = 0; i < k->m->cat.n; i++) LQ_TRY(place_again(k, &k->m->cat.rows[i], &k->out->places[i]));
    return k->a ? factors(k) : LQ_OK;
}

/* -- all --------------------------------------------------------------------------------------------------------------- */

/* Files whose content is in the keys; what else stands beside the weights has no place in a GGUF. */
static void name_dropped(const maker *k) {
    static const char *const said[] = {"config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
                                       "tokenizer.model", "chat_template.jinja", "chat_template.json", "quantize_config.json"};
    lq_buf list = {0};
    for (size_t i = 0; i < k->m->src->n_sidecars; i++) {
        bool in = false;
        for (size_t n = 0; n < sizeof said / sizeof *said; n++) in |= !strcmp(k->m->src->sidecars[i], said[n]);
        if (!in) lq_buf_addf(&list, "%s%s", list.n ? ", " : "", k->m->src->sidecars[i]);
    }
    if (list.n) lq_log(k->ctx, LQ_LOG_INFO, "GGUF: left out, a file of one format has no place for it: %s", list.v);
    lq_buf_free(&list);
}

static lq_status make(maker *k, const lq_gguf_opts *o) {
    if (!k->m->arch) REFUSE(k->ctx, "the architecture is unknown; a GGUF names every tensor by what it does (lquant list archs)");
    if (!k->a->gguf_archs) REFUSE(k->ctx, "llama.cpp has no architecture for '%s'", k->m->arch->name);
    k->arch = k->a->gguf_archs[0];
    LQ_TRY(check_all(k));
    name_dropped(k);
    general(k, o);
    sizes(k);
    rope(k);
    if (k->a->gguf & LQ_GGUF_MROPE) sections(k);
    windows(k);
    LQ_TRY(family(k));
    LQ_TRY(factors(k));
    LQ_TRY(places(k));
    return lq_gguf_vocab(k->ctx, k->m->src, k->m->par.vocab, o->pre, k->out);
}

lq_status lq_gguf_meta_make(lq_ctx *ctx, const lq_model *m, const lq_gguf_opts *o, lq_gguf_meta **out) {
    maker k = {.ctx = ctx, .m = m, .a = m->arch};
    LQ_TRY(lq_gguf_meta_new(ctx, m->cat.n, out));
    k.out = *out;
    k.out->hashed = true;
    if (o->override_kv) k.out->override = o->override_kv->v, k.out->n_override = o->override_kv->n;
    lq_status st = m->src->gguf ? copy(&k) : make(&k, o);
    for (size_t i = 0; i < k.out->n_override && !st; i++) st = lq_gguf_override(ctx, *out, k.out->override[i]);
    if (!st) st = lq_gguf_meta_check(ctx, *out);
    if (st) lq_gguf_meta_free(out);
    return st;
}
