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

#include "calib/tokenizer.h"

#define GOLDEN LQ_SOURCE_ROOT "/tests/golden/tokenizer/"
static const char *const families[] = {"gpt2", "gpt2_prefix_space", "llama2", "llama3", "mistral", "qwen2", "smollm"};
enum { FAMILIES = sizeof families / sizeof *families };

static void slurp(const char *family, const char *file, lq_buf *out) {
    char path[512];
    snprintf(path, sizeof path, GOLDEN "%s/%s", family, file);
    *out = (lq_buf){0};
    assert_int_equal(lq_file_slurp(NULL, path, 1 << 24, out), LQ_OK);
}

static lq_tokenizer *load(const char *family) {
    lq_ctx ctx = {0};
    lq_tokenizer *t = NULL;
    lq_buf b;
    slurp(family, "tokenizer.json", &b);
    if (lq_tokenizer_from_json(&ctx, family, b.v, b.n, &t)) fail_msg("%s", ctx.msg);
    lq_buf_free(&b);
    return t;
}

static void check_ids(const lq_tokenizer *t, const char *text, size_t n, bool special, const json_t *want) {
    lq_ids ids = {0};
    assert_int_equal(lq_tokenizer_encode(NULL, t, text, n, special, true, &ids), LQ_OK);
    if (ids.n != json_array_size(want)) fail_msg("'%s': %zu ids, expected %zu", text, ids.n, json_array_size(want));
    for (size_t i = 0; i < ids.n; i++)
        if (ids.v[i] != json_integer_value(json_array_get(want, i)))
            fail_msg("'%s': id %zu is %d, expected %lld", text, i, ids.v[i],
                     (long long)json_integer_value(json_array_get(want, i)));
    lq_ids_free(&ids);
}

static void every_family_gives_the_golden_ids(void **state) {
    (void)state;
    for (int f = 0; f < FAMILIES; f++) {
        lq_tokenizer *t = load(families[f]);
        lq_buf b;
        json_t *cases = NULL;
        slurp(families[f], "cases.json", &b);
        cases = json_loadb(b.v, b.n, JSON_ALLOW_NUL, NULL);
        assert_true(json_array_size(cases) > 20);
        for (size_t i = 0; i < json_array_size(cases); i++) {
            const json_t *c = json_array_get(cases, i), *text = json_object_get(c, "text");
            check_ids(t, json_string_value(text), json_string_length(text), false, json_object_get(c, "ids"));
            check_ids(t, json_string_value(text), json_string_length(text), true, json_object_get(c, "ids_special"));
        }
        json_decref(cases);
        lq_buf_free(&b);
        lq_tokenizer_free(&t);
    }
}

static void golden_ids_decode_to_the_golden_text(void **state) {
    (void)state;
    for (int f = 0; f < FAMILIES; f++) {
        lq_tokenizer *t = load(families[f]);
        lq_buf b;
        slurp(families[f], "cases.json", &b);
        json_t *cases = json_loadb(b.v, b.n, JSON_ALLOW_NUL, NULL);
        for (size_t i = 0; i < json_array_size(cases); i++) {
            const json_t *c = json_array_get(cases, i), *ids = json_object_get(c, "ids"),
                         *want = json_object_get(c, "decoded");
            int32_t v[2048];
            lq_buf out = {0};
            size_t n = json_array_size(ids);
            assert_true(n <= 2048);
            for (size_t k = 0; k < n; k++) v[k] = (int32_t)json_integer_value(json_array_get(ids, k));
            assert_int_equal(lq_tokenizer_decode(NULL, t, v, n, false, &out), LQ_OK);
            if (out.n != json_string_length(want) || memcmp(out.v, json_string_value(want), out.n))
                fail_msg("%s: case %zu decodes to '%s', expected '%s'", families[f], i, out.v, json_string_value(want));
            lq_buf_free(&out);
        }
        json_decref(cases);
        lq_buf_free(&b);
        lq_tokenizer_free(&t);
    }
}

