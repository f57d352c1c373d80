/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* LLM.int8() (Dettmers, Lewis, Belkada, Zettlemoyer 2022, arXiv 2208.07339): rows of 8-bit integers,
 *
 *   q = round(w 127 / absmax),  scale = absmax / 127,
 *
 * with 8-bit activations per token. Activations of |x| >= threshold are multiplied apart, as they are, with the dequantized
 * weights (calib/act_run.c): per token, or per column of a batch as bitsandbytes does. --static instead lets calibration name
 * the columns, once for all, keeps their weights in F16 and out of the rows' absmax. algorithms.md 3. */
#include "core/num.h"
#include "core/thread.h"
#include "quant/method.h"
#include "quant/proxy.h"

#include <stdlib.h>
#include <string.h>

enum { COMPAT_NONE, COMPAT_BNB };

typedef struct int8_opts {
    double threshold;
    int compat, fixed;
    int64_t most;
} int8_opts;

static const lq_opt options[] = {
    {"threshold", NULL, LQ_OPT_REAL, offsetof(int8_opts, threshold), "X", "6", NULL, 0, 1e30, 0, "activations this large are multiplied apart; 0: none"},
    {"compat", NULL, LQ_OPT_CHOICE, offsetof(int8_opts, compat), NULL, "bnb", "none|bnb", 0, 0, 0,
     "bnb: outliers are columns of a batch, weights pass F16; none: of a token"},
    {"static", NULL, LQ_OPT_SET, offsetof(int8_opts, fixed), NULL, NULL, NULL, 0, 0, 1, "calibration fixes the outlier columns; their weights stay F16"},
    {"max-columns", NULL, LQ_OPT_INT, offsetof(int8_opts, most), "N", "32", NULL, 1, 4096, 0, "--static: keep at most the N largest columns of a linear"},
    {0}};

static unsigned needs_of(const void *opts) {
    const int8_opts *o = opts;
    return o->fixed ? LQ_NEED_ABSMAX : 0;
}

static void refine(const void *opts, lq_scheme *s) {
    const int8_opts *o = opts;
    s->act.outlier = s->act.kind && !o->fixed ? (float)o->threshold : 0;
    s->act.scope = s->act.outlier > 0 && o->compat == COMPAT_BNB;
    if (!o->fixed) return;
    s->extra |= LQ_X_OUTLIER_COLS;
    s->sparse = (uint16_t)o->most;
}

static lq_status accept(lq_ctx *ctx, const void *opts, uint32_t rows, uint32_t cols, const lq_scheme *s) {
    (void)opts, (void)rows, (void)cols;
    bool rows_of_8 = s->grid.kind == LQ_GRID_INT && s->grid.bits == 8 && s->grid.bias == 128 && s->zero_kind == LQ_ZERO_NONE;
    if (rows_of_8 && s->scale.tile_r == 1 && !s->scale.tile_c && s->scale.parent == LQ_NONE) return LQ_OK;
    char name[64];
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "int8 makes symmetric 8-bit rows (INT8, W8A8), not %s", lq_scheme_name(s, name, sizeof name));
}

/* ---- --static: which columns ---- */

typedef struct choice { float max; uint32_t col; } choice;

static int larger_first(const void *a, const void *b) {
    const choice *x = a, *y = b;
    if (x->max != y->max) return x->max < y->max ? 1 : -1;
    return (x->col > y->col) - (x->col < y->col);
}

static int by_column(const void *a, const void *b) {
    const choice *x = a, *y = b;
    return (x->col > y->col) - (x->col < y->col);
}

static lq_status choose_columns(lq_ctx *ctx, const int8_opts *o, const lq_stats *stats, lq_qtensor *q) {
    choice *list = LQ_NEWN(choice, q->cols);
    uint32_t n = 0;
    if (!list) return lq_oom(ctx, q->cols * sizeof *list);
    for (uint32_t c = 0; c < q->cols; c++)
        if (o->threshold > 0 && stats->absmax[c] >= (float)o->threshold) list[n++] = (choice){stats->absmax[c], c};
    qsort(list, n, sizeof *list, larger_first);
    if (n > (uint32_t)o->most) n = (uint32_t)o->most;
    qsort(list, n, sizeof *list, by_column);
    lq_status st = lq_qtensor_outlier_cols(ctx, q, n);
    for (uint32_t i = 0; i < n && !st; i++) q->outlier_cols.idx[i] = list[i].col;
    lq_free(list);
    return st;
}

