/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The LayerNorm families: every field of their tables moves the golden logits (scripts/gen_golden_classic.py; that the logits are met
 * at all is tested in test_forward.c, which runs over the same folders); fused matrices, transposed ones, what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/golden_forward.h"

#include <stdlib.h>

#define P (f->m->par)
#define EACH(l) for (lq_layer *l = f->m->layers; l < f->m->layers + P.n_layers; l++)
static void off_offset(fixture *f) { P.pos_offset = 0; }
static void off_layernorm(fixture *f) { P.layernorm = false; }
static void off_post_norm(fixture *f) { P.post_norm = false; }
static void with_final_norm(fixture *f) { P.no_final_norm = false; }
static void off_final_norm(fixture *f) { P.no_final_norm = true; }
static void off_attn_scale(fixture *f) { P.attn_scale = 0; }
static void off_act(fixture *f) { P.act = LQ_ACTFN_SILU; }
static void off_parallel(fixture *f) { P.parallel = false; }
static void on_parallel(fixture *f) { P.parallel = true; }
static void off_one_norm(fixture *f) { P.one_norm = false; }
static void on_one_norm(fixture *f) { P.one_norm = true; }
static void off_partial(fixture *f) { P.rope.dim = P.head_dim; }
static void off_base(fixture *f) { P.rope.base *= 4; }
static void off_qk_norm(fixture *f) { P.qk_norm = false; }
static void off_eps(fixture *f) { P.norm_eps = 0.1f; }
static void off_tied(fixture *f) { /* the head becomes another matrix */
    P.tied = false;
    f->m->outer.lin[LQ_R_HEAD] = f->m->outer.lin[LQ_R_EMBED];
    float *w = f->m->outer.lin[LQ_R_HEAD].w;
    for (size_t i = 0; i < (size_t)P.vocab * lq_head_width(f->m); i++) w[i] = -w[i];
}
static void off_untied(fixture *f) { P.tied = true; }

static void off_q_bias(fixture *f) { EACH(l) l->lin[LQ_R_Q].bias = NULL; }
static void off_k_bias(fixture *f) { EACH(l) l->lin[LQ_R_K].bias = NULL; }
static void off_v_bias(fixture *f) { EACH(l) l->lin[LQ_R_V].bias = NULL; }
static void off_qkv_bias(fixture *f) { EACH(l) l->lin[LQ_R_QKV].bias = NULL; }
static void off_o_bias(fixture *f) { EACH(l) l->lin[LQ_R_O].bias = NULL; }
static void off_up_bias(fixture *f) { EACH(l) l->lin[LQ_R_UP].bias = NULL; }
static void off_down_bias(fixture *f) { EACH(l) l->lin[LQ_R_DOWN].bias = NULL; }
static void off_head_bias(fixture *f) { f->m->outer.lin[LQ_R_HEAD].bias = NULL; }
static void off_attn_shift(fixture *f) { EACH(l) l->shift[LQ_R_ATTN_NORM] = NULL; }
static void off_mlp_shift(fixture *f) { EACH(l) l->shift[LQ_R_MLP_NORM] = NULL; }
static void off_q_shift(fixture *f) { EACH(l) l->shift[LQ_R_Q_NORM] = NULL; }
static void off_k_gain(fixture *f) { EACH(l) l->norm[LQ_R_K_NORM] = NULL; }
static void off_final_shift(fixture *f) { f->m->outer.shift[LQ_R_FINAL_NORM] = NULL; }
static void off_attn_gain(fixture *f) { EACH(l) l->norm[LQ_R_ATTN_NORM] = NULL; }
static void off_mlp_gain(fixture *f) { EACH(l) l->norm[LQ_R_MLP_NORM] = NULL; }
static void off_final_gain(fixture *f) { f->m->outer.norm[LQ_R_FINAL_NORM] = NULL; }
static void off_positions(fixture *f) { memset(f->m->outer.lin[LQ_R_POS_EMBED].w, 0, (size_t)f->m->outer.lin[LQ_R_POS_EMBED].rows * f->m->outer.lin[LQ_R_POS_EMBED].cols * sizeof(float)); }
static void half_of(lq_linear *l) { memset(l->w, 0, (size_t)l->rows / 2 * l->cols * sizeof(float)); }
static void off_proj_in(fixture *f) { half_of(&f->m->outer.lin[LQ_R_PROJ_IN]); }
static void off_proj_out(fixture *f) { half_of(&f->m->outer.lin[LQ_R_PROJ_OUT]); }

