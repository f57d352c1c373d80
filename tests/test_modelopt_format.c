/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* modelopt checkpoints: bytes worked out by hand, nvidia-modelopt's own exports, and files the reader must not believe. */
#include "tests/format_folder.h"

enum { N = 4, K = 32 };

static lq_scheme fp8(bool rows) {
    return (lq_scheme){.grid = {LQ_GRID_E4M3, 8, 1, 0}, .scale = {.dtype = LQ_F32, .tile_r = rows}, .act = {.kind = rows ? LQ_ACT_DYNAMIC : LQ_ACT_STATIC, .dtype = LQ_E4M3}};
}
static lq_scheme nvfp4(void) { return (lq_scheme){.grid = {LQ_GRID_E2M1, 4, 1, 0}, .scale = {.dtype = LQ_E4M3, .tile_r = 1, .tile_c = 16, .parent = LQ_F32}}; }

/* -- writer ---------------------------------------------------------------------------------------------------------- */

/* formats.md's example: a tensor whose largest weight is 12, a block whose largest is 6 */
static void nvfp4_example(lq_qtensor *q) {
    static const uint8_t codes[8] = {0, 9, 2, 5, 7, 12, 1, 7};
    *(float *)q->scale.parent = 12.0f / (6 * 448);
    ((uint8_t *)q->scale.v)[0] = 0x76; /* 224 */
    for (uint32_t i = 0; i < 8; i++) lq_code_put(q->codes, 4, i, codes[i]);
}

static void nvfp4_is_the_worked_example(void **state) {
    (void)state;
    static const uint8_t want[4] = {0x90, 0x52, 0xc7, 0x71};
    lq_scheme s = nvfp4();
    lq_st_file f;
    write_one("modelopt", &s, N, K, nvfp4_example, &f);
    uint8_t *w = part(&f, ".weight", LQ_U8, 2, N, K / 2), *sc = part(&f, ".weight_scale", LQ_E4M3, 2, N, K / 16);
    float *up = part(&f, ".weight_scale_2", LQ_F32, 0, 0, 0);
    assert_memory_equal(w, want, 4);
    assert_true(sc[0] == 0x76 && *up == 12.0f / (6 * 448) && f.n == 3);
    free(w);
    free(sc);
    free(up);
    lq_st_close(&f);
    json_t *c = written_config(dir, "quantization_config"), *h;
    assert_string_equal(json_string_value(json_object_get(c, "quant_algo")), "W4A16_NVFP4");
    assert_string_equal(json_string_value(json_object_get(c, "quant_method")), "modelopt");
    json_decref(c);
    GOOD_ST(lq_json_load(&ctx, in(dir, "hf_quant_config.json"), &h));
    json_t *want_h = json_pack("{s:{s:s, s:s}, s:{s:s, s:n, s:[s], s:i}}", "producer", "name", "modelopt", "version", "0.47.0", "quantization", "quant_algo", "W4A16_NVFP4",
                               "kv_cache_quant_algo", "exclude_modules", "lm_head", "group_size", 16);
    assert_true(json_equal(h, want_h));
    json_decref(h);
    json_decref(want_h);
}

static void signed_codes(lq_qtensor *q) { /* outputs 0..3 hold codes 0 (-8), 8 (0), 15 (7), 7 (-1) */
    static const uint8_t codes[N] = {0, 8, 15, 7};
    for (uint32_t n = 0; n < N; n++)
        for (uint32_t k = 0; k < K; k++) lq_code_put(q->codes + n * q->row_bytes, 4, k, codes[n]);
}

static void awq_pairs_outputs_in_a_byte(void **state) {
    (void)state;
    lq_scheme s = lq_scheme_int(4, 16, true);
    lq_st_file f;
    write_one("modelopt", &s, N, K, signed_codes, &f);
    uint8_t *w = part(&f, ".weight", LQ_U8, 2, N / 2, K);
    for (uint32_t k = 0; k < K; k++) assert_true(w[k] == 0x08 && w[K + k] == 0xf7);
    free(w);
    free(part(&f, ".weight_scale", LQ_F16, 2, N, K / 16));
    assert_int_equal(f.n, 2);
    lq_st_close(&f);
}

