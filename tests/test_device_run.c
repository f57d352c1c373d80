/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A model held on a device runs as the CPU's does, on kernels compiled for the emulation. A device rounds the activations that packed weights
 * multiply to halves and halves the table of a table grid, each by 2^-11 of the product at most, and adds in fp32:
 *
 *   |dy| <= 2^-10 sum |w x| + 2^-16 max |w| sum |x|        (the latter: sums of codes and of zeros, that cancel)
 *
 * which is asked of every operation, on equal inputs, block by block. For whole runs: errors of unlike sign add up as a random walk does, over the
 * linears a token passes, so logits (in parts of the largest) stay within four deviations, 4 * 2^-11 sqrt(linears); where activations are rounded
 * to 127 steps, some of those (1/127 each; the largest of E4M3 32/448) fall the other way: 1/127 sqrt(linears). Dense models are the golden logits of tests/golden/forward. */
#define _DEFAULT_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "calib/held.h"
#include "calib/ops.h"
#include "eval/divergence.h"
#include "eval/perplexity.h"
#define lq_run lq_quantizing_run /* quant/ has a struct of this name too */
#include "matrix.h"
#undef lq_run

#include <dirent.h>

static const char *const plain[] = {NULL};

static uint32_t linears_of(const lq_model *m) {
    uint32_t n = 0;
    for (size_t i = 0; i < m->cat.n; i++) n += m->cat.rows[i].linear;
    return n;
}

static bool rounds(const lq_model *m) {
    bool any = m->par.master;
    for (size_t i = 0; i < m->cat.n; i++) any |= m->cat.rows[i].scheme.act.kind != 0;
    return any;
}

static bool rounds_to_e4m3(const lq_model *m) {
    bool any = false;
    for (size_t i = 0; i < m->cat.n; i++) any |= m->cat.rows[i].scheme.act.kind && m->cat.rows[i].scheme.act.dtype == LQ_E4M3;
    return any;
}

/* Nothing is decoded to floats there that could be held in codes. */
static bool codes_everywhere(const lq_model *m) {
    for (size_t i = 0; i < m->cat.n; i++) {
        const lq_row *r = &m->cat.rows[i];
        if (r->scheme.grid.bits && !lq_packed_holds(&r->scheme, lq_row_rows(r), lq_row_cols(r))) return true;
    }
    return !m->held->decoded;
}

static double limit_of(const lq_model *m) { return (rounds_to_e4m3(m) ? 32.0 / 448 : rounds(m) ? 1.0 / 127 : 0x1p-9) * sqrt(linears_of(m)); }

static lq_status open_at(lq_ctx *ctx, const char *path, bool device, lq_loaded *l) {
    LQ_TRY(lq_loaded_open(ctx, path, false, l));
    lq_status st = lq_loaded_read(ctx, l, device ? "emu" : NULL);
    if (st) lq_loaded_close(l);
    return st;
}

/* ---- golden logits ---- */

/* Logits of the first n tokens, in a room for all: some ropes depend on it. */
static void first_logits(fixture *f, uint32_t n, uint32_t step, float *logits) {
    lq_state *s;
    float *hidden = LQ_NEWN(float, (size_t)n * f->m->par.hidden);
    OK(f, lq_state_new(&f->ctx, f->m, f->n, &s));
    for (uint32_t t = 0; t < n; t += step) OK(f, lq_forward(&f->ctx, s, f->ids + t, n - t < step ? n - t : step, hidden + (size_t)t * f->m->par.hidden));
    OK(f, lq_logits(&f->ctx, f->m, hidden, n, logits));
    lq_state_free(&s);
    lq_free(hidden);
}

static void golden_on_device(const char *variant) {
    fixture f;
    static const struct { uint32_t n, step; } runs[] = {{10, 10}, {3, 1}};
    open_golden(&f, variant);
    bool rounded = rounds(f.m);
    lq_model_free(&f.m);
    OK(&f, lq_model_open(&f.ctx, f.src, false, &f.m));
    OK(&f, lq_model_hold(&f.ctx, f.m, lq_device_emu()));
    for (uint32_t b = 0; b < f.m->par.n_layers; b++) assert_false(f.m->layers[b].loaded);
    float *got = LQ_NEWN(float, (size_t)runs[0].n * f.m->par.vocab);
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        first_logits(&f, runs[i].n, runs[i].step, got);
        double off = distance(got, f.want, (size_t)runs[i].n * f.m->par.vocab);
        if (!(off < (rounded ? 0.02 : 1e-4))) fail_msg("%s, %u tokens at a time: logits are off by %g", variant, runs[i].step, off);
    }
    lq_free(got);
    close_golden(&f);
}

