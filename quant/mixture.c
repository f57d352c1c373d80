/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The rules, by what a matrix does. "V-like" is v_proj or the fused qkv; a block is "heavy" in the first and last eighth and every third between.
 *
 *   output (also a tied embedding)  Q6_K; Q8_0 for Q8_0, MXFP4_MOE, Falcon, rows that no block of the base type divides
 *   embedding, untied               the base; TQ: Q4_K
 *   MXFP4_MOE                       experts MXFP4, all else Q8_0
 *   V-like     Q2_K: Q4_K (4 or more q heads per kv head) or Q3_K     Q2_K_S: Q4_K (4 or more)     Q3_K_M: Q5_K in the first two blocks, then Q4_K
 *              Q3_K_L: Q5_K    Q4_K_M, Q5_K_M: Q6_K in heavy blocks    Q4_K_S: Q5_K in the first four    IQ4: Q5_K (4 or more)
 *              80 blocks with grouped heads: Q3_K, Q4_K become Q5_K     8 experts: Q8_0, k_proj too
 *   down       Q2_K: Q3_K    Q2_K_S: Q4_K in the first eighth    Q3_K_M: Q5_K in the first sixteenth, then Q4_K    Q3_K_L: Q5_K
 *              Q4_K_M, Q5_K_M: Q6_K in heavy blocks    Q4_K_S: Q5_K in the first eighth    IQ4 without imatrix: Q5_K there
 *              Q4_0, Q5_0 with imatrix: Q4_1, Q5_1 there     (Falcon: less)
 *   o_proj     Q2_K: Q3_K    Q3_K_M: Q4_K    Q3_K_L: Q5_K; 8 experts: Q5_K for Q2_K, Q3_K_S, Q3_K_M, Q4_K_S, Q4_K_M, IQ4     (Falcon: Q3_K_L: Q4_K) */
#include "quant/mixture.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { N_F32 = 0, N_F16 = 1, N_Q4_0 = 2, N_Q4_1 = 3, N_Q8_0 = 7, N_Q5_0 = 8, N_Q5_1 = 9, N_Q2_K = 10, N_Q3_K_S = 11, N_Q3_K_M = 12, N_Q3_K_L = 13, N_Q4_K_S = 14,
       N_Q4_K_M = 15, N_Q5_K_S = 16, N_Q5_K_M = 17, N_Q6_K = 18, N_Q2_K_S = 21, N_IQ4_NL = 25, N_IQ4_XS = 30, N_BF16 = 32, N_TQ1_0 = 36, N_TQ2_0 = 37, N_MXFP4_MOE = 38,
       N_Q1_0 = 40, N_Q2_0 = 41 };

const lq_mixture lq_mixtures[] = {
    {"Q1_0", N_Q1_0, LQ_Q1_0, false}, {"Q2_0", N_Q2_0, LQ_Q2_0, false}, {"Q4_0", N_Q4_0, LQ_Q4_0, false}, {"Q4_1", N_Q4_1, LQ_Q4_1, false},
    {"MXFP4_MOE", N_MXFP4_MOE, LQ_MXFP4, true}, {"Q5_0", N_Q5_0, LQ_Q5_0, false}, {"Q5_1", N_Q5_1, LQ_Q5_1, false}, {"TQ1_0", N_TQ1_0, LQ_TQ1_0, false},
    {"TQ2_0", N_TQ2_0, LQ_TQ2_0, false}, {"Q2_K", N_Q2_K, LQ_Q2_K, false}, {"Q2_K_S", N_Q2_K_S, LQ_Q2_K, true}, {"Q3_K_S", N_Q3_K_S, LQ_Q3_K, true},
    {"Q3_K_M", N_Q3_K_M, LQ_Q3_K, true}, {"Q3_K_L", N_Q3_K_L, LQ_Q3_K, true}, {"IQ4_NL", N_IQ4_NL, LQ_IQ4_NL, false}, {"IQ4_XS", N_IQ4_XS, LQ_IQ4_XS, false},
    {"Q4_K_S", N_Q4_K_S, LQ_Q4_K, true}, {"Q4_K_M", N_Q4_K_M, LQ_Q4_K, true}, {"Q5_K_S", N_Q5_K_S, LQ_Q5_K, true}, {"Q5_K_M", N_Q5_K_M, LQ_Q5_K, true},
    {"Q6_K", N_Q6_K, LQ_Q6_K, false}, {"Q8_0", N_Q8_0, LQ_Q8_0, false}, {"F16", N_F16, LQ_F16, false}, {"BF16", N_BF16, LQ_BF16, false}, {"F32", N_F32, LQ_F32, false},
    {NULL, 0, LQ_NONE, false},
};

