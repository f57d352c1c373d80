/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Method x format on a tiny model, and format x architecture on the golden ones. A cell works when the checkpoint is written, read back to
 * the method's codes (by the pipeline), and the model in it gives the logits that the same codes give from an lqt file; or the format
 * refuses before work starts for a reason in format_refusals.h. Both tables are walked: a new row is tested by itself. */
#define _DEFAULT_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "format_refusals.h"

enum { HIDDEN = 256, FFN = 256, VOCAB = 64, TOKENS = 24 };
static const char config[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"vocab_size\": 64, \"hidden_size\": 256, \"intermediate_size\": 256, "
    "\"num_hidden_layers\": 1, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"max_position_embeddings\": 64, \"rms_norm_eps\": 1e-05, "
    "\"hidden_act\": \"silu\", \"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\"}\n";

static const char letters[] = "letters_bytes.json"; /* byte-level: GGUF holds it */

typedef struct part { const char *name; uint32_t rows, cols; } part;
static const part parts[] = {
    {"model.embed_tokens.weight", VOCAB, HIDDEN}, {"model.norm.weight", HIDDEN, 0}, {"lm_head.weight", VOCAB, HIDDEN},
#define B "model.layers.0."
    {B "input_layernorm.weight", HIDDEN, 0}, {B "post_attention_layernorm.weight", HIDDEN, 0}, {B "self_attn.q_proj.weight", HIDDEN, HIDDEN},
    {B "self_attn.k_proj.weight", HIDDEN / 2, HIDDEN}, {B "self_attn.v_proj.weight", HIDDEN / 2, HIDDEN}, {B "self_attn.o_proj.weight", HIDDEN, HIDDEN},
    {B "mlp.gate_proj.weight", FFN, HIDDEN}, {B "mlp.up_proj.weight", FFN, HIDDEN}, {B "mlp.down_proj.weight", HIDDEN, FFN},
#undef B
};
enum { PARTS = sizeof parts / sizeof *parts };

/* A block whose widths every block size divides; weights a few times wider spread than a normal, as those of models. */
static void make_model(void) {
    char dir[64];
    lq_st_tensor t[PARTS];
    lq_st_writer *w;
    lq_rng rng;
    snprintf(dir, sizeof dir, "%s/in", matrix_dir);
    for (int i = 0; i < PARTS; i++)
        t[i] = (lq_st_tensor){.name = (char *)(uintptr_t)parts[i].name, .dtype = LQ_BF16, .ndim = parts[i].cols ? 2 : 1, .shape = {parts[i].rows, parts[i].cols}};
    assert_int_equal(lq_st_create(NULL, dir, t, PARTS, 1 << 30, &w), LQ_OK);
    lq_rng_seed(&rng, 11, 1);
    for (int i = 0; i < PARTS; i++) {
        size_t n = (size_t)parts[i].rows * (parts[i].cols ? parts[i].cols : 1);
        float *x = LQ_NEWN(float, n);
        uint16_t *v = LQ_NEWN(uint16_t, n);
        for (size_t k = 0; k < n; k++) x[k] = parts[i].cols ? 0.05f * lq_rng_normal(&rng) * (lq_rng_below(&rng, 50) ? 1 : 4) : 0.5f + lq_rng_unit(&rng);
        lq_dtype_encode(LQ_BF16, x, v, n);
        assert_int_equal(lq_st_put(NULL, w, parts[i].name, v, 2 * n), LQ_OK);
        lq_free(v);
        lq_free(x);
    }
    assert_int_equal(lq_st_finish(NULL, &w), LQ_OK);
    strcat(dir, "/config.json");
    assert_int_equal(lq_write_file(NULL, dir, config, sizeof config - 1), LQ_OK);
    copy_file(LQ_SOURCE_ROOT "/tests/cli", letters, "tokenizer.json");
}

/* -- one cell -------------------------------------------------------------------------------------------------------- */

static int32_t ids[TOKENS];
static uint32_t n_ids;

static void cell_name(char *cell, size_t n, const char *text, const char *const *flags) {
    size_t at = (size_t)snprintf(cell, n, "%s", text);
    for (const char *const *p = flags; *p; p++) at += (size_t)snprintf(cell + at, n - at, " %s", *p);
}

/* "^(a|b)$" of the linears that a checkpoint holds in floats: lqt, which holds every shape, is to keep them too. */
static void kept_linears(const char *path, char *out, size_t n) {
    lq_loaded l;
    char module[256];
    assert_int_equal(lq_loaded_open(NULL, path, false, &l), LQ_OK);
    size_t at = (size_t)snprintf(out, n, "^(nothing"), packed = 0;
    for (size_t i = 0; i < l.m->cat.n; i++) {
        const lq_row *r = &l.m->cat.rows[i];
        bool linear = r->linear && r->part == LQ_PART_WEIGHT, kept = linear && r->dtype < LQ_Q4_0 && r->dtype != LQ_NONE;
        packed += linear && !kept;
        if (kept && at < n) at += (size_t)snprintf(out + at, n - at, "|%s", lq_row_module(r, module, sizeof module));
    }
    assert_true(at + 3 < n);
    strcat(packed ? out : strcpy(out, "^(nothing"), ")$"); /* in an ordinary folder every linear is floats */
    lq_loaded_close(&l);
}

/* What the codes give from an lqt file; the last ones are remembered: formats are tried with the same types. */
enum { REMEMBERED = 64 };
typedef struct memory { char name[400]; float *logits; size_t n; } memory;
static memory remembered[REMEMBERED];
static size_t n_remembered;

static void forget(void) {
    for (size_t i = 0; i < n_remembered && i < REMEMBERED; i++) lq_free(remembered[i].logits);
    n_remembered = 0;
}

static lq_status from_lqt(lq_ctx *ctx, const char *text, const char *const *flags, const char *kept, const memory **out) {
    char name[400], path[64];
    const char *again[12] = {"--ignore", kept};
    size_t at = (size_t)snprintf(name, sizeof name, "%s %s", text, kept);
    bool fits = at < sizeof name;
    for (int i = 0; flags[i]; i++) {
        again[2 + i] = flags[i];
        if (fits) at += (size_t)snprintf(name + at, sizeof name - at, " %s", flags[i]);
        fits = fits && at < sizeof name;
    }
    for (size_t i = 0; i < n_remembered && i < REMEMBERED && fits; i++)
        if (!strcmp(remembered[i].name, name)) return *out = &remembered[i], LQ_OK;
    memory *m = &remembered[n_remembered % REMEMBERED];
    if (n_remembered >= REMEMBERED) lq_free(m->logits);
    n_remembered++;
    *m = (memory){.n = 0};
    memcpy(m->name, name, fits ? sizeof name : 0);
    *out = m;
    LQ_TRY(quantize(ctx, text, "lqt", again));
    return logits_at(ctx, matrix_out("lqt", path), ids, n_ids, &m->n, &m->logits);
}

/* Works: the same logits as from lqt; sums run in another order where the format's rows lie in another order. rounds: the model rounds
 * its inputs unless its config.json says that it is quantized. */
static lq_status cell(lq_ctx *ctx, const char *text, const char *format, const char *const *flags, bool rounds) {
    static char kept[32768];
    char out[64];
    size_t n;
    float *got;
    const memory *want;
    matrix_plans = 0;
    lq_status st = quantize(ctx, text, format, flags);
    if (st) return matrix_plans ? lq_note(ctx, LQ_ERR_INTERNAL, "refused after its plan stood") : st;
    LQ_TRY(logits_at(ctx, matrix_out(format, out), ids, n_ids, &n, &got));
    kept_linears(matrix_out(format, out), kept, sizeof kept);
    st = from_lqt(ctx, text, flags, kept, &want);
    double d = st ? 0 : n == want->n ? distance(got, want->logits, n) : INFINITY;
    lq_free(got);
    if (st) return st;
    return d < 2e-6 || rounds ? LQ_OK : lq_fail(ctx, LQ_ERR_QUALITY, "its logits are off those of its codes by %g", d);
}

/* -- method x format ------------------------------------------------------------------------------------------------- */

static const char *force_of(const char *method) { return !strcmp(method, "ternary") || !strcmp(method, "binary") ? "--force" : NULL; }

static bool takes(const lq_method *m, const void *opts, const lq_format *f, const lq_type *t, int64_t group, lq_scheme *s) {
    lq_type_defaults d = {.group = group};
    lq_want w;
    if (t->keep || lq_type_parse(NULL, t->name, &d, &w)) return false;
    if (w.knobs & LQ_TYPE_SOURCE) w.scheme.grid = (lq_grid){.kind = LQ_GRID_BF16, .bits = 16, .vec = 1};
    if (m->refine) m->refine(opts, &w.scheme);
    *s = w.scheme;
    return !(m->accept && m->accept(NULL, opts, 256, 256, s)) && !f->accept(NULL, s, 256, 256) && !f->accept(NULL, s, 128, 256);
}

/* The type by its name, with the group size it has in s where one can be chosen. */
static const char *sized(char *out, size_t n, const lq_type *t, const lq_scheme *s) {
    long long group = t->knobs & LQ_TYPE_GROUP ? lq_scheme_group(s) : 0;
    if (group > 0) snprintf(out, n, "%s-g%lld", t->name, group);
    else snprintf(out, n, "%s%s", t->name, group ? "-row" : "");
    return out;
}

/* Types that differ in more than their width: a cell tries one of each. */
static uint32_t kind_of(const lq_scheme *s) { return (uint32_t)s->grid.kind << 8 | (uint32_t)s->act.kind << 4 | (s->scale.parent != LQ_NONE) << 1 | (s->zero_kind != LQ_ZERO_NONE); }

static void try_types(const lq_method *m, const void *opts, const lq_format *f, tally *t, bool *any) {
    static const int64_t groups[] = {128, 64, 32, -1};
    uint32_t seen[64];
    size_t n_seen = 0;
    bool all = !strcmp(m->name, "rtn"); /* of other methods one type that the format has will do */
    for (const lq_type *type = lq_types; type->name && (all || !*any); type++)
        for (size_t g = 0; g < 4; g++) {
            lq_scheme s;
            if (!takes(m, opts, f, type, groups[g], &s)) continue;
            bool fresh = n_seen < 64;
            for (size_t i = 0; i < n_seen; i++) fresh = fresh && seen[i] != kind_of(&s);
            if (!fresh) break;
            seen[n_seen++] = kind_of(&s);
            char scheme[48];
            lq_ctx ctx = {0};
            const char *flags[] = {"--scheme", sized(scheme, sizeof scheme, type, &s), force_of(m->name), NULL};
            lq_status st = cell(&ctx, m->name, f->name, flags, false);
            char name[200];
            cell_name(name, sizeof name, m->name, flags);
            *any |= !st;
            if (!st) break;
            print_error("%s to %s: accepted, then status %d: %s\n", name, f->name, (int)st, ctx.msg);
            t->wrong++;
            break;
        }
}

/* A refusal says what to do instead. */
static bool says_what_fits(const char *message) {
    static const char *const ways[] = {"--scheme ", "--format ", "--bits ", "--group-size ", "--asym", "--sym", "; lquant "};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        if (strstr(message, ways[i])) return true;
    return false;
}

static void method_in_format(const lq_method *m, const lq_format *f, tally *t) {
    const char *flags[] = {force_of(m->name), NULL};
    char name[200];
    lq_ctx ctx = {0};
    lq_recipe r;
    assert_int_equal(lq_recipe_parse(NULL, m->name, &r), LQ_OK);
    cell_name(name, sizeof name, m->name, flags);
    lq_status st = cell(&ctx, m->name, f->name, flags, false);
    bool any = !st;
    if (st && (st != LQ_ERR_UNSUPPORTED || !says_what_fits(ctx.msg) || !refusal_known(method_format_refusals, f->name, name, ctx.msg))) {
        print_error("%s to %s: status %d: %s\n", name, f->name, (int)st, ctx.msg);
        t->wrong++;
    }
    if (strcmp(f->name, "lqt")) try_types(m, r.opts, f, t, &any);
    lq_recipe_free(&r);
    t->works += any;
    t->refused += !any;
}

static void every_method_goes_into_every_format_or_is_refused_for_a_known_reason(void **state) {
    (void)state;
    tally t = {0};
    matrix_open();
    make_model();
    n_ids = TOKENS;
    for (int i = 0; i < TOKENS; i++) ids[i] = (i * 7 + 3) % VOCAB;
    for (const lq_method *const *m = lq_methods; *m; m++)
        for (const lq_format *const *f = lq_formats; *f; f++) method_in_format(*m, *f, &t);
    matrix_close();
    print_message("method x format: %u cells work, %u are refused\n", t.works, t.refused);
    forget();
    assert_int_equal(t.wrong, 0);
}

/* What one checkpoint says once for all its matrices is asked of the plan, not found out when the last of them is written. */
static void a_mixture_that_a_format_cannot_hold_is_refused_by_the_plan(void **state) {
    (void)state;
    static const struct { const char *format, *type, *other, *says; } cases[] = {
        {"bitsandbytes", "NF4", "down_proj=INT8", "load_in_4bit or load_in_8bit"}, {"bitsandbytes", "NF4", "down_proj=NF4-DQ", "one type for the whole model"},
        {"awq", "int4-g128", "down_proj=int4-g64", "--format gptq has several group sizes"}, {"fp8", "FP8-block", "down_proj=FP8-tensor", "compressed-tensors mixes them"},
        {"compressed-tensors", "FP8", "down_proj=b1.58", NULL}, {"gptq", "int4-g128", "down_proj=int8-g64", ""},
        {"modelopt", "NVFP4", "down_proj=int4-g64", ""}, {"modelopt", "int4-g128", "(q|k|v|down)_proj=FP8", ""}, {"modelopt", "NVFP4", "down_proj=int8-g64", "--bits 4 --sym"}, {"lqt", "NF4", "down_proj=b1.58", ""},
    };
    strcpy(matrix_dir + strlen(matrix_dir) - 6, "XXXXXX");
    matrix_open();
    make_model();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        lq_ctx ctx = {0};
        const char *flags[] = {"--scheme", cases[i].type, "--tensor-type", cases[i].other, NULL};
        matrix_plans = 0;
        lq_status st = quantize(&ctx, "rtn", cases[i].format, flags);
        bool fits = cases[i].says && !*cases[i].says;
        if (st != (fits ? LQ_OK : LQ_ERR_UNSUPPORTED) || matrix_plans != fits || (cases[i].says && !strstr(ctx.msg, cases[i].says))) fail_msg("case %zu: status %d after %u plans: %s", i, (int)st, matrix_plans, ctx.msg);
    }
    matrix_close();
}