static int shown(const struct dirent *e) { return e->d_name[0] != '.'; }

static void every_architecture_gives_its_golden_logits(void **state) {
    (void)state;
    struct dirent **list;
    int n = scandir(GOLDEN, &list, shown, alphasort);
    assert_true(n > 20);
    for (int i = 0; i < n; i++) {
        golden_on_device(list[i]->d_name);
        free(list[i]);
    }
    free(list);
}

/* ---- operation by operation ---- */

enum { TOKENS = 10 }; /* more than one pass of GEMV */

typedef struct pair { /* the CPU, the device */
    lq_ctx ctx;
    lq_loaded l[2];
    lq_run r[2];
    float *keys, *values, *x;
    lq_held_kv *far;
    uint32_t n;
} pair;

static void pair_open(pair *p, const char *path, uint32_t n) {
    *p = (pair){.n = n};
    for (int i = 0; i < 2; i++) {
        OK(p, open_at(&p->ctx, path, i, &p->l[i]));
        OK(p, lq_run_init(&p->ctx, &p->r[i], p->l[i].m, n, n));
    }
    p->keys = p->r[0].t[T_K] = LQ_NEWN(float, n * p->r[0].width[T_K]);
    p->values = p->r[0].t[T_V] = LQ_NEWN(float, n * p->r[0].width[T_V]);
    p->x = LQ_NEWN(float, n * p->r[0].width[T_RESID]);
    OK(p, lq_held_kv_new(&p->ctx, p->l[1].m, LQ_KV_F32, false, p->l[1].m->par.n_layers, n, 1, &p->far));
}

static void pair_close(pair *p) {
    lq_held_kv_free(&p->far);
    lq_free(p->keys);
    lq_free(p->values);
    lq_free(p->x);
    for (int i = 0; i < 2; i++) {
        lq_run_free(&p->r[i]);
        lq_loaded_close(&p->l[i]);
    }
}

/* What a linear's output at (t, row) may be off by. */
static void linear_limit(const pair *p, const lq_linear *l, const float *x, uint32_t n, double *limit) {
    uint32_t tiles = (l->rows + LQ_TILE - 1) / LQ_TILE;
    float *w = LQ_NEWN(float, (size_t)tiles * LQ_TILE * l->cols);
    lq_linear_rows(p->r[0].k, l, 0, l->rows, w);
    for (uint32_t r = 0; r < l->rows; r++)
        for (uint32_t t = 0; t < n; t++) {
            double mass = 0, most = 0, size = 0;
            for (uint32_t c = 0; c < l->cols; c++) {
                double a = fabs((double)w[(size_t)r * l->cols + c]), b = fabs((double)x[(size_t)t * l->cols + c]);
                mass += a * b;
                size += b;
                most = a > most ? a : most;
            }
            limit[(size_t)t * l->rows + r] = 0x1p-10 * mass + 0x1p-16 * most * size + 1e-6;
        }
    lq_free(w);
}

static void one_op(pair *p, uint32_t b, uint32_t at) {
    const lq_model *m = p->l[0].m;
    const lq_op *op = &m->arch->block[at];
    int out = op->out & ~LQ_OUT_ADD;
    size_t n = (size_t)p->n * p->r[0].width[out];
    lq_span here = {.n = p->n, .keys = p->keys, .values = p->values}, there = {.n = p->n, .far = p->far, .layer = b};
    double *limit = LQ_NEWN(double, n), worst = 0, top = 0;
    if (op->kind == LQ_OP_LINEAR) linear_limit(p, lq_layer_linear(&m->layers[b], op->role, -1), p->r[0].t[op->in[0]], p->n, limit);
    OK(p, lq_run_fit(&p->ctx, &p->r[0], &m->layers[b]));
    lq_run_ops(&p->r[0], &m->layers[b], b, at, at + 1, p->n, &here, 1);
    lq_run_ops(&p->r[1], &p->l[1].m->layers[b], b, at, at + 1, p->n, &there, 1);
    for (int i = 0; i < 2; i++) OK(p, p->r[i].ops->check(&p->ctx, &p->r[i]));
    const float *want = p->r[0].t[out];
    float *got = p->r[1].t[out]; /* emu: the host's memory */
    for (size_t i = 0; i < n; i++) top = fmax(top, fabs((double)want[i]));
    for (size_t i = 0; i < n; i++) {
        double most = op->kind == LQ_OP_LINEAR ? limit[i] * (op->out & LQ_OUT_ADD && m->par.resid_scale > 1 ? m->par.resid_scale : 1) + 1e-6 * top : 1e-5 * top, off = fabs((double)got[i] - (double)want[i]) / (most + 1e-30);
        worst = off <= worst ? worst : off;
    }
    if (!(worst <= 1)) fail_msg("%s: block %u, op %u (%s, kind %d): off by %g of what is allowed", m->arch->name, b, at, lq_role_names[op->role], (int)op->kind, worst);
    memcpy(got, want, n * sizeof *got); /* equal inputs for the next */
    lq_free(limit);
}

