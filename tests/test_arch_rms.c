/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The RMS-norm families beyond Llama: every setting of theirs moves the golden logits (scripts/gen_golden_rms.py; that the logits
 * are met at all is tested in test_forward.c, which runs over the same folders). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/golden_forward.h"

#define P (f->m->par)
static void off_embed_scale(fixture *f) { P.embed_scale = 0; }
static void off_attn_scale(fixture *f) { P.attn_scale = 0; }
static void off_attn_cap(fixture *f) { P.attn_cap = 0; }
static void off_logit_cap(fixture *f) { P.logit_cap = 0; }
static void off_resid_scale(fixture *f) { P.resid_scale = 0; }
static void off_logit_div(fixture *f) { P.logit_div = 0; }
static void off_act(fixture *f) { P.act = LQ_ACTFN_SILU; }
static void off_window(fixture *f) { P.window = 0; }
static void wider_window(fixture *f) { P.window++; }
static void off_alternation(fixture *f) { memset(P.layer_window, 1, P.n_layers); }
static void off_two_ropes(fixture *f) { P.two_ropes = false; }
static void off_local_base(fixture *f) { P.local_rope.base *= 4; }
static void off_local_kind(fixture *f) { P.local_rope.kind = LQ_ROPE_DEFAULT; }
static void off_kind(fixture *f) { P.rope.kind = LQ_ROPE_DEFAULT; }
static void off_base(fixture *f) { P.rope.base *= 4; }
static void off_factor(fixture *f) { P.rope.factor = 2; }
static void off_low(fixture *f) { P.rope.low /= 2; }
static void off_high(fixture *f) { P.rope.high *= 2; }
static void off_original(fixture *f) { P.rope.original *= 2; }
static void off_whole(fixture *f) { P.rope.whole = false; }
static void off_scale(fixture *f) { P.rope.scale = 0; }
static void off_long(fixture *f) { P.rope.original = 1000; }
static void off_first_div(fixture *f) { P.rope.long_div[2] *= 2; }
static void off_short_div(fixture *f) { P.rope.div[2] *= 2; }
static void off_part(fixture *f) { P.rope.dim -= 2; }
static void off_pairs(fixture *f) { P.rope.pairs = false; }
static void off_sub_norm(fixture *f, lq_role role) { for (uint32_t i = 0; i < P.hidden; i++) f->m->layers[0].norm[role][i] = 1; }
static void off_attn_sub(fixture *f) { off_sub_norm(f, LQ_R_ATTN_SUB_NORM); }
static void off_ffn_sub(fixture *f) { off_sub_norm(f, LQ_R_FFN_SUB_NORM); }
static void off_relu2(fixture *f) { P.act = LQ_ACTFN_RELU; }
static void off_eps(fixture *f) { P.norm_eps = 0.1f; }
static void off_biases(fixture *f) {
    for (uint32_t l = 0; l < P.n_layers; l++) f->m->layers[l].lin[LQ_R_K].bias = f->m->layers[l].lin[LQ_R_V].bias = NULL;
}

static void less_one(fixture *f, lq_role role, uint32_t n) {
    lq_layer *l = role == LQ_R_FINAL_NORM ? &f->m->outer : &f->m->layers[0];
    for (uint32_t i = 0; i < n; i++) l->norm[role][i] -= 1;
}
static void off_plus_one(fixture *f) { less_one(f, LQ_R_ATTN_NORM, P.hidden); }
static void off_final_plus_one(fixture *f) { less_one(f, LQ_R_FINAL_NORM, P.hidden); }
static void off_q_plus_one(fixture *f) { less_one(f, LQ_R_Q_NORM, P.head_dim); }
static void off_attn_post(fixture *f) { less_one(f, LQ_R_ATTN_POST_NORM, P.hidden); }
static void off_mlp_post(fixture *f) { less_one(f, LQ_R_MLP_POST_NORM, P.hidden); }

