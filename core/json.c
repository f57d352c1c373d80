/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "core/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool digit(char c) { return c >= '0' && c <= '9'; }

/* Length of the digits at p when they are an integer beyond int64, else 0. */
static size_t big_integer(const char *p, size_t n) {
    size_t len = 0;
    while (len < n && digit(p[len])) len++;
    if (len < n && (p[len] == '.' || p[len] == 'e' || p[len] == 'E')) return 0;
    return len > 19 || (len == 19 && memcmp(p, "9223372036854775807", 19) > 0) ? len : 0;
}

/* The same JSON with integers beyond int64 written as reals: transformers saves "no limit" as 1000000000000000019884624838656. */
static bool without_big_integers(const char *text, size_t n, lq_buf *out) {
    bool ok = true, quoted = false;
    for (size_t i = 0; i < n && ok;) {
        size_t len = 1, big = 0;
        if (text[i] == '"') quoted = !quoted;
        else if (quoted && text[i] == '\\' && i + 1 < n) len = 2;
        else if (!quoted && digit(text[i]) && !(big = len = big_integer(text + i, n - i)))
            for (len = 1; i + len < n && (digit(text[i + len]) || strchr("+-.eE", text[i + len] ? text[i + len] : '!')); len++) {}
        ok = lq_buf_add(out, text + i, len) && (!big || lq_buf_add(out, ".0", 2));
        i += len;
    }
    return ok;
}

lq_status lq_json_parse(lq_ctx *ctx, const char *name, const char *text, size_t n, json_t **out) {
    json_error_t e;
    *out = json_loadb(text, n, JSON_REJECT_DUPLICATES, &e);
    if (!*out && json_error_code(&e) == json_error_numeric_overflow) {
        lq_buf again = {0};
        bool ok = without_big_integers(text, n, &again);
        if (ok) *out = json_loadb(again.v, again.n, JSON_REJECT_DUPLICATES, &e);
        lq_buf_free(&again);
        if (!ok) return lq_oom(ctx, n);
    }
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
