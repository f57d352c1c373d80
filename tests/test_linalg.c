/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/num.h"
#include "core/thread.h"
#include "kernels/linalg.h"

#include <float.h>
#include <stdlib.h>

static float *normals(size_t n, uint64_t seed) {
    lq_rng r;
    lq_rng_seed(&r, seed, 1);
    float *v = LQ_NEWN(float, n);
    assert_non_null(v);
    for (size_t i = 0; i < n; i++) v[i] = lq_rng_normal(&r);
    return v;
}

/* |got - sum a b| <= (n + 2) eps sum |a b|: any order of summation, with or without fused products */
static void assert_sum(float got, const float *a, size_t step_a, const float *b, size_t step_b, uint32_t n) {
    double sum = 0, mass = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += (double)a[i * step_a] * (double)b[i * step_b];
        mass += fabs((double)a[i * step_a] * (double)b[i * step_b]);
    }
    double bound = ((double)n + 2) * (double)FLT_EPSILON / 2 * mass;
    if (!(fabs((double)got - sum) <= bound)) fail_msg("got %.9g, want %.9g within %.3g", (double)got, sum, bound);
}

static void matmul_equals_the_naive_product(void **state) {
    (void)state;
    static const uint32_t shapes[][3] = {{1, 1, 1}, {1, 7, 3}, {3, 1, 64}, {17, 33, 5}, {256, 384, 40}, {257, 385, 41}, {300, 770, 64}, {70, 50, 1000}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        uint32_t n = shapes[s][0], rows = shapes[s][1], cols = shapes[s][2], ld = cols + 3, ldy = rows + 5;
        float *x = normals((size_t)n * ld, s), *w = normals((size_t)rows * ld, s + 100), *y = normals((size_t)n * ldy, 7);
        float *before = normals((size_t)n * ldy, 7);
        lq_matmul(x, ld, w, ld, y, ldy, n, rows, cols);
        for (uint32_t t = 0; t < n; t++) {
            for (uint32_t r = 0; r < rows; r++) assert_sum(y[(size_t)t * ldy + r], x + (size_t)t * ld, 1, w + (size_t)r * ld, 1, cols);
            for (uint32_t r = rows; r < ldy; r++) assert_true(y[(size_t)t * ldy + r] == before[(size_t)t * ldy + r]);
        }
        lq_free(x);
        lq_free(w);
        lq_free(y);
        lq_free(before);
    }
}

static void gemm_accumulates_and_scales(void **state) {
    (void)state;
    enum { N = 5, M = 6, K = 7 };
    float *a = normals(N * K, 1), *b = normals(K * M, 2), *bt = normals(M * K, 3), y[N * M], z[N * M];
    for (int i = 0; i < M; i++)
        for (int k = 0; k < K; k++) bt[i * K + k] = b[k * M + i];
    lq_gemm_nt(a, K, bt, K, y, M, N, M, K, false);
    for (int t = 0; t < N * M; t++) assert_sum(y[t], a + t / M * K, 1, b + t % M, M, K);
    lq_gemm_nn(a, K, b, M, z, M, N, M, K, 1, false);
    for (int t = 0; t < N * M; t++) assert_sum(z[t], a + t / M * K, 1, b + t % M, M, K);
    lq_gemm_nt(a, K, bt, K, y, M, N, M, K, true);
    lq_gemm_nn(a, K, b, M, y, M, N, M, K, -2, true);
    for (int t = 0; t < N * M; t++) assert_true(fabsf(y[t]) < 1e-4f);
    lq_free(a);
    lq_free(b);
    lq_free(bt);
}

static void matmul_gives_the_same_bits_at_any_thread_count(void **state) {
    (void)state;
    enum { N = 520, ROWS = 900, COLS = 130 };
    float *x = normals((size_t)N * COLS, 1), *w = normals((size_t)ROWS * COLS, 2), *y[3];
    for (int i = 0; i < 3; i++) {
        y[i] = normals((size_t)N * ROWS, 3);
        lq_threads_set(i + 1);
        lq_matmul(x, COLS, w, COLS, y[i], ROWS, N, ROWS, COLS);
        assert_memory_equal(y[0], y[i], sizeof(float) * N * ROWS);
    }
    lq_threads_set(0);
    for (int i = 0; i < 3; i++) lq_free(y[i]);
    lq_free(x);
    lq_free(w);
}

