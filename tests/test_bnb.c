/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* bitsandbytes folders: written and read back bit for bit, against files bitsandbytes saved, and damaged in every way we know. */
#define _GNU_SOURCE
#include "format_damage.h"
#include "quant/nearest.h"

static lq_scheme table(lq_lut_id id, uint32_t block, bool nested) {
    lq_scheme s = {.grid = {LQ_GRID_LUT, 4, 1, (int32_t)id}, .scale = {.dtype = LQ_F32, .tile_r = LQ_FLAT, .tile_c = block}};
    if (nested) s.scale.dtype = LQ_U8, s.scale.parent = LQ_F32, s.scale.span = 256;
    return s;
}

static lq_scheme int8(float outlier) {
    return (lq_scheme){.grid = {LQ_GRID_INT, 8, 1, 128}, .scale = {.dtype = LQ_F32, .sig = LQ_SIG_127TH, .tile_r = 1},
                       .act = {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .outlier = outlier, .scope = outlier > 0}};
}

/* Any map will do for the 8-bit scales: it is stored. */
static void make(lq_qtensor *q, const lq_scheme *s, uint32_t rows, uint32_t cols) {
    lq_rng rng;
    lq_rng_seed(&rng, rows, cols);
    assert_int_equal(lq_qtensor_init(NULL, q, s, (lq_slot){0, LQ_R_UP, -1}, rows, cols), LQ_OK);
    random_codes(q, rows);
    size_t n = lq_plane_count(&s->scale, rows, cols);
    if (s->scale.dtype == LQ_U8) {
        float *lut = lq_arena_alloc(q->mem, 256 * sizeof *lut);
        for (int i = 0; i < 256; i++) lut[i] = ((float)i - 127) / 128;
        q->scale.lut = lut;
        q->scale.offset = 0.123456789f;
        for (size_t i = 0; i < (n + 255) / 256; i++) ((float *)q->scale.parent)[i] = 0.01f + 0.1f * lq_rng_unit(&rng);
        for (size_t i = 0; i < n; i++) ((uint8_t *)q->scale.v)[i] = (uint8_t)lq_rng_u32(&rng);
        return;
    }
    for (size_t i = 0; i < n; i++) ((float *)q->scale.v)[i] = s->grid.kind == LQ_GRID_INT ? (0.01f + lq_rng_unit(&rng)) / 127 : lq_rng_unit(&rng);
}

static void every_type_and_block_size_round_trips(void **state) {
    (void)state;
    static const uint32_t shapes[][2] = {{1, 1}, {3, 7}, {5, 64}, {9, 33}, {16, 128}, {96, 257}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        lq_qtensor q;
        for (uint32_t block = 32; block <= 4096; block *= 2)
            for (int kind = 0; kind < 4; kind++) {
                lq_scheme s = table(kind & 1 ? LQ_LUT_FP4 : LQ_LUT_NF4, block, kind > 1);
                make(&q, &s, shapes[i][0], shapes[i][1]);
                round_trip("bitsandbytes", &q, LQ_BF16);
                lq_qtensor_free(&q);
            }
        for (int k = 0; k < 3; k++) {
            lq_scheme s = int8((float)k * 3);
            make(&q, &s, shapes[i][0], shapes[i][1]);
            round_trip("bitsandbytes", &q, LQ_F32);
            lq_qtensor_free(&q);
        }
    }
}