/* A size that a type has no place for, or that the method's rule would drop, is not ignored. */
static void a_group_size_that_would_be_dropped_is_refused(void **state) {
    (void)state;
    strcpy(matrix_dir + strlen(matrix_dir) - 6, "XXXXXX");
    matrix_open();
    make_model();
    for (const lq_type *t = lq_types; t->name; t++) {
        lq_ctx ctx = {0};
        const char *flags[] = {"--scheme", t->name, "--group-size", "32", NULL};
        if (t->keep || t->knobs & LQ_TYPE_GROUP) continue;
        if (quantize(&ctx, "rtn", "lqt", flags) != LQ_ERR_USAGE || !strstr(ctx.msg, "--group-size")) fail_msg("%s: %s", t->name, ctx.msg);
    }
    lq_ctx ctx = {0};
    const char *rule[] = {"--group-size", "32", "--force", NULL}, *best[] = {"--group-size", "32", "--force", "--fit", "optimal", NULL};
    assert_int_equal(quantize(&ctx, "ternary", "lqt", rule), LQ_ERR_USAGE);
    assert_int_equal(quantize(&ctx, "ternary", "lqt", best), LQ_OK);
    matrix_close();
}

/* -- format x architecture ------------------------------------------------------------------------------------------- */

/* rtn with the type, and the first group size that fits; linears whose shape does not are kept. */
static lq_status arch_as(lq_ctx *ctx, const char *model, const lq_format *f, const lq_type *t, bool *none) {
    static const int64_t groups[] = {-1, 32, 64, 128};
    const lq_method *rtn = lq_method_by_name("rtn");
    char scheme[48];
    lq_recipe r;
    lq_scheme s;
    size_t g = 0;
    assert_int_equal(lq_recipe_parse(NULL, "rtn", &r), LQ_OK);
    while (g < 4 && !takes(rtn, r.opts, f, t, groups[g], &s)) g++;
    lq_recipe_free(&r);
    if ((*none = g == 4)) return LQ_OK;
    const char *flags[] = {"--scheme", sized(scheme, sizeof scheme, t, &s), "--keep-unfit", NULL};
    return cell(ctx, "rtn", f->name, flags, !strncmp(model, "bitnet", 6));
}