static void one_step(lq_qtensor *q) {
    q->codes[1] = 0x7e;
    q->act_scale = q->sch.act.kind == LQ_ACT_STATIC ? 0.5f : 0;
}

static void fp8_has_scalars_or_a_scale_per_row(void **state) {
    (void)state;
    for (int rows = 0; rows < 2; rows++) {
        lq_scheme s = fp8(rows);
        lq_st_file f;
        lq_remove_tree(NULL, dir);
        GOOD_ST(lq_mkdir(&ctx, dir));
        write_one("modelopt", &s, N, K, one_step, &f);
        uint8_t *w = part(&f, ".weight", LQ_E4M3, 2, N, K);
        float *scale = rows ? part(&f, ".weight_scale", LQ_F32, 1, N, 0) : part(&f, ".weight_scale", LQ_F32, 0, 0, 0), *step = rows ? NULL : part(&f, ".input_scale", LQ_F32, 0, 0, 0);
        assert_true(w[1] == 0x7e && scale[0] == 1 && (rows || *step == 0.5f));
        free(w);
        free(scale);
        free(step);
        lq_st_close(&f);
        json_t *c = written_config(dir, "quantization_config");
        assert_string_equal(json_string_value(json_object_get(c, "quant_algo")), rows ? "FP8_PER_CHANNEL_PER_TOKEN" : "FP8");
        json_decref(c);
    }
}

static void scales_of_keys_are_named_after_the_projection(void **state) {
    (void)state;
    lq_row rows[] = {{.slot = {0, LQ_R_K_SCALE, -1}, .name = "model.layers.0.self_attn.k_scale", .ndim = 1, .shape = {1}, .out_dtype = LQ_F32},
                     {.slot = {0, LQ_R_V_SCALE, -1}, .name = "model.layers.0.self_attn.v_scale", .ndim = 1, .shape = {1}, .out_dtype = LQ_F32},
                     {.slot = {0, LQ_R_Q, -1}, .name = "q.weight", .ndim = 2, .shape = {N, K}, .linear = true, .quantize = true, .scheme = fp8(true)}};
    lq_catalog cat = {.rows = rows, .n = 3};
    float step[2] = {0.25f, 0.5f};
    lq_sink *sink;
    lq_qtensor q;
    lq_st_file f;
    GOOD_ST(lq_qtensor_init(&ctx, &q, &rows[2].scheme, rows[2].slot, N, K));
    for (uint32_t n = 0; n < N; n++) ((float *)q.scale.v)[n] = 1;
    GOOD_ST(lq_sink_open(&ctx, lq_format_by_name("modelopt"), dir, &cat, &(lq_sink_opts){0}, &sink));
    GOOD_ST(lq_sink_config(sink, "{}", 2));
    GOOD_ST(lq_sink_put_fp(sink, &rows[0], &step[0], 4));
    GOOD_ST(lq_sink_put_fp(sink, &rows[1], &step[1], 4));
    GOOD_ST(lq_sink_put(sink, &q));
    GOOD_ST(lq_sink_close(&sink));
    lq_qtensor_free(&q);
    GOOD_ST(lq_st_open(&ctx, in(dir, "model.safetensors"), &f));
    assert_non_null(stored(&f, "model.layers.0.self_attn.k_proj.k_scale"));
    assert_non_null(stored(&f, "model.layers.0.self_attn.v_proj.v_scale"));
    lq_st_close(&f);
    json_t *c = written_config(dir, "quantization_config");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(c, "kv_cache_scheme"), "num_bits")), 8);
    json_decref(c);
}

