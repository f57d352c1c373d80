/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Gated linear units: y = f(gate) * up.
 *   silu(x) = x / (1 + e^-x)      gelu_tanh(x) = x / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3): the tanh form rewritten
 *   gelu(x) = x (1 + erf(x / sqrt 2)) / 2, by the C library
 * Where e^-x overflows the result is -0; the true value is above -2.5e-37 there. */
#include "kernels/ref/exp.h"
#include "kernels/ref/ref.h"

const char *const lq_actfn_names[LQ_ACTFN_N] = {"silu", "gelu_pytorch_tanh", "gelu", "relu", "relu2"};

static void silu(const float *gate, const float *up, float *y, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = gate[i] / (1.0f + lq_exp(-gate[i])) * up[i];
}

static void gelu_tanh(const float *gate, const float *up, float *y, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float x = gate[i], u2 = (x + x * x * x * 0.044715f) * -1.5957691f; /* -2 sqrt(2/pi) */
        y[i] = x / (1.0f + lq_exp(u2)) * up[i];
    }
}

static void gelu(const float *gate, const float *up, float *y, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = 0.5f * gate[i] * (1.0f + erff(gate[i] * 0.70710678f)) * up[i];
}

static void relu(const float *gate, const float *up, float *y, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = (gate[i] < 0 ? 0 : gate[i]) * up[i];
}

static void relu2(const float *gate, const float *up, float *y, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = gate[i] < 0 ? 0 * up[i] : gate[i] * gate[i] * up[i];
}

void lq_glu_c(lq_actfn f, const float *gate, const float *up, float *y, size_t n) {
    static void (*const forms[LQ_ACTFN_N])(const float *, const float *, float *, size_t) = {silu, gelu_tanh, gelu, relu, relu2};
    forms[f](gate, up, y, n);
}

float lq_exp_c(float x) { return lq_exp(x); }
