/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "calib/kv.h"

#include "calib/act.h"
#include "calib/run.h"
#include "core/num.h"

#include <string.h>

static size_t head_bytes(const lq_kv *kv) {
    uint32_t groups = (kv->dim + LQ_KV_GROUP - 1) / LQ_KV_GROUP;
    switch (kv->kind) {
    case LQ_KV_F32: return 4 * (size_t)kv->dim;
    case LQ_KV_F16: return 2 * (size_t)kv->dim;
    case LQ_KV_INT4: return 4 * (size_t)groups + (kv->dim + 1) / 2;
    default: return kv->dim + (kv->steps ? 0 : 2);
    }
}

lq_status lq_kv_init(lq_ctx *ctx, lq_kv *kv, lq_kv_kind kind, uint32_t layers, uint32_t max_ctx, uint32_t heads, uint32_t dim, const float *steps) {
    *kv = (lq_kv){.kind = kind, .layers = layers, .max_ctx = max_ctx, .heads = heads, .dim = dim};
    if (kind == LQ_KV_INT8 || kind == LQ_KV_FP8) kv->steps = steps;
    kv->row_bytes = heads * head_bytes(kv);
    uint64_t n = 0;
    bool fits = lq_mul_ok((uint64_t)layers * max_ctx, kv->row_bytes, &n);
    if (fits && (kv->keys = lq_calloc(n, 1)) && (kv->values = lq_calloc(n, 1))) return LQ_OK;
    lq_kv_free(kv);
    return lq_oom(ctx, n * 2);
}

void lq_kv_free(lq_kv *kv) {
    lq_free(kv->keys);
    lq_free(kv->values);
    *kv = (lq_kv){0};
}

uint64_t lq_kv_bytes(const lq_kv *kv) { return 2 * (uint64_t)kv->layers * kv->max_ctx * kv->row_bytes; }

void lq_kv_turn(float *x, uint32_t dim) {
    uint32_t size = dim & (~dim + 1);
    for (uint32_t at = 0; at < dim; at += size)
        for (uint32_t h = 1; h < size; h *= 2)
            for (uint32_t i = 0; i < size; i++)
                if (!(i & h)) {
                    float a = x[at + i], b = x[at + i + h];
                    x[at + i] = a + b;
                    x[at + i + h] = a - b;
                }
    float scale = 1 / sqrtf((float)size);
    for (uint32_t i = 0; i < dim; i++) x[i] *= scale;
}

static void put_half(uint8_t *out, float v) {
    uint16_t h = lq_f32_f16(v > 65504 ? 65504 : v < -65504 ? -65504 : v);
    memcpy(out, &h, 2);
}

static float get_half(const uint8_t *in) {
    uint16_t h;
    memcpy(&h, in, 2);
    return lq_f16_f32(h);
}

static float fixed_step(const lq_kv *kv, uint32_t layer, bool values) {
    float step = kv->steps[2 * layer + values];
    return kv->kind == LQ_KV_INT8 ? step * 448 / 127 : step;
}

static void encode_8(const lq_kv *kv, float fixed, const float *x, uint8_t *out) {
    float max = 0, step = fixed, top = kv->kind == LQ_KV_INT8 ? 127 : 448;
    if (!kv->steps) {
        for (uint32_t i = 0; i < kv->dim; i++) max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
        put_half(out, max / top);
        step = get_half(out);
        out += 2;
    }
    float inv = step > 0 ? 1 / step : 0;
    for (uint32_t i = 0; i < kv->dim; i++) {
        float v = x[i] * inv;
        v = v > top ? top : v < -top ? -top : v;
        out[i] = kv->kind == LQ_KV_INT8 ? (uint8_t)(int8_t)rintf(v) : lq_f32_e4m3(v);
    }
}

static void decode_8(const lq_kernels *k, const lq_kv *kv, float fixed, const uint8_t *in, float *x) {
    float step = kv->steps ? fixed : get_half(in);
    k->kv8(kv->kind == LQ_KV_INT8 ? LQ_I8 : LQ_E4M3, kv->steps ? in : in + 2, step, x, kv->dim);
}

static uint32_t run_of(uint32_t dim, uint32_t c) { return dim - c < LQ_KV_GROUP ? dim - c : LQ_KV_GROUP; }

static void encode_4(uint32_t dim, const float *x, uint8_t *out) {
    for (uint32_t c = 0; c < dim; c += LQ_KV_GROUP) {
        uint32_t n = run_of(dim, c);
        float low = x[c], high = x[c];
        for (uint32_t i = c; i < c + n; i++) low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
        put_half(out, low);
        low = get_half(out);
        put_half(out + 2, (high - low) / 15);
        float step = get_half(out + 2), inv = step > 0 ? 1 / step : 0;
        out += 4;
        memset(out, 0, (n + 1) / 2);
        for (uint32_t i = 0; i < n; i++) {
            float v = rintf((x[c + i] - low) * inv);
            out[i / 2] |= (uint8_t)((v < 0 ? 0u : v > 15 ? 15u : (unsigned)v) << 4 * (i & 1));
        }
        out += (n + 1) / 2;
    }
}