static void refusals_name_what_fits(void **state) {
    (void)state;
    lq_scheme dynamic = fp8(false), mx = nvfp4();
    dynamic.act.kind = LQ_ACT_DYNAMIC;
    mx.scale.dtype = LQ_E8M0;
    const struct { lq_scheme s; uint32_t rows, cols; const char *says; } cases[] = {
        {lq_scheme_int(8, 64, true), 64, 64, "--bits 4 --sym"}, {lq_scheme_int(4, 64, false), 64, 64, "--bits 4 --sym"}, {lq_scheme_int(4, 64, true), 63, 64, "an even number"},
        {lq_scheme_int(4, 128, true), 64, 576, "--group-size 144"}, {dynamic, 64, 64, "FP8-tensor-static"}, {mx, 64, 64, "NVFP4"}, {nvfp4(), 64, 72, "blocks of 16"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        lq_ctx c = {0};
        assert_int_equal(lq_format_by_name("modelopt")->accept(&c, &cases[i].s, cases[i].rows, cases[i].cols), LQ_ERR_UNSUPPORTED);
        if (!strstr(c.msg, cases[i].says)) fail_msg("'%s' lacks '%s'", c.msg, cases[i].says);
    }
}

/* -- golden ---------------------------------------------------------------------------------------------------------- */

static void exports_of_modelopt_read_and_are_written_again(void **state) {
    (void)state;
    static const char *const cases[] = {"modelopt/fp8", "modelopt/fp8_kv", "modelopt/nvfp4", "modelopt/awq"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        golden_reads(cases[i]);
        golden_is_written_again(cases[i], "modelopt");
    }
}

/* AWQ leaves factors before o_proj and down_proj; they come along, in F32. */
static void factors_of_inputs_are_read_and_written(void **state) {
    (void)state;
    static const char *const with[] = {"model.layers.0.self_attn.o_proj.weight", "model.layers.0.mlp.down_proj.weight"};
    lq_source *s, *again;
    golden_reads("modelopt/awq_pre");
    golden_open("modelopt/awq_pre", &s);
    assert_int_equal(unlink(in(out_dir, "weights.safetensors")), 0);
    rewrite(s, "modelopt");
    GOOD_ST(lq_source_open(&ctx, dir, &again));
    for (size_t i = 0; i < s->n; i++) {
        lq_qtensor a, b;
        bool pre = !strcmp(s->entries[i].name, with[0]) || !strcmp(s->entries[i].name, with[1]);
        if (s->entries[i].dtype != LQ_NONE) continue;
        GOOD_ST(lq_source_read_q(&ctx, s, i, &a));
        GOOD_ST(lq_source_read_q(&ctx, again, (size_t)lq_source_find(again, s->entries[i].name), &b));
        assert_true(lq_qtensor_eq(&a, &b) && pre == (a.prescale != NULL) && a.sch.extra == (pre ? LQ_X_PRESCALE : 0u));
        if (pre) assert_true(a.prescale[0] != a.prescale[1]);
        lq_qtensor_free(&a);
        lq_qtensor_free(&b);
    }
    lq_source_free(&s);
    lq_source_free(&again);
    json_t *c = written_config(dir, "quantization_config");
    assert_string_equal(json_string_value(json_object_get(c, "quant_algo")), "W4A16_AWQ");
    json_decref(c);
}

/* modelopt's NVFP4_AWQ: factors before o_proj alone (up_proj has taken down_proj's in); its 4-bit activations have no place here. */
static void factors_beside_nvfp4_are_read(void **state) {
    (void)state;
    lq_source *s;
    lq_qtensor q;
    golden_reads("modelopt/nvfp4_awq");
    golden_open("modelopt/nvfp4_awq", &s);
    for (size_t i = 0; i < s->n; i++) {
        bool pre = !strcmp(s->entries[i].name, "model.layers.0.self_attn.o_proj.weight");
        if (s->entries[i].dtype != LQ_NONE) continue;
        GOOD_ST(lq_source_read_q(&ctx, s, i, &q));
        assert_true(q.sch.grid.kind == LQ_GRID_E2M1 && q.sch.act.kind == LQ_ACT_NONE && q.sch.extra == (pre ? LQ_X_PRESCALE : 0u));
        if (pre) assert_true(q.prescale[0] != q.prescale[1]);
        lq_qtensor_free(&q);
    }
    lq_source_free(&s);
}

/* -- reader ---------------------------------------------------------------------------------------------------------- */

#define CONFIG(algo) "{\"quantization_config\": {\"quant_method\": \"modelopt\", \"quant_algo\": \"" algo "\"}}"
#define MIXED(layers) "{\"quantization_config\": {\"quant_method\": \"modelopt\", \"quant_algo\": \"MIXED_PRECISION\", \"quantized_layers\": {" layers "}}}"
static uint8_t bytes[N * K];
static float floats[N * K];

typedef struct piece { const char *name; lq_dtype dtype; uint32_t ndim; uint64_t d0, d1; } piece;

static void write_peer(const char *config, const piece *p) {
    lq_st_tensor t[4];
    const void *v[4];
    size_t n = 0;
    for (; n < 4 && p[n].name; n++) {
        t[n] = (lq_st_tensor){.name = p[n].name, .dtype = p[n].dtype, .ndim = p[n].ndim, .shape = {p[n].d0, p[n].d1}};
        v[n] = lq_dtypes[p[n].dtype].bytes == 1 ? (const void *)bytes : floats;
    }
    write_folder(t, v, n, config);
}

static void false_files_are_refused_by_name(void **state) {
    (void)state;
    const struct { const char *config; piece p[4]; lq_status st; const char *says; } cases[] = {
        {CONFIG("ODD"), {{"m.weight", LQ_E4M3, 2, N, K}}, LQ_ERR_UNSUPPORTED, "'ODD'"},
        {"{\"quantization_config\": {\"quant_method\": \"modelopt\"}}", {{"m.weight", LQ_E4M3, 2, N, K}}, LQ_ERR_FORMAT, "quant_algo"},
        {CONFIG("FP8"), {{"m.weight", LQ_E4M3, 2, N, K}}, LQ_ERR_FORMAT, "no weight_scale"},
        {CONFIG("FP8"), {{"m.weight", LQ_F16, 2, 2, 2}, {"m.weight_scale", LQ_F32, 0, 0, 0}}, LQ_ERR_FORMAT, "F16"},
        {CONFIG("FP8"), {{"m.weight", LQ_E4M3, 2, N, K}, {"m.weight_scale", LQ_F32, 1, N - 1, 0}}, LQ_ERR_FORMAT, "expected [4"},
        {CONFIG("FP8"), {{"m.weight", LQ_E4M3, 2, N, K}, {"m.weight_scale", LQ_F32, 0, 0, 0}, {"m.input_scale", LQ_F32, 1, 2, 0}}, LQ_ERR_FORMAT, "m.input_scale"},
        {CONFIG("FP8"), {{"m.weight", LQ_E4M3, 2, N, K}, {"m.weight_scale", LQ_F32, 0, 0, 0}, {"m.input_scale", LQ_F32, 0, 0, 0}}, LQ_ERR_FORMAT, "m.weight"}, /* step 0 */
        {CONFIG("NVFP4"), {{"m.weight", LQ_U8, 2, N, K / 2}, {"m.weight_scale", LQ_E4M3, 2, N, K / 16}}, LQ_ERR_FORMAT, "weight_scale_2"},
        {CONFIG("NVFP4"), {{"m.weight", LQ_U8, 2, N, K / 2}, {"m.weight_scale", LQ_E4M3, 2, N, 1}, {"m.weight_scale_2", LQ_F32, 0, 0, 0}}, LQ_ERR_FORMAT, "expected [4, 2]"},
        {CONFIG("NVFP4"), {{"m.weight", LQ_U8, 2, N, 9}, {"m.weight_scale", LQ_E4M3, 2, N, 1}, {"m.weight_scale_2", LQ_F32, 0, 0, 0}}, LQ_ERR_FORMAT, "18 inputs"},
        {CONFIG("W4A16_AWQ"), {{"m.weight", LQ_U8, 2, N / 2, K}, {"m.weight_scale", LQ_F32, 2, N, 5}}, LQ_ERR_FORMAT, "m.weight_scale"},
        {CONFIG("W4A16_AWQ"), {{"m.weight", LQ_U8, 2, N / 2, K}, {"m.weight_scale", LQ_F32, 2, N - 2, 2}}, LQ_ERR_FORMAT, "expected [4, 2]"},
        {CONFIG("W4A16_AWQ"), {{"m.weight", LQ_U8, 2, N / 2, K}, {"m.weight_scale", LQ_F32, 2, N, 2}, {"m.pre_quant_scale", LQ_F32, 1, 4, 0}}, LQ_ERR_FORMAT, "'m.pre_quant_scale' is [4"},
        {CONFIG("W4A16_AWQ"), {{"m.weight", LQ_U8, 2, N / 2, K}, {"m.weight_scale", LQ_F32, 2, N, 2}, {"m.pre_quant_scale", LQ_E4M3, 1, K, 0}}, LQ_ERR_FORMAT, "'m.pre_quant_scale' is of type"},
        {CONFIG("FP8"), {{"m.weight", LQ_E4M3, 2, N, K}, {"m.weight_scale", LQ_F32, 0, 0, 0}, {"m.pre_quant_scale", LQ_F32, 1, K, 0}}, LQ_ERR_UNSUPPORTED, "beside FP8"},
        {CONFIG("MIXED_PRECISION"), {{"m.weight", LQ_E4M3, 2, N, K}, {"m.weight_scale", LQ_F32, 0, 0, 0}}, LQ_ERR_FORMAT, "no quantized_layers"},
        {MIXED("\"q\": {\"quant_algo\": \"FP8\"}"), {{"m.weight", LQ_E4M3, 2, N, K}, {"m.weight_scale", LQ_F32, 0, 0, 0}}, LQ_ERR_FORMAT, "quantized_layers does not name it"},
        {MIXED("\"m\": {\"quant_algo\": \"MXFP8\"}"), {{"m.weight", LQ_E4M3, 2, N, K}, {"m.weight_scale", LQ_F32, 0, 0, 0}}, LQ_ERR_UNSUPPORTED, "'MXFP8' is not read"},
        {MIXED("\"m\": {\"quant_algo\": \"W4A16_AWQ\", \"group_size\": 8}"), {{"m.weight", LQ_U8, 2, N / 2, K}, {"m.weight_scale", LQ_F32, 2, N, 2}}, LQ_ERR_FORMAT, "groups of 8"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_peer(cases[i].config, cases[i].p);
        folder_refused(cases[i].st, cases[i].says);
    }
}

static void layers_of_mixed_precision_are_of_their_own_algorithms(void **state) {
    (void)state;
    static const char config[] = MIXED("\"m\": {\"quant_algo\": \"W4A16_NVFP4\", \"group_size\": 16}");
    const piece p[4] = {{"m.weight", LQ_U8, 2, N, K / 2}, {"m.weight_scale", LQ_E4M3, 2, N, K / 16}, {"m.weight_scale_2", LQ_F32, 0, 0, 0}};
    lq_source *s;
    memset(bytes, 0x38, sizeof bytes);
    floats[0] = 0.5f;
    write_peer(config, p);
    GOOD_ST(lq_source_open(&ctx, dir, &s));
    lq_scheme want = nvfp4();
    assert_true(s->n == 1 && lq_scheme_eq(&s->entries[0].scheme, &want));
    lq_source_free(&s);
    floats[0] = 0;
    memset(bytes, 0, sizeof bytes);

    lq_row rows[] = {{.slot = {0, LQ_R_Q, -1}, .name = "a.q.weight", .ndim = 2, .shape = {N, K}, .linear = true, .quantize = true, .scheme = nvfp4()},
                     {.slot = {0, LQ_R_UP, -1}, .name = "a.up.weight", .ndim = 2, .shape = {N, K}, .linear = true, .quantize = true, .scheme = lq_scheme_int(4, 16, true)}};
    const lq_catalog cat = {.rows = rows, .n = 2}; /* the sink borrows both */
    const lq_sink_opts opts = {0};
    lq_sink *sink;
    lq_remove_tree(NULL, dir);
    GOOD_ST(lq_mkdir(&ctx, dir));
    GOOD_ST(lq_sink_open(&ctx, lq_format_by_name("modelopt"), dir, &cat, &opts, &sink));
    GOOD_ST(lq_sink_config(sink, "{}", 2));
    lq_sink_abandon(&sink);
    json_t *c = written_config(dir, "quantization_config"), *layers = json_object_get(c, "quantized_layers"), *groups = json_object_get(c, "config_groups");
    assert_string_equal(json_string_value(json_object_get(c, "quant_algo")), "MIXED_PRECISION");
    assert_string_equal(json_string_value(json_object_get(json_object_get(layers, "a.q"), "quant_algo")), "W4A16_NVFP4");
    assert_string_equal(json_string_value(json_object_get(json_object_get(layers, "a.up"), "quant_algo")), "W4A16_AWQ");
    assert_int_equal(json_object_size(groups), 2);
    assert_string_equal(json_string_value(json_array_get(json_object_get(json_object_get(groups, "group_1"), "targets"), 0)), "a.up");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(c, "meta"), "scale_sig")), 8);
    json_decref(c);
}