static void operations_agree(const char *path, const int32_t *ids, uint32_t n) {
    pair p;
    pair_open(&p, path, n);
    const lq_model *m = p.l[0].m;
    for (int i = 0; i < 2; i++) {
        OK(&p, lq_run_fit(&p.ctx, &p.r[i], &m->outer));
        OK(&p, p.r[i].ops->begin(&p.ctx, &p.r[i], ids, &(lq_span){.n = n}, 1, n, p.x));
        lq_run_embed(&p.r[i], 0, n);
        p.r[i].t[T_RESID] = p.r[i].stream;
    }
    assert_true(logits_off(p.r[1].stream, p.r[0].stream, (size_t)n * m->par.hidden) <= 0x1p-11); /* a packed one's scales may be applied in another order */
    for (uint32_t b = 0; b < m->par.n_layers; b++)
        for (uint32_t op = 0; m->arch->block[op].kind; op++) {
            if (!lq_params_at(&m->par, m->arch->block[op].only_if, b)) continue;
            if (m->arch->block[op].kind == LQ_OP_ROUTE) break; /* whole runs see experts */
            one_op(&p, b, op);
        }
    pair_close(&p);
}

/* ---- whole runs ---- */

typedef struct row { const char *model, *recipe, *flags[6]; } row;

static const row rows[] = {
    {"llama", "rtn", {"--bits", "4", "--group-size", "16"}},
    {"llama", "rtn", {"--scheme", "int3-asym", "--group-size", "16"}},
    {"llama", "nf4", {NULL}},
    {"llama", "ternary", {"--force"}},
    {"llama", "rtn", {"--scheme", "W8A8"}},
    {"llama", "rtn", {"--scheme", "W4A8", "--group-size", "16"}},
    {"llama", "int8", {"--compat", "none", "--threshold", "2"}},
    {"llama", "int8", {"--compat", "bnb", "--threshold", "2"}},
    {"llama", "gptq", {"--bits", "2", "--group-size", "16"}},
    {"llama", "squeezellm", {"--bits", "3"}},
    {"gpt2", "rtn", {"--bits", "4", "--group-size", "16"}},
    {"gemma2", "rtn", {"--bits", "4", "--group-size", "16"}},
    {"falcon_40b", "nf4", {NULL}},
    {"phi2", "rtn", {"--scheme", "W8A8"}},
    {"mixtral", "rtn", {"--bits", "4", "--group-size", "8"}},
    {"opt_350m", "rtn", {"--bits", "8"}},
    {"llama", "fp8", {NULL}},
    {"llama", "fp8", {"--granularity", "block"}},
    {"llama", "fp8", {"--granularity", "tensor"}},
};

/* At once, then token by token: what bitsandbytes keeps apart depends on which tokens run together. */
static void runs_agree(const char *name, const char *path, const int32_t *ids, uint32_t n) {
    lq_ctx ctx = {0};
    lq_loaded l[2];
    float *logits[4];
    for (int i = 0; i < 2; i++)
        if (open_at(&ctx, path, i, &l[i])) fail_msg("%s: %s", name, ctx.msg);
    double limit = limit_of(l[0].m);
    bool rounded = rounds(l[0].m);
    size_t count = (size_t)n * l[0].m->par.vocab;
    for (int i = 0; i < 4; i++) {
        logits[i] = LQ_NEWN(float, count);
        if (logits_in_steps(&ctx, l[i % 2].m, ids, n, i < 2 ? n : 1, logits[i])) fail_msg("%s: %s", name, ctx.msg);
        double off = i % 2 ? logits_off(logits[i], logits[i - 1], count) : 0;
        if (i % 2 && !codes_everywhere(l[1].m)) fail_msg("%s: %u matrices are decoded to floats", name, l[1].m->held->decoded);
        if (!(off <= limit)) fail_msg("%s, %s: logits are off by %g, expected %g at most", name, i < 2 ? "at once" : "token by token", off, limit);
    }
    double off = logits_off(logits[3], logits[1], count);
    if (!rounded && !(off <= limit)) fail_msg("%s: token by token logits are off those of all at once by %g", name, off);
    for (int i = 0; i < 4; i++) lq_free(logits[i]);
    for (int i = 0; i < 2; i++) lq_loaded_close(&l[i]);
}

