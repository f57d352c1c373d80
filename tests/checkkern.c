/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Every kernel of every variant this machine can run against its definition: bit for bit where the header promises the
 * bits, else against a sum in fp64 within k eps sum |w x|, k stated. Outputs lie between guard bytes, inputs end where
 * their memory ends. checkkern [--seed N] [--only PART_OF_A_NAME] [--bench | --bench-packed [TYPE] | --bench-device [cuda | emu] | --bench-threads] */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "checkkern.h"
#include "kernels/ref/ref.h"

#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t seed = 20240607;

lq_rng ck_start(const char *name) {
    lq_rng r;
    uint64_t h = 1469598103934665603u;
    while (*name) h = (h ^ (uint8_t)*name++) * 1099511628211u;
    lq_rng_seed(&r, seed, h);
    return r;
}

enum { GUARD = 72, MAGIC = 0xa5 }; /* 72: outputs are aligned to a double and no more */
void *ck_guarded(size_t n) {
    uint8_t *p = malloc(n + 2 * (size_t)GUARD);
    assert_non_null(p);
    memset(p, MAGIC, n + 2 * (size_t)GUARD);
    return p + GUARD;
}
void ck_release(void *v, size_t n) {
    uint8_t *p = (uint8_t *)v - GUARD;
    for (size_t i = 0; i < GUARD; i++)
        if (p[i] != MAGIC || p[GUARD + n + i] != MAGIC) fail_msg("wrote outside its output (guard byte %zu)", i);
    free(p);
}

void *ck_exact(size_t n) { /* ends where its memory ends: a sanitizer sees an over-read */
    void *p = malloc(n ? n : 1);
    assert_non_null(p);
    return p;
}

static uint64_t digest = 1469598103934665603u; /* of every result: equal between compilers and thread counts on one machine */
void ck_note(const void *v, size_t n) {
    for (size_t i = 0; i < n; i++) digest = (digest ^ ((const uint8_t *)v)[i]) * 1099511628211u;
}

void ck_same_bits(const float *got, const float *want, size_t n, const char *what, uint32_t cols) {
    for (size_t i = 0; i < n; i++) {
        if (!isnan(got[i])) ck_note(got + i, sizeof *got);
        if (lq_f32_bits(got[i]) != lq_f32_bits(want[i]) && !(isnan(got[i]) && isnan(want[i])))
            fail_msg("%s, cols %u: element %zu is %a, the definition says %a", what, cols, i, (double)got[i], (double)want[i]);
    }
}

const uint32_t ck_widths[] = {1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 97, 128, 240, 257, 384, 512, 640, 1031, 1920, 4352};
enum { WIDTHS = sizeof ck_widths / sizeof *ck_widths };
const size_t ck_n_widths = WIDTHS;

bool ck_fits_cols(const lq_scheme *s, uint32_t cols) {
    return s->scale.tile_r == LQ_FLAT || ((!s->scale.tile_c || cols % s->scale.tile_c == 0) && (!s->zero.tile_c || cols % s->zero.tile_c == 0)) || cols % 5 == 0;
}

static void dequant_is_the_definition(void **state) {
    const ck_probe *p = *state;
    lq_rng rng = ck_start(p->name);
    for (int round = 0; round < 4; round++)
        for (size_t i = 0; i < WIDTHS; i++) {
            uint32_t cols = ck_widths[i], rows = 5;
            lq_scheme s = p->scheme->s;
            lq_qtensor q;
            if (!ck_fits_cols(&s, cols)) continue;
            if (round & 1) s.extra |= LQ_X_PERM;
            ck_fill(&q, &s, rows, cols, &rng, round > 1);
            float *want = ck_exact(4 * (size_t)cols * 3), *got = ck_guarded(4 * (size_t)cols * 3);
            for (uint32_t r = 0; r < 3; r++) lq_qtensor_decode_row(&q, 2 + r, want + (size_t)r * cols);
            p->v->k.dequant(&q, 2, 3, got);
            ck_same_bits(got, want, (size_t)cols * 3, p->name, cols);
            ck_release(got, 4 * (size_t)cols * 3);
            free(want);
            lq_qtensor_free(&q);
        }
}

/* A lane of the narrowest variant takes at most cols / 8 terms and one scaled sum per segment of at least 8 columns, then the
 * lanes are joined; the C code rounds once. */
