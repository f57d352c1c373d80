/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* y = W x on packed weights, 1 to 16 tokens in one pass: the weights are the A operand of mma, sixteen rows high, the tokens its eight columns, once or twice (E).
 * A block owns a row tile; its warps take turns at the chunks along the columns and their sums meet in shared memory in warp
 * order, so the bits never change. Activations are rounded to halves; sums are fp32.
 *
 *   y[n][r] = sum over units of  s(r) sum A(code) x  -  z'(r) sum x,   z' = s z or the minimum
 * FINE: a chunk has several units. Whole zeros (U8) are subtracted from the codes themselves, exactly.
 * STEPPED: weights and activations are codes of E4M3, exact as halves; what those of activations are worth is multiplied where a unit ends. */
#ifndef LQ_GEMV_CUH
#define LQ_GEMV_CUH
#include "kernels/cuda/joint.cuh"

namespace gemv {

using namespace tile;
enum { TABLE_BYTES = 256 * LANES * 4 };
enum kind { INT, TABLE, E4M3, STEPPED };
template <int KIND> struct small_float { enum { IS = KIND == E4M3 || KIND == STEPPED }; };

/* A code of up to 4 bits is taken where it lies in its byte: as a half, 1024 + 2^p code. What to add when 2^-p has been multiplied, as two halves. */
struct offsets { uint32_t minus[2], plus[8]; }; /* rows g, g + 8: 1024 + z; plus[p]: -(1024 / 2^p + z), with the z of the row whose codes lie p bits up */

static __device__ __forceinline__ uint32_t twice(float v) { uint16_t h = lq_half(v); return lq_pair(h, h); }

/* Codes p bits up of the bytes 0 and 2 of a word. */
template <int BITS> static __device__ __forceinline__ uint32_t lift(uint32_t w, int p, const offsets &z) {
    const uint32_t u = lq_lop3<LQ_AND_OR>(w, 0x00010001u * ((1u << BITS) - 1) << p, 0x64006400u), scale = 0x3c003c00u - 0x04000400u * p;
    return p ? lq_fma2(u, scale, z.plus[p]) : lq_sub2(u, z.minus[0]);
}

/* A operands (row g: k0 k2, row g + 8: k0 k2, row g: k1 k3, row g + 8: k1 k3) of step s, exact. */
template <int F0, int F1, int KIND> static __device__ __forceinline__ void operands(const uint32_t *w, int s, const offsets &z, uint32_t own, uint32_t a[4]) {
    enum { BITS = F0 + F1 };
    if (KIND == INT && BITS <= 4) {
        const int p = F1 || F0 == 4 ? 0 : shift_of<F1 || F0 >= 4 ? 4 : F0>(s);
        const uint32_t lo = F1 ? nibbles<F0, F1>(w, s) : word_of<F0 >= 4 ? 4 : F0>(w, s), hi = lo >> 8;
        a[0] = lift<BITS>(lo, p, z);
        a[1] = lift<BITS>(lo, p + 4, z);
        a[2] = lift<BITS>(hi, p, z);
        a[3] = lift<BITS>(hi, p + 4, z);
    } else if (KIND == INT) {
        for (int h = 0; h < 2; h++) {
            uint32_t u = codes<F0, F1>(w, s, h);
            a[h] = lq_sub2(lq_bytes(u, 0x64646464u, 0x4240), z.minus[h]);
            a[2 + h] = lq_sub2(lq_bytes(u, 0x64646464u, 0x4341), z.minus[h]);
        }
    } else if (small_float<KIND>::IS) { /* one field lower, the bits are a half 2^8 too small */
        for (int h = 0; h < 2; h++) {
            uint32_t u = codes<F0, F1>(w, s, h), even = lq_bytes(u, 0, 0x2404), odd = lq_bytes(u, 0, 0x3414);
            a[h] = (even & 0x80008000u) | (even & 0x7f007f00u) >> 1;
            a[2 + h] = (odd & 0x80008000u) | (odd & 0x7f007f00u) >> 1;
        }
    } else { /* a byte names a pair of values: 128 bytes on for each, of which a lane has its own four, from `own` on */
        const uint32_t u = nibbles<F0, F1>(w, s);
        uint32_t v[4];
LQ_UNROLL
        for (int i = 0; i < 4; i++) v[i] = lq_word_at((lq_bytes(u, 0, 0x4440 + i) << 7) + own);
        a[0] = lq_bytes(v[0], v[2], 0x5410);
        a[1] = lq_bytes(v[0], v[2], 0x7632);
        a[2] = lq_bytes(v[1], v[3], 0x5410);
        a[3] = lq_bytes(v[1], v[3], 0x7632);
    }
}

struct job { /* of a launch */
    joint::job of;
    const float *x;
    lq_device_norm norm;
    bool normed;
    const float *step; /* STEPPED: [tokens][steps], one for `tile` columns */
    uint32_t tile, steps;
};

struct stage { /* shared memory of a block */
    block::normal *normal; /* [tokens] */
    uint16_t *x;     /* [n][ld] halves, in fours: k0 k2 k1 k3 */
    float *steps;    /* [spans][g][4]: s, and z' or the bits of 1024 + z as two halves */
    float *sum;      /* [units][8 E] */
    uint32_t *table; /* [256][LANES] pairs */
    float *part;     /* [WARPS][16][8 E] */
};

/* Columns [k0, k0 + wide) of every token. */
static __device__ __forceinline__ void load_panel(const lq_device_matrix &m, const job &j, uint32_t k0, const layout &l, const stage &st) {
    const uint32_t *perm = joint::perm_of(j.of, m);
    for (uint32_t t = 0; t < j.of.n; t++)
        for (uint32_t c = lq_thread_x(); c < l.panel; c += WARPS * LANES) {
            uint32_t k = k0 + c, to = (c & ~3u) + (c & 1) * 2 + (c >> 1 & 1);
            uint32_t from = k < m.cols && perm ? perm[k] : k;
            float v = k < m.cols ? j.x[(size_t)joint::token_of(j.of, t) * m.cols + from] : 0;
            if (j.normed && k < m.cols) v = block::normed(j.norm, st.normal[t], v, from);
            st.x[t * l.ld + to] = lq_half(v);
        }
}

static __device__ __forceinline__ void measure(const lq_device_matrix &m, const job &j, const stage &st) {
    for (uint32_t t = 0; t < j.of.n; t++) {
        const block::normal v = block::normal_of(j.norm, j.x + (size_t)joint::token_of(j.of, t) * m.cols, m.cols, st.part);
        if (threadIdx.x == 0) st.normal[t] = v;
    }
    __syncthreads();
}

/* Instead of sums, where activations have steps. */
template <int E> static __device__ __forceinline__ void load_worth(const job &j, uint32_t k0, const layout &l, const stage &st) {
    for (uint32_t i = lq_thread_x(); i < l.units * 8 * E; i += WARPS * LANES) {
        const uint32_t s = (k0 + (i / (8 * E) << l.unit)) / j.tile, t = i % (8 * E);
        st.sum[i] = t < j.of.n ? j.step[(size_t)joint::token_of(j.of, t) * j.steps + (s < j.steps ? s : j.steps - 1)] : 0;
    }
}

template <int E> static __device__ __forceinline__ void sum_panel(uint32_t n, const layout &l, const stage &st) {
    for (uint32_t i = lq_thread_x(); i < l.units * 8 * E; i += WARPS * LANES) {
        uint32_t u = i / (8 * E) << l.unit, t = i % (8 * E);
        float sum = 0;
        for (uint32_t c = 0; t < n && c < 1u << l.unit; c++) sum += lq_float(st.x[t * l.ld + u + c]);
        st.sum[i] = sum;
    }
}

/* A lane's copies of the pairs are its own: of the rows g and g + 8 that it multiplies, where rows have tables of their own. */
static __device__ __forceinline__ void fill_table(const lq_device_matrix &m, uint32_t tile, const stage &st) {
    const uint32_t lane = lq_thread_x() % LANES, codes = 1u << m.bits;
    const uint16_t *of = (const uint16_t *)m.params + ((size_t)tile * 16 + lane / 4) * codes;
    for (uint32_t h = 0; h < codes; h++)
        for (uint32_t l = lq_thread_x() / LANES; l < codes; l += WARPS) st.table[(h * 16 + l) * LANES + lane] = m.tables ? lq_pair(of[l], of[8 * codes + h]) : lq_pair(m.table[l], m.table[h]);
}

/* What a panel holds for a row. */
template <int KIND> static __device__ __forceinline__ segment step_of(const lq_device_matrix &m, bool sums, segment v) {
    if (sums) return {v.s, m.zero_kind == LQ_ZERO_MIN ? v.z : v.s * v.z};
    return {v.s, bits_float(twice(1024 + (float)m.bias + v.z))};
}

struct unit { /* of a lane */
    float4 v;
    offsets z;
};

template <int F, int KIND> static __device__ __forceinline__ unit load_unit(const float *steps, bool sums, uint32_t minus) {
    unit u;
    u.v = *(const float4 *)(const void *)steps;
    if (KIND != INT) return u;
    u.z.minus[0] = sums ? minus : float_bits(u.v.z);
    u.z.minus[1] = sums ? minus : float_bits(u.v.w);
LQ_UNROLL
    for (int p = 1; p < 8; p++)
        if (p % F == 0) u.z.plus[p] = lq_sub2((0x6000u + (512 - (1024u >> p)) * 2) * 0x10001u, u.z.minus[p / 4]); /* 1024 - 1024 / 2^p */
    return u;
}

static __device__ __forceinline__ void flush(const unit &u, bool sums, const float *sum, float part[4], float acc[4]) {
    acc[0] += u.v.x * part[0];
    acc[1] += u.v.x * part[1];
    acc[2] += u.v.y * part[2];
    acc[3] += u.v.y * part[3];
    part[0] = part[1] = part[2] = part[3] = 0;
    if (!sums) return;
    float2 x = *(const float2 *)(const void *)sum;
    acc[0] -= u.v.z * x.x;
    acc[1] -= u.v.z * x.y;
    acc[2] -= u.v.w * x.x;
    acc[3] -= u.v.w * x.y;
}

template <int KIND> static __device__ __forceinline__ void flush_unit(const unit &u, bool sums, const float *sum, float part[4], float acc[4]) {
    if (KIND != STEPPED) return flush(u, sums, sum, part, acc);
    const float2 x = *(const float2 *)(const void *)sum;
    acc[0] += u.v.x * x.x * part[0];
    acc[1] += u.v.x * x.y * part[1];
    acc[2] += u.v.y * x.x * part[2];
    acc[3] += u.v.y * x.y * part[3];
    part[0] = part[1] = part[2] = part[3] = 0;
}

/* One chunk: x and sum from its first column on. Lanes without a token repeat token 0: what they add to is never read. */
template <int F0, int F1, int KIND, bool FINE, int E>
static __device__ __forceinline__ void chunk(const uint32_t *w, const uint16_t *const x[E], uint32_t at, const float *steps, const float *sum, uint32_t own, uint32_t columns, bool sums,
                                             uint32_t minus, float acc[E][4]) {
    typedef shape<F0, F1> S;
    enum { F = F1 || F0 > 4 ? 4 : F0 };
    float part[E][4] = {};
    unit u = load_unit<F, KIND>(steps, sums, minus);
LQ_UNROLL
    for (int s = 0; s < S::STEPS; s++) {
        uint32_t a[4];
        operands<F0, F1, KIND>(w, s, u.z, own, a);
LQ_UNROLL
        for (int e = 0; e < E; e++) {
            uint2 b = *(const uint2 *)(const void *)(x[e] + at + s * STEP);
            lq_mma_f16(part[e], a, b.x, b.y);
        }
        if (s + 1 == S::STEPS) {
LQ_UNROLL
            for (int e = 0; e < E; e++) flush_unit<KIND>(u, sums, sum + 8 * e, part[e], acc[e]);
        } else if (FINE && columns <= (uint32_t)(((s + 1) & -(s + 1)) * STEP)) {
LQ_UNROLL
            for (int e = 0; e < E; e++) flush_unit<KIND>(u, sums, sum + 8 * e, part[e], acc[e]);
            sum += 8 * E;
            u = load_unit<F, KIND>(steps += 32, sums, minus);
        }
    }
}

template <int F0, int F1, int KIND, bool FINE, int E> static __device__ __forceinline__ void multiply(const job &j, const layout &l) {
    joint::begin<F0, F1>(j.of);
    uint8_t *mem = lq_shared();
    stage st;
    st.table = (uint32_t *)(void *)mem;
    st.part = (float *)(void *)(mem + (KIND == TABLE ? TABLE_BYTES : 0));
    st.normal = (block::normal *)(void *)(st.part + WARPS * 16 * 8 * E);
    st.steps = (float *)(void *)(st.normal + 8 * E);
    st.sum = st.steps + l.spans * 32;
    st.x = (uint16_t *)(void *)(st.sum + l.units * 8 * E);
    const uint32_t lane = threadIdx.x % LANES, g = lane / 4, q = lane % 4, n = j.of.n;
    const uint16_t *mine[E];
LQ_UNROLL
    for (int e = 0; e < E; e++) mine[e] = st.x + (g + 8 * e < n ? g + 8 * e : 0) * l.ld + 4 * q;
    const uint32_t own = KIND == TABLE ? lq_place(st.table + lane) : 0;
    uint32_t p = joint::part_of(j.of);
    do {
        const lq_device_matrix &m = j.of.of[p].m;
        const uint32_t minus = twice(1024 + (float)m.bias);
        const bool sums = has_sums(m);
        float acc[E][4] = {};
        walk<F0, F1>(
            m, joint::stored_tile_of(j.of, p), l.panel,
            [&](uint32_t k0) {
                if (KIND == TABLE && !k0 && (m.tables || !(j.of.glu && p))) fill_table(m, joint::stored_tile_of(j.of, p), st);
                fill_steps(m, joint::stored_tile_of(j.of, p), k0, l.span, l.spans, lq_thread_x(), WARPS * LANES, st.steps, [&](segment v) { return step_of<KIND>(m, sums, v); });
                lq_wait_before();
                if (j.normed && !k0 && !(j.of.glu && p)) measure(m, j, st);
                load_panel(m, j, k0, l, st);
                if (KIND == STEPPED) load_worth<E>(j, k0, l, st);
                __syncthreads();
                if (!sums) return;
                sum_panel<E>(n, l, st);
                __syncthreads();
            },
            [&](const uint32_t *w, uint32_t k, uint32_t at) {
                const float *steps = st.steps + ((k >> l.span) - ((k - at) >> l.span)) * 32 + g * 4, *sum = st.sum + (at >> l.unit) * 8 * E + 2 * q;
                chunk<F0, F1, KIND, FINE, E>(w, mine, at, steps, sum, own, 1u << l.unit, sums, minus, acc);
            });
        join<E>(m, joint::tile_of(j.of, p), acc, n, st.part, [&](uint32_t r, uint32_t t, float sum) { joint::finish(j.of, p, r, t, sum * (small_float<KIND>::IS ? 256.0f : 1.0f)); });
    } while (j.of.glu && ++p < j.of.parts);
}

template <int F0, int F1, int KIND, bool FINE> __global__ void __launch_bounds__(WARPS *LANES, F1 || (F0 == 1 && KIND == TABLE) ? 2 : 3) run(const __grid_constant__ job j, const layout l) {
    multiply<F0, F1, KIND, FINE, 1>(j, l);
}
template <int F0, int F1, int KIND, bool FINE> __global__ void __launch_bounds__(WARPS *LANES, F0 == 1 || (F1 && FINE) ? 1 : 2) run16(const __grid_constant__ job j, const layout l) {
    multiply<F0, F1, KIND, FINE, 2>(j, l);
}

/* Tokens [t, end), as many in one pass as shared memory holds. */
template <int F0, int F1, int KIND, bool FINE, int E> static const char *start(const lq_device_product *d, uint32_t t, uint32_t end) {
    const size_t fixed = (KIND == TABLE ? TABLE_BYTES : 0) + WARPS * 16 * 8 * E * 4 + 8 * E * sizeof(block::normal), most = lq_shared_most();
    const lq_device_matrix &m = *d->part[0].m;
    for (uint32_t few = end - t; t < end; t += few) {
        layout l;
        if (few > end - t) few = end - t;
        while (!plan<F0, F1>(m, true, few, 2, 8 * E * 4, fixed, most, &l)) {
            if (E > 1) {
                const char *why = start<F0, F1, KIND, FINE, 1>(d, t, t + 8);
                return why ? why : start<F0, F1, KIND, FINE, 1>(d, t + 8, end);
            }
            if (!(few /= 2)) return "not enough shared memory for a panel of this matrix";
        }
        const uint32_t tile = d->tile && d->tile < m.cols ? d->tile : m.cols, steps = (m.cols + tile - 1) / tile;
        const job j = {joint::job_of(d, t, few), d->x + (size_t)t * m.cols, d->norm ? *d->norm : lq_device_norm{}, d->norm != nullptr, d->step ? d->step + (size_t)t * steps : nullptr, tile, steps};
        const char *why = lq_launch("gemv", E > 1 ? run16<F0, F1, KIND, FINE> : run<F0, F1, KIND, FINE>, dim3(j.of.blocks, d->pick ? d->n : 1), dim3(WARPS * LANES), l.bytes, j, l);
        if (why) return why;
    }
    return nullptr;
}

template <int F0, int F1, int KIND> static const char *pick_flush(const lq_device_product *d, uint32_t t, uint32_t end) {
    const bool fine = is_fine<F0, F1>(*d->part[0].m);
    if (end - t > 8) return fine ? start<F0, F1, KIND, true, 2>(d, t, end) : start<F0, F1, KIND, false, 2>(d, t, end);
    return fine ? start<F0, F1, KIND, true, 1>(d, t, end) : start<F0, F1, KIND, false, 1>(d, t, end);
}

} // namespace gemv
#endif
