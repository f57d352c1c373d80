/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The forward pass against golden logits of transformers (scripts/gen_golden_forward.py), and calibration against it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/thread.h"
#include "tests/golden_forward.h"

#include <dirent.h>
#include <stdlib.h>

static struct dirent **folders; /* of tests/golden/forward: each is a variant */
static size_t n_variants;
static char *variants[128];

static int is_variant(const struct dirent *d) { return d->d_name[0] != '.'; }

static int find_variants(void **state) {
    (void)state;
    int n = scandir(GOLDEN, &folders, is_variant, alphasort);
    for (n_variants = 0; (int)n_variants < n && n_variants < 128; n_variants++) variants[n_variants] = folders[n_variants]->d_name;
    return n < 9 || n > 128;
}

static int drop_variants(void **state) {
    (void)state;
    for (size_t v = 0; v < n_variants; v++) free(folders[v]);
    free(folders);
    return 0;
}

static void logits_equal_transformers_for_every_variant(void **state) {
    (void)state;
    for (size_t v = 0; v < n_variants; v++) {
        fixture f;
        open_golden(&f, variants[v]);
        double d = off_golden(&f, f.n);
        if (d > 1e-4) fail_msg("%s: logits differ by %g of the largest", variants[v], d);
        close_golden(&f);
    }
}

static void decoding_token_by_token_equals_prefill(void **state) {
    (void)state;
    for (size_t v = 0; v < n_variants; v++) {
        fixture f;
        open_golden(&f, variants[v]);
        assert_true(off_golden(&f, 1) <= 1e-4);
        assert_true(off_golden(&f, 7) <= 1e-4);
        close_golden(&f);
    }
}

/* The matrix of another panel split sums in another order: a few roundings of the logits. */
static void scores_are_those_of_the_logits(void **state) {
    (void)state;
    for (size_t v = 0; v < n_variants; v++) {
        fixture f;
        open_golden(&f, variants[v]);
        uint32_t vocab = f.m->par.vocab, n = f.n - 1;
        float *hidden = run_steps(&f, f.n, true), *logits = LQ_NEWN(float, (size_t)f.n * vocab), most = 0;
        double nll[256], again[256];
        OK(&f, lq_logits(&f.ctx, f.m, hidden, f.n, logits));
        lq_threads_set(3);
        OK(&f, lq_score(&f.ctx, f.m, hidden, n, f.ids + 1, nll));
        lq_threads_set(1);
        OK(&f, lq_score(&f.ctx, f.m, hidden, n, f.ids + 1, again));
        lq_threads_set(0);
        assert_memory_equal(nll, again, n * sizeof *nll);
        for (size_t i = 0; i < (size_t)f.n * vocab; i++) most = fmaxf(most, fabsf(logits[i]));
        for (uint32_t t = 0; t < n; t++) {
            const float *row = logits + (size_t)t * vocab;
            double want = f.m->k->logsumexp(row, vocab) - row[f.ids[t + 1]];
            if (!(fabs(nll[t] - want) <= 1e-5 * (1 + most))) fail_msg("%s: token %u scores %.9g, its logits say %.9g", variants[v], t, nll[t], want);
        }
        lq_free(hidden), lq_free(logits);
        close_golden(&f);
    }
}

/* ---- every field of the parameters matters: switched off, the golden logits are missed by more than 1e-2 ---- */

