/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The device "cuda": the first GPU of the machine, behind the C names of cuda.h. */
#include "kernels/cuda/gemv.cuh"
#include "kernels/cuda/idot.cuh"

#include <cstdio>

static bool available() {
    int n = 0, major = 0;
    return cudaGetDeviceCount(&n) == cudaSuccess && n && cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess && major >= 7;
}

static const char *describe() {
    static char words[320];
    cudaDeviceProp p;
    if (!available() || cudaGetDeviceProperties(&p, 0) != cudaSuccess) return "no CUDA device that this build has kernels for (7.5 and later)";
    snprintf(words, sizeof words, "%s, compute capability %d.%d, %d multiprocessors", p.name, p.major, p.minor, p.multiProcessorCount);
    return words;
}

static void *take(size_t n) {
    void *p = nullptr;
    return cudaMalloc(&p, n ? n : 1) == cudaSuccess ? p : nullptr;
}
static void release(void *p) { cudaFree(p); }
static bool put(void *to, const void *from, size_t n) { return cudaMemcpy(to, from, n, cudaMemcpyHostToDevice) == cudaSuccess; }
static bool get(void *to, const void *from, size_t n) { return cudaMemcpy(to, from, n, cudaMemcpyDeviceToHost) == cudaSuccess; }

extern "C" const lq_device *lq_device_cuda(void) {
    static const lq_device d = {"cuda", available, describe, take, release, put, get, nullptr, nullptr, nullptr, nullptr, nullptr, gemv::all_tokens, idot::all_tokens, nullptr};
    return &d;
}
