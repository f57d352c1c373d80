/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/cuda/cuda.h"

static bool available(void) { return false; }
static const char *describe(void) { return "built without the emulation of CUDA"; }

const lq_device *lq_device_emu(void) {
    static const lq_device none = {.name = "emu", .available = available, .describe = describe};
    return &none;
}