const lq_mixture *lq_mixture_by_name(const char *name) {
    static const char *const alias[][2] = {{"Q3_K", "Q3_K_M"}, {"Q4_K", "Q4_K_M"}, {"Q5_K", "Q5_K_M"}};
    char *end;
    long number = strtol(name, &end, 10);
    for (size_t i = 0; i < sizeof alias / sizeof *alias; i++)
        if (!strcasecmp(name, alias[i][0])) name = alias[i][1];
    for (const lq_mixture *m = lq_mixtures; m->name; m++)
        if (!strcasecmp(name, m->name) || (*name && !*end && number == m->number)) return m;
    return NULL;
}

/* -- what the rules ask ------------------------------------------------------------------------------------------------ */

typedef enum kind { K_OTHER, K_EMBED, K_OUTPUT, K_V, K_K, K_O, K_DOWN } kind;

static kind kind_of(const lq_row *r) {
    switch (r->slot.role) {
    case LQ_R_EMBED: return K_EMBED;
    case LQ_R_HEAD: return K_OUTPUT;
    case LQ_R_V: case LQ_R_QKV: return K_V;
    case LQ_R_K: return K_K;
    case LQ_R_O: return K_O;
    case LQ_R_DOWN: case LQ_R_EXPERT_DOWN: case LQ_R_SHARED_DOWN: return K_DOWN;
    default: return K_OTHER;
    }
}

typedef struct facts {
    const lq_mixture *m;
    const lq_mixture_opts *o;
    bool falcon, tied, wide; /* wide: a Llama or Qwen2 of 80 blocks whose kv heads are shared */
    uint32_t gqa, experts;
    int blocks;
} facts;

static const lq_row *find(const lq_catalog *c, lq_role role) { return lq_catalog_find(c, (lq_slot){0, (uint16_t)role, -1}, LQ_PART_WEIGHT); }

/* q heads per kv head, from the shapes of block 0. */
static uint32_t heads_shared(const lq_catalog *c) {
    const lq_row *q = find(c, LQ_R_Q), *k = find(c, LQ_R_K), *qkv = find(c, LQ_R_QKV), *o = find(c, LQ_R_O);
    if (q && k && lq_row_rows(k)) return lq_row_rows(q) / lq_row_rows(k);
    uint32_t qr = o ? lq_row_cols(o) : 0, kv = qkv && lq_row_rows(qkv) > qr ? (lq_row_rows(qkv) - qr) / 2 : 0;
    return kv ? qr / kv : 1;
}

static facts facts_of(const lq_mixture *m, const lq_mixture_opts *o, const lq_catalog *c) {
    facts f = {.m = m, .o = o, .falcon = !strcmp(c->model_type, "falcon"), .tied = true, .gqa = heads_shared(c), .blocks = (int)c->n_blocks};
    for (size_t i = 0; i < c->n; i++) {
        f.tied &= c->rows[i].slot.role != LQ_R_HEAD;
        if (lq_role_is_expert((lq_role)c->rows[i].slot.role) && (uint32_t)c->rows[i].slot.expert >= f.experts) f.experts = (uint32_t)c->rows[i].slot.expert + 1;
    }
    f.wide = c->n_blocks == 80 && f.gqa > 1 && (!strcmp(c->model_type, "llama") || !strcmp(c->model_type, "qwen2"));
    return f;
}

static bool heavy(int i, int n) { return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2; }

/* -- the rules --------------------------------------------------------------------------------------------------------- */

