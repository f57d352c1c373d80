/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The tree, run. Scopes as in Jinja: a for loop's body has its own, an if has none. */
#include "calib/jinja.h"

#include <stdio.h>
#include <string.h>

json_t *jj_fail(jj *j, lq_status st, const char *fmt, ...) {
    if (j->st) return j->undefined;
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    j->st = lq_fail(j->ctx, st, "chat template line %u: %s", j->line, text);
    return j->undefined;
}

json_t *jj_own(jj *j, json_t *fresh) {
    if (!fresh || json_array_append_new(j->pool, fresh)) return jj_fail(j, LQ_ERR_RESOURCE, "out of memory");
    j->bytes += 64 + (json_is_string(fresh) ? json_string_length(fresh) : 0);
    if (j->bytes > JJ_BYTES) return jj_fail(j, LQ_ERR_UNSUPPORTED, "it makes more than %d bytes of values", JJ_BYTES);
    return fresh;
}

json_t *jj_container(jj *j, json_t *fresh) {
    json_t *v = jj_own(j, fresh);
    if (++j->containers > JJ_CONTAINERS) return jj_fail(j, LQ_ERR_UNSUPPORTED, "it makes more than %d lists and mappings", JJ_CONTAINERS);
    return v;
}

json_t *jj_str(jj *j, const char *s, size_t n) { return jj_own(j, json_stringn(n ? s : "", n)); }
json_t *jj_bool(bool b) { return json_boolean(b); }

bool jj_step(jj *j) {
    if (!j->st && ++j->steps > JJ_STEPS) jj_fail(j, LQ_ERR_UNSUPPORTED, "it runs for more than %d steps", JJ_STEPS);
    return !j->st;
}

/* ---- variables ---- */

static json_t *lookup(jj *j, const char *name) {
    for (size_t i = j->n_scope; i-- > 0;) {
        json_t *v = json_object_get(j->scope[i], name);
        if (v) return v;
    }
    return j->undefined;
}

static void assign(jj *j, const char *name, json_t *v) {
    if (!j->st && json_object_set(j->scope[j->n_scope - 1], name, v)) jj_fail(j, LQ_ERR_RESOURCE, "out of memory");
}

static bool push_scope(jj *j) {
    if (j->n_scope == JJ_SCOPES) jj_fail(j, LQ_ERR_UNSUPPORTED, "loops nested deeper than %d", JJ_SCOPES);
    json_t *s = j->st ? NULL : json_object();
    if (!s) return jj_fail(j, LQ_ERR_RESOURCE, "out of memory") == NULL;
    j->scope[j->n_scope++] = s;
    return true;
}
static void pop_scope(jj *j) { json_decref(j->scope[--j->n_scope]); }

static void assign_targets(jj *j, const jj_node *targets, json_t *v) {
    if (!targets->next) {
        assign(j, targets->s, v);
        return;
    }
    size_t n = 0, i = 0;
    for (const jj_node *t = targets; t; t = t->next) n++;
    if (!json_is_array(v) || json_array_size(v) != n) {
        jj_fail(j, LQ_ERR_FORMAT, "%zu names, but the value has %zu parts", n, json_array_size(v));
        return;
    }
    for (const jj_node *t = targets; t; t = t->next) assign(j, t->s, json_array_get(v, i++));
}

/* ---- expressions ---- */

static void eval_args(jj *j, const jj_node *list, jj_args *a) {
    *a = (jj_args){.kw = jj_own(j, json_object())};
    for (const jj_node *e = list; e && !j->st; e = e->next) {
        if (e->kind == JJ_KWARG) json_object_set(a->kw, e->s, jj_eval(j, e->a));
        else if (a->n == sizeof a->v / sizeof *a->v) jj_fail(j, LQ_ERR_UNSUPPORTED, "more than 8 arguments");
        else a->v[a->n++] = jj_eval(j, e);
    }
}

static json_t *attribute(jj *j, const jj_node *e) {
    json_t *v = jj_eval(j, e->a);
    if (v == j->undefined) return jj_fail(j, LQ_ERR_FORMAT, "'%s' of something undefined", e->s);
    json_t *field = json_object_get(v, e->s);
    return field ? field : j->undefined;
}

static json_t *make_namespace(jj *j, const jj_args *a) {
    if (j->n_ns == JJ_NAMESPACES) return jj_fail(j, LQ_ERR_UNSUPPORTED, "more than %d namespaces", JJ_NAMESPACES);
    j->containers++;
    return j->ns[j->n_ns++] = a->kw;
}

