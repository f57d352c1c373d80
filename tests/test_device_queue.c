/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Operations that a device joins (calib/ops_queue.c) give the bits of the single ones, for every architecture and kind of codes; and joining
 * leaves as many launches as it should. */
#define _DEFAULT_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "calib/held.h"
#include "eval/divergence.h"
#define lq_run lq_quantizing_run /* quant/ has a struct of this name too */
#include "matrix.h"
#undef lq_run

#include <dirent.h>

enum { TOKENS = 4, DECODED = 2 };
static const char *const plain[] = {NULL};
static const int32_t ids[TOKENS] = {3, 1, 4, 1};

/* All at once, then a few one by one, joined or not; joined ones once more with kernels that begin early. */
static void logits_of_both(lq_ctx *ctx, lq_model *m, const char *name) {
    size_t count = (size_t)TOKENS * m->par.vocab;
    float *logits[2] = {LQ_NEWN(float, count), LQ_NEWN(float, count)};
    const size_t bytes[2] = {TOKENS * m->par.vocab * sizeof(float), DECODED * m->par.vocab * sizeof(float)};
    static const struct { uint32_t n, step; } runs[] = {{TOKENS, TOKENS}, {DECODED, 1}};
    for (int k = 0; k < 2; k++) {
        for (int apart = 0; apart < 2; apart++) {
            m->held->apart = apart;
            if (logits_in_steps(ctx, m, ids, runs[k].n, runs[k].step, logits[apart])) fail_msg("%s: %s", name, ctx->msg);
        }
        if (memcmp(logits[0], logits[1], bytes[k]))
            fail_msg("%s, %u tokens at a time: joined operations give other logits, by %g", name, runs[k].step, logits_off(logits[0], logits[1], (size_t)runs[k].n * m->par.vocab));
        m->held->apart = false;
        lq_held_ahead(m->held, true);
        if (logits_in_steps(ctx, m, ids, runs[k].n, runs[k].step, logits[1])) fail_msg("%s: %s", name, ctx->msg);
        lq_held_ahead(m->held, false);
        if (memcmp(logits[0], logits[1], bytes[k]))
            fail_msg("%s, %u tokens at a time: kernels that begin early give other logits, by %g", name, runs[k].step, logits_off(logits[0], logits[1], (size_t)runs[k].n * m->par.vocab));
    }
    lq_free(logits[0]);
    lq_free(logits[1]);
}

static void both_at(const char *path, const char *name) {
    lq_ctx ctx = {0};
    lq_loaded l;
    if (lq_loaded_open(&ctx, path, false, &l) || lq_loaded_read(&ctx, &l, "emu")) fail_msg("%s: %s", name, ctx.msg);
    logits_of_both(&ctx, l.m, name);
    lq_loaded_close(&l);
}

static int shown(const struct dirent *e) { return e->d_name[0] != '.'; }

typedef struct recipe { const char *name, *flags[6]; } recipe;

static void of_golden(const char *variant, const recipe *r, size_t n) {
    char path[512], name[160], out[64];
    snprintf(path, sizeof path, GOLDEN "%s", variant);
    both_at(path, variant);
    copy_golden(variant, "letters.json");
    for (; n; r++, n--) {
        lq_ctx ctx = {0};
        snprintf(name, sizeof name, "%s, %s %s", variant, r->name, r->flags[0] ? r->flags[1] : "");
        if (quantize(&ctx, r->name, "lqt", r->flags[0] ? r->flags : plain)) fail_msg("%s: %s", name, ctx.msg);
        both_at(matrix_out("lqt", out), name);
    }
}

static void joined_operations_give_the_bits_of_single_ones(void **state) {
    (void)state;
    static const recipe few[] = {{"rtn", {"--bits", "4", "--group-size", "16", "--keep-unfit"}}, {"rtn", {"--scheme", "W8A8"}}};
    static const recipe many[] = {{"rtn", {"--scheme", "int3-asym", "--group-size", "16"}}, {"nf4", {NULL}}, {"ternary", {"--force"}}, {"rtn", {"--scheme", "W4A8", "--group-size", "16"}},
                                  {"int8", {"--compat", "bnb", "--threshold", "2"}}, {"int8", {"--compat", "none", "--threshold", "2"}}, {"squeezellm", {"--bits", "3"}}, {"rtn", {"--bits", "8"}}};
    struct dirent **list;
    int n = scandir(GOLDEN, &list, shown, alphasort);
    assert_true(n > 20);
    for (int i = 0; i < n; i++) {
        of_golden(list[i]->d_name, few, strstr(list[i]->d_name, "bitnet") ? 0 : sizeof few / sizeof *few);
        free(list[i]);
    }
    free(list);
    of_golden("llama", many, sizeof many / sizeof *many);
}

/* ---- launches ---- */

