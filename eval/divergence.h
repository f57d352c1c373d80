/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* How far one model's predictions are from another's. */
#ifndef LQ_DIVERGENCE_H
#define LQ_DIVERGENCE_H
#include "eval/perplexity.h"

/* KL(p || q) of softmax(p[n]) and softmax(q[n]), given their log sum exp; never below zero but for rounding. */
double lq_kl(const float *p, double lse_p, const float *q, double lse_q, size_t n);
size_t lq_argmax(const float *x, size_t n); /* the first largest */
/* Sorts kl[n] in place. same: tokens with equal argmax. */
void lq_kld_summary(float *kl, uint64_t n, uint64_t same, lq_kld *out);

typedef struct lq_paired { double delta, stderr_; uint32_t n; } lq_paired; /* mean of a[i] - b[i]; n < 2: stderr_ is NAN */
lq_paired lq_paired_diff(const double *a, const double *b, uint32_t n);
#endif
