/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Fold sites and transforms over the registries: every golden model (one at least of every architecture), every transform. */
#define _DEFAULT_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "calib/act.h"
#include "calib/fold.h"
#include "core/thread.h"
#include "golden_forward.h"
#include "matrices.h"
#include "site_refusals.h"
#include "quant/proxy.h"
#include "quant/recipe.h"

#include <dirent.h>
#include <stdlib.h>

/* ---- folds keep the function ---- */

static int is_model(const struct dirent *d) { return d->d_name[0] != '.'; }

static void each_golden(void (*fn)(const char *variant, void *user), void *user) {
    struct dirent **folders;
    int n = scandir(GOLDEN, &folders, is_model, alphasort);
    assert_true(n > 0);
    for (int i = 0; i < n; i++) {
        fn(folders[i]->d_name, user);
        free(folders[i]);
    }
    free(folders);
}

/* The model in F32, every linear to be quantized, the rest kept as `kept`. */
static void open_planned(fixture *f, const char *variant, lq_dtype kept, bool quantize) {
    open_golden(f, variant);
    lq_model_free(&f->m);
    OK(f, lq_model_open(&f->ctx, f->src, false, &f->m));
    OK(f, lq_model_load_all(&f->ctx, f->m, LQ_LOAD_F32));
    for (size_t i = 0; i < f->m->cat.n; i++) {
        lq_row *row = &f->m->cat.rows[i];
        row->out_dtype = kept;
        row->quantize = quantize && row->linear && row->part == LQ_PART_WEIGHT && row->slot.block >= 0;
    }
}

static uint32_t fold_all(fixture *f, bool pow2, uint64_t seed) {
    uint32_t folded = 0;
    lq_rng rng;
    lq_rng_seed(&rng, seed, 1);
    for (uint32_t b = 0; b < f->m->par.n_layers; b++) {
        lq_site site[LQ_MAX_SITES];
        uint32_t n = lq_arch_sites(f->m->arch, &f->m->par, b, site);
        for (uint32_t i = 0; i < n; i++) {
            bool own = lq_role_is_expert(site[i].producer);
            for (int32_t e = own ? 0 : -1; e < (own ? (int32_t)f->m->par.n_experts : 0); e++) {
                float *s = LQ_NEWN(float, site[i].scales);
                for (uint32_t j = 0; j < site[i].scales; j++) s[j] = exp2f(6 * lq_rng_unit(&rng) - 3);
                OK(f, lq_fold_settle(&f->ctx, f->m, (int32_t)b, e, &site[i], pow2, s));
                for (uint32_t j = 0; j < site[i].scales; j++) folded += s[j] != 1;
                OK(f, lq_fold_apply(&f->ctx, f->m, (int32_t)b, e, &site[i], s));
                lq_free(s);
            }
        }
    }
    return folded;
}

static float *logits_now(fixture *f) {
    lq_state *s;
    float *hidden = LQ_NEWN(float, (size_t)f->n * f->m->par.hidden), *logits = LQ_NEWN(float, (size_t)f->n * f->m->par.vocab);
    OK(f, lq_state_new_scoring(&f->ctx, f->m, f->n, &s));
    OK(f, lq_forward(&f->ctx, s, f->ids, f->n, hidden));
    OK(f, lq_logits(&f->ctx, f->m, hidden, f->n, logits));
    lq_state_free(&s);
    lq_free(hidden);
    return logits;
}

typedef struct folding { bool pow2, quantize; lq_dtype kept; } folding;

static void check_function(const char *variant, void *user) {
    const folding *how = user;
    fixture f;
    open_planned(&f, variant, how->kept, how->quantize);
    size_t n = (size_t)f.n * f.m->par.vocab;
    float *before = logits_now(&f);
    uint32_t folded = fold_all(&f, how->pow2, 7);
    float *after = logits_now(&f);
    double most = 0, off = 0;
    for (size_t i = 0; i < n; i++) {
        most = fmax(most, fabs(before[i]));
        off = fmax(off, fabs((double)before[i] - after[i]));
    }
    if (how->quantize && !folded && !f.m->par.plain_norm) fail_msg("%s: nothing was folded", variant);
    if (!(off <= 1e-5 * most)) fail_msg("%s: logits moved by %g of the largest", variant, off / most);
    if (how->pow2 && !f.m->par.norm_plus_one && memcmp(before, after, n * sizeof *before)) fail_msg("%s: powers of two changed a bit (by %g)", variant, off / most);
    lq_free(before);
    lq_free(after);
    close_golden(&f);
}

