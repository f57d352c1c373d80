/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* y = W x for rounded activations: codes and activations as bytes, summed as whole numbers by mma. Codes of 4 and 2 bits are masked, not
 * shifted: the sums of rows g + 8 come out 16 or 4 times too large, exactly.
 *
 *   ROW    one segment and one step per token: the sum over the row is a whole number, scaled once in fp64: the bits of the CPU
 *   CHUNK  y = sum over chunks of step s (sum A(code) x) - step z' sum x, in fp32;  FINE: over steps of 16 columns */
#ifndef LQ_IDOT_CUH
#define LQ_IDOT_CUH
#include "kernels/cuda/tile.cuh"

namespace idot {

using namespace tile;
enum mode { ROW, CHUNK, FINE };
enum { PAD = 16 };

/* What the sums of rows g + 8 are too large by, in bits. */
template <int F0, int F1> struct excess { enum { BITS = F1 || F0 == 8 ? 0 : F0 == 4 ? 4 : F0 == 2 ? 2 : 0 }; };

/* A operands of two steps, s and s + 1. */
template <int F0, int F1> static __device__ __forceinline__ void operands(const uint32_t *w, int s, uint32_t a[4]) {
    if (!F1 && F0 == 4) {
        a[0] = w[s] & 0x0f0f0f0fu;
        a[1] = w[s] & 0xf0f0f0f0u;
        a[2] = w[s + 1] & 0x0f0f0f0fu;
        a[3] = w[s + 1] & 0xf0f0f0f0u;
    } else if (!F1 && F0 == 2) { /* both steps in one word */
        uint32_t lo = w[s / 2], hi = lo >> 4;
        a[0] = lo & 0x03030303u;
        a[1] = lo & 0x0c0c0c0cu;
        a[2] = hi & 0x03030303u;
        a[3] = hi & 0x0c0c0c0cu;
    } else {
        for (int i = 0; i < 4; i++) a[i] = codes<F0, F1>(w, s + i / 2, i % 2);
    }
}

struct stage {
    int8_t *x;  /* [n][ld] */
    float *sum; /* [flushes of a panel][TOKENS] whole numbers */
    void *part; /* [WARPS][16][TOKENS] int32 or fp32 */
};
struct layout { uint32_t panel, ld, sums, wide; size_t bytes; }; /* wide: columns of x in memory */

static __device__ __forceinline__ void load_panel(const int8_t *x, uint32_t n, uint32_t k0, const layout &l, const stage &st) {
    for (uint32_t i = threadIdx.x; i < n * (l.panel / 4); i += WARPS * LANES) {
        uint32_t t = i / (l.panel / 4), c = i % (l.panel / 4) * 4;
        uint32_t v = k0 + c < l.wide ? *(const uint32_t *)(const void *)(x + (size_t)t * l.wide + k0 + c) : 0;
        *(uint32_t *)(void *)(st.x + t * l.ld + c) = v;
    }
}

static __device__ __forceinline__ void sum_panel(uint32_t n, uint32_t unit, const layout &l, const stage &st) {
    for (uint32_t i = threadIdx.x; i < l.panel / unit * TOKENS; i += WARPS * LANES) {
        uint32_t u = i / TOKENS, t = i % TOKENS;
        int32_t sum = 0;
        for (uint32_t c = 0; t < n && c < unit; c++) sum += st.x[t * l.ld + u * unit + c];
        st.sum[i] = (float)sum;
    }
}

/* Columns 2 q, 2 q + 1 of rows g, g + 8. */
template <int EXCESS>
static __device__ __forceinline__ void flush(const lq_device_matrix &m, const segment &v, uint32_t seg, uint32_t n, const float *step, const float *sum, int32_t part[4], float acc[4]) {
    const uint32_t q = threadIdx.x % 4;
    for (int i = 0; i < 4; i++) {
        uint32_t t = 2 * q + i % 2;
        float whole = (float)((i < 2 ? part[i] : part[i] >> EXCESS) * m.times), ones = sum[t], s = v.s[i / 2], z = m.zero_kind == LQ_ZERO_MIN ? v.z[i / 2] : s * v.z[i / 2];
        if (t < n) acc[i] += step[(size_t)t * m.segs + seg] * (s * (whole - (float)m.bias * ones) - z * ones);
        part[i] = 0;
    }
}

/* The sums of the warps, and what they are worth. */
static __device__ __forceinline__ void join_row(const lq_device_matrix &m, const int32_t part[4], int excess, uint32_t n, const float *step, const int32_t *ones, const stage &st, float *y) {
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, g = lane / 4, q = lane % 4;
    int32_t *all = (int32_t *)st.part;
    for (int i = 0; i < 4; i++) all[(warp * 16 + g + i / 2 * 8) * TOKENS + 2 * q + i % 2] = i < 2 ? part[i] : part[i] >> excess;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < 16 * n; i += WARPS * LANES) {
        uint32_t t = i / 16, r = i % 16;
        int32_t sum = 0;
        for (int w = 0; w < WARPS; w++) sum += all[(w * 16 + r) * TOKENS + t];
        double whole = (double)((int64_t)sum * m.times - (int64_t)m.bias * ones[t]);
        const segment v = load_segment(m, blockIdx.x, 0, (int)(r % 8));
        double s = v.s[r / 8], z = (double)v.z[r / 8] * (m.zero_kind == LQ_ZERO_MIN ? 1 : s);
        if (blockIdx.x * 16 + r < m.rows) y[(size_t)t * m.rows + blockIdx.x * 16 + r] = (float)lq_scaled(step[t], s, whole, z, ones[t]);
    }
}

