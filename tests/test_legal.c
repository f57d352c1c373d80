/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The constraint table: every rule fires on what it speaks of and says so; what is refused comes with settings that load. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "calib/corpus.h"
#include "quant/legal.h"

#include <string.h>

enum { ROWS = 4 };
typedef struct model {
    lq_row rows[ROWS];
    lq_catalog cat;
    lq_legal_case c;
    char arch[32];
} model;

/* A block of q and k (fused), down and one expert; hidden x ffn. */
static void build(model *m, const char *format, const char *type, const char *arch, uint32_t hidden, uint32_t ffn) {
    static const lq_role roles[ROWS] = {LQ_R_Q, LQ_R_K, LQ_R_DOWN, LQ_R_EXPERT_UP};
    static const char *const names[ROWS] = {"q.weight", "k.weight", "down.weight", "expert.up.weight"};
    lq_want w = {.keep = true};
    lq_type_defaults d = {.group = 128};
    if (type) assert_int_equal(lq_type_parse(NULL, type, &d, &w), LQ_OK);
    *m = (model){.cat = {.rows = m->rows, .n = ROWS, .n_blocks = 1}};
    for (int i = 0; i < ROWS; i++)
        m->rows[i] = (lq_row){.slot = {0, (uint16_t)roles[i], (int16_t)(i == 3 ? 0 : -1)}, .name = names[i], .dtype = LQ_F32, .out_dtype = LQ_F32, .ndim = 2, .linear = true,
                              .shape = {i == 3 ? ffn : hidden, i == 2 ? ffn : hidden}, .fuse = i < 2 ? 0 : -1, .stage = 0, .quantize = !w.keep, .scheme = w.scheme};
    char *kind = strchr(strcpy(m->arch, arch), ':'); /* "llama:dense": no experts; ":mixed": of two types; ":window": one shorter than the context; ":experts": these of another type */
    if (kind) *kind++ = 0;
    bool experts = kind && !strcmp(kind, "experts");
    if (experts) m->rows[3].scheme.scale.tile_r = 1, m->rows[3].scheme.act = (lq_act){.kind = LQ_ACT_DYNAMIC, .dtype = LQ_E4M3};
    else if (kind) m->rows[3].slot = (lq_slot){1, LQ_R_UP, -1};
    if (kind && !strcmp(kind, "mixed")) m->rows[3].scheme.grid.bits = 8, m->rows[3].scheme.grid.bias = 128;
    m->c = (lq_legal_case){&m->cat, format, m->arch, 32, 8, kind && !strcmp(kind, "window") ? 4096 : 0};
}