static void folding_keeps_the_function_of_every_architecture(void **state) {
    (void)state;
    each_golden(check_function, &(folding){.kept = LQ_F32, .quantize = true});
}

static void folding_powers_of_two_changes_no_bit(void **state) {
    (void)state;
    each_golden(check_function, &(folding){.pow2 = true, .kept = LQ_F32, .quantize = true});
}

/* Kept matrices and biases of a short type take part only where the factor rounds nothing. The golden models are stored as F32: what
 * their own values lose in BF16 must not depend on the fold, so a kept value that BF16 cannot hold stays unfolded. */
static void check_short(const char *variant, void *user) {
    fixture f;
    (void)user;
    open_planned(&f, variant, LQ_BF16, false);
    for (size_t i = 0; i < f.m->cat.n; i++) { /* what a BF16 checkpoint holds */
        const lq_row *row = &f.m->cat.rows[i];
        if (row->slot.block < 0 || row->slot.role == LQ_R_UNKNOWN) continue;
        lq_buf b = {0};
        OK(&f, lq_fold_store(&f.ctx, f.m, row, &b));
        OK(&f, lq_fold_restore(&f.ctx, f.m, row, b.v, b.n));
        lq_buf_free(&b);
    }
    float *before = logits_now(&f);
    fold_all(&f, false, 11);
    for (size_t i = 0; i < f.m->cat.n; i++) { /* what will be written, read again */
        const lq_row *row = &f.m->cat.rows[i];
        if (row->slot.block < 0 || row->slot.role == LQ_R_UNKNOWN) continue;
        lq_buf b = {0};
        OK(&f, lq_fold_store(&f.ctx, f.m, row, &b));
        OK(&f, lq_fold_restore(&f.ctx, f.m, row, b.v, b.n));
        lq_buf_free(&b);
    }
    float *after = logits_now(&f);
    double most = 0, off = 0;
    for (size_t i = 0; i < (size_t)f.n * f.m->par.vocab; i++) {
        most = fmax(most, fabs(before[i]));
        off = fmax(off, fabs((double)before[i] - after[i]));
    }
    if (!(off <= 1e-5 * most)) fail_msg("%s: what is stored as bf16 moved the logits by %g of the largest", variant, off / most);
    lq_free(before);
    lq_free(after);
    close_golden(&f);
}

static void what_is_kept_in_a_short_type_is_never_rounded_by_a_fold(void **state) {
    (void)state;
    each_golden(check_short, NULL);
}

/* ---- sites ---- */

static const lq_site *find_site(const lq_site *s, uint32_t n, lq_site_kind kind, lq_role producer) {
    for (uint32_t i = 0; i < n; i++)
        if (s[i].kind == kind && s[i].producer == producer) return &s[i];
    return NULL;
}

