/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* compressed-tensors checkpoints: words worked out by hand, what compressed-tensors itself packs, every named type, and files the reader
 * must not believe. */
#include "tests/format_folder.h"

#include "quant/types.h"

enum { N = 40, K = 64 };

/* -- writer ---------------------------------------------------------------------------------------------------------- */

/* formats.md's examples: q = -8 -7 -1 0 1 2 6 7 in int4; k mod 8 - 4 in int3 */
static void example(lq_qtensor *q) {
    static const uint8_t four[8] = {0, 1, 7, 8, 9, 10, 14, 15};
    uint32_t bits = q->sch.grid.bits;
    for (uint32_t k = 0; k < q->cols; k++) lq_code_put(q->codes, bits, k, bits == 3 ? k % 8 : four[k % 8]);
    for (uint32_t n = 0; q->sch.zero_kind == LQ_ZERO_CODE && n < q->rows; n++)
        for (uint32_t g = 0; g < lq_plane_cols(&q->sch.zero, q->cols); g++) ((uint8_t *)q->zero.v)[n * lq_plane_cols(&q->sch.zero, q->cols) + g] = (uint8_t)(8 + n % 8);
}

static void words_are_the_worked_examples(void **state) {
    (void)state;
    lq_scheme four = lq_scheme_int(4, 32, false), three = lq_scheme_int(3, 32, true);
    lq_st_file f;
    write_one("compressed-tensors", &four, N, K, example, &f);
    uint32_t *w = part(&f, ".weight_packed", LQ_I32, 2, N, K / 8), *z = part(&f, ".weight_zero_point", LQ_I32, 2, N / 8, K / 32);
    uint64_t *shape = part(&f, ".weight_shape", LQ_I64, 1, 2, 0);
    uint16_t *scale = part(&f, ".weight_scale", LQ_F16, 2, N, K / 32);
    assert_true(w[0] == 0xfea98710 && w[7] == 0xfea98710 && w[8] == 0 && z[0] == 0xfedcba98 && z[1] == 0xfedcba98 && shape[0] == N && shape[1] == K && scale[0] == 0x3c00);
    assert_int_equal(f.n, 4);
    free(w), free(z), free(shape), free(scale);
    lq_st_close(&f);
    lq_remove_tree(NULL, dir);
    GOOD_ST(lq_mkdir(&ctx, dir));
    write_one("compressed-tensors", &three, N, K, example, &f);
    uint32_t *v = part(&f, ".weight_packed", LQ_I32, 2, N, 6);
    assert_true(v[0] == 0x88fac688 && v[1] == 0xc688fac6 && v[2] == 0xfac688fa && v[3] == v[0]);
    free(v);
    lq_st_close(&f);
}

static void fp4_scales(lq_qtensor *q) {
    static const uint8_t codes[8] = {0, 9, 2, 5, 7, 12, 1, 7};
    for (uint32_t k = 0; k < q->cols; k++) lq_code_put(q->codes, 4, k, codes[k % 8]);
    if (q->scale.parent) ((float *)q->scale.parent)[0] = 0x1p-8f;
}

static void fp4_has_the_even_input_below_and_a_reciprocal(void **state) {
    (void)state;
    lq_scheme s = {.grid = {LQ_GRID_E2M1, 4, 1, 0}, .scale = {.dtype = LQ_E4M3, .tile_r = 1, .tile_c = 16, .parent = LQ_F32}};
    lq_st_file f;
    write_one("compressed-tensors", &s, N, K, fp4_scales, &f);
    uint8_t *w = part(&f, ".weight_packed", LQ_U8, 2, N, K / 2), *scale = part(&f, ".weight_scale", LQ_E4M3, 2, N, K / 16);
    float *global = part(&f, ".weight_global_scale", LQ_F32, 1, 1, 0);
    assert_true(w[0] == 0x90 && w[1] == 0x52 && w[2] == 0xc7 && w[3] == 0x71 && *global == 256);
    free(w), free(scale), free(global);
    lq_st_close(&f);
}

static void odd_factor(lq_qtensor *q) { ((float *)q->scale.parent)[0] = 0.01f; }

