/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A store of n items of equal float count (one per calibration sequence): in memory up to a budget, zstd frames in an
 * unlinked temporary file beyond it. Bits go in and come out unchanged. */
#ifndef LQ_CACHE_H
#define LQ_CACHE_H
#include "core/mem.h"

typedef struct lq_cache lq_cache;
/* budget: bytes that may stay in memory (items beyond it go to dir, NULL: TMPDIR or /tmp). */
lq_status lq_cache_new(lq_ctx *ctx, size_t items, uint64_t budget, const char *dir, lq_cache **out);
lq_status lq_cache_put(lq_ctx *ctx, lq_cache *c, size_t i, const float *v, size_t n); /* replaces */
lq_status lq_cache_get(lq_ctx *ctx, lq_cache *c, size_t i, float *v, size_t n);       /* n must be what was put */
size_t lq_cache_items(const lq_cache *c);
uint64_t lq_cache_spilled(const lq_cache *c);                                        /* bytes in the file, compressed */
void lq_cache_free(lq_cache **c);
#endif
