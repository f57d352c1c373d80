/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What every timing over cold weights needs: memory that lies in no cache, two plain loops over it, and a matrix many times over. */
#ifndef BENCH_COLD_H
#define BENCH_COLD_H
#include "kernels/packed.h"

enum { CK_COLD_PARTS = 64 }; /* of a plain read */

typedef struct ck_cold {
    uint64_t *v;   /* [CK_COLD_PARTS][words] */
    size_t words;
    uint64_t sum[CK_COLD_PARTS]; /* so that no loop may be left out */
} ck_cold;
/* Four times the cache (bytes); false: no memory. free(c->v). */
bool ck_cold_init(ck_cold *c, size_t cache);
/* Parts of lq_parallel_for over a ck_cold. */
void ck_cold_read(void *cold, size_t part);
void ck_cold_read_ahead(void *cold, size_t part);
double ck_cold_bytes(const ck_cold *c);

/* The same matrix elsewhere; it has the first one's shell, which must live on. false: no memory. */
bool ck_packed_again(const lq_packed *m, lq_packed *to);
void ck_packed_again_free(lq_packed *m);
#endif
