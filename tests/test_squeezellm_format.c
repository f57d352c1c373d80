/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* SqueezeLLM folders: written and read back, the bytes of small examples, tensors as SqueezeLLM's pickles have them, damage refused. */
#define _GNU_SOURCE
#include "format_damage.h"

static lq_scheme lut(uint8_t bits, uint16_t sparse) {
    return (lq_scheme){.grid = {LQ_GRID_LUT, bits, 1, LQ_LUT_DATA}, .extra = LQ_X_LUT_PER_ROW | (sparse ? LQ_X_OUTLIERS : 0), .sparse = sparse};
}

/* Up to `values` sparse values, the most the scheme allows when negative. */
static void make(lq_qtensor *q, const lq_scheme *s, uint32_t rows, uint32_t cols, int values) {
    lq_rng rng;
    lq_rng_seed(&rng, rows, cols);
    assert_int_equal(lq_qtensor_init(NULL, q, s, (lq_slot){0, LQ_R_UP, -1}, rows, cols), LQ_OK);
    random_codes(q, rows);
    for (size_t i = 0; i < (size_t)rows << s->grid.bits; i++) q->lut[i] = lq_f16_f32(lq_f32_f16(lq_rng_normal(&rng)));
    uint32_t most = (uint32_t)((uint64_t)rows * cols * s->sparse / 10000), n = 0;
    if (values >= 0 && (uint32_t)values < most) most = (uint32_t)values;
    if (!(s->extra & LQ_X_OUTLIERS) || !values) return;
    assert_int_equal(lq_qtensor_outliers(NULL, q, most), LQ_OK);
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t c = lq_rng_below(&rng, 4); c < cols && n < most; c += 1 + lq_rng_below(&rng, 5), n++) {
            q->outliers.col[n] = c;
            q->outliers.v[n] = lq_f32_f16(lq_rng_normal(&rng));
        }
        q->outliers.row[r + 1] = n;
    }
    assert_int_equal(n, most);
}

static void every_width_and_any_number_of_values_round_trips(void **state) {
    (void)state;
    static const uint32_t shapes[][2] = {{1, 32}, {3, 64}, {33, 96}, {128, 64}};
    for (uint8_t bits = 2; bits <= 4; bits++)
        for (size_t i = 0; i < 4; i++)
            for (int k = 0; k < 5; k++) {
                lq_scheme s = lut(bits, (uint16_t[]){0, 50, 997, 1000, 3}[k]);
                lq_qtensor q;
                make(&q, &s, shapes[i][0], shapes[i][1], k == 3 ? 2 : -1);
                round_trip("squeezellm", &q, LQ_F16);
                lq_qtensor_free(&q);
            }
}

/* formats.md: codes 1..8 down a column are the word 0x87654321; values follow row by row and zeros fill what the scheme allows. */
static void the_layout_is_the_documented_one(void **state) {
    (void)state;
    lq_scheme s = lut(4, 1000);
    lq_qtensor q;
    pieces p;
    make(&q, &s, 2, 32, 0);
    GOOD_ST(lq_qtensor_outliers(NULL, &q, 2));
    for (uint32_t c = 0; c < 32; c++) lq_code_put(q.codes + q.row_bytes, 4, c, c % 8 + 1), lq_code_put(q.codes, 4, c, 0);
    q.outliers.row[1] = 0, q.outliers.row[2] = 2;
    q.outliers.col[0] = 5, q.outliers.col[1] = 31;
    q.outliers.v[0] = 0x3c00, q.outliers.v[1] = 0xc000;
    round_trip("squeezellm", &q, LQ_F16);
    pieces_read(&p, dir);
    static const uint32_t words[8] = {0, 0x87654321, 0, 0x87654321, 0, 0x87654321, 0, 0x87654321}, rows[3] = {0, 0, 2}, cols[6] = {5, 31};
    static const uint16_t vals[6] = {0x3c00, 0xc000};
    assert_int_equal(p.n, 5);
    assert_memory_equal(piece_of(&p, ".qweight")->data, words, sizeof words);
    assert_memory_equal(piece_of(&p, ".rows")->data, rows, sizeof rows);
    assert_int_equal(piece_of(&p, ".cols")->t.bytes, sizeof cols);
    assert_memory_equal(piece_of(&p, ".cols")->data, cols, sizeof cols);
    assert_int_equal(piece_of(&p, ".vals")->t.bytes, sizeof vals);
    assert_memory_equal(piece_of(&p, ".vals")->data, vals, sizeof vals);
    assert_int_equal(((const uint16_t *)(const void *)piece_of(&p, ".lookup_table")->data)[17], lq_f32_f16(q.lut[17]));
    pieces_free(&p);
    lq_qtensor_free(&q);
}

