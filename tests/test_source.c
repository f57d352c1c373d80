/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "formats/source.h"

static char dir[64];
static char path_of[1024];
static lq_ctx ctx;
static char warned[2048];

static const char *in(const char *name) {
    snprintf(path_of, sizeof path_of, "%s/%s", dir, name);
    return path_of;
}

static void note_warning(void *user, lq_level level, const char *line) {
    (void)user;
    if (level == LQ_LOG_WARN) snprintf(warned, sizeof warned, "%s", line);
}

static int fresh_folder(void **state) {
    (void)state;
    strcpy(dir, "/tmp/lq_test_source_XXXXXX");
    ctx = (lq_ctx){.log = note_warning, .level = LQ_LOG_WARN};
    warned[0] = 0;
    return mkdtemp(dir) ? 0 : -1;
}
static int remove_folder(void **state) {
    (void)state;
    return lq_remove_tree(NULL, dir);
}

static void put(const char *name, const void *p, size_t n) { assert_int_equal(lq_write_file(&ctx, in(name), p, n), LQ_OK); }
static void put_text(const char *name, const char *text) { put(name, text, strlen(text)); }

/* A safetensors file: header text and `bytes` bytes of data counting up from `first`. */
static void put_st(const char *name, const char *header, size_t bytes, uint8_t first) {
    uint8_t file[4096] = {0};
    size_t n = strlen(header);
    assert_true(8 + n + bytes <= sizeof file);
    for (int i = 0; i < 8; i++) file[i] = (uint8_t)(n >> 8 * i);
    memcpy(file + 8, header, n);
    for (size_t i = 0; i < bytes; i++) file[8 + n + i] = (uint8_t)(first + i);
    put(name, file, 8 + n + bytes);
}

static void rewrite(const char *name, const char *p, size_t n) {
    FILE *f = fopen(in(name), "wb");
    assert_true(f && fwrite(p, 1, n, f) == n && !fclose(f));
}

#define ONE(name) "{\"" name "\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[0,12]}}"

static void put_shards(const char *index) {
    put_st("model-00001-of-00002.safetensors", ONE("a"), 12, 0);
    put_st("model-00002-of-00002.safetensors", ONE("b"), 12, 100);
    put_text("config.json", "{\"model_type\":\"llama\"}");
    put_text("model.safetensors.index.json", index);
}
#define INDEX(map) "{\"metadata\":{\"total_size\":24},\"weight_map\":{" map "}}"
#define A "\"a\":\"model-00001-of-00002.safetensors\""
#define B "\"b\":\"model-00002-of-00002.safetensors\""

static void refused(lq_status want, const char *word) {
    lq_source *s;
    assert_int_equal(lq_source_open(&ctx, dir, &s), want);
    assert_null(s);
    if (!strstr(ctx.msg, word)) fail_msg("'%s' is not in: %s", word, ctx.msg);
    if (!strstr(ctx.msg, dir)) fail_msg("the folder is not in: %s", ctx.msg);
}

