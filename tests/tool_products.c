/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Times a linear as models run it, its activations' preparation included, over weights that lie in no cache, beside two plain read loops:
 *
 *   tool_products TYPE THREADS ROWS COLS CACHE    TYPE: of `lquant list types`; TYPE@32: with activations of 8 bits per so many columns too;
 *                                                 CACHE: bytes of the last-level cache
 *
 * A line on standard input begins a round, so that another program can take turns (scripts/bench/ggml_kernels.py); a round prints, tab between,
 * what, tokens, weights, bytes and seconds of each product, then an empty line. */
#include "calib/run.h"
#include "core/os.h"
#include "quant/types.h"
#include "tests/bench_cold.h"
#include "tests/checkkern.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 512 }; /* tokens */

typedef struct products {
    lq_linear *exact, *rounded; /* [copies]: the same packed matrices; rounded NULL: the type has no such activations */
    size_t copies;
    lq_work work;
    float *x, *y;
    ck_cold cold;
} products;

static void said(const char *what, uint32_t tokens, double weights, double bytes, double start) {
    double seconds = lq_now() - start;
    printf("%s\t%u\t%.0f\t%.0f\t%.9f\n", what, tokens, weights, bytes, seconds);
}

static void multiply(products *b, const lq_linear *lin, const char *what, uint32_t tokens) {
    size_t copies = tokens > 1 ? 1 : b->copies; /* a prompt's product is not bound by reading */
    double start = lq_now(), weights = (double)lin->rows * lin->cols * (double)copies;
    for (size_t i = 0; i < copies; i++) lq_linear_run(lq_kernels_best(), &b->work, &lin[i], b->x, tokens, b->y);
    said(what, tokens, weights, (double)lq_linear_bytes(lin) * (double)copies, start);
}

static void round_of(products *b) {
    double bytes = ck_cold_bytes(&b->cold), t = lq_now();
    lq_parallel_for(CK_COLD_PARTS, ck_cold_read, &b->cold);
    said("read", 0, 0, bytes, t);
    t = lq_now();
    lq_parallel_for(CK_COLD_PARTS, ck_cold_read_ahead, &b->cold);
    said("read ahead", 0, 0, bytes, t);
    for (uint32_t n = 1; n <= MOST; n = n == 1 ? 64 : 8 * n) {
        multiply(b, b->exact, "exact", n);
        if (b->rounded) multiply(b, b->rounded, "rounded", n);
    }
    printf("\n");
    fflush(stdout);
}

static lq_scheme scheme_of(const char *text) {
    char name[32];
    const char *at = strchr(text, '@');
    snprintf(name, sizeof name, "%.*s", at ? (int)(at - text) : 31, text);
    const lq_type *t = lq_types;
    while (t->name && strcmp(t->name, name)) t++;
    if (!t->name) exit(2);
    lq_scheme s = t->scheme;
    uint32_t tile = at ? (uint32_t)atoi(at + 1) : 0;
    if (tile) s.act = (lq_act){.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .tile = tile, .scope = tile == 32 ? 2 : 0};
    return s;
}

static bool make(products *b, const char *type, uint32_t rows, uint32_t cols, size_t cache) {
    lq_scheme s = scheme_of(type);
    lq_ctx ctx = {0};
    lq_qtensor q;
    lq_rng rng;
    if (!lq_packed_fits(&s, rows, cols)) return false;
    bool rounded = s.act.kind != LQ_ACT_NONE;
    lq_rng_seed(&rng, 5, 5);
    ck_fill(&q, &s, rows, cols, &rng, false);
    b->copies = 4 * cache / (size_t)lq_packed_bytes(&s, rows, cols) + 1;
    lq_packed *m = calloc(2 * b->copies, sizeof *m);
    b->exact = calloc(2 * b->copies, sizeof *b->exact);
    if (!m || !b->exact || lq_pack(&ctx, &q, &m[0])) return false;
    if (rounded) b->rounded = b->exact + b->copies;
    for (size_t i = 0; i < 2 * b->copies; i++) {
        if (i && i < b->copies && !ck_packed_again(&m[0], &m[i])) return false;
        if (i >= b->copies) m[i] = m[i - b->copies];
        m[i].q.sch.act = i < b->copies ? (lq_act){0} : s.act;
        b->exact[i] = (lq_linear){.rows = rows, .cols = cols, .packed = &m[i], .q = &m[i].q};
        size_t shared = lq_linear_shared(&b->exact[i], MOST);
        if (i % b->copies == 0 && lq_work_fit(&ctx, &b->work, lq_linear_scratch(&b->exact[i]), shared)) return false;
    }
    return true;
}

int main(int argc, char **argv) {
    products b = {0};
    char line[64];
    if (argc < 6) return 2;
    uint32_t rows = (uint32_t)atoi(argv[3]), cols = (uint32_t)atoi(argv[4]);
    size_t cache = (size_t)strtoull(argv[5], NULL, 10);
    lq_threads_set(atoi(argv[2]));
    if (!make(&b, argv[1], rows, cols, cache)) return 1;
    b.x = LQ_NEWN(float, (size_t)MOST * cols), b.y = LQ_NEWN(float, (size_t)MOST * rows);
    if (!ck_cold_init(&b.cold, cache) || !b.x || !b.y) return 1;
    for (size_t i = 0; i < (size_t)MOST * cols; i++) b.x[i] = (float)((int)((i * 2654435761u >> 7) % 255) - 127);
    printf("%s\t%s\t%zu copies of %u x %u\n", argv[1], lq_kernels_best()->name, b.copies, rows, cols);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) round_of(&b);
    return 0;
}
