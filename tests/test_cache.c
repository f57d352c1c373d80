/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "calib/cache.h"
#include "calib/stats.h"
#include "core/num.h"
#include "core/thread.h"

#include <stdio.h>

enum { ITEMS = 9, MOST = 5000 };

static void fill(float *v, size_t n, uint64_t seed) {
    lq_rng r;
    lq_rng_seed(&r, seed, 7);
    for (size_t i = 0; i < n; i++) v[i] = i % 7 ? lq_rng_normal(&r) : lq_bits_f32(lq_rng_u32(&r)); /* any bits, NaN too */
}

static size_t size_of(size_t i, int round) { return (i * 997 + (size_t)round * 1234) % MOST; }

/* Puts, replaces by other sizes and gets everything back. */
static void round_trip(uint64_t budget, bool spills) {
    lq_cache *c;
    float *v = LQ_NEWN(float, MOST), *w = LQ_NEWN(float, MOST);
    assert_int_equal(lq_cache_new(NULL, ITEMS, budget, NULL, &c), LQ_OK);
    assert_int_equal(lq_cache_items(c), ITEMS);
    for (int round = 0; round < 4; round++) {
        for (size_t i = 0; i < ITEMS; i++) {
            fill(v, size_of(i, round), i + 100 * (size_t)round);
            assert_int_equal(lq_cache_put(NULL, c, i, v, size_of(i, round)), LQ_OK);
        }
        for (size_t i = ITEMS; i-- > 0;) {
            size_t n = size_of(i, round);
            fill(v, n, i + 100 * (size_t)round);
            assert_int_equal(lq_cache_get(NULL, c, i, w, n), LQ_OK);
            assert_memory_equal(v, w, n * 4);
            assert_int_not_equal(lq_cache_get(NULL, c, i, w, n + 1), LQ_OK);
        }
    }
    assert_int_equal(lq_cache_spilled(c) > 0, spills);
    assert_int_not_equal(lq_cache_get(NULL, c, ITEMS, w, 1), LQ_OK);
    lq_cache_free(&c);
    lq_free(v), lq_free(w);
}

static void bits_come_back_with_and_without_spilling(void **state) {
    (void)state;
    round_trip(1 << 30, false);
    round_trip(0, true);
    round_trip(40000, true);
}

static void an_item_never_put_is_an_error(void **state) {
    (void)state;
    lq_cache *c;
    float v;
    assert_int_equal(lq_cache_new(NULL, 2, 0, NULL, &c), LQ_OK);
    assert_int_not_equal(lq_cache_get(NULL, c, 0, &v, 1), LQ_OK);
    lq_cache_free(&c);
}

static void a_folder_that_cannot_be_written_is_named(void **state) {
    (void)state;
    lq_ctx ctx = {0};
    lq_cache *c;
    float v = 1;
    assert_int_equal(lq_cache_new(&ctx, 1, 0, "/nonexistent/place", &c), LQ_OK);
    assert_int_equal(lq_cache_put(&ctx, c, 0, &v, 1), LQ_ERR_RESOURCE);
    assert_non_null(strstr(ctx.msg, "/nonexistent/place"));
    lq_cache_free(&c);
}

static void out_of_memory_is_an_error_not_a_crash(void **state) {
    (void)state;
    lq_status st = LQ_ERR_RESOURCE;
    float v[64] = {1, 2, 3};
    for (long n = 0; st; n++) {
        lq_cache *c = NULL;
        lq_mem_fail_after(n);
        st = lq_cache_new(NULL, 2, 100, NULL, &c);
        if (!st) st = lq_cache_put(NULL, c, 0, v, 20);
        if (!st) st = lq_cache_put(NULL, c, 1, v, 64);
        lq_mem_fail_after(-1);
        assert_true(st == LQ_OK || st == LQ_ERR_RESOURCE);
        lq_cache_free(&c);
    }
}

static void statistics_name_the_column_that_is_not_finite(void **state) {
    (void)state;
    for (uint32_t bad = 0; bad < 200; bad += 33) {
        lq_ctx ctx = {0};
        lq_stats s;
        char want[40];
        float *x = LQ_NEWN(float, 3 * 200);
        x[200 + bad] = bad % 2 ? NAN : -INFINITY;
        snprintf(want, sizeof want, "column %u", bad);
        assert_int_equal(lq_stats_init(&ctx, &s, LQ_NEED_ABSMAX, 200), LQ_OK);
        assert_int_equal(lq_stats_add(&ctx, &s, x, 3), LQ_ERR_QUALITY);
        assert_non_null(strstr(ctx.msg, want));
        assert_int_equal(s.n, 0);
        lq_stats_free(&s);
        lq_free(x);
    }
}

static void statistics_do_not_depend_on_threads(void **state) {
    (void)state;
    enum { N = 300, K = 333 };
    float *x = LQ_NEWN(float, N * K);
    lq_stats a, b;
    lq_rng r;
    lq_rng_seed(&r, 3, 3);
    for (size_t i = 0; i < N * K; i++) x[i] = lq_rng_normal(&r);
    for (int pass = 0; pass < 2; pass++) {
        lq_stats *s = pass ? &b : &a;
        lq_threads_set(pass ? 4 : 1);
        assert_int_equal(lq_stats_init(NULL, s, LQ_NEED_ABSMAX | LQ_NEED_GRAM, K), LQ_OK);
        assert_int_equal(lq_stats_add(NULL, s, x, N), LQ_OK);
        assert_int_equal(lq_stats_add(NULL, s, x, 17), LQ_OK);
    }
    lq_threads_set(0);
    assert_int_equal(a.n, N + 17);
    assert_memory_equal(a.absmax, b.absmax, K * 4);
    assert_memory_equal(a.abssum, b.abssum, K * 8);
    for (uint32_t i = 0; i < K; i++)
        for (uint32_t j = 0; j < K; j++) assert_true(lq_gram_at(&a.gram, i, j) == lq_gram_at(&b.gram, i, j));
    lq_stats_free(&a), lq_stats_free(&b);
    lq_free(x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bits_come_back_with_and_without_spilling), cmocka_unit_test(an_item_never_put_is_an_error),
        cmocka_unit_test(a_folder_that_cannot_be_written_is_named), cmocka_unit_test(out_of_memory_is_an_error_not_a_crash),
        cmocka_unit_test(statistics_name_the_column_that_is_not_finite), cmocka_unit_test(statistics_do_not_depend_on_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
