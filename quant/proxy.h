/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The proxy loss of a quantized linear: tr((W-Q) H (W-Q)^T), H the mean of x x^T over the calibration tokens. It is the mean
 * squared error of the linear's output on those tokens. Source: algorithms.md 0. */
#ifndef LQ_PROXY_H
#define LQ_PROXY_H
#include "core/qtensor.h"
#include "kernels/linalg.h"

/* Rows that are multiplied at once; a slice is always this high (missing rows zero), so that a row's bits do not depend on
 * how many others there are. */
enum { LQ_PROXY_ROWS = 64 };

/* H as float out[k][k]: the Gram matrix over its token count. Parallel. */
void lq_proxy_hessian(const lq_gram *g, float *out);
/* loss[r] = e_r H e_r^T for the LQ_PROXY_ROWS rows of e[..][k]; scratch as large as e. One thread. */
void lq_proxy_rows(const float *h, uint32_t k, const float *e, float *scratch, double *loss);
/* tr((W-Q) H (W-Q)^T) / tr(W H W^T), 0 when both are zero. Parallel over fixed slices of rows. */
lq_status lq_proxy_error(lq_ctx *ctx, const float *w, const lq_qtensor *q, const lq_gram *g, double *err_h);
/* |W-Q|^2 / |W|^2, 0 when both are zero */
lq_status lq_weight_error(lq_ctx *ctx, const float *w, const lq_qtensor *q, double *err_w);
#endif
