/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Every architecture that a GGUF can hold, there and back: folder -> GGUF -> folder, tensors and logits. Models: all of tests/golden/forward, and
 * the same with settings changed (weights at random) where llama.cpp, so a GGUF, has no word for the golden ones'. A row of lq_archs that is
 * neither seen in a GGUF nor refused for a reason of the table below fails. */
#define _DEFAULT_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "matrix.h"
#include "quant/export.h"

/* What a GGUF cannot hold, by the folder's name (a changed one has no name). */
static const refusal held_back[] = { /* folder, unused, sentence, why */
    {"opt*", "*", "llama.cpp has no architecture for 'opt'", ""},
    {"bitnet*", "*", "with silu, this model has relu2", "llama.cpp's bitnet is that of the first models"},
    {"falcon_11b", "*", "has no biases", ""},
    {"falcon_serial", "*", "has parallel attention only", ""},
    {"gpt_neox_serial", "*", "wants attention biases", ""},
    {"gpt2_bare", "*", "always scales attention scores", ""},
    {"phi2_qk", "*", "has no place for", "norms of q and k"},
    {"olmoe", "*", "has neither clip_qkv nor shared kv heads", ""},
    {"glm", "*", "wants heads as wide as the stream", ""},
    {"gemma2", "*", "scales attention scores of", "another query_pre_attn_scalar than that of the released sizes"},
    {"gemma3_kinds", "*", "has no bias of the output projection", "llama.cpp's Gemma"},
    {"qwen?_moe", "*", "has experts in every layer", ""},
    {"qwen2_window", "*", "with silu", ""},
    {"llama_yarn", "*", "beta_fast 32 and beta_slow 1", ""},
    {0},
};

/* A golden model's config.json with other settings; "null" takes one away. */
static const struct { const char *model, *changes; } changed[] = {
    {"bitnet", "{\"hidden_act\": \"silu\"}"},
    {"falcon_11b", "{\"bias\": false}"},
    {"falcon_7b", "{\"multi_query\": false}"},
    {"gpt_neox_serial", "{\"attention_bias\": true}"},
    {"gpt_neox", "{\"tie_word_embeddings\": true, \"hidden_act\": \"gelu_new\"}"},
    {"gpt2_bare", "{\"scale_attn_weights\": true}"},
    {"gpt2", "{\"activation_function\": \"gelu\"}"},
    {"phi2_qk", "{\"qk_layernorm\": false}"},
    {"olmoe", "{\"clip_qkv\": null, \"num_key_value_heads\": 4}"},
    {"glm", "{\"head_dim\": 8}"},
    {"glm4", "{\"attention_bias\": false}"},
    {"gemma2", "{\"query_pre_attn_scalar\": 16}"},
    {"gemma3_kinds", "{\"attention_bias\": false, \"query_pre_attn_scalar\": 16, \"rope_parameters\": {\"full_attention\": {\"rope_type\": \"linear\", \"factor\": 3.0, \"rope_theta\": 1000.0}, "
                     "\"sliding_attention\": {\"rope_type\": \"default\", \"rope_theta\": 50.0}}}"},
    {"gemma3", "{\"sliding_window\": null, \"layer_types\": [\"full_attention\", \"full_attention\"]}"},
    {"granite", "{\"attention_multiplier\": 0.3, \"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 2.0}}"},
    {"phi4", "{\"rope_scaling\": null, \"sliding_window\": null}"},
    {"qwen2_moe", "{\"mlp_only_layers\": [], \"use_sliding_window\": false}"},
    {"qwen3_moe", "{\"decoder_sparse_step\": 1, \"use_sliding_window\": false}"},
    {"qwen3", "{\"model_type\": \"qwen3_vl_text\"}"},
    {"qwen2_window", "{\"hidden_act\": \"silu\"}"},
    {"llama_yarn", "{\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4.0, \"original_max_position_embeddings\": 16}}"},
};

/* Logits that a GGUF cannot give: llama.cpp, and so its files, has no growing rope base. */
static bool loses_rope(const char *model) { return !strcmp(model, "llama_dynamic"); }

/* -- folders ----------------------------------------------------------------------------------------------------------- */

static char *at(const char *name, char buf[64]) {
    snprintf(buf, 64, "%s/%s", matrix_dir, name);
    return buf;
}

