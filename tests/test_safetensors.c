/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* every_type.safetensors: scripts/gen_golden_blocks.py. */
#include "memfile.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "formats/safetensors.h"

static const char golden[] = LQ_SOURCE_ROOT "/tests/golden/containers/every_type.safetensors";
static char dir[64], path_of[256];
static lq_ctx ctx;

static int fresh_folder(void **state) {
    (void)state;
    strcpy(dir, "/tmp/lq_test_st_XXXXXX");
    ctx = (lq_ctx){0};
    return mkdtemp(dir) ? 0 : -1;
}
static int remove_folder(void **state) {
    (void)state;
    return lq_remove_tree(NULL, dir);
}
static const char *in(const char *name) {
    snprintf(path_of, sizeof path_of, "%s/%s", dir, name);
    return path_of;
}

/* Opens the bytes as a file and closes it again. */
static lq_status open_bytes(const void *p, size_t n) {
    lq_st_file f;
    lq_file bytes = lq_memfile("x.safetensors", p, n);
    assert_true(bytes.fd >= 0);
    lq_status st = lq_st_open_file(&ctx, &bytes, &f);
    if (!st) lq_st_close(&f);
    return st;
}

static lq_status open_parts(uint64_t header_len, const char *header, size_t n, size_t data) {
    uint8_t file[4096] = {0};
    for (int i = 0; i < 8; i++) file[i] = (uint8_t)(header_len >> 8 * i);
    memcpy(file + 8, header, n);
    return open_bytes(file, 8 + n + data);
}
static lq_status open_header(const char *header, size_t data) { return open_parts(strlen(header), header, strlen(header), data); }

#define REFUSED(word, header, data)                                              \
    do {                                                                         \
        assert_int_equal(open_header(header, data), LQ_ERR_FORMAT);              \
        if (!strstr(ctx.msg, word)) fail_msg("'%s' is not in: %s", word, ctx.msg); \
        assert_non_null(strstr(ctx.msg, "x.safetensors"));                       \
    } while (0)
#define T(name, dtype, shape, from, to) "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #from "," #to "]}"

static void the_file_of_the_reference_writer_is_read(void **state) {
    (void)state;
    lq_st_file f;
    uint64_t sum = 0;
    assert_int_equal(lq_st_open(&ctx, golden, &f), LQ_OK);
    assert_int_equal(f.n, 15);
    for (size_t i = 0; i < f.n; i++) sum += f.tensors[i].bytes;
    assert_int_equal(f.tensors[0].offset + sum, f.file.size);
    lq_st_close(&f);
}

static void what_is_written_is_what_the_reference_writes(void **state) {
    (void)state;
    lq_st_file f;
    lq_st_writer *w;
    lq_buf a, b;
    assert_int_equal(lq_st_open(&ctx, golden, &f), LQ_OK);
    assert_int_equal(lq_st_create(&ctx, dir, f.tensors, f.n, 0, &w), LQ_OK);
    for (size_t i = f.n; i--;) {
        const lq_st_tensor *t = &f.tensors[i];
        uint8_t data[256];
        assert_int_equal(lq_file_read(&ctx, &f.file, t->offset, data, t->bytes), LQ_OK);
        assert_int_equal(lq_st_put(&ctx, w, t->name, data, t->bytes), LQ_OK);
    }
    assert_int_equal(lq_st_finish(&ctx, &w), LQ_OK);
    assert_null(w);
    lq_st_close(&f);
    assert_int_equal(lq_file_slurp(&ctx, golden, 1 << 20, &a), LQ_OK);
    assert_int_equal(lq_file_slurp(&ctx, in("model.safetensors"), 1 << 20, &b), LQ_OK);
    assert_int_equal(a.n, b.n);
    assert_memory_equal(a.v, b.v, a.n);
    lq_buf_free(&a);
    lq_buf_free(&b);
}

