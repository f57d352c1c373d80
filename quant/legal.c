/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The rules of legal_rules.c asked of a plan; the nearest settings that break none are found by planning with others. */
#include "quant/legal.h"

#include <stdlib.h>
#include <string.h>

static bool listed(const char *list, const char *name) {
    size_t n = strlen(name);
    for (const char *p = list; *p; p += strcspn(p, "|"), p += *p == '|')
        if (*p == '*' || (strcspn(p, "|") == n && !memcmp(p, name, n))) return true;
    return false;
}

/* -- targets --------------------------------------------------------------------------------------------------------- */

static lq_status add_part(lq_ctx *ctx, const char *part, size_t n, lq_targets *out) {
    char *end;
    if (n > 3 && !memcmp(part, "tp=", 3)) {
        unsigned long tp = strtoul(part + 3, &end, 10);
        if (!out->n || end != part + n || tp < 1 || tp > 1024) return lq_fail(ctx, LQ_ERR_USAGE, "--target: '%.*s' is no tp=N of 1..1024 behind a name", (int)n, part);
        if (!lq_runtimes[out->v[out->n - 1].runtime].tp)
            return lq_fail(ctx, LQ_ERR_USAGE, "--target: tp=%lu is for vllm and trtllm, not %s", tp, lq_runtimes[out->v[out->n - 1].runtime].name);
        out->v[out->n - 1].tp = (uint32_t)tp;
        return LQ_OK;
    }
    if (out->n == LQ_TARGETS_MAX) return lq_fail(ctx, LQ_ERR_USAGE, "--target: more than %d", LQ_TARGETS_MAX);
    for (int i = 0; i < LQ_RUNTIMES; i++) {
        if (strlen(lq_runtimes[i].name) != n || memcmp(lq_runtimes[i].name, part, n)) continue;
        out->v[out->n++] = (lq_deploy){(lq_runtime)i, 1};
        return LQ_OK;
    }
    return lq_fail(ctx, LQ_ERR_USAGE, "--target: unknown runtime '%.*s'; known: vllm, transformers, gptqmodel, llama.cpp, trtllm, mlx", (int)n, part);
}

lq_status lq_targets_parse(lq_ctx *ctx, const lq_strlist *texts, lq_targets *out) {
    *out = (lq_targets){.n = 0};
    for (size_t i = 0; i < texts->n; i++)
        for (const char *p = texts->v[i];; p++) {
            size_t n = strcspn(p, ",");
            LQ_TRY(add_part(ctx, p, n, out));
            p += n;
            if (!*p) break;
        }
    return LQ_OK;
}

/* -- asking ---------------------------------------------------------------------------------------------------------- */

static bool splits_inputs(lq_role r) { return r == LQ_R_O || r == LQ_R_DOWN || r == LQ_R_EXPERT_DOWN || r == LQ_R_SHARED_DOWN; }
static bool splits_outputs(lq_role r) {
    return r == LQ_R_Q || r == LQ_R_K || r == LQ_R_V || r == LQ_R_QKV || r == LQ_R_GATE || r == LQ_R_UP || r == LQ_R_GATE_UP || r == LQ_R_EXPERT_GATE ||
           r == LQ_R_EXPERT_UP || r == LQ_R_SHARED_GATE || r == LQ_R_SHARED_UP || r == LQ_R_HEAD;
}

static lq_piece piece_of(const lq_legal_case *c, const lq_row *row, uint32_t tp) {
    lq_role role = (lq_role)row->slot.role;
    lq_piece p = {.c = c, .row = row, .s = row->quantize ? &row->scheme : NULL, .tp = tp, .parts_r = 1, .parts_c = 1};
    if (splits_outputs(role)) p.parts_r = tp;
    if ((role == LQ_R_K || role == LQ_R_V) && c->n_kv_heads && c->n_kv_heads < tp) p.parts_r = c->n_kv_heads; /* heads are copied */
    if (splits_inputs(role)) p.parts_c = tp;
    p.rows = lq_row_rows(row) / p.parts_r;
    p.cols = lq_row_cols(row) / p.parts_c;
    return p;
}

