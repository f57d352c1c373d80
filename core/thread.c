/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A pool of sleeping workers that help the caller. The caller never waits for a worker that has not begun: on a machine
 * shared with others a loop ends when its parts have, not when every thread has been scheduled (an OpenMP team's barrier
 * waits for all, spinning). Parts are handed out one by one; which thread takes which changes no result. */
#define _GNU_SOURCE
#include "core/thread.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>

enum { MAX_WORKERS = 256, SPINS = 2000 };

typedef struct job { void (*fn)(void *, size_t); void *arg; size_t n; int threads; } job;

static struct {
    pthread_mutex_t lock;
    pthread_cond_t wake, idle;
    job job;
    atomic_size_t next;         /* part to hand out */
    atomic_ulong round;         /* jobs published so far */
    atomic_int busy;            /* workers inside the job */
    bool open, taken;           /* open: workers may still enter; taken: some caller's job is running */
    int workers;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER, .idle = PTHREAD_COND_INITIALIZER};

static int wanted;
static _Thread_local int me;          /* 0: a caller; else the worker's number */
static _Thread_local bool inside;

void lq_threads_set(int n) { wanted = n > 0 ? (n < MAX_WORKERS ? n : MAX_WORKERS) : 0; }

int lq_threads(void) {
    static atomic_int cores;
    cpu_set_t set;
    if (wanted) return wanted;
    if (!cores) cores = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
    return cores < 1 ? 1 : cores < MAX_WORKERS ? cores : MAX_WORKERS;
}

int lq_worker(void) { return inside ? me : 0; }

static void run_parts(const job *j) {
    inside = true;
    for (size_t i; (i = atomic_fetch_add(&pool.next, 1)) < j->n;) j->fn(j->arg, i);
    inside = false;
}

static void *worker(void *number) {
    unsigned long seen = 0;
    me = (int)(size_t)number;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (!pool.open || atomic_load(&pool.round) == seen || me >= pool.job.threads) {
            seen = pool.open ? seen : atomic_load(&pool.round);
            pthread_mutex_unlock(&pool.lock);
            for (int s = 0; s < SPINS && atomic_load_explicit(&pool.round, memory_order_relaxed) == seen; s++) atomic_signal_fence(memory_order_seq_cst);
            pthread_mutex_lock(&pool.lock);
            if (atomic_load(&pool.round) == seen || (pool.open && me >= pool.job.threads)) pthread_cond_wait(&pool.wake, &pool.lock);
        }
        seen = atomic_load(&pool.round);
        job j = pool.job;
        atomic_fetch_add(&pool.busy, 1);
        pthread_mutex_unlock(&pool.lock);
        run_parts(&j);
        pthread_mutex_lock(&pool.lock);
        if (atomic_fetch_sub(&pool.busy, 1) == 1) pthread_cond_signal(&pool.idle);
    }
    return NULL;
}

/* Locked. Fewer workers than asked for, down to none, only make it slower. */
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

static bool publish(const job *j) {
    pthread_mutex_lock(&pool.lock);
    bool mine = !pool.taken;
    if (mine) {
        hire(j->threads);
        pool.taken = pool.open = true;
        pool.job = *j;
        atomic_store(&pool.next, 0);
        atomic_fetch_add(&pool.round, 1);
        pthread_cond_broadcast(&pool.wake);
    }
    pthread_mutex_unlock(&pool.lock);
    return mine;
}

static void finish(void) {
    pthread_mutex_lock(&pool.lock);
    pool.open = false; /* who has not begun need not */
    while (atomic_load(&pool.busy)) pthread_cond_wait(&pool.idle, &pool.lock);
    pool.taken = false;
    pthread_mutex_unlock(&pool.lock);
}

void lq_parallel_for(size_t n, void (*fn)(void *arg, size_t i), void *arg) {
    job j = {fn, arg, n, lq_threads()};
    if (n < 2 || j.threads < 2 || inside || !publish(&j)) {
        for (size_t i = 0; i < n; i++) fn(arg, i);
        return;
    }
    run_parts(&j);
    finish();
}
