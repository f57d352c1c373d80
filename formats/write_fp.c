/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* An ordinary Hugging Face folder of float tensors: `lquant convert`, and what a method changed but left in floats. */
#include "formats/write.h"

#include <string.h>

typedef struct lq_fp { lq_st_writer *w; } lq_fp;

static lq_status fp_accept(lq_ctx *ctx, const lq_scheme *s, uint32_t rows, uint32_t cols) {
    bool plain = lq_grid_dtype(s->grid.kind) != LQ_NONE && s->act.kind == LQ_ACT_NONE && !s->extra;
    if (plain) return lq_scheme_check(ctx, s, rows, cols);
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "it holds float tensors only; --format lqt holds every scheme");
}

static lq_status fp_open(lq_sink *s) {
    lq_fp *f = s->priv;
    lq_st_tensor *t = LQ_NEWN(lq_st_tensor, s->cat->n);
    if (!t) return lq_oom(s->ctx, s->cat->n * sizeof *t);
    for (size_t i = 0; i < s->cat->n; i++) t[i] = lq_st_tensor_of_row(&s->cat->rows[i]);
    lq_status st = lq_st_create(s->ctx, s->dir, t, s->cat->n, s->opts.shard_size, &f->w);
    lq_free(t);
    return st;
}

static lq_status fp_put(lq_sink *s, const lq_row *r, const lq_qtensor *q) {
    size_t row = (size_t)q->cols * q->sch.grid.bits / 8, bytes = row * q->rows;
    char *data = lq_alloc(bytes), *turned = r->transposed ? lq_alloc(bytes) : NULL;
    lq_status st = data && (turned || !r->transposed) ? LQ_OK : lq_oom(s->ctx, bytes);
    for (uint32_t i = 0; i < q->rows && !st; i++) memcpy(data + i * row, q->codes + i * q->row_bytes, row);
    if (!st && turned) lq_transpose(data, q->rows, q->cols, q->sch.grid.bits / 8, turned);
    if (!st) st = lq_st_put(s->ctx, ((lq_fp *)s->priv)->w, r->name, turned ? turned : data, bytes);
    lq_free(turned);
    lq_free(data);
    return st;
}

static lq_status fp_put_fp(lq_sink *s, const lq_row *r, const void *data, size_t bytes) {
    return lq_st_put(s->ctx, ((lq_fp *)s->priv)->w, r->name, data, bytes);
}

static lq_status fp_sync(lq_sink *s) { return lq_st_sync(s->ctx, ((lq_fp *)s->priv)->w); }
static lq_status fp_close(lq_sink *s) { return lq_st_finish(s->ctx, &((lq_fp *)s->priv)->w); }
static void fp_abandon(lq_sink *s) { lq_st_abandon(&((lq_fp *)s->priv)->w); }

const lq_format lq_format_fp = {
    .name = "safetensors", .what = "Hugging Face folder of float tensors", .priv_size = sizeof(lq_fp), .kv_scales = true,
    .accept = fp_accept, .open = fp_open, .put = fp_put, .put_fp = fp_put_fp, .sidecar = lq_folder_sidecar,
    .sync = fp_sync, .close = fp_close, .abandon = fp_abandon,
};
