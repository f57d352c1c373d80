/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Whole vectors and single elements of a forward pass. rope, split, embed, embed_packed, add, scatter and clamp give the bits of the C code. */
#ifndef LQ_OPS_ELEMENTWISE_CUH
#define LQ_OPS_ELEMENTWISE_CUH
#include "kernels/cuda/block.cuh"

namespace elementwise {

using namespace block;

/* ---- a block per token ---- */

__global__ void __launch_bounds__(THREADS) norm_run(const lq_device_norm o, const float *x, uint32_t d, float *y) {
    lq_begin();
    const float *in = x + (size_t)blockIdx.x * d;
    float *out = y + (size_t)blockIdx.x * d;
    const normal v = normal_of(o, in, d, (float *)(void *)lq_shared());
    for (uint32_t i = threadIdx.x; i < d; i += THREADS) out[i] = normed(o, v, in[i], i);
}

static const char *norm(const lq_device_norm *o, const float *x, uint32_t d, uint32_t n, float *y) {
    return lq_launch("norm", norm_run, dim3(n), dim3(THREADS), WARPS * sizeof(float), *o, x, d, y);
}

/* ---- elements ---- */

struct rope_pair {
    float *x;
    uint32_t heads, dim, half, pairs;
    const float *cos, *sin;
    const uint32_t *pos;
    __device__ void operator()(uint32_t t, uint32_t i) const {
        uint32_t h = i / half, j = i % half;
        turn_pair(x + (size_t)t * heads * dim + (size_t)h * dim, half, pairs, j, cos, sin, pos[t]);
    }
};
static const char *rope(float *x, uint32_t heads, uint32_t dim, uint32_t rot, int pairs, const float *cos, const float *sin, const lq_device_tokens *at) {
    if (rot < 2) return nullptr;
    return each_token("rope", rope_pair{x, heads, dim, rot / 2, (uint32_t)(pairs != 0), cos, sin, at->pos}, at->n, heads * (rot / 2));
}

struct glu_one {
    int f;
    const float *gate, *up;
    float *y;
    __device__ void operator()(uint64_t i) const { y[i] = act_of(f, gate[i]) * (up ? up[i] : 1); }
};
static const char *glu(int actfn, const float *gate, const float *up, float *y, uint64_t n) { return each("glu", glu_one{actfn, gate, up, y}, n); }

struct add_one {
    float *y;
    const float *x;
    float scale;
    __device__ void operator()(uint64_t i) const { y[i] = lq_add(y[i], lq_mul(scale, x[i])); }
};
static const char *add(float *y, const float *x, float scale, uint64_t n) { return each("add", add_one{y, x, scale}, n); }

struct bias_one {
    float *y;
    const float *b;
    uint32_t width;
    __device__ void operator()(uint32_t t, uint32_t i) const { y[(size_t)t * width + i] += b[i]; }
};
static const char *bias(float *y, const float *b, uint32_t width, uint32_t n) { return each_token("bias", bias_one{y, b, width}, n, width); }

struct clamp_one {
    const float *x;
    float most, *y;
    __device__ void operator()(uint64_t i) const { y[i] = fminf(fmaxf(x[i], -most), most); }
};
static const char *clamp(const float *x, float most, float *y, uint64_t n) { return each("clamp", clamp_one{x, most, y}, n); }

struct gate_one {
    const float *x, *gate;
    uint32_t width;
    float *y;
    __device__ void operator()(uint32_t t, uint32_t i) const { y[(size_t)t * width + i] = x[(size_t)t * width + i] / (1.0f + exponential(-gate[t])); }
};
static const char *token_gate(const float *x, const float *gate, uint32_t width, uint32_t n, float *y) { return each_token("token_gate", gate_one{x, gate, width, y}, n, width); }

struct split_one {
    const float *x;
    uint32_t width, first, run, step, rows;
    float *y;
    __device__ void operator()(uint32_t t, uint32_t i) const { y[(size_t)t * rows + i] = x[(size_t)t * width + first + (size_t)(i / run) * step + i % run]; }
};
static const char *split(const float *x, uint32_t width, uint32_t first, uint32_t run, uint32_t step, uint32_t rows, uint32_t n, float *y) {
    return each_token("split", split_one{x, width, first, run, step, rows, y}, n, rows);
}

struct scale_one {
    float *x, times, cap;
    __device__ void operator()(uint64_t i) const {
        float v = lq_mul(x[i], times);
        x[i] = cap > 0 ? cap * tanhf(v / cap) : v;
    }
};
static const char *scale(float *x, float times, float cap, uint64_t n) { return each("scale", scale_one{x, times, cap}, n); }

struct scatter_one {
    float *y;
    const float *x;
    const int32_t *ids;
    const float *weight;
    uint32_t width;
    __device__ void operator()(uint32_t t, uint32_t i) const {
        float *to = y + (size_t)ids[t] * width + i;
        *to = lq_add(*to, lq_mul(weight[t], x[(size_t)t * width + i]));
    }
};
static const char *scatter(float *y, const float *x, const int32_t *ids, const float *weight, uint32_t width, uint32_t n) {
    return each_token("scatter", scatter_one{y, x, ids, weight, width}, n, width);
}

/* ---- rows of a matrix; an id that is none gives zeros ---- */

struct embed_one {
    lq_device_dense w;
    const int32_t *ids;
    float *y;
    __device__ void operator()(uint32_t t, uint32_t i) const {
        uint32_t r = (uint32_t)ids[t];
        y[(size_t)t * w.cols + i] = r < w.rows ? element(w.dtype, w.w, (size_t)r * w.cols + i) : 0;
    }
};
static const char *embed(const lq_device_dense *w, const int32_t *ids, uint32_t n, float *y) { return each_token("embed", embed_one{*w, ids, y}, n, w->cols); }

/* The code of row r of sixteen, column c of a chunk: cuda.h draws it. */
static __device__ __forceinline__ uint32_t code_of(const lq_device_matrix &m, const uint8_t *chunk, uint32_t r, uint32_t c) {
    uint32_t code = 0, narrow = m.fields[1] ? m.fields[1] : m.fields[0];
    for (uint32_t i = 0, done = 0; i < 2 && m.fields[i]; done += m.fields[i++]) {
        uint32_t f = m.fields[i], wide = 256 / f, per = f == 8 ? 1 : 4 / f, in = c % wide, s = in / 16, h = r / 8, word = f == 8 ? 2 * s + h : s / per, up = f == 8 ? 0 : f * (s % per) + 4 * h;
        const uint8_t *tile = chunk + (i ? 512u * (m.fields[0] / narrow) : 0u) + 512u * (c / wide);
        code |= (tile[16 * (r % 8 * 4 + in % 16 / 4) + 4 * word + in % 4] >> up & ((1u << f) - 1)) << done;
    }
    return code;
}

static __device__ __forceinline__ float value_of(const lq_device_matrix &m, uint32_t r, uint32_t code) {
    return lq_float(m.tables ? ((const uint16_t *)m.params)[((size_t)r << m.bits) + code] : m.table[code & 15]);
}

/* As packed_dequant, but values of tables are halves. */
static __device__ __forceinline__ float weight_of(const lq_device_matrix &m, uint32_t r, uint32_t c) {
    uint32_t narrow = m.fields[1] ? m.fields[1] : m.fields[0], wide = 256 / narrow, bytes = 512u * (m.fields[0] + m.fields[1]) / narrow;
    uint32_t code = code_of(m, (const uint8_t *)m.codes + ((size_t)(r / 16) * m.chunks + c / wide) * bytes, r % 16, c % wide);
    float a = m.grid == LQ_GRID_INT ? (float)((int32_t)code - m.bias) : m.grid == LQ_GRID_E4M3 ? e4m3((uint8_t)code) : value_of(m, r, code);
    tile::segment v = tile::load_segment(m, r / 16, c / m.seg, (int)(r % 16));
    return m.zero_kind == LQ_ZERO_MIN ? lq_sub(lq_mul(a, v.s), v.z) : lq_mul(lq_sub(a, v.z), v.s);
}

struct embed_packed_one {
    lq_device_matrix m;
    const int32_t *ids;
    float *y;
    __device__ void operator()(uint32_t t, uint32_t i) const {
        uint32_t r = (uint32_t)ids[t];
        y[(size_t)t * m.cols + (m.perm ? m.perm[i] : i)] = r < m.rows ? weight_of(m, r, i) : 0;
    }
};
static const char *embed_packed(const lq_device_matrix *m, const int32_t *ids, uint32_t n, float *y) {
    return each_token("embed_packed", embed_packed_one{*m, ids, y}, n, m->cols);
}

} // namespace elementwise
#endif
