/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A GGUF file: metadata made by calib, tensors under llama.cpp's names.
 *
 *   quantized matrix  [rows][cols] -> ne = [cols, rows], a row is its blocks (formats/gguf_pack.c); rows move where the runtime turns other
 *                     coordinates of a head together or wants q, k and v one after the other (lq_gguf_place.rows); codes do not change
 *   NVFP4             its second-level scale is "<x>.scale" beside "<x>.weight": F32, one for each matrix of a stack
 *   experts           ne = [cols, rows, experts], expert after expert
 *   kept tensor       F32, F16, BF16, or the blocks it was read as; vectors, router and learned positions F32 (kept)
 *
 * The file's name says nothing: what a row is called, moved and stacked to comes with lq_sink_opts.gguf. */
#include "formats/gguf_blocks.h"
#include "formats/gguf_write.h"
#include "formats/write.h"

#include "core/num.h"

#include <string.h>

typedef struct gguf_sink {
    lq_gguf_writer *w;
    lq_gguf_info *infos;
    size_t n;
    size_t (*of_row)[2];     /* [cat->n] tensors a row is in; the second one SIZE_MAX: none */
    uint64_t *scale_at;      /* [cat->n] where the second-level scale of NVFP4 goes; 0: none */
    uint64_t *at;            /* [cat->n][2] where the row's data begins in the file, and where it lies again (0: nowhere) */
} gguf_sink;

/* -- accept ------------------------------------------------------------------------------------------------------------ */

/* What the codes of a scheme are called in the file; NONE: it cannot hold them. */
static lq_dtype stored_as(const lq_scheme *s) {
    lq_dtype t = lq_grid_dtype(s->grid.kind);
    if (s->act.kind != LQ_ACT_NONE || s->extra) return LQ_NONE;
    if (t != LQ_NONE && s->scale.dtype == LQ_NONE) return lq_dtypes[t].gguf >= 0 ? t : LQ_NONE;
    return lq_gguf_fit(s, NULL);
}

static lq_status gguf_accept(lq_ctx *ctx, const lq_scheme *s, uint32_t rows, uint32_t cols) {
    lq_dtype t = stored_as(s);
    (void)rows;
    if (t == LQ_NONE) {
        char name[64];
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "a GGUF has no block type for %s; --scheme Q4_K, Q5_K, Q6_K, Q8_0 ... are its own (lquant list types)", lq_scheme_name(s, name, sizeof name));
    }
    if (cols % lq_dtypes[t].block)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "rows of %u weights are no multiple of the %u in a block of %s; a mixture (--scheme Q4_K_M ...) falls back to another type", cols,
                       lq_dtypes[t].block, lq_dtypes[t].name);
    return LQ_OK;
}

static lq_dtype gguf_kept(const lq_row *r, lq_dtype want) {
    bool exact = r->ndim < 2 || lq_role_is_router((lq_role)r->slot.role) || r->slot.role == LQ_R_POS_EMBED;
    return exact || lq_dtypes[want].gguf < 0 ? LQ_F32 : want;
}

/* -- open -------------------------------------------------------------------------------------------------------------- */

static lq_status row_dtype(lq_ctx *ctx, const lq_row *r, lq_dtype *t) {
    *t = r->quantize ? stored_as(&r->scheme) : r->out_dtype;
    if (r->ndim <= 2 || !r->quantize) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_INTERNAL, "'%s': a quantized tensor of %u dimensions", r->name, r->ndim);
}

static lq_gguf_info info_of(const lq_row *r, const lq_gguf_place *p, lq_dtype t) {
    lq_gguf_info i = {.name = p->name, .dtype = t, .ndim = r->ndim ? r->ndim : 1, .ne = {1, 1, 1, 1}};
    for (uint32_t k = 0; k < r->ndim && k < 4; k++) i.ne[k] = r->shape[r->ndim - 1 - k];
    if (p->of) i.ne[i.ndim < 4 ? i.ndim : 3] = p->of, i.ndim++;
    return i;
}

/* The tensor of a stack that an earlier row began; experts of a block follow one another closely. */
static lq_gguf_info *find_stack(gguf_sink *g, const lq_gguf_place *p) {
    for (size_t i = g->n; p->of && i-- > 0;)
        if (!strcmp(g->infos[i].name, p->name)) return &g->infos[i];
    return NULL;
}

