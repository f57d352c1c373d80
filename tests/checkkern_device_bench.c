/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Speed of the device's products of codes. Distinct copies of a matrix, together at least 300 MB (several times any second-level cache), are
 * taken in turn by a recorded pass of 64 launches, each after the one before; the pass is replayed 20 times. Read and copy bandwidth are
 * measured before and after in the same run, and the larger is what "% of roof" is of. Bytes are those of codes and their parameters. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "checkkern.h"
#include "kernels/cuda/cuda.h"
#include "quant/types.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LAUNCHES = 64, MOST_TOKENS = 16, MOST_COPIES = 64 };

typedef struct bench {
    const lq_device *d;
    bool small;                  /* the emulation: only that everything runs */
    lq_rng rng;
    double roof;                 /* bytes a second */
    lq_device_matrix m[MOST_COPIES];
    uint32_t copies;
    float *x, *y;
    int8_t *code;
    float *step;
    int32_t *sum;
} bench;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef const char *(*queue)(bench *b, uint32_t i, uint32_t n);

/* Seconds of one launch: the median replay over its launches; below 0: it failed, and said so. */
static double time_pass(bench *b, queue launch, uint32_t n, uint32_t launches, int replays) {
    double took[32];
    void *pass = NULL;
    const char *why = launch(b, 0, n); /* rooms for sums are made outside of records */
    if (!why) why = b->d->wait();
    bool recorded = !why && b->d->record && !(why = b->d->record());
    for (uint32_t i = 0; recorded && !why && i < launches; i++) why = launch(b, i, n);
    if (recorded) {
        const char *ended = b->d->end(&pass);
        why = why ? why : ended;
    }
    for (int r = -2; !why && r < replays; r++) {
        double t = now();
        if (recorded) why = b->d->replay(pass);
        for (uint32_t i = 0; !recorded && !why && i < launches; i++) why = launch(b, i, n);
        if (!why) why = b->d->wait();
        if (r >= 0) took[r] = now() - t;
    }
    if (recorded && b->d->forget) b->d->forget(pass);
    if (why) {
        printf("checkkern: %s: %s\n", b->d->name, why);
        return -1;
    }
    for (int i = 1; i < replays; i++)
        for (int j = i; j && took[j] < took[j - 1]; j--) {
            double t = took[j];
            took[j] = took[j - 1];
            took[j - 1] = t;
        }
    return took[replays / 2] / launches;
}

/* ---- the roof ---- */

static void *big_from, *big_to;
static uint64_t big;

static const char *read_big(bench *b, uint32_t i, uint32_t n) {
    (void)i, (void)n;
    return b->d->ops->move(NULL, big_from, big);
}
static const char *copy_big(bench *b, uint32_t i, uint32_t n) {
    (void)i, (void)n;
    return b->d->ops->move(big_to, big_from, big);
}

static bool measure_roof(bench *b, const char *when) {
    big = b->small ? 1 << 16 : (uint64_t)2 << 30;
    big_from = b->d->alloc(big), big_to = b->d->alloc(big);
    double read = big_from && big_to ? time_pass(b, read_big, 1, 2, 5) : -1, copy = read > 0 ? time_pass(b, copy_big, 1, 2, 5) : -1;
    b->d->release(big_from);
    b->d->release(big_to);
    if (copy <= 0) return false;
    printf("%s: read %.0f GB/s, copy %.0f GB/s (bytes read and written)\n", when, (double)big / read / 1e9, 2 * (double)big / copy / 1e9);
    b->roof = fmax(b->roof, fmax((double)big / read, 2 * (double)big / copy));
    return true;
}

/* ---- products ---- */

static const char *gemv(bench *b, uint32_t i, uint32_t n) { return b->d->gemv(&b->m[i % b->copies], b->x, n, b->y); }
static const char *idot(bench *b, uint32_t i, uint32_t n) { return b->d->idot(&b->m[i % b->copies], b->code, b->step, b->sum, n, b->y); }

static void drop(bench *b) {
    for (uint32_t i = 0; i < b->copies; i++) lq_device_drop(b->d, &b->m[i]);
    void *held[] = {b->x, b->y, b->code, b->step, b->sum};
    for (size_t i = 0; i < sizeof held / sizeof *held; i++) b->d->release(held[i]);
    b->x = b->y = b->step = NULL, b->code = NULL, b->sum = NULL, b->copies = 0;
}

/* A device array of n random bytes, or (like) of a pattern again and again. */
static void *filled(bench *b, size_t n, const void *like, size_t length) {
    uint8_t *host = malloc(n);
    void *p = b->d->alloc(n + 16);
    for (size_t i = 0; host && i < n; i += like ? length : 8) {
        uint64_t r = (uint64_t)lq_rng_u32(&b->rng) << 32 | lq_rng_u32(&b->rng);
        memcpy(host + i, like ? like : &r, n - i < (like ? length : 8) ? n - i : like ? length : 8);
    }
    bool ok = host && p && b->d->put(p, host, n);
    free(host);
    if (ok) return p;
    b->d->release(p);
    return NULL;
}

