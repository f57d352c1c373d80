/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A block's first pass: run in floats on the current stream, it shows every stage's inputs to the recipe's transforms; what they
 * choose is folded when the pass is over. Folds change no stage's input but their own, so choices see what they would see if
 * each fold were carried out at once. The second pass (stream.c) decides codes on the folded weights. */
#include "quant/road.h"

#include "calib/fold.h"
#include "core/thread.h"
#include "quant/block_loss.h"

#include <math.h>
#include <string.h>

enum { READERS = sizeof((lq_stage *)0)->lin / sizeof *((lq_stage *)0)->lin, SLICE = 64 };

typedef struct decision {       /* of one visited stage: carried out after the pass */
    const lq_site *site;        /* of its input; NULL: nothing is folded there */
    int32_t expert;             /* whose site it is; -1 */
    lq_stage stage;
    const float *s;             /* [site->scales]; NULL: not looked at */
    float *own;                 /* s, where this stage decided it: a norm before experts is decided at its router */
    struct { float *limit; uint32_t group; } cut[READERS]; /* limit[rows][cols / group] on |W diag(s)|; NULL: none */
} decision;

typedef struct pass {
    road *r;
    uint32_t block;
    const lq_xform *x;
    const void *opts;
    lq_site site[LQ_MAX_SITES];
    uint32_t n_sites;
    decision *made;             /* [room] */
    uint32_t n_made, room;
    lq_block_loss *judge;       /* of the block as this pass finds it; NULL: not asked for yet */
} pass;

lq_status lq_xforms_accept(road *r) {
    const lq_recipe *rec = &r->run->recipe;
    const lq_arch *a = r->model->arch;
    for (uint32_t i = 0; i < rec->n_xforms; i++) {
        const lq_xform *x = rec->xform[i].x;
        const char *why = NULL;
        bool any = false;
        if (x->accept) LQ_TRY(x->accept(r->ctx, rec->xform[i].opts));
        if (x->runs_block && x->runs_block(rec->xform[i].opts) && r->run->opts.stats)
            return lq_fail(r->ctx, LQ_ERR_USAGE, "--stats: %s is to judge by the block's output, which a file of statistics cannot show", x->name);
        for (int k = 0; k < LQ_SITE_KINDS; k++) {
            if (!x->wants(rec->xform[i].opts, (lq_site_kind)k)) continue;
            const char *no = lq_arch_no_site(a, &r->model->par, (lq_site_kind)k);
            if (!no) any = true;
            else if (k == LQ_SITE_NORM || !why) why = no;
        }
        if (!any) return lq_fail(r->ctx, LQ_ERR_UNSUPPORTED, "%s on %s: there is nothing to fold: %s", x->name, a->name, why ? why : "no site is asked for");
        const char *no = x->wants(rec->xform[i].opts, LQ_SITE_NORM) ? lq_arch_no_site(a, &r->model->par, LQ_SITE_NORM) : NULL;
        if (no) lq_log(r->ctx, LQ_LOG_WARN, "%s on %s: no fold of norms: %s", x->name, a->name, no);
    }
    return LQ_OK;
}

/* A search rounds to nearest on the grid that the plan chose. */
lq_status lq_xforms_check(road *r) {
    const lq_recipe *rec = &r->run->recipe;
    for (uint32_t i = 0; i < rec->n_xforms; i++) {
        if (!(lq_xform_needs(rec->xform[i].x, rec->xform[i].opts) & (LQ_NEED_GRAM | LQ_NEED_SAMPLES))) continue;
        for (size_t k = 0; k < r->model->cat.n; k++) {
            const lq_row *row = &r->model->cat.rows[k];
            if (!row->quantize || row->slot.block < 0) continue;
            lq_status st = lq_grid_accept(r->ctx, &row->scheme, lq_row_cols(row));
            if (st) return lq_note(r->ctx, st, "%s searches its scales by rounding %s", rec->xform[i].x->name, row->name);
        }
    }
    return LQ_OK;
}

static lq_status settle(lq_ctx *ctx, const lq_xsite *x, bool pow2, float *s) {
    const pass *p = x->user;
    return lq_fold_settle(ctx, p->r->model, (int32_t)p->block, x->expert, x->site, pow2, s);
}

static void name_site(lq_xsite *x, const pass *p, const lq_stage *stage) {
    size_t n = (size_t)snprintf(x->name, sizeof x->name, "block %u", p->block);
    if (stage->expert >= 0) n += (size_t)snprintf(x->name + n, sizeof x->name - n, " expert %d", stage->expert);
    n += (size_t)snprintf(x->name + n, sizeof x->name - n, " %s ->", x->site ? lq_role_names[x->site->producer] : "");
    for (uint32_t i = 0; i < (x->site ? x->site->n : stage->n) && n < sizeof x->name; i++)
        n += (size_t)snprintf(x->name + n, sizeof x->name - n, " %s", lq_role_names[x->site ? (uint32_t)x->site->reader[i] : stage->lin[i]->slot.role]);
}

