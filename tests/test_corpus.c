/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "calib/corpus.h"
#include "core/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

static void the_built_in_text_is_in_the_binary(void **state) {
    (void)state;
    lq_buf text, file, plain;
    assert_int_equal(lq_text_builtin(NULL, &text), LQ_OK);
    assert_true(text.n > 900000 && text.n < 2000000);
    assert_int_equal(lq_text_load(NULL, LQ_SOURCE_ROOT "/texts/calibration.txt.zst", &file), LQ_OK);
    assert_int_equal(file.n, text.n);
    assert_memory_equal(file.v, text.v, text.n);
    assert_int_equal(lq_text_unpack(NULL, "t", "plain", 5, &plain), LQ_OK);
    assert_string_equal(plain.v, "plain");
    lq_buf_free(&text);
    lq_buf_free(&file);
    lq_buf_free(&plain);
}

static void zstd_frames_follow_each_other_and_a_cut_one_is_refused(void **state) {
    (void)state;
    char packed[512];
    size_t a = ZSTD_compress(packed, 256, "first, ", 7, 3), b = ZSTD_compress(packed + a, 256, "second", 6, 3);
    lq_buf out;
    assert_int_equal(lq_text_unpack(NULL, "t", packed, a + b, &out), LQ_OK);
    assert_string_equal(out.v, "first, second");
    lq_buf_free(&out);
    for (size_t n = 4; n < a + b; n++) {
        lq_status want = n == a ? LQ_OK : LQ_ERR_FORMAT;
        assert_int_equal(lq_text_unpack(NULL, "t", packed, n, &out), want);
        lq_buf_free(&out);
    }
}


/* ---- rows ---- */

enum { VOCAB = 4096 };
static char dir[] = "/tmp/lquant_corpus_XXXXXX";

/* A fixture's tokenizer; "plain": one that adds no BOS. */
static lq_tokenizer *load(const char *family) {
    char path[512];
    lq_buf b;
    lq_ctx ctx = {0};
    lq_tokenizer *t = NULL;
    json_t *v;
    bool plain = !strcmp(family, "plain");
    snprintf(path, sizeof path, LQ_SOURCE_ROOT "/tests/golden/tokenizer/%s/tokenizer.json", plain ? "qwen2" : family);
    assert_int_equal(lq_json_load(NULL, path, &v), LQ_OK);
    if (plain) json_object_set_new(v, "post_processor", json_null());
    assert_int_equal(lq_json_dump(NULL, v, &b), LQ_OK);
    if (lq_tokenizer_from_json(&ctx, family, b.v, b.n, &t)) fail_msg("%s", ctx.msg);
    assert_true(lq_tokenizer_adds_bos(t) == !plain);
    json_decref(v);
    lq_buf_free(&b);
    return t;
}

static const char *put(const char *name, const void *data, size_t n) {
    static char path[8][256];
    static int k;
    char *p = path[k++ % 8];
    snprintf(p, 256, "%s/%s", dir, name);
    unlink(p);
    assert_int_equal(lq_write_file(NULL, p, data, n), LQ_OK);
    return p;
}
static const char *put_text(const char *name, const char *text) { return put(name, text, strlen(text)); }

/* words that differ, so that windows differ */
static const char *words(char *buf, size_t n) {
    size_t at = 0;
    for (int i = 0; at + 24 < n; i++) at += (size_t)snprintf(buf + at, n - at, "word%d is %d; ", i * 7919 % 1000, i);
    return buf;
}

static lq_status build_from(lq_ctx *ctx, const lq_tokenizer *t, const char *const *files, size_t n, lq_corpus_opts o, uint32_t max_ctx, lq_rows *out) {
    const char *v[8];
    for (size_t i = 0; i < n; i++) v[i] = files[i];
    o.files = (lq_strlist){v, n};
    return lq_corpus_build(ctx, t, NULL, &o, max_ctx, VOCAB, out);
}

