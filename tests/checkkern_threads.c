/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What a parallel loop costs beyond its work: loops of one empty part per thread, one right after the other, and with serial work
 * between them as the steps of a forward pass have it. Best and median of ROUNDS. */
#include "checkkern.h"
#include "core/os.h"
#include "core/thread.h"

#include <stdio.h>
#include <stdlib.h>

enum { ROUNDS = 9 };

static double busy(double seconds) {
    double start = lq_now();
    while (lq_now() - start < seconds) {}
    return lq_now() - start;
}

static void part(void *arg, size_t i) { ((volatile char *)arg)[64 * i]++; }
static void long_part(void *arg, size_t i) {
    part(arg, i);
    busy(20e-6);
}

static int ascending(const void *a, const void *b) { return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b); }

static void loops(const char *what, int n, double gap, void (*fn)(void *, size_t), double work, char *mem) {
    double t[ROUNDS];
    for (int r = 0; r < ROUNDS; r++) {
        double spent = 0;
        for (int i = 0; i < n; i++) {
            if (gap > 0) busy(gap);
            double start = lq_now();
            lq_parallel_for((size_t)lq_threads(), fn, mem);
            spent += lq_now() - start;
        }
        t[r] = spent / n - work;
    }
    qsort(t, ROUNDS, sizeof *t, ascending);
    printf("  %-44s %8.3f us a loop (median %8.3f)\n", what, 1e6 * t[0], 1e6 * t[ROUNDS / 2]);
}

void ck_thread_bench(void) {
    char *mem = calloc(64, (size_t)lq_threads());
    if (!mem) return;
    printf("parallel loops, %d threads\n", lq_threads());
    loops("empty, back to back", 20000, 0, part, 0, mem);
    loops("empty, after 5 us of serial work", 5000, 5e-6, part, 0, mem);
    loops("empty, after 50 us of serial work", 500, 50e-6, part, 0, mem);
    loops("empty, after 1 ms of serial work", 50, 1e-3, part, 0, mem);
    loops("20 us a part, beyond them", 2000, 0, long_part, 20e-6, mem);
    loops("20 us a part after 5 us, beyond them", 2000, 5e-6, long_part, 20e-6, mem);
    free(mem);
}
