/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Walks lq_formats: whatever a row accepts survives write and read bit for bit. */
#define _GNU_SOURCE
#include "format_model.h"

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
    out[n] = lq_scheme_int(4, 32, true), out[n++].extra = LQ_X_PRESCALE;
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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