static void a_folder_with_one_file_is_read(void **state) {
    (void)state;
    lq_source *s;
    lq_buf b;
    uint8_t row[6];
    put_st("model.safetensors", ONE("model.norm.weight"), 12, 7);
    put_text("config.json", "{\"model_type\":\"llama\"}");
    put_text("tokenizer.json", "{}");
    put_text("README.md", "read me");
    put_text("pytorch_model.bin", "pickle");
    put_text(".gitattributes", "hub");
    assert_int_equal(lq_source_open(&ctx, dir, &s), LQ_OK);
    assert_string_equal(s->reader->name, "safetensors");
    assert_int_equal(s->n, 1);
    assert_int_equal(s->entries[0].ndim, 2);
    assert_int_equal(s->entries[0].shape[0], 2);
    assert_int_equal(s->entries[0].bytes, 12);
    assert_int_equal(lq_source_find(s, "model.norm.weight"), 0);
    assert_int_equal(lq_source_find(s, "model.norm"), -1);
    assert_int_equal(lq_source_read(&ctx, s, 0, 1, 1, row), LQ_OK);
    assert_memory_equal(row, ((uint8_t[]){13, 14, 15, 16, 17, 18}), 6);
    assert_int_equal(lq_source_read(&ctx, s, 0, 1, 2, row), LQ_ERR_INTERNAL);
    assert_int_equal(s->n_sidecars, 3);
    assert_string_equal(s->sidecars[0], "README.md");
    assert_string_equal(s->sidecars[1], "config.json");
    assert_int_equal(lq_source_sidecar(&ctx, s, "README.md", &b), LQ_OK);
    assert_string_equal(b.v, "read me");
    lq_buf_free(&b);
    assert_int_equal(lq_source_sidecar(&ctx, s, "LICENSE", &b), LQ_OK);
    assert_null(b.v);
    assert_int_equal(s->n_weight_files, 1);
    lq_source_free(&s);
    assert_null(s);
}

static void shards_are_read_through_the_index(void **state) {
    (void)state;
    lq_source *s;
    uint8_t all[12];
    put_shards(INDEX(A "," B));
    put_st("model-00009-of-00009.safetensors", ONE("stale"), 12, 0);
    assert_int_equal(lq_source_open(&ctx, dir, &s), LQ_OK);
    assert_int_equal(s->n, 2);
    assert_non_null(strstr(warned, "model-00009-of-00009.safetensors"));
    assert_int_equal(lq_source_read(&ctx, s, (size_t)lq_source_find(s, "b"), 0, 2, all), LQ_OK);
    assert_int_equal(all[0], 100);
    assert_int_equal(s->n_weight_files, 2);
    lq_source_free(&s);
}

static void a_missing_shard_is_named(void **state) {
    (void)state;
    put_shards(INDEX(A "," B));
    unlink(in("model-00002-of-00002.safetensors"));
    refused(LQ_ERR_FORMAT, "model-00002-of-00002.safetensors: the shard is missing");
}

static void a_missing_tensor_is_named(void **state) {
    (void)state;
    put_shards(INDEX(A "," B ",\"c\":\"model-00002-of-00002.safetensors\""));
    refused(LQ_ERR_FORMAT, "tensor 'c' is missing");
}

static void an_extra_tensor_is_named(void **state) {
    (void)state;
    put_shards(INDEX(A ",\"c\":\"model-00002-of-00002.safetensors\""));
    refused(LQ_ERR_FORMAT, "tensor 'b' is not in");
}

static void a_tensor_in_the_wrong_shard_is_named(void **state) {
    (void)state;
    static const char swapped[] = INDEX("\"b\":\"model-00001-of-00002.safetensors\",\"a\":\"model-00002-of-00002.safetensors\"");
    put_shards(INDEX(A ",\"b\":\"model-00001-of-00002.safetensors\""));
    refused(LQ_ERR_FORMAT, "tensor 'b' is missing");
    rewrite("model.safetensors.index.json", swapped, sizeof swapped - 1);
    refused(LQ_ERR_FORMAT, "tensor 'a' should lie in model-00002-of-00002.safetensors");
}

static void shard_names_may_not_leave_the_folder(void **state) {
    (void)state;
    static const char *const names[] = {"../x.safetensors", "/etc/x.safetensors", "..", "", "a/b.safetensors", "x.bin", "a\\\\b.safetensors", "a\\u0000.safetensors"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char index[256];
        snprintf(index, sizeof index, INDEX(A ",\"b\":\"%s\""), names[i]);
        put_shards(index);
        refused(LQ_ERR_FORMAT, "model.safetensors.index.json");
        remove_folder(NULL);
        assert_int_equal(lq_mkdir(&ctx, dir), LQ_OK);
    }
    put_shards(INDEX(A ",\"b\":7"));
    refused(LQ_ERR_FORMAT, "no shard name");
}

