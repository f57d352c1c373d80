/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Tokenizers from files: GGUF vocabularies written here byte by byte, and folders. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "calib/tokenizer.h"

#define SPACE_AB "\xc4\xa0" "ab"
#define MARK "\xe2\x96\x81"

typedef struct writer { lq_buf b; uint64_t n; } writer;

static void raw(writer *w, const void *p, size_t n) { assert_true(lq_buf_add(&w->b, p, n)); }
static void u32(writer *w, uint32_t v) { raw(w, &v, 4); }
static void u64(writer *w, uint64_t v) { raw(w, &v, 8); }
static void str(writer *w, const char *s) {
    u64(w, strlen(s));
    raw(w, s, strlen(s));
}
static void key(writer *w, const char *k, lq_gguf_type type) {
    str(w, k);
    u32(w, type);
    w->n++;
}
static void put_str(writer *w, const char *k, const char *v) {
    key(w, k, LQ_GGUF_STRING);
    str(w, v);
}
static void put_u32(writer *w, const char *k, uint32_t v) {
    key(w, k, LQ_GGUF_U32);
    u32(w, v);
}
static void put_bool(writer *w, const char *k, uint8_t v) {
    key(w, k, LQ_GGUF_BOOL);
    raw(w, &v, 1);
}
static void array(writer *w, const char *k, lq_gguf_type type, size_t n) {
    key(w, k, LQ_GGUF_ARRAY);
    u32(w, type);
    u64(w, n);
}
static void put_strs(writer *w, const char *k, const char *const *v, size_t n) {
    array(w, k, LQ_GGUF_STRING, n);
    for (size_t i = 0; i < n; i++) str(w, v[i]);
}
static void put_floats(writer *w, const char *k, const float *v, size_t n) {
    array(w, k, LQ_GGUF_F32, n);
    raw(w, v, n * 4);
}
static void put_types(writer *w, const char *types) { /* one digit a token */
    array(w, "tokenizer.ggml.token_type", LQ_GGUF_I32, strlen(types));
    for (; *types; types++) u32(w, (uint32_t)(*types - '0'));
}

/* A folder of its own under the build directory, removed again. */
static char dir[64];
static void make_dir(void) {
    snprintf(dir, sizeof dir, "tok_open_XXXXXX");
    assert_non_null(mkdtemp(dir));
}
static void write_in(const char *name, const void *p, size_t n) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(lq_write_file(NULL, path, p, n), LQ_OK);
}
static void drop_dir(void) { assert_int_equal(lq_remove_tree(NULL, dir), LQ_OK); }

static lq_status open_path(lq_ctx *ctx, const char *path, lq_tokenizer **t) {
    lq_source *src = NULL;
    *t = NULL;
    lq_status st = lq_source_open(ctx, path, &src);
    if (!st) st = lq_tokenizer_open(ctx, src, t);
    lq_source_free(&src);
    return st;
}

static lq_status open_gguf(lq_ctx *ctx, writer *w, lq_tokenizer **t) {
    writer f = {0};
    char path[256];
    make_dir();
    raw(&f, "GGUF", 4);
    u32(&f, 3);
    u64(&f, 0);
    u64(&f, w->n);
    raw(&f, w->b.v, w->b.n);
    write_in("v.gguf", f.b.v, f.b.n);
    snprintf(path, sizeof path, "%s/v.gguf", dir);
    lq_status st = open_path(ctx, path, t);
    drop_dir();
    lq_buf_free(&f.b);
    lq_buf_free(&w->b);
    *w = (writer){0};
    return st;
}

static void check(const lq_tokenizer *t, const char *text, const char *want) {
    lq_ids ids = {0};
    char got[256] = "";
    assert_int_equal(lq_tokenizer_encode(NULL, t, text, strlen(text), true, true, &ids), LQ_OK);
    for (size_t i = 0; i < ids.n; i++)
        snprintf(got + strlen(got), sizeof got - strlen(got), i ? " %d" : "%d", ids.v[i]);
    if (strcmp(got, want)) fail_msg("'%s': %s, expected %s", text, got, want);
    lq_ids_free(&ids);
}

/* The same text through the tokenizer.json we write. */
static void check_written(const lq_tokenizer *t, const char *text, const char *want) {
    json_t *o = NULL;
    lq_buf b = {0};
    lq_tokenizer *again = NULL;
    assert_int_equal(lq_tokenizer_json(NULL, t, &o), LQ_OK);
    assert_int_equal(lq_json_dump(NULL, o, &b), LQ_OK);
    assert_int_equal(lq_tokenizer_from_json(NULL, "written", b.v, b.n, &again), LQ_OK);
    check(again, text, want);
    lq_tokenizer_free(&again);
    lq_buf_free(&b);
    json_decref(o);
}