static void a_factor_without_an_exact_reciprocal_is_refused(void **state) {
    (void)state;
    lq_scheme s = {.grid = {LQ_GRID_E2M1, 4, 1, 0}, .scale = {.dtype = LQ_E4M3, .tile_r = 1, .tile_c = 16, .parent = LQ_F32}};
    lq_row row = {.slot = {0, LQ_R_UP, -1}, .name = "up.weight", .ndim = 2, .shape = {N, K}, .quantize = true, .scheme = s};
    lq_catalog cat = {.rows = &row, .n = 1};
    lq_sink *sink;
    lq_qtensor q;
    GOOD_ST(lq_qtensor_init(&ctx, &q, &s, row.slot, N, K));
    odd_factor(&q);
    GOOD_ST(lq_sink_open(&ctx, lq_format_by_name("compressed-tensors"), dir, &cat, &(lq_sink_opts){0}, &sink));
    assert_int_equal(lq_sink_put(sink, &q), LQ_ERR_UNSUPPORTED);
    assert_non_null(strstr(ctx.msg, "no exact reciprocal"));
    lq_sink_abandon(&sink);
    lq_qtensor_free(&q);
}

static lq_row row_of(const char *name, uint16_t role, int32_t block, const lq_scheme *s) {
    lq_row r = {.slot = {block, role, -1}, .name = name, .ndim = 2, .shape = {N, K}, .linear = true, .quantize = s != NULL, .out_dtype = LQ_F16};
    if (s) r.scheme = *s;
    return r;
}

static json_t *config_of(lq_row *rows, size_t n) {
    lq_catalog cat = {.rows = rows, .n = n};
    lq_sink *sink;
    lq_sink_opts opts = {.act_order = true};
    GOOD_ST(lq_sink_open(&ctx, lq_format_by_name("compressed-tensors"), dir, &cat, &opts, &sink));
    GOOD_ST(lq_sink_config(sink, "{\"a\":1}", 7));
    lq_sink_abandon(&sink);
    return written_config(dir, "quantization_config");
}

static void groups_name_their_modules_when_there_are_two(void **state) {
    (void)state;
    lq_scheme four = lq_scheme_int(4, 32, true), eight = lq_scheme_int(8, -1, true);
    eight.act = (lq_act){.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8};
    lq_row rows[] = {row_of("h.0.q.weight", LQ_R_Q, 0, &four), row_of("h.0.o.weight", LQ_R_O, 0, &eight), row_of("h.0.k.weight", LQ_R_K, 0, &four),
                     row_of("h.0.gate.weight", LQ_R_ROUTER, 0, NULL), row_of("h.0.k_scale", LQ_R_K_SCALE, 0, NULL), row_of("vision.0.weight", LQ_R_UNKNOWN, -1, NULL),
                     row_of("embed.weight", LQ_R_EMBED, -1, NULL)};
    rows[4].ndim = 1, rows[4].shape[0] = 1, rows[4].out_dtype = LQ_F32;
    json_t *q = config_of(rows, 7);
    json_t *want = json_pack("{s:s, s:s, s:s, s:s, s:n, s:{s:{s:[s, s], s:{s:i, s:s, s:b, s:s, s:i, s:b, s:s}, s:n, s:n, s:s}, s:{s:[s], s:{s:i, s:s, s:b, s:s, s:n, s:b}, "
                             "s:{s:i, s:s, s:b, s:s, s:n, s:b}, s:n, s:s}}, s:[s, s, s], s:{s:i, s:s, s:b, s:s, s:n, s:b}, s:{}, s:{}, s:{s:s, s:{s:i}}}",
                             "quant_method", "compressed-tensors", "version", "0.20.0", "format", "mixed-precision", "quantization_status", "compressed", "global_compression_ratio", "config_groups",
                             "group_0", "targets", "h.0.q", "h.0.k", "weights", "num_bits", 4, "type", "int", "symmetric", 1, "strategy", "group", "group_size", 32, "dynamic", 0, "actorder", "weight",
                             "input_activations", "output_activations", "format", "pack-quantized",
                             "group_1", "targets", "h.0.o", "weights", "num_bits", 8, "type", "int", "symmetric", 1, "strategy", "channel", "group_size", "dynamic", 0,
                             "input_activations", "num_bits", 8, "type", "int", "symmetric", 1, "strategy", "token", "group_size", "dynamic", 1, "output_activations", "format", "int-quantized",
                             "ignore", "h.0.gate", "vision.0", "lm_head", "kv_cache_scheme", "num_bits", 8, "type", "float", "symmetric", 1, "strategy", "tensor", "group_size", "dynamic", 0,
                             "sparsity_config", "transform_config", "lquant", "version", LQ_VERSION, "scale_sig", "F16", 8);
    if (!json_equal(q, want)) fail_msg("%s", json_dumps(q, JSON_INDENT(1)));
    json_decref(q);
    json_decref(want);
}

