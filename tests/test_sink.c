/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The rules of the sink, damaged lqt files, the codec alone. */
#define _GNU_SOURCE
#include "format_model.h"

/* -- rules of the sink ----------------------------------------------------------------------------------------------- */

static lq_sink *open_sink(lq_ctx *ctx, const char *format, model *m) {
    lq_sink *s;
    fresh_dir();
    assert_int_equal(lq_sink_open(ctx, lq_format_by_name(format), dir, &m->cat, &(lq_sink_opts){0}, &s), LQ_OK);
    return s;
}

static void a_missing_tensor_is_named_at_close(void **state) {
    (void)state;
    static const char *const formats[] = {"gptq", "lqt"};
    lq_scheme scheme = lq_scheme_int(4, 32, true);
    model m;
    model_make(&m, &scheme, 1);
    for (size_t k = 0; k < 2; k++) {
        lq_ctx ctx = {0};
        lq_sink *s = open_sink(&ctx, formats[k], &m);
        for (size_t i = 0; i < ROWS; i++)
            if (i != 7) assert_int_equal(m.rows[i].quantize ? lq_sink_put(s, &m.q[i]) : lq_sink_put_fp(s, &m.rows[i], m.fp[i], m.fp_bytes[i]), LQ_OK);
        assert_int_equal(lq_sink_close(&s), LQ_ERR_QUALITY);
        assert_null(s);
        assert_non_null(strstr(ctx.msg, "model.norm.weight"));
        lq_remove_tree(NULL, dir);
    }
    model_free(&m);
}

static void what_was_not_planned_is_refused(void **state) {
    (void)state;
    lq_scheme scheme = lq_scheme_int(4, 32, true);
    lq_ctx ctx = {0};
    model m;
    model_make(&m, &scheme, 1);
    lq_sink *s = open_sink(&ctx, "lqt", &m);
    assert_int_equal(lq_sink_put_fp(s, &m.rows[1], m.fp[1], m.fp_bytes[1] - 1), LQ_ERR_INTERNAL);
    assert_int_equal(lq_sink_put_fp(s, &m.rows[2], m.fp[1], m.fp_bytes[1]), LQ_ERR_INTERNAL);
    m.q[4].sch.scale.sig = 5;
    assert_int_equal(lq_sink_put(s, &m.q[4]), LQ_ERR_INTERNAL);
    ((uint16_t *)m.q[2].scale.v)[3] = 0x7e00;
    assert_int_equal(lq_sink_put(s, &m.q[2]), LQ_ERR_QUALITY);
    assert_int_equal(lq_sink_put(s, &m.q[5]), LQ_OK);
    assert_int_equal(lq_sink_put(s, &m.q[5]), LQ_ERR_INTERNAL);
    assert_int_equal(lq_sink_sidecar(s, "../up", "x", 1), LQ_ERR_FORMAT);
    lq_sink_abandon(&s);
    lq_remove_tree(NULL, dir);
    model_free(&m);
}

static void check_splice(const char *text, const char *head, const char *tail, lq_status want) {
    lq_scheme scheme = lq_scheme_int(4, 32, true);
    lq_ctx ctx = {0};
    model m;
    model_make(&m, &scheme, 1);
    lq_sink *s = open_sink(&ctx, "gptq", &m);
    assert_int_equal(lq_sink_config(s, text, strlen(text)), want);
    lq_sink_abandon(&s);
    if (!want) {
        char path[128];
        lq_buf b;
        snprintf(path, sizeof path, "%s/config.json", dir);
        assert_int_equal(lq_file_slurp(&ctx, path, 1 << 20, &b), LQ_OK);
        assert_memory_equal(b.v, head, strlen(head));
        assert_string_equal(b.v + b.n - strlen(tail), tail);
        json_t *doc;
        assert_int_equal(lq_json_parse(&ctx, path, b.v, b.n, &doc), LQ_OK);
        assert_int_equal(json_integer_value(json_object_get(json_object_get(doc, "quantization_config"), "bits")), 4);
        json_decref(doc);
        lq_buf_free(&b);
    }
    lq_remove_tree(NULL, dir);
    model_free(&m);
}

static void config_keeps_every_other_byte(void **state) {
    (void)state;
    check_splice(config_text, "{\n  \"model_type\": \"llama\",\n\t\"odd\":   [1,  2],\n  \"quantization_config\": {\n    \"quant_method\"", "\n  }\n}\n", LQ_OK);
    check_splice("{\"a\":{\"}\":1}}", "{\"a\":{\"}\":1},\n  \"quantization_config\"", "  }\n}", LQ_OK);
    check_splice("{}", "{\n  \"quantization_config\"", "  }\n}", LQ_OK);
    check_splice("{ \n } \r\n", "{\n  \"quantization_config\"", "  } \n } \r\n", LQ_OK);
    check_splice("{\"quantization_config\": {}}", "", "", LQ_ERR_UNSUPPORTED);
    check_splice("[1]", "", "", LQ_ERR_FORMAT);
    check_splice("{", "", "", LQ_ERR_FORMAT);
}

