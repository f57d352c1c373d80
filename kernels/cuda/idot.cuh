/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* y = W x for rounded activations, 1 to 16 tokens in one pass: codes and activations as bytes, summed as whole numbers by mma, whose eight columns are tokens, once or
 * twice (E). Codes of up to 4 bits are masked, not shifted: the sums of rows g + 8 come out 16 times too large, exactly.
 *
 *   ROW    one segment and one step per token: the sum over the row is a whole number, scaled once in fp64: the bits of the CPU
 *   CHUNK  y = sum over units of  s'(r) (step sum code x) - z'(r) (step sum x), in fp32;  FINE: a chunk has several units
 *   SPLIT  ROW, and what rounding has left out (lq_device_rest), of 8 bits: while a chunk is in registers that holds such a column of any of
 *          the tokens, mma of halves on top, fp32, scaled once; added to the ROW's rounded sum. Other chunks cost a look at a word */
#ifndef LQ_IDOT_CUH
#define LQ_IDOT_CUH
#include "kernels/cuda/gemv.cuh"

namespace idot {

using namespace tile;
enum mode { ROW, CHUNK, FINE, SPLIT };

/* What the sums of rows g + 8 are too large by, in bits. */
template <int F0, int F1> struct excess { enum { BITS = F0 + F1 <= 4 ? 4 : 0 }; };

/* A operands of two steps, s and s + 1. */
template <int F0, int F1> static __device__ __forceinline__ void operands(const uint32_t *w, int s, uint32_t a[4]) {
    for (int i = 0; i < 2; i++) {
        const uint32_t u = F0 + F1 <= 4 ? nibbles<F0, F1>(w, s + i) : 0;
        a[2 * i] = F0 + F1 <= 4 ? u & 0x0f0f0f0fu : codes<F0, F1>(w, s + i, 0);
        a[2 * i + 1] = F0 + F1 <= 4 ? u & 0xf0f0f0f0u : codes<F0, F1>(w, s + i, 1);
    }
}

struct stage {
    int8_t *x;    /* [n][ld] */
    float *steps; /* [spans][g][4]: s' = s times, of row g + 8 less the excess; z' = s bias + (s z or the minimum) */
    float2 *sum;  /* [units][8 E]: the activations' step; step times their sum */
    int32_t *part; /* [WARPS][16][8 E] int32 or fp32 */
    uint32_t *any, *where; /* SPLIT: [words of a panel] of any token; [tokens][words] */
};

struct acts { const int8_t *x; const float *step; const int32_t *ones; uint32_t wide; lq_device_rest rest; }; /* lq_packed_i in device memory; wide: columns of x there */

static __device__ __forceinline__ void load_panel(const joint::job &j, const acts &a, uint32_t n, uint32_t k0, const layout &l, const stage &st) {
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t c = threadIdx.x * 4; c < l.panel; c += WARPS * LANES * 4) {
            uint32_t v = k0 + c < a.wide ? *(const uint32_t *)(const void *)(a.x + (size_t)joint::token_of(j, t) * a.wide + k0 + c) : 0;
            *(uint32_t *)(void *)(st.x + t * l.ld + c) = v;
        }
}

/* Which columns are left out, of a panel. */
static __device__ __forceinline__ void load_where(const joint::job &j, const acts &a, uint32_t n, uint32_t k0, const layout &l, const stage &st) {
    const uint32_t words = a.wide / LANES, first = k0 / LANES;
    for (uint32_t i = threadIdx.x; i < l.units; i += WARPS * LANES) {
        uint32_t any = 0;
        for (uint32_t t = 0; t < n; t++) {
            const uint32_t v = first + i < words ? a.rest.where[(size_t)joint::token_of(j, t) * words + first + i] : 0;
            st.where[t * l.units + i] = v;
            any |= v;
        }
        st.any[i] = any;
    }
}

/* Of four columns of a token from value on, what is left out of them; used: is any of them? */
struct four { uint2 high, low; };
static __device__ __forceinline__ four load_four(bool used, const uint16_t *value) {
    four v = {{0, 0}, {0, 0}};
    if (used) v = {*(const uint2 *)(const void *)value, *(const uint2 *)(const void *)(value + 4)};
    return v;
}
static __device__ __forceinline__ void multiply_four(const uint32_t a[4], const four &v, float acc[4]) {
    lq_mma_f16(acc, a, v.high.x, v.high.y);
    lq_mma_f16(acc, a, v.low.x, v.low.y);
}

