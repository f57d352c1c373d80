/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Device operations of a forward pass against the C kernels: the same bits where kernels/cuda says so, else within what fp32 sums allow. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "checkkern_device.h"
#include "kernels/ref/ref.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

enum { GUARD = 256, MAGIC = 0xa5 };
static const double EPS = FLT_EPSILON;

/* ---- shared ---- */

ckd ckd_open(const ck_probe *p) {
    ckd c = {.d = ckd_device(p), .name = p->name, .rng = ck_start(p->name)};
    assert_non_null(c.d->ops);
    return c;
}

void ckd_release(ckd *c) {
    while (c->n) c->d->release(c->held[--c->n]);
}
void ckd_close(ckd *c) { ckd_release(c); }

static void *hold(ckd *c, size_t n) {
    assert_true(c->n < CKD_HELD);
    void *p = c->held[c->n++] = c->d->alloc(n);
    assert_non_null(p);
    return p;
}

void *ckd_in(ckd *c, const void *v, size_t n) {
    void *p = hold(c, n);
    assert_true(c->d->put(p, v, n));
    return p;
}

float *ckd_floats(ckd *c, float *host, size_t n) {
    ck_floats(host, n, &c->rng, false);
    return ckd_in(c, host, n * sizeof *host);
}

void *ckd_out(ckd *c, size_t n) {
    uint8_t *p = hold(c, n + 2 * (size_t)GUARD), *fill = ck_exact(n + 2 * (size_t)GUARD);
    memset(fill, MAGIC, n + 2 * (size_t)GUARD);
    assert_true(c->d->put(p, fill, n + 2 * (size_t)GUARD));
    free(fill);
    return p + GUARD;
}

void ckd_get(ckd *c, const void *out, size_t n, void *to) {
    uint8_t *all = ck_exact(n + 2 * (size_t)GUARD);
    assert_true(c->d->get(all, (const uint8_t *)out - GUARD, n + 2 * (size_t)GUARD));
    for (size_t i = 0; i < GUARD; i++)
        if (all[i] != MAGIC || all[GUARD + n + i] != MAGIC) fail_msg("%s: wrote outside its output (guard byte %zu)", c->name, i);
    memcpy(to, all + GUARD, n);
    free(all);
}

void ckd_run(ckd *c, const char *why, const char *what) {
    if (why) fail_msg("%s, %s: %s", c->name, what, why);
}

void ckd_same(ckd *c, int run, const void *out, size_t n, void *to, const char *what) {
    void *again = ck_exact(n);
    ckd_get(c, out, n, run ? again : to);
    if (run && memcmp(again, to, n)) fail_msg("%s, %s: run %d gives other bytes than the first", c->name, what, run);
    free(again);
}

void ckd_near(ckd *c, float got, double want, double bound, const char *what, size_t i) {
    if (!(fabs((double)got - want) <= bound)) fail_msg("%s, %s: element %zu is %.9g, want %.9g within %.3g", c->name, what, i, (double)got, want, bound);
    if (bound > 0) ck_worst = fmax(ck_worst, fabs((double)got - want) / bound);
}

void ckd_same_floats(ckd *c, const float *got, const float *want, size_t n, const char *what) {
    for (size_t i = 0; i < n; i++)
        if (lq_f32_bits(got[i]) != lq_f32_bits(want[i])) fail_msg("%s, %s: element %zu is %a, the definition says %a", c->name, what, i, (double)got[i], (double)want[i]);
}

static float *floats(size_t n) { return ck_exact(n * sizeof(float)); }

/* ---- norms ---- */

void ckd_check_norm(ckd *c, const float *x, const float *gain, const float *shift, bool layer, uint32_t d, const float *y) {
    double mean = 0, abs = 0, square = 0, k = (d / 256.0 + 24) * EPS;
    for (uint32_t i = 0; i < d; i++) mean += (double)x[i] / d, abs += fabs((double)x[i]) / d;
    if (!layer) mean = 0, abs = 0;
    for (uint32_t i = 0; i < d; i++) square += ((double)x[i] - mean) * ((double)x[i] - mean) / d;
    double scale = 1 / sqrt(square + 1e-5), off = k * abs;
    for (uint32_t i = 0; i < d; i++) {
        double v = ((double)x[i] - mean) * scale, g = gain ? (double)gain[i] : 1, b = shift ? (double)shift[i] : 0;
        double bound = fabs(g) * (scale * off + fabs(v) * (k + scale * off)) + EPS * fabs(b) + 1e-37;
        ckd_near(c, y[i], v * g + b, bound, layer ? "layernorm" : "rmsnorm", i);
    }
}

