/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Y = W X for many tokens: every warp of a block owns two row tiles (one where a code has two fields) and decodes each of their codes once, the A operand of mma for 32 tokens, whose
 * activations all warps share as halves, a panel of columns at a time. The formula is gemv's (gemv.cuh); a flush is due where a segment
 * ends, or where there are sums to subtract. Sums are fp32 in column order. */
#ifndef LQ_GEMM_CUH
#define LQ_GEMM_CUH
#include "kernels/cuda/gemv.cuh"

namespace gemm {

using namespace tile;
enum { EIGHTS = 4, MANY = 8 * EIGHTS }; /* tokens of a block */

/* Row tiles of a warp, as many as registers hold; are the next chunk's words loaded ahead? Columns of a panel, as many as 64 KiB hold, and of its rows in memory. */
template <int F0, int F1, bool FINE> struct work {
    typedef shape<F0, F1> S;
    enum { TILES = S::LOADS == 1 && F0 > 1 ? 2 : 1, AHEAD = S::LOADS == 1, PANEL = FINE && S::CHUNK < 256 ? 128 : 256, LD = PANEL + 16 };
};

struct stage {
    uint32_t *table; /* [entries][LANES] */
    float *steps;    /* [WARPS][TILES][spans][g][4] as gemv has them */
    float *sum;      /* [steps or chunks of a panel][MANY] */
    uint16_t *x;     /* [MANY][LD] halves, in fours: k0 k2 k1 k3 */
};
struct layout { uint32_t sums, entries, span, spans, unit; bool wide; size_t bytes; }; /* wide: activations lie in fours at multiples of 16 bytes */

template <int PANEL, int LD> static __device__ __forceinline__ void load_panel(const lq_device_matrix &m, const float *x, uint32_t n, uint32_t k0, bool wide, const stage &st) {
    for (uint32_t i = threadIdx.x; wide && i < MANY * PANEL / 4; i += WARPS * LANES) {
        uint32_t t = i / (PANEL / 4), c = i % (PANEL / 4) * 4;
        float4 v = {0, 0, 0, 0};
        if (t < n && k0 + c < m.cols) v = *(const float4 *)(const void *)(x + (size_t)t * m.cols + k0 + c);
        *(uint2 *)(void *)(st.x + t * LD + c) = uint2{lq_pair(lq_half(v.x), lq_half(v.z)), lq_pair(lq_half(v.y), lq_half(v.w))};
    }
    for (uint32_t i = threadIdx.x; !wide && i < MANY * PANEL; i += WARPS * LANES) {
        uint32_t t = i / PANEL, c = i % PANEL, k = k0 + c, to = (c & ~3u) + (c & 1) * 2 + (c >> 1 & 1);
        st.x[t * LD + to] = lq_half(t < n && k < m.cols ? x[(size_t)t * m.cols + (m.perm ? m.perm[k] : k)] : 0);
    }
}

template <int PANEL, int LD> static __device__ __forceinline__ void sum_panel(uint32_t unit, const stage &st) {
    for (uint32_t i = threadIdx.x; i < PANEL / unit * MANY; i += WARPS * LANES) {
        uint32_t u = i / MANY, t = i % MANY;
        float sum = 0;
        for (uint32_t c = 0; c < unit; c++) sum += lq_float(st.x[t * LD + u * unit + c]);
        st.sum[i] = sum;
    }
}

template <int F0, int F1, int KIND, bool FINE>
__global__ void __launch_bounds__(WARPS *LANES, 2) run(const __grid_constant__ lq_device_matrix m, const float *x, uint32_t n_all, layout l, float *y) {
    typedef shape<F0, F1> S;
    typedef work<F0, F1, FINE> W;
    enum { TILES = W::TILES, AHEAD = W::AHEAD, PANEL = W::PANEL, LD = W::LD, F = F1 || F0 > 4 ? 4 : F0 };
    lq_let_next();
    const uint32_t t0 = blockIdx.y * MANY, n = n_all - t0 < MANY ? n_all - t0 : (uint32_t)MANY, eights = (n + 7) / 8;
    const uint32_t tile0 = (blockIdx.x * WARPS + threadIdx.x / LANES) * TILES, lane = threadIdx.x % LANES;
    const int g = (int)lane / 4, q = (int)lane % 4;
    const bool mine = tile0 < m.tiles, sums = has_sums(m);
    const uint32_t minus = gemv::twice(1024 + (float)m.bias), columns = 1u << l.unit;
    stage st;
    st.table = (uint32_t *)(void *)lq_shared();
    st.steps = (float *)(void *)(st.table + l.entries * LANES);
    st.sum = st.steps + WARPS * TILES * l.spans * 32;
    st.x = (uint16_t *)(void *)(st.sum + l.sums * MANY);
    float acc[TILES][EIGHTS][4] = {}, part[TILES][FINE ? 1 : (int)EIGHTS][4] = {};
    uint32_t w[TILES][S::WORDS], next[TILES][AHEAD ? (int)S::WORDS : 1] = {}, tile[TILES];
    const uint4 *codes[TILES];
    float *steps = st.steps + threadIdx.x / LANES * TILES * l.spans * 32;
    for (uint32_t i = threadIdx.x; i < l.entries * LANES; i += WARPS * LANES) st.table[i] = lq_pair(m.table[i / LANES & 15], m.table[i / LANES >> 4]);
    LQ_UNROLL
    for (int t = 0; t < TILES; t++) {
        tile[t] = tile0 + t < m.tiles ? tile0 + t : m.tiles - 1; /* the last twice rather than none */
        codes[t] = lane_codes<F0, F1>(m, tile[t], 0);
        if (AHEAD) load_chunk<F0, F1>(codes[t], next[t]);
    }
    x += (size_t)t0 * m.cols;
    for (uint32_t k0 = 0; k0 < m.chunks * S::CHUNK; k0 += PANEL) {
        __syncthreads();
        for (int t = 0; t < TILES; t++)
            fill_steps(m, tile[t], k0, l.span, l.spans, lane, LANES, steps + t * l.spans * 32, [&](segment v) { return gemv::step_of<KIND>(m, sums, v); });
        lq_wait_before();
        load_panel<PANEL, LD>(m, x, n, k0, l.wide, st);
        __syncthreads();
        if (sums) {
            sum_panel<PANEL, LD>(FINE ? (uint32_t)STEP : (uint32_t)S::CHUNK, st);
            __syncthreads();
        }
        for (uint32_t k = k0; mine && k < k0 + PANEL && k < m.chunks * S::CHUNK; k += S::CHUNK) {
            const uint32_t at = k - k0;
            const bool last = k + S::CHUNK == m.chunks * S::CHUNK;
            const float *step = steps + ((k >> l.span) - (k0 >> l.span)) * 32 + g * 4;
            gemv::unit u[TILES];
            LQ_UNROLL
            for (int t = 0; t < TILES; t++) {
                if (AHEAD)
                    for (int i = 0; i < S::WORDS; i++) w[t][i] = next[t][AHEAD ? i : 0];
                if (!AHEAD) load_chunk<F0, F1>(codes[t], w[t]);
                codes[t] += S::LOADS * LANES;
                if (AHEAD && !last) load_chunk<F0, F1>(codes[t], next[t]);
                u[t] = gemv::load_unit<F, KIND>(step + t * l.spans * 32, sums, minus);
            }
            const bool due = sums || last || k >> l.span != (k + S::CHUNK) >> l.span;
            LQ_UNROLL
            for (int s = 0; s < S::STEPS; s++) {
                uint32_t a[TILES][4];
                const bool other = FINE && s && columns <= (uint32_t)((s & -s) * STEP);
                if (other) step += 32;
                LQ_UNROLL
                for (int t = 0; t < TILES; t++) {
                    if (other) u[t] = gemv::load_unit<F, KIND>(step + t * l.spans * 32, sums, minus);
                    gemv::operands<F0, F1, KIND>(w[t], s, u[t].z, lq_place(st.table + lane), a[t]);
                }
                const uint16_t *from = st.x + g * LD + at + s * STEP + 4 * q;
                LQ_UNROLL
                for (uint32_t j = 0; j < EIGHTS; j++) {
                    if (j >= eights) break;
                    uint2 b = *(const uint2 *)(const void *)(from + 8 * j * LD);
                    LQ_UNROLL
                    for (int t = 0; t < TILES; t++) {
                        lq_mma_f16(part[t][FINE ? 0 : j], a[t], b.x, b.y);
                        if (FINE) gemv::flush(u[t], sums, st.sum + (at / STEP + s) * MANY + 8 * j + 2 * q, part[t][0], acc[t][j]);
                    }
                }
            }
            LQ_UNROLL
            for (int i = 0; i < TILES * EIGHTS; i++)
                if (!FINE && due) gemv::flush(u[i / EIGHTS], sums, st.sum + at / S::CHUNK * MANY + 8 * (i % EIGHTS) + 2 * q, part[i / EIGHTS][FINE ? 0 : i % EIGHTS], acc[i / EIGHTS][i % EIGHTS]);
        }
    }
    const float factor = KIND == gemv::E4M3 ? 256.0f : 1.0f;
    LQ_UNROLL
    for (int e = 0; e < TILES * EIGHTS * 4; e++) {
        const int i = e % 4;
        uint32_t t = 8 * (e / 4 % EIGHTS) + 2 * q + i % 2, r = (tile0 + e / 4 / EIGHTS) * 16 + g + i / 2 * 8;
        if (t < n && r < m.rows) y[(size_t)(t0 + t) * m.rows + r] = acc[e / 4 / EIGHTS][e / 4 % EIGHTS][i] * factor;
    }
}

template <int F0, int F1, int KIND, bool FINE> static const char *start(const lq_device_matrix &m, const float *x, uint32_t n, float *y) {
    typedef shape<F0, F1> S;
    typedef work<F0, F1, FINE> W;
    const uint32_t rows = WARPS * W::TILES;
    layout l;
    l.wide = !m.perm && m.cols % 4 == 0 && (uintptr_t)x % 16 == 0;
    l.span = span_of(m);
    l.unit = unit_of<F0, F1>(m);
    l.spans = (W::PANEL >> l.span) + 1;
    l.sums = has_sums(m) ? W::PANEL / (FINE ? (uint32_t)STEP : (uint32_t)S::CHUNK) : 0;
    l.entries = KIND == gemv::TABLE ? 17 * ((1u << m.bits) - 1) + 1 : 0;
    l.bytes = (size_t)l.entries * LANES * 4 + (size_t)rows * l.spans * 128 + (size_t)l.sums * MANY * 4 + (size_t)MANY * W::LD * 2;
    return lq_launch("gemm", run<F0, F1, KIND, FINE>, dim3((m.tiles + rows - 1) / rows, (n + MANY - 1) / MANY), dim3(WARPS * LANES), l.bytes, m, x, n, l, y);
}

template <int F0, int F1, int KIND> static const char *pick_flush(const lq_device_matrix &m, const float *x, uint32_t n, float *y) {
    return is_fine<F0, F1>(m) ? start<F0, F1, KIND, true>(m, x, n, y) : start<F0, F1, KIND, false>(m, x, n, y);
}

} // namespace gemm
#endif
