/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The loop over blocks (or, for data-free methods, over linears) that decides every code. */
#include "quant/road.h"

#include "calib/act.h"
#include "calib/fold.h"
#include "core/thread.h"
#include "quant/gather.h"
#include "quant/target.h"

struct decode { const lq_kernels *k; const lq_qtensor *q; float *w; };
static void decode_slice(void *arg, size_t i) {
    struct decode *d = arg;
    uint32_t r0 = (uint32_t)i * 32, nr = d->q->rows - r0 < 32 ? d->q->rows - r0 : 32;
    d->k->dequant(d->q, r0, nr, d->w + (size_t)r0 * d->q->cols);
}

/* The rest of the block runs on the quantized weights, and on the codes themselves where activations are rounded with them.
 * Takes q over. */
static lq_status take_place(road *r, lq_linear *lin, float *w, lq_qtensor *q) {
    struct decode d = {r->model->k, q, w};
    lq_qtensor *home = lin && q->sch.act.kind ? lq_arena_alloc(q->mem, sizeof *home) : NULL;
    if (!lin || !q->sch.act.kind) {
        lq_parallel_for((q->rows + 31) / 32, decode_slice, &d);
        lq_qtensor_free(q);
        return LQ_OK;
    }
    if (!home) return lq_qtensor_free(q), lq_oom(r->ctx, sizeof *home);
    *home = *q;
    lin->q = home; /* freed with the block */
    return LQ_OK;
}

/* The step of static activations: the largest |x| calibration saw, outside the columns kept apart. */
static float static_step(const lq_qtensor *q, const lq_stats *stats) {
    float max = 0;
    for (uint32_t c = 0, i = 0; stats && stats->absmax && c < q->cols; c++) {
        bool apart = i < q->outlier_cols.n && q->outlier_cols.idx[i] == c;
        i += apart;
        if (!apart && stats->absmax[c] > max) max = stats->absmax[c];
    }
    return max > 0 ? max / lq_act_top(q->sch.act.dtype) : 1;
}

/* What the linear should aim at now that its input is quantized. */
static lq_status correct_target(road *r, lq_weights *in, const lq_stats *stats, float **target) {
    lq_target info;
    *target = LQ_NEWN(float, (size_t)in->rows * in->cols);
    if (!*target) return lq_oom(r->ctx, (size_t)in->rows * in->cols * 4);
    LQ_TRY(lq_target_correct(r->ctx, in, stats, *target, &info));
    in->w = *target;
    lq_log(r->ctx, LQ_LOG_DEBUG, "%s: target correction alpha %g, damping %g, held-out loss %+.4g", in->name, info.alpha, info.damp, info.held_after);
    return LQ_OK;
}

static lq_status quantize_by(road *r, const lq_method *m, const void *opts, const lq_row *row, lq_linear *lin, float *w, const lq_stats *stats) {
    lq_weights in = {.slot = row->slot, .name = row->name, .rows = lq_row_rows(row), .cols = lq_row_cols(row), .w = w, .fuse_absmax = r->fuse_absmax};
    lq_outcome o = {.method = m->name, .err_h = -1, .err_h_rtn = -1, .err_w = -1, .damp = -1};
    lq_qtensor q = {0};
    float *target = NULL;
    LQ_TRY(lq_check_cancel(r->ctx));
    float *fisher = NULL;
    lq_status st = lq_fisher_read(r, row, &fisher);
    in.fisher = fisher;
    if (!st && stats && stats->cross) st = correct_target(r, &in, stats, &target);
    if (!st) st = m->quantize(r->ctx, opts, &in, &row->scheme, stats, &q, &o);
    lq_free(fisher);
    lq_free(target);
    if (st) return lq_note(r->ctx, st, "%s", row->name);
    q.slot = row->slot;
    o.tokens = stats ? stats->n : 0;
    o.expert_tokens = stats && lq_role_is_expert((lq_role)row->slot.role) ? (int64_t)stats->routed : -1;
    if (q.sch.act.kind == LQ_ACT_STATIC) q.act_scale = static_step(&q, stats);
    st = lq_unit_add(r, row, &q, &o);
    if (st) return lq_qtensor_free(&q), st;
    LQ_TRY(take_place(r, lin, w, &q));
    if (o.fallback[0]) lq_log(r->ctx, LQ_LOG_WARN, "%s: fell back to %s: %s", row->name, o.method, o.fallback);
    lq_log(r->ctx, LQ_LOG_DEBUG, "%s: %s rel_err %.5f (rtn %.5f) damp %.3g", row->name, o.method, o.err_h, o.err_h_rtn, o.damp);
    return LQ_OK;
}