static bool is_linear(const lq_row *r) { return r->linear && r->part == LQ_PART_WEIGHT && !lq_role_is_router((lq_role)r->slot.role); }

static bool alike(lq_rule_scope scope, const lq_row *a, const lq_row *b) {
    if (!is_linear(a) || !is_linear(b) || a->slot.block != b->slot.block || (!a->quantize && !b->quantize)) return false;
    if (scope == LQ_OF_FUSED) return a->fuse >= 0 && a->fuse == b->fuse && !lq_role_is_expert((lq_role)a->slot.role);
    return lq_role_is_expert((lq_role)a->slot.role) && lq_role_is_expert((lq_role)b->slot.role);
}

/* A row is compared with the first of its kind in its block: rows of a block are neighbours in the catalog. */
static bool pairs_break(const lq_rule *rule, const lq_legal_case *c, uint32_t tp, lq_breach *out) {
    for (size_t i = 0; i < c->cat->n; i++) {
        const lq_row *a = &c->cat->rows[i];
        lq_piece pa = piece_of(c, a, tp);
        for (size_t k = i + 1; k < c->cat->n && c->cat->rows[k].slot.block == a->slot.block; k++) {
            const lq_row *b = &c->cat->rows[k];
            if (!alike(rule->scope, a, b)) continue;
            lq_piece pb = piece_of(c, b, tp);
            *out = (lq_breach){rule, a, b};
            if (rule->breaks(&pa, &pb)) return true;
            break; /* the next one compares itself with b */
        }
    }
    return false;
}

static bool rule_broken(const lq_rule *rule, const lq_legal_case *c, uint32_t tp, lq_breach *out) {
    *out = (lq_breach){.rule = rule};
    if (rule->scope == LQ_OF_FORMAT) return true;
    if (rule->scope == LQ_OF_MODEL) return rule->breaks(&(lq_piece){.c = c, .tp = tp}, NULL);
    if (rule->scope != LQ_OF_LINEAR) return pairs_break(rule, c, tp, out);
    for (size_t i = 0; i < c->cat->n; i++) {
        const lq_row *row = &c->cat->rows[i];
        if (!is_linear(row) || !row->quantize) continue;
        lq_piece p = piece_of(c, row, tp);
        *out = (lq_breach){rule, row, NULL};
        if (rule->breaks(&p, NULL)) return true;
    }
    return false;
}

bool lq_legal_breach(const lq_legal_case *c, lq_deploy d, lq_breach *out) {
    for (const lq_rule *r = lq_rules; r->says; r++)
        if (r->runtime == d.runtime && listed(r->formats, c->format) && (!r->archs || listed(r->archs, c->model_type)) && rule_broken(r, c, d.tp, out)) return true;
    return false;
}

/* "model.layers.0.mlp.down_proj.weight as int4-sym-g128: " or what else the sentence is about. */
static void breach_text(const lq_breach *b, lq_deploy d, const lq_legal_case *c, char *out, size_t n) {
    char type[64], other[64], tp[24] = "";
    if (d.tp > 1) snprintf(tp, sizeof tp, " with tp=%u", d.tp);
    const lq_row *r = b->row;
    size_t at = 0;
    if (r && b->other)
        at = (size_t)snprintf(out, n, "%s is %s, %s is %s: ", r->name, r->quantize ? lq_scheme_name(&r->scheme, type, sizeof type) : "kept", b->other->name,
                              b->other->quantize ? lq_scheme_name(&b->other->scheme, other, sizeof other) : "kept");
    else if (r) at = (size_t)snprintf(out, n, "%s (%u x %u) as %s: ", r->name, lq_row_rows(r), lq_row_cols(r), lq_scheme_name(&r->scheme, type, sizeof type));
    if (at >= n) at = n - 1;
    snprintf(out + at, n - at, "%s%s will not load it as %s: %s%s%s", lq_runtimes[d.runtime].what, tp, c->format, b->rule->archs ? c->model_type : "",
             b->rule->archs ? ": " : "", b->rule->says);
}