static void f32_values_without_lquant_s_keys_read_to_the_same_floats(void **state) {
    (void)state;
    lq_scheme s = lut(3, 500);
    lq_qtensor q, back;
    pieces p;
    float table[4 * 8], vals[12], a[64], b[64];
    make(&q, &s, 4, 64, -1);
    assert_int_equal(q.outliers.n, 12);
    GOOD_ST(put_one("squeezellm", &q, LQ_F16));
    pieces_read(&p, dir);
    for (int i = 0; i < 32; i++) table[i] = q.lut[i];
    for (int i = 0; i < 12; i++) vals[i] = lq_f16_f32(q.outliers.v[i]);
    piece_set(&p, ".lookup_table", LQ_F32, 2, 4, 8, table);
    piece_set(&p, ".vals", LQ_F32, 1, 12, 0, vals);
    config_replace(&p, "\"sparse_per_10000\": 500", "\"topX\": 0");
    pieces_write(&p);
    GOOD_ST(get_one(&back));
    for (uint32_t r = 0; r < 4; r++) {
        lq_qtensor_decode_row(&q, r, a);
        lq_qtensor_decode_row(&back, r, b);
        assert_memory_equal(a, b, sizeof a);
    }
    lq_qtensor_free(&back);
    vals[3] = 0.1f;
    piece_set(&p, ".vals", LQ_F32, 1, 12, 0, vals);
    refused(&p, LQ_ERR_UNSUPPORTED, "up_proj|sparse value 3|no F16");
    piece_set(&p, ".full_rows", LQ_F32, 2, 64, 1, NULL);
    refused(&p, LQ_ERR_UNSUPPORTED, "full_rows");
    pieces_free(&p);
    lq_qtensor_free(&q);
}

static void modules_that_differ_are_named_in_the_config(void **state) {
    (void)state;
    lq_row rows[3] = {{.slot = {0, LQ_R_UP, -1}, .name = MODULE ".weight", .ndim = 2, .shape = {8, 32}, .linear = true, .quantize = true, .scheme = lut(4, 50)}};
    lq_catalog cat = {.rows = rows, .n = 3};
    lq_sink *sink;
    lq_source *src;
    rows[1] = rows[2] = rows[0];
    rows[1].slot.role = LQ_R_DOWN, rows[1].name = "model.layers.0.mlp.down_proj.weight", rows[1].scheme = lut(3, 700);
    rows[2].slot.role = LQ_R_GATE, rows[2].name = "model.layers.0.mlp.gate_proj.weight", rows[2].scheme = lut(4, 0);
    GOOD_ST(lq_sink_open(&ctx, lq_format_by_name("squeezellm"), dir, &cat, &(lq_sink_opts){0}, &sink));
    GOOD_ST(lq_sink_config(sink, "{}", 2));
    for (int i = 0; i < 3; i++) {
        lq_qtensor q;
        make(&q, &rows[i].scheme, 8, 32, 1);
        q.slot = rows[i].slot;
        GOOD_ST(lq_sink_put(sink, &q));
        lq_qtensor_free(&q);
    }
    GOOD_ST(lq_sink_close(&sink));
    json_t *c = written_config(dir, "quantization_config");
    assert_int_equal(json_integer_value(json_object_get(c, "wbits")), 4);
    assert_int_equal(json_object_size(json_object_get(c, "modules")), 2);
    json_decref(c);
    GOOD_ST(lq_source_open(&ctx, dir, &src));
    for (int i = 0; i < 3; i++) assert_true(lq_scheme_eq(&src->entries[lq_source_find(src, rows[i].name)].scheme, &rows[i].scheme));
    lq_source_free(&src);
}