static void sites_follow_from_the_tables(void **state) {
    (void)state;
    fixture f;
    lq_site s[LQ_MAX_SITES];
    open_golden(&f, "llama");
    uint32_t n = lq_arch_sites(f.m->arch, &f.m->par, 0, s);
    assert_int_equal(n, 4);
    const lq_site *norm = find_site(s, n, LQ_SITE_NORM, LQ_R_ATTN_NORM), *value = find_site(s, n, LQ_SITE_VALUE, LQ_R_V);
    assert_true(norm && norm->n == 3 && lq_site_reads(norm, LQ_R_Q) && lq_site_reads(norm, LQ_R_K) && lq_site_reads(norm, LQ_R_V));
    assert_true(value && value->n == 1 && value->reader[0] == LQ_R_O && value->scales == f.m->par.n_kv_heads * f.m->par.head_dim);
    norm = find_site(s, n, LQ_SITE_NORM, LQ_R_MLP_NORM);
    assert_true(norm && norm->n == 2 && find_site(s, n, LQ_SITE_UP, LQ_R_UP)->reader[0] == LQ_R_DOWN);
    assert_non_null(lq_arch_no_site(f.m->arch, &f.m->par, LQ_SITE_RELU));
    close_golden(&f);

    open_golden(&f, "gemma2"); /* norms of branches have no reader but the stream */
    n = lq_arch_sites(f.m->arch, &f.m->par, 0, s);
    assert_null(find_site(s, n, LQ_SITE_NORM, LQ_R_ATTN_POST_NORM));
    assert_null(find_site(s, n, LQ_SITE_NORM, LQ_R_MLP_POST_NORM));
    assert_non_null(find_site(s, n, LQ_SITE_NORM, LQ_R_MLP_NORM));
    close_golden(&f);

    open_golden(&f, "qwen2_moe"); /* one scale for router, shared expert and all experts; each expert its own before down */
    for (uint32_t b = 0; b < f.m->par.n_layers; b++) {
        if (!lq_params_at(&f.m->par, LQ_FEAT_MOE, b)) continue;
        n = lq_arch_sites(f.m->arch, &f.m->par, b, s);
        norm = find_site(s, n, LQ_SITE_NORM, LQ_R_MLP_NORM);
        assert_true(norm && lq_site_reads(norm, LQ_R_ROUTER) && lq_site_reads(norm, LQ_R_EXPERT_GATE) && lq_site_reads(norm, LQ_R_EXPERT_UP));
        assert_true(lq_site_reads(norm, LQ_R_SHARED_ROUTER) && lq_site_reads(norm, LQ_R_SHARED_GATE) && lq_site_reads(norm, LQ_R_SHARED_UP));
        assert_non_null(find_site(s, n, LQ_SITE_UP, LQ_R_EXPERT_UP));
        assert_non_null(find_site(s, n, LQ_SITE_UP, LQ_R_SHARED_UP));
    }
    close_golden(&f);
}

enum { MAX_ROWS = 64, MAX_ARCHS = 256 };
typedef struct seen { bool arch[MAX_ARCHS], row[MAX_ROWS]; } seen;

static bool listed(const lq_arch *a, lq_site_kind kind, const char *why, seen *s) {
    bool found = false;
    for (int i = 0; lq_refusals[i].arch; i++) {
        if (strcmp(lq_refusals[i].arch, a->name) || lq_refusals[i].kind != kind || !strstr(why, lq_refusals[i].reason)) continue;
        found = s->row[i] = true;
    }
    return found;
}

static void check_reasons(const char *variant, void *user) {
    fixture f;
    seen *s = user;
    open_golden(&f, variant);
    for (int i = 0; lq_archs[i]; i++)
        if (lq_archs[i]->block == f.m->arch->block) s->arch[i] = true;
    for (int k = 0; k < LQ_SITE_KINDS; k++) {
        const char *why = lq_arch_no_site(f.m->arch, &f.m->par, (lq_site_kind)k);
        bool other_mlp = why && (strstr(why, "no gated MLP") || strstr(why, "no plain MLP")); /* an MLP is of one kind */
        if (why && !other_mlp && !listed(f.m->arch, (lq_site_kind)k, why, s))
            fail_msg("%s: {\"%s\", site %s, \"%s\"} is not in the table of refusals", variant, f.m->arch->name, lq_site_names[k], why);
    }
    close_golden(&f);
}

static void every_missing_site_has_a_reason_in_the_table(void **state) {
    (void)state;
    seen s = {{0}, {0}};
    each_golden(check_reasons, &s);
    for (int i = 0; lq_archs[i]; i++)
        if (!s.arch[i]) fail_msg("no golden model has the block of architecture %s", lq_archs[i]->name);
    for (int i = 0; lq_refusals[i].arch; i++)
        if (!s.row[i]) fail_msg("the table of refusals: no golden model of %s is refused for '%s'", lq_refusals[i].arch, lq_refusals[i].reason);
}

/* ---- transforms on one site ---- */

typedef struct bench {
    float *x, *w[2];
    lq_stats stats;
    lq_scheme target;
    lq_xreader reader[2];
    uint32_t *scale_of;
    lq_site site;
    lq_xsite xs;
} bench;

