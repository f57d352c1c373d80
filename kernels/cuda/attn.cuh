/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The key-value cache, written and attended. A block owns up to sixteen query rows of one kv head (row i of a kv head: token i / G, its query
 * head i % G, G query heads to a kv head) and a span of positions; it walks them a tile at a time with running maximum m, sum l and
 * output o of each row. One span: out = o / l. Several: each leaves (m, l, o), and a second kernel joins them in their order.
 *
 *   scratch  [n * G * kv heads][spans][dim + 2]  o, m, l
 *
 * Spans follow from the shape (tokens, heads, reach), never from the machine. Positions and sequences are read from device memory. */
#ifndef LQ_ATTN_CUH
#define LQ_ATTN_CUH
#include "kernels/cuda/block.cuh"

namespace attn {

using block::LANES;
enum { THREADS = 128, WARPS = THREADS / LANES, ROWS = 16, ENOUGH = 1024, SPAN = 128, SHARED = 48 << 10 }; /* blocks that fill a device; least positions of a span; bytes */

/* ---- putting ---- */

/* A warp per token, head, and keys or values: the bits of lq_kv (calib/kv.c). */
static __device__ __forceinline__ void put_small(const lq_device_kv &kv, const float *x, size_t row, bool values) {
    const uint32_t lane = threadIdx.x;
    float *steps = values ? kv.value_step : kv.key_step, step = values ? kv.value_fixed : kv.key_fixed;
    const float top = kv.dtype == LQ_I8 ? 127 : 448;
    if (steps) {
        float max = 0;
        for (uint32_t i = lane; i < kv.dim; i += LANES) max = fmaxf(max, fabsf(x[i]));
        max = block::warp_max(max) / top;
        step = lq_float(lq_half(max > 65504 ? 65504 : max));
        if (lane == 0) steps[row] = step;
    }
    const float inverse = step > 0 ? 1 / step : 0;
    uint8_t *to = (uint8_t *)(values ? kv.values : kv.keys) + row * kv.dim;
    for (uint32_t i = lane; i < kv.dim; i += LANES) {
        float v = lq_mul(x[i], inverse);
        v = v > top ? top : v < -top ? -top : v;
        to[i] = kv.dtype == LQ_E4M3 ? block::to_e4m3(v) : (uint8_t)(int8_t)(v == v ? (int)rintf(v) : 0);
    }
}

static __device__ __forceinline__ void put_head(const lq_device_kv &kv, const float *all, uint32_t t, uint32_t head, bool values, const uint32_t *pos, const uint32_t *seq) {
    const uint32_t lane = threadIdx.x;
    if (pos[t] >= kv.room) return;
    const float *x = all + ((size_t)t * kv.heads + head) * kv.dim;
    const size_t row = ((size_t)(seq ? seq[t] : 0) * kv.room + pos[t]) * kv.heads + head;
    void *to = values ? kv.values : kv.keys;
    if (kv.dtype == LQ_F32)
        for (uint32_t i = lane; i < kv.dim; i += LANES) ((float *)to)[row * kv.dim + i] = x[i];
    else if (kv.dtype == LQ_F16)
        for (uint32_t i = lane; i < kv.dim; i += LANES) ((uint16_t *)to)[row * kv.dim + i] = lq_half(x[i] > 65504 ? 65504 : x[i] < -65504 ? -65504 : x[i]);
    else put_small(kv, x, row, values);
}

__global__ void __launch_bounds__(LANES) put_run(const lq_device_kv kv, const float *k, const float *v, const uint32_t *pos, const uint32_t *seq) {
    lq_begin();
    put_head(kv, blockIdx.z ? v : k, blockIdx.x, blockIdx.y, blockIdx.z, pos, seq);
}

/* A warp per token and head: of q, then of keys, then of values. */
__global__ void __launch_bounds__(LANES) turn_run(const lq_device_turn o, const lq_device_kv kv, const uint32_t *pos, const uint32_t *seq) {
    lq_begin();
    const uint32_t t = blockIdx.x, keys = o.heads, values = o.heads + kv.heads, h = blockIdx.y;
    if (h < values) {
        float *x = h < keys ? o.q + ((size_t)t * o.heads + h) * kv.dim : o.k + ((size_t)t * kv.heads + h - keys) * kv.dim;
        for (uint32_t j = threadIdx.x; j < o.rot / 2; j += LANES) block::turn_pair(x, o.rot / 2, o.pairs, j, o.cos, o.sin, pos[t]);
        lq_sync_warp();
    }
    if (h >= keys) put_head(kv, h < values ? o.k : o.v, t, h < values ? h - keys : h - values, h >= values, pos, seq);
}

static bool has_type(int t) { return t == LQ_F32 || t == LQ_F16 || t == LQ_I8 || t == LQ_E4M3; }

static const char *put(const lq_device_kv *kv, const float *k, const float *v, const lq_device_tokens *at) {
    if (!has_type(kv->dtype)) return "no cache of keys and values in this type";
    return lq_launch("kv_put", put_run, dim3(at->n, kv->heads, 2), dim3(LANES), 0, *kv, k, v, at->pos, at->seq);
}

static const char *turn(const lq_device_turn *o, const lq_device_tokens *at) {
    if (!has_type(o->kv->dtype)) return "no cache of keys and values in this type";
    return lq_launch("turn", turn_run, dim3(at->n, o->heads + 2 * o->kv->heads), dim3(LANES), 0, *o, *o->kv, at->pos, at->seq);
}

/* ---- attending ---- */

struct layout { uint32_t group, rows, keys, span, spans; size_t bytes; }; /* query heads of a kv head, rows of a block, keys of a tile, positions of a span */

struct stage {
    float *q, *o;              /* [rows][wide], wide: dim rounded up to fours, the rest 0 */
    float *kv;                 /* [keys][wide + 4] */
    float *score;              /* [rows][keys] */
    float *max, *sum, *fade;   /* [rows] */
};

static __host__ __device__ __forceinline__ uint32_t wide_of(uint32_t dim) { return (dim + 3) / 4 * 4; }

static __device__ __forceinline__ float stored(int dtype, const void *v, size_t i) {
    switch (dtype) {
    case LQ_F32: return ((const float *)v)[i];
    case LQ_F16: return lq_float(((const uint16_t *)v)[i]);
    case LQ_I8: return (float)((const int8_t *)v)[i];
    default: return block::e4m3(((const uint8_t *)v)[i]);
    }
}

static __device__ __forceinline__ void load_tile(const lq_device_kv &kv, bool values, uint32_t seq, uint32_t head, uint32_t from, uint32_t n, float *tile) {
    const void *v = values ? kv.values : kv.keys;
    const float *steps = values ? kv.value_step : kv.key_step, fixed = kv.dtype == LQ_F32 || kv.dtype == LQ_F16 ? 1 : values ? kv.value_fixed : kv.key_fixed;
    const bool stepped = steps && kv.dtype != LQ_F32 && kv.dtype != LQ_F16;
    const uint32_t wide = wide_of(kv.dim);
    for (uint32_t i = threadIdx.x; i < n * wide; i += THREADS) {
        uint32_t j = i / wide, d = i % wide;
        size_t row = ((size_t)seq * kv.room + from + j) * kv.heads + head;
        tile[j * (wide + 4) + d] = d < kv.dim ? (stepped ? steps[row] : fixed) * stored(kv.dtype, v, row * kv.dim + d) : 0;
    }
}

struct query { uint32_t pos, begin; }; /* it sees positions begin .. pos */
static __device__ __forceinline__ query query_of(const lq_device_attn &a, const uint32_t *pos, uint32_t t) {
    uint32_t p = pos[t];
    return query{p, a.window && p + 1 > a.window ? p + 1 - a.window : 0};
}

static __device__ __forceinline__ float4 four(const float *p) { return *(const float4 *)(const void *)p; }

/* Two rows and up to four keys a thread. */
static __device__ __forceinline__ void score_tile(const lq_device_attn &a, uint32_t dim, const layout &l, uint32_t from, uint32_t n, uint32_t r0, uint32_t r1, const uint32_t *pos, uint32_t base,
                                                  const stage &st) {
    const uint32_t wide = wide_of(dim), j0 = threadIdx.x % 16, row0 = r0 + threadIdx.x / 16 * 2;
    float s[2][4] = {};
    for (uint32_t d = 0; row0 < r1 && d < wide; d += 4) {
        const float4 x[2] = {four(st.q + row0 * wide + d), four(st.q + (row0 + 1 < r1 ? row0 + 1 : row0) * wide + d)};
        LQ_UNROLL
        for (uint32_t i = 0; i < 4; i++) {
            if (j0 + 16 * i >= n) break;
            const float4 k = four(st.kv + (j0 + 16 * i) * (wide + 4) + d);
            LQ_UNROLL
            for (int h = 0; h < 2; h++) {
                s[h][i] += x[h].x * k.x;
                s[h][i] += x[h].y * k.y;
                s[h][i] += x[h].z * k.z;
                s[h][i] += x[h].w * k.w;
            }
        }
    }
    LQ_UNROLL
    for (uint32_t e = 0; e < 8; e++) {
        const uint32_t r = row0 + e / 4, j = j0 + 16 * (e % 4);
        if (r >= r1 || j >= l.keys) continue;
        const query q = query_of(a, pos, (base + r) / l.group);
        float v = s[e / 4][e % 4] * a.scale;
        if (a.cap > 0) v = a.cap * tanhf(v / a.cap);
        st.score[r * l.keys + j] = j < n && from + j >= q.begin && from + j <= q.pos ? v : -INFINITY;
    }
}

/* Scores of a row become e^(score - m); fade is what earlier sums and outputs are worth now. */
static __device__ __forceinline__ void soften(const layout &l, uint32_t r0, uint32_t r1, const stage &st) {
    const uint32_t lane = threadIdx.x % LANES;
    for (uint32_t r = r0 + threadIdx.x / LANES; r < r1; r += WARPS) {
        float *s = st.score + r * l.keys, max = st.max[r], sum = 0;
        for (uint32_t j = lane; j < l.keys; j += LANES) max = fmaxf(max, s[j]);
        max = block::warp_max(max);
        const float before = st.max[r], base = max == -INFINITY ? 0 : max, fade = before == -INFINITY ? 0 : block::exponential(before - base);
        for (uint32_t j = lane; j < l.keys; j += LANES) {
            s[j] = s[j] == -INFINITY ? 0 : block::exponential(s[j] - base);
            sum += s[j];
        }
        sum = block::warp_sum(sum);
        lq_sync_warp();
        if (lane == 0) {
            st.fade[r] = fade;
            st.sum[r] = st.sum[r] * fade + sum;
            st.max[r] = max;
        }
    }
}

/* Four rows and four dims a thread at a time. */
static __device__ __forceinline__ void add_values(uint32_t dim, const layout &l, uint32_t n, uint32_t r0, uint32_t r1, const stage &st) {
    const uint32_t wide = wide_of(dim), fours = wide / 4;
    for (uint32_t i = threadIdx.x; i < (r1 - r0 + 3) / 4 * fours; i += THREADS) {
        const uint32_t row = r0 + i / fours * 4, d = i % fours * 4;
        float4 o[4];
        LQ_UNROLL
        for (uint32_t h = 0; h < 4; h++) {
            const uint32_t r = row + h < r1 ? row + h : row;
            const float fade = st.fade[r];
            o[h] = four(st.o + r * wide + d);
            o[h].x *= fade, o[h].y *= fade, o[h].z *= fade, o[h].w *= fade;
        }
        for (uint32_t j = 0; j < n; j++) {
            const float4 v = four(st.kv + j * (wide + 4) + d);
            LQ_UNROLL
            for (uint32_t h = 0; h < 4; h++) {
                const float p = st.score[(row + h < r1 ? row + h : row) * l.keys + j];
                o[h].x += p * v.x, o[h].y += p * v.y, o[h].z += p * v.z, o[h].w += p * v.w;
            }
        }
        LQ_UNROLL
        for (uint32_t h = 0; h < 4; h++)
            if (row + h < r1) *(float4 *)(void *)(st.o + (row + h) * wide + d) = o[h];
    }
}

/* Rows [r0, r1) of the block, all of one sequence, over the span's positions that one of them sees. */
static __device__ __forceinline__ void attend(const lq_device_attn &a, const lq_device_kv &kv, const layout &l, uint32_t seq, uint32_t r0, uint32_t r1, uint32_t base, const uint32_t *pos,
                                              const stage &st) {
    uint32_t begin = 0xffffffffu, end = 0, span = blockIdx.z * l.span;
    for (uint32_t r = r0; r < r1; r++) {
        const query q = query_of(a, pos, (base + r) / l.group);
        begin = q.begin < begin ? q.begin : begin;
        end = q.pos + 1 > end ? q.pos + 1 : end;
    }
    if (begin < span) begin = span;
    if (end > kv.room) end = kv.room;
    if (end - span > l.span && end > span) end = span + l.span;
    for (uint32_t from = begin; from < end; from += l.keys) {
        const uint32_t n = end - from < l.keys ? end - from : l.keys;
        __syncthreads();
        load_tile(kv, false, seq, blockIdx.y, from, n, st.kv);
        __syncthreads();
        score_tile(a, kv.dim, l, from, n, r0, r1, pos, base, st);
        __syncthreads();
        load_tile(kv, true, seq, blockIdx.y, from, n, st.kv);
        soften(l, r0, r1, st);
        __syncthreads();
        add_values(kv.dim, l, n, r0, r1, st);
    }
    __syncthreads();
}

static __device__ __forceinline__ stage stage_of(const layout &l, uint32_t dim) {
    stage st;
    st.q = (float *)(void *)lq_shared();
    st.o = st.q + l.rows * wide_of(dim);
    st.kv = st.o + l.rows * wide_of(dim);
    st.score = st.kv + l.keys * (wide_of(dim) + 4);
    st.max = st.score + l.rows * l.keys;
    st.sum = st.max + l.rows;
    st.fade = st.sum + l.rows;
    return st;
}

__global__ void __launch_bounds__(THREADS)
    run(const lq_device_attn a, const lq_device_kv kv, const float *q, uint32_t n, const uint32_t *pos, const uint32_t *seq, const layout l, float *out, float *partial) {
    lq_begin();
    const stage st = stage_of(l, kv.dim);
    const uint32_t all = n * l.group, base = blockIdx.x * l.rows, mine = all - base < l.rows ? all - base : l.rows;
    const uint32_t wide = wide_of(kv.dim);
    for (uint32_t i = threadIdx.x; i < mine * wide; i += THREADS) {
        uint32_t r = base + i / wide, d = i % wide;
        st.q[i] = d < kv.dim ? q[((size_t)(r / l.group) * a.heads + blockIdx.y * l.group + r % l.group) * kv.dim + d] : 0;
        st.o[i] = 0;
    }
    for (uint32_t r = threadIdx.x; r < mine; r += THREADS) st.max[r] = -INFINITY, st.sum[r] = 0;
    for (uint32_t r0 = 0, r1; r0 < mine; r0 = r1) {
        const uint32_t s = seq ? seq[(base + r0) / l.group] : 0;
        for (r1 = r0 + 1; r1 < mine && seq && seq[(base + r1) / l.group] == s;) r1++;
        if (!seq) r1 = mine;
        attend(a, kv, l, s, r0, r1, base, pos, st);
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < mine * kv.dim; i += THREADS) {
        uint32_t r = i / kv.dim, d = i % kv.dim, head = blockIdx.y * l.group + (base + r) % l.group;
        size_t row = (size_t)((base + r) / l.group) * a.heads + head;
        if (l.spans == 1) out[row * kv.dim + d] = st.o[r * wide + d] / st.sum[r];
        else partial[(row * l.spans + blockIdx.z) * (kv.dim + 2) + d] = st.o[r * wide + d];
    }
    for (uint32_t r = threadIdx.x; r < mine && l.spans > 1; r += THREADS) {
        size_t row = (size_t)((base + r) / l.group) * a.heads + blockIdx.y * l.group + (base + r) % l.group;
        float *to = partial + (row * l.spans + blockIdx.z) * (kv.dim + 2) + kv.dim;
        to[0] = st.max[r];
        to[1] = st.sum[r];
    }
}

/* A block per row joins its spans in their order. */
__global__ void __launch_bounds__(THREADS) join_run(const float *partial, uint32_t dim, uint32_t spans, float *out) {
    lq_begin();
    const float *p = partial + (size_t)blockIdx.x * spans * (dim + 2);
    float max = -INFINITY, sum = 0;
    for (uint32_t s = 0; s < spans; s++) max = fmaxf(max, p[(size_t)s * (dim + 2) + dim]);
    for (uint32_t s = 0; s < spans; s++) {
        const float *v = p + (size_t)s * (dim + 2) + dim;
        if (v[1] > 0) sum += v[1] * block::exponential(v[0] - max);
    }
    for (uint32_t d = threadIdx.x; d < dim; d += THREADS) {
        float o = 0;
        for (uint32_t s = 0; s < spans; s++) {
            const float *v = p + (size_t)s * (dim + 2);
            if (v[dim + 1] > 0) o += v[d] * block::exponential(v[dim] - max);
        }
        out[(size_t)blockIdx.x * dim + d] = o / sum;
    }
}

struct spread { uint32_t span, spans; };

/* Spans of at least SPAN positions, as many as fill a device where `blocks` blocks share one span. */
static spread spread_of(uint32_t blocks, uint32_t reach) {
    const uint32_t most = reach / SPAN + 1, want = (ENOUGH + blocks - 1) / blocks, spans = want < most ? want : most;
    const uint32_t span = (reach / spans + SPAN) / SPAN * SPAN;
    return spread{span, reach / span + 1};
}

static size_t bytes_of(const layout &l, uint32_t dim) { return ((size_t)2 * l.rows * wide_of(dim) + (size_t)l.rows * (l.keys + 3) + (size_t)l.keys * (wide_of(dim) + 4)) * sizeof(float); }

static layout layout_of(const lq_device_attn *a, const lq_device_kv *kv, const lq_device_tokens *at) {
    layout l = {a->heads / kv->heads, ROWS, 64, 0, 1, 0};
    if (at->n * l.group < l.rows) l.rows = at->n * l.group;
    if (at->seq && l.group < l.rows && at->n <= ENOUGH / ROWS) l.rows = l.group; /* a few tokens of as many sequences */
    while (bytes_of(l, kv->dim) > SHARED && l.keys > 8) l.keys /= 2;
    while (bytes_of(l, kv->dim) > SHARED && l.rows > 1) l.rows = (l.rows + 1) / 2;
    l.bytes = bytes_of(l, kv->dim);
    const spread p = spread_of((at->n * l.group + l.rows - 1) / l.rows * kv->heads, at->reach);
    l.span = p.span;
    l.spans = p.spans;
    return l;
}

static const char *start(const lq_device_attn *a, const lq_device_kv *kv, const float *q, const lq_device_tokens *at, float *out) {
    if (!has_type(kv->dtype)) return "no cache of keys and values in this type";
    const layout l = layout_of(a, kv, at);
    float *partial = nullptr;
    if (l.spans > 1 && !(partial = (float *)lq_scratch((size_t)at->n * a->heads * l.spans * (kv->dim + 2) * sizeof(float)))) return "no memory for the parts of attention";
    const char *why = lq_launch("attn", run, dim3((at->n * l.group + l.rows - 1) / l.rows, kv->heads, l.spans), dim3(THREADS), l.bytes, *a, *kv, q, at->n, at->pos, at->seq, l, out, partial);
    if (why || l.spans == 1) return why;
    return lq_launch("attn join", join_run, dim3(at->n * a->heads), dim3(THREADS), 0, (const float *)partial, kv->dim, l.spans, out);
}

} // namespace attn
#endif
