/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* FP8 checkpoints: bytes worked out by hand, transformers' quantizer, and files the reader must not believe. */
#include "tests/format_folder.h"

enum { N = 160, K = 136 }; /* ragged: two blocks each way, the second one short */

static lq_scheme scheme(uint32_t block, lq_act_kind acts) {
    return (lq_scheme){.grid = {LQ_GRID_E4M3, 8, 1, 0}, .scale = {.dtype = LQ_F32, .tile_r = block, .tile_c = block}, .act = {.kind = acts, .dtype = LQ_E4M3, .tile = block}};
}

/* -- writer ---------------------------------------------------------------------------------------------------------- */

/* formats.md's example: a block whose largest weight is .9 */
static void example(lq_qtensor *q) {
    static const float w[] = {0.9f, -0.45f, 0.1f};
    float scale = 0.9f / 448;
    for (size_t i = 0; i < lq_plane_count(&q->sch.scale, q->rows, q->cols); i++) ((float *)q->scale.v)[i] = scale * (float)(i + 1);
    for (uint32_t i = 0; i < 3; i++) q->codes[i] = lq_f32_e4m3(w[i] / scale);
    q->codes[(size_t)(q->rows - 1) * q->row_bytes + q->cols - 1] = 0x38;
    if (q->sch.act.kind == LQ_ACT_STATIC) q->act_scale = 0.25f;
}

static void blocks_are_the_worked_example(void **state) {
    (void)state;
    lq_scheme s = scheme(128, LQ_ACT_DYNAMIC);
    lq_st_file f;
    write_one("fp8", &s, N, K, example, &f);
    uint8_t *w = part(&f, ".weight", LQ_E4M3, 2, N, K);
    float *scale = part(&f, ".weight_scale_inv", LQ_F32, 2, 2, 2);
    assert_true(w[0] == 0x7e && w[1] == 0xf6 && w[2] == 0x64 && w[3] == 0 && w[N * K - 1] == 0x38);
    assert_true(fabsf(scale[0] - 0.00200893f) < 1e-8f && scale[3] == 4 * scale[0]);
    assert_int_equal(f.n, 2);
    free(w);
    free(scale);
    lq_st_close(&f);
    json_t *c = written_config(dir, "quantization_config");
    json_t *want = json_pack("{s:s, s:s, s:s, s:n, s:n, s:[i, i], s:s, s:{s:[s]}}", "quant_method", "fp8", "activation_scheme", "dynamic", "fmt", "e4m3", "ignored_layers",
                             "modules_to_not_convert", "weight_block_size", 128, 128, "scale_fmt", "float", "meta", "quantizer", "lquant:" LQ_VERSION);
    assert_true(json_equal(c, want));
    json_decref(c);
    json_decref(want);
}

static void one_scale_is_a_scalar_with_a_step_when_static(void **state) {
    (void)state;
    for (int fixed = 0; fixed < 2; fixed++) {
        lq_scheme s = scheme(0, fixed ? LQ_ACT_STATIC : LQ_ACT_DYNAMIC);
        lq_st_file f;
        lq_remove_tree(NULL, dir);
        GOOD_ST(lq_mkdir(&ctx, dir));
        write_one("fp8", &s, N, K, example, &f);
        float *scale = part(&f, ".weight_scale", LQ_F32, 0, 0, 0), *step = fixed ? part(&f, ".input_scale", LQ_F32, 0, 0, 0) : NULL;
        assert_true(*scale == 0.9f / 448 && (!fixed || *step == 0.25f));
        assert_int_equal(f.n, fixed ? 3 : 2);
        free(scale);
        free(step);
        lq_st_close(&f);
        json_t *c = written_config(dir, "quantization_config");
        assert_string_equal(json_string_value(json_object_get(c, "activation_scheme")), fixed ? "static" : "dynamic");
        assert_null(json_object_get(c, "weight_block_size"));
        json_decref(c);
    }
}

static void refusals_name_what_fits(void **state) {
    (void)state;
    lq_scheme row = scheme(0, LQ_ACT_DYNAMIC), weights = scheme(128, LQ_ACT_NONE), wide = scheme(128, LQ_ACT_DYNAMIC), ints = lq_scheme_int(8, -1, true);
    row.scale.tile_r = 1;
    wide.act.tile = 64;
    static const char *const says[] = {"FP8-tensor fits, --format compressed-tensors", "round the activations", "as wide as the weights'", "E4M3 weights alone"};
    const lq_scheme *s[] = {&row, &weights, &wide, &ints};
    for (size_t i = 0; i < 4; i++) {
        lq_ctx c = {0};
        assert_int_equal(lq_format_by_name("fp8")->accept(&c, s[i], N, K), LQ_ERR_UNSUPPORTED);
        if (!strstr(c.msg, says[i])) fail_msg("'%s' lacks '%s'", c.msg, says[i]);
    }
}

