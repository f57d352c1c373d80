/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* small.gguf: scripts/gen_golden_blocks.py. */
#include "memfile.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/gguf.h"
#include "formats/source.h"

static const char golden[] = LQ_SOURCE_ROOT "/tests/golden/containers/small.gguf";
static lq_ctx ctx;

static int fresh(void **state) {
    (void)state;
    ctx = (lq_ctx){0};
    return 0;
}

/* A file in the making. */
static uint8_t file[8192];
static size_t size;
static void raw(const void *p, size_t n) {
    assert_true(size + n <= sizeof file);
    memcpy(file + size, p, n);
    size += n;
}
static void num(uint64_t v, size_t bytes) {
    uint8_t b[8];
    for (size_t i = 0; i < bytes; i++) b[i] = (uint8_t)(v >> 8 * i);
    raw(b, bytes);
}
static void str(const char *s) {
    num(strlen(s), 8);
    raw(s, strlen(s));
}
static void head(uint32_t version, uint64_t tensors, uint64_t kvs) {
    size = 0;
    raw("GGUF", 4);
    num(version, 4);
    num(tensors, 8);
    num(kvs, 8);
}
static void key_u32(const char *key, uint32_t v) {
    str(key);
    num(LQ_GGUF_U32, 4);
    num(v, 4);
}
static void key_array(const char *key, uint32_t type, uint64_t n) {
    str(key);
    num(LQ_GGUF_ARRAY, 4);
    num(type, 4);
    num(n, 8);
}
static void info(const char *name, uint64_t ne0, uint64_t ne1, uint32_t type, uint64_t offset) {
    str(name);
    num(2, 4);
    num(ne0, 8);
    num(ne1, 8);
    num(type, 4);
    num(offset, 8);
}
static void data(size_t bytes, size_t align) {
    while (size % align) num(0, 1);
    for (size_t i = 0; i < bytes; i++) num(i, 1);
}

static lq_status open_bytes(const void *p, size_t n) {
    lq_gguf *g;
    lq_file f = lq_memfile("x.gguf", p, n);
    assert_true(f.fd >= 0);
    lq_status st = lq_gguf_open(&ctx, &f, &g);
    if (st) assert_null(g);
    lq_gguf_free(&g);
    lq_file_close(&f);
    return st;
}
static void accepted(void) {
    if (open_bytes(file, size)) fail_msg("refused: %s", ctx.msg);
}
static void refused_as(lq_status want, const char *word) {
    assert_int_equal(open_bytes(file, size), want);
    if (!strstr(ctx.msg, word)) fail_msg("'%s' is not in: %s", word, ctx.msg);
    assert_non_null(strstr(ctx.msg, "x.gguf"));
}
static void refused(const char *word) { refused_as(LQ_ERR_FORMAT, word); }

