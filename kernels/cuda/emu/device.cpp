/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The device "emu": the kernels of this folder on the CPU. Its memory is the host's, new memory is rubbish. */
#define LQ_EMU
#include "kernels/cuda/ops.cuh"

#include <chrono>
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

/* Old rooms stay, each behind the pointer to the one before: a recorded pass may know them. */
void *lq_scratch(size_t n) {
    enum { HEAD = 256 };
    static char *room;
    static size_t has;
    if (n <= has && room) return room + HEAD;
    char *more = (char *)take(HEAD + 2 * n);
    if (!more) return nullptr;
    memcpy(more, &room, sizeof room);
    room = more;
    has = 2 * n;
    return room + HEAD;
}

static const char *wait() { return nullptr; } /* a launch returns when it is done */

/* ---- recorded passes: launches in order, their arguments by value as a graph has them ---- */

struct recorded {
    recorded *next;
    const char *name;
    dim3 grid, block;
    size_t shared;
    emu::body fn;
    alignas(16) uint64_t bytes; /* of its argument, which follows */
};
static struct { bool on; const char *wrong; recorded *first, **last; } tape;

static uint64_t queued;
static uint64_t launches() { return queued; }

const char *lq_emu_queue(const char *name, dim3 grid, dim3 block, size_t shared, emu::body fn, const void *arg, size_t n) {
    queued++;
    if (!tape.on) return emu::launch(name, grid, block, shared, fn, arg);
    recorded *r = (recorded *)malloc(sizeof *r + n);
    if (!r) return tape.wrong = "no memory to record a pass in";
    r->next = nullptr;
    r->name = name;
    r->grid = grid;
    r->block = block;
    r->shared = shared;
    r->fn = fn;
    r->bytes = n;
    memcpy(r + 1, arg, n);
    *tape.last = r;
    tape.last = &r->next;
    return nullptr;
}

static const char *record() {
    tape = {true, nullptr, nullptr, &tape.first};
    return nullptr;
}

static void forget(void *pass) {
    for (recorded *r = (recorded *)pass, *next; r; r = next) {
        next = r->next;
        free(r);
    }
}

static const char *end(void **pass) {
    tape.on = false;
    *pass = tape.wrong ? nullptr : tape.first;
    if (tape.wrong) forget(tape.first);
    return tape.wrong;
}

static const char *replay(void *pass) {
    for (const recorded *r = (const recorded *)pass; r; r = r->next) {
        const char *why = emu::launch(r->name, r->grid, r->block, r->shared, r->fn, r + 1);
        if (why) return why;
    }
    return nullptr;
}

static const char *branch(uint32_t i) { return i < LQ_DEVICE_BRANCHES ? nullptr : "no such branch"; } /* launches keep their order */

static double marks[LQ_DEVICE_MARKS];
static void set_mark(const void *i) { marks[*(const uint32_t *)i] = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
static const char *mark(uint32_t i) {
    if (i >= LQ_DEVICE_MARKS) return "no such mark";
    queued--; /* it is no kernel */
    return lq_emu_queue("mark", dim3(1), dim3(1), 0, set_mark, &i, sizeof i);
}
static double lasted(uint32_t i) { return i + 1 < LQ_DEVICE_MARKS ? marks[i + 1] - marks[i] : -1; }
static double joules() { return -1; }
static double peak() { return 0; }
static void *stream() { return nullptr; }

extern "C" const lq_device *lq_device_emu(void) {
    static const lq_device d = {"emu", available, describe, take, release, copy, copy, record, end, replay, forget, branch, wait, LQ_UNIT_NAME(gemv), LQ_UNIT_NAME(idot_many), &ops::table, launches, mark, lasted, joules, peak, stream};
    return &d;
}
