/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Several products of one input as one launch, and what becomes of a sum: lq_device_product (cuda.h). A block owns a row tile of one
 * part; with glu, the same tile of both parts, one after the other, so that gate and up meet in the thread that has summed them. With pick, a
 * launch has a row of blocks for each token, whose tiles lie in the matrix that is picked. */
#ifndef LQ_JOINT_CUH
#define LQ_JOINT_CUH
#include "kernels/cuda/block.cuh"

namespace joint {

enum { PARTS = LQ_DEVICE_PARTS };

struct part {
    lq_device_matrix m;
    const float *bias;
    float *y;
};
struct job {
    uint32_t n, parts, first[PARTS], blocks; /* tokens; the first block of each part; all */
    bool glu, add;
    int act;
    float scale;
    const int32_t *pick; /* n is 1 then: of the token lq_block_y() */
    uint32_t ahead;      /* bytes of a row tile that a block asks for before it waits; 0: none */
    part of[PARTS];
};

/* The first part of which this block has a tile; and which tile that is. */
static __device__ __forceinline__ uint32_t part_of(const job &j) {
    uint32_t p = 0;
    while (p + 1 < j.parts && blockIdx.x >= j.first[p + 1]) p++;
    return j.glu ? 0 : p;
}
static __device__ __forceinline__ uint32_t tile_of(const job &j, uint32_t p) { return lq_block_x() - (j.glu ? 0 : j.first[p]); }

/* Tiles before those of the matrix that this block multiplies by; where its token stands in memory; what precedes its order of columns. */
static __device__ __forceinline__ uint32_t stored_tile_of(const job &j, uint32_t p) { return tile_of(j, p) + (j.pick ? (uint32_t)j.pick[lq_block_y()] * j.of[p].m.tiles : 0); }
static __device__ __forceinline__ uint32_t token_of(const job &j, uint32_t t) { return j.pick ? lq_block_y() : t; }
static __device__ __forceinline__ const uint32_t *perm_of(const job &j, const lq_device_matrix &m) { return m.perm && j.pick ? m.perm + (size_t)j.pick[lq_block_y()] * m.cols : m.perm; }

/* How a block begins: what is picked another kernel has written. */
template <int F0, int F1> static __device__ __forceinline__ void begin(const job &j) {
    lq_let_next();
    if (j.pick) lq_wait_before();
    else tile::prefetch_tile<F0, F1>(j.of[part_of(j)].m, tile_of(j, part_of(j)), j.ahead);
}

/* A gate waits where its output will be: the same thread has both. */
static __device__ __forceinline__ void finish(const job &j, uint32_t p, uint32_t row, uint32_t token, float v) {
    const part &a = j.of[p];
    if (a.bias) v += a.bias[row];
    float *y = (j.glu ? j.of[0].y : a.y) + (size_t)token_of(j, token) * a.m.rows + row;
    if (j.glu && p + 1 == j.parts) v = block::act_of(j.act, p ? *y : v) * (p ? v : 1);
    *y = j.add ? lq_add(*y, lq_mul(j.scale, v)) : v;
}

static inline job job_of(const lq_device_product *d, uint32_t first, uint32_t n) {
    job j = {n, d->parts, {0}, 0, d->glu, d->add, d->act, d->scale, d->pick, d->pick ? 0 : lq_ahead_bytes(), {}};
    for (uint32_t p = 0; p < d->parts; p++) {
        j.of[p] = {*d->part[p].m, d->part[p].bias, d->part[p].y ? d->part[p].y + (size_t)first * d->part[p].m->rows : nullptr};
        j.first[p] = j.blocks;
        j.blocks += d->glu && p ? 0 : d->part[p].m->tiles;
    }
    return j;
}

/* Of a matrix alone. */
static inline lq_device_product alone(const lq_device_matrix *m, uint32_t n, float *y) {
    lq_device_product d = {};
    d.n = n;
    d.parts = 1;
    d.part[0].m = m;
    d.part[0].y = y;
    return d;
}

} // namespace joint
#endif
