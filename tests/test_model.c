/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Binding a source to an architecture: what is refused, what is named, what a GGUF says otherwise than config.json. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "calib/forward.h"
#include "core/num.h"
#include "core/os.h"
#include "formats/safetensors.h"

#include <stdio.h>
#include <stdlib.h>

#define GOLDEN LQ_SOURCE_ROOT "/tests/golden/forward/"

static lq_ctx ctx;
#define OK(x)                                                             \
    do {                                                                  \
        lq_status ok_st_ = (x);                                           \
        if (ok_st_) fail_msg("%s: %s", lq_status_text(ok_st_), ctx.msg);  \
    } while (0)

static char dir[64];
static void fresh_dir(void) {
    snprintf(dir, sizeof dir, "/tmp/lquant-test-XXXXXX");
    assert_non_null(mkdtemp(dir));
}
static void drop_dir(void) { OK(lq_remove_tree(&ctx, dir)); }
static const char *in_dir(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

/* The golden model's folder with one key of its configuration replaced (value NULL: removed). */
static void edited_config(const char *variant, const char *key, const char *value) {
    char from[512];
    json_t *c, *v = NULL;
    lq_buf text;
    fresh_dir();
    snprintf(from, sizeof from, GOLDEN "%s/config.json", variant);
    OK(lq_json_load(&ctx, from, &c));
    if (value) assert_non_null(v = json_loads(value, JSON_DECODE_ANY, NULL));
    if (v) json_object_set_new(c, key, v);
    else if (key) json_object_del(c, key);
    OK(lq_json_dump(&ctx, c, &text));
    OK(lq_write_file(&ctx, in_dir("config.json"), text.v, text.n));
    snprintf(from, sizeof from, GOLDEN "%s/model.safetensors", variant);
    OK(lq_copy_file(&ctx, from, in_dir("model.safetensors")));
    lq_buf_free(&text);
    json_decref(c);
}

static lq_status try_open(const char *path, bool any, lq_source **src, lq_model **m) {
    *src = NULL;
    *m = NULL;
    lq_status st = lq_source_open(&ctx, path, src);
    if (!st) st = lq_model_open(&ctx, *src, any, m);
    if (st) assert_null(*m);
    return st;
}
static void close_both(lq_source **src, lq_model **m) {
    lq_model_free(m);
    lq_source_free(src);
}

static const struct { const char *variant, *key, *value; lq_status want; const char *says; } hostile[] = {
    {"llama", "model_type", "\"mamba\"", LQ_ERR_UNSUPPORTED, "mamba"},
    {"llama", "model_type", NULL, LQ_ERR_FORMAT, "model_type"},
    {"llama", "hidden_act", "\"xielu\"", LQ_ERR_UNSUPPORTED, "xielu"},
    {"llama", "rope_scaling", "{\"type\": \"xpos\", \"factor\": 2.0}", LQ_ERR_UNSUPPORTED, "xpos"},
    {"llama", "rope_scaling", "{\"type\": \"yarn\"}", LQ_ERR_FORMAT, "factor"},
    {"llama", "rope_scaling", "{\"type\": \"longrope\", \"short_factor\": [1]}", LQ_ERR_FORMAT, "'short_factor' has 1 entries, expected 8"},
    {"llama", "rope_scaling", "{\"type\": \"su\", \"short_factor\": [1, 1, 1, 1, 1, 1, 1, 0]}", LQ_ERR_FORMAT, "entry 7 is 0"},
    {"llama", "rope_scaling", "{\"rope_type\": \"linear\"}", LQ_ERR_FORMAT, "factor"},
    {"llama", "rope_scaling", "{\"rope_type\": \"linear\", \"factor\": 0}", LQ_ERR_FORMAT, "factor"},
    {"llama", "rope_scaling", "{\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, \"high_freq_factor\": 4}", LQ_ERR_FORMAT, "high_freq_factor"},
    {"llama", "rope_scaling", "[1]", LQ_ERR_FORMAT, "not an object"},
    {"llama", "rope_parameters", "\"default\"", LQ_ERR_FORMAT, "not an object"},
    {"llama", "rope_parameters", "{\"full_attention\": {\"rope_type\": \"default\"}}", LQ_ERR_UNSUPPORTED, "full_attention"},
    {"llama", "rope_theta", "0", LQ_ERR_FORMAT, "rope_theta"},
    {"llama", "rope_theta", "\"x\"", LQ_ERR_FORMAT, "rope_theta"},
    {"llama", "partial_rotary_factor", "0.5", LQ_ERR_UNSUPPORTED, "partial_rotary_factor"},
    {"llama", "hidden_size", "0", LQ_ERR_FORMAT, "hidden_size"},
    {"llama", "hidden_size", "4000000000", LQ_ERR_FORMAT, "hidden_size"},
    {"llama", "hidden_size", "72", LQ_ERR_FORMAT, "shape [64, 64], the configuration says [64, 72]"},
    {"llama", "intermediate_size", "49", LQ_ERR_FORMAT, "shape [48, 64], the configuration says [49, 64]"},
    {"llama", "num_hidden_layers", "3", LQ_ERR_FORMAT, "'model.layers.2.input_layernorm.weight' is missing (9 missing in all)"},
    {"llama", "num_hidden_layers", "1000000", LQ_ERR_FORMAT, "num_hidden_layers"},
    {"llama", "num_attention_heads", "-4", LQ_ERR_FORMAT, "num_attention_heads"},
    {"llama", "num_attention_heads", "3", LQ_ERR_FORMAT, "head_dim is 21"},
    {"llama", "num_key_value_heads", "3", LQ_ERR_FORMAT, "num_key_value_heads"},
    {"llama", "num_key_value_heads", "2", LQ_ERR_FORMAT, "k_proj.weight': shape [16, 64], the configuration says [32, 64]"},
    {"llama", "num_key_value_heads", NULL, LQ_ERR_FORMAT, "k_proj.weight': shape [16, 64], the configuration says [64, 64]"},
    {"llama", "vocab_size", "65", LQ_ERR_FORMAT, "embed_tokens"},
    {"llama", "attention_bias", "true", LQ_ERR_FORMAT, "'model.layers.0.self_attn.q_proj.bias' is missing (8 missing in all)"},
    {"llama", "attention_bias", "1", LQ_ERR_FORMAT, "attention_bias"},
    {"llama_tied", "tie_word_embeddings", "false", LQ_ERR_FORMAT, "'lm_head.weight' is missing"},
    {"llama", "rms_norm_eps", "\"tiny\"", LQ_ERR_FORMAT, "rms_norm_eps"},
    {"qwen3", "head_dim", NULL, LQ_ERR_FORMAT, "q_proj.weight': shape [64, 32], the configuration says [512, 32]"},
    {"qwen3", "head_dim", "15", LQ_ERR_FORMAT, "head_dim is 15"},
    {"qwen2_window", "layer_types", "[\"full_attention\"]", LQ_ERR_FORMAT, "layer_types"},
    {"qwen2_window", "layer_types", "[\"full_attention\", \"chunked_attention\"]", LQ_ERR_UNSUPPORTED, "chunked_attention"},
    {"qwen2_window", "layer_types", "[\"full_attention\", 7]", LQ_ERR_UNSUPPORTED, "not a string"},
    {"mistral", "sliding_window", "-1", LQ_ERR_FORMAT, "sliding_window"},
    {"gemma2", "attn_logit_softcapping", "\"x\"", LQ_ERR_FORMAT, "attn_logit_softcapping"},
    {"gemma2", "query_pre_attn_scalar", "0", LQ_ERR_FORMAT, "query_pre_attn_scalar"},
    {"gemma2", "layer_types", "[\"full_attention\"]", LQ_ERR_FORMAT, "layer_types"},
    {"gemma3", "use_bidirectional_attention", "true", LQ_ERR_UNSUPPORTED, "use_bidirectional_attention"},
    {"gemma3", "sliding_window_pattern", "0", LQ_ERR_FORMAT, "sliding_window_pattern"},
    {"gemma3_kinds", "rope_parameters", "{\"chunked_attention\": {\"rope_type\": \"default\"}}", LQ_ERR_UNSUPPORTED, "chunked_attention"},
    {"gemma3_kinds", "rope_parameters", "{\"sliding_attention\": {\"rope_type\": \"linear\"}}", LQ_ERR_FORMAT, "factor"},
    {"granite", "residual_multiplier", "0", LQ_ERR_FORMAT, "residual_multiplier"},
    {"granite", "partial_rotary_factor", "0.5", LQ_ERR_UNSUPPORTED, "partial_rotary_factor"},
    {"phi4", "partial_rotary_factor", "0.32", LQ_ERR_FORMAT, "an even part of a head of 16"},
    {"phi4", "original_max_position_embeddings", "-1", LQ_ERR_FORMAT, "original_max_position_embeddings"},
    {"phi3", "num_key_value_heads", "2", LQ_ERR_FORMAT, "qkv_proj.weight': shape [96, 32], the configuration says [64, 32]"},
    {"glm", "partial_rotary_factor", "2", LQ_ERR_FORMAT, "partial_rotary_factor"},
    {"glm4", "intermediate_size", "50", LQ_ERR_FORMAT, "gate_up_proj.weight': shape [96, 32], the configuration says [100, 32]"},
    {"bitnet_online", "quantization_config", "{\"quant_method\": \"bitnet\", \"quantization_mode\": \"offline\"}", LQ_ERR_FORMAT, "(bitnet), but no tensor"},
    {"bitnet_online", "quantization_config", "{\"quant_method\": \"bitnet\", \"quantization_mode\": \"online\", \"use_rms_norm\": true}", LQ_ERR_UNSUPPORTED, "use_rms_norm"},
    {"bitnet_online", "quantization_config", "{\"quant_method\": \"bitnet\", \"quantization_mode\": \"online\", \"modules_to_not_convert\": [\"x\"]}",
     LQ_ERR_UNSUPPORTED, "modules_to_not_convert"},
    {"gemma3_mm", "text_config", "{}", LQ_ERR_FORMAT, "shape [64, 32], the configuration says [262208, 2304]"},
    {"gemma3_mm", "text_config", "{\"model_type\": \"gemma9\"}", LQ_ERR_UNSUPPORTED, "gemma9"},
    {"llava", "model_type", "\"mllama\"", LQ_ERR_UNSUPPORTED, "mllama"},
    {"llava", "text_config", "{\"vocab_size\": 32064}", LQ_ERR_FORMAT, "shape [64, 32], the configuration says [32064, 4096]"}, /* as LLaVA-1.5 says it */
    {"llava", "text_config", "3", LQ_ERR_UNSUPPORTED, "llava"},
};

static void hostile_configurations_are_refused_by_name(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        lq_source *src;
        lq_model *m;
        edited_config(hostile[i].variant, hostile[i].key, hostile[i].value);
        lq_status st = try_open(dir, false, &src, &m);
        if (st != hostile[i].want || !strstr(ctx.msg, hostile[i].says))
            fail_msg("%s: %s %s: status %d, '%s'", hostile[i].variant, hostile[i].key, hostile[i].value ? hostile[i].value : "removed", st, ctx.msg);
        close_both(&src, &m);
        drop_dir();
    }
}

