/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Y = W X for many tokens: every warp of a block owns a row tile and decodes each of its codes once, the A operand of mma for 64 tokens, whose
 * activations all warps share as halves, a panel of columns at a time. The formula is gemv's (gemv.cuh); a flush is due where a segment
 * ends, or where there are sums to subtract. Sums are fp32 in column order. */
#ifndef LQ_GEMM_CUH
#define LQ_GEMM_CUH
#include "kernels/cuda/gemv.cuh"

namespace gemm {

using namespace tile;
using gemv::kind;
enum { EIGHTS = 8, MANY = 8 * EIGHTS, PAD = 16, PANEL = 256 }; /* tokens of a block; columns of a panel */

struct stage {
    uint32_t *table; /* [entries][LANES] */
    float *steps;    /* [WARPS][spans][g][4] as gemv has them */
    float *sum;      /* [units][MANY] */
    uint16_t *x;     /* [MANY][ld] halves, in fours: k0 k2 k1 k3 */
};
struct layout { uint32_t panel, ld, span, unit, spans, sums, entries; size_t bytes; };

static __device__ __forceinline__ void load_panel(const lq_device_matrix &m, const float *x, uint32_t n, uint32_t k0, const layout &l, const stage &st) {
    for (uint32_t i = threadIdx.x; i < MANY * l.panel; i += WARPS * LANES) {
        uint32_t t = i / l.panel, c = i % l.panel, k = k0 + c, to = (c & ~3u) + (c & 1) * 2 + (c >> 1 & 1);
        st.x[t * l.ld + to] = lq_half(t < n && k < m.cols ? x[(size_t)t * m.cols + (m.perm ? m.perm[k] : k)] : 0);
    }
}

static __device__ __forceinline__ void sum_panel(const layout &l, const stage &st) {
    for (uint32_t i = threadIdx.x; i < l.sums * MANY; i += WARPS * LANES) {
        uint32_t u = i / MANY << l.unit, t = i % MANY;
        float sum = 0;
        for (uint32_t c = 0; c < 1u << l.unit; c++) sum += lq_float(st.x[t * l.ld + u + c]);
        st.sum[i] = sum;
    }
}

static __device__ __forceinline__ void flush(const gemv::unit &u, bool sums, const float *sum, float part[EIGHTS][4], float acc[EIGHTS][4]) {
    const int q = threadIdx.x % 4;
    LQ_UNROLL
    for (int j = 0; j < EIGHTS; j++) gemv::flush(u, sums, sum + 8 * j + 2 * q, part[j], acc[j]);
}

template <int F0, int F1, int KIND, bool FINE>
__global__ void __launch_bounds__(WARPS *LANES, (FINE && (F1 || F0 == 1)) || (F0 == 4 && F1 == 1) ? 1 : 2)
    run(const __grid_constant__ lq_device_matrix m, const float *x, uint32_t n_all, layout l, float *y) {
    typedef shape<F0, F1> S;
    const uint32_t t0 = blockIdx.y * MANY, n = n_all - t0 < MANY ? n_all - t0 : (uint32_t)MANY, eights = (n + 7) / 8;
    const uint32_t tile = blockIdx.x * WARPS + threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const int g = (int)lane / 4, q = (int)lane % 4;
    const bool mine = tile < m.tiles, sums = has_sums(m);
    enum { F = F1 || F0 > 4 ? 4 : F0 };
    const uint32_t minus = gemv::twice(1024 + (float)m.bias), columns = 1u << l.unit;
    stage st;
    st.table = (uint32_t *)(void *)lq_shared();
    st.steps = (float *)(void *)(st.table + l.entries * LANES);
    st.sum = st.steps + WARPS * l.spans * 32;
    st.x = (uint16_t *)(void *)(st.sum + l.sums * MANY);
    float acc[EIGHTS][4] = {}, part[EIGHTS][4] = {};
    uint32_t w[S::WORDS], next[S::WORDS] = {};
    for (uint32_t i = threadIdx.x; i < l.entries * LANES; i += WARPS * LANES) st.table[i] = lq_pair(m.table[i / LANES & 15], m.table[i / LANES >> 4]);
    const uint4 *codes = lane_codes<F0, F1>(m, mine ? tile : 0, 0);
    float *steps = st.steps + threadIdx.x / LANES * l.spans * 32;
    if (mine) load_chunk<F0, F1>(codes, next);
    x += (size_t)t0 * m.cols;
    for (uint32_t k0 = 0; k0 < m.chunks * S::CHUNK; k0 += l.panel) {
        __syncthreads();
        load_panel(m, x, n, k0, l, st);
        if (mine) fill_steps(m, tile, k0, l.span, l.spans, lane, LANES, steps, [&](segment v) { return gemv::step_of<KIND>(m, sums, v); });
        __syncthreads();
        if (sums) {
            sum_panel(l, st);
            __syncthreads();
        }
        for (uint32_t k = k0; mine && k < k0 + l.panel && k < m.chunks * S::CHUNK; k += S::CHUNK) {
            const uint32_t at = k - k0;
            const bool last = k + S::CHUNK == m.chunks * S::CHUNK;
            for (int i = 0; i < S::WORDS; i++) w[i] = next[i];
            if (!last) load_chunk<F0, F1>(codes += S::LOADS * LANES, next);
            const float *step = steps + ((k >> l.span) - (k0 >> l.span)) * 32 + g * 4, *sum = st.sum + (at >> l.unit) * MANY;
            gemv::unit u = gemv::load_unit<F, KIND>(step, sums, minus);
            LQ_UNROLL
            for (int s = 0; s < S::STEPS; s++) {
                uint32_t a[4];
                gemv::operands<F0, F1, KIND>(w, s, u.z, (const uint8_t *)(const void *)st.table, lane * 4, a);
                const uint16_t *from = st.x + g * l.ld + at + s * STEP + 4 * q;
                LQ_UNROLL
                for (uint32_t j = 0; j < EIGHTS; j++)
                    if (j < eights) {
                        uint2 b = *(const uint2 *)(const void *)(from + 8 * j * l.ld);
                        lq_mma_f16(part[j], a, b.x, b.y);
                    }
                if (FINE && s + 1 < S::STEPS && columns <= (uint32_t)(((s + 1) & -(s + 1)) * STEP)) {
                    flush(u, sums, sum, part, acc);
                    sum += MANY;
                    u = gemv::load_unit<F, KIND>(step += 32, sums, minus);
                }
            }
            if (FINE || sums || last || k >> l.span != (k + S::CHUNK) >> l.span) flush(u, sums, sum, part, acc);
        }
    }
    const float factor = KIND == gemv::E4M3 ? 256.0f : 1.0f;
    LQ_UNROLL
    for (int j = 0; j < EIGHTS; j++)
        LQ_UNROLL
        for (int i = 0; i < 4; i++) {
            uint32_t t = 8 * j + 2 * q + i % 2, r = tile * 16 + g + i / 2 * 8;
            if (t < n && r < m.rows) y[(size_t)(t0 + t) * m.rows + r] = acc[j][i] * factor;
        }
}

template <int F0, int F1, int KIND, bool FINE> static const char *start(const lq_device_matrix &m, const float *x, uint32_t n, float *y) {
    typedef shape<F0, F1> S;
    layout l;
    l.panel = (int)S::CHUNK > PANEL ? (uint32_t)S::CHUNK : (uint32_t)PANEL;
    if (KIND == gemv::TABLE && (int)S::CHUNK <= PANEL / 2) l.panel = PANEL / 2; /* Turing has 64 KiB, the table takes half */
    l.ld = l.panel + PAD;
    l.span = span_of(m);
    l.unit = unit_of<F0, F1>(m);
    l.spans = (l.panel >> l.span) + 1;
    l.sums = has_sums(m) ? l.panel >> l.unit : 0;
    l.entries = KIND == gemv::TABLE ? 17 * ((1u << m.bits) - 1) + 1 : 0;
    l.bytes = (size_t)l.entries * LANES * 4 + (size_t)WARPS * l.spans * 128 + (size_t)l.sums * MANY * 4 + (size_t)MANY * l.ld * 2;
    return lq_launch("gemm", run<F0, F1, KIND, FINE>, dim3((m.tiles + WARPS - 1) / WARPS, (n + MANY - 1) / MANY), dim3(WARPS * LANES), l.bytes, m, x, n, l, y);
}

template <int F0, int F1, int KIND> static const char *pick_flush(const lq_device_matrix &m, const float *x, uint32_t n, float *y) {
    return is_fine<F0, F1>(m) ? start<F0, F1, KIND, true>(m, x, n, y) : start<F0, F1, KIND, false>(m, x, n, y);
}

static const char *pick(const lq_device_matrix *m, const float *x, uint32_t n, float *y) {
    const int f = m->fields[0] * 16 + m->fields[1];
    if (m->grid == LQ_GRID_E4M3) return pick_flush<8, 0, gemv::E4M3>(*m, x, n, y);
    if (m->times == 1) switch (f) {
        case 0x10: return pick_flush<1, 0, gemv::INT>(*m, x, n, y);
        case 0x20: return pick_flush<2, 0, gemv::INT>(*m, x, n, y);
        case 0x21: return pick_flush<2, 1, gemv::INT>(*m, x, n, y);
        case 0x40: return pick_flush<4, 0, gemv::INT>(*m, x, n, y);
        case 0x41: return pick_flush<4, 1, gemv::INT>(*m, x, n, y);
        case 0x42: return pick_flush<4, 2, gemv::INT>(*m, x, n, y);
        case 0x80: return pick_flush<8, 0, gemv::INT>(*m, x, n, y);
    }
    else switch (f) {
        case 0x10: return pick_flush<1, 0, gemv::TABLE>(*m, x, n, y);
        case 0x20: return pick_flush<2, 0, gemv::TABLE>(*m, x, n, y);
        case 0x21: return pick_flush<2, 1, gemv::TABLE>(*m, x, n, y);
        case 0x40: return pick_flush<4, 0, gemv::TABLE>(*m, x, n, y);
    }
    return "no kernel for codes of this width";
}

} // namespace gemm
#endif
