/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* compressed-tensors 0.20, quantization/quant_config.py, quant_args.py, utils/match.py; older files as their versions wrote them. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "formats/ct_config.h"

#include "formats/nameset.h"

#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GROUPS_MAX = 1024, NAMES_MAX = 1 << 20, PATTERNS_MAX = 1024, MATCH_STEPS = 20000 };

typedef struct pattern { pcre2_code *re; const char *text; size_t group; } pattern;
typedef struct names {       /* a list of targets, or `ignore` */
    lq_nameset *exact;
    pattern *patterns;
    size_t n_patterns;
    size_t n_exact;
    long linear;             /* group that targets the class Linear; -1: none */
} names;

struct lq_ct_config {
    lq_ct_group *groups;
    size_t n_groups;
    names targets, ignore;
    bool dense;
    pcre2_match_data *match;
    pcre2_match_context *limits;
};

/* -- settings -------------------------------------------------------------------------------------------------------- */

static lq_status word(lq_ctx *ctx, const json_t *o, const char *key, const char *const *list, int def, int *out) {
    const char *v = NULL;
    LQ_TRY(lq_json_string(ctx, o, key, false, &v));
    *out = def;
    if (!v) return LQ_OK;
    for (int i = 0; list[i]; i++)
        if (!strcmp(v, list[i])) return *out = i, LQ_OK;
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%s '%.64s' is not read", key, v);
}

static lq_status read_dynamic(lq_ctx *ctx, const json_t *o, lq_ct_args *a) {
    const json_t *v = json_object_get(o, "dynamic");
    bool local = json_is_string(v) && !strcmp(json_string_value(v), "local");
    if (v && !json_is_null(v) && !json_is_boolean(v) && !local) return lq_fail(ctx, LQ_ERR_FORMAT, "'dynamic' is neither true nor false nor \"local\"");
    a->dynamic = local ? LQ_CT_LOCAL : json_is_true(v) ? LQ_CT_DYNAMIC : LQ_CT_FIXED;
    return LQ_OK;
}

/* [128, 128], or "128x128" in older files */
static lq_status read_block(lq_ctx *ctx, const json_t *o, lq_ct_args *a) {
    const json_t *v = json_object_get(o, "block_structure");
    char tail;
    int r = 0, c = 0;
    if (json_is_string(v) && sscanf(json_string_value(v), "%8dx%8d%c", &r, &c, &tail) != 2) r = 0;
    if (json_array_size(v) == 2 && json_is_integer(json_array_get(v, 0)) && json_is_integer(json_array_get(v, 1))) {
        json_int_t rows = json_integer_value(json_array_get(v, 0)), cols = json_integer_value(json_array_get(v, 1));
        if (rows <= INT32_MAX && cols <= INT32_MAX && rows > 0 && cols > 0) r = (int)rows, c = (int)cols;
    }
    if (r <= 0 || c <= 0) return lq_fail(ctx, LQ_ERR_FORMAT, "'block_structure' is not two positive integers, which strategy block needs");
    a->block[0] = r;
    a->block[1] = c;
    return LQ_OK;
}

static lq_status read_strategy(lq_ctx *ctx, const json_t *o, lq_ct_args *a) {
    static const char *const list[] = {"tensor", "channel", "group", "block", "token", "tensor_group", "attn_head", NULL};
    int64_t group;
    int s;
    LQ_TRY(lq_json_int(ctx, o, "group_size", false, 0, -1, INT32_MAX, &group));
    LQ_TRY(word(ctx, o, "strategy", list, group > 0 ? LQ_CT_S_GROUP : group ? LQ_CT_S_CHANNEL : LQ_CT_S_TENSOR, &s));
    a->strategy = (lq_ct_strategy)s;
    bool grouped = s == LQ_CT_S_GROUP || s == LQ_CT_S_TENSOR_GROUP;
    if (grouped && group <= 0) return lq_fail(ctx, LQ_ERR_FORMAT, "strategy %s with group_size %lld", list[s], (long long)group);
    a->group = grouped ? group : 0;
    return s == LQ_CT_S_BLOCK ? read_block(ctx, o, a) : LQ_OK;
}

