/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Allocation: aligned, zeroed, counted, and able to fail on request so that tests can walk every out-of-memory path. */
#ifndef LQ_MEM_H
#define LQ_MEM_H
#include "core/status.h"

/* 64-byte aligned, zeroed. NULL only when memory is out (or a test asked for it). n = 0 gives a valid pointer. */
void *lq_alloc(size_t n);
/* The same with rubbish in it, for large buffers that are written before they are read: whoever writes first makes the pages, side by side. */
void *lq_alloc_raw(size_t n);
void *lq_calloc(size_t count, size_t size); /* overflow-checked */
/* Grows (zeroing the new part) or shrinks; p may be NULL. The old block survives a failure. */
void *lq_realloc(void *p, size_t old_size, size_t new_size);
char *lq_strdup(const char *s);
char *lq_strndup(const char *s, size_t n);
/* printf into a fresh string; NULL when out of memory. */
char *lq_strf(const char *fmt, ...) LQ_PRINTF(1, 2);
void lq_free(void *p); /* NULL is fine */
/* Test hook: the n-th allocation from now fails (0: the next one); -1 switches it off. */
void lq_mem_fail_after(long n);
lq_status lq_oom(lq_ctx *ctx, size_t bytes); /* the one out-of-memory sentence; LQ_ERR_RESOURCE */

#define LQ_NEW(T) ((T *)lq_alloc(sizeof(T)))
#define LQ_NEWN(T, n) ((T *)lq_calloc((n), sizeof(T)))

/* Everything of one quantized block lives here and goes at once. Not thread-safe. */
typedef struct lq_arena lq_arena;
lq_arena *lq_arena_new(void);
void *lq_arena_alloc(lq_arena *a, size_t n); /* 64-byte aligned, zeroed */
size_t lq_arena_bytes(const lq_arena *a);
void lq_arena_reset(lq_arena *a);
void lq_arena_free(lq_arena **a);

/* Growable byte string. */
typedef struct lq_buf { char *v; size_t n, cap; } lq_buf;
bool lq_buf_add(lq_buf *b, const void *p, size_t n); /* keeps a NUL behind the data; false: out of memory */
bool lq_buf_addf(lq_buf *b, const char *fmt, ...) LQ_PRINTF(2, 3);
void lq_buf_free(lq_buf *b);

static inline bool lq_mul_ok(uint64_t a, uint64_t b, uint64_t *out) { return !__builtin_mul_overflow(a, b, out); }
static inline bool lq_add_ok(uint64_t a, uint64_t b, uint64_t *out) { return !__builtin_add_overflow(a, b, out); }
#endif