static void layer_types_and_max_window_layers_say_the_same(void **state) {
    (void)state;
    lq_source *src;
    lq_model *m;
    edited_config("qwen2_window", "layer_types", "[\"sliding_attention\", \"full_attention\"]");
    OK(try_open(dir, false, &src, &m));
    assert_int_equal(lq_params_window(&m->par, 0), 8);
    assert_int_equal(lq_params_window(&m->par, 1), 0);
    close_both(&src, &m);
    drop_dir();
    OK(try_open(GOLDEN "qwen2_window", false, &src, &m));
    assert_int_equal(lq_params_window(&m->par, 0), 0);
    assert_int_equal(lq_params_window(&m->par, 1), 8);
    close_both(&src, &m);
}

static void the_window_is_the_familys_when_the_key_is_absent_and_none_when_null(void **state) {
    (void)state;
    static const struct { const char *variant, *key, *value; uint32_t window; } cases[] = {
        {"mistral", "sliding_window", NULL, 4096}, {"mistral", "sliding_window", "null", 0}, {"mistral", "unused", "1", 8},
        {"llama", "sliding_window", "8", 0}, {"qwen2_window", "use_sliding_window", NULL, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        lq_source *src;
        lq_model *m;
        edited_config(cases[i].variant, cases[i].key, cases[i].value);
        OK(try_open(dir, false, &src, &m));
        assert_int_equal(m->par.window, cases[i].window);
        close_both(&src, &m);
        drop_dir();
    }
}

static void an_unknown_architecture_still_has_a_catalog_when_asked(void **state) {
    (void)state;
    lq_source *src;
    lq_model *m;
    edited_config("llama", "model_type", "\"mamba\"");
    OK(try_open(dir, true, &src, &m));
    assert_null(m->arch);
    assert_string_equal(m->cat.model_type, "mamba");
    assert_int_equal(m->cat.n, src->n);
    for (size_t i = 0; i < m->cat.n; i++) {
        const lq_row *r = &m->cat.rows[i];
        assert_int_equal(r->slot.role, LQ_R_UNKNOWN);
        assert_int_equal(r->linear, r->ndim == 2 && !strstr(r->name, "down_proj")); /* 64 x 48: like an embedding of this vocabulary */
        assert_ptr_equal(lq_catalog_find(&m->cat, r->slot, LQ_PART_WEIGHT), r);
        float *v = LQ_NEWN(float, lq_row_elems(r));
        OK(lq_model_read_f32(&ctx, m, r, v));
        lq_free(v);
        if (i) assert_true(strcmp(r[-1].name, r->name) < 0);
    }
    assert_int_equal(lq_model_load(&ctx, m, 0, LQ_LOAD_F32), LQ_ERR_INTERNAL);
    lq_state *s;
    assert_int_equal(lq_state_new(&ctx, m, 8, &s), LQ_ERR_UNSUPPORTED);
    close_both(&src, &m);
    drop_dir();
}

static void settings_that_cannot_be_run_leave_a_catalog_of_unknown_matrices(void **state) {
    (void)state;
    lq_source *src;
    lq_model *m;
    edited_config("falcon_7b", "alibi", "true");
    assert_int_equal(try_open(dir, false, &src, &m), LQ_ERR_UNSUPPORTED);
    close_both(&src, &m);
    OK(try_open(dir, true, &src, &m));
    assert_null(m->arch);
    assert_int_equal(m->cat.n, src->n);
    for (size_t i = 0; i < m->cat.n; i++) /* the embedding is the one matrix as tall as the vocabulary is large and no wider */
        assert_int_equal(m->cat.rows[i].linear, m->cat.rows[i].ndim == 2 && !strstr(m->cat.rows[i].name, "word_embeddings"));
    close_both(&src, &m);
    drop_dir();
    edited_config("gpt2", "add_cross_attention", "true"); /* its matrices lie transposed: nobody could tell which */
    assert_int_equal(try_open(dir, true, &src, &m), LQ_ERR_UNSUPPORTED);
    close_both(&src, &m);
    drop_dir();
}

static void the_catalog_has_stages_and_fuse_groups_from_the_walk(void **state) {
    (void)state;
    static const struct { lq_role role; int32_t stage, fuse; } want[] = {{LQ_R_Q, 0, 0}, {LQ_R_K, 0, 0}, {LQ_R_V, 0, 0}, {LQ_R_O, 1, -1},
                                                                         {LQ_R_GATE, 2, 1}, {LQ_R_UP, 2, 1}, {LQ_R_DOWN, 3, -1}, {LQ_R_ATTN_NORM, -1, -1}};
    lq_source *src;
    lq_model *m;
    OK(try_open(GOLDEN "llama_biases", false, &src, &m));
    assert_int_equal(m->cat.n, src->n);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        const lq_row *r = lq_catalog_find(&m->cat, (lq_slot){1, (uint16_t)want[i].role, -1}, LQ_PART_WEIGHT);
        assert_non_null(r);
        assert_int_equal(r->stage, want[i].stage);
        assert_int_equal(r->fuse, want[i].fuse);
        assert_int_equal(r->linear, want[i].stage >= 0);
    }
    const lq_row *bias = lq_catalog_find(&m->cat, (lq_slot){0, LQ_R_DOWN, -1}, LQ_PART_BIAS);
    assert_string_equal(bias->name, "model.layers.0.mlp.down_proj.bias");
    assert_string_equal(bias->gguf_name, "blk.0.ffn_down.bias");
    assert_false(bias->linear);
    assert_int_equal(m->cat.rows[0].slot.role, LQ_R_EMBED);
    assert_int_equal(m->cat.rows[m->cat.n - 1].slot.role, LQ_R_HEAD);
    close_both(&src, &m);
}

