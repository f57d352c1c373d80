/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Resolution order of a linear: default by role, --ignore, --tensor-type (last match), shape and legality. Every check that
 * can fail is made here, in the first second of a run. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "quant/plan.h"

#include "core/blocks.h"
#include "quant/mixture.h"

#include <pcre2.h>
#include <string.h>

const lq_opt lq_plan_options[] = {
    {"bits", "b,wbits,q-bits", LQ_OPT_INT, offsetof(lq_plan_opts, bits), "N", "4", NULL, 2, 8, 0, "bits per weight: 2, 3, 4 or 8"},
    {"group-size", "q-group-size,groupsize", LQ_OPT_INT, offsetof(lq_plan_opts, group), "N", "0", NULL, -1, 1 << 20, 0,
     "weights per scale; -1: one per row; 0: largest of 128, 64, 32 that fits"},
    {"sym", NULL, LQ_OPT_SET, offsetof(lq_plan_opts, asym), NULL, NULL, NULL, 0, 0, 2, "symmetric (default but for awq)"},
    {"asym", "zero-point", LQ_OPT_SET, offsetof(lq_plan_opts, asym), NULL, NULL, NULL, 0, 0, 1, "asymmetric: integer zero points"},
    {"scheme", "qformat", LQ_OPT_STRING, offsetof(lq_plan_opts, scheme), "TYPE", NULL, NULL, 0, 0, 0, "named type instead of the three above (lquant list types)"},
    {"scale-dtype", NULL, LQ_OPT_CHOICE, offsetof(lq_plan_opts, scale_dtype), NULL, "both", "both|f16", 0, 0, 0, "~scales exact in F16 and BF16, or in F16 only"},
    {"tensor-type", NULL, LQ_OPT_LIST, offsetof(lq_plan_opts, tensor_type), "REGEX=TYPE", NULL, NULL, 0, 0, 0, "another type for matching modules; repeatable"},
    {"ignore", "ignore-layers", LQ_OPT_LIST, offsetof(lq_plan_opts, ignore), "REGEX", NULL, NULL, 0, 0, 0, "keep matching modules unquantized; repeatable"},
    {"keep-unfit", NULL, LQ_OPT_SET, offsetof(lq_plan_opts, keep_unfit), NULL, NULL, NULL, 0, 0, 1, "~keep linears the format cannot hold"},
    {"output-tensor-type", NULL, LQ_OPT_STRING, offsetof(lq_plan_opts, output_type), "TYPE", NULL, NULL, 0, 0, 0, "~mixtures of a GGUF (--scheme Q4_K_M): of output.weight"},
    {"token-embedding-type", NULL, LQ_OPT_STRING, offsetof(lq_plan_opts, embed_type), "TYPE", NULL, NULL, 0, 0, 0, "~mixtures: of the embedding"},
    {"leave-output-tensor", NULL, LQ_OPT_SET, offsetof(lq_plan_opts, leave_output), NULL, NULL, NULL, 0, 0, 1, "~mixtures: output.weight stays as it is"},
    {"pure", NULL, LQ_OPT_SET, offsetof(lq_plan_opts, pure), NULL, NULL, NULL, 0, 0, 1, "~mixtures: one type for all"},
    {"no-fallback", NULL, LQ_OPT_SET, offsetof(lq_plan_opts, no_fallback), NULL, NULL, NULL, 0, 0, 1, "~mixtures: refuse rows that blocks of 256 do not divide"},
    {"dtype", NULL, LQ_OPT_CHOICE, offsetof(lq_plan_opts, dtype), NULL, "bf16", LQ_FLOAT_CHOICES, 0, 0, 0, "~kept tensors of a GGUF input"},
    {0}};

lq_dtype lq_float_choice(int index) {
    static const lq_dtype types[] = {LQ_BF16, LQ_F16, LQ_F32};
    return types[index];
}

/* What --scheme, or the method, and the options make of a linear that no rule names. */
static lq_type_defaults defaults_of(const lq_plan_opts *o) {
    return (lq_type_defaults){.group = o->group, .asym = o->asym == 1, .f16_scales = o->scale_dtype};
}

