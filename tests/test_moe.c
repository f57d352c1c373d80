/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Mixtures of experts: what routes, what every expert's calibration sees (scripts/gen_golden_moe.py; that the logits are met is
 * tested in test_forward.c over the same folders). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "calib/run.h"
#include "core/thread.h"
#include "quant/method.h"
#include "tests/golden_forward.h"

#include <stdlib.h>

static const char *const variants[] = {"mixtral", "mixtral_stacked", "qwen2_moe", "qwen3_moe", "olmoe"};
enum { N_VARIANTS = sizeof variants / sizeof *variants, LEN = 48 };

/* ---- every setting matters ---- */

#define P (f->m->par)
static void off_top_k(fixture *f) { P.top_k--; }
static void off_norm(fixture *f) { P.norm_topk = !P.norm_topk; }
static void off_clip(fixture *f) { P.clip_qkv = 0; }
static void off_shared(fixture *f) { P.shared_ffn = 0; }
static void off_window(fixture *f) { P.window = 0; }
static void wider_window(fixture *f) { P.window++; }
static void off_full_layer(fixture *f) { memset(P.layer_window, 1, P.n_layers); }
static void off_qk_norm(fixture *f) { P.qk_norm = false; }
static void off_base(fixture *f) { P.rope.base /= 2; }
static void off_act(fixture *f) { P.act = LQ_ACTFN_GELU_TANH; }
static void zero(lq_linear *l) { memset(l->w, 0, (size_t)l->rows * l->cols * 4); }
static void off_router(fixture *f) { zero(&f->m->layers[P.n_layers == 3 && P.layer_dense[0] ? 1 : 0].lin[LQ_R_ROUTER]); }
static void off_shared_gate(fixture *f) { zero(&f->m->layers[2].lin[LQ_R_SHARED_ROUTER]); }
static void off_dense_mlp(fixture *f) { zero(&f->m->layers[P.layer_dense[0] ? 0 : 1].lin[LQ_R_DOWN]); }
static void off_last_expert(fixture *f) {
    uint32_t b = P.n_layers == 3 && P.layer_dense[0] ? 1 : 0;
    zero(lq_layer_linear(&f->m->layers[b], LQ_R_EXPERT_DOWN, (int32_t)P.n_experts - 1));
}

static const off_switch switches[] = {
    {"mixtral", off_top_k, "second expert"},         {"mixtral", off_norm, "normalization"},
    {"mixtral", off_router, "router"},               {"mixtral", off_last_expert, "last expert"},
    {"mixtral", off_base, "rope base"},              {"mixtral_stacked", off_top_k, "second expert"},
    {"mixtral_stacked", off_window, "window"},       {"mixtral_stacked", off_last_expert, "last expert"},
    {"qwen2_moe", off_top_k, "second expert"},       {"qwen2_moe", off_norm, "plain probabilities"},
    {"qwen2_moe", off_shared, "shared expert"},      {"qwen2_moe", off_shared_gate, "gate of the shared expert"},
    {"qwen2_moe", off_dense_mlp, "ordinary mlp"},    {"qwen2_moe", off_window, "window"},
    {"qwen2_moe", wider_window, "window by one"},    {"qwen2_moe", off_full_layer, "layers without window"},
    {"qwen2_moe", off_router, "router"},             {"qwen2_moe", off_last_expert, "last expert"},
    {"qwen3_moe", off_top_k, "third expert"},        {"qwen3_moe", off_norm, "normalization"},
    {"qwen3_moe", off_dense_mlp, "ordinary mlp"},    {"qwen3_moe", off_window, "window"},
    {"qwen3_moe", off_qk_norm, "q/k norm"},          {"qwen3_moe", off_router, "router"},
    {"olmoe", off_top_k, "second expert"},           {"olmoe", off_norm, "plain probabilities"},
    {"olmoe", off_clip, "clamp"},                    {"olmoe", off_qk_norm, "q/k norm"},
    {"olmoe", off_act, "activation"},                {"olmoe", off_router, "router"},
};