static void put_name(char *buf, size_t n, const char *pattern, int b, int e) {
    const char *d = strstr(pattern, "%d"), *x = d ? strstr(d, "%e") : NULL;
    if (x) snprintf(buf, n, "%.*s%d%.*s%d%s", (int)(d - pattern), pattern, b, (int)(x - d - 2), d + 2, e, x + 2);
    else if (d) snprintf(buf, n, "%.*s%d%s", (int)(d - pattern), pattern, b, d + 2);
    else snprintf(buf, n, "%s", pattern);
}

enum { NAMES = 400 };
static lq_st_tensor listed[NAMES];
static char spelled[NAMES][160];

static size_t add_tensor(size_t n, const lq_params *p, const lq_arch_name *t, int b, int e) {
    assert_true(n < NAMES);
    put_name(spelled[n], sizeof *spelled, t->hf, b, e);
    uint64_t rows = lq_params_dim(p, t->rows), cols = lq_params_dim(p, t->cols);
    bool turned = t->rows & LQ_TRANSPOSED;
    listed[n] = (lq_st_tensor){.name = spelled[n], .dtype = LQ_F32, .ndim = t->cols ? 2 : 1, .shape = {turned ? cols : rows, turned ? rows : cols}};
    return n + 1;
}

static size_t list_tensors(const lq_arch *a, const lq_params *p) {
    size_t n = 0;
    for (const lq_arch_name *t = a->names; t->role; t++) {
        bool block = strstr(t->hf, "%d"), expert = strstr(t->hf, "%e");
        for (uint32_t b = 0; b < (block ? p->n_layers : 1); b++)
            for (uint32_t e = 0; e < (expert ? p->n_experts : 1); e++)
                if (block ? lq_params_at(p, t->only_if, b) : lq_params_has(p, t->only_if)) n = add_tensor(n, p, t, (int)b, (int)e);
    }
    return n;
}

/* matrices of deviation 0.15, vectors about 1/2 (gains) and 0 (biases) */
static void write_weights(const char *dir, size_t n) {
    lq_st_writer *w;
    lq_rng rng;
    lq_rng_seed(&rng, 5, 1);
    assert_int_equal(lq_st_create(NULL, dir, listed, n, 1 << 30, &w), LQ_OK);
    for (size_t i = 0; i < n; i++) {
        const lq_st_tensor *t = &listed[i];
        size_t len = t->shape[0] * (t->ndim > 1 ? t->shape[1] : 1);
        float *x = LQ_NEWN(float, len), mean = t->ndim > 1 || strstr(t->name, "bias") ? 0 : 0.5f;
        for (size_t k = 0; k < len; k++) x[k] = mean + 0.15f * lq_rng_normal(&rng);
        assert_int_equal(lq_st_put(NULL, w, t->name, x, 4 * len), LQ_OK);
        lq_free(x);
    }
    assert_int_equal(lq_st_finish(NULL, &w), LQ_OK);
}

/* DIR/in: the model with other settings and weights. */
static void make_changed(const char *model, const char *changes) {
    char path[512], dir[64];
    lq_buf b;
    lq_ctx ctx = {0};
    lq_params p = {0};
    json_t *config, *more = json_loads(changes, 0, NULL);
    assert_non_null(more);
    snprintf(path, sizeof path, GOLDEN "%s/config.json", model);
    assert_int_equal(lq_text_load(NULL, path, &b), LQ_OK);
    assert_int_equal(lq_json_parse(NULL, path, b.v, b.n, &config), LQ_OK);
    assert_int_equal(json_object_update(config, more), 0);
    const lq_arch *a = lq_arch_by_model_type(json_string_value(json_object_get(config, "model_type")));
    assert_non_null(a);
    if (a->params_hf(&ctx, a, config, &p)) fail_msg("%s: %s", model, ctx.msg);
    write_weights(at("in", dir), list_tensors(a, &p));
    lq_buf_free(&b);
    b = (lq_buf){0};
    assert_int_equal(lq_json_dump(NULL, config, &b), LQ_OK);
    strcat(dir, "/config.json");
    assert_int_equal(lq_write_file(NULL, dir, b.v, b.n), LQ_OK);
    copy_file(LQ_SOURCE_ROOT "/tests/cli", "letters_bytes.json", "tokenizer.json");
    lq_params_free(&p);
    lq_buf_free(&b);
    json_decref(config);
    json_decref(more);
}

/* -- one trip ---------------------------------------------------------------------------------------------------------- */