static double factor(const ck_probe *p, uint32_t cols) { return strcmp(p->v->name, "c") ? cols / 8.0 * 2 + 12 : 1.01; }

double ck_worst;
void ck_near_exact(const ck_probe *p, float got, double sum, double mass, double k, uint32_t cols) {
    double bound = k * (FLT_EPSILON / 2) * mass + cols * 0x1p-149;
    ck_note(&got, sizeof got);
    if (mass > FLT_MAX) return;
    ck_worst = fmax(ck_worst, mass > 1e-30 ? fabs((double)got - sum) / ((FLT_EPSILON / 2) * mass) : 0);
    if (!(fabs((double)got - sum) <= bound)) fail_msg("%s, cols %u: %.9g, want %.9g within %.3g (k = %.1f)", p->name, cols, (double)got, sum, bound, k);
}

static void near_sum(const ck_probe *p, float got, const float *w, const float *x, uint32_t cols) {
    double sum = 0, mass = 0;
    for (uint32_t c = 0; c < cols; c++) {
        sum += (double)w[c] * (double)x[c];
        mass += fabs((double)w[c] * (double)x[c]);
    }
    ck_near_exact(p, got, sum, mass, factor(p, cols), cols);
}

/* Codes, low rank and sparse values are summed apart: each counts in the mass, and each part rounds once more. */
static void near_parts(const ck_probe *p, float got, const lq_qtensor *q, uint32_t r, float *w, const float *x) {
    lq_qtensor plain = *q;
    const lq_csr *o = &q->outliers;
    const lq_cols *kept = &q->outlier_cols;
    double sum = 0, mass = 0;
    plain.sch.extra &= LQ_X_PERM | LQ_X_LUT_PER_ROW;
    lq_qtensor_decode_row(&plain, r, w);
    for (uint32_t c = 0, at = 0; c < q->cols; c++) {
        double v = w[c], m = fabs(v);
        for (uint32_t k = 0; k < q->sch.rank; k++) {
            double ab = (double)lq_f16_f32(q->lr.a[r * q->sch.rank + k]) * (double)lq_f16_f32(q->lr.b[(size_t)k * q->cols + c]);
            v += ab;
            m += fabs(ab);
        }
        for (uint32_t i = o->n ? o->row[r] : 0; o->n && i < o->row[r + 1]; i++)
            if (o->col[i] == c) v += (double)lq_f16_f32(o->v[i]), m += fabs((double)lq_f16_f32(o->v[i]));
        if (at < kept->n && kept->idx[at] == c) v = (double)lq_f16_f32(kept->v[r * kept->n + at++]), m += fabs(v);
        sum += v * (double)x[c];
        mass += m * fabs((double)x[c]);
    }
    ck_near_exact(p, got, sum, mass, factor(p, q->cols) + (q->sch.extra & LQ_X_ADDED ? 4 : 0), q->cols);
}

static void gemv_is_within_its_bound(void **state) {
    const ck_probe *p = *state;
    lq_rng rng = ck_start(p->name);
    ck_worst = 0;
    for (int round = 0; round < 4; round++)
        for (size_t i = 0; i < WIDTHS; i++) {
            uint32_t cols = ck_widths[i], rows = 5;
            lq_scheme s = p->scheme->s;
            lq_qtensor q;
            if (!ck_fits_cols(&s, cols)) continue;
            if (round & 1) s.extra |= LQ_X_PERM;
            ck_fill(&q, &s, rows, cols, &rng, round > 1);
            float *x = ck_exact(4 * (size_t)cols), *w = ck_exact(4 * (size_t)cols), *y = ck_guarded(4 * 4);
            ck_floats(x, cols, &rng, round > 1);
            p->v->k.gemv(&q, 1, 4, x, y);
            for (uint32_t r = 0; r < 4; r++) near_parts(p, y[r], &q, 1 + r, w, x);
            ck_release(y, 4 * 4);
            free(x);
            free(w);
            lq_qtensor_free(&q);
        }
    print_message("    %s: worst error %.2f eps sum|wx|, k at cols 4352: %.0f\n", p->name, ck_worst, factor(p, 4352));
}

