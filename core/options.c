/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "core/options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool alias_has(const char *aliases, const char *key) {
    size_t n = strlen(key);
    for (const char *p = aliases; p && *p;) {
        const char *end = strchr(p, ',');
        size_t len = end ? (size_t)(end - p) : strlen(p);
        if (len == n && !memcmp(p, key, n)) return true;
        p = end ? end + 1 : NULL;
    }
    return false;
}

static const lq_opt *find(const lq_optset *sets, const char *key, void **target) {
    for (; sets->table; sets++)
        for (const lq_opt *o = sets->table; o->name; o++)
            if (!strcmp(o->name, key) || alias_has(o->aliases, key)) {
                *target = (char *)sets->target + o->offset;
                return o;
            }
    return NULL;
}

static bool parse_size(const char *s, uint64_t *out) {
    static const struct { const char *suffix; double unit; } units[] = {
        {"", 1}, {"B", 1}, {"K", 1e3}, {"KB", 1e3}, {"M", 1e6}, {"MB", 1e6}, {"G", 1e9}, {"GB", 1e9}, {"T", 1e12}, {"TB", 1e12},
        {"KiB", 1024}, {"MiB", 1048576}, {"GiB", 1073741824.0}, {"TiB", 1099511627776.0}};
    char *end;
    double v = strtod(s, &end);
    if (end == s || !(v >= 0) || v > 1e18) return false;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (!strcmp(end, units[i].suffix) && v * units[i].unit < 1.8e19) {
            *out = (uint64_t)(v * units[i].unit);
            return true;
        }
    return false;
}

static int parse_choice(const char *choices, const char *s) {
    size_t n = strlen(s);
    int index = 0;
    for (const char *p = choices; p; index++) {
        const char *end = strchr(p, '|');
        size_t len = end ? (size_t)(end - p) : strlen(p);
        if (len == n && !memcmp(p, s, n)) return index;
        p = end ? end + 1 : NULL;
    }
    return -1;
}

static lq_status list_add(lq_ctx *ctx, lq_strlist *l, const char *v) {
    const char **more = lq_realloc(l->v, l->n * sizeof *l->v, (l->n + 1) * sizeof *l->v);
    if (!more) return lq_oom(ctx, (l->n + 1) * sizeof *l->v);
    l->v = more;
    l->v[l->n++] = v;
    return LQ_OK;
}

static lq_status store(lq_ctx *ctx, const lq_opt *o, void *to, const char *v) {
    char *end;
    switch (o->kind) {
    case LQ_OPT_SET: *(int *)to = o->value; return LQ_OK;
    case LQ_OPT_STRING: *(const char **)to = v; return LQ_OK;
    case LQ_OPT_LIST: return list_add(ctx, to, v);
    case LQ_OPT_SIZE:
        if (parse_size(v, to)) return LQ_OK;
        return lq_fail(ctx, LQ_ERR_USAGE, "--%s %s: expected a size such as 500M, 5GB or 2GiB", o->name, v);
    case LQ_OPT_CHOICE:
        *(int *)to = parse_choice(o->choices, v);
        if (*(int *)to >= 0) return LQ_OK;
        return lq_fail(ctx, LQ_ERR_USAGE, "--%s %s: expected one of %s", o->name, v, o->choices);
    case LQ_OPT_INT: {
        errno = 0;
        long long i = strtoll(v, &end, 10);
        if (*v && !*end && !errno && (double)i >= o->lo && (double)i <= o->hi) {
            *(int64_t *)to = i;
            return LQ_OK;
        }
        return lq_fail(ctx, LQ_ERR_USAGE, "--%s %s: expected an integer from %.0f to %.0f", o->name, v, o->lo, o->hi);
    }
    case LQ_OPT_REAL: {
        double d = strtod(v, &end);
        if (*v && !*end && isfinite(d) && d >= o->lo && d <= o->hi) {
            *(double *)to = d;
            return LQ_OK;
        }
        return lq_fail(ctx, LQ_ERR_USAGE, "--%s %s: expected a number from %g to %g", o->name, v, o->lo, o->hi);
    }
    }
    return lq_fail(ctx, LQ_ERR_INTERNAL, "option --%s has no kind", o->name);
}

