/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Speed of a device's kernels by the protocol of device_bench.h, beside the read and copy bandwidth of the same run (before, after; the larger counts),
 * what the vendor says of its memory, and the vendor's own libraries in turn with ours. Bytes are those of codes and their parameters (of keys, values and
 * their steps). A run whose memory gives less than 85 % of what the vendor says is void: something else was there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/os.h"
#include "device_bench.h"
#include "quant/types.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- timing ---- */

static bool failed(const db *b, const char *why) {
    if (why) printf("checkkern: %s: %s\n", b->d->name, why);
    return why;
}

static const char *queue_all(db *b, db_launch launch, void *of, uint32_t launches, bool recorded) {
    const char *why = NULL;
    for (uint32_t i = 0; !why && i < launches; i++) {
        if (recorded && b->mode == DB_THROUGHPUT) why = b->d->branch(i % LQ_DEVICE_BRANCHES);
        if (!why) why = launch(b, of, i);
    }
    return why;
}

static int by_value(const void *x, const void *y) {
    double a = *(const double *)x, c = *(const double *)y;
    return (a > c) - (a < c);
}

bool db_can(const db *b, db_mode mode) { return mode != DB_AHEAD || b->d->ahead(false); }

bool db_time(db *b, db_launch launch, void *of, uint32_t launches, int replays, double took[3]) {
    double each[DB_REPLAYS];
    void *pass = NULL;
    b->d->ahead(b->mode == DB_AHEAD);
    const char *why = launch(b, of, 0); /* rooms for sums are made outside of records */
    if (!why) why = b->d->wait();
    bool recorded = !why && b->d->record && !(why = b->d->record());
    if (recorded) {
        why = queue_all(b, launch, of, launches, true);
        const char *ended = b->d->end(&pass);
        why = why ? why : ended;
    }
    for (int r = -2; !why && r < replays; r++) {
        double t = lq_now();
        why = recorded ? b->d->replay(pass) : queue_all(b, launch, of, launches, false);
        if (!why) why = b->d->wait();
        if (r >= 0) each[r] = (lq_now() - t) / launches;
    }
    if (recorded && pass) b->d->forget(pass);
    b->d->ahead(false);
    if (failed(b, why)) return false;
    qsort(each, (size_t)replays, sizeof *each, by_value);
    took[0] = each[replays / 10], took[1] = each[replays / 2], took[2] = each[replays - 1 - replays / 10];
    return true;
}

static db_row *new_row(db *b, const char *what, const char *shape) {
    db_row *r = &b->row[b->rows < DB_ROWS ? b->rows++ : DB_ROWS - 1];
    *r = (db_row){.tokens = b->tokens, .mode = b->mode};
    snprintf(r->what, sizeof r->what, "%s", what);
    snprintf(r->shape, sizeof r->shape, "%s", shape);
    return r;
}

bool db_measure(db *b, const char *what, const char *shape, double bytes, db_launch launch, void *of) {
    db_row *r = new_row(b, what, shape);
    r->bytes = bytes;
    const uint32_t launches = b->copies > DB_LAUNCHES ? b->copies : DB_LAUNCHES;
    return db_time(b, launch, of, b->small ? 2 : launches, b->small ? 1 : DB_REPLAYS, r->took);
}

void db_missing(db *b, const char *what, const char *shape, const char *why) { new_row(b, what, shape)->why = why; }

uint32_t db_copies(const db *b, double bytes) {
    const double want = 300e6 / bytes + 1;
    return b->small ? 2 : want < 4 ? 4 : want > DB_COPIES ? DB_COPIES : (uint32_t)want;
}

