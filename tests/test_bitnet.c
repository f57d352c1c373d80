/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* BitNet folders: written and read back, against files of transformers' own packer, masters repacked, damage refused. */
#define _GNU_SOURCE
#include "format_damage.h"

#include "quant/method.h"
#include "quant/nearest.h"
#include "quant/types.h"

static lq_scheme b158(void) {
    lq_want w;
    GOOD_ST(lq_type_parse(&ctx, "b1.58", &(lq_type_defaults){0}, &w));
    return w.scheme;
}

static void make(lq_qtensor *q, uint32_t rows, uint32_t cols, float inverse) {
    lq_scheme s = b158();
    lq_rng rng;
    lq_rng_seed(&rng, rows, cols);
    assert_int_equal(lq_qtensor_init(NULL, q, &s, (lq_slot){0, LQ_R_UP, -1}, rows, cols), LQ_OK);
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t c = 0; c < cols; c++) lq_code_put(q->codes + r * q->row_bytes, 2, c, lq_rng_below(&rng, 3));
    *(float *)q->scale.v = 1 / inverse;
}

static void every_shape_and_every_reciprocal_round_trips(void **state) {
    (void)state;
    static const uint32_t shapes[][2] = {{4, 1}, {4, 3}, {8, 64}, {60, 33}, {128, 128}};
    lq_rng rng;
    lq_qtensor q;
    lq_rng_seed(&rng, 1, 58);
    for (size_t i = 0; i < 5; i++) {
        make(&q, shapes[i][0], shapes[i][1], 3.3333f);
        round_trip("bitnet", &q, LQ_F32);
        lq_qtensor_free(&q);
    }
    make(&q, 4, 1, 1);
    for (int i = 0; i < 300; i++) {
        *(float *)q.scale.v = 1 / (1 + 200 * lq_rng_unit(&rng));
        round_trip("bitnet", &q, LQ_F32);
    }
    lq_qtensor_free(&q);
}

/* formats.md: rows [1 -1] [0 1] [-1 0] [1 1] are the bytes 86 98; a column -1 0 1 -1 0 1 -1 0 is 18 61. */
static void the_worked_examples_are_the_bytes(void **state) {
    (void)state;
    static const uint8_t t[4][2] = {{2, 0}, {1, 2}, {0, 1}, {2, 2}}, column[8] = {0, 1, 2, 0, 1, 2, 0, 1};
    for (int k = 0; k < 2; k++) {
        uint32_t rows = k ? 8 : 4, cols = k ? 1 : 2;
        lq_qtensor q;
        pieces p;
        make(&q, rows, cols, 4);
        for (uint32_t r = 0; r < rows; r++)
            for (uint32_t c = 0; c < cols; c++) lq_code_put(q.codes + r * q.row_bytes, 2, c, k ? column[r] : t[r][c]);
        GOOD_ST(put_one("bitnet", &q, LQ_F32));
        pieces_read(&p, dir);
        assert_memory_equal(piece_of(&p, ".weight")->data, k ? "\x18\x61" : "\x86\x98", 2);
        assert_true(*(const float *)(const void *)piece_of(&p, ".weight_scale")->data == 4);
        pieces_free(&p);
        lq_qtensor_free(&q);
    }
}

static void files_of_transformers_read_to_its_floats(void **state) {
    (void)state;
    golden_reads("bitnet/bitlinear");
    golden_reads("bitnet/autobitlinear");
}

static void files_of_transformers_are_written_again_byte_for_byte(void **state) {
    (void)state;
    golden_is_written_again("bitnet/bitlinear", "bitnet");
}

/* -- the method ------------------------------------------------------------------------------------------------------ */

static void quantized(const float *w, uint32_t rows, uint32_t cols, lq_qtensor *q) {
    lq_scheme s = b158();
    lq_outcome o;
    const lq_method *m = lq_method_by_name("ternary");
    lq_weights lin = {.name = "w", .w = w, .rows = rows, .cols = cols};
    char opts[256] = {0};
    lq_optset sets[] = {{m->opts, opts, NULL}, {0}};
    assert_true(m->opts_size <= sizeof opts);
    GOOD_ST(lq_opts_defaults(&ctx, sets));
    GOOD_ST(lq_opts_set(&ctx, sets, "force", NULL));
    m->refine(opts, &s);
    GOOD_ST(m->quantize(&ctx, opts, &lin, &s, NULL, q, &o));
}

