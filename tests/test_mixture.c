/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* llama-quantize's mixtures against what llama-quantize did (scripts/gen_golden_mixtures.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "calib/corpus.h"
#include "quant/mixture.h"

typedef struct model {
    char name[64], arch[16];
    unsigned blocks, heads, kv, experts, width;
    lq_catalog cat;
    lq_row *rows;
    lq_dtype *types;
} model;

static void add(model *m, int block, lq_role role, unsigned rows, unsigned cols) {
    bool expert = lq_role_is_expert(role);
    for (unsigned e = 0; e < (expert ? m->experts : 1); e++)
        m->rows[m->cat.n++] = (lq_row){.slot = {block, (uint16_t)role, expert ? (int16_t)e : -1}, .name = "w", .ndim = 2, .shape = {rows, cols}, .linear = true};
}

/* As the script makes it. */
static void make(model *m, const char *name) {
    memset(m, 0, sizeof *m);
    snprintf(m->name, sizeof m->name, "%s", name);
    assert_int_equal(sscanf(name, "%15[a-z]-%u-%u-%u-%u-%u", m->arch, &m->blocks, &m->heads, &m->kv, &m->experts, &m->width), 6);
    unsigned d = m->width, h = d / m->heads, per = 8 + 3 * m->experts;
    m->rows = LQ_NEWN(lq_row, m->blocks * per + 2);
    m->types = LQ_NEWN(lq_dtype, m->blocks * per + 2);
    m->cat = (lq_catalog){.rows = m->rows, .n_blocks = m->blocks, .model_type = m->arch};
    bool falcon = !strcmp(m->arch, "falcon");
    add(m, -1, LQ_R_EMBED, 32, d);
    for (int b = 0; b < (int)m->blocks; b++) {
        if (falcon) add(m, b, LQ_R_QKV, d + 2 * m->kv * h, d);
        else add(m, b, LQ_R_Q, d, d), add(m, b, LQ_R_K, m->kv * h, d), add(m, b, LQ_R_V, m->kv * h, d);
        add(m, b, LQ_R_O, d, d);
        if (m->experts) add(m, b, LQ_R_ROUTER, m->experts, d);
        if (!falcon) add(m, b, m->experts ? LQ_R_EXPERT_GATE : LQ_R_GATE, d, d);
        add(m, b, m->experts ? LQ_R_EXPERT_UP : LQ_R_UP, d, d);
        add(m, b, m->experts ? LQ_R_EXPERT_DOWN : LQ_R_DOWN, d, d);
    }
    if (m->experts || m->blocks == 26) add(m, -1, LQ_R_HEAD, 32, d);
}

static void drop(model *m) {
    lq_free(m->rows);
    lq_free(m->types);
}

static lq_role role_of(const char *tensor) {
    static const struct { const char *name; lq_role role; } names[] = {
        {"token_embd", LQ_R_EMBED}, {"output", LQ_R_HEAD}, {"attn_q", LQ_R_Q}, {"attn_k", LQ_R_K}, {"attn_v", LQ_R_V}, {"attn_qkv", LQ_R_QKV},
        {"attn_output", LQ_R_O}, {"ffn_gate", LQ_R_GATE}, {"ffn_up", LQ_R_UP}, {"ffn_down", LQ_R_DOWN}, {"ffn_gate_exps", LQ_R_EXPERT_GATE},
        {"ffn_up_exps", LQ_R_EXPERT_UP}, {"ffn_down_exps", LQ_R_EXPERT_DOWN}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(names[i].name, tensor)) return names[i].role;
    fail_msg("'%s' is no tensor of the script's models", tensor);
    return LQ_R_NONE;
}

/* "Q6_K*4 Q4_K*2": types of a role, block after block. */
static void runs(const model *m, lq_role role, char *out, size_t room) {
    size_t at = 0, run = 0;
    lq_dtype last = LQ_NONE;
    for (size_t i = 0; i <= m->cat.n; i++) {
        bool end = i == m->cat.n, mine = !end && m->rows[i].slot.role == role && m->rows[i].slot.expert <= 0;
        if (!end && !mine) continue;
        if (run && (end || m->types[i] != last)) at += (size_t)snprintf(out + at, room - at, "%s%s*%zu", at ? " " : "", lq_dtypes[last].name, run), run = 0;
        if (mine) last = m->types[i], run++;
    }
}