/* formats.md: one block, absmax 1: codes 15 0 12 7 4 8 14 2 of NF4 and 3 11 5 0 15 6 2 10 of FP4. */
static void the_worked_examples_are_the_bytes(void **state) {
    (void)state;
    static const uint8_t codes[2][8] = {{15, 0, 12, 7, 4, 8, 14, 2}, {3, 11, 5, 0, 15, 6, 2, 10}}, want[2][4] = {{0xf0, 0xc7, 0x48, 0xe2}, {0x3b, 0x50, 0xf6, 0x2a}};
    static const char state_json[] = "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"bfloat16\", \"shape\": [4, 64]}";
    for (int k = 0; k < 2; k++) {
        lq_scheme s = table(k ? LQ_LUT_FP4 : LQ_LUT_NF4, 64, false);
        lq_qtensor q;
        pieces p;
        make(&q, &s, 4, 64);
        for (uint32_t c = 0; c < 8; c++) lq_code_put(q.codes, 4, c, codes[k][c]);
        GOOD_ST(put_one("bitsandbytes", &q, LQ_BF16));
        pieces_read(&p, dir);
        assert_memory_equal(piece_of(&p, ".weight")->data, want[k], 4);
        assert_int_equal(p.n, 4);
        if (!k) assert_int_equal(piece_of(&p, ".weight.quant_state.bitsandbytes__nf4")->t.bytes, 77);
        if (!k) assert_memory_equal(piece_of(&p, ".weight.quant_state.bitsandbytes__nf4")->data, state_json, 77);
        pieces_free(&p);
        lq_qtensor_free(&q);
    }
}

static void an_int8_row_is_its_largest_magnitude_and_signed_bytes(void **state) {
    (void)state;
    static const int8_t row[4] = {64, -127, 33, 0};
    lq_scheme s = int8(6);
    lq_qtensor q;
    pieces p;
    make(&q, &s, 2, 4);
    for (uint32_t c = 0; c < 4; c++) lq_code_put(q.codes, 8, c, (uint32_t)(row[c] + 128)), lq_code_put(q.codes + q.row_bytes, 8, c, 128);
    ((float *)q.scale.v)[0] = 0.7109375f / 127;
    ((float *)q.scale.v)[1] = 1; /* a row of zeros */
    round_trip("bitsandbytes", &q, LQ_F16);
    pieces_read(&p, dir);
    assert_memory_equal(piece_of(&p, ".weight")->data, row, 4);
    const float *scb = (const float *)(const void *)piece_of(&p, ".SCB")->data;
    assert_true(scb[0] == 0.7109375f && scb[1] == 0);
    assert_true(piece_of(&p, ".weight_format")->t.ndim == 0 && !piece_of(&p, ".weight_format")->data[0]);
    pieces_free(&p);
    ((float *)q.scale.v)[0] = nextafterf(0.7109375f / 127, 0); /* some float has no dividend: one in a hundred */
    int none = 0;
    for (int i = 0; i < 2000; i++) {
        ((float *)q.scale.v)[0] = nextafterf(((float *)q.scale.v)[0], 1);
        lq_status st = put_one("bitsandbytes", &q, LQ_F16);
        none += st == LQ_ERR_QUALITY;
        if (st) assert_non_null(strstr(ctx.msg, "divided by 127"));
        ctx = (lq_ctx){0};
        if (none == 2) break;
    }
    assert_int_equal(none, 2);
    lq_qtensor_free(&q);
}

static const char *const plain[] = {"bnb/nf4", "bnb/fp4", "bnb/int8"}, *const nested[] = {"bnb/nf4_dq", "bnb/fp4_dq"};

static void files_of_bitsandbytes_read_to_its_floats(void **state) {
    (void)state;
    for (size_t i = 0; i < 3; i++) golden_reads(plain[i]);
    for (size_t i = 0; i < 2; i++) golden_reads(nested[i]);
}

static void files_of_bitsandbytes_are_written_again_byte_for_byte(void **state) {
    (void)state;
    for (size_t i = 0; i < 3; i++) golden_is_written_again(plain[i], "bitsandbytes");
}