static void no_bias(fixture *f, lq_role a, lq_role b, lq_role c) {
    for (uint32_t l = 0; l < f->m->par.n_layers; l++)
        f->m->layers[l].lin[a].bias = f->m->layers[l].lin[b].bias = f->m->layers[l].lin[c].bias = NULL;
}
static void ones(float *v, uint32_t n) {
    for (uint32_t i = 0; v && i < n; i++) v[i] = 1;
}
static void off_rope_scaling(fixture *f) { f->m->par.rope.kind = LQ_ROPE_DEFAULT; }
static void off_rope_base(fixture *f) { f->m->par.rope.base /= 2; }
static void off_rope_factor(fixture *f) { f->m->par.rope.factor = 2; }
static void off_rope_low(fixture *f) { f->m->par.rope.low = 0.25; }
static void off_rope_high(fixture *f) { f->m->par.rope.high = 1.5; }
static void off_rope_original(fixture *f) { f->m->par.rope.original = 128; }
static void off_window(fixture *f) { f->m->par.window = 0; }
static void wider_window(fixture *f) { f->m->par.window++; }
static void off_eps(fixture *f) { f->m->par.norm_eps = 0.1f; }
static void off_act(fixture *f) { f->m->par.act = f->m->par.act == LQ_ACTFN_SILU ? LQ_ACTFN_GELU_TANH : LQ_ACTFN_SILU; }
static void off_layer_window(fixture *f) { memset(f->m->par.layer_window, 1, f->m->par.n_layers); }
static void off_qk_norm(fixture *f) { f->m->par.qk_norm = false; }
static void off_q_bias(fixture *f) { no_bias(f, LQ_R_Q, LQ_R_Q, LQ_R_Q); }
static void off_k_bias(fixture *f) { no_bias(f, LQ_R_K, LQ_R_K, LQ_R_K); }
static void off_v_bias(fixture *f) { no_bias(f, LQ_R_V, LQ_R_V, LQ_R_V); }
static void off_o_bias(fixture *f) { no_bias(f, LQ_R_O, LQ_R_O, LQ_R_O); }
static void off_gate_bias(fixture *f) { no_bias(f, LQ_R_GATE, LQ_R_GATE, LQ_R_GATE); }
static void off_up_bias(fixture *f) { no_bias(f, LQ_R_UP, LQ_R_UP, LQ_R_UP); }
static void off_down_bias(fixture *f) { no_bias(f, LQ_R_DOWN, LQ_R_DOWN, LQ_R_DOWN); }
static void off_attn_norm(fixture *f) { ones(f->m->layers[0].norm[LQ_R_ATTN_NORM], f->m->par.hidden); }
static void off_mlp_norm(fixture *f) { ones(f->m->layers[1].norm[LQ_R_MLP_NORM], f->m->par.hidden); }
static void off_final_norm(fixture *f) { ones(f->m->outer.norm[LQ_R_FINAL_NORM], f->m->par.hidden); }
static void off_q_norm(fixture *f) { ones(f->m->layers[0].norm[LQ_R_Q_NORM], f->m->par.head_dim); }
static void off_k_norm(fixture *f) { ones(f->m->layers[0].norm[LQ_R_K_NORM], f->m->par.head_dim); }
static void off_tied(fixture *f) { /* the head becomes another matrix */
    f->m->par.tied = false;
    f->m->outer.lin[LQ_R_HEAD] = f->m->outer.lin[LQ_R_EMBED];
    float *w = f->m->outer.lin[LQ_R_HEAD].w;
    for (size_t i = 0; i < (size_t)f->m->par.vocab * f->m->par.hidden; i++) w[i] = -w[i];
}
static void off_untied(fixture *f) { f->m->par.tied = true; }