static json_t *call(jj *j, const jj_node *e) {
    jj_args a;
    if (e->a->kind == JJ_ATTR) {
        json_t *self = jj_eval(j, e->a->a);
        eval_args(j, e->list, &a);
        return j->st ? j->undefined : jj_method(j, self, e->a->s, &a);
    }
    if (e->a->kind != JJ_VAR) return jj_fail(j, LQ_ERR_UNSUPPORTED, "only names and methods can be called");
    eval_args(j, e->list, &a);
    if (j->st) return j->undefined;
    return strcmp(e->a->s, "namespace") ? jj_function(j, e->a->s, &a) : make_namespace(j, &a);
}

static json_t *list_value(jj *j, const jj_node *e) {
    json_t *v = jj_container(j, json_array());
    for (const jj_node *i = e->list; i && !j->st; i = i->next) json_array_append(v, jj_eval(j, i));
    return v;
}

static json_t *dict_value(jj *j, const jj_node *e) {
    json_t *v = jj_container(j, json_object());
    for (const jj_node *i = e->list; i && !j->st; i = i->next) {
        json_t *key = jj_eval(j, i->a), *value = jj_eval(j, i->b);
        if (!json_is_string(key)) return jj_fail(j, LQ_ERR_UNSUPPORTED, "a mapping's key must be a string");
        json_object_set(v, json_string_value(key), value);
    }
    return v;
}

static json_t *sign(jj *j, const jj_node *e) {
    json_t *v = jj_eval(j, e->a);
    if (!json_is_number(v)) return j->st ? j->undefined : jj_fail(j, LQ_ERR_FORMAT, "a sign before something that is no number");
    if (e->kind == JJ_POS) return v;
    if (json_is_real(v)) return jj_own(j, json_real(-json_real_value(v)));
    json_int_t i = json_integer_value(v);
    return jj_own(j, json_integer(i == INT64_MIN ? i : -i));
}

static json_t *binary(jj *j, const jj_node *e) {
    json_t *a = jj_eval(j, e->a), *b = jj_eval(j, e->b);
    if (j->st) return j->undefined;
    j->line = e->line;
    if (!strcmp(e->s, "in")) return jj_in(j, a, b);
    if (!strcmp(e->s, "not in")) return jj_bool(!jj_true(j, jj_in(j, a, b)));
    return jj_binary(j, e->s, a, b);
}

static json_t *eval_here(jj *j, const jj_node *e) {
    jj_args a;
    json_t *v;
    switch (e->kind) {
    case JJ_CONST: return e->v;
    case JJ_VAR: return lookup(j, e->s);
    case JJ_ATTR: return attribute(j, e);
    case JJ_INDEX: v = jj_eval(j, e->a); return jj_index(j, v, jj_eval(j, e->b));
    case JJ_SLICE:
        v = jj_eval(j, e->a);
        return jj_slice(j, v, e->b ? jj_eval(j, e->b) : j->undefined, e->c ? jj_eval(j, e->c) : j->undefined, e->d ? jj_eval(j, e->d) : j->undefined);
    case JJ_CALL: return call(j, e);
    case JJ_FILTER: v = jj_eval(j, e->a); eval_args(j, e->list, &a); return j->st ? j->undefined : jj_filter(j, e->s, v, &a);
    case JJ_TEST: v = jj_eval(j, e->a); eval_args(j, e->list, &a); return j->st ? j->undefined : jj_bool(jj_test(j, e->s, v, &a));
    case JJ_NOT: return jj_bool(!jj_true(j, jj_eval(j, e->a)));
    case JJ_NEG:
    case JJ_POS: return sign(j, e);
    case JJ_BIN: return binary(j, e);
    case JJ_AND: v = jj_eval(j, e->a); return jj_true(j, v) ? jj_eval(j, e->b) : v;
    case JJ_OR: v = jj_eval(j, e->a); return jj_true(j, v) ? v : jj_eval(j, e->b);
    case JJ_CHOOSE: return jj_true(j, jj_eval(j, e->a)) ? jj_eval(j, e->b) : e->c ? jj_eval(j, e->c) : j->undefined;
    case JJ_LIST: return list_value(j, e);
    case JJ_DICT: return dict_value(j, e);
    default: return jj_fail(j, LQ_ERR_INTERNAL, "no expression");
    }
}

json_t *jj_eval(jj *j, const jj_node *e) {
    if (!jj_step(j)) return j->undefined;
    j->line = e->line;
    if (++j->depth > JJ_RUN_DEPTH) return jj_fail(j, LQ_ERR_UNSUPPORTED, "an expression of more than %d parts", JJ_RUN_DEPTH);
    json_t *v = eval_here(j, e);
    j->depth--;
    return v;
}

/* ---- statements ---- */

typedef enum flow { GO, BREAK, CONTINUE } flow;
static flow run(jj *j, const jj_node *body);

