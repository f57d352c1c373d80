/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Shared by checkkern.c (correctness) and checkkern_bench.c (speed). */
#ifndef CHECKKERN_H
#define CHECKKERN_H
#include "core/num.h"
#include "kernels/kernels.h"

typedef struct ck_variant { const char *name; lq_kernels k, below; } ck_variant; /* below: the table without this variant's own entries */
enum { CK_VARIANTS = 8 };
/* Every table this machine can run, C first. */
size_t ck_variants(ck_variant *v);

typedef struct ck_scheme { const char *name; lq_scheme s; } ck_scheme;
extern const ck_scheme ck_schemes[];
extern const size_t ck_n_schemes;
/* These and every type of lq_types; a NULL name ends. */
const ck_scheme *ck_all_schemes(void);
/* A tensor with random codes and planes; hostile: zeros, subnormals, extremes among the plane values. */
void ck_fill(lq_qtensor *q, const lq_scheme *s, uint32_t rows, uint32_t cols, lq_rng *rng, bool hostile);
void ck_floats(float *x, size_t n, lq_rng *rng, bool hostile);
void ck_bench(void);
#endif