/* ---- tensors rewritten ---- */

typedef struct stored { lq_st_tensor t[64]; void *data[64]; size_t n; } stored;

static void read_stored(const char *variant, stored *s) {
    char path[512];
    lq_st_file f;
    snprintf(path, sizeof path, GOLDEN "%s/model.safetensors", variant);
    OK(lq_st_open(&ctx, path, &f));
    assert_true(f.n < 60);
    for (s->n = 0; s->n < f.n; s->n++) {
        lq_st_tensor *t = &s->t[s->n];
        *t = f.tensors[s->n];
        t->name = lq_strdup(t->name);
        s->data[s->n] = lq_alloc(t->bytes);
        OK(lq_file_read(&ctx, &f.file, t->offset, s->data[s->n], t->bytes));
    }
    lq_st_close(&f);
}
static void free_stored(stored *s) {
    for (size_t i = 0; i < s->n; i++) lq_free((char *)(uintptr_t)s->t[i].name), lq_free(s->data[i]);
}
static size_t named(const stored *s, const char *name) {
    for (size_t i = 0; i < s->n; i++)
        if (!strcmp(s->t[i].name, name)) return i;
    fail_msg("no %s", name);
    return 0;
}
static void write_stored(const char *variant, const stored *s) {
    lq_st_writer *w;
    edited_config(variant, NULL, NULL);
    OK(lq_remove_tree(&ctx, in_dir("model.safetensors")));
    OK(lq_st_create(&ctx, dir, s->t, s->n, (uint64_t)1 << 30, &w));
    for (size_t i = 0; i < s->n; i++) OK(lq_st_put(&ctx, w, s->t[i].name, s->data[i], s->t[i].bytes));
    OK(lq_st_finish(&ctx, &w));
}