static lq_status settle_plain(lq_ctx *ctx, const lq_xsite *x, bool pow2, float *s) {
    (void)ctx;
    for (uint32_t j = 0; j < x->scales; j++) s[j] = pow2 ? exp2f(rintf(log2f(s[j]))) : s[j];
    return LQ_OK;
}

static void bench_init(bench *b, uint32_t cols, uint32_t scales, uint32_t n, float outlier, const lq_scheme *target, lq_fit fit) {
    *b = (bench){.x = random_inputs(3, n, cols), .target = *target};
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t c = 5; c < cols; c += 29) b->x[(size_t)t * cols + c] *= outlier;
    assert_int_equal(lq_stats_init(NULL, &b->stats, LQ_NEED_ABSMAX | LQ_NEED_GRAM | LQ_NEED_SAMPLES, cols), LQ_OK);
    assert_int_equal(lq_stats_add(NULL, &b->stats, b->x, n), LQ_OK);
    b->scale_of = LQ_NEWN(uint32_t, cols);
    for (uint32_t c = 0; c < cols; c++) b->scale_of[c] = c % scales;
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t rows = i ? 20 : 70;
        b->w[i] = random_weights(i + 1, rows, cols);
        b->reader[i] = (lq_xreader){.name = "test", .w = b->w[i], .rows = rows, .target = &b->target};
    }
    b->site = (lq_site){.kind = LQ_SITE_NORM, .n = 2, .cols = cols, .scales = scales};
    b->xs = (lq_xsite){.site = &b->site, .name = "test", .cols = cols, .scales = scales, .scale_of = b->scale_of, .reader = b->reader, .n = 2,
                       .stats = &b->stats, .fit = fit, .settle = settle_plain};
}

static void bench_free(bench *b) {
    lq_stats_free(&b->stats);
    lq_free(b->x);
    lq_free(b->w[0]);
    lq_free(b->w[1]);
    lq_free(b->scale_of);
}

static void *defaults_of(const lq_xform *x) {
    void *opts = lq_alloc(x->opts_size + 1);
    lq_optset sets[] = {{x->opts, opts, NULL}, {0}};
    assert_int_equal(lq_opts_defaults(NULL, sets), LQ_OK);
    return opts;
}

static const lq_xform *xform_named(const char *name) {
    for (const lq_xform *const *x = lq_xforms; *x; x++)
        if (!strcmp((*x)->name, name)) return *x;
    return NULL;
}

static lq_scheme w8a8(bool fixed) {
    lq_scheme s = lq_scheme_int(8, -1, true);
    s.act = (lq_act){.kind = fixed ? LQ_ACT_STATIC : LQ_ACT_DYNAMIC, .dtype = LQ_I8};
    return s;
}

static void every_transform_is_deterministic_and_never_loses_by_its_own_measure(void **state) {
    (void)state;
    enum { COLS = 96, N = 300 };
    const lq_scheme targets[] = {lq_scheme_int(4, 32, false), lq_scheme_int(3, -1, true), w8a8(false), w8a8(true)};
    for (const lq_xform *const *x = lq_xforms; *x; x++)
        for (size_t k = 0; k < sizeof targets / sizeof *targets; k++)
            for (uint32_t scales = COLS / 2; scales <= COLS; scales *= 2) {
                bench b;
                void *opts = defaults_of(*x);
                float one[COLS], three[COLS];
                lq_xchoice c1 = {.loss = -1}, c3 = {.loss = -1};
                bench_init(&b, COLS, scales, N, 30, &targets[k], k == 1 ? LQ_FIT_SEARCH : LQ_FIT_MINMAX);
                for (uint32_t j = 0; j < COLS; j++) one[j] = three[j] = 1;
                lq_threads_set(1);
                assert_int_equal((*x)->apply(NULL, opts, &b.xs, one, &c1), LQ_OK);
                lq_threads_set(3);
                assert_int_equal((*x)->apply(NULL, opts, &b.xs, three, &c3), LQ_OK);
                lq_threads_set(0);
                assert_memory_equal(one, three, sizeof one);
                assert_true(c1.loss >= 0 && c1.loss <= c1.loss_before && c1.loss == c3.loss && c1.loss_before == c3.loss_before);
                for (uint32_t j = 0; j < scales; j++) assert_true(isfinite(one[j]) && one[j] > 0);
                lq_free(opts);
                bench_free(&b);
            }
}

