/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What the parts of the device benchmark share: one run's clock, its rows, and the two ways of timing.
 *
 *   throughput  launches that wait for nothing but their turn, in LQ_DEVICE_BRANCHES branches of the recorded pass
 *   chain       each launch reads what the one before wrote
 *   ahead       a chain whose kernels begin early (lq_device.ahead), where the device can
 *
 * Copies of what is read lie in turn, together at least 300 MB (several times any second-level cache), in a recorded pass of at least 64 launches that
 * takes every copy; it is replayed 20 times after two for warmth. */
#ifndef DEVICE_BENCH_H
#define DEVICE_BENCH_H
#include "checkkern.h"
#include "kernels/cuda/cuda.h"

enum { DB_LAUNCHES = 64, DB_REPLAYS = 20, DB_TOKENS = 16, DB_COPIES = 256, DB_ROWS = 1024 };
typedef enum db_mode { DB_THROUGHPUT, DB_CHAIN, DB_AHEAD, DB_MODES } db_mode;

typedef struct db_row {
    char what[48], shape[32];
    uint32_t tokens;
    db_mode mode;
    double bytes, took[3];       /* read by a launch; seconds of one: 10 %, median, 90 % */
    const char *why;             /* not measured: why; NULL */
} db_row;

typedef struct db {
    const lq_device *d;
    bool small;                  /* the emulation: only that everything runs */
    lq_rng rng;
    double roof, peak;           /* bytes a second: the larger of reading and copying, of all tries; the vendor's, 0: unknown */
    uint32_t tokens, copies;     /* of the launches that are timed */
    db_mode mode;
    db_row row[DB_ROWS];
    uint32_t rows;
} db;

/* Queues the i-th launch. */
typedef const char *(*db_launch)(db *b, void *of, uint32_t i);
/* took[3] of one launch; false: it failed, and said so. */
bool db_can(const db *b, db_mode mode);
bool db_time(db *b, db_launch launch, void *of, uint32_t launches, int replays, double took[3]);
/* A row of what `launch` takes now (b->tokens, b->mode, b->copies). */
bool db_measure(db *b, const char *what, const char *shape, double bytes, db_launch launch, void *of);
void db_missing(db *b, const char *what, const char *shape, const char *why);
/* Device memory of n bytes: random ones, or (like) a pattern of `length` bytes again and again; a large one is 16 MB of that, copied on. NULL: no room. */
void *db_filled(db *b, size_t n, const void *like, size_t length);
/* How many copies of so many bytes. */
uint32_t db_copies(const db *b, double bytes);

bool db_attention(db *b);                                    /* checkkern_device_bench_attn.c */
bool db_blas(db *b, uint32_t rows, uint32_t cols);           /* checkkern_device_bench_blas.c: contenders, of this shape */
#endif
