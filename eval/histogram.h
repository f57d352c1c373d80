/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* How the scales and codes of a checkpoint are spread: by type, scales by powers of two. */
#ifndef LQ_HISTOGRAM_H
#define LQ_HISTOGRAM_H
#include "core/json.h"
#include "formats/source.h"

/* [{"type", "tensors", "scales", "zero", "least", "most", "bins": [[exponent, count]...], "code_bits": entropy of the codes in bits, "codes": bits
 * stored}] of every quantized tensor. Reads them all, one at a time. New reference. */
lq_status lq_histogram_json(lq_ctx *ctx, lq_source *src, json_t **out);
lq_status lq_histogram_text(lq_ctx *ctx, const json_t *v, lq_buf *out); /* the same as bars */
#endif
