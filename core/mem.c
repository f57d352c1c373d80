/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#define _DEFAULT_SOURCE 1 /* madvise */
#include "core/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static long fail_after = -1;
void lq_mem_fail_after(long n) { fail_after = n; }

static bool told_to_fail(void) {
    long n = __atomic_load_n(&fail_after, __ATOMIC_RELAXED);
    if (n < 0) return false;
    return __atomic_fetch_sub(&fail_after, 1, __ATOMIC_RELAXED) == 0;
}

static size_t whole(size_t n) { return n ? (n + 63) / 64 * 64 : 64; }

/* Whole pages of 2 MB inside a large block: weights and keys are read from end to end, and a step of a decoder reads them all. */
static void ask_for_large_pages(char *p, size_t n) {
#ifdef MADV_HUGEPAGE
    const uintptr_t page = (uintptr_t)2 << 20, from = ((uintptr_t)p + page - 1) & ~(page - 1), to = ((uintptr_t)p + n) & ~(page - 1);
    if (n >= 2 * page && from < to) (void)!madvise(p + (from - (uintptr_t)p), to - from, MADV_HUGEPAGE); /* it is only advice */
#else
    (void)p, (void)n;
#endif
}

void *lq_alloc_raw(size_t n) {
    void *p = told_to_fail() || n > SIZE_MAX - 64 ? NULL : aligned_alloc(64, whole(n));
    if (p) ask_for_large_pages(p, n);
    return p;
}

void *lq_alloc(size_t n) {
    void *p = lq_alloc_raw(n);
    if (p) memset(p, 0, whole(n));
    return p;
}

void *lq_calloc(size_t count, size_t size) {
    uint64_t n;
    return lq_mul_ok(count, size, &n) ? lq_alloc(n) : NULL;
}

void *lq_realloc(void *p, size_t old_size, size_t new_size) {
    void *q = lq_alloc(new_size);
    if (!q) return NULL;
    if (p) memcpy(q, p, old_size < new_size ? old_size : new_size);
    lq_free(p);
    return q;
}

char *lq_strndup(const char *s, size_t n) {
    char *p = lq_alloc(n + 1);
    if (p) memcpy(p, s, n);
    return p;
}
char *lq_strdup(const char *s) { return lq_strndup(s, strlen(s)); }

char *lq_strf(const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    char *p = n < 0 ? NULL : lq_alloc((size_t)n + 1);
    if (p) vsnprintf(p, (size_t)n + 1, fmt, again);
    va_end(again);
    va_end(ap);
    return p;
}

void lq_free(void *p) { free(p); }

lq_status lq_oom(lq_ctx *ctx, size_t bytes) {
    return lq_fail(ctx, LQ_ERR_RESOURCE, "out of memory (%zu bytes wanted)", bytes);
}

typedef struct chunk { struct chunk *next; size_t used, size; } chunk;
struct lq_arena { chunk *head; size_t bytes; };
enum { CHUNK_HEAD = 64, CHUNK_SIZE = 64 << 10 };

lq_arena *lq_arena_new(void) { return LQ_NEW(lq_arena); }

void *lq_arena_alloc(lq_arena *a, size_t n) {
    if (n > SIZE_MAX - 256) return NULL;
    n = (n + 63) / 64 * 64;
    if (!n) n = 64;
    if (!a->head || a->head->size - a->head->used < n) {
        size_t size = n > CHUNK_SIZE ? n : CHUNK_SIZE;
        chunk *c = lq_alloc(CHUNK_HEAD + size);
        if (!c) return NULL;
        bool behind = a->head && n > CHUNK_SIZE; /* a large piece fills its chunk: the room left in the head stays in use */
        c->next = behind ? a->head->next : a->head;
        c->size = size;
        *(behind ? &a->head->next : &a->head) = c;
        a->bytes += size;
        c->used = n;
        return (char *)c + CHUNK_HEAD;
    }
    void *p = (char *)a->head + CHUNK_HEAD + a->head->used;
    a->head->used += n;
    return p;
}

size_t lq_arena_bytes(const lq_arena *a) { return a->bytes; }

void lq_arena_reset(lq_arena *a) {
    while (a->head) {
        chunk *c = a->head;
        a->head = c->next;
        lq_free(c);
    }
    a->bytes = 0;
}

void lq_arena_free(lq_arena **a) {
    if (!*a) return;
    lq_arena_reset(*a);
    lq_free(*a);
    *a = NULL;
}

bool lq_buf_add(lq_buf *b, const void *p, size_t n) {
    if (b->n > SIZE_MAX / 4 || n > SIZE_MAX / 4) return false;
    if (b->n + n + 1 > b->cap) {
        size_t cap = b->cap ? b->cap : 256;
        while (cap < b->n + n + 1) cap *= 2;
        char *v = lq_realloc(b->v, b->n, cap);
        if (!v) return false;
        b->v = v;
        b->cap = cap;
    }
    if (n) memcpy(b->v + b->n, p, n);
    b->n += n;
    b->v[b->n] = 0;
    return true;
}

bool lq_buf_addf(lq_buf *b, const char *fmt, ...) {
    char stack[512];
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(stack, sizeof stack, fmt, ap);
    va_end(ap);
    bool ok = n >= 0;
    if (ok && (size_t)n < sizeof stack) ok = lq_buf_add(b, stack, (size_t)n);
    else if (ok) {
        char *big = lq_alloc((size_t)n + 1);
        ok = big && vsnprintf(big, (size_t)n + 1, fmt, again) == n && lq_buf_add(b, big, (size_t)n);
        lq_free(big);
    }
    va_end(again);
    return ok;
}

void lq_buf_free(lq_buf *b) {
    lq_free(b->v);
    *b = (lq_buf){0};
}