static lq_status match(lq_ctx *ctx, const char *regex, size_t n, const char *name, bool *hit) {
    int err;
    PCRE2_SIZE at;
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)regex, n, 0, &err, &at, NULL);
    if (!re) {
        PCRE2_UCHAR msg[128];
        pcre2_get_error_message(err, msg, sizeof msg);
        return lq_fail(ctx, LQ_ERR_USAGE, "regular expression '%.*s': %s at %zu", (int)n, regex, (char *)msg, at);
    }
    pcre2_match_data *md = pcre2_match_data_create_from_pattern(re, NULL);
    int rc = md ? pcre2_match(re, (PCRE2_SPTR)name, strlen(name), 0, 0, md, NULL) : PCRE2_ERROR_NOMEMORY;
    pcre2_match_data_free(md);
    pcre2_code_free(re);
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH) return lq_fail(ctx, LQ_ERR_USAGE, "regular expression '%.*s' on '%s': error %d", (int)n, regex, name, rc);
    *hit = rc >= 0;
    return LQ_OK;
}

static lq_status rule_type(lq_ctx *ctx, const char *rule, const lq_plan_opts *o, size_t *regex_len, lq_want *out) {
    const char *eq = strrchr(rule, '=');
    lq_type_defaults d = defaults_of(o);
    if (!eq || eq == rule) return lq_fail(ctx, LQ_ERR_USAGE, "--tensor-type %s: expected REGEX=TYPE", rule);
    *regex_len = (size_t)(eq - rule);
    return lq_type_parse(ctx, eq + 1, &d, out);
}

/* Every rule is well-formed; one that touches no linear is probably a mistake. */
static lq_status check_rules(lq_ctx *ctx, const lq_catalog *cat, const lq_plan_opts *o) {
    for (size_t i = 0; i < o->tensor_type.n + o->ignore.n; i++) {
        bool typed = i < o->tensor_type.n, hit = false;
        const char *rule = typed ? o->tensor_type.v[i] : o->ignore.v[i - o->tensor_type.n];
        size_t n = strlen(rule);
        lq_want unused;
        char module[256];
        if (typed) LQ_TRY(rule_type(ctx, rule, o, &n, &unused));
        for (size_t k = 0; k < cat->n && !hit; k++)
            if (cat->rows[k].linear && cat->rows[k].part == LQ_PART_WEIGHT)
                LQ_TRY(match(ctx, rule, n, lq_row_module(&cat->rows[k], module, sizeof module), &hit));
        for (size_t k = 0; k < cat->n && !hit && typed; k++)
            if (cat->rows[k].linear && cat->rows[k].gguf_name) LQ_TRY(match(ctx, rule, n, cat->rows[k].gguf_name, &hit));
        if (!hit) lq_log(ctx, LQ_LOG_WARN, "%s %s matches no linear", typed ? "--tensor-type" : "--ignore", rule);
    }
    return LQ_OK;
}

/* -- mixtures ---------------------------------------------------------------------------------------------------------- */

static const lq_mixture *mixture_of(const lq_plan_opts *o) {
    if (o->mixture) return lq_mixture_by_name(o->mixture);
    const lq_mixture *m = o->scheme ? lq_mixture_by_name(o->scheme) : NULL;
    return m && m->only && !strcmp(m->name, o->scheme) ? m : NULL;
}

static lq_status float_or_block(lq_ctx *ctx, const char *name, lq_dtype *out) {
    const lq_mixture *m = name ? lq_mixture_by_name(name) : NULL;
    *out = m ? m->base : LQ_NONE;
    if (!name || (m && !m->only)) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_USAGE, "'%s' is no block type of a GGUF that is written (lquant list types) and none of F32, F16, BF16", name);
}

/* The want of a block or float type. */
static lq_status want_of(lq_ctx *ctx, lq_dtype t, lq_want *out) {
    *out = (lq_want){.keep = true, .as = t};
    return lq_dtypes[t].block > 1 ? lq_type_parse(ctx, lq_dtypes[t].name, &(lq_type_defaults){0}, out) : LQ_OK;
}

static lq_status mix(lq_ctx *ctx, const lq_catalog *cat, const lq_plan_opts *o, const lq_mixture *m, lq_dtype *types) {
    lq_mixture_opts mo = {.pure = o->pure, .leave_output = o->leave_output, .imatrix = o->imatrix, .no_fallback = o->no_fallback};
    LQ_TRY(float_or_block(ctx, o->output_type, &mo.output));
    LQ_TRY(float_or_block(ctx, o->embed_type, &mo.embed));
    return lq_mixture_types(ctx, m, &mo, cat, types);
}