/* A chunk: the bits of mine from 0 and from STEP on are this lane's columns. */
template <int E> static __device__ __forceinline__ void add_left(const uint32_t *w, const gemv::offsets &z, const uint32_t mine[E], const uint16_t *const value[E], uint32_t k, float acc[E][4]) {
    four v[E][2];
LQ_UNROLL
    for (int e = 0; e < E; e++)
        for (int s = 0; s < 2; s++) v[e][s] = load_four(mine[e] >> s * STEP & 15, value[e] + 2 * (k + s * STEP));
LQ_UNROLL
    for (int s = 0; s < 2; s++) {
        uint32_t a[4];
        gemv::operands<8, 0, gemv::INT>(w, s, z, 0, a);
LQ_UNROLL
        for (int e = 0; e < E; e++) multiply_four(a, v[e][s], acc[e]);
    }
}

template <int E>
static __device__ __forceinline__ void sum_panel(const joint::job &j, const lq_device_matrix &m, const acts &a, uint32_t n, uint32_t k0, const layout &l, const stage &st) {
    for (uint32_t i = threadIdx.x; i < l.units * 8 * E; i += WARPS * LANES) {
        uint32_t u = i / (8 * E) << l.unit, t = i % (8 * E), seg = m.segs == 1 ? 0 : (k0 + u) / m.seg;
        int32_t sum = 0;
        for (uint32_t c = 0; t < n && c < 1u << l.unit; c++) sum += st.x[t * l.ld + u + c];
        float step = t < n ? a.step[(size_t)joint::token_of(j, t) * m.segs + (seg < m.segs ? seg : m.segs - 1)] : 0;
        st.sum[i] = {step, step * (float)sum};
    }
}

static __device__ __forceinline__ segment step_of(const lq_device_matrix &m, segment v) {
    return {v.s * (float)m.times, v.s * (float)m.bias + (m.zero_kind == LQ_ZERO_MIN ? v.z : v.s * v.z)};
}

/* Columns 2 q, 2 q + 1 of rows g, g + 8. At most 256 columns: a unit's sums are whole floats, the excess included. */
template <int EXCESS> static __device__ __forceinline__ void flush(const float *steps, const float2 *sum, int32_t part[4], float acc[4]) {
    const float4 v = *(const float4 *)(const void *)steps, x = *(const float4 *)(const void *)sum;
    const float low = v.y * (1.0f / (1 << EXCESS));
    acc[0] += v.x * (float)part[0] * x.x;
    acc[1] += v.x * (float)part[1] * x.z;
    acc[2] += low * (float)part[2] * x.x;
    acc[3] += low * (float)part[3] * x.z;
    acc[0] -= v.z * x.y;
    acc[1] -= v.z * x.w;
    acc[2] -= v.w * x.y;
    acc[3] -= v.w * x.w;
    part[0] = part[1] = part[2] = part[3] = 0;
}

/* One chunk: x, steps and sum from its first column on. */
template <int F0, int F1, int MODE, int E>
static __device__ __forceinline__ void chunk(const uint32_t *w, const int8_t *const x[E], uint32_t at, const float *steps, const float2 *sum, uint32_t columns, int32_t part[E][4], float acc[E][4]) {
    typedef shape<F0, F1> S;
    enum { EXCESS = excess<F0, F1>::BITS };
LQ_UNROLL
    for (int s = 0; s < S::STEPS; s += 2) {
        uint32_t a[4], b[E][2];
LQ_UNROLL
        for (int i = 0; i < 2 * E; i++) b[i / 2][i % 2] = *(const uint32_t *)(const void *)(x[i / 2] + at + (s + i % 2) * STEP);
        operands<F0, F1>(w, s, a);
        if (MODE == FINE && columns == (uint32_t)STEP) { /* the two steps belong to two units */
LQ_UNROLL
            for (int e = 0; e < E; e++) {
                lq_mma_u8s8(part[e], a, b[e][0], 0);
                flush<EXCESS>(steps, sum + 8 * e, part[e], acc[e]);
                b[e][0] = 0;
            }
            steps += 32;
            sum += 8 * E;
        }
        const bool due = (MODE == CHUNK && s + 2 == S::STEPS) || (MODE == FINE && columns <= (uint32_t)(((s + 2) & -(s + 2)) * STEP));
LQ_UNROLL
        for (int e = 0; e < E; e++) {
            lq_mma_u8s8(part[e], a, b[e][0], b[e][1]);
            if (due) flush<EXCESS>(steps, sum + 8 * e, part[e], acc[e]);
        }
        if (MODE == FINE && due) {
            steps += 32;
            sum += 8 * E;
        }
    }
}