/* Kernels of a step of decoding, less those of the embedding and the last norm (outer), per layer. */
static uint32_t launches_per_layer(lq_model *m, bool apart, uint32_t outer) {
    lq_ctx ctx = {0};
    lq_state *s;
    float *hidden = LQ_NEWN(float, m->par.hidden);
    uint64_t before = 0;
    m->held->apart = apart;
    if (lq_state_new(&ctx, m, 4, &s)) fail_msg("%s", ctx.msg);
    for (int i = 0; i < 2; i++) {
        lq_state_reset(s);
        before = m->held->d->launches();
        if (lq_forward(&ctx, s, ids, 1, hidden)) fail_msg("%s", ctx.msg);
    }
    uint64_t n = m->held->d->launches() - before - outer;
    lq_state_free(&s);
    lq_free(hidden);
    assert_int_equal(n % m->par.n_layers, 0);
    return (uint32_t)(n / m->par.n_layers);
}

static void a_layer_takes_few_launches(void **state) {
    (void)state;
    static const struct { const char *model; recipe r; uint32_t outer, single, joint; } rows[] = {
        {"llama", {"rtn", {"--bits", "4", "--group-size", "16"}}, 2, 16, 6},  /* norm q k v | turn | attn | o add | norm gate up glu | down add */
        {"qwen2", {"rtn", {"--bits", "4", "--group-size", "16"}}, 2, 19, 6},  /* biases of q, k, v as well */
        {"gpt2", {"rtn", {"--bits", "4", "--group-size", "16"}}, 4, 18, 9},   /* norm qkv | three splits | put | attn | o add | norm up act | down add */
        {"llama", {"rtn", {"--scheme", "W8A8"}}, 2, 23, 10},                  /* each of the four inputs is rounded by a kernel of its own */
        {"llama", {"int8", {"--compat", "none", "--threshold", "2"}}, 2, 23, 10}, /* what that leaves out is no launch of its own */
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        lq_ctx ctx = {0};
        lq_loaded l;
        char out[64];
        copy_golden(rows[i].model, "letters.json");
        if (quantize(&ctx, rows[i].r.name, "lqt", rows[i].r.flags)) fail_msg("%s", ctx.msg);
        if (lq_loaded_open(&ctx, matrix_out("lqt", out), false, &l) || lq_loaded_read(&ctx, &l, "emu")) fail_msg("%s", ctx.msg);
        uint32_t single = launches_per_layer(l.m, true, rows[i].outer), joint = launches_per_layer(l.m, false, rows[i].outer);
        if (single != rows[i].single || joint != rows[i].joint)
            fail_msg("%s, %s %s: %u launches a layer, joined %u; expected %u and %u", rows[i].model, rows[i].r.name, rows[i].r.flags[1], single, joint, rows[i].single, rows[i].joint);
        lq_loaded_close(&l);
    }
}

/* ---- a step that is recorded ---- */

static int32_t likeliest(lq_ctx *ctx, lq_model *m, lq_state *s, int32_t id) {
    float *hidden = LQ_NEWN(float, m->par.hidden), *logits = LQ_NEWN(float, m->par.vocab);
    if (lq_forward(ctx, s, &id, 1, hidden) || lq_logits(ctx, m, hidden, 1, logits)) fail_msg("%s", ctx->msg);
    id = (int32_t)lq_argmax(logits, m->par.vocab);
    lq_free(hidden);
    lq_free(logits);
    return id;
}

static void a_recorded_step_has_the_head_and_the_choice(void **state) {
    (void)state;
    static const char *const flags[] = {"--bits", "4", "--group-size", "16", NULL};
    lq_ctx ctx = {0};
    lq_loaded l;
    lq_state *a, *b;
    char out[64];
    int32_t one = 3, other = 3;
    copy_golden("llama", "letters.json");
    if (quantize(&ctx, "rtn", "lqt", flags)) fail_msg("%s", ctx.msg);
    if (lq_loaded_open(&ctx, matrix_out("lqt", out), false, &l) || lq_loaded_read(&ctx, &l, "emu")) fail_msg("%s", ctx.msg);
    if (lq_state_new(&ctx, l.m, 8, &a) || lq_state_new(&ctx, l.m, 8, &b)) fail_msg("%s", ctx.msg);
    for (int t = 0; t < 6; t++) {
        uint64_t before = l.m->held->d->launches();
        if (lq_held_next(&ctx, &a, &one, 1, &one)) fail_msg("%s", ctx.msg);
        if (t > 1 && l.m->held->d->launches() != before) fail_msg("step %d queues %d kernels beside the recorded ones", t, (int)(l.m->held->d->launches() - before));
        other = likeliest(&ctx, l.m, b, other);
        assert_int_equal(one, other);
    }
    lq_state_free(&a);
    lq_state_free(&b);
    lq_loaded_close(&l);
}

