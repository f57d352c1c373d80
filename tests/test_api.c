/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "lquant.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char tiny[] = LQ_SOURCE_ROOT "/models/tiny";

static void a_model_is_quantized_and_scored_through_the_public_header(void **state) {
    (void)state;
    char dir[] = "/tmp/lquant-api-XXXXXX", out[64], *report = NULL;
    assert_non_null(mkdtemp(dir));
    snprintf(out, sizeof out, "%s/out.lqt", dir);
    lquant *s = lquant_new();
    lquant_model *fp = NULL, *q = NULL;
    const lquant_setting settings[] = {{"bits", "3"}, {"group-size", "64"}, {"asym", NULL}};
    lquant_score a, b;
    assert_int_equal(lquant_quantize(s, "rtn", settings, 3, tiny, out, &report), 0);
    assert_non_null(strstr(report, "bits_per_weight"));
    assert_int_equal(lquant_model_open(s, tiny, &fp), 0);
    assert_int_equal(lquant_model_open(s, out, &q), 0);
    assert_int_equal(lquant_evaluate(s, fp, LQ_SOURCE_ROOT "/texts/heldout.txt", "gptq-2048", 128, 4, &a), 0);
    assert_int_equal(lquant_evaluate(s, q, LQ_SOURCE_ROOT "/texts/heldout.txt", "gptq-2048", 128, 4, &b), 0);
    assert_int_equal(a.tokens, 4 * 127);
    assert_true(b.nll > a.nll && b.nll < a.nll + 2);

    int32_t ids[64];
    size_t n;
    assert_int_equal(lquant_tokenize(s, fp, "The house", 9, ids, 64, &n), 0);
    assert_true(n > 0 && n < 10);
    float *logits = calloc(n * lquant_model_vocab(fp), sizeof *logits);
    assert_int_equal(lquant_logits(s, fp, ids, (uint32_t)n, logits), 0);
    for (size_t i = 0; i < n * lquant_model_vocab(fp); i++) assert_true(isfinite(logits[i]));
    free(logits);
    lquant_string_free(&report);
    lquant_model_free(&fp);
    lquant_model_free(&q);
    lquant_free(&s);
    unlink(out);
    rmdir(dir);
}

static void failures_carry_the_exit_code_and_a_sentence(void **state) {
    (void)state;
    lquant *s = lquant_new();
    lquant_model *m = NULL;
    const lquant_setting bad[] = {{"bitz", "3"}};
    assert_int_equal(lquant_model_open(s, "/nowhere/at/all", &m), 3);
    assert_null(m);
    assert_non_null(strstr(lquant_error(s), "/nowhere/at/all"));
    assert_int_equal(lquant_quantize(s, "rtn", bad, 1, tiny, "/tmp/never", NULL), 2);
    assert_int_equal(lquant_quantize(s, "gpqt", NULL, 0, tiny, "/tmp/never", NULL), 2);
    lquant_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_model_is_quantized_and_scored_through_the_public_header),
        cmocka_unit_test(failures_carry_the_exit_code_and_a_sentence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
