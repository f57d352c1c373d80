/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* idot (idot.cuh) for many tokens, by the plan of gemm.cuh: every warp owns row tiles and takes each of their codes once for 32 tokens, whose bytes
 * all warps share, a panel of columns at a time. One segment: whole sums of the row, the bits of the CPU. Several: a flush per chunk, or per
 * 16 or 32 columns where segments are finer. What rounding has left out (SPLIT) is added as idot does, eight tokens at a time that have such columns there. */
#ifndef LQ_IDOT_MANY_CUH
#define LQ_IDOT_MANY_CUH
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/idot.cuh"

namespace idot_many {

using namespace tile;
using idot::mode;
enum { EIGHTS = gemm::EIGHTS, MANY = gemm::MANY };

struct plan_of { uint32_t sums, span, spans, unit; size_t bytes; }; /* units of a panel, 2^unit columns each */

struct stage {
    float *steps; /* [WARPS][TILES][spans][g][4] as idot has them */
    float2 *sum;  /* [units][MANY] */
    int8_t *x;    /* [MANY][LD] */
    uint32_t *any, *where; /* SPLIT: [words of a panel] bit t: token t has some there; [words][MANY] */
};

template <int PANEL, int LD> static __device__ __forceinline__ void load_panel(const idot::acts &a, uint32_t n, uint32_t k0, const stage &st) {
    for (uint32_t i = threadIdx.x; i < MANY * PANEL / 4; i += WARPS * LANES) {
        uint32_t t = i / (PANEL / 4), c = i % (PANEL / 4) * 4;
        *(uint32_t *)(void *)(st.x + t * LD + c) = t < n && k0 + c < a.wide ? *(const uint32_t *)(const void *)(a.x + (size_t)t * a.wide + k0 + c) : 0;
    }
}

/* A warp has a word of all tokens. */
template <int PANEL> static __device__ __forceinline__ void load_where(const idot::acts &a, uint32_t n, uint32_t k0, const stage &st) {
    const uint32_t lane = threadIdx.x % LANES, words = a.wide / LANES;
    for (uint32_t i = threadIdx.x / LANES; i < PANEL / LANES; i += WARPS) {
        const uint32_t v = lane < n && k0 / LANES + i < words ? a.rest.where[(size_t)lane * words + k0 / LANES + i] : 0, any = lq_ballot(v != 0);
        st.where[i * MANY + lane] = v;
        if (lane == 0) st.any[i] = any;
    }
}

/* A chunk of 8 bits of several tiles. */
template <int TILES, int WORDS>
static __device__ __forceinline__ void add_left(const uint32_t w[TILES][WORDS], const gemv::offsets &z, uint32_t any, const uint32_t *where, const uint16_t *value, uint32_t wide, float acc[TILES][EIGHTS][4]) {
    const uint32_t lane = threadIdx.x % LANES, g = lane / 4, q = lane % 4;
    LQ_UNROLL
    for (uint32_t j = 0; j < EIGHTS; j++) {
        if (!(any >> 8 * j & 255)) continue;
        const uint32_t mine = where[8 * j + g] >> 4 * q;
        const uint16_t *from = value + 2 * ((size_t)(8 * j + g) * wide + 4 * q);
        const idot::four v[2] = {idot::load_four(mine & 15, from), idot::load_four(mine >> STEP & 15, from + 2 * STEP)};
        LQ_UNROLL
        for (int t = 0; t < TILES; t++)
            LQ_UNROLL
            for (int s = 0; s < 2; s++) {
                uint32_t a[4];
                gemv::operands<8, 0, gemv::INT>(w[t], s, z, 0, a);
                idot::multiply_four(a, v[s], acc[t][j]);
            }
    }
}

template <int LD> static __device__ __forceinline__ void sum_panel(const lq_device_matrix &m, const idot::acts &a, uint32_t n, uint32_t k0, const plan_of &l, const stage &st) {
    for (uint32_t i = threadIdx.x; i < l.sums * MANY; i += WARPS * LANES) {
        uint32_t u = i / MANY << l.unit, t = i % MANY, seg = m.segs == 1 ? 0 : (k0 + u) / m.seg;
        int32_t sum = 0;
        for (uint32_t c = 0; c < 1u << l.unit; c++) sum += st.x[t * LD + u + c];
        float step = t < n ? a.step[(size_t)t * m.segs + (seg < m.segs ? seg : m.segs - 1)] : 0;
        st.sum[i] = {step, step * (float)sum};
    }
}

template <int F0, int F1, int MODE> __global__ void __launch_bounds__(WARPS *LANES, 2) run(const __grid_constant__ lq_device_matrix m, const idot::acts all, uint32_t n_all, plan_of l, float *y) {
    typedef shape<F0, F1> S;
    typedef gemm::work<F0, F1, MODE == idot::FINE> W;
    enum { TILES = W::TILES, PANEL = W::PANEL, LD = W::LD, EXCESS = idot::excess<F0, F1>::BITS, FINE = MODE == idot::FINE, SPLIT = MODE == idot::SPLIT, ROW = MODE == idot::ROW || SPLIT };
    lq_let_next();
    const uint32_t t0 = blockIdx.y * MANY, n = n_all - t0 < MANY ? n_all - t0 : (uint32_t)MANY, eights = (n + 7) / 8;
    const uint32_t warp = threadIdx.x / LANES, tile0 = (blockIdx.x * WARPS + warp) * TILES, lane = threadIdx.x % LANES, g = lane / 4, q = lane % 4;
    const bool mine = tile0 < m.tiles;
    const lq_device_rest rest = {SPLIT ? all.rest.where + (size_t)t0 * (all.wide / LANES) : nullptr, SPLIT ? all.rest.value + 2 * (size_t)t0 * all.wide : nullptr};
    const idot::acts in = {all.x + (size_t)t0 * all.wide, all.step + (size_t)t0 * m.segs, all.ones + (size_t)t0 * m.segs, all.wide, rest};
    stage st;
    st.steps = (float *)(void *)lq_shared();
    st.sum = (float2 *)(void *)(st.steps + WARPS * TILES * l.spans * 32);
    st.x = (int8_t *)(void *)(st.sum + l.sums * MANY);
    st.any = (uint32_t *)(void *)(st.x + MANY * LD);
    st.where = st.any + PANEL / LANES;
    float *steps = st.steps + warp * TILES * l.spans * 32, acc[TILES][ROW ? 1 : (int)EIGHTS][4] = {}, left[SPLIT ? (int)TILES : 1][EIGHTS][4] = {};
    gemv::offsets z;
    z.minus[0] = z.minus[1] = SPLIT ? gemv::twice(1024 + (float)m.bias) : 0;
    int32_t part[TILES][FINE ? 1 : (int)EIGHTS][4] = {};
    uint32_t w[TILES][S::WORDS], tile[TILES];
    LQ_UNROLL
    for (int t = 0; t < TILES; t++) tile[t] = tile0 + t < m.tiles ? tile0 + t : m.tiles - 1; /* the last twice rather than none */
    for (uint32_t k0 = 0; k0 < m.chunks * S::CHUNK; k0 += PANEL) {
        __syncthreads();
        for (int t = 0; t < TILES && !ROW; t++)
            fill_steps(m, tile[t], k0, l.span, l.spans, lane, LANES, steps + t * l.spans * 32, [&](segment v) { return idot::step_of(m, v); });
        lq_wait_before();
        load_panel<PANEL, LD>(in, n, k0, st);
        if (SPLIT) load_where<PANEL>(in, n, k0, st);
        __syncthreads();
        if (!ROW) {
            sum_panel<LD>(m, in, n, k0, l, st);
            __syncthreads();
        }
        for (uint32_t k = k0; mine && k < k0 + PANEL && k < m.chunks * S::CHUNK; k += S::CHUNK) {
            const uint32_t at = k - k0;
            const float *step = steps + g * 4;
            LQ_UNROLL
            for (int t = 0; t < TILES; t++) load_chunk<F0, F1>(lane_codes<F0, F1>(m, tile[t], k / S::CHUNK), w[t]);
            LQ_UNROLL
            for (int s = 0; s < S::STEPS; s += 2) {
                uint32_t a[TILES][4];
                LQ_UNROLL
                for (int t = 0; t < TILES; t++) idot::operands<F0, F1>(w[t], s, a[t]);
                const int8_t *from = st.x + g * LD + at + s * STEP + 4 * q;
                const uint32_t here = ((k + s * STEP) >> l.span) - (k0 >> l.span), then = ((k + (s + 1) * STEP) >> l.span) - (k0 >> l.span);
                const float2 *sum = st.sum + ((at + s * STEP) >> l.unit) * MANY + 2 * q;
                LQ_UNROLL
                for (uint32_t j = 0; j < EIGHTS; j++) {
                    if (j >= eights) break;
                    uint32_t b0 = *(const uint32_t *)(const void *)(from + 8 * j * LD), b1 = *(const uint32_t *)(const void *)(from + 8 * j * LD + STEP);
                    LQ_UNROLL
                    for (int t = 0; t < TILES; t++) {
                        int32_t *p = part[t][FINE ? 0 : j];
                        const float *mine_steps = step + t * l.spans * 32;
                        if (FINE && l.unit == 4) { /* the two steps belong to two units */
                            lq_mma_u8s8(p, a[t], b0, 0);
                            idot::flush<EXCESS>(mine_steps + here * 32, sum + 8 * j, p, acc[t][ROW ? 0 : j]);
                            lq_mma_u8s8(p, a[t], 0, b1);
                            idot::flush<EXCESS>(mine_steps + then * 32, sum + MANY + 8 * j, p, acc[t][ROW ? 0 : j]);
                        } else {
                            lq_mma_u8s8(p, a[t], b0, b1);
                            if (FINE || (!ROW && s + 2 == S::STEPS)) idot::flush<EXCESS>(mine_steps + here * 32, sum + 8 * j, p, acc[t][ROW ? 0 : j]);
                        }
                    }
                }
            }
            const uint32_t any = SPLIT ? st.any[at / LANES] : 0;
            if (SPLIT && any) add_left<SPLIT ? (int)TILES : 1, S::WORDS>(w, z, any, st.where + at / LANES * MANY, in.rest.value + 2 * k, in.wide, left);
        }
    }
    LQ_UNROLL
    for (int e = 0; e < TILES * EIGHTS * 4; e++) {
        const int h = e / 4 / EIGHTS, j = e / 4 % EIGHTS, i = e % 4;
        const uint32_t t = 8 * j + 2 * q + i % 2, r = g + i / 2 * 8, row = (tile0 + h) * 16 + r;
        if (t >= n || row >= m.rows) continue;
        float v = ROW ? idot::worth(m, in, tile0 + h, r, t, part[h][FINE ? 0 : j][i] >> (i < 2 ? 0 : (int)EXCESS)) : acc[h][ROW ? 0 : j][i];
        if (SPLIT) v = lq_add(v, load_segment(m, tile0 + h, 0, (int)r).s * left[SPLIT ? h : 0][j][i]);
        y[(size_t)(t0 + t) * m.rows + row] = v;
    }
}

template <int F0, int F1, int MODE> static const char *begin(const lq_device_matrix &m, const idot::acts &in, uint32_t n, float *y) {
    typedef shape<F0, F1> S;
    typedef gemm::work<F0, F1, MODE == idot::FINE> W;
    const uint32_t rows = WARPS * W::TILES;
    plan_of l = {};
    l.span = span_of(m);
    l.unit = MODE == idot::FINE ? (l.span < 5 ? 4 : 5) : log2_of(S::CHUNK);
    const bool whole = MODE == idot::ROW || MODE == idot::SPLIT;
    l.spans = whole ? 0 : (W::PANEL >> l.span) + 1;
    l.sums = whole ? 0 : W::PANEL >> l.unit;
    l.bytes = (size_t)rows * l.spans * 128 + (size_t)l.sums * MANY * 8 + (size_t)MANY * W::LD + (MODE == idot::SPLIT ? W::PANEL / LANES * (MANY + 1) * 4 : 0);
    return lq_launch("idot of many", run<F0, F1, MODE>, dim3((m.tiles + rows - 1) / rows, (n + MANY - 1) / MANY), dim3(WARPS * LANES), l.bytes, m, in, n, l, y);
}

template <int F0, int F1> static const char *choose(const lq_device_matrix &m, const idot::acts &in, uint32_t n, float *y) {
    if (idot::in_row<F0, F1>(m)) return begin<F0, F1, idot::ROW>(m, in, n, y);
    return is_fine<F0, F1>(m) ? begin<F0, F1, idot::FINE>(m, in, n, y) : begin<F0, F1, idot::CHUNK>(m, in, n, y);
}

} // namespace idot_many
#endif
