/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "quant/xform.h"

#include <string.h>

extern const lq_method lq_method_rtn, lq_method_gptq, lq_method_int8, lq_method_zeroquant;
extern const lq_xform lq_xform_awq, lq_xform_smoothquant;
extern const lq_method lq_method_nf4, lq_method_fp4, lq_method_fp8, lq_method_mxfp4, lq_method_nvfp4;
extern const lq_method lq_method_squeezellm;
extern const lq_method lq_method_hqq;
extern const lq_method lq_method_ternary, lq_method_binary;
extern const lq_method lq_method_sparsegpt, lq_method_wanda;

const lq_method *const lq_methods[] = {
    &lq_method_rtn,
    &lq_method_gptq,
    &lq_method_int8,
    &lq_method_zeroquant,
    &lq_method_nf4,
    &lq_method_fp4,
    &lq_method_fp8,
    &lq_method_mxfp4,
    &lq_method_nvfp4,
    &lq_method_squeezellm,
    &lq_method_hqq,
    &lq_method_ternary,
    &lq_method_binary,
    &lq_method_sparsegpt,
    &lq_method_wanda,
    NULL};
const lq_xform *const lq_xforms[] = {&lq_xform_awq, &lq_xform_smoothquant, NULL};

const lq_method *lq_method_by_name(const char *name) {
    for (const lq_method *const *m = lq_methods; *m; m++)
        if (!strcmp((*m)->name, name)) return *m;
    return NULL;
}

unsigned lq_method_needs(const lq_method *m, const void *opts) { return m->needs_of ? m->needs_of(opts) : m->needs; }
unsigned lq_xform_needs(const lq_xform *x, const void *opts) { return x->needs_of ? x->needs_of(opts) : x->needs; }
