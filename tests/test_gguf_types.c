/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* ggml's block types as schemes: bytes to codes and back, what they decode to. The list of types is walked. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/num.h"
#include "core/pack.h"
#include "formats/gguf_blocks.h"
#include "formats/qcodec.h"
#include "quant/grid.h"

#include <stdio.h>
#include <string.h>

enum { ROWS = 5, COLS = 512 };

static const lq_slot nowhere = {0};

static const struct named { lq_dtype type; lq_scheme scheme; } types[] = {
#define X(name, what, ...) {LQ_##name, {__VA_ARGS__}},
    LQ_BLOCK_LIST(X)
#undef X
};
enum { TYPES = sizeof types / sizeof *types };

static uint16_t finite_half(lq_rng *rng) {
    uint16_t h = (uint16_t)lq_rng_u32(rng);
    return (h & 0x7c00) == 0x7c00 ? h ^ 0x4000 : h;
}

/* Random bytes that are a row of blocks: halves finite, TQ1_0's bytes those of whole digits, scales that are numbers. */
static void random_blocks(lq_dtype t, size_t blocks, uint8_t *out, lq_rng *rng) {
    static const struct { lq_dtype type; int at[2]; } halves[] = {
        {LQ_Q1_0, {0, -1}}, {LQ_Q2_0, {0, -1}}, {LQ_Q4_0, {0, -1}}, {LQ_Q4_1, {0, 2}}, {LQ_Q5_0, {0, -1}}, {LQ_Q5_1, {0, 2}}, {LQ_Q8_0, {0, -1}},
        {LQ_Q2_K, {80, 82}}, {LQ_Q3_K, {108, -1}}, {LQ_Q4_K, {0, 2}}, {LQ_Q5_K, {0, 2}}, {LQ_Q6_K, {208, -1}}, {LQ_IQ4_NL, {0, -1}},
        {LQ_IQ4_XS, {0, -1}}, {LQ_TQ1_0, {52, -1}}, {LQ_TQ2_0, {64, -1}}, {LQ_NONE, {-1, -1}}};
    uint32_t size = lq_dtypes[t].bytes;
    for (size_t k = 0; k < blocks; k++, out += size) {
        for (uint32_t i = 0; i < size; i++) out[i] = (uint8_t)lq_rng_u32(rng);
        for (int h = 0; halves[h].type != LQ_NONE; h++)
            for (int i = 0; i < 2 && halves[h].type == t; i++) {
                uint16_t v = finite_half(rng);
                if (halves[h].at[i] >= 0) memcpy(out + halves[h].at[i], &v, 2);
            }
        for (int i = 0; i < 52 && t == LQ_TQ1_0; i++) {
            uint32_t digits = lq_rng_below(rng, i < 48 ? 243 : 81) * (i < 48 ? 1 : 3);
            out[i] = (uint8_t)((digits * 256 + 242) / 243);
        }
        for (int i = 0; i < 4 && t == LQ_NVFP4; i++) out[i] = (uint8_t)lq_rng_below(rng, 0x7f);
        if (t == LQ_MXFP4) out[0] = (uint8_t)lq_rng_below(rng, 255);
    }
}

static void unpack(lq_dtype t, const lq_scheme *s, const uint8_t *bytes, lq_qtensor *q) {
    assert_int_equal(lq_qtensor_init(NULL, q, s, nowhere, ROWS, COLS), LQ_OK);
    if (t == LQ_NVFP4) *(float *)q->scale.parent = 1;
    for (uint32_t r = 0; r < ROWS; r++) assert_int_equal(lq_gguf_unpack_row(NULL, t, bytes + r * lq_dtype_row_bytes(t, COLS), q, r), LQ_OK);
}

static void blocks_become_codes_and_the_same_blocks_again(void **state) {
    (void)state;
    lq_rng rng;
    lq_rng_seed(&rng, 1, 0);
    for (int k = 0; k < TYPES; k++) {
        lq_dtype t = types[k].type;
        size_t row = lq_dtype_row_bytes(t, COLS);
        uint8_t in[ROWS * COLS * 2], out[COLS * 2];
        lq_qtensor q;
        random_blocks(t, ROWS * row / lq_dtypes[t].bytes, in, &rng);
        unpack(t, &types[k].scheme, in, &q);
        assert_int_equal(lq_scheme_check(NULL, &q.sch, ROWS, COLS), LQ_OK);
        assert_int_equal(lq_qtensor_check(NULL, &q, LQ_ERR_FORMAT), LQ_OK);
        for (uint32_t r = 0; r < ROWS; r++) {
            assert_int_equal(lq_gguf_pack_row(NULL, t, &q, r, out), LQ_OK);
            for (size_t i = 0; i < row; i++)
                if (out[i] != in[r * row + i]) fail_msg("%s: byte %zu of row %u is %u, was %u", lq_dtypes[t].name, i, r, out[i], in[r * row + i]);
        }
        lq_qtensor_free(&q);
    }
}

