/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The device "cuda": the first GPU of the machine, behind the C names of cuda.h. */
#include "kernels/cuda/ops.cuh"

#include <cstdio>
#include <cstring>
#include <dlfcn.h>

cudaStream_t lq_stream; /* NULL until the device was asked for */

/* ---- kernels that begin early ---- */

bool lq_follows;
static bool ahead_;
bool lq_is_ahead() { return ahead_; }

/* Programmatic dependent launch, 9.0 and later: README.md says why the order holds. */
static bool ahead(bool on) {
    int major = 0;
    const bool can = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess && major >= 9;
    ahead_ = on && can;
    return can;
}

/* What is queued next has no kernel of ours in front of it: it is launched as ever. */
static cudaStream_t not_following() {
    lq_follows = false;
    return lq_stream;
}

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
static const char *wait() { return said(cudaStreamSynchronize(not_following())); }
static bool copy(void *to, const void *from, size_t n, cudaMemcpyKind way) {
    return cudaMemcpyAsync(to, from, n, way, not_following()) == cudaSuccess && cudaStreamSynchronize(lq_stream) == cudaSuccess;
}
static bool put(void *to, const void *from, size_t n) { return copy(to, from, n, cudaMemcpyHostToDevice); }
static bool get(void *to, const void *from, size_t n) { return copy(to, from, n, cudaMemcpyDeviceToHost); }

/* ---- recorded passes ---- */

/* Branches have streams of their own, which fork from the one that is recorded and meet there again. */
static struct { cudaStream_t main, side[LQ_DEVICE_BRANCHES]; cudaEvent_t fork, done[LQ_DEVICE_BRANCHES]; } tree; /* main NULL: not forked */

static cudaError_t plant() {
    cudaError_t e = tree.fork ? cudaSuccess : cudaEventCreateWithFlags(&tree.fork, cudaEventDisableTiming);
    for (int i = 0; i < LQ_DEVICE_BRANCHES && e == cudaSuccess; i++) {
        if (!tree.side[i]) e = cudaStreamCreateWithFlags(&tree.side[i], cudaStreamNonBlocking);
        if (e == cudaSuccess && !tree.done[i]) e = cudaEventCreateWithFlags(&tree.done[i], cudaEventDisableTiming);
    }
    return e;
}

static bool capturing;

static const char *record() {
    if (!lq_stream) return "no stream to record";
    cudaError_t e = plant();
    if (e == cudaSuccess) e = cudaStreamBeginCapture(not_following(), cudaStreamCaptureModeThreadLocal);
    capturing = e == cudaSuccess;
    return said(e);
}

static const char *branch(uint32_t i) {
    if (i >= LQ_DEVICE_BRANCHES) return "no such branch";
    cudaError_t e = cudaSuccess;
    if (!tree.main) {
        tree.main = lq_stream;
        e = cudaEventRecord(tree.fork, tree.main);
        for (int k = 0; k < LQ_DEVICE_BRANCHES && e == cudaSuccess; k++) e = cudaStreamWaitEvent(tree.side[k], tree.fork, 0);
    }
    not_following();
    lq_stream = tree.side[i];
    return said(e);
}

static cudaError_t join() {
    cudaError_t e = cudaSuccess;
    for (int i = 0; tree.main && i < LQ_DEVICE_BRANCHES; i++) {
        if (e == cudaSuccess) e = cudaEventRecord(tree.done[i], tree.side[i]);
        if (e == cudaSuccess) e = cudaStreamWaitEvent(tree.main, tree.done[i], 0);
    }
    not_following();
    if (tree.main) lq_stream = tree.main;
    tree.main = nullptr;
    return e;
}

static const char *end(void **pass) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    cudaError_t joined = join(), e = cudaStreamEndCapture(lq_stream, &graph);
    capturing = false;
    if (joined != cudaSuccess) e = joined;
    if (e == cudaSuccess) e = cudaGraphInstantiate(&exec, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    *pass = exec;
    return said(e);
}

static const char *replay(void *pass) { return said(cudaGraphLaunch((cudaGraphExec_t)pass, not_following())); }

