/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* lquant diff: two checkpoints compared, weight by weight. */
#include "core/verb.h"
#include "eval/diff.h"

#include <inttypes.h>

typedef struct args {
    lq_common common;
    int all, types;
} args;

static const lq_opt options[] = {
    {"all", NULL, LQ_OPT_SET, offsetof(args, all), NULL, NULL, NULL, 0, 0, 1, "tensors that are the same, too"},
    {"types", NULL, LQ_OPT_SET, offsetof(args, types), NULL, NULL, NULL, 0, 0, 1, "another type is a difference even where every value is equal"},
    {0}};

static void help(const lq_optset *sets) {
    printf("lquant diff A B [flags]\n\n"
           "Two checkpoints of a model, in any formats: types, codes, decoded weights. Exit 0: every tensor has equal\n"
           "values; 1: some differ or are in one only; above: trouble. Differences are of B against A.\n\n");
    lq_opts_help(stdout, sets);
    printf("\nexamples:\n"
           "  lquant diff model-gptq model.gguf\n"
           "  lquant diff SmolLM2 SmolLM2-4bit --json | jq .relative_rms\n"
           "  lquant diff --all run1 run2 && echo identical\n");
}

static bool differs(const args *a, const lq_diff_row *r) { return r->kind != LQ_DIFF_SAME || (a->types && !r->same_type); }

static void print_row(const lq_diff_row *r) {
    printf("%-9s %s: ", lq_diff_kinds[r->kind], r->name);
    if (r->kind >= LQ_DIFF_ONLY_A) printf("%s", *r->type_a ? r->type_a : r->type_b);
    else printf("%s%s%s", r->type_a, r->same_type ? "" : " | ", r->same_type ? "" : r->type_b);
    if (r->codes >= 0) printf(r->codes ? ", %" PRId64 " codes differ" : ", codes equal", r->codes);
    if (r->loss.changed)
        printf(", %.2f %% of the weights differ, largest %.4g, relative rms %.4g", 100.0 * (double)r->loss.changed / (double)r->loss.weights, r->loss.max_abs, lq_loss_rms(&r->loss));
    printf("\n");
}

static void print_text(const args *a, const lq_diff *d) {
    for (size_t i = 0; i < d->n; i++)
        if (a->all || differs(a, &d->rows[i])) print_row(&d->rows[i]);
    printf("%zu tensors: %zu same, %zu differ, %zu of another shape, %zu only in A, %zu only in B; %zu of another type; ", d->n, d->count[0], d->count[1], d->count[2], d->count[3],
           d->count[4], d->types);
    if (d->loss.changed)
        printf("%" PRIu64 " of %" PRIu64 " weights differ, largest %.4g, relative rms %.4g\n", d->loss.changed, d->loss.weights, d->loss.max_abs, lq_loss_rms(&d->loss));
    else printf("every one of %" PRIu64 " weights is equal\n", d->loss.weights);
}

static json_t *row_json(const lq_diff_row *r) {
    json_t *v = json_pack("{s:s, s:s, s:s, s:s, s:b}", "name", r->name, "result", lq_diff_kinds[r->kind], "type_a", r->type_a, "type_b", r->type_b, "same_type", (int)r->same_type);
    if (v && r->codes >= 0) json_object_set_new(v, "codes_differ", json_integer(r->codes));
    if (v && r->loss.weights) {
        json_object_set_new(v, "weights", json_integer((json_int_t)r->loss.weights));
        json_object_set_new(v, "changed", json_integer((json_int_t)r->loss.changed));
        json_object_set_new(v, "max_error", json_real(r->loss.max_abs));
        json_object_set_new(v, "relative_rms", json_real(lq_loss_rms(&r->loss)));
    }
    return v;
}

static lq_status print_json(lq_ctx *ctx, const args *a, const lq_diff *d, bool equal) {
    json_t *list = json_array();
    for (size_t i = 0; list && i < d->n; i++)
        if (a->all || differs(a, &d->rows[i])) json_array_append_new(list, row_json(&d->rows[i]));
    json_t *v = json_pack("{s:i, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:o}", "schema", 1, "equal", (int)equal, "tensors_n", (json_int_t)d->n, "same",
                          (json_int_t)d->count[0], "differ", (json_int_t)d->count[1], "shapes", (json_int_t)d->count[2], "only_a", (json_int_t)d->count[3], "only_b",
                          (json_int_t)d->count[4], "types_differ", (json_int_t)d->types, "changed", (json_int_t)d->loss.changed, "max_error", d->loss.max_abs, "relative_rms",
                          lq_loss_rms(&d->loss), "tensors", list);
    lq_buf text = {0};
    lq_status st = v ? lq_json_dump(ctx, v, &text) : lq_oom(ctx, 1024);
    if (text.v) printf("%s", text.v);
    lq_buf_free(&text);
    json_decref(v);
    return st;
}

static lq_status open_one(lq_ctx *ctx, const char *path, lq_source **src, lq_model **m) {
    LQ_TRY(lq_source_open(ctx, path, src));
    lq_status st = lq_model_open(ctx, *src, true, m);
    return st ? lq_note(ctx, st, "%s", path) : LQ_OK;
}

static lq_status diff(lq_ctx *ctx, const args *a, const char *const paths[2]) {
    lq_source *src[2] = {NULL, NULL};
    lq_model *m[2] = {NULL, NULL};
    lq_diff d = {0};
    lq_status st;
    for (int i = 0; i < 2; i++) LQ_GO(open_one(ctx, paths[i], &src[i], &m[i]));
    LQ_GO(lq_diff_make(ctx, m[0], m[1], &d));
    bool equal = true;
    for (size_t i = 0; i < d.n; i++) equal = equal && !differs(a, &d.rows[i]);
    if (a->common.json) LQ_GO(print_json(ctx, a, &d, equal));
    else print_text(a, &d);
    ctx->answer = equal ? 0 : 1;
done:
    lq_diff_free(&d);
    for (int i = 0; i < 2; i++) {
        lq_model_free(&m[i]);
        lq_source_free(&src[i]);
    }
    return st;
}

static lq_status run(lq_ctx *ctx, const char *name, int argc, char **argv) {
    (void)name;
    args a = {0};
    const char *pos[2] = {NULL, NULL};
    size_t n = 0;
    lq_optset sets[] = {{options, &a, "flags"}, {lq_common_options, &a.common, NULL}, {0}};
    LQ_TRY(lq_verb_begin(ctx, sets, &a.common, argc, argv, pos, 2, &n, help));
    if (a.common.help) return LQ_OK;
    if (n < 2) return lq_fail(ctx, LQ_ERR_USAGE, "lquant diff A B: %s is missing", n ? "B" : "A");
    return diff(ctx, &a, pos);
}

const lq_verb lq_verb_diff = {"diff", "compare", "A B", "how far the weights of two checkpoints are apart", run};