static void a_shard_that_is_a_link_is_refused_unless_it_is_the_hub_cache(void **state) {
    (void)state;
    char blob[512];
    put_shards(INDEX(A "," B));
    assert_int_equal(lq_rename(&ctx, in("model-00002-of-00002.safetensors"), (snprintf(blob, sizeof blob, "%s/moved", dir), blob)), LQ_OK);
    assert_int_equal(symlink("moved", in("model-00002-of-00002.safetensors")), 0);
    refused(LQ_ERR_FORMAT, "symbolic link");
}

static void a_hub_cache_folder_is_read(void **state) {
    (void)state;
    static const char hex[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    char name[512], to[512];
    lq_source *s;
    lq_mkdir(&ctx, in("blobs"));
    lq_mkdir(&ctx, in("snapshots"));
    lq_mkdir(&ctx, in("snapshots/rev"));
    snprintf(name, sizeof name, "blobs/%s", hex);
    put_st(name, ONE("w"), 12, 0);
    snprintf(to, sizeof to, "../../blobs/%s", hex);
    assert_int_equal(symlink(to, in("snapshots/rev/model.safetensors")), 0);
    snprintf(name, sizeof name, "%s/snapshots/rev/", dir);
    assert_int_equal(lq_source_open(&ctx, name, &s), LQ_OK);
    assert_int_equal(s->n, 1);
    lq_source_free(&s);
}

static void an_unknown_quantization_is_refused_by_name(void **state) {
    (void)state;
    lq_source *s;
    put_st("model.safetensors", ONE("w"), 12, 0);
    put_text("config.json", "{\"quantization_config\":{\"quant_method\":\"magic\"}}");
    refused(LQ_ERR_UNSUPPORTED, "'magic'");
    assert_int_equal(lq_source_open_as(&ctx, &lq_reader_safetensors, dir, &s), LQ_OK);
    lq_source_free(&s);
}

static void pickles_are_refused_with_a_hint(void **state) {
    (void)state;
    put_text("config.json", "{}");
    put_text("pytorch_model.bin", "x");
    refused(LQ_ERR_UNSUPPORTED, "convert them to safetensors");
}

static void a_folder_without_a_model_is_refused(void **state) {
    (void)state;
    lq_source *s;
    refused(LQ_ERR_FORMAT, "neither");
    put_text("config.json", "{}");
    refused(LQ_ERR_FORMAT, "no .safetensors file");
    put_text("x.gguf", "GGUF");
    refused(LQ_ERR_FORMAT, "name one of them");
    put_st("one.safetensors", ONE("w"), 12, 0);
    put_st("two.safetensors", ONE("w"), 12, 0);
    refused(LQ_ERR_FORMAT, "2 .safetensors files");
    assert_int_equal(lq_source_open(&ctx, "/nowhere/at/all", &s), LQ_ERR_FORMAT);
    put_text("text", "hello");
    assert_int_equal(lq_source_open(&ctx, in("text"), &s), LQ_ERR_FORMAT);
}

static void a_broken_config_is_refused(void **state) {
    (void)state;
    put_st("model.safetensors", ONE("w"), 12, 0);
    put_text("config.json", "{\"a\":1,\"a\":2}");
    refused(LQ_ERR_FORMAT, "duplicate");
    unlink(in("config.json"));
    put_text("config.json", "[]");
    refused(LQ_ERR_FORMAT, "not a JSON object");
}

static void every_truncation_of_index_and_shard_is_an_error(void **state) {
    (void)state;
    static const char index[] = INDEX(A "," B), shard[] = "model-00002-of-00002.safetensors";
    lq_source *s;
    lq_buf b;
    put_shards(index);
    for (size_t n = 0; n < sizeof index - 1; n += 3) {
        rewrite("model.safetensors.index.json", index, n);
        refused(LQ_ERR_FORMAT, "model.safetensors.index.json");
    }
    rewrite("model.safetensors.index.json", index, sizeof index - 1);
    assert_int_equal(lq_file_slurp(&ctx, in(shard), 4096, &b), LQ_OK);
    for (size_t n = 0; n < b.n; n += 5) {
        rewrite(shard, b.v, n);
        refused(LQ_ERR_FORMAT, shard);
    }
    rewrite(shard, b.v, b.n);
    assert_int_equal(lq_source_open(&ctx, dir, &s), LQ_OK);
    lq_source_free(&s);
    lq_buf_free(&b);
}

static void an_index_that_is_no_index_is_refused(void **state) {
    (void)state;
    static const char *const wrong[] = {"[]", "{}", "{\"weight_map\":[]}", "{\"weight_map\":{}}", "{\"weight_map\":{\"a\":{\"b\":1}}}",
                                        "{\"weight_map\":{" A "," A "}}", "{\"weight_map\":{" A "},\"weight_map\":{" A "}}"};
    put_shards("");
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        rewrite("model.safetensors.index.json", wrong[i], strlen(wrong[i]));
        refused(LQ_ERR_FORMAT, "model.safetensors.index.json");
    }
}