static void a_weight_that_is_no_number_is_named_with_row_and_column(void **state) {
    (void)state;
    static const lq_dtype types[] = {LQ_F32, LQ_F16, LQ_BF16};
    for (size_t k = 0; k < 3; k++)
        for (int how = LQ_LOAD_STORED; how <= LQ_LOAD_F32; how++) {
            stored s;
            lq_source *src;
            lq_model *m;
            read_stored("llama", &s);
            size_t i = named(&s, "model.layers.1.mlp.up_proj.weight");
            float *w = s.data[i];
            w[37 * 64 + 5] = k == 1 ? INFINITY : NAN;
            lq_dtype_encode(types[k], w, w, 48 * 64); /* in place: each value is written at or before where it was read */
            s.t[i].dtype = types[k];
            s.t[i].bytes = 48 * 64 * lq_dtypes[types[k]].bytes;
            write_stored("llama", &s);
            OK(try_open(dir, false, &src, &m));
            OK(lq_model_load(&ctx, m, 0, (lq_load)how));
            assert_int_equal(lq_model_load(&ctx, m, 1, (lq_load)how), LQ_ERR_FORMAT);
            assert_non_null(strstr(ctx.msg, "'model.layers.1.mlp.up_proj.weight': row 37, column 5 is NaN or infinite"));
            assert_false(m->layers[1].loaded);
            close_both(&src, &m);
            free_stored(&s);
            drop_dir();
        }
}