lq_status lq_legal_check(lq_ctx *ctx, const lq_legal_case *c, const lq_targets *t) {
    lq_breach b;
    char text[1024];
    for (size_t i = 0; i < t->n; i++) {
        if (!lq_legal_breach(c, t->v[i], &b)) continue;
        breach_text(&b, t->v[i], c, text, sizeof text);
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%s", text);
    }
    return LQ_OK;
}

void lq_legal_notes(lq_ctx *ctx, const lq_legal_case *c) {
    lq_breach b;
    const char *same = NULL; /* a reason that holds everywhere is said once */
    int n = 0;
    for (int i = 0; i < LQ_RUNTIMES; i++)
        if (lq_legal_breach(c, (lq_deploy){(lq_runtime)i, 1}, &b) && (!same || !strcmp(same, b.rule->says))) same = b.rule->says, n++;
    if (n == LQ_RUNTIMES) {
        lq_log(ctx, LQ_LOG_INFO, "no other runtime loads it: %s", same);
        return;
    }
    for (int i = 0; i < LQ_RUNTIMES; i++) {
        if (!lq_legal_breach(c, (lq_deploy){(lq_runtime)i, 1}, &b)) continue;
        lq_log(ctx, LQ_LOG_INFO, "%s will not load it: %s%s%s", lq_runtimes[i].name, b.rule->says, b.row ? ", unlike " : "", b.row ? b.row->name : "");
    }
}

/* -- the format for a target ----------------------------------------------------------------------------------------- */

bool lq_legal_format(const char *format, const lq_scheme *s, const lq_targets *t) {
    lq_row row = {.name = "", .ndim = 2, .shape = {4096, 4096}, .linear = true, .quantize = true, .scheme = *s, .fuse = -1};
    lq_catalog cat = {.rows = &row, .n = 1};
    lq_legal_case c = {.cat = &cat, .format = format, .model_type = ""};
    return !lq_legal_check(NULL, &c, t);
}

static bool takes(const char *format, const lq_scheme *s, const lq_targets *t) {
    const lq_format *f = lq_format_by_name(format);
    return f && !f->accept(NULL, s, 4096, 4096) && lq_legal_format(format, s, t);
}

const char *lq_legal_choose(const char *natural, const lq_scheme *s, const lq_targets *t) {
    if (!t->n || (natural && takes(natural, s, t))) return natural;
    const char *p = lq_runtimes[t->v[0].runtime].formats;
    for (size_t n; *p; p += n + (p[n] == '|')) {
        char name[32] = "";
        n = strcspn(p, "|");
        if (n < sizeof name) memcpy(name, p, n);
        if (takes(name, s, t)) return lq_format_by_name(name)->name;
    }
    return NULL;
}

/* -- planning for a target ------------------------------------------------------------------------------------------- */

typedef struct change { const char *format, *scheme; int64_t bits, group; bool sym; } change; /* NULL, 0, false: as it is */

static lq_status plan_as(lq_ctx *ctx, const lq_legal_run *run, const lq_legal_case *c, const change *ch, lq_plan *out) {
    lq_plan_opts o = *run->opts;
    lq_legal_case as = *c;
    if (ch->format) as.format = ch->format;
    if (ch->scheme) o.scheme = ch->scheme;
    if (ch->bits) o.bits = ch->bits;
    if (ch->group) o.group = ch->group;
    if (ch->sym) o.asym = 2;
    LQ_TRY(lq_plan_make(ctx, c->cat, &o, run->method, run->method_opts, lq_format_by_name(as.format), out));
    return lq_legal_check(ctx, &as, run->targets);
}

static bool loads(const lq_legal_run *run, const lq_legal_case *c, const change *ch) {
    lq_ctx quiet = {0};
    lq_plan plan;
    return !plan_as(&quiet, run, c, ch, &plan);
}

