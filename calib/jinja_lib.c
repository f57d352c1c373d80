/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Operators, methods, functions, filters and tests: what Python and Jinja give for the values a chat template sees. Strings are
 * indexed by code points. */
#include "calib/jinja.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* ---- basics ---- */

bool jj_true(const jj *j, const json_t *v) {
    if (v == j->undefined || j->st) return false;
    switch (json_typeof(v)) {
    case JSON_NULL:
    case JSON_FALSE: return false;
    case JSON_TRUE: return true;
    case JSON_INTEGER: return json_integer_value(v) != 0;
    case JSON_REAL: return json_real_value(v) != 0;
    case JSON_STRING: return json_string_length(v) > 0;
    case JSON_ARRAY: return json_array_size(v) > 0;
    case JSON_OBJECT: return json_object_size(v) > 0;
    }
    return false;
}

static bool is_num(const json_t *v) { return json_is_number(v) || json_is_boolean(v); }
static double num_of(const json_t *v) { return json_is_boolean(v) ? json_is_true(v) : json_number_value(v); }
static const char *kind_of(const jj *j, const json_t *v) {
    static const char *const names[] = {"a mapping", "a list", "a string", "an integer", "a number", "true", "false", "none"};
    return v == j->undefined ? "undefined" : names[json_typeof(v)];
}

/* Own recursion: a template can build values that reach themselves, or small ones with endless paths. */
static bool equal(jj *j, const json_t *a, const json_t *b, int depth) {
    if (a == b) return true;
    if (is_num(a) && is_num(b)) return num_of(a) == num_of(b);
    if (a == j->undefined || b == j->undefined || json_typeof(a) != json_typeof(b) || !jj_step(j)) return false;
    if (depth > JJ_DEPTH) return jj_fail(j, LQ_ERR_UNSUPPORTED, "comparing values nested deeper than %d", JJ_DEPTH) == NULL;
    if (json_is_string(a)) return json_equal(a, b);
    if (json_is_array(a)) {
        bool same = json_array_size(a) == json_array_size(b);
        for (size_t i = 0; same && i < json_array_size(a); i++) same = equal(j, json_array_get(a, i), json_array_get(b, i), depth + 1);
        return same;
    }
    bool same = json_object_size(a) == json_object_size(b);
    for (void *it = json_object_iter((json_t *)(uintptr_t)a); same && it; it = json_object_iter_next((json_t *)(uintptr_t)a, it)) {
        const json_t *other = json_object_get(b, json_object_iter_key(it));
        same = other && equal(j, json_object_iter_value(it), other, depth + 1);
    }
    return same;
}
bool jj_equal(jj *j, const json_t *a, const json_t *b) { return equal(j, a, b, 0); }

static bool real_text(double v, lq_buf *out) { /* the shortest digits that read back, as Python's repr */
    char s[40];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(s, sizeof s, "%.*g", digits, v);
        if (strtod(s, NULL) == v) break;
    }
    return lq_buf_addf(out, strpbrk(s, ".en") ? "%s" : "%s.0", s);
}

bool jj_text(jj *j, const json_t *v, lq_buf *out) {
    bool ok = true;
    if (v == j->undefined) return true;
    switch (json_typeof(v)) {
    case JSON_NULL: ok = lq_buf_addf(out, "None"); break;
    case JSON_TRUE: ok = lq_buf_addf(out, "True"); break;
    case JSON_FALSE: ok = lq_buf_addf(out, "False"); break;
    case JSON_INTEGER: ok = lq_buf_addf(out, "%lld", (long long)json_integer_value(v)); break;
    case JSON_REAL: ok = real_text(json_real_value(v), out); break;
    case JSON_STRING: ok = lq_buf_add(out, json_string_value(v), json_string_length(v)); break;
    default: jj_fail(j, LQ_ERR_UNSUPPORTED, "writing %s without tojson is not supported", kind_of(j, v)); return false;
    }
    if (!ok) jj_fail(j, LQ_ERR_RESOURCE, "out of memory");
    return ok;
}

static json_t *take_text(jj *j, lq_buf *b) {
    json_t *v = jj_str(j, b->v, b->n);
    lq_buf_free(b);
    return v;
}