typedef struct bad { lq_runtime rt; uint32_t tp; const char *format, *type, *arch; uint32_t hidden, ffn; const char *says; } bad;
static const bad bads[] = {
    {LQ_RT_VLLM, 64, "gptq", "int4", "llama", 4096, 8192, "tp divides the heads"},
    {LQ_RT_VLLM, 1, "gptq", "int3", "llama", 4096, 8192, "4 or 8 bits, symmetric"},
    {LQ_RT_VLLM, 1, "gptq_v2", "int4-asym", "llama", 4096, 8192, "4 or 8 bits, symmetric"},
    {LQ_RT_VLLM, 1, "gptq", "int4-g16", "llama", 4096, 8192, "groups of 32, 64 or 128"},
    {LQ_RT_VLLM, 32, "gptq", "int4-row", "llama", 4128, 8192, "whole words of 32 bits"},
    {LQ_RT_VLLM, 4, "gptq", "int4-g128", "qwen2", 8192, 29568, "a group lies on one device"}, /* Qwen2-72B: 29568 / 4 = 7392 = 57.75 x 128 */
    {LQ_RT_VLLM, 1, "awq", "int8-asym", "llama", 4096, 8192, "4 bits"},
    {LQ_RT_VLLM, 32, "awq", "int4-asym-g32", "llama", 4128, 8192, "whole words of 8 codes"},
    {LQ_RT_VLLM, 1, "compressed-tensors", "int8-asym", "llama", 4096, 8192, "weights alone: 4 bits"},
    {LQ_RT_VLLM, 1, "compressed-tensors", "int4-g256", "llama", 4096, 8192, "weights alone: groups"},
    {LQ_RT_VLLM, 1, "compressed-tensors", "W4A8", "llama", 4096, 8192, "integer activations"},
    {LQ_RT_VLLM, 1, "compressed-tensors", "W4AFP8-g64", "llama", 4096, 8192, "groups of 128, on Hopper"},
    {LQ_RT_VLLM, 32, "compressed-tensors", "int4-asym-row", "llama", 4128, 8192, "zero points of a device"},
    {LQ_RT_VLLM, 2, "fp8", "FP8-block", "llama", 4096, 8320, "blocks of 128 x 128 divide"},
    {LQ_RT_VLLM, 1, "fp8", "FP8-block", "llama", 576, 8192, "blocks of 128 x 128 divide"},
    {LQ_RT_VLLM, 1, "modelopt", "int4", "llama", 4096, 8192, "no W4A16_AWQ"},
    {LQ_RT_VLLM, 1, "modelopt", "FP8-tensor-static", "mixtral:experts", 4096, 8192, "experts in a mixture"},
    {LQ_RT_VLLM, 8, "safetensors", "bf16", "llama", 4096, 8196, "tp divides a matrix"},
    {LQ_RT_VLLM, 1, "safetensors", "bf16", "bitnet", 4096, 8192, "no BitNet architecture"},
    {LQ_RT_VLLM, 1, "bitsandbytes", "NF4", "llama", 4096, 8192, "vllm-bnb-plugin"},
    {LQ_RT_VLLM, 1, "gguf", "int4", "llama", 4096, 8192, "vllm-gguf-plugin"},
    {LQ_RT_VLLM, 1, "bitnet", "ternary", "llama", 4096, 8192, "no loader"},
    {LQ_RT_VLLM, 1, "squeezellm", "lut4", "llama", 4096, 8192, "removed in 2024"},
    {LQ_RT_VLLM, 1, "mlx", "int4", "llama", 4096, 8192, "no loader"},
    {LQ_RT_VLLM, 1, "lqt", "int4", "llama", 4096, 8192, "own file"},
    {LQ_RT_GPTQMODEL, 1, "gptq", "int4", "phi3", 4096, 8192, "splits gate_up_proj"},
    {LQ_RT_GPTQMODEL, 1, "gptq", "int4", "mixtral", 4096, 8192, "experts.E.gate_proj"},
    {LQ_RT_GPTQMODEL, 1, "gptq", "int4", "qwen2_vl", 4096, 8192, "language_model"},
    {LQ_RT_GPTQMODEL, 1, "gptq", "int4-g96", "llama", 4096, 8192, "groups of 16, 32 ... 1024"},
    {LQ_RT_GPTQMODEL, 1, "awq", "int4-asym-g256", "llama", 4096, 8192, "groups of 32, 64 or 128"},
    {LQ_RT_GPTQMODEL, 1, "fp8", "FP8-block", "llama", 4096, 8192, "GPTQ and AWQ"},
    {LQ_RT_GPTQMODEL, 1, "lqt", "int4", "llama", 4096, 8192, "own file"},
    {LQ_RT_TRANSFORMERS, 1, "gptq", "int4", "olmoe", 4096, 8192, "experts stay floats"},
    {LQ_RT_TRANSFORMERS, 1, "bitsandbytes", "NF4", "mixtral", 4096, 8192, "experts stay floats"},
    {LQ_RT_TRANSFORMERS, 1, "gptq", "int4", "gpt2:dense", 4096, 8192, "no Conv1D"},
    {LQ_RT_TRANSFORMERS, 1, "gptq", "int4", "falcon:dense", 4096, 8192, "stay random"},
    {LQ_RT_TRANSFORMERS, 1, "bitsandbytes", "NF4", "falcon:dense", 4096, 8192, "own linear class"},
    {LQ_RT_TRANSFORMERS, 1, "bitnet", "b1.58", "gpt2:dense", 4096, 8192, "no Conv1D"},
    {LQ_RT_TRANSFORMERS, 1, "compressed-tensors", "int4-asym", "llama:dense", 4096, 8192, "weights alone: symmetric"},
    {LQ_RT_TRANSFORMERS, 1, "compressed-tensors", "W8A8", "mixtral", 4096, 8192, "no experts with integers and rounded activations"},
    {LQ_RT_TRANSFORMERS, 1, "compressed-tensors", "int4", "gpt2:dense", 4096, 8192, "no Conv1D"},
    {LQ_RT_TRANSFORMERS, 1, "gptq", "int4-g96", "llama:dense", 4096, 8192, "groups of 16, 32 ... 1024"},
    {LQ_RT_TRANSFORMERS, 1, "awq", "int4-asym-g256", "llama:dense", 4096, 8192, "groups of 32, 64 or 128"},
    {LQ_RT_TRANSFORMERS, 1, "gptq", "int4", "llama:mixed", 4096, 8192, "one width and group size"},
    {LQ_RT_TRANSFORMERS, 1, "fp8", "FP8-tensor", "llama", 4096, 8192, "blocks of 128 x 128"},
    {LQ_RT_TRANSFORMERS, 1, "fp8", "FP8-block", "llama", 576, 8192, "128 divides both sides"},
    {LQ_RT_TRANSFORMERS, 1, "gguf", "int4", "olmoe", 4096, 8192, "no such GGUF"},
    {LQ_RT_TRANSFORMERS, 1, "modelopt", "FP8", "llama", 4096, 8192, "no quantizer"},
    {LQ_RT_TRANSFORMERS, 1, "squeezellm", "lut4", "llama", 4096, 8192, "no quantizer"},
    {LQ_RT_TRANSFORMERS, 1, "mlx", "int4", "llama", 4096, 8192, "no quantizer"},
    {LQ_RT_TRANSFORMERS, 1, "lqt", "int4", "llama", 4096, 8192, "own file"},
    {LQ_RT_LLAMA_CPP, 1, "gguf", "int4", "opt", 4096, 8192, "no OPT architecture"},
    {LQ_RT_LLAMA_CPP, 1, "gguf", "Q4_K", "mistral:window", 4096, 8192, "no sliding window of theirs"},
    {LQ_RT_LLAMA_CPP, 1, "gptq", "int4", "llama", 4096, 8192, "reads GGUF alone"},
    {LQ_RT_TRTLLM, 64, "fp8", "FP8-block", "llama", 4096, 8192, "tp divides the heads"},
    {LQ_RT_TRTLLM, 1, "gptq", "int4-g32", "llama", 4096, 8192, "groups of 64 or 128"},
    {LQ_RT_TRTLLM, 1, "fp8", "FP8-tensor", "llama", 4096, 8192, "blocks of 128 x 128"},
    {LQ_RT_TRTLLM, 1, "compressed-tensors", "int4", "llama", 4096, 8192, "no integers"},
    {LQ_RT_TRTLLM, 1, "compressed-tensors", "FP8-tensor", "llama", 4096, 8192, "FP8: dynamic activations"},
    {LQ_RT_TRTLLM, 1, "modelopt", "FP8", "gpt2", 4096, 8192, "no such architecture"},
    {LQ_RT_TRTLLM, 4, "modelopt", "int4-g128", "qwen2", 8192, 29568, "a group lies on one device"},
    {LQ_RT_TRTLLM, 2, "fp8", "FP8-block", "llama", 4096, 8320, "blocks of 128 x 128 divide"},
    {LQ_RT_TRTLLM, 8, "modelopt", "FP8-tensor", "llama", 4096, 8196, "tp divides a matrix"},
    {LQ_RT_TRTLLM, 1, "awq", "int4-asym", "llama", 4096, 8192, "no loader"},
    {LQ_RT_TRTLLM, 1, "lqt", "int4", "llama", 4096, 8192, "own file"},
    {LQ_RT_MLX, 1, "awq", "int4-asym-g16", "llama", 4096, 8192, "groups of 32, 64 or 128"},
    {LQ_RT_MLX, 1, "mlx", "int4-g256", "llama", 4096, 8192, "groups of 32, 64 or 128"},
    {LQ_RT_MLX, 1, "awq", "int8-asym", "llama", 4096, 8192, "4 bits"},
    {LQ_RT_MLX, 1, "modelopt", "NVFP4", "llama", 4096, 8192, "weights alone"},
    {LQ_RT_MLX, 1, "mlx", "int4", "opt", 4096, 8192, "no such architecture"},
    {LQ_RT_MLX, 1, "gptq", "int4", "llama", 4096, 8192, "g_idx"},
    {LQ_RT_MLX, 1, "compressed-tensors", "int4", "llama", 4096, 8192, "tensors' names"},
    {LQ_RT_MLX, 1, "bitsandbytes", "NF4", "llama", 4096, 8192, "no loader"},
    {LQ_RT_MLX, 1, "lqt", "int4", "llama", 4096, 8192, "own file"},
};

