/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* GGUF files of our own: the container, where each architecture's rows go, the vocabulary, importance matrices. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <stdlib.h>
#include <unistd.h>

#include "calib/gguf_meta.h"
#include "calib/imatrix.h"
#include "formats/sink.h"
#include "quant/gguf_out.h"
#include "tests/golden_forward.h"

static char dir[64];
static char path[128];

static void fresh_dir(void) {
    snprintf(dir, sizeof dir, "%s/lq_gguf_XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/model.gguf", dir);
}

/* -- container --------------------------------------------------------------------------------------------------------- */

static void put_some(lq_gguf_meta *m) {
    lq_gguf_put_str(m, "general.architecture", "llama");
    lq_gguf_put_u32(m, "a.u32", 4000000000u);
    lq_gguf_put_f32(m, "a.f32", 0.1f);
    lq_gguf_put_bool(m, "a.bool", true);
    lq_gguf_put_text(m, "a.bytes", "x\0y", 3);
    lq_gguf_put_array(m, "a.texts", LQ_GGUF_STRING, 2);
    lq_gguf_add_text(m, "one", 3);
    lq_gguf_add_text(m, "", 0);
    lq_gguf_put_array(m, "a.floats", LQ_GGUF_F32, 3);
    for (int i = 0; i < 3; i++) lq_gguf_add_f32(m, (float)i / 3);
}

static void what_is_put_is_read_and_copied_again(void **state) {
    (void)state;
    lq_ctx ctx = {0};
    lq_gguf_meta *m, *copy;
    lq_gguf_writer *w;
    lq_file f;
    lq_gguf *g;
    size_t n;
    float x[3] = {1, 2, 3}, y[3];
    lq_gguf_info infos[2] = {{.name = "x", .dtype = LQ_F32, .ndim = 1, .ne = {3}}, {.name = "q", .dtype = LQ_Q8_0, .ndim = 2, .ne = {32, 5}}};
    fresh_dir();
    assert_int_equal(lq_gguf_meta_new(&ctx, 0, &m), LQ_OK);
    put_some(m);
    assert_int_equal(lq_gguf_create(&ctx, path, m, infos, 2, &w), LQ_OK);
    assert_int_equal(lq_gguf_write(&ctx, w, infos[0].offset, x, sizeof x), LQ_OK);
    assert_int_equal(lq_gguf_finish(&ctx, &w), LQ_OK);
    assert_int_equal(lq_file_open(&ctx, path, &f), LQ_OK);
    assert_int_equal(lq_gguf_open(&ctx, &f, &g), LQ_OK);
    assert_int_equal(lq_gguf_kv_count(g), 7);
    assert_true(lq_gguf_num(lq_gguf_find(g, "a.u32"), 0) == 4000000000.0 && lq_gguf_num(lq_gguf_find(g, "a.f32"), 0) == (double)0.1f);
    assert_memory_equal(lq_gguf_str(lq_gguf_find(g, "a.bytes"), 0, &n), "x\0y", 3);
    assert_string_equal(lq_gguf_str(lq_gguf_find(g, "a.texts"), 0, &n), "one");
    assert_true(lq_gguf_num(lq_gguf_find(g, "a.floats"), 2) == (double)(2.0f / 3));
    assert_int_equal(lq_gguf_tensor_at(g, 1)->offset, infos[1].offset);
    assert_int_equal(infos[1].offset % 32, 0);
    assert_int_equal(lq_gguf_tensor_at(g, 1)->bytes, 5 * 34);
    assert_int_equal(lq_file_read(&ctx, &f, infos[0].offset, y, sizeof y), LQ_OK);
    assert_memory_equal(x, y, sizeof x);
    assert_int_equal(lq_gguf_meta_new(&ctx, 0, &copy), LQ_OK);
    for (size_t i = 0; i < lq_gguf_kv_count(g); i++) lq_gguf_put_copy(copy, lq_gguf_kv_at(g, i));
    assert_int_equal(copy->kv.n, m->kv.n);
    assert_memory_equal(copy->kv.v, m->kv.v, m->kv.n);
    lq_gguf_free(&g);
    lq_file_close(&f);
    lq_gguf_meta_free(&m);
    lq_gguf_meta_free(&copy);
    lq_remove_tree(NULL, dir);
}