static void tensors_the_architecture_does_not_know_are_carried_along(void **state) {
    (void)state;
    stored s;
    lq_source *src;
    lq_model *m;
    read_stored("llama_tied", &s);
    float freq[4] = {1, 2, 3, 4};
    s.t[s.n] = (lq_st_tensor){.name = lq_strdup("model.layers.0.self_attn.rotary_emb.inv_freq"), .dtype = LQ_F32, .ndim = 1, .shape = {4}, .bytes = 16};
    memcpy(s.data[s.n] = lq_alloc(16), freq, 16);
    s.n++;
    write_stored("llama_tied", &s);
    OK(try_open(dir, false, &src, &m));
    const lq_row *r = &m->cat.rows[m->cat.n - 1];
    assert_int_equal(m->cat.n, s.n);
    assert_int_equal(r->slot.role, LQ_R_UNKNOWN);
    assert_string_equal(r->name, s.t[s.n - 1].name);
    assert_false(r->linear);
    float got[4];
    OK(lq_model_read_stored(&ctx, m, r, got));
    assert_memory_equal(got, freq, 16);
    OK(lq_model_load_all(&ctx, m, LQ_LOAD_F32));
    close_both(&src, &m);
    free_stored(&s);
    drop_dir();
}

static void a_head_stored_beside_a_tied_embedding_is_used(void **state) {
    (void)state;
    lq_source *src;
    lq_model *m;
    edited_config("llama", "tie_word_embeddings", "true");
    OK(try_open(dir, false, &src, &m));
    assert_false(m->par.tied);
    assert_non_null(lq_catalog_find(&m->cat, (lq_slot){-1, LQ_R_HEAD, -1}, LQ_PART_WEIGHT));
    close_both(&src, &m);
    drop_dir();
}