static lq_rows rows_of(const lq_tokenizer *t, const char *file, lq_corpus_opts o) {
    lq_rows r;
    lq_ctx ctx = {0};
    if (build_from(&ctx, t, &file, 1, o, 0, &r)) fail_msg("%s", ctx.msg);
    return r;
}

static lq_corpus_opts opts(int64_t nsamples, int64_t seqlen) { return (lq_corpus_opts){.nsamples = nsamples, .seqlen = seqlen}; }

static void windows_are_the_text_cut_one_after_the_other(void **state) {
    (void)state;
    char text[4000];
    lq_tokenizer *t = load("plain");
    lq_ids ids = {0};
    words(text, sizeof text);
    lq_rows r = rows_of(t, put_text("a.txt", text), opts(1000, 16));
    assert_int_equal(lq_tokenizer_encode(NULL, t, text, strlen(text), false, false, &ids), LQ_OK);
    assert_int_equal(r.n, ids.n / 16);
    assert_int_equal(r.seqlen, 16);
    assert_int_equal(r.dropped, 0);
    assert_memory_equal(r.ids, ids.v, r.n * 16 * sizeof *ids.v);
    assert_string_equal(r.source, "a.txt");
    lq_rows_free(&r);
    lq_ids_free(&ids);
    lq_tokenizer_free(&t);
}

static void windows_begin_with_bos_as_the_rule_says(void **state) {
    (void)state;
    static const struct { const char *family; int rule; bool has; } cases[] = {
        {"llama2", LQ_BOS_AUTO, true}, {"llama2", LQ_BOS_NEVER, false}, {"llama2", LQ_BOS_ALWAYS, true}, {"plain", LQ_BOS_AUTO, false}};
    char text[3000];
    words(text, sizeof text);
    const char *file = put_text("b.txt", text);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        lq_tokenizer *t = load(cases[c].family);
        lq_corpus_opts o = opts(1000, 16);
        o.bos = cases[c].rule;
        lq_rows r = rows_of(t, file, o);
        lq_ids ids = {0};
        assert_int_equal(lq_tokenizer_encode(NULL, t, text, strlen(text), false, false, &ids), LQ_OK);
        assert_int_equal(r.bos, cases[c].has);
        assert_int_equal(r.n, ids.n / (cases[c].has ? 15 : 16));
        for (size_t i = 0; i < r.n; i++) {
            assert_true((r.ids[i * 16] == lq_tokenizer_bos(t)) == cases[c].has);
            if (cases[c].has) assert_memory_equal(r.ids + i * 16 + 1, ids.v + i * 15, 15 * sizeof *ids.v);
        }
        lq_ids_free(&ids);
        lq_rows_free(&r);
        lq_tokenizer_free(&t);
    }
}

static void the_seed_selects_rows_in_order_without_repetition(void **state) {
    (void)state;
    char text[8000];
    lq_tokenizer *t = load("plain");
    const char *file = put_text("c.txt", words(text, sizeof text));
    lq_corpus_opts o = opts(1000, 16);
    lq_rows all = rows_of(t, file, o), some[3];
    o.nsamples = 20;
    for (int k = 0; k < 3; k++) {
        o.seed = k == 2 ? 7 : 1;
        some[k] = rows_of(t, file, o);
        assert_int_equal(some[k].n, 20);
        assert_int_equal(some[k].used + some[k].dropped, all.n);
        size_t at = 0;
        for (size_t i = 0; i < 20; i++, at++) {
            while (at < all.n && memcmp(all.ids + at * 16, some[k].ids + i * 16, 64)) at++;
            assert_true(at < all.n);
        }
    }
    assert_string_equal(some[0].hash, some[1].hash);
    assert_string_not_equal(some[0].hash, some[2].hash);
    for (int k = 0; k < 3; k++) lq_rows_free(&some[k]);
    lq_rows_free(&all);
    lq_tokenizer_free(&t);
}