static void decode_4(uint32_t dim, const uint8_t *in, float *x) {
    for (uint32_t c = 0; c < dim; c += LQ_KV_GROUP) {
        uint32_t n = run_of(dim, c);
        float low = get_half(in), step = get_half(in + 2);
        in += 4;
        lq_kernels_best()->kv4(in, low, step, x + c, n);
        in += (n + 1) / 2;
    }
}

static uint8_t *row_at(const lq_kv *kv, uint32_t layer, bool values, uint32_t pos, uint32_t head) {
    size_t row = ((size_t)(kv->layers > 1 ? layer : 0) * kv->heads + head) * kv->max_ctx + pos;
    return (values ? kv->values : kv->keys) + row * head_bytes(kv);
}

const float *lq_kv_floats(const lq_kv *kv, uint32_t layer, bool values, uint32_t pos, uint32_t head) {
    return (const float *)(const void *)row_at(kv, layer, values, pos, head);
}

void lq_kv_copy(lq_kv *dst, const lq_kv *src, uint32_t n) {
    for (uint32_t l = 0; l < src->layers; l++)
        for (uint32_t h = 0; h < src->heads; h++) {
            memcpy(row_at(dst, l, false, 0, h), row_at(src, l, false, 0, h), n * head_bytes(src));
            memcpy(row_at(dst, l, true, 0, h), row_at(src, l, true, 0, h), n * head_bytes(src));
        }
}

static void encode(const lq_kv *kv, uint32_t layer, bool values, const float *x, uint8_t *out) {
    float turned[4096];
    switch (kv->kind) {
    case LQ_KV_F32: memcpy(out, x, kv->dim * sizeof *x); break;
    case LQ_KV_F16:
        for (uint32_t i = 0; i < kv->dim; i++) put_half(out + 2 * (size_t)i, x[i]);
        break;
    case LQ_KV_INT4:
        if (!values && kv->dim <= 4096) {
            memcpy(turned, x, kv->dim * sizeof *x);
            lq_kv_turn(turned, kv->dim);
            x = turned;
        }
        encode_4(kv->dim, x, out);
        break;
    default: encode_8(kv, kv->steps ? fixed_step(kv, layer, values) : 0, x, out);
    }
}

typedef struct put { lq_kv *kv; uint32_t layer, pos; const float *k, *v; } put;
static void put_token(void *arg, size_t t) {
    const put *p = arg;
    size_t width = (size_t)p->kv->heads * p->kv->dim;
    for (uint32_t h = 0; h < p->kv->heads; h++) {
        encode(p->kv, p->layer, false, p->k + t * width + (size_t)h * p->kv->dim, row_at(p->kv, p->layer, false, p->pos + (uint32_t)t, h));
        encode(p->kv, p->layer, true, p->v + t * width + (size_t)h * p->kv->dim, row_at(p->kv, p->layer, true, p->pos + (uint32_t)t, h));
    }
}

void lq_kv_put(lq_kv *kv, uint32_t layer, uint32_t pos, uint32_t n, const float *k, const float *v) {
    lq_spread(n, (uint64_t)n * kv->heads * kv->dim * 8, put_token, &(put){kv, layer, pos, k, v});
}

void lq_kv_get(const lq_kv *kv, uint32_t layer, bool values, uint32_t pos, uint32_t n, uint32_t head, float *out) {
    const lq_kernels *k = lq_kernels_best();
    const uint8_t *in = row_at(kv, layer, values, pos, head); /* a head's rows follow each other */
    size_t row = head_bytes(kv), floats = (size_t)n * kv->dim;
    float fixed = kv->steps ? fixed_step(kv, layer, values) : 0;
    if (kv->kind == LQ_KV_F32) memcpy(out, in, floats * sizeof *out);
    else if (kv->kind == LQ_KV_F16) k->decode(LQ_F16, in, out, floats);
    else
        for (uint32_t t = 0; t < n; t++, in += row, out += kv->dim) {
            if (kv->kind == LQ_KV_INT4) decode_4(kv->dim, in, out);
            else decode_8(k, kv, fixed, in, out);
        }
}

typedef struct turn { float *q; uint32_t heads, dim; } turn;
static void turn_token(void *arg, size_t t) {
    const turn *a = arg;
    for (uint32_t h = 0; h < a->heads; h++) lq_kv_turn(a->q + (t * a->heads + h) * a->dim, a->dim);
}

void lq_kv_queries(const lq_kv *kv, float *q, uint32_t n, uint32_t heads) {
    if (kv->kind == LQ_KV_INT4 && kv->dim <= 4096) lq_spread(n, (uint64_t)n * heads * kv->dim * 8, turn_token, &(turn){q, heads, kv->dim});
}