static void one_kind_targets_the_class(void **state) {
    (void)state;
    lq_scheme four = lq_scheme_int(4, 32, true);
    lq_row rows[] = {row_of("h.0.q.weight", LQ_R_Q, 0, &four), row_of("lm_head.weight", LQ_R_HEAD, -1, NULL)};
    json_t *q = config_of(rows, 2), *g = json_object_get(json_object_get(q, "config_groups"), "group_0");
    assert_string_equal(json_string_value(json_array_get(json_object_get(g, "targets"), 0)), "Linear");
    assert_null(json_object_get(g, "format"));
    assert_string_equal(json_string_value(json_object_get(q, "format")), "pack-quantized");
    assert_int_equal(json_array_size(json_object_get(q, "ignore")), 1);
    json_decref(q);
}

/* Said by name, independently of accept. */
static void every_named_type_is_held_or_refused_with_one_that_is(void **state) {
    (void)state;
    static const char *const held = " int2 int3 int4 int5 int6 int8 W2A16 W3A16 W4A16 W8A16 W8A8 W4A8 W4AFP8 FP8 FP8-tensor FP8-block FP8-W MXFP4 NVFP4 Q4_0 Q5_0 Q8_0 ";
    size_t seen = 0;
    for (const lq_type *t = lq_types; t->name; t++) {
        if (t->keep) continue;
        lq_ctx c = {0};
        char name[64];
        snprintf(name, sizeof name, " %s ", t->name);
        lq_status st = lq_format_by_name("compressed-tensors")->accept(&c, &t->scheme, 256, 512);
        if ((st == LQ_OK) != (strstr(held, name) != NULL)) fail_msg("%s: %s", t->name, st ? c.msg : "accepted");
        if (st && (st != LQ_ERR_UNSUPPORTED || (!strstr(c.msg, "--scheme") && !strstr(c.msg, "--format") && !strstr(c.msg, " fits")))) fail_msg("%s: '%s' names nothing that fits", t->name, c.msg);
        seen += !st;
    }
    assert_int_equal(seen, 22);
}

/* -- golden ---------------------------------------------------------------------------------------------------------- */

static void what_compressed_tensors_packs_reads_to_its_floats_and_is_written_again(void **state) {
    (void)state;
    static const char *const cases[] = {"ct/packed", "ct/ints", "ct/floats", "ct/w4afp8"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        golden_reads(cases[i]);
        golden_is_written_again(cases[i], "compressed-tensors");
    }
}

static void older_packings_and_act_order_read_to_their_floats(void **state) {
    (void)state;
    golden_reads("ct/old");
}

/* -- hostile --------------------------------------------------------------------------------------------------------- */

typedef struct folder { lq_st_tensor t[6]; const void *data[6]; size_t n; char config[2000]; } folder;
static const char head[] = "{\"quantization_config\": {\"quant_method\": \"compressed-tensors\", \"version\": \"0.20.0\", \"format\": \"%s\", \"ignore\": [%s], "
                           "\"config_groups\": {\"g\": {\"targets\": [%s], \"weights\": {%s}, \"input_activations\": %s}}}}";

static uint8_t bytes[N * K];
static uint16_t halves[N * K];
static uint64_t shape[3];

static void add(folder *f, const char *name, lq_dtype t, uint32_t ndim, uint64_t d0, uint64_t d1, const void *data) {
    f->t[f->n] = (lq_st_tensor){.name = name, .dtype = t, .ndim = ndim, .shape = {d0, d1}};
    f->data[f->n++] = data;
}