/* The type the options ask for, before group size 0 is settled. mixed: *base is this row's by a mixture. */
static lq_status wanted(lq_ctx *ctx, lq_row *row, const lq_plan_opts *o, const lq_want *base, bool mixed, lq_want *out) {
    char module[256];
    bool hit;
    *out = *base;
    if (!mixed && (row->slot.role == LQ_R_HEAD || row->slot.role == LQ_R_EMBED)) {
        out->keep = true;
        row->why_kept = "kept by default";
    }
    if (lq_role_is_router((lq_role)row->slot.role)) {
        out->keep = true;
        row->why_kept = "kept by default";
    }
    lq_row_module(row, module, sizeof module);
    for (size_t i = 0; i < o->tensor_type.n; i++) {
        size_t n = 0;
        lq_want type;
        LQ_TRY(rule_type(ctx, o->tensor_type.v[i], o, &n, &type));
        LQ_TRY(match(ctx, o->tensor_type.v[i], n, module, &hit));
        if (!hit && row->gguf_name && mixed) LQ_TRY(match(ctx, o->tensor_type.v[i], n, row->gguf_name, &hit));
        if (!hit) continue;
        *out = type;
        row->why_kept = out->keep ? "--tensor-type" : NULL;
    }
    for (size_t i = 0; i < o->ignore.n; i++) {
        LQ_TRY(match(ctx, o->ignore.v[i], strlen(o->ignore.v[i]), module, &hit));
        if (!hit) continue;
        out->keep = true;
        row->why_kept = "--ignore";
    }
    return LQ_OK;
}

static int64_t largest_group(uint64_t widths) {
    for (int g = 128; g >= 32; g /= 2)
        if (widths % (uint64_t)g == 0) return g;
    return -1;
}

static uint64_t gcd(uint64_t a, uint64_t b) {
    while (b) {
        uint64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

static lq_status legal(lq_ctx *ctx, const lq_plan *p, const lq_plan_opts *o, const lq_row *row) {
    uint32_t rows = lq_row_rows(row), cols = lq_row_cols(row);
    int64_t group = lq_scheme_group(&row->scheme);
    if (group > 0 && cols % (uint64_t)group) {
        int64_t near = largest_group(cols);
        if (row->scheme.scale.dtype == LQ_E8M0 || row->scheme.scale.dtype == LQ_E4M3)
            return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%s: blocks of %lld do not divide its %u columns; --keep-unfit keeps it", row->name, (long long)group, cols);
        if (near > 0)
            return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%s: group size %lld does not divide its %u columns; nearest that does: --group-size %lld",
                           row->name, (long long)group, cols, (long long)near);
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%s: group size %lld does not divide its %u columns; use --group-size -1 or --keep-unfit",
                       row->name, (long long)group, cols);
    }
    lq_status st = p->method->accept ? p->method->accept(ctx, p->method_opts, rows, cols, &row->scheme) : LQ_OK;
    if (st) return lq_note(ctx, st, "%s", row->name);
    char name[64];
    st = p->format->accept(ctx, &row->scheme, rows, cols);
    if (st && o->also && *o->also) lq_note(ctx, st, "format %s", p->format->name);
    for (const lq_format *const *f = o->also; !st && f && *f; f++) {
        st = (*f)->accept(ctx, &row->scheme, rows, cols);
        if (st) lq_note(ctx, st, "format %s", (*f)->name);
    }
    if (!st) return LQ_OK;
    return lq_note(ctx, st, "%s as %s", row->name, lq_scheme_name(&row->scheme, name, sizeof name));
}

static void keep(const lq_plan *p, lq_row *row, const lq_plan_opts *o, lq_dtype as) {
    row->quantize = false;
    bool block_type = lq_dtypes[row->dtype].block > 1 && !p->format->gguf;
    row->out_dtype = block_type || row->dtype == LQ_NONE ? lq_float_choice(o->dtype) : row->dtype;
    if (as != LQ_NONE) row->out_dtype = as;
    if (p->format->kept) row->out_dtype = p->format->kept(row, row->out_dtype);
}

static void tally(lq_plan *p, const lq_row *row) {
    uint64_t n = lq_row_elems(row);
    if (row->dtype != LQ_NONE) p->bytes_source += n / lq_dtypes[row->dtype].block * lq_dtypes[row->dtype].bytes;
    else p->bytes_source += lq_scheme_bytes(&row->scheme, lq_row_rows(row), lq_row_cols(row));
    if (!row->quantize) {
        p->n_kept += row->linear;
        p->bytes_kept += n / lq_dtypes[row->out_dtype].block * lq_dtypes[row->out_dtype].bytes;
        return;
    }
    p->n_quantized++;
    p->weights += n;
    p->bytes_quantized += lq_scheme_bytes(&row->scheme, lq_row_rows(row), lq_row_cols(row));
}

static lq_grid float_grid(lq_dtype t, const lq_plan_opts *o) {
    if (t != LQ_F32 && t != LQ_F16 && t != LQ_BF16) t = lq_float_choice(o->dtype);
    lq_grid g = {.kind = t == LQ_F32 ? LQ_GRID_F32 : t == LQ_F16 ? LQ_GRID_F16 : LQ_GRID_BF16, .bits = t == LQ_F32 ? 32 : 16, .vec = 1};
    return g;
}