/* The square matrix of o read as if it were stored like the others. */
static void off_transposed(fixture *f) {
    EACH(l) {
        lq_linear *o = &l->lin[LQ_R_O];
        float *w = o->w;
        for (uint32_t i = 0; i < o->rows; i++)
            for (uint32_t j = 0; j < i; j++) {
                float swap = w[i * o->cols + j];
                w[i * o->cols + j] = w[j * o->cols + i];
                w[j * o->cols + i] = swap;
            }
    }
}

/* Another way to take the parts of a fused matrix. */
static void other_split(fixture *f) {
    static lq_op block[LQ_MAX_OPS];
    static lq_arch arch;
    arch = *f->m->arch;
    for (size_t i = 0; i < LQ_MAX_OPS; i++) {
        block[i] = arch.block[i];
        if (block[i].kind == LQ_OP_SPLIT) block[i].kind = LQ_OP_SPLIT_HEADS;
        else if (block[i].kind == LQ_OP_SPLIT_HEADS) block[i].kind = LQ_OP_SPLIT;
        if (!block[i].kind) break;
    }
    arch.block = block;
    f->m->arch = &arch;
}

static const off_switch switches[] = {
    {"opt", off_offset, "position offset"},          {"opt", off_positions, "learned positions"},
    {"opt", off_layernorm, "layernorm"},             {"opt", off_act, "activation"},
    {"opt", off_q_bias, "q bias"},                   {"opt", off_v_bias, "v bias"},
    {"opt", off_o_bias, "o bias"},                   {"opt", off_up_bias, "up bias"},
    {"opt", off_down_bias, "down bias"},             {"opt", off_attn_shift, "attention norm's bias"},
    {"opt", off_mlp_shift, "mlp norm's bias"},       {"opt", off_final_shift, "final norm's bias"},
    {"opt", off_attn_gain, "attention norm's gain"}, {"opt", off_mlp_gain, "mlp norm's gain"},
    {"opt", off_final_gain, "final norm's gain"},    {"opt", off_final_norm, "final norm"},
    {"opt", off_tied, "tied head"},                  {"opt", off_eps, "eps"},
    {"opt_350m", off_post_norm, "post-norm"},        {"opt_350m", with_final_norm, "absence of a final norm"},
    {"opt_350m", off_proj_in, "project_in"},         {"opt_350m", off_proj_out, "project_out"},
    {"opt_350m", off_attn_shift, "attention norm's bias"}, {"opt_350m", off_mlp_gain, "mlp norm's gain"},
    {"opt_plain", off_untied, "untied head"},        {"opt_plain", off_act, "activation"},
    {"gpt2", off_positions, "learned positions"},    {"gpt2", off_transposed, "transposition"},
    {"gpt2", other_split, "split"},                  {"gpt2", off_qkv_bias, "qkv bias"},
    {"gpt2", off_act, "activation"},                 {"gpt2", off_o_bias, "o bias"},
    {"gpt2", off_tied, "tied head"},                 {"gpt2_bare", off_attn_scale, "unscaled attention"},
    {"gpt2_bare", off_untied, "untied head"},        {"gpt_neox", off_parallel, "parallel residual"},
    {"gpt_neox", off_mlp_gain, "second norm"},       {"gpt_neox", off_partial, "partial rotation"},
    {"gpt_neox", off_base, "rope base"},             {"gpt_neox", other_split, "split by heads"},
    {"gpt_neox", off_qkv_bias, "qkv bias"},          {"gpt_neox", off_mlp_shift, "mlp norm's bias"},
    {"gpt_neox", off_act, "activation"},             {"gpt_neox_serial", on_parallel, "serial residual"},
    {"gpt_neox_serial", off_partial, "partial rotation"}, {"gpt_neox_serial", off_base, "rope base"},
    {"gpt_neox_serial", off_up_bias, "up bias"},     {"falcon_7b", off_parallel, "parallel residual"},
    {"falcon_7b", off_attn_shift, "norm's bias"},    {"falcon_7b", off_tied, "tied head"},
    {"falcon_7b", off_act, "activation"},            {"falcon_40b", off_parallel, "parallel residual"},
    {"falcon_40b", on_one_norm, "second norm"},      {"falcon_40b", other_split, "split by groups"},
    {"falcon_40b", off_mlp_gain, "mlp norm's gain"}, {"falcon_40b", off_base, "rope base"},
    {"falcon_11b", off_one_norm, "one norm"},        {"falcon_11b", off_qkv_bias, "qkv bias"},
    {"falcon_11b", off_down_bias, "down bias"},      {"falcon_11b", off_base, "rope base"},
    {"falcon_serial", on_parallel, "serial residual"}, {"falcon_serial", other_split, "split by heads"},
    {"falcon_serial", off_mlp_shift, "mlp norm's bias"}, {"phi2", off_attn_shift, "norm's bias"},
    {"phi2", off_partial, "partial rotation"},        {"phi2", off_head_bias, "head bias"},
    {"phi2", off_k_bias, "k bias"},                   {"phi2", off_q_bias, "q bias"},
    {"phi2", off_act, "activation"},                  {"phi2", off_untied, "untied head"},
    {"phi2_qk", off_qk_norm, "q/k norms"},            {"phi2_qk", off_q_shift, "q norm's bias"},
    {"phi2_qk", off_k_gain, "k norm's gain"},         {"phi2_qk", off_partial, "partial rotation"},
};

