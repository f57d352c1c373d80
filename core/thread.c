/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "core/thread.h"

#include <omp.h>

static int wanted;

void lq_threads_set(int n) { wanted = n > 0 ? n : 0; }
int lq_threads(void) { return wanted ? wanted : omp_get_num_procs(); }
int lq_worker(void) { return omp_in_parallel() ? omp_get_thread_num() : 0; }

void lq_parallel_for(size_t n, void (*fn)(void *arg, size_t i), void *arg) {
    int threads = lq_threads();
    if (n < 2 || threads < 2 || omp_in_parallel()) {
        for (size_t i = 0; i < n; i++) fn(arg, i);
        return;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (size_t i = 0; i < n; i++) fn(arg, i);
}