void *db_filled(db *b, size_t n, const void *like, size_t length) {
    const size_t piece = (size_t)16 << 20, whole = like ? piece / length * length : piece, most = !whole || n < whole || whole % 16 ? n : whole;
    uint8_t *host = malloc(most), *p = b->d->alloc(n + 16);
    bool ok = host && p;
    for (size_t i = 0, step = like ? length : 8; ok && i < most; i += step) {
        uint64_t r = (uint64_t)lq_rng_u32(&b->rng) << 32 | lq_rng_u32(&b->rng);
        memcpy(host + i, like ? like : &r, most - i < step ? most - i : step);
    }
    ok = ok && b->d->put(p, host, most);
    for (size_t i = most; ok && i < n; i += most) ok = !b->d->ops->move(p + i, p, (n - i < most ? (n - i + 15) / 16 * 16 : most));
    free(host);
    if (ok && !b->d->wait()) return p;
    b->d->release(p);
    return NULL;
}

/* ---- the roof ---- */

typedef struct big { void *from, *to; uint64_t n; } big;

static const char *read_big(db *b, void *of, uint32_t i) {
    const big *g = of;
    (void)i;
    return b->d->ops->move(NULL, g->from, g->n);
}
static const char *copy_big(db *b, void *of, uint32_t i) {
    const big *g = of;
    (void)i;
    return b->d->ops->move(g->to, g->from, g->n);
}

static bool measure_roof(db *b, const char *when) {
    big g = {.n = b->small ? 1 << 16 : (uint64_t)4 << 30};
    double read[3], copy[3];
    g.from = b->d->alloc(g.n), g.to = b->d->alloc(g.n);
    b->mode = DB_CHAIN;
    bool ok = g.from && g.to && db_time(b, read_big, &g, 2, 5, read) && db_time(b, copy_big, &g, 2, 5, copy);
    b->d->release(g.from);
    b->d->release(g.to);
    if (!ok) {
        printf("checkkern: %s: read and copy bandwidth could not be measured\n", b->d->name);
        return false;
    }
    printf("%s: read %.0f GB/s, copy %.0f GB/s (bytes read and written)\n", when, (double)g.n / read[1] / 1e9, 2 * (double)g.n / copy[1] / 1e9);
    b->roof = fmax(b->roof, fmax((double)g.n / read[1], 2 * (double)g.n / copy[1]));
    return true;
}

/* ---- products ---- */

typedef struct weights {
    lq_device_matrix m[DB_COPIES];
    float *x[2];                 /* a chain goes to and fro between them: [tokens][the larger of rows and cols] */
    float *y;
    int8_t *code;
    float *step;
    int32_t *sum;
    lq_device_rest left;
    double bytes;
    float outlier;               /* 0: none */
} weights;

static const char *gemv(db *b, void *of, uint32_t i) {
    weights *w = of;
    const bool chain = b->mode != DB_THROUGHPUT;
    return b->d->gemv(&w->m[i % b->copies], w->x[chain ? i % 2 : 0], b->tokens, chain ? w->x[1 - i % 2] : w->y);
}

/* Codes as they are; in a chain they are rounded from what came before. */
static const char *idot(db *b, void *of, uint32_t i) {
    weights *w = of;
    const lq_device_matrix *m = &w->m[i % b->copies];
    const bool chain = b->mode != DB_THROUGHPUT;
    const lq_device_round o = {.act = {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8}};
    const char *why = chain ? b->d->ops->round(m, &o, w->x[i % 2], b->tokens, w->code, w->step, w->sum) : NULL;
    return why ? why : b->d->idot(m, w->code, w->step, w->sum, b->tokens, chain ? w->x[1 - i % 2] : w->y);
}

/* As calib/ops_queue.c multiplies where outliers are taken out at run time. x keeps its outliers: a chain would lose them. */
static const char *llm_int8(db *b, void *of, uint32_t i) {
    weights *w = of;
    const lq_device_matrix *m = &w->m[i % b->copies];
    lq_device_round r = {.act = {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .outlier = w->outlier}};
    if (w->outlier > 0) r.left = w->left;
    lq_device_product p = {.n = b->tokens, .parts = 1, .codes = w->code, .step = w->step, .sum = w->sum, .rest = r.left};
    p.part[0].m = m;
    p.part[0].y = w->y;
    const char *why = b->d->ops->round(m, &r, w->x[0], b->tokens, w->code, w->step, w->sum);
    return why ? why : b->d->ops->product(&p);
}