/* What the loss says is the truth: tr(E H E^T) by a plain loop, E = W - Q(W s) / s. */
static double plain_loss(const bench *b, const float *s) {
    double sum = 0;
    for (int i = 0; i < 2; i++) {
        size_t size = (size_t)b->reader[i].rows * b->xs.cols;
        float *q = LQ_NEWN(float, size), *by_column = LQ_NEWN(float, b->xs.cols);
        for (uint32_t c = 0; c < b->xs.cols; c++) by_column[c] = s[b->scale_of[c]];
        assert_int_equal(lq_xform_pseudo(NULL, &b->target, b->w[i], b->reader[i].rows, b->xs.cols, by_column, b->xs.fit, NULL, q), LQ_OK);
        for (uint32_t r = 0; r < b->reader[i].rows; r++)
            for (uint32_t c = 0; c < b->xs.cols; c++)
                for (uint32_t d = 0; d < b->xs.cols; d++) {
                    size_t at = (size_t)r * b->xs.cols;
                    sum += (double)(b->w[i][at + c] - q[at + c]) * (double)(b->w[i][at + d] - q[at + d]) * lq_gram_at(&b->stats.gram, c, d) / (double)b->stats.n;
                }
        lq_free(q);
        lq_free(by_column);
    }
    return sum;
}

static void awq_reports_the_true_loss_and_gains_on_outlier_channels(void **state) {
    (void)state;
    enum { COLS = 96 };
    bench b;
    lq_scheme target = lq_scheme_int(3, 32, false);
    const lq_xform *awq = xform_named("awq");
    void *opts = defaults_of(awq);
    float s[COLS], ones[COLS];
    lq_xchoice c = {.loss = -1};
    bench_init(&b, COLS, COLS, 300, 30, &target, LQ_FIT_MINMAX);
    for (int j = 0; j < COLS; j++) s[j] = ones[j] = 1;
    assert_int_equal(awq->apply(NULL, opts, &b.xs, s, &c), LQ_OK);
    double loss = plain_loss(&b, s), before = plain_loss(&b, ones);
    assert_true(fabs(c.loss - loss) <= 1e-3 * loss && fabs(c.loss_before - before) <= 1e-3 * before);
    assert_true(c.loss < 0.7 * c.loss_before);
    lq_free(opts);
    bench_free(&b);
}

/* A block whose output gets worse from call to call, but for the fourth. */
typedef struct asked { int calls; bool nothing_first; float fourth[96]; } asked;
static lq_status fourth_is_best(lq_ctx *ctx, const lq_xsite *x, const float *s, const float *moment, double *loss) {
    asked *a = x->user;
    (void)ctx, (void)moment;
    if (!a->calls) a->nothing_first = !s;
    *loss = ++a->calls == 4 ? 1 : 10 + a->calls;
    if (a->calls == 4) memcpy(a->fourth, s, x->cols * sizeof *s);
    return LQ_OK;
}

static void awq_asked_for_the_block_takes_the_scales_with_the_best_output(void **state) {
    (void)state;
    enum { COLS = 96 };
    bench b;
    lq_scheme target = lq_scheme_int(3, 32, false);
    const lq_xform *awq = xform_named("awq");
    void *opts = defaults_of(awq);
    lq_optset sets[] = {{awq->opts, opts, NULL}, {0}};
    asked a = {0};
    float s[COLS];
    lq_xchoice c = {.loss = -1};
    assert_false(awq->runs_block(opts));
    assert_int_equal(lq_opts_set(NULL, sets, "awq-loss", "block"), LQ_OK);
    assert_true(awq->runs_block(opts));
    bench_init(&b, COLS, COLS, 300, 30, &target, LQ_FIT_MINMAX);
    b.xs.output_loss = fourth_is_best;
    b.xs.user = &a;
    for (int j = 0; j < COLS; j++) s[j] = 1;
    assert_int_equal(awq->apply(NULL, opts, &b.xs, s, &c), LQ_OK);
    assert_true(a.calls > 4 && a.nothing_first && c.loss_before == 11 && c.loss == 1);
    assert_memory_equal(s, a.fourth, sizeof s);
    lq_free(opts);
    bench_free(&b);
}

