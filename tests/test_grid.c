/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/pack.h"
#include "core/thread.h"
#include "matrices.h"
#include "quant/grid.h"

static const lq_slot nowhere = {0};

static lq_qtensor fitted(const lq_scheme *s, const float *w, const float *h, uint32_t rows, uint32_t cols, lq_fit how) {
    lq_qtensor q;
    assert_int_equal(lq_qtensor_init(NULL, &q, s, nowhere, rows, cols), LQ_OK);
    assert_int_equal(lq_grid_fit(NULL, &q, w, h, how), LQ_OK);
    lq_grid_round(&q, w);
    return q;
}

static float scale_at(const lq_qtensor *q, size_t i) { return lq_plane_get(&q->sch.scale, &q->scale, i); }
static float zero_at(const lq_qtensor *q, size_t i) { return q->sch.zero_kind == LQ_ZERO_NONE ? 0 : lq_plane_get(&q->sch.zero, &q->zero, i); }
static uint32_t code_at(const lq_qtensor *q, uint32_t r, uint32_t c) { return lq_code_get(q->codes + r * q->row_bytes, q->sch.grid.bits, c); }

static double weighted_error(const lq_qtensor *q, const float *w, const float *h) {
    float *v = lq_calloc(q->cols, sizeof *v);
    double sum = 0;
    for (uint32_t r = 0; r < q->rows; r++) {
        lq_qtensor_decode_row(q, r, v);
        for (uint32_t c = 0; c < q->cols; c++) {
            double d = (double)w[(size_t)r * q->cols + c] - (double)v[c];
            sum += (h ? (double)h[c] : 1) * d * d;
        }
    }
    lq_free(v);
    return sum;
}

static void min_max_is_the_field_s_on_the_worked_example(void **state) {
    (void)state;
    const float w[4] = {-0.75f, 0.10f, 0.34f, 0.70f};
    const uint32_t sym_codes[4] = {0, 9, 11, 15}, asym_codes[4] = {0, 9, 12, 15};
    lq_scheme sym = lq_scheme_int(4, 4, true), asym = lq_scheme_int(4, 4, false);
    sym.scale.sig = asym.scale.sig = 0;
    lq_qtensor q = fitted(&sym, w, NULL, 1, 4, LQ_FIT_MINMAX), p = fitted(&asym, w, NULL, 1, 4, LQ_FIT_MINMAX);
    assert_int_equal(((uint16_t *)q.scale.v)[0], lq_f32_f16(0.1f));
    assert_int_equal(((uint16_t *)p.scale.v)[0], 0x2e30);
    assert_int_equal(((uint8_t *)p.zero.v)[0], 8);
    for (uint32_t c = 0; c < 4; c++) {
        assert_int_equal(code_at(&q, 0, c), sym_codes[c]);
        assert_int_equal(code_at(&p, 0, c), asym_codes[c]);
    }
    lq_qtensor_free(&q);
    lq_qtensor_free(&p);
}

static void every_weight_in_range_lies_within_half_a_step(void **state) {
    (void)state;
    enum { ROWS = 19, COLS = 96 };
    const int groups[] = {1, 32, 48, -1};
    float *w = random_weights(1, ROWS, COLS), v[COLS];
    for (int bits = 2; bits <= 8; bits++)
        for (int g = 0; g < 4; g++)
            for (int mode = 0; mode < 4; mode++) {
                lq_scheme s = lq_scheme_int(bits, groups[g], mode & 1);
                lq_qtensor q = fitted(&s, w, NULL, ROWS, COLS, mode & 2 ? LQ_FIT_SEARCH : LQ_FIT_MINMAX);
                for (uint32_t r = 0; r < ROWS; r++) {
                    lq_qtensor_decode_row(&q, r, v);
                    for (uint32_t c = 0; c < COLS; c++) {
                        size_t i = lq_plane_index(&s.scale, COLS, r, c);
                        float scale = scale_at(&q, i), zero = zero_at(&q, i), top = (float)((1 << bits) - 1 - s.grid.bias) - zero;
                        float x = w[r * COLS + c], lo = scale * (-(float)s.grid.bias - zero), hi = scale * top;
                        float in = x < lo ? lo : x > hi ? hi : x;
                        assert_true(fabsf(in - v[c]) <= 0.5f * scale * 1.0001f);
                    }
                }
                lq_qtensor_free(&q);
            }
    lq_free(w);
}

