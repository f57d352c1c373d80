/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/dtype.h"
#include "core/json.h"
#include "core/num.h"
#include "core/options.h"
#include "core/pack.h"
#include "core/qtensor.h"

static void every_half_survives_a_round_trip(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = lq_f16_f32((uint16_t)h);
        if (isnan(f)) continue;
        assert_int_equal(lq_f32_f16(f), h);
    }
}

static void half_rounding_is_to_nearest_even(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x7bff; h++) {
        float a = lq_f16_f32((uint16_t)h), b = lq_f16_f32((uint16_t)(h + 1)), mid = (a + b) / 2;
        assert_int_equal(lq_f32_f16(mid), h & 1 ? h + 1 : h);
        assert_int_equal(lq_f32_f16(nextafterf(mid, b)), h + 1);
    }
    assert_int_equal(lq_f32_f16(65519.99f), 0x7bff);
    assert_int_equal(lq_f32_f16(65520.0f), 0x7c00);
}

static void every_e4m3_survives_a_round_trip(void **state) {
    (void)state;
    for (uint32_t v = 0; v < 256; v++)
        if (!isnan(lq_e4m3_f32((uint8_t)v))) assert_int_equal(lq_f32_e4m3(lq_e4m3_f32((uint8_t)v)), v);
    assert_int_equal(lq_f32_e4m3(1.0625f), 0x38);
    assert_int_equal(lq_f32_e4m3(1000), 0x7e);
}

static void codes_of_every_width_pack_and_unpack(void **state) {
    (void)state;
    lq_rng rng;
    lq_rng_seed(&rng, 1, 1);
    for (uint32_t bits = 1; bits <= 16; bits++) {
        uint16_t in[77], out[77];
        uint8_t row[160] = {0}, single[160] = {0};
        for (size_t i = 0; i < 77; i++) {
            in[i] = (uint16_t)(lq_rng_u32(&rng) & ((1u << bits) - 1));
            lq_code_put(single, bits, i, in[i]);
        }
        lq_codes_pack(row, bits, 77, in);
        lq_codes_unpack(row, bits, 77, out);
        assert_memory_equal(in, out, sizeof in);
        assert_memory_equal(row, single, (77 * bits + 7) / 8);
        for (size_t i = 0; i < 77; i++) assert_int_equal(lq_code_get(row, bits, i), in[i]);
    }
}

static void scales_rounded_to_eight_bits_are_exact_in_both_halves(void **state) {
    (void)state;
    lq_plane_desc d = {.dtype = LQ_F16, .sig = 8};
    lq_rng rng;
    lq_rng_seed(&rng, 2, 1);
    for (int i = 0; i < 10000; i++) {
        float v = lq_plane_round(&d, ldexpf(lq_rng_unit(&rng), -(int)lq_rng_below(&rng, 24)));
        assert_true(lq_bf16_f32(lq_f32_bf16(v)) == v);
        assert_true(lq_f16_f32(lq_f32_f16(v)) == v);
    }
}

static void a_row_decodes_by_the_formula(void **state) {
    (void)state;
    lq_scheme s = lq_scheme_int(3, 4, false);
    lq_qtensor q;
    assert_int_equal(lq_qtensor_init(NULL, &q, &s, (lq_slot){0}, 2, 8), LQ_OK);
    float out[8];
    for (uint32_t c = 0; c < 8; c++) lq_code_put(q.codes + q.row_bytes, 3, c, c);
    lq_plane_set(&s.scale, &q.scale, 2, 0.5f);
    lq_plane_set(&s.scale, &q.scale, 3, 2);
    lq_plane_set(&s.zero, &q.zero, 2, 1);
    lq_plane_set(&s.zero, &q.zero, 3, 5);
    lq_qtensor_decode_row(&q, 1, out);
    const float want[8] = {-0.5f, 0, 0.5f, 1, -2, 0, 2, 4};
    assert_memory_equal(out, want, sizeof want);
    lq_qtensor_free(&q);
}

static void gguf_example_blocks_decode(void **state) {
    (void)state; /* formats.md 6, worked example: x_i = (i - 16) / 16, x_3 = -1.6, x_20 = .77 as Q4_0 */
    static const uint8_t block[18] = {0x66, 0x32, 0x83, 0x83, 0x94, 0x90, 0xc4, 0xa5, 0xa5, 0xa5, 0xb6, 0xb6, 0xb6, 0xb6, 0xc7, 0xc7, 0xc7, 0xd8};
    float y[32];
    lq_dtype_decode(LQ_Q4_0, block, y, 32);
    for (int i = 0; i < 32; i++) {
        float x = i == 3 ? -1.6f : i == 20 ? 0.77f : (float)(i - 16) / 16;
        assert_true(fabsf(x - y[i]) <= 0.1001f);
    }
}