static lq_status read_args(lq_ctx *ctx, const json_t *scheme, const char *key, lq_ct_args *a) {
    static const char *const types[] = {"int", "float", NULL};
    const json_t *o = json_object_get(scheme, key);
    const char *scale = NULL;
    int type;
    *a = (lq_ct_args){.sym = true};
    if (!o || json_is_null(o)) return LQ_OK;
    if (!json_is_object(o)) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is not an object", key);
    a->present = true;
    LQ_TRY(lq_json_int(ctx, o, "num_bits", false, 8, 1, 32, &a->bits));
    LQ_TRY(word(ctx, o, "type", types, 0, &type));
    LQ_TRY(lq_json_bool(ctx, o, "symmetric", true, &a->sym));
    LQ_TRY(lq_json_string(ctx, o, "scale_dtype", false, &scale));
    a->floats = type == 1;
    a->byte_scale = scale && !strcmp(scale, "torch.uint8");
    LQ_TRY(read_dynamic(ctx, o, a));
    return read_strategy(ctx, o, a);
}

/* What compressed-tensors takes when nothing is said. */
static lq_ct_format inferred(const lq_ct_group *g) {
    const lq_ct_args *w = &g->weights;
    if (!w->floats) return g->inputs.present ? LQ_CT_INTS : LQ_CT_PACK;
    if (w->bits == 4) return w->group == 32 ? LQ_CT_MX4 : LQ_CT_NV4;
    return w->group == 32 && w->byte_scale ? LQ_CT_MX8 : LQ_CT_FLOATS;
}

static lq_status read_format(lq_ctx *ctx, const json_t *o, int def, int *out) {
    static const char *const list[] = {"mixed-precision", "pack-quantized", "int-quantized", "float-quantized", "naive-quantized",
                                       "mxfp8-quantized", "mxfp4-pack-quantized", "nvfp4-pack-quantized", NULL};
    return word(ctx, o, "format", list, def, out);
}

static lq_status settings_agree(lq_ctx *ctx, const lq_ct_group *g) {
    const lq_ct_args *w = &g->weights;
    bool fp = g->format >= LQ_CT_MX8 || g->format == LQ_CT_FLOATS;
    if (!w->present) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "no 'weights': only activations are quantized");
    if (w->dynamic) return lq_fail(ctx, LQ_ERR_FORMAT, "weights are said to be dynamic");
    if (g->format != LQ_CT_NAIVE && w->floats != fp) return lq_fail(ctx, LQ_ERR_FORMAT, "type %s does not go with its format", w->floats ? "float" : "int");
    if (w->floats && w->bits != (g->format == LQ_CT_MX4 || g->format == LQ_CT_NV4 ? 4 : 8)) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "floats of %lld bits are not read in this format", (long long)w->bits);
    if (!w->floats && (w->bits < 2 || w->bits > 8)) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "integers of %lld bits; 2 to 8 are read", (long long)w->bits);
    if (w->floats && !w->sym) return lq_fail(ctx, LQ_ERR_FORMAT, "asymmetric floats");
    if (w->strategy == LQ_CT_S_TOKEN || w->strategy == LQ_CT_S_HEAD) return lq_fail(ctx, LQ_ERR_FORMAT, "a strategy that is none of weights");
    return LQ_OK;
}

static lq_status read_group(lq_ctx *ctx, const json_t *o, int format, lq_ct_group *g) {
    const json_t *out = json_object_get(o, "output_activations");
    LQ_TRY(read_args(ctx, o, "weights", &g->weights));
    LQ_TRY(read_args(ctx, o, "input_activations", &g->inputs));
    LQ_TRY(read_format(ctx, o, format, &format));
    if (out && !json_is_null(out)) lq_log(ctx, LQ_LOG_WARN, "compressed-tensors: output_activations are not rounded here");
    g->format = format ? (lq_ct_format)format : inferred(g);
    return settings_agree(ctx, g);
}

/* -- names ----------------------------------------------------------------------------------------------------------- */