static void the_written_json_reads_back_to_the_same_ids(void **state) {
    (void)state;
    for (int f = 0; f < FAMILIES; f++) {
        lq_tokenizer *t = load(families[f]), *again = NULL;
        json_t *written = NULL;
        lq_buf text = {0}, b;
        assert_int_equal(lq_tokenizer_json(NULL, t, &written), LQ_OK);
        assert_int_equal(lq_json_dump(NULL, written, &text), LQ_OK);
        assert_int_equal(lq_tokenizer_from_json(NULL, "written", text.v, text.n, &again), LQ_OK);
        slurp(families[f], "cases.json", &b);
        json_t *cases = json_loadb(b.v, b.n, JSON_ALLOW_NUL, NULL);
        for (size_t i = 0; i < json_array_size(cases); i++) {
            const json_t *c = json_array_get(cases, i), *s = json_object_get(c, "text");
            check_ids(again, json_string_value(s), json_string_length(s), true, json_object_get(c, "ids_special"));
        }
        json_decref(cases);
        json_decref(written);
        lq_buf_free(&text);
        lq_buf_free(&b);
        lq_tokenizer_free(&t);
        lq_tokenizer_free(&again);
    }
}

/* A vocabulary of single letters with a few merges; stages as given. */
#define MODEL(extra) "\"model\":{\"type\":\"BPE\"," extra "\"vocab\":{\"a\":0,\"b\":1,\" \":2,\"1\":3,\".\":4,\"ab\":5,\"\xe2\x96\x81\":6,\"B\":7,\"2\":8,\"<u>\":9}," \
                     "\"merges\":[\"a b\"]}"
static void check_text(const char *json, const char *text, const char *want) {
    lq_ctx ctx = {0};
    lq_tokenizer *t = NULL;
    lq_ids ids = {0};
    char got[256] = "";
    if (lq_tokenizer_from_json(&ctx, "inline", json, strlen(json), &t)) fail_msg("%s", ctx.msg);
    assert_int_equal(lq_tokenizer_encode(&ctx, t, text, strlen(text), true, true, &ids), LQ_OK);
    for (size_t i = 0; i < ids.n; i++)
        snprintf(got + strlen(got), sizeof got - strlen(got), i ? " %d" : "%d", ids.v[i]);
    assert_string_equal(got, want);
    lq_ids_free(&ids);
    lq_tokenizer_free(&t);
}

#define PRE(p) "{\"pre_tokenizer\":" p "," MODEL("") "}"
#define SPLIT(behavior, invert) PRE("{\"type\":\"Split\",\"pattern\":{\"String\":\" \"},\"behavior\":\"" behavior "\",\"invert\":" invert "}")
static void every_split_behavior_cuts_as_named(void **state) {
    (void)state; /* words are told apart by `a b` merging only within one */
    check_text(SPLIT("Isolated", "false"), "ab  ab", "5 2 2 5");
    check_text(SPLIT("Removed", "false"), "ab ab", "5 5");
    check_text(SPLIT("Removed", "true"), "ab ab", "2");
    check_text(SPLIT("MergedWithPrevious", "false"), "ab ab", "5 2 5");
    check_text(SPLIT("MergedWithNext", "false"), "ab ab", "5 2 5");
    check_text(SPLIT("Contiguous", "false"), "ab   ab", "5 2 2 2 5");
    check_text(
        PRE("{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"MergedWithPrevious\",\"invert\":false}"),
        "aab", "0 0 1");
    check_text(
        PRE("{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"MergedWithNext\",\"invert\":false}"),
        "aab", "0 5");
    check_text(
        PRE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[ab]\"},\"behavior\":\"Contiguous\",\"invert\":false}"),
        "ab1ab", "5 3 5");
    check_text(PRE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[ab]\"},\"behavior\":\"Isolated\",\"invert\":false}"),
               "ab1ab", "0 1 3 0 1");
}

static void pre_tokenizers_cut_where_they_should(void **state) {
    (void)state;
    check_text(PRE("{\"type\":\"WhitespaceSplit\"}"), "ab \tab", "5 5");
    check_text(PRE("{\"type\":\"Whitespace\"}"), "ab.ab", "5 4 5");
    check_text(PRE("{\"type\":\"Digits\",\"individual_digits\":true}"), "ab12", "5 3 8");
    check_text(PRE("{\"type\":\"Punctuation\",\"behavior\":\"Removed\"}"), "a.b", "0 1");
    check_text(PRE("{\"type\":\"CharDelimiterSplit\",\"delimiter\":\"1\"}"), "a1b", "0 1");
    check_text(
        PRE("{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\",\"prepend_scheme\":\"always\",\"split\":true}"),
        "ab ab", "6 5 6 5");
    check_text(PRE("{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\",\"prepend_scheme\":\"never\"}"), "ab ab",
               "5 6 5");
    check_text(
        PRE("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"WhitespaceSplit\"},{\"type\":\"Digits\",\"individual_digits\":false}]}"),
        "ab 12 ab", "5 3 8 5");
}

