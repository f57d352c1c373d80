/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/cuda/emu/emu.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>

extern "C" {
#include "core/thread.h"
}

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#endif
#ifdef EMU_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

/* ---- fibres ---- */

extern "C" void lq_emu_switch(void **from, void *to); /* saves this stack pointer, goes on at the other */
extern "C" void lq_emu_enter();

#if defined(__x86_64__)
__asm__(".text\n.globl lq_emu_switch\n.type lq_emu_switch,@function\nlq_emu_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
        ".size lq_emu_switch,.-lq_emu_switch\n"
        ".section .note.GNU-stack,\"\",@progbits\n.text\n");
enum { SAVED = 6 };
static void *first_frame(uint8_t *top, void (*entry)()) {
    void **sp = (void **)top - 1; /* at entry the stack is 8 off a multiple of 16, as after a call */
    *--sp = (void *)entry;
    for (int i = 0; i < SAVED; i++) *--sp = nullptr;
    return sp;
}
#elif defined(__aarch64__)
__asm__(".text\n.globl lq_emu_switch\n.type lq_emu_switch,%function\nlq_emu_switch:\n"
        "sub sp,sp,#160\nstp x19,x20,[sp]\nstp x21,x22,[sp,#16]\nstp x23,x24,[sp,#32]\nstp x25,x26,[sp,#48]\nstp x27,x28,[sp,#64]\n"
        "stp x29,x30,[sp,#80]\nstp d8,d9,[sp,#96]\nstp d10,d11,[sp,#112]\nstp d12,d13,[sp,#128]\nstp d14,d15,[sp,#144]\n"
        "mov x9,sp\nstr x9,[x0]\nmov sp,x1\n"
        "ldp x19,x20,[sp]\nldp x21,x22,[sp,#16]\nldp x23,x24,[sp,#32]\nldp x25,x26,[sp,#48]\nldp x27,x28,[sp,#64]\n"
        "ldp x29,x30,[sp,#80]\nldp d8,d9,[sp,#96]\nldp d10,d11,[sp,#112]\nldp d12,d13,[sp,#128]\nldp d14,d15,[sp,#144]\n"
        "add sp,sp,#160\nret\n.size lq_emu_switch,.-lq_emu_switch\n");
static void *first_frame(uint8_t *top, void (*entry)()) {
    void **sp = (void **)top - 20;
    memset(sp, 0, 160);
    sp[11] = (void *)entry; /* x30 */
    return sp;
}
#else
#error "the emulation of CUDA has no stack switch for this machine: configure with -Demu=disabled"
#endif

namespace emu {

thread_local const place *here;
thread_local uint8_t *shared;

namespace {

enum { LANES = 32, MAX_THREADS = 1024, STACK = 256 << 10 };
enum state { READY, MEETING, BARRIER, DONE };

struct fibre {
    void *sp, *fake;
    state st;
    place at;
    unsigned mask;
    const char *what;
    void *mine;
};

struct team { /* what one thread of the machine needs to run blocks */
    fibre f[MAX_THREADS];
    uint8_t *stacks;
    void *home, *home_fake;
    const void *home_bottom;
    size_t home_size;
    int n, now, waiting[MAX_THREADS / LANES]; /* waiting: lanes of a warp at a meeting */
    body fn;
    const void *arg;
    const char *kernel;
    uint64_t rng;
    char fault[256];
};
thread_local team *mine_;
std::atomic<uint64_t> order{0x9e3779b97f4a7c15u};

uint32_t below(team *t, uint32_t n) {
    t->rng = t->rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((t->rng >> 33) % n);
}

uint8_t *stack_of(team *t, int i) { return t->stacks + (size_t)i * STACK; }

void go_home(team *t, bool for_ever) {
    fibre *f = &t->f[t->now];
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(for_ever ? nullptr : &f->fake, t->home_bottom, t->home_size);
#else
    (void)for_ever;
#endif
    lq_emu_switch(&f->sp, t->home);
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(f->fake, &t->home_bottom, &t->home_size);
#endif
}

void resume(team *t, int i) {
    t->now = i;
    here = &t->f[i].at;
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(&t->home_fake, stack_of(t, i), STACK);
#endif
    lq_emu_switch(&t->home, t->f[i].sp);
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(t->home_fake, nullptr, nullptr);
#endif
}

void fault(team *t, const char *why, const char *what) {
    const place *p = &t->f[t->now].at;
    if (t->fault[0]) return;
    snprintf(t->fault, sizeof t->fault, "%s, block %u,%u,%u, thread %u: %s%s%s", t->kernel, p->block.x, p->block.y, p->block.z, p->thread.x, why, what ? " " : "",
             what ? what : "");
}

} // namespace

extern "C" void lq_emu_run() {
    team *t = mine_;
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &t->home_bottom, &t->home_size);
#endif
    t->fn(t->arg);
    t->f[t->now].st = DONE;
    go_home(t, true);
}

void meet(unsigned mask, const char *what, void *mine, void (*fn)(void *const lane[32], unsigned mask)) {
    team *t = mine_;
    int warp = t->now / LANES * LANES;
    fibre *f = &t->f[t->now];
    if (!(mask >> (t->now % LANES) & 1)) fault(t, "a lane outside its own mask at", what);
    f->st = MEETING;
    f->mask = mask;
    f->what = what;
    f->mine = mine;
    if (++t->waiting[warp / LANES] < __builtin_popcount(mask)) return go_home(t, false); /* some are still to come */
    void *lane[LANES] = {nullptr};
    bool all = true;
    for (int i = 0; i < LANES && !t->fault[0]; i++) {
        if (!(mask >> i & 1)) continue;
        fibre *o = warp + i < t->n ? &t->f[warp + i] : nullptr;
        if (!o || o->st == DONE) fault(t, "waits for a lane that has left, at", what);
        else if (o->st != MEETING) all = false;
        else if (o->what != what || o->mask != mask) fault(t, "meets lanes at another operation:", what);
        else lane[i] = o->mine;
    }
    if (t->fault[0] || !all) return go_home(t, false);
    fn(lane, mask);
    t->waiting[warp / LANES] -= __builtin_popcount(mask);
    for (int i = 0; i < LANES; i++)
        if (mask >> i & 1) t->f[warp + i].st = READY;
}