static void shards_fill_in_the_order_given_whatever_the_order_of_data(void **state) {
    (void)state;
    const lq_st_tensor t[] = {{.name = "a", .dtype = LQ_U8, .ndim = 1, .shape = {10}}, {.name = "z", .dtype = LQ_F32, .ndim = 2, .shape = {2, 2}},
                              {.name = "big", .dtype = LQ_I8, .ndim = 1, .shape = {100}}, {.name = "none", .dtype = LQ_F16, .ndim = 2, .shape = {0, 3}}};
    uint8_t data[100];
    lq_st_writer *w;
    lq_st_file f;
    json_t *index;
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)i;
    assert_int_equal(lq_st_create(&ctx, dir, t, 4, 30, &w), LQ_OK);
    assert_int_equal(lq_st_put(&ctx, w, "big", data, 100), LQ_OK);
    assert_int_equal(lq_st_put_rows(&ctx, w, "z", 0, 1, data, 8), LQ_OK);
    assert_int_equal(lq_st_put(&ctx, w, "none", data, 0), LQ_OK);
    assert_int_equal(lq_st_put(&ctx, w, "a", data + 50, 10), LQ_OK);
    assert_int_equal(lq_st_put_rows(&ctx, w, "z", 1, 1, data + 8, 8), LQ_OK);
    assert_int_equal(lq_st_finish(&ctx, &w), LQ_OK);
    assert_int_equal(lq_st_open(&ctx, in("model-00001-of-00003.safetensors"), &f), LQ_OK);
    assert_int_equal(f.n, 2);
    assert_string_equal(f.tensors[0].name, "z"); /* F32 before U8 */
    uint8_t back[16];
    assert_int_equal(lq_file_read(&ctx, &f.file, f.tensors[0].offset, back, 16), LQ_OK);
    assert_memory_equal(back, data, 16);
    assert_int_equal(f.tensors[0].offset % 8, 0);
    lq_st_close(&f);
    assert_int_equal(lq_json_load(&ctx, in("model.safetensors.index.json"), &index), LQ_OK);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(index, "metadata"), "total_size")), 126);
    json_t *map = json_object_get(index, "weight_map");
    assert_int_equal(json_object_size(map), 4);
    assert_string_equal(json_string_value(json_object_get(map, "none")), "model-00003-of-00003.safetensors");
    json_decref(index);
}

static void the_writer_refuses_wrong_use(void **state) {
    (void)state;
    lq_st_tensor t[] = {{.name = "a", .dtype = LQ_F16, .ndim = 1, .shape = {4}}, {.name = "b", .dtype = LQ_F16, .ndim = 1, .shape = {4}}};
    uint8_t data[16] = {0};
    lq_st_writer *w;
    assert_int_equal(lq_st_create(&ctx, dir, t, 2, 0, &w), LQ_OK);
    assert_int_equal(lq_st_put(&ctx, w, "c", data, 8), LQ_ERR_INTERNAL);
    assert_int_equal(lq_st_put(&ctx, w, "a", data, 6), LQ_ERR_INTERNAL);
    assert_int_equal(lq_st_put(&ctx, w, "a", data, 8), LQ_OK);
    assert_int_equal(lq_st_put(&ctx, w, "a", data, 8), LQ_ERR_INTERNAL);
    assert_int_equal(lq_st_put_rows(&ctx, w, "b", 2, 2, data, 4), LQ_ERR_INTERNAL);
    assert_int_equal(lq_st_finish(&ctx, &w), LQ_ERR_INTERNAL);
    assert_non_null(strstr(ctx.msg, "'b'"));
    assert_null(w);
    assert_int_equal(lq_st_create(&ctx, dir, t, 1, 0, &w), LQ_OK);
    assert_int_equal(lq_st_put(&ctx, w, "a", data, 8), LQ_ERR_IO); /* the file of the first writer is there */
    lq_st_abandon(&w);
    t[1].name = "a";
    assert_int_equal(lq_st_create(&ctx, dir, t, 2, 0, &w), LQ_ERR_FORMAT);
    t[1].name = "b\n";
    assert_int_equal(lq_st_create(&ctx, dir, t, 2, 0, &w), LQ_ERR_FORMAT);
    t[1] = (lq_st_tensor){.name = "b", .dtype = LQ_Q4_0, .ndim = 1, .shape = {32}};
    assert_int_equal(lq_st_create(&ctx, dir, t, 2, 0, &w), LQ_ERR_UNSUPPORTED);
    t[1] = (lq_st_tensor){.name = "b", .dtype = LQ_F32, .ndim = 2, .shape = {1ull << 40, 1ull << 40}};
    assert_int_equal(lq_st_create(&ctx, dir, t, 2, 0, &w), LQ_ERR_FORMAT);
}

