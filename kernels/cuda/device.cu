/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The device "cuda": the first GPU of the machine, behind the C names of cuda.h. */
#include "kernels/cuda/ops.cuh"

#include <cstdio>

cudaStream_t lq_stream; /* NULL until the device was asked for */

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

/* Recorded passes may still use what was outgrown; rooms double, so all of them together are no more than the last. */
void *lq_scratch(size_t n) {
    static void *room;
    static size_t has;
    if (n <= has) return room;
    size_t more = n > 2 * has ? n : 2 * has;
    void *p = nullptr;
    if (cudaMalloc(&p, more) != cudaSuccess) return nullptr;
    has = more;
    return room = p;
}

/* ---- one stream for everything ---- */

static const char *said(cudaError_t e) { return e == cudaSuccess ? nullptr : cudaGetErrorString(e); }
static const char *wait() { return said(cudaStreamSynchronize(lq_stream)); }
static bool copy(void *to, const void *from, size_t n, cudaMemcpyKind way) {
    return cudaMemcpyAsync(to, from, n, way, lq_stream) == cudaSuccess && cudaStreamSynchronize(lq_stream) == cudaSuccess;
}
static bool put(void *to, const void *from, size_t n) { return copy(to, from, n, cudaMemcpyHostToDevice); }
static bool get(void *to, const void *from, size_t n) { return copy(to, from, n, cudaMemcpyDeviceToHost); }

/* ---- recorded passes ---- */

static const char *record() {
    if (!lq_stream) return "no stream to record";
    return said(cudaStreamBeginCapture(lq_stream, cudaStreamCaptureModeThreadLocal));
}

static const char *end(void **pass) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    cudaError_t e = cudaStreamEndCapture(lq_stream, &graph);
    if (e == cudaSuccess) e = cudaGraphInstantiate(&exec, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    *pass = exec;
    return said(e);
}

static const char *replay(void *pass) { return said(cudaGraphLaunch((cudaGraphExec_t)pass, lq_stream)); }

static void forget(void *pass) {
    if (pass) cudaGraphExecDestroy((cudaGraphExec_t)pass);
}

uint64_t lq_cuda_launches;
static uint64_t launches() { return lq_cuda_launches; }

extern "C" const lq_device *lq_device_cuda(void) {
    static const lq_device d = {"cuda", available, describe, take, release, put, get, record, end, replay, forget, wait, LQ_UNIT_NAME(gemv), LQ_UNIT_NAME(idot_many), &ops::table, launches};
    if (!lq_stream && available() && cudaStreamCreate(&lq_stream) != cudaSuccess) lq_stream = nullptr; /* then the one that is always there */
    return &d;
}