static void rounding_what_was_rounded_changes_nothing(void **state) {
    (void)state;
    enum { ROWS = 7, COLS = 64 };
    float *w = random_weights(2, ROWS, COLS), *v = lq_calloc(ROWS * COLS, sizeof *v);
    for (int bits = 2; bits <= 8; bits++)
        for (int sym = 0; sym < 2; sym++) {
            lq_scheme s = lq_scheme_int(bits, 32, sym);
            lq_qtensor q = fitted(&s, w, NULL, ROWS, COLS, LQ_FIT_SEARCH);
            uint32_t before[ROWS * COLS];
            for (uint32_t i = 0; i < ROWS * COLS; i++) before[i] = code_at(&q, i / COLS, i % COLS);
            for (uint32_t r = 0; r < ROWS; r++) lq_qtensor_decode_row(&q, r, v + r * COLS);
            lq_grid_round(&q, v);
            for (uint32_t i = 0; i < ROWS * COLS; i++) assert_int_equal(code_at(&q, i / COLS, i % COLS), before[i]);
            lq_qtensor_free(&q);
        }
    lq_free(v);
    lq_free(w);
}

static void powers_of_two_move_only_the_scales(void **state) {
    (void)state;
    enum { ROWS = 18, COLS = 64 };
    float *w = random_weights(3, ROWS, COLS), *v = lq_calloc(ROWS * COLS, sizeof *v);
    for (int i = 0; i < ROWS * COLS; i++) v[i] = 8 * w[i];
    for (int bits = 2; bits <= 8; bits++)
        for (int mode = 0; mode < 4; mode++) {
            lq_scheme s = lq_scheme_int(bits, 32, mode & 1);
            lq_fit how = mode & 2 ? LQ_FIT_SEARCH : LQ_FIT_MINMAX;
            lq_qtensor a = fitted(&s, w, NULL, ROWS, COLS, how), b = fitted(&s, v, NULL, ROWS, COLS, how);
            for (size_t i = 0; i < ROWS * 2; i++) {
                assert_true(scale_at(&b, i) == 8 * scale_at(&a, i));
                assert_true(zero_at(&b, i) == zero_at(&a, i));
            }
            for (uint32_t i = 0; i < ROWS * COLS; i++) assert_int_equal(code_at(&a, i / COLS, i % COLS), code_at(&b, i / COLS, i % COLS));
            lq_qtensor_free(&a);
            lq_qtensor_free(&b);
        }
    lq_free(v);
    lq_free(w);
}

static void the_search_is_never_worse_than_min_max(void **state) {
    (void)state;
    enum { ROWS = 33, COLS = 128 };
    float *w = random_weights(4, ROWS, COLS), h[COLS];
    lq_rng rng;
    lq_rng_seed(&rng, 4, 4);
    for (int c = 0; c < COLS; c++) h[c] = expf(3 * lq_rng_normal(&rng));
    h[5] = h[6] = 0;
    for (int bits = 2; bits <= 8; bits++)
        for (int mode = 0; mode < 8; mode++) {
            lq_scheme s = lq_scheme_int(bits, mode & 4 ? -1 : 32, mode & 1);
            const float *weights = mode & 2 ? h : NULL;
            lq_qtensor a = fitted(&s, w, weights, ROWS, COLS, LQ_FIT_MINMAX), b = fitted(&s, w, weights, ROWS, COLS, LQ_FIT_SEARCH);
            lq_qtensor c = fitted(&s, w, weights, ROWS, COLS, LQ_FIT_SEARCH_SIGNED);
            double field = weighted_error(&a, w, weights), ours = weighted_error(&b, w, weights), with_sign = weighted_error(&c, w, weights);
            assert_true(ours <= field * 1.00001);
            assert_true(with_sign <= field * 1.00001);
            if (bits <= 4) assert_true(ours < 0.97 * field);
            lq_qtensor_free(&a);
            lq_qtensor_free(&b);
            lq_qtensor_free(&c);
        }
    lq_free(w);
}

