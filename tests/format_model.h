/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What test_formats and test_sink share: a small model of every kind of row, written through a sink and compared with what a source reads. */
#ifndef LQ_TESTS_FORMAT_MODEL_H
#define LQ_TESTS_FORMAT_MODEL_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/num.h"
#include "core/pack.h"
#include "core/thread.h"
#include "formats/sink.h"
#include "formats/source.h"
#include "quant/types.h"

enum { HIDDEN = 64, WIDE = 128, ROWS = 9 };
/* Formats that hold any model; a GGUF's rows are named and moved by an architecture: tests/test_gguf_write.c. */
#define EACH_FORMAT(f) for (const lq_format *const *f = lq_formats; *f; f++) if (!(*f)->gguf)
static const char config_text[] = "{\n  \"model_type\": \"llama\",\n\t\"odd\":   [1,  2]\n}\n";
static const char other_text[] = "any bytes \x00\xff\x01 at all";

/* -- a model --------------------------------------------------------------------------------------------------------- */

typedef struct model {
    lq_catalog cat;
    lq_row rows[ROWS];
    lq_qtensor q[ROWS];
    uint8_t *fp[ROWS];
    size_t fp_bytes[ROWS];
} model;

static const lq_row base_rows[ROWS] = {
    {.slot = {-1, LQ_R_EMBED, -1}, .name = "model.embed_tokens.weight", .ndim = 2, .shape = {40, HIDDEN}, .linear = true, .out_dtype = LQ_BF16},
    {.slot = {0, LQ_R_ATTN_NORM, -1}, .name = "model.layers.0.input_layernorm.weight", .ndim = 1, .shape = {HIDDEN}, .out_dtype = LQ_F32},
    {.slot = {0, LQ_R_Q, -1}, .name = "model.layers.0.self_attn.q_proj.weight", .ndim = 2, .shape = {32, HIDDEN}, .linear = true, .quantize = true},
    {.slot = {0, LQ_R_Q, -1}, .part = LQ_PART_BIAS, .name = "model.layers.0.self_attn.q_proj.bias", .ndim = 1, .shape = {32}, .out_dtype = LQ_F16},
    {.slot = {0, LQ_R_UP, -1}, .name = "model.layers.0.mlp.up_proj.weight", .ndim = 2, .shape = {WIDE, HIDDEN}, .linear = true, .quantize = true},
    {.slot = {0, LQ_R_DOWN, -1}, .name = "model.layers.0.mlp.down_proj.weight", .ndim = 2, .shape = {HIDDEN, WIDE}, .linear = true, .quantize = true},
    {.slot = {0, LQ_R_GATE, -1}, .name = "model.layers.0.mlp.gate_proj.weight", .ndim = 2, .shape = {WIDE, HIDDEN}, .linear = true, .out_dtype = LQ_F16},
    {.slot = {-1, LQ_R_FINAL_NORM, -1}, .name = "model.norm.weight", .ndim = 1, .shape = {HIDDEN}, .out_dtype = LQ_F32},
    {.slot = {-1, LQ_R_UNKNOWN, -1}, .name = "model.steps", .ndim = 0, .out_dtype = LQ_I64},
};

static inline void fill_plane(lq_rng *rng, const lq_plane_desc *d, lq_plane *p, uint32_t rows, uint32_t cols, bool zero, uint32_t top) {
    size_t n = lq_plane_count(d, rows, cols);
    for (size_t i = 0; i < n; i++) {
        if (d->dtype == LQ_E8M0) ((uint8_t *)p->v)[i] = (uint8_t)(120 + lq_rng_below(rng, 10));
        else if (d->dtype == LQ_U8 || d->dtype == LQ_I8) { /* sig: bits in use */
            int first = d->dtype == LQ_I8 ? -(1 << (d->sig - 1)) : 0;
            ((uint8_t *)p->v)[i] = (uint8_t)(first + (int)lq_rng_below(rng, d->sig ? 1u << d->sig : top + 1));
        }
        else lq_plane_set(d, p, i, zero ? lq_rng_normal(rng) : 0.01f + lq_rng_unit(rng));
    }
    for (size_t i = 0; d->parent != LQ_NONE && i < (d->span ? (n + d->span - 1) / d->span : 1); i++) {
        float v = d->dtype == LQ_E4M3 && !d->divides ? 0x1p-7f : 0.01f + lq_rng_unit(rng); /* a factor with an exact reciprocal */
        if (d->parent == LQ_F16) ((uint16_t *)p->parent)[i] = lq_f32_f16(v);
        else ((float *)p->parent)[i] = v;
    }
}

static inline uint16_t half(lq_rng *rng) { return lq_f32_f16(lq_rng_normal(rng)); }

static inline void fill_sparse(lq_rng *rng, lq_qtensor *q) {
    uint32_t most = (uint32_t)((uint64_t)q->rows * q->cols * q->sch.sparse / 10000), n = 0;
    assert_int_equal(lq_qtensor_outliers(NULL, q, most), LQ_OK);
    for (uint32_t r = 0; r < q->rows; r++) {
        for (uint32_t c = lq_rng_below(rng, 64); c < q->cols && n < most; c += 1 + lq_rng_below(rng, 64), n++) {
            q->outliers.col[n] = c;
            q->outliers.v[n] = half(rng);
        }
        q->outliers.row[r + 1] = n;
    }
    q->outliers.n = n;
}

