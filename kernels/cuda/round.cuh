/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Activations rounded to bytes at run time, the bits of lq_act_quantize (calib/act.h) and lq_packed_i_make: a block per token measures its tiles,
 * writes codes in stored order, then adds them up by segments of the matrix. */
#ifndef LQ_ROUND_CUH
#define LQ_ROUND_CUH
#include "kernels/cuda/block.cuh"

namespace rounding {

using namespace block;

struct job { /* of all tokens */
    lq_device_round o;
    uint32_t cols, seg, segs, ld, tile, tiles;
    const uint32_t *perm;
    const float *x;
    int8_t *codes;
    float *step;
    int32_t *sum;
    lq_device_norm norm;
    bool normed;
};

/* What is rounded: bitsandbytes takes codes from halves. */
static __device__ __forceinline__ float seen(const lq_device_round &o, float x) {
    if (o.act.scope != 1) return x;
    float h = lq_float(lq_half(x));
    return isinf(h) ? x : h;
}
static __device__ __forceinline__ bool is_apart(const lq_device_round &o, uint32_t c) { return o.apart && o.apart[c]; }
static __device__ __forceinline__ bool is_out(const lq_device_round &o, float v, uint32_t c) { return o.act.outlier > 0 && !is_apart(o, c) && fabsf(v) >= o.act.outlier; }
static __device__ __forceinline__ bool counts(const lq_device_round &o, float v, uint32_t c) { return !is_apart(o, c) && !is_out(o, v, c); }

struct mark_one { /* columns that hold an outlier in some token */
    job j;
    uint32_t n;
    __device__ void operator()(uint64_t c) const {
        uint8_t any = 0;
        for (uint32_t t = 0; t < n; t++) any |= is_out(j.o, seen(j.o, j.x[(size_t)t * j.cols + c]), (uint32_t)c);
        j.o.mark[c] = any;
    }
};

struct worth { float step, inverse; };

static __device__ __forceinline__ worth worth_of(const lq_device_round &o, float max) {
    const float top = o.act.dtype == LQ_E4M3 ? 448 : 127;
    if (o.act.kind == LQ_ACT_STATIC) return worth{o.fixed, o.fixed > 1e-30f ? 1 / o.fixed : 0};
    if (o.act.scope == LQ_ACT_BITNET) {
        max = max > 1e-5f ? max : 1e-5f;
        return worth{max / top, 1 / max * top};
    }
    const float step = max / top;
    return worth{o.act.scope == 2 ? lq_float(lq_half(step)) : step, max > 1e-30f ? top / max : 0};
}

/* Signs: the mean of what counts, added up in column order by one thread, as its definition says. */
static __device__ void mean_tiles(const job &j, const float *x, worth *w) {
    for (uint32_t i = threadIdx.x; i < j.tiles; i += THREADS) {
        double sum = 0;
        uint32_t n = 0, end = j.cols - i * j.tile < j.tile ? j.cols : (i + 1) * j.tile;
        for (uint32_t c = i * j.tile; c < end; c++) {
            float v = seen(j.o, x[c]);
            if (!counts(j.o, v, c)) continue;
            sum += (double)fabsf(v);
            n++;
        }
        w[i] = worth{n ? (float)(sum / n) : 0, 0};
    }
}

static __device__ void measure_tiles(const job &j, const float *x, worth *w) {
    const uint32_t lane = threadIdx.x % LANES;
    for (uint32_t i = threadIdx.x / LANES; i < j.tiles; i += WARPS) {
        float max = 0;
        uint32_t end = j.cols - i * j.tile < j.tile ? j.cols : (i + 1) * j.tile;
        for (uint32_t c = i * j.tile + lane; c < end; c += LANES) {
            float v = seen(j.o, x[c]);
            if (counts(j.o, v, c)) max = fmaxf(max, fabsf(v));
        }
        max = warp_max(max);
        if (lane == 0) w[i] = worth_of(j.o, max);
    }
}

static __device__ void measure_row(const job &j, const float *x, worth *w, float *part) {
    float max = 0;
    for (uint32_t c = threadIdx.x; c < j.cols; c += THREADS) {
        float v = seen(j.o, x[c]);
        if (counts(j.o, v, c)) max = fmaxf(max, fabsf(v));
    }
    max = block_max(max, part);
    if (threadIdx.x == 0) w[0] = worth_of(j.o, max);
}

/* What every tile is worth, seen by all threads; true: something is not finite. */
static __device__ __forceinline__ bool measure(const job &j, const float *x, worth *w, float *part) {
    float odd = 0;
    for (uint32_t c = threadIdx.x; c < j.cols; c += THREADS)
        if (!finite(x[c])) odd = 1;
    const bool bad = block_max(odd, part) > 0;
    if (j.o.act.dtype == LQ_BOOL) mean_tiles(j, x, w);
    else if (j.tiles == 1) measure_row(j, x, w, part);
    else measure_tiles(j, x, w);
    __syncthreads();
    return bad;
}

static __device__ __forceinline__ int code_of(const job &j, float v, float inverse) {
    if (j.o.act.dtype == LQ_BOOL) return v < 0 ? -1 : 1;
    v = lq_mul(v, inverse);
    v = v > 127 ? 127 : v < -127 ? -127 : v;
    return (int)lq_sub(lq_add(v, 0x1.8p23f), 0x1.8p23f);
}

/* Column i as stored, all of a word's by one warp: a half, and what it leaves; products with both are within 2^-22. v is 0 where it is in the codes. */
static __device__ __forceinline__ void leave(const job &j, uint32_t i, bool out, float v) {
    const uint32_t all = lq_ballot(out);
    const size_t at = (size_t)blockIdx.x * j.ld + i;
    if (i % LANES == 0) j.o.left.where[at / LANES] = all;
    if (!all) return;
    const uint16_t half = lq_half(fminf(fmaxf(v, -65504.0f), 65504.0f));
    uint16_t *to = j.o.left.value + (at & ~(size_t)3) * 2 + (i & 1) * 2 + (i >> 1 & 1);
    to[0] = half;
    to[4] = lq_half(lq_sub(v, lq_float(half)));
}

static __device__ void write_codes(const job &j, const float *x, const worth *w, bool bad, int8_t *out) {
    const bool batch = j.o.act.scope == 1 && j.o.act.outlier > 0;
    for (uint32_t i = threadIdx.x; i < j.ld; i += THREADS) {
        uint32_t c = i < j.cols && j.perm ? j.perm[i] : i;
        int code = 0;
        bool left = false;
        if (i < j.cols && !bad) {
            float v = seen(j.o, x[c]);
            left = batch ? j.o.mark[c] : is_out(j.o, v, c);
            if (counts(j.o, v, c) && !left) code = code_of(j, v, w[c / j.tile].inverse);
        }
        out[i] = (int8_t)code;
        if (j.o.left.value) leave(j, i, left, left ? x[c] : 0);
    }
}

static __device__ void write_rest(const job &j, const float *x, float *rest) {
    const size_t second = (size_t)gridDim.x * j.cols;
    for (uint32_t c = threadIdx.x; c < j.cols; c += THREADS) {
        bool out = j.o.act.scope == 1 ? j.o.mark[c] : is_out(j.o, x[c], c);
        float half = lq_float(lq_half(fminf(fmaxf(x[c], -65504.0f), 65504.0f)));
        rest[c] = out ? half : 0;
        rest[second + c] = out ? lq_sub(x[c], half) : 0;
    }
}

static __device__ void add_up(const job &j, const int8_t *codes, const worth *w, bool bad, float *step, int32_t *sum) {
    const uint32_t lane = threadIdx.x % LANES;
    for (uint32_t g = threadIdx.x / LANES; g < j.segs; g += WARPS) {
        uint32_t end = j.cols - g * j.seg < j.seg ? j.cols : (g + 1) * j.seg;
        int32_t s = 0;
        for (uint32_t c = g * j.seg + lane; c < end; c += LANES) s += codes[c];
        s = warp_sum(s);
        if (lane == 0) {
            sum[g] = s;
            step[g] = bad ? lq_of_bits(0x7fc00000u) : w[g * j.seg / j.tile].step;
        }
    }
}

__global__ void __launch_bounds__(THREADS) run(const __grid_constant__ job j) {
    lq_begin();
    float *part = (float *)(void *)lq_shared();
    worth *w = (worth *)(void *)(part + WARPS);
    const float *x = j.x + (size_t)blockIdx.x * j.cols;
    if (j.normed) {
        float *to = j.o.normed + (size_t)blockIdx.x * j.cols;
        const normal v = normal_of(j.norm, x, j.cols, part);
        for (uint32_t c = threadIdx.x; c < j.cols; c += THREADS) to[c] = normed(j.norm, v, x[c], c);
        __syncthreads();
        x = to;
    }
    int8_t *codes = j.codes + (size_t)blockIdx.x * j.ld;
    const bool bad = measure(j, x, w, part);
    write_codes(j, x, w, bad, codes);
    if (j.o.act.outlier > 0 && j.o.rest) write_rest(j, x, j.o.rest + (size_t)blockIdx.x * j.cols);
    __syncthreads();
    add_up(j, codes, w, bad, j.step + (size_t)blockIdx.x * j.segs, j.sum + (size_t)blockIdx.x * j.segs);
}

/* The same, but values instead of codes: a block per token. */
__global__ void __launch_bounds__(THREADS) act_run(const __grid_constant__ job j, float *y) {
    lq_begin();
    float *part = (float *)(void *)lq_shared();
    worth *w = (worth *)(void *)(part + WARPS);
    const float *x = j.x + (size_t)blockIdx.x * j.cols;
    const bool bad = measure(j, x, w, part);
    for (uint32_t c = threadIdx.x; c < j.cols; c += THREADS) {
        const worth v = w[c / j.tile];
        const float code = is_apart(j.o, c) ? 0 : j.o.act.dtype == LQ_E4M3 ? e4m3(to_e4m3(lq_mul(x[c], v.inverse))) : (float)code_of(j, x[c], v.inverse);
        y[(size_t)blockIdx.x * j.cols + c] = bad ? lq_of_bits(0x7fc00000u) : lq_mul(v.step, code);
    }
}

static const char *act(const lq_device_round *o, const float *x, uint32_t cols, uint32_t n, float *y) {
    if ((o->act.dtype != LQ_E4M3 && o->act.dtype != LQ_I8 && o->act.dtype != LQ_BOOL) || o->act.outlier > 0) return "no kernel that rounds activations this way";
    job j = {};
    j.o = *o;
    j.cols = cols;
    j.tile = o->act.tile && o->act.tile < cols ? o->act.tile : cols;
    j.tiles = (cols + j.tile - 1) / j.tile;
    j.x = x;
    return lq_launch("act", act_run, dim3(n), dim3(THREADS), WARPS * sizeof(float) + j.tiles * sizeof(worth), j, y);
}

static const char *start(const lq_device_matrix *m, const lq_device_round *o, const float *x, uint32_t n, int8_t *codes, float *step, int32_t *sum) {
    if (o->act.dtype != LQ_I8 && o->act.dtype != LQ_BOOL) return "no kernel that rounds activations to this type";
    uint32_t tile = o->act.tile && o->act.tile < m->cols ? o->act.tile : m->cols;
    job j = {*o, m->cols, m->seg, m->segs, (m->cols + LQ_UNIT - 1) / LQ_UNIT * LQ_UNIT, tile, (m->cols + tile - 1) / tile, m->perm, x, codes, step, sum, o->norm ? *o->norm : lq_device_norm{}, o->norm != nullptr};
    if (o->act.scope == 1 && o->act.outlier > 0) {
        const char *why = o->mark ? each("mark outliers", mark_one{j, n}, m->cols) : "outliers of a batch need room for their marks";
        if (why) return why;
    }
    return lq_launch("round", run, dim3(n), dim3(THREADS), WARPS * sizeof(float) + j.tiles * sizeof(worth), j);
}

} // namespace rounding
#endif