static void every_setting_moves_the_logits(void **state) {
    (void)state;
    try_switches(switches, sizeof switches / sizeof *switches);
}

static void swap_rows(lq_linear *l, size_t a, size_t b) {
    for (size_t c = 0; c < l->cols; c++) {
        float *w = l->w, keep = w[a * l->cols + c];
        w[a * l->cols + c] = w[b * l->cols + c];
        w[b * l->cols + c] = keep;
    }
}

static void experts_renumbered_compute_the_same(void **state) {
    (void)state;
    for (int v = 0; v < N_VARIANTS; v++) {
        fixture f;
        open_golden(&f, variants[v]);
        for (uint32_t b = 0; b < f.m->par.n_layers; b++) {
            lq_layer *l = &f.m->layers[b];
            if (!l->n_experts) continue;
            swap_rows(&l->lin[LQ_R_ROUTER], 0, l->n_experts - 1);
            for (int r = 0; r < LQ_EXPERT_ROLES; r++) {
                lq_linear *a = lq_layer_linear(l, LQ_R_EXPERT_GATE + r, 0), *z = lq_layer_linear(l, LQ_R_EXPERT_GATE + r, (int32_t)l->n_experts - 1), keep = *a;
                *a = *z, *z = keep;
            }
        }
        double d = off_golden(&f, f.n);
        if (!(d <= 1e-4)) fail_msg("%s: logits move by %g", variants[v], d);
        close_golden(&f);
    }
}

static void equal_probabilities_choose_the_lowest_numbers_in_order(void **state) {
    (void)state;
    fixture f;
    lq_run r;
    open_golden(&f, "qwen3_moe");
    lq_layer *l = &f.m->layers[1];
    zero(&l->lin[LQ_R_ROUTER]);
    OK(&f, lq_run_init(&f.ctx, &r, f.m, 5, 5));
    OK(&f, lq_run_fit(&f.ctx, &r, l));
    const lq_op *route = r.arch->block;
    while (route->kind != LQ_OP_ROUTE) route++;
    memset(r.t[T_H], 0, 5 * f.m->par.hidden * sizeof(float));
    lq_run_route(&r, l, route, 5);
    for (uint32_t t = 0; t < 5; t++)
        for (uint32_t j = 0; j < 3; j++) {
            assert_int_equal(r.routing.pick[t * 3 + j], j);
            assert_true(fabsf(r.routing.gain[t * 3 + j] - 1.0f / 3) < 1e-6f);
        }
    for (uint32_t e = 0; e < 8; e++) {
        assert_int_equal(r.routing.start[e], e < 3 ? e * 5 : 15);
        for (uint32_t i = r.routing.start[e]; i < r.routing.start[e + 1]; i++) assert_int_equal(r.routing.token[i], i - r.routing.start[e]);
    }
    assert_int_equal(r.routing.start[8], 15);
    lq_run_free(&r);
    close_golden(&f);
}

/* ---- calibration ---- */

enum { MAX_EXPERTS = 8, N_SEQ = 4 };
static const uint32_t lens[N_SEQ] = {48, 9, 1, 30}; /* 88 tokens */
enum { TOKENS = 88 };

typedef struct seen {
    fixture *f;
    uint64_t routed[3][2][MAX_EXPERTS];     /* block, gate/up or down, expert */
    uint32_t visits[3][2][MAX_EXPERTS];
    double trace[3][2][MAX_EXPERTS], layer_trace[3], sum_gap; /* sum_gap: of the Gram matrices of gate/up from k times the layer's */
    double *sum, *layer;                    /* [hidden][hidden] */
    uint64_t hash;                          /* of every number of every Gram matrix */
    lq_status (*more)(struct seen *s, int32_t block, const lq_stage *stage, const lq_stats *stats);
    uint32_t unhit;
    bool crossed;                           /* with a stream of the unquantized model, its tokens shifted by: */
    uint32_t shift;
} seen;

