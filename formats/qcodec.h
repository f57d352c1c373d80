/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A qtensor as self-contained bytes: the frame of lqt and of the job journal. Layout: qcodec.c. */
#ifndef LQ_QCODEC_H
#define LQ_QCODEC_H
#include "core/qtensor.h"

/* Everything a scheme may say about a matrix of this shape holds together (known kinds, bits that fit the grid, planes present
 * where the zero kind wants them, nothing the codec cannot carry). Else LQ_ERR_UNSUPPORTED with a sentence. */
lq_status lq_scheme_check(lq_ctx *ctx, const lq_scheme *s, uint32_t rows, uint32_t cols);
/* Every value is usable: scales and tables finite and no finer than `sig`, code tables exact in F16, integer zeros below 2^bits, perm a
 * permutation, float codes finite, a step of static activations where the scheme has them, sparse rows monotone and columns
 * ascending, no more sparse values or kept columns than the scheme allows, codes under kept columns 0.
 * The scheme has passed lq_scheme_check. Else `bad` with a sentence: LQ_ERR_FORMAT for a file, LQ_ERR_QUALITY for our own. */
lq_status lq_qtensor_check(lq_ctx *ctx, const lq_qtensor *q, lq_status bad);

/* Appends to *out (which the caller frees). LQ_ERR_UNSUPPORTED when lq_scheme_check refuses the scheme, LQ_ERR_QUALITY when a code table
 * is not exact in F16. */
lq_status lq_qtensor_encode(lq_ctx *ctx, const lq_qtensor *q, lq_buf *out);
/* Exactly n bytes, made by lq_qtensor_encode; out owns itself. Errors: LQ_ERR_FORMAT. Memory stays within 17 times n + 4 KB. */
lq_status lq_qtensor_decode(lq_ctx *ctx, const void *p, size_t n, lq_qtensor *out);

/* The scheme alone, as the encoded bytes carry it. */
enum { LQ_SCHEME_BYTES = 60 };
void lq_scheme_encode(const lq_scheme *s, uint8_t out[LQ_SCHEME_BYTES]);
/* LQ_ERR_FORMAT for an unknown kind or dtype; lq_scheme_check is the caller's next call. */
lq_status lq_scheme_decode(lq_ctx *ctx, const uint8_t in[LQ_SCHEME_BYTES], lq_scheme *out);
/* Bytes lq_qtensor_encode writes for this scheme and shape without bias, plane tables and sparse parts; 0 when it overflows 2^63. */
uint64_t lq_qtensor_encoded_bytes(const lq_scheme *s, uint32_t rows, uint32_t cols);
#endif
