/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Statistics files: what is put comes back, halves merge to the whole, nothing impossible is believed. */
#define _DEFAULT_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "calib/stats_file.h"
#include "matrices.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COLS = 150, TOKENS = 2048, HALF = 1024 };
static const lq_stats_item items[] = {{"model.layers.0.self_attn.q_proj", COLS}, {"model.layers.0.mlp.down_proj", 7}};
static char dir[] = "/tmp/lquant-stats-XXXXXX";

#define PASS(x)                                     \
    do {                                            \
        lq_status pass_st_ = (x);                   \
        if (pass_st_) fail_msg("%s", ctx.msg);      \
    } while (0)

static json_t *identity(const char *model, const char *text) {
    return json_pack("{s:i, s:{s:s}, s:s, s:[{s:s}]}", "lquant_stats", 1, "model", "linears", model, "weights", "w", "calibration", "text", text);
}

static lq_stats gather(const float *x, uint32_t n, uint32_t cols) {
    lq_stats s;
    assert_int_equal(lq_stats_init(NULL, &s, LQ_NEED_ABSMAX | LQ_NEED_SQUARES | LQ_NEED_GRAM | LQ_NEED_SAMPLES, cols), LQ_OK);
    assert_int_equal(lq_stats_add(NULL, &s, x, n), LQ_OK);
    return s;
}

/* A file of both items over tokens [from, from + n); its path is owned by the caller. */
static char *write_file(const char *name, const char *model, uint32_t from, uint32_t n, bool gram) {
    lq_ctx ctx = {0};
    char *folder = lq_strf("%s/%s", dir, name);
    json_t *id = identity(model, name);
    lq_stats_writer *w;
    PASS(lq_mkdir(&ctx, folder));
    PASS(lq_stats_create(&ctx, folder, items, 2, gram ? LQ_NEED_GRAM | LQ_NEED_SAMPLES : 0, id, &w));
    for (int i = 1; i >= 0; i--) {
        float *x = random_inputs((uint64_t)i, TOKENS, items[i].cols);
        lq_stats s = gather(x + (size_t)from * items[i].cols, n, items[i].cols);
        PASS(lq_stats_put(&ctx, w, items[i].name, &s));
        lq_stats_free(&s);
        lq_free(x);
    }
    PASS(lq_stats_finish(&ctx, &w));
    json_decref(id);
    char *path = lq_strf("%s/model.safetensors", folder);
    lq_free(folder);
    return path;
}

