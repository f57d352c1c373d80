/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Every named type into every other: what is told is what decoding shows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "core/num.h"
#include "core/pack.h"
#include "core/recast.h"
#include "core/thread.h"
#include "formats/qcodec.h"
#include "quant/types.h"

enum { ROWS = 5, COLS = 256 };

static void fill_plane(lq_rng *rng, const lq_plane_desc *d, lq_plane *p, bool zero, uint32_t top) {
    size_t n = lq_plane_count(d, ROWS, COLS);
    size_t up = d->parent == LQ_NONE || !n ? 0 : d->span ? (n + d->span - 1) / d->span : 1;
    uint32_t most = d->sig && d->sig < 8 ? (1u << (d->dtype == LQ_I8 ? d->sig - 1 : d->sig)) - 1 : d->dtype == LQ_I8 ? 127 : 255;
    for (size_t i = 0; i < up; i++) lq_plane_set(&(lq_plane_desc){.dtype = d->parent}, &(lq_plane){.v = p->parent}, i, 0.01f + lq_rng_unit(rng));
    for (size_t i = 0; i < n; i++) {
        if (d->dtype == LQ_E8M0) ((uint8_t *)p->v)[i] = (uint8_t)(120 + lq_rng_below(rng, 10));
        else if (d->dtype == LQ_U8 || d->dtype == LQ_I8) ((uint8_t *)p->v)[i] = (uint8_t)lq_rng_below(rng, (zero && d->parent == LQ_NONE ? top : most) + 1);
        else lq_plane_set(d, p, i, zero ? 4 * lq_rng_unit(rng) : 0.01f + lq_rng_unit(rng));
    }
}

static uint32_t random_code(lq_rng *rng, const lq_grid *g) {
    float v = lq_rng_normal(rng);
    if (g->kind == LQ_GRID_F32) return lq_f32_bits(v);
    if (g->kind == LQ_GRID_F16) return lq_f32_f16(v);
    if (g->kind == LQ_GRID_BF16) return lq_f32_bf16(v);
    if (g->kind == LQ_GRID_E4M3) return lq_f32_e4m3(4 * v);
    return lq_rng_below(rng, g->kind == LQ_GRID_INT && g->bits == 2 && g->bias == 1 ? 3 : 1u << g->bits);
}

static lq_qtensor random_qtensor(const lq_scheme *s, uint64_t seed) {
    lq_qtensor q;
    lq_rng rng;
    lq_rng_seed(&rng, seed, 3);
    assert_int_equal(lq_qtensor_init(NULL, &q, s, (lq_slot){0}, ROWS, COLS), LQ_OK);
    for (uint32_t r = 0; r < ROWS; r++)
        for (uint32_t c = 0; c < COLS; c++) lq_code_put(q.codes + r * q.row_bytes, s->grid.bits, c, random_code(&rng, &s->grid));
    fill_plane(&rng, &s->scale, &q.scale, false, 0);
    fill_plane(&rng, &s->zero, &q.zero, true, (1u << (s->grid.bits < 8 ? s->grid.bits : 8)) - 1);
    if (s->grid.kind == LQ_GRID_LUT && s->grid.bias == LQ_LUT_DATA)
        for (size_t i = 0; i < (size_t)q.n_lut << s->grid.bits; i++) q.lut[i] = lq_f16_f32(lq_f32_f16(lq_rng_normal(&rng)));
    if (s->act.kind == LQ_ACT_STATIC) q.act_scale = 0.25f;
    for (uint32_t c = 0; q.perm && c < COLS; c++) q.perm[c] = (c * 37 + 5) % COLS;
    return q;
}

/* The loss, found here by decoding. */
static lq_loss compare(const lq_qtensor *a, const lq_qtensor *b) {
    lq_loss l = {0};
    float x[COLS], y[COLS];
    for (uint32_t r = 0; r < ROWS; r++) {
        lq_qtensor_decode_row(a, r, x);
        lq_qtensor_decode_row(b, r, y);
        for (uint32_t c = 0; c < COLS; c++) {
            double e = fabs((double)x[c] - y[c]);
            l.weights++;
            l.changed += e > 0;
            if (e > l.max_abs) l.max_abs = e;
        }
    }
    return l;
}

static void check_told(const lq_qtensor *from, const lq_qtensor *to, const lq_loss *told) {
    lq_loss seen = compare(from, to);
    assert_int_equal(seen.weights, told->weights);
    assert_int_equal(seen.changed, told->changed);
    assert_true(seen.max_abs == told->max_abs);
    lq_ctx ctx = {0};
    char a[64], b[64];
    if (lq_qtensor_check(&ctx, to, LQ_ERR_QUALITY)) fail_msg("%s -> %s: %s", lq_scheme_name(&from->sch, a, sizeof a), lq_scheme_name(&to->sch, b, sizeof b), ctx.msg);
}

