/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/cuda/idot_many.cuh"
#include "kernels/cuda/families.h"

namespace idot_many {

static const char *all_tokens(const lq_device_matrix *m, const int8_t *x, const float *step, const int32_t *ones, uint32_t n, float *y) {
    if (n <= TOKENS || !m->times) return LQ_UNIT_NAME(idot)(m, x, step, ones, n, y);
    const idot::acts in = {x, step, ones, (m->cols + LQ_UNIT - 1) / LQ_UNIT * LQ_UNIT, {}};
    switch (m->fields[0] * 16 + m->fields[1]) {
    case 0x10: return choose<1, 0>(*m, in, n, y);
    case 0x20: return choose<2, 0>(*m, in, n, y);
    case 0x21: return choose<2, 1>(*m, in, n, y);
    case 0x40: return choose<4, 0>(*m, in, n, y);
    case 0x41: return choose<4, 1>(*m, in, n, y);
    case 0x42: return choose<4, 2>(*m, in, n, y);
    case 0x80: return choose<8, 0>(*m, in, n, y);
    }
    return "no kernel for codes of this width";
}

static const char *split(const lq_device_product *d) {
    const lq_device_matrix &m = *d->part[0].m;
    if (!lq_device_splits(&m)) return "no kernel for these codes and what rounding has left out";
    return begin<8, 0, idot::SPLIT>(m, idot::acts_of(d, 0, (m.cols + LQ_UNIT - 1) / LQ_UNIT * LQ_UNIT), d->n, d->part[0].y);
}

} // namespace idot_many

const char *LQ_UNIT_NAME(idot_split)(const lq_device_product *d) { return idot_many::split(d); }

const char *LQ_UNIT_NAME(idot_many)(const lq_device_matrix *m, const int8_t *x, const float *step, const int32_t *sum, uint32_t n, float *y) {
    return idot_many::all_tokens(m, x, step, sum, n, y);
}