static lq_xreader reader_of(const pass *p, const lq_linear *lin) {
    lq_xreader out = {.name = lin->row->name, .w = lin->w, .rows = lin->rows, .target = lin->row->quantize ? &lin->row->scheme : NULL};
    out.makes_scores = lq_arch_makes_scores(p->r->model->arch, &p->r->model->par, (lq_role)lin->slot.role);
    return out;
}

/* All linears that the scales of a site multiply. */
static lq_status site_linears(pass *p, const lq_site *s, int32_t expert, lq_linear ***out, uint32_t *n) {
    const lq_layer *l = &p->r->model->layers[p->block];
    size_t most = (size_t)s->n * (l->n_experts ? l->n_experts : 1);
    *n = 0;
    if (!(*out = LQ_NEWN(lq_linear *, most))) return lq_oom(p->r->ctx, most * sizeof **out);
    for (uint32_t i = 0; i < s->n; i++) {
        bool every = lq_role_is_expert(s->reader[i]) && expert < 0;
        for (int32_t e = every ? 0 : expert; e < (every ? (int32_t)l->n_experts : expert + 1); e++) (*out)[(*n)++] = lq_layer_linear(l, s->reader[i], e);
    }
    return LQ_OK;
}

static lq_status site_readers(pass *p, const lq_site *s, int32_t expert, lq_xreader **out, uint32_t *n) {
    lq_linear **lin = NULL;
    *out = NULL;
    LQ_TRY(site_linears(p, s, expert, &lin, n));
    *out = LQ_NEWN(lq_xreader, *n + 1);
    for (uint32_t i = 0; i < *n && *out; i++) (*out)[i] = reader_of(p, lin[i]);
    lq_free(lin);
    return *out ? LQ_OK : lq_oom(p->r->ctx, (*n + 1) * sizeof **out);
}

/* Rounded weights stand in for those of a linear while the block runs. */
static lq_status stand_in(const lq_xsite *x, const float *s, const float *moment, lq_linear *lin, void **kept) {
    float *w = LQ_NEWN(float, (size_t)lin->rows * lin->cols);
    const pass *p = x->user;
    lq_status st = w ? lq_xform_pseudo(p->r->ctx, &lin->row->scheme, lin->w, lin->rows, lin->cols, s, x->fit, moment, w) : lq_oom(p->r->ctx, (size_t)lin->rows * lin->cols * 4);
    if (st) return lq_free(w), st;
    *kept = lin->w;
    lin->w = w;
    return LQ_OK;
}

static lq_status output_loss(lq_ctx *ctx, const lq_xsite *x, const float *s, const float *moment, double *loss) {
    pass *p = x->user;
    lq_linear **lin = NULL;
    void **kept = NULL;
    uint32_t n = 0;
    if (!p->judge) LQ_TRY(lq_block_loss_new(p->r, p->block, &p->judge));
    lq_status st = site_linears(p, x->site, x->expert, &lin, &n);
    if (!st && !(kept = LQ_NEWN(void *, n + 1))) st = lq_oom(ctx, n * sizeof *kept);
    for (uint32_t i = 0; i < n && !st; i++)
        if (lin[i]->row->quantize) st = stand_in(x, s, moment, lin[i], &kept[i]);
    if (!st) st = lq_block_loss_run(p->r, p->judge, loss);
    for (uint32_t i = 0; kept && i < n; i++) {
        if (!kept[i]) continue;
        lq_free(lin[i]->w);
        lin[i]->w = kept[i];
    }
    lq_free(kept);
    lq_free(lin);
    return st;
}

static lq_status tell(pass *p, const lq_xsite *x, const lq_xchoice *c) {
    json_t *e = json_pack("{s:s, s:s, s:s}", "site", x->name, "transform", p->x->name, "chose", c->chose);
    bool ok = e;
    if (ok && c->loss >= 0) ok = !json_object_set_new(e, "loss", json_real(c->loss)) && !json_object_set_new(e, "loss_before", json_real(c->loss_before));
    if (ok && c->groups) ok = !json_object_set_new(e, "groups", json_integer((json_int_t)c->groups)) && !json_object_set_new(e, "groups_cut", json_integer((json_int_t)c->cut));
    lq_status st = ok ? lq_unit_add_choice(p->r, e) : lq_oom(p->r->ctx, 256);
    json_decref(e);
    lq_log(p->r->ctx, LQ_LOG_DEBUG, "%s: %s %s, loss %.5g (before %.5g)", x->name, p->x->name, c->chose, c->loss, c->loss_before);
    return st;
}