#define NORM(p) "{\"normalizer\":" p "," MODEL("") "}"
static void normalizers_rewrite_the_text(void **state) {
    (void)state;
    check_text(NORM("{\"type\":\"Lowercase\"}"), "AB", "5");
    check_text(NORM("{\"type\":\"Strip\",\"strip_left\":true,\"strip_right\":true}"), " \t ab \n", "5");
    check_text(NORM("{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"1+\"},\"content\":\"b\"}"), "a111", "5");
    check_text(NORM("{\"type\":\"NFKC\"}"), "\xc2\xaa\xef\xbd\x82", "5");
    check_text(
        NORM(
            "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"a\"},{\"type\":\"Lowercase\"}]}"),
        "B", "5");
}

#define ADDED(flags) "{\"added_tokens\":[{\"id\":10,\"content\":\"[x]\",\"special\":true,\"normalized\":false" flags "}]," MODEL("") "}"
static void added_tokens_are_cut_out_first(void **state) {
    (void)state;
    check_text(ADDED(""), "a[x]b", "0 10 1");
    check_text(ADDED(",\"lstrip\":true"), "a  [x] b", "0 10 2 1");
    check_text(ADDED(",\"rstrip\":true"), "a [x]  b", "0 2 10 1");
    check_text(ADDED(",\"single_word\":true"), "a[x] [x]", "0 2 10");
    lq_tokenizer *t = NULL;
    lq_ids ids = {0};
    assert_int_equal(lq_tokenizer_from_json(NULL, "inline", ADDED(""), strlen(ADDED("")), &t), LQ_OK);
    assert_int_equal(lq_tokenizer_encode(NULL, t, "a[x]b", 5, false, false, &ids), LQ_OK);
    assert_int_equal(ids.n, 1); /* special tokens as plain text: "[x]" has no token at all, and a and b meet */
    assert_int_equal(ids.v[0], 5);
    assert_int_equal(lq_tokenizer_id(t, "[x]"), 10);
    assert_string_equal(lq_tokenizer_token(t, 10), "[x]");
    assert_null(lq_tokenizer_token(t, 11));
    assert_int_equal(lq_tokenizer_size(t), 11);
    lq_ids_free(&ids);
    lq_tokenizer_free(&t);
}

static void unknown_characters_fuse_when_told(void **state) {
    (void)state;
    check_text("{" MODEL("\"unk_token\":\"<u>\",\"fuse_unk\":true,") "}", "axyzb", "0 9 1");
    check_text("{" MODEL("\"unk_token\":\"<u>\",") "}", "axyb", "0 9 9 1");
    check_text("{" MODEL("") "}", "axyb", "5"); /* without one they vanish, and their neighbours meet */
}

static void post_processors_wrap_the_text(void **state) {
    (void)state;
    check_text("{\"post_processor\":{\"type\":\"RobertaProcessing\",\"sep\":[\"b\",1],\"cls\":[\"a\",0]}," MODEL(
                   "") "}",
               ".", "0 4 1");
    check_text(
        "{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"a\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\","
        "\"type_id\":0}}],\"special_tokens\":{\"a\":{\"id\":\"a\",\"ids\":[0],\"tokens\":[\"a\"]}}}," MODEL("") "}",
        ".", "0 4");
}

static void invalid_utf8_becomes_the_replacement_character(void **state) {
    (void)state;
    static const struct { const char *bad; size_t n; const char *good;
    } cases[] = {{"a\xff\xff", 3, "a\xef\xbf\xbd\xef\xbf\xbd"},
                 {"\xe4\xb8", 2, "\xef\xbf\xbd"},
                 {"\xed\xa0\x80", 3, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
                 {"\xf0\x9f\x98z", 4, "\xef\xbf\xbdz"},
                 {"\xc0\x80", 2, "\xef\xbf\xbd\xef\xbf\xbd"}};
    lq_tokenizer *t = load("gpt2");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        lq_ids a = {0}, b = {0};
        assert_int_equal(lq_tokenizer_encode(NULL, t, cases[i].bad, cases[i].n, false, true, &a), LQ_OK);
        assert_int_equal(lq_tokenizer_encode(NULL, t, cases[i].good, strlen(cases[i].good), false, true, &b), LQ_OK);
        assert_int_equal(a.n, b.n);
        assert_memory_equal(a.v, b.v, a.n * sizeof *a.v);
        lq_ids_free(&a);
        lq_ids_free(&b);
    }
    lq_tokenizer_free(&t);
}

