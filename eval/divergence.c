/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* KL(p || q) = sum_i p_i (log p_i - log q_i) with log p_i = x_i - logsumexp(x): terms in fp32 exponentials, sums in fp64. */
#include "eval/divergence.h"

#include <math.h>
#include <stdlib.h>

double lq_kl(const float *p, double lse_p, const float *q, double lse_q, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        double lp = p[i] - lse_p;
        if (lp > -87) sum += (double)expf((float)lp) * (lp - (q[i] - lse_q)); /* e^-87 is the smallest normal float */
    }
    return sum;
}

size_t lq_argmax(const float *x, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Linear between the neighbouring order statistics, as numpy.percentile. */
static double quantile(const float *sorted, uint64_t n, double q) {
    double at = q * (double)(n - 1);
    uint64_t i = (uint64_t)at;
    return i + 1 < n ? sorted[i] + (at - (double)i) * ((double)sorted[i + 1] - sorted[i]) : sorted[n - 1];
}

void lq_kld_summary(float *kl, uint64_t n, uint64_t same, lq_kld *out) {
    double sum = 0, dev = 0;
    *out = (lq_kld){.tokens = n};
    if (!n) return;
    for (uint64_t i = 0; i < n; i++) sum += kl[i];
    out->mean = sum / (double)n;
    for (uint64_t i = 0; i < n; i++) dev += (kl[i] - out->mean) * (kl[i] - out->mean);
    out->stderr_ = n > 1 ? sqrt(dev / (double)(n - 1) / (double)n) : 0;
    qsort(kl, n, sizeof *kl, by_value);
    out->median = quantile(kl, n, 0.5);
    out->p99 = quantile(kl, n, 0.99);
    out->p999 = quantile(kl, n, 0.999);
    out->max = kl[n - 1];
    out->top1 = (double)same / (double)n;
    out->top1_stderr = n > 1 ? sqrt(out->top1 * (1 - out->top1) / (double)(n - 1)) : 0;
}

lq_paired lq_paired_diff(const double *a, const double *b, uint32_t n) {
    double sum = 0, dev = 0;
    for (uint32_t i = 0; i < n; i++) sum += a[i] - b[i];
    lq_paired p = {.delta = n ? sum / n : 0, .n = n};
    for (uint32_t i = 0; i < n; i++) dev += (a[i] - b[i] - p.delta) * (a[i] - b[i] - p.delta);
    p.stderr_ = n > 1 ? sqrt(dev / (n - 1) / n) : (double)NAN;
    return p;
}