static void quantized_models_agree_with_the_cpu(void **state) {
    (void)state;
    static const int32_t ids[TOKENS] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3};
    const char *copied = "";
    for (const row *r = rows; r < rows + sizeof rows / sizeof *rows; r++) {
        lq_ctx ctx = {0};
        char out[64], name[160];
        snprintf(name, sizeof name, "%s, %s %s %s", r->model, r->recipe, r->flags[0] ? r->flags[0] : "", r->flags[1] ? r->flags[1] : "");
        if (strcmp(copied, r->model)) copy_golden(copied = r->model, "letters.json");
        if (quantize(&ctx, r->recipe, "lqt", r->flags[0] ? r->flags : plain)) fail_msg("%s: %s", name, ctx.msg);
        operations_agree(matrix_out("lqt", out), ids, TOKENS);
        runs_agree(name, out, ids, TOKENS);
    }
}

/* ---- keys and values, several sequences ---- */

/* Of four sequences, one prompt in all: a step for each. */
static void batch_logits(lq_ctx *ctx, const lq_model *m, int kind, float *logits) {
    enum { SEQ = 4, PROMPT = 5, STEPS = 3 };
    static const int32_t prompt[PROMPT] = {7, 3, 11, 2, 5}, next[SEQ] = {1, 2, 3, 4};
    lq_kv_opts o = {.kind = kind};
    lq_state *s[SEQ];
    float *hidden = LQ_NEWN(float, (size_t)PROMPT * m->par.hidden);
    if (lq_states_new(ctx, m, PROMPT + STEPS, &o, SEQ, s) || lq_forward(ctx, s[0], prompt, PROMPT, hidden)) fail_msg("%s", ctx->msg);
    for (int i = 1; i < SEQ; i++)
        if (lq_state_copy(ctx, s[i], s[0])) fail_msg("%s", ctx->msg);
    lq_state_rewind(s[3], 3); /* sequences of unlike length */
    for (int t = 0; t < STEPS; t++)
        if (lq_forward_batch(ctx, s, next, SEQ, hidden)) fail_msg("%s", ctx->msg);
    if (lq_logits(ctx, m, hidden, SEQ, logits)) fail_msg("%s", ctx->msg);
    for (int i = 0; i < SEQ && m->held; i++) lq_state_rewind(s[i], lq_state_pos(s[i]) - 1);
    int32_t best[SEQ];
    if (m->held && lq_held_next(ctx, s, next, SEQ, best)) fail_msg("%s", ctx->msg);
    for (int i = 0; i < SEQ && m->held; i++) assert_int_equal(best[i], lq_argmax(logits + (size_t)i * m->par.vocab, m->par.vocab));
    for (int i = 0; i < SEQ; i++) lq_state_free(&s[i]);
    lq_free(hidden);
}

static void caches_and_batches_agree_with_the_cpu(void **state) {
    (void)state;
    static const char *const flags[] = {"--bits", "4", "--group-size", "16", NULL};
    lq_ctx ctx = {0};
    lq_loaded l[2];
    lq_state *s;
    char out[64];
    copy_golden("mistral", "letters.json"); /* a window */
    if (quantize(&ctx, "rtn", "lqt", flags)) fail_msg("%s", ctx.msg);
    for (int i = 0; i < 2; i++)
        if (open_at(&ctx, matrix_out("lqt", out), i, &l[i])) fail_msg("%s", ctx.msg);
    size_t count = 4 * (size_t)l[0].m->par.vocab;
    float *want = LQ_NEWN(float, count), *got = LQ_NEWN(float, count);
    for (int kind = 0; kind < LQ_KV_INT4; kind++) {
        batch_logits(&ctx, l[0].m, kind, want);
        batch_logits(&ctx, l[1].m, kind, got);
        double off = logits_off(got, want, count), limit = limit_of(l[0].m) * (kind == LQ_KV_F32 || kind == LQ_KV_F16 ? 1 : 0x1p9 / 127); /* a rounded key may fall the other way */
        if (!(off <= limit)) fail_msg("keys and values of kind %d: logits are off by %g, expected %g at most", kind, off, limit);
    }
    assert_int_equal(lq_state_new_kv(&ctx, l[1].m, 8, false, &(lq_kv_opts){.kind = LQ_KV_INT4}, &s), LQ_ERR_UNSUPPORTED);
    assert_non_null(strstr(ctx.msg, "device emu: keys and values of 4 bits"));
    for (int i = 0; i < 2; i++) lq_loaded_close(&l[i]);
    lq_free(want);
    lq_free(got);
}

