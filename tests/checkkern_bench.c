/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Speed of every kernel and variant on one thread: the best of many short runs, inputs warm in the cache unless said. */
#include "checkkern.h"

#include <stdio.h>
#include <time.h>

enum { ROWS = 256, COLS = 2048 };

typedef struct job { const lq_kernels *k; const lq_qtensor *q; lq_dtype t; const void *w; float *a, *b, *c; size_t n; lq_actfn f; } job;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
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
    static const int picks[] = {0, 1, 2, 7, 10, 12, 13, 21, 24};
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

void ck_bench(void) {
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