static void device_norms_are_near(void **state) {
    ckd c = ckd_open(*state);
    for (size_t w = 0; w < ck_n_widths; w++)
        for (int form = 0; form < 4; form++) {
            uint32_t d = ck_widths[w], n = 3;
            bool layer = form > 1, plain = form == 3;
            float *x = floats((size_t)n * d), *gain = floats(d), *shift = floats(d), *y = floats((size_t)n * d);
            float *dx = ckd_floats(&c, x, (size_t)n * d), *dg = ckd_floats(&c, gain, d), *ds = ckd_floats(&c, shift, d), *dy = ckd_out(&c, (size_t)n * d * 4);
            lq_device_norm o = {plain ? NULL : dg, plain || !layer ? NULL : ds, 1e-5f, layer};
            for (int run = 0; run < CKD_RUNS; run++) {
                ckd_run(&c, c.d->ops->norm(&o, dx, d, n, dy), "norm");
                ckd_same(&c, run, dy, (size_t)n * d * 4, y, "norm");
            }
            for (uint32_t t = 0; t < n; t++) ckd_check_norm(&c, x + (size_t)t * d, plain ? NULL : gain, plain || !layer ? NULL : shift, layer, d, y + (size_t)t * d);
            ckd_run(&c, c.d->ops->norm(&o, dx, d, n, dx), "norm in place");
            assert_true(c.d->get(x, dx, (size_t)n * d * 4));
            ckd_same_floats(&c, x, y, (size_t)n * d, "norm in place");
            ckd_release(&c);
            free(x), free(gain), free(shift), free(y);
        }
    ckd_close(&c);
}

/* ---- elements ---- */

static void device_rope_has_the_bits_of_c(void **state) {
    static const uint32_t shapes[][3] = {{1, 2, 2}, {3, 8, 6}, {9, 64, 64}, {2, 80, 32}, {5, 128, 128}, {4, 6, 0}}; /* heads, dim, rot */
    enum { N = 5, POS = 40 };
    ckd c = ckd_open(*state);
    for (size_t i = 0; i < 2 * sizeof shapes / sizeof *shapes; i++) {
        uint32_t heads = shapes[i / 2][0], dim = shapes[i / 2][1], rot = shapes[i / 2][2], pos[N];
        size_t each = (size_t)heads * dim, n = N * each, table = (size_t)POS * (rot / 2) + 1;
        float *x = floats(n), *y = floats(n), *cosines = floats(table), *sines = floats(table);
        float *dc = ckd_floats(&c, cosines, table), *ds = ckd_floats(&c, sines, table), *dx = ckd_out(&c, n * 4);
        ck_floats(x, n, &c.rng, false);
        for (uint32_t t = 0; t < N; t++) pos[t] = lq_rng_below(&c.rng, POS);
        lq_device_tokens at = {.n = N, .pos = ckd_in(&c, pos, sizeof pos), .reach = POS - 1};
        assert_true(c.d->put(dx, x, n * 4));
        ckd_run(&c, c.d->ops->rope(dx, heads, dim, rot, i & 1, dc, ds, &at), "rope");
        ckd_get(&c, dx, n * 4, y);
        for (uint32_t t = 0; t < N; t++) (i & 1 ? lq_rope_pairs_c : lq_rope_c)(x + t * each, heads, dim, rot, cosines + pos[t] * (rot / 2), sines + pos[t] * (rot / 2));
        ckd_same_floats(&c, y, x, n, "rope");
        ckd_release(&c);
        free(x), free(y), free(cosines), free(sines);
    }
    ckd_close(&c);
}

double ckd_act_bound(int f, double x, double y, double up) {
    if (f == LQ_ACTFN_GELU) return 6 * EPS * fabs(y) + 2 * EPS * fabs(x * up);
    if (f == LQ_ACTFN_GELU_TANH) return (16 + 8 * fabs(x + 0.044715 * x * x * x)) * EPS * fabs(y) + 1e-36 * fabs(up);
    return 8 * EPS * fabs(y) + 1e-36 * fabs(up);
}

