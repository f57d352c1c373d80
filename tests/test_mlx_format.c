/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* MLX checkpoints: words worked out by hand, mlx's own quantizer in every width and mode, and files the reader must not believe. */
#include "tests/format_folder.h"

enum { N = 4, K = 64, GROUP = 32, G = K / GROUP };

static lq_scheme with_min(int bits) {
    lq_scheme s = lq_scheme_int(bits, GROUP, false);
    s.zero_kind = LQ_ZERO_MIN;
    s.zero = s.scale;
    return s;
}

/* -- writer ---------------------------------------------------------------------------------------------------------- */

static void count(lq_qtensor *q) { /* output 0: 0, 1, 2 ..., scales 1, 2, ..., MIN planes half of them */
    for (uint32_t k = 0; k < K; k++) lq_code_put(q->codes, q->sch.grid.bits, k, k % (1u << q->sch.grid.bits));
    for (size_t i = 0; i < N * G; i++) {
        lq_plane_set(&q->sch.scale, &q->scale, i, (float)i + 1);
        if (q->sch.zero_kind == LQ_ZERO_MIN) lq_plane_set(&q->sch.zero, &q->zero, i, ((float)i + 1) / 2);
    }
}

static void rows_are_bitstreams_and_biases_negated_minima(void **state) {
    (void)state;
    lq_scheme s = with_min(4);
    lq_st_file f;
    write_one("mlx", &s, N, K, count, &f);
    uint32_t *w = part(&f, ".weight", LQ_U32, 2, N, K / 8);
    uint16_t *sc = part(&f, ".scales", LQ_F16, 2, N, G), *b = part(&f, ".biases", LQ_F16, 2, N, G);
    for (uint32_t i = 0; i < K / 8; i++) assert_true(w[i] == (i % 2 ? 0xfedcba98 : 0x76543210) && !w[K / 8 + i]);
    for (uint32_t i = 0; i < N * G; i++) assert_true(lq_f16_f32(sc[i]) == (float)i + 1 && lq_f16_f32(b[i]) == -((float)i + 1) / 2);
    assert_int_equal(f.n, 3);
    free(w);
    free(sc);
    free(b);
    lq_st_close(&f);
    json_t *q = written_config(dir, "quantization"), *same = written_config(dir, "quantization_config"), *own = written_config(dir, "lquant");
    json_t *want = json_pack("{s:i, s:i}", "group_size", GROUP, "bits", 4), *says = json_pack("{s:[s], s:i, s:b}", "quantizer", "lquant:" LQ_VERSION, "scale_sig", 8, "sym", 0);
    assert_true(json_equal(q, want) && json_equal(same, want) && json_equal(own, says));
    json_decref(q);
    json_decref(same);
    json_decref(own);
    json_decref(want);
    json_decref(says);
}

static void three_bits_run_across_words(void **state) {
    (void)state;
    lq_scheme s = with_min(3);
    lq_st_file f;
    write_one("mlx", &s, N, K, count, &f);
    uint32_t *w = part(&f, ".weight", LQ_U32, 2, N, K * 3 / 32);
    assert_true(w[0] == 0x88fac688 && w[1] == 0xc688fac6 && w[2] == 0xfac688fa); /* codes k mod 8, as in formats.md */
    free(w);
    lq_st_close(&f);
}

static void a_symmetric_bias_is_minus_eight_scales(void **state) {
    (void)state;
    lq_scheme s = lq_scheme_int(4, GROUP, true);
    lq_st_file f;
    write_one("mlx", &s, N, K, count, &f);
    uint16_t *b = part(&f, ".biases", LQ_F16, 2, N, G);
    for (uint32_t i = 0; i < N * G; i++) assert_true(lq_f16_f32(b[i]) == -8 * ((float)i + 1));
    free(b);
    lq_st_close(&f);
}

static lq_status put_huge(void) {
    lq_scheme s = lq_scheme_int(8, GROUP, true);
    lq_row row = {.slot = {0, LQ_R_UP, -1}, .name = "m.weight", .ndim = 2, .shape = {N, K}, .linear = true, .quantize = true, .scheme = s};
    lq_catalog cat = {.rows = &row, .n = 1};
    lq_sink *sink;
    lq_qtensor q;
    GOOD_ST(lq_qtensor_init(&ctx, &q, &s, row.slot, N, K));
    lq_plane_set(&s.scale, &q.scale, 3, 1024); /* 128 times that is beyond F16 */
    GOOD_ST(lq_sink_open(&ctx, lq_format_by_name("mlx"), dir, &cat, &(lq_sink_opts){0}, &sink));
    lq_status st = lq_sink_put(sink, &q);
    lq_sink_abandon(&sink);
    lq_qtensor_free(&q);
    return st;
}

static void a_bias_beyond_its_type_is_refused(void **state) {
    (void)state;
    assert_int_equal(put_huge(), LQ_ERR_QUALITY);
    assert_non_null(strstr(ctx.msg, "element 3 of scales or biases is -131072, which is no F16 number"));
}