static void add_gram(double *to, const lq_gram *g) {
    for (uint32_t i = 0; i < g->k; i++)
        for (uint32_t j = 0; j < g->k; j++) to[i * g->k + j] += lq_gram_at(g, i, j);
}

static void hash_gram(seen *s, const lq_gram *g) {
    for (uint32_t i = 0; i < g->k; i++)
        for (uint32_t j = 0; j <= i; j++) {
            double v = lq_gram_at(g, i, j);
            uint64_t bits;
            memcpy(&bits, &v, 8);
            s->hash += (bits ^ (bits >> 31)) * (0x9e3779b97f4a7c15u + 2 * i + 4096 * j); /* the order of visits may differ */
        }
}

static void hash_cross(seen *s, const lq_stats *stats) {
    for (uint32_t i = 0; stats->cross && i < stats->cols * stats->cols; i++) {
        uint64_t bits[2];
        memcpy(&bits[0], &stats->cross[i], 8);
        memcpy(&bits[1], &stats->held_cross[i], 8);
        s->hash += (bits[0] ^ (bits[0] >> 31) ^ bits[1] ^ (bits[1] >> 29)) * (0x9e3779b97f4a7c15u + 2 * i);
    }
}

static lq_status watch(void *user, int32_t block, const lq_stage *stage, const lq_stats *stats) {
    seen *s = user;
    uint32_t d = s->f->m->par.hidden;
    hash_gram(s, &stats->gram);
    hash_cross(s, stats);
    if (stage->lin[0]->slot.role == LQ_R_ROUTER) {
        assert_int_equal(stats->n, TOKENS);
        s->layer_trace[block] = lq_gram_trace(&stats->gram);
        memset(s->sum, 0, (size_t)d * d * sizeof *s->sum);
        memset(s->layer, 0, (size_t)d * d * sizeof *s->layer);
        add_gram(s->layer, &stats->gram);
    }
    if (stage->expert < 0) return LQ_OK;
    int at = stage->lin[0]->slot.role == LQ_R_EXPERT_DOWN;
    assert_int_equal(stage->n, at ? 1 : 2);
    for (uint32_t i = 0; i < stage->n; i++) assert_int_equal(stage->lin[i]->slot.expert, stage->expert);
    s->routed[block][at][stage->expert] += stats->routed;
    s->visits[block][at][stage->expert]++;
    s->trace[block][at][stage->expert] = lq_gram_trace(&stats->gram);
    if (!at) add_gram(s->sum, &stats->gram);
    if (!at && stage->expert + 1 == (int32_t)s->f->m->par.n_experts)
        for (uint32_t i = 0; i < d * d; i++) s->sum_gap = fmax(s->sum_gap, fabs(s->sum[i] - s->f->m->par.top_k * s->layer[i]) / s->layer_trace[block]);
    return s->more ? s->more(s, block, stage, stats) : LQ_OK;
}

static lq_cache *embedded(fixture *f, uint64_t budget, uint32_t shift) {
    lq_cache *c;
    uint32_t d = f->m->par.hidden;
    float *x = LQ_NEWN(float, (size_t)LEN * d);
    OK(f, lq_cache_new(&f->ctx, N_SEQ, budget, NULL, &c));
    for (uint32_t i = 0; i < N_SEQ; i++) {
        for (uint32_t t = 0; t < lens[i]; t++) OK(f, lq_embed(&f->ctx, f->m, &f->ids[(t + 5 * i + shift) % f->n], 1, t, x + (size_t)t * d));
        OK(f, lq_cache_put(&f->ctx, c, i, x, (size_t)lens[i] * d));
    }
    lq_free(x);
    return c;
}

static void calibrate(seen *s, fixture *f, uint64_t budget) {
    lq_cache *c = embedded(f, budget, 0), *twin = s->crossed ? embedded(f, budget, s->shift) : NULL;
    uint32_t d = f->m->par.hidden;
    lq_stage_hook hook = {LQ_NEED_GRAM | LQ_NEED_ABSMAX | (twin ? LQ_NEED_CROSS : 0), watch, s, twin, NULL};
    s->f = f;
    s->sum = LQ_NEWN(double, (size_t)d * d), s->layer = LQ_NEWN(double, (size_t)d * d);
    for (uint32_t b = 0; b < f->m->par.n_layers; b++) OK(f, lq_block_calibrate(&f->ctx, f->m, (int32_t)b, c, lens, &hook, budget, NULL));
    lq_cache_free(&c);
    lq_cache_free(&twin);
    lq_free(s->sum), lq_free(s->layer);
}

