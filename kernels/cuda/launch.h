/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* One way to start a kernel on either machine, all on one stream; and the device's own memory for what kernels leave each other. */
#ifndef LQ_LAUNCH_H
#define LQ_LAUNCH_H
#include "kernels/cuda/cu.h"

#ifdef LQ_EMU /* a program may have both devices */
#define lq_scratch lq_emu_scratch
#define lq_is_ahead lq_emu_is_ahead
#endif

/* Has cuda.h's `ahead` been said? */
bool lq_is_ahead();
static inline uint32_t lq_ahead_bytes() { return lq_is_ahead() ? 32 << 10 : 0; } /* of weights that a block asks for before it waits, beside what its registers hold */

/* lq_shared_most: bytes of shared memory a block of this device may have. */
#ifdef LQ_EMU
/* emu/device.cpp: launches, or keeps the n bytes at arg for a replay. */
const char *lq_emu_queue(const char *name, dim3 grid, dim3 block, size_t shared, emu::body fn, const void *arg, size_t n);
static inline size_t lq_shared_most() { return emu::most_shared; }

template <typename Kernel, typename... Args> static const char *lq_launch(const char *name, Kernel kernel, dim3 grid, dim3 block, size_t shared, Args... args) {
    auto run = [=] { kernel(args...); };
    return lq_emu_queue(name, grid, block, shared, [](const void *f) { (*(decltype(run) const *)f)(); }, &run, sizeof run);
}
#else
static inline size_t lq_shared_most() {
    int device = 0, n = 0;
    return cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetAttribute(&n, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess ? (size_t)n : 0;
}

extern cudaStream_t lq_stream; /* device.cu */
extern uint64_t lq_cuda_launches;
extern bool lq_follows; /* the last that was queued on that stream is a kernel of ours, which waits for what was in front of it */

template <typename Kernel, typename... Args> static const char *lq_launch(const char *, Kernel kernel, dim3 grid, dim3 block, size_t shared, Args... args) {
    cudaError_t e = shared > 48 << 10 ? cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared) : cudaSuccess;
    if (e == cudaSuccess) {
        cudaLaunchAttribute early = {};
        early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        early.val.programmaticStreamSerializationAllowed = 1;
        cudaLaunchConfig_t how = {};
        how.gridDim = grid;
        how.blockDim = block;
        how.dynamicSmemBytes = shared;
        how.stream = lq_stream;
        how.attrs = &early;
        how.numAttrs = lq_is_ahead() && lq_follows ? 1 : 0;
        lq_cuda_launches++;
        e = cudaLaunchKernelEx(&how, kernel, args...);
        lq_follows = e == cudaSuccess;
    }
    return e == cudaSuccess ? nullptr : cudaGetErrorString(e);
}
#endif

/* At least n bytes that hold until the next kernel asks; NULL: no memory. Launches follow each other, so one room serves all. The device's own file has it. */
void *lq_scratch(size_t n);
#endif