/* nested_offset may be written with more or fewer digits, and spaces follow. */
static void only_the_state_of_nested_scales_may_differ_and_says_the_same(void **state) {
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        lq_source *s;
        pieces a, b;
        golden_open(nested[i], &s);
        assert_int_equal(unlink(in(out_dir, "weights.safetensors")), 0);
        rewrite(s, "bitsandbytes");
        lq_source_free(&s);
        same_tensors_but(dir, out_dir, "quant_state");
        pieces_read(&a, dir);
        pieces_read(&b, out_dir);
        const char *suffix = i ? ".weight.quant_state.bitsandbytes__fp4" : ".weight.quant_state.bitsandbytes__nf4";
        json_t *x, *y;
        GOOD_ST(lq_json_parse(&ctx, "theirs", (const char *)piece_of(&a, suffix)->data, piece_of(&a, suffix)->t.bytes, &x));
        GOOD_ST(lq_json_parse(&ctx, "ours", (const char *)piece_of(&b, suffix)->data, piece_of(&b, suffix)->t.bytes, &y));
        assert_int_equal(piece_of(&b, suffix)->t.bytes, 192);
        assert_true(json_equal(x, y));
        json_decref(x);
        json_decref(y);
        pieces_free(&a);
        pieces_free(&b);
    }
}

/* -- config ---------------------------------------------------------------------------------------------------------- */

static json_t *config_of(const lq_row *rows, size_t n) {
    lq_catalog cat = {.rows = (lq_row *)(uintptr_t)rows, .n = n};
    lq_sink *sink;
    lq_remove_tree(NULL, dir);
    GOOD_ST(lq_mkdir(&ctx, dir));
    GOOD_ST(lq_sink_open(&ctx, lq_format_by_name("bitsandbytes"), dir, &cat, &(lq_sink_opts){0}, &sink));
    GOOD_ST(lq_sink_config(sink, "{}", 2));
    lq_sink_abandon(&sink);
    return written_config(dir, "quantization_config");
}

static void kept_linears_are_skipped_by_name_and_the_head_with_them(void **state) {
    (void)state;
    lq_row rows[4] = {{.slot = {0, LQ_R_UP, -1}, .name = MODULE ".weight", .ndim = 2, .shape = {8, 8}, .linear = true, .quantize = true, .scheme = int8(3.5f)},
                      {.slot = {-1, LQ_R_EMBED, -1}, .name = "model.embed_tokens.weight", .ndim = 2, .shape = {8, 8}, .linear = true, .out_dtype = LQ_F16},
                      {.slot = {-1, LQ_R_HEAD, -1}, .name = "out.weight", .ndim = 2, .shape = {8, 8}, .linear = true, .out_dtype = LQ_F16},
                      {.slot = {0, LQ_R_Q, -1}, .name = "model.layers.0.self_attn.q_proj.weight", .ndim = 2, .shape = {8, 8}, .linear = true, .out_dtype = LQ_F16}};
    json_t *c = config_of(rows, 4), *skip = json_object_get(c, "llm_int8_skip_modules");
    assert_true(json_array_size(skip) == 2 && !strcmp(json_string_value(json_array_get(skip, 0)), "out"));
    assert_true(json_real_value(json_object_get(c, "llm_int8_threshold")) == 3.5 && json_is_true(json_object_get(c, "load_in_8bit")));
    json_decref(c);
    c = config_of(rows, 3);
    assert_true(json_is_null(json_object_get(c, "llm_int8_skip_modules")));
    json_decref(c);
    rows[2] = rows[3]; /* tied: no row */
    c = config_of(rows, 3);
    skip = json_object_get(c, "llm_int8_skip_modules");
    assert_true(json_array_size(skip) == 2 && !strcmp(json_string_value(json_array_get(skip, 1)), "lm_head"));
    json_decref(c);
}

