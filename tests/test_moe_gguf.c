/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Mixtures of experts as llama.cpp stores them: the experts of a block in one tensor (before 2024: one each), a single row as a
 * vector, Mixtral as a llama with experts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "formats/gguf.h"
#include "tests/golden_forward.h"

#include <stdlib.h>

static void put(lq_buf *b, const void *p, size_t n) { assert_true(lq_buf_add(b, p, n)); }
static void put_u32(lq_buf *b, uint32_t v) { put(b, &v, 4); }
static void put_u64(lq_buf *b, uint64_t v) { put(b, &v, 8); }
static void put_text(lq_buf *b, const char *s) { put_u64(b, strlen(s)), put(b, s, strlen(s)); }

typedef struct gguf { lq_buf meta, info, data; const char *arch; uint64_t n_kv, n_tensors; } gguf;
static void key(gguf *g, const char *suffix, uint32_t type) {
    char name[128];
    snprintf(name, sizeof name, "%s.%s", g->arch, suffix);
    put_text(&g->meta, name), put_u32(&g->meta, type);
    g->n_kv++;
}
static void kv_u32(gguf *g, const char *suffix, uint32_t v) { key(g, suffix, LQ_GGUF_U32), put_u32(&g->meta, v); }
static void kv_f32(gguf *g, const char *suffix, float v) { key(g, suffix, LQ_GGUF_F32), put(&g->meta, &v, 4); }

static void metadata(gguf *g, const lq_model *m) {
    const lq_params *p = &m->par;
    put_text(&g->meta, "general.architecture"), put_u32(&g->meta, LQ_GGUF_STRING), put_text(&g->meta, g->arch);
    g->n_kv++;
    kv_u32(g, "context_length", p->max_ctx), kv_u32(g, "embedding_length", p->hidden), kv_u32(g, "block_count", p->n_layers);
    kv_u32(g, "feed_forward_length", p->ffn), kv_u32(g, "attention.head_count", p->n_heads), kv_u32(g, "attention.head_count_kv", p->n_kv_heads);
    kv_u32(g, "attention.key_length", p->head_dim), kv_u32(g, "attention.value_length", p->head_dim);
    kv_f32(g, "attention.layer_norm_rms_epsilon", p->norm_eps), kv_f32(g, "rope.freq_base", (float)p->rope.base);
    kv_u32(g, "expert_count", p->n_experts), kv_u32(g, "expert_used_count", p->top_k), kv_u32(g, "expert_feed_forward_length", p->expert_ffn);
    if (p->shared_ffn) kv_u32(g, "expert_shared_feed_forward_length", p->shared_ffn);
    if (p->clip_qkv > 0) kv_f32(g, "attention.clamp_kqv", p->clip_qkv);
    if (p->window && !p->layer_window) kv_u32(g, "attention.sliding_window", p->window);
}

static void tensor(gguf *g, const char *name, uint32_t ndim, const uint64_t *shape) {
    put_text(&g->info, name), put_u32(&g->info, ndim);
    for (uint32_t i = ndim; i--;) put_u64(&g->info, shape[i]);
    put_u32(&g->info, 0), put_u64(&g->info, g->data.n);
    g->n_tensors++;
}

/* Stored row 2j of a head is row j, stored row 2j + 1 is row j + dim/2. */
static void put_row(fixture *f, gguf *g, const lq_row *r, bool pairs) {
    uint64_t n = lq_row_elems(r), cols = lq_row_cols(r), dim = f->m->par.head_dim;
    float *w = LQ_NEWN(float, n);
    OK(f, lq_model_read_f32(&f->ctx, f->m, r, w));
    for (uint64_t i = 0; i < lq_row_rows(r); i++) {
        uint64_t from = pairs ? i / dim * dim + i % dim / 2 + (i % 2) * (dim / 2) : i;
        put(&g->data, w + from * cols, cols * 4);
    }
    lq_free(w);
}

