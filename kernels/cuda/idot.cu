/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/cuda/idot.cuh"
#include "kernels/cuda/families.h"

namespace idot {

static const char *pick(const lq_device_matrix &m, const call &c) {
    if (c.d->rest.value) return lq_device_splits(&m) ? pick_columns<8, 0, SPLIT>(c) : "no kernel for these codes and what rounding has left out";
    if (!m.times) return "no kernel for these codes and rounded activations";
    switch (m.fields[0] * 16 + m.fields[1]) {
    case 0x10: return pick_mode<1, 0>(c);
    case 0x20: return pick_mode<2, 0>(c);
    case 0x21: return pick_mode<2, 1>(c);
    case 0x40: return pick_mode<4, 0>(c);
    case 0x41: return pick_mode<4, 1>(c);
    case 0x42: return pick_mode<4, 2>(c);
    case 0x80: return pick_mode<8, 0>(c);
    }
    return "no kernel for codes of this width";
}

static const char *all_tokens(const lq_device_product *d) {
    const lq_device_matrix &m = *d->part[0].m;
    const uint32_t n = d->pick ? 1 : d->n; /* blocks of one token each */
    for (uint32_t t = 0; t < n; t += TOKENS) {
        const char *why = pick(m, call{d, t, n - t < (uint32_t)TOKENS ? n : t + TOKENS, (m.cols + LQ_UNIT - 1) / LQ_UNIT * LQ_UNIT});
        if (why) return why;
    }
    return nullptr;
}

} // namespace idot

const char *LQ_UNIT_NAME(idot_product)(const lq_device_product *d) { return idot::all_tokens(d); }
const char *LQ_UNIT_NAME(idot)(const lq_device_matrix *m, const int8_t *x, const float *step, const int32_t *sum, uint32_t n, float *y) {
    lq_device_product d = joint::alone(m, n, y);
    d.codes = x;
    d.step = step;
    d.sum = sum;
    return idot::all_tokens(&d);
}
