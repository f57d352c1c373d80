/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "core/blocks.h"

static const struct { lq_dtype type; lq_scheme scheme; } blocks[] = {
#define X(name, what, ...) {LQ_##name, {__VA_ARGS__}},
    LQ_BLOCK_LIST(X)
#undef X
};
enum { BLOCKS = sizeof blocks / sizeof *blocks };

lq_dtype lq_gguf_block_type(const lq_scheme *s) {
    for (int i = 0; i < BLOCKS; i++)
        if (lq_scheme_eq(s, &blocks[i].scheme)) return blocks[i].type;
    return LQ_NONE;
}

bool lq_gguf_scheme(lq_dtype t, lq_scheme *out) {
    for (int i = 0; i < BLOCKS; i++) {
        if (blocks[i].type != t) continue;
        *out = blocks[i].scheme;
        return true;
    }
    return false;
}

lq_dtype lq_gguf_fit(const lq_scheme *s, lq_scheme *out) {
    lq_scheme wide = *s;
    if (wide.scale.dtype == LQ_F16) wide.scale.sig = 0;
    if (wide.zero.dtype == LQ_F16) wide.zero.sig = 0;
    lq_dtype t = lq_gguf_block_type(&wide);
    if (t != LQ_NONE && out) *out = wide;
    return t;
}
