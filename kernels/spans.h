/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Packed matrices whose spans are whole numbers to rounded activations: GGUF's K types, 256 columns a span, as ggml rounds for them. packed_idot is then
 *
 *   sum over spans, ascending, of  step (d S - m Z)      each operation rounded to fp64; d S and m Z are exact; without zeros step (d S)
 *   S = sum over the span's segments of scale byte * sum of A(code) x,   Z = sum of zero byte * sum of x,   d, m their ups
 *
 * as ggml's kernels of blocks with F16 d and dmin sum them (its Q8_K has one step for 256 columns). */
#ifndef LQ_SPANS_H
#define LQ_SPANS_H
#include "kernels/packed.h"

/* At most; segments are even in number and of up to 256 columns: their sums of x fit 16 bits. */
enum { LQ_SPAN_SEGS = 16, LQ_SPAN_COLS = 1024 };
/* Are scales, and zeros if there are any, whole bytes times an up without a shift, does a step of the rounded activations cover whole spans, and does
 * S surely fit 32 bits? */
bool lq_spans_whole(const lq_packed *p);
int32_t lq_scale_byte(const lq_packed *p, uint32_t r, uint32_t g);
int32_t lq_zero_byte(const lq_packed *p, uint32_t r, uint32_t g);
float lq_scale_up(const lq_packed *p, uint32_t r, uint32_t g);
float lq_zero_up(const lq_packed *p, uint32_t r, uint32_t g);
#endif
