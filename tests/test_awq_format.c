/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The AWQ gemm layout against words worked out by hand and GPTQModel's packer; the reader against files it must not believe. */
#include "tests/format_folder.h"

enum { N = 16, K = 32, GROUP = 16 };

/* -- writer ---------------------------------------------------------------------------------------------------------- */

static void count_outputs(lq_qtensor *q) { /* outputs 0..7 hold codes 1..8 at every input, outputs 8..15 codes 0..7 */
    for (uint32_t n = 0; n < N; n++)
        for (uint32_t k = 0; k < K; k++) lq_code_put(q->codes + n * q->row_bytes, 4, k, n < 8 ? n + 1 : n - 8);
    for (uint32_t n = 0; q->sch.zero_kind == LQ_ZERO_CODE && n < N; n++)
        for (uint32_t g = 0; g < K / GROUP; g++) ((uint8_t *)q->zero.v)[n * (K / GROUP) + g] = (uint8_t)(n < 8 ? n + 1 : g);
    for (size_t i = 0; i < N * K / GROUP; i++) lq_plane_set(&q->sch.scale, &q->scale, i, (float)i + 1);
}

static void words_are_the_worked_example(void **state) {
    (void)state;
    lq_scheme s = lq_scheme_int(4, GROUP, false);
    lq_st_file f;
    write_one("awq", &s, N, K, count_outputs, &f);
    uint32_t *w = part(&f, ".qweight", LQ_I32, 2, K, N / 8), *z = part(&f, ".qzeros", LQ_I32, 2, K / GROUP, N / 8);
    uint16_t *sc = part(&f, ".scales", LQ_F16, 2, K / GROUP, N);
    for (uint32_t k = 0; k < K; k++) assert_true(w[2 * k] == 0x86427531 && w[2 * k + 1] == 0x75316420);
    assert_true(z[0] == 0x86427531 && z[1] == 0 && z[2] == 0x86427531 && z[3] == 0x11111111);
    for (uint32_t g = 0; g < K / GROUP; g++)
        for (uint32_t n = 0; n < N; n++) assert_true(lq_f16_f32(sc[g * N + n]) == (float)(n * (K / GROUP) + g + 1));
    free(w);
    free(z);
    free(sc);
    assert_int_equal(f.n, 3);
    lq_st_close(&f);
}

static void a_symmetric_matrix_has_zero_points_of_eight(void **state) {
    (void)state;
    lq_scheme s = lq_scheme_int(4, GROUP, true);
    lq_st_file f;
    write_one("awq", &s, N, K, count_outputs, &f);
    uint32_t *z = part(&f, ".qzeros", LQ_I32, 2, K / GROUP, N / 8);
    for (uint32_t i = 0; i < 4; i++) assert_int_equal(z[i], 0x88888888);
    free(z);
    lq_st_close(&f);
    json_t *c = written_config(dir, "quantization_config");
    assert_true(json_is_true(json_object_get(c, "zero_point")) && json_is_true(json_object_get(json_object_get(c, "meta"), "sym")));
    json_decref(c);
}

static void one_group_for_a_row_is_minus_one(void **state) {
    (void)state;
    lq_scheme s = lq_scheme_int(4, -1, false);
    lq_st_file f;
    write_one("awq", &s, N, K, NULL, &f);
    free(part(&f, ".qzeros", LQ_I32, 2, 1, N / 8));
    lq_st_close(&f);
    json_t *c = written_config(dir, "quantization_config");
    assert_int_equal(json_integer_value(json_object_get(c, "group_size")), -1);
    assert_string_equal(json_string_value(json_object_get(c, "version")), "gemm");
    json_decref(c);
}

static lq_row linear(const char *name, lq_role role, const lq_scheme *s) {
    lq_row r = {.slot = {0, (uint16_t)role, -1}, .name = name, .ndim = 2, .shape = {N, K}, .linear = true, .quantize = s != NULL, .out_dtype = LQ_BF16};
    if (s) r.scheme = *s;
    return r;
}

static lq_status open_rows(lq_row *rows, size_t n, json_t **config) {
    lq_catalog cat = {.rows = rows, .n = n};
    lq_sink *sink;
    LQ_TRY(lq_sink_open(&ctx, lq_format_by_name("awq"), dir, &cat, &(lq_sink_opts){0}, &sink));
    GOOD_ST(lq_sink_config(sink, "{}", 2));
    lq_sink_abandon(&sink);
    *config = written_config(dir, "quantization_config");
    return LQ_OK;
}