static lq_status quantize_linear(road *r, const lq_row *row, lq_linear *lin, float *w, const lq_stats *stats) {
    return quantize_by(r, r->plan.method, r->run->recipe.opts, row, lin, w, stats);
}

static double row_cost(const lq_row *row) { return row->quantize ? (double)lq_row_elems(row) : 0; }

static lq_status data_free(road *r) {
    for (size_t i = 0; i < r->model->cat.n; i++) {
        const lq_row *row = &r->model->cat.rows[i];
        if (!row->quantize) continue;
        if (!lq_job_has(&r->job, (uint32_t)i)) {
            float *w = lq_calloc(lq_row_elems(row), 4);
            lq_status st = w ? lq_model_read_f32(r->ctx, r->model, row, w) : lq_oom(r->ctx, 4 * lq_row_elems(row));
            const lq_stats *stats = NULL;
            if (!st) st = lq_stored_stats(r, row, &stats);
            if (!st) st = lq_fuse_read(r, row, &r->fuse_absmax);
            if (!st) st = quantize_linear(r, row, NULL, w, stats);
            lq_free(w);
            LQ_TRY(st);
            LQ_TRY(lq_unit_finish(r, (uint32_t)i));
        }
        lq_progress_step(&r->bar, row_cost(row), "%s", row->name);
    }
    return LQ_OK;
}

static lq_status on_stage(void *user, int32_t block, const lq_stage *stage, const lq_stats *stats) {
    road *r = user;
    float fuse[sizeof stage->lin / sizeof *stage->lin];
    (void)block;
    for (uint32_t i = 0; i < stage->n; i++) fuse[i] = lq_fuse_stage(stage, i);
    for (uint32_t i = 0; i < stage->n; i++) {
        r->fuse_absmax = fuse[i];
        if (stage->lin[i]->row->quantize) LQ_TRY(quantize_linear(r, stage->lin[i]->row, stage->lin[i], stage->lin[i]->w, stats));
    }
    r->fuse_absmax = 0;
    return LQ_OK;
}

/* A finished block of an interrupted run: its codes take the place of the weights, only the forward is run again. */
static lq_status replay_linear(road *r, json_t *entry, const void *p, size_t n) {
    (void)entry;
    lq_qtensor q;
    LQ_TRY(lq_qtensor_decode(r->ctx, p, n, &q));
    lq_layer *layer = q.slot.block >= 0 && (uint32_t)q.slot.block < r->model->par.n_layers ? &r->model->layers[q.slot.block] : &r->model->outer;
    bool known = q.slot.role < LQ_R_N && (!lq_role_is_expert((lq_role)q.slot.role) || (q.slot.expert >= 0 && (uint32_t)q.slot.expert < layer->n_experts));
    lq_linear *lin = known ? lq_layer_linear(layer, q.slot.role, q.slot.expert) : NULL;
    if (lin && lin->w && lin->rows == q.rows && lin->cols == q.cols) return take_place(r, lin, lin->w, &q);
    lq_qtensor_free(&q);
    return lq_fail(r->ctx, LQ_ERR_FORMAT, "%s: a unit does not fit the model", r->job.journal);
}