static void columns_with_weight_are_served_first(void **state) {
    (void)state;
    enum { ROWS = 32, COLS = 128 };
    float *w = random_weights(9, ROWS, COLS), h[COLS];
    for (int c = 0; c < COLS; c++) h[c] = c % 10 ? 0.001f : 100;
    for (int sym = 0; sym < 2; sym++) {
        lq_scheme s = lq_scheme_int(3, -1, sym);
        lq_qtensor served = fitted(&s, w, h, ROWS, COLS, LQ_FIT_SEARCH), blind = fitted(&s, w, NULL, ROWS, COLS, LQ_FIT_SEARCH);
        assert_true(weighted_error(&served, w, h) < 0.6 * weighted_error(&blind, w, h));
        lq_qtensor_free(&served);
        lq_qtensor_free(&blind);
    }
    lq_free(w);
}

/* Three significant bits: few scales exist, all are tried here. */
static void scales_are_judged_as_they_will_be_stored(void **state) {
    (void)state;
    enum { ROWS = 32, COLS = 64 };
    float *w = random_weights(10, ROWS, COLS);
    lq_scheme s = lq_scheme_int(3, -1, true);
    s.scale.sig = 3;
    lq_qtensor q = fitted(&s, w, NULL, ROWS, COLS, LQ_FIT_SEARCH);
    for (uint32_t r = 0; r < ROWS; r++) {
        lq_qtensor one;
        double best = HUGE_VAL;
        assert_int_equal(lq_qtensor_init(NULL, &one, &s, nowhere, 1, COLS), LQ_OK);
        for (int e = -12; e <= 0; e++)
            for (int m = 4; m < 8; m++) {
                lq_plane_set(&s.scale, &one.scale, 0, ldexpf((float)m, e));
                lq_grid_round(&one, w + r * COLS);
                best = fmin(best, weighted_error(&one, w + r * COLS, NULL));
            }
        lq_plane_set(&s.scale, &one.scale, 0, scale_at(&q, r));
        lq_grid_round(&one, w + r * COLS);
        assert_true(weighted_error(&one, w + r * COLS, NULL) <= 1.0001 * best);
        lq_qtensor_free(&one);
    }
    lq_qtensor_free(&q);
    lq_free(w);
}

static void the_search_finds_a_grid_the_weights_lie_on(void **state) {
    (void)state;
    float w[64];
    for (int bits = 2; bits <= 6; bits++)
        for (int sym = 0; sym < 2; sym++) {
            lq_scheme s = lq_scheme_int(bits, -1, sym);
            int n = 1 << bits, zero = sym ? n / 2 : n / 3;
            for (int c = 0; c < 64; c++) w[c] = 0.03125f * 1.5f * (float)(c % n - zero);
            lq_qtensor q = fitted(&s, w, NULL, 1, 64, LQ_FIT_SEARCH);
            assert_true(weighted_error(&q, w, NULL) == 0);
            lq_qtensor_free(&q);
        }
}

static void a_negative_scale_is_used_only_when_asked_for(void **state) {
    (void)state;
    const float w[8] = {0.8f, -0.1f, 0.3f, -0.7f, 0.2f, 0.5f, -0.3f, 0.6f}; /* 8 steps of 0.1 up, 7 down: fits s = -0.1 */
    lq_scheme s = lq_scheme_int(4, -1, true);
    lq_qtensor a = fitted(&s, w, NULL, 1, 8, LQ_FIT_SEARCH), b = fitted(&s, w, NULL, 1, 8, LQ_FIT_SEARCH_SIGNED);
    assert_true(scale_at(&a, 0) > 0);
    assert_true(scale_at(&b, 0) < 0);
    assert_true(weighted_error(&b, w, NULL) < 0.5 * weighted_error(&a, w, NULL));
    lq_qtensor_free(&a);
    lq_qtensor_free(&b);
}

static void a_group_of_zeros_decodes_to_zero_with_scale_one(void **state) {
    (void)state;
    float w[64] = {0}, v[64];
    w[0] = 1;
    for (int mode = 0; mode < 4; mode++) {
        lq_scheme s = lq_scheme_int(4, 32, mode & 1);
        lq_qtensor q = fitted(&s, w, NULL, 1, 64, mode & 2 ? LQ_FIT_SEARCH : LQ_FIT_MINMAX);
        assert_true(scale_at(&q, 1) == 1);
        lq_qtensor_decode_row(&q, 0, v);
        for (int c = 32; c < 64; c++) assert_true(v[c] == 0);
        lq_qtensor_free(&q);
    }
}

