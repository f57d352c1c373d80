/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Top-level keys of config.json changed in its text: what a key does not touch stays byte for byte. */
#ifndef LQ_CONFIG_SPLICE_H
#define LQ_CONFIG_SPLICE_H
#include "core/json.h"

/* text[n]: a JSON object, doc: the same, parsed. changes: key -> new value, null: the key and its value go. A new key comes last. */
lq_status lq_config_splice(lq_ctx *ctx, const char *text, size_t n, const json_t *doc, const json_t *changes, lq_buf *out);
#endif
