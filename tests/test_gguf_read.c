/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* GGUF files of ggml's blocks, made here: the same weights whether they are read as blocks or as codes, whatever the view. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "calib/model.h"
#include "core/num.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- a file in the making ---- */

typedef struct maker { lq_buf head, info, data; uint64_t keys, tensors; lq_rng rng; } maker;

static void put(lq_buf *b, const void *p, size_t n) { assert_true(lq_buf_add(b, p, n)); }
static void u32(lq_buf *b, uint32_t v) { put(b, &v, 4); }
static void u64(lq_buf *b, uint64_t v) { put(b, &v, 8); }
static void text(lq_buf *b, const char *s) {
    u64(b, strlen(s));
    put(b, s, strlen(s));
}
static void key_u32(maker *m, const char *key, uint32_t v) {
    text(&m->head, key);
    u32(&m->head, 4);
    u32(&m->head, v);
    m->keys++;
}
static void key_f32(maker *m, const char *key, float v) {
    text(&m->head, key);
    u32(&m->head, 6);
    put(&m->head, &v, 4);
    m->keys++;
}
static void key_text(maker *m, const char *key, const char *v) {
    text(&m->head, key);
    u32(&m->head, 8);
    text(&m->head, v);
    m->keys++;
}

/* Where the F16 of a block are; E8M0 and E4M3 scales are kept small. */
static void small_scales(lq_dtype t, uint8_t *b, lq_rng *rng) {
    static const struct { lq_dtype type; int at[2]; } halves[] = {{LQ_Q8_0, {0, -1}}, {LQ_Q4_1, {0, 2}}, {LQ_Q4_K, {0, 2}}, {LQ_Q6_K, {208, -1}}, {LQ_IQ4_XS, {0, -1}}, {LQ_TQ1_0, {52, -1}}};
    for (size_t i = 0; i < sizeof halves / sizeof *halves; i++)
        for (int k = 0; k < 2 && halves[i].type == t; k++) {
            uint16_t h = lq_f32_f16(0.001f * lq_rng_normal(rng));
            if (halves[i].at[k] >= 0) memcpy(b + halves[i].at[k], &h, 2);
        }
    for (int i = 0; i < 4 && t == LQ_NVFP4; i++) b[i] &= 0x3f;
    if (t == LQ_MXFP4) b[0] = (uint8_t)(110 + b[0] % 8);
}

static void add(maker *m, const char *name, lq_dtype t, uint32_t ndim, uint64_t cols, uint64_t rows, uint64_t mats) {
    const lq_dtype_info *d = &lq_dtypes[t];
    uint64_t ne[3] = {cols, rows, mats}, blocks = cols / d->block * rows * mats;
    while (m->data.n % 32) put(&m->data, "", 1);
    text(&m->info, name);
    u32(&m->info, ndim);
    for (uint32_t i = 0; i < ndim; i++) u64(&m->info, ne[i]);
    u32(&m->info, (uint32_t)d->gguf);
    u64(&m->info, m->data.n);
    m->tensors++;
    for (uint64_t i = 0; i < blocks; i++) {
        uint8_t b[256];
        for (uint32_t k = 0; k < d->bytes; k++) b[k] = (uint8_t)lq_rng_u32(&m->rng);
        small_scales(t, b, &m->rng);
        float v = lq_rng_normal(&m->rng);
        if (t == LQ_F32) memcpy(b, &v, 4);
        put(&m->data, b, d->bytes);
    }
}

static void finish(maker *m, const char *path) {
    FILE *f = fopen(path, "wb");
    uint32_t version = 3;
    assert_non_null(f);
    fwrite("GGUF", 1, 4, f);
    fwrite(&version, 4, 1, f);
    fwrite(&m->tensors, 8, 1, f);
    fwrite(&m->keys, 8, 1, f);
    if (m->head.n) fwrite(m->head.v, 1, m->head.n, f);
    if (m->info.n) fwrite(m->info.v, 1, m->info.n, f);
    while (ftell(f) % 32) fputc(0, f);
    if (m->data.n) fwrite(m->data.v, 1, m->data.n, f);
    assert_int_equal(fclose(f), 0);
    lq_buf_free(&m->head);
    lq_buf_free(&m->info);
    lq_buf_free(&m->data);
}

static char path[64];
static int fresh(void **state) {
    (void)state;
    snprintf(path, sizeof path, "/tmp/lquant-test-XXXXXX");
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}
static int gone(void **state) {
    (void)state;
    return unlink(path);
}

