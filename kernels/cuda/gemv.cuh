/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* y = W x on packed weights, 1 to 8 tokens in one pass: the weights are the A operand of mma, sixteen rows high, the tokens its eight columns.
 * A block owns a row tile; its warps take turns at the chunks along the columns and their sums meet in shared memory in warp
 * order, so the bits never change. Activations are rounded to halves; sums are fp32.
 *
 *   y[n][r] = sum over flushes of  s(r) (sum A(code) x  -  z(r) sum x)        a flush: a chunk, or a step of 16 columns where
 *                                                                            segments are finer or do not line up with chunks
 * Whole zeros (U8) are subtracted from the codes themselves, exactly. */
#ifndef LQ_GEMV_CUH
#define LQ_GEMV_CUH
#include "kernels/cuda/tile.cuh"

namespace gemv {

using namespace tile;
enum { PAD = 16, TABLE_BYTES = 256 * LANES * 4 };
enum kind { INT, TABLE, E4M3 };

struct offsets { uint32_t minus[2], sixteenth[2]; }; /* of rows g, g + 8, as two halves: 1024 + z; -(64 + z) for codes four bits up */

static __device__ __forceinline__ uint32_t twice(float v) { uint16_t h = lq_half(v); return lq_pair(h, h); }

/* A operands (row g: k0 k2, row g + 8: k0 k2, row g: k1 k3, row g + 8: k1 k3) of step s, exact. */
template <int F0, int F1, int KIND> static __device__ __forceinline__ void operands(const uint32_t *w, int s, const offsets &z, const uint32_t *table, uint32_t a[4]) {
    if (KIND == INT && F0 == 4 && !F1) {
        const uint32_t lo = w[s], hi = w[s] >> 8, sixteenth = 0x2c002c00u;
        a[0] = lq_sub2(lq_lop3<LQ_AND_OR>(lo, 0x000f000fu, 0x64006400u), z.minus[0]);
        a[1] = lq_fma2(lq_lop3<LQ_AND_OR>(lo, 0x00f000f0u, 0x64006400u), sixteenth, z.sixteenth[1]);
        a[2] = lq_sub2(lq_lop3<LQ_AND_OR>(hi, 0x000f000fu, 0x64006400u), z.minus[0]);
        a[3] = lq_fma2(lq_lop3<LQ_AND_OR>(hi, 0x00f000f0u, 0x64006400u), sixteenth, z.sixteenth[1]);
    } else if (KIND == INT) {
        for (int h = 0; h < 2; h++) {
            uint32_t u = codes<F0, F1>(w, s, h);
            a[h] = lq_sub2(lq_bytes(u, 0x64646464u, 0x4240), z.minus[h]);
            a[2 + h] = lq_sub2(lq_bytes(u, 0x64646464u, 0x4341), z.minus[h]);
        }
    } else if (KIND == E4M3) { /* one field lower, the bits are a half 2^8 too small */
        for (int h = 0; h < 2; h++) {
            uint32_t u = codes<F0, F1>(w, s, h), even = lq_bytes(u, 0, 0x2404), odd = lq_bytes(u, 0, 0x3414);
            a[h] = (even & 0x80008000u) | (even & 0x7f007f00u) >> 1;
            a[2 + h] = (odd & 0x80008000u) | (odd & 0x7f007f00u) >> 1;
        }
    } else { /* a byte, row g's code and row g + 8's four bits up, names a pair of values */
        uint32_t u = F0 == 4 && !F1 ? w[s] : codes<F0, F1>(w, s, 0) | codes<F0, F1>(w, s, 1) << 4, v[4];
        for (int b = 0; b < 4; b++) v[b] = table[(u >> 8 * b & 255) * LANES];
        a[0] = lq_bytes(v[0], v[2], 0x5410);
        a[1] = lq_bytes(v[0], v[2], 0x7632);
        a[2] = lq_bytes(v[1], v[3], 0x5410);
        a[3] = lq_bytes(v[1], v[3], 0x7632);
    }
}

template <int KIND> static __device__ __forceinline__ offsets offsets_of(const lq_device_matrix &m, const segment &v) {
    offsets o = {};
    for (int h = 0; h < 2 && KIND == INT; h++) {
        float z = (float)m.bias + (m.zero_kind == LQ_ZERO_CODE && m.zero == LQ_U8 ? v.z[h] : 0);
        o.minus[h] = twice(1024 + z);
        o.sixteenth[h] = twice(-(64 + z));
    }
    return o;
}

struct stage { /* shared memory of a block */
    uint16_t *x;     /* [n][ld] halves, in fours: k0 k2 k1 k3 */
    float *sum;      /* [flushes of a panel][TOKENS] */
    uint32_t *table; /* [256][LANES] pairs */
    float *part;     /* [WARPS][16][TOKENS] */
};

/* Columns [k0, k0 + wide) of every token. */
static __device__ __forceinline__ void load_panel(const lq_device_matrix &m, const float *x, uint32_t n, uint32_t k0, uint32_t wide, uint32_t ld, const stage &st) {
    for (uint32_t i = threadIdx.x; i < n * wide; i += WARPS * LANES) {
        uint32_t t = i / wide, c = i % wide, k = k0 + c, to = (c & ~3u) + (c & 1) * 2 + (c >> 1 & 1);
        float v = k < m.cols ? x[(size_t)t * m.cols + (m.perm ? m.perm[k] : k)] : 0;
        st.x[t * ld + to] = lq_half(v);
    }
}

static __device__ __forceinline__ void sum_panel(uint32_t n, uint32_t wide, uint32_t unit, uint32_t ld, const stage &st) {
    for (uint32_t i = threadIdx.x; i < wide / unit * TOKENS; i += WARPS * LANES) {
        uint32_t u = i / TOKENS, t = i % TOKENS;
        float sum = 0;
        for (uint32_t c = 0; t < n && c < unit; c++) sum += lq_float(st.x[t * ld + u * unit + c]);
        st.sum[i] = sum;
    }
}

static __device__ __forceinline__ void fill_table(const lq_device_matrix &m, const stage &st) {
    for (uint32_t i = threadIdx.x; i < 256 * LANES; i += WARPS * LANES) {
        uint32_t pair = i / LANES;
        st.table[i] = lq_pair(m.table[pair & 15], m.table[pair >> 4]);
    }
}

static __device__ __forceinline__ void flush(const lq_device_matrix &m, const segment &v, const float *sum, float part[4], float acc[4]) {
    bool sums = has_sums(m), min = m.zero_kind == LQ_ZERO_MIN;
    int q = threadIdx.x % 4;
    for (int i = 0; i < 4; i++) {
        float zero = sums ? v.z[i / 2] * sum[2 * q + i % 2] : 0;
        acc[i] += min ? v.s[i / 2] * part[i] - zero : v.s[i / 2] * (part[i] - zero);
        part[i] = 0;
    }
}

/* One chunk: `at` its first column in the panel, k in the matrix. */
template <int F0, int F1, int KIND, bool FINE>
static __device__ __forceinline__ void chunk(const lq_device_matrix &m, const uint32_t *w, uint32_t k, uint32_t at, uint32_t n, uint32_t ld, const stage &st, float acc[4]) {
    typedef shape<F0, F1> S;
    const int lane = threadIdx.x % LANES, g = lane / 4, q = lane % 4;
    const uint16_t *x = st.x + (g < (int)n ? g : 0) * ld + at + 4 * q;
    const uint32_t *table = st.table + lane;
    float part[4] = {0, 0, 0, 0};
    segment v = load_segment(m, blockIdx.x, k / m.seg < m.segs ? k / m.seg : m.segs - 1, g);
    offsets z = offsets_of<KIND>(m, v);
LQ_UNROLL
    for (int s = 0; s < S::STEPS; s++) {
        if (FINE && s) {
            uint32_t seg = (k + s * STEP) / m.seg;
            v = load_segment(m, blockIdx.x, seg < m.segs ? seg : m.segs - 1, g);
            z = offsets_of<KIND>(m, v);
        }
        uint32_t a[4];
        operands<F0, F1, KIND>(w, s, z, table, a);
        uint2 b = *(const uint2 *)(const void *)(x + s * STEP);
        if (g >= (int)n) b.x = b.y = 0;
        lq_mma_f16(part, a, b.x, b.y);
        if (FINE) flush(m, v, st.sum + (at / STEP + s) * TOKENS, part, acc);
    }
    if (!FINE) flush(m, v, st.sum + at / S::CHUNK * TOKENS, part, acc);
}

/* The warps' sums in warp order. */
static __device__ __forceinline__ void join(const lq_device_matrix &m, const float acc[4], uint32_t n, float factor, const stage &st, float *y) {
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, g = lane / 4, q = lane % 4;
    for (int i = 0; i < 4; i++) st.part[(warp * 16 + g + i / 2 * 8) * TOKENS + 2 * q + i % 2] = acc[i];
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < 16 * n; i += WARPS * LANES) {
        uint32_t t = i / 16, r = i % 16;
        float sum = 0;
        for (int w = 0; w < WARPS; w++) sum += st.part[(w * 16 + r) * TOKENS + t];
        if (blockIdx.x * 16 + r < m.rows) y[(size_t)t * m.rows + blockIdx.x * 16 + r] = sum * factor;
    }
}

