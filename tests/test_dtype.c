/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Golden blocks: scripts/gen_golden_blocks.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>

#include "core/dtype.h"
#include "core/num.h"
#include "core/os.h"

static void every_block_type_decodes_as_the_reference_does(void **state) {
    (void)state;
    static const lq_dtype types[] = {LQ_Q4_0, LQ_Q4_1, LQ_Q5_0, LQ_Q5_1, LQ_Q8_0, LQ_Q2_K, LQ_Q3_K, LQ_Q4_K, LQ_Q5_K, LQ_Q6_K,
                                      LQ_IQ4_NL, LQ_IQ4_XS, LQ_TQ1_0, LQ_TQ2_0, LQ_MXFP4, LQ_NVFP4,
                                      LQ_IQ1_S, LQ_IQ1_M, LQ_IQ2_XXS, LQ_IQ2_XS, LQ_IQ2_S, LQ_IQ3_XXS, LQ_IQ3_S};
    for (size_t k = 0; k < sizeof types / sizeof *types; k++) {
        const lq_dtype_info *d = &lq_dtypes[types[k]];
        char path[512];
        lq_buf b;
        snprintf(path, sizeof path, "%s/tests/golden/blocks/%s.bin", LQ_SOURCE_ROOT, d->name);
        assert_int_equal(lq_file_slurp(NULL, path, 1 << 20, &b), LQ_OK);
        size_t n = b.n / (d->bytes + 4 * d->block), count = n * d->block;
        assert_true(n >= 6 && b.n == n * d->bytes + 4 * count);
        float *y = LQ_NEWN(float, count);
        lq_dtype_decode(types[k], b.v, y, count);
        for (size_t i = 0; i < count; i++) {
            float want;
            memcpy(&want, b.v + n * d->bytes + 4 * i, 4);
            if (memcmp(&want, &y[i], 4) && (want || y[i])) fail_msg("%s weight %zu: %.9g, expected %.9g", d->name, i, (double)y[i], (double)want);
        }
        lq_free(y);
        lq_buf_free(&b);
    }
}

static void every_half_decodes_by_its_definition(void **state) {
    (void)state;
    for (uint32_t v = 0; v < 65536; v++) {
        uint16_t h = (uint16_t)v;
        float f, g, want = lq_f16_f32(h), wide = lq_bf16_f32(h);
        lq_dtype_decode(LQ_F16, &h, &f, 1);
        lq_dtype_decode(LQ_BF16, &h, &g, 1);
        assert_memory_equal(&f, &want, 4);
        assert_memory_equal(&g, &wide, 4);
    }
}

static void names_and_ids_lead_back_to_the_type(void **state) {
    (void)state;
    for (int t = 1; t < LQ_DTYPE_N; t++) {
        assert_int_equal(lq_dtype_by_name(lq_dtypes[t].name), t);
        if (lq_dtypes[t].gguf >= 0) assert_int_equal(lq_dtype_by_gguf((uint32_t)lq_dtypes[t].gguf), t);
    }
    assert_int_equal(lq_dtype_by_name("F33"), LQ_NONE);
    assert_int_equal(lq_dtype_by_gguf(4), LQ_NONE);
    assert_int_equal(lq_dtype_by_gguf(UINT32_MAX), LQ_NONE);
}

static void a_row_of_blocks_has_whole_blocks(void **state) {
    (void)state;
    assert_int_equal(lq_dtype_row_bytes(LQ_Q4_K, 512), 288);
    assert_int_equal(lq_dtype_row_bytes(LQ_Q4_K, 500), 0);
    assert_int_equal(lq_dtype_row_bytes(LQ_BF16, 7), 14);
}

static void encoding_rounds_once_to_nearest_even(void **state) {
    (void)state;
    const float x[4] = {1.0f + 0x1p-8f, 1.0f + 0x3p-8f, 65519.0f, -0x1p-25f};
    uint16_t h[4];
    lq_dtype_encode(LQ_BF16, x, h, 4);
    assert_int_equal(h[0], 0x3f80);
    assert_int_equal(h[1], 0x3f82);
    lq_dtype_encode(LQ_F16, x, h, 4);
    assert_int_equal(h[0], 0x3c04);
    assert_int_equal(h[2], 0x7bff);
    assert_int_equal(h[3], 0x8000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_block_type_decodes_as_the_reference_does),
        cmocka_unit_test(every_half_decodes_by_its_definition),
        cmocka_unit_test(names_and_ids_lead_back_to_the_type),
        cmocka_unit_test(a_row_of_blocks_has_whole_blocks),
        cmocka_unit_test(encoding_rounds_once_to_nearest_even),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