static void every_expert_is_visited_and_its_tokens_sum_to_all_tokens_times_k(void **state) {
    (void)state;
    for (int v = 0; v < N_VARIANTS; v++) {
        fixture f;
        seen s = {0};
        open_golden(&f, variants[v]);
        calibrate(&s, &f, 1 << 30);
        for (uint32_t b = 0; b < f.m->par.n_layers; b++)
            for (int at = 0; at < 2 && f.m->layers[b].n_experts; at++) {
                uint64_t sum = 0;
                for (uint32_t e = 0; e < f.m->par.n_experts; e++) {
                    assert_int_equal(s.visits[b][at][e], 1);
                    assert_int_equal(s.routed[b][at][e], s.routed[b][0][e]);
                    sum += s.routed[b][at][e];
                }
                assert_int_equal(sum, (uint64_t)TOKENS * f.m->par.top_k);
            }
        close_golden(&f);
    }
}

static void without_prior_and_weights_the_experts_grams_sum_to_k_times_the_layers(void **state) {
    (void)state;
    int checked = 0;
    for (int v = 0; v < N_VARIANTS; v++) {
        fixture f;
        seen s = {0};
        open_golden(&f, variants[v]);
        f.m->expert_opts = (lq_expert_opts){.prior = 0, .flat = 1};
        calibrate(&s, &f, 1 << 30);
        bool all = true; /* an expert without tokens has the prior, whatever the options */
        for (uint32_t b = 0; b < f.m->par.n_layers; b++)
            for (uint32_t e = 0; e < f.m->layers[b].n_experts; e++) all = all && s.routed[b][0][e];
        checked += all;
        if (all && !(s.sum_gap < 1e-6)) fail_msg("%s: the sum is off by %g of the trace", variants[v], s.sum_gap);
        close_golden(&f);
    }
    assert_true(checked >= 3);
}

static double *cross_sum; /* [2][hidden][hidden]: of the experts, the layer's */
static uint32_t cross_checked;

static lq_status sum_cross(seen *s, int32_t block, const lq_stage *stage, const lq_stats *stats) {
    (void)block;
    uint32_t d = s->f->m->par.hidden, size = d * d, last = s->f->m->par.n_experts - 1;
    if (stage->lin[0]->slot.role == LQ_R_EXPERT_DOWN) return LQ_OK;
    double most = 0, scale = 0;
    for (uint32_t i = 0; i < size; i++) cross_sum[i] = (stage->expert ? cross_sum[i] : 0) + stats->cross[i] + 3 * stats->held_cross[i];
    for (uint32_t i = 0; i < size && (uint32_t)stage->expert == last; i++) {
        most = fmax(most, fabs(cross_sum[i] - s->f->m->par.top_k * cross_sum[size + i]));
        scale = fmax(scale, fabs(cross_sum[size + i]));
    }
    if (!(most <= 1e-5 * scale)) fail_msg("the sum is off by %g of %g", most, scale);
    cross_checked += scale > 0;
    return LQ_OK;
}

static lq_status note_layer(void *user, int32_t block, const lq_stage *stage, const lq_stats *stats) {
    seen *s = user;
    uint32_t d = s->f->m->par.hidden;
    if (stage->lin[0]->slot.role == LQ_R_ROUTER)
        for (uint32_t i = 0; i < d * d; i++) cross_sum[d * d + i] = stats->cross[i] + 3 * stats->held_cross[i];
    return stage->expert < 0 ? LQ_OK : sum_cross(s, block, stage, stats);
}