static void a_prefix_of_the_ids_decodes_to_a_prefix_of_the_text(void **state) {
    (void)state;
    static const char text[] = "Hello \xf0\x9f\x91\x8b\xf0\x9f\x8f\xbd w\xc3\xb6rld";
    for (int f = 0; f < FAMILIES; f++) {
        lq_tokenizer *t = load(families[f]);
        lq_ids ids = {0};
        lq_buf all = {0};
        assert_int_equal(lq_tokenizer_encode(NULL, t, text, strlen(text), true, true, &ids), LQ_OK);
        assert_int_equal(lq_tokenizer_decode(NULL, t, ids.v, ids.n, true, &all), LQ_OK);
        for (size_t n = 0; n <= ids.n; n++) {
            lq_buf part = {0};
            assert_int_equal(lq_tokenizer_decode(NULL, t, ids.v, n, true, &part), LQ_OK);
            assert_true(part.n <= all.n);
            assert_memory_equal(part.v, all.v, part.n);
            lq_buf_free(&part);
        }
        assert_non_null(strstr(all.v, text));
        lq_buf_free(&all);
        lq_ids_free(&ids);
        lq_tokenizer_free(&t);
    }
}

/* A quarter of a megabyte each; the suite's timeout is the judge. */
static void long_monotonous_texts_take_no_quadratic_time(void **state) {
    (void)state;
    static const char *const units[] = {"a", " ", "\n", "7", "\xcc\x81\xcc\xa3", "ab"};
    char *text = malloc(1 << 18);
    assert_non_null(text);
    for (int f = 0; f < FAMILIES; f++) {
        lq_tokenizer *t = load(families[f]);
        for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
            lq_ids ids = {0};
            size_t n = strlen(units[u]);
            for (size_t i = 0; i < 1 << 18; i++) text[i] = units[u][i % n];
            assert_int_equal(lq_tokenizer_encode(NULL, t, text, 1 << 18, false, true, &ids), LQ_OK);
            assert_true(ids.n > 0);
            lq_ids_free(&ids);
        }
        lq_tokenizer_free(&t);
    }
    free(text);
}

static void check_refused(const char *json, lq_status want, const char *word) {
    lq_ctx ctx = {0};
    lq_tokenizer *t = NULL;
    lq_status st = lq_tokenizer_from_json(&ctx, "hostile", json, strlen(json), &t);
    if (st != want || !strstr(ctx.msg, word) || t)
        fail_msg("%.200s: status %d '%s', expected %d and '%s'", json, st, ctx.msg, want, word);
}