static void a_model_is_of_one_kind(void **state) {
    (void)state;
    lq_row rows[2] = {{.slot = {0, LQ_R_UP, -1}, .name = MODULE ".weight", .ndim = 2, .shape = {8, 8}, .linear = true, .quantize = true, .scheme = int8(6)}};
    lq_catalog cat = {.rows = rows, .n = 2};
    rows[1] = rows[0];
    rows[1].slot.role = LQ_R_DOWN;
    rows[1].name = "model.layers.0.mlp.down_proj.weight";
    const lq_scheme pairs[][2] = {{int8(6), table(LQ_LUT_NF4, 64, false)}, {table(LQ_LUT_FP4, 64, false), table(LQ_LUT_NF4, 64, false)},
                                  {table(LQ_LUT_NF4, 64, true), table(LQ_LUT_NF4, 64, false)}, {int8(6), int8(5)}, {table(LQ_LUT_NF4, 64, false), table(LQ_LUT_NF4, 128, false)}};
    static const char *const says[] = {"load_in_4bit or load_in_8bit", "is fp4", "nf4-dq", "threshold 6", NULL};
    for (size_t i = 0; i < 5; i++) {
        lq_sink *sink;
        rows[0].scheme = pairs[i][0], rows[1].scheme = pairs[i][1];
        lq_remove_tree(NULL, dir);
        GOOD_ST(lq_mkdir(&ctx, dir));
        lq_status st = lq_sink_open(&ctx, lq_format_by_name("bitsandbytes"), dir, &cat, &(lq_sink_opts){0}, &sink);
        if (says[i]) assert_true(st == LQ_ERR_UNSUPPORTED && strstr(ctx.msg, says[i]) && strstr(ctx.msg, "down_proj"));
        else assert_int_equal(st, LQ_OK);
        if (!st) lq_sink_abandon(&sink);
        ctx = (lq_ctx){0};
    }
}