static void stored_weights(lq_dtype t, uint8_t *p, size_t bytes, lq_rng *rng) {
    for (size_t i = 0; i < bytes; i++) p[i] = (uint8_t)lq_rng_u32(rng);
    if (t == LQ_F32 || t == LQ_F16 || t == LQ_BF16) {
        float v[64];
        for (size_t i = 0, n; i < bytes / lq_dtypes[t].bytes; i += n) {
            n = bytes / lq_dtypes[t].bytes - i < 64 ? bytes / lq_dtypes[t].bytes - i : 64;
            ck_floats(v, n, rng, false);
            lq_dtype_encode(t, v, p + i * lq_dtypes[t].bytes, n);
        }
    }
    if (t == LQ_F64)
        for (size_t i = 0; i < bytes / 8; i++) memcpy(p + 8 * i, &(double){lq_rng_normal(rng)}, 8);
}

static void decode_is_the_definition(void **state) {
    const ck_probe *p = *state;
    lq_rng rng = ck_start(p->name);
    for (size_t i = 0; i < WIDTHS; i++) {
        size_t n = ck_widths[i] * (lq_dtypes[p->dtype].block > 1 ? 256u : 1), bytes = lq_dtype_row_bytes(p->dtype, n);
        uint8_t *src = ck_exact(bytes);
        float *want = ck_exact(4 * n), *got = ck_guarded(4 * n);
        for (size_t b = 0; b < bytes; b++) src[b] = (uint8_t)lq_rng_u32(&rng);
        lq_dtype_decode(p->dtype, src, want, n);
        p->v->k.decode(p->dtype, src, got, n);
        ck_same_bits(got, want, n, p->name, (uint32_t)n);
        ck_release(got, 4 * n);
        free(want);
        free(src);
    }
}

static void gemv_fp_is_within_its_bound(void **state) {
    const ck_probe *p = *state;
    lq_rng rng = ck_start(p->name);
    ck_worst = 0;
    for (size_t i = 0; i < WIDTHS; i++) {
        uint32_t cols = lq_dtypes[p->dtype].block > 1 ? (ck_widths[i] % 7 + 1) * 256 : ck_widths[i];
        size_t bytes = lq_dtype_row_bytes(p->dtype, cols), stride = bytes + 8;
        uint8_t *w = ck_exact(3 * stride);
        float *x = ck_exact(4 * (size_t)cols), *y = ck_guarded(4 * 3), *row = ck_exact(4 * (size_t)cols);
        for (int r = 0; r < 3; r++) stored_weights(p->dtype, w + r * stride, bytes, &rng);
        ck_floats(x, cols, &rng, false);
        p->v->k.gemv_fp(p->dtype, w, stride, 3, cols, x, y);
        for (int r = 0; r < 3; r++) {
            lq_dtype_decode(p->dtype, w + r * stride, row, cols);
            bool finite = true;
            for (uint32_t c = 0; c < cols; c++) finite = finite && isfinite(row[c]);
            if (finite) near_sum(p, y[r], row, x, cols);
        }
        ck_release(y, 4 * 3);
        free(row);
        free(x);
        free(w);
    }
    print_message("    %s: worst error %.2f eps sum|wx|\n", p->name, ck_worst);
}

static void norms_and_sums_have_the_bits_of_c(void **state) {
    const ck_probe *p = *state;
    lq_rng rng = ck_start(p->name);
    for (int round = 0; round < 2; round++)
        for (size_t i = 0; i < WIDTHS; i++) {
            uint32_t n = ck_widths[i];
            float *x = ck_exact(4 * (size_t)n), *g = ck_exact(4 * (size_t)n), *want = ck_exact(4 * (size_t)n), *got = ck_guarded(4 * (size_t)n);
            ck_floats(x, n, &rng, round);
            ck_floats(g, n, &rng, round);
            double d = p->v->k.dot(x, g, n), c = lq_dot_c(x, g, n), sum = 0, mass = 0;
            for (uint32_t j = 0; j < n; j++) {
                sum += (double)x[j] * (double)g[j];
                mass += fabs((double)x[j] * (double)g[j]);
            }
            assert_memory_equal(&d, &c, sizeof d);
            ck_note(&d, sizeof d);
            assert_true(fabs(d - sum) <= n * DBL_EPSILON * mass);
            lq_rmsnorm_c(x, g, 1e-5f, n, want);
            p->v->k.rmsnorm(x, g, 1e-5f, n, got);
            ck_same_bits(got, want, n, "rmsnorm", n);
            double scale = 1 / sqrt(lq_dot_c(x, x, n) / n + (double)1e-5f);
            for (uint32_t j = 0; j < n; j++) {
                double y = (double)x[j] * scale * (double)g[j];
                if (fabs(y) < FLT_MAX && fabs((double)x[j] * scale) > 1e-30) assert_true(fabs((double)got[j] - y) <= 2 * FLT_EPSILON * fabs(y) + 1e-40);
            }
            memcpy(got, x, 4 * (size_t)n);
            p->v->k.rmsnorm(got, g, 1e-5f, n, got);
            ck_same_bits(got, want, n, "rmsnorm in place", n);
            memcpy(got, x, 4 * (size_t)n);
            p->v->k.add(got, g, n);
            for (uint32_t j = 0; j < n; j++) want[j] = x[j] + g[j];
            ck_same_bits(got, want, n, "add", n);
            for (int parts = 0; parts < 4; parts++) {
                lq_layernorm_c(x, parts & 1 ? g : NULL, parts & 2 ? g : NULL, 1e-5f, n, want);
                p->v->k.layernorm(x, parts & 1 ? g : NULL, parts & 2 ? g : NULL, 1e-5f, n, got);
                ck_same_bits(got, want, n, "layernorm", n);
            }
            ck_release(got, 4 * (size_t)n);
            free(want);
            free(g);
            free(x);
        }
}