static bool type_scheme(size_t i, const char *suffix, lq_scheme *out) {
    char text[64];
    lq_want w;
    lq_ctx ctx = {0};
    lq_type_defaults d = {.group = lq_types[i].knobs & LQ_TYPE_GROUP && !strchr(suffix, 'g') ? 64 : 0};
    snprintf(text, sizeof text, "%s%s", lq_types[i].name, suffix);
    if (lq_type_parse(&ctx, text, &d, &w) || w.keep || w.open) return false;
    *out = w.scheme;
    return lq_scheme_check(NULL, out, ROWS, COLS) == LQ_OK;
}

static void told_is_true_of_every_pair_of_types(void **state) {
    (void)state;
    static const char *const suffixes[] = {"", "-g32", "-g128-asym", "-row", "-fz", "-tensor"};
    size_t exact = 0, lossy = 0;
    for (size_t a = 0; lq_types[a].name; a++)
        for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
            lq_scheme from, to;
            if (!type_scheme(a, suffixes[i], &from)) continue;
            lq_qtensor q = random_qtensor(&from, a);
            for (size_t b = 0; lq_types[b].name; b++)
                for (size_t k = 0; k < sizeof suffixes / sizeof *suffixes; k++) {
                    lq_qtensor made, back;
                    lq_loss told, again;
                    if (!type_scheme(b, suffixes[k], &to) || lq_recast(NULL, &q, &to, &made, &told)) continue;
                    check_told(&q, &made, &told);
                    exact += !told.changed;
                    lossy += told.changed > 0;
                    if (!told.changed && !lq_recast(NULL, &made, &from, &back, &again)) {
                        if (again.changed) print_error("%s%s -> %s%s is exact, back it is not\n", lq_types[a].name, suffixes[i], lq_types[b].name, suffixes[k]);
                        assert_int_equal(again.changed, 0);
                        check_told(&made, &back, &again);
                        lq_qtensor_free(&back);
                    }
                    lq_qtensor_free(&made);
                }
            lq_qtensor_free(&q);
        }
    assert_true(exact > 200 && lossy > 100);
}

static void must(const lq_scheme *from, lq_scheme to, bool exact) {
    lq_qtensor q = random_qtensor(from, 9), made;
    lq_loss told;
    char a[64], b[64];
    assert_int_equal(lq_recast(NULL, &q, &to, &made, &told), LQ_OK);
    if ((told.changed == 0) != exact) print_error("%s -> %s: %llu changed\n", lq_scheme_name(from, a, sizeof a), lq_scheme_name(&to, b, sizeof b), (unsigned long long)told.changed);
    assert_int_equal(told.changed == 0, exact);
    check_told(&q, &made, &told);
    lq_qtensor_free(&made);
    lq_qtensor_free(&q);
}

static lq_scheme min_of(lq_scheme s, lq_dtype scale, lq_dtype zero) {
    s.scale.dtype = scale;
    s.scale.sig = 0;
    s.zero_kind = LQ_ZERO_MIN;
    s.grid.bias = 0;
    s.zero = (lq_plane_desc){.dtype = zero, .tile_r = 1, .tile_c = s.scale.tile_c};
    return s;
}

static void integers_keep_their_values_in_finer_groups_more_bits_and_other_zeros(void **state) {
    (void)state;
    lq_scheme sym = lq_scheme_int(4, 128, true), asym = lq_scheme_int(4, 128, false), f32 = sym;
    f32.scale.dtype = LQ_F32;
    must(&sym, lq_scheme_int(4, 32, true), true);
    must(&sym, lq_scheme_int(4, 128, false), true);
    must(&asym, lq_scheme_int(8, 32, true), true);
    must(&asym, lq_scheme_int(4, 128, true), false);
    must(&sym, lq_scheme_int(4, 256, true), false);
    must(&sym, min_of(sym, LQ_BF16, LQ_BF16), true);
    must(&asym, min_of(asym, LQ_F32, LQ_F32), true);
    must(&sym, f32, true);
    must(&f32, sym, true); /* its random scales were rounded to 8 bits too */
    lq_scheme three = lq_scheme_int(3, 64, true);
    must(&three, lq_scheme_int(4, 64, true), true);
    must(&three, lq_scheme_int(8, 32, false), true);
    must(&three, lq_scheme_int(2, 64, true), false);
}

static void k_quants_keep_their_values_under_f32_scales_and_minima(void **state) {
    (void)state;
    lq_scheme k = {.grid = {.kind = LQ_GRID_INT, .bits = 4, .vec = 1}, .zero_kind = LQ_ZERO_MIN,
                   .scale = {.dtype = LQ_U8, .sig = 6, .tile_r = 1, .tile_c = 32, .parent = LQ_F16, .span = 8}};
    k.zero = k.scale;
    must(&k, min_of(lq_scheme_int(4, 32, true), LQ_F32, LQ_F32), true);
    must(&k, min_of(lq_scheme_int(4, 32, true), LQ_F16, LQ_F16), false);
    must(&k, lq_scheme_int(4, 32, false), false);
}