static lq_status add_pattern(lq_ctx *ctx, names *n, const char *text, size_t group) {
    int error;
    PCRE2_SIZE at;
    if (n->n_patterns == PATTERNS_MAX) return lq_fail(ctx, LQ_ERR_FORMAT, "more than %d regular expressions", PATTERNS_MAX);
    pattern *more = lq_realloc(n->patterns, n->n_patterns * sizeof *more, (n->n_patterns + 1) * sizeof *more);
    if (!more) return lq_oom(ctx, (n->n_patterns + 1) * sizeof *more);
    n->patterns = more;
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED, PCRE2_ANCHORED | PCRE2_UTF, &error, &at, NULL);
    if (!re) return lq_fail(ctx, LQ_ERR_FORMAT, "'%.200s' is no regular expression (at %zu)", text, (size_t)at);
    more[n->n_patterns++] = (pattern){re, text, group};
    return LQ_OK;
}

static lq_status add_name(lq_ctx *ctx, names *n, const char *text, size_t group) {
    if (!strncmp(text, "re:", 3)) return add_pattern(ctx, n, text + 3, group);
    long have = lq_nameset_find(n->exact, text);
    if (have >= 0 && have != (long)group) return lq_fail(ctx, LQ_ERR_FORMAT, "'%.200s' is a target of another group too", text);
    if (have >= 0) return LQ_OK;
    if (!strcmp(text, "Linear")) n->linear = (long)group;
    if (++n->n_exact > NAMES_MAX) return lq_fail(ctx, LQ_ERR_FORMAT, "more than %d names", NAMES_MAX);
    return lq_nameset_add(n->exact, text, group) ? lq_oom(ctx, 64) : LQ_OK;
}

static lq_status add_names(lq_ctx *ctx, names *n, const json_t *o, const char *key, bool required, size_t group) {
    const json_t *list = json_object_get(o, key);
    size_t count = json_array_size(list);
    if (!n->exact && !(n->exact = lq_nameset_new())) return lq_oom(ctx, 64);
    if (!required && (!list || json_is_null(list))) return LQ_OK;
    if (!json_is_array(list)) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is not a list", key);
    for (size_t i = 0; i < count; i++) {
        const char *text = json_string_value(json_array_get(list, i));
        if (!text) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' has an entry that is no string", key);
        LQ_TRY(add_name(ctx, n, text, group));
    }
    return LQ_OK;
}

static int by_text(const void *x, const void *y) { /* of equal ones the last group's, as in a Python dict */
    const pattern *a = x, *b = y;
    int d = strcmp(a->text, b->text);
    return d ? d : (a->group < b->group) - (a->group > b->group);
}

static lq_status find(lq_ctx *ctx, const lq_ct_config *c, const names *n, const char *module, long *group) {
    *group = lq_nameset_find(n->exact, module);
    for (size_t i = 0; *group < 0 && i < n->n_patterns; i++) {
        int got = pcre2_match(n->patterns[i].re, (PCRE2_SPTR)module, strlen(module), 0, 0, c->match, c->limits);
        if (got >= 0) *group = (long)n->patterns[i].group;
        else if (got != PCRE2_ERROR_NOMATCH) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s': the expression '%.200s' cannot be matched (error %d)", module, n->patterns[i].text, got);
    }
    if (*group < 0) *group = n->linear;
    return LQ_OK;
}

lq_status lq_ct_config_find(lq_ctx *ctx, const lq_ct_config *c, const char *module, const lq_ct_group **out, bool *ignored) {
    long group;
    *out = NULL;
    LQ_TRY(find(ctx, c, &c->ignore, module, &group));
    *ignored = group >= 0;
    if (*ignored) return LQ_OK;
    LQ_TRY(find(ctx, c, &c->targets, module, &group));
    if (group >= 0) *out = &c->groups[group];
    return LQ_OK;
}

/* -- the whole ------------------------------------------------------------------------------------------------------- */

static lq_status read_groups(lq_ctx *ctx, const json_t *q, int format, lq_ct_config *c) {
    json_t *groups = json_object_get(q, "config_groups"), *o;
    const char *key;
    if (!json_is_object(groups) || !json_object_size(groups) || json_object_size(groups) > GROUPS_MAX)
        return lq_fail(ctx, LQ_ERR_FORMAT, "'config_groups' is no object of 1 to %d groups", GROUPS_MAX);
    if (!(c->groups = LQ_NEWN(lq_ct_group, json_object_size(groups)))) return lq_oom(ctx, json_object_size(groups) * sizeof *c->groups);
    json_object_foreach(groups, key, o) {
        lq_status st = json_is_object(o) ? read_group(ctx, o, format, &c->groups[c->n_groups]) : lq_fail(ctx, LQ_ERR_UNSUPPORTED, "a preset's name instead of settings");
        if (!st) st = add_names(ctx, &c->targets, o, "targets", true, c->n_groups++);
        if (st) return lq_note(ctx, st, "config_groups '%.64s'", key);
    }
    if (c->targets.n_patterns) qsort(c->targets.patterns, c->targets.n_patterns, sizeof *c->targets.patterns, by_text);
    return LQ_OK;
}