/* A sound asymmetric int4 module of groups of 32. */
static folder packed(void) {
    folder f = {0};
    for (size_t i = 0; i < N * K; i++) halves[i] = 0x2c00;
    memset(bytes, 0x88, sizeof bytes);
    shape[0] = N, shape[1] = K;
    add(&f, "m.weight_packed", LQ_I32, 2, N, K / 8, bytes);
    add(&f, "m.weight_scale", LQ_F16, 2, N, 2, halves);
    add(&f, "m.weight_shape", LQ_I64, 1, 2, 0, shape);
    add(&f, "m.weight_zero_point", LQ_I32, 2, N / 8, 2, bytes);
    snprintf(f.config, sizeof f.config, head, "pack-quantized", "", "\"re:m\"", "\"num_bits\": 4, \"strategy\": \"group\", \"group_size\": 32, \"symmetric\": false", "null");
    return f;
}

static void refused(const folder *f, lq_status st, const char *says) {
    write_folder(f->t, f->data, f->n, f->config);
    folder_refused(st, says);
}

static void a_sound_file_is_read(void **state) {
    (void)state;
    folder f = packed();
    lq_source *s;
    lq_qtensor q;
    float row[K];
    write_folder(f.t, f.data, f.n, f.config);
    GOOD_ST(lq_source_open(&ctx, dir, &s));
    GOOD_ST(lq_source_read_q(&ctx, s, 0, &q));
    lq_qtensor_decode_row(&q, 3, row);
    assert_true(row[0] == 0 && q.rows == N && q.cols == K && q.sch.grid.bits == 4);
    lq_qtensor_free(&q);
    lq_source_free(&s);
}

static void shapes_that_contradict_each_other_are_refused(void **state) {
    (void)state;
    static const struct { size_t i; lq_dtype t; uint32_t ndim; uint64_t d0, d1; const char *says; } cases[] = {
        {0, LQ_I32, 2, N, K / 8 + 1, "weight_shape says [40, 64], but 'm.weight_packed' is [40, 9] words"}, {0, LQ_I32, 2, N - 1, K / 8, "weight_shape says"},
        {0, LQ_F16, 2, N, K / 8, "is no matrix of a type"}, {0, LQ_I32, 1, N, 0, "is no matrix"}, {1, LQ_F16, 2, N, 3, "expected [40, 2]"}, {1, LQ_I8, 2, N, 2, "is of type I8"},
        {2, LQ_I64, 1, 3, 0, "expected [2, 0]"}, {2, LQ_I32, 1, 2, 0, "is of type I32"}, {3, LQ_I32, 2, N, 2, "expected [5, 2]"}, {3, LQ_I32, 2, N / 8, 3, "expected [5, 2]"},
        {3, LQ_I8, 2, N / 8, 2, "expected [40, 2]"}, {3, LQ_F16, 2, N, 2, "is of type F16"},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        folder f = packed();
        lq_st_tensor *t = &f.t[cases[c].i];
        t->dtype = cases[c].t, t->ndim = cases[c].ndim, t->shape[0] = cases[c].d0, t->shape[1] = cases[c].d1;
        refused(&f, LQ_ERR_FORMAT, cases[c].says);
    }
}

static void a_lying_weight_shape_is_refused(void **state) {
    (void)state;
    static const uint64_t lies[][2] = {{N, K + 8}, {N, 0}, {N + 1, K}, {N, (uint64_t)1 << 40}, {UINT64_MAX, K}, {N, UINT64_MAX}};
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        folder f = packed();
        memcpy(shape, lies[i], sizeof lies[0]);
        refused(&f, LQ_ERR_FORMAT, "weight_shape says");
    }
    folder f = packed(); /* the same words, fewer inputs: the groups tell */
    shape[1] = K - 1;
    refused(&f, LQ_ERR_FORMAT, "groups of 32 do not divide 63");
}

