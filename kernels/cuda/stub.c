/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/cuda/cuda.h"

bool lq_cuda_available(void) { return false; }
const char *lq_cuda_describe(void) { return "built without CUDA"; }