/* `lquant convert --dtype f32 --format FORMAT FROM TO`: reads back what it wrote and compares every tensor. */
static lq_status convert(lq_ctx *ctx, const char *from, const char *format, const char *to) {
    lq_source *src = NULL;
    lq_model *m = NULL;
    lq_job job = {0};
    lq_outputs outs;
    lq_exported told[LQ_OUTPUTS] = {0};
    lq_export_opts o = {.dtype = LQ_F32, .shard_size = 1 << 30};
    lq_outputs_one(&outs, lq_format_by_name(format));
    lq_status st = lq_source_open(ctx, from, &src);
    if (!st) st = lq_model_open(ctx, src, false, &m);
    if (!st) st = lq_job_open(ctx, &job, from, to, "convert", LQ_RESUME_NEVER, true);
    if (!st) st = lq_export(ctx, src, m, &outs, &job, &o, told);
    if (!st) st = lq_outputs_finish(ctx, &outs, &job);
    for (size_t i = 0; i < LQ_OUTPUTS; i++) lq_exported_free(&told[i]);
    lq_job_close(&job);
    lq_model_free(&m);
    lq_source_free(&src);
    return st;
}

typedef struct opened { lq_source *src; lq_model *m; } opened;
static void open_at(opened *o, const char *path) {
    lq_ctx ctx = {0};
    if (lq_source_open(&ctx, path, &o->src) || lq_model_open(&ctx, o->src, false, &o->m)) fail_msg("%s: %s", path, ctx.msg);
}
static void close_at(opened *o) {
    lq_model_free(&o->m);
    lq_source_free(&o->src);
}

/* Bit for bit, but gains that mean 1 + w: a GGUF has fl(1 + w), from which w comes back rounded. */
static void same_tensor(opened *a, opened *b, const lq_row *r, const char *what) {
    const lq_row *s = lq_catalog_find(&b->m->cat, r->slot, r->part);
    if (!s) fail_msg("%s: '%s' did not come back", what, r->name);
    size_t n = (size_t)lq_row_elems(r);
    assert_int_equal(n, lq_row_elems(s));
    assert_int_equal(r->transposed, s->transposed);
    float *x = lq_calloc(n, 4), *y = lq_calloc(n, 4), one = a->m->par.norm_plus_one && r->ndim == 1 && r->part == LQ_PART_WEIGHT ? 1 : 0;
    assert_int_equal(lq_model_read_f32(NULL, a->m, r, x), LQ_OK);
    assert_int_equal(lq_model_read_f32(NULL, b->m, s, y), LQ_OK);
    for (size_t i = 0; i < n; i++)
        if (one != 0 ? x[i] + one != y[i] + one : memcmp(x + i, y + i, 4)) fail_msg("%s: '%s' element %zu was %.9g, is %.9g", what, r->name, i, (double)x[i], (double)y[i]);
    lq_free(x);
    lq_free(y);
}

static bool is_stored(const lq_row *r) { return r->slot.role != LQ_R_UNKNOWN; }

static size_t known_rows(const lq_model *m) {
    size_t n = 0;
    for (size_t i = 0; i < m->cat.n; i++) n += is_stored(&m->cat.rows[i]);
    return n;
}

/* true: not even a head was added. */
static bool same_tensors(const char *from, const char *to, const char *what) {
    opened a, b;
    open_at(&a, from);
    open_at(&b, to);
    for (size_t i = 0; i < a.m->cat.n; i++)
        if (is_stored(&a.m->cat.rows[i])) same_tensor(&a, &b, &a.m->cat.rows[i], what);
    size_t head = a.m->par.tied && !b.m->par.tied; /* llama.cpp wants a tied head stored */
    assert_int_equal(known_rows(b.m), known_rows(a.m) + head);
    assert_int_equal(b.m->cat.n, known_rows(b.m)); /* nothing that no table knows */
    close_at(&a);
    close_at(&b);
    return !head;
}

static float *logits_of_path(const char *path, const int32_t *ids, uint32_t n, size_t *count) {
    lq_ctx ctx = {0};
    float *x;
    if (logits_at(&ctx, path, ids, n, count, &x)) fail_msg("%s: %s", path, ctx.msg);
    return x;
}

static void same_logits(const char *a, const char *b, const int32_t *ids, uint32_t n, double most, const char *what) {
    size_t na, nb;
    float *x = logits_of_path(a, ids, n, &na), *y = logits_of_path(b, ids, n, &nb);
    assert_int_equal(na, nb);
    double d = distance(y, x, na);
    if (!(d <= most)) fail_msg("%s: logits are off by %g of the largest", what, d);
    lq_free(x);
    lq_free(y);
}

static void same_file(const char *a, const char *b, const char *what) {
    lq_buf x, y;
    assert_int_equal(lq_text_load(NULL, a, &x), LQ_OK);
    assert_int_equal(lq_text_load(NULL, b, &y), LQ_OK);
    if (x.n != y.n || memcmp(x.v, y.v, x.n)) fail_msg("%s: a GGUF copied is another GGUF", what);
    lq_buf_free(&x);
    lq_buf_free(&y);
}