static void codes_mean_what_the_blocks_decode_to(void **state) {
    (void)state;
    lq_rng rng;
    lq_rng_seed(&rng, 2, 0);
    for (int k = 0; k < TYPES; k++) {
        lq_dtype t = types[k].type;
        size_t row = lq_dtype_row_bytes(t, COLS);
        uint8_t in[ROWS * COLS * 2];
        float want[COLS], got[COLS];
        lq_qtensor q;
        random_blocks(t, ROWS * row / lq_dtypes[t].bytes, in, &rng);
        unpack(t, &types[k].scheme, in, &q);
        for (uint32_t r = 0; r < ROWS; r++) {
            lq_dtype_decode(t, in + r * row, want, COLS);
            lq_qtensor_decode_row(&q, r, got);
            for (uint32_t c = 0; c < COLS; c++)
                if (want[c] != got[c]) fail_msg("%s (%u, %u): %.9g, the blocks say %.9g", lq_dtypes[t].name, r, c, (double)got[c], (double)want[c]);
        }
        lq_qtensor_free(&q);
    }
}

static void random_plane(const lq_plane_desc *d, lq_plane *p, size_t n, lq_rng *rng) {
    for (size_t i = 0; i < n; i++) {
        int half = d->dtype == LQ_I8 ? 1 << (d->sig - 1) : 0;
        if (d->dtype == LQ_F16) ((uint16_t *)p->v)[i] = finite_half(rng);
        else if (d->dtype == LQ_E8M0 || d->dtype == LQ_E4M3) ((uint8_t *)p->v)[i] = (uint8_t)lq_rng_below(rng, d->dtype == LQ_E8M0 ? 255 : 127);
        else ((uint8_t *)p->v)[i] = (uint8_t)((int)lq_rng_below(rng, 1u << d->sig) - half);
        if (d->parent == LQ_F16 && i % d->span == 0) ((uint16_t *)p->parent)[i / d->span] = finite_half(rng);
    }
    if (d->parent == LQ_F32) *(float *)p->parent = 1;
}

static void every_code_and_scale_survives_its_blocks(void **state) {
    (void)state;
    lq_rng rng;
    lq_rng_seed(&rng, 3, 0);
    for (int k = 0; k < TYPES; k++) {
        lq_dtype t = types[k].type;
        const lq_scheme *s = &types[k].scheme;
        size_t row = lq_dtype_row_bytes(t, COLS);
        uint8_t bytes[ROWS * COLS * 2];
        lq_qtensor a, b;
        assert_int_equal(lq_qtensor_init(NULL, &a, s, nowhere, ROWS, COLS), LQ_OK);
        random_plane(&s->scale, &a.scale, lq_plane_count(&s->scale, ROWS, COLS), &rng);
        random_plane(&s->zero, &a.zero, lq_plane_count(&s->zero, ROWS, COLS), &rng);
        for (size_t i = 0; i < a.row_bytes * ROWS; i++) a.codes[i] = (uint8_t)lq_rng_u32(&rng);
        if (t == LQ_TQ1_0)
            for (size_t i = 0; i < a.row_bytes * ROWS; i++) a.codes[i] &= (uint8_t)~(a.codes[i] >> 1 & 0x55); /* no 3 */
        for (uint32_t r = 0; r < ROWS; r++) assert_int_equal(lq_gguf_pack_row(NULL, t, &a, r, bytes + r * row), LQ_OK);
        unpack(t, s, bytes, &b);
        if (!lq_qtensor_eq(&a, &b)) fail_msg("%s changes on its way through blocks", lq_dtypes[t].name);
        lq_qtensor_free(&a);
        lq_qtensor_free(&b);
    }
}

static void a_type_and_its_scheme_name_each_other(void **state) {
    (void)state;
    for (int k = 0; k < TYPES; k++) {
        lq_scheme s;
        assert_true(lq_gguf_scheme(types[k].type, &s));
        assert_int_equal(lq_gguf_block_type(&s), types[k].type); /* no two types have one scheme */
        assert_int_equal(lq_gguf_fit(&s, NULL), types[k].type);
    }
    lq_scheme g32 = lq_scheme_int(4, 32, true), asym = lq_scheme_int(4, 32, false), out;
    assert_int_equal(lq_gguf_block_type(&g32), LQ_NONE); /* its scales promise 8 bits */
    assert_int_equal(lq_gguf_fit(&g32, &out), LQ_Q4_0);
    assert_int_equal(out.scale.sig, 0);
    assert_int_equal(lq_gguf_fit(&asym, &out), LQ_NONE);
    assert_false(lq_gguf_scheme(LQ_F16, &out));
}