static void kept_linears_are_named(void **state) {
    (void)state;
    lq_scheme asym = lq_scheme_int(4, GROUP, false), sym = lq_scheme_int(4, GROUP, true);
    lq_row rows[] = {linear("l.0.q.weight", LQ_R_Q, &asym), linear("l.0.k.weight", LQ_R_K, NULL), linear("l.0.v.weight", LQ_R_V, &sym), linear("e.weight", LQ_R_EMBED, NULL)};
    json_t *c, *kept = json_pack("[s, s]", "l.0.k", "lm_head"), *symmetric = json_pack("[s]", "l.0.v");
    GOOD_ST(open_rows(rows, 4, &c));
    assert_true(json_equal(json_object_get(c, "modules_to_not_convert"), kept));
    assert_true(json_equal(json_object_get(json_object_get(c, "meta"), "sym"), symmetric));
    json_decref(c);
    json_decref(kept);
    json_decref(symmetric);
}

/* vLLM looks for substrings. */
static void a_kept_name_inside_a_quantized_one_is_refused(void **state) {
    (void)state;
    lq_scheme asym = lq_scheme_int(4, GROUP, false);
    lq_row rows[] = {linear("l.0.mlp.gate.weight", LQ_R_ROUTER, NULL), linear("l.0.mlp.gate_proj.weight", LQ_R_GATE, &asym)};
    json_t *c;
    assert_int_equal(open_rows(rows, 2, &c), LQ_ERR_UNSUPPORTED);
    assert_non_null(strstr(ctx.msg, "'l.0.mlp.gate_proj'"));
}

static void two_group_sizes_are_refused(void **state) {
    (void)state;
    lq_scheme a = lq_scheme_int(4, GROUP, false), b = lq_scheme_int(4, -1, false);
    lq_row rows[] = {linear("l.0.q.weight", LQ_R_Q, &a), linear("l.0.k.weight", LQ_R_K, &b)};
    json_t *c;
    assert_int_equal(open_rows(rows, 2, &c), LQ_ERR_UNSUPPORTED);
    assert_non_null(strstr(ctx.msg, "--format gptq"));
}

static void refusals_name_the_nearest_setting(void **state) {
    (void)state;
    static const struct { int bits, group; uint32_t rows, cols; const char *says; } cases[] = {
        {3, 32, 64, 64, "--bits 4"}, {8, 32, 64, 64, "--format gptq"}, {4, 128, 64, 576, "--group-size 144"}, {4, 64, 44, 64, "the nearest: 40"}, {4, 128, 64, 64, "--group-size 64"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        lq_ctx c = {0};
        lq_scheme s = lq_scheme_int(cases[i].bits, cases[i].group, true);
        assert_int_equal(lq_format_by_name("awq")->accept(&c, &s, cases[i].rows, cases[i].cols), LQ_ERR_UNSUPPORTED);
        if (!strstr(c.msg, cases[i].says)) fail_msg("'%s' lacks '%s'", c.msg, cases[i].says);
    }
}

/* -- golden ---------------------------------------------------------------------------------------------------------- */

static void a_checkpoint_of_gptqmodels_packer_reads_to_its_floats(void **state) {
    (void)state;
    golden_reads("awq");
}

static void it_is_written_again_byte_for_byte(void **state) {
    (void)state;
    golden_is_written_again("awq", "awq");
}

/* -- reader ---------------------------------------------------------------------------------------------------------- */

#define CONFIG(more) "{\"quantization_config\": {\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 16, \"zero_point\": true" more "}}"

typedef struct peer { uint32_t qweight[K][N / 8], qzeros[K / GROUP][N / 8]; uint16_t scales[K / GROUP][N]; } peer;

static peer peer_make(void) {
    peer p = {0};
    for (uint32_t k = 0; k < K; k++) p.qweight[k][0] = 0x86427531;
    for (uint32_t g = 0; g < K / GROUP; g++)
        for (uint32_t n = 0; n < N; n++) {
            p.scales[g][n] = lq_f32_f16(0.5f);
            p.qzeros[g][n / 8] = 0x88888888;
        }
    return p;
}

static void write_peer(const peer *p, const char *config, lq_st_tensor *t, size_t n) {
    const void *data[3] = {p->qweight, p->qzeros, p->scales};
    write_folder(t, data, n, config);
}
#define TENSORS                                                                                                                             \
    {{.name = "m.qweight", .dtype = LQ_I32, .ndim = 2, .shape = {K, N / 8}}, {.name = "m.qzeros", .dtype = LQ_I32, .ndim = 2, .shape = {K / GROUP, N / 8}}, \
     {.name = "m.scales", .dtype = LQ_F16, .ndim = 2, .shape = {K / GROUP, N}}}

static void an_asymmetric_file_keeps_its_zero_points(void **state) {
    (void)state;
    static const char *const configs[] = {CONFIG(""), CONFIG(", \"version\": \"GEMM\""), CONFIG(", \"format\": \"gemm\", \"meta\": {\"scale_sig\": 8, \"sym\": [\"m\"]}")};
    lq_st_tensor t[] = TENSORS;
    peer p = peer_make();
    for (size_t i = 0; i < 3; i++) {
        lq_source *s;
        lq_qtensor q;
        float row[K];
        write_peer(&p, configs[i], t, 3);
        GOOD_ST(lq_source_open(&ctx, dir, &s));
        assert_true(s->n == 1 && !strcmp(s->entries[0].name, "m.weight"));
        GOOD_ST(lq_source_read_q(&ctx, s, 0, &q));
        assert_int_equal(q.sch.zero_kind, i == 2 ? LQ_ZERO_NONE : LQ_ZERO_CODE);
        for (uint32_t n = 0; n < N; n++) {
            lq_qtensor_decode_row(&q, n, row);
            for (uint32_t k = 0; k < K; k++) assert_true(row[k] == 0.5f * ((n < 8 ? (float)n + 1 : 0) - 8));
        }
        lq_qtensor_free(&q);
        lq_source_free(&s);
    }
}

static void other_layouts_and_false_configs_are_refused(void **state) {
    (void)state;
    static const struct { const char *config; lq_status st; const char *says; } cases[] = {
        {CONFIG(", \"version\": \"gemv\""), LQ_ERR_UNSUPPORTED, "'gemv'"},
        {CONFIG(", \"version\": \"gemv_fast\""), LQ_ERR_UNSUPPORTED, "'gemv_fast'"},
        {CONFIG(", \"version\": 3"), LQ_ERR_FORMAT, "version"},
        {CONFIG(", \"meta\": {\"sym\": [1]}"), LQ_ERR_FORMAT, "'sym'"},
        {CONFIG(", \"meta\": {\"sym\": [\"m\", \"m\"]}"), LQ_ERR_FORMAT, "twice"},
        {CONFIG(", \"meta\": {\"scale_sig\": 40}"), LQ_ERR_FORMAT, "scale_sig"},
        {"{\"quantization_config\": {\"quant_method\": \"awq\", \"bits\": 8, \"group_size\": 16}}", LQ_ERR_UNSUPPORTED, "8 bits"},
        {"{\"quantization_config\": {\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 0}}", LQ_ERR_FORMAT, "group_size"},
        {"{\"quantization_config\": {\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 24}}", LQ_ERR_FORMAT, "24"},
        {"{\"quantization_config\": {\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 8}}", LQ_ERR_FORMAT, "m.qzeros"},
        {"{\"quantization_config\": {\"quant_method\": \"awq\", \"bits\": 4}}", LQ_ERR_FORMAT, "group_size"},
    };
    lq_st_tensor t[] = TENSORS;
    peer p = peer_make();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_peer(&p, cases[i].config, t, 3);
        folder_refused(cases[i].st, cases[i].says);
    }
}