static void every_format(const char *model, tally *t) {
    fixture g;
    copy_golden(model, letters);
    open_golden(&g, model);
    n_ids = g.n < TOKENS ? g.n : TOKENS;
    memcpy(ids, g.ids, n_ids * sizeof *ids);
    close_golden(&g);
    forget();
    for (const lq_format *const *f = lq_formats; *f; f++) {
        lq_ctx ctx = {0};
        lq_status st = LQ_OK;
        bool none = true;
        for (const lq_type *type = lq_types; type->name && none; type++) st = arch_as(&ctx, model, *f, type, &none);
        if (none) continue;
        t->works += !st;
        t->refused += st != LQ_OK;
        if (!st || ((st == LQ_ERR_UNSUPPORTED || st == LQ_ERR_QUALITY) && refusal_known(arch_format_refusals, (*f)->name, model, ctx.msg))) continue;
        print_error("%s as %s: status %d: %s\n", model, (*f)->name, (int)st, ctx.msg);
        t->wrong++;
    }
}

static void every_architecture_goes_into_every_format_or_is_refused_for_a_known_reason(void **state) {
    (void)state;
    tally t = {0};
    strcpy(matrix_dir + strlen(matrix_dir) - 6, "XXXXXX");
    matrix_open();
    size_t n = each_architecture(every_format, &t);
    matrix_close();
    forget();
    print_message("%zu architectures x format: %u cells work, %u are refused\n", n, t.works, t.refused);
    assert_int_equal(t.wrong, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_method_goes_into_every_format_or_is_refused_for_a_known_reason),
        cmocka_unit_test(a_mixture_that_a_format_cannot_hold_is_refused_by_the_plan),
        cmocka_unit_test(a_group_size_that_would_be_dropped_is_refused),
        cmocka_unit_test(every_architecture_goes_into_every_format_or_is_refused_for_a_known_reason),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
