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

void ck_device_attn_add(const ck_variant *v, lq_dtype t); /* checkkern_device_attn.c */
#endif