static json_t *concat(jj *j, const json_t *a, const json_t *b) {
    lq_buf s = {0};
    if (jj_text(j, a, &s)) jj_text(j, b, &s);
    return take_text(j, &s);
}

static json_t *integer(jj *j, long long v) { return jj_own(j, json_integer(v)); }

static json_t *arithmetic(jj *j, const char *op, const json_t *a, const json_t *b) {
    double x = num_of(a), y = num_of(b);
    bool whole = !json_is_real(a) && !json_is_real(b);
    long long p = (long long)x, q = (long long)y, r = 0;
    if (whole && json_is_integer(a)) p = json_integer_value(a);
    if (whole && json_is_integer(b)) q = json_integer_value(b);
    if (strchr("/%", *op) && y == 0) return jj_fail(j, LQ_ERR_FORMAT, "division by zero");
    if (whole && strcmp(op, "/")) {
        bool over = *op == '+' ? __builtin_add_overflow(p, q, &r) : *op == '-' ? __builtin_sub_overflow(p, q, &r)
                  : *op == '*' ? __builtin_mul_overflow(p, q, &r) : (p == INT64_MIN && q == -1);
        if (over) return jj_fail(j, LQ_ERR_UNSUPPORTED, "integers past 64 bits");
        if (*op == '/') r = p / q - ((p % q != 0) && ((p < 0) != (q < 0)));
        if (*op == '%') r = p % q + (p % q != 0 && ((p < 0) != (q < 0)) ? q : 0);
        return integer(j, r);
    }
    double z = *op == '+' ? x + y : *op == '-' ? x - y : *op == '*' ? x * y : !strcmp(op, "/") ? x / y : *op == '/' ? floor(x / y) : x - y * floor(x / y);
    return isfinite(z) ? jj_own(j, json_real(z)) : jj_fail(j, LQ_ERR_FORMAT, "a number that is not finite");
}

static json_t *repeat(jj *j, const json_t *s, json_int_t n) {
    lq_buf b = {0};
    size_t len = json_string_length(s);
    if (n > 0 && len && (uint64_t)n > JJ_BYTES / len) return jj_fail(j, LQ_ERR_UNSUPPORTED, "a string past %d bytes", JJ_BYTES);
    for (json_int_t i = 0; i < n && len; i++)
        if (!lq_buf_add(&b, json_string_value(s), len)) jj_fail(j, LQ_ERR_RESOURCE, "out of memory");
    return take_text(j, &b);
}

static json_t *compare(jj *j, const char *op, json_t *a, json_t *b) {
    double d;
    if (a == j->undefined || b == j->undefined) d = a == b ? 0 : 1;
    else if (!strcmp(op, "==") || !strcmp(op, "!=")) d = jj_equal(j, a, b) ? 0 : 1;
    else if (is_num(a) && is_num(b)) d = num_of(a) - num_of(b);
    else if (json_is_string(a) && json_is_string(b)) d = strcmp(json_string_value(a), json_string_value(b));
    else return jj_fail(j, LQ_ERR_FORMAT, "%s and %s have no order", kind_of(j, a), kind_of(j, b));
    return jj_bool(!strcmp(op, "==") ? d == 0 : !strcmp(op, "!=") ? d != 0 : !strcmp(op, "<") ? d < 0 : !strcmp(op, ">") ? d > 0
                   : !strcmp(op, "<=") ? d <= 0 : d >= 0);
}

json_t *jj_binary(jj *j, const char *op, json_t *a, json_t *b) {
    if (strchr("=!<>", *op)) return compare(j, op, a, b);
    if (*op == '~') return concat(j, a, b);
    if (a == j->undefined || b == j->undefined) return jj_fail(j, LQ_ERR_FORMAT, "'%s' with something undefined", op);
    if (is_num(a) && is_num(b)) return arithmetic(j, op, a, b);
    if (*op == '+' && json_is_string(a) && json_is_string(b)) return concat(j, a, b);
    if (*op == '*' && json_is_string(a) && json_is_integer(b)) return repeat(j, a, json_integer_value(b));
    if (*op == '+' && json_is_array(a) && json_is_array(b)) {
        json_t *v = jj_container(j, json_copy(a));
        if (!j->st) json_array_extend(v, b);
        j->bytes += 8 * json_array_size(v);
        return v;
    }
    return jj_fail(j, LQ_ERR_FORMAT, "%s %s %s", kind_of(j, a), op, kind_of(j, b));
}