static void put_tensors(fixture *f, gguf *g, bool split) {
    for (size_t i = 0; i < f->m->cat.n; i++) {
        const lq_row *r = &f->m->cat.rows[i];
        char old[64];
        bool expert = r->slot.expert >= 0, pairs = f->m->arch->gguf & LQ_GGUF_ROPE_PAIRS && (r->slot.role == LQ_R_Q || r->slot.role == LQ_R_K);
        uint64_t stack[3] = {f->m->par.n_experts, lq_row_rows(r), lq_row_cols(r)};
        const char *what = r->slot.role == LQ_R_EXPERT_GATE ? "gate" : r->slot.role == LQ_R_EXPERT_UP ? "up" : "down";
        snprintf(old, sizeof old, "blk.%d.ffn_%s.%d.weight", r->slot.block, what, r->slot.expert);
        if (expert && split) tensor(g, old, 2, stack + 1);
        else if (expert && !r->slot.expert) tensor(g, r->gguf_name, 3, stack);
        else if (!expert && r->slot.role == LQ_R_SHARED_ROUTER) tensor(g, r->gguf_name, 1, stack + 2);
        else if (!expert) tensor(g, r->gguf_name, r->ndim, r->shape);
        put_row(f, g, r, pairs);
        while (g->data.n % 32) put(&g->data, "", 1);
    }
}

static void write_file(fixture *f, gguf *g, const char *path) {
    lq_buf file = {0};
    put(&file, "GGUF\3\0\0\0", 8), put_u64(&file, g->n_tensors), put_u64(&file, g->n_kv);
    put(&file, g->meta.v, g->meta.n), put(&file, g->info.v, g->info.n);
    while (file.n % 32) put(&file, "", 1);
    put(&file, g->data.v, g->data.n);
    OK(f, lq_write_file(&f->ctx, path, file.v, file.n));
    lq_buf_free(&file), lq_buf_free(&g->meta), lq_buf_free(&g->info), lq_buf_free(&g->data);
}

static void check_config(fixture *f, const lq_model *m) {
    json_t *c;
    lq_params back = {0};
    const lq_params *p = &f->m->par;
    OK(f, lq_model_config(&f->ctx, m, &c));
    assert_string_equal(json_string_value(json_object_get(c, "model_type")), f->m->arch->name);
    OK(f, m->arch->params_hf(&f->ctx, m->arch, c, &back));
    assert_true(back.n_experts == p->n_experts && back.top_k == p->top_k && back.expert_ffn == p->expert_ffn && back.shared_ffn == p->shared_ffn);
    assert_true(back.norm_topk == p->norm_topk && back.clip_qkv == p->clip_qkv && back.qkv_bias == p->qkv_bias && back.norm_eps == p->norm_eps);
    for (uint32_t b = 0; b < p->n_layers; b++) assert_int_equal(lq_params_at(&back, LQ_FEAT_DENSE, b), lq_params_at(p, LQ_FEAT_DENSE, b));
    lq_params_free(&back);
    json_decref(c);
}

static void check(const char *variant, const char *arch, bool split) {
    char dir[] = "/tmp/lquant-test-XXXXXX", path[64];
    fixture f;
    gguf g = {.arch = arch};
    lq_source *src = NULL;
    lq_model *m = NULL;
    open_golden(&f, variant);
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/model.gguf", dir);
    if (f.m->par.layer_window) f.m->par.window = 0; /* a GGUF has no windows on some layers */
    metadata(&g, f.m);
    put_tensors(&f, &g, split);
    write_file(&f, &g, path);
    OK(&f, lq_source_open(&f.ctx, path, &src));
    OK(&f, lq_model_open(&f.ctx, src, false, &m));
    assert_ptr_equal(m->arch, f.m->arch);
    assert_int_equal(m->cat.n, f.m->cat.n);
    assert_false(m->cat.rows[m->cat.n - 1].slot.role == LQ_R_UNKNOWN);
    check_config(&f, m);
    OK(&f, lq_model_load_all(&f.ctx, m, LQ_LOAD_STORED));
    float *a = logits_of(&f, f.n);
    lq_model *own = f.m;
    f.m = m;
    float *b = logits_of(&f, f.n);
    f.m = own;
    assert_memory_equal(a, b, (size_t)f.n * m->par.vocab * 4);
    lq_free(a), lq_free(b);
    lq_model_free(&m);
    lq_source_free(&src);
    OK(&f, lq_remove_tree(&f.ctx, dir));
    close_golden(&f);
}

static void a_gguf_with_stacked_experts_runs_as_the_folder_it_was_made_from(void **state) {
    (void)state;
    check("mixtral", "llama", false);
    check("mixtral_stacked", "llama", false);
    check("qwen2_moe", "qwen2moe", false);
    check("qwen3_moe", "qwen3moe", false);
    check("olmoe", "olmoe", false);
}

static void a_gguf_with_a_tensor_per_expert_does_too(void **state) {
    (void)state;
    check("mixtral", "llama", true);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_gguf_with_stacked_experts_runs_as_the_folder_it_was_made_from),
        cmocka_unit_test(a_gguf_with_a_tensor_per_expert_does_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