static void the_experts_crosses_sum_to_k_times_the_layers(void **state) {
    (void)state;
    fixture f;
    seen s = {.f = &f};
    open_golden(&f, "mixtral");
    uint32_t d = f.m->par.hidden;
    f.m->expert_opts = (lq_expert_opts){.prior = 0, .flat = 1};
    cross_sum = LQ_NEWN(double, 2 * (size_t)d * d);
    lq_cache *c = embedded(&f, 1 << 30, 0), *twin = embedded(&f, 1 << 30, 1);
    lq_stage_hook hook = {LQ_NEED_GRAM | LQ_NEED_CROSS, note_layer, &s, twin, NULL};
    OK(&f, lq_block_calibrate(&f.ctx, f.m, 0, c, lens, &hook, 1 << 30, NULL));
    assert_int_equal(cross_checked, 1);
    lq_cache_free(&c), lq_cache_free(&twin), lq_free(cross_sum);
    close_golden(&f);
}

/* Halving up halves what down reads: the unquantized model's is as far from it as it is from 0. Gate and up read the same in both. */
static lq_status halve_up(seen *s, int32_t block, const lq_stage *stage, const lq_stats *stats) {
    uint32_t k = stats->cols;
    if (block) return LQ_OK; /* the streams part */
    for (uint32_t i = 0; i < stage->n; i++)
        for (size_t c = 0; stage->lin[i]->slot.role == LQ_R_EXPERT_UP && c < (size_t)stage->lin[i]->rows * k; c++) ((float *)stage->lin[i]->w)[c] /= 2;
    bool down = stage->lin[0]->slot.role == LQ_R_EXPERT_DOWN;
    double trace = lq_gram_trace(&stats->gram);
    for (uint32_t i = 0; i < k; i++)
        for (uint32_t j = 0; j < k; j++) {
            double want = down ? lq_gram_at(&stats->gram, i, j) : 0;
            if (!(fabs(stats->cross[i * k + j] - want) <= 1e-6 * trace)) fail_msg("expert %d: %g at %u, %u instead of %g", stage->expert, stats->cross[i * k + j], i, j, want);
        }
    s->unhit += down && trace > 0;
    return LQ_OK;
}

static void what_down_reads_is_compared_with_the_unquantized_experts_product(void **state) {
    (void)state;
    fixture f;
    seen s = {.crossed = true, .more = halve_up};
    open_golden(&f, "mixtral");
    f.m->expert_opts.prior = 0;
    calibrate(&s, &f, 1 << 30);
    assert_true(s.unhit >= 4);
    close_golden(&f);
}

static void tokens_count_by_their_gate_squared(void **state) {
    (void)state;
    fixture f;
    seen flat = {0}, gated = {0};
    open_golden(&f, "olmoe"); /* gates are plain probabilities: 1/8 each once the router is zero */
    for (uint32_t b = 0; b < 2; b++) zero(&f.m->layers[b].lin[LQ_R_ROUTER]);
    f.m->expert_opts = (lq_expert_opts){.flat = 1};
    calibrate(&flat, &f, 1 << 30);
    f.m->expert_opts = (lq_expert_opts){.flat = 0};
    calibrate(&gated, &f, 1 << 30);
    for (uint32_t b = 0; b < 2; b++)
        for (int at = 0; at < 2; at++)
            for (uint32_t e = 0; e < 2; e++) assert_true(fabs(gated.trace[b][at][e] * 64 / flat.trace[b][at][e] - 1) < 1e-5);
    close_golden(&f);
}

static void the_number_of_experts_held_at_a_time_changes_no_bit(void **state) {
    (void)state;
    for (int v = 0; v < N_VARIANTS; v++) {
        fixture f;
        seen all = {0}, one = {0}, threads = {0};
        open_golden(&f, variants[v]);
        calibrate(&all, &f, 1 << 30);
        calibrate(&one, &f, 0);
        lq_threads_set(3);
        calibrate(&threads, &f, 1 << 30);
        lq_threads_set(0);
        assert_true(all.hash == one.hash && all.hash == threads.hash);
        seen many = {.crossed = true, .shift = 1}, few = many;
        calibrate(&many, &f, 1 << 30);
        calibrate(&few, &f, 0);
        assert_true(many.hash == few.hash && many.hash != all.hash);
        close_golden(&f);
    }
}