static void the_file_of_the_reference_writer_is_read(void **state) {
    (void)state;
    lq_source *s;
    float row[8];
    uint8_t q[68];
    size_t n;
    assert_int_equal(lq_source_open(&ctx, golden, &s), LQ_OK);
    assert_string_equal(s->reader->name, "gguf");
    assert_int_equal(s->n, 4);
    long i = lq_source_find(s, "blk.0.attn_q.weight");
    assert_int_equal(i, 0);
    assert_int_equal(s->entries[i].ndim, 2);
    assert_int_equal(s->entries[i].shape[0], 4);
    assert_int_equal(s->entries[i].shape[1], 8);
    assert_int_equal(lq_source_read(&ctx, s, 0, 3, 1, row), LQ_OK);
    assert_true(row[0] > -4 && row[0] < 4 && row[0] != 0);
    i = lq_source_find(s, "blk.0.ffn_up.weight");
    assert_int_equal(s->entries[i].dtype, LQ_Q8_0);
    assert_int_equal(s->entries[i].shape[1], 64);
    assert_int_equal(lq_source_read(&ctx, s, (size_t)i, 1, 1, q), LQ_OK);
    const lq_gguf *g = s->gguf;
    assert_string_equal(lq_gguf_str(lq_gguf_find(g, "general.architecture"), 0, &n), "llama");
    assert_int_equal(n, 5);
    assert_true(lq_gguf_num(lq_gguf_find(g, "llama.context_length"), 0) == 64);
    assert_true(lq_gguf_num(lq_gguf_find(g, "a.float"), 0) == 0.25);
    assert_true(lq_gguf_num(lq_gguf_find(g, "a.bool"), 0) == 1);
    assert_true(lq_gguf_num(lq_gguf_find(g, "an.int64"), 0) == -5);
    assert_true(lq_gguf_num(lq_gguf_find(g, "a.float64"), 0) == 1e300);
    const lq_gguf_kv *list = lq_gguf_find(g, "an.array"), *tokens = lq_gguf_find(g, "tokenizer.ggml.tokens");
    assert_true(lq_gguf_is_array(list));
    assert_int_equal(lq_gguf_len(list), 3);
    assert_true(lq_gguf_num(list, 1) == -2 && lq_gguf_num(list, 3) == 0);
    assert_int_equal(lq_gguf_elem(tokens), LQ_GGUF_STRING);
    assert_int_equal(lq_gguf_len(tokens), 5);
    assert_memory_equal(lq_gguf_str(tokens, 3, &n), "\xff\0z", 4);
    assert_int_equal(n, 3);
    assert_string_equal(lq_gguf_str(tokens, 4, &n), "");
    assert_null(lq_gguf_str(tokens, 5, &n));
    assert_null(lq_gguf_str(list, 0, &n));
    assert_null(lq_gguf_find(g, "nothing"));
    assert_int_equal(lq_gguf_len(NULL), 0);
    lq_source_free(&s);
}

static void two_tensors(uint64_t second) {
    head(3, 2, 1);
    str("general.architecture");
    num(LQ_GGUF_STRING, 4);
    str("llama");
    info("a", 5, 1, 0, 0);
    info("b", 32, 1, 8, second);
    data(66, 32);
}

static void every_truncation_is_an_error(void **state) {
    (void)state;
    lq_buf b;
    two_tensors(32);
    accepted();
    for (size_t n = 0; n < size; n++) assert_int_equal(open_bytes(file, n), LQ_ERR_FORMAT);
    assert_int_equal(lq_file_slurp(&ctx, golden, 1 << 20, &b), LQ_OK);
    for (size_t n = 0; n + 32 < b.n; n++) assert_int_equal(open_bytes(b.v, n), LQ_ERR_FORMAT); /* its end is padding */
    lq_buf_free(&b);
}

static void no_flipped_byte_crashes(void **state) {
    (void)state;
    lq_buf b;
    assert_int_equal(lq_file_slurp(&ctx, golden, 1 << 20, &b), LQ_OK);
    for (size_t i = 0; i < b.n; i++)
        for (unsigned k = 0; k < 3; k++) {
            static const uint8_t mask[] = {1, 0x80, 0xff};
            b.v[i] = (char)(b.v[i] ^ mask[k]);
            lq_status st = open_bytes(b.v, b.n);
            if (st != LQ_OK && st != LQ_ERR_FORMAT && st != LQ_ERR_UNSUPPORTED) fail_msg("byte %zu: status %d, %s", i, st, ctx.msg);
            b.v[i] = (char)(b.v[i] ^ mask[k]);
        }
    lq_buf_free(&b);
}

static void the_offset_is_the_running_sum(void **state) {
    (void)state;
    static const uint64_t wrong[] = {0, 20, 31, 33, 64, 1ull << 63, UINT64_MAX};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        two_tensors(wrong[i]);
        refused("tensor 'b': offset");
    }
}