struct layout { uint32_t panel, ld, sums; size_t bytes; }; /* columns of a panel, stride of x, flushes a panel has, bytes of shared memory */

template <int F0, int F1, int KIND, bool FINE>
__global__ void __launch_bounds__(WARPS *LANES, F1 ? 2 : 3) run(const __grid_constant__ lq_device_matrix m, const float *x, uint32_t n, layout l, float *y) {
    typedef shape<F0, F1> S;
    uint8_t *mem = lq_shared();
    stage st;
    st.table = (uint32_t *)(void *)mem;
    st.sum = (float *)(void *)(mem + (KIND == TABLE ? TABLE_BYTES : 0));
    st.part = st.sum + l.sums * TOKENS;
    st.x = (uint16_t *)(void *)(st.part + WARPS * 16 * TOKENS);
    const uint32_t warp = threadIdx.x / LANES;
    float acc[4] = {0, 0, 0, 0};
    uint32_t ring[S::RING][S::WORDS];
    if (KIND == TABLE) fill_table(m, st);
LQ_UNROLL
    for (int d = 0; d < S::RING; d++)
        if (warp + d * WARPS < m.chunks) load_chunk<F0, F1>(m, warp + d * WARPS, ring[d]);
    for (uint32_t k0 = 0, first = warp; k0 < m.chunks * S::CHUNK; k0 += l.panel) {
        __syncthreads(); /* the panel before is done with */
        load_panel(m, x, n, k0, l.panel, l.ld, st);
        __syncthreads();
        if (has_sums(m)) {
            sum_panel(n, l.panel, FINE ? (uint32_t)STEP : (uint32_t)S::CHUNK, l.ld, st);
            __syncthreads();
        }
        uint32_t end = (k0 + l.panel) / S::CHUNK < m.chunks ? (k0 + l.panel) / S::CHUNK : m.chunks;
        for (; first < end; first += S::RING * WARPS) {
LQ_UNROLL
            for (int d = 0; d < S::RING; d++) {
                uint32_t c = first + d * WARPS;
                if (c >= m.chunks) break;
                chunk<F0, F1, KIND, FINE>(m, ring[d], c * S::CHUNK, c * S::CHUNK - k0, n, l.ld, st, acc);
                if (c + S::RING * WARPS < m.chunks) load_chunk<F0, F1>(m, c + S::RING * WARPS, ring[d]);
            }
        }
    }
    join(m, acc, n, KIND == E4M3 ? 256.0f : 1.0f, st, y);
}