static void a_key_is_taken_out_or_said_otherwise_and_the_others_stay(void **state) {
    (void)state;
    static const char *const keys[] = {"general.architecture", "a.u32", "a.f32", "a.bool", "a.bytes", "a.texts", "a.floats"};
    static const char *const wrong[] = {"a.u32", "=int:1", "a.u32=int", "a.u32=int:x", "a.u32=int:1.5", "a.u32=bool:yes", "a.u32=u8:1", "a.u32=int:5000000000"};
    for (size_t i = 0; i < 7; i++) {
        lq_ctx ctx = {0};
        lq_gguf_meta *m, *want;
        assert_int_equal(lq_gguf_meta_new(&ctx, 0, &m) | lq_gguf_meta_new(&ctx, 0, &want), LQ_OK);
        put_some(m);
        assert_true(lq_gguf_drop(m, keys[i]) && !lq_gguf_drop(m, keys[i]) && !lq_gguf_drop(m, "a."));
        assert_int_equal(m->n_kv, 6);
        for (size_t k = 0; k < 7; k++) assert_true(lq_gguf_drop(m, keys[k]) == (k != i));
        assert_true(m->kv.n == 0 && m->n_kv == 0);
        put_some(m);
        lq_gguf_put_u32(want, "a", 3);
        assert_int_equal(lq_gguf_override(&ctx, m, "a=int:-3"), LQ_OK); /* as there: of an integer the size */
        assert_memory_equal(m->kv.v + m->kv.n - want->kv.n, want->kv.v, want->kv.n);
        assert_int_equal(lq_gguf_override(&ctx, m, "a=str:x=y:z"), LQ_OK);
        assert_int_equal(m->n_kv, 8);
        for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++) assert_int_equal(lq_gguf_override(&ctx, m, wrong[k]), LQ_ERR_USAGE);
        assert_int_equal(m->n_kv, 8);
        lq_gguf_meta_free(&m);
        lq_gguf_meta_free(&want);
    }
}

/* n tensors "t0" ... of 8 floats: i, i + 1/8 ... */
static void write_tensors(const char *at, size_t first, size_t n, bool hashed) {
    lq_ctx ctx = {0};
    lq_gguf_meta *m;
    lq_gguf_writer *w;
    char names[8][4];
    lq_gguf_info infos[8];
    assert_int_equal(lq_gguf_meta_new(&ctx, 0, &m), LQ_OK);
    put_some(m);
    m->hashed = hashed;
    for (size_t i = 0; i < n; i++) {
        snprintf(names[i], sizeof names[i], "t%zu", (first + i) % 10);
        infos[i] = (lq_gguf_info){.name = names[i], .dtype = LQ_F32, .ndim = 1, .ne = {8}};
    }
    assert_int_equal(lq_gguf_create(&ctx, at, m, infos, n, &w), LQ_OK);
    for (size_t i = 0; i < n; i++) {
        float x[8];
        for (int k = 0; k < 8; k++) x[k] = (float)(first + i) + (float)k / 8;
        assert_int_equal(lq_gguf_write(&ctx, w, infos[i].offset, x, sizeof x), LQ_OK);
    }
    assert_int_equal(lq_gguf_finish(&ctx, &w), LQ_OK);
    lq_gguf_meta_free(&m);
}

static void a_file_says_the_hash_of_its_data(void **state) {
    (void)state;
    lq_ctx ctx = {0};
    lq_file f;
    lq_gguf *g;
    char hex[65];
    fresh_dir();
    write_tensors(path, 0, 3, true);
    assert_int_equal(lq_file_open(&ctx, path, &f), LQ_OK);
    assert_int_equal(lq_gguf_open(&ctx, &f, &g), LQ_OK);
    assert_int_equal(lq_gguf_kv_count(g), 9);
    assert_int_equal(lq_gguf_hash(&ctx, &f, lq_gguf_tensor_at(g, 0)->offset, hex), LQ_OK);
    assert_string_equal(lq_gguf_str(lq_gguf_find(g, LQ_GGUF_KEY_HASH), 0, NULL), hex);
    assert_int_equal(lq_gguf_bits(lq_gguf_find(g, LQ_GGUF_KEY_BYTES), 0), 96);
    assert_int_equal(f.size - lq_gguf_tensor_at(g, 0)->offset, 96);
    lq_gguf_free(&g);
    lq_file_close(&f);
    lq_remove_tree(NULL, dir);
}