/* memmem; NULL when absent */
static const char *find(const char *s, size_t n, const char *what, size_t k) {
    for (size_t i = 0; i + k <= n; i++)
        if (!memcmp(s + i, what, k)) return s + i;
    return NULL;
}

json_t *jj_in(jj *j, json_t *a, json_t *b) {
    size_t i;
    json_t *v;
    if (b == j->undefined) return jj_bool(false);
    if (json_is_object(b)) return jj_bool(json_is_string(a) && json_object_get(b, json_string_value(a)));
    if (json_is_string(b)) {
        if (!json_is_string(a) || a == j->undefined) return jj_fail(j, LQ_ERR_FORMAT, "%s in a string", kind_of(j, a));
        return jj_bool(find(json_string_value(b), json_string_length(b), json_string_value(a), json_string_length(a)) != NULL);
    }
    if (!json_is_array(b)) return jj_fail(j, LQ_ERR_FORMAT, "nothing is in %s", kind_of(j, b));
    json_array_foreach(b, i, v)
        if (jj_equal(j, a, v)) return jj_bool(true);
    return jj_bool(false);
}

/* ---- sequences ---- */

static size_t char_len(unsigned char c) { return c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : c >= 0xC0 ? 2 : 1; }

/* A string's code points as one-character strings. */
static json_t *characters(jj *j, const json_t *s) {
    json_t *list = jj_own(j, json_array());
    const char *p = json_string_value(s), *end = p + json_string_length(s);
    for (; p < end && !j->st; p += char_len((unsigned char)*p)) {
        json_array_append_new(list, json_stringn(p, char_len((unsigned char)*p)));
        j->bytes += 64;
        if (j->bytes > JJ_BYTES) jj_fail(j, LQ_ERR_UNSUPPORTED, "it makes more than %d bytes of values", JJ_BYTES);
    }
    return list;
}

static json_t *join(jj *j, const json_t *list, const char *sep, size_t n) {
    lq_buf b = {0};
    size_t i;
    json_t *v;
    json_array_foreach(list, i, v) {
        if (i && n && !lq_buf_add(&b, sep, n)) jj_fail(j, LQ_ERR_RESOURCE, "out of memory");
        if (j->st || !jj_text(j, v, &b)) break;
    }
    return take_text(j, &b);
}

json_t *jj_index(jj *j, json_t *v, json_t *key) {
    json_t *found = NULL;
    if (j->st) return j->undefined;
    if (v == j->undefined) return jj_fail(j, LQ_ERR_FORMAT, "an index into something undefined");
    if (json_is_object(v) && json_is_string(key)) found = json_object_get(v, json_string_value(key));
    if (json_is_string(v) && json_is_integer(key)) v = characters(j, v);
    if (json_is_array(v) && json_is_integer(key)) {
        json_int_t i = json_integer_value(key), n = (json_int_t)json_array_size(v);
        if (i < 0) i += n;
        if (i >= 0 && i < n) found = json_array_get(v, (size_t)i);
    }
    return found ? found : j->undefined;
}

static bool bound(jj *j, json_t *v, json_int_t n, json_int_t lo, json_int_t hi, json_int_t *out) {
    if (v == j->undefined || json_is_null(v)) return true;
    if (!json_is_integer(v)) return jj_fail(j, LQ_ERR_FORMAT, "a slice with %s", kind_of(j, v)) == NULL;
    json_int_t i = json_integer_value(v);
    if (i < 0 && i >= -n - 1) i += n;
    *out = i < lo ? lo : i > hi ? hi : i;
    return true;
}