lq_status lq_opts_defaults(lq_ctx *ctx, const lq_optset *sets) {
    for (; sets->table; sets++)
        for (const lq_opt *o = sets->table; o->name; o++)
            if (o->def && o->kind != LQ_OPT_SET && o->kind != LQ_OPT_LIST) LQ_TRY(store(ctx, o, (char *)sets->target + o->offset, o->def));
    return LQ_OK;
}

/* Letters that must change to turn a into b, at most 63 letters each: the nearest flag for a misspelt one. */
static unsigned distance(const char *a, const char *b) {
    unsigned row[64], n = (unsigned)strlen(b);
    if (n > 63 || strlen(a) > 63) return 99;
    for (unsigned j = 0; j <= n; j++) row[j] = j;
    for (unsigned i = 0; a[i]; i++) {
        unsigned diag = row[0];
        row[0] = i + 1;
        for (unsigned j = 0; j < n; j++) {
            unsigned best = diag + (a[i] != b[j]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j + 1] + 1 < best) best = row[j + 1] + 1;
            diag = row[j + 1];
            row[j + 1] = best;
        }
    }
    return row[n];
}

static lq_status unknown(lq_ctx *ctx, const lq_optset *sets, const char *flag, const char *key) {
    const char *near = NULL;
    unsigned best = 4;
    for (; sets->table; sets++)
        for (const lq_opt *o = sets->table; o->name; o++)
            if (distance(key, o->name) < best) {
                best = distance(key, o->name);
                near = o->name;
            }
    if (near) return lq_fail(ctx, LQ_ERR_USAGE, "unknown flag %s; did you mean --%s?", flag, near);
    return lq_fail(ctx, LQ_ERR_USAGE, "unknown flag %s; --help lists the flags", flag);
}

lq_status lq_opts_set(lq_ctx *ctx, const lq_optset *sets, const char *key, const char *value) {
    void *to;
    const lq_opt *o = find(sets, key, &to);
    if (!o) return unknown(ctx, sets, key, key);
    if (o->kind != LQ_OPT_SET && !value) return lq_fail(ctx, LQ_ERR_USAGE, "%s needs a value (%s)", key, o->arg ? o->arg : "VALUE");
    if (o->kind == LQ_OPT_SET && value) return lq_fail(ctx, LQ_ERR_USAGE, "%s takes no value", key);
    return store(ctx, o, to, value);
}

static bool is_flag(const char *a) {
    if (a[0] != '-' || !a[1]) return false;
    return !(a[1] >= '0' && a[1] <= '9') && a[1] != '.';
}

lq_status lq_opts_parse(lq_ctx *ctx, const lq_optset *sets, int argc, char **argv, const char **pos, size_t max_pos, size_t *n_pos) {
    bool flags_over = false;
    *n_pos = 0;
    for (int i = 0; i < argc; i++) {
        const char *a = argv[i];
        if (!flags_over && !strcmp(a, "--")) {
            flags_over = true;
            continue;
        }
        if (flags_over || !is_flag(a)) {
            if (*n_pos == max_pos) return lq_fail(ctx, LQ_ERR_USAGE, "unexpected argument '%s'", a);
            pos[(*n_pos)++] = a;
            continue;
        }
        char key[64];
        const char *value = NULL;
        if (a[1] == '-') {
            size_t n = strcspn(a + 2, "=");
            if (n >= sizeof key) return lq_fail(ctx, LQ_ERR_USAGE, "unknown flag %s", a);
            memcpy(key, a + 2, n);
            key[n] = 0;
            if (a[2 + n]) value = a + 3 + n;
        } else {
            void *whole;
            snprintf(key, sizeof key, "%s", a + 1); /* -nr, -ss: llama.cpp writes long names with one dash */
            if (!find(sets, key, &whole)) {
                key[1] = 0;
                if (a[2]) value = a + 2;
            }
        }
        void *to;
        const lq_opt *o = find(sets, key, &to);
        if (!o) return unknown(ctx, sets, a, key);
        if (o->kind == LQ_OPT_SET && value) return lq_fail(ctx, LQ_ERR_USAGE, "--%s takes no value", o->name);
        if (o->kind != LQ_OPT_SET && !value) {
            if (i + 1 >= argc || (is_flag(argv[i + 1]) && strcmp(argv[i + 1], "--") && o->kind != LQ_OPT_STRING))
                return lq_fail(ctx, LQ_ERR_USAGE, "--%s needs a value (%s)", o->name, o->arg ? o->arg : "VALUE");
            value = argv[++i];
        }
        LQ_TRY(store(ctx, o, to, value));
    }
    return LQ_OK;
}

