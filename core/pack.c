/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "core/pack.h"

#include <string.h>

uint32_t lq_code_get(const uint8_t *row, uint32_t bits, size_t k) {
    uint32_t v = 0;
    size_t bit = k * bits;
    for (uint32_t got = 0; got < bits;) {
        uint32_t shift = bit & 7, take = 8 - shift < bits - got ? 8 - shift : bits - got;
        v |= (row[bit >> 3] >> shift & ((1u << take) - 1)) << got;
        got += take;
        bit += take;
    }
    return v;
}

void lq_code_put(uint8_t *row, uint32_t bits, size_t k, uint32_t code) {
    size_t bit = k * bits;
    for (uint32_t put = 0; put < bits;) {
        uint32_t shift = bit & 7, take = 8 - shift < bits - put ? 8 - shift : bits - put;
        uint32_t mask = ((1u << take) - 1) << shift;
        row[bit >> 3] = (uint8_t)((row[bit >> 3] & ~mask) | ((code >> put << shift) & mask));
        put += take;
        bit += take;
    }
}

void lq_codes_unpack(const uint8_t *row, uint32_t bits, size_t n, uint16_t *codes) { /* bits <= 16 */
    uint32_t mask = (1u << bits) - 1, have = 0;
    uint64_t window = 0;
    for (size_t k = 0; k < n; k++) {
        while (have < bits) {
            window |= (uint64_t)*row++ << have;
            have += 8;
        }
        codes[k] = (uint16_t)(window & mask);
        window >>= bits;
        have -= bits;
    }
}

void lq_codes_pack(uint8_t *row, uint32_t bits, size_t n, const uint16_t *codes) {
    uint64_t window = 0;
    uint32_t have = 0;
    for (size_t k = 0; k < n; k++) {
        window |= (uint64_t)codes[k] << have;
        have += bits;
        while (have >= 8) {
            *row++ = (uint8_t)window;
            window >>= 8;
            have -= 8;
        }
    }
    if (have) *row = (uint8_t)window;
}