static void refusals_name_what_would_fit(void **state) {
    (void)state;
    const lq_format *f = lq_format_by_name("bitsandbytes");
    lq_scheme rows_nf4 = table(LQ_LUT_NF4, 64, false), cols = int8(6), token = int8(6), still = int8(6), half = int8(6), want;
    rows_nf4.scale.tile_r = 1;
    cols.extra = LQ_X_OUTLIER_COLS, cols.sparse = 4, cols.act.outlier = 0, cols.act.scope = 0;
    token.act.scope = 0;
    still.act = (lq_act){.kind = LQ_ACT_NONE};
    half.scale.dtype = LQ_F16, half.scale.sig = 8;
    const struct { lq_scheme s; const char *says; } cases[] = {
        {rows_nf4, "--group-size 64"}, {table(LQ_LUT_NF4, 48, false), "--group-size 64"}, {table(LQ_LUT_NF4, 8192, false), "--group-size 4096"}, {cols, "--static"},
        {token, "--compat bnb"}, {still, "--scheme INT8"}, {half, "F32 scale per row"}, {lq_scheme_int(4, 64, true), "--scheme NF4 fits"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ctx = (lq_ctx){0};
        if (f->accept(&ctx, &cases[i].s, 64, 128) != LQ_ERR_UNSUPPORTED || !strstr(ctx.msg, cases[i].says)) fail_msg("case %zu: %s", i, ctx.msg);
    }
    for (uint32_t block = 32; block <= 4096; block *= 2) {
        rows_nf4.scale.tile_c = block;
        assert_int_equal(lq_nearest_scheme(f, &rows_nf4, 64, 4096, &want), LQ_NEAR_EXACT);
        assert_true(want.scale.tile_r == LQ_FLAT && want.scale.tile_c == block);
    }
    rows_nf4.scale.tile_c = 64; /* blocks would run across rows */
    assert_int_equal(lq_nearest_scheme(f, &rows_nf4, 64, 96, &want), LQ_NEAR_VALUES);
    assert_int_equal(lq_nearest_scheme(f, &half, 64, 128, &want), LQ_NEAR_VALUES);
    assert_true(want.scale.dtype == LQ_F32 && want.scale.sig == LQ_SIG_127TH && want.grid.kind == LQ_GRID_INT);
}

/* -- damage ---------------------------------------------------------------------------------------------------------- */

#define STATE ".weight.quant_state.bitsandbytes__nf4"

static void with(const lq_scheme *s, pieces *p) {
    lq_qtensor q;
    make(&q, s, 9, 33);
    GOOD_ST(put_one("bitsandbytes", &q, LQ_BF16));
    lq_qtensor_free(&q);
    pieces_read(p, dir);
}

static void a_state_that_lies_is_refused(void **state) {
    (void)state;
    static const struct { const char *from, *to; lq_status st; const char *says; } lies[] = {
        {"[9, 33]", "[9, 34]", LQ_ERR_FORMAT, "up_proj.weight|149 bytes|expected 153"}, {"[9, 33]", "[9, 32]", LQ_ERR_FORMAT, "expected 144"},
        {"[9, 33]", "[297]", LQ_ERR_FORMAT, "pair of integers"}, {"[9, 33]", "[9, 0]", LQ_ERR_FORMAT, "[9, 0]"}, {"[9, 33]", "[-9, -33]", LQ_ERR_FORMAT, "[-9, -33]"},
        {"[9, 33]", "[2147483648, 33]", LQ_ERR_FORMAT, "2147483648"}, {"[9, 33]", "[9.0, 33]", LQ_ERR_FORMAT, "pair of integers"},
        {"64", "32", LQ_ERR_FORMAT, "absmax|expected [10"}, {"64", "0", LQ_ERR_FORMAT, "blocksize"}, {"64", "1.5", LQ_ERR_FORMAT, "blocksize"},
        {"\"nf4\"", "\"fp4\"", LQ_ERR_FORMAT, "quant_type|'nf4'"}, {"\"nf4\"", "4", LQ_ERR_FORMAT, "quant_type"}, {"bfloat16", "int8", LQ_ERR_FORMAT, "dtype|int8"},
        {"\"dtype\"", "\"blocksize\"", LQ_ERR_FORMAT, "duplicate"}, {"\"shape\"", "\"form\"", LQ_ERR_FORMAT, "shape"}, {"}", "", LQ_ERR_FORMAT, "bitsandbytes__nf4"},
        {"}", "}}", LQ_ERR_FORMAT, "bitsandbytes__nf4"}, {"{", "[{", LQ_ERR_FORMAT, "bitsandbytes__nf4"}, {"}", ", \"nested_dtype\": \"float32\"}", LQ_ERR_FORMAT, "nested_absmax"},
    };
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        lq_scheme s = table(LQ_LUT_NF4, 64, false);
        pieces p;
        with(&s, &p);
        text_replace(&p, STATE, lies[i].from, lies[i].to);
        refused(&p, lies[i].st, lies[i].says);
        pieces_free(&p);
    }
}

