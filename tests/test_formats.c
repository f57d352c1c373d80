/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Walks lq_formats: whatever a row accepts survives write and read bit for bit, whatever is damaged is refused. */
#define _GNU_SOURCE
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

static void fill_plane(lq_rng *rng, const lq_plane_desc *d, lq_plane *p, uint32_t rows, uint32_t cols, bool zero, uint32_t top) {
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

static uint16_t half(lq_rng *rng) { return lq_f32_f16(lq_rng_normal(rng)); }

static void fill_sparse(lq_rng *rng, lq_qtensor *q) {
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

static void zero_column(lq_qtensor *q, uint32_t col) {
    uint32_t code = q->sch.grid.kind == LQ_GRID_INT ? (uint32_t)q->sch.grid.bias : 0;
    for (uint32_t r = 0; r < q->rows; r++)
        for (uint32_t c = 0; c < q->cols; c++)
            if ((q->perm ? q->perm[c] : c) == col) lq_code_put(q->codes + r * q->row_bytes, q->sch.grid.bits, c, code);
}

static void fill_extras(lq_rng *rng, lq_qtensor *q) {
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

static void fill_qtensor(lq_rng *rng, lq_qtensor *q) {
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
static uint32_t times_of(const lq_scheme *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (s[i].scale.tile_r == 1 && s[i].scale.tile_c * (s[i].scale.parent == LQ_F16 ? s[i].scale.span : 1) > HIDDEN) return 4;
    return 1;
}

static void model_make(model *m, const lq_scheme *schemes, size_t n) {
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

static void model_free(model *m) {
    for (size_t i = 0; i < ROWS; i++) {
        lq_qtensor_free(&m->q[i]);
        free(m->fp[i]);
    }
}

/* -- writing and reading --------------------------------------------------------------------------------------------- */

static char dir[64];
static char out_path[128];

static void fresh_dir(void) {
    snprintf(dir, sizeof dir, "%s/lq_formats_XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm"); /* thousands of fsyncs */
    assert_non_null(mkdtemp(dir));
}

static lq_status put_all(lq_sink *s, model *m) {
    LQ_TRY(lq_sink_config(s, config_text, sizeof config_text - 1));
    LQ_TRY(lq_sink_sidecar(s, "other.dat", other_text, sizeof other_text - 1));
    for (size_t i = ROWS; i-- > 0;) /* not the catalog's order */
        LQ_TRY(m->rows[i].quantize ? lq_sink_put(s, &m->q[i]) : lq_sink_put_fp(s, &m->rows[i], m->fp[i], m->fp_bytes[i]));
    return LQ_OK;
}

/* Into the fresh folder `dir`; out_path is what a reader opens. */
static lq_status write_model(lq_ctx *ctx, const lq_format *f, model *m) {
    lq_sink *s;
    lq_sink_opts opts = {.shard_size = 20000};
    snprintf(out_path, sizeof out_path, f->ext ? "%s/model%s" : "%s", dir, f->ext);
    LQ_TRY(lq_sink_open(ctx, f, dir, &m->cat, &opts, &s));
    lq_status st = put_all(s, m);
    if (!st) return lq_sink_close(&s);
    lq_sink_abandon(&s);
    return st;
}

static lq_status compare_row(lq_ctx *ctx, lq_source *s, model *m, size_t i, bool *same) {
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

static lq_status compare_sidecar(lq_ctx *ctx, lq_source *s, const char *name, const char *text, size_t n, bool *same) {
    lq_buf b;
    LQ_TRY(lq_source_sidecar(ctx, s, name, &b));
    *same &= b.v && b.n == n && !memcmp(b.v, text, n);
    lq_buf_free(&b);
    return LQ_OK;
}

/* LQ_OK with *same false: it reads, but as something else. */
static lq_status read_model(lq_ctx *ctx, model *m, bool *same) {
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

static void check_round_trip(const lq_format *f, const lq_scheme *schemes, size_t n) {
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

/* -- schemes --------------------------------------------------------------------------------------------------------- */

enum { SCHEMES = 64 };
static size_t int_schemes(lq_scheme *out) {
    static const int bits[] = {2, 3, 4, 5, 8}, groups[] = {-1, 16, 32, 64};
    size_t n = 0;
    for (size_t b = 0; b < 5; b++)
        for (size_t g = 0; g < 4; g++)
            for (int sym = 0; sym < 2; sym++) {
                out[n] = lq_scheme_int(bits[b], groups[g], sym);
                if (g == 1) out[n].scale.sig = 0;
                n++;
            }
    return n;
}

static size_t odd_schemes(lq_scheme *out) {
    lq_plane_desc f32_row = {.dtype = LQ_F32, .tile_r = 1}, none = {0};
    size_t n = 0;
    out[n] = lq_scheme_int(4, 32, true), out[n++].scale.dtype = LQ_BF16;
    out[n] = lq_scheme_int(4, 32, false), out[n].zero.dtype = LQ_F16, out[n].zero.sig = 8, out[n++].scale.dtype = LQ_F32;
    out[n] = lq_scheme_int(4, 32, true), out[n++].extra = LQ_X_PERM;
    out[n] = lq_scheme_int(8, -1, true), out[n++].act = (lq_act){.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8};
    out[n] = lq_scheme_int(4, 32, true), out[n++].grid.bias = 7;
    out[n] = lq_scheme_int(4, 32, false), out[n++].zero.tile_c = 64;
    out[n++] = (lq_scheme){.grid = {LQ_GRID_INT, 1, 1, 0}, .scale = f32_row, .zero = none};
    out[n++] = (lq_scheme){.grid = {LQ_GRID_INT, 13, 1, 4096}, .scale = f32_row, .zero = none};
    out[n++] = (lq_scheme){.grid = {LQ_GRID_LUT, 4, 1, 0}, .scale = {.dtype = LQ_U8, .tile_r = LQ_FLAT, .tile_c = 64, .parent = LQ_F32, .span = 7}};
    out[n++] = (lq_scheme){.grid = {LQ_GRID_LUT, 3, 1, 0}, .extra = LQ_X_LUT_PER_ROW};
    out[n++] = (lq_scheme){.grid = {LQ_GRID_E2M1, 4, 1, 0}, .scale = {.dtype = LQ_E8M0, .tile_r = 1, .tile_c = 32}};
    out[n++] = (lq_scheme){.grid = {LQ_GRID_E2M1, 4, 1, 0}, .scale = {.dtype = LQ_E4M3, .tile_r = 1, .tile_c = 16, .parent = LQ_F32}};
    out[n] = out[n - 1], out[n++].scale.divides = true;
    out[n++] = (lq_scheme){.grid = {LQ_GRID_E4M3, 8, 1, 0}, .scale = {.dtype = LQ_F32, .tile_r = 32, .tile_c = 64}};
    out[n++] = (lq_scheme){.grid = {LQ_GRID_INT, 4, 1, 0}, .zero_kind = LQ_ZERO_MIN, .scale = {.dtype = LQ_U8, .tile_r = 1, .tile_c = 32, .parent = LQ_F32, .span = 8},
                           .zero = {.dtype = LQ_U8, .tile_r = 1, .tile_c = 32, .parent = LQ_F32, .span = 8}};
    return n;
}

static size_t extra_schemes(lq_scheme *out) {
    size_t n = 0;
    out[n] = lq_scheme_int(4, 32, true), out[n].extra = LQ_X_OUTLIERS, out[n++].sparse = 50;
    out[n++] = (lq_scheme){.grid = {LQ_GRID_LUT, 3, 1, 0}, .extra = LQ_X_LUT_PER_ROW | LQ_X_OUTLIERS, .sparse = 200};
    out[n] = lq_scheme_int(8, -1, true), out[n].extra = LQ_X_OUTLIER_COLS, out[n++].sparse = 7;
    out[n] = lq_scheme_int(3, 32, false), out[n].extra = LQ_X_LOWRANK, out[n++].rank = 5;
    out[n] = lq_scheme_int(2, 32, true), out[n].extra = LQ_X_LOWRANK | LQ_X_OUTLIERS, out[n].sparse = 1, out[n++].rank = 1; /* too small for one value */
    out[n] = lq_scheme_int(8, -1, true), out[n++].act = (lq_act){.kind = LQ_ACT_STATIC, .dtype = LQ_I8};
    out[n] = lq_scheme_int(4, 32, true), out[n++].act = (lq_act){.kind = LQ_ACT_DYNAMIC, .dtype = LQ_BOOL};
    return n;
}

/* Every row of lq_types on a matrix of this width, and what a run may add to it. */
static size_t type_schemes(lq_scheme *out) {
    size_t n = 0;
    for (const lq_type *t = lq_types; t->name; t++) {
        if (t->keep) continue;
        lq_want w = {.knobs = t->knobs, .scheme = t->scheme};
        lq_want_group(&w, 32);
        if (w.scheme.scale.tile_r > 1 && w.scheme.scale.tile_r != LQ_FLAT) w.scheme.scale.tile_r = w.scheme.scale.tile_c = 32;
        out[n++] = w.scheme;
    }
    return n;
}

/* What each format is known to hold, said independently of its accept(). */
static bool holds(const lq_format *f, const lq_scheme *s, bool odd) {
    if (!strcmp(f->name, "lqt")) return true;
    if (!strcmp(f->name, "compressed-tensors")) { /* whole codes, one per row or group or tile, floats of FP8 and FP4 with their own scales */
        bool fp = s->grid.kind == LQ_GRID_E4M3 || s->grid.kind == LQ_GRID_E2M1, centred = s->zero_kind || s->grid.bias == 1 << (s->grid.bits - 1);
        bool plain = s->zero_kind != LQ_ZERO_MIN && (!s->zero_kind || (s->zero.dtype == LQ_U8 && s->zero.tile_c == s->scale.tile_c));
        return fp || (s->grid.kind == LQ_GRID_INT && s->grid.bits > 1 && s->grid.bits < 9 && plain && centred && !s->extra);
    }
    if (!strcmp(f->name, "safetensors") || !strcmp(f->name, "bitsandbytes") || !strcmp(f->name, "bitnet")) return false; /* tests/test_bnb.c */
    if (!strcmp(f->name, "awq")) return !odd && s->grid.bits == 4;
    if (!strcmp(f->name, "mlx")) {
        if (odd) return s->scale.dtype == LQ_BF16 || (s->grid.kind == LQ_GRID_E2M1 && s->scale.dtype == LQ_E8M0);
        return s->zero_kind == LQ_ZERO_NONE && s->scale.tile_c >= 32;
    }
    if (!strcmp(f->name, "squeezellm")) return odd && s->grid.kind == LQ_GRID_LUT && s->extra == LQ_X_LUT_PER_ROW;
    if (!strcmp(f->name, "modelopt")) {
        if (odd) return s->scale.dtype == LQ_BF16 || (s->grid.kind == LQ_GRID_E2M1 && s->scale.parent == LQ_F32 && !s->scale.divides);
        return s->zero_kind == LQ_ZERO_NONE && s->grid.bits == 4 && s->scale.tile_c;
    }
    if (!strcmp(f->name, "fp8")) return false; /* its types: every_named_type_round_trips_where_it_is_accepted */
    return !odd && s->grid.bits != 5;
}

static void every_named_type_and_every_extra_round_trips_in_lqt(void **state) {
    (void)state;
    lq_scheme list[2][SCHEMES];
    size_t n[2] = {type_schemes(list[0]), extra_schemes(list[1])};
    assert_true(n[0] > 20 && n[0] < SCHEMES);
    for (size_t k = 0; k < 2; k++)
        for (size_t i = 0; i < n[k]; i++) check_round_trip(lq_format_by_name("lqt"), &list[k][i], 1);
}

static void every_named_type_round_trips_where_it_is_accepted(void **state) {
    (void)state;
    lq_scheme list[SCHEMES];
    size_t n = type_schemes(list), taken = 0;
    EACH_FORMAT(f)
        for (size_t i = 0; i < n; i++) {
            if (!strcmp((*f)->name, "bitsandbytes") || !strcmp((*f)->name, "bitnet")) continue; /* not any scale and code: tests/test_bnb.c, test_bitnet.c */
            if (lq_grid_dtype(list[i].grid.kind) != LQ_NONE || (*f)->accept(NULL, &list[i], HIDDEN, WIDE) || (*f)->accept(NULL, &list[i], WIDE, HIDDEN)) continue;
            check_round_trip(*f, &list[i], 1);
            taken++;
        }
    assert_true(taken > n);
}

static void a_fixed_table_is_not_stored_and_comes_back(void **state) {
    (void)state;
    lq_scheme nf4 = {.grid = {LQ_GRID_LUT, 4, 1, LQ_LUT_NF4}}, own = {.grid = {LQ_GRID_LUT, 4, 1, LQ_LUT_DATA}};
    lq_qtensor q, back;
    lq_buf b = {0};
    assert_int_equal(lq_qtensor_encoded_bytes(&own, 3, 8) - lq_qtensor_encoded_bytes(&nf4, 3, 8), 32);
    assert_int_equal(lq_qtensor_init(NULL, &q, &nf4, (lq_slot){0}, 3, 8), LQ_OK);
    assert_int_equal(lq_qtensor_encode(NULL, &q, &b), LQ_OK);
    assert_int_equal(lq_qtensor_decode(NULL, b.v, b.n, &back), LQ_OK);
    assert_true(back.lut[15] == 1 && back.lut[7] == 0 && lq_qtensor_eq(&q, &back));
    lq_qtensor_free(&q);
    lq_qtensor_free(&back);
    lq_buf_free(&b);
}

typedef enum harm { GOOD, COL_RANGE, COL_ORDER, ROW_BACK, ROW_END, TOO_MANY, SPARSE_INF, KEPT_ORDER, KEPT_CODE, KEPT_NAN, RANK_INF, NO_STEP, TABLE_WIDE, CODE_NAN, HARMS } harm;

static void do_harm(harm h, lq_qtensor *q) {
    switch (h) {
    case COL_RANGE: q->outliers.col[q->outliers.n - 1] = q->cols; break;
    case COL_ORDER: q->outliers.col[1] = q->outliers.col[0]; break;
    case ROW_BACK: q->outliers.row[2] = q->outliers.row[1] - 1; break;
    case ROW_END: q->outliers.row[q->rows]--; break;
    case TOO_MANY: q->sch.sparse = 1; break;
    case SPARSE_INF: q->outliers.v[0] = 0x7c00; break;
    case KEPT_ORDER: q->outlier_cols.idx[1] = q->outlier_cols.idx[0]; break;
    case KEPT_CODE: lq_code_put(q->codes, 8, 2, 129); break;
    case KEPT_NAN: q->outlier_cols.v[0] = 0x7e00; break;
    case RANK_INF: q->lr.b[0] = 0xfc00; break;
    case NO_STEP: q->act_scale = 0; break;
    case TABLE_WIDE: q->lut[3] = 0.1f; break;
    case CODE_NAN: lq_code_put(q->codes, 32, 1, 0x7fc00000); break;
    default: break;
    }
}

static void what_the_extras_hold_is_checked(void **state) {
    (void)state;
    lq_scheme sparse = {.grid = {LQ_GRID_LUT, 3, 1, 0}, .extra = LQ_X_LUT_PER_ROW | LQ_X_OUTLIERS, .sparse = 500}, kept = lq_scheme_int(8, -1, true);
    lq_scheme low = lq_scheme_int(4, 32, true), fixed = low, floats = {.grid = {LQ_GRID_F32, 32, 1, 0}};
    kept.extra = LQ_X_OUTLIER_COLS, kept.sparse = 3;
    low.extra = LQ_X_LOWRANK, low.rank = 2;
    fixed.act = (lq_act){.kind = LQ_ACT_STATIC, .dtype = LQ_I8};
    const lq_scheme *of[HARMS] = {&sparse, &sparse, &sparse, &sparse, &sparse, &sparse, &sparse, &kept, &kept, &kept, &low, &fixed, &sparse, &floats};
    for (harm h = GOOD; h < HARMS; h++) {
        lq_rng rng;
        lq_qtensor q;
        lq_ctx ctx = {0};
        lq_rng_seed(&rng, 3, 1);
        assert_int_equal(lq_qtensor_init(NULL, &q, of[h], (lq_slot){0}, 16, 64), LQ_OK);
        fill_qtensor(&rng, &q);
        assert_int_equal(lq_qtensor_check(NULL, &q, LQ_ERR_FORMAT), LQ_OK);
        do_harm(h, &q);
        lq_status st = lq_qtensor_check(&ctx, &q, LQ_ERR_FORMAT);
        if (st != (h == GOOD ? LQ_OK : LQ_ERR_FORMAT)) fail_msg("harm %d: status %d %s", (int)h, (int)st, ctx.msg);
        lq_qtensor_free(&q);
    }
}

static void schemes_that_contradict_themselves_are_refused(void **state) {
    (void)state;
    lq_scheme bad[] = {lq_scheme_int(4, 32, true), lq_scheme_int(4, 32, true), lq_scheme_int(4, 32, true), lq_scheme_int(4, 32, true), lq_scheme_int(4, 32, true),
                       {.grid = {LQ_GRID_LUT, 3, 1, LQ_LUT_NF4}}, {.grid = {LQ_GRID_LUT, 4, 1, LQ_LUT_NF4}, .extra = LQ_X_LUT_PER_ROW},
                       {.grid = {LQ_GRID_F16, 16, 1, 0}, .scale = {.dtype = LQ_F32, .tile_r = 1}}, {.grid = {LQ_GRID_F32, 16, 1, 0}}};
    bad[0].rank = 4;
    bad[1].extra = LQ_X_LOWRANK;
    bad[2].extra = LQ_X_LOWRANK, bad[2].rank = 65;
    bad[3].extra = LQ_X_OUTLIERS | LQ_X_OUTLIER_COLS, bad[3].sparse = 4;
    bad[4].extra = LQ_X_HADAMARD;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        lq_ctx ctx = {0};
        if (lq_scheme_check(&ctx, &bad[i], 64, 64) != LQ_ERR_UNSUPPORTED) fail_msg("scheme %zu is taken", i);
    }
}

static void every_scheme_round_trips_or_is_refused(void **state) {
    (void)state;
    EACH_FORMAT(f)
        for (int odd = 0; odd < 2; odd++) {
            lq_scheme list[SCHEMES];
            size_t n = odd ? odd_schemes(list) : int_schemes(list);
            for (size_t i = 0; i < n; i++) {
                lq_ctx ctx = {0};
                bool ok = !(*f)->accept(&ctx, &list[i], HIDDEN * times_of(&list[i], 1), WIDE * times_of(&list[i], 1));
                if (ok != holds(*f, &list[i], odd)) fail_msg("%s, %s scheme %zu: %s", (*f)->name, odd ? "odd" : "int", i, ok ? "accepted" : ctx.msg);
                if (ok) check_round_trip(*f, &list[i], 1);
                else assert_true(ctx.status == LQ_ERR_UNSUPPORTED && strlen(ctx.msg) > 10);
            }
        }
}

static void mixed_schemes_round_trip(void **state) {
    (void)state;
    lq_scheme sym[3] = {lq_scheme_int(4, 32, true), lq_scheme_int(8, -1, true), lq_scheme_int(4, 32, true)};
    lq_scheme both[3] = {lq_scheme_int(3, 64, true), lq_scheme_int(3, 64, false), lq_scheme_int(2, 32, true)};
    EACH_FORMAT(f)
        if (!(*f)->accept(NULL, sym, HIDDEN, WIDE) && !(*f)->accept(NULL, &sym[1], WIDE, HIDDEN)) {
            check_round_trip(*f, sym, 3);
            if (!(*f)->accept(NULL, both, HIDDEN, WIDE)) check_round_trip(*f, both, 3);
        }
}

static void a_float_folder_round_trips(void **state) {
    (void)state;
    lq_scheme any = lq_scheme_int(4, 32, true);
    model m;
    lq_ctx ctx = {0};
    bool same;
    model_make(&m, &any, 1);
    for (size_t i = 0; i < ROWS; i++)
        if (m.rows[i].quantize) {
            m.rows[i].quantize = false;
            m.rows[i].out_dtype = LQ_F32;
            m.fp_bytes[i] = (size_t)lq_row_elems(&m.rows[i]) * 4;
            m.fp[i] = calloc(1, m.fp_bytes[i]);
        }
    fresh_dir();
    if (write_model(&ctx, lq_format_by_name("safetensors"), &m) || read_model(&ctx, &m, &same) || !same) fail_msg("%s", ctx.msg);
    lq_remove_tree(NULL, dir);
    model_free(&m);
}

static void a_matrix_of_floats_is_an_ordinary_tensor_of_a_folder(void **state) {
    (void)state;
    lq_scheme floats[3] = {{.grid = {LQ_GRID_F32, 32, 1, 0}}, {.grid = {LQ_GRID_BF16, 16, 1, 0}}, {.grid = {LQ_GRID_F16, 16, 1, 0}}};
    model m;
    lq_ctx ctx = {0};
    lq_source *s;
    model_make(&m, floats, 3);
    fresh_dir();
    assert_int_equal(write_model(&ctx, lq_format_by_name("safetensors"), &m), LQ_OK);
    assert_int_equal(lq_source_open(&ctx, out_path, &s), LQ_OK);
    for (size_t i = 0; i < ROWS; i++) {
        if (!m.rows[i].quantize) continue;
        const lq_entry *e = &s->entries[lq_source_find(s, m.rows[i].name)];
        size_t bytes = (size_t)lq_entry_cols(e) * lq_dtypes[e->dtype].bytes;
        uint8_t *data = malloc(bytes * m.q[i].rows);
        assert_int_equal(e->dtype, lq_grid_dtype(m.rows[i].scheme.grid.kind));
        assert_int_equal(lq_source_read(&ctx, s, (size_t)(e - s->entries), 0, m.q[i].rows, data), LQ_OK);
        for (uint32_t r = 0; r < m.q[i].rows; r++) assert_memory_equal(data + r * bytes, m.q[i].codes + r * m.q[i].row_bytes, bytes);
        free(data);
    }
    lq_source_free(&s);
    lq_remove_tree(NULL, dir);
    model_free(&m);
}

static void refusals_name_the_nearest_setting(void **state) {
    (void)state;
    const lq_format *f = lq_format_by_name("gptq");
    static const struct { int bits, group; uint32_t rows, cols; const char *says; } cases[] = {
        {5, 32, 64, 64, "--bits 4"}, {6, 32, 64, 64, "--bits 8"}, {4, 128, 64, 576, "--group-size 144"}, {4, 64, 48, 64, "32 x 64"},
        {4, 32, 64, 72, "64 x 64"}, {4, 128, 64, 64, "--group-size 64"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        lq_ctx ctx = {0};
        lq_scheme s = lq_scheme_int(cases[i].bits, cases[i].group, true);
        assert_int_equal(f->accept(&ctx, &s, cases[i].rows, cases[i].cols), LQ_ERR_UNSUPPORTED);
        if (!strstr(ctx.msg, cases[i].says)) fail_msg("'%s' lacks '%s'", ctx.msg, cases[i].says);
    }
}

/* -- rules of the sink ----------------------------------------------------------------------------------------------- */

static lq_sink *open_sink(lq_ctx *ctx, const char *format, model *m) {
    lq_sink *s;
    fresh_dir();
    assert_int_equal(lq_sink_open(ctx, lq_format_by_name(format), dir, &m->cat, &(lq_sink_opts){0}, &s), LQ_OK);
    return s;
}

static void a_missing_tensor_is_named_at_close(void **state) {
    (void)state;
    static const char *const formats[] = {"gptq", "lqt"};
    lq_scheme scheme = lq_scheme_int(4, 32, true);
    model m;
    model_make(&m, &scheme, 1);
    for (size_t k = 0; k < 2; k++) {
        lq_ctx ctx = {0};
        lq_sink *s = open_sink(&ctx, formats[k], &m);
        for (size_t i = 0; i < ROWS; i++)
            if (i != 7) assert_int_equal(m.rows[i].quantize ? lq_sink_put(s, &m.q[i]) : lq_sink_put_fp(s, &m.rows[i], m.fp[i], m.fp_bytes[i]), LQ_OK);
        assert_int_equal(lq_sink_close(&s), LQ_ERR_QUALITY);
        assert_null(s);
        assert_non_null(strstr(ctx.msg, "model.norm.weight"));
        lq_remove_tree(NULL, dir);
    }
    model_free(&m);
}

static void what_was_not_planned_is_refused(void **state) {
    (void)state;
    lq_scheme scheme = lq_scheme_int(4, 32, true);
    lq_ctx ctx = {0};
    model m;
    model_make(&m, &scheme, 1);
    lq_sink *s = open_sink(&ctx, "lqt", &m);
    assert_int_equal(lq_sink_put_fp(s, &m.rows[1], m.fp[1], m.fp_bytes[1] - 1), LQ_ERR_INTERNAL);
    assert_int_equal(lq_sink_put_fp(s, &m.rows[2], m.fp[1], m.fp_bytes[1]), LQ_ERR_INTERNAL);
    m.q[4].sch.scale.sig = 5;
    assert_int_equal(lq_sink_put(s, &m.q[4]), LQ_ERR_INTERNAL);
    ((uint16_t *)m.q[2].scale.v)[3] = 0x7e00;
    assert_int_equal(lq_sink_put(s, &m.q[2]), LQ_ERR_QUALITY);
    assert_int_equal(lq_sink_put(s, &m.q[5]), LQ_OK);
    assert_int_equal(lq_sink_put(s, &m.q[5]), LQ_ERR_INTERNAL);
    assert_int_equal(lq_sink_sidecar(s, "../up", "x", 1), LQ_ERR_FORMAT);
    lq_sink_abandon(&s);
    lq_remove_tree(NULL, dir);
    model_free(&m);
}

static void check_splice(const char *text, const char *head, const char *tail, lq_status want) {
    lq_scheme scheme = lq_scheme_int(4, 32, true);
    lq_ctx ctx = {0};
    model m;
    model_make(&m, &scheme, 1);
    lq_sink *s = open_sink(&ctx, "gptq", &m);
    assert_int_equal(lq_sink_config(s, text, strlen(text)), want);
    lq_sink_abandon(&s);
    if (!want) {
        char path[128];
        lq_buf b;
        snprintf(path, sizeof path, "%s/config.json", dir);
        assert_int_equal(lq_file_slurp(&ctx, path, 1 << 20, &b), LQ_OK);
        assert_memory_equal(b.v, head, strlen(head));
        assert_string_equal(b.v + b.n - strlen(tail), tail);
        json_t *doc;
        assert_int_equal(lq_json_parse(&ctx, path, b.v, b.n, &doc), LQ_OK);
        assert_int_equal(json_integer_value(json_object_get(json_object_get(doc, "quantization_config"), "bits")), 4);
        json_decref(doc);
        lq_buf_free(&b);
    }
    lq_remove_tree(NULL, dir);
    model_free(&m);
}

static void config_keeps_every_other_byte(void **state) {
    (void)state;
    check_splice(config_text, "{\n  \"model_type\": \"llama\",\n\t\"odd\":   [1,  2],\n  \"quantization_config\": {\n    \"quant_method\"", "\n  }\n}\n", LQ_OK);
    check_splice("{\"a\":{\"}\":1}}", "{\"a\":{\"}\":1},\n  \"quantization_config\"", "  }\n}", LQ_OK);
    check_splice("{}", "{\n  \"quantization_config\"", "  }\n}", LQ_OK);
    check_splice("{ \n } \r\n", "{\n  \"quantization_config\"", "  } \n } \r\n", LQ_OK);
    check_splice("{\"quantization_config\": {}}", "", "", LQ_ERR_UNSUPPORTED);
    check_splice("[1]", "", "", LQ_ERR_FORMAT);
    check_splice("{", "", "", LQ_ERR_FORMAT);
}

static void a_full_disk_is_an_output_error(void **state) {
    (void)state;
    lq_scheme scheme = lq_scheme_int(4, 32, true);
    struct rlimit old, small;
    model m;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 3000;
    EACH_FORMAT(f) {
        if ((*f)->accept(NULL, &scheme, HIDDEN, WIDE)) continue;
        lq_ctx ctx = {0};
        model_make(&m, &scheme, 1);
        fresh_dir();
        setrlimit(RLIMIT_FSIZE, &small);
        lq_status st = write_model(&ctx, *f, &m);
        setrlimit(RLIMIT_FSIZE, &old);
        assert_int_equal(st, LQ_ERR_IO);
        assert_non_null(strstr(ctx.msg, dir));
        lq_remove_tree(NULL, dir);
        model_free(&m);
    }
}

static void every_failed_allocation_is_reported(void **state) {
    (void)state;
    lq_scheme fp8 = {.grid = {LQ_GRID_E4M3, 8, 1, 0}, .scale = {.dtype = LQ_F32}, .act = {.kind = LQ_ACT_STATIC, .dtype = LQ_E4M3}};
    lq_scheme pairs[][2] = {{lq_scheme_int(3, 32, false), lq_scheme_int(4, 32, true)}, {lq_scheme_int(4, 32, false), lq_scheme_int(4, 32, true)}, {fp8, fp8}, {lq_scheme_int(4, 32, true), lq_scheme_int(8, 64, true)}, {lq_scheme_int(4, 32, true), lq_scheme_int(4, 32, true)}};
    EACH_FORMAT(f) {
        size_t p = 0;
        while (p < sizeof pairs / sizeof *pairs && ((*f)->accept(NULL, &pairs[p][0], HIDDEN, WIDE) || (*f)->accept(NULL, &pairs[p][1], HIDDEN, WIDE))) p++;
        if (p == sizeof pairs / sizeof *pairs) continue;
        const lq_scheme *schemes = pairs[p];
        model m;
        model_make(&m, schemes, 2);
        lq_status st = LQ_ERR_RESOURCE;
        for (long n = 0; st; n++) {
            lq_ctx ctx = {0};
            bool same = false;
            fresh_dir();
            lq_mem_fail_after(n);
            st = write_model(&ctx, *f, &m);
            if (!st) st = read_model(&ctx, &m, &same);
            lq_mem_fail_after(-1);
            if (st ? st != LQ_ERR_RESOURCE : !same) fail_msg("%s, allocation %ld: status %d, %s", (*f)->name, n, (int)st, ctx.msg);
            lq_remove_tree(NULL, dir);
        }
        model_free(&m);
    }
}

/* -- damaged files --------------------------------------------------------------------------------------------------- */

static lq_buf slurp(const char *path) {
    lq_buf b;
    assert_int_equal(lq_file_slurp(NULL, path, 1 << 24, &b), LQ_OK);
    return b;
}

static void spill(const char *path, const void *v, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(v, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void write_lqt(lq_ctx *ctx, model *m) {
    lq_scheme schemes[2] = {lq_scheme_int(3, 32, false), lq_scheme_int(4, -1, true)};
    model_make(m, schemes, 2);
    fresh_dir();
    assert_int_equal(write_model(ctx, lq_format_by_name("lqt"), m), LQ_OK);
}

static void lqt_refuses_every_truncation(void **state) {
    (void)state;
    lq_ctx ctx = {0};
    model m;
    bool same;
    write_lqt(&ctx, &m);
    lq_buf b = slurp(out_path);
    for (size_t n = 0; n < b.n; n += n < 64 || n + 600 > b.n ? 1 : 37) {
        spill(out_path, b.v, n);
        assert_int_equal(read_model(&ctx, &m, &same), LQ_ERR_FORMAT);
    }
    lq_buf_free(&b);
    lq_remove_tree(NULL, dir);
    model_free(&m);
}

static void lqt_never_reads_a_flipped_bit_as_data(void **state) {
    (void)state;
    lq_ctx ctx = {0};
    model m;
    bool same;
    size_t refused = 0, harmless = 0;
    write_lqt(&ctx, &m);
    lq_buf b = slurp(out_path);
    for (size_t i = 0; i < b.n; i += i < 64 || i + 200 > b.n ? 1 : 13) {
        b.v[i] = (char)(b.v[i] ^ 1 << i % 8);
        spill(out_path, b.v, b.n);
        lq_status st = read_model(&ctx, &m, &same);
        if (st ? st != LQ_ERR_FORMAT : !same) fail_msg("byte %zu: status %d", i, (int)st);
        *(st ? &refused : &harmless) += 1;
        b.v[i] = (char)(b.v[i] ^ 1 << i % 8);
    }
    assert_true(refused > 50 * harmless); /* a flip may hit a bit of zstd that carries nothing */
    lq_buf_free(&b);
    lq_remove_tree(NULL, dir);
    model_free(&m);
}

static void the_same_puts_give_the_same_bytes(void **state) {
    (void)state;
    lq_ctx ctx = {0};
    model m;
    lq_buf b[2];
    for (int i = 0; i < 2; i++) {
        write_lqt(&ctx, &m);
        b[i] = slurp(out_path);
        lq_remove_tree(NULL, dir);
        model_free(&m);
    }
    assert_int_equal(b[0].n, b[1].n);
    assert_memory_equal(b[0].v, b[1].v, b[0].n);
    lq_buf_free(&b[0]);
    lq_buf_free(&b[1]);
}

/* Rows that begin and end inside pieces: read by halves must be the whole. */
static void lqt_reads_any_rows_of_a_large_tensor(void **state) {
    (void)state;
    enum { R = 3000, C = 1000 };
    lq_row row = {.slot = {-1, LQ_R_EMBED, -1}, .name = "e.weight", .ndim = 2, .shape = {R, C}, .out_dtype = LQ_F32};
    lq_catalog cat = {.rows = &row, .n = 1};
    lq_ctx ctx = {0};
    lq_sink *s;
    lq_source *src;
    float *data = malloc(sizeof(float) * R * C), *got = malloc(sizeof(float) * R * C);
    for (size_t i = 0; i < (size_t)R * C; i++) data[i] = (float)i;
    fresh_dir();
    assert_int_equal(lq_sink_open(&ctx, lq_format_by_name("lqt"), dir, &cat, &(lq_sink_opts){0}, &s), LQ_OK);
    assert_int_equal(lq_sink_put_fp(s, &row, data, sizeof(float) * R * C), LQ_OK);
    assert_int_equal(lq_sink_close(&s), LQ_OK);
    snprintf(out_path, sizeof out_path, "%s/model.lqt", dir);
    assert_int_equal(lq_source_open(&ctx, out_path, &src), LQ_OK);
    static const uint64_t cuts[] = {0, 1, 1048, 1049, 1050, 2097, 2098, R};
    for (size_t i = 0; i + 1 < sizeof cuts / sizeof *cuts; i++)
        assert_int_equal(lq_source_read(&ctx, src, 0, cuts[i], cuts[i + 1] - cuts[i], got + cuts[i] * C), LQ_OK);
    assert_memory_equal(data, got, sizeof(float) * R * C);
    lq_source_free(&src);
    lq_remove_tree(NULL, dir);
    free(data);
    free(got);
}

/* -- the codec alone ------------------------------------------------------------------------------------------------- */

static void the_codec_keeps_what_eq_does_not_see(void **state) {
    (void)state;
    lq_scheme s = lq_scheme_int(3, 32, false);
    lq_qtensor q, back;
    lq_buf b = {0};
    lq_rng rng;
    lq_rng_seed(&rng, 3, 3);
    assert_int_equal(lq_qtensor_init(NULL, &q, &s, (lq_slot){5, LQ_R_V, 2}, 7, 96), LQ_OK);
    fill_qtensor(&rng, &q);
    q.err_w = 0.25;
    q.err_h = 0.125;
    q.bias = lq_arena_alloc(q.mem, 7 * sizeof(float));
    q.bias[6] = -3;
    assert_int_equal(lq_qtensor_encode(NULL, &q, &b), LQ_OK);
    assert_int_equal(lq_qtensor_decode(NULL, b.v, b.n, &back), LQ_OK);
    assert_true(lq_qtensor_eq(&q, &back) && back.slot.block == 5 && back.slot.role == LQ_R_V && back.slot.expert == 2);
    assert_true(back.err_w == 0.25 && back.err_h == 0.125 && back.bias[6] == -3);
    lq_qtensor_free(&back);
    for (size_t n = 0; n < b.n; n++) assert_int_equal(lq_qtensor_decode(NULL, b.v, n, &back), LQ_ERR_FORMAT);
    for (size_t i = 0; i < b.n * 8; i++) { /* every single flip: an error or a sound matrix */
        b.v[i / 8] = (char)(b.v[i / 8] ^ 1 << i % 8);
        float row[96];
        if (!lq_qtensor_decode(NULL, b.v, b.n, &back)) {
            assert_true(back.cols <= 96);
            lq_qtensor_decode_row(&back, back.rows - 1, row);
            assert_int_equal(lq_qtensor_check(NULL, &back, LQ_ERR_FORMAT), LQ_OK);
            lq_qtensor_free(&back);
        }
        b.v[i / 8] = (char)(b.v[i / 8] ^ 1 << i % 8);
    }
    lq_buf_free(&b);
    lq_qtensor_free(&q);
}

int main(void) {
    lq_threads_set(1); /* tiny matrices */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_scheme_round_trips_or_is_refused),
        cmocka_unit_test(every_named_type_and_every_extra_round_trips_in_lqt),
        cmocka_unit_test(every_named_type_round_trips_where_it_is_accepted),
        cmocka_unit_test(a_fixed_table_is_not_stored_and_comes_back),
        cmocka_unit_test(what_the_extras_hold_is_checked),
        cmocka_unit_test(schemes_that_contradict_themselves_are_refused),
        cmocka_unit_test(mixed_schemes_round_trip),
        cmocka_unit_test(a_float_folder_round_trips),
        cmocka_unit_test(a_matrix_of_floats_is_an_ordinary_tensor_of_a_folder),
        cmocka_unit_test(refusals_name_the_nearest_setting),
        cmocka_unit_test(a_missing_tensor_is_named_at_close),
        cmocka_unit_test(what_was_not_planned_is_refused),
        cmocka_unit_test(config_keeps_every_other_byte),
        cmocka_unit_test(a_full_disk_is_an_output_error),
        cmocka_unit_test(every_failed_allocation_is_reported),
        cmocka_unit_test(lqt_refuses_every_truncation),
        cmocka_unit_test(lqt_never_reads_a_flipped_bit_as_data),
        cmocka_unit_test(the_same_puts_give_the_same_bytes),
        cmocka_unit_test(lqt_reads_any_rows_of_a_large_tensor),
        cmocka_unit_test(the_codec_keeps_what_eq_does_not_see),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