static void kv_values_have_the_bits_of_c(void **state) {
    const ck_probe *p = *state;
    lq_rng rng = ck_start(p->name);
    for (size_t i = 0; i < WIDTHS; i++) {
        uint32_t n = ck_widths[i];
        uint8_t *src = ck_exact(n);
        float *want = ck_exact(4 * (size_t)n), *got = ck_guarded(4 * (size_t)n), step = lq_rng_normal(&rng), low = lq_rng_normal(&rng);
        for (uint32_t j = 0; j < n; j++) src[j] = (uint8_t)lq_rng_u32(&rng);
        for (int t = 0; t < 2; t++) {
            lq_kv8_c(t ? LQ_E4M3 : LQ_I8, src, step, want, n);
            p->v->k.kv8(t ? LQ_E4M3 : LQ_I8, src, step, got, n);
            ck_same_bits(got, want, n, t ? "kv E4M3" : "kv I8", n);
        }
        uint8_t *half = ck_exact((n + 1) / 2);
        memcpy(half, src, (n + 1) / 2);
        lq_kv4_c(half, low, step, want, n);
        p->v->k.kv4(half, low, step, got, n);
        ck_same_bits(got, want, n, "kv nibbles", n);
        ck_release(got, 4 * (size_t)n);
        free(half);
        free(want);
        free(src);
    }
}

static void activations_are_rounded_as_c(void **state) {
    const ck_probe *p = *state;
    lq_rng rng = ck_start(p->name);
    for (size_t i = 0; i < 2 * WIDTHS; i++) {
        size_t n = ck_widths[i / 2];
        float *x = ck_exact(4 * n), *narrow = ck_guarded(4 * n), inv = i % 2 ? 1e30f : 3.5f;
        int8_t *want = ck_exact(n), *got = ck_guarded(n);
        double *wide = ck_exact(8 * n);
        ck_floats(x, n, &rng, i % 2);
        x[n / 2] = 2.5f / 3.5f, x[0] = -(float)n; /* a tie */
        assert_int_equal(p->v->k.absmax(x, n), lq_absmax_c(x, n));
        assert_int_equal(p->v->k.round8(x, inv, n, got), lq_round8_c(x, inv, n, want));
        assert_memory_equal(got, want, n);
        ck_note(got, n);
        for (size_t j = 0; j < n; j++) wide[j] = (double)x[j] * 1.0000001;
        p->v->k.narrow(wide, narrow, n);
        for (size_t j = 0; j < n; j++) assert_true(lq_f32_bits(narrow[j]) == lq_f32_bits((float)wide[j]));
        x[n - 1] = i % 2 ? -INFINITY : NAN;
        assert_true(p->v->k.absmax(x, n) >= 0x7f800000u);
        ck_release(got, n);
        ck_release(narrow, 4 * n);
        free(wide);
        free(want);
        free(x);
    }
}