static void hostile_tokenizers_are_refused_with_a_sentence(void **state) {
    (void)state;
    check_refused("[]", LQ_ERR_FORMAT, "not a JSON object");
    check_refused("{", LQ_ERR_FORMAT, "JSON");
    check_refused("{\"model\":7}", LQ_ERR_FORMAT, "model");
    check_refused("{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", LQ_ERR_UNSUPPORTED, "WordPiece");
    check_refused("{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", LQ_ERR_UNSUPPORTED, "Unigram");
    check_refused("{\"model\":{\"type\":\"WordLevel\",\"vocab\":{}}}", LQ_ERR_UNSUPPORTED, "WordLevel");
    check_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}}", LQ_ERR_FORMAT, "vocab");
    check_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}", LQ_ERR_FORMAT, "'a'");
    check_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":4294967297},\"merges\":[]}}", LQ_ERR_FORMAT, "'a'");
    check_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":\"0\"},\"merges\":[]}}", LQ_ERR_FORMAT, "'a'");
    check_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", LQ_ERR_FORMAT, "share");
    check_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}}", LQ_ERR_FORMAT, "result");
    check_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}", LQ_ERR_FORMAT,
                  "right part");
    check_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"aa\"]}}", LQ_ERR_FORMAT,
                  "two tokens");
    check_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}}", LQ_ERR_FORMAT,
                  "two tokens");
    check_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":{}}}", LQ_ERR_FORMAT, "merges");
    check_refused("{\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,\"vocab\":{\"<0x-1>\":0},\"merges\":[]}}",
                  LQ_ERR_FORMAT, "<0x-1>");
    check_refused("{\"model\":{\"type\":\"BPE\",\"byte_fallback\":1,\"vocab\":{\"a\":0},\"merges\":[]}}", LQ_ERR_FORMAT,
                  "byte_fallback");
    check_refused("{" MODEL("\"dropout\":0.1,") "}", LQ_ERR_UNSUPPORTED, "dropout");
    check_refused("{" MODEL("\"end_of_word_suffix\":\"</w>\",") "}", LQ_ERR_UNSUPPORTED, "</w>");
    check_refused("{\"added_tokens\":[{\"id\":0,\"content\":\"x\"}]," MODEL("") "}", LQ_ERR_FORMAT, "belongs to");
    check_refused("{\"added_tokens\":[{\"id\":99999999,\"content\":\"x\"}]," MODEL("") "}", LQ_ERR_FORMAT, "id");
    check_refused("{\"added_tokens\":[{\"id\":10}]," MODEL("") "}", LQ_ERR_FORMAT, "content");
    check_refused("{\"added_tokens\":[5]," MODEL("") "}", LQ_ERR_FORMAT, "added token 0");
    check_refused(NORM("{\"type\":\"Nmt\"}"), LQ_ERR_UNSUPPORTED, "Nmt");
    check_refused(NORM("{\"type\":\"Replace\",\"pattern\":7,\"content\":\"\"}"), LQ_ERR_FORMAT, "pattern");
    check_refused(PRE("{\"type\":\"BertPreTokenizer\"}"), LQ_ERR_UNSUPPORTED, "BertPreTokenizer");
    check_refused(PRE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a\"},\"behavior\":\"Isolated\",\"invert\":false}"),
                  LQ_ERR_UNSUPPORTED, "(a");
    check_refused(
        PRE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a[^b]]\"},\"behavior\":\"Isolated\",\"invert\":false}"),
        LQ_ERR_UNSUPPORTED, "set");
    check_refused(PRE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Sideways\",\"invert\":false}"),
                  LQ_ERR_UNSUPPORTED, "Sideways");
    check_refused(PRE("{\"type\":\"Sequence\",\"pretokenizers\":3}"), LQ_ERR_FORMAT, "list");
    check_refused("{\"decoder\":{\"type\":\"CTC\"}," MODEL("") "}", LQ_ERR_UNSUPPORTED, "CTC");
    check_refused("{\"post_processor\":{\"type\":\"RobertaProcessing\",\"sep\":[\"x\",99],\"cls\":[\"a\",0]}," MODEL(
                      "") "}",
                  LQ_ERR_FORMAT, "99");
    check_refused("{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[]}," MODEL("") "}",
                  LQ_ERR_UNSUPPORTED, "once");
}