static const off_switch switches[] = {
    {"gemma", off_embed_scale, "embedding scale"},     {"gemma", off_plus_one, "1 + w"},
    {"gemma", off_final_plus_one, "1 + w at the end"}, {"gemma", off_act, "activation"},
    {"gemma2", off_embed_scale, "embedding scale"},    {"gemma2", off_attn_scale, "score scale"},
    {"gemma2", off_attn_cap, "score cap"},             {"gemma2", off_logit_cap, "logit cap"},
    {"gemma2", off_window, "window"},                  {"gemma2", wider_window, "window by one"},
    {"gemma2", off_alternation, "layer without window"}, {"gemma2", off_attn_post, "1 + w after attention"},
    {"gemma2", off_mlp_post, "1 + w after the mlp"},   {"gemma3", off_two_ropes, "second rope"},
    {"gemma3", off_local_base, "local base"},          {"gemma3", off_kind, "scaling of the global rope"},
    {"gemma3", off_base, "global base"},               {"gemma3", off_q_plus_one, "1 + w of q"},
    {"gemma3", off_alternation, "layer without window"}, {"gemma3_kinds", off_local_kind, "local scaling"},
    {"gemma3_kinds", off_attn_scale, "score scale"},   {"gemma3_kinds", off_logit_cap, "logit cap"},
    {"gemma3_kinds", off_biases, "biases"},            {"granite", off_embed_scale, "embedding multiplier"},
    {"granite", off_attn_scale, "attention multiplier"}, {"granite", off_resid_scale, "residual multiplier"},
    {"granite", off_logit_div, "logits scaling"},      {"llama_yarn", off_kind, "yarn"},
    {"llama_yarn", off_factor, "factor"},              {"llama_yarn", off_low, "beta_slow"},
    {"llama_yarn", off_high, "beta_fast"},             {"llama_yarn", off_original, "original context"},
    {"llama_yarn", off_whole, "whole coordinates"},    {"llama_yarn", off_scale, "attention factor"},
    {"llama_dynamic", off_kind, "scaling"},            {"llama_dynamic", off_factor, "factor"},
    {"llama_dynamic", off_original, "original context"}, {"llama_longrope", off_long, "long factors"},
    {"llama_longrope", off_first_div, "one factor"},   {"llama_longrope", off_scale, "attention factor"},
    {"phi3", off_window, "window"},                    {"phi3", off_long, "long factors"},
    {"phi3", off_scale, "attention factor"},           {"phi4", off_short_div, "short factors"},
    {"phi4", off_part, "part of a head"},              {"phi4", off_scale, "attention factor"},
    {"glm", off_part, "part of a head"},               {"glm", off_pairs, "interleaved turns"},
    {"glm", off_biases, "biases"},                     {"glm4", off_pairs, "interleaved turns"},
    {"glm4", off_attn_post, "norm after attention"},   {"glm4", off_mlp_post, "norm after the mlp"},
    {"glm4", off_base, "base"},                        {"bitnet", off_attn_sub, "norm before o"},
    {"bitnet", off_ffn_sub, "norm before down"},       {"bitnet", off_relu2, "activation"},
    {"bitnet", off_eps, "eps"},                        {"bitnet", off_base, "base"},
};

static void every_setting_moves_the_logits(void **state) {
    (void)state;
    try_switches(switches, sizeof switches / sizeof *switches);
}

static void stored_gains_are_read_as_they_are_and_run_as_one_more(void **state) {
    (void)state;
    fixture f;
    open_golden(&f, "gemma2");
    float w[64];
    const lq_row *row = lq_catalog_find(&f.m->cat, (lq_slot){1, LQ_R_MLP_POST_NORM, -1}, LQ_PART_WEIGHT);
    assert_non_null(row);
    assert_string_equal(row->name, "model.layers.1.post_feedforward_layernorm.weight");
    assert_true(f.m->par.norm_plus_one);
    OK(&f, lq_model_read_f32(&f.ctx, f.m, row, w));
    for (uint32_t i = 0; i < f.m->par.hidden; i++) {
        assert_true(w[i] >= -0.5f && w[i] <= 0.5f);
        assert_true(f.m->layers[1].norm[LQ_R_MLP_POST_NORM][i] == w[i] + 1);
    }
    close_golden(&f);
}