static void a_linked_model_is_refused_as_a_link(void **state) {
    (void)state;
    put_text("config.json", "{}");
    put_st("elsewhere", ONE("w"), 12, 0);
    assert_int_equal(symlink("elsewhere", in("model.safetensors")), 0);
    refused(LQ_ERR_FORMAT, "symbolic link");
    unlink(in("model.safetensors"));
    assert_int_equal(symlink("/etc/passwd", in("model.safetensors.index.json")), 0);
    refused(LQ_ERR_FORMAT, "symbolic link");
}

static void a_file_that_shrinks_while_it_is_read_is_an_error(void **state) {
    (void)state;
    lq_source *s;
    uint8_t row[12];
    put_st("model.safetensors", ONE("w"), 12, 0);
    assert_int_equal(lq_source_open(&ctx, dir, &s), LQ_OK);
    assert_int_equal(truncate(in("model.safetensors"), 70), 0);
    assert_int_equal(lq_source_read(&ctx, s, 0, 0, 2, row), LQ_ERR_FORMAT);
    assert_non_null(strstr(ctx.msg, "tensor 'w'"));
    lq_source_free(&s);
}

static int next_fd(void) {
    int fd = dup(0);
    close(fd);
    return fd;
}

static void running_out_of_memory_is_an_error_at_every_step(void **state) {
    (void)state;
    lq_source *s;
    put_shards(INDEX(A "," B));
    lq_status st = LQ_ERR_RESOURCE;
    long n = 0;
    int fd = next_fd();
    for (; st; n++) {
        assert_int_equal(next_fd(), fd);
        lq_mem_fail_after(n);
        st = lq_source_open(&ctx, dir, &s);
        lq_mem_fail_after(-1);
        if (st) assert_null(s);
        assert_true(n < 1000);
    }
    lq_source_free(&s);
    assert_true(n > 20);
}

int main(void) {
#define T(f) cmocka_unit_test_setup_teardown(f, fresh_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        T(a_folder_with_one_file_is_read),
        T(shards_are_read_through_the_index),
        T(a_missing_shard_is_named),
        T(a_missing_tensor_is_named),
        T(an_extra_tensor_is_named),
        T(a_tensor_in_the_wrong_shard_is_named),
        T(shard_names_may_not_leave_the_folder),
        T(a_shard_that_is_a_link_is_refused_unless_it_is_the_hub_cache),
        T(a_hub_cache_folder_is_read),
        T(an_unknown_quantization_is_refused_by_name),
        T(pickles_are_refused_with_a_hint),
        T(a_folder_without_a_model_is_refused),
        T(a_broken_config_is_refused),
        T(every_truncation_of_index_and_shard_is_an_error),
        T(an_index_that_is_no_index_is_refused),
        T(a_linked_model_is_refused_as_a_link),
        T(a_file_that_shrinks_while_it_is_read_is_an_error),
        T(running_out_of_memory_is_an_error_at_every_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