static void two_types_in_one_checkpoint_are_refused(void **state) {
    (void)state;
    lq_scheme a = scheme(128, LQ_ACT_DYNAMIC), b = scheme(0, LQ_ACT_DYNAMIC);
    lq_row rows[] = {{.slot = {0, LQ_R_Q, -1}, .name = "q.weight", .ndim = 2, .shape = {N, K}, .quantize = true, .scheme = a},
                     {.slot = {0, LQ_R_K, -1}, .name = "k.weight", .ndim = 2, .shape = {N, K}, .quantize = true, .scheme = b}};
    lq_catalog cat = {.rows = rows, .n = 2};
    lq_sink *sink;
    assert_int_equal(lq_sink_open(&ctx, lq_format_by_name("fp8"), dir, &cat, &(lq_sink_opts){0}, &sink), LQ_ERR_UNSUPPORTED);
    assert_non_null(strstr(ctx.msg, "'k.weight' is"));
}

/* -- golden ---------------------------------------------------------------------------------------------------------- */

static void blocks_of_transformers_read_and_write(void **state) {
    (void)state;
    golden_reads("fp8/block");
    golden_is_written_again("fp8/block", "fp8");
}

static void powers_of_two_of_transformers_read_and_write(void **state) {
    (void)state;
    golden_reads("fp8/ue8m0");
    golden_is_written_again("fp8/ue8m0", "fp8");
}

static void one_scale_of_transformers_is_read(void **state) { /* written under vLLM's name for it */
    (void)state;
    golden_reads("fp8/tensor");
}

/* -- reader ---------------------------------------------------------------------------------------------------------- */

#define CONFIG(more) "{\"quantization_config\": {\"quant_method\": \"fp8\"" more "}}"
#define BLOCK ", \"activation_scheme\": \"dynamic\", \"weight_block_size\": [128, 128]"
static uint8_t codes[N * K];
static float scales[4] = {1, 2, 4, 8};
static uint8_t powers[4] = {127, 128, 129, 130};

static void write_peer(const char *config, const char *scale, lq_dtype dtype, uint32_t ndim, const void *data, const char *step) {
    lq_st_tensor t[3] = {{.name = "m.weight", .dtype = LQ_E4M3, .ndim = 2, .shape = {N, K}}, {.name = scale, .dtype = dtype, .ndim = ndim, .shape = {2, 2}},
                         {.name = step, .dtype = LQ_F32}};
    const void *v[3] = {codes, data, scales};
    if (ndim == 1) t[1].shape[0] = 1;
    write_folder(t, v, step ? 3 : scale ? 2 : 1, config);
}

static float first_weight(uint32_t n, uint32_t k, lq_act *act, float *step) {
    lq_source *s;
    lq_qtensor q;
    GOOD_ST(lq_source_open(&ctx, dir, &s));
    GOOD_ST(lq_source_read_q(&ctx, s, 0, &q));
    float w = lq_qtensor_code_weight(&q, n, k);
    *act = q.sch.act;
    *step = q.act_scale;
    lq_qtensor_free(&q);
    lq_source_free(&s);
    return w;
}

static void every_flavour_of_scales_is_read(void **state) {
    (void)state;
    lq_act a;
    float step;
    memset(codes, 0x38, sizeof codes);
    write_peer(CONFIG(BLOCK), "m.weight_scale_inv", LQ_F32, 2, scales, NULL);
    assert_true(first_weight(0, 0, &a, &step) == 1 && a.tile == 128 && a.kind == LQ_ACT_DYNAMIC);
    assert_true(first_weight(128, 127, &a, &step) == 4 && first_weight(N - 1, K - 1, &a, &step) == 8);
    write_peer(CONFIG(BLOCK ", \"scale_fmt\": \"ue8m0\""), "m.weight_scale_inv", LQ_U8, 2, powers, NULL);
    assert_true(first_weight(0, K - 1, &a, &step) == 2);
    write_peer(CONFIG(BLOCK ", \"scale_fmt\": \"ue8m0\""), "m.weight_scale_inv", LQ_F32, 2, scales, NULL); /* DeepSeek-V3.1 */
    assert_true(first_weight(0, K - 1, &a, &step) == 2);
    write_peer(CONFIG(", \"activation_scheme\": \"static\""), "m.weight_scale", LQ_F32, 1, scales + 1, "m.input_scale");
    assert_true(first_weight(5, 5, &a, &step) == 2 && a.kind == LQ_ACT_STATIC && a.tile == 0 && step == 1);
    write_peer(CONFIG(", \"activation_scheme\": \"static\", \"weight_block_size\": null"), "m.weight_scale_inv", LQ_F32, 0, scales + 2, "m.activation_scale");
    assert_true(first_weight(5, 5, &a, &step) == 4 && step == 1);
}