static void weights_of_w4a4_are_read_alone(void **state) {
    (void)state;
    const piece p[4] = {{"m.weight", LQ_U8, 2, N, K / 2}, {"m.weight_scale", LQ_E4M3, 2, N, K / 16}, {"m.weight_scale_2", LQ_F32, 0, 0, 0}, {"m.input_scale", LQ_F32, 0, 0, 0}};
    lq_source *s;
    memset(bytes, 0x38, sizeof bytes);
    floats[0] = 0.5f;
    write_peer(CONFIG("NVFP4"), p);
    GOOD_ST(lq_source_open(&ctx, dir, &s));
    lq_scheme want = nvfp4();
    assert_true(s->n == 1 && lq_scheme_eq(&s->entries[0].scheme, &want));
    lq_source_free(&s);
    floats[0] = 0;
    memset(bytes, 0, sizeof bytes);
}

static void settings_may_stand_beside_the_config(void **state) {
    (void)state;
    const piece p[4] = {{"m.weight", LQ_E4M3, 2, N, K}, {"m.weight_scale", LQ_F32, 0, 0, 0}};
    static const char h[] = "{\"producer\": {\"name\": \"modelopt\"}, \"quantization\": {\"quant_algo\": \"FP8\"}}";
    lq_source *s;
    write_peer("{\"model_type\": \"llama\"}", p);
    GOOD_ST(lq_write_file(&ctx, in(dir, "hf_quant_config.json"), h, strlen(h)));
    GOOD_ST(lq_source_open(&ctx, dir, &s));
    assert_string_equal(s->reader->name, "modelopt");
    assert_int_equal(s->entries[0].scheme.act.kind, LQ_ACT_DYNAMIC);
    lq_source_free(&s);
}

int main(void) {
    lq_threads_set(1);
    const struct CMUnitTest tests[] = {
        IN_FOLDERS(nvfp4_is_the_worked_example),
        IN_FOLDERS(awq_pairs_outputs_in_a_byte),
        IN_FOLDERS(fp8_has_scalars_or_a_scale_per_row),
        IN_FOLDERS(scales_of_keys_are_named_after_the_projection),
        IN_FOLDERS(refusals_name_what_fits),
        IN_FOLDERS(exports_of_modelopt_read_and_are_written_again), IN_FOLDERS(factors_of_inputs_are_read_and_written), IN_FOLDERS(factors_beside_nvfp4_are_read),
        IN_FOLDERS(false_files_are_refused_by_name),
        IN_FOLDERS(layers_of_mixed_precision_are_of_their_own_algorithms),
        IN_FOLDERS(weights_of_w4a4_are_read_alone),
        IN_FOLDERS(settings_may_stand_beside_the_config),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