static void block_bytes_are_what_a_block_takes(void **state) {
    (void)state;
    lq_source *src;
    lq_model *m;
    OK(try_open(GOLDEN "llama", false, &src, &m));
    uint64_t elems = 64 * 64 * 2 + 16 * 64 * 2 + 48 * 64 * 3 + 64 * 2;
    assert_in_range(lq_model_block_bytes(m, 0, LQ_LOAD_F32), elems * 4, elems * 4 + 1024);
    assert_in_range(lq_model_block_bytes(m, -1, LQ_LOAD_STORED), (64 * 64 * 2 + 64) * 4, (64 * 64 * 2 + 64) * 4 + 1024);
    close_both(&src, &m);
}

/* ---- the same model as GGUF ---- */

static void put(lq_buf *b, const void *p, size_t n) { assert_true(lq_buf_add(b, p, n)); }
static void put_u32(lq_buf *b, uint32_t v) { put(b, &v, 4); }
static void put_u64(lq_buf *b, uint64_t v) { put(b, &v, 8); }
static void put_text(lq_buf *b, const char *s) {
    put_u64(b, strlen(s));
    put(b, s, strlen(s));
}
static void kv_text(lq_buf *b, const char *key, const char *v) { put_text(b, key), put_u32(b, LQ_GGUF_STRING), put_text(b, v); }
static void kv_u32(lq_buf *b, const char *key, uint32_t v) { put_text(b, key), put_u32(b, LQ_GGUF_U32), put_u32(b, v); }
static void kv_f32(lq_buf *b, const char *key, float v) { put_text(b, key), put_u32(b, LQ_GGUF_F32), put(b, &v, 4); }

/* Stored row 2j of a head is row j, stored row 2j + 1 is row j + dim/2. */
static void to_pairs(float *w, size_t heads, size_t dim, size_t cols) {
    float *copy = LQ_NEWN(float, heads * dim * cols);
    memcpy(copy, w, heads * dim * cols * 4);
    for (size_t h = 0; h < heads; h++)
        for (size_t r = 0; r < dim; r++)
            memcpy(w + (h * dim + r) * cols, copy + (h * dim + r / 2 + (r & 1) * (dim / 2)) * cols, cols * 4);
    lq_free(copy);
}