/* F16 scales of 8 bits become BF16 beside a BF16 embedding, and come back as what they were; one module has settings of its own. */
static void scales_take_the_models_type_and_come_back(void **state) {
    (void)state;
    lq_scheme a = lq_scheme_int(4, GROUP, true), b = with_min(8);
    lq_row rows[] = {{.slot = {-1, LQ_R_EMBED, -1}, .name = "e.weight", .ndim = 2, .shape = {2, 2}, .linear = true, .out_dtype = LQ_BF16},
                     {.slot = {0, LQ_R_Q, -1}, .name = "q.weight", .ndim = 2, .shape = {N, K}, .linear = true, .quantize = true, .scheme = a},
                     {.slot = {0, LQ_R_K, -1}, .name = "k.weight", .ndim = 2, .shape = {N, K}, .linear = true, .quantize = true, .scheme = b}};
    lq_catalog cat = {.rows = rows, .n = 3};
    lq_sink *sink;
    lq_qtensor q[2], back;
    lq_source *s;
    uint16_t e[4] = {0};
    GOOD_ST(lq_sink_open(&ctx, lq_format_by_name("mlx"), dir, &cat, &(lq_sink_opts){0}, &sink));
    GOOD_ST(lq_sink_config(sink, "{}", 2));
    GOOD_ST(lq_sink_put_fp(sink, &rows[0], e, sizeof e));
    for (size_t i = 0; i < 2; i++) {
        GOOD_ST(lq_qtensor_init(&ctx, &q[i], &rows[i + 1].scheme, rows[i + 1].slot, N, K));
        count(&q[i]);
        GOOD_ST(lq_sink_put(sink, &q[i]));
    }
    GOOD_ST(lq_sink_close(&sink));
    lq_st_file f;
    GOOD_ST(lq_st_open(&ctx, in(dir, "model.safetensors"), &f));
    assert_true(stored(&f, "q.scales")->dtype == LQ_BF16 && stored(&f, "k.biases")->dtype == LQ_BF16);
    lq_st_close(&f);
    json_t *c = written_config(dir, "quantization"), *own = json_pack("{s:i, s:i}", "group_size", GROUP, "bits", 8);
    assert_true(json_equal(json_object_get(c, "k"), own) && !json_object_get(c, "q"));
    json_decref(c);
    json_decref(own);
    GOOD_ST(lq_source_open(&ctx, dir, &s));
    for (size_t i = 0; i < 2; i++) {
        GOOD_ST(lq_source_read_q(&ctx, s, (size_t)lq_source_find(s, rows[i + 1].name), &back));
        assert_true(lq_qtensor_eq(&back, &q[i]));
        lq_qtensor_free(&back);
        lq_qtensor_free(&q[i]);
    }
    lq_source_free(&s);
}