static void small_floats_are_integers_and_e4m3(void **state) {
    (void)state;
    lq_scheme mx = {.grid = {.kind = LQ_GRID_E2M1, .bits = 4, .vec = 1}, .scale = {.dtype = LQ_E8M0, .tile_r = 1, .tile_c = 32}}, nv = mx, fp8 = mx, f16 = mx;
    nv.scale = (lq_plane_desc){.dtype = LQ_E4M3, .tile_r = 1, .tile_c = 16, .parent = LQ_F32};
    fp8.grid = (lq_grid){.kind = LQ_GRID_E4M3, .bits = 8, .vec = 1};
    f16.scale.dtype = LQ_F16;
    must(&mx, nv, true);
    must(&mx, fp8, true);
    must(&mx, f16, true);
    must(&mx, lq_scheme_int(8, 32, true), true);
    must(&mx, lq_scheme_int(5, 32, true), true);
    must(&mx, lq_scheme_int(4, 32, true), false);
    lq_scheme f32 = {.grid = {.kind = LQ_GRID_F32, .bits = 32, .vec = 1}};
    must(&nv, f32, true);
}

static void columns_come_back_from_a_permuted_order_where_groups_allow(void **state) {
    (void)state;
    lq_scheme perm = lq_scheme_int(4, -1, true), plain = perm, grouped = lq_scheme_int(4, 64, true);
    perm.extra = LQ_X_PERM;
    must(&perm, plain, true);
    must(&perm, grouped, true);
    lq_scheme groups = grouped;
    groups.extra = LQ_X_PERM;
    must(&groups, grouped, false);
}

static void bitsandbytes_blocks_are_groups_where_rows_are_whole_blocks(void **state) {
    (void)state;
    lq_scheme flat = {.grid = {.kind = LQ_GRID_LUT, .bits = 4, .vec = 1, .bias = LQ_LUT_NF4}, .scale = {.dtype = LQ_F32, .tile_r = LQ_FLAT, .tile_c = 64}}, row = flat;
    row.scale.tile_r = 1;
    must(&flat, row, true);
    must(&row, flat, true);
}

static void unrelated_codes_are_refused(void **state) {
    (void)state;
    lq_scheme nf4 = {.grid = {.kind = LQ_GRID_LUT, .bits = 4, .vec = 1, .bias = LQ_LUT_NF4}, .scale = {.dtype = LQ_F32, .tile_r = LQ_FLAT, .tile_c = 64}};
    lq_scheme to = lq_scheme_int(4, 64, true);
    lq_qtensor q = random_qtensor(&nf4, 1), made;
    lq_ctx ctx = {0};
    lq_loss l;
    assert_int_equal(lq_recast(&ctx, &q, &to, &made, &l), LQ_ERR_UNSUPPORTED);
    assert_non_null(strstr(ctx.msg, "anew"));
    lq_qtensor_free(&q);
}

static void threads_change_nothing(void **state) {
    (void)state;
    lq_scheme from = lq_scheme_int(4, 64, false), to = lq_scheme_int(3, 64, true);
    lq_qtensor q = random_qtensor(&from, 5), a, b;
    lq_loss la, lb;
    lq_threads_set(1);
    assert_int_equal(lq_recast(NULL, &q, &to, &a, &la), LQ_OK);
    lq_threads_set(3);
    assert_int_equal(lq_recast(NULL, &q, &to, &b, &lb), LQ_OK);
    assert_true(lq_qtensor_eq(&a, &b) && la.square == lb.square && la.energy == lb.energy);
    lq_threads_set(0);
    lq_qtensor_free(&a);
    lq_qtensor_free(&b);
    lq_qtensor_free(&q);
}

static void memory_that_runs_out_is_a_status(void **state) {
    (void)state;
    lq_scheme from = lq_scheme_int(4, 64, false), to = lq_scheme_int(8, 32, true);
    lq_qtensor q = random_qtensor(&from, 5), made;
    lq_loss l;
    lq_status st = LQ_ERR_RESOURCE;
    for (long n = 0; st == LQ_ERR_RESOURCE && n < 200; n++) {
        lq_mem_fail_after(n);
        st = lq_recast(NULL, &q, &to, &made, &l);
        lq_mem_fail_after(-1);
    }
    assert_int_equal(st, LQ_OK);
    lq_qtensor_free(&made);
    lq_qtensor_free(&q);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(told_is_true_of_every_pair_of_types),
        cmocka_unit_test(integers_keep_their_values_in_finer_groups_more_bits_and_other_zeros),
        cmocka_unit_test(k_quants_keep_their_values_under_f32_scales_and_minima),
        cmocka_unit_test(small_floats_are_integers_and_e4m3),
        cmocka_unit_test(columns_come_back_from_a_permuted_order_where_groups_allow),
        cmocka_unit_test(bitsandbytes_blocks_are_groups_where_rows_are_whole_blocks),
        cmocka_unit_test(unrelated_codes_are_refused),
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(memory_that_runs_out_is_a_status),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