static void types_are_those_of_llama_quantize(void **state) {
    (void)state;
    lq_buf text = {0};
    lq_ctx ctx = {0};
    model m = {0};
    size_t lines = 0;
    char mixture[32] = "";
    assert_int_equal(lq_text_load(&ctx, LQ_SOURCE_ROOT "/tests/golden/gguf/mixtures.txt.zst", &text), LQ_OK);
    for (char *line = strtok(text.v, "\n"); line; line = strtok(NULL, "\n"), lines++) {
        char name[64], mix[32], tensor[32], got[1024] = "";
        int at = 0;
        assert_int_equal(sscanf(line, "%63s %31s %31s %n", name, mix, tensor, &at), 3);
        if (strcmp(name, m.name)) drop(&m), make(&m, name), *mixture = 0;
        if (strcmp(mix, mixture)) {
            snprintf(mixture, sizeof mixture, "%s", mix);
            const lq_mixture *of = lq_mixture_by_name(mix);
            assert_non_null(of);
            assert_int_equal(lq_mixture_types(&ctx, of, &(lq_mixture_opts){0}, &m.cat, m.types), LQ_OK);
        }
        runs(&m, role_of(tensor), got, sizeof got);
        if (strcmp(got, line + at)) fail_msg("%s %s %s: %s, llama-quantize: %s", name, mix, tensor, got, line + at);
    }
    assert_true(lines > 1000);
    drop(&m);
    lq_buf_free(&text);
}

static void a_row_that_blocks_do_not_divide_falls_back_or_is_refused(void **state) {
    (void)state;
    model m;
    lq_ctx ctx = {0};
    make(&m, "llama-6-4-4-0-96");
    assert_int_equal(lq_mixture_types(&ctx, lq_mixture_by_name("q4_k_m"), &(lq_mixture_opts){.no_fallback = true}, &m.cat, m.types), LQ_ERR_UNSUPPORTED);
    assert_non_null(strstr(ctx.msg, "96"));
    assert_int_equal(lq_mixture_fallback(LQ_Q4_K, 96), LQ_Q5_0);
    assert_int_equal(lq_mixture_fallback(LQ_Q4_K, 100), LQ_F16);
    assert_int_equal(lq_mixture_fallback(LQ_Q4_K, 512), LQ_Q4_K);
    drop(&m);
}

static void options_outrank_the_rules(void **state) {
    (void)state;
    model m;
    lq_ctx ctx = {0};
    make(&m, "llama-26-4-4-0-256");
    lq_mixture_opts o = {.output = LQ_Q8_0, .embed = LQ_F16};
    assert_int_equal(lq_mixture_types(&ctx, lq_mixture_by_name("Q4_K_M"), &o, &m.cat, m.types), LQ_OK);
    assert_int_equal(m.types[0], LQ_F16);
    assert_int_equal(m.types[m.cat.n - 1], LQ_Q8_0);
    o = (lq_mixture_opts){.pure = true, .leave_output = true};
    assert_int_equal(lq_mixture_types(&ctx, lq_mixture_by_name("15"), &o, &m.cat, m.types), LQ_OK);
    for (size_t i = 0; i + 1 < m.cat.n; i++) assert_int_equal(m.types[i], LQ_Q4_K);
    assert_int_equal(m.types[m.cat.n - 1], LQ_NONE);
    assert_null(lq_mixture_by_name("IQ2_XS"));
    assert_string_equal(lq_mixture_by_name("q5_k")->name, "Q5_K_M");
    drop(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(types_are_those_of_llama_quantize), cmocka_unit_test(a_row_that_blocks_do_not_divide_falls_back_or_is_refused),
                                       cmocka_unit_test(options_outrank_the_rules)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