static void refusals_name_what_fits(void **state) {
    (void)state;
    lq_scheme nvfp4 = {.grid = {LQ_GRID_E2M1, 4, 1, 0}, .scale = {.dtype = LQ_E4M3, .tile_r = 1, .tile_c = 16, .parent = LQ_F32}}, seven = lq_scheme_int(8, 64, true);
    seven.grid.bits = 7, seven.grid.bias = 64;
    const struct { lq_scheme s; uint32_t cols; const char *says; } cases[] = {
        {lq_scheme_int(4, 64, false), 64, "--scheme mlx4, or --sym"}, {lq_scheme_int(4, -1, true), 256, "--group-size 128"}, {lq_scheme_int(4, 16, true), 64, "--group-size 32"},
        {lq_scheme_int(4, 64, true), 96, "--group-size 32"}, {seven, 64, "--bits 8"}, {nvfp4, 64, "one level of scales"}, {lq_scheme_int(4, 32, true), 40, "a multiple of 32"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        lq_ctx c = {0};
        assert_int_equal(lq_format_by_name("mlx")->accept(&c, &cases[i].s, 64, cases[i].cols), LQ_ERR_UNSUPPORTED);
        if (!strstr(c.msg, cases[i].says)) fail_msg("'%s' lacks '%s'", c.msg, cases[i].says);
    }
}

/* -- golden ---------------------------------------------------------------------------------------------------------- */

static void every_width_of_mlx_reads_and_is_written_again(void **state) {
    (void)state;
    golden_reads("mlx/mixed");
    golden_is_written_again("mlx/mixed", "mlx");
}

static void every_mode_of_floats_reads_and_is_written_again(void **state) {
    (void)state;
    golden_reads("mlx/floats");
    golden_is_written_again("mlx/floats", "mlx");
}

/* -- reader ---------------------------------------------------------------------------------------------------------- */

#define CONFIG(q, more) "{\"quantization\": {" q "}" more "}"
#define FOUR "\"group_size\": 32, \"bits\": 4"
static uint32_t words[N * K / 8];
static uint16_t scales[N * G], biases[N * G];

static void write_peer(const char *config, lq_dtype scale, lq_dtype bias) {
    lq_st_tensor t[] = {{.name = "m.weight", .dtype = LQ_U32, .ndim = 2, .shape = {N, K / 8}}, {.name = "m.scales", .dtype = scale, .ndim = 2, .shape = {N, G}},
                        {.name = "m.biases", .dtype = bias, .ndim = 2, .shape = {N, G}}};
    const void *v[] = {words, scales, biases};
    write_folder(t, v, bias ? 3 : scale ? 2 : 1, config);
}

static void false_files_are_refused_by_name(void **state) {
    (void)state;
    static const struct { const char *config; lq_dtype scale, bias; lq_status st; const char *says; } cases[] = {
        {CONFIG(FOUR, ""), LQ_F16, LQ_NONE, LQ_ERR_FORMAT, "there are no biases"},
        {CONFIG(FOUR, ""), LQ_F16, LQ_BF16, LQ_ERR_FORMAT, "m.biases"},
        {CONFIG(FOUR, ""), LQ_I16, LQ_I16, LQ_ERR_FORMAT, "I16"},
        {CONFIG("\"group_size\": 64, \"bits\": 4", ""), LQ_F16, LQ_F16, LQ_ERR_FORMAT, "expected [4, 1]"},
        {CONFIG("\"group_size\": 64, \"bits\": 3", ""), LQ_F16, LQ_F16, LQ_ERR_FORMAT, "3-bit codes"},
        {CONFIG("\"group_size\": 48, \"bits\": 4", ""), LQ_F16, LQ_F16, LQ_ERR_UNSUPPORTED, "groups of 48"},
        {CONFIG("\"group_size\": 32, \"bits\": 7", ""), LQ_F16, LQ_F16, LQ_ERR_UNSUPPORTED, "7 bits"},
        {CONFIG(FOUR ", \"mode\": \"odd\"", ""), LQ_F16, LQ_F16, LQ_ERR_UNSUPPORTED, "'odd'"},
        {CONFIG(FOUR ", \"mode\": \"mxfp4\"", ""), LQ_F16, LQ_F16, LQ_ERR_FORMAT, "F16"},
        {CONFIG(FOUR ", \"mode\": \"mxfp8\"", ""), LQ_U8, LQ_NONE, LQ_ERR_FORMAT, "expected 8 in 32"},
        {CONFIG(FOUR ", \"m\": false", ""), LQ_F16, LQ_F16, LQ_ERR_FORMAT, "says it is kept"},
        {CONFIG(FOUR ", \"m\": {\"bits\": 0}", ""), LQ_F16, LQ_F16, LQ_ERR_FORMAT, "bits"},
        {CONFIG(FOUR, ", \"lquant\": {\"sym\": true}"), LQ_F16, LQ_F16, LQ_ERR_FORMAT, "bias 0 is 0, expected -8"},
        {CONFIG(FOUR, ", \"lquant\": {\"scale_sig\": 8, \"scale_dtype\": \"F16\"}"), LQ_BF16, LQ_BF16, LQ_ERR_FORMAT, "which is no F16 number"},
    };
    for (size_t i = 0; i < N * G; i++) scales[i] = 0x3c00;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (i + 1 == sizeof cases / sizeof *cases) scales[1] = 0x7f00; /* 1.7e38 */
        write_peer(cases[i].config, cases[i].scale, cases[i].bias);
        folder_refused(cases[i].st, cases[i].says);
    }
    scales[1] = 0x7c00;
    write_peer(CONFIG(FOUR, ""), LQ_F16, LQ_F16);
    folder_refused(LQ_ERR_FORMAT, "not finite");
}

static void a_module_without_scales_is_kept(void **state) {
    (void)state;
    lq_source *s;
    write_peer(CONFIG(FOUR, ""), LQ_NONE, LQ_NONE);
    GOOD_ST(lq_source_open(&ctx, dir, &s));
    assert_true(s->n == 1 && s->entries[0].dtype == LQ_U32);
    lq_source_free(&s);
}

int main(void) {
    lq_threads_set(1);
    const struct CMUnitTest tests[] = {
        IN_FOLDERS(rows_are_bitstreams_and_biases_negated_minima),
        IN_FOLDERS(three_bits_run_across_words),
        IN_FOLDERS(a_symmetric_bias_is_minus_eight_scales),
        IN_FOLDERS(a_bias_beyond_its_type_is_refused),
        IN_FOLDERS(scales_take_the_models_type_and_come_back),
        IN_FOLDERS(refusals_name_what_fits),
        IN_FOLDERS(every_width_of_mlx_reads_and_is_written_again),
        IN_FOLDERS(every_mode_of_floats_reads_and_is_written_again),
        IN_FOLDERS(false_files_are_refused_by_name),
        IN_FOLDERS(a_module_without_scales_is_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
