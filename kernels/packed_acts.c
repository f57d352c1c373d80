/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Activations in the order and width of packed weights, with the sums that zeros are multiplied by. */
#include "kernels/packed.h"

#include <string.h>

static size_t aligned(size_t n) { return (n + 63) / 64 * 64; }
static uint32_t seg_end(const lq_packed *p, uint32_t g) { return p->q.cols - g * p->seg < p->seg ? p->q.cols : (g + 1) * p->seg; }
static bool wants_sums(const lq_packed *p) { return p->zero != LQ_NONE; }

size_t lq_packed_x_bytes(const lq_packed *p, uint32_t n) {
    return aligned((size_t)n * lq_packed_ld(p) * sizeof(float)) + (wants_sums(p) ? aligned((size_t)n * p->segs * sizeof(float)) : 0);
}

static void arrange(const lq_packed *p, const float *x, float *out) {
    uint32_t cols = p->q.cols;
    if (!p->q.perm) memcpy(out, x, cols * sizeof *x);
    for (uint32_t c = 0; p->q.perm && c < cols; c++) out[c] = x[p->q.perm[c]];
    memset(out + cols, 0, (lq_packed_ld(p) - cols) * sizeof *x);
}

static void add_up(const lq_packed *p, const float *x, float *sum) {
    for (uint32_t g = 0; g < p->segs; g++) {
        double s[8] = {0};
        uint32_t c = g * p->seg, end = seg_end(p, g);
        for (; c + 8 <= end; c += 8)
            for (int i = 0; i < 8; i++) s[i] += (double)x[c + (uint32_t)i];
        for (; c < end; c++) s[0] += (double)x[c];
        sum[g] = (float)(((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7])));
    }
}

lq_packed_x lq_packed_x_of(const lq_packed *p, const float *x, uint32_t n, void *scratch) {
    bool copy = p->q.perm || lq_packed_ld(p) != p->q.cols;
    void *sum = (char *)scratch + aligned((size_t)n * lq_packed_ld(p) * sizeof(float));
    return (lq_packed_x){n, copy ? scratch : x, wants_sums(p) ? sum : NULL};
}

void lq_packed_x_put(const lq_packed *p, const float *x, uint32_t t, const lq_packed_x *to) {
    const float *in = x + (size_t)t * p->q.cols;
    if (to->x != x) {
        float *copy = (float *)(uintptr_t)to->x + (size_t)t * lq_packed_ld(p); /* its own scratch */
        arrange(p, in, copy);
        in = copy;
    }
    if (to->sum) add_up(p, in, (float *)(uintptr_t)to->sum + (size_t)t * p->segs);
}

lq_packed_x lq_packed_x_make(const lq_packed *p, const float *x, uint32_t n, void *scratch) {
    lq_packed_x out = lq_packed_x_of(p, x, n, scratch);
    for (uint32_t t = 0; (out.x != x || out.sum) && t < n; t++) lq_packed_x_put(p, x, t, &out);
    return out;
}

size_t lq_packed_i_bytes(const lq_packed *p, uint32_t n) { return aligned((size_t)n * lq_packed_ld(p)) + 2 * aligned((size_t)n * p->segs * 4); }

lq_packed_token lq_packed_i_token(const lq_packed *p, uint32_t n, void *scratch, uint32_t t) {
    char *sums = (char *)scratch + aligned((size_t)n * lq_packed_ld(p)), *steps = sums + aligned((size_t)n * p->segs * 4);
    return (lq_packed_token){(int8_t *)scratch + (size_t)t * lq_packed_ld(p), (int32_t *)(void *)sums + (size_t)t * p->segs, (float *)(void *)steps + (size_t)t * p->segs};
}

lq_packed_i lq_packed_i_of(const lq_packed *p, uint32_t n, void *scratch, uint32_t t0, uint32_t some) {
    lq_packed_token first = lq_packed_i_token(p, n, scratch, t0);
    return (lq_packed_i){some, first.x, first.sum, first.step};
}

void lq_packed_i_put(const lq_packed *p, const float *code, const float *step, lq_packed_token to) {
    uint32_t cols = p->q.cols, tile = p->q.sch.act.tile;
    for (uint32_t c = 0; c < cols; c++) to.x[c] = (int8_t)code[c];
    memset(to.x + cols, 0, lq_packed_ld(p) - cols);
    for (uint32_t g = 0; g < p->segs; g++) {
        int32_t s = 0;
        for (uint32_t c = g * p->seg; c < seg_end(p, g); c++) s += to.x[c];
        to.sum[g] = s;
        to.step[g] = step[tile ? g * p->seg / tile : 0];
    }
}

lq_packed_i lq_packed_i_make(const lq_packed *p, const float *code, const float *step, uint32_t n, void *scratch) {
    uint32_t tile = p->q.sch.act.tile, tiles = tile ? (p->q.cols + tile - 1) / tile : 1;
    for (uint32_t t = 0; t < n; t++) lq_packed_i_put(p, code + (size_t)t * p->q.cols, step + (size_t)t * tiles, lq_packed_i_token(p, n, scratch, t));
    return lq_packed_i_of(p, n, scratch, 0, n);
}

static uint32_t blocks_per(const lq_packed *p) { return (p->seg < p->q.cols ? p->seg - 1 : p->q.cols - 1) / LQ_DIGIT_BLOCK + 1; }
/* Runs of a last, shorter segment that are not there have no columns. */
static uint32_t n_blocks(const lq_packed *p) {
    uint32_t last = p->q.cols - (p->segs - 1) * p->seg;
    return (p->segs - 1) * blocks_per(p) + (last - 1) / LQ_DIGIT_BLOCK + 1;
}
static bool borrowed(const lq_packed *p) { return !p->q.perm && lq_packed_ld(p) == p->q.cols; }

size_t lq_packed_d_bytes(const lq_packed *p, uint32_t n) {
    size_t blocks = (size_t)n * n_blocks(p), ld = lq_packed_ld(p);
    return aligned(n * 4 * ld) + aligned(blocks * LQ_DIGITS * sizeof(int32_t)) + aligned(blocks * sizeof(float)) + (borrowed(p) ? 0 : ld * sizeof(float));
}

lq_packed_d lq_packed_d_make(const lq_packed *p, lq_digits_fn digits, const float *x, uint32_t n, void *scratch) {
    uint32_t ld = lq_packed_ld(p), cols = p->q.cols, blocks = n_blocks(p), per = blocks_per(p);
    int8_t *d = scratch;
    int32_t *sum = (int32_t *)(void *)((char *)scratch + aligned((size_t)n * 4 * ld));
    float *step = (float *)(void *)((char *)sum + aligned((size_t)n * blocks * LQ_DIGITS * sizeof *sum));
    float *row = (float *)(void *)((char *)step + aligned((size_t)n * blocks * sizeof *step));
    bool near = true;
    for (uint32_t t = 0; t < n; t++) {
        const float *from = x + (size_t)t * cols;
        if (!borrowed(p)) {
            arrange(p, from, row);
            from = row;
        }
        for (uint32_t b = 0, c; b < blocks; b++) {
            uint32_t end = lq_packed_block(p, per, b, &c), at = t * blocks + b;
            near = digits(from + c, (end == cols ? ld : end) - c, d + ((size_t)t * ld + c) * 4, sum + (size_t)at * LQ_DIGITS, step + at) && near;
        }
    }
    return (lq_packed_d){n, blocks, per, d, sum, step, near};
}
