/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Activations as three signed digits to base 256 (kernels/packed.h), and packed weights times them: the fixed-point numbers are products of
 * bytes to a kernel, and as near to the floats as their sum in fp32 would be. */
#include "kernels/ref/ref.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* step = 2^e, e the least for which the largest |x| is at most 127 * (65536 + 256 + 1) steps, or one more; 2^e and 2^-e are normal floats. */
static uint32_t exponent(float most) {
    uint32_t e;
    memcpy(&e, &most, sizeof e);
    e = (e + 0x20000) >> 23;
    return e < 23 ? 1 : e - 22;
}

static float power(uint32_t biased) {
    float v;
    biased <<= 23;
    memcpy(&v, &biased, sizeof v);
    return v;
}

bool lq_digits_c(const float *x, uint32_t n, int8_t *d, int32_t sum[LQ_DIGITS], float *step) {
    float most = 0;
    bool finite = true;
    for (uint32_t i = 0; i < n; i++) {
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
        finite = finite && fabsf(x[i]) <= FLT_MAX;
    }
    uint32_t e = exponent(finite ? most : 0);
    *step = finite ? power(e) : nanf("");
    sum[0] = sum[1] = sum[2] = 0;
    uint32_t others = 0, nonzero = 0, largest = 0;
    for (uint32_t i = 0; i < n; i++) {
        int32_t v = finite ? (int32_t)lrintf(x[i] * power(254 - e)) : 0;
        uint32_t up = (uint32_t)v + 0x808080, size = (uint32_t)abs(v); /* digits plus 128 */
        others += size;
        nonzero += x[i] != 0;
        largest = size > largest ? size : largest;
        d[i / 4 * 16 + 12 + i % 4] = 0;
        for (int k = 0; k < LQ_DIGITS; k++) {
            int32_t digit = (int32_t)(up >> (16 - 8 * k) & 255) - 128;
            d[i / 4 * 16 + 4 * (uint32_t)k + i % 4] = (int8_t)digit;
            sum[k] += digit;
        }
    }
    return finite && (nonzero < 2 || others - largest >= (nonzero - 1) << 15);
}

static float whole_sum(const int32_t s[LQ_DIGITS]) { return (float)s[0] * 65536.0f + (float)(s[1] * 256 + s[2]); } /* the product is exact */

/* Of row r: the sums of A(code) times each digit of a block, A made whole. */
static void block_sums(const lq_packed *p, uint32_t r, uint32_t c, uint32_t end, float whole, const int8_t *x, int32_t s[LQ_DIGITS]) {
    s[0] = s[1] = s[2] = 0;
    for (; c < end; c++) {
        int32_t a = (int32_t)(lq_grid_value(&p->q, r, lq_packed_code(p, r, c)) * whole);
        for (int k = 0; k < LQ_DIGITS; k++) s[k] += a * x[c / 4 * 16 + 4 * (uint32_t)k + c % 4];
    }
}

void lq_packed_digits_c(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_d *x, float *y, size_t ldy) {
    uint32_t last = (t0 + nt) * LQ_TILE < p->q.rows ? (t0 + nt) * LQ_TILE : p->q.rows;
    float whole = lq_packed_whole(p);
    for (uint32_t t = 0; t < x->n; t++)
        for (uint32_t r = t0 * LQ_TILE; r < last; r++) {
            float total = 0;
            for (uint32_t b = 0, c; b < x->blocks; b++) {
                uint32_t end = lq_packed_block(p, x->per, b, &c);
                size_t at = (size_t)t * x->blocks + b;
                float s = lq_packed_scale(p, r, c / p->seg), z = lq_packed_zero(p, r, c / p->seg), step = x->step[at];
                int32_t sums[LQ_DIGITS];
                block_sums(p, r, c, end, whole, x->x + (size_t)t * 4 * lq_packed_ld(p), sums);
                float v = step / whole * whole_sum(sums), ones = step * whole_sum(x->sum + at * LQ_DIGITS);
                if (p->zero != LQ_NONE && p->q.sch.zero_kind == LQ_ZERO_CODE) v = fmaf(-z, ones, v);
                total = fmaf(s, v, total);
                if (p->zero != LQ_NONE && p->q.sch.zero_kind == LQ_ZERO_MIN) total = fmaf(-z, ones, total);
            }
            y[t * ldy + r] = total;
        }
}