static void every_rule_refuses_what_it_speaks_of(void **state) {
    (void)state;
    bool fired[128] = {false};
    size_t n_rules = 0;
    while (lq_rules[n_rules].says) n_rules++;
    assert_true(n_rules < 128);
    for (size_t i = 0; i < sizeof bads / sizeof *bads; i++) {
        const bad *b = &bads[i];
        model m;
        lq_breach found;
        lq_ctx ctx = {0};
        build(&m, b->format, b->type, b->arch, b->hidden, b->ffn);
        if (!lq_legal_breach(&m.c, (lq_deploy){b->rt, b->tp}, &found)) fail_msg("row %zu: %s %s is taken for legal", i, b->format, b->type);
        if (!strstr(found.rule->says, b->says)) fail_msg("row %zu: '%s', expected '%s'", i, found.rule->says, b->says);
        fired[found.rule - lq_rules] = true;
        lq_targets t = {.v = {{b->rt, b->tp}}, .n = 1};
        assert_int_equal(lq_legal_check(&ctx, &m.c, &t), LQ_ERR_UNSUPPORTED);
        assert_non_null(strstr(ctx.msg, b->says));
    }
    for (size_t i = 0; i < n_rules; i++)
        if (!fired[i] && lq_rules[i].scope != LQ_OF_FUSED && lq_rules[i].scope != LQ_OF_EXPERTS)
            fail_msg("nothing here breaks rule %zu: %s of %s: %s", i, lq_runtimes[lq_rules[i].runtime].name, lq_rules[i].formats, lq_rules[i].says);
}