static void missing_and_surplus_parts_are_refused(void **state) {
    (void)state;
    static const char *const says[] = {"no weight_packed", "has no weight_scale beside it", "no weight_shape", "no weight_zero_point"};
    for (size_t i = 0; i < 4; i++) {
        folder f = packed();
        f.n--;
        f.t[i] = f.t[f.n], f.data[i] = f.data[f.n];
        refused(&f, LQ_ERR_FORMAT, says[i]);
    }
    folder f = packed();
    add(&f, "m.weight_global_scale", LQ_F32, 1, 1, 0, halves);
    refused(&f, LQ_ERR_FORMAT, "integers have none");
    f = packed();
    add(&f, "m.input_scale", LQ_F32, 1, 1, 0, halves);
    refused(&f, LQ_ERR_FORMAT, "input_activations are not quantized");
    f = packed();
    add(&f, "m.weight", LQ_F16, 2, N, K, halves);
    refused(&f, LQ_ERR_FORMAT, "its format has no such tensor");
}

static void scales_and_columns_are_checked(void **state) {
    (void)state;
    folder f = packed();
    halves[5] = 0x7e00;
    refused(&f, LQ_ERR_FORMAT, "not finite");
    f = packed();
    int32_t *g_idx = calloc(K, 4);
    add(&f, "m.weight_g_idx", LQ_I32, 1, K, 0, g_idx);
    refused(&f, LQ_ERR_FORMAT, "more than 32 inputs into group 0");
    for (int k = 0; k < K; k++) g_idx[k] = 2 - k % 2;
    refused(&f, LQ_ERR_FORMAT, "of 2 groups");
    free(g_idx);
}