static void saved_rows_come_back_identical(void **state) {
    (void)state;
    char text[6000], saved[300];
    lq_tokenizer *t = load("llama2");
    const char *file = put_text("d.txt", words(text, sizeof text));
    lq_corpus_opts o = opts(20, 32);
    snprintf(saved, sizeof saved, "%s/saved.jsonl", dir);
    o.save_tokens = saved;
    o.seed = 3;
    lq_rows a = rows_of(t, file, o), b;
    o.save_tokens = NULL;
    o.seed = 99;
    b = rows_of(t, saved, o);
    assert_int_equal(a.n, b.n);
    assert_string_equal(a.hash, b.hash);
    assert_memory_equal(a.ids, b.ids, a.n * a.seqlen * sizeof *a.ids);
    lq_rows_free(&b);
    o.save_tokens = saved; /* a file of the user's is never written over */
    lq_ctx ctx = {0};
    assert_int_equal(build_from(&ctx, t, &file, 1, o, 0, &b), LQ_ERR_IO);
    unlink(saved);
    lq_rows_free(&a);
    lq_tokenizer_free(&t);
}

static void json_lines_give_text_messages_and_ids(void **state) {
    (void)state;
    lq_tokenizer *t = load("plain");
    lq_ids ids = {0};
    const char *file = put_text("e.jsonl", "{\"text\": \"hello there\"}\n\n{\"messages\": [{\"role\": \"user\", \"content\": \"one\"}, {\"role\": \"assistant\", \"content\": \"two\"}]}\n");
    lq_corpus_opts o = opts(10, 512);
    o.chat_template = "none";
    lq_rows r = rows_of(t, file, o);
    assert_int_equal(lq_tokenizer_encode(NULL, t, "hello there", 11, false, false, &ids), LQ_OK);
    assert_int_equal(lq_tokenizer_encode(NULL, t, "one\ntwo", 7, false, false, &ids), LQ_OK);
    assert_int_equal(r.n, 1); /* shorter than a row: one row of what there is */
    assert_int_equal(r.seqlen, ids.n);
    assert_memory_equal(r.ids, ids.v, ids.n * sizeof *ids.v);
    lq_rows_free(&r);
    o.chat_template = put_text("t.jinja", "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}");
    const char *chat = put_text("f.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"one\"}]}");
    r = rows_of(t, chat, o);
    ids.n = 0;
    assert_int_equal(lq_tokenizer_encode(NULL, t, "<user>one", 9, false, true, &ids), LQ_OK);
    assert_memory_equal(r.ids, ids.v, ids.n * sizeof *ids.v);
    lq_rows_free(&r);
    o.no_concat = 1;
    r = rows_of(t, put_text("g.jsonl", "{\"input_ids\": [1, 2, 3]}\n{\"input_ids\": [4, 5]}\n{\"text\": \"x y z\"}"), o);
    assert_int_equal(r.n, 3);
    assert_int_equal(r.len[1], 3);
    assert_int_equal(r.len[2], 2);
    assert_int_equal(r.ids[2 * r.seqlen + 1], 5);
    lq_rows_free(&r);
    lq_ids_free(&ids);
    lq_tokenizer_free(&t);
}

static void file_suffixes_choose_field_and_number(void **state) {
    (void)state;
    char spec[400];
    lq_tokenizer *t = load("plain");
    lq_ids ids = {0};
    const char *file = put_text("h.jsonl", "{\"body\": \"first\"}\n{\"body\": \"second\"}\n{\"body\": \"third\"}\n");
    snprintf(spec, sizeof spec, "%s:num=2:field=body", file);
    lq_rows r = rows_of(t, spec, opts(10, 512));
    assert_int_equal(lq_tokenizer_encode(NULL, t, "first", 5, false, false, &ids), LQ_OK);
    assert_int_equal(lq_tokenizer_encode(NULL, t, "second", 6, false, false, &ids), LQ_OK);
    assert_int_equal(r.seqlen, ids.n);
    assert_memory_equal(r.ids, ids.v, ids.n * sizeof *ids.v);
    lq_rows_free(&r);
    lq_ids_free(&ids);
    lq_tokenizer_free(&t);
}

