/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "core/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

lq_status lq_json_parse(lq_ctx *ctx, const char *name, const char *text, size_t n, json_t **out) {
    json_error_t e;
    *out = json_loadb(text, n, JSON_REJECT_DUPLICATES, &e);
    if (*out) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_FORMAT, "%s: JSON line %d column %d: %s", name, e.line, e.column, e.text);
}

lq_status lq_json_load(lq_ctx *ctx, const char *path, json_t **out) { return lq_json_load_max(ctx, path, LQ_JSON_MAX, out); }

lq_status lq_json_load_max(lq_ctx *ctx, const char *path, size_t max, json_t **out) {
    lq_buf b;
    *out = NULL;
    LQ_TRY(lq_file_slurp(ctx, path, max, &b));
    lq_status st = lq_json_parse(ctx, path, b.v, b.n, out);
    lq_buf_free(&b);
    return st;
}

static const json_t *get(const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    return v && !json_is_null(v) ? v : NULL;
}

lq_status lq_json_int(lq_ctx *ctx, const json_t *o, const char *key, bool required, int64_t def, int64_t lo, int64_t hi, int64_t *out) {
    const json_t *v = get(o, key);
    *out = def;
    if (!v) return required ? lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is missing", key) : LQ_OK;
    double whole = json_is_real(v) ? json_real_value(v) : 0;
    if (json_is_integer(v)) *out = json_integer_value(v);
    else if (json_is_real(v) && whole == floor(whole) && fabs(whole) < 9e15) *out = (int64_t)whole;
    else return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is not an integer", key);
    if (*out < lo || *out > hi)
        return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is %lld, expected %lld to %lld", key, (long long)*out, (long long)lo, (long long)hi);
    return LQ_OK;
}

lq_status lq_json_real(lq_ctx *ctx, const json_t *o, const char *key, bool required, double def, double *out) {
    const json_t *v = get(o, key);
    *out = def;
    if (!v) return required ? lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is missing", key) : LQ_OK;
    if (!json_is_number(v)) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is not a number", key);
    *out = json_number_value(v);
    return isfinite(*out) ? LQ_OK : lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is not finite", key);
}

lq_status lq_json_bool(lq_ctx *ctx, const json_t *o, const char *key, bool def, bool *out) {
    const json_t *v = get(o, key);
    *out = def;
    if (!v) return LQ_OK;
    if (!json_is_boolean(v)) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is not true or false", key);
    *out = json_is_true(v);
    return LQ_OK;
}

lq_status lq_json_string(lq_ctx *ctx, const json_t *o, const char *key, bool required, const char **out) {
    const json_t *v = get(o, key);
    *out = NULL;
    if (!v) return required ? lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is missing", key) : LQ_OK;
    if (!json_is_string(v)) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is not a string", key);
    *out = json_string_value(v);
    return LQ_OK;
}

/* jansson drops the callback's error after an object key, so the failure is remembered here. */
typedef struct dump { lq_buf *out; bool failed; } dump;

static int add_chunk(const char *p, size_t n, void *user) {
    dump *d = user;
    d->failed |= !lq_buf_add(d->out, p, n);
    return d->failed ? -1 : 0;
}

lq_status lq_json_dump(lq_ctx *ctx, const json_t *v, lq_buf *out) {
    *out = (lq_buf){0};
    dump d = {.out = out};
    if (json_dump_callback(v, add_chunk, &d, JSON_INDENT(2) | JSON_ENCODE_ANY) || d.failed || !lq_buf_add(out, "\n", 1)) {
        size_t n = out->n;
        lq_buf_free(out);
        return lq_oom(ctx, n);
    }
    return LQ_OK;
}
