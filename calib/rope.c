/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Frequencies of rotary positions (Su et al. 2021): theta_j = base^(-2j/d), j < d/2, and what models do to reach further:
 *   linear    theta / factor
 *   llama3    theta / factor where the wavelength exceeds original/low, theta where it is below original/high, between the two a
 *             line in 1/wavelength (Meta, Llama 3.1)
 *   yarn      between theta (fast coordinates) and theta / factor (slow ones) along a ramp over j; cos and sin are multiplied by
 *             the attention factor (Peng et al. 2023)
 *   dynamic   a larger base once the text is longer than the model was trained for (NTK scaling)
 *   longrope  theta / short_j or theta / long_j (Ding et al. 2024)
 * Published code works in fp32 and the models were trained with what it gave; at position 2000 the rounding of a frequency is an
 * angle of 1e-4, so it is imitated. */
#include "calib/arch.h"

#include "core/num.h"

const char *const lq_rope_names[LQ_ROPE_KIND_N] = {"default", "linear", "llama3", "yarn", "dynamic", "longrope"};

static const double two_pi = 6.283185307179586;

static double llama3_divisor(double theta, double factor, double low, double high, double original) {
    double wave = two_pi / theta;
    if (wave < original / high) return 1;
    if (wave > original / low) return factor;
    double s = (original / wave - low) / (high - low);
    return 1 / ((1 - s) / factor + s);
}

/* The coordinate that turns `turns` times over the original context. */
static double yarn_coordinate(const lq_rope *r, double turns) { return r->dim * log(r->original / (turns * two_pi)) / (2 * log(r->base)); }

static void yarn(const lq_rope *r, double *theta) {
    double first = yarn_coordinate(r, r->high), last = yarn_coordinate(r, r->low);
    if (r->whole) first = floor(first), last = ceil(last);
    if (first < 0) first = 0;
    if (last > r->dim - 1) last = r->dim - 1;
    if (last == first) last += 0.001;
    for (uint32_t j = 0; j < r->dim / 2; j++) {
        double slow = (j - first) / (last - first);
        slow = slow < 0 ? 0 : slow > 1 ? 1 : slow;
        theta[j] = theta[j] / r->factor * slow + theta[j] * (1 - slow);
    }
}

double lq_rope_long_scale(double factor, uint32_t original) { return factor > 1 && original > 1 ? sqrt(1 + log(factor) / log(original)) : 1; }

static double base_of(const lq_rope *r, uint32_t positions) {
    if (r->kind != LQ_ROPE_DYNAMIC || positions <= r->original || r->dim <= 2) return r->base;
    return r->base * pow(r->factor * positions / r->original - (r->factor - 1), r->dim / (double)(r->dim - 2));
}

void lq_rope_inv_freq(const lq_rope *r, uint32_t positions, double *inv_freq) {
    double base = base_of(r, positions);
    const double *div = r->long_div && positions > r->original ? r->long_div : r->div;
    for (uint32_t j = 0; j < r->dim / 2; j++) {
        float power = (float)pow(base, (float)(2 * j) / (float)r->dim);
        double theta = r->kind == LQ_ROPE_LONGROPE && div ? 1.0f / ((float)div[j] * power) : 1.0f / power;
        if (r->kind == LQ_ROPE_LINEAR) theta /= r->factor;
        if (r->kind == LQ_ROPE_LLAMA3) theta /= llama3_divisor(theta, r->factor, r->low, r->high, r->original);
        if (r->kind != LQ_ROPE_LONGROPE && div) theta /= div[j];
        inv_freq[j] = theta;
    }
    if (r->kind == LQ_ROPE_YARN) yarn(r, inv_freq);
    for (uint32_t j = 0; j < r->dim / 2; j++) inv_freq[j] = (float)inv_freq[j];
}

/* Between the two wavelengths 1/divisor = (1-s)/factor + s with s = (original/wave - low)/(high - low): a line in 1/wave.
 * Only low/original and high/original can be told from divisors, so original is taken as 8192; where too few divisors lie in
 * between, high = 4 low as in every published model. */
static void fit_llama3(uint32_t n, const double *x, const double *s, double original, double *low, double *high) {
    double sx = 0, sy = 0, sxx = 0, sxy = 0;
    for (uint32_t j = 0; j < n; j++) sx += x[j], sy += s[j], sxx += x[j] * x[j], sxy += x[j] * s[j];
    *low = n ? original * x[0] / (3 * s[0] + 1) : 1;
    *high = 4 * *low;
    if (n > 1) {
        double slope = (n * sxy - sx * sy) / (n * sxx - sx * sx), shift = (sy - slope * sx) / n, span = original / slope;
        *low = -shift * span;
        *high = (1 - shift) * span;
    }
    *low = rint(*low * 1e3) / 1e3;
    *high = rint(*high * 1e3) / 1e3;
}

bool lq_rope_recover(const lq_rope *r, double *factor, double *low, double *high) {
    enum { ORIGINAL = 8192 };
    lq_rope plain = *r;
    plain.kind = LQ_ROPE_DEFAULT;
    plain.div = NULL;
    uint32_t half = r->dim / 2, n = 0;
    double *theta = LQ_NEWN(double, half), *x = LQ_NEWN(double, half), *s = LQ_NEWN(double, half);
    bool ok = theta && x && s && r->div;
    if (ok) {
        lq_rope_inv_freq(&plain, 0, theta);
        *factor = r->div[half - 1];
        for (uint32_t j = 0; j < half; j++) {
            if (r->div[j] <= 1 || r->div[j] >= *factor) continue;
            x[n] = theta[j] / two_pi;
            s[n++] = (1 / r->div[j] - 1 / *factor) / (1 - 1 / *factor);
        }
        fit_llama3(n, x, s, ORIGINAL, low, high);
        ok = *low > 0 && *high > *low;
    }
    for (uint32_t j = 0; ok && j < half; j++) ok = fabs(llama3_divisor(theta[j], *factor, *low, *high, ORIGINAL) / r->div[j] - 1) < 1e-4;
    lq_free(theta);
    lq_free(x);
    lq_free(s);
    return ok;
}