static lq_dtype output_type(const facts *f, const lq_row *r) {
    lq_dtype base = f->m->base;
    if (f->o->output != LQ_NONE) return f->o->output;
    if (f->m->number == N_MXFP4_MOE || f->falcon || lq_row_cols(r) % lq_dtypes[base].block) return LQ_Q8_0;
    return base == LQ_Q8_0 ? base : LQ_Q6_K;
}

static lq_dtype embed_type(const facts *f) {
    int n = f->m->number;
    return n == N_TQ1_0 || n == N_TQ2_0 || n == N_Q2_0 ? LQ_Q4_K : f->m->base;
}

static lq_dtype v_type(const facts *f, int b) {
    lq_dtype t = f->m->base;
    switch (f->m->number) {
    case N_Q2_K: t = f->gqa >= 4 ? LQ_Q4_K : LQ_Q3_K; break;
    case N_Q2_K_S: if (f->gqa >= 4) t = LQ_Q4_K; break;
    case N_Q3_K_M: t = b < 2 ? LQ_Q5_K : LQ_Q4_K; break;
    case N_Q3_K_L: t = LQ_Q5_K; break;
    case N_IQ4_NL: case N_IQ4_XS: if (f->gqa >= 4) t = LQ_Q5_K; break;
    case N_Q4_K_M: case N_Q5_K_M: if (heavy(b, f->blocks)) t = LQ_Q6_K; break;
    case N_Q4_K_S: if (b < 4) t = LQ_Q5_K; break;
    default: break;
    }
    if (f->wide && (t == LQ_Q3_K || t == LQ_Q4_K)) t = LQ_Q5_K;
    return f->experts == 8 ? LQ_Q8_0 : t;
}

static lq_dtype down_type(const facts *f, int b) {
    lq_dtype base = f->m->base;
    bool early = b < f->blocks / 8, first = b < f->blocks / 16, more = heavy(b, f->blocks);
    switch (f->m->number) {
    case N_Q2_K: return LQ_Q3_K;
    case N_Q2_K_S: return early ? LQ_Q4_K : base;
    case N_Q3_K_M: return first ? LQ_Q5_K : !f->falcon || more ? LQ_Q4_K : LQ_Q3_K;
    case N_Q3_K_L: return f->falcon ? LQ_Q4_K : LQ_Q5_K;
    case N_Q4_K_M: return f->falcon ? (first ? LQ_Q6_K : more ? LQ_Q5_K : LQ_Q4_K) : more ? LQ_Q6_K : base;
    case N_IQ4_NL: case N_IQ4_XS: return early && !f->o->imatrix ? LQ_Q5_K : base;
    case N_Q5_K_M: return more ? LQ_Q6_K : base;
    case N_Q4_K_S: return early && !f->falcon ? LQ_Q5_K : base;
    case N_Q4_0: return early && f->o->imatrix ? LQ_Q4_1 : base;
    case N_Q5_0: return early && f->o->imatrix ? LQ_Q5_1 : base;
    default: return base;
    }
}

static lq_dtype o_type(const facts *f) {
    lq_dtype base = f->m->base;
    int n = f->m->number;
    if (f->falcon) return n == N_Q3_K_L ? LQ_Q4_K : base;
    if (f->experts == 8)
        return n == N_Q2_K || n == N_Q3_K_S || n == N_Q3_K_M || n == N_IQ4_NL || n == N_Q4_K_S || n == N_Q4_K_M || n == N_IQ4_XS ? LQ_Q5_K : base;
    return n == N_Q2_K ? LQ_Q3_K : n == N_Q3_K_M ? LQ_Q4_K : n == N_Q3_K_L ? LQ_Q5_K : base;
}

static lq_dtype by_rule(const facts *f, const lq_row *r) {
    kind k = kind_of(r);
    int b = r->slot.block;
    if (k == K_OUTPUT || (k == K_EMBED && f->tied)) return output_type(f, r);
    if (f->m->number == N_MXFP4_MOE) return lq_role_is_expert((lq_role)r->slot.role) ? LQ_MXFP4 : LQ_Q8_0;
    switch (k) {
    case K_EMBED: return embed_type(f);
    case K_V: return v_type(f, b);
    case K_K: return f->experts == 8 ? LQ_Q8_0 : f->m->base;
    case K_DOWN: return down_type(f, b);
    case K_O: return o_type(f);
    default: return f->m->base;
    }
}