static void forget(void *pass) {
    if (pass) cudaGraphExecDestroy((cudaGraphExec_t)pass);
}

/* ---- time and energy ---- */

static cudaEvent_t marks[LQ_DEVICE_MARKS]; /* made when first asked for: a pass runs once before it is recorded */

static const char *mark(uint32_t i) {
    if (i >= LQ_DEVICE_MARKS) return "no such mark";
    cudaError_t e = marks[i] ? cudaSuccess : cudaEventCreate(&marks[i]);
    if (e == cudaSuccess) e = cudaEventRecordWithFlags(marks[i], not_following(), capturing ? cudaEventRecordExternal : cudaEventRecordDefault);
    return said(e);
}

static double lasted(uint32_t i) {
    float ms = 0;
    if (i + 1 >= LQ_DEVICE_MARKS || !marks[i] || !marks[i + 1]) return -1;
    return cudaEventElapsedTime(&ms, marks[i], marks[i + 1]) == cudaSuccess ? ms * 1e-3 : -1;
}

/* The driver's management library (NVML), opened at run time: millijoules of the board since the driver was loaded. */
static double joules() {
    static int (*used)(void *, unsigned long long *);
    static void *board;
    static bool tried;
    if (!tried) {
        tried = true;
        void *lib = dlopen("libnvidia-ml.so.1", RTLD_NOW);
        int (*init)(void) = lib ? (int (*)(void))dlsym(lib, "nvmlInit_v2") : nullptr;
        int (*find)(const char *, void **) = lib ? (int (*)(const char *, void **))dlsym(lib, "nvmlDeviceGetHandleByPciBusId_v2") : nullptr;
        char bus[32];
        if (init && find && !init() && cudaDeviceGetPCIBusId(bus, sizeof bus, 0) == cudaSuccess && !find(bus, &board))
            used = (int (*)(void *, unsigned long long *))dlsym(lib, "nvmlDeviceGetTotalEnergyConsumption");
    }
    unsigned long long mj = 0;
    return used && !used(board, &mj) ? (double)mj * 1e-3 : -1;
}

uint64_t lq_cuda_launches;
static uint64_t launches() { return lq_cuda_launches; }

/* ---- what its memory should give ---- */

/* Data sheets, for drivers that do not tell clocks. */
static double peak_by_name(const char *name) {
    static const struct { const char *part; double bytes; } known[] = {
        {"B200", 8.0e12}, {"GH200", 4.9e12}, {"H200", 4.8e12}, {"H100 PCIe", 2.04e12}, {"H100", 3.35e12}, {"A100-SXM4-80GB", 2.04e12}, {"A100", 1.555e12}, {"L40S", 0.864e12},
        {"L40", 0.864e12}, {"RTX 5090", 1.792e12}, {"RTX 4090", 1.008e12}, {"RTX 3090", 0.936e12}, {"A10", 0.6e12}, {"L4", 0.3e12}, {"T4", 0.32e12}};
    for (const auto &k : known)
        if (strstr(name, k.part)) return k.bytes;
    return 0;
}

static double peak() {
    int clock = 0, width = 0; /* kHz, bits; data moves on both edges */
    cudaDeviceProp p;
    if (cudaDeviceGetAttribute(&clock, cudaDevAttrMemoryClockRate, 0) == cudaSuccess && cudaDeviceGetAttribute(&width, cudaDevAttrGlobalMemoryBusWidth, 0) == cudaSuccess && clock > 0 && width > 0)
        return 2e3 * clock * width / 8;
    return cudaGetDeviceProperties(&p, 0) == cudaSuccess ? peak_by_name(p.name) : 0;
}

static void *stream() { return not_following(); }

extern "C" const lq_device *lq_device_cuda(void) {
    static const lq_device d = {"cuda", available, describe, take, release, put, get, record, end, replay, forget, branch, wait, LQ_UNIT_NAME(gemv), LQ_UNIT_NAME(idot_many), &ops::table, launches, mark, lasted, joules, peak, ahead, stream};
    if (!lq_stream && available() && cudaStreamCreate(&lq_stream) != cudaSuccess) lq_stream = nullptr; /* then the one that is always there */
    return &d;
}
