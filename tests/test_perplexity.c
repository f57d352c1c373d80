/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/thread.h"
#include "eval/report.h"
#include "formats/safetensors.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define GOLDEN LQ_SOURCE_ROOT "/tests/golden/forward/"
enum { VOCAB = 64, LEN = 48, TEXT = 200 };

static lq_model *open_model(const char *variant, lq_source **src) {
    char path[512];
    lq_ctx ctx = {0};
    lq_model *m = NULL;
    snprintf(path, sizeof path, GOLDEN "%s", variant);
    if (lq_source_open(&ctx, path, src) || lq_model_open(&ctx, *src, false, &m) || lq_model_load_all(&ctx, m, LQ_LOAD_STORED)) fail_msg("%s", ctx.msg);
    assert_int_equal(m->par.vocab, VOCAB);
    return m;
}

static void close_model(lq_model *m, lq_source *src) {
    lq_model_free(&m);
    lq_source_free(&src);
}

/* The ids the golden logits are for, and the logits. */
static float *golden(int32_t *ids) {
    lq_st_file st;
    float *logits = NULL;
    assert_int_equal(lq_st_open(NULL, GOLDEN "llama/golden.safetensors", &st), LQ_OK);
    for (size_t i = 0; i < st.n; i++) {
        bool is_ids = !strcmp(st.tensors[i].name, "input_ids");
        if (!is_ids) logits = lq_alloc(st.tensors[i].bytes);
        assert_int_equal(st.tensors[i].bytes, is_ids ? LEN * 4 : LEN * VOCAB * 4);
        assert_int_equal(lq_file_read(NULL, &st.file, st.tensors[i].offset, is_ids ? (void *)ids : logits, st.tensors[i].bytes), LQ_OK);
    }
    lq_st_close(&st);
    return logits;
}

static char text_name[] = "t";
static lq_eval_text make_text(int32_t *ids, size_t n) {
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)((i * 37 + i * i * 5) % VOCAB);
    return (lq_eval_text){.ids = {ids, n, n}, .sha256 = "00", .name = text_name, .bos_id = -1};
}

static lq_ppl run(const lq_model *m, const lq_eval_text *t, const char *protocol, uint32_t ctx, bool decode) {
    lq_eval_plan plan;
    lq_ppl p;
    assert_int_equal(lq_eval_plan_make(NULL, lq_protocol_find(protocol), t, ctx, 0, m->par.max_ctx, &plan), LQ_OK);
    assert_int_equal(lq_ppl_run(NULL, m, NULL, t, &plan, decode, &p, NULL, NULL, NULL), LQ_OK);
    return p;
}

static void uniform_logits_give_the_vocabulary_as_perplexity(void **state) {
    (void)state;
    int32_t ids[TEXT];
    lq_eval_text t = make_text(ids, TEXT);
    lq_source *src;
    lq_model *m = open_model("llama", &src);
    memset(m->outer.norm[LQ_R_FINAL_NORM], 0, m->par.hidden * sizeof(float)); /* all states zero, all logits zero */
    for (int k = 0; k < 4; k++) {
        lq_ppl p = run(m, &t, k & 1 ? "llamacpp-512" : "gptq-2048", 40, k & 2);
        assert_true(fabs(p.ppl - VOCAB) < 1e-9);
        assert_true(p.nll_stderr < 1e-7);
        lq_ppl_free(&p);
    }
    close_model(m, src);
}