/* A block type that is already what it should become is copied. */
static lq_status copied(lq_ctx *ctx, const lq_plan *p, lq_row *row, const lq_plan_opts *o, const lq_want *w) {
    if (lq_gguf_block_type(&w->scheme) != row->dtype)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%s: requantizing from %s costs quality; --allow-requantize does it", row->name, lq_dtypes[row->dtype].name);
    keep(p, row, o, row->dtype);
    row->why_kept = "is of that type already";
    return LQ_OK;
}

static lq_status settle(lq_ctx *ctx, lq_plan *p, lq_row *row, const lq_plan_opts *o, const lq_want *w) {
    if (w->keep) {
        keep(p, row, o, w->as);
        return LQ_OK;
    }
    if (o->no_requantize && lq_dtypes[row->dtype].block > 1) return copied(ctx, p, row, o, w);
    if (row->dtype == LQ_NONE && !o->requantize)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%s: is quantized already%s", row->name, o->no_requantize ? "; --allow-requantize does it again, and costs quality" : "");
    if (row->slot.role == LQ_R_EMBED && !p->format->ext) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%s: embeddings stay in their source type", row->name);
    row->quantize = true;
    row->why_kept = NULL;
    row->scheme = w->scheme;
    if (w->knobs & LQ_TYPE_SOURCE) row->scheme.grid = float_grid(row->dtype, o);
    if (p->method->refine) p->method->refine(p->method_opts, &row->scheme);
    lq_status st = legal(ctx, p, o, row);
    if (st == LQ_ERR_UNSUPPORTED && o->keep_unfit) {
        lq_log(ctx, LQ_LOG_WARN, "kept: %s", ctx->msg);
        row->why_kept = "--keep-unfit";
        keep(p, row, o, LQ_NONE);
        return LQ_OK;
    }
    return st;
}

static lq_status base_want(lq_ctx *ctx, const lq_plan_opts *o, const lq_method *m, lq_want *base) {
    char name[64];
    lq_type_defaults d = defaults_of(o);
    const lq_mixture *mixture = mixture_of(o);
    if (mixture) return want_of(ctx, mixture->base, base);
    snprintf(name, sizeof name, "%s", o->scheme ? o->scheme : o->recipe_type ? o->recipe_type : m->type ? m->type : "int*");
    char *asym = o->scheme || o->asym != 2 ? NULL : strstr(name, "-asym"); /* --sym outranks the default */
    if (asym) *asym = 0;
    char *star = strchr(name, '*'); /* where --bits goes */
    if (star) *star = (char)('0' + o->bits);
    lq_status st = lq_type_parse(ctx, name, &d, base);
    if (st && !o->scheme) return lq_note(ctx, st, "%s with --bits %lld", m->name, (long long)o->bits);
    if (st) return st;
    if (!o->scheme && o->group && base->knobs & LQ_TYPE_GROUP) lq_want_group(base, o->group); /* over the method's own */
    return base->keep ? lq_fail(ctx, LQ_ERR_USAGE, "--scheme %s: nothing would be quantized", name) : LQ_OK;
}

/* Whether the method keeps groups; a size that was asked for and would be dropped is refused. */
static lq_status grouped(lq_ctx *ctx, const lq_plan_opts *o, const lq_method *m, const void *opts, const lq_want *base, bool *yes) {
    bool knob = base->knobs & LQ_TYPE_GROUP, asked = knob ? !base->open && lq_scheme_group(&base->scheme) : o->group && !o->tensor_type.n;
    lq_scheme s = base->scheme;
    if (m->refine) m->refine(opts, &s);
    *yes = lq_scheme_group(&s) != 0;
    if (!asked || (knob && *yes)) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_USAGE, "--group-size: what %s makes with these options has no group size to choose", m->name);
}

lq_status lq_plan_base(lq_ctx *ctx, const lq_plan_opts *o, const lq_method *method, const void *method_opts, lq_scheme *out) {
    lq_want base;
    LQ_TRY(base_want(ctx, o, method, &base));
    *out = base.scheme;
    if (method->refine) method->refine(method_opts, out);
    return LQ_OK;
}

