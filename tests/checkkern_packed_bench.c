/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Speed of the packed kernels over weights that lie in no cache: copies of a matrix, at least four times the last-level cache, taken in
 * turn; every kernel and two plain read loops once per round, so that a busy machine hurts all. Best and median of the rounds; GB/s of
 * codes and params; % of the best read of the same number of threads. */
#define _DEFAULT_SOURCE 1 /* getloadavg */
#include "checkkern.h"
#include "core/os.h"
#include "core/thread.h"
#include "quant/types.h"
#include "tests/bench_cold.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ROUNDS = 9, TOKENS = 64, SLICE = 16 /* tiles */ };

typedef struct bench {
    const lq_kernels *k;
    const char *op;
    uint32_t n;
    lq_packed *m;    /* copies */
    size_t copies;
    lq_packed_x x;
    lq_packed_i xi;
    lq_packed_d xd;
    float *y;        /* of every copy, of TOKENS tokens */
    double *acc;
} bench;

static void multiply(void *arg, size_t i) {
    bench *b = arg;
    uint32_t slices = (b->m->tiles + SLICE - 1) / SLICE, t0 = (uint32_t)(i % slices) * SLICE;
    const lq_packed *m = &b->m[i / slices];
    uint32_t nt = m->tiles - t0 < SLICE ? m->tiles - t0 : SLICE;
    size_t at = i / slices * TOKENS * m->tiles * LQ_TILE;
    if (b->op[0] == 'd') b->k->packed_digits(m, t0, nt, &b->xd, b->y + at, m->q.rows);
    else if (b->op[0] == 'g') b->k->packed_gemv(m, t0, nt, &b->x, b->y + at, m->q.rows);
    else b->k->packed_idot(m, t0, nt, &b->xi, b->acc + at + (size_t)t0 * LQ_TILE * TOKENS);
}

static int ascending(const void *a, const void *b) { return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b); }

typedef struct row { void (*fn)(void *, size_t); size_t items; bench b; ck_cold *cold; char name[48]; double weights, bytes, t[ROUNDS]; } row;

static void measure(row *rows, size_t n) {
    for (int r = 0; r < ROUNDS; r++)
        for (size_t i = 0; i < n; i++) {
            double t = lq_now();
            lq_parallel_for(rows[i].items, rows[i].fn, rows[i].cold ? (void *)rows[i].cold : &rows[i].b);
            rows[i].t[r] = lq_now() - t;
        }
    double read = 0, middle = 0;
    for (size_t i = 0; i < n; i++) {
        qsort(rows[i].t, ROUNDS, sizeof(double), ascending);
        if (rows[i].weights == 0 && rows[i].bytes / rows[i].t[0] > read) read = rows[i].bytes / rows[i].t[0];
        if (rows[i].weights == 0 && rows[i].bytes / rows[i].t[ROUNDS / 2] > middle) middle = rows[i].bytes / rows[i].t[ROUNDS / 2];
    }
    for (size_t i = 0; i < n; i++) {
        double best = rows[i].bytes / rows[i].t[0], mid = rows[i].bytes / rows[i].t[ROUNDS / 2];
        printf("  %-34s %7.2f GB/s (median %6.2f) %7.2f Gw/s %7.1f GOP/s  %5.1f %% of read (medians %5.1f %%)\n", rows[i].name, best * 1e-9, mid * 1e-9,
               rows[i].weights / rows[i].t[0] * 1e-9, 2e-9 * rows[i].b.n * rows[i].weights / rows[i].t[0], 100 * best / read, 100 * mid / middle);
    }
    fflush(stdout);
}

static size_t last_level(void) {
    long n = 0;
#ifdef _SC_LEVEL3_CACHE_SIZE
    n = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    return n > 0 ? (size_t)n : (size_t)32 << 20;
}

static bool copies_of(const char *type, uint32_t rows, uint32_t cols, lq_act act, bench *b) {
    const lq_type *t = lq_types;
    lq_ctx ctx = {0};
    lq_qtensor q;
    lq_rng rng;
    while (t->name && strcmp(t->name, type)) t++;
    if (!t->name) return false;
    lq_scheme s = t->scheme;
    s.act = act;
    if (!lq_packed_fits(&s, rows, cols)) return false;
    lq_rng_seed(&rng, 5, 5);
    ck_fill(&q, &s, rows, cols, &rng, false);
    b->copies = 4 * last_level() / (size_t)lq_packed_bytes(&s, rows, cols) + 1;
    b->m = calloc(b->copies, sizeof *b->m);
    if (!b->m || lq_pack(&ctx, &q, &b->m[0])) exit(1);
    for (size_t i = 1; i < b->copies; i++)
        if (!ck_packed_again(&b->m[0], &b->m[i])) exit(1);
    lq_qtensor_free(&q);
    return true;
}