static void a_file_falls_into_the_parts_of_another(void **state) {
    (void)state;
    static const size_t first[3] = {0, 2, 3}, count[3] = {2, 1, 2}; /* t5 of the whole is in no part of the model */
    lq_ctx ctx = {0};
    char like[3][128], *parts[3] = {like[0], like[1], like[2]};
    fresh_dir();
    for (size_t k = 0; k < 3; k++) {
        snprintf(like[k], sizeof like[k], "%s/like%zu.gguf", dir, k);
        write_tensors(like[k], first[k], count[k], false);
    }
    write_tensors(path, 0, 6, true);
    assert_int_equal(lq_gguf_split_like(&ctx, path, parts, 1, false), LQ_OK);
    assert_true(lq_path_exists(path));
    assert_int_equal(lq_gguf_split_like(&ctx, path, parts, 3, false), LQ_OK);
    assert_false(lq_path_exists(path));
    for (size_t k = 0; k < 3; k++) {
        lq_file f;
        lq_gguf *g;
        char *name = lq_gguf_part_name(path, k, 3), hex[65];
        assert_int_equal(lq_file_open(&ctx, name, &f), LQ_OK);
        assert_int_equal(lq_gguf_open(&ctx, &f, &g), LQ_OK);
        assert_int_equal(lq_gguf_count(g), count[k] + (k == 0));
        assert_int_equal(lq_gguf_kv_count(g), k ? 5 : 12);
        assert_true(lq_gguf_num(lq_gguf_find(g, "split.no"), 0) == (double)k && lq_gguf_num(lq_gguf_find(g, "split.count"), 0) == 3 && lq_gguf_num(lq_gguf_find(g, "split.tensors.count"), 0) == 6);
        for (size_t i = 0; i < lq_gguf_count(g); i++) {
            const lq_gguf_tensor *t = lq_gguf_tensor_at(g, i);
            float x[8];
            assert_int_equal(lq_file_read(&ctx, &f, t->offset, x, sizeof x), LQ_OK);
            assert_true(x[0] == (float)(t->name[1] - '0') && x[7] == x[0] + 0.875f);
        }
        assert_int_equal(lq_gguf_hash(&ctx, &f, lq_gguf_tensor_at(g, 0)->offset, hex), LQ_OK);
        assert_string_equal(lq_gguf_str(lq_gguf_find(g, LQ_GGUF_KEY_HASH), 0, NULL), hex);
        lq_gguf_free(&g);
        lq_file_close(&f);
        lq_free(name);
    }
    write_tensors(path, 0, 6, true);
    assert_int_equal(lq_gguf_split_like(&ctx, path, parts, 3, false), LQ_ERR_IO); /* the names are taken */
    assert_true(lq_path_exists(path));
    assert_int_equal(lq_gguf_split_like(&ctx, path, parts, 3, true), LQ_OK);
    lq_remove_tree(NULL, dir);
}

static void a_tensor_that_gguf_cannot_hold_is_refused(void **state) {
    (void)state;
    lq_ctx ctx = {0};
    lq_gguf_meta *m;
    lq_gguf_writer *w;
    char longest[80];
    memset(longest, 'n', sizeof longest - 1), longest[79] = 0;
    lq_gguf_info bad[][2] = {{{.name = longest, .dtype = LQ_F32, .ndim = 1, .ne = {3}}, {.name = "b", .dtype = LQ_F32, .ndim = 1, .ne = {1}}},
                             {{.name = "a", .dtype = LQ_Q4_K, .ndim = 1, .ne = {32}}, {.name = "b", .dtype = LQ_F32, .ndim = 1, .ne = {1}}},
                             {{.name = "a", .dtype = LQ_E4M3, .ndim = 1, .ne = {32}}, {.name = "b", .dtype = LQ_F32, .ndim = 1, .ne = {1}}},
                             {{.name = "a", .dtype = LQ_F32, .ndim = 1, .ne = {3}}, {.name = "a", .dtype = LQ_F32, .ndim = 1, .ne = {1}}},
                             {{.name = "a", .dtype = LQ_F32, .ndim = 2, .ne = {1ull << 40, 1ull << 40}}, {.name = "b", .dtype = LQ_F32, .ndim = 1, .ne = {1}}}};
    assert_int_equal(lq_gguf_meta_new(&ctx, 0, &m), LQ_OK);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        fresh_dir();
        ctx = (lq_ctx){0};
        if (!lq_gguf_create(&ctx, path, m, bad[i], 2, &w)) fail_msg("case %zu is written", i);
        assert_null(w);
        lq_remove_tree(NULL, dir);
    }
    lq_gguf_meta_free(&m);
}