static __device__ __forceinline__ void join(const lq_device_matrix &m, const float acc[4], uint32_t n, const stage &st, float *y) {
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, g = lane / 4, q = lane % 4;
    float *all = (float *)st.part;
    for (int i = 0; i < 4; i++) all[(warp * 16 + g + i / 2 * 8) * TOKENS + 2 * q + i % 2] = acc[i];
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < 16 * n; i += WARPS * LANES) {
        uint32_t t = i / 16, r = i % 16;
        float sum = 0;
        for (int w = 0; w < WARPS; w++) sum += all[(w * 16 + r) * TOKENS + t];
        if (blockIdx.x * 16 + r < m.rows) y[(size_t)t * m.rows + blockIdx.x * 16 + r] = sum;
    }
}

template <int F0, int F1, int MODE>
static __device__ __forceinline__ void chunk(const lq_device_matrix &m, const uint32_t *w, uint32_t k, uint32_t at, uint32_t n, const float *step, const layout &l, const stage &st,
                                             int32_t part[4], float acc[4]) {
    typedef shape<F0, F1> S;
    enum { EXCESS = excess<F0, F1>::BITS };
    const int lane = threadIdx.x % LANES, g = lane / 4, q = lane % 4;
    const int8_t *x = st.x + (g < (int)n ? g : 0) * l.ld + at + 4 * q;
    LQ_UNROLL
    for (int s = 0; s < S::STEPS; s += 2) {
        uint32_t a[4], b0 = *(const uint32_t *)(const void *)(x + s * STEP), b1 = *(const uint32_t *)(const void *)(x + (s + 1) * STEP);
        operands<F0, F1>(w, s, a);
        if (g >= (int)n) b0 = b1 = 0;
        if (MODE != FINE) {
            lq_mma_u8s8(part, a, b0, b1);
            continue;
        }
        for (int half = 0; half < 2; half++) { /* the two steps may belong to two segments */
            uint32_t seg = (k + (s + half) * STEP) / m.seg;
            if (seg >= m.segs) seg = m.segs - 1;
            lq_mma_u8s8(part, a, half ? 0 : b0, half ? b1 : 0);
            flush<EXCESS>(m, load_segment(m, blockIdx.x, seg, g), seg, n, step, st.sum + (at / STEP + s + half) * TOKENS, part, acc);
        }
    }
    if (MODE == CHUNK) {
        uint32_t seg = k / m.seg < m.segs ? k / m.seg : m.segs - 1;
        flush<EXCESS>(m, load_segment(m, blockIdx.x, seg, g), seg, n, step, st.sum + at / S::CHUNK * TOKENS, part, acc);
    }
}

