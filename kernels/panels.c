/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/panels.h"

#include "core/thread.h"

#include <string.h>

float *lq_panels_new(uint32_t k, uint32_t n) { return lq_alloc_raw((size_t)lq_panels(k) * n * LQ_PANEL * sizeof(float)); }

enum { TOKENS = 32 }; /* of a task: reads whole rows, writes a run of every panel */
typedef struct packing { float *to; const float *x; size_t ldx; uint32_t n, k; } packing;

static void pack_tokens(void *arg, size_t task) {
    const packing *p = arg;
    uint32_t t0 = (uint32_t)task * TOKENS, t1 = p->n - t0 < TOKENS ? p->n : t0 + TOKENS;
    for (uint32_t c = 0; c < p->k; c += LQ_PANEL) {
        uint32_t w = p->k - c < LQ_PANEL ? p->k - c : LQ_PANEL;
        float *to = p->to + (size_t)c * p->n + (size_t)t0 * LQ_PANEL;
        for (uint32_t t = t0; t < t1; t++, to += LQ_PANEL) {
            memcpy(to, p->x + t * p->ldx + c, w * sizeof *to);
            if (w < LQ_PANEL) memset(to + w, 0, (LQ_PANEL - w) * sizeof *to);
        }
    }
}

void lq_panels_pack(float *to, const float *x, size_t ldx, uint32_t n, uint32_t k) {
    lq_parallel_for((n + TOKENS - 1) / TOKENS, pack_tokens, &(packing){to, x, ldx, n, k});
}