static void magic_and_version_are_checked(void **state) {
    (void)state;
    two_tensors(32);
    file[0] = 'g';
    refused("does not begin with");
    head(4, 0, 0);
    refused("version 4");
    head(0, 0, 0);
    refused("version 0");
    head(1, 0, 0);
    refused_as(LQ_ERR_UNSUPPORTED, "version 1");
    head(3u << 24, 0, 0);
    refused_as(LQ_ERR_UNSUPPORTED, "big-endian");
    head(2, 0, 0);
    accepted();
}

static void counts_are_bounded_by_the_file(void **state) {
    (void)state;
    static const uint64_t huge[] = {2, 1000000, 1ull << 32, (1ull << 42) + 1, 1ull << 63, UINT64_MAX};
    for (size_t i = 0; i < sizeof huge / sizeof *huge; i++) {
        head(3, huge[i], 0);
        refused("tensors announced");
        head(3, 0, huge[i]);
        refused("keys announced");
        head(3, 0, 1);
        key_array("list", LQ_GGUF_U64, huge[i]);
        refused("key 'list'");
        head(3, 0, 1);
        key_array("list", LQ_GGUF_STRING, huge[i]);
        num(0, 8);
        refused("key 'list'");
        head(3, 0, 1);
        str("text");
        num(LQ_GGUF_STRING, 4);
        num(huge[i], 8);
        num(0, 1);
        refused("key 'text'");
        head(3, 0, 1);
        num(huge[i], 8);
        num(0, 6);
        refused(huge[i] == 2 ? "the key is" : "a string of");
    }
}

static void value_types_are_checked(void **state) {
    (void)state;
    head(3, 0, 1);
    key_array("list", LQ_GGUF_ARRAY, 1);
    num(0, 8);
    refused("nested");
    head(3, 0, 1);
    key_array("list", 13, 1);
    num(0, 8);
    refused("unknown value type 13");
    head(3, 0, 1);
    str("k");
    num(UINT32_MAX, 4);
    num(0, 8);
    refused("unknown value type");
    head(3, 0, 1);
    str("k");
    num(LQ_GGUF_BOOL, 4);
    num(2, 1);
    refused("truth value");
    head(3, 0, 1);
    key_array("empty", LQ_GGUF_STRING, 0);
    accepted();
}

static void keys_are_sound_and_unique(void **state) {
    (void)state;
    head(3, 0, 2);
    key_u32("k", 1);
    key_u32("k", 2);
    refused("key 'k' is listed twice");
    head(3, 0, 1);
    key_u32("", 1);
    num(0, 8);
    refused("key is empty");
    head(3, 0, 1);
    key_u32("a\xff", 1);
    refused("key is empty, no UTF-8");
}

static void alignment_is_a_power_of_two_in_range(void **state) {
    (void)state;
    static const uint32_t wrong[] = {0, 1, 4, 24, 33, 131072, 0x80000000u, UINT32_MAX};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        head(3, 0, 1);
        key_u32("general.alignment", wrong[i]);
        refused("general.alignment");
    }
    head(3, 0, 1);
    str("general.alignment");
    num(LQ_GGUF_U64, 4);
    num(32, 8);
    refused("general.alignment");
    head(3, 0, 1);
    key_array("general.alignment", LQ_GGUF_U32, 0);
    num(0, 8);
    refused("general.alignment");
    head(3, 2, 1);
    key_u32("general.alignment", 64);
    info("a", 5, 1, 0, 0);
    info("b", 32, 1, 8, 64);
    data(98, 64);
    accepted();
}

static void shapes_are_checked(void **state) {
    (void)state;
    head(3, 1, 0);
    info("a", 0, 1, 0, 0);
    refused("dimension 0 is 0");
    head(3, 1, 0);
    info("a", 4, 1ull << 63, 0, 0);
    refused("dimension 1");
    head(3, 1, 0);
    info("a", 1ull << 32, 1ull << 32, 0, 0);
    refused("overflows");
    head(3, 1, 0);
    info("a", (1ull << 42) + 1, 1ull << 21, 1, 0);
    refused("overflows");
    head(3, 1, 0);
    info("a", 32, 1ull << 58, 2, 0);
    refused("overflows");
    head(3, 1, 0);
    info("a", 33, 1, 8, 0);
    refused("multiple of 32");
    head(3, 1, 0);
    info("a", 128, 1, 12, 0);
    refused("multiple of 256");
    static const uint32_t wrong[] = {0, 5, 9, UINT32_MAX};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        head(3, 1, 0);
        str("a");
        num(wrong[i], 4);
        for (int k = 0; k < 12; k++) num(1, 8);
        refused("dimensions, expected 1 to 4");
    }
    head(3, 1, 0);
    info("a", 4, 4, 0, 0);
    data(63, 32);
    refused("do not fit");
}

