/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Everything of lq_device_ops on this device. */
#ifndef LQ_OPS_CUH
#define LQ_OPS_CUH
#include "kernels/cuda/dense.cuh"
#include "kernels/cuda/families.h"
#include "kernels/cuda/ops_elementwise.cuh"
#include "kernels/cuda/roof.cuh"
#include "kernels/cuda/round.cuh"
#include "kernels/cuda/route.cuh"
#include "kernels/cuda/score.cuh"
#include "kernels/cuda/sparse.cuh"

namespace ops {

static const char *product(const lq_device_product *p) {
    const bool alone = p->parts == 1 && !p->part[0].bias && !p->glu && !p->add && !p->pick;
    if (p->codes && p->rest.value && p->n > LQ_DEVICE_N && alone) return LQ_UNIT_NAME(idot_split)(p);
    if (!p->codes && p->step && p->n > LQ_DEVICE_N && alone) return LQ_UNIT_NAME(gemm_stepped)(p);
    return p->codes ? LQ_UNIT_NAME(idot_product)(p) : LQ_UNIT_NAME(gemv_product)(p);
}

static const lq_device_ops table = {
    dense::start,
    LQ_UNIT_NAME(gemm),
    sparse::start,
    elementwise::embed,
    elementwise::embed_packed,
    elementwise::norm,
    elementwise::rope,
    elementwise::glu,
    elementwise::add,
    elementwise::bias,
    elementwise::clamp,
    elementwise::token_gate,
    elementwise::split,
    LQ_UNIT_NAME(kv_put),
    LQ_UNIT_NAME(attn),
    score::start,
    rounding::start,
    rounding::act,
    elementwise::scale,
    elementwise::scatter,
    product,
    LQ_UNIT_NAME(turn),
    route::start,
    route::merge,
    roof::start,
};

} // namespace ops
#endif
