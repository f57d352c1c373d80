/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Filters and tests by name. */
#include "calib/jinja.h"

#include <stdlib.h>
#include <string.h>

static int add_some(const char *p, size_t n, void *user) {
    lq_buf *b = user;
    return b->n + n > JJ_BYTES || !lq_buf_add(b, p, n) ? -1 : 0; /* a small value can have endless paths */
}

static json_t *dump(jj *j, const json_t *v, const jj_args *a) {
    const json_t *indent = a->n ? a->v[0] : json_object_get(a->kw, "indent");
    size_t flags = JSON_ENCODE_ANY | (json_is_integer(indent) ? JSON_INDENT((size_t)(json_integer_value(indent) & 31)) : 0);
    lq_buf b = {0}; /* ", " and ": " between, as Python's json.dumps(ensure_ascii=False) */
    json_t *r = json_dump_callback(v, add_some, &b, flags) ? jj_fail(j, LQ_ERR_UNSUPPORTED, "tojson of a value without end") : jj_str(j, b.v, b.n);
    lq_buf_free(&b);
    return r;
}

static json_t *length(jj *j, json_t *v) {
    if (json_is_array(v)) return jj_own(j, json_integer((json_int_t)json_array_size(v)));
    if (json_is_object(v)) return jj_own(j, json_integer((json_int_t)json_object_size(v)));
    if (v == j->undefined) return jj_own(j, json_integer(0));
    if (json_is_string(v)) return jj_own(j, json_integer((json_int_t)json_array_size(jj_items(j, v))));
    return jj_fail(j, LQ_ERR_FORMAT, "the length of something that has none");
}

static json_t *reverse(jj *j, json_t *v) {
    return jj_slice(j, v, j->undefined, j->undefined, jj_own(j, json_integer(-1)));
}

static json_t *join(jj *j, json_t *v, const jj_args *a) {
    json_t *sep = a->n ? a->v[0] : jj_str(j, "", 0);
    jj_args one = {{v}, 1, a->kw};
    if (!json_is_string(sep)) return jj_fail(j, LQ_ERR_FORMAT, "join wants a string");
    return jj_method(j, sep, "join", &one);
}

/* map('filter') and map(attribute='name') */
static json_t *map(jj *j, json_t *v, const jj_args *a) {
    json_t *list = jj_own(j, json_array()), *key = json_object_get(a->kw, "attribute"), *x;
    jj_args rest = {.n = 0, .kw = a->kw};
    size_t i;
    for (size_t k = 1; k < a->n; k++) rest.v[rest.n++] = a->v[k];
    if (!key && (!a->n || !json_is_string(a->v[0]))) return jj_fail(j, LQ_ERR_UNSUPPORTED, "map without a filter or an attribute");
    json_array_foreach(jj_items(j, v), i, x) {
        if (!jj_step(j)) break;
        json_array_append(list, key ? jj_index(j, x, key) : jj_filter(j, json_string_value(a->v[0]), x, &rest));
    }
    return list;
}

/* select, reject, selectattr, rejectattr: by a test, or by truth */
static json_t *choose(jj *j, json_t *v, const jj_args *a, bool attr, bool want) {
    json_t *list = jj_own(j, json_array()), *x;
    jj_args rest = {.n = 0, .kw = a->kw};
    size_t i, first = attr;
    if (attr && !a->n) return jj_fail(j, LQ_ERR_FORMAT, "an attribute is missing");
    for (size_t k = first + 1; k < a->n; k++) rest.v[rest.n++] = a->v[k];
    json_array_foreach(jj_items(j, v), i, x) {
        if (!jj_step(j)) break;
        json_t *y = attr ? jj_index(j, x, a->v[0]) : x;
        bool is = a->n > first && json_is_string(a->v[first]) ? jj_test(j, json_string_value(a->v[first]), y, &rest) : jj_true(j, y);
        if (is == want) json_array_append(list, x);
    }
    return list;
}

static json_t *to_int(jj *j, json_t *v) {
    if (json_is_string(v)) return jj_own(j, json_integer(strtoll(json_string_value(v), NULL, 10)));
    return jj_own(j, json_integer(json_is_boolean(v) ? json_is_true(v) : (json_int_t)json_number_value(v)));
}

static json_t *ends(jj *j, json_t *v, bool last) {
    json_t *list = jj_items(j, v);
    size_t n = json_array_size(list);
    return n ? json_array_get(list, last ? n - 1 : 0) : j->undefined;
}

static json_t *text_of(jj *j, json_t *v) {
    if (json_is_string(v) && v != j->undefined) return v;
    lq_buf b = {0};
    jj_text(j, v, &b);
    json_t *s = jj_str(j, b.v, b.n);
    lq_buf_free(&b);
    return s;
}