/* The variant's tensors under their GGUF names; div[half]: rope_freqs.weight, NULL: none. */
static void write_gguf(const lq_model *hf, stored *s, const float *div) {
    lq_buf meta = {0}, info = {0}, data = {0};
    const lq_params *p = &hf->par;
    kv_text(&meta, "general.architecture", "llama");
    kv_u32(&meta, "llama.context_length", p->max_ctx), kv_u32(&meta, "llama.embedding_length", p->hidden);
    kv_u32(&meta, "llama.block_count", p->n_layers), kv_u32(&meta, "llama.feed_forward_length", p->ffn);
    kv_u32(&meta, "llama.attention.head_count", p->n_heads), kv_u32(&meta, "llama.attention.head_count_kv", p->n_kv_heads);
    kv_u32(&meta, "llama.rope.dimension_count", p->head_dim), kv_u32(&meta, "tokenizer.ggml.bos_token_id", 1);
    kv_f32(&meta, "llama.attention.layer_norm_rms_epsilon", p->norm_eps), kv_f32(&meta, "llama.rope.freq_base", (float)p->rope.base);
    if (p->rope.kind == LQ_ROPE_LINEAR) kv_text(&meta, "llama.rope.scaling.type", "linear"), kv_f32(&meta, "llama.rope.scaling.factor", (float)p->rope.factor);
    for (size_t i = 0; i < hf->cat.n; i++) {
        const lq_row *r = &hf->cat.rows[i];
        size_t at = named(s, r->name), cols = lq_row_cols(r);
        if (r->slot.role == LQ_R_Q) to_pairs(s->data[at], p->n_heads, p->head_dim, cols);
        if (r->slot.role == LQ_R_K) to_pairs(s->data[at], p->n_kv_heads, p->head_dim, cols);
        put_text(&info, r->gguf_name), put_u32(&info, r->ndim);
        if (r->ndim > 1) put_u64(&info, cols);
        put_u64(&info, r->shape[0]), put_u32(&info, 0), put_u64(&info, data.n);
        put(&data, s->data[at], s->t[at].bytes);
        while (data.n % 32) put(&data, "", 1);
    }
    if (div) {
        put_text(&info, "rope_freqs.weight"), put_u32(&info, 1), put_u64(&info, p->head_dim / 2), put_u32(&info, 0), put_u64(&info, data.n);
        put(&data, div, p->head_dim / 2 * 4);
        while (data.n % 32) put(&data, "", 1);
    }
    lq_buf file = {0};
    put(&file, "GGUF\3\0\0\0", 8), put_u64(&file, hf->cat.n + (div ? 1 : 0)), put_u64(&file, p->rope.kind == LQ_ROPE_LINEAR ? 13 : 11);
    put(&file, meta.v, meta.n), put(&file, info.v, info.n);
    while (file.n % 32) put(&file, "", 1);
    put(&file, data.v, data.n);
    OK(lq_write_file(&ctx, in_dir("model.gguf"), file.v, file.n));
    lq_buf_free(&meta), lq_buf_free(&info), lq_buf_free(&data), lq_buf_free(&file);
}

static float *hidden_of(lq_model *m) {
    int32_t ids[48];
    lq_state *s;
    float *hidden = LQ_NEWN(float, (size_t)48 * m->par.hidden);
    for (int i = 0; i < 48; i++) ids[i] = i * 5 % 64;
    OK(lq_model_load_all(&ctx, m, LQ_LOAD_STORED));
    OK(lq_state_new(&ctx, m, 48, &s));
    OK(lq_forward(&ctx, s, ids, 48, hidden));
    lq_state_free(&s);
    return hidden;
}

static void check_gguf(const char *variant, bool divisors) {
    char path[512];
    stored s;
    lq_source *src, *src2;
    lq_model *m, *m2;
    float div[64];
    double with[64], without[64];
    fresh_dir();
    snprintf(path, sizeof path, GOLDEN "%s", variant);
    OK(try_open(path, false, &src, &m));
    lq_params plain = m->par;
    plain.rope.kind = LQ_ROPE_DEFAULT;
    lq_rope_inv_freq(&m->par.rope, 48, with), lq_rope_inv_freq(&plain.rope, 48, without);
    for (uint32_t j = 0; j < m->par.head_dim / 2; j++) div[j] = (float)(without[j] / with[j]);
    read_stored(variant, &s);
    write_gguf(m, &s, divisors ? div : NULL);
    OK(try_open(in_dir("model.gguf"), false, &src2, &m2));
    float *a = hidden_of(m), *b = hidden_of(m2);
    for (size_t i = 0; i < (size_t)48 * m->par.hidden; i++) assert_true(fabsf(a[i] - b[i]) <= (divisors ? 1e-4f : 0));
    json_t *c;
    OK(lq_model_config(&ctx, m2, &c));
    lq_params back = {0};
    OK(lq_params_from_hf(&ctx, &lq_arch_llama, c, &back));
    assert_true(back.norm_eps == m->par.norm_eps && back.rope.base == m->par.rope.base && back.rope.kind == m->par.rope.kind && back.tied == m->par.tied &&
                back.qkv_bias == m->par.qkv_bias && back.o_bias == m->par.o_bias && back.mlp_bias == m->par.mlp_bias);
    lq_rope_inv_freq(&back.rope, 48, without);
    for (uint32_t j = 0; j < m->par.head_dim / 2; j++) assert_true(fabs(without[j] / with[j] - 1) < 1e-4);
    assert_int_equal(json_integer_value(json_object_get(c, "bos_token_id")), 1);
    json_decref(c);
    lq_params_free(&back);
    lq_free(a), lq_free(b);
    free_stored(&s);
    close_both(&src, &m), close_both(&src2, &m2);
    drop_dir();
}

