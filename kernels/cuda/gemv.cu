/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/cuda/gemv.cuh"
#include "kernels/cuda/families.h"

namespace gemv {

static const char *pick(const lq_device_matrix &m, const float *x, uint32_t n, float *y) {
    const int f = m.fields[0] * 16 + m.fields[1];
    if (m.grid == LQ_GRID_E4M3) return pick_flush<8, 0, E4M3>(m, x, n, y);
    if (m.times == 1) switch (f) {
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
    for (uint32_t t = 0; t < n; t += PASS) {
        const char *why = pick(*m, x + (size_t)t * m->cols, n - t < (uint32_t)PASS ? n - t : (uint32_t)PASS, y + (size_t)t * m->rows);
        if (why) return why;
    }
    return nullptr;
}

} // namespace gemv

const char *LQ_UNIT_NAME(gemv)(const lq_device_matrix *m, const float *x, uint32_t n, float *y) { return gemv::all_tokens(m, x, n, y); }