json_t *jj_slice(jj *j, json_t *v, json_t *lo, json_t *hi, json_t *step) {
    if (j->st) return j->undefined;
    bool text = json_is_string(v) && v != j->undefined;
    json_t *from = text ? characters(j, v) : v, *to = jj_own(j, json_array());
    if (!json_is_array(from)) return jj_fail(j, LQ_ERR_FORMAT, "a slice of %s", kind_of(j, v));
    json_int_t n = (json_int_t)json_array_size(from), s = 1;
    if (step != j->undefined && !json_is_null(step)) s = json_integer_value(step);
    if (!s || s == INT64_MIN) return jj_fail(j, LQ_ERR_FORMAT, "a slice in steps of 0");
    json_int_t a = s > 0 ? 0 : n - 1, b = s > 0 ? n : -1;
    if (!bound(j, lo, n, s > 0 ? 0 : -1, s > 0 ? n : n - 1, &a) || !bound(j, hi, n, s > 0 ? 0 : -1, s > 0 ? n : n - 1, &b)) return j->undefined;
    for (json_int_t i = a; s > 0 ? i < b : i > b; i += s) {
        json_array_append(to, json_array_get(from, (size_t)i));
        if (s > n || s < -n) break; /* one step leaves the list; do not overflow */
    }
    j->bytes += 8 * json_array_size(to);
    return text ? join(j, to, "", 0) : to;
}

static json_t *pairs(jj *j, json_t *o, int which) { /* 0: keys, 1: values, 2: [key, value] */
    json_t *list = jj_container(j, json_array()), *v;
    const char *key;
    json_object_foreach(o, key, v)
        if (which == 1) json_array_append(list, v);
        else json_array_append_new(list, which ? json_pack("[s, O]", key, v) : json_string(key));
    j->bytes += 64 * json_array_size(list);
    return list;
}

json_t *jj_items(jj *j, json_t *v) {
    if (v == j->undefined) return jj_own(j, json_array());
    if (json_is_array(v)) return v;
    if (json_is_object(v)) return pairs(j, v, 0);
    if (json_is_string(v)) return characters(j, v);
    return jj_fail(j, LQ_ERR_FORMAT, "a loop over %s", kind_of(j, v));
}

/* ---- strings ---- */

static bool py_space(utf8proc_int32_t c) {
    return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) ||
           c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

/* Is the character at p one to strip? set NULL: white space. */
static bool strippable(const char *p, size_t len, const char *set, size_t n) {
    utf8proc_int32_t c;
    if (!set) return utf8proc_iterate((const utf8proc_uint8_t *)p, (utf8proc_ssize_t)len, &c) > 0 && py_space(c);
    for (size_t i = 0; i < n; i += char_len((unsigned char)set[i]))
        if (char_len((unsigned char)set[i]) == len && !memcmp(set + i, p, len)) return true;
    return false;
}

static json_t *strip(jj *j, const json_t *s, const json_t *set, bool left, bool right) {
    const char *p = json_string_value(s), *end = p + json_string_length(s), *chars = NULL;
    size_t n = 0;
    if (set && set != j->undefined && json_is_string(set)) {
        chars = json_string_value(set);
        n = json_string_length(set);
    }
    while (left && p < end && strippable(p, char_len((unsigned char)*p), chars, n)) p += char_len((unsigned char)*p);
    while (right && p < end) {
        const char *last = end - 1;
        while (last > p && ((unsigned char)*last & 0xC0) == 0x80) last--;
        if (!strippable(last, (size_t)(end - last), chars, n)) break;
        end = last;
    }
    return jj_str(j, p, (size_t)(end - p));
}

typedef enum letters { UPPER, LOWER, TITLE, CAPITALIZE } letters;

static json_t *recase(jj *j, const json_t *s, letters how) {
    lq_buf b = {0};
    const char *p = json_string_value(s), *end = p + json_string_length(s);
    for (bool start = true; p < end && !j->st;) {
        utf8proc_int32_t c;
        utf8proc_uint8_t to[4];
        utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)p, end - p, &c);
        if (n <= 0) break;
        bool up = how == UPPER || (how != LOWER && start);
        utf8proc_int32_t d = up ? utf8proc_toupper(c) : utf8proc_tolower(c);
        start = how == TITLE && utf8proc_toupper(c) == utf8proc_tolower(c);
        p += n;
        if (!lq_buf_add(&b, to, (size_t)utf8proc_encode_char(d, to))) jj_fail(j, LQ_ERR_RESOURCE, "out of memory");
    }
    return take_text(j, &b);
}

