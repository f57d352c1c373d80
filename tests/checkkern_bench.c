/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Speed of every kernel and variant on one thread: the best of many short runs, inputs warm in the cache unless said. */
#include "checkkern.h"
#include "core/thread.h"
#include "kernels/linalg.h"

#include <cblas.h>

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { ROWS = 256, COLS = 2048 };

typedef struct job { const lq_kernels *k; const lq_qtensor *q; lq_dtype t; const void *w; float *a, *b, *c; size_t n; lq_actfn f; } job;

static clockid_t clock_used = CLOCK_THREAD_CPUTIME_ID; /* one thread: a busy machine does not count; several: the wall's */

static double now(void) {
    struct timespec t;
    clock_gettime(clock_used, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double best_seconds(void (*fn)(const job *), const job *j) {
    double best = 1e9, end = now() + 0.1;
    do {
        double t = now();
        fn(j);
        t = now() - t;
        if (t < best) best = t;
    } while (now() < end);
    return best;
}

static void run_dequant(const job *j) { for (uint32_t r = 0; r < ROWS; r += 16) j->k->dequant(j->q, r, 16, j->a); }
static void run_gemv(const job *j) { j->k->gemv(j->q, 0, ROWS, j->b, j->a); }
static void run_gemv_fp(const job *j) { j->k->gemv_fp(j->t, j->w, lq_dtype_row_bytes(j->t, COLS), ROWS, COLS, j->b, j->a); }
static void run_decode(const job *j) {
    for (uint32_t r = 0; r < ROWS; r++) j->k->decode(j->t, (const char *)j->w + r * lq_dtype_row_bytes(j->t, COLS), j->a, COLS);
}
static void run_norm(const job *j) { j->k->rmsnorm(j->a, j->b, 1e-5f, (uint32_t)j->n, j->c); }
static void run_glu(const job *j) { j->k->glu(j->f, j->a, j->b, j->c, j->n); }
static void run_softmax(const job *j) { j->k->softmax(j->c, j->n, 1); }
static void run_logsumexp(const job *j) { j->c[0] = (float)j->k->logsumexp(j->a, j->n); }
static void run_dot(const job *j) { j->c[0] = (float)j->k->dot(j->a, j->b, j->n); }
static void run_add(const job *j) { j->k->add(j->c, j->a, j->n); }

static void line(const char *op, const char *what, const char *variant, double seconds, double weights, double bytes, const char *of) {
    printf("%-10s %-14s %-7s %8.2f Gw/s %8.2f GB/s %s\n", op, what, variant, weights / seconds * 1e-9, bytes / seconds * 1e-9, of);
}

static void bench_codes(const ck_variant *v, job j) {
    const double all = (double)ROWS * COLS;
    static const int picks[] = {0, 1, 2, 8, 11, 13, 14, 22, 23, 25, 28, 33};
    lq_rng rng;
    lq_rng_seed(&rng, 1, 1);
    for (size_t i = 0; i < 2 * sizeof picks / sizeof *picks; i++) {
        const ck_scheme *s = &ck_schemes[picks[i / 2]];
        lq_qtensor q;
        lq_scheme sch = s->s;
        if (i % 2) sch.extra |= LQ_X_PERM;
        if (i % 2 && i > 1) continue;
        ck_fill(&q, &sch, ROWS, COLS, &rng, false);
        j.q = &q;
        char name[40];
        snprintf(name, sizeof name, "%s%s", s->name, i % 2 ? "_p" : "");
        line("dequant", name, v->name, best_seconds(run_dequant, &j), all, 4 * all, "out");
        line("gemv", name, v->name, best_seconds(run_gemv, &j), all, (double)lq_scheme_bytes(&sch, ROWS, COLS), "in");
        lq_qtensor_free(&q);
    }
}

static void bench_stored(const ck_variant *v, job j) {
    static const lq_dtype types[] = {LQ_F32, LQ_F16, LQ_BF16, LQ_Q4_0, LQ_Q4_1, LQ_Q5_0, LQ_Q8_0, LQ_Q2_K, LQ_Q3_K, LQ_Q4_K, LQ_Q5_K, LQ_Q6_K};
    const double all = (double)ROWS * COLS;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        j.t = types[i];
        line("decode", lq_dtypes[j.t].name, v->name, best_seconds(run_decode, &j), all, 4 * all, "out");
        line("gemv_fp", lq_dtypes[j.t].name, v->name, best_seconds(run_gemv_fp, &j), all, (double)lq_dtype_row_bytes(j.t, COLS) * ROWS, "in");
    }
}

static void bench_vectors(const ck_variant *v, job j) {
    double n = (double)j.n;
    line("rmsnorm", "", v->name, best_seconds(run_norm, &j), n, 12 * n, "in+out");
    for (int f = 0; f < LQ_ACTFN_N; f++) {
        j.f = (lq_actfn)f;
        line("glu", lq_actfn_names[f], v->name, best_seconds(run_glu, &j), n, 12 * n, "in+out");
    }
    line("softmax", "", v->name, best_seconds(run_softmax, &j), n, 8 * n, "in+out");
    line("logsumexp", "", v->name, best_seconds(run_logsumexp, &j), n, 4 * n, "in");
    line("dot", "", v->name, best_seconds(run_dot, &j), n, 8 * n, "in");
    line("add", "", v->name, best_seconds(run_add, &j), n, 12 * n, "in+out");
}

typedef struct dense { float *x, *w, *y; double *h, *r; uint32_t n, rows, cols; int threads; lq_gram g; } dense;

static void run_ours(dense *d) { lq_matmul(d->x, d->cols, d->w, d->cols, d->y, d->rows, d->n, d->rows, d->cols); }
static void run_blas(dense *d) {
    openblas_set_num_threads(d->threads);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)d->n, (int)d->rows, (int)d->cols, 1, d->x, (int)d->cols, d->w, (int)d->cols, 0,
                d->y, (int)d->rows);
    openblas_set_num_threads(1);
}
static void run_gram(dense *d) {
    if (lq_gram_add(NULL, &d->g, d->x, d->cols, d->n)) abort();
}
static void run_cholesky(dense *d) {
    uint32_t bad;
    for (size_t i = 0; i < (size_t)d->cols * d->cols; i++) d->r[i] = d->h[i];
    lq_cholesky_upper(d->r, d->cols, &bad);
}