json_t *jj_filter(jj *j, const char *name, json_t *v, const jj_args *a) {
    static const char *const of_strings[][2] = {{"trim", "strip"}, {"upper", "upper"}, {"lower", "lower"}, {"title", "title"},
                                                {"capitalize", "capitalize"}, {"replace", "replace"}};
    for (size_t i = 0; i < sizeof of_strings / sizeof *of_strings; i++)
        if (!strcmp(name, of_strings[i][0])) return jj_method(j, text_of(j, v), of_strings[i][1], a);
    if (!strcmp(name, "default") || !strcmp(name, "d")) {
        bool falsy = (a->n > 1 && jj_true(j, a->v[1])) || jj_true(j, json_object_get(a->kw, "boolean") ? json_object_get(a->kw, "boolean") : json_false());
        json_t *other = a->n ? a->v[0] : jj_str(j, "", 0);
        return v == j->undefined || (falsy && !jj_true(j, v)) ? other : v;
    }
    if (!strcmp(name, "length") || !strcmp(name, "count")) return length(j, v);
    if (!strcmp(name, "tojson")) return v == j->undefined ? jj_fail(j, LQ_ERR_FORMAT, "tojson of something undefined") : dump(j, v, a);
    if (!strcmp(name, "string")) return text_of(j, v);
    if (!strcmp(name, "safe")) return v;
    if (!strcmp(name, "join")) return join(j, v, a);
    if (!strcmp(name, "first")) return ends(j, v, false);
    if (!strcmp(name, "last")) return ends(j, v, true);
    if (!strcmp(name, "list")) return jj_items(j, v);
    if (!strcmp(name, "reverse")) return reverse(j, v);
    if (!strcmp(name, "int")) return to_int(j, v);
    if (!strcmp(name, "items")) return v == j->undefined ? jj_items(j, v) : jj_method(j, v, "items", a);
    if (!strcmp(name, "map")) return map(j, v, a);
    if (!strcmp(name, "select")) return choose(j, v, a, false, true);
    if (!strcmp(name, "reject")) return choose(j, v, a, false, false);
    if (!strcmp(name, "selectattr")) return choose(j, v, a, true, true);
    if (!strcmp(name, "rejectattr")) return choose(j, v, a, true, false);
    return jj_fail(j, LQ_ERR_UNSUPPORTED, "filter '%s' is not supported", name);
}

bool jj_test(jj *j, const char *name, json_t *v, const jj_args *a) {
    bool none = v == j->undefined;
    if (!strcmp(name, "defined")) return !none;
    if (!strcmp(name, "undefined")) return none;
    if (!strcmp(name, "none")) return !none && json_is_null(v);
    if (!strcmp(name, "string")) return !none && json_is_string(v);
    if (!strcmp(name, "number")) return !none && (json_is_number(v) || json_is_boolean(v));
    if (!strcmp(name, "integer")) return !none && json_is_integer(v);
    if (!strcmp(name, "float")) return !none && json_is_real(v);
    if (!strcmp(name, "boolean")) return !none && json_is_boolean(v);
    if (!strcmp(name, "true")) return !none && json_is_true(v);
    if (!strcmp(name, "false")) return !none && json_is_false(v);
    if (!strcmp(name, "mapping")) return !none && json_is_object(v);
    if (!strcmp(name, "iterable")) return none || json_is_string(v) || json_is_array(v) || json_is_object(v);
    if (!strcmp(name, "sequence")) return none || json_is_string(v) || json_is_array(v) || json_is_object(v);
    if (!strcmp(name, "odd") || !strcmp(name, "even")) return json_is_integer(v) && (json_integer_value(v) & 1) == (*name == 'o');
    if (!a->n) return jj_fail(j, LQ_ERR_UNSUPPORTED, "test '%s' is not supported", name) == NULL;
    if (!strcmp(name, "in")) return jj_true(j, jj_in(j, v, a->v[0]));
    if (!strcmp(name, "divisibleby"))
        return json_is_integer(v) && json_integer_value(a->v[0]) > 0 && json_integer_value(v) % json_integer_value(a->v[0]) == 0;
    static const char *const compares[][2] = {{"eq", "=="}, {"equalto", "=="}, {"sameas", "=="}, {"ne", "!="}, {"lt", "<"}, {"gt", ">"}, {"le", "<="}, {"ge", ">="}};
    for (size_t i = 0; i < sizeof compares / sizeof *compares; i++)
        if (!strcmp(name, compares[i][0])) return jj_true(j, jj_binary(j, compares[i][1], v, a->v[0]));
    return jj_fail(j, LQ_ERR_UNSUPPORTED, "test '%s' is not supported", name) == NULL;
}
