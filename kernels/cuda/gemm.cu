/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/families.h"

namespace gemm {

static const char *pick(const lq_device_matrix *m, const float *x, uint32_t n, float *y) {
    if (n <= TOKENS || m->tables) return LQ_UNIT_NAME(gemv)(m, x, n, y); /* more blocks, and no less of the weights; a row tile's tables are all that shared memory has room for */
    const int f = m->fields[0] * 16 + m->fields[1];
    if (m->grid == LQ_GRID_E4M3) return pick_flush<8, 0, gemv::E4M3>(*m, x, n, y);
    if (m->times == 1) switch (f) {
        case 0x10: return pick_flush<1, 0, gemv::INT>(*m, x, n, y);
        case 0x20: return pick_flush<2, 0, gemv::INT>(*m, x, n, y);
        case 0x21: return pick_flush<2, 1, gemv::INT>(*m, x, n, y);
        case 0x40: return pick_flush<4, 0, gemv::INT>(*m, x, n, y);
        case 0x41: return pick_flush<4, 1, gemv::INT>(*m, x, n, y);
        case 0x42: return pick_flush<4, 2, gemv::INT>(*m, x, n, y);
        case 0x80: return pick_flush<8, 0, gemv::INT>(*m, x, n, y);
    }
    else switch (f) {
        case 0x10: return pick_flush<1, 0, gemv::TABLE>(*m, x, n, y);
        case 0x20: return pick_flush<2, 0, gemv::TABLE>(*m, x, n, y);
        case 0x21: return pick_flush<2, 1, gemv::TABLE>(*m, x, n, y);
        case 0x40: return pick_flush<4, 0, gemv::TABLE>(*m, x, n, y);
    }
    return "no kernel for codes of this width";
}

static const char *stepped(const lq_device_product *d) {
    const lq_device_matrix &m = *d->part[0].m;
    if (!lq_device_steps(&m, d->tile)) return "no kernel for these codes and activations in steps";
    return start<8, 0, gemv::STEPPED, false>(m, d->x, d->n, d->part[0].y, d->step, d->tile);
}

} // namespace gemm

const char *LQ_UNIT_NAME(gemm_stepped)(const lq_device_product *d) { return gemm::stepped(d); }

const char *LQ_UNIT_NAME(gemm)(const lq_device_matrix *m, const float *x, uint32_t n, float *y) { return gemm::pick(m, x, n, y); }
