/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Keys and values on a device: [sequences][room][heads][dim] of a layer, keys then values; then their steps, where each token and head has one. */
#include "calib/held.h"

static const lq_dtype types[LQ_KV_N] = {[LQ_KV_F32] = LQ_F32, [LQ_KV_F16] = LQ_F16, [LQ_KV_INT8] = LQ_I8, [LQ_KV_FP8] = LQ_E4M3};

static bool small(lq_kv_kind k) { return k == LQ_KV_INT8 || k == LQ_KV_FP8; }

static lq_status layer_new(lq_ctx *ctx, lq_held_kv *h, lq_device_kv *kv, bool steps) {
    uint64_t n = 0, s = 0;
    bool fits = lq_mul_ok((uint64_t)h->sequences * kv->room, h->row_bytes, &n) && lq_mul_ok((uint64_t)h->sequences * kv->room, kv->heads * sizeof(float), &s);
    bool ok = fits && (kv->keys = h->d->alloc(n)) && (kv->values = h->d->alloc(n));
    if (ok && steps) ok = (kv->key_step = h->d->alloc(s)) && (kv->value_step = h->d->alloc(s));
    return ok ? LQ_OK : lq_fail(ctx, LQ_ERR_RESOURCE, "device %s: no room for keys and values of %u sequences of %u tokens", h->d->name, h->sequences, kv->room);
}

lq_status lq_held_kv_new(lq_ctx *ctx, const lq_model *m, lq_kv_kind kind, bool fixed, uint32_t layers, uint32_t room, uint32_t sequences, lq_held_kv **out) {
    const lq_device *d = m->held->d;
    *out = NULL;
    if (kind == LQ_KV_INT4) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "device %s: keys and values of 4 bits are not stored there yet (f32, f16, int8, fp8 are)", d->name);
    lq_held_kv *h = *out = lq_calloc(1, sizeof *h + layers * sizeof *h->kv);
    if (!h) return lq_oom(ctx, sizeof *h + layers * sizeof *h->kv);
    *h = (lq_held_kv){.d = d, .refs = 1, .layers = layers, .sequences = sequences};
    h->row_bytes = (size_t)m->par.n_kv_heads * m->par.head_dim * lq_dtypes[types[kind]].bytes;
    fixed = fixed && small(kind) && m->kv_steps;
    for (uint32_t l = 0; l < layers; l++) {
        const float *step = fixed ? m->kv_steps + 2 * (size_t)l : NULL;
        h->kv[l] = (lq_device_kv){.dtype = (uint8_t)types[kind], .heads = m->par.n_kv_heads, .dim = m->par.head_dim, .room = room};
        if (step) h->kv[l].key_fixed = kind == LQ_KV_INT8 ? step[0] * 448 / 127 : step[0];
        if (step) h->kv[l].value_fixed = kind == LQ_KV_INT8 ? step[1] * 448 / 127 : step[1];
        lq_status st = layer_new(ctx, h, &h->kv[l], small(kind) && !fixed);
        if (st) return lq_held_kv_free(out), st;
    }
    return LQ_OK;
}

void lq_held_kv_free(lq_held_kv **kv) {
    lq_held_kv *h = *kv;
    *kv = NULL;
    if (!h || --h->refs) return;
    for (uint32_t l = 0; l < h->layers; l++) {
        h->d->release(h->kv[l].keys);
        h->d->release(h->kv[l].values);
        h->d->release(h->kv[l].key_step);
        h->d->release(h->kv[l].value_step);
    }
    lq_free(h);
}

static size_t step_bytes(const lq_held_kv *h) { return h->kv[0].key_step ? h->kv[0].heads * sizeof(float) : 0; }

uint64_t lq_held_kv_bytes(const lq_held_kv *h) { return 2 * (uint64_t)h->layers * h->kv[0].room * (h->row_bytes + step_bytes(h)); }

typedef struct copy { const lq_device *from, *to; void *mem; uint32_t at, into, n; } copy;
static bool move(const copy *c, const void *src, void *dst, size_t row) {
    return !src || (c->from->get(c->mem, (const char *)src + c->at * row, c->n * row) && c->to->put((char *)dst + c->into * row, c->mem, c->n * row));
}

lq_status lq_held_kv_copy(lq_ctx *ctx, lq_held_kv *dst, uint32_t to, const lq_held_kv *src, uint32_t from, uint32_t n) {
    copy c = {.from = src->d, .to = dst->d, .mem = lq_alloc(n * (src->row_bytes + step_bytes(src)) + 1), .at = from * src->kv[0].room, .into = to * dst->kv[0].room, .n = n};
    if (!c.mem) return lq_oom(ctx, n * src->row_bytes);
    bool ok = true;
    for (uint32_t l = 0; l < src->layers && ok && n; l++) {
        const lq_device_kv *a = &src->kv[l], *b = &dst->kv[l];
        ok = move(&c, a->keys, b->keys, src->row_bytes) && move(&c, a->values, b->values, src->row_bytes) && move(&c, a->key_step, b->key_step, step_bytes(src)) &&
             move(&c, a->value_step, b->value_step, step_bytes(src));
    }
    lq_free(c.mem);
    return ok ? LQ_OK : lq_fail(ctx, LQ_ERR_RESOURCE, "device %s: keys and values cannot be copied", src->d->name);
}
