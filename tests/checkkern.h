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
void ck_thread_bench(void); /* checkkern_threads.c */
int ck_device_bench(const char *device); /* checkkern_device_bench.c; 77: there is none, 1: something went wrong */
void ck_packed_bench(const char *only); /* checkkern_packed_bench.c; only: one type, NULL: several */

/* ---- what checks share ---- */
typedef struct ck_probe { const ck_variant *v; const ck_scheme *scheme; lq_dtype dtype; char name[64]; } ck_probe; /* *state of a check */
typedef void (*ck_check)(void **state);
void ck_add(ck_check fn, const char *op, const ck_variant *v, const ck_scheme *s, lq_dtype t);
void ck_packed_add(const ck_variant *v); /* checkkern_packed.c */
void ck_device_add(const ck_variant *c); /* checkkern_device.c */
void ck_device_sparse_add(const ck_variant *v, lq_dtype t); /* checkkern_device_sparse.c */
void ck_device_ops_add(const ck_variant *v, lq_dtype t); /* checkkern_device_ops.c; t says which device: F16 cuda, F32 emu */
const char *ck_only(void);               /* the part of a name that --only asks for; "": all */
bool ck_ahead(void);                              /* --ahead: a GPU's kernels begin early; the emulation's always do */
lq_rng ck_start(const char *name);       /* the seed of the run and the name of the check */
void *ck_guarded(size_t n);              /* an output between guard bytes, filled with rubbish; ck_release fails when one was written */
void ck_release(void *v, size_t n);
void *ck_exact(size_t n);                /* an input that ends where its memory ends */
void ck_note(const void *v, size_t n);   /* into the digest */
void ck_same_bits(const float *got, const float *want, size_t n, const char *what, uint32_t cols);
/* |got - sum| <= k eps mass; the worst is kept in ck_worst. */
void ck_near_exact(const ck_probe *p, float got, double sum, double mass, double k, uint32_t cols);
extern double ck_worst;
extern const uint32_t ck_widths[];
extern const size_t ck_n_widths;
bool ck_fits_cols(const lq_scheme *s, uint32_t cols);
#endif
