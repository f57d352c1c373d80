/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Items that fit the budget stay in memory; each later one is a zstd frame at a fixed place of the scratch file, as large as
 * the frame can get, so that replacing it never moves anything (the unused part is a hole). */
#include "calib/cache.h"

#include "core/os.h"
#include "core/thread.h"

#include <string.h>
#include <zstd.h>

typedef struct item { float *mem; size_t n, frame; uint64_t off, room; } item; /* mem NULL: frame bytes at off; n: floats */

struct lq_cache {
    item *v;
    size_t n;
    uint64_t budget, used, end, spilled; /* end: of the places given out in the file */
    char *dir;
    int fd;
    void *frame;                         /* one compressed item */
    size_t frame_size;
    ZSTD_CCtx *zc;
    ZSTD_DCtx *zd;
};

lq_status lq_cache_new(lq_ctx *ctx, size_t items, uint64_t budget, const char *dir, lq_cache **out) {
    lq_cache *c = *out = LQ_NEW(lq_cache);
    if (!c) return lq_oom(ctx, sizeof *c);
    c->fd = -1;
    c->budget = budget;
    c->n = items;
    if ((c->v = LQ_NEWN(item, items)) && (!dir || (c->dir = lq_strdup(dir)))) return LQ_OK;
    lq_cache_free(out);
    return lq_oom(ctx, items * sizeof(item));
}

static lq_status open_file(lq_ctx *ctx, lq_cache *c, size_t bytes) {
    size_t bound = ZSTD_compressBound(bytes);
    if (c->fd < 0) {
        LQ_TRY(lq_scratch_open(ctx, c->dir, &c->fd));
        c->zc = ZSTD_createCCtx();
        c->zd = ZSTD_createDCtx();
        if (!c->zc || !c->zd) return lq_oom(ctx, bytes);
    }
    if (bound <= c->frame_size) return LQ_OK;
    lq_free(c->frame);
    c->frame_size = 0;
    if (!(c->frame = lq_alloc(bound))) return lq_oom(ctx, bound);
    c->frame_size = bound;
    return LQ_OK;
}

static lq_status spill(lq_ctx *ctx, lq_cache *c, item *t, const float *v, size_t n) {
    LQ_TRY(open_file(ctx, c, n * 4));
    size_t z = ZSTD_compressCCtx(c->zc, c->frame, c->frame_size, v, n * 4, 1);
    if (ZSTD_isError(z)) return lq_fail(ctx, LQ_ERR_INTERNAL, "zstd: %s", ZSTD_getErrorName(z));
    if (ZSTD_compressBound(n * 4) > t->room) {
        t->room = ZSTD_compressBound(n * 4);
        t->off = c->end;
        c->end += t->room;
    }
    c->spilled += z;
    c->spilled -= t->frame;
    t->frame = z;
    t->n = n;
    return lq_scratch_write(ctx, c->fd, t->off, c->frame, z);
}

static void drop(lq_cache *c, item *t) {
    c->used -= t->mem ? t->n * 4 : 0;
    lq_free(t->mem);
    t->mem = NULL;
}

enum { PIECE = 1 << 18 }; /* bytes a thread copies at a time */
typedef struct copying { char *to; const char *from; size_t n; } copying;

static void copy_piece(void *arg, size_t i) {
    const copying *c = arg;
    size_t at = i * PIECE;
    memcpy(c->to + at, c->from + at, c->n - at < PIECE ? c->n - at : PIECE);
}

static void copy(void *to, const void *from, size_t n) { lq_parallel_for((n + PIECE - 1) / PIECE, copy_piece, &(copying){to, from, n}); }

lq_status lq_cache_put(lq_ctx *ctx, lq_cache *c, size_t i, const float *v, size_t n) {
    if (i >= c->n || n > SIZE_MAX / 8) return lq_fail(ctx, LQ_ERR_INTERNAL, "cache item %zu of %zu", i, c->n);
    item *t = &c->v[i];
    if (t->mem && t->n != n) drop(c, t);
    if (!t->mem && c->used <= c->budget && n * 4 <= c->budget - c->used && (t->mem = lq_alloc_raw(n * 4))) {
        c->used += n * 4;
        c->spilled -= t->frame;
        t->frame = 0;
    }
    if (!t->mem) return spill(ctx, c, t, v, n);
    copy(t->mem, v, n * 4);
    t->n = n;
    return LQ_OK;
}

lq_status lq_cache_get(lq_ctx *ctx, lq_cache *c, size_t i, float *v, size_t n) {
    if (i >= c->n || c->v[i].n != n || (!c->v[i].mem && !c->v[i].frame))
        return lq_fail(ctx, LQ_ERR_INTERNAL, "cache item %zu: %zu floats wanted, %zu held", i, n, i < c->n ? c->v[i].n : 0);
    item *t = &c->v[i];
    if (t->mem) return copy(v, t->mem, n * 4), LQ_OK;
    LQ_TRY(lq_scratch_read(ctx, c->fd, t->off, c->frame, t->frame));
    size_t got = ZSTD_decompressDCtx(c->zd, v, n * 4, c->frame, t->frame);
    if (ZSTD_isError(got) || got != n * 4) return lq_fail(ctx, LQ_ERR_RESOURCE, "temporary file: a frame came back damaged");
    return LQ_OK;
}

size_t lq_cache_items(const lq_cache *c) { return c->n; }
uint64_t lq_cache_spilled(const lq_cache *c) { return c->spilled; }

void lq_cache_free(lq_cache **cp) {
    lq_cache *c = *cp;
    if (!c) return;
    for (size_t i = 0; c->v && i < c->n; i++) lq_free(c->v[i].mem);
    lq_free(c->v);
    lq_free(c->dir);
    lq_free(c->frame);
    ZSTD_freeCCtx(c->zc);
    ZSTD_freeDCtx(c->zd);
    lq_scratch_close(&c->fd);
    lq_free(c);
    *cp = NULL;
}