static void a_full_disk_is_an_output_error(void **state) {
    (void)state;
    lq_scheme scheme = lq_scheme_int(4, 32, true);
    struct rlimit old, small;
    model m;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 3000;
    EACH_FORMAT(f) {
        if ((*f)->accept(NULL, &scheme, HIDDEN, WIDE)) continue;
        lq_ctx ctx = {0};
        model_make(&m, &scheme, 1);
        fresh_dir();
        setrlimit(RLIMIT_FSIZE, &small);
        lq_status st = write_model(&ctx, *f, &m);
        setrlimit(RLIMIT_FSIZE, &old);
        assert_int_equal(st, LQ_ERR_IO);
        assert_non_null(strstr(ctx.msg, dir));
        lq_remove_tree(NULL, dir);
        model_free(&m);
    }
}

static void every_failed_allocation_is_reported(void **state) {
    (void)state;
    lq_scheme fp8 = {.grid = {LQ_GRID_E4M3, 8, 1, 0}, .scale = {.dtype = LQ_F32}, .act = {.kind = LQ_ACT_STATIC, .dtype = LQ_E4M3}};
    lq_scheme pairs[][2] = {{lq_scheme_int(3, 32, false), lq_scheme_int(4, 32, true)}, {lq_scheme_int(4, 32, false), lq_scheme_int(4, 32, true)}, {fp8, fp8}, {lq_scheme_int(4, 32, true), lq_scheme_int(8, 64, true)}, {lq_scheme_int(4, 32, true), lq_scheme_int(4, 32, true)}};
    EACH_FORMAT(f) {
        size_t p = 0;
        while (p < sizeof pairs / sizeof *pairs && ((*f)->accept(NULL, &pairs[p][0], HIDDEN, WIDE) || (*f)->accept(NULL, &pairs[p][1], HIDDEN, WIDE))) p++;
        if (p == sizeof pairs / sizeof *pairs) continue;
        const lq_scheme *schemes = pairs[p];
        model m;
        model_make(&m, schemes, 2);
        lq_status st = LQ_ERR_RESOURCE;
        for (long n = 0; st; n++) {
            lq_ctx ctx = {0};
            bool same = false;
            fresh_dir();
            lq_mem_fail_after(n);
            st = write_model(&ctx, *f, &m);
            if (!st) st = read_model(&ctx, &m, &same);
            lq_mem_fail_after(-1);
            if (st ? st != LQ_ERR_RESOURCE : !same) fail_msg("%s, allocation %ld: status %d, %s", (*f)->name, n, (int)st, ctx.msg);
            lq_remove_tree(NULL, dir);
        }
        model_free(&m);
    }
}

/* -- damaged files --------------------------------------------------------------------------------------------------- */

static lq_buf slurp(const char *path) {
    lq_buf b;
    assert_int_equal(lq_file_slurp(NULL, path, 1 << 24, &b), LQ_OK);
    return b;
}