/* ---- tests ---- */

enum { HIDDEN = 512, FFN = 256, HEADS = 4, KV = 2, DIM = HIDDEN / HEADS };

static void make_model(bool experts) {
    maker m = {0};
    lq_rng_seed(&m.rng, 1, experts);
    key_text(&m, "general.architecture", "llama");
    key_u32(&m, "llama.block_count", 1);
    key_u32(&m, "llama.context_length", 64);
    key_u32(&m, "llama.embedding_length", HIDDEN);
    key_u32(&m, "llama.feed_forward_length", FFN);
    key_u32(&m, "llama.attention.head_count", HEADS);
    key_u32(&m, "llama.attention.head_count_kv", KV);
    key_f32(&m, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    key_u32(&m, "llama.vocab_size", 40);
    if (experts) key_u32(&m, "llama.expert_count", 3);
    if (experts) key_u32(&m, "llama.expert_used_count", 2);
    add(&m, "token_embd.weight", LQ_Q6_K, 2, HIDDEN, 40, 1);
    add(&m, "output_norm.weight", LQ_F32, 1, HIDDEN, 1, 1);
    add(&m, "blk.0.attn_norm.weight", LQ_F32, 1, HIDDEN, 1, 1);
    add(&m, "blk.0.ffn_norm.weight", LQ_F32, 1, HIDDEN, 1, 1);
    add(&m, "blk.0.attn_q.weight", LQ_Q4_K, 2, HIDDEN, HIDDEN, 1);
    add(&m, "blk.0.attn_k.weight", LQ_NVFP4, 2, HIDDEN, KV * DIM, 1);
    add(&m, "blk.0.attn_k.scale", LQ_F32, 1, 1, 1, 1);
    add(&m, "blk.0.attn_v.weight", LQ_IQ4_XS, 2, HIDDEN, KV * DIM, 1);
    add(&m, "blk.0.attn_output.weight", LQ_MXFP4, 2, HIDDEN, HIDDEN, 1);
    if (experts) {
        add(&m, "blk.0.ffn_gate_inp.weight", LQ_F32, 2, HIDDEN, 3, 1);
        add(&m, "blk.0.ffn_gate_exps.weight", LQ_Q4_1, 3, HIDDEN, FFN, 3);
        add(&m, "blk.0.ffn_up_exps.weight", LQ_NVFP4, 3, HIDDEN, FFN, 3);
        add(&m, "blk.0.ffn_up_exps.scale", LQ_F32, 1, 3, 1, 1);
        add(&m, "blk.0.ffn_down_exps.weight", LQ_TQ1_0, 3, FFN, HIDDEN, 3);
    } else {
        add(&m, "blk.0.ffn_gate.weight", LQ_Q4_1, 2, HIDDEN, FFN, 1);
        add(&m, "blk.0.ffn_up.weight", LQ_NVFP4, 2, HIDDEN, FFN, 1);
        add(&m, "blk.0.ffn_down.weight", LQ_Q8_0, 2, FFN, HIDDEN, 1);
    }
    finish(&m, path);
}

static void check_row(lq_model *m, const lq_row *r) {
    uint32_t rows = lq_row_rows(r), cols = lq_row_cols(r);
    lq_qtensor q;
    float *want = LQ_NEWN(float, (size_t)rows * cols), *got = LQ_NEWN(float, cols);
    assert_int_equal(lq_model_read_f32(NULL, m, r, want), LQ_OK);
    assert_int_equal(lq_model_read_q(NULL, m, r, &q), LQ_OK);
    assert_true(q.rows == rows && q.cols == cols && q.slot.role == r->slot.role && q.slot.expert == r->slot.expert && lq_scheme_eq(&q.sch, &r->scheme));
    for (uint32_t i = 0; i < rows; i++) {
        lq_qtensor_decode_row(&q, i, got);
        for (uint32_t c = 0; c < cols; c++)
            if (got[c] != want[(size_t)i * cols + c]) fail_msg("%s (%u, %u): %g as codes, %g as floats", r->name, i, c, (double)got[c], (double)want[(size_t)i * cols + c]);
    }
    lq_qtensor_free(&q);
    lq_free(want);
    lq_free(got);
}

static void rows_are_the_same_as_blocks_and_as_codes(void **state) {
    (void)state;
    for (int experts = 0; experts < 2; experts++) {
        lq_ctx ctx = {0};
        lq_source *s = NULL;
        lq_model *m = NULL;
        size_t seen = 0;
        make_model(experts);
        if (lq_source_open(&ctx, path, &s) || lq_model_open(&ctx, s, false, &m)) fail_msg("%s", ctx.msg);
        assert_int_equal(lq_source_find(s, "blk.0.attn_k.scale"), -1);
        for (size_t i = 0; i < m->cat.n; i++)
            if (m->cat.rows[i].scheme.grid.bits) check_row(m, &m->cat.rows[i]), seen++;
        assert_int_equal(seen, experts ? 14 : 8);
        lq_model_free(&m);
        lq_source_free(&s);
    }
}

/* attn_k: the F32 beside the blocks is in the values, and rows stand where the model wants them. */
static void a_scale_beside_the_blocks_is_part_of_the_weights(void **state) {
    (void)state;
    lq_source *s;
    lq_model *m;
    make_model(false);
    assert_int_equal(lq_source_open(NULL, path, &s), LQ_OK);
    assert_int_equal(lq_model_open(NULL, s, false, &m), LQ_OK);
    long i = lq_source_find(s, "blk.0.attn_k.weight");
    const lq_row *row = lq_catalog_find(&m->cat, (lq_slot){0, LQ_R_K, -1}, LQ_PART_WEIGHT);
    uint8_t *blocks = lq_alloc(KV * DIM * HIDDEN / 64 * 36);
    float *all = LQ_NEWN(float, KV * DIM * HIDDEN), raw[HIDDEN], scale = s->entries[i].block_scale[0];
    assert_int_equal(lq_source_read(NULL, s, (size_t)i, 0, KV * DIM, blocks), LQ_OK);
    assert_int_equal(lq_model_read_f32(NULL, m, row, all), LQ_OK);
    assert_true(scale != 1 && row->dtype == LQ_NONE);
    for (uint32_t r = 0; r < KV * DIM; r++) {
        uint32_t in = r % DIM, stored = r / DIM * DIM + (in < DIM / 2 ? 2 * in : 2 * (in - DIM / 2) + 1);
        lq_dtype_decode(LQ_NVFP4, blocks + (size_t)stored * HIDDEN / 64 * 36, raw, HIDDEN);
        for (uint32_t c = 0; c < HIDDEN; c++) assert_true(fabsf(all[r * HIDDEN + c] - scale * raw[c]) <= 1e-6f * fabsf(raw[c] * scale));
    }
    lq_free(blocks);
    lq_free(all);
    lq_model_free(&m);
    lq_source_free(&s);
}

static void expect_refused(maker *m, lq_status want, const char *word) {
    lq_ctx ctx = {0};
    lq_source *s = NULL;
    lq_qtensor q;
    finish(m, path);
    lq_status st = lq_source_open(&ctx, path, &s);
    if (!st) st = lq_source_read_q(&ctx, s, 0, &q);
    if (st != want || !strstr(ctx.msg, word)) fail_msg("%d: %s", (int)st, ctx.msg);
    lq_source_free(&s);
}

/* llama-quantize makes other blocks of NVFP4 and leaves the number where it was. */
static void a_scale_beside_other_blocks_is_multiplied(void **state) {
    (void)state;
    maker m = {0};
    lq_source *s;
    float times[2] = {0.75f, -3}, want[32], got[2 * 3 * 32];
    uint8_t blocks[2 * 3 * 34];
    add(&m, "x.weight", LQ_Q8_0, 3, 32, 3, 2);
    for (size_t i = 0; i < sizeof blocks; i++) m.data.v[i] = (char)(i % 34 == 0 ? i % 7 : i % 34 == 1 ? 0x3c : i * 11 % 256);
    memcpy(blocks, m.data.v, sizeof blocks);
    add(&m, "x.scale", LQ_F32, 1, 2, 1, 1);
    memcpy(m.data.v + m.data.n - 8, times, 8);
    finish(&m, path);
    assert_int_equal(lq_source_open(NULL, path, &s), LQ_OK);
    assert_int_equal(s->n, 1);
    assert_true(s->entries[0].dtype == LQ_F32 && s->entries[0].bytes == sizeof got);
    assert_int_equal(lq_source_read(NULL, s, 0, 0, 6, got), LQ_OK);
    for (size_t r = 0; r < 6; r++) {
        lq_dtype_decode(LQ_Q8_0, blocks + 34 * r, want, 32);
        for (size_t c = 0; c < 32; c++) assert_true(got[32 * r + c] == want[c] * times[r / 3] && want[c] == want[c]);
    }
    assert_int_equal(lq_source_read(NULL, s, 0, 5, 1, got), LQ_OK); /* the last alone */
    assert_true(got[31] == want[31] * times[1]);
    lq_source_free(&s);
}

static void broken_scales_are_refused_by_name(void **state) {
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        maker m = {0};
        uint16_t inf = 0x7c00;
        float nan = NAN;
        add(&m, "x.weight", kind == 0 ? LQ_Q4_K : kind == 3 ? LQ_I8 : LQ_NVFP4, 2, 256, 3, 1);
        if (kind == 0) memcpy(m.data.v + 144, &inf, 2);
        if (kind) add(&m, "x.scale", LQ_F32, 1, kind == 2 ? 2 : 1, 1, 1);
        if (kind == 1) memcpy(m.data.v + m.data.n - 4, &nan, 4);
        expect_refused(&m, kind == 3 ? LQ_ERR_UNSUPPORTED : LQ_ERR_FORMAT, kind == 0 ? "tensor 'x.weight': row 1, block 0" : "tensor 'x.scale'");
    }
}