static void scales_are_normal_and_exact_in_both_half_types(void **state) {
    (void)state;
    const float sizes[] = {1e-30f, 1e-9f, 1e-5f, 1, 1e4f, 1e9f, 3e38f};
    float *w = random_weights(5, 4, 32), v[128];
    for (int i = 0; i < 7; i++)
        for (int mode = 0; mode < 4; mode++) {
            lq_scheme s = lq_scheme_int(3, 16, mode & 1);
            for (int c = 0; c < 128; c++) v[c] = w[c] * sizes[i];
            lq_qtensor q = fitted(&s, v, NULL, 4, 32, mode & 2 ? LQ_FIT_SEARCH : LQ_FIT_MINMAX);
            for (size_t k = 0; k < 8; k++) {
                float scale = scale_at(&q, k);
                assert_true(isfinite(scale) && fabsf(scale) >= 0x1p-14f);
                assert_true(lq_f16_f32(lq_f32_f16(scale)) == scale && lq_bf16_f32(lq_f32_bf16(scale)) == scale);
            }
            lq_qtensor_free(&q);
        }
    lq_free(w);
}

static void an_asymmetric_range_always_holds_zero(void **state) {
    (void)state;
    float w[64], v[64];
    for (int sign = -1; sign <= 1; sign += 2)
        for (int bits = 2; bits <= 8; bits++) {
            lq_scheme s = lq_scheme_int(bits, -1, false);
            for (int c = 0; c < 64; c++) w[c] = (float)sign * (2 + 0.01f * (float)c);
            lq_qtensor q = fitted(&s, w, NULL, 1, 64, LQ_FIT_MINMAX);
            assert_true(zero_at(&q, 0) == (sign > 0 ? 0 : (float)((1 << bits) - 1)));
            lq_qtensor_decode_row(&q, 0, v);
            for (int c = 0; c < 64; c++) assert_true(fabsf(v[c] - w[c]) <= 0.51f * scale_at(&q, 0));
            lq_qtensor_free(&q);
        }
}

static void codes_round_half_to_even_and_clamp(void **state) {
    (void)state;
    lq_scheme sym = lq_scheme_int(4, -1, true), asym = lq_scheme_int(4, -1, false);
    assert_int_equal(lq_grid_code(&sym, 0.5f, 1, 0), 8);
    assert_int_equal(lq_grid_code(&sym, 1.5f, 1, 0), 10);
    assert_int_equal(lq_grid_code(&sym, -2.5f, 1, 0), 6);
    assert_int_equal(lq_grid_code(&sym, 1e30f, 1e-30f, 0), 15);
    assert_int_equal(lq_grid_code(&sym, -1e30f, 1e-30f, 0), 0);
    assert_int_equal(lq_grid_code(&sym, 3, -1, 0), 5);
    assert_int_equal(lq_grid_code(&asym, 0.5f, 1, 3), 3);
    assert_int_equal(lq_grid_code(&asym, -4, 1, 3), 0);
    assert_int_equal(lq_grid_code(&asym, 13, 1, 3), 15);
    for (uint32_t code = 0; code < 16; code++) assert_int_equal(lq_grid_code(&asym, lq_grid_weight(&asym, code, 0.3f, 5), 0.3f, 5), code);
}

static void threads_change_no_bit(void **state) {
    (void)state;
    float *w = random_weights(6, 100, 96);
    for (int mode = 0; mode < 4; mode++) {
        lq_scheme s = lq_scheme_int(3, mode & 2 ? -1 : 32, mode & 1);
        lq_threads_set(1);
        lq_qtensor a = fitted(&s, w, NULL, 100, 96, LQ_FIT_SEARCH);
        lq_threads_set(3);
        lq_qtensor b = fitted(&s, w, NULL, 100, 96, LQ_FIT_SEARCH);
        lq_threads_set(0);
        assert_true(lq_qtensor_eq(&a, &b));
        lq_qtensor_free(&a);
        lq_qtensor_free(&b);
    }
    lq_free(w);
}