/* What the whole sum of a row is worth: the CPU's bits. */
static __device__ __forceinline__ float worth(const lq_device_matrix &m, const acts &a, uint32_t tile, uint32_t r, uint32_t t, int32_t sum) {
    const segment v = load_segment(m, tile, 0, (int)r);
    double ones = a.ones[t], whole = (double)((int64_t)sum * m.times - (int64_t)m.bias * a.ones[t]), s = v.s, z = (double)v.z * (m.zero_kind == LQ_ZERO_MIN ? 1 : s);
    return (float)lq_scaled(a.step[t], s, whole, z, ones);
}

/* The warps' sums, and what becomes of them. */
template <int F0, int F1, int MODE, int E>
static __device__ __forceinline__ void end(const joint::job &j, const acts &in, uint32_t p, int32_t part[E][4], const float acc[E][4], const stage &st) {
    const lq_device_matrix &m = j.of[p].m;
    if (MODE != ROW && MODE != SPLIT) {
        join<E>(m, joint::tile_of(j, p), acc, j.n, (float *)(void *)st.part, [&](uint32_t r, uint32_t t, float sum) { joint::finish(j, p, r, t, sum); });
        return;
    }
    float left = 0; /* of the one sum that this thread will have */
LQ_UNROLL
    for (int i = 0; i < 2 * E; i++) part[i / 2][2 + i % 2] >>= excess<F0, F1>::BITS;
    if (MODE == SPLIT) {
        join<E>(m, joint::tile_of(j, p), acc, j.n, (float *)(void *)st.part, [&](uint32_t r, uint32_t, float sum) { left = load_segment(m, joint::stored_tile_of(j, p), 0, (int)(r % 16)).s * sum; });
        __syncthreads();
    }
    join<E>(m, joint::tile_of(j, p), part, j.n, st.part, [&](uint32_t r, uint32_t t, int32_t sum) {
        const float v = worth(m, in, joint::stored_tile_of(j, p), r % 16, joint::token_of(j, t), sum);
        joint::finish(j, p, r, t, MODE == SPLIT ? lq_add(v, left) : v);
    });
}

template <int F0, int F1, int MODE, int E> static __device__ __forceinline__ void multiply(const joint::job &j, const acts &in, const layout &l) {
    enum { WHOLE = MODE == ROW || MODE == SPLIT };
    joint::begin<F0, F1>(j);
    stage st;
    st.part = (int32_t *)(void *)lq_shared();
    st.steps = (float *)(void *)(st.part + WARPS * 16 * 8 * E);
    st.sum = (float2 *)(void *)(st.steps + l.spans * 32);
    st.any = (uint32_t *)(void *)st.sum;
    st.where = st.any + l.units;
    st.x = (int8_t *)(void *)(st.sum + (WHOLE ? 0 : l.units * 8 * E)) + (MODE == SPLIT ? (j.n + 1) * l.units * 4 : 0);
    const uint32_t lane = threadIdx.x % LANES, g = lane / 4, q = lane % 4, n = j.n;
    const int8_t *mine[E];
    const uint32_t *where[E];
    const uint16_t *value[E];
LQ_UNROLL
    for (int e = 0; e < E; e++) { /* lanes without a token repeat token 0: what they add to is never read */
        const uint32_t t = g + 8 * e < n ? g + 8 * e : 0;
        mine[e] = st.x + t * l.ld + 4 * q;
        where[e] = st.where + t * l.units;
        value[e] = MODE == SPLIT ? in.rest.value + 2 * ((size_t)joint::token_of(j, t) * in.wide + 4 * q) : nullptr;
    }
    uint32_t p = joint::part_of(j);
    do {
        const lq_device_matrix &m = j.of[p].m;
        float acc[E][4] = {};
        int32_t part[E][4] = {};
        gemv::offsets z;
        z.minus[0] = z.minus[1] = MODE == SPLIT ? gemv::twice(1024 + (float)m.bias) : 0;
        walk<F0, F1>(
            m, joint::stored_tile_of(j, p), l.panel,
            [&](uint32_t k0) {
                if (!WHOLE) fill_steps(m, joint::stored_tile_of(j, p), k0, l.span, l.spans, threadIdx.x, WARPS * LANES, st.steps, [&](segment v) { return step_of(m, v); });
                lq_wait_before();
                load_panel(j, in, n, k0, l, st);
                if (MODE == SPLIT) load_where(j, in, n, k0, l, st);
                __syncthreads();
                if (WHOLE) return;
                sum_panel<E>(j, m, in, n, k0, l, st);
                __syncthreads();
            },
            [&](const uint32_t *w, uint32_t k, uint32_t at) {
                const float *steps = st.steps + ((k >> l.span) - ((k - at) >> l.span)) * 32 + g * 4;
                chunk<F0, F1, MODE, E>(w, mine, at, steps, st.sum + (at >> l.unit) * 8 * E + 2 * q, 1u << l.unit, part, acc);
                if (MODE != SPLIT || !st.any[at / LANES]) return;
                uint32_t here[E];
LQ_UNROLL
                for (int e = 0; e < E; e++) here[e] = where[e][at / LANES] >> 4 * q;
                add_left<E>(w, z, here, value, k, acc);
            });
        end<F0, F1, MODE, E>(j, in, p, part, acc, st);
    } while (j.glu && ++p < j.parts);
}