/* -- every architecture ------------------------------------------------------------------------------------------------ */

static lq_status write_floats(lq_ctx *ctx, lq_model *m) {
    const lq_format *gguf = lq_format_by_name("gguf");
    lq_gguf_meta *meta = NULL;
    lq_sink *s = NULL;
    LQ_TRY(lq_gguf_out_make(ctx, gguf, m, &(lq_gguf_opts){0}, &meta));
    for (size_t i = 0; i < m->cat.n; i++) m->cat.rows[i].out_dtype = LQ_F32;
    lq_gguf_out_finish(meta, &m->cat, -1);
    lq_sink_opts so = {.gguf = meta};
    lq_status st = lq_sink_open(ctx, gguf, dir, &m->cat, &so, &s);
    for (size_t i = 0; i < m->cat.n && !st; i++) {
        size_t n = lq_row_elems(&m->cat.rows[i]);
        float *x = lq_calloc(n, 4);
        st = lq_model_read_f32(ctx, m, &m->cat.rows[i], x);
        if (!st) st = lq_sink_put_fp(s, &m->cat.rows[i], x, 4 * n);
        lq_free(x);
    }
    if (!st) st = lq_sink_close(&s);
    lq_sink_abandon(&s);
    lq_gguf_meta_free(&meta);
    return st;
}

/* What llama.cpp has no place for or runs otherwise (scripts/peers/check_gguf_archs.py has the others' logits from it). */
static const char *const refused[] = {"bitnet", "bitnet_online", "falcon_11b", "falcon_serial", "gemma2", "gemma3_kinds", "glm", "gpt2_bare", "gpt_neox_serial", "llama_yarn",
                                      "olmoe", "opt", "opt_350m", "opt_plain", "phi2_qk", "qwen2_moe", "qwen2_window", "qwen3_moe"};

static bool is_in(const char *const *list, size_t n, const char *variant) {
    for (size_t i = 0; i < n; i++)
        if (!strcmp(list[i], variant)) return true;
    return false;
}
#define IS(list, variant) is_in(list, sizeof list / sizeof *list, variant)

/* What is written gives the folder's logits. */
static void check_logits(fixture *f, const char *variant) {
    fixture g = {.n = f->n, .want = f->want};
    memcpy(g.ids, f->ids, sizeof g.ids);
    OK(&g, lq_source_open(&g.ctx, path, &g.src));
    OK(&g, lq_model_open(&g.ctx, g.src, false, &g.m));
    OK(&g, lq_model_load_all(&g.ctx, g.m, LQ_LOAD_STORED));
    double d = off_golden(&g, g.n);
    if (d > 1e-4) fail_msg("%s: logits differ by %g of the largest", variant, d);
    lq_model_free(&g.m);
    lq_source_free(&g.src);
}

static int is_variant(const struct dirent *d) { return d->d_name[0] != '.'; }

static void every_architecture_is_written_or_refused_by_name(void **state) {
    (void)state;
    struct dirent **list;
    int n = scandir(GOLDEN, &list, is_variant, alphasort);
    size_t written = 0;
    assert_true(n > 40);
    for (int i = 0; i < n; i++) {
        fixture f;
        open_golden(&f, list[i]->d_name);
        fresh_dir();
        lq_status st = write_floats(&f.ctx, f.m);
        if ((st == LQ_ERR_UNSUPPORTED) != IS(refused, list[i]->d_name) || (st && st != LQ_ERR_UNSUPPORTED)) fail_msg("%s: status %d %s", list[i]->d_name, (int)st, f.ctx.msg);
        if (st) assert_non_null(strstr(f.ctx.msg, "llama.cpp"));
        written += !st;
        if (!st && strcmp(list[i]->d_name, "llama_dynamic")) check_logits(&f, list[i]->d_name); /* a growing rope base is nothing llama.cpp has: warned of */
        close_golden(&f);
        lq_remove_tree(NULL, dir);
        free(list[i]);
    }
    free(list);
    if (written < 25) fail_msg("%zu written", written);
}