static void every_truncation_is_an_error(void **state) {
    (void)state;
    lq_buf b;
    assert_int_equal(lq_file_slurp(&ctx, golden, 1 << 20, &b), LQ_OK);
    assert_int_equal(open_bytes(b.v, b.n), LQ_OK);
    for (size_t n = 0; n < b.n; n++) assert_int_equal(open_bytes(b.v, n), LQ_ERR_FORMAT);
    assert_true(lq_buf_add(&b, "x", 1));
    assert_int_equal(open_bytes(b.v, b.n), LQ_ERR_FORMAT);
    lq_buf_free(&b);
}

static void no_flipped_byte_of_the_header_crashes(void **state) {
    (void)state;
    lq_buf b;
    assert_int_equal(lq_file_slurp(&ctx, golden, 1 << 20, &b), LQ_OK);
    for (size_t i = 0; i < b.n; i++)
        for (size_t k = 0; k < 3; k++) {
            static const uint8_t mask[] = {1, 0x80, 0xff};
            b.v[i] = (char)(b.v[i] ^ mask[k]);
            lq_status st = open_bytes(b.v, b.n);
            if (st != LQ_OK && st != LQ_ERR_FORMAT && st != LQ_ERR_UNSUPPORTED) fail_msg("byte %zu: status %d, %s", i, st, ctx.msg);
            b.v[i] = (char)(b.v[i] ^ mask[k]);
        }
    lq_buf_free(&b);
}

static void a_header_length_outside_the_file_is_refused(void **state) {
    (void)state;
    static const uint64_t lengths[] = {0, 1, 4, 1ull << 63, UINT64_MAX, 100000001};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        assert_int_equal(open_parts(lengths[i], "{} ", 3, 0), LQ_ERR_FORMAT);
        assert_non_null(strstr(ctx.msg, "header length"));
    }
}

static void sizes_that_wrap_or_disagree_are_refused(void **state) {
    (void)state;
    REFUSED("overflows", "{" T("a", "F16", "[4294967296,4294967296]", 0, 0) "}", 0);
    REFUSED("overflows", "{" T("a", "F32", "[4611686018427387904]", 0, 0) "}", 0);
    REFUSED("too large", "{" T("a", "F32", "[18446744073709551616]", 0, 0) "}", 0);
    REFUSED("need 16", "{" T("a", "F32", "[2,2]", 0, 12) "}", 12);
    REFUSED("tensor 'a'", "{" T("a", "F32", "[2,2]", 0, 16) "}", 12);
    REFUSED("data_offsets [16, 0]", "{" T("a", "F32", "[2,2]", 16, 0) "}", 16);
    REFUSED("data_offsets [0, 18446744073709551615]", "{" T("a", "F32", "[2,2]", 0, 18446744073709551615) "}", 16);
}

static void tensors_must_tile_the_data(void **state) {
    (void)state;
    REFUSED("hole", "{" T("a", "U8", "[2]", 1, 3) "}", 3);
    REFUSED("hole", "{" T("a", "U8", "[2]", 0, 2) "," T("b", "U8", "[2]", 3, 5) "}", 5);
    REFUSED("overlaps", "{" T("a", "U8", "[2]", 0, 2) "," T("b", "U8", "[2]", 1, 3) "}", 3);
    REFUSED("the tensors end", "{" T("a", "U8", "[2]", 0, 2) "}", 3);
    REFUSED("the tensors end", "{}", 1);
    assert_int_equal(open_header("{" T("b", "U8", "[2]", 2, 4) "," T("a", "U8", "[2]", 0, 2) "," T("e", "F32", "[0,7]", 2, 2) "," T("s", "U8", "[]", 4, 5) "}", 5), LQ_OK);
    assert_int_equal(open_header("{}", 0), LQ_OK);
    assert_int_equal(open_header("{}      ", 0), LQ_OK);
}