static double block_loss(const bench *b, const float *w, const float *q, uint32_t rows, uint32_t group) {
    double sum = 0;
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t c = 0; c < b->xs.cols; c++)
            for (uint32_t d = c / group * group; d < (c / group + 1) * group; d++) {
                size_t at = (size_t)r * b->xs.cols;
                sum += (double)(w[at + c] - q[at + c]) * (double)(w[at + d] - q[at + d]) * lq_gram_at(&b->stats.gram, c, d);
            }
    return sum;
}

static void the_clip_never_raises_the_error_of_a_group(void **state) {
    (void)state;
    enum { COLS = 96, GROUP = 32 };
    bench b;
    lq_scheme target = lq_scheme_int(3, GROUP, false);
    const lq_xform *awq = xform_named("awq");
    void *opts = defaults_of(awq);
    float ones[COLS], limit[70 * COLS / GROUP];
    lq_xchoice c = {.loss = -1};
    bench_init(&b, COLS, COLS, 300, 1, &target, LQ_FIT_MINMAX);
    for (int j = 0; j < COLS; j++) ones[j] = 1;
    for (size_t i = 0; i < sizeof limit / sizeof *limit; i++) limit[i] = INFINITY;
    assert_int_equal(awq->clip(NULL, opts, &b.xs, 0, ones, GROUP, limit, &c), LQ_OK);
    assert_true(c.groups == sizeof limit / sizeof *limit && c.cut > 0 && c.cut <= c.groups);
    size_t size = 70 * COLS;
    float *cut = LQ_NEWN(float, size), *q = LQ_NEWN(float, size);
    for (size_t i = 0; i < size; i++) cut[i] = fminf(fmaxf(b.w[0][i], -limit[i / GROUP]), limit[i / GROUP]);
    assert_int_equal(lq_xform_pseudo(NULL, &target, b.w[0], 70, COLS, NULL, LQ_FIT_MINMAX, NULL, q), LQ_OK);
    double before = block_loss(&b, b.w[0], q, 70, GROUP);
    assert_int_equal(lq_xform_pseudo(NULL, &target, cut, 70, COLS, NULL, LQ_FIT_MINMAX, NULL, q), LQ_OK);
    assert_true(block_loss(&b, b.w[0], q, 70, GROUP) < before);
    b.reader[0].makes_scores = true; /* q and k are not cut */
    c = (lq_xchoice){.loss = -1};
    assert_int_equal(awq->clip(NULL, opts, &b.xs, 0, ones, GROUP, limit, &c), LQ_OK);
    assert_true(c.groups == 0);
    lq_free(cut);
    lq_free(q);
    lq_free(opts);
    bench_free(&b);
}

/* Planted outliers: naive W8A8 suffers, smoothing repairs it, and alpha given by hand is used as given. */
static void smoothing_mends_planted_outliers(void **state) {
    (void)state;
    enum { COLS = 96 };
    const lq_xform *smooth = xform_named("smoothquant");
    for (int fixed = 0; fixed < 2; fixed++) {
        bench b;
        lq_scheme target = w8a8(fixed);
        void *opts = defaults_of(smooth);
        float s[COLS];
        lq_xchoice c = {.loss = -1};
        bench_init(&b, COLS, COLS, 300, 100, &target, LQ_FIT_MINMAX);
        for (int j = 0; j < COLS; j++) s[j] = 1;
        assert_int_equal(smooth->apply(NULL, opts, &b.xs, s, &c), LQ_OK);
        assert_true(c.loss < 0.3 * c.loss_before);
        for (int j = 0; j < COLS; j++) assert_true(s[j] == exp2f(rintf(log2f(s[j]))));
        lq_optset sets[] = {{smooth->opts, opts, NULL}, {0}};
        assert_int_equal(lq_opts_set(NULL, sets, "alpha", "1"), LQ_OK);
        assert_int_equal(lq_opts_set(NULL, sets, "no-pow2", NULL), LQ_OK);
        assert_int_equal(smooth->apply(NULL, opts, &b.xs, s, &c), LQ_OK);
        for (int j = 0; j < COLS; j++) assert_true(fabsf(s[j] / b.stats.absmax[j] - 1) < 1e-5f); /* flat activations */
        assert_int_equal(lq_opts_set(NULL, sets, "alpha", "0"), LQ_OK);
        assert_int_equal(smooth->apply(NULL, opts, &b.xs, s, &c), LQ_OK);
        for (int j = 0; j < COLS; j++) { /* flat columns */
            float most = 0;
            for (int i = 0; i < 2; i++)
                for (uint32_t r = 0; r < b.reader[i].rows; r++) most = fmaxf(most, fabsf(b.w[i][r * COLS + (uint32_t)j] * s[j]));
            assert_true(fabsf(most - 1) < 1e-5f);
        }
        lq_free(opts);
        bench_free(&b);
    }
}