static void device_glu_is_near(void **state) {
    enum { N = 4103 };
    ckd c = ckd_open(*state);
    float *gate = floats(N), *up = floats(N), *want = floats(N), *y = floats(N), *one = floats(N);
    float *du = ckd_floats(&c, up, N), *dy = ckd_out(&c, N * 4);
    for (int i = 0; i < N; i++) gate[i] = lq_rng_normal(&c.rng) * (i % 7 ? 3 : 40), one[i] = 1;
    float *dg = ckd_in(&c, gate, N * 4);
    for (int f = 0; f < 2 * LQ_ACTFN_N; f++) {
        bool gated = f < LQ_ACTFN_N;
        for (int run = 0; run < CKD_RUNS; run++) {
            ckd_run(&c, c.d->ops->glu(f % LQ_ACTFN_N, dg, gated ? du : NULL, dy, N), "glu");
            ckd_same(&c, run, dy, N * 4, y, "glu");
        }
        lq_glu_c((lq_actfn)(f % LQ_ACTFN_N), gate, gated ? up : one, want, N);
        for (size_t i = 0; i < N; i++) ckd_near(&c, y[i], (double)want[i], ckd_act_bound(f % LQ_ACTFN_N, (double)gate[i], (double)want[i], gated ? (double)up[i] : 1), lq_actfn_names[f % LQ_ACTFN_N], i);
    }
    ckd_close(&c);
    free(gate), free(up), free(want), free(y), free(one);
}

static void device_elements_are_the_definition(void **state) {
    enum { N = 7, WIDTH = 1031, ALL = N * WIDTH };
    ckd c = ckd_open(*state);
    float *x = floats(ALL), *y = floats(ALL), *b = floats(WIDTH), *want = floats(ALL), gate[N], cut = 0.7f;
    float *dx = ckd_floats(&c, x, ALL), *dy = ckd_out(&c, ALL * 4), *db = ckd_floats(&c, b, WIDTH), *dg = ckd_floats(&c, gate, N);
    assert_true(c.d->put(dy, x, ALL * 4));
    ckd_run(&c, c.d->ops->add(dy, dx, cut, ALL), "add");
    ckd_run(&c, c.d->ops->bias(dy, db, WIDTH, N), "bias");
    ckd_get(&c, dy, ALL * 4, y);
    for (int i = 0; i < ALL; i++) {
        float part = cut * x[i], sum = x[i] + part;
        want[i] = sum + b[i % WIDTH];
    }
    ckd_same_floats(&c, y, want, ALL, "add, bias");
    ckd_run(&c, c.d->ops->clamp(dx, cut, dy, ALL), "clamp");
    ckd_get(&c, dy, ALL * 4, y);
    for (int i = 0; i < ALL; i++) want[i] = fminf(fmaxf(x[i], -cut), cut);
    ckd_same_floats(&c, y, want, ALL, "clamp");
    ckd_run(&c, c.d->ops->token_gate(dx, dg, WIDTH, N, dy), "token gate");
    ckd_get(&c, dy, ALL * 4, y);
    for (size_t i = 0; i < ALL; i++) {
        double v = (double)x[i] / (1 + exp(-(double)gate[i / WIDTH]));
        ckd_near(&c, y[i], v, 8 * EPS * fabs(v), "token gate", i);
    }
    for (int cap = 0; cap < 2; cap++) {
        assert_true(c.d->put(dy, x, ALL * 4));
        ckd_run(&c, c.d->ops->scale(dy, 1.5f, cap ? 2.0f : 0, ALL), "scale");
        ckd_get(&c, dy, ALL * 4, y);
        for (size_t i = 0; i < ALL; i++) {
            double v = (double)(1.5f * x[i]), w = cap ? 2 * tanh(v / 2) : v;
            ckd_near(&c, y[i], w, cap ? 8 * EPS * fabs(w) : 0, "scale", i);
        }
    }
    ckd_close(&c);
    free(x), free(y), free(b), free(want);
}