static inline void zero_column(lq_qtensor *q, uint32_t col) {
    uint32_t code = q->sch.grid.kind == LQ_GRID_INT ? (uint32_t)q->sch.grid.bias : 0;
    for (uint32_t r = 0; r < q->rows; r++)
        for (uint32_t c = 0; c < q->cols; c++)
            if ((q->perm ? q->perm[c] : c) == col) lq_code_put(q->codes + r * q->row_bytes, q->sch.grid.bits, c, code);
}

static inline void fill_extras(lq_rng *rng, lq_qtensor *q) {
    for (uint32_t c = 0; q->prescale && c < q->cols; c++) q->prescale[c] = 0.5f + (float)lq_rng_below(rng, 1000) / 700;
    const lq_scheme *s = &q->sch;
    if (s->act.kind == LQ_ACT_STATIC) q->act_scale = 0.03f;
    if (s->extra & LQ_X_OUTLIERS) fill_sparse(rng, q);
    if (s->extra & LQ_X_OUTLIER_COLS) {
        assert_int_equal(lq_qtensor_outlier_cols(NULL, q, s->sparse), LQ_OK);
        for (uint32_t i = 0; i < s->sparse; i++) zero_column(q, q->outlier_cols.idx[i] = 5 * i + 2);
        for (size_t i = 0; i < (size_t)s->sparse * q->rows; i++) q->outlier_cols.v[i] = half(rng);
    }
    for (size_t i = 0; i < (size_t)s->rank * q->rows; i++) q->lr.a[i] = half(rng);
    for (size_t i = 0; i < (size_t)s->rank * q->cols; i++) q->lr.b[i] = half(rng);
}

static inline void fill_qtensor(lq_rng *rng, lq_qtensor *q) {
    const lq_grid *g = &q->sch.grid;
    for (uint32_t r = 0; r < q->rows; r++)
        for (uint32_t c = 0; c < q->cols; c++) {
            uint32_t code = lq_rng_u32(rng) & (0xffffffffu >> (32 - g->bits));
            if (g->kind == LQ_GRID_F32) code = lq_f32_bits(lq_rng_normal(rng));
            if (g->kind == LQ_GRID_F16 || g->kind == LQ_GRID_BF16) code &= 0xbfff;
            if (g->kind == LQ_GRID_E4M3 || g->kind == LQ_GRID_E5M2) code &= 0xbf;
            lq_code_put(q->codes + r * q->row_bytes, g->bits, c, code);
        }
    fill_plane(rng, &q->sch.scale, &q->scale, q->rows, q->cols, false, 255);
    fill_plane(rng, &q->sch.zero, &q->zero, q->rows, q->cols, true, 0xffffffffu >> (32 - g->bits));
    for (size_t i = 0; q->lut && i < (size_t)q->n_lut << g->bits && g->bias == LQ_LUT_DATA; i++) q->lut[i] = lq_f16_f32(lq_f32_f16(lq_rng_normal(rng)));
    for (uint32_t c = 0; q->perm && c < q->cols; c++) {
        uint32_t at = lq_rng_below(rng, c + 1);
        q->perm[c] = q->perm[at];
        q->perm[at] = c;
    }
    if (q->sch.scale.parent == LQ_F32 && q->sch.scale.dtype == LQ_U8) q->scale.offset = 0.125f;
    fill_extras(rng, q);
}

/* How many times as large the model has to be for whole tiles and blocks. */
static inline uint32_t times_of(const lq_scheme *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (s[i].scale.tile_r == 1 && s[i].scale.tile_c * (s[i].scale.parent == LQ_F16 ? s[i].scale.span : 1) > HIDDEN) return 4;
    return 1;
}

static inline void model_make(model *m, const lq_scheme *schemes, size_t n) {
    lq_rng rng;
    lq_rng_seed(&rng, 7, n);
    *m = (model){0};
    memcpy(m->rows, base_rows, sizeof base_rows);
    for (size_t i = 0; i < ROWS; i++)
        for (uint32_t k = 0; k < m->rows[i].ndim; k++) m->rows[i].shape[k] *= m->rows[i].shape[k] == HIDDEN || m->rows[i].shape[k] == WIDE ? times_of(schemes, n) : 1;
    m->cat = (lq_catalog){.rows = m->rows, .n = ROWS, .n_blocks = 1, .tied = true, .model_type = "llama"};
    for (size_t i = 0, k = 0; i < ROWS; i++) {
        lq_row *r = &m->rows[i];
        if (r->quantize) {
            r->scheme = schemes[k++ % n];
            assert_int_equal(lq_qtensor_init(NULL, &m->q[i], &r->scheme, r->slot, lq_row_rows(r), lq_row_cols(r)), LQ_OK);
            fill_qtensor(&rng, &m->q[i]);
        } else {
            m->fp_bytes[i] = (size_t)lq_row_elems(r) * lq_dtypes[r->out_dtype].bytes;
            m->fp[i] = malloc(m->fp_bytes[i]);
            for (size_t b = 0; b < m->fp_bytes[i]; b++) m->fp[i][b] = (uint8_t)lq_rng_u32(&rng);
        }
    }
}