/* Tensors of the image side, among them convolutions of 4 and 5 dimensions, come out of the catalog byte for byte. */
static void what_is_not_the_text_tower_is_read_as_it_is_stored(void **state) {
    (void)state;
    static const struct { const char *variant, *tower; uint32_t dims; } models[] = {
        {"gemma3_mm", "language_model.model.", 4}, {"llava", "model.language_model.", 4}, {"qwen2_vl", "model.layers.", 5}};
    for (size_t v = 0; v < 3; v++) {
        fixture f;
        open_golden(&f, models[v].variant);
        char path[512];
        lq_st_file st;
        size_t others = 0;
        uint32_t dims = 0;
        snprintf(path, sizeof path, GOLDEN "%s/model.safetensors", models[v].variant);
        OK(&f, lq_st_open(&f.ctx, path, &st));
        for (size_t i = 0; i < f.m->cat.n; i++) {
            const lq_row *row = &f.m->cat.rows[i];
            assert_int_equal(row->slot.role != LQ_R_UNKNOWN && row->slot.block >= 0, !strncmp(row->name, models[v].tower, strlen(models[v].tower)) && row->slot.block >= 0);
            if (row->slot.role != LQ_R_UNKNOWN) continue;
            const lq_st_tensor *t = st.tensors;
            while (strcmp(t->name, row->name)) t++;
            assert_false(row->linear);
            dims = row->ndim > dims ? row->ndim : dims;
            char *a = lq_alloc(t->bytes + 1), *b = lq_alloc(t->bytes + 1);
            OK(&f, lq_file_read(&f.ctx, &st.file, t->offset, a, t->bytes));
            OK(&f, lq_model_read_stored(&f.ctx, f.m, row, b));
            assert_memory_equal(a, b, t->bytes);
            lq_free(a), lq_free(b);
            others++;
        }
        assert_true(others > 10);
        assert_int_equal(dims, models[v].dims);
        lq_st_close(&st);
        close_golden(&f);
    }
}

static void master_weights_are_read_as_they_run(void **state) {
    (void)state;
    fixture f, plain;
    open_golden(&f, "bitnet_online");
    open_golden(&plain, "bitnet");
    assert_true(f.m->par.master && !plain.m->par.master);
    for (size_t i = 0; i < f.m->cat.n; i++) {
        const lq_row *row = &f.m->cat.rows[i];
        const lq_linear *lin = row->slot.block >= 0 ? &f.m->layers[row->slot.block].lin[row->slot.role] : NULL;
        size_t n = (size_t)lq_row_elems(row), at = 0;
        float *w = LQ_NEWN(float, n), *decoded = LQ_NEWN(float, n), *stored = LQ_NEWN(float, n), scale = 0;
        OK(&f, lq_model_read_f32(&f.ctx, f.m, row, w));
        OK(&f, lq_model_read_stored(&f.ctx, f.m, row, stored));
        assert_memory_equal(w, stored, n * 4);
        if (row->linear && lin) {
            assert_non_null(lin->q);
            assert_int_equal(lin->q->sch.act.dtype, LQ_I8);
            for (uint32_t r = 0; r < lin->rows; r++) lq_qtensor_decode_row(lin->q, r, decoded + (size_t)r * lin->cols);
            for (at = 0; at < n; at++) {
                if (w[at] != 0 && scale == 0) scale = fabsf(w[at]);
                assert_true(w[at] == decoded[at] && (w[at] == 0 || fabsf(w[at]) == scale));
            }
        } else {
            assert_true(!row->linear || !f.m->outer.lin[row->slot.role].q);
        }
        lq_free(w), lq_free(decoded), lq_free(stored);
    }
    close_golden(&f);
    close_golden(&plain);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_setting_moves_the_logits),
        cmocka_unit_test(what_is_not_the_text_tower_is_read_as_it_is_stored),
        cmocka_unit_test(master_weights_are_read_as_they_run),
        cmocka_unit_test(stored_gains_are_read_as_they_are_and_run_as_one_more),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
