/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "tests/bench_cold.h"

#include <stdlib.h>
#include <string.h>

enum { AHEAD = 512 /* words */ };

bool ck_cold_init(ck_cold *c, size_t cache) {
    *c = (ck_cold){.words = 4 * cache / 8 / CK_COLD_PARTS / 8 * 8};
    size_t bytes = c->words * CK_COLD_PARTS * 8;
    c->v = malloc(bytes);
    if (c->v) memset(c->v, 1, bytes); /* no page may be the shared one of zeros */
    return c->v;
}

double ck_cold_bytes(const ck_cold *c) { return (double)(c->words * CK_COLD_PARTS * 8); }

void ck_cold_read(void *cold, size_t part) { /* eight sums: the compiler makes vectors of them */
    ck_cold *c = cold;
    const uint64_t *p = c->v + part * c->words;
    uint64_t s[8] = {0};
    for (size_t w = 0; w + 8 <= c->words; w += 8)
        for (int k = 0; k < 8; k++) s[k] += p[w + (size_t)k];
    for (int k = 0; k < 8; k++) c->sum[part] += s[k];
}

void ck_cold_read_ahead(void *cold, size_t part) {
    ck_cold *c = cold;
    const uint64_t *p = c->v + part * c->words;
    uint64_t s[8] = {0};
    for (size_t w = 0; w + 8 <= c->words; w += 8) {
        __builtin_prefetch(p + w + AHEAD, 0, 3);
        for (int k = 0; k < 8; k++) s[k] ^= p[w + (size_t)k];
    }
    for (int k = 0; k < 8; k++) c->sum[part] += s[k];
}

bool ck_packed_again(const lq_packed *m, lq_packed *to) {
    size_t codes = m->tiles * m->tile_bytes, params = (size_t)m->tiles * m->segs * m->seg_bytes, ups = (size_t)m->tiles * m->spans * m->up_bytes;
    *to = *m;
    to->codes = aligned_alloc(64, (codes + LQ_PACKED_PAD + 63) / 64 * 64);
    to->params = aligned_alloc(64, (params + 64 + 63) / 64 * 64);
    to->ups = aligned_alloc(64, (ups + 64) / 64 * 64);
    if (!to->codes || !to->params || !to->ups) return false;
    memset(to->codes + codes, 0, LQ_PACKED_PAD);
    memcpy(to->codes, m->codes, codes);
    memcpy(to->params, m->params, params);
    memcpy(to->ups, m->ups, ups);
    return true;
}

void ck_packed_again_free(lq_packed *m) {
    free(m->codes);
    free(m->params);
    free(m->ups);
}