/* The i-th change of `most` settings; false behind the last. Groups first: they cost least. */
static bool change_at(const lq_legal_run *run, size_t i, int most, change *out) {
    static const int64_t groups[] = {0, 128, 64, 32, -1}, widths[] = {0, 4, 8};
    size_t n_formats = 0;
    while (lq_formats[n_formats]) n_formats++;
    size_t f = i / 30;
    if (f > n_formats) return false;
    *out = (change){f ? lq_formats[f - 1]->name : NULL, NULL, widths[i / 10 % 3], groups[i % 5], i / 5 % 2};
    if (out->format && !strcmp(out->format, run->format->name)) out->format = NULL, most = -1;
    if ((out->bits && out->bits == run->opts->bits) || (out->group && out->group == run->opts->group)) most = -1;
    if (!!out->format + !!out->bits + !!out->group + out->sym != most) *out = (change){0};
    return true;
}

static bool is_none(const change *ch) { return !ch->format && !ch->bits && !ch->group && !ch->sym; }

/* Another format for the same codes is nearest of all. */
static bool other_format(const lq_legal_run *run, const lq_legal_case *c, const char *scheme, change *out) {
    char name[32];
    for (const char *p = lq_runtimes[run->targets->v[0].runtime].formats; *p; p += strcspn(p, "|"), p += *p == '|') {
        snprintf(name, sizeof name, "%.*s", (int)strcspn(p, "|"), p);
        const lq_format *f = lq_format_by_name(name);
        *out = (change){.format = f ? f->name : NULL, .scheme = scheme};
        if (f && f != run->format && loads(run, c, out)) return true;
    }
    return false;
}

/* A named type's fellow with other scales: the same numbers, the same width. */
static bool other_scheme(const lq_legal_run *run, const lq_legal_case *c, change *out) {
    lq_scheme base;
    if (!run->opts->scheme || lq_plan_base(&(lq_ctx){0}, run->opts, run->method, run->method_opts, &base)) return false;
    for (const lq_type *t = lq_types; t->name; t++) {
        const lq_scheme *s = &t->scheme;
        if (t->keep || s->grid.kind != base.grid.kind || s->grid.bits != base.grid.bits || s->act.kind != base.act.kind) continue;
        *out = (change){.scheme = t->name};
        if (loads(run, c, out) || other_format(run, c, t->name, out)) return true;
    }
    return false;
}

static bool nearest(const lq_legal_run *run, const lq_legal_case *c, change *out) {
    if (other_format(run, c, NULL, out)) return true;
    for (int most = 1; most <= 3; most++)
        for (size_t i = 0; change_at(run, i, most, out); i++)
            if (!is_none(out) && loads(run, c, out)) return true;
    return other_scheme(run, c, out);
}

/* The most devices, of fewer, that load it as it is; 0: none. */
static uint32_t fewer_devices(const lq_legal_run *run, const lq_legal_case *c) {
    lq_targets t = *run->targets;
    lq_legal_run as = *run;
    change none = {0};
    as.targets = &t;
    for (uint32_t tp = t.v[0].tp / 2; t.n == 1 && tp; tp /= 2) {
        t.v[0].tp = tp;
        if (loads(&as, c, &none)) return tp;
    }
    return 0;
}

static lq_status refuse(lq_ctx *ctx, const lq_legal_run *run, const lq_legal_case *c) {
    char said[sizeof ctx->msg], what[160] = "";
    change ch;
    size_t at = 0;
    memcpy(said, ctx->msg, sizeof said);
    uint32_t tp = fewer_devices(run, c);
    if (nearest(run, c, &ch)) {
        if (ch.format) at += (size_t)snprintf(what + at, sizeof what - at, " --format %s", ch.format);
        if (ch.scheme) at += (size_t)snprintf(what + at, sizeof what - at, " --scheme %s", ch.scheme);
        if (ch.bits) at += (size_t)snprintf(what + at, sizeof what - at, " --bits %lld", (long long)ch.bits);
        if (ch.sym) at += (size_t)snprintf(what + at, sizeof what - at, " --sym");
        if (ch.group) at += (size_t)snprintf(what + at, sizeof what - at, " --group-size %lld", (long long)ch.group);
    }
    if (tp && at) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%s; nearest that loads:%s, or tp=%u", said, what, tp);
    if (at) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%s; nearest that loads:%s", said, what);
    if (tp) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%s; it loads with tp=%u", said, tp);
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%s; no other format, width or group size of this method loads", said);
}