/* ---- rows ---- */

typedef struct job { const int8_opts *o; const float *w; lq_qtensor *q; const uint8_t *apart; } job;

static void quantize_row(void *arg, size_t r) {
    const job *j = arg;
    lq_qtensor *q = j->q;
    const float *w = j->w + r * q->cols;
    bool halves = j->o->compat == COMPAT_BNB;
    float max = 0;
    for (uint32_t c = 0; c < q->cols; c++) {
        float v = fabsf(halves ? lq_f16_f32(lq_f32_f16(w[c])) : w[c]);
        if (!j->apart[c] && v > max) max = v;
    }
    float inv = max > 1e-30f ? 1 / max * 127 : 0; /* two roundings, as bitsandbytes */
    lq_plane_set(&q->sch.scale, &q->scale, r, max > 1e-30f ? max / 127 : 1);
    if (q->sch.scale.dtype != LQ_F32 && inv > 0) inv = 1 / lq_plane_get(&q->sch.scale, &q->scale, r); /* codes follow the scale as it is stored */
    for (uint32_t c = 0; c < q->cols; c++) {
        float v = (halves ? lq_f16_f32(lq_f32_f16(w[c])) : w[c]) * inv;
        q->codes[r * q->row_bytes + c] = (uint8_t)(128 + (j->apart[c] ? 0 : (int)rintf(v > 127 ? 127 : v < -127 ? -127 : v)));
    }
    for (uint32_t i = 0; i < q->outlier_cols.n; i++) q->outlier_cols.v[r * q->outlier_cols.n + i] = lq_f32_f16(w[q->outlier_cols.idx[i]]);
}

static lq_status quantize(lq_ctx *ctx, const void *opts, const lq_weights *w, const lq_scheme *s, const lq_stats *stats, lq_qtensor *out, lq_outcome *o) {
    const int8_opts *opt = opts;
    lq_status st = LQ_OK;
    uint8_t *apart = NULL;
    *o = (lq_outcome){.method = "int8", .err_h = -1, .err_h_rtn = -1, .damp = -1};
    if (s->extra & LQ_X_OUTLIER_COLS && !(stats && stats->absmax)) return lq_fail(ctx, LQ_ERR_INTERNAL, "%s: --static needs the largest activations", w->name);
    LQ_TRY(lq_qtensor_init(ctx, out, s, w->slot, w->rows, w->cols));
    if (s->extra & LQ_X_OUTLIER_COLS) LQ_GO(choose_columns(ctx, opt, stats, out));
    if (!(apart = LQ_NEWN(uint8_t, w->cols))) LQ_GO(lq_oom(ctx, w->cols));
    for (uint32_t i = 0; i < out->outlier_cols.n; i++) apart[out->outlier_cols.idx[i]] = 1;
    lq_parallel_for(w->rows, quantize_row, &(job){opt, w->w, out, apart});
    LQ_GO(lq_weight_error(ctx, w->w, out, &o->err_w));
    if (stats && stats->needs & LQ_NEED_GRAM && stats->n) LQ_GO(lq_proxy_error(ctx, w->w, out, &stats->gram, &o->err_h));
    o->err_h_rtn = o->err_h;
done:
    lq_free(apart);
    if (!st) return LQ_OK;
    lq_qtensor_free(out);
    return lq_note(ctx, st, "%s", w->name);
}

const lq_method lq_method_int8 = {
    .name = "int8",
    .format = "bitsandbytes",
    .what = "LLM.int8: 8-bit rows, outlier activations apart",
    .paper = "Dettmers et al. 2022, arXiv 2208.07339",
    .type = "INT8",
    .needs_of = needs_of,
    .refine = refine,
    .opts = options,
    .opts_size = sizeof(int8_opts),
    .accept = accept,
    .quantize = quantize,
};