static void spill(const char *path, const void *v, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(v, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void write_lqt(lq_ctx *ctx, model *m) {
    lq_scheme schemes[2] = {lq_scheme_int(3, 32, false), lq_scheme_int(4, -1, true)};
    model_make(m, schemes, 2);
    fresh_dir();
    assert_int_equal(write_model(ctx, lq_format_by_name("lqt"), m), LQ_OK);
}

static void lqt_refuses_every_truncation(void **state) {
    (void)state;
    lq_ctx ctx = {0};
    model m;
    bool same;
    write_lqt(&ctx, &m);
    lq_buf b = slurp(out_path);
    for (size_t n = 0; n < b.n; n += n < 64 || n + 600 > b.n ? 1 : 37) {
        spill(out_path, b.v, n);
        assert_int_equal(read_model(&ctx, &m, &same), LQ_ERR_FORMAT);
    }
    lq_buf_free(&b);
    lq_remove_tree(NULL, dir);
    model_free(&m);
}

static void lqt_never_reads_a_flipped_bit_as_data(void **state) {
    (void)state;
    lq_ctx ctx = {0};
    model m;
    bool same;
    size_t refused = 0, harmless = 0;
    write_lqt(&ctx, &m);
    lq_buf b = slurp(out_path);
    for (size_t i = 0; i < b.n; i += i < 64 || i + 200 > b.n ? 1 : 13) {
        b.v[i] = (char)(b.v[i] ^ 1 << i % 8);
        spill(out_path, b.v, b.n);
        lq_status st = read_model(&ctx, &m, &same);
        if (st ? st != LQ_ERR_FORMAT : !same) fail_msg("byte %zu: status %d", i, (int)st);
        *(st ? &refused : &harmless) += 1;
        b.v[i] = (char)(b.v[i] ^ 1 << i % 8);
    }
    assert_true(refused > 50 * harmless); /* a flip may hit a bit of zstd that carries nothing */
    lq_buf_free(&b);
    lq_remove_tree(NULL, dir);
    model_free(&m);
}

static void the_same_puts_give_the_same_bytes(void **state) {
    (void)state;
    lq_ctx ctx = {0};
    model m;
    lq_buf b[2];
    for (int i = 0; i < 2; i++) {
        write_lqt(&ctx, &m);
        b[i] = slurp(out_path);
        lq_remove_tree(NULL, dir);
        model_free(&m);
    }
    assert_int_equal(b[0].n, b[1].n);
    assert_memory_equal(b[0].v, b[1].v, b[0].n);
    lq_buf_free(&b[0]);
    lq_buf_free(&b[1]);
}

/* Rows that begin and end inside pieces: read by halves must be the whole. */
static void lqt_reads_any_rows_of_a_large_tensor(void **state) {
    (void)state;
    enum { R = 3000, C = 1000 };
    lq_row row = {.slot = {-1, LQ_R_EMBED, -1}, .name = "e.weight", .ndim = 2, .shape = {R, C}, .out_dtype = LQ_F32};
    lq_catalog cat = {.rows = &row, .n = 1};
    lq_ctx ctx = {0};
    lq_sink *s;
    lq_source *src;
    float *data = malloc(sizeof(float) * R * C), *got = malloc(sizeof(float) * R * C);
    for (size_t i = 0; i < (size_t)R * C; i++) data[i] = (float)i;
    fresh_dir();
    assert_int_equal(lq_sink_open(&ctx, lq_format_by_name("lqt"), dir, &cat, &(lq_sink_opts){0}, &s), LQ_OK);
    assert_int_equal(lq_sink_put_fp(s, &row, data, sizeof(float) * R * C), LQ_OK);
    assert_int_equal(lq_sink_close(&s), LQ_OK);
    snprintf(out_path, sizeof out_path, "%s/model.lqt", dir);
    assert_int_equal(lq_source_open(&ctx, out_path, &src), LQ_OK);
    static const uint64_t cuts[] = {0, 1, 1048, 1049, 1050, 2097, 2098, R};
    for (size_t i = 0; i + 1 < sizeof cuts / sizeof *cuts; i++)
        assert_int_equal(lq_source_read(&ctx, src, 0, cuts[i], cuts[i + 1] - cuts[i], got + cuts[i] * C), LQ_OK);
    assert_memory_equal(data, got, sizeof(float) * R * C);
    lq_source_free(&src);
    lq_remove_tree(NULL, dir);
    free(data);
    free(got);
}

/* -- the codec alone ------------------------------------------------------------------------------------------------- */

static void the_codec_keeps_what_eq_does_not_see(void **state) {
    (void)state;
    lq_scheme s = lq_scheme_int(3, 32, false);
    lq_qtensor q, back;
    lq_buf b = {0};
    lq_rng rng;
    lq_rng_seed(&rng, 3, 3);
    assert_int_equal(lq_qtensor_init(NULL, &q, &s, (lq_slot){5, LQ_R_V, 2}, 7, 96), LQ_OK);
    fill_qtensor(&rng, &q);
    q.err_w = 0.25;
    q.err_h = 0.125;
    q.bias = lq_arena_alloc(q.mem, 7 * sizeof(float));
    q.bias[6] = -3;
    assert_int_equal(lq_qtensor_encode(NULL, &q, &b), LQ_OK);
    assert_int_equal(lq_qtensor_decode(NULL, b.v, b.n, &back), LQ_OK);
    assert_true(lq_qtensor_eq(&q, &back) && back.slot.block == 5 && back.slot.role == LQ_R_V && back.slot.expert == 2);
    assert_true(back.err_w == 0.25 && back.err_h == 0.125 && back.bias[6] == -3);
    lq_qtensor_free(&back);
    for (size_t n = 0; n < b.n; n++) assert_int_equal(lq_qtensor_decode(NULL, b.v, n, &back), LQ_ERR_FORMAT);
    for (size_t i = 0; i < b.n * 8; i++) { /* every single flip: an error or a sound matrix */
        b.v[i / 8] = (char)(b.v[i / 8] ^ 1 << i % 8);
        float row[96];
        if (!lq_qtensor_decode(NULL, b.v, b.n, &back)) {
            assert_true(back.cols <= 96);
            lq_qtensor_decode_row(&back, back.rows - 1, row);
            assert_int_equal(lq_qtensor_check(NULL, &back, LQ_ERR_FORMAT), LQ_OK);
            lq_qtensor_free(&back);
        }
        b.v[i / 8] = (char)(b.v[i / 8] ^ 1 << i % 8);
    }
    lq_buf_free(&b);
    lq_qtensor_free(&q);
}

int main(void) {
    lq_threads_set(1); /* tiny matrices */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_missing_tensor_is_named_at_close),
        cmocka_unit_test(what_was_not_planned_is_refused),
        cmocka_unit_test(config_keeps_every_other_byte),
        cmocka_unit_test(a_full_disk_is_an_output_error),
        cmocka_unit_test(every_failed_allocation_is_reported),
        cmocka_unit_test(lqt_refuses_every_truncation),
        cmocka_unit_test(lqt_never_reads_a_flipped_bit_as_data),
        cmocka_unit_test(the_same_puts_give_the_same_bytes),
        cmocka_unit_test(lqt_reads_any_rows_of_a_large_tensor),
        cmocka_unit_test(the_codec_keeps_what_eq_does_not_see),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