static void channels_the_sample_never_reached_keep_their_scale(void **state) {
    (void)state;
    enum { COLS = 96 };
    for (const lq_xform *const *x = lq_xforms; *x; x++) {
        bench b;
        lq_scheme target = w8a8(false);
        void *opts = defaults_of(*x);
        float s[COLS];
        lq_xchoice c = {.loss = -1};
        bench_init(&b, COLS, COLS, 200, 30, &target, LQ_FIT_MINMAX);
        lq_stats_free(&b.stats);
        for (uint32_t t = 0; t < 200; t++) b.x[t * COLS + 17] = 0;
        assert_int_equal(lq_stats_init(NULL, &b.stats, LQ_NEED_ABSMAX | LQ_NEED_GRAM | LQ_NEED_SAMPLES, COLS), LQ_OK);
        assert_int_equal(lq_stats_add(NULL, &b.stats, b.x, 200), LQ_OK);
        for (int j = 0; j < COLS; j++) s[j] = 1;
        assert_int_equal((*x)->apply(NULL, opts, &b.xs, s, &c), LQ_OK);
        assert_true(s[17] == 1);
        lq_free(opts);
        bench_free(&b);
    }
}

static void every_transform_passes_on_a_failed_allocation(void **state) {
    (void)state;
    enum { COLS = 64 };
    for (const lq_xform *const *x = lq_xforms; *x; x++) {
        bench b;
        lq_scheme target = w8a8(false);
        void *opts = defaults_of(*x);
        float s[COLS];
        lq_status st = LQ_ERR_RESOURCE;
        bench_init(&b, COLS, COLS, 100, 30, &target, LQ_FIT_MINMAX);
        for (long n = 0; st; n += n < 40 ? 1 : 37) {
            lq_xchoice c = {.loss = -1};
            for (int j = 0; j < COLS; j++) s[j] = 1;
            lq_mem_fail_after(n);
            st = (*x)->apply(NULL, opts, &b.xs, s, &c);
            lq_mem_fail_after(-1);
            assert_true(st == LQ_OK || st == LQ_ERR_RESOURCE);
            assert_true(n < 5000);
        }
        lq_free(opts);
        bench_free(&b);
    }
}

static void samples_do_not_depend_on_how_tokens_arrive(void **state) {
    (void)state;
    enum { COLS = 3, N = 5000 };
    lq_stats a, b;
    float *x = random_inputs(2, N, COLS);
    assert_int_equal(lq_stats_init(NULL, &a, LQ_NEED_SAMPLES, COLS), LQ_OK);
    assert_int_equal(lq_stats_init(NULL, &b, LQ_NEED_SAMPLES, COLS), LQ_OK);
    assert_int_equal(lq_stats_add(NULL, &a, x, N), LQ_OK);
    for (uint32_t at = 0, step = 1; at < N; at += step, step = step * 2 + 1) {
        if (step > N - at) step = N - at;
        assert_int_equal(lq_stats_add(NULL, &b, x + (size_t)at * COLS, step), LQ_OK);
    }
    assert_true(a.n_samples == b.n_samples && a.n_samples >= LQ_SAMPLES / 2 && a.n_samples <= LQ_SAMPLES);
    assert_memory_equal(a.samples, b.samples, (size_t)a.n_samples * COLS * sizeof *x);
    for (uint32_t i = 0; i < a.n_samples; i++) assert_memory_equal(a.samples + (size_t)i * COLS, x + (size_t)i * a.stride * COLS, COLS * sizeof *x);
    lq_stats_free(&a);
    lq_stats_free(&b);
    lq_free(x);
}