/* Two contenders in turn, so that a busy machine hurts both. */
static void best_of_two(dense *d, void (*a)(dense *), void (*b)(dense *), double *ta, double *tb) {
    *ta = *tb = 1e9;
    for (double end = now() + 1.5; now() < end;) {
        double t0 = now();
        a(d);
        double t1 = now();
        b(d);
        double t2 = now();
        if (t1 - t0 < *ta) *ta = t1 - t0;
        if (t2 - t1 < *tb) *tb = t2 - t1;
    }
}

static void bench_dense(int threads) {
    static const uint32_t shapes[][3] = {{2048, 1536, 576}, {2048, 576, 1536}, {512, 1536, 576}, {512, 576, 576}, {1, 1536, 576}, {2048, 2048, 2048}};
    enum { MAX = 2048 * 2048 };
    dense d = {.x = LQ_NEWN(float, MAX), .w = LQ_NEWN(float, MAX), .y = LQ_NEWN(float, MAX), .h = LQ_NEWN(double, MAX), .r = LQ_NEWN(double, MAX), .threads = threads};
    lq_rng rng;
    if (!d.x || !d.w || !d.y || !d.h || !d.r) return;
    lq_rng_seed(&rng, 3, 3);
    ck_floats(d.x, MAX, &rng, false);
    ck_floats(d.w, MAX, &rng, false);
    lq_threads_set(threads);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        double ours, blas, gram, chol;
        d.n = shapes[i][0], d.rows = shapes[i][1], d.cols = shapes[i][2];
        double k = d.cols, flop = 2.0 * d.n * d.rows * k;
        best_of_two(&d, run_ours, run_blas, &ours, &blas);
        printf("n=%u rows=%u cols=%u, %d threads: matmul %.1f GF/s, OpenBLAS %.1f", d.n, d.rows, d.cols, threads, flop / ours * 1e-9, flop / blas * 1e-9);
        if (i < 2 || i == 5) {
            for (uint32_t c = 0; c < d.cols; c++) d.h[(size_t)c * d.cols + c] = 2;
            if (lq_gram_init(NULL, &d.g, d.cols)) return;
            best_of_two(&d, run_gram, run_cholesky, &gram, &chol);
            printf("; gram %.1f GF/s (triangle), Cholesky %.1f", d.n * k * (k + 1) / gram * 1e-9, k * k * k / 3 / chol * 1e-9);
            for (uint32_t c = 0; c < d.cols; c++) d.h[(size_t)c * d.cols + c] = 0;
            lq_gram_free(&d.g);
        }
        printf("\n");
    }
    lq_threads_set(0);
    lq_free(d.x);
    lq_free(d.w);
    lq_free(d.y);
    lq_free(d.h);
    lq_free(d.r);
}

void ck_bench(void) {
    printf("OpenBLAS core: %s\n", openblas_get_corename());
    bench_dense(1);
    clock_used = CLOCK_MONOTONIC;
    bench_dense(lq_threads());
    clock_used = CLOCK_THREAD_CPUTIME_ID;

    static ck_variant variants[CK_VARIANTS];
    size_t n = ck_variants(variants);
    float *a = LQ_NEWN(float, 16 * COLS), *b = LQ_NEWN(float, 16 * COLS), *c = LQ_NEWN(float, 16 * COLS);
    uint8_t *w = lq_alloc((size_t)ROWS * COLS * 4);
    lq_rng rng;
    if (!a || !b || !c || !w) return;
    lq_rng_seed(&rng, 7, 7);
    ck_floats(a, 16 * COLS, &rng, false);
    ck_floats(b, 16 * COLS, &rng, false);
    for (size_t i = 0; i < n; i++) {
        job j = {.k = &variants[i].k, .w = w, .a = a, .b = b, .c = c, .n = 3 * COLS};
        bench_vectors(&variants[i], j);
        bench_stored(&variants[i], j);
        bench_codes(&variants[i], j);
    }
    lq_free(a);
    lq_free(b);
    lq_free(c);
    lq_free(w);
}