static lq_status replay_kept(road *r, json_t *entry, const void *p, size_t n) {
    const lq_row *row = lq_unit_kept_row(r, entry);
    return row ? lq_fold_restore(r->ctx, r->model, row, p, n) : lq_fail(r->ctx, LQ_ERR_FORMAT, "%s: a unit does not fit the model", r->job.journal);
}

static double block_cost(const road *r, int32_t b) {
    double cost = 0;
    for (size_t i = 0; i < r->model->cat.n; i++)
        if (r->model->cat.rows[i].slot.block == b) cost += row_cost(&r->model->cat.rows[i]);
    return cost;
}

/* A block without the stream: statistics of a file, folds of transforms. */
static lq_status run_stored(road *r, uint32_t b) {
    lq_stage_hook hook = {.on_stage = on_stage, .user = r};
    LQ_TRY(lq_model_load(r->ctx, r->model, (int32_t)b, LQ_LOAD_F32));
    lq_status st = lq_xforms_block(r, b);
    if (!st) st = lq_stored_block(r, b, &hook);
    lq_stored_forget(r);
    return st;
}

static lq_status run_streamed(road *r, uint32_t b, bool done) {
    lq_stage_hook hook = {.needs = done ? 0 : r->needs, .on_stage = done ? NULL : on_stage, .user = r, .twin = r->twin, .kv_max = r->kv_max ? r->kv_max + 2 * (size_t)b : NULL};
    lq_status st = lq_model_load(r->ctx, r->model, (int32_t)b, LQ_LOAD_F32);
    if (!st && done && r->twin) st = lq_block_calibrate(r->ctx, r->model, (int32_t)b, r->twin, r->rows.len, NULL, r->cache_budget / 2, r->run->opts.work_dir);
    if (!st && done) st = lq_unit_each(r, b, &(lq_unit_reader){.linear = replay_linear, .kept = replay_kept});
    if (!st && !done) st = lq_xforms_block(r, b);
    return st ? st : lq_block_calibrate(r->ctx, r->model, (int32_t)b, r->resid, r->rows.len, &hook, r->cache_budget / 2, r->run->opts.work_dir);
}

static lq_status run_block(road *r, uint32_t b) {
    bool done = lq_job_has(&r->job, b);
    LQ_TRY(lq_check_cancel(r->ctx));
    lq_status st = r->needs ? run_streamed(r, b, done) : done ? LQ_OK : run_stored(r, b);
    lq_model_unload(r->model, (int32_t)b);
    LQ_TRY(st);
    if (!done) LQ_TRY(lq_unit_finish(r, b));
    lq_progress_step(&r->bar, block_cost(r, (int32_t)b), "%u/%u%s", b + 1, r->model->par.n_layers, done ? " (done before)" : "");
    return LQ_OK;
}

/* The fp stream beside it starts with the same states. */
static lq_status copy_stream(road *r) {
    size_t T = r->rows.seqlen, d = r->model->par.hidden;
    LQ_TRY(lq_cache_new(r->ctx, r->rows.n, r->cache_budget / 4, r->run->opts.work_dir, &r->twin));
    float *x = lq_calloc(T * d, 4);
    lq_status st = x ? LQ_OK : lq_oom(r->ctx, T * d * 4);
    for (size_t i = 0; i < r->rows.n && !st; i++) {
        st = lq_cache_get(r->ctx, r->resid, i, x, (size_t)r->rows.len[i] * d);
        if (!st) st = lq_cache_put(r->ctx, r->twin, i, x, (size_t)r->rows.len[i] * d);
    }
    lq_free(x);
    return st;
}

static lq_status head_stats(road *r, const lq_row *row, lq_stats *own, const lq_stats **out) {
    *own = (lq_stats){0};
    *out = own;
    if (!r->needs) return lq_stored_stats(r, row, out);
    lq_status st = lq_model_load(r->ctx, r->model, -1, LQ_LOAD_STORED);
    if (!st) st = lq_stats_init(r->ctx, own, r->needs & ~(unsigned)LQ_NEED_CROSS, lq_head_width(r->model));
    if (!st) st = lq_gather_head(r->ctx, r->model, &r->rows, r->resid, own);
    lq_model_unload(r->model, -1);
    return st;
}