static void duplicates_are_refused(void **state) {
    (void)state;
    REFUSED("tensor 'a' is listed twice", "{" T("a", "U8", "[2]", 0, 2) "," T("a", "U8", "[2]", 2, 4) "}", 4);
    REFUSED("tensor 'a' is listed twice", "{" T("a", "U8", "[2]", 0, 2) "," T("\\u0061", "U8", "[2]", 2, 4) "}", 4);
    REFUSED("duplicate key", "{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1);
    REFUSED("__metadata__ is listed twice", "{\"__metadata__\":{},\"__metadata__\":{}}", 0);
    REFUSED("duplicate key", "{\"__metadata__\":{\"a\":\"b\",\"a\":\"c\"}}", 0);
}

static void metadata_is_strings_only(void **state) {
    (void)state;
    REFUSED("strings only", "{\"__metadata__\":{\"a\":1}}", 0);
    REFUSED("strings only", "{\"__metadata__\":{\"a\":{\"b\":\"c\"}}}", 0);
    REFUSED("'{' expected", "{\"__metadata__\":\"a\"}", 0);
    assert_int_equal(open_header("{\"__metadata__\":{}}", 0), LQ_OK);
    assert_int_equal(open_header("{\"__metadata__\":{\"format\":\"pt\",\"x\":\"\\u00e9\\n\"}}", 0), LQ_OK);
}

static void only_whole_numbers_are_numbers(void **state) {
    (void)state;
    REFUSED("fraction", "{" T("a", "U8", "[2.0]", 0, 2) "}", 2);
    REFUSED("fraction", "{" T("a", "U8", "[2e0]", 0, 2) "}", 2);
    REFUSED("whole number", "{" T("a", "U8", "[-2]", 0, 2) "}", 2);
    REFUSED("whole number", "{" T("a", "U8", "[-0]", 0, 0) "}", 0);
    REFUSED("whole number", "{" T("a", "U8", "[\"2\"]", 0, 2) "}", 2);
    REFUSED("whole number", "{" T("a", "U8", "[[2]]", 0, 2) "}", 2);
    REFUSED("leading zero", "{" T("a", "U8", "[02]", 0, 2) "}", 2);
    REFUSED("too many", "{" T("a", "U8", "[1,1,1,1,1,1,1,1,1]", 0, 1) "}", 1);
    REFUSED("two numbers", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1);
}

static void the_grammar_is_held(void **state) {
    (void)state;
    static const char *const wrong[] = {"[]", " {}", "{},", "{}{}", "{}\n", "{", "{\"", "{\"a", "{\"a\"", "{\"a\":", "{\"a\":{", "{\"a\":{}}", "{,}", "{\"a\":null}",
                                        "{\"a\":{\"dtype\":\"U8\"}}", "{\"a\":{\"other\":1}}", "{\"a\\", "{\"a\\\"", "{\"\\ud800\":{}}", "{\"\\u0000\":{}}",
                                        "{" T("a", "U8", "[1],", 0, 1) "}", "{" T("a", "U8", "[1,]", 0, 1) "}", "{" T("a", "U8", "[1]", 0, 1) ",}"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        if (open_header(wrong[i], 1) != LQ_ERR_FORMAT) fail_msg("accepted: %s", wrong[i]);
        if (strstr(ctx.msg, "span") || strstr(ctx.msg, "tensors end")) fail_msg("parsed: %s", wrong[i]);
    }
    char deep[2000];
    memset(deep, '[', sizeof deep);
    memcpy(deep, "{\"a\":", 5);
    assert_int_equal(open_parts(sizeof deep, deep, sizeof deep, 0), LQ_ERR_FORMAT);
}

static void names_are_sound(void **state) {
    (void)state;
    REFUSED("tensor name", "{" T("", "U8", "[1]", 0, 1) "}", 1);
    REFUSED("tensor name", "{" T("a/b", "U8", "[1]", 0, 1) "}", 1);
    REFUSED("tensor name", "{" T("a\\\\b", "U8", "[1]", 0, 1) "}", 1);
    REFUSED("tensor name", "{" T("a\\nb", "U8", "[1]", 0, 1) "}", 1);
    REFUSED("control character", "{" T("a\nb", "U8", "[1]", 0, 1) "}", 1);
    REFUSED("not UTF-8", "{" T("a\xff", "U8", "[1]", 0, 1) "}", 1);
    REFUSED("not UTF-8", "{" T("\xc0\x80", "U8", "[1]", 0, 1) "}", 1);
    static const char nul[] = "{\"a\0b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}";
    assert_int_equal(open_parts(sizeof nul - 1, nul, sizeof nul - 1, 1), LQ_ERR_FORMAT);
    assert_int_equal(open_header("{" T("\xc3\xa9", "U8", "[1]", 0, 1) "}", 1), LQ_OK);
}

static void types_are_whitelisted(void **state) {
    (void)state;
    REFUSED("'F33'", "{" T("a", "F33", "[1]", 0, 1) "}", 1);
    REFUSED("'Q4_0'", "{" T("a", "Q4_0", "[32]", 0, 18) "}", 18);
    REFUSED("'none'", "{" T("a", "none", "[1]", 0, 0) "}", 0);
    assert_int_equal(open_header("{" T("a", "F4", "[2]", 0, 1) "}", 1), LQ_ERR_UNSUPPORTED);
    assert_non_null(strstr(ctx.msg, "F4"));
}

static void running_out_of_memory_is_an_error_at_every_step(void **state) {
    (void)state;
    lq_st_file f;
    lq_status st = LQ_ERR_RESOURCE;
    long n = 0;
    for (; st; n++) {
        lq_mem_fail_after(n);
        st = lq_st_open(&ctx, golden, &f);
        lq_mem_fail_after(-1);
        assert_true(st == LQ_OK || st == LQ_ERR_RESOURCE);
    }
    assert_true(n > 6);
    st = LQ_ERR_RESOURCE;
    for (n = 0; st; n++) {
        lq_st_writer *w;
        lq_mem_fail_after(n);
        st = lq_st_create(&ctx, dir, f.tensors, f.n, 64, &w);
        for (size_t i = 0; i < f.n && !st; i++) {
            uint8_t zero[256] = {0};
            st = lq_st_put(&ctx, w, f.tensors[i].name, zero, f.tensors[i].bytes);
        }
        if (!st) st = lq_st_finish(&ctx, &w);
        lq_mem_fail_after(-1);
        lq_st_abandon(&w);
        assert_true(st == LQ_OK || st == LQ_ERR_RESOURCE);
        assert_int_equal(lq_remove_tree(&ctx, dir), LQ_OK);
        assert_int_equal(lq_mkdir(&ctx, dir), LQ_OK);
    }
    assert_true(n > 30);
    lq_st_close(&f);
}

int main(void) {
#define CASE(f) cmocka_unit_test_setup_teardown(f, fresh_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        CASE(the_file_of_the_reference_writer_is_read),
        CASE(what_is_written_is_what_the_reference_writes),
        CASE(shards_fill_in_the_order_given_whatever_the_order_of_data),
        CASE(the_writer_refuses_wrong_use),
        CASE(every_truncation_is_an_error),
        CASE(no_flipped_byte_of_the_header_crashes),
        CASE(a_header_length_outside_the_file_is_refused),
        CASE(sizes_that_wrap_or_disagree_are_refused),
        CASE(tensors_must_tile_the_data),
        CASE(duplicates_are_refused),
        CASE(metadata_is_strings_only),
        CASE(only_whole_numbers_are_numbers),
        CASE(the_grammar_is_held),
        CASE(names_are_sound),
        CASE(types_are_whitelisted),
        CASE(running_out_of_memory_is_an_error_at_every_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