/* Weights and activations of E4M3, rounded first. */
static const char *small_floats(db *b, void *of, uint32_t i) {
    weights *w = of;
    const lq_device_matrix *m = &w->m[i % b->copies];
    const lq_device_round r = {.act = {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_E4M3}, .worth = w->step};
    lq_device_product p = {.n = b->tokens, .parts = 1, .x = w->x[1], .step = w->step};
    p.part[0].m = m;
    p.part[0].y = w->y;
    const char *why = b->d->ops->act(&r, w->x[0], m->cols, b->tokens, w->x[1]);
    return why ? why : b->d->ops->product(&p);
}

static void drop(db *b, weights *w) {
    for (uint32_t i = 0; i < b->copies; i++) lq_device_drop(b->d, &w->m[i]);
    void *held[] = {w->x[0], w->x[1], w->y, w->code, w->step, w->sum, w->left.where, w->left.value};
    for (size_t i = 0; i < sizeof held / sizeof *held; i++) b->d->release(held[i]);
    *w = (weights){.bytes = 0};
    b->copies = 0;
}

static void level_halves(uint8_t *at, size_t n, float by) {
    for (size_t i = 0; i < n; i++) {
        float v;
        lq_dtype_decode(LQ_F16, at + 2 * i, &v, 1);
        v *= by;
        lq_dtype_encode(LQ_F16, &v, at + 2 * i, 1);
    }
}

/* Parameters over how much a product makes of its input, so that a chain neither grows nor dies; those of 8 bits stay (what is rounded has its own steps). */
static void level(const lq_packed *p, lq_device_matrix *m, uint8_t *params) {
    double square = 0;
    const bool min = m->zero_kind == LQ_ZERO_MIN;
    for (uint32_t c = 0; c < p->q.cols; c++) {
        double a = lq_grid_value(&p->q, 0, lq_packed_code(p, 0, c)), s = lq_packed_scale(p, 0, c / p->seg), z = lq_packed_zero(p, 0, c / p->seg), v = min ? a * s - z : (a - z) * s;
        square += v * v;
    }
    const float by = square > 0 ? (float)(1 / sqrt(square)) : 1;
    if (m->tables) level_halves(params, (size_t)lq_device_param_bytes(p) / 2, by);
    if (m->scale == LQ_E4M3) m->up *= by, m->shift *= by;
    for (uint32_t g = 0; g < m->segs; g++)
        for (int plane = 0; plane < (min ? 2 : 1); plane++) {
            const lq_dtype t = plane ? m->zero : m->scale;
            uint8_t *at = params + (size_t)g * m->seg_bytes + (plane ? LQ_TILE * lq_dtypes[m->scale].bytes : 0);
            float v[LQ_TILE];
            if (t != LQ_F16 && t != LQ_F32) continue;
            lq_dtype_decode(t, at, v, LQ_TILE);
            for (int i = 0; i < LQ_TILE; i++) v[i] *= by;
            lq_dtype_encode(t, v, at, LQ_TILE);
        }
}

