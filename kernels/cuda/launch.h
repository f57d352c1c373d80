/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* One way to start a kernel on either machine, all on one stream; and the device's own memory for what kernels leave each other. */
#ifndef LQ_LAUNCH_H
#define LQ_LAUNCH_H
#include "kernels/cuda/cu.h"

#include <cstdlib>

/* lq_shared_most: bytes of shared memory a block of this device may have. */
#ifdef LQ_EMU
static inline size_t lq_shared_most() { return emu::most_shared; }

template <typename Kernel, typename... Args> const char *lq_launch(const char *name, Kernel kernel, dim3 grid, dim3 block, size_t shared, Args... args) {
    auto run = [&] { kernel(args...); };
    return emu::launch(name, grid, block, shared, [](const void *f) { (*(decltype(run) const *)f)(); }, &run);
}

static void *lq_device_take(size_t n) { return malloc(n); }
static void lq_device_outgrown(void *p) { free(p); }
#else
static inline size_t lq_shared_most() {
    int device = 0, n = 0;
    return cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetAttribute(&n, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess ? (size_t)n : 0;
}

static cudaStream_t lq_stream; /* NULL until the device was asked for */

static void *lq_device_take(size_t n) {
    void *p = nullptr;
    return cudaMalloc(&p, n) == cudaSuccess ? p : nullptr;
}
static void lq_device_outgrown(void *) {} /* recorded passes may still use it; rooms double, so all of them together are no more than the last */

template <typename Kernel, typename... Args> const char *lq_launch(const char *, Kernel kernel, dim3 grid, dim3 block, size_t shared, Args... args) {
    cudaError_t e = shared > 48 << 10 ? cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared) : cudaSuccess;
    if (e == cudaSuccess) {
        kernel<<<grid, block, shared, lq_stream>>>(args...);
        e = cudaGetLastError();
    }
    return e == cudaSuccess ? nullptr : cudaGetErrorString(e);
}
#endif

/* At least n bytes that hold until the next kernel asks; NULL: no memory. Launches follow each other, so one room serves all. */
static void *lq_scratch(size_t n) {
    static void *room;
    static size_t has;
    if (n <= has) return room;
    size_t more = n > 2 * has ? n : 2 * has;
    void *p = lq_device_take(more);
    if (!p) return nullptr;
    lq_device_outgrown(room);
    room = p;
    has = more;
    return p;
}
#endif