static void device_parts_and_rows_are_moved(void **state) {
    enum { N = 3, WIDTH = 300, ROWS = 70, RUN = 10, STEP = 40, FIRST = 11 };
    static const int32_t ids[N] = {4, 0, 6};
    ckd c = ckd_open(*state);
    float x[N * WIDTH], y[7 * WIDTH], want[7 * WIDTH], weight[N];
    float *dx = ckd_floats(&c, x, N * WIDTH), *part = ckd_out(&c, N * ROWS * 4), *dy = ckd_out(&c, sizeof y), *dw = ckd_floats(&c, weight, N);
    int32_t *di = ckd_in(&c, ids, sizeof ids);
    ckd_run(&c, c.d->ops->split(dx, WIDTH, FIRST, RUN, STEP, ROWS, N, part), "split");
    ckd_get(&c, part, N * ROWS * 4, y);
    for (int i = 0; i < N * ROWS; i++) want[i] = x[i / ROWS * WIDTH + FIRST + i % ROWS / RUN * STEP + i % RUN];
    ckd_same_floats(&c, y, want, N * ROWS, "split");
    ck_floats(want, 7 * WIDTH, &c.rng, false);
    assert_true(c.d->put(dy, want, sizeof want));
    ckd_run(&c, c.d->ops->scatter(dy, dx, di, dw, WIDTH, N), "scatter");
    ckd_get(&c, dy, sizeof y, y);
    for (int i = 0; i < N * WIDTH; i++) {
        float v = weight[i / WIDTH] * x[i];
        want[ids[i / WIDTH] * WIDTH + i % WIDTH] += v;
    }
    ckd_same_floats(&c, y, want, 7 * WIDTH, "scatter");
    ckd_close(&c);
}

/* ---- matrices of floats ---- */

static const lq_dtype dense_types[] = {LQ_F32, LQ_F16, LQ_BF16};

static void check_dense(ckd *c, const float *w, const float *x, uint32_t rows, uint32_t cols, uint32_t n, const float *y) {
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t r = 0; r < rows; r++) {
            double sum = 0, mass = 0;
            for (uint32_t i = 0; i < cols; i++) {
                double v = (double)w[(size_t)r * cols + i] * (double)x[(size_t)t * cols + i];
                sum += v;
                mass += fabs(v);
            }
            ckd_near(c, y[(size_t)t * rows + r], sum, (n > 8 ? cols + 2.0 : cols / 32.0 + 16) * EPS * mass + 1e-37, "dense", (size_t)t * rows + r);
        }
}

static void device_dense_and_embed_read_floats(void **state) {
    static const uint32_t shapes[][3] = {{1, 1, 1}, {5, 7, 2}, {33, 257, 3}, {70, 64, 8}, {4, 520, 9}, {131, 97, 70}, {64, 264, 11}, {37, 1031, 5}, {16, 4352, 1}}; /* rows, cols, n */
    ckd c = ckd_open(*state);
    ck_worst = 0;
    for (size_t i = 0; i < 3 * sizeof shapes / sizeof *shapes; i++) {
        const lq_dtype type = dense_types[i % 3];
        const uint32_t rows = shapes[i / 3][0], cols = shapes[i / 3][1], n = shapes[i / 3][2];
        size_t nw = (size_t)rows * cols, bytes = lq_dtype_row_bytes(type, nw);
        float *w = floats(nw), *x = floats((size_t)n * cols), *y = floats((size_t)n * rows), *e = floats((size_t)n * cols), *want = floats((size_t)n * cols);
        uint8_t *stored = ck_exact(bytes);
        int32_t *ids = ck_exact(n * sizeof *ids);
        ck_floats(w, nw, &c.rng, false);
        lq_dtype_encode(type, w, stored, nw);
        lq_dtype_decode(type, stored, w, nw);
        lq_device_dense m = {.rows = rows, .cols = cols, .dtype = (uint8_t)type, .w = ckd_in(&c, stored, bytes)};
        float *dx = ckd_floats(&c, x, (size_t)n * cols), *dy = ckd_out(&c, (size_t)n * rows * 4), *de = ckd_out(&c, (size_t)n * cols * 4);
        for (int run = 0; run < CKD_RUNS; run++) {
            ckd_run(&c, c.d->ops->dense(&m, dx, n, dy), "dense");
            ckd_same(&c, run, dy, (size_t)n * rows * 4, y, "dense");
        }
        check_dense(&c, w, x, rows, cols, n, y);
        for (uint32_t t = 0; t < n; t++) {
            ids[t] = t % 5 == 4 ? (int32_t)rows : (int32_t)lq_rng_below(&c.rng, rows);
            for (uint32_t k = 0; k < cols; k++) want[(size_t)t * cols + k] = t % 5 == 4 ? 0 : w[(size_t)ids[t] * cols + k];
        }
        ckd_run(&c, c.d->ops->embed(&m, ckd_in(&c, ids, n * sizeof *ids), n, de), "embed");
        ckd_get(&c, de, (size_t)n * cols * 4, e);
        ckd_same_floats(&c, e, want, (size_t)n * cols, "embed");
        ckd_release(&c);
        free(w), free(x), free(y), free(e), free(want), free(stored), free(ids);
    }
    print_message("    %s: worst error %.2f of its bound\n", c.name, ck_worst);
    ckd_close(&c);
}

