/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "formats/config_splice.h"

#include <string.h>

typedef struct span { size_t key, value, end; } span; /* of a member: its key's quote, its value, behind its value */

static bool is_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

static size_t skip(const char *t, size_t i) {
    while (is_space(t[i])) i++;
    return i;
}

/* Behind the string that begins at i; the text parsed, so it ends. */
static size_t string_end(const char *t, size_t i) {
    for (i++; t[i] != '"'; i++)
        if (t[i] == '\\') i++;
    return i + 1;
}

static size_t value_end(const char *t, size_t i) {
    if (t[i] == '"') return string_end(t, i);
    if (t[i] != '{' && t[i] != '[') return i + strcspn(t + i, ",}] \n\r\t");
    for (size_t depth = 0;; i++) {
        if (t[i] == '"') i = string_end(t, i) - 1;
        else if (t[i] == '{' || t[i] == '[') depth++;
        else if ((t[i] == '}' || t[i] == ']') && !--depth) return i + 1;
    }
}

/* The member of the outermost object with this key. */
static bool find(const char *t, const char *key, span *out) {
    size_t i = skip(t, skip(t, 0) + 1), len = strlen(key);
    while (t[i] == '"') {
        span s = {.key = i};
        size_t key_end = string_end(t, i);
        s.value = skip(t, skip(t, key_end) + 1);
        s.end = value_end(t, s.value);
        if (key_end - i - 2 == len && !memcmp(t + i + 1, key, len)) {
            *out = s;
            return true;
        }
        i = skip(t, s.end);
        if (t[i] == ',') i = skip(t, i + 1);
    }
    return false;
}

/* The value's text, each line but the first two columns further right, as a member of a two-space file wants it. */
static lq_status indented(lq_ctx *ctx, const json_t *v, lq_buf *out) {
    lq_buf flat;
    LQ_TRY(lq_json_dump(ctx, v, &flat));
    bool ok = true;
    for (size_t i = 0; i + 1 < flat.n && ok; i++) /* without the last newline */
        ok = lq_buf_add(out, flat.v + i, 1) && (flat.v[i] != '\n' || lq_buf_add(out, "  ", 2));
    lq_buf_free(&flat);
    return ok ? LQ_OK : lq_oom(ctx, out->n);
}

/* text[at, end) gives way to `with` (a buffer of its own). */
static bool put(lq_buf *text, size_t at, size_t end, const lq_buf *with) {
    lq_buf out = {0};
    bool ok = lq_buf_add(&out, text->v, at) && (!with->n || lq_buf_add(&out, with->v, with->n)) && lq_buf_add(&out, text->v + end, text->n - end);
    if (!ok) {
        lq_buf_free(&out);
        return false;
    }
    lq_buf_free(text);
    *text = out;
    return true;
}

/* A member goes with the comma before it, the first one with the comma behind it. */
static bool drop(lq_buf *text, span s) {
    size_t at = s.key, end = s.end;
    while (is_space(text->v[at - 1])) at--;
    if (text->v[at - 1] == ',') at--;
    else {
        at = s.key;
        end = skip(text->v, end);
        if (text->v[end] == ',') end = skip(text->v, end + 1);
    }
    return put(text, at, end, &(lq_buf){0});
}

static bool append(lq_buf *text, const char *key, const lq_buf *value) {
    size_t brace = text->n;
    while (brace && text->v[brace - 1] != '}') brace--; /* it parsed, so only blanks follow the last brace */
    size_t end = --brace;
    while (end && is_space(text->v[end - 1])) end--;
    bool first = text->v[end - 1] == '{';
    lq_buf b = {0};
    bool ok = lq_buf_addf(&b, "%s\n  \"%s\": ", first ? "" : ",", key) && lq_buf_add(&b, value->v, value->n) && (end < brace || lq_buf_add(&b, "\n", 1)) &&
              put(text, end, end, &b);
    lq_buf_free(&b);
    return ok;
}

static lq_status change(lq_ctx *ctx, lq_buf *text, const json_t *doc, const char *key, const json_t *v) {
    span s = {0};
    lq_buf value = {0};
    bool there = find(text->v, key, &s);
    if (json_is_null(v) ? !there : json_equal(json_object_get(doc, key), v)) return LQ_OK;
    lq_status st = json_is_null(v) ? LQ_OK : indented(ctx, v, &value);
    if (st) return lq_buf_free(&value), st;
    bool ok = json_is_null(v) ? drop(text, s) : there ? put(text, s.value, s.end, &value) : append(text, key, &value);
    lq_buf_free(&value);
    return ok ? LQ_OK : lq_oom(ctx, text->n);
}

/* A key spelt with escapes is not found in the text: then the whole file is written anew. */
static lq_status check(lq_ctx *ctx, const json_t *doc, const json_t *changes, lq_buf *text) {
    json_t *want = json_copy((json_t *)doc), *got = NULL, *v;
    const char *key;
    lq_status st = want ? LQ_OK : lq_oom(ctx, text->n);
    json_object_foreach((json_t *)changes, key, v) {
        if (!st && json_is_null(v)) json_object_del(want, key);
        else if (!st && json_object_set(want, key, v)) st = lq_oom(ctx, text->n);
    }
    if (!st && (lq_json_parse(NULL, "config.json", text->v, text->n, &got) || !json_equal(got, want))) {
        lq_buf_free(text);
        st = lq_json_dump(ctx, want, text);
    }
    json_decref(want);
    json_decref(got);
    return st;
}

lq_status lq_config_splice(lq_ctx *ctx, const char *text, size_t n, const json_t *doc, const json_t *changes, lq_buf *out) {
    const char *key;
    json_t *v;
    *out = (lq_buf){0};
    lq_status st = lq_buf_add(out, text, n) ? LQ_OK : lq_oom(ctx, n);
    json_object_foreach((json_t *)changes, key, v)
        if (!st) st = change(ctx, out, doc, key, v);
    if (!st) st = check(ctx, doc, changes, out);
    if (st) lq_buf_free(out);
    return st;
}
