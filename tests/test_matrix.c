/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Method x architecture: every recipe on a golden model of every architecture either works - the plan stands, the checkpoint is
 * written, read back bit for bit by the pipeline, and the model in it runs to finite logits - or is refused before work starts for
 * a reason in recipe_refusals.h. Method x format: test_format_matrix. */
#define _DEFAULT_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "matrix.h"
#include "recipe_refusals.h"

typedef struct recipe { const char *text, *flags[3]; } recipe; /* beside every method of the registry on its own type */
static const recipe more[] = {
    {"gptq", {"--scheme", "NF4"}},   {"gptq", {"--scheme", "FP8"}},      {"gptq", {"--asym"}},
    {"rtn", {"--scheme", "W8A8"}},   {"gptq", {"--rotate", "hadamard"}}, {"rtn", {"--rotate", "heads"}},
    {"awq", {NULL}},                 {"smoothquant", {NULL}},            {"awq,gptq", {NULL}},
    {"smoothquant,gptq", {"--scheme", "W8A8"}},
};
static const char *const insists[] = {"ternary", "binary"}; /* methods that want --force on an ordinary model */

static void one(const fixture *f, const char *model, const char *text, const char *const *flags, tally *t) {
    char cell[160], out[64];
    lq_ctx ctx = {0};
    size_t at = (size_t)snprintf(cell, sizeof cell, "%s", text), n;
    for (const char *const *p = flags; *p; p++) at += (size_t)snprintf(cell + at, sizeof cell - at, " %s", *p);
    float *logits = NULL;
    lq_status st = quantize(&ctx, text, "lqt", flags);
    if (!st) st = logits_at(&ctx, matrix_out("lqt", out), f->ids, f->n, &n, &logits);
    lq_free(logits);
    t->works += !st;
    t->refused += st != LQ_OK;
    if (!st) return;
    if (st == LQ_ERR_UNSUPPORTED && refusal_known(recipe_refusals, model, cell, ctx.msg)) return;
    print_error("%s on %s: status %d: %s\n", cell, model, (int)st, ctx.msg);
    t->wrong++;
}

static void every_recipe(const char *model, tally *t) {
    fixture f;
    copy_golden(model, "letters.json");
    open_golden(&f, model);
    for (const lq_method *const *m = lq_methods; *m; m++) {
        const char *flags[2] = {NULL};
        for (size_t i = 0; i < sizeof insists / sizeof *insists; i++)
            if (!strcmp((*m)->name, insists[i])) flags[0] = "--force";
        one(&f, model, (*m)->name, flags, t);
    }
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        const char *flags[4] = {more[i].flags[0], more[i].flags[1], more[i].flags[2]};
        one(&f, model, more[i].text, flags, t);
    }
    close_golden(&f);
}

static void every_recipe_on_every_architecture_works_or_is_refused_for_a_known_reason(void **state) {
    (void)state;
    tally t = {0};
    matrix_open();
    size_t n = each_architecture(every_recipe, &t);
    matrix_close();
    print_message("%zu architectures: %u cells work, %u are refused\n", n, t.works, t.refused);
    assert_int_equal(t.wrong, 0);
    assert_true(t.works >= 85 * (t.works + t.refused) / 100);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_recipe_on_every_architecture_works_or_is_refused_for_a_known_reason)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