/* The scale is the one transformers stores for a matrix of this mean, and so the matrix can be written. */
static void absmean_scales_are_reciprocals(void **state) {
    (void)state;
    lq_rng rng;
    lq_rng_seed(&rng, 5, 5);
    for (int round = 0; round < 100; round++) {
        float w[4 * 16];
        double sum = 0;
        lq_qtensor q;
        for (int i = 0; i < 64; i++) sum += fabs((double)(w[i] = 0.1f * lq_rng_normal(&rng)));
        quantized(w, 4, 16, &q);
        float inverse = 1 / (float)(sum / 64);
        assert_true(*(float *)q.scale.v == 1 / inverse);
        for (int i = 0; i < 64; i++) {
            float t = rintf(w[i] * inverse);
            int want = t > 1 ? 2 : t < -1 ? 0 : (int)t + 1;
            assert_int_equal(lq_code_get(q.codes + i / 16 * q.row_bytes, 2, i % 16), want);
        }
        GOOD_ST(put_one("bitnet", &q, LQ_F32));
        lq_qtensor_free(&q);
    }
}

/* A matrix that is s {-1, 0, 1} already: the same s but for the last bit of some, the same codes, nothing lost in BF16. */
static void ternary_matrices_are_repacked(void **state) {
    (void)state;
    int moved = 0;
    for (int i = 0; i < 128; i++) {
        float s = (float)(1 + i / 128.0) / 64, w[32];
        lq_qtensor q, back;
        for (int k = 0; k < 32; k++) w[k] = s * (float)(k % 3 - 1);
        quantized(w, 4, 8, &q);
        moved += *(float *)q.scale.v != s;
        assert_true(fabsf(*(float *)q.scale.v - s) <= s * 0x1p-23f && lq_f32_bf16(*(float *)q.scale.v) == lq_f32_bf16(s));
        for (int k = 0; k < 32; k++) assert_int_equal(lq_code_get(q.codes + k / 8 * q.row_bytes, 2, k % 8), k % 3);
        GOOD_ST(put_one("bitnet", &q, LQ_F32));
        GOOD_ST(get_one(&back));
        assert_true(lq_qtensor_eq(&q, &back));
        lq_qtensor_free(&back);
        lq_qtensor_free(&q);
    }
    assert_true(moved > 0 && moved < 40);
}

/* -- refusals -------------------------------------------------------------------------------------------------------- */