static void a_json_array_is_documents_too(void **state) {
    (void)state;
    lq_tokenizer *t = load("plain");
    lq_rows a = rows_of(t, put_text("l.json", " [{\"text\": \"one two\"}, \"three four\", {\"text\": \"five\"}]"), opts(9, 512)),
            b = rows_of(t, put_text("l.jsonl", "{\"text\": \"one two\"}\n{\"text\": \"three four\"}\n{\"text\": \"five\"}"), opts(9, 512));
    lq_ctx ctx = {0};
    lq_rows r;
    assert_string_equal(a.hash, b.hash);
    lq_rows_free(&a);
    lq_rows_free(&b);
    const char *bad = put_text("m.json", "[{\"text\": \"one\"}, 7]");
    assert_int_equal(build_from(&ctx, t, &bad, 1, opts(9, 16), 0, &r), LQ_ERR_FORMAT);
    assert_non_null(strstr(ctx.msg, "element 1"));
    lq_tokenizer_free(&t);
}

static void compressed_files_and_several_files_give_the_same_rows(void **state) {
    (void)state;
    char text[4000], packed[4096];
    lq_tokenizer *t = load("plain");
    words(text, sizeof text);
    size_t n = ZSTD_compress(packed, sizeof packed, text, strlen(text), 3);
    lq_rows a = rows_of(t, put_text("i.txt", text), opts(9999, 16)), b = rows_of(t, put("i.bin", packed, n), opts(9999, 16)), c;
    assert_string_equal(a.hash, b.hash);
    const char *twice[2] = {put_text("i.txt", text), put("i.bin", packed, n)};
    assert_int_equal(build_from(NULL, t, twice, 2, opts(9999, 16), 0, &c), LQ_OK);
    assert_true(c.n >= 2 * a.n);
    assert_memory_equal(a.ids, c.ids, a.n * 64);
    assert_string_equal(c.source, "i.txt, i.bin");
    lq_rows_free(&a);
    lq_rows_free(&b);
    lq_rows_free(&c);
    lq_tokenizer_free(&t);
}

static void the_models_context_clips_the_rows(void **state) {
    (void)state;
    char text[4000];
    lq_tokenizer *t = load("plain");
    const char *file = put_text("j.txt", words(text, sizeof text));
    lq_rows r;
    assert_int_equal(build_from(NULL, t, &file, 1, opts(9, 2048), 24, &r), LQ_OK);
    assert_int_equal(r.seqlen, 24);
    assert_int_equal(r.n, 9);
    lq_rows_free(&r);
    lq_tokenizer_free(&t);
}

static void the_built_in_text_is_used_without_a_file(void **state) {
    (void)state;
    lq_tokenizer *t = load("plain");
    lq_rows r;
    lq_ctx ctx = {0};
    if (build_from(&ctx, t, NULL, 0, opts(128, 512), 0, &r)) fail_msg("%s", ctx.msg);
    assert_int_equal(r.n, 128);
    assert_true(r.dropped > 0);
    assert_string_equal(r.source, lq_text_builtin_name);
    lq_rows_free(&r);
    lq_tokenizer_free(&t);
}

static void random_rows_draw_from_the_whole_vocabulary_and_follow_the_seed(void **state) {
    (void)state;
    lq_tokenizer *t = load("qwen2"); /* adds BOS */
    lq_corpus_opts o = opts(40, 128);
    lq_rows a = rows_of(t, "random", o), b = rows_of(t, "random", o);
    o.seed = 1;
    lq_rows c = rows_of(t, "random", o);
    assert_int_equal(a.n, 40);
    assert_int_equal(a.seqlen, 128);
    assert_string_equal(a.hash, b.hash);
    assert_string_not_equal(a.hash, c.hash);
    assert_string_equal(a.source, "random");
    double sum = 0;
    int32_t least = VOCAB, most = 0;
    for (size_t i = 0; i < a.n; i++) {
        assert_int_equal(a.len[i], 128);
        assert_int_equal(a.ids[i * 128], lq_tokenizer_bos(t));
        for (int k = 1; k < 128; k++) {
            int32_t id = a.ids[i * 128 + (size_t)k];
            sum += id;
            least = id < least ? id : least;
            most = id > most ? id : most;
        }
    }
    assert_true(least < VOCAB / 100 && most < VOCAB && most > VOCAB - VOCAB / 100);
    assert_true(fabs(sum / (40 * 127) - VOCAB / 2.0) < 100); /* 6 standard errors */
    lq_rows_free(&a);
    lq_rows_free(&b);
    lq_rows_free(&c);
    lq_tokenizer_free(&t);
}