/* One row tile is packed; the matrix has its scales in every tile, and random codes. */
static bool make(bench *b, const lq_scheme *s, uint32_t rows, uint32_t cols, size_t *bytes) {
    lq_ctx ctx = {0};
    lq_qtensor q;
    lq_packed one;
    ck_fill(&q, s, LQ_TILE, cols, &b->rng, false);
    bool ok = lq_pack(&ctx, &q, &one) == LQ_OK;
    lq_qtensor_free(&q);
    if (!ok) return false;
    const size_t tiles = rows / LQ_TILE, codes = lq_device_bytes(&one) * tiles, params = (size_t)lq_device_param_bytes(&one), all = codes + params * tiles;
    const lq_device_matrix shape = lq_device_shape(&one);
    uint8_t *scales = lq_alloc(params);
    if (!scales) { lq_packed_free(&one); return false; }
    lq_device_params(&one, scales);
    uint32_t want = b->small ? 2 : (uint32_t)((300u << 20) / all + 1);
    want = want < 4 && !b->small ? 4 : want > MOST_COPIES ? MOST_COPIES : want;
    for (b->copies = 0; ok && b->copies < want; b->copies++) {
        lq_device_matrix *m = &b->m[b->copies];
        *m = shape;
        m->rows = rows;
        m->tiles = (uint32_t)tiles;
        m->codes = filled(b, codes, NULL, 0);
        m->params = filled(b, params * tiles, scales, params);
        ok = m->codes && m->params;
    }
    const size_t wide = lq_packed_ld(&one);
    float *x = malloc(4 * MOST_TOKENS * (size_t)cols);
    int32_t ones[1] = {17};
    const float step = 0.01f;
    if (x) ck_floats(x, MOST_TOKENS * (size_t)cols, &b->rng, false);
    b->x = x ? filled(b, 4 * MOST_TOKENS * (size_t)cols, x, 4 * MOST_TOKENS * (size_t)cols) : NULL;
    b->y = b->d->alloc(4 * MOST_TOKENS * (size_t)rows);
    b->code = filled(b, MOST_TOKENS * wide, NULL, 0);
    b->step = filled(b, 4 * MOST_TOKENS * (size_t)one.segs, &step, 4);
    b->sum = filled(b, 4 * MOST_TOKENS * (size_t)one.segs, ones, 4);
    free(x);
    lq_free(scales);
    lq_packed_free(&one);
    *bytes = all;
    return ok && b->x && b->y && b->code && b->step && b->sum;
}

typedef struct kind { const char *type, *op; queue launch; } kind;

static bool one_matrix(bench *b, const kind *k, uint32_t rows, uint32_t cols) {
    static const uint32_t tokens[] = {1, 2, 4, 8, 16};
    size_t bytes = 0;
    lq_want want;
    bool ok = lq_type_parse(NULL, k->type, &(lq_type_defaults){.group = 128}, &want) == LQ_OK && make(b, &want.scheme, rows, cols, &bytes);
    if (!ok) printf("checkkern: no memory for %s %u x %u, or no such type\n", k->type, rows, cols);
    for (size_t i = 0; ok && i < sizeof tokens / sizeof *tokens; i++) {
        double t = time_pass(b, k->launch, tokens[i], b->small ? 2 : LAUNCHES, b->small ? 1 : 20);
        ok = t > 0;
        if (ok) printf("| %s | %s | %u x %u | %u | %.2f | %.0f | %.0f |\n", k->type, k->op, rows, cols, tokens[i], 1e6 * t, (double)bytes / t / 1e9, 100 * (double)bytes / t / b->roof);
    }
    drop(b);
    return ok;
}

int ck_device_bench(const char *device) {
    static const kind kinds[] = {
        {"int4-sym-g128", "gemv", gemv}, {"int4-asym-g128", "gemv", gemv}, {"int8-sym-row", "gemv", gemv}, {"FP8-W", "gemv", gemv},
        {"NF4-g64", "gemv", gemv}, {"int3-sym-g128", "gemv", gemv}, {"int2-asym-g128", "gemv", gemv}, {"ternary-g128", "gemv", gemv},
        {"W8A8", "idot", idot}, {"W4A8", "idot", idot}, {"b1.58", "idot", idot}};
    static const uint32_t shapes[][2] = {{4096, 4096}, {4096, 14336}, {14336, 4096}, {8192, 8192}, {8192, 28672}}, few[][2] = {{64, 512}};
    static bench b;
    b = (bench){.d = strcmp(device, "emu") ? lq_device_cuda() : lq_device_emu(), .small = !strcmp(device, "emu"), .rng = ck_start("bench")};
    if (!b.d->available()) {
        printf("checkkern: %s: %s\n", b.d->name, b.d->describe());
        return 77;
    }
    printf("%s\n", b.d->describe());
    bool ok = measure_roof(&b, "before");
    printf("| type | kernel | rows x cols | tokens | us | GB/s | %% of roof |\n|---|---|---|---|---|---|---|\n");
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (size_t i = 0; ok && i < (b.small ? sizeof few / sizeof *few : sizeof shapes / sizeof *shapes); i++) {
            const uint32_t *s = b.small ? few[i] : shapes[i];
            ok = one_matrix(&b, &kinds[k], s[0], s[1]);
        }
    return ok && measure_roof(&b, "after") ? 0 : 1;
}
