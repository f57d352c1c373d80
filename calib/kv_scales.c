/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The steps of E4M3 keys and values as tensors beside the attention's: "<attention>.k_scale", ".v_scale", one number each (compressed-tensors,
 * fp8, lqt). Others name them after the projection: k_proj.k_scale (modelopt), k_proj.output_scale (compressed-tensors before 0.9). */
#include "calib/model.h"

#include <math.h>
#include <string.h>

static const struct { const char *suffix; lq_role role; } names[] = {
    {".k_scale", LQ_R_K_SCALE}, {".v_scale", LQ_R_V_SCALE}, {".k_proj.k_scale", LQ_R_K_SCALE}, {".v_proj.v_scale", LQ_R_V_SCALE},
    {".k_proj.output_scale", LQ_R_K_SCALE}, {".v_proj.output_scale", LQ_R_V_SCALE},
};

/* Length of "model.layers.0.self_attn" in "model.layers.0.self_attn.k_proj.weight". */
static size_t module_of(const char *name) {
    const char *end = strrchr(name, '.');
    while (end && end > name && end[-1] != '.') end--;
    return end && end > name ? (size_t)(end - name) - 1 : 0;
}

static bool is_attention(const lq_row *r) {
    return r->part == LQ_PART_WEIGHT && r->slot.block >= 0 && (r->slot.role == LQ_R_K || r->slot.role == LQ_R_QKV);
}

/* A row of each block's attention, or NULL where there is none: [n_layers] */
static const lq_row **attentions(const lq_model *m) {
    const lq_row **of = LQ_NEWN(const lq_row *, m->par.n_layers + 1);
    for (size_t i = 0; of && i < m->cat.n; i++)
        if (is_attention(&m->cat.rows[i]) && (uint32_t)m->cat.rows[i].slot.block < m->par.n_layers) of[m->cat.rows[i].slot.block] = &m->cat.rows[i];
    return of;
}

static long block_of(const lq_model *m, const lq_row **of, const char *module, size_t n) {
    for (uint32_t b = 0; b < m->par.n_layers; b++)
        if (of[b] && module_of(of[b]->name) == n && !strncmp(of[b]->name, module, n)) return (long)b;
    return -1;
}

static const char *name_of(lq_arena *mem, const lq_row *attention, lq_role role) {
    size_t n = module_of(attention->name);
    char *s = lq_arena_alloc(mem, n + sizeof ".k_scale");
    if (!s) return NULL;
    memcpy(s, attention->name, n);
    memcpy(s + n, role == LQ_R_K_SCALE ? ".k_scale" : ".v_scale", sizeof ".k_scale");
    return s;
}

static lq_status bind(lq_ctx *ctx, lq_model *m, const lq_row **of, lq_row *r) {
    size_t len = strlen(r->name);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t n = strlen(names[i].suffix);
        if (len <= n || strcmp(r->name + len - n, names[i].suffix)) continue;
        long b = block_of(m, of, r->name, len - n);
        lq_slot slot = {.block = (int32_t)b, .role = (uint16_t)names[i].role, .expert = -1};
        if (b < 0 || lq_row_elems(r) != 1 || lq_catalog_find(&m->cat, slot, LQ_PART_WEIGHT)) continue;
        const char *name = name_of(m->cat.mem, of[b], names[i].role);
        if (!name) return lq_oom(ctx, len);
        r->slot = slot;
        r->name = name;
        return LQ_OK;
    }
    return LQ_OK;
}

/* What has none takes 1, as vLLM does. */
static lq_status read_steps(lq_ctx *ctx, lq_model *m) {
    for (size_t i = 0; i < m->cat.n; i++) {
        const lq_row *r = &m->cat.rows[i];
        if (!lq_role_is_kv(r->slot.role)) continue;
        if (!m->kv_steps && !(m->kv_steps = LQ_NEWN(float, 2 * (size_t)m->par.n_layers))) return lq_oom(ctx, 8 * (size_t)m->par.n_layers);
        float *v = &m->kv_steps[2 * (size_t)r->slot.block + (r->slot.role == LQ_R_V_SCALE)];
        LQ_TRY(lq_model_read_f32(ctx, m, r, v));
        if (!(*v > 0 && isfinite(*v))) return lq_fail(ctx, LQ_ERR_FORMAT, "tensor '%s' is %g, expected a positive number", r->name, (double)*v);
    }
    for (size_t i = 0; m->kv_steps && i < 2 * (size_t)m->par.n_layers; i++)
        if (m->kv_steps[i] == 0) m->kv_steps[i] = 1;
    return LQ_OK;
}

lq_status lq_model_bind_kv(lq_ctx *ctx, lq_model *m) {
    const lq_row **of = attentions(m);
    lq_status st = of ? LQ_OK : lq_oom(ctx, m->par.n_layers * sizeof *of);
    for (size_t i = 0; i < m->cat.n && !st; i++)
        if (m->cat.rows[i].slot.role == LQ_R_UNKNOWN && lq_dtype_is_weight(m->cat.rows[i].dtype) && lq_dtypes[m->cat.rows[i].dtype].block == 1) st = bind(ctx, m, of, &m->cat.rows[i]);
    lq_free(of);
    return st ? st : read_steps(ctx, m);
}

lq_status lq_model_add_kv(lq_ctx *ctx, lq_model *m) {
    lq_catalog *c = &m->cat;
    const lq_row **of = attentions(m);
    lq_row *rows = lq_arena_alloc(c->mem, (c->n + 2 * (size_t)m->par.n_layers) * sizeof *rows);
    lq_status st = of && rows ? LQ_OK : lq_oom(ctx, (c->n + 2 * (size_t)m->par.n_layers) * sizeof *rows);
    size_t n = c->n;
    if (!st && n) memcpy(rows, c->rows, n * sizeof *rows);
    for (uint32_t i = 0; i < 2 * m->par.n_layers && !st; i++) {
        lq_slot slot = {.block = (int32_t)(i / 2), .role = i % 2 ? LQ_R_V_SCALE : LQ_R_K_SCALE, .expert = -1};
        lq_row *had = lq_catalog_find(c, slot, LQ_PART_WEIGHT), *r = had ? &rows[had - c->rows] : &rows[n];
        if (!of[i / 2]) continue;
        const char *name = name_of(c->mem, of[i / 2], (lq_role)slot.role);
        if (!name) st = lq_oom(ctx, 64);
        *r = (lq_row){.slot = slot, .name = name, .source = -1, .dtype = LQ_F32, .ndim = 1, .shape = {1}, .fuse = -1, .stage = -1};
        n += !had;
    }
    lq_free(of);
    if (st) return st;
    c->rows = rows;
    c->n = n;
    return LQ_OK;
}