static void a_scale_that_is_no_number_is_refused_by_row_and_block(void **state) {
    (void)state;
    lq_rng rng;
    lq_rng_seed(&rng, 4, 0);
    for (int k = 0; k < TYPES; k++) {
        lq_dtype t = types[k].type;
        uint8_t in[ROWS * COLS * 2];
        bool seen = false;
        lq_qtensor q;
        random_blocks(t, COLS / lq_dtypes[t].block, in, &rng);
        assert_int_equal(lq_qtensor_init(NULL, &q, &types[k].scheme, nowhere, ROWS, COLS), LQ_OK);
        for (uint32_t at = lq_dtypes[t].bytes; at < 2 * lq_dtypes[t].bytes; at++) { /* one byte of block 1 */
            lq_ctx ctx = {0};
            uint8_t old[2] = {in[at], in[at + 1]};
            if (t == LQ_MXFP4 || t == LQ_NVFP4) in[at] = 0xff;
            else in[at] = 0, in[at + 1] = 0x7c;
            lq_status st = lq_gguf_unpack_row(&ctx, t, in, &q, 3);
            if (st && (st != LQ_ERR_FORMAT || !strstr(ctx.msg, "row 3, block 1"))) fail_msg("%s: %s", lq_dtypes[t].name, ctx.msg);
            seen |= st != 0;
            memcpy(in + at, old, 2);
        }
        if (!seen) fail_msg("%s takes infinite scales", lq_dtypes[t].name);
        lq_qtensor_free(&q);
    }
}

/* ---- how well they are fitted ---- */

static double tile_error(const lq_scheme *s, const float *w, const float *h, uint32_t n, float scale, float zero) {
    lq_qtensor q = {.sch = *s, .rows = 1, .cols = 1};
    float lut[16] = {0};
    double sum = 0;
    if (s->grid.kind == LQ_GRID_LUT) lq_lut_fill(&s->grid, q.lut = lut);
    for (uint32_t i = 0; i < n; i++) {
        double best = HUGE_VAL;
        for (uint32_t code = 0; code < (s->grid.kind == LQ_GRID_INT && s->grid.bits == 2 && s->grid.bias ? 3 : 1u << s->grid.bits); code++)
            best = fmin(best, fabs((double)w[i] - ((double)scale * (double)lq_grid_value(&q, 0, code) - (double)zero)));
        sum += (double)h[i] * best * best;
    }
    return sum;
}

/* What no scale and minimum can be much better than: a fine sweep of real ones, tile by tile. */
static double least_error(const lq_scheme *s, const float *w, const float *h, uint32_t n) {
    float most = 0, low = 0, high = 0;
    double best = HUGE_VAL;
    int steps = s->grid.bits > 5 ? 150 : 60;
    for (uint32_t i = 0; i < n; i++) most = fmaxf(most, fabsf(w[i])), low = fminf(low, w[i]), high = fmaxf(high, w[i]);
    float top = s->zero_kind == LQ_ZERO_MIN ? (high - low) / (float)((1 << s->grid.bits) - 1) : most / lq_grid_top(s);
    for (int i = 0; i <= steps; i++) {
        float scale = top * (0.3f + 0.9f * (float)i / (float)steps);
        for (int k = 0; k <= (s->zero_kind == LQ_ZERO_MIN ? 40 : 0); k++) best = fmin(best, tile_error(s, w, h, n, scale, -low * (0.4f + 0.7f * (float)k / 40)));
        if (s->zero_kind == LQ_ZERO_NONE) best = fmin(best, tile_error(s, w, h, n, -scale, 0));
    }
    return best;
}

static double error_of(const lq_scheme *s, const float *w, const float *h, uint32_t cols, lq_fit how) {
    lq_qtensor q;
    float v[256];
    double sum = 0;
    assert_int_equal(lq_qtensor_init(NULL, &q, s, nowhere, 1, cols), LQ_OK);
    assert_int_equal(lq_grid_fit(NULL, &q, w, h, how), LQ_OK);
    lq_grid_round(&q, w);
    assert_int_equal(lq_qtensor_check(NULL, &q, LQ_ERR_QUALITY), LQ_OK);
    lq_qtensor_decode_row(&q, 0, v);
    for (uint32_t c = 0; c < cols; c++) sum += (double)h[c] * ((double)w[c] - (double)v[c]) * ((double)w[c] - (double)v[c]);
    lq_qtensor_free(&q);
    return sum;
}