static void a_prior_has_the_weight_that_it_is_given(void **state) {
    (void)state;
    fixture f = {.n = 0};
    lq_stats own, prior, none;
    float a[3][4] = {{1, 2, 0, 0}, {0, 1, 1, 0}, {3, 0, 0, 1}}, b[2][4] = {{5, 5, 5, 5}, {-1, 2, -3, 4}};
    OK(&f, lq_stats_init(&f.ctx, &own, LQ_NEED_GRAM | LQ_NEED_ABSMAX, 4));
    OK(&f, lq_stats_init(&f.ctx, &none, LQ_NEED_GRAM | LQ_NEED_ABSMAX, 4));
    OK(&f, lq_stats_init(&f.ctx, &prior, LQ_NEED_GRAM | LQ_NEED_ABSMAX, 4));
    OK(&f, lq_stats_add(&f.ctx, &own, a[0], 3));
    OK(&f, lq_stats_add(&f.ctx, &prior, b[0], 2));
    double was = lq_gram_trace(&own.gram), c01 = lq_gram_at(&own.gram, 0, 1), unit = was / lq_gram_trace(&prior.gram);
    lq_stats_shrink(&own, &prior, 0.25);
    assert_true(fabs(lq_gram_trace(&own.gram) - 1.25 * was) < 1e-12 * was);
    assert_true(fabs(lq_gram_at(&own.gram, 0, 1) - c01 - 0.25 * unit * lq_gram_at(&prior.gram, 0, 1)) < 1e-12);
    assert_int_equal(own.n, 3);
    assert_true(own.absmax[0] == 3);
    lq_stats_shrink(&none, &prior, 0.25);
    assert_int_equal(none.n, 2);
    assert_true(none.absmax[3] == 5 && none.abssum[3] == 9);
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t j = 0; j < 4; j++) assert_true(lq_gram_at(&none.gram, i, j) == lq_gram_at(&prior.gram, i, j));
    lq_stats_free(&own), lq_stats_free(&none), lq_stats_free(&prior);
}

static lq_status quantize_unhit(seen *s, int32_t block, const lq_stage *stage, const lq_stats *stats) {
    if (stats->routed) return LQ_OK;
    const lq_method *m = lq_method_by_name("gptq");
    const lq_scheme scheme = lq_scheme_int(3, -1, true);
    void *opts = lq_calloc(1, m->opts_size);
    OK(s->f, lq_opts_defaults(&s->f->ctx, (lq_optset[]){{m->opts, opts, m->name}, {0}}));
    for (uint32_t i = 0; i < stage->n; i++) {
        const lq_linear *l = stage->lin[i];
        lq_weights w = {.slot = l->slot, .name = l->row->name, .rows = l->rows, .cols = l->cols, .w = l->w};
        lq_qtensor q = {0};
        lq_outcome o;
        assert_int_equal(stats->n, TOKENS);
        OK(s->f, m->quantize(&s->f->ctx, opts, &w, &scheme, stats, &q, &o));
        assert_string_equal(o.fallback, "");
        assert_true(o.err_h >= 0 && o.err_h < 1 && o.err_h <= o.err_h_rtn);
        for (uint32_t r = 0; r < q.rows; r++) {
            float scale = lq_plane_get(&q.sch.scale, &q.scale, r);
            assert_true(isfinite(scale) && scale != 0);
        }
        lq_qtensor_free(&q);
        s->unhit++;
    }
    (void)block;
    lq_free(opts);
    return LQ_OK;
}