static void every_field_moves_the_logits(void **state) {
    (void)state;
    try_switches(switches, sizeof switches / sizeof *switches);
}

/* ---- fused matrices ---- */

static const char *const fused[] = {"gpt2", "gpt_neox", "falcon_7b", "falcon_40b", "falcon_serial"};

static void the_parts_of_a_fused_matrix_cover_its_rows_once(void **state) {
    (void)state;
    static const lq_role parts[] = {LQ_R_Q, LQ_R_K, LQ_R_V};
    for (size_t v = 0; v < sizeof fused / sizeof *fused; v++) {
        fixture f;
        open_golden(&f, fused[v]);
        const lq_params *p = &f.m->par;
        uint8_t *seen = lq_alloc(lq_params_dim(p, LQ_DIM_QKV));
        for (size_t k = 0; k < 3; k++) {
            lq_op_kind how;
            assert_int_equal(lq_arch_holder(f.m->arch, p, parts[k], &how), LQ_R_QKV);
            for (uint32_t i = 0; i < lq_part_rows(p, parts[k]); i++) {
                uint32_t row = lq_split_row(p, how, parts[k], i);
                assert_true(row < lq_params_dim(p, LQ_DIM_QKV));
                assert_int_equal(seen[row]++, 0);
            }
        }
        for (uint32_t i = 0; i < lq_params_dim(p, LQ_DIM_QKV); i++) assert_int_equal(seen[i], 1);
        lq_free(seen);
        close_golden(&f);
    }
}

static void a_matrix_of_its_own_is_its_own_holder(void **state) {
    (void)state;
    fixture f;
    lq_op_kind how;
    open_golden(&f, "opt");
    assert_int_equal(lq_arch_holder(f.m->arch, &f.m->par, LQ_R_V, &how), LQ_R_V);
    assert_int_equal(how, LQ_OP_LINEAR);
    assert_int_equal(lq_split_row(&f.m->par, how, LQ_R_V, 7), 7);
    close_golden(&f);
}

/* Falcon 40B: two kv heads of two q heads each, head_dim 8: [q0 q1 k0 v0][q2 q3 k1 v1] */
static void rows_lie_where_falcon_has_them(void **state) {
    (void)state;
    fixture f;
    open_golden(&f, "falcon_40b");
    const lq_params *p = &f.m->par;
    assert_int_equal(lq_split_row(p, LQ_OP_SPLIT_HEADS, LQ_R_Q, 8 + 3), 8 + 3);
    assert_int_equal(lq_split_row(p, LQ_OP_SPLIT_HEADS, LQ_R_Q, 16), 32);
    assert_int_equal(lq_split_row(p, LQ_OP_SPLIT_HEADS, LQ_R_K, 5), 16 + 5);
    assert_int_equal(lq_split_row(p, LQ_OP_SPLIT_HEADS, LQ_R_V, 8 + 1), 56 + 1);
    assert_int_equal(lq_split_row(p, LQ_OP_SPLIT, LQ_R_V, 1), 32 + 16 + 1);
    close_golden(&f);
}

/* ---- stages ---- */

static void branches_of_one_norm_share_a_stage_but_not_a_fuse_group(void **state) {
    (void)state;
    fixture f;
    open_golden(&f, "phi2");
    static const struct { lq_role role; int stage, fuse; } want[] = {{LQ_R_Q, 0, 0}, {LQ_R_K, 0, 0}, {LQ_R_V, 0, 0}, {LQ_R_UP, 0, -1},
                                                                     {LQ_R_O, 1, -1}, {LQ_R_DOWN, 2, -1}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        const lq_row *r = lq_catalog_find(&f.m->cat, (lq_slot){1, (uint16_t)want[i].role, -1}, LQ_PART_WEIGHT);
        assert_int_equal(r->stage, want[i].stage);
        assert_int_equal(r->fuse, want[i].fuse);
    }
    close_golden(&f);
}