static void same_turn(const ck_probe *p, const float *x, uint32_t heads, uint32_t dim, uint32_t rot, const float *c, const float *s) {
    size_t n = (size_t)heads * dim;
    float *want = ck_exact(4 * n), *got = ck_guarded(4 * n);
    for (int pairs = 0; pairs < 2; pairs++) {
        memcpy(want, x, 4 * n);
        memcpy(got, x, 4 * n);
        (pairs ? lq_rope_pairs_c : lq_rope_c)(want, heads, dim, rot, c, s);
        (pairs ? p->v->k.rope_pairs : p->v->k.rope)(got, heads, dim, rot, c, s);
        ck_same_bits(got, want, n, pairs ? "rope of pairs" : "rope", dim);
    }
    ck_release(got, 4 * n);
    free(want);
}

static void rope_turns_pairs(void **state) {
    const ck_probe *p = *state;
    lq_rng rng = ck_start(p->name);
    static const uint32_t dims[][2] = {{2, 2}, {64, 64}, {64, 32}, {7, 6}, {128, 128}, {96, 80}, {30, 26}};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
        uint32_t heads = 3, dim = dims[i][0], rot = dims[i][1], half = rot / 2;
        float *x = ck_exact(4 * (size_t)heads * dim), *y = ck_guarded(4 * (size_t)heads * dim), *c = ck_exact(4 * (size_t)half), *s = ck_exact(4 * (size_t)half);
        ck_floats(x, heads * dim, &rng, false);
        for (uint32_t j = 0; j < half; j++) {
            c[j] = cosf((float)j);
            s[j] = sinf((float)j);
        }
        memcpy(y, x, 4 * (size_t)heads * dim);
        p->v->k.rope(y, heads, dim, rot, c, s);
        for (uint32_t h = 0; h < heads; h++)
            for (uint32_t j = 0; j < dim; j++) {
                const float *a = x + h * dim;
                uint32_t t = j % (half ? half : 1);
                double want = j < half ? (double)a[j] * c[t] - (double)a[j + half] * s[t] : (double)a[j] * c[t] + (double)a[j - half] * s[t];
                if (j >= rot) assert_true(y[h * dim + j] == a[j]);
                else assert_true(fabs((double)y[h * dim + j] - want) <= 2 * FLT_EPSILON * 8);
            }
        ck_release(y, 4 * (size_t)heads * dim);
        same_turn(p, x, heads, dim, rot, c, s);
        free(x);
        free(c);
        free(s);
    }
}

static double act(lq_actfn f, double x) {
    switch (f) {
    case LQ_ACTFN_SILU: return x / (1 + exp(-x));
    case LQ_ACTFN_GELU_TANH: return x / (1 + exp(-2 * sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x))); /* the tanh form cancels */
    case LQ_ACTFN_GELU: return 0.5 * x * erfc(-x / sqrt(2));
    case LQ_ACTFN_RELU2: return x > 0 ? x * x : 0;
    default: return x > 0 ? x : 0;
    }
}

static void glu_has_the_bits_of_c_and_is_accurate(void **state) {
    const ck_probe *p = *state;
    lq_rng rng = ck_start(p->name);
    enum { N = 20011 };
    float *g = ck_exact(4 * N), *u = ck_exact(4 * N), *want = ck_exact(4 * N);
    for (int i = 0; i < N; i++) {
        g[i] = (float)(i - N / 2) * (i % 3 ? 1e-3f : 2e-2f);
        u[i] = lq_rng_normal(&rng);
    }
    g[0] = NAN;
    g[1] = INFINITY;
    g[2] = 1e-40f;
    for (int f = 0; f < LQ_ACTFN_N; f++) {
        double worst = 0;
        for (size_t i = 0; i < WIDTHS + 1; i++) {
            size_t n = i < WIDTHS ? ck_widths[i] : N;
            float *got = ck_guarded(4 * n);
            p->v->k.glu((lq_actfn)f, g, u, got, n);
            lq_glu_c((lq_actfn)f, g, u, want, n);
            ck_same_bits(got, want, n, lq_actfn_names[f], (uint32_t)n);
            for (size_t j = 3; j < n; j++) {
                double y = act((lq_actfn)f, (double)g[j]), err = fabs((double)got[j] - y * (double)u[j]);
                /* relative to the result; near the lower end of gelu to a small part of x, as in every fp32 code */
                worst = fmax(worst, err / ((fabs(y) + (f == LQ_ACTFN_GELU ? fabs((double)g[j]) : 0) + 1e-30) * fabs((double)u[j]) + 1e-36));
            }
            ck_release(got, 4 * n);
        }
        print_message("    glu %s: worst relative error %.2f eps\n", lq_actfn_names[f], worst / (FLT_EPSILON / 2));
        assert_true(worst < (f == LQ_ACTFN_GELU_TANH ? 400 : 8) * (FLT_EPSILON / 2)); /* gelu_tanh: the rounding of u times |2u| */
    }
    free(g);
    free(u);
    free(want);
}