static void damaged_tables_are_refused(void **state) {
    (void)state;
    lq_scheme s = table(LQ_LUT_NF4, 64, false);
    pieces p;
    with(&s, &p);
    piece before = *piece_of(&p, ".weight.absmax");
    ((float *)(void *)before.data)[3] = NAN;
    refused(&p, LQ_ERR_FORMAT, "up_proj|scale 3 is not finite");
    ((float *)(void *)before.data)[3] = 1;
    ((float *)(void *)piece_of(&p, ".weight.quant_map")->data)[5] += 0.01f;
    refused(&p, LQ_ERR_FORMAT, "up_proj|quant_map[5]|expected -0.184773");
    ((float *)(void *)piece_of(&p, ".weight.quant_map")->data)[5] = NAN;
    refused(&p, LQ_ERR_FORMAT, "quant_map[5]");
    piece_set(&p, ".weight.quant_map", LQ_F32, 1, 8, 0, NULL);
    refused(&p, LQ_ERR_FORMAT, "quant_map|expected [16");
    piece_drop(&p, ".weight.quant_map");
    refused(&p, LQ_ERR_FORMAT, "up_proj|no weight.quant_map");
    pieces_free(&p);
    with(&s, &p);
    piece_set(&p, ".weight", LQ_U8, 2, 148, 1, NULL); /* odd n: the last byte holds one weight */
    refused(&p, LQ_ERR_FORMAT, "148 bytes|expected 149");
    piece_set(&p, ".weight", LQ_U8, 2, 1, 149, NULL);
    refused(&p, LQ_ERR_FORMAT, "another shape");
    piece_set(&p, ".weight.absmax", LQ_U8, 1, 5, 0, NULL);
    piece_set(&p, ".weight", LQ_U8, 2, 149, 1, NULL);
    refused(&p, LQ_ERR_FORMAT, "absmax|U8");
    piece_drop(&p, ".weight");
    refused(&p, LQ_ERR_FORMAT, "has no weight beside it");
    pieces_free(&p);
    with(&s, &p);
    piece_set(&p, STATE, LQ_U8, 1, 5000, 0, NULL);
    refused(&p, LQ_ERR_FORMAT, "bitsandbytes__nf4|5000 bytes");
    piece_drop(&p, STATE);
    refused(&p, LQ_ERR_FORMAT, "up_proj|quant_state");
    piece_drop(&p, ".weight.absmax");
    refused(&p, LQ_ERR_FORMAT, "up_proj|quant_map it should not have");
    pieces_free(&p);
}

static void damaged_nested_scales_are_refused(void **state) {
    (void)state;
    lq_scheme s = table(LQ_LUT_NF4, 64, true);
    pieces p;
    with(&s, &p);
    ((float *)(void *)piece_of(&p, ".weight.nested_absmax")->data)[0] = INFINITY;
    refused(&p, LQ_ERR_FORMAT, "up_proj|not finite");
    ((float *)(void *)piece_of(&p, ".weight.nested_absmax")->data)[0] = 1;
    ((float *)(void *)piece_of(&p, ".weight.nested_quant_map")->data)[200] = NAN;
    refused(&p, LQ_ERR_FORMAT, "scale table entry 200");
    piece_set(&p, ".weight.nested_quant_map", LQ_F32, 1, 255, 0, NULL);
    refused(&p, LQ_ERR_FORMAT, "nested_quant_map|expected [256");
    piece_drop(&p, ".weight.nested_quant_map");
    refused(&p, LQ_ERR_FORMAT, "no weight.nested_quant_map");
    pieces_free(&p);
    with(&s, &p);
    text_replace(&p, STATE, "\"nested_offset\"", "\"nested_ofset\"");
    refused(&p, LQ_ERR_FORMAT, "nested_offset");
    pieces_free(&p);
    with(&s, &p);
    text_replace(&p, STATE, "\"nested_blocksize\": 256", "\"nested_blocksize\": 1");
    refused(&p, LQ_ERR_FORMAT, "nested_absmax|expected [5");
    text_replace(&p, STATE, "\"nested_blocksize\": 1", "\"nested_blocksize\": 256");
    text_replace(&p, STATE, "float32\", \"nested_o", "float16\", \"nested_o");
    refused(&p, LQ_ERR_UNSUPPORTED, "nested_dtype|float16");
    pieces_free(&p);
}

