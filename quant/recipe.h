/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* "gptq", "gptq:damp-percent=0.02:block-size=64", "awq,gptq": what a verb names: transforms, then a method. A recipe that ends with a
 * transform ends with rtn: "awq" is "awq,rtn". */
#ifndef LQ_RECIPE_H
#define LQ_RECIPE_H
#include "quant/xform.h"

enum { LQ_RECIPE_XFORMS = 4 };
typedef struct lq_recipe {
    const lq_method *method;
    void *opts;              /* method->opts_size bytes, defaults applied; owned */
    struct { const lq_xform *x; void *opts; } xform[LQ_RECIPE_XFORMS]; /* in order */
    uint32_t n_xforms;
    char *text, *parts;      /* as given; cut into elements and settings, which options may point into; owned */
} lq_recipe;
/* Is the first element of this text a method or a transform? */
bool lq_recipe_is(const char *text);
/* Unknown part: LQ_ERR_USAGE with the known names. Settings after ':' are applied over the element's defaults. */
lq_status lq_recipe_parse(lq_ctx *ctx, const char *text, lq_recipe *out);
void lq_recipe_free(lq_recipe *r);
/* One option table per element, the method's first; NULL-free: an element without options has an empty table. Returns their number. */
enum { LQ_RECIPE_SETS = LQ_RECIPE_XFORMS + 1 };
uint32_t lq_recipe_sets(const lq_recipe *r, lq_optset sets[LQ_RECIPE_SETS]);
/* [{"name": "awq", "options": {...}}, ...]: what decides the bytes. New reference; NULL: out of memory. */
json_t *lq_recipe_json(const lq_recipe *r);
/* Default type of the recipe: the method's own, else its last transform's that has one, else NULL. */
const char *lq_recipe_type(const lq_recipe *r);
/* Natural format of the recipe: its last transform's that has one, else the method's; NULL: neither has. */
const char *lq_recipe_format(const lq_recipe *r);
unsigned lq_recipe_xform_needs(const lq_recipe *r); /* of all transforms; 0 without one */
#endif