static const off_switch switches[] = {
    {"llama", off_rope_base, "rope base"},         {"llama", off_eps, "norm eps"},
    {"llama", off_act, "activation"},              {"llama", off_untied, "untied head"},
    {"llama", off_attn_norm, "attention norm"},    {"llama", off_mlp_norm, "mlp norm"},
    {"llama", off_final_norm, "final norm"},       {"llama3", off_rope_scaling, "llama3 scaling"},
    {"llama3", off_rope_factor, "factor"},         {"llama3", off_rope_low, "low"},
    {"llama3", off_rope_high, "high"},             {"llama3", off_rope_original, "original context"},
    {"llama3", off_rope_base, "rope base"},        {"llama_linear", off_rope_scaling, "linear scaling"},
    {"llama_linear", off_rope_factor, "factor"},   {"llama_biases", off_q_bias, "q bias"},
    {"llama_biases", off_k_bias, "k bias"},        {"llama_biases", off_v_bias, "v bias"},
    {"llama_biases", off_o_bias, "o bias"},        {"llama_biases", off_gate_bias, "gate bias"},
    {"llama_biases", off_up_bias, "up bias"},      {"llama_biases", off_down_bias, "down bias"},
    {"llama_tied", off_tied, "tied head"},         {"mistral", off_window, "window"},
    {"mistral", wider_window, "window by one"},    {"qwen2", off_q_bias, "q bias"},
    {"qwen2", off_k_bias, "k bias"},               {"qwen2", off_v_bias, "v bias"},
    {"qwen3", off_qk_norm, "q/k norm"},            {"qwen3", off_q_norm, "q norm"},
    {"qwen3", off_k_norm, "k norm"},               {"qwen3", off_rope_base, "rope base"},
    {"qwen3", off_eps, "norm eps"},                {"qwen2_window", off_window, "window"},
    {"qwen2_window", off_layer_window, "full layer"}, {"qwen2_window", off_act, "activation"},
};

static void every_switched_off_field_moves_the_logits(void **state) {
    (void)state;
    try_switches(switches, sizeof switches / sizeof *switches);
}

/* Sequences of unlike lengths, decoded together and each alone. */
static void decode_together(const fixture *base, const lq_kv_opts *kv) {
    enum { N = 3, STEPS = 4 };
    fixture f = *base;
    lq_state *both[N], *alone;
    uint32_t d = f.m->par.hidden, room = f.n < 40 ? f.n : 40;
    float *hidden = LQ_NEWN(float, (size_t)room * d), *got = LQ_NEWN(float, (size_t)N * d), *want = LQ_NEWN(float, d);
    int32_t next[N];
    for (uint32_t i = 0; i < N; i++) {
        OK(&f, lq_state_new_kv(&f.ctx, f.m, room, false, kv, &both[i]));
        OK(&f, lq_forward(&f.ctx, both[i], f.ids + i, 3 + 5 * i, hidden));
    }
    for (uint32_t s = 0; s < STEPS; s++) {
        for (uint32_t i = 0; i < N; i++) next[i] = f.ids[i + 3 + 5 * i + s];
        OK(&f, lq_forward_batch(&f.ctx, both, next, N, got));
        for (uint32_t i = 0; i < N; i++) {
            OK(&f, lq_state_new_kv(&f.ctx, f.m, room, false, kv, &alone));
            OK(&f, lq_state_copy(&f.ctx, alone, both[i]));
            lq_state_rewind(alone, 3 + 5 * i + s);
            OK(&f, lq_forward(&f.ctx, alone, &next[i], 1, want));
            assert_int_equal(lq_state_pos(both[i]), 3 + 5 * i + s + 1);
            double off = distance(got + (size_t)i * d, want, d);
            if (!(off < 1e-5)) fail_msg("step %u, sequence %u is off by %g", s, i, off);
            lq_state_free(&alone);
        }
    }
    for (uint32_t i = 0; i < N; i++) lq_state_free(&both[i]);
    lq_free(hidden), lq_free(got), lq_free(want);
}

static void sequences_decoded_together_get_what_each_gets_alone(void **state) {
    (void)state;
    static const char *const models[] = {"llama", "mixtral", "gemma3_kinds", "gpt2", "falcon_40b"};
    for (size_t k = 0; k < sizeof models / sizeof *models; k++) {
        fixture f;
        open_golden(&f, models[k]);
        for (int kv = 0; kv < 5; kv += k ? 5 : 1) decode_together(&f, &(lq_kv_opts){.kind = kv});
        close_golden(&f);
    }
}