static void rows_of_q_are_paired_and_experts_stacked(void **state) {
    (void)state;
    fixture f;
    lq_gguf_meta *meta = NULL;
    open_golden(&f, "mixtral");
    OK(&f, lq_gguf_meta_make(&f.ctx, f.m, &(lq_gguf_opts){0}, &meta));
    for (size_t i = 0; i < f.m->cat.n; i++) {
        const lq_row *r = &f.m->cat.rows[i];
        const lq_gguf_place *p = &meta->places[i];
        uint32_t half = f.m->par.head_dim / 2;
        if (r->slot.role == LQ_R_Q) assert_true(p->rows[0] == 0 && p->rows[1] == half && p->rows[2] == 1 && p->rows[3] == half + 1 && p->rows[2 * half] == 2 * half);
        if (r->slot.role == LQ_R_V) assert_null(p->rows);
        if (r->slot.role == LQ_R_EXPERT_UP) assert_true(p->of == f.m->par.n_experts && p->at == (uint32_t)r->slot.expert && strstr(p->name, ".ffn_up_exps.weight"));
    }
    lq_gguf_meta_free(&meta);
    close_golden(&f);
}

/* -- vocabulary -------------------------------------------------------------------------------------------------------- */

static void the_vocabulary_gives_the_same_ids(void **state) {
    (void)state;
    static const char text[] = "The valley's 12345 people -- don't ask!\n\n  \xc3\xa9t\xc3\xa9 \xe6\xbc\xa2\xe5\xad\x97 <|endoftext|> end";
    lq_ctx ctx = {0};
    lq_source *src, *back;
    lq_model *m;
    lq_tokenizer *a, *b;
    lq_ids x = {0}, y = {0};
    fresh_dir();
    assert_int_equal(lq_source_open(&ctx, LQ_SOURCE_ROOT "/models/tiny", &src), LQ_OK);
    assert_int_equal(lq_model_open(&ctx, src, false, &m), LQ_OK);
    lq_status st = write_floats(&ctx, m);
    if (st) fail_msg("%s", ctx.msg);
    assert_int_equal(lq_source_open(&ctx, path, &back), LQ_OK);
    assert_int_equal(lq_tokenizer_open(&ctx, src, &a), LQ_OK);
    assert_int_equal(lq_tokenizer_open(&ctx, back, &b), LQ_OK);
    assert_int_equal(lq_gguf_len(lq_gguf_find(back->gguf, "tokenizer.ggml.tokens")), m->par.vocab);
    assert_int_equal(lq_tokenizer_encode(&ctx, a, text, sizeof text - 1, true, true, &x), LQ_OK);
    assert_int_equal(lq_tokenizer_encode(&ctx, b, text, sizeof text - 1, true, true, &y), LQ_OK);
    assert_int_equal(x.n, y.n);
    assert_memory_equal(x.v, y.v, x.n * sizeof *x.v);
    lq_ids_free(&x);
    lq_ids_free(&y);
    lq_tokenizer_free(&a);
    lq_tokenizer_free(&b);
    lq_source_free(&back);
    lq_model_free(&m);
    lq_source_free(&src);
    lq_remove_tree(NULL, dir);
}

/* -- importance matrices ----------------------------------------------------------------------------------------------- */

