/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Parallel loops over a split that never depends on the thread count: same input, same bits, at any number of threads. */
#ifndef LQ_THREAD_H
#define LQ_THREAD_H
#include <stddef.h>

void lq_threads_set(int n); /* 0: all cores the process may use */
int lq_threads(void);
/* Calls fn(arg, i) once for every i in [0, n), in any order, on any thread. Each i must own what it writes.
 * Nested calls run serially. */
void lq_parallel_for(size_t n, void (*fn)(void *arg, size_t i), void *arg);
/* Index of the calling worker inside lq_parallel_for, in [0, lq_threads()): for per-thread scratch that holds no result. */
int lq_worker(void);
#endif