static void bad_input_is_refused_with_its_place(void **state) {
    (void)state;
    static const struct { const char *text, *says; } bad[] = {
        {"{\"text\": \"a\"}\n{\"text\": }\n", "line 2"}, {"{\"text\": \"a\"}\n{\"other\": 1}\n", "line 2"},
        {"{\"input_ids\": [1, 4096]}", "4096"}, {"{\"input_ids\": [1, -1]}", "-1"}, {"{\"input_ids\": [1, 1.5]}", "input_ids[1]"},
        {"{\"input_ids\": [99999999999]}", "99999999999"}, {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}", "chat template"},
        {"{\"text\": {}}", "neither"}, {"", "no token"}, {"{\"text\": \"\"}", "no token"}};
    lq_tokenizer *t = load("plain");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        lq_ctx ctx = {0};
        lq_rows r;
        const char *file = put_text("bad.jsonl", bad[i].text);
        lq_status st = build_from(&ctx, t, &file, 1, opts(4, 16), 0, &r);
        assert_true(st == LQ_ERR_FORMAT || st == LQ_ERR_UNSUPPORTED);
        if (!strstr(ctx.msg, bad[i].says)) fail_msg("'%s' is not in '%s'", bad[i].says, ctx.msg);
    }
    const char *absent = "/nonexistent/file";
    lq_rows r;
    assert_int_not_equal(build_from(NULL, t, &absent, 1, opts(4, 16), 0, &r), LQ_OK);
    lq_tokenizer_free(&t);
}

static void running_out_of_memory_is_an_error(void **state) {
    (void)state;
    lq_tokenizer *t = load("plain");
    const char *file = put_text("k.jsonl", "{\"text\": \"a few words\"}\n{\"input_ids\": [1, 2, 3, 4]}\n");
    lq_status st = LQ_ERR_RESOURCE;
    for (long n = 0; n < 500 && st; n++) {
        lq_rows r;
        lq_mem_fail_after(n);
        st = build_from(NULL, t, &file, 1, opts(4, 16), 0, &r);
        lq_mem_fail_after(-1);
        assert_true(!st || st == LQ_ERR_RESOURCE);
        if (!st) lq_rows_free(&r);
    }
    assert_int_equal(st, LQ_OK);
    lq_tokenizer_free(&t);
}

static int make_dir(void **state) {
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}
static int drop_dir(void **state) {
    (void)state;
    return lq_remove_tree(NULL, dir) ? -1 : 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_built_in_text_is_in_the_binary),
        cmocka_unit_test(zstd_frames_follow_each_other_and_a_cut_one_is_refused),
        cmocka_unit_test(windows_are_the_text_cut_one_after_the_other),
        cmocka_unit_test(windows_begin_with_bos_as_the_rule_says),
        cmocka_unit_test(the_seed_selects_rows_in_order_without_repetition),
        cmocka_unit_test(saved_rows_come_back_identical),
        cmocka_unit_test(json_lines_give_text_messages_and_ids),
        cmocka_unit_test(file_suffixes_choose_field_and_number),
        cmocka_unit_test(a_json_array_is_documents_too),
        cmocka_unit_test(compressed_files_and_several_files_give_the_same_rows),
        cmocka_unit_test(the_models_context_clips_the_rows),
        cmocka_unit_test(the_built_in_text_is_used_without_a_file),
        cmocka_unit_test(random_rows_draw_from_the_whole_vocabulary_and_follow_the_seed),
        cmocka_unit_test(bad_input_is_refused_with_its_place),
        cmocka_unit_test(running_out_of_memory_is_an_error),
    };
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