/* --keep-unfit: what breaks a rule stays as it is, with all that the runtime runs as one with it. */
static lq_status keep_unfit(lq_ctx *ctx, const lq_legal_run *run, const lq_legal_case *c, lq_plan *plan) {
    lq_breach b;
    for (size_t i = 0; i < run->targets->n; i++)
        while (lq_legal_breach(c, run->targets->v[i], &b)) {
            const lq_row *row = b.row && b.row->quantize ? b.row : b.other;
            if (!row) return lq_legal_check(ctx, c, run->targets);
            lq_log(ctx, LQ_LOG_WARN, "kept: %s: %s: %s", row->name, lq_runtimes[run->targets->v[i].runtime].name, b.rule->says);
            for (size_t k = 0; k < c->cat->n; k++) {
                lq_row *r = &c->cat->rows[k];
                if (r->quantize && (r == row || alike(LQ_OF_FUSED, row, r) || alike(LQ_OF_EXPERTS, row, r))) lq_plan_keep(plan, run->opts, r, "--keep-unfit");
            }
        }
    return plan->n_quantized ? LQ_OK : lq_fail(ctx, LQ_ERR_USAGE, "nothing is left to quantize");
}

/* The largest group size that loads; 0: none does, or there is nothing to choose. */
static int64_t open_group(const lq_legal_run *run, const lq_legal_case *c) {
    static const int64_t groups[] = {128, 64, 32, -1};
    if (run->opts->group) return 0;
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        if (loads(run, c, &(change){.group = groups[i]})) return groups[i];
    return 0;
}

lq_status lq_legal_plan(lq_ctx *ctx, const lq_legal_run *run, const lq_legal_case *c, lq_plan *out) {
    change as = {0};
    if (!run->targets->n || loads(run, c, &as)) return plan_as(ctx, run, c, &as, out);
    if ((as.group = open_group(run, c))) {
        lq_log(ctx, LQ_LOG_INFO, "group size %lld: the largest of 128, 64, 32 that every target loads", (long long)as.group);
        return plan_as(ctx, run, c, &as, out);
    }
    LQ_TRY(lq_plan_make(ctx, c->cat, run->opts, run->method, run->method_opts, run->format, out));
    if (run->opts->keep_unfit) return keep_unfit(ctx, run, c, out);
    lq_status st = lq_legal_check(ctx, c, run->targets);
    return st ? refuse(ctx, run, c) : LQ_OK;
}

const char *lq_legal_cell(lq_runtime rt, const char *format, char *buf, size_t n) {
    size_t at = 0;
    buf[0] = 0;
    for (const lq_rule *r = lq_rules; r->says; r++) {
        if (r->runtime != rt || !strcmp(r->formats, "*") || !listed(r->formats, format)) continue;
        if (r->scope == LQ_OF_FORMAT && !r->archs) return NULL;
        int k = snprintf(buf + at, n - at, "%s%s%s%s", at ? "; " : "", r->archs ? r->archs : "", r->archs ? ": " : "", r->says);
        at = k < 0 || (size_t)k >= n - at ? n - 1 : at + (size_t)k;
    }
    for (char *p = buf; (p = strchr(p, '|')); p++) *p = '/'; /* of model types: a bar would end the cell */
    return buf;
}

void lq_legal_print(FILE *out) {
    for (int i = 0; i < LQ_RUNTIMES; i++) {
        fprintf(out, "%s: %s; preferred formats: %s\n", lq_runtimes[i].name, lq_runtimes[i].what, lq_runtimes[i].formats);
        for (const lq_rule *r = lq_rules; r->says; r++)
            if ((int)r->runtime == i) fprintf(out, "  %-26s %s%s%s%s%s%s\n", r->formats, r->archs ? r->archs : "", r->archs ? ": " : "", r->says, *r->source ? " (" : "", r->source, *r->source ? ")" : "");
    }
}