static void refusals_name_what_would_fit(void **state) {
    (void)state;
    const lq_format *f = lq_format_by_name("squeezellm");
    lq_scheme one = lut(4, 0), kept = lut(4, 0), act = lut(4, 0);
    one.extra = 0;
    kept.extra |= LQ_X_OUTLIER_COLS, kept.sparse = 3;
    act.act = (lq_act){.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8};
    const struct { lq_scheme s; uint32_t cols; const char *says; } cases[] = {
        {lut(5, 0), 64, "4 to 16 values"}, {one, 64, "per row"}, {kept, 64, "sparse values alone"}, {act, 64, "sparse values alone"}, {lut(3, 0), 48, "32 inputs"}, {lq_scheme_int(4, 32, true), 64, "lut4"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ctx = (lq_ctx){0};
        if (f->accept(&ctx, &cases[i].s, 8, cases[i].cols) != LQ_ERR_UNSUPPORTED || !strstr(ctx.msg, cases[i].says)) fail_msg("case %zu: %s", i, ctx.msg);
    }
}

static void damage_is_refused_by_name(void **state) {
    (void)state;
    lq_scheme s = lut(3, 1000);
    lq_qtensor q;
    pieces p;
    make(&q, &s, 8, 64, -1);
    GOOD_ST(put_one("squeezellm", &q, LQ_F16));
    pieces_read(&p, dir);
    uint32_t *rows = (uint32_t *)(void *)piece_of(&p, ".rows")->data, *cols = (uint32_t *)(void *)piece_of(&p, ".cols")->data, old;
    old = rows[8], rows[8] = 1000;
    refused(&p, LQ_ERR_FORMAT, "up_proj|rows end at value 1000 of 51");
    rows[8] = UINT32_MAX;
    refused(&p, LQ_ERR_FORMAT, "rows end at");
    rows[8] = old, old = rows[2], rows[2] = UINT32_MAX - 1;
    refused(&p, LQ_ERR_FORMAT, "sparse row");
    rows[2] = old, old = rows[0], rows[0] = 1;
    refused(&p, LQ_ERR_FORMAT, "sparse rows begin at 1");
    rows[0] = old, old = cols[0], cols[0] = 64;
    refused(&p, LQ_ERR_FORMAT, "column 64");
    cols[0] = old, old = cols[1], cols[1] = cols[0];
    refused(&p, LQ_ERR_FORMAT, "not ascending");
    cols[1] = old;
    piece_of(&p, ".vals")->data[1] = 0x7c;
    refused(&p, LQ_ERR_FORMAT, "sparse value 0 is not finite");
    piece_of(&p, ".vals")->data[1] = 0;
    piece_of(&p, ".lookup_table")->data[5] = 0x7e;
    refused(&p, LQ_ERR_FORMAT, "code table entry 2 is not finite");
    piece_of(&p, ".lookup_table")->data[5] = 0;
    config_replace(&p, "\"wbits\": 3", "\"wbits\": 4");
    refused(&p, LQ_ERR_FORMAT, "lookup_table|8 values, expected 2^wbits (16)");
    config_replace(&p, "\"wbits\": 4", "\"wbits\": 40");
    refused(&p, LQ_ERR_FORMAT, "wbits");
    config_replace(&p, "\"wbits\": 40", "\"wbits\": 3");
    config_replace(&p, "10000\": 1000", "10000\": 900");
    refused(&p, LQ_ERR_FORMAT, "cols|room for 51 values, expected 46");
    config_replace(&p, "10000\": 900", "10000\": 0");
    refused(&p, LQ_ERR_FORMAT, "room for 51 values");
    config_replace(&p, "10000\": 0", "10000\": 1000");
    piece_set(&p, ".vals", LQ_F16, 1, 50, 0, NULL);
    refused(&p, LQ_ERR_FORMAT, "vals|expected [51");
    piece_drop(&p, ".vals");
    refused(&p, LQ_ERR_FORMAT, "up_proj|no vals");
    piece_set(&p, ".vals", LQ_F16, 1, 51, 0, NULL);
    piece_set(&p, ".qweight", LQ_I32, 2, 7, 8, NULL);
    refused(&p, LQ_ERR_FORMAT, "qweight|7 rows of words");
    piece_set(&p, ".qweight", LQ_I32, 2, 0, 8, NULL);
    refused(&p, LQ_ERR_FORMAT, "qweight|no matrix");
    piece_set(&p, ".qweight", LQ_I32, 2, 6, 9, NULL);
    refused(&p, LQ_ERR_FORMAT, "lookup_table|expected [9, 8]");
    piece_drop(&p, ".lookup_table");
    refused(&p, LQ_ERR_FORMAT, "up_proj|no lookup_table");
    pieces_free(&p);
    lq_qtensor_free(&q);
}

int main(void) {
    lq_threads_set(1);
    const struct CMUnitTest tests[] = {
        IN_FOLDERS(every_width_and_any_number_of_values_round_trips),
        IN_FOLDERS(the_layout_is_the_documented_one),
        IN_FOLDERS(f32_values_without_lquant_s_keys_read_to_the_same_floats),
        IN_FOLDERS(modules_that_differ_are_named_in_the_config),
        IN_FOLDERS(refusals_name_what_would_fit),
        IN_FOLDERS(damage_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