static void element_types_are_checked(void **state) {
    (void)state;
    static const uint32_t unknown[] = {4, 5, 31, 33, 36, 38, 43, 1000, UINT32_MAX};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        head(3, 1, 0);
        info("a", 256, 1, unknown[i], 0);
        refused("unknown ggml type");
    }
    head(3, 1, 0);
    info("a", 256, 1, 15, 0);
    refused_as(LQ_ERR_UNSUPPORTED, "tensor 'a': ggml type Q8_K");
}

static void tensor_names_are_sound_and_unique(void **state) {
    (void)state;
    char name[80];
    head(3, 2, 0);
    info("a", 1, 1, 0, 0);
    info("a", 1, 1, 0, 32);
    data(64, 32);
    refused("tensor 'a' is listed twice");
    memset(name, 'n', sizeof name);
    name[64] = 0;
    head(3, 1, 0);
    info(name, 1, 1, 0, 0);
    refused("64 bytes");
    name[63] = 0;
    head(3, 1, 0);
    info(name, 1, 1, 0, 0);
    data(4, 32);
    accepted();
    head(3, 1, 0);
    info("../a", 1, 1, 0, 0);
    data(4, 32);
    refused("path characters");
}

static void a_part_of_a_split_model_is_refused(void **state) {
    (void)state;
    char path[] = "/tmp/lq_test_gguf_XXXXXX";
    lq_source *s;
    head(3, 0, 2);
    str("split.count");
    num(LQ_GGUF_U16, 4);
    num(3, 2);
    str("split.no");
    num(LQ_GGUF_U16, 4);
    num(0, 2);
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, file, size) == (ssize_t)size && !close(fd));
    assert_int_equal(lq_source_open(&ctx, path, &s), LQ_ERR_UNSUPPORTED);
    assert_non_null(strstr(ctx.msg, "part 1 of 3"));
    unlink(path);
}

static void running_out_of_memory_is_an_error_at_every_step(void **state) {
    (void)state;
    lq_file f;
    lq_gguf *g;
    lq_status st = LQ_ERR_RESOURCE;
    long n = 0;
    assert_int_equal(lq_file_open(&ctx, golden, &f), LQ_OK);
    for (; st; n++) {
        lq_mem_fail_after(n);
        st = lq_gguf_open(&ctx, &f, &g);
        lq_mem_fail_after(-1);
        assert_true(st == LQ_OK || st == LQ_ERR_RESOURCE);
    }
    assert_true(n > 8);
    lq_gguf_free(&g);
    lq_file_close(&f);
}

int main(void) {
#define CASE(f) cmocka_unit_test_setup(f, fresh)
    const struct CMUnitTest tests[] = {
        CASE(the_file_of_the_reference_writer_is_read),
        CASE(every_truncation_is_an_error),
        CASE(no_flipped_byte_crashes),
        CASE(the_offset_is_the_running_sum),
        CASE(magic_and_version_are_checked),
        CASE(counts_are_bounded_by_the_file),
        CASE(value_types_are_checked),
        CASE(keys_are_sound_and_unique),
        CASE(alignment_is_a_power_of_two_in_range),
        CASE(shapes_are_checked),
        CASE(element_types_are_checked),
        CASE(tensor_names_are_sound_and_unique),
        CASE(a_part_of_a_split_model_is_refused),
        CASE(running_out_of_memory_is_an_error_at_every_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