/* ---- packed matrices ---- */

bool ckd_packed(ckd *c, const lq_scheme *scheme, uint32_t rows, uint32_t cols, bool perm, lq_act act, lq_packed *m) {
    lq_ctx ctx = {0};
    lq_qtensor q;
    lq_scheme s = *scheme;
    s.extra &= ~(uint32_t)LQ_X_PERM;
    if (perm) s.extra |= LQ_X_PERM;
    if (act.kind) s.act = act;
    if (!ck_fits_cols(&s, cols) || !lq_packed_holds(&s, rows, cols)) return false;
    ck_fill(&q, &s, rows, cols, &c->rng, false);
    assert_int_equal(lq_pack(&ctx, &q, m), LQ_OK);
    lq_qtensor_free(&q);
    return true;
}

static void check_row(ckd *c, const lq_packed *m, uint32_t r, const float *want, const float *got) {
    const bool exact = m->q.sch.grid.kind == LQ_GRID_INT || m->q.sch.grid.kind == LQ_GRID_E4M3;
    for (uint32_t i = 0; i < m->q.cols; i++) {
        uint32_t k = m->q.perm ? m->q.perm[i] : i;
        double s = fabs((double)lq_packed_scale(m, r, i / m->seg)), a = fabs((double)lq_grid_value(&m->q, r, lq_packed_code(m, r, i)));
        if (exact && !isnan(want[k])) ckd_same_floats(c, got + k, want + k, 1, "embed_packed");
        else if (!exact) ckd_near(c, got[k], (double)want[k], s * (0x1p-11 * a + 0x1p-25) * 1.001 + 2 * EPS * fabs((double)want[k]), "embed_packed", k);
    }
}

static void device_embed_packed_decodes_rows(void **state) {
    static const uint32_t shapes[][2] = {{1, 1}, {17, 48}, {33, 240}, {20, 640}, {16, 1920}};
    ckd c = ckd_open(*state);
    for (const ck_scheme *s = ck_all_schemes(); s->name; s++)
        for (size_t i = 0; i < 10; i++) {
            enum { N = 3 };
            const uint32_t rows = shapes[i / 2][0], cols = shapes[i / 2][1];
            lq_packed m;
            lq_device_matrix dm;
            if (!ckd_packed(&c, &s->s, rows, cols, i & 1, (lq_act){0}, &m)) continue;
            int32_t ids[N] = {(int32_t)rows - 1, (int32_t)lq_rng_below(&c.rng, rows), -1};
            float *all = floats((size_t)m.tiles * LQ_TILE * cols), *y = floats(N * (size_t)cols), *dy = ckd_out(&c, N * (size_t)cols * 4);
            assert_true(lq_device_put(c.d, &m, &dm));
            ckd_run(&c, c.d->ops->embed_packed(&dm, ckd_in(&c, ids, sizeof ids), N, dy), s->name);
            ckd_get(&c, dy, N * (size_t)cols * 4, y);
            lq_packed_dequant_c(&m, 0, m.tiles, all);
            for (int t = 0; t < 2; t++) check_row(&c, &m, (uint32_t)ids[t], all + (size_t)ids[t] * cols, y + (size_t)t * cols);
            for (uint32_t k = 0; k < cols; k++) assert_true(y[2 * cols + k] == 0);
            lq_device_drop(c.d, &dm);
            lq_packed_free(&m);
            ckd_release(&c);
            free(all), free(y);
        }
    ckd_close(&c);
}