/* The head reads the final-normed stream; it goes last, through the same path. */
static lq_status run_head(road *r) {
    const lq_row *row = lq_catalog_find(&r->model->cat, (lq_slot){.block = -1, .role = LQ_R_HEAD, .expert = -1}, LQ_PART_WEIGHT);
    uint32_t unit = r->model->par.n_layers;
    if (!row || !row->quantize || lq_job_has(&r->job, unit)) return LQ_OK;
    lq_stats own;
    const lq_stats *stats;
    float *w = lq_calloc(lq_row_elems(row), 4);
    lq_status st = w ? head_stats(r, row, &own, &stats) : lq_oom(r->ctx, 4 * lq_row_elems(row));
    if (!st) st = lq_model_read_f32(r->ctx, r->model, row, w);
    if (!st) st = quantize_linear(r, row, NULL, w, stats);
    if (w) lq_stats_free(&own);
    lq_free(w);
    return st ? st : lq_unit_finish(r, unit);
}

/* An embedding is looked up, not multiplied by: no statistics of it exist, whatever the method. */
static lq_status run_embed(road *r) {
    const lq_row *row = lq_catalog_find(&r->model->cat, (lq_slot){.block = -1, .role = LQ_R_EMBED, .expert = -1}, LQ_PART_WEIGHT);
    const lq_method *rtn = lq_method_by_name("rtn");
    uint32_t unit = r->model->par.n_layers + 1;
    if (!row || !row->quantize || lq_job_has(&r->job, unit)) return LQ_OK;
    float *w = lq_calloc(lq_row_elems(row), 4);
    void *opts = lq_alloc(rtn->opts_size + 1);
    lq_status st = w && opts ? LQ_OK : lq_oom(r->ctx, 4 * lq_row_elems(row));
    if (!st) st = lq_opts_defaults(r->ctx, (const lq_optset[]){{rtn->opts, opts, NULL}, {0}});
    if (!st) st = lq_model_read_f32(r->ctx, r->model, row, w);
    if (!st) st = quantize_by(r, rtn, opts, row, NULL, w, NULL);
    lq_free(w);
    lq_free(opts);
    return st ? st : lq_unit_finish(r, unit);
}

static lq_status by_block(road *r) {
    if (r->run->opts.kv_scales && !(r->kv_max = LQ_NEWN(float, 2 * (size_t)r->model->par.n_layers))) return lq_oom(r->ctx, 8 * (size_t)r->model->par.n_layers);
    if (r->needs) LQ_TRY(lq_gather_embed(r->ctx, r->model, &r->rows, r->cache_budget / 2, r->run->opts.work_dir, &r->resid));
    if (r->needs & LQ_NEED_CROSS) LQ_TRY(copy_stream(r));
    for (uint32_t b = 0; b < r->model->par.n_layers; b++) {
        lq_status st = run_block(r, b);
        if (st) return lq_note(r->ctx, st, "block %u", b);
    }
    LQ_TRY(run_head(r));
    LQ_TRY(run_embed(r));
    if (r->resid && lq_cache_spilled(r->resid)) lq_log(r->ctx, LQ_LOG_INFO, "activations: %.1f MB were kept on disk", (double)lq_cache_spilled(r->resid) / 1e6);
    lq_cache_free(&r->resid);
    lq_cache_free(&r->twin);
    return LQ_OK;
}

lq_status lq_stream_run(road *r) {
    r->bar = lq_progress_start(r->ctx, r->by_block ? "block" : "linear", (double)r->plan.weights);
    lq_status st = r->by_block ? by_block(r) : data_free(r);
    lq_progress_end(&r->bar);
    return st;
}