/* What the loop walks: with a condition, the elements for which it holds. */
static json_t *loop_items(jj *j, const jj_node *f) {
    json_t *all = jj_items(j, jj_eval(j, f->a)), *some, *v;
    size_t i;
    if (!f->d || j->st) return all;
    some = jj_own(j, json_array());
    if (!push_scope(j)) return all;
    json_array_foreach(all, i, v) {
        assign_targets(j, f->list, v);
        if (jj_true(j, jj_eval(j, f->d))) json_array_append(some, v);
        if (j->st) break;
    }
    pop_scope(j);
    return some;
}

static json_t *loop_object(jj *j, json_t *items, size_t i) {
    size_t n = json_array_size(items);
    json_t *before = i ? json_array_get(items, i - 1) : j->undefined, *after = i + 1 < n ? json_array_get(items, i + 1) : j->undefined;
    return jj_own(j, json_pack("{s:I, s:I, s:I, s:I, s:I, s:b, s:b, s:O, s:O}", "index0", (json_int_t)i, "index", (json_int_t)i + 1,
                               "length", (json_int_t)n, "revindex", (json_int_t)(n - i), "revindex0", (json_int_t)(n - i - 1), "first",
                               i == 0, "last", i + 1 == n, "previtem", before, "nextitem", after));
}

static void run_for(jj *j, const jj_node *f) {
    json_t *items = loop_items(j, f);
    size_t n = json_array_size(items);
    if (!n && f->c) run(j, f->c);
    for (size_t i = 0; i < n && jj_step(j); i++) {
        json_t *loop = loop_object(j, items, i);
        if (!push_scope(j)) return;
        assign_targets(j, f->list, json_array_get(items, i));
        assign(j, "loop", loop);
        flow w = j->st ? BREAK : run(j, f->b);
        pop_scope(j);
        if (w == BREAK) return;
    }
}

static void set_field(jj *j, const jj_node *s, json_t *v) {
    json_t *ns = lookup(j, s->list->s);
    for (size_t i = 0; i < j->n_ns; i++)
        if (j->ns[i] == ns) {
            if (!j->st && json_object_set(ns, s->s, v)) jj_fail(j, LQ_ERR_RESOURCE, "out of memory");
            return;
        }
    jj_fail(j, LQ_ERR_FORMAT, "'%s' is no namespace", s->list->s);
}

static void run_capture(jj *j, const jj_node *s) {
    lq_buf inner = {0}, *outer = j->out;
    j->out = &inner;
    run(j, s->b);
    j->out = outer;
    json_t *v = jj_str(j, inner.v, inner.n);
    lq_buf_free(&inner);
    if (s->s) set_field(j, s, v);
    else assign_targets(j, s->list, v);
}

static void put(jj *j, const char *s, size_t n) {
    if (j->out->n + n > JJ_BYTES) jj_fail(j, LQ_ERR_UNSUPPORTED, "it writes more than %d bytes", JJ_BYTES);
    else if (!lq_buf_add(j->out, s, n)) jj_fail(j, LQ_ERR_RESOURCE, "out of memory");
}

static flow run_one(jj *j, const jj_node *s) {
    json_t *v;
    switch (s->kind) {
    case JJ_TEXT: put(j, s->s, s->n); return GO;
    case JJ_OUTPUT:
        v = jj_eval(j, s->a);
        j->line = s->line;
        if (json_is_string(v) && v != j->undefined) put(j, json_string_value(v), json_string_length(v));
        else if (!j->st) jj_text(j, v, j->out);
        return GO;
    case JJ_IF:
        if (jj_true(j, jj_eval(j, s->a))) return j->st ? GO : run(j, s->b);
        return s->c && !j->st ? s->c->kind == JJ_IF ? run_one(j, s->c) : run(j, s->c) : GO;
    case JJ_FOR: run_for(j, s); return GO;
    case JJ_SET:
        v = jj_eval(j, s->a);
        if (s->s) set_field(j, s, v);
        else assign_targets(j, s->list, v);
        return GO;
    case JJ_CAPTURE: run_capture(j, s); return GO;
    case JJ_BREAK: return BREAK;
    case JJ_CONTINUE: return CONTINUE;
    case JJ_BODY: return run(j, s);
    default: jj_fail(j, LQ_ERR_INTERNAL, "no statement"); return BREAK;
    }
}

static flow run(jj *j, const jj_node *body) {
    for (const jj_node *s = body->list; s; s = s->next) {
        if (!jj_step(j)) return BREAK;
        flow f = run_one(j, s);
        if (f != GO) return f;
    }
    return GO;
}

void jj_run(jj *j, const jj_node *body) {
    j->depth = 0;
    run(j, body);
}

void jj_drop(jj *j) {
    size_t i;
    json_t *v;
    while (j->n_scope) json_decref(j->scope[--j->n_scope]);
    json_array_foreach(j->pool, i, v) {
        if (json_is_array(v)) json_array_clear(v);
        else if (json_is_object(v)) json_object_clear(v);
    }
    json_decref(j->pool);
    json_decref(j->undefined);
    lq_arena_free(&j->mem);
}