static void the_thread_count_changes_no_bit(void **state) {
    (void)state;
    for (size_t v = 0; v < n_variants; v++) {
        fixture f;
        open_golden(&f, variants[v]);
        lq_threads_set(1);
        float *one = logits_of(&f, f.n), *one_by_one = logits_of(&f, 1);
        lq_threads_set(3);
        float *three = logits_of(&f, f.n), *three_by_one = logits_of(&f, 1);
        lq_threads_set(0);
        assert_memory_equal(one, three, (size_t)f.n * f.m->par.vocab * 4);
        assert_memory_equal(one_by_one, three_by_one, (size_t)f.n * f.m->par.vocab * 4);
        lq_free(one), lq_free(one_by_one), lq_free(three), lq_free(three_by_one);
        close_golden(&f);
    }
}

/* ---- calibration ---- */

typedef struct capture { uint32_t stages[8], n; double gram_error, absmax_error; fixture *f; float *inputs; } capture;

enum { N_SEQ = 5 };
static const uint32_t lens[N_SEQ] = {48, 7, 1, 30, 19};

static lq_cache *embed_rows(fixture *f, uint64_t budget) {
    lq_cache *c;
    float *x = LQ_NEWN(float, (size_t)f->n * f->m->par.hidden);
    OK(f, lq_cache_new(&f->ctx, N_SEQ, budget, NULL, &c));
    for (uint32_t i = 0; i < N_SEQ; i++) {
        for (uint32_t t = 0; t < lens[i]; t++) OK(f, lq_embed(&f->ctx, f->m, &f->ids[(t + i) % f->n], 1, t, x + (size_t)t * f->m->par.hidden));
        OK(f, lq_cache_put(&f->ctx, c, i, x, (size_t)lens[i] * f->m->par.hidden));
    }
    lq_free(x);
    return c;
}

static uint32_t stages_before(fixture *f, int32_t block) {
    lq_stage stages[8];
    uint32_t n = 0;
    for (int32_t b = 0; b < block; b++) n += lq_block_stages(f->m, b, stages, 8);
    return n;
}

static lq_status count_stage(void *user, int32_t block, const lq_stage *stage, const lq_stats *stats) {
    capture *c = user;
    uint64_t tokens = 0;
    for (int i = 0; i < N_SEQ; i++) tokens += lens[i];
    lq_stage stages[8];
    lq_block_stages(c->f->m, block, stages, 8);
    assert_int_equal(stats->cols, stage->cols);
    assert_int_equal(stage->n, stages[stage->index].n);
    if (stage->expert > 0) return LQ_OK; /* their tokens: test_moe.c */
    assert_int_equal(stage->index, c->n - stages_before(c->f, block));
    if (stage->expert < 0) assert_int_equal(stats->n, tokens);
    c->n++;
    return LQ_OK;
}

static float *calibrated(fixture *f, uint64_t budget, const lq_stage_hook *hook) {
    lq_cache *c = embed_rows(f, budget);
    uint32_t d = f->m->par.hidden, total = 0;
    for (int i = 0; i < N_SEQ; i++) total += lens[i];
    for (uint32_t b = 0; b < f->m->par.n_layers; b++) OK(f, lq_block_calibrate(&f->ctx, f->m, (int32_t)b, c, lens, hook, budget, NULL));
    float *out = LQ_NEWN(float, (size_t)total * d), *at = out;
    for (uint32_t i = 0; i < N_SEQ; at += (size_t)lens[i++] * d) OK(f, lq_cache_get(&f->ctx, c, i, at, (size_t)lens[i] * d));
    if (!budget) assert_true(lq_cache_spilled(c) > 0);
    lq_cache_free(&c);
    return out;
}