/* "<x>.scale", behind the matrix or stack "<x>.weight" that infos[of] is. */
static lq_status place_scale(lq_sink *s, size_t of) {
    gguf_sink *g = s->priv;
    const lq_gguf_info *w = &g->infos[of];
    size_t n = strlen(w->name), stem = n > 7 && !strcmp(w->name + n - 7, ".weight") ? n - 7 : n;
    char *name = lq_arena_alloc(s->opts.gguf->mem, stem + 7);
    if (!name) return lq_oom(s->ctx, stem);
    memcpy(name, w->name, stem);
    strcpy(name + stem, ".scale");
    g->infos[g->n++] = (lq_gguf_info){.name = name, .dtype = LQ_F32, .ndim = 1, .ne = {w->ndim > 2 ? w->ne[2] : 1, 1, 1, 1}};
    return LQ_OK;
}

static lq_status place_row(lq_sink *s, size_t i) {
    gguf_sink *g = s->priv;
    const lq_row *r = &s->cat->rows[i];
    const lq_gguf_place *p = &s->opts.gguf->places[i];
    lq_dtype t;
    if (!p->name) return LQ_OK;
    LQ_TRY(row_dtype(s->ctx, r, &t));
    if (r->ndim > 4) return lq_fail(s->ctx, LQ_ERR_UNSUPPORTED, "'%s': %u dimensions, a GGUF holds 4", r->name, r->ndim);
    lq_gguf_info *stack = find_stack(g, p);
    bool fresh = !stack;
    if (fresh) *(stack = &g->infos[g->n++]) = info_of(r, p, t);
    else if (stack->dtype != t)
        return lq_fail(s->ctx, LQ_ERR_UNSUPPORTED, "'%s' would be %s, but an expert stacked with it is %s; experts of a layer share a type", r->name, lq_dtypes[t].name,
                       lq_dtypes[stack->dtype].name);
    g->of_row[i][0] = (size_t)(stack - g->infos);
    g->of_row[i][1] = SIZE_MAX;
    if (fresh && t == LQ_NVFP4 && r->quantize) LQ_TRY(place_scale(s, g->of_row[i][0]));
    if (!p->also) return LQ_OK;
    g->of_row[i][1] = g->n;
    g->infos[g->n] = info_of(r, p, t);
    g->infos[g->n++].name = p->also;
    return LQ_OK;
}

static lq_status gguf_check(lq_sink *s) {
    gguf_sink *g = s->priv;
    const lq_gguf_meta *m = s->opts.gguf;
    if (!m || m->n_places != s->cat->n) return lq_fail(s->ctx, LQ_ERR_INTERNAL, "a GGUF needs metadata of %zu tensors, %zu are described", s->cat->n, m ? m->n_places : 0);
    g->of_row = lq_calloc(s->cat->n + 1, sizeof *g->of_row);
    g->infos = LQ_NEWN(lq_gguf_info, 3 * s->cat->n + m->n_extras + 1);
    if (!g->of_row || !g->infos) return lq_oom(s->ctx, s->cat->n * sizeof *g->infos);
    for (size_t i = 0; i < s->cat->n; i++) LQ_TRY(place_row(s, i));
    return LQ_OK;
}

static lq_status lay_out(lq_sink *s) {
    gguf_sink *g = s->priv;
    const lq_gguf_meta *m = s->opts.gguf;
    for (size_t i = 0; i < m->n_extras; i++) g->infos[g->n++] = (lq_gguf_info){.name = m->extras[i].name, .dtype = LQ_F32, .ndim = 1, .ne = {m->extras[i].n, 1, 1, 1}};
    char *path = lq_path_join(s->dir, "model.gguf");
    lq_status st = path ? lq_gguf_create(s->ctx, path, m, g->infos, g->n, &g->w) : lq_oom(s->ctx, 256);
    lq_free(path);
    for (size_t i = 0; i < s->cat->n && !st; i++) {
        const lq_gguf_place *p = &m->places[i];
        if (!p->name) continue;
        const lq_gguf_info *t = &g->infos[g->of_row[i][0]];
        g->at[2 * i] = t->offset + (p->of ? t->bytes / p->of * p->at : 0);
        if (t->dtype == LQ_NVFP4 && s->cat->rows[i].quantize) g->scale_at[i] = t[1].offset + 4 * (uint64_t)(p->of ? p->at : 0);
        if (p->also) g->at[2 * i + 1] = g->infos[g->of_row[i][1]].offset;
    }
    for (size_t i = 0; i < m->n_extras && !st; i++)
        st = lq_gguf_write(s->ctx, g->w, g->infos[g->n - m->n_extras + i].offset, m->extras[i].v, 4 * (size_t)m->extras[i].n);
    return st;
}