/* ---- perplexity of the shipped model ---- */

static double nll_of(const char *path, bool device, bool decode, double *limit) {
    lq_ctx ctx = {0};
    lq_loaded l;
    lq_eval_text text;
    lq_eval_plan plan;
    lq_ppl ppl;
    const lq_protocol *p = lq_protocol_find("gptq-2048");
    lq_status st = lq_loaded_open(&ctx, path, true, &l);
    if (!st) st = lq_loaded_read(&ctx, &l, device ? "emu" : "cpu");
    if (!st) st = lq_eval_text_load(&ctx, l.tok, p, LQ_SOURCE_ROOT "/texts/heldout.txt", LQ_BOS_AUTO, l.m->par.vocab, &text);
    if (!st) st = lq_eval_plan_make(&ctx, p, &text, 12, 1, l.m->par.max_ctx, &plan);
    if (!st) st = lq_ppl_run(&ctx, l.m, NULL, &text, &plan, decode, &ppl, NULL, NULL, NULL);
    if (st) fail_msg("%s", ctx.msg);
    double nll = ppl.nll;
    *limit = 0x1p-11 * sqrt(linears_of(l.m)); /* one deviation: nats are a mean over tokens; what rounds activations multiplies them exactly */
    lq_ppl_free(&ppl);
    lq_eval_text_free(&text);
    lq_loaded_close(&l);
    return nll;
}

static void the_shipped_model_has_the_perplexity_of_the_cpu(void **state) {
    (void)state;
    static const row kinds[] = {
        {NULL, "rtn", {"--bits", "4", "--group-size", "32"}}, {NULL, "nf4", {NULL}}, {NULL, "ternary", {"--force"}}, {NULL, "rtn", {"--scheme", "W8A8"}}, {NULL, "int8", {NULL}}, {NULL, "fp8", {NULL}}, {NULL, "fp8", {"--granularity", "block"}},
    };
    static const char *const files[] = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) copy_file(LQ_SOURCE_ROOT "/models/tiny", files[i], files[i]);
    for (const row *r = kinds; r < kinds + sizeof kinds / sizeof *kinds; r++) {
        lq_ctx ctx = {0};
        char out[64];
        double limit;
        if (quantize(&ctx, r->recipe, "lqt", r->flags[0] ? r->flags : plain)) fail_msg("%s", ctx.msg);
        for (int decode = 0; decode < 2; decode++) {
            double want = nll_of(matrix_out("lqt", out), false, decode, &limit), got = nll_of(out, true, decode, &limit);
            print_message("%s%s: %.6f nats on the CPU, %.6f on the device\n", r->recipe, decode ? ", token by token" : "", want, got);
            if (!(fabs(got - want) <= limit)) fail_msg("%s: expected %g at most between them", r->recipe, limit);
        }
    }
}

/* ---- what is refused ---- */

static void what_a_device_has_not_is_said(void **state) {
    (void)state;
    static const char *const flags[] = {NULL};
    lq_ctx ctx = {0};
    lq_loaded l;
    char out[64];
    copy_golden("llama", "letters.json");
    if (quantize(&ctx, "fp8", "lqt", flags)) fail_msg("%s", ctx.msg);
    assert_int_equal(lq_loaded_open(&ctx, matrix_out("lqt", out), false, &l), LQ_OK);
    assert_int_equal(lq_loaded_read(&ctx, &l, "abacus"), LQ_ERR_USAGE);
    assert_non_null(strstr(ctx.msg, "--device abacus: expected cpu, cuda or emu"));
    if (!lq_device_cuda()->available()) {
        assert_int_equal(lq_loaded_read(&ctx, &l, "cuda"), LQ_ERR_UNSUPPORTED);
        assert_non_null(strstr(ctx.msg, lq_device_cuda()->describe()));
    }
    lq_loaded_close(&l);
}

int main(void) {
    if (!lq_device_emu()->available()) {
        printf("%s\n", lq_device_emu()->describe());
        return 77;
    }
    matrix_open();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_architecture_gives_its_golden_logits),
        cmocka_unit_test(quantized_models_agree_with_the_cpu),
        cmocka_unit_test(caches_and_batches_agree_with_the_cpu),
        cmocka_unit_test(the_shipped_model_has_the_perplexity_of_the_cpu),
        cmocka_unit_test(what_a_device_has_not_is_said),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    matrix_close();
    return failed;
}