static void deep_nesting_and_long_lists_are_refused(void **state) {
    (void)state;
    lq_buf b = {0};
    for (int i = 0; i < 100; i++)
        assert_true(lq_buf_addf(&b, i ? "{\"type\":\"Sequence\",\"normalizers\":[" : "{\"normalizer\":"));
    assert_true(lq_buf_addf(&b, "{\"type\":\"NFC\"}"));
    for (int i = 1; i < 100; i++) assert_true(lq_buf_addf(&b, "]}"));
    assert_true(lq_buf_addf(&b, "," MODEL("") "}"));
    check_refused(b.v, LQ_ERR_FORMAT, "nested");
    b.n = 0;
    assert_true(lq_buf_addf(&b, "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":["));
    for (int i = 0; i < 1000; i++) assert_true(lq_buf_addf(&b, i ? ",{\"type\":\"NFC\"}" : "{\"type\":\"NFC\"}"));
    assert_true(lq_buf_addf(&b, "]}," MODEL("") "}"));
    check_refused(b.v, LQ_ERR_UNSUPPORTED, "steps");
    lq_buf_free(&b);
}

static void every_truncation_is_refused(void **state) {
    (void)state;
    lq_buf b;
    slurp("llama3", "tokenizer.json", &b);
    while (b.n && (b.v[b.n - 1] == '\n' || b.v[b.n - 1] == ' ')) b.n--;
    for (size_t n = 0; n < b.n; n++) {
        lq_ctx ctx = {0};
        lq_tokenizer *t = NULL;
        assert_int_equal(lq_tokenizer_from_json(&ctx, "short", b.v, n, &t), LQ_ERR_FORMAT);
        assert_null(t);
        assert_true(ctx.msg[0]);
    }
    lq_buf_free(&b);
}

/* Whatever a damaged file still says, loading and encoding end with a status. */
static void damaged_tokenizers_do_no_harm(void **state) {
    (void)state;
    lq_buf b;
    slurp("llama2", "tokenizer.json", &b);
    uint32_t seed = 12345;
    for (int round = 0; round < 2000; round++) {
        seed = seed * 1664525 + 1013904223;
        size_t at = (seed >> 8) % b.n;
        char old = b.v[at];
        b.v[at] = (char)("0{}[]\",:-9ax"[seed % 12]);
        lq_tokenizer *t = NULL;
        lq_ids ids = {0};
        lq_ctx ctx = {0};
        if (!lq_tokenizer_from_json(&ctx, "damaged", b.v, b.n, &t))
            (void)lq_tokenizer_encode(&ctx, t, "Hello <s> w\xc3\xb6rld 12", 18, true, true, &ids);
        lq_ids_free(&ids);
        lq_tokenizer_free(&t);
        b.v[at] = old;
    }
    lq_buf_free(&b);
}

static void every_failed_allocation_is_survived(void **state) {
    (void)state;
    static const char *const some[] = {"qwen2", "llama2"};
    static const char text[] = "It's   na\xc3\xafve: e\xcc\xa3\xcc\x81\xcc\x87 12345 \xf0\x9f\x91\x8b <s> \xff";
    for (int f = 0; f < 2; f++) {
        lq_buf b;
        bool done = false;
        slurp(some[f], "tokenizer.json", &b);
        for (long n = 0; !done; n++) {
            lq_ctx ctx = {0};
            lq_tokenizer *t = NULL;
            lq_ids ids = {0};
            lq_buf back = {0};
            json_t *out = NULL;
            lq_mem_fail_after(n);
            lq_status st = lq_tokenizer_from_json(&ctx, "t", b.v, b.n, &t);
            if (!st) st = lq_tokenizer_encode(&ctx, t, text, strlen(text), true, true, &ids);
            if (!st) st = lq_tokenizer_decode(&ctx, t, ids.v, ids.n, true, &back);
            if (!st) st = lq_tokenizer_json(&ctx, t, &out);
            lq_mem_fail_after(-1);
            if (st && st != LQ_ERR_RESOURCE) fail_msg("allocation %ld: status %d, %s", n, st, ctx.msg);
            done = !st;
            json_decref(out);
            lq_ids_free(&ids);
            lq_buf_free(&back);
            lq_tokenizer_free(&t);
        }
        lq_buf_free(&b);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_family_gives_the_golden_ids),
        cmocka_unit_test(golden_ids_decode_to_the_golden_text),
        cmocka_unit_test(the_written_json_reads_back_to_the_same_ids),
        cmocka_unit_test(every_split_behavior_cuts_as_named),
        cmocka_unit_test(pre_tokenizers_cut_where_they_should),
        cmocka_unit_test(normalizers_rewrite_the_text),
        cmocka_unit_test(added_tokens_are_cut_out_first),
        cmocka_unit_test(unknown_characters_fuse_when_told),
        cmocka_unit_test(post_processors_wrap_the_text),
        cmocka_unit_test(invalid_utf8_becomes_the_replacement_character),
        cmocka_unit_test(a_prefix_of_the_ids_decodes_to_a_prefix_of_the_text),
        cmocka_unit_test(long_monotonous_texts_take_no_quadratic_time),
        cmocka_unit_test(hostile_tokenizers_are_refused_with_a_sentence),
        cmocka_unit_test(deep_nesting_and_long_lists_are_refused),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(damaged_tokenizers_do_no_harm),
        cmocka_unit_test(every_failed_allocation_is_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