static float *forwarded(fixture *f) {
    uint32_t d = f->m->par.hidden, total = 0;
    for (int i = 0; i < N_SEQ; i++) total += lens[i];
    float *out = LQ_NEWN(float, (size_t)total * d), *at = out;
    lq_state *s;
    OK(f, lq_state_new(&f->ctx, f->m, 48, &s));
    for (uint32_t i = 0; i < N_SEQ; at += (size_t)lens[i++] * d) {
        int32_t ids[48];
        for (uint32_t t = 0; t < lens[i]; t++) ids[t] = f->ids[(t + i) % f->n];
        lq_state_reset(s);
        OK(f, lq_forward(&f->ctx, s, ids, lens[i], at));
    }
    lq_state_free(&s);
    return out;
}

static void calibration_runs_the_stages_and_leaves_the_forward_stream(void **state) {
    (void)state;
    for (size_t v = 0; v < n_variants; v++) {
        fixture f;
        open_golden(&f, variants[v]);
        capture c = {.f = &f};
        lq_stage_hook hook = {LQ_NEED_GRAM | LQ_NEED_ABSMAX, count_stage, &c, NULL, NULL};
        float *want = forwarded(&f), *staged = calibrated(&f, 1 << 30, &hook), *plain = calibrated(&f, 1 << 30, NULL), *spilled = calibrated(&f, 0, NULL);
        uint32_t total = 0, d = f.m->par.hidden;
        for (int i = 0; i < N_SEQ; i++) total += lens[i];
        assert_int_equal(c.n, stages_before(&f, (int32_t)f.m->par.n_layers));
        assert_memory_equal(staged, plain, (size_t)total * d * 4);
        assert_memory_equal(spilled, plain, (size_t)total * d * 4);
        lq_final_norm(f.m, plain, total, plain);
        assert_true(distance(plain, want, (size_t)total * d) < 1e-4);
        lq_free(want), lq_free(staged), lq_free(plain), lq_free(spilled);
        close_golden(&f);
    }
}

/* First stage of block 0: its input is the normed embedding, easily made by hand. */
static lq_status check_first_stage(void *user, int32_t block, const lq_stage *stage, const lq_stats *stats) {
    capture *c = user;
    uint32_t d = c->f->m->par.hidden, n = 0;
    if (block || stage->index) return LQ_OK;
    double *gram = LQ_NEWN(double, (size_t)d * d), *absmax = LQ_NEWN(double, d), *abssum = LQ_NEWN(double, d);
    float *x = LQ_NEWN(float, d);
    for (uint32_t i = 0; i < N_SEQ; i++)
        for (uint32_t t = 0; t < lens[i]; t++, n++) {
            OK(c->f, lq_embed(&c->f->ctx, c->f->m, &c->f->ids[(t + i) % c->f->n], 1, t, x));
            c->f->m->k->rmsnorm(x, c->f->m->layers[0].norm[LQ_R_ATTN_NORM], c->f->m->par.norm_eps, d, x);
            for (uint32_t j = 0; j < d; j++) {
                absmax[j] = fmax(absmax[j], fabsf(x[j]));
                abssum[j] += fabsf(x[j]);
                for (uint32_t k = 0; k < d; k++) gram[j * d + k] += (double)x[j] * x[k];
            }
        }
    for (uint32_t j = 0; j < d; j++) {
        assert_true(absmax[j] == stats->absmax[j]);
        assert_true(fabs(abssum[j] - stats->abssum[j]) <= 1e-9 * abssum[j]);
        for (uint32_t k = 0; k < d; k++)
            assert_true(fabs(lq_gram_at(&stats->gram, j, k) - gram[j * d + k]) <= 1e-5 * sqrt(gram[j * d + j] * gram[k * d + k]));
    }
    c->n = n;
    lq_free(gram), lq_free(absmax), lq_free(abssum), lq_free(x);
    return LQ_OK;
}

static void stage_statistics_equal_a_naive_capture(void **state) {
    (void)state;
    fixture f;
    open_golden(&f, "llama");
    capture c = {.f = &f};
    lq_stage_hook hook = {LQ_NEED_GRAM | LQ_NEED_ABSMAX, check_first_stage, &c, NULL, NULL};
    lq_free(calibrated(&f, 1 << 30, &hook));
    assert_int_equal(c.n, 105);
    close_golden(&f);
}

