/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Two independent loops over memory that no cache holds, each over the same pieces on all threads: one adds a word of every line, the other
 * is libc's own search for a byte. RAPL: /sys/class/powercap/intel-rapl:N/energy_uj, one per package, the kernel's powercap documentation. */
#define _DEFAULT_SOURCE
#include "eval/bandwidth.h"

#include "core/os.h"
#include "core/thread.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { PIECE = 1 << 20, LINE = 64, LEAST = 256 << 20, MOST = 1 << 30, TRIES = 4 };

static size_t last_cache(void) {
#ifdef _SC_LEVEL3_CACHE_SIZE
    long l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return l3 > 0 ? (size_t)l3 : 0;
#else
    return 0;
#endif
}

lq_status lq_bandwidth_init(lq_ctx *ctx, lq_bandwidth *b) {
    size_t n = 4 * last_cache();
    n = n < LEAST ? LEAST : n > MOST ? MOST : n / PIECE * PIECE;
    *b = (lq_bandwidth){.v = lq_alloc(n), .bytes = n};
    if (!b->v) return lq_oom(ctx, n);
    memset(b->v, 1, n); /* no page may be the shared one of zeros */
    return LQ_OK;
}

void lq_bandwidth_free(lq_bandwidth *b) {
    lq_free(b->v);
    *b = (lq_bandwidth){0};
}

typedef struct reading { const lq_bandwidth *b; uint64_t *found; } reading; /* found[piece]: so that nobody may leave a loop out */

static void touch(void *arg, size_t i) {
    const reading *r = arg;
    const uint64_t *v = (const uint64_t *)(const void *)(r->b->v + i * PIECE);
    uint64_t a[4] = {0};
    for (size_t k = 0; k < PIECE / 8; k += 4 * LINE / 8) {
        __builtin_prefetch(v + k + 4096 / 8);
        for (size_t j = 0; j < 4; j++) a[j] += v[k + j * (LINE / 8)];
    }
    r->found[i] = a[0] + a[1] + a[2] + a[3];
}

static void search(void *arg, size_t i) {
    const reading *r = arg;
    r->found[i] = memchr(r->b->v + i * PIECE, 2, PIECE) != NULL;
}

void lq_bandwidth_try(lq_bandwidth *b) {
    static void (*const loops[2])(void *, size_t) = {touch, search};
    uint64_t found[MOST / PIECE];
    for (int i = 0; i < 2 * TRIES; i++) {
        double start = lq_now();
        lq_parallel_for(b->bytes / PIECE, loops[i % 2], &(reading){b, found});
        double rate = (double)b->bytes / (lq_now() - start);
        if (rate > b->loop[i % 2]) b->loop[i % 2] = rate;
    }
}

double lq_joules(void) {
    double sum = 0;
    int n = 0;
    for (;; n++) {
        char path[80];
        unsigned long long uj;
        snprintf(path, sizeof path, "/sys/class/powercap/intel-rapl:%d/energy_uj", n);
        FILE *f = fopen(path, "r");
        if (!f) break;
        bool ok = fscanf(f, "%llu", &uj) == 1;
        fclose(f);
        if (!ok) return -1;
        sum += (double)uj * 1e-6;
    }
    return n ? sum : -1;
}