static void a_row_is_fitted_alike_whatever_rows_stand_beside_it(void **state) {
    (void)state;
    float *w = random_weights(7, 37, 64);
    lq_scheme s = lq_scheme_int(3, 32, false);
    lq_qtensor all = fitted(&s, w, NULL, 37, 64, LQ_FIT_SEARCH), some = fitted(&s, w + 21 * 64, NULL, 5, 64, LQ_FIT_SEARCH);
    for (uint32_t r = 0; r < 5; r++) {
        assert_memory_equal(all.codes + (21 + r) * all.row_bytes, some.codes + r * some.row_bytes, 24);
        for (size_t k = 0; k < 2; k++) assert_true(scale_at(&all, (21 + r) * 2 + k) == scale_at(&some, r * 2 + k));
    }
    lq_qtensor_free(&all);
    lq_qtensor_free(&some);
    lq_free(w);
}

static void schemes_it_cannot_fit_are_refused(void **state) {
    (void)state;
    lq_ctx ctx = {0};
    lq_scheme good = lq_scheme_int(4, 32, true), bad[8];
    for (int i = 0; i < 8; i++) bad[i] = good;
    bad[0].grid.vec = 2;
    bad[1].grid.bits = 9;
    bad[2].grid = (lq_grid){.kind = LQ_GRID_LUT, .bits = 5, .vec = 1};
    bad[3].zero_kind = LQ_ZERO_MIN;
    bad[4].scale.parent = LQ_F32;
    bad[5].scale = (lq_plane_desc){.dtype = LQ_F32, .tile_r = LQ_FLAT};
    bad[6].scale.dtype = LQ_I8;
    bad[7].extra = LQ_X_PERM;
    assert_int_equal(lq_grid_accept(&ctx, &good, 96), LQ_OK);
    for (int i = 0; i < 8; i++) assert_int_equal(lq_grid_accept(&ctx, &bad[i], 96), LQ_ERR_UNSUPPORTED);
    assert_int_equal(lq_grid_accept(&ctx, &good, 80), LQ_ERR_UNSUPPORTED);
    assert_non_null(strstr(ctx.msg, "80"));
}

static void running_out_of_memory_is_an_error_not_a_crash(void **state) {
    (void)state;
    float *w = random_weights(8, 4, 32);
    lq_scheme s = lq_scheme_int(4, 32, true);
    lq_qtensor q;
    assert_int_equal(lq_qtensor_init(NULL, &q, &s, nowhere, 4, 32), LQ_OK);
    lq_status st = LQ_ERR_RESOURCE;
    for (long n = 0; st; n++) {
        lq_mem_fail_after(n);
        st = lq_grid_fit(NULL, &q, w, NULL, LQ_FIT_SEARCH);
        lq_mem_fail_after(-1);
        assert_true(st == LQ_OK || st == LQ_ERR_RESOURCE);
        assert_true(n < 20);
    }
    lq_qtensor_free(&q);
    lq_free(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(min_max_is_the_field_s_on_the_worked_example),
        cmocka_unit_test(every_weight_in_range_lies_within_half_a_step),
        cmocka_unit_test(rounding_what_was_rounded_changes_nothing),
        cmocka_unit_test(powers_of_two_move_only_the_scales),
        cmocka_unit_test(the_search_is_never_worse_than_min_max),
        cmocka_unit_test(columns_with_weight_are_served_first),
        cmocka_unit_test(scales_are_judged_as_they_will_be_stored),
        cmocka_unit_test(the_search_finds_a_grid_the_weights_lie_on),
        cmocka_unit_test(a_negative_scale_is_used_only_when_asked_for),
        cmocka_unit_test(a_group_of_zeros_decodes_to_zero_with_scale_one),
        cmocka_unit_test(scales_are_normal_and_exact_in_both_half_types),
        cmocka_unit_test(an_asymmetric_range_always_holds_zero),
        cmocka_unit_test(codes_round_half_to_even_and_clamp),
        cmocka_unit_test(threads_change_no_bit),
        cmocka_unit_test(a_row_is_fitted_alike_whatever_rows_stand_beside_it),
        cmocka_unit_test(schemes_it_cannot_fit_are_refused),
        cmocka_unit_test(running_out_of_memory_is_an_error_not_a_crash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
