/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "quant/recipe.h"

#include <string.h>

static const lq_opt no_options[] = {{0}};

static bool named(const char *name, const char *text) {
    size_t n = strcspn(text, ":,");
    return strlen(name) == n && !memcmp(name, text, n);
}

static const lq_method *method_at(const char *text) {
    for (const lq_method *const *m = lq_methods; *m; m++)
        if (named((*m)->name, text)) return *m;
    return NULL;
}

static const lq_xform *xform_at(const char *text) {
    for (const lq_xform *const *x = lq_xforms; *x; x++)
        if (named((*x)->name, text)) return *x;
    return NULL;
}

bool lq_recipe_is(const char *text) { return method_at(text) || xform_at(text); }

static lq_status unknown(lq_ctx *ctx, const char *text) {
    lq_buf known = {0};
    for (const lq_xform *const *x = lq_xforms; *x; x++) lq_buf_addf(&known, " %s", (*x)->name);
    for (const lq_method *const *m = lq_methods; *m; m++) lq_buf_addf(&known, " %s", (*m)->name);
    lq_status st = lq_fail(ctx, LQ_ERR_USAGE, "unknown method '%.*s'; known:%s", (int)strcspn(text, ":,"), text, known.v ? known.v : "");
    lq_buf_free(&known);
    return st;
}

/* "key=value:key" of one element, in place. */
static lq_status apply(lq_ctx *ctx, const char *name, const lq_opt *table, void *opts, char *settings) {
    lq_optset sets[] = {{table ? table : no_options, opts, NULL}, {0}};
    for (char *p = settings; p;) {
        char *next = strchr(p, ':'), *value = NULL;
        if (next) *next++ = 0;
        if ((value = strchr(p, '='))) *value++ = 0;
        if (!table) return lq_fail(ctx, LQ_ERR_USAGE, "%s has no option '%s'", name, p);
        lq_status st = lq_opts_set(ctx, sets, p, value);
        if (st) return lq_note(ctx, st, "%s", name);
        p = next;
    }
    return LQ_OK;
}

static lq_status make_opts(lq_ctx *ctx, const char *name, const lq_opt *table, size_t size, char *settings, void **out) {
    if (!(*out = lq_alloc(size + 1))) return lq_oom(ctx, size);
    lq_optset sets[] = {{table ? table : no_options, *out, NULL}, {0}};
    LQ_TRY(lq_opts_defaults(ctx, sets));
    return apply(ctx, name, table, *out, settings);
}

/* One element, ended by NUL. */
static lq_status element(lq_ctx *ctx, lq_recipe *r, char *text) {
    char *settings = strchr(text, ':');
    const lq_method *m = method_at(text);
    const lq_xform *x = xform_at(text);
    if (settings) *settings++ = 0;
    if (!m && !x) return unknown(ctx, text);
    if (r->method) return lq_fail(ctx, LQ_ERR_USAGE, "recipe '%s': '%s' is a method, only transforms may stand before one", r->text, r->method->name);
    if (m) {
        r->method = m;
        return make_opts(ctx, m->name, m->opts, m->opts_size, settings, &r->opts);
    }
    if (r->n_xforms == LQ_RECIPE_XFORMS) return lq_fail(ctx, LQ_ERR_USAGE, "recipe '%s': more than %d transforms", r->text, LQ_RECIPE_XFORMS);
    r->xform[r->n_xforms].x = x;
    return make_opts(ctx, x->name, x->opts, x->opts_size, settings, &r->xform[r->n_xforms++].opts);
}

lq_status lq_recipe_parse(lq_ctx *ctx, const char *text, lq_recipe *out) {
    char plain[] = "rtn";
    *out = (lq_recipe){.text = lq_strdup(text), .parts = lq_strdup(text)};
    lq_status st = out->parts && out->text ? LQ_OK : lq_oom(ctx, strlen(text));
    for (char *p = out->parts, *next; !st && p; p = next) {
        if ((next = strchr(p, ','))) *next++ = 0;
        st = element(ctx, out, p);
    }
    if (!st && !out->method) st = element(ctx, out, plain);
    if (st) lq_recipe_free(out);
    return st;
}

void lq_recipe_free(lq_recipe *r) {
    for (uint32_t i = 0; i < r->n_xforms; i++) lq_free(r->xform[i].opts);
    lq_free(r->opts);
    lq_free(r->text);
    lq_free(r->parts);
    *r = (lq_recipe){0};
}

uint32_t lq_recipe_sets(const lq_recipe *r, lq_optset sets[LQ_RECIPE_SETS]) {
    sets[0] = (lq_optset){r->method->opts ? r->method->opts : no_options, r->opts, r->method->opts ? r->method->name : NULL};
    for (uint32_t i = 0; i < r->n_xforms; i++)
        sets[i + 1] = (lq_optset){r->xform[i].x->opts ? r->xform[i].x->opts : no_options, r->xform[i].opts, r->xform[i].x->name};
    return r->n_xforms + 1;
}

static bool add_element(json_t *list, const char *name, const lq_optset *set) {
    lq_optset one[] = {*set, {0}};
    json_t *e = json_pack("{s:s, s:o*}", "name", name, "options", lq_opts_json(one, NULL));
    return e && !json_array_append_new(list, e);
}

json_t *lq_recipe_json(const lq_recipe *r) {
    lq_optset sets[LQ_RECIPE_SETS];
    json_t *list = json_array();
    lq_recipe_sets(r, sets);
    bool ok = list;
    for (uint32_t i = 0; i < r->n_xforms && ok; i++) ok = add_element(list, r->xform[i].x->name, &sets[i + 1]);
    if (ok && add_element(list, r->method->name, &sets[0])) return list;
    json_decref(list);
    return NULL;
}

const char *lq_recipe_type(const lq_recipe *r) {
    const char *type = r->method->type;
    for (uint32_t i = r->n_xforms; !type && i-- > 0;) type = r->xform[i].x->type;
    return type;
}

const char *lq_recipe_format(const lq_recipe *r) {
    for (uint32_t i = r->n_xforms; i-- > 0;)
        if (r->xform[i].x->format) return r->xform[i].x->format;
    return r->method->format;
}

unsigned lq_recipe_xform_needs(const lq_recipe *r) {
    unsigned needs = 0;
    for (uint32_t i = 0; i < r->n_xforms; i++) needs |= lq_xform_needs(r->xform[i].x, r->xform[i].opts);
    return needs;
}