static json_t *value_json(const lq_opt *o, const void *at) {
    switch (o->kind) {
    case LQ_OPT_SET: return *(const int *)at == o->value && o->value ? json_true() : NULL;
    case LQ_OPT_INT: return json_integer((json_int_t) * (const int64_t *)at);
    case LQ_OPT_REAL: return json_real(*(const double *)at);
    case LQ_OPT_SIZE: return json_integer((json_int_t) * (const uint64_t *)at);
    case LQ_OPT_STRING: return *(const char *const *)at ? json_string(*(const char *const *)at) : NULL;
    case LQ_OPT_CHOICE: {
        const char *p = o->choices;
        for (int i = *(const int *)at; i > 0 && p; i--) p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL;
        return p ? json_stringn(p, strcspn(p, "|")) : NULL;
    }
    case LQ_OPT_LIST: {
        const lq_strlist *l = at;
        json_t *a = l->n ? json_array() : NULL;
        for (size_t i = 0; a && i < l->n; i++) json_array_append_new(a, json_string(l->v[i]));
        return a;
    }
    }
    return NULL;
}

json_t *lq_opts_json(const lq_optset *sets, const char *skip) {
    json_t *out = json_object();
    for (; out && sets->table; sets++)
        for (const lq_opt *o = sets->table; o->name; o++) {
            json_t *v = alias_has(skip, o->name) ? NULL : value_json(o, (const char *)sets->target + o->offset);
            if (v && json_object_set_new(out, o->name, v)) {
                json_decref(out);
                return NULL;
            }
        }
    return out;
}

void lq_opts_free(const lq_optset *sets) {
    for (; sets->table; sets++)
        for (const lq_opt *o = sets->table; o->name; o++)
            if (o->kind == LQ_OPT_LIST) {
                lq_strlist *l = (lq_strlist *)(void *)((char *)sets->target + o->offset);
                lq_free(l->v);
                *l = (lq_strlist){0};
            }
}

static uint32_t print_help(FILE *out, const lq_optset *sets, bool all) {
    uint32_t hidden = 0;
    for (; sets->table; sets++) {
        if (sets->title) fprintf(out, "%s:\n", sets->title);
        for (const lq_opt *o = sets->table; o->name; o++) {
            if (!o->help) continue; /* aliases kept for other tools' users are not listed */
            bool rare = *o->help == '~';
            hidden += rare && !all;
            if (rare && !all) continue;
            char left[64];
            const char *arg = o->kind == LQ_OPT_CHOICE ? o->choices : o->arg;
            char letter = 0;
            for (const char *p = o->aliases; p && *p;) {
                if (!p[1] || p[1] == ',') letter = *p;
                p = strchr(p, ',');
                if (p) p++;
            }
            if (letter) snprintf(left, sizeof left, "-%c, --%s%s%s", letter, o->name, arg ? " " : "", arg ? arg : "");
            else snprintf(left, sizeof left, "    --%s%s%s", o->name, arg ? " " : "", arg ? arg : "");
            fprintf(out, "  %-32s %s", left, o->help + rare);
            if (o->def && *o->def && o->kind != LQ_OPT_SET) fprintf(out, " [%s]", o->def);
            fputc('\n', out);
        }
    }
    return hidden;
}

void lq_opts_help(FILE *out, const lq_optset *sets) { print_help(out, sets, true); }
uint32_t lq_opts_help_short(FILE *out, const lq_optset *sets) { return print_help(out, sets, false); }