static void an_importance_matrix_survives_both_forms(void **state) {
    (void)state;
    static const char *const names[] = {"m.gguf", "m.dat"};
    for (int k = 0; k < 2; k++) {
        lq_ctx ctx = {0};
        lq_imatrix m = {.chunks = 7, .chunk_size = 32, .dataset = (char *)"a.txt"}, back;
        lq_importance *e = lq_imatrix_add(&m, "blk.0.attn_q.weight", 3, 1), *x = lq_imatrix_add(&m, "blk.0.ffn_up_exps.weight", 2, 2);
        assert_true(e && x && lq_imatrix_add(&m, "blk.0.attn_q.weight", 3, 1) == lq_imatrix_find(&m, "blk.0.attn_q.weight"));
        e = (lq_importance *)lq_imatrix_find(&m, "blk.0.attn_q.weight");
        for (int i = 0; i < 3; i++) e->mean[i] = 0.5f * (float)i;
        for (int i = 0; i < 4; i++) x->mean[i] = (float)(1 + i);
        e->count[0] = 224, x->count[0] = 100, x->count[1] = 0;
        fresh_dir();
        char *file = lq_path_join(dir, names[k]);
        assert_int_equal(lq_imatrix_write(&ctx, file, &m), LQ_OK);
        assert_true(lq_imatrix_is(file));
        if (lq_imatrix_read(&ctx, file, &back)) fail_msg("%s", ctx.msg);
        const lq_importance *r = lq_imatrix_find(&back, "blk.0.attn_q.weight"), *s = lq_imatrix_find(&back, "blk.0.ffn_up_exps.weight");
        assert_true(r && s && back.chunks == 7 && !strcmp(back.dataset, "a.txt") && s->cols * s->mats == 4);
        for (int i = 0; i < 3; i++) assert_true(r->mean[i] == e->mean[i]);
        assert_true(s->mean[1] == 2 && (k ? s->mean[3] == 4 : s->mean[3] == 1)); /* of an expert without tokens nothing is known */
        lq_imatrix_free(&back);
        m.dataset = NULL;
        lq_imatrix_free(&m);
        lq_free(file);
        lq_remove_tree(NULL, dir);
    }
}

static void a_broken_importance_matrix_is_refused(void **state) {
    (void)state;
    /* one entry of two values, ncall 2, values 8 and 2, data set a.txt: 56 bytes as llama.cpp writes them */
    static const uint8_t good[56] = {1, 0, 0, 0, 19, 0, 0, 0, 'b', 'l', 'k', '.', '0', '.', 'a', 't', 't', 'n', '_', 'q', '.', 'w', 'e', 'i', 'g', 'h', 't',
                                     2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0x41, 0, 0, 0, 0x40, 2, 0, 0, 0, 5, 0, 0, 0, 'a', '.', 't', 'x', 't'};
    lq_ctx ctx = {0};
    lq_imatrix m;
    fresh_dir();
    for (size_t n = 16; n <= sizeof good; n++) { /* 43: the file of the first versions, without what follows the entries */
        assert_int_equal(lq_write_file(&ctx, path, good, n), LQ_OK);
        lq_status st = lq_imatrix_read(&ctx, path, &m);
        assert_int_equal(st, n == sizeof good || n == 43 ? LQ_OK : LQ_ERR_FORMAT);
        if (!st) assert_true(m.entries[0].mean[0] == 4 && m.entries[0].mean[1] == 1);
        if (!st) lq_imatrix_free(&m);
        assert_int_equal(lq_remove_tree(NULL, path), LQ_OK);
    }
    uint8_t bad[56];
    memcpy(bad, good, sizeof bad);
    bad[38] = 0xc1; /* a negative sum of squares */
    assert_int_equal(lq_write_file(&ctx, path, bad, sizeof bad), LQ_OK);
    assert_int_equal(lq_imatrix_read(&ctx, path, &m), LQ_ERR_FORMAT);
    lq_remove_tree(NULL, dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_put_is_read_and_copied_again), cmocka_unit_test(a_tensor_that_gguf_cannot_hold_is_refused),
        cmocka_unit_test(a_key_is_taken_out_or_said_otherwise_and_the_others_stay), cmocka_unit_test(a_file_says_the_hash_of_its_data),
        cmocka_unit_test(a_file_falls_into_the_parts_of_another),
        cmocka_unit_test(every_architecture_is_written_or_refused_by_name), cmocka_unit_test(rows_of_q_are_paired_and_experts_stacked),
        cmocka_unit_test(the_vocabulary_gives_the_same_ids), cmocka_unit_test(an_importance_matrix_survives_both_forms), cmocka_unit_test(a_broken_importance_matrix_is_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
