/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The device "emu": the kernels of this folder on the CPU. Its memory is the host's, new memory is rubbish. */
#define LQ_EMU
#include "kernels/cuda/gemv.cuh"
#include "kernels/cuda/idot.cuh"
#include "kernels/cuda/ops.cuh"

#include <cstdlib>
#include <cstring>

static bool available() { return true; }
static const char *describe() { return "CUDA kernels emulated on the CPU"; }

static void *take(size_t n) {
    void *p = nullptr;
    if (posix_memalign(&p, 256, n ? n : 1)) return nullptr;
    return memset(p, 0xa5, n);
}
static void release(void *p) { free(p); }
static bool copy(void *to, const void *from, size_t n) { return n ? memcpy(to, from, n) != nullptr : true; }

void *lq_scratch(size_t n) {
    static void *room;
    static size_t has;
    if (n > has) {
        free(room);
        room = take(has = n);
        if (!room) has = 0;
    }
    return room;
}

static const char *wait() { return nullptr; } /* a launch returns when it is done */

extern "C" const lq_device *lq_device_emu(void) {
    static const lq_device d = {"emu", available, describe, take, release, copy, copy, nullptr, nullptr, nullptr, nullptr, wait, gemv::all_tokens, idot::all_tokens, &ops::table};
    return &d;
}
