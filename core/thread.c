/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A pool of workers that help the caller. The caller never waits for a worker that has not begun: on a machine shared with others a loop
 * ends when its parts have, not when every thread has been scheduled (an OpenMP team's barrier waits for all). Each thread begins with a
 * run of neighbouring parts of its own, so that it reads memory in one stream, and then helps where parts are left; which thread takes which
 * changes no result.
 *
 * One word, the gate, says which loop runs, who may enter and who is inside; workers enter by compare and swap, so a closed gate is never
 * passed. Between loops a worker watches the gate for a tenth of a millisecond, first alone, then yielding its core between looks, then
 * sleeps: the loops of one forward pass follow each other within that time, and an idle process burns nothing. A core that others took
 * during a yield is not watched any longer. */
#define _GNU_SOURCE
#include "core/thread.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

enum { MAX_WORKERS = 256, LOOKS = 32, ALONE_NS = 5000, WATCH_NS = 100000, SHARED_NS = 20000 };

/* gate: busy workers, 10 bits; threads of the loop, 10 bits; open; round */
#define BUSY ((uint64_t)0x3ff)
#define THREADS_SHIFT 10
#define OPEN ((uint64_t)1 << 20)
#define ROUND_SHIFT 21

typedef struct job { void (*fn)(void *, size_t); void *arg; size_t n; int threads; } job;
typedef struct share { _Alignas(64) atomic_size_t next; } share; /* part to hand out of one thread's own */

static struct {
    _Alignas(64) atomic_uint_fast64_t gate;
    _Alignas(64) job job;
    share share[MAX_WORKERS];
    atomic_bool taken;                       /* some caller's job is running */
    atomic_bool waiting;                     /* and the caller sleeps until all have left */
    atomic_int asleep;                       /* workers; changes under lock */
    int workers;                             /* of whoever has taken the pool */
    pthread_mutex_t lock;
    pthread_cond_t wake, idle;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER, .idle = PTHREAD_COND_INITIALIZER};

static atomic_int wanted;
static _Thread_local int me;          /* 0: a caller; else the worker's number */
static _Thread_local bool inside;

void lq_threads_set(int n) { wanted = n > 0 ? (n < MAX_WORKERS ? n : MAX_WORKERS) : 0; }

static int cores(void) {
    static atomic_int known;
    cpu_set_t set;
    if (!known) known = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
    return known < 1 ? 1 : known < MAX_WORKERS ? known : MAX_WORKERS;
}

int lq_threads(void) {
    int n = wanted;
    return n ? n : cores();
}
int lq_worker(void) { return inside ? me : 0; }

static int64_t clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Is the worker `me` to enter? */
static bool invited(uint64_t gate, uint64_t seen) {
    return gate & OPEN && gate >> ROUND_SHIFT != seen && me < (int)(gate >> THREADS_SHIFT & 0x3ff);
}
static bool left(uint64_t gate) { return !(gate & BUSY); }

/* Looks at the gate until it is as wanted, for WATCH_NS at most; whether it is. */
static bool watch(bool entry, uint64_t seen) {
    int64_t start = clock_ns(), before = start;
    for (;;) {
        for (int i = 0; i < LOOKS; i++, relax()) {
            uint64_t gate = atomic_load_explicit(&pool.gate, memory_order_acquire);
            if (entry ? invited(gate, seen) : left(gate)) return true;
            if (before - start > ALONE_NS) break;
        }
        if (before - start > ALONE_NS) sched_yield();
        int64_t t = clock_ns();
        if (t - start > WATCH_NS || t - before > SHARED_NS) return false;
        before = t;
    }
}

/* Where the parts of thread t begin; those of t - 1 end there. */
static size_t first_of(const job *j, int t) { return j->n / (size_t)j->threads * (size_t)t + j->n % (size_t)j->threads * (size_t)t / (size_t)j->threads; }

static void run_parts(const job *j) {
    inside = true;
    for (int k = 0, t = me; k < j->threads; k++, t = t + 1 < j->threads ? t + 1 : 0) {
        atomic_size_t *next = &pool.share[t].next;
        size_t end = first_of(j, t + 1);
        for (size_t i; atomic_load_explicit(next, memory_order_relaxed) < end && (i = atomic_fetch_add(next, 1)) < end;) j->fn(j->arg, i);
    }
    inside = false;
}

static void sleep_until_invited(uint64_t seen) {
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.asleep, 1); /* before the look at the gate: whoever opens it looks here afterwards */
    while (!invited(atomic_load(&pool.gate), seen)) pthread_cond_wait(&pool.wake, &pool.lock);
    atomic_fetch_sub(&pool.asleep, 1);
    pthread_mutex_unlock(&pool.lock);
}

static void leave(void) {
    uint64_t gate = atomic_fetch_sub(&pool.gate, 1) - 1;
    if (gate & OPEN || !left(gate) || !atomic_load(&pool.waiting)) return;
    pthread_mutex_lock(&pool.lock);
    pthread_cond_signal(&pool.idle);
    pthread_mutex_unlock(&pool.lock);
}

static void *worker(void *number) {
    uint64_t seen = 0;
    me = (int)(size_t)number;
    for (;;) {
        if (lq_threads() > cores() || !watch(true, seen)) sleep_until_invited(seen);
        uint_fast64_t gate = atomic_load(&pool.gate);
        if (!invited(gate, seen) || !atomic_compare_exchange_strong(&pool.gate, &gate, gate + 1)) continue;
        seen = gate >> ROUND_SHIFT;
        job j = pool.job;
        run_parts(&j);
        leave();
    }
    return NULL;
}

/* Fewer workers than asked for, down to none, only make it slower. */
static void hire(int threads) {
    pthread_attr_t attr;
    if (pool.workers + 1 >= threads || pthread_attr_init(&attr)) return;
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    while (pool.workers + 1 < threads) {
        pthread_t t;
        if (pthread_create(&t, &attr, worker, (void *)(size_t)(pool.workers + 1))) break;
        pool.workers++;
    }
    pthread_attr_destroy(&attr);
}

static bool publish(const job *j, int threads) {
    if (atomic_exchange(&pool.taken, true)) return false;
    hire(threads); /* who has taken the pool is alone here */
    pool.job = *j;
    for (int t = 0; t < threads; t++) atomic_store_explicit(&pool.share[t].next, first_of(j, t), memory_order_relaxed);
    uint64_t round = (atomic_load(&pool.gate) >> ROUND_SHIFT) + 1;
    atomic_store(&pool.gate, round << ROUND_SHIFT | OPEN | (uint64_t)threads << THREADS_SHIFT);
    if (atomic_load(&pool.asleep)) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.lock);
    }
    return true;
}

static void finish(void) {
    uint64_t gate = atomic_fetch_and(&pool.gate, ~OPEN); /* who has not begun need not */
    if (!left(gate) && !watch(false, 0)) {
        pthread_mutex_lock(&pool.lock);
        atomic_store(&pool.waiting, true);
        while (!left(atomic_load(&pool.gate))) pthread_cond_wait(&pool.idle, &pool.lock);
        atomic_store(&pool.waiting, false);
        pthread_mutex_unlock(&pool.lock);
    }
    atomic_store(&pool.taken, false);
}

void lq_parallel_for(size_t n, void (*fn)(void *arg, size_t i), void *arg) {
    int threads = lq_threads();
    job j = {fn, arg, n, threads};
    if (n < 2 || threads < 2 || inside || !publish(&j, threads)) {
        for (size_t i = 0; i < n; i++) fn(arg, i);
        return;
    }
    run_parts(&j);
    finish();
}