static void gram_of(lq_gram *g, const float *x, size_t ld, uint32_t k, uint32_t n, const uint32_t *calls) {
    assert_int_equal(lq_gram_init(NULL, g, k), LQ_OK);
    for (uint32_t t = 0; t < n; t += *calls++) assert_int_equal(lq_gram_add(NULL, g, x + t * ld, ld, *calls < n - t ? *calls : n - t), LQ_OK);
    assert_int_equal(g->n, n);
}

static void gram_equals_the_naive_sum(void **state) {
    (void)state;
    static const uint32_t ks[] = {1, 5, 127, 128, 129, 650};
    for (size_t s = 0; s < sizeof ks / sizeof *ks; s++) {
        uint32_t k = ks[s], n = 1100, ld = k + 3;
        float *x = normals((size_t)n * ld, s);
        double *full = LQ_NEWN(double, (size_t)k * k);
        lq_gram g;
        gram_of(&g, x, ld, k, n, (uint32_t[]){n});
        lq_gram_full(&g, full);
        for (uint32_t i = 0; i < k; i += k > 200 ? 13 : 1)
            for (uint32_t j = 0; j < k; j += k > 200 ? 7 : 1) {
                double sum = 0, mass = 0;
                for (uint32_t t = 0; t < n; t++) {
                    double p = (double)x[t * ld + i] * (double)x[t * ld + j];
                    sum += p;
                    mass += fabs(p);
                }
                double bound = (LQ_GRAM_CHUNK + 2) * (double)FLT_EPSILON / 2 * mass;
                assert_true(fabs(lq_gram_at(&g, i, j) - sum) <= bound);
                assert_true(lq_gram_at(&g, i, j) == lq_gram_at(&g, j, i));
                assert_true(full[(size_t)i * k + j] == lq_gram_at(&g, i, j) / n);
            }
        lq_gram_free(&g);
        lq_free(full);
        lq_free(x);
    }
}

static void gram_ignores_how_tokens_are_split_and_threads(void **state) {
    (void)state;
    enum { K = 300, N = 2 * LQ_GRAM_CHUNK + 77 };
    float *x = normals((size_t)N * K, 5);
    double *a = LQ_NEWN(double, K * K), *b = LQ_NEWN(double, K * K);
    lq_gram g;
    for (int threads = 1; threads <= 3; threads++) {
        const uint32_t splits[3][3] = {{N}, {LQ_GRAM_CHUNK, N}, {2 * LQ_GRAM_CHUNK, 77}};
        for (int s = 0; s < 3; s++) {
            lq_threads_set(threads);
            gram_of(&g, x, K, K, N, splits[s]);
            lq_gram_full(&g, b);
            if (threads == 1 && !s) memcpy(a, b, sizeof(double) * K * K);
            assert_memory_equal(a, b, sizeof(double) * K * K);
            lq_gram_free(&g);
        }
    }
    lq_threads_set(0);
    lq_free(a);
    lq_free(b);
    lq_free(x);
}

static void gram_reports_a_missing_allocation(void **state) {
    (void)state;
    lq_ctx ctx = {0};
    lq_gram g;
    lq_mem_fail_after(0);
    assert_int_equal(lq_gram_init(&ctx, &g, 64), LQ_ERR_RESOURCE);
    lq_mem_fail_after(-1);
    lq_gram_free(&g);
    assert_int_equal(lq_gram_init(&ctx, &g, 1), LQ_OK);
    lq_mem_fail_after(0);
    assert_int_equal(lq_gram_add(&ctx, &g, &(float){2}, 1, 1), LQ_ERR_RESOURCE);
    lq_mem_fail_after(-1);
    assert_true(!g.n && lq_gram_at(&g, 0, 0) == 0);
    lq_gram_free(&g);
}