static void a_block_is_fitted_nearly_as_well_as_its_tiles_could_be(void **state) {
    (void)state;
    enum { WIDTH = 256 };
    lq_rng rng;
    lq_rng_seed(&rng, 5, 0);
    for (int k = 0; k < TYPES; k++) {
        const lq_scheme *s = &types[k].scheme;
        if (s->grid.kind == LQ_GRID_E2M1 || s->grid.bits == 8) continue; /* scales of a few bits; too fine for a sweep */
        double fit = 0, plain = 0, least = 0;
        for (int round = 0; round < 4; round++) {
            float w[WIDTH], h[WIDTH];
            for (int c = 0; c < WIDTH; c++) {
                w[c] = lq_rng_normal(&rng) * (0.01f + 0.005f * (float)(c / 32));
                h[c] = round < 2 ? 1 : expf(lq_rng_normal(&rng));
            }
            double one = error_of(s, w, h, WIDTH, LQ_FIT_SEARCH_SIGNED), minmax = error_of(s, w, h, WIDTH, LQ_FIT_MINMAX);
            if (!(one <= minmax * (1 + 1e-6))) fail_msg("%s: %g by search, %g by min-max", lq_dtypes[types[k].type].name, one, minmax);
            fit += one;
            plain += minmax;
            for (uint32_t c = 0; c < WIDTH; c += s->scale.tile_c) least += least_error(s, w + c, h + c, s->scale.tile_c);
        }
        double slack = s->scale.sig == 4 || s->grid.bits == 6 ? 1.25 : s->scale.parent != LQ_NONE ? 1.12 : 1.06;
        if (!(fit <= slack * least)) fail_msg("%s: error %g, its tiles alone could have %g (min-max %g)", lq_dtypes[types[k].type].name, fit, least, plain);
    }
}

static void weights_on_the_grid_are_found_again(void **state) {
    (void)state;
    lq_rng rng;
    lq_rng_seed(&rng, 6, 0);
    for (int k = 0; k < TYPES; k++) {
        lq_dtype t = types[k].type;
        const lq_scheme *s = &types[k].scheme;
        if (t != LQ_Q4_0 && t != LQ_Q4_1 && t != LQ_Q5_0 && t != LQ_Q5_1 && t != LQ_Q8_0 && t != LQ_Q1_0 && t != LQ_TQ1_0 && t != LQ_TQ2_0 && t != LQ_Q2_0 && t != LQ_IQ4_NL) continue;
        float w[256], h[256];
        lq_qtensor q;
        assert_int_equal(lq_qtensor_init(NULL, &q, s, nowhere, 1, 256), LQ_OK);
        for (size_t i = 0; i < lq_plane_count(&s->scale, 1, 256); i++) {
            lq_plane_set(&s->scale, &q.scale, i, 0.01f + 0.01f * lq_rng_unit(&rng));
            if (s->zero_kind == LQ_ZERO_MIN) lq_plane_set(&s->zero, &q.zero, i, 0.1f * lq_rng_unit(&rng));
        }
        for (uint32_t c = 0; c < 256; c++) { /* the ends of the grid in every tile */
            uint32_t codes = t == LQ_TQ1_0 ? 3 : 1u << s->grid.bits, code = lq_rng_u32(&rng) % codes;
            lq_code_put(q.codes, s->grid.bits, c, c % 32 == 3 ? 0 : c % 32 == 9 ? codes - 1 : code);
        }
        lq_qtensor_decode_row(&q, 0, w);
        double all = 0;
        for (int c = 0; c < 256; c++) h[c] = 1, all += (double)w[c] * (double)w[c];
        double e = error_of(s, w, h, 256, LQ_FIT_SEARCH_SIGNED);
        if (!(e <= 1e-7 * all)) fail_msg("%s: error %g of weights that lie on a grid", lq_dtypes[t].name, e / all);
        lq_qtensor_free(&q);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_become_codes_and_the_same_blocks_again),
        cmocka_unit_test(codes_mean_what_the_blocks_decode_to),
        cmocka_unit_test(every_code_and_scale_survives_its_blocks),
        cmocka_unit_test(a_type_and_its_scheme_name_each_other),
        cmocka_unit_test(a_block_is_fitted_nearly_as_well_as_its_tiles_could_be),
        cmocka_unit_test(weights_on_the_grid_are_found_again),
        cmocka_unit_test(a_scale_that_is_no_number_is_refused_by_row_and_block),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
