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

/* ---- launches: at once, or ahead ---- */

struct launched { /* its argument follows: by value, as a graph has them */
    launched *next;
    emu::grid g;
    alignas(16) uint64_t bytes;
    emu::block_begun *begun;
    bool ahead;
};

static bool ahead_;
bool lq_is_ahead() { return ahead_; }

static launched *copy_of(const emu::grid &g, const void *arg, size_t n) {
    launched *l = (launched *)malloc(sizeof *l + n);
    if (!l) return nullptr;
    *l = launched{nullptr, g, n, nullptr, ahead_};
    l->g.arg = memcpy(l + 1, arg, n);
    return l;
}

/* Ahead: up to DEEP launches stand in a line; one that joins begins before any of them has run. What goes wrong is said by whoever runs it. */
enum { DEEP = 3 };
static struct { launched *first, **last; int n; const char *wrong; } line = {nullptr, &line.first, 0, nullptr};

static const char *run_first() {
    launched *l = line.first;
    const char *why = emu::launch(l->g, l->begun);
    if (!(line.first = l->next)) line.last = &line.first;
    line.n--;
    free(l);
    return why;
}

static const char *run_all() {
    const char *wrong = line.wrong;
    line.wrong = nullptr;
    while (line.n) {
        const char *why = run_first();
        if (!wrong) wrong = why;
    }
    return wrong;
}
static bool settled() { return !line.wrong && !(line.wrong = run_all()); }
static const char *wait() { return run_all(); }

static const char *go(const emu::grid &g, const void *arg, size_t n, bool ahead) {
    const char *why = nullptr;
    if (!ahead) {
        emu::grid one = g;
        one.arg = arg;
        return (why = run_all()) ? why : emu::launch(one);
    }
    if (line.n == DEEP) why = run_first();
    launched *l = copy_of(g, arg, n);
    if (!l) return "no memory for a launch";
    if (line.n) l->begun = emu::begin(l->g);
    *line.last = l;
    line.last = &l->next;
    line.n++;
    return why;
}

static bool ahead(bool on) {
    ahead_ = on;
    return true;
}

static bool copy(void *to, const void *from, size_t n) { return settled() && (n ? memcpy(to, from, n) != nullptr : true); }
static void release(void *p) {
    settled();
    free(p);
}

/* ---- recorded passes: launches in order ---- */

static struct { bool on; const char *wrong; launched *first, **last; } tape;

static uint64_t queued;
static uint64_t launches() { return queued; }

const char *lq_emu_queue(const char *name, dim3 grid, dim3 block, size_t shared, emu::body fn, const void *arg, size_t n) {
    const emu::grid g = {name, grid, block, shared, fn, nullptr};
    queued++;
    if (!tape.on) return go(g, arg, n, ahead_);
    launched *l = copy_of(g, arg, n);
    if (!l) return tape.wrong = "no memory to record a pass in";
    *tape.last = l;
    tape.last = &l->next;
    return nullptr;
}

static const char *record() {
    tape = {true, nullptr, nullptr, &tape.first};
    return nullptr;
}

static void forget(void *pass) {
    for (launched *l = (launched *)pass, *next; l; l = next) {
        next = l->next;
        free(l);
    }
}

static const char *end(void **pass) {
    tape.on = false;
    *pass = tape.wrong ? nullptr : tape.first;
    if (tape.wrong) forget(tape.first);
    return tape.wrong;
}

static const char *replay(void *pass) {
    for (const launched *l = (const launched *)pass; l; l = l->next) {
        const char *why = go(l->g, l + 1, l->bytes, l->ahead);
        if (why) return why;
    }
    return nullptr;
}

static const char *branch(uint32_t i) { return i < LQ_DEVICE_BRANCHES ? nullptr : "no such branch"; } /* launches keep their order */

static double marks[LQ_DEVICE_MARKS];
static void set_mark(const void *i) {
    emu::wait_before();
    marks[*(const uint32_t *)i] = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
static const char *mark(uint32_t i) {
    if (i >= LQ_DEVICE_MARKS) return "no such mark";
    const bool was = ahead_;
    queued--; /* it is no kernel */
    ahead_ = false; /* nor does it begin early */
    const char *why = lq_emu_queue("mark", dim3(1), dim3(1), 0, set_mark, &i, sizeof i);
    ahead_ = was;
    return why;
}
static double lasted(uint32_t i) { return i + 1 < LQ_DEVICE_MARKS ? marks[i + 1] - marks[i] : -1; }
static double joules() { return -1; }
static double peak() { return 0; }
static void *stream() { return nullptr; }

extern "C" const lq_device *lq_device_emu(void) {
    static const lq_device d = {"emu", available, describe, take, release, copy, copy, record, end, replay, forget, branch, wait, LQ_UNIT_NAME(gemv), LQ_UNIT_NAME(idot_many), &ops::table, launches, mark, lasted, joules, peak, ahead, stream};
    return &d;
}