template <int F0, int F1, int MODE> __global__ void __launch_bounds__(WARPS *LANES, F1 || (F0 == 1 && MODE == FINE) ? 2 : 3) run(const __grid_constant__ joint::job j, const acts in, const layout l) {
    multiply<F0, F1, MODE, 1>(j, in, l);
}
template <int F0, int F1, int MODE> __global__ void __launch_bounds__(WARPS *LANES, F1 && MODE == FINE ? 1 : 2) run16(const __grid_constant__ joint::job j, const acts in, const layout l) {
    multiply<F0, F1, MODE, 2>(j, in, l);
}

static inline acts acts_of(const lq_device_product *d, uint32_t t, uint32_t wide) {
    const uint32_t segs = d->part[0].m->segs;
    const lq_device_rest r = {d->rest.value ? d->rest.where + (size_t)t * (wide / LANES) : nullptr, d->rest.value ? d->rest.value + 2 * (size_t)t * wide : nullptr};
    return {d->codes + (size_t)t * wide, d->step + (size_t)t * segs, d->sum + (size_t)t * segs, wide, r};
}

struct call { /* tokens [t, end) of a product */
    const lq_device_product *d;
    uint32_t t, end, wide;
};

/* As many in one pass as shared memory holds. */
template <int F0, int F1, int MODE, int E> static const char *start(const call &c) {
    const size_t fixed = WARPS * 16 * 8 * E * 4, most = lq_shared_most();
    const lq_device_matrix &m = *c.d->part[0].m;
    for (uint32_t t = c.t, few = c.end - c.t; t < c.end; t += few) {
        layout l;
        few = few < c.end - t ? few : c.end - t;
        while (!plan<F0, F1>(m, MODE != ROW && MODE != SPLIT, few, 1, MODE == SPLIT ? (few + 1) * 4 : MODE == ROW ? 0 : 8 * E * 8, fixed, most, &l)) {
            if (E > 1) {
                const char *why = start<F0, F1, MODE, 1>(call{c.d, t, t + 8, c.wide});
                return why ? why : start<F0, F1, MODE, 1>(call{c.d, t + 8, c.end, c.wide});
            }
            if (!(few /= 2)) return "not enough shared memory for a panel of this matrix";
        }
        const acts some = acts_of(c.d, t, c.wide);
        const joint::job j = joint::job_of(c.d, t, few);
        const char *why = lq_launch("idot", E > 1 ? run16<F0, F1, MODE> : run<F0, F1, MODE>, dim3(j.blocks, c.d->pick ? c.d->n : 1), dim3(WARPS * LANES), l.bytes, j, some, l);
        if (why) return why;
    }
    return nullptr;
}

/* Is a row's sum one whole number? 2^31 holds 127 * 255 * 65536 but not every sum 16 times too large. */
template <int F0, int F1> static inline bool in_row(const lq_device_matrix &m) { return m.segs == 1 && (uint64_t)m.cols * 127 * ((1u << m.bits) - 1) << excess<F0, F1>::BITS >> 31 == 0; }

template <int F0, int F1, int MODE> static const char *pick_columns(const call &c) { return c.end - c.t > 8 ? start<F0, F1, MODE, 2>(c) : start<F0, F1, MODE, 1>(c); }

template <int F0, int F1> static const char *pick_mode(const call &c) {
    if (in_row<F0, F1>(*c.d->part[0].m)) return pick_columns<F0, F1, ROW>(c);
    return is_fine<F0, F1>(*c.d->part[0].m) ? pick_columns<F0, F1, FINE>(c) : pick_columns<F0, F1, CHUNK>(c);
}

} // namespace idot
#endif