static void damaged_int8_is_refused(void **state) {
    (void)state;
    lq_scheme s = int8(6);
    pieces p;
    static const float bad[] = {NAN, INFINITY, -1, 0};
    with(&s, &p);
    for (int i = 0; i < 4; i++) {
        ((float *)(void *)piece_of(&p, ".SCB")->data)[2] = bad[i];
        refused(&p, LQ_ERR_FORMAT, "up_proj|SCB[2]");
    }
    ((float *)(void *)piece_of(&p, ".SCB")->data)[2] = 1;
    piece_of(&p, ".weight_format")->data[0] = 1;
    refused(&p, LQ_ERR_UNSUPPORTED, "weight_format is 1");
    piece_of(&p, ".weight_format")->data[0] = 0;
    config_replace(&p, "\"llm_int8_threshold\": 6.0", "\"llm_int8_threshold\": -6.0");
    refused(&p, LQ_ERR_FORMAT, "llm_int8_threshold");
    config_replace(&p, "-6.0", "\"6\"");
    refused(&p, LQ_ERR_FORMAT, "llm_int8_threshold");
    config_replace(&p, "\"6\"", "6");
    piece_set(&p, ".SCB", LQ_F32, 1, 8, 0, NULL);
    refused(&p, LQ_ERR_FORMAT, "SCB|expected [9");
    piece_drop(&p, ".SCB");
    refused(&p, LQ_ERR_FORMAT, "up_proj|weight_format it should not have");
    piece_drop(&p, ".weight_format");
    refused(&p, LQ_ERR_FORMAT, "up_proj.weight|I8|neither");
    pieces_free(&p);
}

/* Sharded for FSDP: the same bytes called BF16. */
static void bytes_of_another_type_are_the_same_codes(void **state) {
    (void)state;
    lq_scheme s = table(LQ_LUT_NF4, 64, false);
    lq_qtensor q, back;
    pieces p;
    make(&q, &s, 8, 32);
    GOOD_ST(put_one("bitsandbytes", &q, LQ_BF16));
    pieces_read(&p, dir);
    uint8_t bytes[128];
    memcpy(bytes, piece_of(&p, ".weight")->data, sizeof bytes);
    piece_set(&p, ".weight", LQ_BF16, 2, 64, 1, bytes);
    pieces_write(&p);
    GOOD_ST(get_one(&back));
    assert_true(lq_qtensor_eq(&q, &back));
    lq_qtensor_free(&back);
    lq_qtensor_free(&q);
    pieces_free(&p);
}

static void every_failed_allocation_is_reported(void **state) {
    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        lq_scheme s = kind ? table(LQ_LUT_NF4, 64, true) : int8(6);
        lq_qtensor q, back;
        lq_status st = LQ_ERR_RESOURCE;
        make(&q, &s, 9, 33);
        for (long n = 0; st; n++) {
            ctx = (lq_ctx){0};
            lq_mem_fail_after(n);
            st = put_one("bitsandbytes", &q, LQ_F32);
            if (!st) st = get_one(&back);
            lq_mem_fail_after(-1);
            if (st && st != LQ_ERR_RESOURCE) fail_msg("allocation %ld: status %d, %s", n, (int)st, ctx.msg);
        }
        lq_qtensor_free(&back);
        lq_qtensor_free(&q);
    }
}

int main(void) {
    lq_threads_set(1);
    const struct CMUnitTest tests[] = {
        IN_FOLDERS(every_type_and_block_size_round_trips),
        IN_FOLDERS(the_worked_examples_are_the_bytes),
        IN_FOLDERS(an_int8_row_is_its_largest_magnitude_and_signed_bytes),
        IN_FOLDERS(files_of_bitsandbytes_read_to_its_floats),
        IN_FOLDERS(files_of_bitsandbytes_are_written_again_byte_for_byte),
        IN_FOLDERS(only_the_state_of_nested_scales_may_differ_and_says_the_same),
        IN_FOLDERS(kept_linears_are_skipped_by_name_and_the_head_with_them),
        IN_FOLDERS(a_model_is_of_one_kind),
        IN_FOLDERS(refusals_name_what_would_fit),
        IN_FOLDERS(a_state_that_lies_is_refused),
        IN_FOLDERS(damaged_tables_are_refused),
        IN_FOLDERS(damaged_nested_scales_are_refused),
        IN_FOLDERS(damaged_int8_is_refused),
        IN_FOLDERS(bytes_of_another_type_are_the_same_codes),
        IN_FOLDERS(every_failed_allocation_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
