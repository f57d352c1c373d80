/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* "gptq", "gptq:damp-percent=0.02:block-size=64", "xform,method": what a verb or --recipe names. */
#ifndef LQ_RECIPE_H
#define LQ_RECIPE_H
#include "quant/method.h"

typedef struct lq_recipe {
    const lq_method *method;
    void *opts;              /* method->opts_size bytes, defaults applied; owned */
    char *text;              /* as given; owned */
} lq_recipe;
/* Is the first element of this text a method (or a transform)? */
bool lq_recipe_is(const char *text);
/* Unknown part: LQ_ERR_USAGE with the known names. Settings after ':' are applied over the method's defaults. */
lq_status lq_recipe_parse(lq_ctx *ctx, const char *text, lq_recipe *out);
void lq_recipe_free(lq_recipe *r);
#endif