static lq_status gguf_open(lq_sink *s) {
    gguf_sink *g = s->priv;
    g->scale_at = LQ_NEWN(uint64_t, s->cat->n + 1);
    g->at = LQ_NEWN(uint64_t, 2 * s->cat->n + 1);
    return g->at && g->scale_at ? lay_out(s) : lq_oom(s->ctx, s->cat->n * 24);
}

/* -- put --------------------------------------------------------------------------------------------------------------- */

static const lq_gguf_place *place(const lq_sink *s, const lq_row *r) { return &s->opts.gguf->places[r - s->cat->rows]; }

static lq_status write_row(lq_sink *s, const lq_row *r, const void *data, size_t n) {
    gguf_sink *g = s->priv;
    const uint64_t *at = &g->at[2 * (size_t)(r - s->cat->rows)];
    LQ_TRY(lq_gguf_write(s->ctx, g->w, at[0], data, n));
    return at[1] ? lq_gguf_write(s->ctx, g->w, at[1], data, n) : LQ_OK;
}

static lq_status gguf_put(lq_sink *s, const lq_row *r, const lq_qtensor *q) {
    const lq_gguf_place *p = place(s, r);
    lq_dtype t = stored_as(&q->sch);
    size_t bytes = lq_dtype_row_bytes(t, q->cols);
    char *out = lq_alloc(bytes * q->rows);
    lq_status st = out ? LQ_OK : lq_oom(s->ctx, bytes * q->rows);
    for (uint32_t i = 0; i < q->rows && !st; i++) {
        uint32_t row = p->rows ? p->rows[i] : i;
        if (lq_dtypes[t].block == 1) memcpy(out + i * bytes, q->codes + row * q->row_bytes, bytes);
        else st = lq_gguf_pack_row(s->ctx, t, q, row, out + i * bytes);
    }
    if (!st) st = write_row(s, r, out, bytes * q->rows);
    uint64_t up = ((const gguf_sink *)s->priv)->scale_at[r - s->cat->rows];
    if (!st && up) st = lq_gguf_write(s->ctx, ((gguf_sink *)s->priv)->w, up, q->scale.parent, 4);
    lq_free(out);
    return st;
}

static void add_to(lq_dtype t, void *data, uint64_t n, float add) {
    for (uint64_t i = 0; i < n; i++) {
        float v;
        char *at = (char *)data + i * lq_dtypes[t].bytes;
        lq_dtype_decode(t, at, &v, 1);
        v += add;
        lq_dtype_encode(t, &v, at, 1);
    }
}

static lq_status gguf_put_fp(lq_sink *s, const lq_row *r, const void *data, size_t bytes) {
    const lq_gguf_place *p = place(s, r);
    if (!p->name) return LQ_OK;
    if (!p->rows && p->add == 0) return write_row(s, r, data, bytes);
    char *out = lq_alloc(bytes);
    if (!out) return lq_oom(s->ctx, bytes);
    size_t rows = lq_row_rows(r), row = rows ? bytes / rows : 0;
    for (size_t i = 0; i < rows; i++) memcpy(out + i * row, (const char *)data + (p->rows ? p->rows[i] : i) * row, row);
    if (p->add != 0) add_to(r->out_dtype, out, lq_row_elems(r), p->add);
    lq_status st = write_row(s, r, out, bytes);
    lq_free(out);
    return st;
}

/* What a folder's files say is in the metadata, or said to be left out when that is made. */
static lq_status gguf_sidecar(lq_sink *s, const char *name, const void *data, size_t n) {
    (void)s, (void)name, (void)data, (void)n;
    return LQ_OK;
}

static lq_status gguf_sync(lq_sink *s) { return lq_gguf_write_sync(s->ctx, ((gguf_sink *)s->priv)->w); }
static lq_status gguf_close(lq_sink *s) { return lq_gguf_finish(s->ctx, &((gguf_sink *)s->priv)->w); }

static void gguf_abandon(lq_sink *s) {
    gguf_sink *g = s->priv;
    lq_gguf_write_abandon(&g->w);
    lq_free(g->infos);
    lq_free(g->of_row);
    lq_free(g->scale_at);
    lq_free(g->at);
}

const lq_format lq_format_gguf = {
    .name = "gguf", .ext = ".gguf", .what = "GGUF file for llama.cpp", .priv_size = sizeof(gguf_sink), .gguf = true, .kept = gguf_kept,
    .accept = gguf_accept, .check = gguf_check, .open = gguf_open, .put = gguf_put, .put_fp = gguf_put_fp, .sidecar = gguf_sidecar,
    .sync = gguf_sync, .close = gguf_close, .abandon = gguf_abandon,
};