static void what_runs_as_one_matrix_is_of_one_type(void **state) {
    (void)state;
    for (int rt = 0; rt < LQ_RUNTIMES; rt++)
        for (int kept = 0; kept < 2; kept++) {
            if (!lq_runtimes[rt].tp) continue;
            model m;
            lq_breach b;
            lq_want w;
            lq_type_defaults d = {.group = 128};
            assert_int_equal(lq_type_parse(NULL, "int8", &d, &w), LQ_OK);
            build(&m, rt == LQ_RT_VLLM ? "gptq" : "safetensors", rt == LQ_RT_VLLM ? "int4" : "bf16", "llama", 4096, 8192);
            assert_false(lq_legal_breach(&m.c, (lq_deploy){(lq_runtime)rt, 1}, &b));
            if (kept) m.rows[1].quantize = false;
            else m.rows[1].scheme = w.scheme;
            assert_true(lq_legal_breach(&m.c, (lq_deploy){(lq_runtime)rt, 1}, &b));
            assert_int_equal(b.rule->scope, LQ_OF_FUSED);
            m.rows[1] = m.rows[0];
            m.rows[1].slot.role = LQ_R_EXPERT_DOWN;
            m.rows[1].fuse = -1;
            m.rows[1].quantize = !kept;
            if (!kept) m.rows[1].scheme = w.scheme;
            assert_true(lq_legal_breach(&m.c, (lq_deploy){(lq_runtime)rt, 1}, &b));
            assert_int_equal(b.rule->scope, LQ_OF_EXPERTS);
        }
}