/* Rotations that the runtime would have to apply to activations. */
static lq_status refuse_online(lq_ctx *ctx, const json_t *q) {
    json_t *groups = json_object_get(json_object_get(q, "transform_config"), "config_groups"), *g;
    const char *key;
    json_object_foreach(groups, key, g) {
        const json_t *apply = json_object_get(g, "apply");
        for (size_t i = 0; i < json_array_size(apply); i++) {
            const char *at = json_string_value(json_object_get(json_array_get(apply, i), "location"));
            if (!at || (strcmp(at, "weight_input") && strcmp(at, "weight_output")))
                return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "transform_config '%.64s': a rotation of activations ('%.32s') is not read", key, at ? at : "?");
        }
    }
    return LQ_OK;
}

static lq_status refuse_others(lq_ctx *ctx, const json_t *q) {
    const char *sparse = NULL, *status = NULL;
    const json_t *s = json_object_get(q, "sparsity_config");
    if (json_is_object(s)) LQ_TRY(lq_json_string(ctx, s, "format", false, &sparse));
    LQ_TRY(lq_json_string(ctx, q, "quantization_status", false, &status));
    if (sparse && strcmp(sparse, "dense")) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "sparsity_config format '%.64s' is not read; dense is", sparse);
    if (status && (!strcmp(status, "initialized") || !strcmp(status, "calibration")))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "quantization_status '%.32s': the weights are not quantized yet", status);
    return refuse_online(ctx, q);
}

/* 0.17.1 was the last that left the top of each word empty. A file without a version is as old as its makers. */
static bool is_dense(const json_t *q) {
    int v[3] = {0};
    const char *text = json_string_value(json_object_get(q, "version"));
    if (text) sscanf(text, "%4d.%4d.%4d", &v[0], &v[1], &v[2]);
    return v[0] * 1000000 + v[1] * 1000 + v[2] >= 17002;
}

static lq_status read_all(lq_ctx *ctx, const json_t *q, lq_ct_config *c) {
    int format;
    c->targets.linear = c->ignore.linear = -1;
    c->match = pcre2_match_data_create(1, NULL);
    c->limits = pcre2_match_context_create(NULL);
    if (!c->match || !c->limits) return lq_oom(ctx, 4096);
    pcre2_set_match_limit(c->limits, MATCH_STEPS);
    c->dense = is_dense(q);
    LQ_TRY(refuse_others(ctx, q));
    LQ_TRY(read_format(ctx, q, 0, &format));
    LQ_TRY(read_groups(ctx, q, format, c));
    return add_names(ctx, &c->ignore, q, "ignore", false, 0);
}

lq_status lq_ct_config_new(lq_ctx *ctx, const json_t *q, lq_ct_config **out) {
    lq_ct_config *c = *out = LQ_NEW(lq_ct_config);
    if (!c) return lq_oom(ctx, sizeof *c);
    lq_status st = read_all(ctx, q, c);
    if (!st) return LQ_OK;
    lq_ct_config_free(out);
    return lq_note(ctx, st, "quantization_config");
}

static void names_free(names *n) {
    for (size_t i = 0; i < n->n_patterns; i++) pcre2_code_free(n->patterns[i].re);
    lq_free(n->patterns);
    lq_nameset_free(&n->exact);
}

void lq_ct_config_free(lq_ct_config **c) {
    if (!*c) return;
    names_free(&(*c)->targets);
    names_free(&(*c)->ignore);
    pcre2_match_data_free((*c)->match);
    pcre2_match_context_free((*c)->limits);
    lq_free((*c)->groups);
    lq_free(*c);
    *c = NULL;
}

bool lq_ct_config_is_dense(const lq_ct_config *c) { return c->dense; }