static bool make_inputs(db *b, const lq_packed *p, uint32_t rows, uint32_t cols, weights *w) {
    const uint32_t wide = rows > cols ? rows : cols;
    const size_t nx = DB_TOKENS * (size_t)wide, ld = lq_packed_ld(p);
    const int32_t ones[1] = {17};
    const float step = 0.01f;
    float *x = malloc(4 * nx);
    for (size_t i = 0; x && i < nx; i++) x[i] = lq_rng_normal(&b->rng) * (i % 200 == 77 ? 20.0f : 1.0f); /* one in two hundred is an outlier */
    for (int i = 0; x && i < 2; i++) w->x[i] = db_filled(b, 4 * nx, x, 4 * nx);
    w->y = b->d->alloc(4 * DB_TOKENS * (size_t)rows);
    w->code = db_filled(b, DB_TOKENS * ld, NULL, 0);
    w->step = db_filled(b, 4 * DB_TOKENS * (size_t)p->segs, &step, 4);
    w->sum = db_filled(b, 4 * DB_TOKENS * (size_t)p->segs, ones, 4);
    w->left = (lq_device_rest){b->d->alloc(DB_TOKENS * ld / 8), b->d->alloc(4 * DB_TOKENS * ld)};
    free(x);
    return w->x[0] && w->x[1] && w->y && w->code && w->step && w->sum && w->left.where && w->left.value;
}

/* One row tile is packed; the matrix has its scales in every tile, and random codes. */
static bool make(db *b, const lq_scheme *s, uint32_t rows, uint32_t cols, weights *w) {
    lq_ctx ctx = {0};
    lq_qtensor q;
    lq_packed one;
    ck_fill(&q, s, LQ_TILE, cols, &b->rng, false);
    bool ok = lq_pack(&ctx, &q, &one) == LQ_OK;
    lq_qtensor_free(&q);
    if (!ok) return false;
    const size_t tiles = rows / LQ_TILE, codes = lq_device_bytes(&one) * tiles, params = (size_t)lq_device_param_bytes(&one);
    lq_device_matrix shape = lq_device_shape(&one);
    uint8_t *scales = lq_alloc(params);
    w->bytes = (double)codes + (double)(params * tiles);
    uint32_t want = db_copies(b, w->bytes);
    ok = scales;
    if (ok) lq_device_params(&one, scales);
    if (ok) level(&one, &shape, scales);
    for (b->copies = 0; ok && b->copies < want; b->copies++) {
        lq_device_matrix *m = &w->m[b->copies];
        *m = shape;
        m->rows = rows;
        m->tiles = (uint32_t)tiles;
        m->codes = db_filled(b, codes, NULL, 0);
        m->params = db_filled(b, params * tiles, scales, params);
        ok = m->codes && m->params;
    }
    ok = ok && make_inputs(b, &one, rows, cols, w);
    lq_free(scales);
    lq_packed_free(&one);
    return ok;
}

typedef struct kind { const char *type, *what; db_launch launch; float outlier; bool chains; } kind;

static bool one_matrix(db *b, const kind *k, uint32_t rows, uint32_t cols) {
    static const uint32_t tokens[] = {1, 8, 16};
    static weights w;
    char shape[32];
    lq_want want;
    bool ok = lq_type_parse(NULL, k->type, &(lq_type_defaults){.group = 128}, &want) == LQ_OK && make(b, &want.scheme, rows, cols, &w);
    snprintf(shape, sizeof shape, "%u x %u", rows, cols);
    if (!ok) printf("checkkern: no memory for %s %s, or no such type\n", k->type, shape);
    w.outlier = k->outlier;
    for (size_t i = 0; ok && i < sizeof tokens / sizeof *tokens; i++)
        for (int mode = k->chains ? DB_THROUGHPUT : DB_CHAIN; ok && mode < DB_MODES && db_can(b, (db_mode)mode); mode++) { /* several kernels that leave each other something: only in order */
            b->tokens = tokens[i], b->mode = (db_mode)mode;
            ok = db_measure(b, k->what, shape, w.bytes, k->launch, &w);
        }
    drop(b, &w);
    return ok;
}