static void a_stage_of_a_post_norm_block_reads_the_stream(void **state) {
    (void)state;
    fixture f;
    int32_t stage[LQ_MAX_OPS];
    open_golden(&f, "opt_350m");
    uint32_t n = lq_arch_stages(f.m->arch, &f.m->par, 0, stage);
    int n_resid = 0;
    for (uint32_t i = 0; i < n; i++) n_resid += stage[i] >= 0 && f.m->arch->block[i].in[0] == T_RESID;
    assert_int_equal(n_resid, 4); /* q, k, v, fc1 */
    close_golden(&f);
}

/* ---- transposed matrices ---- */

static void a_transposed_matrix_is_read_as_rows_of_outputs(void **state) {
    (void)state;
    fixture f;
    open_golden(&f, "gpt2");
    const lq_row *r = lq_catalog_find(&f.m->cat, (lq_slot){0, LQ_R_UP, -1}, LQ_PART_WEIGHT);
    assert_true(r->transposed);
    assert_int_equal(lq_row_rows(r), 128);
    assert_int_equal(lq_row_cols(r), 32);
    assert_int_equal(lq_row_stored(r, 0), 32);
    assert_int_equal(f.src->entries[r->source].shape[0], 32);
    float *raw = LQ_NEWN(float, 128 * 32), *got = LQ_NEWN(float, 128 * 32), *stored = LQ_NEWN(float, 128 * 32);
    OK(&f, lq_source_read(&f.ctx, f.src, (size_t)r->source, 0, 32, raw));
    OK(&f, lq_model_read_f32(&f.ctx, f.m, r, got));
    OK(&f, lq_model_read_stored(&f.ctx, f.m, r, stored));
    assert_memory_equal(got, stored, 128 * 32 * sizeof *got);
    for (uint32_t i = 0; i < 128; i++)
        for (uint32_t j = 0; j < 32; j++) assert_true(got[i * 32 + j] == raw[j * 128 + i]);
    lq_free(raw), lq_free(got), lq_free(stored);
    close_golden(&f);
}

/* ---- what is refused ---- */

static void learned_positions_end(void **state) {
    (void)state;
    fixture f;
    lq_state *s;
    float *x = LQ_NEWN(float, 64);
    open_golden(&f, "opt");
    assert_int_equal(lq_state_new(&f.ctx, f.m, 49, &s), LQ_ERR_UNSUPPORTED);
    assert_non_null(strstr(f.ctx.msg, "learned positions for 48"));
    OK(&f, lq_embed(&f.ctx, f.m, f.ids, 1, 47, x));
    assert_int_equal(lq_embed(&f.ctx, f.m, f.ids, 1, 48, x), LQ_ERR_UNSUPPORTED);
    lq_free(x);
    close_golden(&f);
}

static const struct { const char *config; lq_status want; const char *says; } hostile[] = {
    {"{\"model_type\": \"falcon\", \"alibi\": true}", LQ_ERR_UNSUPPORTED, "alibi"},
    {"{\"model_type\": \"falcon\", \"num_ln_in_parallel_attn\": 3}", LQ_ERR_FORMAT, "num_ln_in_parallel_attn"},
    {"{\"model_type\": \"falcon\", \"num_ln_in_parallel_attn\": 2}", LQ_ERR_UNSUPPORTED, "num_ln_in_parallel_attn"},
    {"{\"model_type\": \"falcon\", \"new_decoder_architecture\": true, \"parallel_attn\": false}", LQ_ERR_UNSUPPORTED, "parallel_attn"},
    {"{\"model_type\": \"falcon\", \"activation\": \"quick_gelu\"}", LQ_ERR_UNSUPPORTED, "quick_gelu"},
    {"{\"model_type\": \"gpt2\", \"scale_attn_by_inverse_layer_idx\": true}", LQ_ERR_UNSUPPORTED, "scale_attn_by_inverse_layer_idx"},
    {"{\"model_type\": \"gpt2\", \"add_cross_attention\": true}", LQ_ERR_UNSUPPORTED, "add_cross_attention"},
    {"{\"model_type\": \"gpt2\", \"n_embd\": 0}", LQ_ERR_FORMAT, "n_embd"},
    {"{\"model_type\": \"gpt2\", \"n_positions\": -1}", LQ_ERR_FORMAT, "n_positions"},
    {"{\"model_type\": \"gpt_neox\", \"rotary_pct\": 0}", LQ_ERR_FORMAT, "partial_rotary_factor"},
    {"{\"model_type\": \"gpt_neox\", \"rotary_pct\": 1.5}", LQ_ERR_FORMAT, "partial_rotary_factor"},
    {"{\"model_type\": \"gpt_neox\", \"rotary_emb_base\": 0}", LQ_ERR_FORMAT, "rotary_emb_base"},
    {"{\"model_type\": \"gpt_neox\", \"use_parallel_residual\": 1}", LQ_ERR_FORMAT, "use_parallel_residual"},
    {"{\"model_type\": \"opt\", \"word_embed_proj_dim\": 0}", LQ_ERR_FORMAT, "word_embed_proj_dim"},
    {"{\"model_type\": \"opt\", \"do_layer_norm_before\": \"no\"}", LQ_ERR_FORMAT, "do_layer_norm_before"},
    {"{\"model_type\": \"phi\", \"layer_norm_eps\": -1}", LQ_ERR_FORMAT, "layer_norm_eps"},
    {"{\"model_type\": \"phi\", \"num_key_value_heads\": 5}", LQ_ERR_FORMAT, "num_key_value_heads"},
};

