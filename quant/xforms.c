/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A block's first pass: run in floats on the current stream, it shows every stage's inputs to the recipe's transforms; what they
 * choose is folded when the pass is over. Folds change no stage's input but their own, so choices see what they would see if
 * each fold were carried out at once. The second pass (stream.c) decides codes on the folded weights. */
#include "quant/road.h"

#include "calib/fold.h"
#include "core/thread.h"

#include <math.h>
#include <string.h>

enum { READERS = sizeof((lq_stage *)0)->lin / sizeof *((lq_stage *)0)->lin, SLICE = 64 };

typedef struct decision {       /* of one stage: carried out after the pass */
    const lq_site *site;        /* NULL: nothing is folded here */
    float *s;                   /* [site->scales] */
    uint32_t n;
    struct { lq_linear *lin; float *limit; uint32_t group; } cut[READERS]; /* limit[rows][cols / group] on |W diag(s)|; NULL: none */
} decision;

typedef struct pass {
    road *r;
    uint32_t block;
    const lq_xform *x;
    const void *opts;
    lq_site site[LQ_MAX_SITES];
    uint32_t n_sites;
    decision made[LQ_MAX_OPS];
    uint32_t n_made;
} pass;

lq_status lq_xforms_accept(road *r) {
    const lq_recipe *rec = &r->run->recipe;
    const lq_arch *a = r->model->arch;
    for (uint32_t i = 0; i < rec->n_xforms; i++) {
        const lq_xform *x = rec->xform[i].x;
        const char *why = NULL;
        bool any = false;
        if (x->accept) LQ_TRY(x->accept(r->ctx, rec->xform[i].opts));
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

static void settle(const lq_xsite *x, bool pow2, float *s) {
    const pass *p = x->user;
    if (x->site) lq_fold_settle(p->r->model, (int32_t)p->block, x->site, pow2, s);
}

static void name_site(lq_xsite *x, uint32_t block, const lq_stage *stage) {
    size_t n = (size_t)snprintf(x->name, sizeof x->name, "block %u %s ->", block, x->site ? lq_role_names[x->site->producer] : "");
    for (uint32_t i = 0; i < stage->n && n < sizeof x->name; i++) n += (size_t)snprintf(x->name + n, sizeof x->name - n, " %s", lq_role_names[stage->lin[i]->slot.role]);
}

static void readers_of(const pass *p, const lq_stage *stage, lq_xreader *out) {
    for (uint32_t i = 0; i < stage->n; i++) {
        const lq_linear *lin = stage->lin[i];
        out[i] = (lq_xreader){.name = lin->row->name, .w = lin->w, .rows = lin->rows, .target = lin->row->quantize ? &lin->row->scheme : NULL};
        out[i].makes_scores = lq_arch_makes_scores(p->r->model->arch, &p->r->model->par, (lq_role)lin->slot.role);
    }
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

static lq_status bound(pass *p, const lq_xsite *x, const float *s, decision *d, lq_xchoice *c) {
    for (uint32_t i = 0; i < x->n; i++) {
        const lq_xreader *in = &x->reader[i];
        if (!in->target || !in->target->scale.dtype) continue;
        uint32_t group = in->target->scale.tile_r == 1 && in->target->scale.tile_c ? in->target->scale.tile_c : x->cols;
        if (x->cols % group) continue;
        size_t n = (size_t)in->rows * (x->cols / group);
        d->cut[i].group = group;
        if (!(d->cut[i].limit = LQ_NEWN(float, n))) return lq_oom(p->r->ctx, n * 4);
        for (size_t k = 0; k < n; k++) d->cut[i].limit[k] = INFINITY;
        LQ_TRY(p->x->clip(p->r->ctx, p->opts, x, i, s, group, d->cut[i].limit, c));
    }
    return LQ_OK;
}

static lq_status on_stage(void *user, int32_t block, const lq_stage *stage, const lq_stats *stats) {
    pass *p = user;
    decision *d = &p->made[p->n_made++];
    lq_xreader reader[READERS];
    lq_xsite x = {.cols = stage->cols, .scales = stage->cols, .reader = reader, .n = stage->n, .stats = stats, .settle = settle, .user = p};
    lq_xchoice c = {.chose = "", .loss = -1, .loss_before = -1};
    const lq_method *m = p->r->plan.method;
    for (uint32_t i = 0; i < p->n_sites; i++)
        if (p->site[i].stage == (int32_t)stage->index && p->x->wants(p->opts, p->site[i].kind)) x.site = &p->site[i];
    *d = (decision){.site = x.site, .n = stage->n};
    for (uint32_t i = 0; i < stage->n; i++) d->cut[i].lin = stage->lin[i];
    if (!stats->n || (!x.site && !p->x->clip)) return LQ_OK;
    if (x.site) x.scales = x.site->scales;
    x.fit = m->searches && m->searches(p->r->run->recipe.opts) ? LQ_FIT_SEARCH : LQ_FIT_MINMAX;
    readers_of(p, stage, reader);
    name_site(&x, (uint32_t)block, stage);
    uint32_t *scale_of = LQ_NEWN(uint32_t, x.cols);
    d->s = LQ_NEWN(float, x.scales);
    lq_status st = scale_of && d->s ? LQ_OK : lq_oom(p->r->ctx, (size_t)x.cols * 8);
    for (uint32_t i = 0; !st && i < x.cols; i++) scale_of[i] = x.site ? lq_site_scale(&p->r->model->par, x.site, i) : i;
    for (uint32_t i = 0; !st && i < x.scales; i++) d->s[i] = 1;
    x.scale_of = scale_of;
    if (!st && x.site) st = p->x->apply(p->r->ctx, p->opts, &x, d->s, &c);
    if (!st && p->x->clip) st = bound(p, &x, d->s, d, &c);
    if (!st && (c.chose[0] || c.groups)) st = tell(p, &x, &c);
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

/* In the order of the stages: a linear's columns are scaled and its weights cut before a later fold divides its rows. */
static void carry_out(pass *p) {
    for (const decision *d = p->made; d < p->made + p->n_made; d++) {
        if (d->site && d->s) lq_fold_apply(p->r->model, (int32_t)p->block, d->site, d->s);
        for (uint32_t i = 0; i < d->n; i++)
            if (d->cut[i].limit) lq_parallel_for((d->cut[i].lin->rows + SLICE - 1) / SLICE, cut_slice, &(cut){d->cut[i].lin, d->cut[i].limit, d->cut[i].group});
    }
}

static lq_status run_pass(pass *p) {
    road *r = p->r;
    lq_stage_hook hook = {.needs = lq_xform_needs(p->x, p->opts), .on_stage = on_stage, .user = p};
    p->n_sites = lq_arch_sites(r->model->arch, &r->model->par, p->site);
    lq_status st = lq_block_look(r->ctx, r->model, (int32_t)p->block, r->resid, r->rows.len, &hook, r->cache_budget / 2, r->run->opts.work_dir);
    if (!st) carry_out(p);
    return st;
}

static bool note_rows(const pass *p, const lq_row **rows, uint32_t *n, uint32_t max) {
    for (const decision *d = p->made; d < p->made + p->n_made; d++) {
        const lq_row *more[LQ_FOLD_ROWS];
        uint32_t found = d->site && d->s ? lq_fold_kept(p->r->model, (int32_t)p->block, d->site, more) : 0;
        for (uint32_t i = 0; i < found; i++) {
            uint32_t k = 0;
            while (k < *n && rows[k] != more[i]) k++;
            if (k == max) return false;
            if (k == *n) rows[(*n)++] = more[i];
        }
    }
    return true;
}

lq_status lq_xforms_block(road *r, uint32_t b) {
    enum { MAX_ROWS = 256 };
    const lq_recipe *rec = &r->run->recipe;
    const lq_row *rows[MAX_ROWS];
    uint32_t n = 0;
    lq_status st = LQ_OK;
    for (uint32_t i = 0; i < rec->n_xforms && !st; i++) {
        pass p = {.r = r, .block = b, .x = rec->xform[i].x, .opts = rec->xform[i].opts};
        st = run_pass(&p);
        if (!st && !note_rows(&p, rows, &n, MAX_ROWS)) st = lq_fail(r->ctx, LQ_ERR_INTERNAL, "block %u: more than %d tensors are folded", b, MAX_ROWS);
        for (uint32_t k = 0; k < p.n_made; k++) {
            lq_free(p.made[k].s);
            for (uint32_t c = 0; c < p.made[k].n; c++) lq_free(p.made[k].cut[c].limit);
        }
        if (st) lq_note(r->ctx, st, "%s", rec->xform[i].x->name);
    }
    for (uint32_t i = 0; i < n && !st; i++) st = lq_unit_add_kept(r, rows[i]);
    return st;
}