struct target { int64_t n; double x; uint64_t size; int flag, pick; const char *s; lq_strlist list; };
static const lq_opt table[] = {
    {"number", "n", LQ_OPT_INT, offsetof(struct target, n), "N", "3", NULL, -1, 10, 0, "an integer"},
    {"real", NULL, LQ_OPT_REAL, offsetof(struct target, x), "X", "0.5", NULL, 0, 1, 0, "a number"},
    {"size", NULL, LQ_OPT_SIZE, offsetof(struct target, size), "SIZE", "5GB", NULL, 0, 0, 0, "a size"},
    {"on", NULL, LQ_OPT_SET, offsetof(struct target, flag), NULL, NULL, NULL, 0, 0, 1, "a switch"},
    {"pick", NULL, LQ_OPT_CHOICE, offsetof(struct target, pick), NULL, "b", "a|b|c", 0, 0, 0, "a choice"},
    {"file", "f,dataset", LQ_OPT_LIST, offsetof(struct target, list), "FILE", NULL, NULL, 0, 0, 0, "a list"},
    {0}};

static void options_are_read_in_any_order(void **state) {
    (void)state;
    struct target t = {0};
    lq_optset sets[] = {{table, &t, NULL}, {0}};
    const char *pos[2];
    size_t n;
    char *argv[] = {"in", "--number=-1", "-f", "a", "--pick", "c", "--dataset", "b", "out", "--on", "--size", "2GiB"};
    assert_int_equal(lq_opts_defaults(NULL, sets), LQ_OK);
    assert_int_equal(lq_opts_parse(NULL, sets, 12, argv, pos, 2, &n), LQ_OK);
    assert_int_equal(n, 2);
    assert_string_equal(pos[1], "out");
    assert_int_equal(t.n, -1);
    assert_int_equal(t.pick, 2);
    assert_int_equal(t.list.n, 2);
    assert_int_equal(t.flag, 1);
    assert_true(t.size == 2147483648u);
    lq_opts_free(sets);
}

static void a_wrong_option_is_refused_with_the_nearest_name(void **state) {
    (void)state;
    struct target t = {0};
    lq_ctx ctx = {0};
    lq_optset sets[] = {{table, &t, NULL}, {0}};
    const char *pos[2];
    size_t n;
    char *misspelt[] = {"--numbr", "1"}, *outside[] = {"--real", "2"}, *empty[] = {"--number"}, *choice[] = {"--pick", "d"};
    assert_int_equal(lq_opts_parse(&ctx, sets, 2, misspelt, pos, 2, &n), LQ_ERR_USAGE);
    assert_non_null(strstr(ctx.msg, "--number"));
    assert_int_equal(lq_opts_parse(&ctx, sets, 2, outside, pos, 2, &n), LQ_ERR_USAGE);
    assert_int_equal(lq_opts_parse(&ctx, sets, 1, empty, pos, 2, &n), LQ_ERR_USAGE);
    assert_int_equal(lq_opts_parse(&ctx, sets, 2, choice, pos, 2, &n), LQ_ERR_USAGE);
}

static void an_integer_beyond_int64_is_read_as_a_real(void **state) {
    (void)state;
    static const char text[] = "{\"a \\\" 99999999999999999999\": 1000000000000000019884624838656, \"b\": -99999999999999999999, \"c\": 9223372036854775807,"
                               " \"d\": 1.00000000000000000001e1}";
    lq_ctx ctx = {0};
    json_t *v;
    assert_int_equal(lq_json_parse(&ctx, "t", text, sizeof text - 1, &v), LQ_OK);
    assert_true(json_real_value(json_object_get(v, "a \" 99999999999999999999")) == 1000000000000000019884624838656.0);
    assert_true(json_real_value(json_object_get(v, "b")) == -1e20);
    assert_true(json_integer_value(json_object_get(v, "c")) == INT64_MAX);
    assert_true(json_real_value(json_object_get(v, "d")) == 10);
    json_decref(v);
    assert_int_equal(lq_json_parse(&ctx, "t", "[1e999]", 7, &v), LQ_ERR_FORMAT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half_survives_a_round_trip),
        cmocka_unit_test(half_rounding_is_to_nearest_even),
        cmocka_unit_test(every_e4m3_survives_a_round_trip),
        cmocka_unit_test(codes_of_every_width_pack_and_unpack),
        cmocka_unit_test(scales_rounded_to_eight_bits_are_exact_in_both_halves),
        cmocka_unit_test(a_row_decodes_by_the_formula),
        cmocka_unit_test(gguf_example_blocks_decode),
        cmocka_unit_test(options_are_read_in_any_order),
        cmocka_unit_test(a_wrong_option_is_refused_with_the_nearest_name),
        cmocka_unit_test(an_integer_beyond_int64_is_read_as_a_real),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