/* ---- recipes ---- */

static void recipes_are_transforms_and_a_method(void **state) {
    (void)state;
    lq_ctx ctx = {0};
    lq_recipe r;
    lq_optset sets[LQ_RECIPE_SETS + 1] = {{0}};
    assert_int_equal(lq_recipe_parse(&ctx, "awq,gptq:damp-percent=0.02", &r), LQ_OK);
    assert_true(r.n_xforms == 1 && !strcmp(r.xform[0].x->name, "awq") && !strcmp(r.method->name, "gptq"));
    assert_string_equal(lq_recipe_type(&r), "int*-asym");
    assert_int_equal(lq_recipe_sets(&r, sets), 2);
    assert_int_equal(lq_opts_set(&ctx, sets, "clip", "on"), LQ_OK); /* flags of every element are accepted */
    assert_int_equal(lq_opts_set(&ctx, sets, "block-size", "64"), LQ_OK);
    json_t *v = lq_recipe_json(&r);
    assert_string_equal(json_string_value(json_object_get(json_object_get(json_array_get(v, 0), "options"), "clip")), "on");
    assert_true(json_real_value(json_object_get(json_object_get(json_array_get(v, 1), "options"), "damp-percent")) == 0.02);
    json_decref(v);
    lq_recipe_free(&r);
    assert_int_equal(lq_recipe_parse(&ctx, "smoothquant:alpha=0.6", &r), LQ_OK);
    assert_true(r.n_xforms == 1 && !strcmp(r.method->name, "rtn"));
    assert_string_equal(lq_recipe_type(&r), "W8A8");
    assert_int_equal(lq_recipe_xform_needs(&r), LQ_NEED_ABSMAX);
    lq_recipe_free(&r);
    static const char *const wrong[] = {"gptq,awq", "rtn,gptq", "awq,nothing", "nothing,rtn", "awq:beta=1", "awq:clip=2", "awq,,rtn", "awq,awq,awq,awq,awq,rtn", "gptq,"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) assert_int_equal(lq_recipe_parse(&ctx, wrong[i], &r), LQ_ERR_USAGE);
    assert_true(lq_recipe_is("awq,gptq") && lq_recipe_is("gptq:block-size=3") && !lq_recipe_is("list"));
    for (const lq_xform *const *x = lq_xforms; *x; x++) {
        assert_true((*x)->what && (*x)->paper && (*x)->apply && (*x)->wants);
        for (const lq_opt *o = (*x)->opts; o && o->name; o++) assert_true(o->offset < (*x)->opts_size && o->help);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(folding_keeps_the_function_of_every_architecture),
        cmocka_unit_test(folding_powers_of_two_changes_no_bit),
        cmocka_unit_test(what_is_kept_in_a_short_type_is_never_rounded_by_a_fold),
        cmocka_unit_test(sites_follow_from_the_tables),
        cmocka_unit_test(every_missing_site_has_a_reason_in_the_table),
        cmocka_unit_test(every_transform_is_deterministic_and_never_loses_by_its_own_measure),
        cmocka_unit_test(awq_reports_the_true_loss_and_gains_on_outlier_channels),
        cmocka_unit_test(awq_asked_for_the_block_takes_the_scales_with_the_best_output),
        cmocka_unit_test(the_clip_never_raises_the_error_of_a_group),
        cmocka_unit_test(smoothing_mends_planted_outliers),
        cmocka_unit_test(channels_the_sample_never_reached_keep_their_scale),
        cmocka_unit_test(every_transform_passes_on_a_failed_allocation),
        cmocka_unit_test(samples_do_not_depend_on_how_tokens_arrive),
        cmocka_unit_test(recipes_are_transforms_and_a_method),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