/* ---- logits ---- */

static void device_score_is_the_loss(void **state) {
    static const uint32_t vocabs[] = {1, 2, 97, 256, 1031, 5003};
    ckd c = ckd_open(*state);
    for (size_t v = 0; v < sizeof vocabs / sizeof *vocabs; v++) {
        enum { N = 4 };
        const uint32_t vocab = vocabs[v];
        float *x = floats(N * (size_t)vocab);
        double nll[N];
        int32_t best[N], target[N];
        for (size_t i = 0; i < N * (size_t)vocab; i++) x[i] = (float)(int)lq_rng_below(&c.rng, 4001) / 100 - 20; /* many ties */
        for (int t = 0; t < N; t++) target[t] = (int32_t)lq_rng_below(&c.rng, vocab);
        if (vocab > 90) x[2 * vocab + 90] = NAN;
        float *dx = ckd_in(&c, x, N * (size_t)vocab * 4);
        double *dn = ckd_out(&c, sizeof nll);
        int32_t *db = ckd_out(&c, sizeof best), *dt = ckd_in(&c, target, sizeof target);
        for (int run = 0; run < CKD_RUNS; run++) {
            ckd_run(&c, c.d->ops->score(dx, vocab, N, dt, run == 1 ? NULL : dn, run == 2 ? NULL : db), "score");
            ckd_same(&c, run, dn, sizeof nll, nll, "nll");
            ckd_same(&c, run, db, sizeof best, best, "best");
        }
        for (int t = 0; t < N; t++) {
            const float *row = x + (size_t)t * vocab;
            double want = lq_logsumexp_c(row, vocab) - (double)row[target[t]];
            int32_t top = 0;
            for (uint32_t i = 1; i < vocab; i++)
                if (row[i] > row[top]) top = (int32_t)i;
            assert_int_equal(best[t], top);
            if (isnan(want)) assert_true(isnan(nll[t]));
            else if (!(fabs(nll[t] - want) <= 4 * EPS + 1e-14 * fabs(want))) fail_msg("%s, vocab %u: %.17g, want %.17g", c.name, vocab, nll[t], want);
        }
        ckd_release(&c);
        free(x);
    }
    ckd_close(&c);
}

/* ---- recorded passes ---- */

static void device_replays_what_it_recorded(void **state) {
    ckd c = ckd_open(*state);
    float x[100], y[100];
    void *pass = NULL;
    float *dx = ckd_floats(&c, x, 100), *dy = ckd_in(&c, x, sizeof x);
    if (!c.d->record) skip();
    ckd_run(&c, c.d->record(), "record");
    ckd_run(&c, c.d->ops->add(dy, dx, 1, 100), "add");
    ckd_run(&c, c.d->end(&pass), "end");
    for (int i = 0; i < 3; i++) ckd_run(&c, c.d->replay(pass), "replay");
    ckd_run(&c, c.d->wait(), "wait");
    assert_true(c.d->get(y, dy, sizeof y));
    for (int i = 0; i < 100; i++) assert_true(y[i] == x[i] + x[i] + x[i] + x[i]);
    c.d->forget(pass);
    ckd_close(&c);
}

void ck_device_ops_add(const ck_variant *v, lq_dtype t) {
    ck_add(device_norms_are_near, "device_norm", v, NULL, t);
    ck_add(device_rope_has_the_bits_of_c, "device_rope", v, NULL, t);
    ck_add(device_glu_is_near, "device_glu", v, NULL, t);
    ck_add(device_elements_are_the_definition, "device_elements", v, NULL, t);
    ck_add(device_parts_and_rows_are_moved, "device_parts", v, NULL, t);
    ck_add(device_dense_and_embed_read_floats, "device_dense", v, NULL, t);
    ck_add(device_embed_packed_decodes_rows, "device_embed", v, NULL, t);
    ck_device_round_add(v, t);
    ck_device_rest_add(v, t);
    ck_device_steps_add(v, t);
    ck_device_experts_add(v, t);
    ck_add(device_score_is_the_loss, "device_score", v, NULL, t);
    ck_add(device_replays_what_it_recorded, "device_replay", v, NULL, t);
    ck_device_attn_add(v, t);
}