static inline void model_free(model *m) {
    for (size_t i = 0; i < ROWS; i++) {
        lq_qtensor_free(&m->q[i]);
        free(m->fp[i]);
    }
}

/* -- writing and reading --------------------------------------------------------------------------------------------- */

static char dir[64];
static char out_path[128];

static inline void fresh_dir(void) {
    snprintf(dir, sizeof dir, "%s/lq_formats_XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm"); /* thousands of fsyncs */
    assert_non_null(mkdtemp(dir));
}

static inline lq_status put_all(lq_sink *s, model *m) {
    LQ_TRY(lq_sink_config(s, config_text, sizeof config_text - 1));
    LQ_TRY(lq_sink_sidecar(s, "other.dat", other_text, sizeof other_text - 1));
    for (size_t i = ROWS; i-- > 0;) /* not the catalog's order */
        LQ_TRY(m->rows[i].quantize ? lq_sink_put(s, &m->q[i]) : lq_sink_put_fp(s, &m->rows[i], m->fp[i], m->fp_bytes[i]));
    return LQ_OK;
}

/* Into the fresh folder `dir`; out_path is what a reader opens. */
static inline lq_status write_model(lq_ctx *ctx, const lq_format *f, model *m) {
    lq_sink *s;
    lq_sink_opts opts = {.shard_size = 20000};
    snprintf(out_path, sizeof out_path, f->ext ? "%s/model%s" : "%s", dir, f->ext);
    LQ_TRY(lq_sink_open(ctx, f, dir, &m->cat, &opts, &s));
    lq_status st = put_all(s, m);
    if (!st) return lq_sink_close(&s);
    lq_sink_abandon(&s);
    return st;
}

static inline lq_status compare_row(lq_ctx *ctx, lq_source *s, model *m, size_t i, bool *same) {
    const lq_row *r = &m->rows[i];
    long at = lq_source_find(s, r->name);
    if (at < 0) return *same = false, LQ_OK;
    const lq_entry *e = &s->entries[at];
    *same &= e->ndim == r->ndim && !memcmp(e->shape, r->shape, r->ndim * sizeof *r->shape);
    if (r->quantize) {
        lq_qtensor q;
        *same &= e->dtype == LQ_NONE && lq_scheme_eq(&e->scheme, &r->scheme);
        LQ_TRY(lq_source_read_q(ctx, s, (size_t)at, &q));
        *same &= lq_qtensor_eq(&q, &m->q[i]);
        lq_qtensor_free(&q);
        return LQ_OK;
    }
    uint8_t *data = malloc(m->fp_bytes[i]);
    *same &= e->dtype == r->out_dtype && e->bytes == m->fp_bytes[i];
    lq_status st = *same ? lq_source_read(ctx, s, (size_t)at, 0, lq_entry_rows(e), data) : LQ_OK;
    if (!st) *same &= !memcmp(data, m->fp[i], m->fp_bytes[i]);
    free(data);
    return st;
}

static inline lq_status compare_sidecar(lq_ctx *ctx, lq_source *s, const char *name, const char *text, size_t n, bool *same) {
    lq_buf b;
    LQ_TRY(lq_source_sidecar(ctx, s, name, &b));
    *same &= b.v && b.n == n && !memcmp(b.v, text, n);
    lq_buf_free(&b);
    return LQ_OK;
}

/* LQ_OK with *same false: it reads, but as something else. */
static inline lq_status read_model(lq_ctx *ctx, model *m, bool *same) {
    lq_source *s;
    lq_status st;
    *same = true;
    LQ_TRY(lq_source_open(ctx, out_path, &s));
    *same &= s->n == ROWS;
    for (size_t i = 0; i < ROWS; i++) LQ_GO(compare_row(ctx, s, m, i, same));
    LQ_GO(compare_sidecar(ctx, s, "other.dat", other_text, sizeof other_text - 1, same));
    if (!strcmp(s->reader->name, "lqt")) LQ_GO(compare_sidecar(ctx, s, "config.json", config_text, sizeof config_text - 1, same));
    *same &= s->config && json_object_get(s->config, "model_type");
done:
    lq_source_free(&s);
    return st;
}

static inline void check_round_trip(const lq_format *f, const lq_scheme *schemes, size_t n) {
    model m;
    lq_ctx ctx = {0};
    bool same = false;
    model_make(&m, schemes, n);
    fresh_dir();
    lq_status st = write_model(&ctx, f, &m);
    if (!st) st = read_model(&ctx, &m, &same);
    char name[64];
    if (st || !same) fail_msg("%s of %s: %s", f->name, lq_scheme_name(schemes, name, sizeof name), st ? ctx.msg : "reads differently");
    assert_int_equal(lq_remove_tree(NULL, dir), LQ_OK);
    model_free(&m);
}
#endif