static void false_parts_are_refused_by_name(void **state) {
    (void)state;
    static const float bad[4] = {1, INFINITY, 1, 1};
    memset(codes, 0x38, sizeof codes);
    write_peer(CONFIG(BLOCK), NULL, LQ_F32, 2, NULL, NULL);
    folder_refused(LQ_ERR_FORMAT, "has no weight_scale_inv");
    write_peer(CONFIG(BLOCK), "m.weight_scale_inv", LQ_F32, 1, scales, NULL);
    folder_refused(LQ_ERR_FORMAT, "expected [2, 2]");
    write_peer(CONFIG(BLOCK), "m.weight_scale_inv", LQ_I32, 2, scales, NULL);
    folder_refused(LQ_ERR_FORMAT, "I32");
    write_peer(CONFIG(BLOCK), "m.weight_scale_inv", LQ_F32, 2, bad, NULL);
    folder_refused(LQ_ERR_FORMAT, "scale 1 is not finite");
    write_peer(CONFIG(BLOCK), "m.weight_scale_inv", LQ_F32, 2, scales, "m.input_scale");
    folder_refused(LQ_ERR_FORMAT, "activation_scheme is dynamic");
    write_peer(CONFIG(BLOCK), "m.weight_scale_inv", LQ_F32, 2, scales, "m.weight_scale");
    folder_refused(LQ_ERR_FORMAT, "both weight_scale and weight_scale_inv");
    write_peer(CONFIG(", \"activation_scheme\": \"static\""), "m.weight_scale", LQ_F32, 1, scales, NULL);
    folder_refused(LQ_ERR_FORMAT, "no input_scale");
    write_peer(CONFIG(""), "m.weight_scale", LQ_F32, 2, scales, NULL);
    folder_refused(LQ_ERR_FORMAT, "expected one float");
    codes[7 * K + 3] = 0x7f;
    write_peer(CONFIG(BLOCK), "m.weight_scale_inv", LQ_F32, 2, scales, NULL);
    folder_refused(LQ_ERR_FORMAT, "(7, 3)");
    memset(codes, 0x38, sizeof codes);
}

static void false_configs_are_refused(void **state) {
    (void)state;
    static const struct { const char *config; lq_status st; const char *says; } cases[] = {
        {CONFIG(", \"activation_scheme\": \"odd\""), LQ_ERR_UNSUPPORTED, "'odd'"},
        {CONFIG(", \"fmt\": \"e5m2\""), LQ_ERR_UNSUPPORTED, "'e5m2'"},
        {CONFIG(", \"expert_dtype\": \"fp4\""), LQ_ERR_UNSUPPORTED, "'fp4'"},
        {CONFIG(", \"weight_block_size\": [128]"), LQ_ERR_FORMAT, "weight_block_size"},
        {CONFIG(", \"weight_block_size\": [128, 0]"), LQ_ERR_FORMAT, "weight_block_size"},
        {CONFIG(", \"weight_block_size\": \"x\""), LQ_ERR_FORMAT, "weight_block_size"},
        {CONFIG(", \"activation_scheme\": \"static\", \"weight_block_size\": [128, 128]"), LQ_ERR_FORMAT, "static"},
    };
    memset(codes, 0x38, sizeof codes);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_peer(cases[i].config, "m.weight_scale_inv", LQ_F32, 2, scales, NULL);
        folder_refused(cases[i].st, cases[i].says);
    }
}

static void a_float_weight_with_scales_is_refused_and_without_kept(void **state) {
    (void)state;
    static uint16_t halves[4];
    lq_st_tensor t[2] = {{.name = "m.weight", .dtype = LQ_F16, .ndim = 2, .shape = {2, 2}}, {.name = "m.weight_scale_inv", .dtype = LQ_F32, .ndim = 2, .shape = {1, 1}}};
    const void *v[2] = {halves, scales};
    write_folder(t, v, 2, CONFIG(BLOCK));
    folder_refused(LQ_ERR_FORMAT, "expected F8_E4M3");
    write_folder(t, v, 1, CONFIG(BLOCK));
    lq_source *s;
    ctx = (lq_ctx){0};
    GOOD_ST(lq_source_open(&ctx, dir, &s));
    assert_int_equal(s->entries[0].dtype, LQ_F16);
    lq_source_free(&s);
}

int main(void) {
    lq_threads_set(1);
    const struct CMUnitTest tests[] = {
        IN_FOLDERS(blocks_are_the_worked_example),
        IN_FOLDERS(one_scale_is_a_scalar_with_a_step_when_static),
        IN_FOLDERS(refusals_name_what_fits),
        IN_FOLDERS(two_types_in_one_checkpoint_are_refused),
        IN_FOLDERS(blocks_of_transformers_read_and_write),
        IN_FOLDERS(powers_of_two_of_transformers_read_and_write),
        IN_FOLDERS(one_scale_of_transformers_is_read),
        IN_FOLDERS(every_flavour_of_scales_is_read),
        IN_FOLDERS(false_parts_are_refused_by_name),
        IN_FOLDERS(false_configs_are_refused),
        IN_FOLDERS(a_float_weight_with_scales_is_refused_and_without_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
