/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/cuda/gemv.cuh"
#include "kernels/cuda/families.h"

namespace gemv {

static const char *pick(const lq_device_product *d, uint32_t t, uint32_t end) {
    const lq_device_matrix &m = *d->part[0].m;
    const int f = m.fields[0] * 16 + m.fields[1];
    if (d->step && !lq_device_steps(&m, d->tile)) return "no kernel for these codes and activations in steps";
    if (d->step) return end - t > 8 ? start<8, 0, STEPPED, false, 2>(d, t, end) : start<8, 0, STEPPED, false, 1>(d, t, end);
    if (m.grid == LQ_GRID_E4M3) return pick_flush<8, 0, E4M3>(d, t, end);
    if (m.times == 1) switch (f) {
        case 0x10: return pick_flush<1, 0, INT>(d, t, end);
        case 0x20: return pick_flush<2, 0, INT>(d, t, end);
        case 0x21: return pick_flush<2, 1, INT>(d, t, end);
        case 0x40: return pick_flush<4, 0, INT>(d, t, end);
        case 0x41: return pick_flush<4, 1, INT>(d, t, end);
        case 0x42: return pick_flush<4, 2, INT>(d, t, end);
        case 0x80: return pick_flush<8, 0, INT>(d, t, end);
    }
    else switch (f) {
        case 0x10: return pick_flush<1, 0, TABLE>(d, t, end);
        case 0x20: return pick_flush<2, 0, TABLE>(d, t, end);
        case 0x21: return pick_flush<2, 1, TABLE>(d, t, end);
        case 0x40: return pick_flush<4, 0, TABLE>(d, t, end);
    }
    return "no kernel for codes of this width";
}

static const char *all_tokens(const lq_device_product *d) {
    if (d->pick) return pick(d, 0, 1); /* blocks of one token each */
    for (uint32_t t = 0; t < d->n; t += TOKENS) {
        const char *why = pick(d, t, d->n - t < (uint32_t)TOKENS ? d->n : t + TOKENS);
        if (why) return why;
    }
    return nullptr;
}

} // namespace gemv

const char *LQ_UNIT_NAME(gemv_product)(const lq_device_product *d) { return gemv::all_tokens(d); }
const char *LQ_UNIT_NAME(gemv)(const lq_device_matrix *m, const float *x, uint32_t n, float *y) {
    lq_device_product d = joint::alone(m, n, y);
    d.x = x;
    return gemv::all_tokens(&d);
}