enum { TOKENS = 24 };

/* DIR/in -> GGUF -> folder. false: refused for a known reason. */
static bool there_and_back(const char *model, const char *what) {
    char in[64], file[64], out[64], again[64];
    lq_ctx ctx = {0};
    int32_t ids[TOKENS];
    at("in", in), at("one.gguf", file), at("two.gguf", again), at("back", out);
    lq_status st = convert(&ctx, in, "gguf", file);
    if (st == LQ_ERR_UNSUPPORTED && model && refusal_known(held_back, model, "", ctx.msg)) return false;
    if (st) fail_msg("%s to GGUF: status %d: %s", what, (int)st, ctx.msg);
    if (convert(&ctx, file, "safetensors", out)) fail_msg("%s from GGUF: %s", what, ctx.msg);
    if (convert(&ctx, file, "gguf", again)) fail_msg("%s from GGUF to GGUF: %s", what, ctx.msg);
    for (int i = 0; i < TOKENS; i++) ids[i] = (i * 7 + 3) % 64;
    bool alike = same_tensors(in, file, what);
    same_tensors(in, out, what);
    if (alike) same_file(file, again, what); /* else the head has moved to the end */
    if (!loses_rope(what)) same_logits(in, file, ids, TOKENS, 1e-6, what), same_logits(in, out, ids, TOKENS, 1e-6, what);
    return true;
}

/* On its blocks it is what it is decoded to floats in a folder. */
static void quantized_it_still_runs(const char *what) {
    const char *flags[] = {"--scheme", "Q8_0", "--keep-unfit", NULL};
    char file[64], out[64];
    int32_t ids[TOKENS];
    lq_ctx ctx = {0};
    for (int i = 0; i < TOKENS; i++) ids[i] = (i * 5 + 1) % 64;
    if (quantize(&ctx, "rtn", "gguf", flags)) fail_msg("%s as Q8_0: %s", what, ctx.msg);
    if (convert(&ctx, matrix_out("gguf", file), "safetensors", at("back", out))) fail_msg("%s from Q8_0: %s", what, ctx.msg);
    same_logits(out, file, ids, TOKENS, 2e-6, what);
}

/* -- all --------------------------------------------------------------------------------------------------------------- */

static const lq_arch *arch_in(void) {
    char in[64];
    opened o;
    open_at(&o, at("in", in));
    const lq_arch *a = o.m->arch;
    close_at(&o);
    return a;
}

static void every_architecture_comes_back_from_its_gguf(void **state) {
    (void)state;
    const lq_arch *seen[128], *refused[128];
    size_t n_seen = 0, n_refused = 0;
    DIR *d = opendir(GOLDEN);
    assert_non_null(d);
    matrix_open();
    for (struct dirent *e; (e = readdir(d));) {
        if (e->d_name[0] == '.') continue;
        copy_golden(e->d_name, "letters_bytes.json");
        if (!there_and_back(e->d_name, e->d_name)) {
            refused[n_refused++] = arch_in();
            continue;
        }
        quantized_it_still_runs(e->d_name);
        seen[n_seen++] = arch_in();
    }
    closedir(d);
    for (size_t i = 0; i < sizeof changed / sizeof *changed; i++) {
        char what[600], in[64];
        assert_int_equal(lq_remove_tree(NULL, at("in", in)), LQ_OK);
        assert_int_equal(lq_mkdir(NULL, in), LQ_OK);
        make_changed(changed[i].model, changed[i].changes);
        snprintf(what, sizeof what, "%s with %s", changed[i].model, changed[i].changes);
        assert_true(there_and_back(NULL, what));
        quantized_it_still_runs(what);
        seen[n_seen++] = arch_in();
    }
    matrix_close();
    for (const lq_arch *const *a = lq_archs; *a; a++) {
        bool in = false, out = false;
        for (size_t i = 0; i < n_seen; i++) in |= seen[i] == *a;
        for (size_t i = 0; i < n_refused; i++) out |= refused[i] == *a;
        if ((*a)->gguf_archs ? !in : in || !out) fail_msg("architecture '%s': %s", (*a)->name, (*a)->gguf_archs ? "no model of it was tried as a GGUF" : "no model of it was refused");
    }
    print_message("%zu models there and back, %zu refused\n", n_seen, n_refused);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_architecture_comes_back_from_its_gguf)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