/* Experts are chosen on the device: no launch is queued by the host once a step is recorded, and what comes out is what it is when the host chooses. */
static void a_recorded_step_chooses_experts(const char *model, const recipe *how) {
    enum { SEQ = 3, STEPS = 6 };
    lq_ctx ctx = {0};
    lq_loaded l;
    lq_state *s[2][SEQ];
    lq_kv_opts kv = {0};
    char out[64], path[512];
    int32_t next[2][SEQ] = {{3, 5, 7}, {3, 5, 7}};
    snprintf(path, sizeof path, GOLDEN "%s", model);
    if (how) copy_golden(model, "letters.json");
    if (how && quantize(&ctx, how->name, "lqt", how->flags[0] ? how->flags : plain)) fail_msg("%s", ctx.msg);
    if (lq_loaded_open(&ctx, how ? matrix_out("lqt", out) : path, false, &l) || lq_loaded_read(&ctx, &l, "emu")) fail_msg("%s", ctx.msg);
    if (!l.m->held->picks) fail_msg("%s, %s: experts are not stacked", model, how ? how->name : "floats");
    for (int i = 0; i < 2; i++)
        if (lq_states_new(&ctx, l.m, 16, &kv, SEQ, s[i])) fail_msg("%s", ctx.msg);
    for (uint32_t n = SEQ; n == SEQ || n == 1; n -= 2)
        for (int t = 0; t < STEPS / (n > 1 ? 2 : 1); t++) {
            uint64_t before = l.m->held->d->launches();
            l.m->held->apart = false;
            if (lq_held_next(&ctx, s[0], next[0], n, next[0])) fail_msg("%s", ctx.msg);
            if (t > 1 && l.m->held->d->launches() != before) fail_msg("%s, step %d queues %d kernels beside the recorded ones", model, t, (int)(l.m->held->d->launches() - before));
            l.m->held->apart = true;
            if (lq_held_next(&ctx, s[1], next[1], n, next[1])) fail_msg("%s", ctx.msg);
            if (memcmp(next[0], next[1], n * sizeof *next[0])) fail_msg("%s, step %d of %u sequences: other tokens than where the host chooses", model, t, n);
            if (n > 1 && t == 2) for (int i = 0; i < 2; i++) for (int k = 0; k < SEQ; k++) lq_state_reset(s[i][k]);
        }
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < SEQ; k++) lq_state_free(&s[i][k]);
    lq_loaded_close(&l);
}

static void experts_are_chosen_inside_a_recorded_step(void **state) {
    (void)state;
    static const recipe kinds[] = {{"rtn", {"--bits", "4", "--group-size", "16", "--keep-unfit"}}, {"nf4", {NULL}}, {"rtn", {"--scheme", "W8A8"}}, {"int8", {"--compat", "none", "--threshold", "2"}}, {"fp8", {NULL}}};
    static const char *const models[] = {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe"};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) a_recorded_step_chooses_experts(models[i], NULL);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) a_recorded_step_chooses_experts(models[i % 2], &kinds[i]);
}

/* Marks are part of what is recorded, and change nothing that is computed. */
static void a_device_tells_what_its_time_went_into(void **state) {
    (void)state;
    static const char *const flags[] = {"--bits", "4", "--group-size", "16", NULL};
    lq_ctx ctx = {0};
    lq_loaded l;
    lq_state *s[2];
    char out[64];
    int32_t next[2] = {3, 3};
    double clock[LQ_CLOCKS];
    copy_golden("llama", "letters.json");
    if (quantize(&ctx, "rtn", "lqt", flags)) fail_msg("%s", ctx.msg);
    if (lq_loaded_open(&ctx, matrix_out("lqt", out), false, &l) || lq_loaded_read(&ctx, &l, "emu")) fail_msg("%s", ctx.msg);
    if (lq_state_new(&ctx, l.m, 8, &s[0]) || lq_state_new(&ctx, l.m, 8, &s[1])) fail_msg("%s", ctx.msg);
    lq_state_clock(s[0], clock);
    for (int t = 0; t < 5; t++) {
        memset(clock, 0, sizeof clock);
        for (int i = 0; i < 2; i++)
            if (lq_held_next(&ctx, &s[i], &next[i], 1, &next[i])) fail_msg("%s", ctx.msg);
        assert_int_equal(next[0], next[1]);
        for (int i = 0; i < LQ_CLOCKS; i++)
            if (!(clock[i] > 0 && clock[i] < 60)) fail_msg("step %d: class %d took %g s", t, i, clock[i]);
    }
    lq_state_clock(s[0], NULL);
    memset(clock, 0, sizeof clock);
    if (lq_held_next(&ctx, &s[0], &next[0], 1, &next[0])) fail_msg("%s", ctx.msg);
    for (int i = 0; i < LQ_CLOCKS; i++) assert_true(clock[i] == 0);
    lq_state_free(&s[0]);
    lq_state_free(&s[1]);
    lq_loaded_close(&l);
}

int main(void) {
    if (!lq_device_emu()->available()) {
        printf("%s\n", lq_device_emu()->describe());
        return 77;
    }
    matrix_open();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(joined_operations_give_the_bits_of_single_ones),
        cmocka_unit_test(a_layer_takes_few_launches),
        cmocka_unit_test(a_recorded_step_has_the_head_and_the_choice),
        cmocka_unit_test(experts_are_chosen_inside_a_recorded_step),
        cmocka_unit_test(a_device_tells_what_its_time_went_into),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    matrix_close();
    return failed;
}
