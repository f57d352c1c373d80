/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Radix selection: floats >= 0 are ordered as their bits are, so eleven bits at a time fix the value of the k-th one. */
#include "quant/select.h"

#include "core/num.h"

#include <string.h>

enum { DIGIT = 11, BINS = 1 << DIGIT };

static uint32_t rank_of(float key, bool largest) {
    uint32_t bits = lq_f32_bits(key) & 0x7fffffff;
    return largest ? 0x7fffffff - bits : bits;
}

void lq_select(const float *key, size_t n, size_t k, bool largest, uint8_t value, uint8_t *mark) {
    size_t bins[BINS];
    uint32_t prefix = 0, mask = 0;
    size_t left = k; /* how many of those that share the prefix are still to be taken */
    if (!k) return;
    for (int shift = 31 - DIGIT + 2; shift >= 0; shift -= DIGIT) {
        memset(bins, 0, sizeof bins);
        for (size_t i = 0; i < n; i++) {
            uint32_t r = rank_of(key[i], largest);
            if (!mark[i] && (r & mask) == prefix) bins[r >> shift & (BINS - 1)]++;
        }
        uint32_t b = 0;
        while (b < BINS - 1 && bins[b] < left) left -= bins[b++];
        prefix |= b << shift;
        mask |= (uint32_t)(BINS - 1) << shift;
    }
    for (size_t i = 0; i < n; i++) {
        uint32_t r = rank_of(key[i], largest);
        if (mark[i] || r > prefix || (r == prefix && !left)) continue;
        mark[i] = value;
        left -= r == prefix;
    }
}
