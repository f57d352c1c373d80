/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/cuda/cuda.h"

static bool available(void) { return false; }
static const char *describe(void) { return "built without CUDA"; }

const lq_device *lq_device_cuda(void) {
    static const lq_device none = {.name = "cuda", .available = available, .describe = describe};
    return &none;
}