static void settings_that_contradict_the_tensors_are_refused(void **state) {
    (void)state;
    static const struct { const char *format, *ignore, *targets, *weights, *acts; lq_status st; const char *says; } cases[] = {
        {"pack-quantized", "\"m\"", "\"Linear\"", "\"num_bits\": 4, \"group_size\": 32, \"symmetric\": false", "null", LQ_ERR_FORMAT, "'ignore' lists it"},
        {"pack-quantized", "\"re:m\"", "\"Linear\"", "\"num_bits\": 4, \"group_size\": 32, \"symmetric\": false", "null", LQ_ERR_FORMAT, "'ignore' lists it"},
        {"pack-quantized", "", "\"n\"", "\"num_bits\": 4, \"group_size\": 32, \"symmetric\": false", "null", LQ_ERR_FORMAT, "no config group names it"},
        {"pack-quantized", "", "\"Linear\"", "\"num_bits\": 8, \"group_size\": 32, \"symmetric\": false", "null", LQ_ERR_FORMAT, "weight_shape says"},
        {"pack-quantized", "", "\"Linear\"", "\"num_bits\": 4, \"group_size\": 16, \"symmetric\": false", "null", LQ_ERR_FORMAT, "expected [40, 4]"},
        {"pack-quantized", "", "\"Linear\"", "\"num_bits\": 4, \"group_size\": 32, \"strategy\": \"row\"", "null", LQ_ERR_UNSUPPORTED, "strategy 'row' is not read"},
        {"pack-quantized", "", "\"Linear\"", "\"num_bits\": 4, \"strategy\": \"group\"", "null", LQ_ERR_FORMAT, "strategy group with group_size 0"},
        {"pack-quantized", "", "\"Linear\"", "\"num_bits\": 9, \"group_size\": 32", "null", LQ_ERR_UNSUPPORTED, "integers of 9 bits"},
        {"pack-quantized", "", "\"Linear\"", "\"num_bits\": \"4\"", "null", LQ_ERR_FORMAT, "num_bits"},
        {"pack-quantized", "", "\"Linear\"", "\"num_bits\": 8, \"type\": \"float\"", "null", LQ_ERR_FORMAT, "type float does not go with its format"},
        {"int-quantized", "", "\"Linear\"", "\"num_bits\": 8, \"group_size\": 32", "null", LQ_ERR_FORMAT, "no weight, which"},
        {"float-quantized", "", "\"Linear\"", "\"num_bits\": 8, \"type\": \"float\", \"strategy\": \"block\"", "null", LQ_ERR_FORMAT, "block_structure"},
        {"nvfp4-pack-quantized", "", "\"Linear\"", "\"num_bits\": 4, \"type\": \"float\", \"strategy\": \"tensor_group\", \"group_size\": 16", "null", LQ_ERR_FORMAT, "is no matrix"},
        {"marlin-24", "", "\"Linear\"", "\"num_bits\": 4", "null", LQ_ERR_UNSUPPORTED, "format 'marlin-24' is not read"},
        {"pack-quantized", "", "\"re:(\"", "\"num_bits\": 4", "null", LQ_ERR_FORMAT, "no regular expression"},
        {"pack-quantized", "", "\"re:(m|mm*)*(m|mm*)*(m|mm*)*(m|mm*)*x\"", "\"num_bits\": 4", "null", LQ_ERR_FORMAT, "no config group names it"},
        {"pack-quantized", "", "7", "\"num_bits\": 4", "null", LQ_ERR_FORMAT, "an entry that is no string"},
        {"pack-quantized", "", "\"Linear\"", "\"num_bits\": 4, \"dynamic\": 3", "null", LQ_ERR_FORMAT, "'dynamic' is neither"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        folder f = packed();
        snprintf(f.config, sizeof f.config, head, cases[i].format, cases[i].ignore, cases[i].targets, cases[i].weights, cases[i].acts);
        refused(&f, cases[i].st, cases[i].says);
    }
}

static void an_expression_that_explodes_is_given_up(void **state) {
    (void)state;
    folder f = packed();
    char name[200] = "";
    memset(name, 'a', 120);
    for (size_t i = 0; i < f.n; i++) {
        char *full = calloc(1, 256);
        snprintf(full, 256, "%s%s", name, strchr(f.t[i].name, '.'));
        f.t[i].name = full;
    }
    snprintf(f.config, sizeof f.config, head, "pack-quantized", "", "\"re:(a|a)*(a|a)*(a|aa)*[b-z]\"", "\"num_bits\": 4, \"group_size\": 32, \"symmetric\": false", "null");
    refused(&f, LQ_ERR_FORMAT, "cannot be matched");
    for (size_t i = 0; i < f.n; i++) free((char *)f.t[i].name);
}

static void static_steps_and_bytes_are_checked(void **state) {
    (void)state;
    static const float step = 0.5f, none = 0, nan_ = NAN;
    folder f = {0};
    memset(bytes, 3, sizeof bytes);
    packed();
    add(&f, "m.weight", LQ_I8, 2, N, K, bytes);
    add(&f, "m.weight_scale", LQ_F16, 2, N, 1, halves);
    add(&f, "m.input_scale", LQ_F32, 1, 1, 0, &step);
    snprintf(f.config, sizeof f.config, head, "int-quantized", "", "\"Linear\"", "\"num_bits\": 4, \"strategy\": \"channel\"", "{\"num_bits\": 8, \"strategy\": \"tensor\"}");
    refused(&f, LQ_ERR_FORMAT, "a value outside 4 bits");
    memset(bytes, 7, sizeof bytes);
    f.data[2] = &none;
    refused(&f, LQ_ERR_FORMAT, "a step of 0");
    f.data[2] = &nan_;
    refused(&f, LQ_ERR_FORMAT, "a step of");
    f.n = 2;
    refused(&f, LQ_ERR_FORMAT, "no input_scale");
}

int main(void) {
    lq_threads_set(1);
    const struct CMUnitTest tests[] = {
        IN_FOLDERS(words_are_the_worked_examples),
        IN_FOLDERS(fp4_has_the_even_input_below_and_a_reciprocal),
        IN_FOLDERS(a_factor_without_an_exact_reciprocal_is_refused),
        IN_FOLDERS(groups_name_their_modules_when_there_are_two),
        IN_FOLDERS(one_kind_targets_the_class),
        IN_FOLDERS(every_named_type_is_held_or_refused_with_one_that_is),
        IN_FOLDERS(what_compressed_tensors_packs_reads_to_its_floats_and_is_written_again),
        IN_FOLDERS(older_packings_and_act_order_read_to_their_floats),
        IN_FOLDERS(a_sound_file_is_read),
        IN_FOLDERS(shapes_that_contradict_each_other_are_refused),
        IN_FOLDERS(a_lying_weight_shape_is_refused),
        IN_FOLDERS(missing_and_surplus_parts_are_refused),
        IN_FOLDERS(scales_and_columns_are_checked),
        IN_FOLDERS(settings_that_contradict_the_tensors_are_refused),
        IN_FOLDERS(an_expression_that_explodes_is_given_up),
        IN_FOLDERS(static_steps_and_bytes_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