template <int F0, int F1, int MODE>
__global__ void __launch_bounds__(WARPS *LANES, F1 ? 2 : 3)
    run(const __grid_constant__ lq_device_matrix m, const int8_t *x, const float *step, const int32_t *ones, uint32_t n, layout l, float *y) {
    typedef shape<F0, F1> S;
    stage st;
    st.part = lq_shared();
    st.sum = (float *)st.part + WARPS * 16 * TOKENS;
    st.x = (int8_t *)(st.sum + l.sums * TOKENS);
    const uint32_t warp = threadIdx.x / LANES;
    float acc[4] = {0, 0, 0, 0};
    int32_t part[4] = {0, 0, 0, 0};
    uint32_t ring[S::RING][S::WORDS];
    LQ_UNROLL
    for (int d = 0; d < S::RING; d++)
        if (warp + d * WARPS < m.chunks) load_chunk<F0, F1>(m, warp + d * WARPS, ring[d]);
    for (uint32_t k0 = 0, first = warp; k0 < m.chunks * S::CHUNK; k0 += l.panel) {
        __syncthreads();
        load_panel(x, n, k0, l, st);
        __syncthreads();
        if (MODE != ROW) {
            sum_panel(n, MODE == FINE ? (uint32_t)STEP : (uint32_t)S::CHUNK, l, st);
            __syncthreads();
        }
        uint32_t end = (k0 + l.panel) / S::CHUNK < m.chunks ? (k0 + l.panel) / S::CHUNK : m.chunks;
        for (; first < end; first += S::RING * WARPS) {
            LQ_UNROLL
            for (int d = 0; d < S::RING; d++) {
                uint32_t c = first + d * WARPS;
                if (c >= m.chunks) break;
                chunk<F0, F1, MODE>(m, ring[d], c * S::CHUNK, c * S::CHUNK - k0, n, step, l, st, part, acc);
                if (c + S::RING * WARPS < m.chunks) load_chunk<F0, F1>(m, c + S::RING * WARPS, ring[d]);
            }
        }
    }
    if (MODE == ROW) join_row(m, part, excess<F0, F1>::BITS, n, step, ones, st, y);
    else join(m, acc, n, st, y);
}

template <int F0, int F1, int MODE> static const char *start(const lq_device_matrix &m, const int8_t *x, const float *step, const int32_t *ones, uint32_t n, float *y) {
    typedef shape<F0, F1> S;
    const uint32_t turn = S::CHUNK * WARPS * S::RING, all = (m.chunks * S::CHUNK + turn - 1) / turn * turn, most = (n == 1 ? 16384 : n <= 4 ? 8192 : 4096) / turn * turn;
    layout l;
    l.panel = all < most ? all : most ? most : turn;
    l.ld = l.panel + PAD;
    l.sums = MODE == ROW ? 0 : l.panel / (MODE == FINE ? (uint32_t)STEP : (uint32_t)S::CHUNK);
    l.wide = (m.cols + LQ_UNIT - 1) / LQ_UNIT * LQ_UNIT;
    l.bytes = (size_t)(WARPS * 16 + l.sums) * TOKENS * 4 + (size_t)n * l.ld;
    return lq_launch("idot", run<F0, F1, MODE>, dim3(m.tiles), dim3(WARPS * LANES), l.bytes, m, x, step, ones, n, l, y);
}

template <int F0, int F1> static const char *pick_mode(const lq_device_matrix &m, const int8_t *x, const float *step, const int32_t *ones, uint32_t n, float *y) {
    /* 2^31 holds 127 * 255 * 65536 but not 16 times that */
    bool holds = (uint64_t)m.cols * 127 * ((1u << m.bits) - 1) << excess<F0, F1>::BITS >> 31 == 0;
    if (m.segs == 1 && holds) return start<F0, F1, ROW>(m, x, step, ones, n, y);
    return m.segs == 1 || m.seg % shape<F0, F1>::CHUNK == 0 ? start<F0, F1, CHUNK>(m, x, step, ones, n, y) : start<F0, F1, FINE>(m, x, step, ones, n, y);
}

static const char *pick(const lq_device_matrix &m, const int8_t *x, const float *step, const int32_t *ones, uint32_t n, float *y) {
    if (!m.times) return "no kernel for these codes and rounded activations";
    switch (m.fields[0] * 16 + m.fields[1]) {
    case 0x10: return pick_mode<1, 0>(m, x, step, ones, n, y);
    case 0x20: return pick_mode<2, 0>(m, x, step, ones, n, y);
    case 0x21: return pick_mode<2, 1>(m, x, step, ones, n, y);
    case 0x40: return pick_mode<4, 0>(m, x, step, ones, n, y);
    case 0x41: return pick_mode<4, 1>(m, x, step, ones, n, y);
    case 0x42: return pick_mode<4, 2>(m, x, step, ones, n, y);
    case 0x80: return pick_mode<8, 0>(m, x, step, ones, n, y);
    }
    return "no kernel for codes of this width";
}

static const char *all_tokens(const lq_device_matrix *m, const int8_t *x, const float *step, const int32_t *ones, uint32_t n, float *y) {
    const size_t wide = (m->cols + LQ_UNIT - 1) / LQ_UNIT * LQ_UNIT;
    for (uint32_t t = 0; t < n; t += TOKENS) {
        const char *why = pick(*m, x + t * wide, step + (size_t)t * m->segs, ones + (size_t)t * m->segs, n - t < (uint32_t)TOKENS ? n - t : (uint32_t)TOKENS, y + (size_t)t * m->rows);
        if (why) return why;
    }
    return nullptr;
}

} // namespace idot
#endif
