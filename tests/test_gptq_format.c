/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The GPTQ layout against words worked out by hand, and the reader against files other tools may write. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/num.h"
#include "core/pack.h"
#include "core/thread.h"
#include "formats/safetensors.h"
#include "formats/sink.h"
#include "formats/source.h"

enum { N = 32, K = 64, GROUP = 32 };
static const char module_name[] = "model.layers.0.mlp.up_proj";
static char dir[64];
static lq_ctx ctx;

static int fresh_folder(void **state) {
    (void)state;
    snprintf(dir, sizeof dir, "%s/lq_gptq_XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    ctx = (lq_ctx){0};
    return mkdtemp(dir) ? 0 : -1;
}
static int remove_folder(void **state) {
    (void)state;
    return (int)lq_remove_tree(NULL, dir);
}

static const char *in(const char *name) {
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

/* -- writer ---------------------------------------------------------------------------------------------------------- */

typedef struct written { lq_st_file f; } written; /* the folder as the container reader sees it */

static void write_one(const char *format, const lq_scheme *s, void (*fill)(lq_qtensor *), written *w) {
    lq_row row = {.slot = {0, LQ_R_UP, -1}, .name = "model.layers.0.mlp.up_proj.weight", .ndim = 2, .shape = {N, K}, .linear = true, .quantize = true, .scheme = *s};
    lq_catalog cat = {.rows = &row, .n = 1};
    lq_sink *sink;
    lq_qtensor q;
    assert_int_equal(lq_qtensor_init(&ctx, &q, s, row.slot, N, K), LQ_OK);
    for (size_t i = 0; i < lq_plane_count(&s->scale, N, K); i++) lq_plane_set(&s->scale, &q.scale, i, 1);
    fill(&q);
    assert_int_equal(lq_sink_open(&ctx, lq_format_by_name(format), dir, &cat, &(lq_sink_opts){0}, &sink), LQ_OK);
    assert_int_equal(lq_sink_config(sink, "{}", 2), LQ_OK);
    assert_int_equal(lq_sink_put(sink, &q), LQ_OK);
    assert_int_equal(lq_sink_close(&sink), LQ_OK);
    lq_qtensor_free(&q);
    assert_int_equal(lq_st_open(&ctx, in("model.safetensors"), &w->f), LQ_OK);
}

/* Word `i` of a part, counted row-major. */
static uint32_t word(written *w, const char *part, size_t i) {
    char name[128];
    uint32_t v = 0;
    snprintf(name, sizeof name, "%s.%s", module_name, part);
    for (size_t t = 0; t < w->f.n; t++)
        if (!strcmp(w->f.tensors[t].name, name)) {
            assert_int_equal(lq_file_read(&ctx, &w->f.file, w->f.tensors[t].offset + 4 * i, &v, 4), LQ_OK);
            return v;
        }
    fail_msg("no %s", name);
    return v;
}

static void count_codes(lq_qtensor *q) { /* output 0: codes 1..8, again and again; output 1: 0..7 in 3 bits */
    for (uint32_t k = 0; k < K; k++) {
        lq_code_put(q->codes, q->sch.grid.bits, k, q->sch.grid.bits == 3 ? k % 8 : k % 8 + 1);
        lq_code_put(q->codes + q->row_bytes, q->sch.grid.bits, k, 0);
    }
    static const uint8_t zeros[8] = {1, 2, 3, 4, 5, 6, 7, 15};
    for (uint32_t n = 0; q->sch.zero_kind == LQ_ZERO_CODE && n < N; n++)
        for (uint32_t g = 0; g < K / GROUP; g++) ((uint8_t *)q->zero.v)[n * (K / GROUP) + g] = q->sch.grid.bits == 3 ? (uint8_t)(n % 8) : zeros[n % 8];
}

static void four_bit_words_are_the_worked_example(void **state) {
    (void)state;
    lq_scheme s = lq_scheme_int(4, GROUP, false);
    written w;
    write_one("gptq", &s, count_codes, &w);
    for (size_t row = 0; row < K / 8; row++) {
        assert_int_equal(word(&w, "qweight", row * N), 0x87654321);
        assert_int_equal(word(&w, "qweight", row * N + 1), 0);
    }
    assert_int_equal(word(&w, "qzeros", 0), 0xf7654321); /* v2, for it is asymmetric */
    assert_int_equal(word(&w, "qzeros", 7), 0xf7654321);
    for (size_t k = 0; k < K; k++) assert_int_equal(word(&w, "g_idx", k), k / GROUP);
    assert_int_equal(word(&w, "scales", 0), 0x3c003c00);
    lq_st_close(&w.f);
}

static void three_bit_codes_run_across_words(void **state) {
    (void)state;
    lq_scheme s = lq_scheme_int(3, GROUP, false);
    static const uint32_t want[3] = {0x88fac688, 0xc688fac6, 0xfac688fa};
    written w;
    write_one("gptq", &s, count_codes, &w);
    for (size_t i = 0; i < 6; i++) assert_int_equal(word(&w, "qweight", i * N), want[i % 3]);
    for (size_t i = 0; i < 6; i++) assert_int_equal(word(&w, "qzeros", i), want[i % 3]);
    lq_st_close(&w.f);
}

static void straddling_codes(lq_qtensor *q) {
    lq_code_put(q->codes, 3, 10, 7);
    lq_code_put(q->codes, 3, 21, 5);
}

static void codes_10_and_21_lie_in_two_words(void **state) {
    (void)state;
    lq_scheme s = lq_scheme_int(3, GROUP, true);
    static const uint32_t want[6] = {0xc0000000, 0x80000001, 0x00000002, 0, 0, 0};
    written w;
    write_one("gptq", &s, straddling_codes, &w);
    for (size_t i = 0; i < 6; i++) assert_int_equal(word(&w, "qweight", i * N), want[i]);
    lq_st_close(&w.f);
}

static void no_codes(lq_qtensor *q) { (void)q; }

static void symmetric_zero_words_are_constant(void **state) {
    static const struct { int bits; uint32_t v1[3], v2[3]; } cases[] = {
        {2, {0x55555555, 0x55555555, 0x55555555}, {0xaaaaaaaa, 0xaaaaaaaa, 0xaaaaaaaa}},
        {3, {0xdb6db6db, 0xb6db6db6, 0x6db6db6d}, {0x24924924, 0x49249249, 0x92492492}},
        {4, {0x77777777, 0x77777777, 0x77777777}, {0x88888888, 0x88888888, 0x88888888}},
        {8, {0x7f7f7f7f, 0x7f7f7f7f, 0x7f7f7f7f}, {0x80808080, 0x80808080, 0x80808080}},
    };
    for (size_t c = 0; c < 4; c++)
        for (int v2 = 0; v2 < 2; v2++) {
            lq_scheme s = lq_scheme_int(cases[c].bits, GROUP, true);
            written w;
            write_one(v2 ? "gptq_v2" : "gptq", &s, no_codes, &w);
            for (size_t i = 0; i < K / GROUP * N * (size_t)cases[c].bits / 32; i++)
                assert_int_equal(word(&w, "qzeros", i), v2 ? cases[c].v2[i % 3] : cases[c].v1[i % 3]);
            lq_st_close(&w.f);
            remove_folder(state);
            fresh_folder(state);
        }
}

/* -- config ---------------------------------------------------------------------------------------------------------- */

static lq_row linear_row(const char *name, uint16_t role, const lq_scheme *s) {
    lq_row r = {.slot = {0, role, -1}, .name = name, .ndim = 2, .shape = {N, K}, .linear = true, .quantize = s != NULL, .out_dtype = LQ_F16};
    if (s) r.scheme = *s;
    return r;
}

static json_t *config_of(lq_row *rows, size_t n, const json_t *meta) {
    lq_catalog cat = {.rows = rows, .n = n};
    lq_sink *sink;
    json_t *doc;
    lq_sink_opts opts = {.meta = meta, .act_order = true};
    assert_int_equal(lq_sink_open(&ctx, lq_format_by_name("gptq"), dir, &cat, &opts, &sink), LQ_OK);
    assert_int_equal(lq_sink_config(sink, "{\"a\":1}", 7), LQ_OK);
    lq_sink_abandon(&sink);
    assert_int_equal(lq_json_load(&ctx, in("config.json"), &doc), LQ_OK);
    json_t *q = json_incref(json_object_get(doc, "quantization_config"));
    json_decref(doc);
    return q;
}

static void config_names_what_differs_from_the_most_common_scheme(void **state) {
    (void)state;
    lq_scheme four = lq_scheme_int(4, GROUP, true), eight = lq_scheme_int(8, -1, true);
    lq_row rows[] = {linear_row("a.h.0.q.weight", LQ_R_Q, &eight), linear_row("a.h.0.k.weight", LQ_R_K, &four), linear_row("a.h.0.v.weight", LQ_R_V, &four),
                     linear_row("a.h.0.o.weight", LQ_R_O, NULL), linear_row("lm_head.weight", LQ_R_HEAD, NULL)};
    rows[4].slot.block = -1;
    json_t *meta = json_pack("{s:f, s:b}", "damp_percent", 0.05, "true_sequential", 1);
    json_t *q = config_of(rows, 5, meta);
    json_t *want = json_pack("{s:s, s:i, s:i, s:b, s:b, s:b, s:b, s:s, s:s, s:s, s:s, s:f, s:b, s:{s:{s:i, s:i, s:b}, s:{}}, s:[[s, s, s]], s:{s:f, s:b, s:[s], s:i}}",
                             "quant_method", "gptq", "bits", 4, "group_size", GROUP, "desc_act", 0, "sym", 1, "lm_head", 0, "static_groups", 1,
                             "checkpoint_format", "gptq", "method", "gptq", "format", "gptq", "pack_dtype", "int32", "damp_percent", 0.05, "true_sequential", 1,
                             "dynamic", "+:^a\\.h\\.0\\.q$", "bits", 8, "group_size", -1, "sym", 1, "-:^a\\.h\\.0\\.o$",
                             "modules_in_block_to_quantize", "a.h.0.q", "a.h.0.k", "a.h.0.v", "meta", "damp_percent", 0.05, "true_sequential", 1, "quantizer", "lquant:" LQ_VERSION, "scale_sig", 8);
    assert_true(json_equal(q, want));
    json_decref(q);
    json_decref(want);
    json_decref(meta);
}

static void a_rule_also_matches_the_name_a_linear_is_fused_into(void **state) {
    (void)state;
    lq_scheme four = lq_scheme_int(4, GROUP, true), eight = lq_scheme_int(8, -1, true);
    lq_row rows[] = {linear_row("h.q_proj.weight", LQ_R_Q, &eight), linear_row("h.gate_proj.weight", LQ_R_K, &eight), linear_row("m.experts.0.w1.weight", LQ_R_V, &eight),
                     linear_row("a.weight", LQ_R_Q, &four), linear_row("b.weight", LQ_R_Q, &four), linear_row("c.weight", LQ_R_Q, &four), linear_row("d.weight", LQ_R_Q, &four)};
    json_t *q = config_of(rows, 7, NULL), *dynamic = json_object_get(q, "dynamic");
    assert_int_equal(json_object_size(dynamic), 3);
    assert_non_null(json_object_get(dynamic, "+:^h\\.q(?:kv)?_proj$"));
    assert_non_null(json_object_get(dynamic, "+:^h\\.gate(?:_up)?_proj$"));
    assert_non_null(json_object_get(dynamic, "+:^m\\.experts(?:\\.0\\.w1)?$"));
    json_decref(q);
}

static void one_asymmetric_linear_makes_it_v2(void **state) {
    (void)state;
    lq_scheme sym = lq_scheme_int(4, GROUP, true), asym = lq_scheme_int(4, GROUP, false);
    lq_row rows[] = {linear_row("h.q.weight", LQ_R_Q, &sym), linear_row("h.k.weight", LQ_R_K, &sym), linear_row("h.v.weight", LQ_R_V, &asym)};
    json_t *q = config_of(rows, 3, NULL);
    assert_string_equal(json_string_value(json_object_get(q, "checkpoint_format")), "gptq_v2");
    assert_true(json_is_true(json_object_get(q, "sym")));
    assert_true(json_is_false(json_object_get(json_object_get(json_object_get(q, "dynamic"), "+:^h\\.v$"), "sym")));
    json_decref(q);
}

static void an_embedding_is_not_quantized(void **state) {
    (void)state;
    lq_scheme sym = lq_scheme_int(4, GROUP, true);
    lq_row row = linear_row("embed.weight", LQ_R_EMBED, &sym);
    lq_catalog cat = {.rows = &row, .n = 1};
    lq_sink *sink;
    assert_int_equal(lq_sink_open(&ctx, lq_format_by_name("gptq"), dir, &cat, &(lq_sink_opts){0}, &sink), LQ_ERR_UNSUPPORTED);
    assert_null(sink);
}

/* -- reader: files of other tools ------------------------------------------------------------------------------------ */

/* One module of 4 bits, group 32, made by hand. */
typedef struct peer {
    uint32_t qweight[K / 8][N], qzeros[K / GROUP][N / 8];
    uint16_t scales[K / GROUP][N];
    int32_t g_idx[K];
    uint16_t bias[N];
    const char *config;
} peer;

static uint32_t code_of(uint32_t n, uint32_t k) { return (n * 7 + k * 3 + k / 16) % 16; }

static peer peer_make(const char *config) {
    peer p = {.config = config};
    for (uint32_t k = 0; k < K; k++) {
        p.g_idx[k] = (int32_t)(k / GROUP);
        for (uint32_t n = 0; n < N; n++) p.qweight[k / 8][n] |= code_of(n, k) << 4 * (k % 8);
    }
    for (uint32_t g = 0; g < K / GROUP; g++)
        for (uint32_t n = 0; n < N; n++) {
            p.qzeros[g][n / 8] |= 7u << 4 * (n % 8);
            p.scales[g][n] = lq_f32_f16(0.5f + (float)n / 64 + (float)g);
        }
    return p;
}

static void peer_write(const peer *p, bool with_g_idx) {
    lq_st_tensor t[] = {
        {.name = "m.qweight", .dtype = LQ_I32, .ndim = 2, .shape = {K / 8, N}},
        {.name = "m.qzeros", .dtype = LQ_I32, .ndim = 2, .shape = {K / GROUP, N / 8}},
        {.name = "m.scales", .dtype = LQ_F16, .ndim = 2, .shape = {K / GROUP, N}},
        {.name = "m.bias", .dtype = LQ_F16, .ndim = 1, .shape = {N}},
        {.name = "m.g_idx", .dtype = LQ_I32, .ndim = 1, .shape = {K}},
    };
    lq_st_writer *w;
    assert_int_equal(lq_st_create(&ctx, dir, t, with_g_idx ? 5 : 4, 0, &w), LQ_OK);
    assert_int_equal(lq_st_put(&ctx, w, "m.qweight", p->qweight, sizeof p->qweight), LQ_OK);
    assert_int_equal(lq_st_put(&ctx, w, "m.qzeros", p->qzeros, sizeof p->qzeros), LQ_OK);
    assert_int_equal(lq_st_put(&ctx, w, "m.scales", p->scales, sizeof p->scales), LQ_OK);
    assert_int_equal(lq_st_put(&ctx, w, "m.bias", p->bias, sizeof p->bias), LQ_OK);
    if (with_g_idx) assert_int_equal(lq_st_put(&ctx, w, "m.g_idx", p->g_idx, sizeof p->g_idx), LQ_OK);
    assert_int_equal(lq_st_finish(&ctx, &w), LQ_OK);
    assert_int_equal(lq_write_file(&ctx, in("config.json"), p->config, strlen(p->config)), LQ_OK);
}

#define CONFIG(more) "{\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 32" more "}}"

static lq_status peer_open(const peer *p, bool with_g_idx, lq_source **s, lq_qtensor *q) {
    peer_write(p, with_g_idx);
    LQ_TRY(lq_source_open(&ctx, dir, s));
    long i = lq_source_find(*s, "m.weight");
    assert_true(i >= 0);
    lq_status st = lq_source_read_q(&ctx, *s, (size_t)i, q);
    if (st) lq_source_free(s);
    return st;
}

static void peer_refused(const peer *p, lq_status want, const char *says) {
    lq_source *s;
    lq_qtensor q;
    assert_int_equal(peer_open(p, true, &s, &q), want);
    if (!strstr(ctx.msg, says)) fail_msg("'%s' lacks '%s'", ctx.msg, says);
}

/* w[n][k] as the peer's own definition says, zero point z. */
static void check_weights(const peer *p, const lq_qtensor *q, float z) {
    float row[K];
    for (uint32_t n = 0; n < N; n++) {
        lq_qtensor_decode_row(q, n, row);
        for (uint32_t k = 0; k < K; k++) assert_true(row[k] == lq_f16_f32(p->scales[p->g_idx[k]][n]) * ((float)code_of(n, k) - z));
    }
}

static void a_file_without_version_is_v1(void **state) {
    (void)state;
    peer p = peer_make(CONFIG(", \"desc_act\": false, \"sym\": true"));
    lq_source *s;
    lq_qtensor q;
    assert_int_equal(peer_open(&p, true, &s, &q), LQ_OK);
    assert_int_equal(s->n, 2);
    assert_int_equal(lq_source_find(s, "m.qweight"), -1);
    assert_true(lq_source_find(s, "m.bias") >= 0);
    assert_int_equal(q.sch.zero_kind, LQ_ZERO_NONE);
    assert_int_equal(s->entries[lq_source_find(s, "m.weight")].bytes, sizeof p.qweight + sizeof p.qzeros + sizeof p.scales + sizeof p.g_idx);
    check_weights(&p, &q, 8);
    lq_qtensor_free(&q);
    lq_source_free(&s);
}

static void a_v2_zero_is_taken_as_it_is(void **state) {
    (void)state;
    peer p = peer_make(CONFIG(", \"sym\": false, \"format\": \"gptq_v2\""));
    lq_source *s;
    lq_qtensor q;
    assert_int_equal(peer_open(&p, false, &s, &q), LQ_OK);
    check_weights(&p, &q, 7);
    lq_qtensor_free(&q);
    lq_source_free(&s);
}

static void act_order_becomes_a_permutation(void **state) {
    (void)state;
    peer p = peer_make(CONFIG(", \"desc_act\": true, \"sym\": false"));
    for (uint32_t k = 0; k < K; k++) p.g_idx[k] = k * 5 % 64 < 32;
    lq_source *s;
    lq_qtensor q;
    assert_int_equal(peer_open(&p, true, &s, &q), LQ_OK);
    assert_non_null(q.perm);
    for (uint32_t c = 0; c + 1 < GROUP; c++) assert_true(q.perm[c] < q.perm[c + 1] && p.g_idx[q.perm[c]] == 0);
    check_weights(&p, &q, 8);
    lq_qtensor_free(&q);
    lq_source_free(&s);
}

/* z = 0, 8, 8 ... less one over the whole word: the borrow runs into the next field. */
static void a_wrapped_zero_of_gptqmodel_is_unwrapped(void **state) {
    (void)state;
    peer p = peer_make(CONFIG(", \"sym\": false, \"meta\": {\"quantizer\": [\"gptqmodel:7.6.0\"]}"));
    lq_source *s;
    lq_qtensor q;
    p.qzeros[1][2] = 0x88888880u - 0x11111111u;
    assert_int_equal(p.qzeros[1][2] & 0xff, 0x6f);
    assert_int_equal(peer_open(&p, true, &s, &q), LQ_OK);
    for (size_t n = 0; n < N; n++) {
        assert_int_equal(((uint8_t *)q.zero.v)[n * 2], 8);
        assert_int_equal(((uint8_t *)q.zero.v)[n * 2 + 1], n == 16 ? 0 : 8);
    }
    lq_qtensor_free(&q);
    lq_source_free(&s);
}

static void dynamic_settings_decide_per_module(void **state) {
    (void)state;
    peer p = peer_make("{\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 8, \"group_size\": 128, \"sym\": true, \"dynamic\": "
                       "{\"-:x\": {}, \"+:^m$\": {\"bits\": 4, \"group_size\": 32, \"sym\": false}, \"m\": {\"bits\": 2}}}}");
    lq_source *s;
    lq_qtensor q;
    assert_int_equal(peer_open(&p, true, &s, &q), LQ_OK);
    assert_true(q.sch.grid.bits == 4 && q.sch.zero_kind == LQ_ZERO_CODE);
    check_weights(&p, &q, 8);
    lq_qtensor_free(&q);
    lq_source_free(&s);
}

static void the_legacy_config_file_is_read(void **state) {
    (void)state;
    peer p = peer_make("{\"model_type\": \"llama\"}");
    static const char text[] = "{\"bits\": 4, \"group_size\": 32, \"desc_act\": false, \"sym\": true}";
    assert_int_equal(lq_write_file(&ctx, in("quantize_config.json"), text, sizeof text - 1), LQ_OK);
    lq_source *s;
    lq_qtensor q;
    assert_int_equal(peer_open(&p, true, &s, &q), LQ_OK);
    check_weights(&p, &q, 8);
    lq_qtensor_free(&q);
    lq_source_free(&s);
}

/* One change each, and what the refusal must name. */
static void dishonest_files_are_refused(void **state) {
    static const struct {
        const char *config, *says;
        int what;
        lq_status st;
    } cases[] = {
        {CONFIG(", \"sym\": true"), "says sym", 1, LQ_ERR_FORMAT},
        {CONFIG(", \"sym\": false"), "zero point 16 or 0", 2, LQ_ERR_FORMAT},
        {CONFIG(", \"sym\": true"), "not finite", 3, LQ_ERR_FORMAT},
        {CONFIG(", \"sym\": true"), "desc_act is false", 4, LQ_ERR_FORMAT},
        {CONFIG(", \"sym\": true, \"desc_act\": true"), "g_idx[40] is -3", 5, LQ_ERR_FORMAT},
        {CONFIG(", \"sym\": true, \"desc_act\": true"), "more than 32 inputs", 4, LQ_ERR_FORMAT},
        {CONFIG(", \"meta\": {\"scale_sig\": 4}"), "significant bits", 0, LQ_ERR_FORMAT},
        {CONFIG(", \"checkpoint_format\": \"marlin\""), "'marlin'", 0, LQ_ERR_UNSUPPORTED},
        {CONFIG(", \"pack_dtype\": \"int16\""), "'int16'", 0, LQ_ERR_UNSUPPORTED},
        {CONFIG(", \"dynamic\": {\"-:m\": {}}"), "'m' is stored quantized", 0, LQ_ERR_FORMAT},
        {CONFIG(", \"dynamic\": {\"+:(\": {}}"), "regular expression", 0, LQ_ERR_FORMAT},
        {CONFIG(", \"dynamic\": {\"m\": {\"bits\": 5}}"), "5 bits", 0, LQ_ERR_UNSUPPORTED},
        {CONFIG(", \"dynamic\": {\"m\": {\"bits\": 8}}"), "m.scales", 0, LQ_ERR_FORMAT},
        {CONFIG(", \"dynamic\": {\"m\": {\"group_size\": 64}}"), "m.scales", 0, LQ_ERR_FORMAT},
        {"{\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4}}", "'group_size' is missing", 0, LQ_ERR_FORMAT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        peer p = peer_make(cases[i].config);
        if (cases[i].what == 1) p.qzeros[1][2] ^= 1u << 8;
        if (cases[i].what == 2) p.qzeros[1][2] |= 0xf00;
        if (cases[i].what == 3) p.scales[1][5] = 0x7c00;
        if (cases[i].what == 4) p.g_idx[40] = 0;
        if (cases[i].what == 5) p.g_idx[40] = -3;
        peer_refused(&p, cases[i].st, cases[i].says);
        remove_folder(state);
        fresh_folder(state);
    }
}

int main(void) {
    lq_threads_set(1); /* tiny matrices */
#define T(f) cmocka_unit_test_setup_teardown(f, fresh_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        T(four_bit_words_are_the_worked_example),
        T(three_bit_codes_run_across_words),
        T(codes_10_and_21_lie_in_two_words),
        T(symmetric_zero_words_are_constant),
        T(config_names_what_differs_from_the_most_common_scheme),
        T(a_rule_also_matches_the_name_a_linear_is_fused_into),
        T(one_asymmetric_linear_makes_it_v2),
        T(an_embedding_is_not_quantized),
        T(a_file_without_version_is_v1),
        T(a_v2_zero_is_taken_as_it_is),
        T(act_order_becomes_a_permutation),
        T(a_wrapped_zero_of_gptqmodel_is_unwrapped),
        T(dynamic_settings_decide_per_module),
        T(the_legacy_config_file_is_read),
        T(dishonest_files_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