static lq_status wipe_v(void *user, int32_t block, const lq_stage *stage, const lq_stats *stats) {
    (void)stats;
    double *seen = user;
    for (uint32_t i = 0; i < stage->n; i++)
        if (stage->lin[i]->slot.role == LQ_R_V) memset(stage->lin[i]->w, 0, (size_t)stage->lin[i]->rows * stage->lin[i]->cols * 4);
    if (stage->lin[0]->slot.role == LQ_R_O)
        for (uint32_t i = 0; i < stage->cols; i++) *seen += stats->absmax[i] + block;
    return LQ_OK;
}

static void later_stages_see_what_the_hook_left(void **state) {
    (void)state;
    fixture f;
    open_golden(&f, "llama");
    double seen = 0;
    lq_stage_hook hook = {LQ_NEED_ABSMAX, wipe_v, &seen, NULL, NULL};
    lq_cache *c = embed_rows(&f, 1 << 30);
    OK(&f, lq_block_calibrate(&f.ctx, f.m, 0, c, lens, &hook, 1 << 30, NULL));
    assert_true(seen == 0); /* no values: the attention output is zero */
    lq_cache_free(&c);
    close_golden(&f);
}

/* ---- packed and half weights ---- */

static void round_to_bf16(float *w, size_t n) {
    for (size_t i = 0; i < n; i++) w[i] = lq_bf16_f32(lq_f32_bf16(w[i]));
}

static void a_stored_type_runs_like_its_floats(void **state) {
    (void)state;
    fixture f;
    open_golden(&f, "llama");
    lq_linear *l = &f.m->layers[0].lin[LQ_R_GATE], half = *l;
    size_t n = (size_t)l->rows * l->cols;
    uint16_t *bits = lq_alloc(n * 2);
    round_to_bf16(l->w, n);
    lq_dtype_encode(LQ_BF16, l->w, bits, n);
    half.w = bits;
    half.dtype = LQ_BF16;
    float *x = run_steps(&f, f.n, true), *a = LQ_NEWN(float, (size_t)f.n * l->rows), *b = LQ_NEWN(float, (size_t)f.n * l->rows);
    for (uint32_t tokens = 1; tokens <= f.n; tokens += 46) {
        OK(&f, lq_linear_apply(&f.ctx, f.m->k, l, x, tokens, a));
        OK(&f, lq_linear_apply(&f.ctx, f.m->k, &half, x, tokens, b));
        assert_true(distance(b, a, (size_t)tokens * l->rows) < 1e-6);
    }
    lq_free(bits), lq_free(x), lq_free(a), lq_free(b);
    close_golden(&f);
}

static void codes_run_like_their_decoded_weights(void **state) {
    (void)state;
    fixture f;
    open_golden(&f, "llama");
    lq_linear *l = &f.m->layers[0].lin[LQ_R_GATE], packed = *l;
    lq_scheme s = lq_scheme_int(4, 32, false);
    lq_qtensor q;
    lq_rng rng;
    lq_rng_seed(&rng, 1, 2);
    OK(&f, lq_qtensor_init(&f.ctx, &q, &s, l->slot, l->rows, l->cols));
    for (uint32_t r = 0; r < l->rows; r++)
        for (uint32_t c = 0; c < l->cols; c++) q.codes[r * q.row_bytes + c / 2] |= (uint8_t)(lq_rng_below(&rng, 16) << (c % 2 * 4));
    for (size_t i = 0; i < lq_plane_count(&s.scale, l->rows, l->cols); i++) {
        lq_plane_set(&s.scale, &q.scale, i, 0.01f + 0.02f * lq_rng_unit(&rng));
        lq_plane_set(&s.zero, &q.zero, i, (float)lq_rng_below(&rng, 16));
    }
    for (uint32_t r = 0; r < l->rows; r++) lq_qtensor_decode_row(&q, r, (float *)l->w + (size_t)r * l->cols);
    packed.q = &q;
    packed.w = NULL;
    packed.dtype = LQ_NONE;
    float *x = run_steps(&f, f.n, true), *a = LQ_NEWN(float, (size_t)f.n * l->rows), *b = LQ_NEWN(float, (size_t)f.n * l->rows);
    for (uint32_t tokens = 1; tokens <= f.n; tokens += 46) {
        OK(&f, lq_linear_apply(&f.ctx, f.m->k, l, x, tokens, a));
        OK(&f, lq_linear_apply(&f.ctx, f.m->k, &packed, x, tokens, b));
        assert_true(distance(b, a, (size_t)tokens * l->rows) < 1e-5);
    }
    lq_qtensor_free(&q);
    lq_free(x), lq_free(a), lq_free(b);
    close_golden(&f);
}

