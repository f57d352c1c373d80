/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A device matrix as a warp sees it: chunks of codes in registers, codes as bytes; and the walk over them that products share.
 *
 * A block owns a row tile. Its warps take turns at the chunks along the columns, each a few loads ahead (a ring in registers). Panels of
 * columns are prepared in shared memory: activations, and what each lane needs of scales and zeros as floats, so nothing is decoded
 * between products:
 *
 *   steps     [span of columns][g][4]    of rows g and g + 8: two factors, then two offsets   (one 16-byte load)
 *   sums      [unit of columns][tokens]  what an offset multiplies
 *
 * A span is the largest power of two that divides a segment; a unit a span, or the chunk where that is less. */
#ifndef LQ_TILE_CUH
#define LQ_TILE_CUH
#include "kernels/cuda/launch.h"

extern "C" {
#include "kernels/cuda/cuda.h"
}

namespace tile {

enum { WARPS = 8, LANES = 32, STEP = 16, TOKENS = LQ_DEVICE_N }; /* of a pass: eight, or twice as many (E) */

template <int F0, int F1> struct shape {
    enum { NARROW = F1 ? F1 : F0, CHUNK = 256 / NARROW, STEPS = CHUNK / STEP, LOADS = (F0 + F1) / NARROW, TILES0 = F0 / NARROW, WORDS = 4 * LOADS,
           RING = LOADS > 4 ? 1 : LOADS == 1 && F0 > 1 ? 4 : 2 }; /* of chunks ahead: four loads or five where registers have room for them */
};

/* The word of a field of less than 8 bits that has step s, and how far right to shift it: then row g is the low nibble, row g + 8 the high one. */
template <int F> static __device__ __forceinline__ uint32_t word_of(const uint32_t *w, int s) { return w[s / (4 / F)]; }
template <int F> static __device__ __forceinline__ int shift_of(int s) { return F * (s % (4 / F)); }
template <int F> static __device__ __forceinline__ uint32_t nibble_mask() { return 0x11111111u * ((1u << F) - 1); }

/* Codes of up to 4 bits at step s: a byte has row g's in its low nibble, row g + 8's in the high one. */
template <int F0, int F1> static __device__ __forceinline__ uint32_t nibbles(const uint32_t *w, int s) {
    enum { F = F0 > 4 ? 4 : F0 };
    const uint32_t u = F == 4 ? w[s] : word_of<F>(w, s) >> shift_of<F>(s) & nibble_mask<F>();
    if (!F1) return u;
    const uint32_t v = word_of<F1 ? F1 : 1>(w + 4 * shape<F0, F1>::TILES0, s);
    const int up = F0 - shift_of<F1 ? F1 : 1>(s);
    return u | ((up >= 0 ? v << up : v >> -up) & nibble_mask<F1 ? F1 : 1>() << F0);
}

/* The four codes of row g + 8 h at step s as bytes. */
template <int F> static __device__ __forceinline__ uint32_t field(const uint32_t *w, int s, int h) {
    if (F == 8) return w[2 * s + h];
    return word_of<F == 8 ? 4 : F>(w, s) >> (shift_of<F == 8 ? 4 : F>(s) + 4 * h) & 0x01010101u * ((1u << F) - 1);
}

template <int F0, int F1> static __device__ __forceinline__ uint32_t codes(const uint32_t *w, int s, int h) {
    uint32_t u = field<F0>(w, s, h);
    if (F1) u |= field<F1 ? F1 : 8>(w + 4 * shape<F0, F1>::TILES0, s, h) << F0;
    return u;
}

static __device__ __forceinline__ float bits_float(uint32_t u) {
    union { uint32_t u; float f; } v;
    v.u = u;
    return v.f;
}

static __device__ __forceinline__ uint32_t float_bits(float f) {
    union { float f; uint32_t u; } v;
    v.f = f;
    return v.u;
}

/* Parameter of row i of sixteen; E4M3 without its second level. */
static __device__ __forceinline__ float param(int type, const uint8_t *p, int i) {
    switch (type) {
    case LQ_F32: return ((const float *)(const void *)p)[i];
    case LQ_F16: return lq_float(((const uint16_t *)(const void *)p)[i]);
    case LQ_U8: return (float)p[i];
    case LQ_E8M0: return bits_float(p[i] ? (uint32_t)p[i] << 23 : 0x400000u);
    default: { /* E4M3 */
        uint32_t b = p[i];
        float v = bits_float((b & 127) << 20) * 0x1p120f;
        return b & 128 ? -v : v;
    }
    }
}

static __device__ __forceinline__ int param_bytes(int type) { return type == LQ_F32 ? 4 : type == LQ_F16 ? 2 : type == LQ_NONE ? 0 : 1; }

struct segment { float s, z; };

static __device__ __forceinline__ segment load_segment(const lq_device_matrix &m, uint32_t tile, uint32_t seg, int row) {
    const uint8_t *p = (const uint8_t *)m.params + ((size_t)tile * m.segs + seg) * m.seg_bytes, *zero = p + 16 * param_bytes(m.scale);
    float s = m.scale == LQ_NONE ? 1 : param(m.scale, p, row);
    return {m.scale == LQ_E4M3 ? s * m.up + m.shift : s, m.zero == LQ_NONE ? 0 : param(m.zero, zero, row)};
}

/* What is left to subtract after the codes' own zeros. */
static __host__ __device__ __forceinline__ bool has_sums(const lq_device_matrix &m) { return m.zero_kind == LQ_ZERO_MIN || (m.zero_kind == LQ_ZERO_CODE && m.zero != LQ_U8); }

/* The codes of a lane: its 16 bytes of every tile of a chunk. */
template <int F0, int F1> static __device__ __forceinline__ const uint4 *lane_codes(const lq_device_matrix &m, uint32_t tile, uint32_t chunk) {
    return (const uint4 *)m.codes + ((size_t)tile * m.chunks + chunk) * shape<F0, F1>::LOADS * LANES + threadIdx.x % LANES;
}

template <int F0, int F1> static __device__ __forceinline__ void load_chunk(const uint4 *p, uint32_t w[]) {
LQ_UNROLL
    for (int i = 0; i < shape<F0, F1>::LOADS; i++) {
        uint4 v = lq_load_stream(p + i * LANES);
        w[4 * i] = v.x;
        w[4 * i + 1] = v.y;
        w[4 * i + 2] = v.z;
        w[4 * i + 3] = v.w;
    }
}

struct layout { /* of a launch; columns per panel, stride of activations, 2^span and 2^unit columns, spans and units of a panel */
    uint32_t panel, ld, span, unit, spans, units;
    size_t bytes; /* of shared memory */
};

/* Some bytes of a row tile behind those that the block's ring of registers takes, before it waits. */
template <int F0, int F1> static __device__ __forceinline__ void prefetch_tile(const lq_device_matrix &m, uint32_t tile, uint32_t ahead) {
    typedef shape<F0, F1> S;
    enum { RING_CHUNKS = S::RING * WARPS, CHUNK_BYTES = S::LOADS * LANES * 16 };
    if (!ahead || lq_thread_x() || m.chunks <= RING_CHUNKS) return;
    const uint32_t left = (m.chunks - RING_CHUNKS) * CHUNK_BYTES;
    lq_prefetch((const uint8_t *)m.codes + ((size_t)tile * m.chunks + RING_CHUNKS) * CHUNK_BYTES, left < ahead ? left : ahead);
}

/* fill(k0) prepares columns [k0, k0 + panel) for all of the block, use(w, k, at) multiplies a chunk: k its first column, `at` in the panel. The first codes are
 * under way when fill is first called: it says lq_wait_before ahead of what another kernel writes. */
template <int F0, int F1, typename Fill, typename Use> static __device__ __forceinline__ void walk(const lq_device_matrix &m, uint32_t tile, uint32_t panel, Fill fill, Use use) {
    typedef shape<F0, F1> S;
    enum { TURN = S::RING * WARPS, NEXT = WARPS * S::LOADS * LANES };
    const uint32_t warp = threadIdx.x / LANES;
    const uint4 *p = lane_codes<F0, F1>(m, tile, warp);
    int left = (int)m.chunks - (int)warp; /* chunks from this warp's next one on */
    uint32_t ring[S::RING][S::WORDS];
LQ_UNROLL
    for (int d = 0; d < S::RING; d++)
        if (left > d * WARPS) load_chunk<F0, F1>(p + d * NEXT, ring[d]);
    for (uint32_t k0 = 0; k0 < m.chunks * S::CHUNK; k0 += panel) {
        __syncthreads(); /* the panel before is done with */
        fill(k0);
        for (uint32_t at = warp * S::CHUNK; at < panel && left > 0; at += TURN * S::CHUNK) {
LQ_UNROLL
            for (int d = 0; d < S::RING; d++) {
                if (left <= d * WARPS) break;
                use(ring[d], k0 + at + d * WARPS * S::CHUNK, at + d * WARPS * S::CHUNK);
                if (left > d * WARPS + TURN) load_chunk<F0, F1>(p + d * NEXT + S::RING * NEXT, ring[d]);
            }
            p += S::RING * NEXT;
            left -= TURN;
        }
    }
}

/* The factors and offsets of a panel's spans, by `threads` threads of which this is `thread`: of(segment) says what a lane wants of one row's. */
template <typename Of>
static __device__ __forceinline__ void fill_steps(const lq_device_matrix &m, uint32_t tile, uint32_t k0, uint32_t span, uint32_t spans, uint32_t thread, uint32_t threads, float *steps, Of of) {
    for (uint32_t i = thread; i < spans * 16; i += threads) {
        uint32_t row = i % 16, k = ((k0 >> span) + i / 16) << span, seg = m.segs == 1 ? 0 : k / m.seg;
        segment v = of(load_segment(m, tile, seg < m.segs ? seg : m.segs - 1, (int)row));
        float *to = steps + (i / 16 * 8 + row % 8) * 4 + row / 8;
        to[0] = v.s;
        to[2] = v.z;
    }
}

static inline uint32_t log2_of(uint32_t v) {
    uint32_t n = 0;
    while (v >> n > 1) n++;
    return n;
}

static inline uint32_t span_of(const lq_device_matrix &m) { return m.segs == 1 ? 30 : log2_of(m.seg & (0u - m.seg)); }
template <int F0, int F1> static inline uint32_t unit_of(const lq_device_matrix &m) {
    return span_of(m) < log2_of(shape<F0, F1>::CHUNK) ? span_of(m) : log2_of(shape<F0, F1>::CHUNK);
}
/* Has a chunk several units? */
template <int F0, int F1> static inline bool is_fine(const lq_device_matrix &m) { return 1u << unit_of<F0, F1>(m) < (uint32_t)shape<F0, F1>::CHUNK; }

/* Panels hold whole turns of the ring, so that a warp's place in it is the same at the start of each. x: bytes of an activation, unit_bytes: of the sums of
 * a unit. False: not even one turn fits into `most` bytes beside `fixed`. */
template <int F0, int F1> static bool plan(const lq_device_matrix &m, bool steps, uint32_t n, size_t x, size_t unit_bytes, size_t fixed, size_t most, layout *l) {
    typedef shape<F0, F1> S;
    enum { PAD = 16, TURN = S::CHUNK * WARPS * S::RING, GOOD = 32 << 10 };
    const uint32_t all = (m.chunks * S::CHUNK + TURN - 1) / TURN;
    l->span = span_of(m);
    l->unit = unit_of<F0, F1>(m);
    for (uint32_t turns = all; turns; turns = turns > 1 ? (turns + 1) / 2 : 0) {
        l->panel = turns * TURN;
        l->ld = l->panel + PAD;
        l->units = l->panel >> l->unit;
        l->spans = steps ? (l->panel >> l->span) + 1 : 0;
        l->bytes = fixed + l->spans * 128 + l->units * unit_bytes + (size_t)n * l->ld * x;
        if (l->bytes <= most && (l->bytes - fixed <= GOOD || turns == 1)) return true;
    }
    return false;
}

/* The sums of the warps in warp order, each of 16 rows and 8 E columns: put(row, token, sum). Of 16 tokens a thread has one sum, always the same. */
template <int E, typename T, typename Put> static __device__ __forceinline__ void join(const lq_device_matrix &m, uint32_t tile, const T acc[E][4], uint32_t n, T *part, Put put) {
    const int thread = (int)lq_thread_x(), lane = thread % LANES, warp = thread / LANES, g = lane / 4, q = lane % 4;
LQ_UNROLL
    for (int i = 0; i < 4 * E; i++) part[(warp * 16 + g + i % 4 / 2 * 8) * 8 * E + i / 4 * 8 + 2 * q + i % 2] = acc[i / 4][i % 4];
    __syncthreads();
    for (uint32_t i = (uint32_t)thread; i < 16 * n; i += WARPS * LANES) {
        uint32_t t = i / 16, r = i % 16;
        T sum = 0;
        for (int w = 0; w < WARPS; w++) sum += part[(w * 16 + r) * 8 * E + t];
        if (tile * 16 + r < m.rows) put(tile * 16 + r, t, sum);
    }
}

} // namespace tile
#endif