static void an_expert_without_tokens_is_calibrated_on_the_layer(void **state) {
    (void)state;
    for (int v = 0; v < N_VARIANTS; v++) {
        fixture f;
        seen s = {.more = quantize_unhit};
        open_golden(&f, variants[v]);
        uint32_t blocks = 0;
        for (uint32_t b = 0; b < f.m->par.n_layers; b++)
            if (f.m->layers[b].n_experts) zero(&f.m->layers[b].lin[LQ_R_ROUTER]), blocks++; /* all tokens go to the first k */
        calibrate(&s, &f, 1 << 30);
        assert_int_equal(s.unhit, blocks * 3 * (f.m->par.n_experts - f.m->par.top_k));
        for (uint32_t b = 0; b < f.m->par.n_layers; b++)
            if (f.m->layers[b].n_experts) assert_true(s.trace[b][0][f.m->par.n_experts - 1] == s.layer_trace[b]);
        close_golden(&f);
    }
}

static lq_status nothing(void *user, int32_t block, const lq_stage *stage, const lq_stats *stats) {
    (void)user, (void)block, (void)stage, (void)stats;
    return LQ_OK;
}

static lq_status open_and_calibrate(fixture *f, lq_model **m, lq_cache *c, lq_cache *twin) {
    static const uint32_t len[1] = {LEN};
    lq_stage_hook hook = {.needs = LQ_NEED_GRAM | LQ_NEED_ABSMAX | LQ_NEED_CROSS, .on_stage = nothing, .twin = twin};
    LQ_TRY(lq_model_open(&f->ctx, f->src, false, m));
    LQ_TRY(lq_model_load(&f->ctx, *m, 0, LQ_LOAD_F32));
    return lq_block_calibrate(&f->ctx, *m, 0, c, len, &hook, 0, NULL);
}

static void calibration_survives_every_failing_allocation(void **state) {
    (void)state;
    static const char *const some[] = {"mixtral_stacked", "qwen2_moe"};
    for (int v = 0; v < 2; v++) {
        fixture f;
        lq_cache *c, *twin;
        lq_status st = LQ_ERR_RESOURCE;
        open_golden(&f, some[v]);
        float *x = LQ_NEWN(float, (size_t)LEN * f.m->par.hidden);
        OK(&f, lq_embed(&f.ctx, f.m, f.ids, LEN, 0, x));
        for (long n = 0; st == LQ_ERR_RESOURCE; n++) {
            lq_model *m = NULL;
            OK(&f, lq_cache_new(&f.ctx, 1, 1 << 20, NULL, &c));
            OK(&f, lq_cache_put(&f.ctx, c, 0, x, (size_t)LEN * f.m->par.hidden));
            OK(&f, lq_cache_new(&f.ctx, 1, 1 << 20, NULL, &twin));
            OK(&f, lq_cache_put(&f.ctx, twin, 0, x, (size_t)LEN * f.m->par.hidden));
            lq_mem_fail_after(n);
            st = open_and_calibrate(&f, &m, c, twin);
            lq_mem_fail_after(-1);
            assert_true(st == LQ_OK || st == LQ_ERR_RESOURCE);
            lq_model_free(&m);
            lq_cache_free(&c);
            lq_cache_free(&twin);
        }
        lq_free(x);
        close_golden(&f);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_setting_moves_the_logits),
        cmocka_unit_test(experts_renumbered_compute_the_same),
        cmocka_unit_test(equal_probabilities_choose_the_lowest_numbers_in_order),
        cmocka_unit_test(every_expert_is_visited_and_its_tokens_sum_to_all_tokens_times_k),
        cmocka_unit_test(without_prior_and_weights_the_experts_grams_sum_to_k_times_the_layers),
        cmocka_unit_test(the_experts_crosses_sum_to_k_times_the_layers),
        cmocka_unit_test(what_down_reads_is_compared_with_the_unquantized_experts_product),
        cmocka_unit_test(tokens_count_by_their_gate_squared),
        cmocka_unit_test(the_number_of_experts_held_at_a_time_changes_no_bit),
        cmocka_unit_test(a_prior_has_the_weight_that_it_is_given),
        cmocka_unit_test(an_expert_without_tokens_is_calibrated_on_the_layer),
        cmocka_unit_test(calibration_survives_every_failing_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