/* ---- a long sequence in many chunks, windows across them ---- */

static void chunks_and_windows_agree_on_a_long_sequence(void **state) {
    (void)state;
    fixture f;
    open_golden(&f, "mistral");
    f.m->par.window = 100;
    enum { N = 2500 };
    int32_t *ids = LQ_NEWN(int32_t, N);
    for (int i = 0; i < N; i++) ids[i] = i * 7 % 64;
    float *a = LQ_NEWN(float, (size_t)N * f.m->par.hidden), *b = LQ_NEWN(float, (size_t)N * f.m->par.hidden);
    lq_state *s;
    OK(&f, lq_state_new_scoring(&f.ctx, f.m, N, &s));
    OK(&f, lq_forward(&f.ctx, s, ids, N, a));
    lq_state_free(&s);
    OK(&f, lq_state_new(&f.ctx, f.m, N, &s));
    for (uint32_t i = 0; i < N; i += 333) OK(&f, lq_forward(&f.ctx, s, ids + i, N - i < 333 ? N - i : 333, b + (size_t)i * f.m->par.hidden));
    lq_state_free(&s);
    assert_true(distance(a, b, (size_t)N * f.m->par.hidden) < 1e-4);
    lq_free(ids), lq_free(a), lq_free(b);
    close_golden(&f);
}

static void ids_outside_the_vocabulary_are_refused(void **state) {
    (void)state;
    fixture f;
    open_golden(&f, "llama");
    lq_state *s;
    float hidden[64];
    OK(&f, lq_state_new(&f.ctx, f.m, 4, &s));
    assert_int_equal(lq_forward(&f.ctx, s, (int32_t[]){64}, 1, hidden), LQ_ERR_FORMAT);
    assert_int_equal(lq_forward(&f.ctx, s, (int32_t[]){-1}, 1, hidden), LQ_ERR_FORMAT);
    assert_int_equal(lq_state_pos(s), 0);
    lq_state_free(&s);
    close_golden(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_equal_transformers_for_every_variant),
        cmocka_unit_test(decoding_token_by_token_equals_prefill),
        cmocka_unit_test(scores_are_those_of_the_logits),
        cmocka_unit_test(every_switched_off_field_moves_the_logits),
        cmocka_unit_test(sequences_decoded_together_get_what_each_gets_alone),
        cmocka_unit_test(the_thread_count_changes_no_bit),
        cmocka_unit_test(calibration_runs_the_stages_and_leaves_the_forward_stream),
        cmocka_unit_test(stage_statistics_equal_a_naive_capture),
        cmocka_unit_test(later_stages_see_what_the_hook_left),
        cmocka_unit_test(a_stored_type_runs_like_its_floats),
        cmocka_unit_test(codes_run_like_their_decoded_weights),
        cmocka_unit_test(chunks_and_windows_agree_on_a_long_sequence),
        cmocka_unit_test(ids_outside_the_vocabulary_are_refused),
    };
    return cmocka_run_group_tests(tests, find_variants, drop_variants);
}
