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
enum state { READY, MEETING, BARRIER, WAITING, DONE };

struct fibre {
    void *sp, *fake;
    state st;
    place at;
    unsigned mask;
    const char *what;
    void *mine;
    bool waited;
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
    bool early; /* what is in front has not run */
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
    if (!t->f[t->now].waited) fault(t, "has not waited for the kernel in front", nullptr);
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

void wait_before() {
    team *t = mine_;
    t->f[t->now].waited = true;
    if (!t->early) return;
    t->f[t->now].st = WAITING;
    go_home(t, false);
}

void prefetch(const void *p, uint32_t bytes) {
    if (((uintptr_t)p | bytes) % 16 || !bytes) return fault(mine_, "prefetches no whole number of 16 bytes", nullptr);
    for (uint32_t i = 0; i < bytes; i += bytes - 1) (void)*(volatile const uint8_t *)((const uint8_t *)p + i);
}

namespace {

/* The barrier opens when every thread that has not left stands at it. */
bool open_barrier(team *t) {
    bool any = false;
    for (int i = 0; i < t->n; i++)
        if (t->f[i].st == READY || t->f[i].st == MEETING || t->f[i].st == WAITING) return false;
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
        if (t->early) return;
        for (int i = 0; i < t->n; i++)
            if (t->f[i].st == MEETING) t->now = i;
        fault(t, "waits for ever at", t->f[t->now].what);
    }
}

struct grid_job {
    const grid *g;
    uint64_t seed;
    size_t begun; /* this block is not to be run again; ~0: none */
    std::atomic<int> failed;
    char fault[256];
};

team *new_team() {
    team *t = (team *)calloc(1, sizeof *t);
    if (t) t->stacks = (uint8_t *)mmap(nullptr, (size_t)MAX_THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!t || t->stacks == MAP_FAILED) {
        free(t);
        return nullptr;
    }
    return t;
}
team *hire() { return mine_ ? mine_ : mine_ = new_team(); }

void set_up(team *t, const grid *g, uint64_t seed, size_t index) {
    const dim3 &blocks = g->blocks, &threads = g->threads;
    dim3 at((unsigned)(index % blocks.x), (unsigned)(index / blocks.x % blocks.y), (unsigned)(index / blocks.x / blocks.y));
    t->n = (int)(threads.x * threads.y * threads.z);
    t->fn = g->fn;
    t->arg = g->arg;
    t->kernel = g->kernel;
    t->rng = seed ^ index * 0x9e3779b97f4a7c15u;
    t->early = false;
    t->fault[0] = 0;
    memset(t->waiting, 0, sizeof t->waiting);
    for (int i = 0; i < t->n; i++) {
        dim3 me((unsigned)i % threads.x, (unsigned)i / threads.x % threads.y, (unsigned)i / threads.x / threads.y);
        t->f[i] = fibre{first_frame(stack_of(t, i) + STACK, lq_emu_run), nullptr, READY, place{me, at, blocks, threads}, 0, nullptr, nullptr, false};
    }
}

void report(grid_job *j, const char *why) {
    int none = 0;
    if (j->failed.compare_exchange_strong(none, 1)) snprintf(j->fault, sizeof j->fault, "%s", why);
}

/* Of the exact size: a sanitizer sees what lies outside. */
uint8_t *new_shared(size_t n) {
    void *mem = nullptr;
    return posix_memalign(&mem, 128, n ? n : 1) ? nullptr : (uint8_t *)memset(mem, 0xa5, n);
}

void one_block(void *arg, size_t index) {
    grid_job *j = (grid_job *)arg;
    if (j->failed || index == j->begun) return;
    team *t = hire();
    uint8_t *mem = t ? new_shared(j->g->shared_bytes) : nullptr;
    if (!mem) report(j, "no memory for an emulated block");
    else {
        shared = mem;
        set_up(t, j->g, j->seed, index);
        run_block(t);
        if (t->fault[0]) report(j, t->fault);
    }
    free(mem);
}

thread_local char last_fault[256];

const char *unfit(const grid &g) {
    const size_t threads = (size_t)g.threads.x * g.threads.y * g.threads.z;
    if (!threads || threads > MAX_THREADS) return "a block of no or more than 1024 threads";
    return g.shared_bytes > (size_t)most_shared ? "a block with more than 64 KiB of shared memory" : nullptr;
}

} // namespace

struct block_begun { team *t; uint8_t *mem; size_t index; };
static block_begun begun_[4]; /* mem NULL: free */

/* Goes on as the thread that began it, until nothing can. */
static void go_on(block_begun *b) {
    team *before = mine_;
    mine_ = b->t;
    shared = b->mem;
    run_block(b->t);
    mine_ = before;
}

block_begun *begin(const grid &g) {
    const size_t blocks = (size_t)g.blocks.x * g.blocks.y * g.blocks.z;
    block_begun *b = nullptr;
    for (block_begun &one : begun_)
        if (!one.mem) b = &one;
    if (!b || unfit(g) || !blocks || (!b->t && !(b->t = new_team())) || !(b->mem = new_shared(g.shared_bytes))) return nullptr;
    const uint64_t seed = order.fetch_add(0x632be59bd9b4e019u);
    b->index = (size_t)((seed ^ seed >> 29) * 0x9e3779b97f4a7c15u >> 33) % blocks;
    set_up(b->t, &g, seed, b->index);
    b->t->early = true;
    go_on(b);
    return b;
}

static void finish(block_begun *b, grid_job *j) {
    b->t->early = false;
    for (int i = 0; i < b->t->n; i++)
        if (b->t->f[i].st == WAITING) b->t->f[i].st = READY;
    go_on(b);
    if (b->t->fault[0]) report(j, b->t->fault);
    free(b->mem);
    b->mem = nullptr;
}

void seed(uint64_t s) { order = s * 2 + 1; }

const char *launch(const grid &g, block_begun *begun) {
    grid_job j = {&g, order.fetch_add(0x632be59bd9b4e019u), begun ? begun->index : ~(size_t)0, {0}, {0}};
    if (const char *why = unfit(g)) return why;
    if (begun) finish(begun, &j);
    lq_parallel_for((size_t)g.blocks.x * g.blocks.y * g.blocks.z, one_block, &j);
    if (!j.failed) return nullptr;
    snprintf(last_fault, sizeof last_fault, "%s", j.fault);
    return last_fault;
}

} // namespace emu
