/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "calib/corpus.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

static void the_built_in_text_is_in_the_binary(void **state) {
    (void)state;
    lq_buf text, file, plain;
    assert_int_equal(lq_text_builtin(NULL, &text), LQ_OK);
    assert_true(text.n > 900000 && text.n < 2000000);
    assert_int_equal(lq_text_load(NULL, LQ_SOURCE_ROOT "/texts/calibration.txt.zst", &file), LQ_OK);
    assert_int_equal(file.n, text.n);
    assert_memory_equal(file.v, text.v, text.n);
    assert_int_equal(lq_text_unpack(NULL, "t", "plain", 5, &plain), LQ_OK);
    assert_string_equal(plain.v, "plain");
    lq_buf_free(&text);
    lq_buf_free(&file);
    lq_buf_free(&plain);
}

static void zstd_frames_follow_each_other_and_a_cut_one_is_refused(void **state) {
    (void)state;
    char packed[512];
    size_t a = ZSTD_compress(packed, 256, "first, ", 7, 3), b = ZSTD_compress(packed + a, 256, "second", 6, 3);
    lq_buf out;
    assert_int_equal(lq_text_unpack(NULL, "t", packed, a + b, &out), LQ_OK);
    assert_string_equal(out.v, "first, second");
    lq_buf_free(&out);
    for (size_t n = 4; n < a + b; n++) {
        lq_status want = n == a ? LQ_OK : LQ_ERR_FORMAT;
        assert_int_equal(lq_text_unpack(NULL, "t", packed, n, &out), want);
        lq_buf_free(&out);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_built_in_text_is_in_the_binary),
        cmocka_unit_test(zstd_frames_follow_each_other_and_a_cut_one_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