static void a_gguf_runs_as_the_folder_it_was_made_from(void **state) {
    (void)state;
    check_gguf("llama", false);
    check_gguf("llama_tied", false);
    check_gguf("llama_biases", false);
    check_gguf("llama_linear", false);
    check_gguf("llama3", true);
}

static void llama3_settings_are_recovered_from_the_divisors_of_real_models(void **state) {
    (void)state;
    static const struct { double factor; uint32_t dim; } real[] = {{8, 128}, {32, 64}};
    for (int i = 0; i < 2; i++) {
        double with[64], without[64], div[64], factor, low, high;
        lq_rope p = {.dim = real[i].dim, .base = 500000, .kind = LQ_ROPE_LLAMA3, .factor = real[i].factor, .low = 1, .high = 4, .original = 8192};
        lq_rope_inv_freq(&p, 48, with);
        p.kind = LQ_ROPE_DEFAULT;
        lq_rope_inv_freq(&p, 48, without);
        for (uint32_t j = 0; j < p.dim / 2; j++) div[j] = (float)(without[j] / with[j]);
        p.div = div;
        assert_true(lq_rope_recover(&p, &factor, &low, &high));
        assert_true(fabs(factor - real[i].factor) < 1e-5 && low == 1 && high == 4);
        div[p.dim / 2 - 8] *= 1.5;
        assert_false(lq_rope_recover(&p, &factor, &low, &high));
    }
}

static void fail_allocations(const char *folder, lq_load how) {
    lq_status st = LQ_ERR_RESOURCE;
    for (long n = 0; st; n++) {
        lq_source *src;
        lq_model *m = NULL;
        lq_state *s = NULL;
        float hidden[64 * 3];
        assert_true(n < 100000);
        OK(lq_source_open(&ctx, folder, &src));
        lq_mem_fail_after(n);
        st = lq_model_open(&ctx, src, false, &m);
        if (!st) st = lq_model_load_all(&ctx, m, how);
        if (!st) st = lq_state_new(&ctx, m, 3, &s);
        if (!st) st = lq_forward(&ctx, s, (int32_t[]){1, 2, 3}, 3, hidden);
        lq_mem_fail_after(-1);
        assert_true(st == LQ_OK || st == LQ_ERR_RESOURCE);
        lq_state_free(&s);
        close_both(&src, &m);
    }
}

static void every_failed_allocation_is_an_error_and_leaks_nothing(void **state) {
    (void)state;
    static const struct { const char *folder; lq_load how; } models[] = {
        {GOLDEN "llama", LQ_LOAD_F32}, {GOLDEN "gemma3_mm", LQ_LOAD_STORED}, {GOLDEN "llama_longrope", LQ_LOAD_STORED}, {GOLDEN "bitnet_online", LQ_LOAD_STORED}, {GOLDEN "bitnet_online", LQ_LOAD_PACKED}};
    for (size_t k = 0; k < sizeof models / sizeof *models; k++) fail_allocations(models[k].folder, models[k].how);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hostile_configurations_are_refused_by_name),
        cmocka_unit_test(layer_types_and_max_window_layers_say_the_same),
        cmocka_unit_test(the_window_is_the_familys_when_the_key_is_absent_and_none_when_null),
        cmocka_unit_test(an_unknown_architecture_still_has_a_catalog_when_asked),
        cmocka_unit_test(settings_that_cannot_be_run_leave_a_catalog_of_unknown_matrices),
        cmocka_unit_test(the_catalog_has_stages_and_fuse_groups_from_the_walk),
        cmocka_unit_test(a_weight_that_is_no_number_is_named_with_row_and_column),
        cmocka_unit_test(tensors_the_architecture_does_not_know_are_carried_along),
        cmocka_unit_test(a_head_stored_beside_a_tied_embedding_is_used),
        cmocka_unit_test(block_bytes_are_what_a_block_takes),
        cmocka_unit_test(a_gguf_runs_as_the_folder_it_was_made_from),
        cmocka_unit_test(llama3_settings_are_recovered_from_the_divisors_of_real_models),
        cmocka_unit_test(every_failed_allocation_is_an_error_and_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
