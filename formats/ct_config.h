/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The quantization_config of a compressed-tensors checkpoint as a reader needs it: which settings a module has. */
#ifndef LQ_CT_CONFIG_H
#define LQ_CT_CONFIG_H
#include "core/json.h"

typedef enum lq_ct_format { LQ_CT_UNSAID, LQ_CT_PACK, LQ_CT_INTS, LQ_CT_FLOATS, LQ_CT_NAIVE, LQ_CT_MX8, LQ_CT_MX4, LQ_CT_NV4 } lq_ct_format;
typedef enum lq_ct_strategy { LQ_CT_S_TENSOR, LQ_CT_S_CHANNEL, LQ_CT_S_GROUP, LQ_CT_S_BLOCK, LQ_CT_S_TOKEN, LQ_CT_S_TENSOR_GROUP, LQ_CT_S_HEAD } lq_ct_strategy;
typedef enum lq_ct_dynamic { LQ_CT_FIXED, LQ_CT_DYNAMIC, LQ_CT_LOCAL } lq_ct_dynamic;

typedef struct lq_ct_args {  /* QuantizationArgs */
    bool present, floats, sym, byte_scale; /* byte_scale: scale_dtype is torch.uint8 */
    int64_t bits, group;     /* group 0: none */
    int64_t block[2];        /* rows, cols; of LQ_CT_S_BLOCK */
    lq_ct_strategy strategy;
    lq_ct_dynamic dynamic;
} lq_ct_args;

typedef struct lq_ct_group {
    lq_ct_args weights, inputs;
    lq_ct_format format;     /* never UNSAID: the group's, the config's, or what follows from the settings */
} lq_ct_group;

typedef struct lq_ct_config lq_ct_config;
/* q: the dictionary, borrowed for as long as the config lives. Errors: LQ_ERR_FORMAT naming the key, LQ_ERR_UNSUPPORTED for what is known and unread. */
lq_status lq_ct_config_new(lq_ctx *ctx, const json_t *q, lq_ct_config **out);
void lq_ct_config_free(lq_ct_config **c);
/* The settings of a module: exact name before regular expression before class, and of several expressions the first by its text, as
 * compressed-tensors' match_targets does. *out NULL: it is listed in `ignore`, or nothing names it. */
lq_status lq_ct_config_find(lq_ctx *ctx, const lq_ct_config *c, const char *module, const lq_ct_group **out, bool *ignored);
bool lq_ct_config_is_dense(const lq_ct_config *c); /* codes of 3, 5, 6, 7 bits run across words (since 0.17.2) */
#endif