static void hostile_settings_are_refused_by_name(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        lq_ctx ctx = {0};
        lq_params p = {0};
        json_t *c = json_loads(hostile[i].config, 0, NULL);
        const lq_arch *a = lq_arch_by_model_type(json_string_value(json_object_get(c, "model_type")));
        assert_non_null(a);
        lq_status st = a->params_hf(&ctx, a, c, &p);
        if (st != hostile[i].want || !strstr(ctx.msg, hostile[i].says)) fail_msg("%s: status %d, '%s'", hostile[i].config, st, ctx.msg);
        lq_params_free(&p);
        json_decref(c);
    }
}

/* What transformers makes of an empty configuration. */
static void absent_keys_mean_what_transformers_makes_of_them(void **state) {
    (void)state;
    static const struct { const char *type; uint32_t hidden, ffn, layers, heads, kv, vocab, ctx, rot; lq_actfn act; bool tied; } want[] = {
        {"opt", 768, 3072, 12, 12, 12, 50272, 2048, 64, LQ_ACTFN_RELU, true},
        {"gpt2", 768, 3072, 12, 12, 12, 50257, 1024, 64, LQ_ACTFN_GELU_TANH, true},
        {"gpt_neox", 6144, 24576, 44, 64, 64, 50432, 2048, 24, LQ_ACTFN_GELU, false},
        {"falcon", 4544, 18176, 32, 71, 1, 65024, 2048, 64, LQ_ACTFN_GELU, true},
        {"phi", 2048, 8192, 24, 32, 32, 51200, 2048, 32, LQ_ACTFN_GELU_TANH, false},
    };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        lq_ctx ctx = {0};
        lq_params p = {0};
        json_t *empty = json_object();
        const lq_arch *a = lq_arch_by_model_type(want[i].type);
        assert_int_equal(a->params_hf(&ctx, a, empty, &p), LQ_OK);
        assert_int_equal(p.hidden, want[i].hidden);
        assert_int_equal(p.ffn, want[i].ffn);
        assert_int_equal(p.n_layers, want[i].layers);
        assert_int_equal(p.n_heads, want[i].heads);
        assert_int_equal(p.n_kv_heads, want[i].kv);
        assert_int_equal(p.vocab, want[i].vocab);
        assert_int_equal(p.max_ctx, want[i].ctx);
        assert_int_equal(p.rope.dim, want[i].rot);
        assert_int_equal(p.act, want[i].act);
        assert_int_equal(p.tied, want[i].tied);
        assert_true(p.layernorm && p.norm_eps == 1e-5f);
        lq_params_free(&p);
        json_decref(empty);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_field_moves_the_logits),
        cmocka_unit_test(the_parts_of_a_fused_matrix_cover_its_rows_once),
        cmocka_unit_test(a_matrix_of_its_own_is_its_own_holder),
        cmocka_unit_test(rows_lie_where_falcon_has_them),
        cmocka_unit_test(branches_of_one_norm_share_a_stage_but_not_a_fuse_group),
        cmocka_unit_test(a_stage_of_a_post_norm_block_reads_the_stream),
        cmocka_unit_test(a_transposed_matrix_is_read_as_rows_of_outputs),
        cmocka_unit_test(learned_positions_end),
        cmocka_unit_test(hostile_settings_are_refused_by_name),
        cmocka_unit_test(absent_keys_mean_what_transformers_makes_of_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
