/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#define LQ_EMU
#include "kernels/cuda/gemm.cu"