static json_t *split_space(jj *j, const json_t *s) {
    json_t *list = jj_own(j, json_array());
    const char *p = json_string_value(s), *end = p + json_string_length(s);
    while (p < end) {
        while (p < end && strippable(p, char_len((unsigned char)*p), NULL, 0)) p += char_len((unsigned char)*p);
        const char *from = p;
        while (p < end && !strippable(p, char_len((unsigned char)*p), NULL, 0)) p += char_len((unsigned char)*p);
        if (p > from) json_array_append(list, jj_str(j, from, (size_t)(p - from)));
    }
    return list;
}

static json_t *split(jj *j, const json_t *s, const jj_args *a) {
    json_t *list = jj_own(j, json_array());
    long long most = a->n > 1 && json_is_integer(a->v[1]) ? json_integer_value(a->v[1]) : -1;
    if (!a->n || json_is_null(a->v[0])) return most < 0 ? split_space(j, s) : jj_fail(j, LQ_ERR_UNSUPPORTED, "split(None, n) is not supported");
    const char *p = json_string_value(s), *end = p + json_string_length(s), *at;
    size_t k = json_string_length(a->v[0]);
    if (!json_is_string(a->v[0]) || !k) return jj_fail(j, LQ_ERR_FORMAT, "split at %s", k ? kind_of(j, a->v[0]) : "nothing");
    while (most-- && !j->st && (at = find(p, (size_t)(end - p), json_string_value(a->v[0]), k))) {
        json_array_append(list, jj_str(j, p, (size_t)(at - p)));
        p = at + k;
    }
    json_array_append(list, jj_str(j, p, (size_t)(end - p)));
    return list;
}

static json_t *split_lines(jj *j, const json_t *s) {
    json_t *list = jj_own(j, json_array());
    const char *p = json_string_value(s), *end = p + json_string_length(s);
    while (p < end && !j->st) {
        const char *nl = p;
        while (nl < end && *nl != '\n' && *nl != '\r') nl++;
        json_array_append(list, jj_str(j, p, (size_t)(nl - p)));
        p = nl < end ? nl + 1 + (*nl == '\r' && nl + 1 < end && nl[1] == '\n') : end;
    }
    return list;
}

static json_t *replace(jj *j, const json_t *s, const jj_args *a) {
    if (a->n < 2 || !json_is_string(a->v[0]) || !json_is_string(a->v[1]) || !json_string_length(a->v[0]))
        return jj_fail(j, LQ_ERR_FORMAT, "replace wants two strings, the first not empty");
    jj_args cut = {{a->v[0]}, 1, a->kw};
    if (a->n > 2) {
        cut.v[1] = a->v[2];
        cut.n = 2;
    }
    json_t *parts = split(j, s, &cut);
    uint64_t total = json_array_size(parts) * (uint64_t)json_string_length(a->v[1]);
    if (total > JJ_BYTES) return jj_fail(j, LQ_ERR_UNSUPPORTED, "a string past %d bytes", JJ_BYTES);
    return join(j, parts, json_string_value(a->v[1]), json_string_length(a->v[1]));
}

static bool begins(const json_t *s, const json_t *with, bool at_end) {
    size_t n = json_string_length(s), k = json_string_length(with);
    return json_is_string(with) && k <= n && !memcmp(json_string_value(s) + (at_end ? n - k : 0), json_string_value(with), k);
}

static json_t *begins_any(jj *j, const json_t *s, const jj_args *a, bool at_end) {
    size_t i;
    json_t *v;
    if (!a->n) return jj_fail(j, LQ_ERR_FORMAT, "startswith and endswith want a string");
    if (!json_is_array(a->v[0])) return jj_bool(begins(s, a->v[0], at_end));
    json_array_foreach(a->v[0], i, v)
        if (begins(s, v, at_end)) return jj_bool(true);
    return jj_bool(false);
}