/* A stream of the unquantized model runs on the folded block: it must still compute what the model does. */
static bool clips(const pass *p) { return p->x->clip && !(p->r->needs & LQ_NEED_CROSS); }

/* Cuts of the linears of a stage, whose inputs s will divide. */
static lq_status bound(pass *p, lq_xsite x, const lq_stage *stage, const float *s, decision *d, lq_xchoice *c) {
    lq_xreader reader[READERS];
    x.reader = reader;
    x.n = stage->n;
    for (uint32_t i = 0; i < stage->n; i++) reader[i] = reader_of(p, stage->lin[i]);
    for (uint32_t i = 0; i < stage->n; i++) {
        const lq_scheme *to = reader[i].target;
        if (!to || !to->scale.dtype) continue;
        uint32_t group = to->scale.tile_r == 1 && to->scale.tile_c ? to->scale.tile_c : x.cols;
        if (x.cols % group) continue;
        size_t n = (size_t)reader[i].rows * (x.cols / group);
        d->cut[i].group = group;
        if (!(d->cut[i].limit = LQ_NEWN(float, n))) return lq_oom(p->r->ctx, n * 4);
        for (size_t k = 0; k < n; k++) d->cut[i].limit[k] = INFINITY;
        LQ_TRY(p->x->clip(p->r->ctx, p->opts, &x, i, s, group, d->cut[i].limit, c));
    }
    return LQ_OK;
}

/* The site whose readers a stage holds, and whether an earlier stage of it decided its scales. */
static const lq_site *site_at(const pass *p, const lq_stage *stage, int32_t *expert, const float **s) {
    const lq_site *found = NULL;
    *s = NULL;
    for (uint32_t i = 0; i < p->n_sites; i++)
        if (p->x->wants(p->opts, p->site[i].kind) && lq_site_reads(&p->site[i], (lq_role)stage->lin[0]->slot.role)) found = &p->site[i];
    *expert = found && lq_role_is_expert(found->producer) ? stage->expert : -1;
    for (uint32_t i = 0; i < p->n_made && found; i++)
        if (p->made[i].site == found && p->made[i].expert == *expert && p->made[i].own) *s = p->made[i].own;
    return found;
}

static lq_status decide(pass *p, lq_xsite *x, const lq_stage *stage, decision *d) {
    lq_xchoice c = {.chose = "", .loss = -1, .loss_before = -1};
    lq_ctx *ctx = p->r->ctx;
    if (!d->s) {
        lq_xreader *reader = NULL;
        if (!(d->own = LQ_NEWN(float, x->scales))) return lq_oom(ctx, x->scales * 4);
        for (uint32_t i = 0; i < x->scales; i++) d->own[i] = 1;
        d->s = d->own;
        lq_status st = x->site ? site_readers(p, x->site, d->expert, &reader, &x->n) : LQ_OK;
        x->reader = reader;
        if (!st && x->site) st = p->x->apply(ctx, p->opts, x, d->own, &c);
        lq_free(reader);
        LQ_TRY(st);
    }
    if (clips(p)) LQ_TRY(bound(p, *x, stage, d->s, d, &c));
    return c.chose[0] || c.groups ? tell(p, x, &c) : LQ_OK;
}

static lq_status on_stage(void *user, int32_t block, const lq_stage *stage, const lq_stats *stats) {
    pass *p = user;
    (void)block;
    if (p->n_made == p->room) return lq_fail(p->r->ctx, LQ_ERR_INTERNAL, "more than %u stages", p->room);
    decision *d = &p->made[p->n_made];
    lq_xsite x = {.cols = stage->cols, .scales = stage->cols, .stats = stats, .settle = settle, .user = p};
    if (!p->r->stats.n) x.output_loss = output_loss;
    const lq_method *m = p->r->plan.method;
    *d = (decision){.stage = *stage};
    d->site = x.site = site_at(p, stage, &d->expert, &d->s);
    p->n_made++;
    if (!stats->n || (!x.site && !clips(p))) return LQ_OK;
    if (x.site) x.scales = x.site->scales;
    x.expert = d->expert;
    x.fit = m->searches && !m->searches(p->r->run->recipe.opts) ? LQ_FIT_MINMAX : LQ_FIT_SEARCH;
    name_site(&x, p, stage);
    uint32_t *scale_of = LQ_NEWN(uint32_t, x.cols);
    if (!scale_of) return lq_oom(p->r->ctx, (size_t)x.cols * 4);
    for (uint32_t i = 0; i < x.cols; i++) scale_of[i] = x.site ? lq_site_scale(&p->r->model->par, x.site, i) : i;
    x.scale_of = scale_of;
    lq_status st = decide(p, &x, stage, d);
    lq_free(scale_of);
    return st ? lq_note(p->r->ctx, st, "%s", x.name) : LQ_OK;
}

