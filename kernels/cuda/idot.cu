/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/cuda/idot.cuh"
#include "kernels/cuda/families.h"

namespace idot {

static const char *pick(const lq_device_matrix &m, const acts &in, uint32_t n, float *y) {
    if (!m.times) return "no kernel for these codes and rounded activations";
    switch (m.fields[0] * 16 + m.fields[1]) {
    case 0x10: return pick_mode<1, 0>(m, in, n, y);
    case 0x20: return pick_mode<2, 0>(m, in, n, y);
    case 0x21: return pick_mode<2, 1>(m, in, n, y);
    case 0x40: return pick_mode<4, 0>(m, in, n, y);
    case 0x41: return pick_mode<4, 1>(m, in, n, y);
    case 0x42: return pick_mode<4, 2>(m, in, n, y);
    case 0x80: return pick_mode<8, 0>(m, in, n, y);
    }
    return "no kernel for codes of this width";
}

static const char *all_tokens(const lq_device_matrix *m, const int8_t *x, const float *step, const int32_t *ones, uint32_t n, float *y) {
    const uint32_t wide = (m->cols + LQ_UNIT - 1) / LQ_UNIT * LQ_UNIT;
    for (uint32_t t = 0; t < n; t += TOKENS) {
        const acts in = {x + (size_t)t * wide, step + (size_t)t * m->segs, ones + (size_t)t * m->segs, wide};
        const char *why = pick(*m, in, n - t < (uint32_t)TOKENS ? n - t : (uint32_t)TOKENS, y + (size_t)t * m->rows);
        if (why) return why;
    }
    return nullptr;
}

} // namespace idot

const char *LQ_UNIT_NAME(idot)(const lq_device_matrix *m, const int8_t *x, const float *step, const int32_t *sum, uint32_t n, float *y) { return idot::all_tokens(m, x, step, sum, n, y); }