void sync_threads() {
    team *t = mine_;
    t->f[t->now].st = BARRIER;
    go_home(t, false);
}

namespace {

/* The barrier opens when every thread that has not left stands at it. */
bool open_barrier(team *t) {
    bool any = false;
    for (int i = 0; i < t->n; i++)
        if (t->f[i].st == READY || t->f[i].st == MEETING) return false;
        else any = any || t->f[i].st == BARRIER;
    for (int i = 0; i < t->n; i++)
        if (t->f[i].st == BARRIER) t->f[i].st = READY;
    return any;
}

/* One lane of warp w that can run, from a random one on; -1. */
int ready_lane(team *t, int w) {
    int n = t->n - w * LANES < LANES ? t->n - w * LANES : LANES, from = (int)below(t, (uint32_t)n);
    for (int i = 0; i < n; i++)
        if (t->f[w * LANES + (from + i) % n].st == READY) return w * LANES + (from + i) % n;
    return -1;
}

bool step(team *t) { /* a random warp goes on until none of its lanes can */
    int warps = (t->n + LANES - 1) / LANES, from = (int)below(t, (uint32_t)warps);
    for (int i = 0; i < warps; i++) {
        int w = (from + i) % warps, lane = ready_lane(t, w);
        if (lane < 0) continue;
        for (int turns = 0; lane >= 0 && !t->fault[0] && turns < 4 * LANES; turns++, lane = ready_lane(t, w)) resume(t, lane);
        return true;
    }
    return false;
}

bool done(const team *t) {
    for (int i = 0; i < t->n; i++)
        if (t->f[i].st != DONE) return false;
    return true;
}

void run_block(team *t) {
    while (!t->fault[0] && !done(t)) {
        if (step(t) || open_barrier(t)) continue;
        for (int i = 0; i < t->n; i++)
            if (t->f[i].st == MEETING) t->now = i;
        fault(t, "waits for ever at", t->f[t->now].what);
    }
}

struct grid_job {
    const char *kernel;
    dim3 grid, block;
    size_t shared_bytes;
    body fn;
    const void *arg;
    uint64_t seed;
    std::atomic<int> failed;
    char fault[256];
};

team *hire() {
    if (mine_) return mine_;
    team *t = (team *)calloc(1, sizeof *t);
    if (t) t->stacks = (uint8_t *)mmap(nullptr, (size_t)MAX_THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!t || t->stacks == MAP_FAILED) {
        free(t);
        return nullptr;
    }
    return mine_ = t;
}

void set_up(team *t, const grid_job *j, size_t index) {
    dim3 at((unsigned)(index % j->grid.x), (unsigned)(index / j->grid.x % j->grid.y), (unsigned)(index / j->grid.x / j->grid.y));
    t->n = (int)(j->block.x * j->block.y * j->block.z);
    t->fn = j->fn;
    t->arg = j->arg;
    t->kernel = j->kernel;
    t->rng = j->seed ^ index * 0x9e3779b97f4a7c15u;
    t->fault[0] = 0;
    memset(t->waiting, 0, sizeof t->waiting);
    for (int i = 0; i < t->n; i++) {
        dim3 me((unsigned)i % j->block.x, (unsigned)i / j->block.x % j->block.y, (unsigned)i / j->block.x / j->block.y);
        t->f[i] = fibre{first_frame(stack_of(t, i) + STACK, lq_emu_run), nullptr, READY, place{me, at, j->grid, j->block}, 0, nullptr, nullptr};
    }
}

void report(grid_job *j, const char *why) {
    int none = 0;
    if (j->failed.compare_exchange_strong(none, 1)) snprintf(j->fault, sizeof j->fault, "%s", why);
}

void one_block(void *arg, size_t index) {
    grid_job *j = (grid_job *)arg;
    team *t = j->failed ? nullptr : hire();
    if (j->failed) return;
    void *mem = nullptr; /* of the exact size: a sanitizer sees what lies outside */
    if (!t || posix_memalign(&mem, 128, j->shared_bytes ? j->shared_bytes : 1)) report(j, "no memory for an emulated block");
    else {
        shared = (uint8_t *)mem;
        memset(shared, 0xa5, j->shared_bytes);
        set_up(t, j, index);
        run_block(t);
        if (t->fault[0]) report(j, t->fault);
    }
    free(mem);
}

thread_local char last_fault[256];

} // namespace

void seed(uint64_t s) { order = s * 2 + 1; }

const char *launch(const char *kernel, dim3 grid, dim3 block, size_t shared_bytes, body fn, const void *arg) {
    grid_job j = {kernel, grid, block, shared_bytes, fn, arg, order.fetch_add(0x632be59bd9b4e019u), {0}, {0}};
    size_t threads = (size_t)block.x * block.y * block.z;
    if (!threads || threads > MAX_THREADS) return "a block of no or more than 1024 threads";
    if (shared_bytes > (size_t)most_shared) return "a block with more than 64 KiB of shared memory";
    lq_parallel_for((size_t)grid.x * grid.y * grid.z, one_block, &j);
    if (!j.failed) return nullptr;
    snprintf(last_fault, sizeof last_fault, "%s", j.fault);
    return last_fault;
}

} // namespace emu
