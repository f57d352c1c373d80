/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "quant/recipe.h"

#include <string.h>

static const lq_method *method_at(const char *text) {
    size_t n = strcspn(text, ":,");
    for (const lq_method *const *m = lq_methods; *m; m++)
        if (strlen((*m)->name) == n && !memcmp((*m)->name, text, n)) return *m;
    return NULL;
}

bool lq_recipe_is(const char *text) { return method_at(text) != NULL; }

static lq_status unknown(lq_ctx *ctx, const char *text) {
    char known[256] = "";
    for (const lq_method *const *m = lq_methods; *m; m++) {
        size_t n = strlen(known);
        snprintf(known + n, sizeof known - n, "%s%s", n ? " " : "", (*m)->name);
    }
    return lq_fail(ctx, LQ_ERR_USAGE, "unknown method '%.*s'; known: %s", (int)strcspn(text, ":,"), text, known);
}

static lq_status apply(lq_ctx *ctx, lq_recipe *r, char *settings) {
    lq_optset sets[] = {{r->method->opts, r->opts, NULL}, {0}};
    for (char *p = settings; p;) {
        char *next = strchr(p, ':'), *value = NULL;
        if (next) *next++ = 0;
        if ((value = strchr(p, '='))) *value++ = 0;
        if (!r->method->opts) return lq_fail(ctx, LQ_ERR_USAGE, "%s has no option '%s'", r->method->name, p);
        LQ_TRY(lq_opts_set(ctx, sets, p, value));
        p = next;
    }
    return LQ_OK;
}

lq_status lq_recipe_parse(lq_ctx *ctx, const char *text, lq_recipe *out) {
    *out = (lq_recipe){.method = method_at(text)};
    if (!out->method) return unknown(ctx, text);
    const char *more = strchr(text, ',');
    if (more) {
        if (!method_at(more + 1)) return unknown(ctx, more + 1);
        return lq_fail(ctx, LQ_ERR_USAGE, "recipe '%s': '%s' is a method, only transforms may stand before one", text, out->method->name);
    }
    out->text = lq_strdup(text);
    out->opts = lq_alloc(out->method->opts_size);
    char *settings = lq_strdup(text);
    lq_status st = LQ_OK;
    if (!out->text || !out->opts || !settings) { st = lq_oom(ctx, 256); goto done; }
    lq_optset sets[] = {{out->method->opts, out->opts, NULL}, {0}};
    if (out->method->opts) LQ_GO(lq_opts_defaults(ctx, sets));
    char *colon = strchr(settings, ':');
    if (colon) st = apply(ctx, out, colon + 1);
done:
    lq_free(settings);
    if (st) lq_recipe_free(out);
    return st;
}

void lq_recipe_free(lq_recipe *r) {
    lq_free(r->opts);
    lq_free(r->text);
    *r = (lq_recipe){0};
}
