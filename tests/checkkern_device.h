/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What the checks of device operations share: memory of a device that remembers itself, outputs between guard bytes. */
#ifndef CHECKKERN_DEVICE_H
#define CHECKKERN_DEVICE_H
#include "checkkern.h"
#include "kernels/cuda/cuda.h"

enum { CKD_HELD = 64, CKD_RUNS = 3 }; /* runs of an operation: the emulation takes another order of warps each time */

typedef struct ckd {
    const lq_device *d;
    const char *name;
    lq_rng rng;
    void *held[CKD_HELD];
    int n;
} ckd;

/* The device of a check, with every entry of its table counted as it is called. */
const lq_device *ckd_device(const ck_probe *p);
ckd ckd_open(const ck_probe *p);
void ckd_close(ckd *c);                                   /* releases all memory */
void ckd_release(ckd *c);                                 /* the same, to go on */
void *ckd_in(ckd *c, const void *v, size_t n);            /* device memory of exactly n bytes */
float *ckd_floats(ckd *c, float *host, size_t n);         /* random ones, in host and on the device */
void *ckd_out(ckd *c, size_t n);                          /* between guard bytes, filled with rubbish */
void ckd_get(ckd *c, const void *out, size_t n, void *to); /* fails where a guard byte was written */
void ckd_run(ckd *c, const char *why, const char *what);  /* fails with why, if any */
/* to = out[n] after the first run; later runs must give the same bytes. */
void ckd_same(ckd *c, int run, const void *out, size_t n, void *to, const char *what);
void ckd_near(ckd *c, float got, double want, double bound, const char *what, size_t i);

void ckd_same_floats(ckd *c, const float *got, const float *want, size_t n, const char *what);
/* y = norm(x) of one token of d. */
void ckd_check_norm(ckd *c, const float *x, const float *gain, const float *shift, bool layer, uint32_t d, const float *y);
bool ckd_packed(ckd *c, const lq_scheme *s, uint32_t rows, uint32_t cols, bool perm, lq_act act, lq_packed *m); /* false: the scheme has no such shape */
/* Sum of row r times x in stored order, each off by off[] (NULL: exact), and what a device's product may be off by. */
double ckd_row(const lq_packed *m, uint32_t r, const float *x, const double *off, double *bound);
double ckd_act_bound(int actfn, double x, double y, double up); /* of y = act(x) up */

typedef struct ckd_acts { float *code, *step; void *scratch; lq_packed_i x; double *want; } ckd_acts; /* rounded activations of n tokens, and their products (lq_packed_idot_c) */
ckd_acts ckd_acts_make(const lq_packed *m, uint32_t n, bool extreme, lq_rng *rng);
void ckd_acts_free(ckd_acts *a);
double ckd_whole_bound(const lq_packed *m, const ckd_acts *a, uint32_t t, uint32_t r); /* what fp32 sums of several segments may be off by */

void ck_device_round_add(const ck_variant *v, lq_dtype t); /* checkkern_device_round.c */
void ck_device_rest_add(const ck_variant *v, lq_dtype t); /* checkkern_device_rest.c */
void ck_device_experts_add(const ck_variant *v, lq_dtype t); /* checkkern_device_experts.c */
void ck_device_joint_add(const ck_variant *v, const ck_scheme *s, bool codes, lq_dtype t); /* checkkern_device_joint.c; codes: of rounded activations too */
void ck_device_table_add(const ck_variant *v, lq_dtype t); /* checkkern_device_table.c; after all others */
void ck_device_attn_add(const ck_variant *v, lq_dtype t); /* checkkern_device_attn.c */
#endif