static bool products(db *b, uint32_t rows, uint32_t cols) {
    static const kind kinds[] = {
        {"int4-sym-g128", "int4-sym-g128 gemv", gemv, 0, true}, {"int4-asym-g128", "int4-asym-g128 gemv", gemv, 0, true}, {"int8-sym-row", "int8-sym-row gemv", gemv, 0, true},
        {"FP8-W", "FP8-W gemv", gemv, 0, true}, {"NF4-g64", "NF4-g64 gemv", gemv, 0, true}, {"lut4", "lut4 gemv", gemv, 0, true}, {"int3-sym-g128", "int3-sym-g128 gemv", gemv, 0, true},
        {"int2-asym-g128", "int2-asym-g128 gemv", gemv, 0, true}, {"ternary-g128", "ternary-g128 gemv", gemv, 0, true}, {"W8A8-row", "W8A8 idot", idot, 0, true},
        {"W4A8", "W4A8 idot", idot, 0, true}, {"b1.58", "b1.58 idot", idot, 0, true}, {"W8A8-row", "W8A8, rounding", llm_int8, 0, false}, {"W8A8-row", "LLM.int8, 0.5 % outliers", llm_int8, 6, false},
        {"FP8-W", "FP8, rounding", small_floats, 0, false}};
    bool ok = true;
    for (size_t k = 0; ok && k < sizeof kinds / sizeof *kinds; k++) ok = one_matrix(b, &kinds[k], rows, cols);
    return ok && db_blas(b, rows, cols);
}

/* ---- the table ---- */

static void show(const db *b, const db_row *r) {
    static const char *const modes[] = {"throughput", "chain", "chain, ahead"};
    if (r->why) {
        printf("| %s | %s | - | - | not measured: %s | - | - | - | - |\n", r->what, r->shape, r->why);
        return;
    }
    char peak[32] = "-";
    const double t = r->took[1], rate = r->bytes / t;
    if (b->peak > 0) snprintf(peak, sizeof peak, "%.0f", 100 * rate / b->peak);
    printf("| %s | %s | %u | %s | %.2f | %.0f | %.0f | %s | %.0f |\n", r->what, r->shape, r->tokens, modes[r->mode], 1e6 * t, rate / 1e9, 100 * rate / b->roof, peak, 100 * (r->took[2] - r->took[0]) / t);
}

static int judge(const db *b) {
    if (b->peak <= 0) {
        printf("memory gives %.0f GB/s at most; the vendor's figure is not known, so no run is void\n", b->roof / 1e9);
        return 0;
    }
    printf("memory gives %.0f GB/s at most, %.0f %% of the vendor's %.0f GB/s\n", b->roof / 1e9, 100 * b->roof / b->peak, b->peak / 1e9);
    if (b->roof >= 0.85 * b->peak) return 0;
    printf("VOID: less than 85 %% of what the vendor says, something else is on this device\n");
    return 1;
}

int ck_device_bench(const char *device) {
    static const uint32_t shapes[][2] = {{4096, 4096}, {4096, 14336}, {8192, 28672}}, few[][2] = {{64, 512}};
    static db b;
    b = (db){.d = strcmp(device, "emu") ? lq_device_cuda() : lq_device_emu(), .small = !strcmp(device, "emu"), .rng = ck_start("bench")};
    if (!b.d->available()) {
        printf("checkkern: %s: %s\n", b.d->name, b.d->describe());
        return 77;
    }
    printf("%s\n", b.d->describe());
    b.peak = b.d->peak();
    bool ok = measure_roof(&b, "before");
    for (size_t i = 0; ok && i < (b.small ? sizeof few / sizeof *few : sizeof shapes / sizeof *shapes); i++) ok = products(&b, b.small ? few[i][0] : shapes[i][0], b.small ? few[i][1] : shapes[i][1]);
    ok = ok && db_attention(&b) && measure_roof(&b, "after");
    printf("| what | rows x cols | tokens | mode | us | GB/s | %% of max(read, copy) | %% of vendor peak | spread, %% |\n|---|---|---|---|---|---|---|---|---|\n");
    for (uint32_t i = 0; i < b.rows; i++) show(&b, &b.row[i]);
    return ok ? judge(&b) : 1;
}