static const char *const spm_tokens[] = {"<unk>", "<s>", "</s>", "<0x78>", MARK,  "a",
                                         "b",     "ab",  "ba",   MARK "a", "abc", "<user>"};
enum { SPM_N = sizeof spm_tokens / sizeof *spm_tokens };
static const float spm_scores[SPM_N] = {0, 0, 0, 0, -10, -11, -12, -2, -1, -3, -4, 0};
#define SPM_TYPES "233611111114"

static void spm_base(writer *w, const char *const *tokens, const float *scores, const char *types) {
    put_str(w, "general.architecture", "llama");
    put_str(w, "tokenizer.ggml.model", "llama");
    put_strs(w, "tokenizer.ggml.tokens", tokens, SPM_N);
    if (scores) put_floats(w, "tokenizer.ggml.scores", scores, SPM_N);
    put_types(w, types);
}

static void sentencepiece_merges_the_best_score_first(void **state) {
    (void)state;
    writer w = {0};
    lq_ctx ctx = {0};
    lq_tokenizer *t;
    spm_base(&w, spm_tokens, spm_scores, SPM_TYPES);
    if (open_gguf(&ctx, &w, &t)) fail_msg("%s", ctx.msg);
    check(t, "aba", "1 9 8");     /* "ba" (-1) before "ab" (-2): mark a, ba */
    check(t, "ab", "1 4 7");      /* "ab" (-2) before mark a (-3) */
    check(t, "a", "1 9");
    check(t, "x", "1 4 3");       /* byte fallback */
    check(t, "y", "1 4 0");       /* no byte token: unknown */
    check(t, "a<user>a", "1 9 11 9");
    check_written(t, "aba", "1 9 8");
    check_written(t, "a<user>a</s>", "1 9 11 9 2");
    assert_int_equal(lq_tokenizer_bos(t), 1);
    assert_int_equal(lq_tokenizer_eos(t), 2);
    assert_true(lq_tokenizer_adds_bos(t));
    assert_int_equal(lq_tokenizer_size(t), SPM_N);
    lq_tokenizer_free(&t);
}

static void a_character_that_only_occurs_inside_a_piece_still_builds_it(void **state) {
    (void)state;
    writer w = {0};
    lq_ctx ctx = {0};
    lq_tokenizer *t;
    spm_base(&w, spm_tokens, spm_scores, SPM_TYPES);
    if (open_gguf(&ctx, &w, &t)) fail_msg("%s", ctx.msg);
    check(t, "abc", "1 4 10"); /* "c" is no token */
    check(t, "c", "1 4 0");
    assert_int_equal(lq_tokenizer_id(t, "c") < (int32_t)lq_tokenizer_size(t), false);
    assert_null(lq_tokenizer_token(t, SPM_N));
    lq_tokenizer_free(&t);
}

static void flags_of_the_gguf_are_obeyed(void **state) {
    (void)state;
    writer w = {0};
    lq_ctx ctx = {0};
    lq_tokenizer *t;
    spm_base(&w, spm_tokens, spm_scores, SPM_TYPES);
    put_bool(&w, "tokenizer.ggml.add_space_prefix", 0);
    put_bool(&w, "tokenizer.ggml.add_bos_token", 0);
    put_bool(&w, "tokenizer.ggml.add_eos_token", 1);
    if (open_gguf(&ctx, &w, &t)) fail_msg("%s", ctx.msg);
    check(t, "ab a", "7 9 2");
    check_written(t, "ab a", "7 9 2");
    assert_false(lq_tokenizer_adds_bos(t));
    lq_tokenizer_free(&t);
}

static const char *const bpe_tokens[] = {"<|end|>", "a", "b", "ab", "\xc4\xa0", "1", SPACE_AB};
static const char *const bpe_merges[] = {"a b", "\xc4\xa0 ab"};
static void bpe_base(writer *w, const char *model, const char *pre, const char *const *merges, size_t n) {
    put_str(w, "tokenizer.ggml.model", model);
    if (pre) put_str(w, "tokenizer.ggml.pre", pre);
    put_strs(w, "tokenizer.ggml.tokens", bpe_tokens, 7);
    if (merges) put_strs(w, "tokenizer.ggml.merges", merges, n);
    put_types(w, "3111111");
}