lq_status lq_plan_make(lq_ctx *ctx, lq_catalog *cat, const lq_plan_opts *o, const lq_method *method, const void *method_opts,
                       const lq_format *format, lq_plan *out) {
    lq_want base, *wants = LQ_NEWN(lq_want, cat->n + 1);
    lq_dtype *types = LQ_NEWN(lq_dtype, cat->n + 1);
    const lq_mixture *mixture = mixture_of(o);
    *out = (lq_plan){.cat = cat, .method = method, .method_opts = method_opts, .format = format, .file_type = mixture ? mixture->number : -1};
    lq_status st = wants && types ? LQ_OK : lq_oom(ctx, cat->n * sizeof *wants);
    LQ_GO(st);
    if (mixture && !format->gguf) LQ_GO(lq_fail(ctx, LQ_ERR_USAGE, "%s is a mixture of a GGUF; name OUT something.gguf or say --format gguf", mixture->name));
    if (mixture) LQ_GO(mix(ctx, cat, o, mixture, types));
    uint64_t widths = 0;
    bool groups;
    LQ_GO(base_want(ctx, o, method, &base));
    LQ_GO(grouped(ctx, o, method, method_opts, &base, &groups));
    LQ_GO(check_rules(ctx, cat, o));
    for (size_t i = 0; i < cat->n; i++) {
        lq_row *row = &cat->rows[i];
        wants[i].keep = true;
        if (!row->linear || row->part != LQ_PART_WEIGHT) continue;
        lq_want own = base;
        if (types[i] != LQ_NONE) LQ_GO(want_of(ctx, types[i], &own));
        LQ_GO(wanted(ctx, row, o, &own, types[i] != LQ_NONE, &wants[i]));
        if (!wants[i].keep && wants[i].open && !(o->keep_unfit && lq_row_cols(row) % 32)) widths = gcd(widths, lq_row_cols(row));
    }
    int64_t group = base.open ? largest_group(widths) : lq_scheme_group(&base.scheme);
    if (widths && groups) lq_log(ctx, LQ_LOG_INFO, "group size %lld: the largest of 128, 64, 32 that divides every quantized width%s", (long long)group,
                       group < 0 ? " (none does: one scale per row)" : "");
    out->group = groups ? group : 0;
    for (size_t i = 0; i < cat->n; i++) {
        if (wants[i].open) lq_want_group(&wants[i], group);
        LQ_GO(settle(ctx, out, &cat->rows[i], o, &wants[i]));
        tally(out, &cat->rows[i]);
    }
    if (!out->n_quantized) st = lq_fail(ctx, LQ_ERR_USAGE, "nothing is left to quantize");
done:
    lq_free(wants);
    lq_free(types);
    return st;
}

void lq_plan_keep(lq_plan *p, const lq_plan_opts *o, lq_row *row, const char *why) {
    p->n_quantized--;
    p->weights -= lq_row_elems(row);
    p->bytes_quantized -= lq_scheme_bytes(&row->scheme, lq_row_rows(row), lq_row_cols(row));
    keep(p, row, o, LQ_NONE);
    row->why_kept = why;
    p->n_kept++;
    p->bytes_kept += lq_row_elems(row) * lq_dtypes[row->out_dtype].bytes;
}

double lq_plan_bpw(const lq_plan *p) { return p->weights ? 8.0 * (double)p->bytes_quantized / (double)p->weights : 0; }

void lq_plan_print(const lq_plan *p, FILE *out) {
    char name[64];
    fprintf(out, "%-44s %13s  %-8s %-18s %8s %12s\n", "tensor", "shape", "from", "to", "bits/w", "bytes");
    for (size_t i = 0; i < p->cat->n; i++) {
        const lq_row *r = &p->cat->rows[i];
        char shape[40];
        snprintf(shape, sizeof shape, r->ndim > 1 ? "%u x %u" : "%u", lq_row_rows(r), lq_row_cols(r));
        uint64_t n = lq_row_elems(r), bytes = r->quantize ? lq_scheme_bytes(&r->scheme, lq_row_rows(r), lq_row_cols(r)) : n / lq_dtypes[r->out_dtype].block * lq_dtypes[r->out_dtype].bytes;
        fprintf(out, "%-44s %13s  %-8s %-18s %8.3f %12llu%s%s\n", r->name, shape, lq_dtypes[r->dtype].name,
                r->quantize ? lq_scheme_name(&r->scheme, name, sizeof name) : lq_dtypes[r->out_dtype].name, n ? 8.0 * (double)bytes / (double)n : 0,
                (unsigned long long)bytes, r->why_kept ? "  " : "", r->why_kept ? r->why_kept : "");
    }
    fprintf(out, "quantized %u linears, %.3f bits per weight; kept %u linears; %.1f MB -> %.1f MB\n", p->n_quantized, lq_plan_bpw(p), p->n_kept,
            (double)p->bytes_source / 1e6, (double)(p->bytes_quantized + p->bytes_kept) / 1e6);
}