typedef struct cut { const lq_linear *lin; const float *limit; uint32_t group; } cut;
static void cut_slice(void *arg, size_t i) {
    const cut *a = arg;
    uint32_t cols = a->lin->cols, per = cols / a->group;
    float *w = a->lin->w;
    for (uint32_t r = (uint32_t)i * SLICE; r < (i + 1) * SLICE && r < a->lin->rows; r++)
        for (uint32_t c = 0; c < cols; c++) {
            float *v = &w[(size_t)r * cols + c], most = a->limit[(size_t)r * per + c / a->group];
            *v = *v > most ? most : *v < -most ? -most : *v;
        }
}

/* In the order of the stages, columns and cuts before rows: a linear's columns are scaled and its weights cut before a later fold
 * divides its rows. */
static lq_status carry_out(pass *p) {
    for (const decision *d = p->made; d < p->made + p->n_made; d++) {
        if (d->site && d->own) LQ_TRY(lq_fold_apply(p->r->ctx, p->r->model, (int32_t)p->block, d->expert, d->site, d->own));
        for (uint32_t i = 0; i < d->stage.n; i++)
            if (d->cut[i].limit) lq_parallel_for((d->stage.lin[i]->rows + SLICE - 1) / SLICE, cut_slice, &(cut){d->stage.lin[i], d->cut[i].limit, d->cut[i].group});
        if (d->site && d->s && p->r->stats.n) LQ_TRY(lq_stored_divide(p->r, &d->stage, d->site, d->s));
    }
    return LQ_OK;
}

static lq_status run_pass(pass *p) {
    road *r = p->r;
    lq_stage_hook hook = {.needs = lq_xform_needs(p->x, p->opts), .on_stage = on_stage, .user = p};
    p->n_sites = lq_arch_sites(r->model->arch, &r->model->par, p->block, p->site);
    p->room = LQ_MAX_OPS + 2 * r->model->par.n_experts;
    if (!(p->made = LQ_NEWN(decision, p->room))) return lq_oom(r->ctx, p->room * sizeof *p->made);
    lq_status st = r->stats.n ? lq_stored_block(r, p->block, &hook)
                              : lq_block_look(r->ctx, r->model, (int32_t)p->block, r->resid, r->rows.len, &hook, r->cache_budget / 2, r->run->opts.work_dir);
    return st ? st : carry_out(p);
}

static void pass_free(pass *p) {
    for (uint32_t k = 0; k < p->n_made; k++) {
        lq_free(p->made[k].own);
        for (uint32_t c = 0; c < p->made[k].stage.n; c++) lq_free(p->made[k].cut[c].limit);
    }
    lq_free(p->made);
    lq_block_loss_free(&p->judge);
}

static lq_status mark(void *user, const lq_row *row) {
    const road *r = user;
    r->changed[row - r->model->cat.rows] = 1;
    return LQ_OK;
}

static lq_status mark_kept(const pass *p) {
    for (const decision *d = p->made; d < p->made + p->n_made; d++)
        if (d->site && d->own) LQ_TRY(lq_fold_kept(p->r->ctx, p->r->model, (int32_t)p->block, d->expert, d->site, mark, p->r));
    return LQ_OK;
}

lq_status lq_xforms_block(road *r, uint32_t b) {
    const lq_recipe *rec = &r->run->recipe;
    const lq_catalog *cat = &r->model->cat;
    lq_status st = LQ_OK;
    if (!rec->n_xforms) return LQ_OK;
    if (!r->changed && !(r->changed = lq_alloc(cat->n + 1))) return lq_oom(r->ctx, cat->n);
    for (uint32_t i = 0; i < rec->n_xforms && !st; i++) {
        pass p = {.r = r, .block = b, .x = rec->xform[i].x, .opts = rec->xform[i].opts};
        st = run_pass(&p);
        if (!st) st = mark_kept(&p);
        if (st) lq_note(r->ctx, st, "%s", p.x->name);
        pass_free(&p);
    }
    for (size_t i = 0; i < cat->n && !st; i++)
        if (r->changed[i] && cat->rows[i].slot.block == (int32_t)b) st = lq_unit_add_kept(r, &cat->rows[i]);
    return st;
}