static void exponential_is_within_its_bound(void **state) {
    (void)state;
    double worst = 0, subnormal = 0;
    for (uint32_t b = 0; b < 0x42d10000u; b += 641) /* 0 .. 104.5, both signs */
        for (int sign = 0; sign < 2; sign++) {
            float x = lq_bits_f32(b | (uint32_t)sign << 31), y = lq_exp_c(x);
            double e = exp((double)x);
            if (e > FLT_MAX) assert_true(isinf(y) || x < 88.73f);
            else if (e < FLT_MIN) subnormal = fmax(subnormal, fabs((double)y - e) / 0x1p-149);
            else worst = fmax(worst, fabs((double)y - e) / (e * FLT_EPSILON)); /* at most one unit in the last place per unit here */
        }
    print_message("    exp: worst error %.3f eps (= at most twice that in units of the last place), %.3f of the smallest number below 2^-126\n", worst, subnormal);
    assert_true(worst < 0.75 && subnormal <= 1);
    assert_true(isnan(lq_exp_c(NAN)) && isinf(lq_exp_c(INFINITY)) && lq_exp_c(-INFINITY) == 0 && lq_exp_c(0) == 1);
}

static void softmax_and_logsumexp_have_the_bits_of_c(void **state) {
    const ck_probe *p = *state;
    lq_rng rng = ck_start(p->name);
    for (size_t i = 0; i < 2 * WIDTHS; i++) {
        size_t n = ck_widths[i / 2];
        float *x = ck_exact(4 * n), *want = ck_exact(4 * n), *got = ck_guarded(4 * n);
        for (size_t j = 0; j < n; j++) x[j] = lq_rng_normal(&rng) * (i % 2 ? 40.0f : 3.0f) + (i % 2 ? 1e4f : 0.0f);
        memcpy(want, x, 4 * n);
        memcpy(got, x, 4 * n);
        lq_softmax_c(want, n, 0.125f);
        p->v->k.softmax(got, n, 0.125f);
        ck_same_bits(got, want, n, "softmax", (uint32_t)n);
        double a = lq_logsumexp_c(x, n), b = p->v->k.logsumexp(x, n), max = -INFINITY, sum = 0, all = 0;
        assert_memory_equal(&a, &b, sizeof a);
        ck_note(&b, sizeof b);
        for (size_t j = 0; j < n; j++) max = fmax(max, (double)x[j]);
        for (size_t j = 0; j < n; j++) sum += exp((double)x[j] - max);
        assert_true(fabs(b - (max + log(sum))) < 3e-7);
        for (size_t j = 0; j < n; j++) all += (double)got[j];
        assert_true(fabs(all - 1) < 1e-6);
        x[n / 2] = NAN;
        assert_true(isnan(p->v->k.logsumexp(x, n)));
        ck_release(got, 4 * n);
        free(want);
        free(x);
    }
}