static void the_number_of_chunks_follows_the_formula(void **state) {
    (void)state;
    static const struct { const char *protocol; size_t T; uint32_t ctx, max_ctx, chunks, want, first; uint64_t tokens; const char *name; } rows[] = {
        {"gptq-2048", 341469, 0, 4096, 0, 166, 0, 166ull * 2047, "gptq-2048"}, /* Llama-2 on WikiText-2 */
        {"gptq-2048", 341469, 0, 256, 0, 1333, 0, 1333ull * 255, "gptq-256"},
        {"gptq-2048", 341469, 100, 256, 7, 7, 0, 7ull * 99, "gptq-100"},
        {"gptq-2048", 2048, 0, 4096, 0, 1, 0, 2047, "gptq-2048"},
        {"gptq-max", 100000, 0, 8192, 0, 12, 0, 12ull * 8191, "gptq-8192"},
        {"llamacpp-512", 335688, 0, 4096, 0, 655, 256, 655ull * 255, "llamacpp-512"},
        {"llamacpp-512", 1024, 0, 512, 0, 2, 256, 2ull * 255, "llamacpp-512"},
        {"llamacpp-512", 1024, 101, 512, 3, 3, 50, 3ull * 50, "llamacpp-101"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        lq_eval_text t = {.ids = {NULL, rows[i].T, 0}};
        lq_eval_plan p;
        assert_int_equal(lq_eval_plan_make(NULL, lq_protocol_find(rows[i].protocol), &t, rows[i].ctx, rows[i].chunks, rows[i].max_ctx, &p), LQ_OK);
        assert_int_equal(p.chunks, rows[i].want);
        assert_int_equal(p.first, rows[i].first);
        assert_int_equal(p.tokens, rows[i].tokens);
        assert_string_equal(p.name, rows[i].name);
    }
}

static void a_text_too_short_says_how_many_tokens_it_has(void **state) {
    (void)state;
    static const struct { const char *protocol; size_t T; const char *has, *needs; } rows[] = {
        {"gptq-2048", 2047, "2047", "2048"}, {"llamacpp-512", 1023, "1023", "1024"}, {"gptq-2048", 0, "0 tokens", "2048"}};
    for (size_t i = 0; i < 3; i++) {
        lq_ctx ctx = {0};
        lq_eval_text t = {.ids = {NULL, rows[i].T, 0}};
        lq_eval_plan p;
        assert_int_equal(lq_eval_plan_make(&ctx, lq_protocol_find(rows[i].protocol), &t, 0, 0, 4096, &p), LQ_ERR_FORMAT);
        assert_non_null(strstr(ctx.msg, rows[i].has));
        assert_non_null(strstr(ctx.msg, rows[i].needs));
    }
}

/* -log softmax(x)[id] in double */
static double nll_of(const float *x, int32_t id) {
    double sum = 0, top = x[0];
    for (int i = 0; i < VOCAB; i++) top = x[i] > top ? x[i] : top;
    for (int i = 0; i < VOCAB; i++) sum += exp(x[i] - top);
    return log(sum) + top - x[id];
}

static void the_nll_is_that_of_the_golden_logits(void **state) {
    (void)state;
    int32_t ids[LEN];
    float *logits = golden(ids);
    lq_source *src;
    lq_model *m = open_model("llama", &src);
    lq_eval_text t = {.ids = {ids, LEN, LEN}, .bos_id = -1};
    for (int k = 0; k < 4; k++) { /* gptq: one chunk; llamacpp: two chunks of 24, the first of which sees what the golden run saw */
        bool cpp = k & 1;
        lq_ppl p = run(m, &t, cpp ? "llamacpp-512" : "gptq-2048", cpp ? 24 : LEN, k & 2);
        double want = 0;
        int first = cpp ? 12 : 0, end = cpp ? 23 : LEN - 1;
        for (int i = first; i < end; i++) want += nll_of(logits + i * VOCAB, ids[i + 1]) / (end - first);
        assert_true(fabs(p.chunk_nll[0] - want) < 1e-4 * want);
        lq_ppl_free(&p);
    }
    lq_free(logits);
    close_model(m, src);
}

static void llamacpp_writes_bos_over_the_first_id_of_each_chunk(void **state) {
    (void)state;
    int32_t ids[TEXT], with[TEXT];
    lq_source *src;
    lq_model *m = open_model("llama", &src);
    lq_eval_text t = make_text(ids, TEXT), u = make_text(with, TEXT);
    for (int i = 0; i < TEXT; i += 40) with[i] = 1;
    t.bos_id = 1;
    lq_ppl a = run(m, &t, "llamacpp-512", 40, false), b = run(m, &u, "llamacpp-512", 40, false), c = run(m, &t, "gptq-2048", 40, false),
           d = run(m, &u, "gptq-2048", 40, false);
    assert_memory_equal(a.chunk_nll, b.chunk_nll, a.chunks * sizeof(double));
    assert_true(fabs(c.nll - d.nll) > 1e-3); /* gptq leaves the ids alone */
    lq_ppl_free(&a);
    lq_ppl_free(&b);
    lq_ppl_free(&c);
    lq_ppl_free(&d);
    close_model(m, src);
}

static void decoding_gives_the_same_perplexity_and_threads_the_same_bits(void **state) {
    (void)state;
    int32_t ids[TEXT];
    lq_eval_text t = make_text(ids, TEXT);
    lq_source *src;
    lq_model *m = open_model("llama3", &src);
    lq_threads_set(1);
    lq_ppl a = run(m, &t, "gptq-2048", 50, false), d = run(m, &t, "gptq-2048", 50, true);
    lq_threads_set(3);
    lq_ppl b = run(m, &t, "gptq-2048", 50, false);
    lq_threads_set(0);
    assert_memory_equal(a.chunk_nll, b.chunk_nll, a.chunks * sizeof(double));
    assert_true(fabs(a.nll - d.nll) < 1e-5 * a.nll);
    lq_ppl_free(&a);
    lq_ppl_free(&b);
    lq_ppl_free(&d);
    close_model(m, src);
}

static void standard_errors_are_over_chunks_or_over_tokens_as_the_protocol_says(void **state) {
    (void)state;
    int32_t ids[TEXT];
    lq_eval_text t = make_text(ids, TEXT);
    lq_source *src;
    lq_model *m = open_model("llama", &src);
    lq_ppl p = run(m, &t, "gptq-2048", 40, false);
    double mean = 0, dev = 0;
    for (int i = 0; i < 5; i++) mean += p.chunk_nll[i] / 5;
    for (int i = 0; i < 5; i++) dev += (p.chunk_nll[i] - mean) * (p.chunk_nll[i] - mean);
    assert_int_equal(p.chunks, 5);
    assert_true(fabs(p.nll - mean) < 1e-12);
    assert_true(fabs(p.nll_stderr - sqrt(dev / 4 / 5)) < 1e-12);
    assert_true(fabs(p.ppl_stderr - p.ppl * p.nll_stderr) < 1e-12);
    lq_ppl q = run(m, &t, "llamacpp-512", 40, false);
    assert_true(q.nll_stderr > 0 && fabs(q.nll_stderr - p.nll_stderr) > 1e-6);
    lq_ppl_free(&p);
    lq_ppl_free(&q);
    close_model(m, src);
}

static void a_model_does_not_diverge_from_itself(void **state) {
    (void)state;
    int32_t ids[TEXT];
    lq_eval_text t = make_text(ids, TEXT);
    lq_eval_plan plan;
    lq_source *src, *other_src;
    lq_model *m = open_model("llama", &src), *other = open_model("llama_tied", &other_src);
    lq_ppl p, b, alone;
    lq_kld k;
    assert_int_equal(lq_eval_plan_make(NULL, lq_protocol_find("gptq-2048"), &t, 40, 0, 128, &plan), LQ_OK);
    assert_int_equal(lq_ppl_run(NULL, m, NULL, &t, &plan, false, &p, m, &b, &k), LQ_OK);
    assert_true(k.mean == 0 && k.max == 0 && k.top1 == 1 && p.nll == b.nll);
    lq_ppl_free(&p);
    lq_ppl_free(&b);
    assert_int_equal(lq_ppl_run(NULL, m, NULL, &t, &plan, false, &p, other, &b, &k), LQ_OK);
    alone = run(other, &t, "gptq-2048", 40, false);
    assert_true(fabs(b.nll - alone.nll) <= 1e-6); /* alone, sums are of panels of the vocabulary */
    assert_true(k.mean > 0.01 && k.top1 < 1 && k.p99 <= k.p999 && k.p999 <= k.max && k.median <= k.p99);
    assert_int_equal(k.tokens, 5 * 39);
    lq_ppl_free(&p);
    lq_ppl_free(&b);
    lq_ppl_free(&alone);
    close_model(m, src);
    close_model(other, other_src);
}

static void divergence_of_the_first_chunks_is_that_of_a_text_which_ends_there(void **state) {
    (void)state;
    int32_t ids[TEXT];
    lq_eval_text t = make_text(ids, TEXT);
    lq_eval_plan plan, brief;
    lq_source *src, *other_src;
    lq_model *m = open_model("llama", &src), *other = open_model("llama_tied", &other_src);
    lq_ppl p, b, p2, b2, alone = run(m, &t, "gptq-2048", 40, false);
    lq_kld k, k2;
    assert_int_equal(lq_eval_plan_make(NULL, lq_protocol_find("gptq-2048"), &t, 40, 2, 128, &brief), LQ_OK);
    assert_int_equal(lq_eval_plan_make(NULL, lq_protocol_find("gptq-2048"), &t, 40, 0, 128, &plan), LQ_OK);
    plan.both = 2;
    assert_int_equal(lq_ppl_run(NULL, m, NULL, &t, &plan, false, &p, other, &b, &k), LQ_OK);
    assert_int_equal(lq_ppl_run(NULL, m, NULL, &t, &brief, false, &p2, other, &b2, &k2), LQ_OK);
    assert_memory_equal(&k, &k2, sizeof k);
    assert_int_equal(b.chunks, 2);
    assert_int_equal(p.chunks, plan.chunks);
    assert_true(b.nll == b2.nll && b.nll_stderr == b2.nll_stderr && p.chunk_nll[1] == p2.chunk_nll[1]);
    assert_true(p.chunk_nll[4] == alone.chunk_nll[4] && fabs(p.nll - alone.nll) <= 1e-6);
    for (lq_ppl *x[] = {&p, &b, &p2, &b2, &alone, NULL}, **i = x; *i; i++) lq_ppl_free(*i);
    close_model(m, src);
    close_model(other, other_src);
}

static void divergence_follows_its_formula(void **state) {
    (void)state;
    const float p[3] = {1, 2, 0.5f}, q[3] = {0, 3, -1};
    double sp = 0, sq = 0, want = 0;
    for (int i = 0; i < 3; i++) {
        sp += exp(p[i]);
        sq += exp(q[i]);
    }
    for (int i = 0; i < 3; i++) want += exp(p[i]) / sp * log(exp(p[i]) / sp / (exp(q[i]) / sq));
    assert_true(fabs(lq_kl(p, log(sp), q, log(sq), 3) - want) < 1e-6);
    assert_int_equal(lq_argmax(p, 3), 1);
    float kl[101];
    lq_kld k;
    for (int i = 0; i < 101; i++) kl[i] = (float)((i * 37) % 101);
    lq_kld_summary(kl, 101, 50, &k);
    assert_true(k.mean == 50 && k.median == 50 && fabs(k.p99 - 99) < 1e-6 && fabs(k.p999 - 99.9) < 1e-6 && k.max == 100);
    assert_true(fabs(k.top1 - 50.0 / 101) < 1e-12);
    const double a[4] = {1, 2, 3, 5}, b[4] = {1, 1, 2, 2};
    lq_paired d = lq_paired_diff(a, b, 4);
    assert_true(fabs(d.delta - 1.25) < 1e-12 && fabs(d.stderr_ - sqrt(4.75 / 3 / 4)) < 1e-12);
}

/* A result written as JSON, read back as base. */
static lq_status read_back(const json_t *v, const lq_eval_plan *plan, const lq_eval_text *t, lq_ppl *out) {
    char path[] = "/tmp/lquant_result_XXXXXX";
    int fd = mkstemp(path);
    lq_buf b;
    assert_true(fd >= 0);
    assert_int_equal(lq_json_dump(NULL, v, &b), LQ_OK);
    assert_int_equal(write(fd, b.v, b.n), b.n);
    close(fd);
    assert_true(lq_eval_is_result(path));
    lq_status st = lq_eval_base_read(NULL, path, plan, t, out);
    unlink(path);
    lq_buf_free(&b);
    return st;
}

static void a_result_is_a_base_for_the_same_measurement_only(void **state) {
    (void)state;
    static const struct { const char *key; json_type kind; } changed[] = {{"protocol", JSON_STRING}, {"text_sha256", JSON_STRING}, {"ctx", JSON_INTEGER},
        {"chunks", JSON_INTEGER}, {"tokens", JSON_INTEGER}, {"bos_added", JSON_INTEGER}, {"schema", JSON_INTEGER}, {"chunk_nll", JSON_NULL}};
    int32_t ids[TEXT];
    lq_eval_text t = make_text(ids, TEXT);
    lq_eval_plan plan;
    lq_source *src;
    lq_model *m = open_model("llama", &src);
    lq_ppl p = run(m, &t, "gptq-2048", 40, false), base;
    json_t *v;
    assert_int_equal(lq_eval_plan_make(NULL, lq_protocol_find("gptq-2048"), &t, 40, 0, 128, &plan), LQ_OK);
    lq_eval_result r = {.model = "m", .plan = &plan, .text = &t, .ppl = &p, .seconds = 1, .weight = lq_weight_of(m)};
    assert_int_equal(lq_eval_json(NULL, &r, &v), LQ_OK);
    assert_true(json_number_value(json_object_get(v, "bits_per_weight")) == 32);
    assert_int_equal(read_back(v, &plan, &t, &base), LQ_OK);
    assert_memory_equal(base.chunk_nll, p.chunk_nll, p.chunks * sizeof(double));
    lq_ppl_free(&base);
    for (size_t i = 0; i < sizeof changed / sizeof *changed; i++) {
        json_t *w = json_copy(v);
        json_object_set_new(w, changed[i].key, changed[i].kind == JSON_STRING ? json_string("x") : changed[i].kind == JSON_NULL ? json_null() : json_integer(77));
        lq_status st = read_back(w, &plan, &t, &base);
        if (st != LQ_ERR_USAGE && st != LQ_ERR_FORMAT) fail_msg("%s: %d", changed[i].key, (int)st);
        json_decref(w);
    }
    json_decref(v);
    lq_ppl_free(&p);
    close_model(m, src);
}

static void running_out_of_memory_is_an_error(void **state) {
    (void)state;
    int32_t ids[TEXT];
    lq_eval_text t = make_text(ids, TEXT);
    lq_eval_plan plan;
    lq_source *src;
    lq_model *m = open_model("llama", &src);
    assert_int_equal(lq_eval_plan_make(NULL, lq_protocol_find("gptq-2048"), &t, 100, 0, 128, &plan), LQ_OK);
    lq_threads_set(1);
    lq_status st = LQ_ERR_RESOURCE;
    for (long n = 0; n < 500 && st; n++) {
        lq_ppl p, b;
        lq_kld k;
        lq_mem_fail_after(n);
        st = lq_ppl_run(NULL, m, NULL, &t, &plan, false, &p, m, &b, &k);
        lq_mem_fail_after(-1);
        assert_true(!st || st == LQ_ERR_RESOURCE);
        lq_ppl_free(&p);
        lq_ppl_free(&b);
    }
    lq_threads_set(0);
    assert_int_equal(st, LQ_OK);
    close_model(m, src);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(uniform_logits_give_the_vocabulary_as_perplexity),
        cmocka_unit_test(the_number_of_chunks_follows_the_formula),
        cmocka_unit_test(a_text_too_short_says_how_many_tokens_it_has),
        cmocka_unit_test(the_nll_is_that_of_the_golden_logits),
        cmocka_unit_test(llamacpp_writes_bos_over_the_first_id_of_each_chunk),
        cmocka_unit_test(decoding_gives_the_same_perplexity_and_threads_the_same_bits),
        cmocka_unit_test(standard_errors_are_over_chunks_or_over_tokens_as_the_protocol_says),
        cmocka_unit_test(a_model_does_not_diverge_from_itself),
        cmocka_unit_test(divergence_of_the_first_chunks_is_that_of_a_text_which_ends_there),
        cmocka_unit_test(divergence_follows_its_formula),
        cmocka_unit_test(a_result_is_a_base_for_the_same_measurement_only),
        cmocka_unit_test(running_out_of_memory_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
