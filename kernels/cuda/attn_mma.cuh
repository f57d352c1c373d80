/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Attention over a cache of halves or bytes by mma: keys, then the values' dimensions, are the A operand, query rows the eight columns. A warp takes
 * sixteen keys at a time straight from memory, has its own running maximum, sum and output, and meets the others at the end, in warp order.
 *
 *   scores    A = keys g, g + 8 x dims;  of step s lane q holds four neighbouring dims of each       B = queries, halves and what halves left
 *   outputs   A = dims x keys 2 q, 2 q + 1, 2 q + 8, 2 q + 9;  lane g holds the same dims of each     B = e^(score - m) v step, split alike
 *
 * Bytes become halves exactly (integers, or E4M3 2^8 too small). Queries are first brought to 2^8, weights to 2^14 by powers of two, so what
 * two halves leave is 2^-21 of a row's largest. */
#ifndef LQ_ATTN_MMA_CUH
#define LQ_ATTN_MMA_CUH
#include "kernels/cuda/attn.cuh"

namespace attn {

constexpr int widest(int bytes) { return bytes % 16 == 0 ? 16 : bytes % 8 == 0 ? 8 : 4; }

template <int TYPE, int DIM> struct form { /* K_, V_: bytes a lane holds of a key, of a value; in loads of */
    enum { SIZE = TYPE == LQ_F16 ? 2 : 1, STEPS = DIM / 16, LD = DIM + 16,
           K_BYTES = DIM / 4 * SIZE, K_LOAD = widest(K_BYTES), K_WORDS = K_BYTES / 4, V_BYTES = DIM / 8 * SIZE, V_LOAD = widest(V_BYTES), V_WORDS = V_BYTES / 4 };
};

template <int LOAD, int WORDS> static __device__ __forceinline__ void load_words(const uint8_t *p, uint32_t stride, uint32_t *w) {
    LQ_UNROLL
    for (int i = 0; i < WORDS / (LOAD / 4); i++) {
        const void *from = p + (size_t)i * stride;
        if (LOAD == 16) {
            uint4 v = lq_load_written((const uint4 *)from);
            w[4 * i] = v.x, w[4 * i + (LOAD > 4)] = v.y, w[4 * i + (LOAD > 8 ? 2 : 0)] = v.z, w[4 * i + (LOAD > 8 ? 3 : 0)] = v.w;
        } else if (LOAD == 8) {
            uint2 v = *(const uint2 *)from;
            w[2 * i] = v.x, w[2 * i + (LOAD > 4)] = v.y;
        } else w[i] = *(const uint32_t *)from;
    }
}

/* Four bytes as halves: the lower two, the upper two. */
template <int TYPE> static __device__ __forceinline__ uint32_t halves(uint32_t w, int upper) {
    if (TYPE == LQ_I8) return lq_sub2(lq_bytes(w ^ 0x80808080u, 0x64646464u, upper ? 0x4342 : 0x4140), 0x64806480u);
    uint32_t u = lq_bytes(w, 0, upper ? 0x3424 : 0x1404);
    return (u & 0x80008000u) | (u & 0x7f007f00u) >> 1;
}

/* Two neighbouring dims of a key at step s: the first of the lane's four, or the last. */
template <int TYPE> static __device__ __forceinline__ uint32_t key_pair(const uint32_t *w, int s, int last) { return TYPE == LQ_F16 ? w[2 * s + last] : halves<TYPE>(w[TYPE == LQ_F16 ? 0 : s], last); }

/* The lane's elements 2 i (rows g), 2 i + 1 (rows g + 8) of two values. */
template <int TYPE> static __device__ __forceinline__ void value_pairs(const uint32_t *v0, const uint32_t *v1, int i, uint32_t *even, uint32_t *odd) {
    if (TYPE == LQ_F16) {
        *even = lq_bytes(v0[i], v1[i], 0x5410);
        *odd = lq_bytes(v0[i], v1[i], 0x7632);
    } else {
        uint32_t both = lq_bytes(v0[i / 2], v1[i / 2], i % 2 ? 0x7362 : 0x5140);
        *even = halves<TYPE>(both, 0);
        *odd = halves<TYPE>(both, 1);
    }
}

struct two { uint32_t top, rest; }; /* halves of two floats, and of what they leave */
static __device__ __forceinline__ two split(float a, float b) {
    uint16_t x = lq_half(a), y = lq_half(b);
    return two{lq_pair(x, y), lq_pair(lq_half(a - lq_float(x)), lq_half(b - lq_float(y)))};
}

/* 2^(to - e), e the exponent of v, and its inverse. */
struct power { float times, back; };
static __device__ __forceinline__ power power_of(float v, int to) {
    int e = (int)(lq_bits_of(v) >> 23 & 255) - 127;
    if (e < to - 126) e = to - 126;
    return power{lq_of_bits((uint32_t)(127 + to - e) << 23), lq_of_bits((uint32_t)(127 + e - to) << 23)};
}

struct mma_layout { uint32_t group, unit, tiles, span, spans; size_t bytes; }; /* rows of one sequence at most, blocks of them */

template <int DIM, int EIGHTS> struct mma_stage {
    enum { COLS = 8 * EIGHTS, LD = DIM + 16 };
    uint16_t top[COLS * LD], rest[COLS * LD];
    float worth[COLS], part[WARPS];
    uint32_t pos[COLS], begin[COLS];
    float o[WARPS][COLS][DIM], max[WARPS][COLS], sum[WARPS][COLS];
};

struct place { uint32_t base, mine, seq; }; /* first row of the block, how many */
static __device__ __forceinline__ place place_of(const mma_layout &l, uint32_t cols, const uint32_t *seq) {
    uint32_t unit = blockIdx.x / l.tiles, at = blockIdx.x % l.tiles * cols, left = l.unit - at;
    return place{unit * l.unit + at, left < cols ? left : cols, seq ? seq[unit * l.unit / l.group] : 0};
}

static __device__ __forceinline__ size_t row_of(const lq_device_attn &a, const mma_layout &l, uint32_t r) { return (size_t)(r / l.group) * a.heads + blockIdx.y * l.group + r % l.group; }

template <int DIM, int EIGHTS>
static __device__ __forceinline__ void stage_queries(const lq_device_attn &a, const mma_layout &l, const place &at, const float *q, const uint32_t *pos, float worth, mma_stage<DIM, EIGHTS> &st) {
    enum { COLS = 8 * EIGHTS, LD = DIM + 16 };
    const uint32_t lane = threadIdx.x % LANES;
    for (uint32_t c = threadIdx.x / LANES; c < COLS; c += WARPS) {
        const bool mine = c < at.mine;
        const float *x = q + row_of(a, l, at.base + (mine ? c : 0)) * DIM;
        float max = 0;
        for (uint32_t d = lane; d < DIM; d += LANES) max = fmaxf(max, fabsf(x[d]));
        const power p = power_of(block::warp_max(max), 8);
        for (uint32_t d = lane; d < DIM; d += LANES) {
            float v = mine ? x[d] * p.times : 0;
            uint16_t top = lq_half(v);
            st.top[c * LD + d] = top;
            st.rest[c * LD + d] = lq_half(v - lq_float(top));
        }
        if (lane == 0) {
            const query see = query_of(a, pos, (at.base + (mine ? c : 0)) / l.group);
            st.worth[c] = p.back * a.scale * worth;
            st.pos[c] = see.pos;
            st.begin[c] = mine ? see.begin : see.pos;
        }
    }
}

/* The largest step of values in [begin, end). */
template <typename STAGE> static __device__ __forceinline__ float largest_step(const lq_device_kv &kv, uint32_t seq, uint32_t begin, uint32_t end, STAGE &st) {
    float max = 0;
    for (uint32_t k = begin + threadIdx.x; k < end; k += THREADS) max = fmaxf(max, kv.value_step[((size_t)seq * kv.room + k) * kv.heads + blockIdx.y]);
    return block::block_max(max, st.part);
}

/* Scores of a column become weights; how much what was before is worth now. */
struct running { float max[2], sum[2]; };
static __device__ __forceinline__ void soften_tile(float s[4], running &r, float fade[2]) {
    LQ_UNROLL
    for (int c = 0; c < 2; c++) {
        float max = fmaxf(s[c], s[2 + c]);
        for (int lanes = 4; lanes < LANES; lanes *= 2) max = fmaxf(max, lq_shuffle_xor(max, lanes));
        max = fmaxf(max, r.max[c]);
        const float base = max == -INFINITY ? 0 : max;
        fade[c] = block::exponential(r.max[c] - base);
        for (int h = 0; h < 4; h += 2) s[h + c] = s[h + c] == -INFINITY ? 0 : block::exponential(s[h + c] - base);
        r.sum[c] = r.sum[c] * fade[c] + (s[c] + s[2 + c]);
        r.max[c] = max;
    }
}

template <int TYPE, int DIM, int EIGHTS>
__global__ void __launch_bounds__(THREADS, 2)
    mma_run(const __grid_constant__ lq_device_attn a, const __grid_constant__ lq_device_kv kv, const float *q, const uint32_t *pos, const uint32_t *seq, const mma_layout l, float *out, float *partial) {
    typedef form<TYPE, DIM> F;
    enum { COLS = 8 * EIGHTS, LD = DIM + 16, K_UNIT = F::K_LOAD / F::SIZE, V_UNIT = F::V_LOAD / F::SIZE, AHEAD = DIM <= 128 }; /* AHEAD: registers hold the next keys */
    lq_begin();
    mma_stage<DIM, EIGHTS> &st = *(mma_stage<DIM, EIGHTS> *)(void *)lq_shared();
    const uint32_t warp = threadIdx.x / LANES, lane = threadIdx.x % LANES, g = lane / 4, r4 = lane % 4;
    const place at = place_of(l, COLS, seq);
    const bool bytes = TYPE != LQ_F16, stepped = bytes && kv.value_step;
    stage_queries<DIM, EIGHTS>(a, l, at, q, pos, TYPE == LQ_E4M3 ? 256.0f : 1.0f, st);
    __syncthreads();
    uint32_t begin = 0xffffffffu, end = 0;
    for (uint32_t c = 0; c < at.mine; c++) {
        begin = st.begin[c] < begin ? st.begin[c] : begin;
        end = st.pos[c] + 1 > end ? st.pos[c] + 1 : end;
    }
    const uint32_t span = blockIdx.z * l.span;
    if (begin < span) begin = span;
    if (end > span + l.span) end = span + l.span;
    if (end > kv.room) end = kv.room;
    const power values = power_of(stepped ? largest_step(kv, at.seq, begin, end, st) : 1, 14);
    const size_t pitch = (size_t)kv.heads * DIM * F::SIZE;
    const uint8_t *keys = (const uint8_t *)kv.keys + ((size_t)at.seq * kv.room * kv.heads + blockIdx.y) * DIM * F::SIZE + F::K_LOAD * r4;
    const uint8_t *vals = (const uint8_t *)kv.values + ((size_t)at.seq * kv.room * kv.heads + blockIdx.y) * DIM * F::SIZE + F::V_LOAD * g;
    uint32_t kw[2][F::K_WORDS] = {}, vw[4][F::V_WORDS];
    float o[F::STEPS][EIGHTS][4] = {};
    running run[EIGHTS];
    LQ_UNROLL
    for (int j = 0; j < EIGHTS; j++) run[j] = running{{-INFINITY, -INFINITY}, {0, 0}};
    uint32_t k = begin + 16 * warp;
    auto load_keys = [&](uint32_t from) {
        LQ_UNROLL
        for (uint32_t h = 0; h < 2; h++)
            if (from < end) load_words<F::K_LOAD, F::K_WORDS>(keys + (size_t)(from + g + 8 * h < end ? from + g + 8 * h : end - 1) * pitch, 4 * F::K_LOAD, kw[h]);
    };
    if (AHEAD) load_keys(k);
    for (; k < end; k += 16 * WARPS) {
        float s[EIGHTS][4] = {}, key_step[2], value_step[2];
        if (!AHEAD) load_keys(k);
        LQ_UNROLL
        for (uint32_t h = 0; h < 4; h++) {
            uint32_t key = k + 2 * r4 + h % 2 + h / 2 * 8;
            load_words<F::V_LOAD, F::V_WORDS>(vals + (size_t)(key < end ? key : end - 1) * pitch, 8 * F::V_LOAD, vw[h]);
        }
        LQ_UNROLL
        for (uint32_t h = 0; h < 2; h++) {
            size_t row = ((size_t)at.seq * kv.room + (k + g + 8 * h < end ? k + g + 8 * h : end - 1)) * kv.heads + blockIdx.y;
            key_step[h] = !bytes ? 1 : stepped ? kv.key_step[row] : kv.key_fixed;
            value_step[h] = (stepped ? kv.value_step[row] : 1) * values.times;
        }
        LQ_UNROLL
        for (int i = 0; i < F::STEPS; i++) {
            const uint32_t word = F::SIZE * i, d = K_UNIT * r4 + 4 * K_UNIT * (word / (F::K_LOAD / 4)) + word % (F::K_LOAD / 4) * (4 / F::SIZE);
            const uint32_t key[4] = {key_pair<TYPE>(kw[0], i, 0), key_pair<TYPE>(kw[1], i, 0), key_pair<TYPE>(kw[0], i, 1), key_pair<TYPE>(kw[1], i, 1)};
            LQ_UNROLL
            for (int j = 0; j < EIGHTS; j++) {
                uint2 top = *(const uint2 *)(const void *)(st.top + (8 * j + g) * LD + d), rest = *(const uint2 *)(const void *)(st.rest + (8 * j + g) * LD + d);
                lq_mma_f16(s[j], key, top.x, top.y);
                lq_mma_f16(s[j], key, rest.x, rest.y);
            }
        }
        if (AHEAD) load_keys(k + 16 * WARPS);
        two low[EIGHTS], high[EIGHTS];
        LQ_UNROLL
        for (int j = 0; j < EIGHTS; j++) {
            float fade[2];
            LQ_UNROLL
            for (int i = 0; i < 4; i++) {
                const uint32_t c = 8 * j + 2 * r4 + i % 2, key = k + g + i / 2 * 8;
                float v = s[j][i] * st.worth[c] * key_step[i / 2];
                if (a.cap > 0) v = a.cap * tanhf(v / a.cap);
                s[j][i] = key < end && key >= st.begin[c] && key <= st.pos[c] ? v : -INFINITY;
            }
            soften_tile(s[j], run[j], fade);
            LQ_UNROLL
            for (int i = 0; i < F::STEPS; i++)
                for (int e = 0; e < 4; e++) o[i][j][e] *= fade[e % 2];
            low[j] = split(s[j][0] * value_step[0], s[j][1] * value_step[0]);
            high[j] = split(s[j][2] * value_step[1], s[j][3] * value_step[1]);
            low[j].top = lq_transpose(low[j].top), low[j].rest = lq_transpose(low[j].rest);
            high[j].top = lq_transpose(high[j].top), high[j].rest = lq_transpose(high[j].rest);
        }
        LQ_UNROLL
        for (int i = 0; i < F::STEPS; i++) {
            uint32_t v[4];
            value_pairs<TYPE>(vw[0], vw[1], i, &v[0], &v[1]);
            value_pairs<TYPE>(vw[2], vw[3], i, &v[2], &v[3]);
            LQ_UNROLL
            for (int j = 0; j < EIGHTS; j++) {
                lq_mma_f16(o[i][j], v, low[j].top, high[j].top);
                lq_mma_f16(o[i][j], v, low[j].rest, high[j].rest);
            }
        }
    }
    LQ_UNROLL
    for (int j = 0; j < EIGHTS; j++)
        LQ_UNROLL
        for (int e = 0; e < 4; e++) {
            const uint32_t c = 8 * j + 2 * r4 + e % 2;
            float sum = run[j].sum[e % 2];
            for (int lanes = 4; lanes < LANES; lanes *= 2) sum += lq_shuffle_xor(sum, lanes);
            if (g == 0 && e < 2) st.max[warp][c] = run[j].max[e], st.sum[warp][c] = sum;
            LQ_UNROLL
            for (int i = 0; i < F::STEPS; i++) {
                const uint32_t n = 2 * i + e / 2;
                st.o[warp][c][V_UNIT * g + 8 * V_UNIT * (n / V_UNIT) + n % V_UNIT] = o[i][j][e];
            }
        }
    __syncthreads();
    const float worth = values.back * (TYPE == LQ_E4M3 ? 256.0f : 1.0f) * (bytes && !stepped ? kv.value_fixed : 1);
    for (uint32_t i = threadIdx.x; i < at.mine * DIM; i += THREADS) {
        const uint32_t c = i / DIM, d = i % DIM;
        float max = st.max[0][c], sum = 0, v = 0;
        for (int w = 1; w < WARPS; w++) max = fmaxf(max, st.max[w][c]);
        for (int w = 0; w < WARPS; w++) {
            if (st.max[w][c] == -INFINITY) continue;
            const float times = block::exponential(st.max[w][c] - max);
            sum += st.sum[w][c] * times;
            v += st.o[w][c][d] * times;
        }
        const size_t row = row_of(a, l, at.base + c);
        v *= worth;
        if (l.spans == 1) out[row * DIM + d] = v / sum;
        else {
            float *to = partial + (row * l.spans + blockIdx.z) * (DIM + 2);
            to[d] = v;
            if (d == 0) to[DIM] = max, to[DIM + 1] = sum;
        }
    }
}

template <int TYPE, int DIM, int EIGHTS>
static const char *mma_start(const lq_device_attn *a, const lq_device_kv *kv, const float *q, const lq_device_tokens *at, float *out) {
    const uint32_t group = a->heads / kv->heads, unit = at->seq ? group : at->n * group, cols = 8 * EIGHTS;
    mma_layout l = {group, unit, (unit + cols - 1) / cols, 0, 0, sizeof(mma_stage<DIM, EIGHTS>)};
    const uint32_t x = l.tiles * (at->seq ? at->n : 1);
    const spread s = spread_of(x * kv->heads, at->reach);
    float *partial = nullptr;
    l.span = s.span;
    l.spans = s.spans;
    if (l.spans > 1 && !(partial = (float *)lq_scratch((size_t)at->n * a->heads * l.spans * (DIM + 2) * sizeof(float)))) return "no memory for the parts of attention";
    const char *why = lq_launch("attn mma", mma_run<TYPE, DIM, EIGHTS>, dim3(x, kv->heads, l.spans), dim3(THREADS), l.bytes, *a, *kv, q, at->pos, at->seq, l, out, partial);
    if (why || l.spans == 1) return why;
    return lq_launch("attn join", join_run, dim3(at->n * a->heads), dim3(THREADS), 0, (const float *)partial, (uint32_t)DIM, l.spans, out);
}

template <int TYPE> static const char *mma_pick(const lq_device_attn *a, const lq_device_kv *kv, const float *q, const lq_device_tokens *at, float *out) {
    const bool few = a->heads / kv->heads * (at->seq ? 1 : at->n) <= 8;
    switch (kv->dim) {
    case 64: return few ? mma_start<TYPE, 64, 1>(a, kv, q, at, out) : mma_start<TYPE, 64, 2>(a, kv, q, at, out);
    case 96: return few ? mma_start<TYPE, 96, 1>(a, kv, q, at, out) : mma_start<TYPE, 96, 2>(a, kv, q, at, out);
    case 128: return few ? mma_start<TYPE, 128, 1>(a, kv, q, at, out) : mma_start<TYPE, 128, 2>(a, kv, q, at, out);
    default: return mma_start<TYPE, 256, 1>(a, kv, q, at, out);
    }
}

static bool mma_has(const lq_device_kv *kv) {
    const bool dim = kv->dim == 64 || kv->dim == 96 || kv->dim == 128 || kv->dim == 256;
    return dim && (kv->dtype == LQ_F16 || kv->dtype == LQ_I8 || kv->dtype == LQ_E4M3) && ((uintptr_t)kv->keys | (uintptr_t)kv->values) % 16 == 0;
}

static const char *any(const lq_device_attn *a, const lq_device_kv *kv, const float *q, const lq_device_tokens *at, float *out) {
    if (!mma_has(kv)) return start(a, kv, q, at, out);
    return kv->dtype == LQ_F16 ? mma_pick<LQ_F16>(a, kv, q, at, out) : kv->dtype == LQ_I8 ? mma_pick<LQ_I8>(a, kv, q, at, out) : mma_pick<LQ_E4M3>(a, kv, q, at, out);
}

} // namespace attn
#endif