static json_t *position(jj *j, const json_t *s, const jj_args *a) {
    if (!a->n || !json_is_string(a->v[0])) return jj_fail(j, LQ_ERR_FORMAT, "find wants a string");
    const char *p = json_string_value(s), *at = find(p, json_string_length(s), json_string_value(a->v[0]), json_string_length(a->v[0]));
    long long n = 0;
    for (; at && p < at; p += char_len((unsigned char)*p)) n++;
    return integer(j, at ? n : -1);
}

static json_t *string_method(jj *j, json_t *s, const char *name, const jj_args *a) {
    json_t *first = a->n ? a->v[0] : NULL;
    if (!strcmp(name, "strip")) return strip(j, s, first, true, true);
    if (!strcmp(name, "lstrip")) return strip(j, s, first, true, false);
    if (!strcmp(name, "rstrip")) return strip(j, s, first, false, true);
    if (!strcmp(name, "split")) return split(j, s, a);
    if (!strcmp(name, "splitlines")) return split_lines(j, s);
    if (!strcmp(name, "startswith")) return begins_any(j, s, a, false);
    if (!strcmp(name, "endswith")) return begins_any(j, s, a, true);
    if (!strcmp(name, "replace")) return replace(j, s, a);
    if (!strcmp(name, "upper")) return recase(j, s, UPPER);
    if (!strcmp(name, "lower")) return recase(j, s, LOWER);
    if (!strcmp(name, "title")) return recase(j, s, TITLE);
    if (!strcmp(name, "capitalize")) return recase(j, s, CAPITALIZE);
    if (!strcmp(name, "find")) return position(j, s, a);
    if (!strcmp(name, "join") && first) return join(j, jj_items(j, first), json_string_value(s), json_string_length(s));
    return jj_fail(j, LQ_ERR_UNSUPPORTED, "method '%s' of a string is not supported", name);
}

static json_t *mapping_method(jj *j, json_t *o, const char *name, const jj_args *a) {
    if (!strcmp(name, "items")) return pairs(j, o, 2);
    if (!strcmp(name, "keys")) return pairs(j, o, 0);
    if (!strcmp(name, "values")) return pairs(j, o, 1);
    if (!strcmp(name, "get") && a->n && json_is_string(a->v[0])) {
        json_t *v = json_object_get(o, json_string_value(a->v[0]));
        return v ? v : a->n > 1 ? a->v[1] : json_null();
    }
    return jj_fail(j, LQ_ERR_UNSUPPORTED, "method '%s' of a mapping is not supported", name);
}

json_t *jj_method(jj *j, json_t *self, const char *name, const jj_args *a) {
    if (self == j->undefined) return jj_fail(j, LQ_ERR_FORMAT, "method '%s' of something undefined", name);
    if (json_is_string(self)) return string_method(j, self, name, a);
    if (json_is_object(self)) return mapping_method(j, self, name, a);
    return jj_fail(j, LQ_ERR_UNSUPPORTED, "method '%s' of %s is not supported", name, kind_of(j, self));
}

static json_t *range(jj *j, const jj_args *a) {
    json_int_t v[3] = {0, 0, 1};
    for (size_t i = 0; i < a->n && i < 3; i++) v[a->n == 1 ? 1 : i] = json_integer_value(a->v[i]);
    json_t *list = jj_own(j, json_array());
    if (!a->n || !v[2]) return jj_fail(j, LQ_ERR_FORMAT, "range wants a number and a step that is not 0");
    for (json_int_t i = v[0]; v[2] > 0 ? i < v[1] : i > v[1];) {
        if (json_array_size(list) >= 100000) return jj_fail(j, LQ_ERR_UNSUPPORTED, "a range of more than 100000");
        json_array_append(list, integer(j, i));
        if (__builtin_add_overflow(i, v[2], &i)) break;
    }
    return list;
}

json_t *jj_function(jj *j, const char *name, const jj_args *a) {
    if (!strcmp(name, "raise_exception"))
        return jj_fail(j, LQ_ERR_FORMAT, "it refuses the messages: %s", a->n && json_is_string(a->v[0]) ? json_string_value(a->v[0]) : "");
    if (!strcmp(name, "range")) return range(j, a);
    if (!strcmp(name, "dict")) return a->kw;
    return jj_fail(j, LQ_ERR_UNSUPPORTED, "function '%s' is not supported", name);
}
