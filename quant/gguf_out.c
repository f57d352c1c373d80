/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "quant/gguf_out.h"

#include "core/blocks.h"

lq_status lq_gguf_out_make(lq_ctx *ctx, const lq_format *f, const lq_model *m, const lq_gguf_opts *o, lq_gguf_meta **out) {
    *out = NULL;
    return f->gguf ? lq_gguf_meta_make(ctx, m, o, out) : LQ_OK;
}

lq_status lq_gguf_out_manifest(lq_ctx *ctx, lq_gguf_meta *meta, json_t *v) {
    lq_buf text = {0};
    lq_status st = meta && v ? lq_json_dump(ctx, v, &text) : meta ? lq_oom(ctx, 256) : LQ_OK;
    if (!st && meta) {
        lq_gguf_drop(meta, LQ_GGUF_KEY_MANIFEST);
        lq_gguf_put_text(meta, LQ_GGUF_KEY_MANIFEST, text.v, text.n);
    }
    lq_buf_free(&text);
    json_decref(v);
    return st;
}

/* llama.h, enum llama_ftype: numbers of files in which most tensors have one type */
static int number_of(lq_dtype t) {
    static const struct { lq_dtype t; int n; } numbers[] = {
        {LQ_F32, 0}, {LQ_F16, 1}, {LQ_Q4_0, 2}, {LQ_Q4_1, 3}, {LQ_Q8_0, 7}, {LQ_Q5_0, 8}, {LQ_Q5_1, 9}, {LQ_Q2_K, 10}, {LQ_Q3_K, 12}, {LQ_Q4_K, 15},
        {LQ_Q5_K, 17}, {LQ_Q6_K, 18}, {LQ_IQ4_NL, 25}, {LQ_IQ4_XS, 30}, {LQ_BF16, 32}, {LQ_TQ1_0, 36}, {LQ_TQ2_0, 37}, {LQ_MXFP4, 38}, {LQ_NVFP4, 39}, {LQ_Q1_0, 40}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (numbers[i].t == t) return numbers[i].n;
    return 1024; /* guessed: llama.cpp's word for "look at the tensors" */
}

static lq_dtype type_of(const lq_row *r) {
    if (!r->quantize) return r->out_dtype;
    lq_dtype t = lq_grid_dtype(r->scheme.grid.kind);
    return t != LQ_NONE && r->scheme.scale.dtype == LQ_NONE ? t : lq_gguf_fit(&r->scheme, NULL);
}

void lq_gguf_out_finish(lq_gguf_meta *meta, const lq_catalog *cat, int mixture) {
    uint64_t weights[LQ_DTYPE_N] = {0};
    lq_dtype most = LQ_F32;
    if (!meta) return;
    for (size_t i = 0; i < cat->n; i++)
        if (cat->rows[i].linear) weights[type_of(&cat->rows[i])] += lq_row_elems(&cat->rows[i]);
    for (int t = 0; t < LQ_DTYPE_N; t++)
        if (weights[t] > weights[most]) most = (lq_dtype)t;
    lq_gguf_meta_types(meta, (uint32_t)(mixture >= 0 ? mixture : number_of(most)));
    lq_ctx quiet = {0}; /* they were asked before */
    for (size_t i = 0; i < meta->n_override; i++) meta->failed |= lq_gguf_override(&quiet, meta, meta->override[i]) != LQ_OK;
}
