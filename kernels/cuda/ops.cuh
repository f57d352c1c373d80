/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Everything of lq_device_ops on this device. */
#ifndef LQ_OPS_CUH
#define LQ_OPS_CUH
#include "kernels/cuda/attn_mma.cuh"
#include "kernels/cuda/dense.cuh"
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/idot_many.cuh"
#include "kernels/cuda/ops_elementwise.cuh"
#include "kernels/cuda/roof.cuh"
#include "kernels/cuda/round.cuh"
#include "kernels/cuda/score.cuh"
#include "kernels/cuda/sparse.cuh"

namespace ops {

static const lq_device_ops table = {
    dense::start,
    gemm::pick,
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
    attn::put,
    attn::any,
    score::start,
    rounding::start,
    elementwise::scale,
    elementwise::scatter,
    roof::start,
};

} // namespace ops
#endif