static void byte_level_vocabularies_follow_their_pre_name(void **state) {
    (void)state;
    writer w = {0};
    lq_ctx ctx = {0};
    lq_tokenizer *t;
    bpe_base(&w, "gpt2", "smollm", bpe_merges, 2);
    put_u32(&w, "tokenizer.ggml.bos_token_id", 0);
    if (open_gguf(&ctx, &w, &t)) fail_msg("%s", ctx.msg);
    check(t, "ab ab11<|end|>", "3 6 5 5 0");
    check_written(t, "ab ab11<|end|>", "3 6 5 5 0");
    assert_false(lq_tokenizer_adds_bos(t));
    lq_tokenizer_free(&t);
    bpe_base(&w, "gpt2", "llama-bpe", bpe_merges, 2);
    put_u32(&w, "tokenizer.ggml.bos_token_id", 0);
    if (open_gguf(&ctx, &w, &t)) fail_msg("%s", ctx.msg);
    check(t, "ab", "0 3"); /* this name adds BOS when the file does not say */
    lq_tokenizer_free(&t);
}

static void refused(writer *w, lq_status want, const char *word) {
    lq_ctx ctx = {0};
    lq_tokenizer *t;
    lq_status st = open_gguf(&ctx, w, &t);
    if (st != want || !strstr(ctx.msg, word) || t)
        fail_msg("status %d '%s', expected %d and '%s'", st, ctx.msg, want, word);
}

static void hostile_vocabularies_are_refused_with_a_sentence(void **state) {
    (void)state;
    writer w = {0};
    const char *tokens[SPM_N];
    float scores[SPM_N];
    static const char *const absent[] = {"a b", "a q"}, *const single[] = {"ab"};
    memcpy(tokens, spm_tokens, sizeof tokens);
    memcpy(scores, spm_scores, sizeof scores);
    tokens[3] = "<0x-1>";
    spm_base(&w, tokens, scores, SPM_TYPES);
    refused(&w, LQ_ERR_FORMAT, "<0x-1>");
    tokens[3] = "\xff\xfe";
    spm_base(&w, tokens, scores, SPM_TYPES);
    refused(&w, LQ_ERR_FORMAT, "UTF-8");
    scores[5] = NAN;
    spm_base(&w, spm_tokens, scores, SPM_TYPES);
    refused(&w, LQ_ERR_FORMAT, "finite");
    spm_base(&w, spm_tokens, NULL, SPM_TYPES);
    refused(&w, LQ_ERR_FORMAT, "scores");
    spm_base(&w, spm_tokens, spm_scores, "11");
    refused(&w, LQ_ERR_FORMAT, "token_type");
    spm_base(&w, spm_tokens, spm_scores, SPM_TYPES);
    put_u32(&w, "tokenizer.ggml.bos_token_id", 99);
    refused(&w, LQ_ERR_FORMAT, "bos_token_id");
    spm_base(&w, spm_tokens, spm_scores, SPM_TYPES);
    put_str(&w, "tokenizer.ggml.eos_token_id", "two");
    refused(&w, LQ_ERR_FORMAT, "eos_token_id");
    bpe_base(&w, "gpt2", "smollm", absent, 2);
    refused(&w, LQ_ERR_FORMAT, "right part");
    bpe_base(&w, "gpt2", "smollm", single, 1);
    refused(&w, LQ_ERR_FORMAT, "two tokens");
    bpe_base(&w, "gpt2", "smollm", NULL, 0);
    refused(&w, LQ_ERR_FORMAT, "merges");
    bpe_base(&w, "gpt2", "no-such-name", bpe_merges, 2);
    refused(&w, LQ_ERR_UNSUPPORTED, "no-such-name");
    bpe_base(&w, "bert", NULL, bpe_merges, 2);
    refused(&w, LQ_ERR_UNSUPPORTED, "bert");
    put_str(&w, "tokenizer.ggml.model", "gpt2");
    refused(&w, LQ_ERR_FORMAT, "tokens");
    put_str(&w, "general.architecture", "llama");
    refused(&w, LQ_ERR_FORMAT, "tokenizer.ggml.model");
}

static void every_failed_allocation_is_survived(void **state) {
    (void)state;
    bool done = false;
    char path[256];
    writer w = {0}, f = {0};
    spm_base(&w, spm_tokens, spm_scores, SPM_TYPES);
    make_dir();
    raw(&f, "GGUF", 4);
    u32(&f, 3);
    u64(&f, 0);
    u64(&f, w.n);
    raw(&f, w.b.v, w.b.n);
    write_in("v.gguf", f.b.v, f.b.n);
    snprintf(path, sizeof path, "%s/v.gguf", dir);
    for (long n = 0; !done; n++) {
        lq_ctx ctx = {0};
        lq_tokenizer *t;
        lq_mem_fail_after(n);
        lq_status st = open_path(&ctx, path, &t);
        lq_mem_fail_after(-1);
        if (st && st != LQ_ERR_RESOURCE) fail_msg("allocation %ld: status %d, %s", n, st, ctx.msg);
        done = !st;
        lq_tokenizer_free(&t);
    }
    drop_dir();
    lq_buf_free(&w.b);
    lq_buf_free(&f.b);
}

