/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* JSON with the limits hostile input needs, over jansson: duplicate keys refused, size capped, errors name file and line. */
#ifndef LQ_JSON_H
#define LQ_JSON_H
#include "core/os.h"
#include <jansson.h>

enum { LQ_JSON_MAX = 256 << 20 };
/* text need not end in NUL. *out is a new reference. name appears in messages. */
lq_status lq_json_parse(lq_ctx *ctx, const char *name, const char *text, size_t n, json_t **out);
lq_status lq_json_load(lq_ctx *ctx, const char *path, json_t **out); /* a file of at most LQ_JSON_MAX bytes */
/* For untrusted files that ought to be small: a hostile tree takes some forty times the bytes of its text. */
lq_status lq_json_load_max(lq_ctx *ctx, const char *path, size_t max, json_t **out);
/* Bound integer: absent -> def when required is false. Wrong type or outside [lo, hi] is an LQ_ERR_FORMAT naming the key. */
lq_status lq_json_int(lq_ctx *ctx, const json_t *o, const char *key, bool required, int64_t def, int64_t lo, int64_t hi, int64_t *out);
lq_status lq_json_real(lq_ctx *ctx, const json_t *o, const char *key, bool required, double def, double *out); /* finite */
lq_status lq_json_bool(lq_ctx *ctx, const json_t *o, const char *key, bool def, bool *out);
lq_status lq_json_string(lq_ctx *ctx, const json_t *o, const char *key, bool required, const char **out); /* borrowed; NULL when absent or null */
/* Pretty text with sorted or insertion order kept (order kept), 2-space indent, '\n' at the end. Same input, same bytes. */
lq_status lq_json_dump(lq_ctx *ctx, const json_t *v, lq_buf *out);
#endif