typedef struct good { lq_runtime rt; uint32_t tp; const char *format, *type, *arch; uint32_t hidden, ffn; } good;
static const good goods[] = {
    {LQ_RT_VLLM, 1, "gptq", "int4-g128", "llama", 4096, 14336},
    {LQ_RT_VLLM, 8, "gptq", "int4-g128", "llama", 4096, 14336}, /* 14336 / 8 = 14 x 128 */
    {LQ_RT_VLLM, 4, "gptq", "int4-g32", "qwen2", 8192, 29568},
    {LQ_RT_VLLM, 8, "gptq", "int8-row", "llama", 8192, 28672},
    {LQ_RT_VLLM, 1, "gptq", "int4-g64", "llama", 576, 1536}, /* no multiple of marlin's tile: padded since 0.30 */
    {LQ_RT_VLLM, 2, "awq", "int4-asym-g64", "llama", 4096, 14336},
    {LQ_RT_VLLM, 2, "compressed-tensors", "int4-asym-g64", "llama", 4096, 14336},
    {LQ_RT_VLLM, 2, "compressed-tensors", "W8A8-row", "llama", 4096, 14336},
    {LQ_RT_VLLM, 2, "compressed-tensors", "FP8", "llama", 4096, 14336},
    {LQ_RT_VLLM, 2, "fp8", "FP8-block", "llama", 4096, 14336},
    {LQ_RT_TRANSFORMERS, 1, "gptq", "int3-asym-g64", "phi3:dense", 4096, 14336},
    {LQ_RT_TRANSFORMERS, 1, "bitsandbytes", "NF4", "llama:dense", 4096, 14336},
    {LQ_RT_GPTQMODEL, 1, "gptq", "int4", "qwen2_moe", 4096, 14336},
    {LQ_RT_GPTQMODEL, 1, "gptq", "int4", "llama:mixed", 4096, 14336},
    {LQ_RT_LLAMA_CPP, 1, "gguf", "int4", "llama", 4096, 14336},
    {LQ_RT_LLAMA_CPP, 1, "gguf", "int4", "mistral", 4096, 14336},
    {LQ_RT_TRTLLM, 8, "modelopt", "FP8-tensor", "llama", 8192, 28672},
    {LQ_RT_MLX, 1, "mlx", "int8-asym-g64", "qwen3", 4096, 14336},
};

static void what_loads_is_not_refused(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof goods / sizeof *goods; i++) {
        const good *g = &goods[i];
        model m;
        lq_breach b;
        build(&m, g->format, g->type, g->arch, g->hidden, g->ffn);
        if (lq_legal_breach(&m.c, (lq_deploy){g->rt, g->tp}, &b)) fail_msg("%s %s: refused: %s", g->format, g->type, b.rule->says);
    }
}

/* -- planning -------------------------------------------------------------------------------------------------------- */

static lq_status plan(lq_ctx *ctx, model *m, lq_plan_opts *o, const char *format, const char *target, lq_plan *p) {
    lq_strlist texts = {.v = &target, .n = 1};
    lq_targets t;
    assert_int_equal(lq_targets_parse(ctx, &texts, &t), LQ_OK);
    lq_legal_run run = {o, lq_method_by_name("rtn"), &(char[64]){0}, lq_format_by_name(format), &t};
    m->c.format = format;
    return lq_legal_plan(ctx, &run, &m->c, p);
}

static void an_open_group_size_is_chosen_for_the_target(void **state) {
    (void)state;
    model m;
    lq_plan p;
    lq_ctx ctx = {0};
    lq_plan_opts o = {.bits = 4};
    build(&m, "gptq", NULL, "qwen2", 8192, 29568);
    assert_int_equal(plan(&ctx, &m, &o, "gptq", "vllm", &p), LQ_OK);
    assert_int_equal(p.group, 128);
    assert_int_equal(plan(&ctx, &m, &o, "gptq", "vllm,tp=4", &p), LQ_OK);
    assert_int_equal(p.group, 32);
}

static void a_refusal_names_settings_that_load(void **state) {
    (void)state;
    model m;
    lq_plan p;
    lq_ctx ctx = {0};
    lq_plan_opts o = {.bits = 4, .group = 128};
    build(&m, "gptq", NULL, "qwen2", 8192, 29568);
    assert_int_equal(plan(&ctx, &m, &o, "gptq", "vllm,tp=4", &p), LQ_ERR_UNSUPPORTED);
    assert_non_null(strstr(ctx.msg, "down.weight"));
    assert_non_null(strstr(ctx.msg, "--group-size 32"));
    assert_non_null(strstr(ctx.msg, "tp=1"));
    o.group = 32;
    assert_int_equal(plan(&ctx, &m, &o, "gptq", "vllm,tp=4", &p), LQ_OK);
    o.bits = 3;
    assert_int_equal(plan(&ctx, &m, &o, "gptq", "vllm", &p), LQ_ERR_UNSUPPORTED);
    assert_non_null(strstr(ctx.msg, "--bits 4"));
    assert_int_equal(plan(&ctx, &m, &o, "lqt", "mlx", &p), LQ_ERR_UNSUPPORTED);
    o = (lq_plan_opts){.bits = 4, .scheme = "FP8-block"};
    build(&m, "fp8", NULL, "llama:dense", 576, 1536);
    assert_int_equal(plan(&ctx, &m, &o, "fp8", "transformers", &p), LQ_ERR_UNSUPPORTED);
    assert_non_null(strstr(ctx.msg, "--format compressed-tensors --scheme FP8"));
}