static bool is_block(lq_dtype t) { return lq_dtypes[t].block > 1; }

static lq_dtype type_of(const facts *f, const lq_row *r) {
    kind k = kind_of(r);
    if (k == K_EMBED && f->o->embed != LQ_NONE) return f->o->embed;
    if (k == K_OUTPUT && f->o->output != LQ_NONE) return f->o->output;
    return is_block(f->m->base) && !f->o->pure ? by_rule(f, r) : f->m->base;
}

/* -- rows that blocks do not divide ------------------------------------------------------------------------------------ */

lq_dtype lq_mixture_fallback(lq_dtype t, uint32_t cols) {
    lq_dtype to = t;
    if (cols % lq_dtypes[t].block == 0) return t;
    switch (t) {
    case LQ_IQ4_XS: to = LQ_IQ4_NL; break;
    case LQ_Q2_0: case LQ_Q2_K: case LQ_Q3_K: case LQ_TQ1_0: case LQ_TQ2_0: case LQ_Q1_0: to = LQ_Q4_0; break;
    case LQ_Q4_K: to = LQ_Q5_0; break;
    case LQ_Q5_K: to = LQ_Q5_1; break;
    case LQ_Q6_K: to = LQ_Q8_0; break;
    default: break;
    }
    return cols % lq_dtypes[to].block ? LQ_F16 : to;
}

static double bits(lq_dtype t) { return 8.0 * lq_dtypes[t].bytes / lq_dtypes[t].block; }

typedef struct fallen { double before, after, weights; size_t n; } fallen;

static lq_status fall_back(lq_ctx *ctx, const facts *f, const lq_row *r, lq_dtype *t, fallen *sum) {
    lq_dtype to = lq_mixture_fallback(*t, lq_row_cols(r));
    double n = (double)lq_row_elems(r);
    sum->before += n * bits(*t);
    sum->after += n * bits(to);
    sum->weights += n;
    if (to == *t) return LQ_OK;
    if (f->o->no_fallback)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%s: rows of %u weights are no multiple of the %u in a block of %s; without --no-fallback it becomes %s", r->name, lq_row_cols(r),
                       lq_dtypes[*t].block, lq_dtypes[*t].name, lq_dtypes[to].name);
    lq_log(ctx, LQ_LOG_INFO, "fallback: %s: rows of %u, %s -> %s (%.4g -> %.4g bits per weight)", r->name, lq_row_cols(r), lq_dtypes[*t].name, lq_dtypes[to].name, bits(*t), bits(to));
    *t = to;
    sum->n++;
    return LQ_OK;
}

static bool is_quantizable(const lq_row *r) {
    return r->linear && r->part == LQ_PART_WEIGHT && r->ndim == 2 && !lq_role_is_router((lq_role)r->slot.role);
}

lq_status lq_mixture_types(lq_ctx *ctx, const lq_mixture *m, const lq_mixture_opts *o, const lq_catalog *cat, lq_dtype *type) {
    facts f = facts_of(m, o, cat);
    fallen sum = {0};
    for (size_t i = 0; i < cat->n; i++) {
        const lq_row *r = &cat->rows[i];
        type[i] = LQ_NONE;
        if (!is_quantizable(r) || (o->leave_output && kind_of(r) == K_OUTPUT)) continue;
        type[i] = type_of(&f, r);
        LQ_TRY(fall_back(ctx, &f, r, &type[i], &sum));
    }
    if (sum.n)
        lq_log(ctx, LQ_LOG_WARN, "%zu tensors fall back to types of smaller blocks: %.4f bits per weight instead of %.4f (--no-fallback refuses)", sum.n, sum.after / sum.weights,
               sum.before / sum.weights);
    return LQ_OK;
}