static void add(row *rows, size_t *n, const bench *from, const char *type, const char *op, uint32_t tokens, const lq_kernels *k) {
    row *r = &rows[(*n)++];
    const lq_packed *m = from->m;
    *r = (row){.fn = multiply, .items = (m->tiles + SLICE - 1) / SLICE * from->copies, .b = *from};
    r->b.k = k, r->b.op = op, r->b.n = tokens, r->b.x.n = tokens, r->b.xi.n = tokens, r->b.xd.n = tokens;
    snprintf(r->name, sizeof r->name, "%s %s n=%u %s", op, type, tokens, k->name);
    r->weights = (double)m->q.rows * m->q.cols * (double)from->copies;
    r->bytes = (double)lq_packed_all_bytes(m) * (double)from->copies;
}

static void bench_type(const char *type, uint32_t height, uint32_t cols, ck_cold *cold) {
    const lq_act acts[] = {{.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8}, {0}}; /* the layout is the same */
    row rows[12];
    bench b = {0};
    size_t n = 0;
    bool whole = copies_of(type, height, cols, acts[0], &b);
    if (!whole && !copies_of(type, height, cols, acts[1], &b)) return;
    float *x = LQ_NEWN(float, TOKENS * (size_t)cols), *y = LQ_NEWN(float, b.copies * TOKENS * b.m->tiles * LQ_TILE), step[TOKENS];
    double *acc = LQ_NEWN(double, b.copies * TOKENS * b.m->tiles * LQ_TILE);
    void *s0 = lq_alloc(lq_packed_x_bytes(b.m, TOKENS) + 64), *s1 = lq_alloc(lq_packed_i_bytes(b.m, TOKENS)), *s2 = lq_alloc(lq_packed_d_bytes(b.m, TOKENS));
    if (!x || !y || !acc || !s0 || !s1 || !s2) exit(1);
    for (int t = 0; t < TOKENS; t++) step[t] = 0.01f;
    for (size_t i = 0; i < TOKENS * (size_t)cols; i++) x[i] = (float)((int)((i * 2654435761u >> 7) % 255) - 127);
    b.x = lq_packed_x_make(b.m, x, TOKENS, s0), b.y = y, b.acc = acc;
    if (whole) b.xi = lq_packed_i_make(b.m, x, step, TOKENS, s1);
    b.xd = lq_packed_d_make(b.m, lq_kernels_best()->digits, x, TOKENS, s2);
    for (int i = 0; i < 2; i++) {
        rows[n++] = (row){.fn = i ? ck_cold_read_ahead : ck_cold_read, .items = CK_COLD_PARTS, .cold = cold, .bytes = ck_cold_bytes(cold)};
        snprintf(rows[n - 1].name, sizeof rows->name, "read%s", i ? ", fetched ahead" : "");
    }
    for (uint32_t t = 1; whole && t <= TOKENS; t = t == 1 ? 3 : t == 3 ? 8 : t == 8 ? TOKENS : TOKENS + 1) add(rows, &n, &b, type, "idot", t, lq_kernels_best());
    for (uint32_t t = 1; t <= 4 && lq_packed_whole(b.m) > 0; t *= 2) add(rows, &n, &b, type, "digits", t, lq_kernels_best());
    for (uint32_t t = 1; t <= TOKENS; t *= 8) add(rows, &n, &b, type, "gemv", t, lq_kernels_best());
    printf("%s, %u x %u, %zu copies, %d threads\n", type, height, cols, b.copies, lq_threads());
    measure(rows, n);
    for (size_t i = 1; i < b.copies; i++) ck_packed_again_free(&b.m[i]);
    lq_packed_free(&b.m[0]);
    free(b.m);
    lq_free(x), lq_free(y), lq_free(acc), lq_free(s0), lq_free(s1), lq_free(s2);
}

void ck_packed_bench(const char *only) {
    static const char *const types[] = {"int8", "W8A8", "int4", "int3", "int2", "TQ2_0", "Q4_K", "NF4", "FP8-W", "MXFP4"};
    ck_cold cold;
    if (!ck_cold_init(&cold, last_level())) return;
    for (int all = 0; all < 2; all++) {
        lq_threads_set(all ? 0 : 1);
        for (size_t i = 0; i < sizeof types / sizeof *types; i++)
            if (!only || !strcmp(types[i], only)) bench_type(types[i], 4096, 4096, &cold);
    }
    double load = 0;
    if (getloadavg(&load, 1) == 1) printf("load %.2f\n", load);
    lq_threads_set(0);
    free(cold.v);
}
