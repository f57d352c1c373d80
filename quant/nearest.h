/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Which scheme of a format comes nearest to a given one. */
#ifndef LQ_NEAREST_H
#define LQ_NEAREST_H
#include "formats/sink.h"

/* How much of a matrix survives the change from one scheme to another, judged from the schemes alone. */
typedef enum lq_nearness {
    LQ_NEAR_EXACT,            /* every value has a place */
    LQ_NEAR_VALUES,           /* it depends on the values (core/recast tells) */
    LQ_NEAR_ANEW,             /* codes must be chosen anew */
    LQ_NEAR_NONE              /* the format takes no scheme for this shape */
} lq_nearness;

/* `have` itself where the format accepts it, else the accepted one among the variations of `have`, the named types and the ggml types that
 * costs least. */
lq_nearness lq_nearest_scheme(const lq_format *f, const lq_scheme *have, uint32_t rows, uint32_t cols, lq_scheme *want);
/* Names of the formats that accept s, "gptq, lqt"; buf returned. */
const char *lq_nearest_formats(const lq_scheme *s, uint32_t rows, uint32_t cols, char *buf, size_t n);
#endif