static void make_part(const char *name, uint32_t no, uint32_t count, const char *tensor) {
    maker m = {0};
    lq_rng_seed(&m.rng, no, 9);
    key_u32(&m, "split.no", no);
    key_u32(&m, "split.count", count);
    key_u32(&m, "split.tensors.count", 2);
    add(&m, tensor, LQ_Q4_1, 2, 64, 2 + no, 1);
    finish(&m, name);
}

/* All parts are one model, whichever is opened; a part that is missing, another's or the same again is refused. */
static void a_model_in_parts_is_one_model(void **state) {
    (void)state;
    static const struct { uint32_t no, count; const char *tensor, *word; } second[] = {
        {1, 2, "b", NULL}, {0, 2, "b", "part 1 of 2, expected 2 of 2"}, {1, 3, "b", "part 2 of 3"}, {1, 2, "a", "'a' is in two parts"}, {1, 2, NULL, "00002-of-00002"}};
    char parts[2][96];
    for (int i = 0; i < 2; i++) snprintf(parts[i], sizeof parts[i], "%s-%05d-of-00002.gguf", path, i + 1);
    for (size_t k = 0; k < sizeof second / sizeof *second; k++) {
        make_part(parts[0], 0, 2, "a");
        unlink(parts[1]);
        if (second[k].tensor) make_part(parts[1], second[k].no, second[k].count, second[k].tensor);
        for (int given = 0; given < 2; given++) {
            lq_ctx ctx = {0};
            lq_source *s = NULL;
            lq_status st = lq_source_open(&ctx, parts[given], &s);
            if (!second[k].word) {
                uint8_t row[40], want[40];
                FILE *f = fopen(parts[1], "rb");
                assert_true(!st && s->n == 2 && s->n_weight_files == 2 && s->entries[1].shape[0] == 3);
                assert_int_equal(lq_source_read(NULL, s, 1, 2, 1, row), LQ_OK);
                assert_true(f && !fseek(f, -40, SEEK_END) && fread(want, 1, 40, f) == 40 && !memcmp(row, want, 40));
                fclose(f);
            } else if (!st || (!given && !strstr(ctx.msg, second[k].word))) fail_msg("%zu: %s", k, ctx.msg);
            lq_source_free(&s);
        }
    }
    make_part(path, 0, 2, "a");
    lq_ctx ctx = {0};
    lq_source *s = NULL;
    assert_int_equal(lq_source_open(&ctx, path, &s), LQ_ERR_UNSUPPORTED);
    assert_non_null(strstr(ctx.msg, "another name"));
    unlink(parts[0]);
    unlink(parts[1]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(rows_are_the_same_as_blocks_and_as_codes, fresh, gone),
        cmocka_unit_test_setup_teardown(a_scale_beside_the_blocks_is_part_of_the_weights, fresh, gone),
        cmocka_unit_test_setup_teardown(a_scale_beside_other_blocks_is_multiplied, fresh, gone),
        cmocka_unit_test_setup_teardown(a_model_in_parts_is_one_model, fresh, gone),
        cmocka_unit_test_setup_teardown(broken_scales_are_refused_by_name, fresh, gone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