static int make_dir(void **state) {
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int drop_dir(void **state) {
    (void)state;
    return (int)lq_remove_tree(NULL, dir);
}

static void what_is_put_comes_back(void **state) {
    (void)state;
    lq_ctx ctx = {0};
    lq_stats_file f;
    lq_stats s;
    char *path = write_file("whole", "m", 0, TOKENS, true);
    float *x = random_inputs(0, TOKENS, COLS);
    lq_stats want = gather(x, TOKENS, COLS);
    PASS(lq_stats_open(&ctx, path, &f));
    assert_int_equal(f.extra, LQ_NEED_GRAM | LQ_NEED_SAMPLES);
    assert_int_equal(f.n, 2);
    assert_null(lq_stats_find(&f, "model.layers.0"));
    PASS(lq_stats_read(&ctx, &f, items[0].name, LQ_NEED_GRAM, &s));
    assert_int_equal(s.n, TOKENS);
    assert_int_equal(s.gram.n, TOKENS);
    assert_memory_equal(s.absmax, want.absmax, COLS * sizeof(float));
    assert_memory_equal(s.abssum, want.abssum, COLS * sizeof(double));
    assert_memory_equal(s.squares, want.squares, COLS * sizeof(double));
    for (uint32_t i = 0; i < COLS; i++)
        for (uint32_t j = 0; j <= i; j++) assert_true(lq_gram_at(&s.gram, i, j) == lq_gram_at(&want.gram, i, j));
    lq_stats_free(&s);
    PASS(lq_stats_read(&ctx, &f, items[0].name, LQ_NEED_SAMPLES, &s));
    assert_int_equal(s.n_samples, want.n_samples);
    assert_memory_equal(s.samples, want.samples, want.n_samples * COLS * sizeof(float));
    lq_stats_free(&s);
    PASS(lq_stats_read(&ctx, &f, items[0].name, 0, &s));
    assert_false(s.needs & (LQ_NEED_GRAM | LQ_NEED_SAMPLES));
    assert_true(fabs(lq_stats_second(&s, 3) / lq_gram_at(&want.gram, 3, 3) - 1) < 1e-5);
    lq_stats_free(&s);
    assert_int_equal(lq_stats_read(&ctx, &f, "nothing", LQ_NEED_GRAM, &s), LQ_ERR_MISMATCH);
    lq_stats_close(&f);
    lq_stats_free(&want);
    lq_free(x);
    lq_free(path);
}

static void halves_merge_to_the_whole_and_to_the_same_bytes(void **state) {
    (void)state;
    lq_ctx ctx = {0};
    char *paths[] = {write_file("first", "m", 0, HALF, true), write_file("second", "m", HALF, TOKENS - HALF, true), write_file("all", "m", 0, TOKENS, true)};
    char *out = lq_strf("%s/merged", dir), *out2 = lq_strf("%s/merged2", dir), *file = lq_strf("%s/merged/model.safetensors", dir);
    lq_stats_file f[4];
    PASS(lq_mkdir(&ctx, out));
    PASS(lq_mkdir(&ctx, out2));
    for (int i = 0; i < 3; i++) PASS(lq_stats_open(&ctx, paths[i], &f[i]));
    PASS(lq_stats_merge(&ctx, f, 2, out));
    PASS(lq_stats_merge(&ctx, f, 2, out2));
    PASS(lq_stats_open(&ctx, file, &f[3]));
    assert_int_equal(json_array_size(json_object_get(f[3].identity, "calibration")), 2);
    for (int i = 0; i < 2; i++) {
        lq_stats a, b;
        PASS(lq_stats_read(&ctx, &f[2], items[i].name, LQ_NEED_GRAM | LQ_NEED_SAMPLES, &a));
        PASS(lq_stats_read(&ctx, &f[3], items[i].name, LQ_NEED_GRAM | LQ_NEED_SAMPLES, &b));
        assert_int_equal(a.n, b.n);
        assert_int_equal(b.n_samples, LQ_SAMPLES); /* half of them from each */
        lq_stats first;
        PASS(lq_stats_read(&ctx, &f[0], items[i].name, LQ_NEED_SAMPLES, &first));
        assert_memory_equal(b.samples + a.cols, first.samples + (size_t)2 * a.cols, a.cols * sizeof(float));
        lq_stats_free(&first);
        for (uint32_t c = 0; c < a.cols; c++) {
            assert_true(a.absmax[c] == b.absmax[c]);
            assert_true(fabs(a.abssum[c] / b.abssum[c] - 1) < 1e-14);
            assert_true(fabs(a.squares[c] / b.squares[c] - 1) < 1e-14);
            for (uint32_t d = 0; d <= c; d++)
                assert_true(fabs(lq_gram_at(&a.gram, c, d) - lq_gram_at(&b.gram, c, d)) <= 1e-14 * sqrt(lq_gram_at(&a.gram, c, c) * lq_gram_at(&a.gram, d, d)));
        }
        lq_stats_free(&a);
        lq_stats_free(&b);
    }
    char hex[2][65], *file2 = lq_strf("%s/merged2/model.safetensors", dir);
    PASS(lq_sha_file(&ctx, file, hex[0]));
    PASS(lq_sha_file(&ctx, file2, hex[1]));
    assert_string_equal(hex[0], hex[1]);
    for (int i = 0; i < 4; i++) lq_stats_close(&f[i]);
    for (int i = 0; i < 3; i++) lq_free(paths[i]);
    lq_free(out), lq_free(out2), lq_free(file), lq_free(file2);
}

static void files_of_different_models_do_not_merge(void **state) {
    (void)state;
    lq_ctx ctx = {0};
    char *paths[] = {write_file("m1", "m", 0, HALF, true), write_file("m2", "other", 0, HALF, true), write_file("m3", "m", 0, HALF, false)};
    lq_stats_file f[3];
    for (int i = 0; i < 3; i++) PASS(lq_stats_open(&ctx, paths[i], &f[i]));
    assert_int_equal(f[2].extra, 0);
    assert_int_equal(lq_stats_merge(&ctx, f, 2, dir), LQ_ERR_MISMATCH);
    assert_non_null(strstr(ctx.msg, "different models"));
    lq_stats_file mixed[] = {f[0], f[2]};
    assert_int_equal(lq_stats_merge(&ctx, mixed, 2, dir), LQ_ERR_MISMATCH);
    assert_non_null(strstr(ctx.msg, "Hessians"));
    for (int i = 0; i < 3; i++) {
        lq_stats_close(&f[i]);
        lq_free(paths[i]);
    }
}

static lq_status read_all(lq_ctx *ctx, const char *path) {
    lq_stats_file f;
    LQ_TRY(lq_stats_open(ctx, path, &f));
    lq_status st = LQ_OK;
    for (size_t i = 0; i < f.n && !st; i++) {
        lq_stats s;
        st = lq_stats_read(ctx, &f, f.items[i].name, LQ_NEED_GRAM | LQ_NEED_SAMPLES, &s);
        if (!st) lq_stats_free(&s);
    }
    lq_stats_close(&f);
    return st;
}

/* Where in the file a tensor lies. */
static uint64_t place(const char *path, const char *tensor) {
    lq_st_file st;
    uint64_t at = 0;
    assert_int_equal(lq_st_open(NULL, path, &st), LQ_OK);
    for (size_t i = 0; i < st.n; i++)
        if (!strcmp(st.tensors[i].name, tensor)) at = st.tensors[i].offset;
    lq_st_close(&st);
    assert_true(at > 0);
    return at;
}

static void impossible_values_are_refused(void **state) {
    (void)state;
    static const struct { const char *tensor, *what; double value; } cases[] = {
        {"model.layers.0.mlp.down_proj.sum_x2", "impossible", NAN}, {"model.layers.0.mlp.down_proj.sum_x2", "impossible", -1},
        {"model.layers.0.mlp.down_proj.sum_x2", "impossible", 1e300}, {"model.layers.0.mlp.down_proj.sum_abs", "impossible", INFINITY},
        {"model.layers.0.mlp.down_proj.gram", "Gram", NAN},         {"model.layers.0.mlp.down_proj.gram", "Gram", -1},
        {"model.layers.0.mlp.down_proj.tokens", "tokens", -1},
        {"model.layers.0.mlp.down_proj.sampled", "samples", -1},    {"model.layers.0.mlp.down_proj.samples", "sample 0", 1e300},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        lq_ctx ctx = {0};
        char name[32];
        snprintf(name, sizeof name, "bad%zu", i);
        char *path = write_file(name, "m", 0, HALF, true);
        uint64_t at = place(path, cases[i].tensor);
        FILE *f = fopen(path, "r+b");
        assert_true(f && !fseek(f, (long)at, SEEK_SET) && fwrite(&cases[i].value, 8, 1, f) == 1 && !fclose(f));
        assert_int_equal(read_all(&ctx, path), LQ_ERR_FORMAT);
        if (!strstr(ctx.msg, cases[i].what)) fail_msg("no '%s' in: %s", cases[i].what, ctx.msg);
        lq_free(path);
    }
}

static void divided_statistics_are_those_of_the_divided_input(void **state) {
    (void)state;
    float *x = random_inputs(7, 300, COLS), by[COLS];
    lq_stats s = gather(x, 300, COLS);
    for (int c = 0; c < COLS; c++) by[c] = ldexpf(1, c % 7 - 3); /* exact */
    for (int i = 0; i < 300 * COLS; i++) x[i] /= by[i % COLS];
    lq_stats want = gather(x, 300, COLS);
    lq_stats_divide(&s, by);
    assert_memory_equal(s.absmax, want.absmax, sizeof by);
    assert_memory_equal(s.abssum, want.abssum, COLS * sizeof(double));
    assert_memory_equal(s.squares, want.squares, COLS * sizeof(double));
    assert_memory_equal(s.samples, want.samples, 300 * sizeof by);
    for (uint32_t i = 0; i < COLS; i++)
        for (uint32_t j = 0; j <= i; j++) assert_true(lq_gram_at(&s.gram, i, j) == lq_gram_at(&want.gram, i, j));
    lq_stats_free(&s);
    lq_stats_free(&want);
    lq_free(x);
}

/* A safetensors file that is none of ours, and one with something else in it. */
static void other_files_are_refused(void **state) {
    (void)state;
    lq_ctx ctx = {0};
    char *folder = lq_strf("%s/other", dir), *path = lq_strf("%s/other/model.safetensors", dir);
    lq_st_tensor t[] = {{.name = "a.sum_x2", .dtype = LQ_F64, .ndim = 1, .shape = {2}}};
    lq_st_writer *w;
    PASS(lq_mkdir(&ctx, folder));
    PASS(lq_st_create(&ctx, folder, t, 1, 0, &w));
    PASS(lq_st_put(&ctx, w, "a.sum_x2", (double[]){1, 2}, 16));
    PASS(lq_st_finish(&ctx, &w));
    assert_int_equal(read_all(&ctx, path), LQ_ERR_FORMAT);
    assert_non_null(strstr(ctx.msg, "identity"));
    lq_free(folder);
    lq_free(path);
}

static void changed_bytes_never_crash_the_reader(void **state) {
    (void)state;
    char *path = write_file("fuzz", "m", 0, HALF, true);
    lq_buf data = {0};
    lq_rng rng;
    lq_rng_seed(&rng, 5, 1);
    assert_int_equal(lq_file_slurp(NULL, path, 1 << 26, &data), LQ_OK);
    for (int i = 0; i < 300; i++) {
        FILE *f = fopen(path, "wb");
        size_t n = i % 7 ? data.n : lq_rng_below(&rng, (uint32_t)data.n), at[4];
        char old[4];
        for (int k = 0; k < 4; k++) { /* mostly the header and the identity */
            at[k] = lq_rng_below(&rng, i % 3 ? 1400 : (uint32_t)data.n);
            old[k] = data.v[at[k]];
            data.v[at[k]] = (char)lq_rng_u32(&rng);
        }
        assert_true(f && fwrite(data.v, 1, n, f) == n && !fclose(f));
        for (int k = 4; k--;) data.v[at[k]] = old[k];
        lq_ctx ctx = {0};
        lq_status st = read_all(&ctx, path);
        assert_true(st == LQ_OK || st == LQ_ERR_FORMAT || st == LQ_ERR_UNSUPPORTED);
    }
    lq_buf_free(&data);
    lq_free(path);
}

static void the_reader_survives_every_failing_allocation(void **state) {
    (void)state;
    char *path = write_file("memory", "m", 0, HALF, true);
    lq_status st = LQ_ERR_RESOURCE;
    for (long n = 0; st == LQ_ERR_RESOURCE; n++) {
        lq_mem_fail_after(n);
        st = read_all(NULL, path);
        lq_mem_fail_after(-1);
    }
    assert_int_equal(st, LQ_OK);
    lq_free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_put_comes_back),
        cmocka_unit_test(halves_merge_to_the_whole_and_to_the_same_bytes),
        cmocka_unit_test(files_of_different_models_do_not_merge),
        cmocka_unit_test(impossible_values_are_refused),
        cmocka_unit_test(divided_statistics_are_those_of_the_divided_input),
        cmocka_unit_test(other_files_are_refused),
        cmocka_unit_test(changed_bytes_never_crash_the_reader),
        cmocka_unit_test(the_reader_survives_every_failing_allocation),
    };
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