static void refusals_name_what_would_fit(void **state) {
    (void)state;
    const lq_format *f = lq_format_by_name("bitnet");
    lq_scheme s = b158(), still = s, rows = s, half = s, want;
    still.act.kind = LQ_ACT_NONE;
    rows.scale.tile_r = 1;
    half.scale.dtype = LQ_F16, half.scale.sig = 8;
    const struct { lq_scheme s; uint32_t rows; const char *says; } cases[] = {
        {s, 6, "four outputs share a byte"}, {still, 8, "--scheme b1.58"}, {rows, 8, "one F32 scale per matrix"}, {half, 8, "one F32 scale"}, {lq_scheme_int(2, -1, true), 8, "-1, 0, 1 alone"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ctx = (lq_ctx){0};
        if (f->accept(&ctx, &cases[i].s, cases[i].rows, 16) != LQ_ERR_UNSUPPORTED || !strstr(ctx.msg, cases[i].says)) fail_msg("case %zu: %s", i, ctx.msg);
    }
    assert_true(lq_nearest_scheme(f, &half, 8, 16, &want) == LQ_NEAR_VALUES && lq_scheme_eq(&want, &s));
    assert_true(lq_nearest_scheme(f, &rows, 8, 16, &want) == LQ_NEAR_VALUES && lq_scheme_eq(&want, &s));
    lq_qtensor q;
    make(&q, 4, 4, 3);
    lq_code_put(q.codes, 2, 1, 3);
    assert_int_equal(put_one("bitnet", &q, LQ_F32), LQ_ERR_UNSUPPORTED);
    assert_non_null(strstr(ctx.msg, "weight (0, 1) is 2 scales"));
    lq_code_put(q.codes, 2, 1, 1);
    *(float *)q.scale.v = 1.484375f; /* no F32 has this reciprocal */
    assert_int_equal(put_one("bitnet", &q, LQ_F32), LQ_ERR_QUALITY);
    assert_non_null(strstr(ctx.msg, "scale 0 (1.484375) is no reciprocal"));
    lq_qtensor_free(&q);
}

static void damage_is_refused_by_name(void **state) {
    (void)state;
    static const float bad[] = {NAN, INFINITY, 0, -2, 1e-40f};
    lq_qtensor q;
    pieces p;
    make(&q, 8, 5, 3);
    GOOD_ST(put_one("bitnet", &q, LQ_F32));
    lq_qtensor_free(&q);
    pieces_read(&p, dir);
    for (int i = 0; i < 5; i++) {
        *(float *)(void *)piece_of(&p, ".weight_scale")->data = bad[i];
        refused(&p, LQ_ERR_FORMAT, "up_proj|weight_scale is");
    }
    *(float *)(void *)piece_of(&p, ".weight_scale")->data = 2;
    uint8_t old = piece_of(&p, ".weight")->data[6];
    piece_of(&p, ".weight")->data[6] = 0x30;
    refused(&p, LQ_ERR_FORMAT, "up_proj|byte (1, 1) is 0x30");
    piece_of(&p, ".weight")->data[6] = old;
    config_replace(&p, "\"use_rms_norm\": false", "\"use_rms_norm\": true");
    refused(&p, LQ_ERR_UNSUPPORTED, "use_rms_norm");
    config_replace(&p, "\"use_rms_norm\": true", "\"use_rms_norm\": false");
    config_replace(&p, "bitlinear", "trilinear");
    refused(&p, LQ_ERR_UNSUPPORTED, "linear_class|trilinear");
    config_replace(&p, "trilinear", "bitlinear");
    config_replace(&p, "offline", "later");
    refused(&p, LQ_ERR_UNSUPPORTED, "quantization_mode|later");
    config_replace(&p, "later", "offline");
    piece_set(&p, ".weight_scale", LQ_F32, 1, 2, 0, NULL);
    refused(&p, LQ_ERR_FORMAT, "weight_scale|expected [1");
    piece_set(&p, ".weight_scale", LQ_I32, 1, 1, 0, NULL);
    refused(&p, LQ_ERR_FORMAT, "weight_scale|I32");
    piece_drop(&p, ".weight_scale");
    refused(&p, LQ_ERR_FORMAT, "up_proj.weight|no weight_scale");
    piece_set(&p, ".weight_scale", LQ_F32, 1, 1, 0, NULL);
    piece_set(&p, ".weight", LQ_BF16, 2, 8, 5, NULL);
    refused(&p, LQ_ERR_UNSUPPORTED, "ternary in BF16");
    piece_drop(&p, ".weight");
    refused(&p, LQ_ERR_FORMAT, "has no weight beside it");
    pieces_free(&p);
}

int main(void) {
    lq_threads_set(1);
    const struct CMUnitTest tests[] = {
        IN_FOLDERS(every_shape_and_every_reciprocal_round_trips),
        IN_FOLDERS(the_worked_examples_are_the_bytes),
        IN_FOLDERS(files_of_transformers_read_to_its_floats),
        IN_FOLDERS(files_of_transformers_are_written_again_byte_for_byte),
        IN_FOLDERS(absmean_scales_are_reciprocals),
        IN_FOLDERS(ternary_matrices_are_repacked),
        IN_FOLDERS(refusals_name_what_would_fit),
        IN_FOLDERS(damage_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