static void attention_of_one_query_has_the_bits_of_c(void **state) {
    const ck_probe *p = *state;
    lq_rng rng = ck_start(p->name);
    static const uint32_t dims[] = {1, 3, 16, 17, 64, 72, 80, 128, 256}, counts[] = {1, 2, 3, 4, 5, 31, 130};
    enum { COUNTS = sizeof counts / sizeof *counts, CASES = COUNTS * sizeof dims / sizeof *dims };
    for (uint32_t i = 0; i < CASES; i++) {
        uint32_t d = dims[i / COUNTS], n = counts[i % COUNTS], heads = 1 + i % 9, ld = d + i % 3;
        size_t rows = (size_t)(n - 1) * ld + d, lds = n + i % 2;
        float *q = ck_exact(4 * (size_t)heads * d), *keys = ck_exact(4 * rows), *want = ck_exact(4 * heads * lds), *got = ck_guarded(4 * heads * lds);
        float *out = ck_exact(4 * (size_t)heads * d), *mixed = ck_guarded(4 * (size_t)heads * d);
        for (size_t j = 0; j < (size_t)heads * d; j++) q[j] = lq_rng_normal(&rng);
        for (size_t j = 0; j < rows; j++) keys[j] = lq_rng_normal(&rng) * (j % 50 ? 1.0f : 100.0f);
        for (size_t j = 0; j < heads * lds; j++) want[j] = got[j] = 7;
        lq_attn_scores_c(q, heads, d, keys, ld, n, want, lds);
        p->v->k.attn_scores(q, heads, d, keys, ld, n, got, lds);
        ck_same_bits(got, want, heads * lds, "attn_scores", d);
        for (size_t h = 0; h < heads; h++)
            for (size_t j = 0; j < n; j++) {
                double sum = 0, size = 0;
                for (size_t c = 0; c < d; c++) sum += (double)q[h * d + c] * (double)keys[j * ld + c], size += fabs((double)q[h * d + c] * (double)keys[j * ld + c]);
                assert_true(fabs((double)want[h * lds + j] - sum) <= (d / 16 + 5) * (double)FLT_EPSILON * size);
            }
        memcpy(out, q, 4 * (size_t)heads * d);
        memcpy(mixed, q, 4 * (size_t)heads * d);
        lq_attn_mix_c(want, lds, heads, n, keys, ld, d, out);
        p->v->k.attn_mix(want, lds, heads, n, keys, ld, d, mixed);
        ck_same_bits(mixed, out, (size_t)heads * d, "attn_mix", d);
        for (size_t h = 0; h < heads; h++)
            for (size_t c = 0; c < d; c++) {
                double sum = (double)q[h * d + c], size = fabs(sum);
                for (size_t j = 0; j < n; j++) sum += (double)want[h * lds + j] * (double)keys[j * ld + c], size += fabs((double)want[h * lds + j] * (double)keys[j * ld + c]);
                assert_true(fabs((double)out[h * d + c] - sum) <= n * (double)FLT_EPSILON * size);
            }
        ck_release(got, 4 * heads * lds);
        ck_release(mixed, 4 * (size_t)heads * d);
        free(want);
        free(out);
        free(keys);
        free(q);
    }
}

static void sums_of_panels_have_the_bits_of_c(void **state) {
    const ck_probe *p = *state;
    lq_rng rng = ck_start(p->name);
    static const uint32_t counts[] = {0, 1, 2, 7, 64, 1021};
    enum { CASES = 2 * sizeof counts / sizeof *counts };
    for (uint32_t i = 0; i < CASES; i++) {
        uint32_t n = counts[i / 2], ld = LQ_PANEL + i % 2 * 5;
        size_t size = (size_t)(LQ_PANEL - 1) * ld + LQ_PANEL, values = (size_t)n * LQ_PANEL;
        float *a = ck_exact(4 * values), *b = ck_exact(4 * values);
        double *want = ck_exact(8 * size), *got = ck_guarded(8 * size), *exact = ck_exact(8 * size), *bound = ck_exact(8 * size);
        ck_floats(a, values, &rng, true);
        ck_floats(b, values, &rng, false);
        for (size_t j = 0; j < size; j++) want[j] = got[j] = exact[j] = (double)lq_rng_normal(&rng), bound[j] = 0;
        for (uint32_t t = 0; t < n; t++)
            for (uint32_t r = 0; r < LQ_PANEL; r++)
                for (uint32_t c = 0; c < LQ_PANEL; c++) {
                    double product = (double)a[t * LQ_PANEL + r] * (double)b[t * LQ_PANEL + c];
                    exact[r * ld + c] += product;
                    bound[r * ld + c] += (n + 1) * (double)FLT_EPSILON / 2 * fabs(product) + (double)FLT_TRUE_MIN;
                }
        lq_panel_sums_c(a, b, n, want, ld);
        p->v->k.panel_sums(a, b, n, got, ld);
        assert_memory_equal(got, want, 8 * size);
        for (size_t j = 0; j < size; j++) assert_true(fabs(want[j] - exact[j]) <= bound[j] + 1e-14 * fabs(exact[j]));
        ck_release(got, 8 * size);
        free(a), free(b), free(want), free(exact), free(bound);
    }
}

enum { MOST = 4096 };
static struct CMUnitTest tests[MOST];
static ck_probe probes[MOST];
static size_t n_tests;
static const char *only = "";
const char *ck_only(void) { return only; }
static bool ahead;
bool ck_ahead(void) { return ahead; }