static void hostile_parts_are_refused_by_name(void **state) {
    (void)state;
    lq_st_tensor t[] = TENSORS;
    peer p = peer_make();
    write_peer(&p, CONFIG(""), t, 2);
    folder_refused(LQ_ERR_FORMAT, "'m' has no scales");
    t[1].shape[0] = 1;
    write_peer(&p, CONFIG(""), t, 3);
    folder_refused(LQ_ERR_FORMAT, "m.qzeros");
    t[1].shape[0] = K / GROUP, t[2].dtype = LQ_I16;
    write_peer(&p, CONFIG(""), t, 3);
    folder_refused(LQ_ERR_FORMAT, "I16");
    t[2].dtype = LQ_F16, t[0].ndim = 1, t[0].shape[0] = K * N / 8;
    write_peer(&p, CONFIG(""), t, 3);
    folder_refused(LQ_ERR_FORMAT, "1 dimensions");
    t[0].ndim = 2, t[0].shape[0] = K;
    p.scales[1][3] = 0x7c00;
    write_peer(&p, CONFIG(""), t, 3);
    folder_refused(LQ_ERR_FORMAT, "m.weight");
    p.scales[1][3] = 0x3c00, p.qzeros[1][1] = 0x88878888;
    write_peer(&p, CONFIG(", \"meta\": {\"sym\": true}"), t, 3);
    folder_refused(LQ_ERR_FORMAT, "output 9 has zero point 7, expected 8");
}

int main(void) {
    lq_threads_set(1);
    const struct CMUnitTest tests[] = {
        IN_FOLDERS(words_are_the_worked_example),
        IN_FOLDERS(a_symmetric_matrix_has_zero_points_of_eight),
        IN_FOLDERS(one_group_for_a_row_is_minus_one),
        IN_FOLDERS(kept_linears_are_named),
        IN_FOLDERS(a_kept_name_inside_a_quantized_one_is_refused),
        IN_FOLDERS(two_group_sizes_are_refused),
        IN_FOLDERS(refusals_name_the_nearest_setting),
        IN_FOLDERS(a_checkpoint_of_gptqmodels_packer_reads_to_its_floats),
        IN_FOLDERS(it_is_written_again_byte_for_byte),
        IN_FOLDERS(an_asymmetric_file_keeps_its_zero_points),
        IN_FOLDERS(other_layouts_and_false_configs_are_refused),
        IN_FOLDERS(hostile_parts_are_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