/* A folder that passes for a model: one tensor. */
static void model_folder(const char *config) {
    static const char header[] = "{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
    writer w = {0};
    make_dir();
    u64(&w, strlen(header));
    raw(&w, header, strlen(header));
    u32(&w, 0);
    write_in("model.safetensors", w.b.v, w.b.n);
    write_in("config.json", config, strlen(config));
    lq_buf_free(&w.b);
}
static void write_text(const char *name, const char *text) { write_in(name, text, strlen(text)); }

#define VOCAB "{\"</s>\":0,\"a\":1,\"b\":2,\"ab\":3,\"\xc4\xa0\":4,\"\xc4\xa0" "ab\":5}"
static void vocab_and_merges_files_make_a_tokenizer(void **state) {
    (void)state;
    lq_ctx ctx = {0};
    lq_tokenizer *t;
    model_folder("{\"model_type\":\"opt\",\"vocab_size\":6}");
    write_text("vocab.json", VOCAB);
    write_text("merges.txt", "#version: 0.2\na b\r\n\xc4\xa0 ab\n");
    write_text("special_tokens_map.json",
               "{\"bos_token\":{\"content\":\"</s>\",\"lstrip\":false},\"eos_token\":\"</s>\"}");
    write_text("tokenizer_config.json", "{\"bos_token\":\"</s>\",\"add_bos_token\":true}");
    if (open_path(&ctx, dir, &t)) fail_msg("%s", ctx.msg);
    check(t, "ab ab</s>", "0 3 5 0");
    check_written(t, "ab ab</s>", "0 3 5 0");
    assert_int_equal(lq_tokenizer_eos(t), 0);
    assert_true(lq_tokenizer_adds_bos(t));
    lq_tokenizer_free(&t);
    drop_dir();
}

static void the_folder_says_which_tokens_begin_and_end_a_text(void **state) {
    (void)state;
    lq_ctx ctx = {0};
    lq_tokenizer *t;
    model_folder("{\"vocab_size\":6,\"bos_token_id\":1,\"eos_token_id\":[2,3]}");
    write_text("tokenizer.json", "{\"model\":{\"type\":\"BPE\",\"vocab\":" VOCAB ",\"merges\":[\"a b\"]}}");
    if (open_path(&ctx, dir, &t)) fail_msg("%s", ctx.msg);
    assert_int_equal(lq_tokenizer_bos(t), 1);
    assert_int_equal(lq_tokenizer_eos(t), 2);
    assert_false(lq_tokenizer_adds_bos(t));
    lq_tokenizer_free(&t);
    drop_dir();
}

static void folder_refused(const char *config, const char *tokenizer, lq_status want, const char *word) {
    lq_ctx ctx = {0};
    lq_tokenizer *t;
    model_folder(config);
    if (tokenizer) write_text("tokenizer.json", tokenizer);
    lq_status st = open_path(&ctx, dir, &t);
    if (st != want || !strstr(ctx.msg, word) || t)
        fail_msg("status %d '%s', expected %d and '%s'", st, ctx.msg, want, word);
    drop_dir();
}

static void a_tokenizer_that_does_not_fit_its_model_is_refused(void **state) {
    (void)state;
    static const char json[] = "{\"model\":{\"type\":\"BPE\",\"vocab\":" VOCAB ",\"merges\":[\"a b\"]}}";
    folder_refused("{\"vocab_size\":5}", json, LQ_ERR_FORMAT, "5 tokens");
    folder_refused("{\"vocab_size\":6,\"bos_token_id\":6}", json, LQ_ERR_FORMAT, "bos_token_id");
    folder_refused("{\"vocab_size\":6}", NULL, LQ_ERR_UNSUPPORTED, "no tokenizer.json");
    folder_refused("{\"vocab_size\":6}", "{\"model\":", LQ_ERR_FORMAT, "tokenizer.json");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sentencepiece_merges_the_best_score_first),
        cmocka_unit_test(a_character_that_only_occurs_inside_a_piece_still_builds_it),
        cmocka_unit_test(flags_of_the_gguf_are_obeyed),
        cmocka_unit_test(byte_level_vocabularies_follow_their_pre_name),
        cmocka_unit_test(hostile_vocabularies_are_refused_with_a_sentence),
        cmocka_unit_test(every_failed_allocation_is_survived),
        cmocka_unit_test(vocab_and_merges_files_make_a_tokenizer),
        cmocka_unit_test(the_folder_says_which_tokens_begin_and_end_a_text),
        cmocka_unit_test(a_tokenizer_that_does_not_fit_its_model_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