void ck_add(ck_check fn, const char *op, const ck_variant *v, const ck_scheme *s, lq_dtype t) {
    ck_probe *p = &probes[n_tests];
    if (n_tests == MOST - 1) abort();
    *p = (ck_probe){.v = v, .scheme = s, .dtype = t};
    snprintf(p->name, sizeof p->name, "%s%s%s_%s", op, s || t ? "_" : "", s ? s->name : t ? lq_dtypes[t].name : "", v->name);
    if (strstr(p->name, only)) tests[n_tests++] = (struct CMUnitTest){p->name, fn, NULL, NULL, p};
}

static void add_variant(const ck_variant *v) {
    const lq_kernels *k = &v->k, *b = &v->below; /* an entry the variant did not override is checked already */
    for (const ck_scheme *s = ck_all_schemes(); s->name; s++) {
        if (k->dequant != b->dequant) ck_add(dequant_is_the_definition, "dequant", v, s, LQ_NONE);
        if (k->gemv != b->gemv) ck_add(gemv_is_within_its_bound, "gemv", v, s, LQ_NONE);
    }
    for (int t = 1; t < LQ_DTYPE_N; t++) {
        if (!lq_dtype_is_weight((lq_dtype)t)) continue;
        if (k->decode != b->decode) ck_add(decode_is_the_definition, "decode", v, NULL, (lq_dtype)t);
        if (k->gemv_fp != b->gemv_fp) ck_add(gemv_fp_is_within_its_bound, "gemv_fp", v, NULL, (lq_dtype)t);
    }
    ck_packed_add(v);
    if (k->dot != b->dot || k->rmsnorm != b->rmsnorm || k->add != b->add || k->layernorm != b->layernorm) ck_add(norms_and_sums_have_the_bits_of_c, "norm", v, NULL, LQ_NONE);
    if (k->kv8 != b->kv8 || k->kv4 != b->kv4) ck_add(kv_values_have_the_bits_of_c, "kv", v, NULL, LQ_NONE);
    if (k->absmax != b->absmax || k->round8 != b->round8 || k->narrow != b->narrow) ck_add(activations_are_rounded_as_c, "acts", v, NULL, LQ_NONE);
    if (k->rope != b->rope || k->rope_pairs != b->rope_pairs) ck_add(rope_turns_pairs, "rope", v, NULL, LQ_NONE);
    if (k->glu != b->glu) ck_add(glu_has_the_bits_of_c_and_is_accurate, "glu", v, NULL, LQ_NONE);
    if (k->attn_scores != b->attn_scores || k->attn_mix != b->attn_mix) ck_add(attention_of_one_query_has_the_bits_of_c, "attn", v, NULL, LQ_NONE);
    if (k->panel_sums != b->panel_sums) ck_add(sums_of_panels_have_the_bits_of_c, "panel_sums", v, NULL, LQ_NONE);
    if (k->softmax != b->softmax || k->logsumexp != b->logsumexp) ck_add(softmax_and_logsumexp_have_the_bits_of_c, "softmax", v, NULL, LQ_NONE);
}

int main(int argc, char **argv) {
    static ck_variant variants[CK_VARIANTS];
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--bench-threads")) {
            ck_thread_bench();
            return 0;
        }
        if (!strcmp(argv[i], "--bench-device")) return ck_device_bench(i + 1 < argc ? argv[i + 1] : "cuda");
        if (!strcmp(argv[i], "--bench-packed")) {
            ck_packed_bench(i + 1 < argc ? argv[i + 1] : NULL);
            return 0;
        }
        if (!strcmp(argv[i], "--bench")) {
            ck_bench();
            return 0;
        }
        if (!strcmp(argv[i], "--seed") && i + 1 < argc) seed = strtoull(argv[++i], NULL, 0);
        if (!strcmp(argv[i], "--ahead")) ahead = true;
        if (!strcmp(argv[i], "--only") && i + 1 < argc) only = argv[++i];
    }
    size_t n = ck_variants(variants);
    ck_add(exponential_is_within_its_bound, "exp", &variants[0], NULL, LQ_NONE);
    for (size_t i = 0; i < n; i++) add_variant(&variants[i]);
    ck_device_add(&variants[0]);
    printf("seed %llu, cpu mask %u\n", (unsigned long long)seed, lq_cpu_mask());
    int failed = _cmocka_run_group_tests("checkkern", tests, n_tests, NULL, NULL);
    printf("digest %016llx\n", (unsigned long long)digest);
    return failed;
}
