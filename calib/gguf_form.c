/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "calib/gguf_form.h"

#include "core/num.h"

#include <string.h>

#define AT(field) offsetof(lq_params, field)
const lq_gguf_setting lq_gguf_settings[] = {
    {"attn_logit_softcapping", LQ_GGUF_CAPS, AT(attn_cap), 50},
    {"final_logit_softcapping", LQ_GGUF_CAPS, AT(logit_cap), 30},
    {"final_logit_softcapping", LQ_GGUF_LOGIT_CAP, AT(logit_cap), 0},
    {"attention.clamp_kqv", LQ_GGUF_CLIP, AT(clip_qkv), 0},
    {"attention.scale", LQ_GGUF_MULTIPLIERS, AT(attn_scale), 0},
    {"embedding_scale", LQ_GGUF_MULTIPLIERS, AT(embed_scale), 0},
    {"residual_scale", LQ_GGUF_MULTIPLIERS, AT(resid_scale), 0},
    {"logit_scale", LQ_GGUF_MULTIPLIERS, AT(logit_div), 1},
    {NULL, 0, 0, 0},
};

const lq_gguf_factor lq_gguf_factors[] = {
    {"rope_freqs.weight", LQ_GGUF_DIVISORS, LQ_ROPE_DEFAULT, offsetof(lq_rope, div)},
    {"rope_factors_long.weight", LQ_GGUF_LONG, LQ_ROPE_LONGROPE, offsetof(lq_rope, long_div)},
    {"rope_factors_short.weight", LQ_GGUF_LONG, LQ_ROPE_LONGROPE, offsetof(lq_rope, div)},
    {NULL, 0, LQ_ROPE_DEFAULT, 0},
};

bool lq_gguf_is_factor(const lq_arch *a, const char *name) {
    for (const lq_gguf_factor *f = lq_gguf_factors; f->name; f++)
        if (a->gguf & f->trait && !strcmp(f->name, name)) return true;
    return false;
}

/* File row 2j of a head is its row j, file row 2j + 1 its row j + dim/2. */
static uint32_t paired(uint32_t i, uint32_t dim) { return i / dim * dim + i % dim / 2 + (i & 1) * (dim / 2); }

/* All of q, then k, then v, of a matrix that has them head by head. */
static uint32_t parted(const lq_params *p, uint32_t i) {
    uint32_t q = p->n_heads * p->head_dim, kv = p->n_kv_heads * p->head_dim;
    lq_role part = i < q ? LQ_R_Q : i < q + kv ? LQ_R_K : LQ_R_V;
    return lq_split_row(p, LQ_OP_SPLIT_HEADS, part, part == LQ_R_Q ? i : part == LQ_R_K ? i - q : i - q - kv);
}

static bool by_heads(const lq_arch *a, const lq_params *p, lq_role role) {
    lq_op_kind how;
    return role == LQ_R_QKV && lq_arch_holder(a, p, LQ_R_Q, &how) == LQ_R_QKV && how == LQ_OP_SPLIT_HEADS;
}

lq_status lq_gguf_lay_of(lq_ctx *ctx, const lq_arch *a, const lq_params *p, lq_role role, lq_part part, uint32_t ndim, lq_arena *mem, lq_gguf_lay *out) {
    bool pairs = a->gguf & LQ_GGUF_ROPE_PAIRS && (role == LQ_R_Q || role == LQ_R_K), heads = by_heads(a, p, role);
    uint32_t n = role == LQ_R_QKV ? lq_params_dim(p, LQ_DIM_QKV) : lq_part_rows(p, role), *rows;
    *out = (lq_gguf_lay){.add = a->gguf & LQ_GGUF_GAIN_ONE && ndim == 1 && part == LQ_PART_WEIGHT ? 1 : 0};
    if (!pairs && !heads) return LQ_OK;
    if (!(out->rows = rows = lq_arena_alloc(mem, n * sizeof *rows))) return lq_oom(ctx, n * sizeof *rows);
    for (uint32_t i = 0; i < n; i++) rows[i] = pairs ? paired(i, p->head_dim) : parted(p, i);
    return LQ_OK;
}

lq_status lq_gguf_act(lq_ctx *ctx, const lq_arch *a, lq_actfn *out) {
    if (a->gguf & LQ_GGUF_GELU) return lq_params_act(ctx, &a->family, NULL, out);
    *out = LQ_ACTFN_SILU;
    return LQ_OK;
}

double lq_gguf_attn_scale(const lq_arch *a, const lq_params *p) {
    return 1 / sqrt(p->n_layers == a->gguf_big ? (double)(p->hidden / p->n_heads) : (double)p->head_dim);
}

bool lq_gguf_norm_topk(const lq_arch *a) { return a->family.moe.norm_always || a->family.moe.gguf_norm; }