/* B B^T / k + I / 10 with B normal */
static double *positive(uint32_t k, uint64_t seed) {
    float *b = normals((size_t)k * k, seed);
    double *h = LQ_NEWN(double, (size_t)k * k);
    assert_non_null(h);
    for (uint32_t i = 0; i < k; i++)
        for (uint32_t j = 0; j <= i; j++) {
            double s = i == j ? 0.1 : 0;
            for (uint32_t t = 0; t < k; t++) s += (double)b[(size_t)i * k + t] * (double)b[(size_t)j * k + t] / k;
            h[(size_t)i * k + j] = h[(size_t)j * k + i] = s;
        }
    lq_free(b);
    return h;
}

static void cholesky_reconstructs_the_matrix(void **state) {
    (void)state;
    static const uint32_t ks[] = {1, 2, 17, 127, 128, 129, 256, 400};
    for (size_t s = 0; s < sizeof ks / sizeof *ks; s++) {
        uint32_t k = ks[s], bad = 99;
        double *h = positive(k, s), *r = LQ_NEWN(double, (size_t)k * k), worst = 0;
        memcpy(r, h, sizeof(double) * k * k);
        assert_true(lq_cholesky_upper(r, k, &bad));
        for (uint32_t i = 0; i < k; i++) {
            assert_true(r[(size_t)i * k + i] > 0);
            for (uint32_t j = 0; j < k; j++) {
                double sum = 0;
                for (uint32_t t = i > j ? i : j; t < k; t++) sum += r[(size_t)i * k + t] * r[(size_t)j * k + t];
                worst = fmax(worst, fabs(sum - h[(size_t)i * k + j]));
                if (j < i) assert_true(r[(size_t)i * k + j] == 0);
            }
        }
        assert_true(worst < 1e-15 * (k + 8));
        lq_free(h);
        lq_free(r);
    }
}

static void cholesky_gives_the_same_bits_at_any_thread_count(void **state) {
    (void)state;
    enum { K = 500 };
    double *h = positive(K, 3), *r[3];
    uint32_t bad;
    for (int i = 0; i < 3; i++) {
        r[i] = LQ_NEWN(double, (size_t)K * K);
        memcpy(r[i], h, sizeof(double) * K * K);
        lq_threads_set(i + 1);
        assert_true(lq_cholesky_upper(r[i], K, &bad));
        assert_memory_equal(r[0], r[i], sizeof(double) * K * K);
    }
    lq_threads_set(0);
    for (int i = 0; i < 3; i++) lq_free(r[i]);
    lq_free(h);
}

static void cholesky_reports_a_matrix_that_is_not_positive_definite(void **state) {
    (void)state;
    enum { K = 300 };
    static const uint32_t where[] = {0, 5, 127, 128, 200, 299};
    static const double values[] = {-1, 0, NAN, INFINITY};
    for (size_t w = 0; w < 6; w++)
        for (size_t v = 0; v < 4; v++) {
            double *h = LQ_NEWN(double, (size_t)K * K);
            uint32_t bad = 12345;
            for (int i = 0; i < K; i++) h[i * K + i] = 2;
            h[where[w] * K + where[w]] = values[v];
            assert_false(lq_cholesky_upper(h, K, &bad));
            assert_int_equal(bad, where[w]);
            lq_free(h);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matmul_equals_the_naive_product),
        cmocka_unit_test(gemm_accumulates_and_scales),
        cmocka_unit_test(matmul_gives_the_same_bits_at_any_thread_count),
        cmocka_unit_test(gram_equals_the_naive_sum),
        cmocka_unit_test(gram_ignores_how_tokens_are_split_and_threads),
        cmocka_unit_test(gram_reports_a_missing_allocation),
        cmocka_unit_test(cholesky_reconstructs_the_matrix),
        cmocka_unit_test(cholesky_gives_the_same_bits_at_any_thread_count),
        cmocka_unit_test(cholesky_reports_a_matrix_that_is_not_positive_definite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
