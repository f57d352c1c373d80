/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What an architecture cannot have, and why. A refusal that is not here fails the tests; so does a row that is no longer true. */
#ifndef LQ_TEST_SITE_REFUSALS_H
#define LQ_TEST_SITE_REFUSALS_H
#include "calib/sites.h"

typedef struct lq_refusal {
    const char *arch;    /* lq_arch.name */
    lq_site_kind kind;
    const char *reason;  /* part of the sentence */
} lq_refusal;

static const lq_refusal lq_refusals[] = {
    {"bitnet", LQ_SITE_VALUE, "something other than attention"}, /* a norm before o: that norm is the site */
    {"bitnet", LQ_SITE_UP, "something other than the gated product"},
    {"olmoe", LQ_SITE_VALUE, "something other than attention"},  /* v is clamped */
    {"falcon", LQ_SITE_RELU, "not ReLU"},
    {"gpt2", LQ_SITE_RELU, "not ReLU"},
    {"gpt_neox", LQ_SITE_RELU, "not ReLU"},
    {"phi", LQ_SITE_RELU, "not ReLU"},
    {"opt", LQ_SITE_RELU, "not ReLU"},                           /* some configurations */
    {"opt", LQ_SITE_NORM, "post-norm"},                          /* 350M */
    {"opt", LQ_SITE_NORM, "no stored gain"},                     /* layer_norm_elementwise_affine false */
    {NULL, LQ_SITE_NORM, NULL},
};
#endif