/* Panels hold whole turns of the ring, so that a warp's place in it is the same at the start of each. */
template <int F0, int F1, int KIND, bool FINE> static const char *start(const lq_device_matrix &m, const float *x, uint32_t n, float *y) {
    typedef shape<F0, F1> S;
    const uint32_t turn = S::CHUNK * WARPS * S::RING, all = (m.chunks * S::CHUNK + turn - 1) / turn * turn, most = (n == 1 ? 8192 : n <= 4 ? 4096 : 2048) / turn * turn;
    layout l;
    l.panel = all < most ? all : most ? most : turn;
    l.ld = l.panel + PAD;
    l.sums = l.panel / (FINE ? (uint32_t)STEP : (uint32_t)S::CHUNK);
    l.bytes = (KIND == TABLE ? TABLE_BYTES : 0) + ((size_t)l.sums + WARPS * 16) * TOKENS * 4 + (size_t)n * l.ld * 2;
    return lq_launch("gemv", run<F0, F1, KIND, FINE>, dim3(m.tiles), dim3(WARPS * LANES), l.bytes, m, x, n, l, y);
}

template <int F0, int F1, int KIND> static const char *pick_flush(const lq_device_matrix &m, const float *x, uint32_t n, float *y) {
    bool whole = m.segs == 1 || m.seg % shape<F0, F1>::CHUNK == 0;
    return whole ? start<F0, F1, KIND, false>(m, x, n, y) : start<F0, F1, KIND, true>(m, x, n, y);
}

static const char *pick(const lq_device_matrix &m, const float *x, uint32_t n, float *y) {
    const int f = m.fields[0] * 16 + m.fields[1];
    if (m.grid == LQ_GRID_E4M3) return pick_flush<8, 0, E4M3>(m, x, n, y);
    if (m.grid == LQ_GRID_INT) switch (f) {
        case 0x10: return pick_flush<1, 0, INT>(m, x, n, y);
        case 0x20: return pick_flush<2, 0, INT>(m, x, n, y);
        case 0x21: return pick_flush<2, 1, INT>(m, x, n, y);
        case 0x40: return pick_flush<4, 0, INT>(m, x, n, y);
        case 0x41: return pick_flush<4, 1, INT>(m, x, n, y);
        case 0x42: return pick_flush<4, 2, INT>(m, x, n, y);
        case 0x80: return pick_flush<8, 0, INT>(m, x, n, y);
    }
    else switch (f) {
        case 0x10: return pick_flush<1, 0, TABLE>(m, x, n, y);
        case 0x20: return pick_flush<2, 0, TABLE>(m, x, n, y);
        case 0x21: return pick_flush<2, 1, TABLE>(m, x, n, y);
        case 0x40: return pick_flush<4, 0, TABLE>(m, x, n, y);
    }
    return "no kernel for codes of this width";
}

static const char *all_tokens(const lq_device_matrix *m, const float *x, uint32_t n, float *y) {
    for (uint32_t t = 0; t < n; t += TOKENS) {
        const char *why = pick(*m, x + (size_t)t * m->cols, n - t < (uint32_t)TOKENS ? n - t : (uint32_t)TOKENS, y + (size_t)t * m->rows);
        if (why) return why;
    }
    return nullptr;
}

} // namespace gemv
#endif