static void keep_unfit_keeps_what_a_target_cannot_load(void **state) {
    (void)state;
    model m;
    lq_plan p;
    lq_ctx ctx = {0};
    lq_plan_opts o = {.bits = 4, .group = 128, .keep_unfit = 1};
    build(&m, "gptq", NULL, "qwen2", 8192, 29568);
    assert_int_equal(plan(&ctx, &m, &o, "gptq", "vllm,tp=4", &p), LQ_OK);
    assert_int_equal(p.n_quantized, 3);
    assert_int_equal(p.n_kept, 1);
    assert_false(m.rows[2].quantize);
    assert_string_equal(m.rows[2].why_kept, "--keep-unfit");
    uint64_t bytes = 0;
    for (int i = 0; i < ROWS; i++) bytes += m.rows[i].quantize ? lq_scheme_bytes(&m.rows[i].scheme, lq_row_rows(&m.rows[i]), lq_row_cols(&m.rows[i])) : 0;
    assert_int_equal(p.bytes_quantized, bytes);
}

static void targets_are_names_with_tp(void **state) {
    (void)state;
    static const char *const wrong[] = {"vlm", "", "tp=2", "vllm,tp=0", "vllm,tp=x", "mlx,tp=2", "vllm,", "vllm,tp=2000"};
    const char *right[] = {"vllm,tp=4", "mlx,trtllm,tp=2"};
    lq_targets t;
    lq_strlist texts = {.v = right, .n = 2};
    assert_int_equal(lq_targets_parse(NULL, &texts, &t), LQ_OK);
    assert_int_equal(t.n, 3);
    assert_int_equal(t.v[0].runtime, LQ_RT_VLLM);
    assert_int_equal(t.v[0].tp, 4);
    assert_int_equal(t.v[1].runtime, LQ_RT_MLX);
    assert_int_equal(t.v[2].tp, 2);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const char *one = wrong[i];
        texts = (lq_strlist){.v = &one, .n = 1};
        assert_int_equal(lq_targets_parse(NULL, &texts, &t), LQ_ERR_USAGE);
    }
}

/* -- the README's table ---------------------------------------------------------------------------------------------- */

static void the_readme_says_what_the_table_says(void **state) {
    (void)state;
    lq_buf readme;
    assert_int_equal(lq_text_load(NULL, LQ_SOURCE_ROOT "/README.md", &readme), LQ_OK);
    for (const lq_format *const *f = lq_formats; *f; f++)
        for (int rt = 0; rt < LQ_RUNTIMES; rt++) {
            char cell[1024], head[80];
            const char *says = lq_legal_cell((lq_runtime)rt, (*f)->name, cell, sizeof cell);
            snprintf(head, sizeof head, "| %s | %s |", (*f)->name, lq_runtimes[rt].name);
            const char *line = strstr(readme.v, head), *end = line ? strchr(line, '\n') : NULL;
            if (!says != !line) fail_msg("README: a line '%s' is %s", head, line ? "there, but the runtime does not load the format" : "missing");
            if (!says) continue;
            char want[1100];
            int n = snprintf(want, sizeof want, "| %s |", says);
            if (end - line < n || memcmp(end - n, want, (size_t)n)) fail_msg("README: '%s' does not end with: %s", head, want);
        }
    for (const lq_rule *r = lq_rules; r->says; r++)
        if (!strcmp(r->formats, "*") && !strstr(readme.v, r->says)) fail_msg("README does not say of %s: %s", lq_runtimes[r->runtime].name, r->says);
    lq_buf_free(&readme);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_rule_refuses_what_it_speaks_of),
        cmocka_unit_test(what_runs_as_one_matrix_is_of_one_type),
        cmocka_unit_test(what_loads_is_not_refused),
        cmocka_unit_test(an_open_group_size_is_chosen_for_the_target),
        cmocka_unit_test(a_refusal_names_settings_that_load),
        cmocka_unit_test(keep_unfit_keeps_what_a_target_cannot_load),
        cmocka_unit_test(targets_are_names_with_tp),
        cmocka_unit_test(the_readme_says_what_the_table_says),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
