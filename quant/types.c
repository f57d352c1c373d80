/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The table of named schemes. Scales of integer grids are exact in F16 and BF16 (sig 8). Float formats: OCP MX 1.0, NVFP4,
 * bitsandbytes NF4/FP4; formats.md. The block types of GGUF, MXFP4 and NVFP4 among them: core/blocks.h. */
#include "quant/types.h"

#include "core/blocks.h"

#include <stdio.h>
#include <string.h>

#define SCALES(t) {.dtype = LQ_F16, .sig = 8, .tile_r = 1, .tile_c = (t)}
#define INT_GRID(b) {.kind = LQ_GRID_INT, .bits = (b), .vec = 1, .bias = 1 << ((b) - 1)}
#define INT(b) {.grid = INT_GRID(b), .scale = SCALES(128)}
#define INT_ROW_ACT(b, tile, ...) {.grid = INT_GRID(b), .scale = SCALES(tile), .act = {__VA_ARGS__}}
#define MLX(b) {.grid = {.kind = LQ_GRID_INT, .bits = (b), .vec = 1}, .zero_kind = LQ_ZERO_MIN, .scale = SCALES(64), .zero = SCALES(64)}
#define TABLE(b, id) {.kind = LQ_GRID_LUT, .bits = (b), .vec = 1, .bias = (id)}
#define FLAT64 {.dtype = LQ_F32, .tile_r = LQ_FLAT, .tile_c = 64}
#define FLAT64_DQ {.dtype = LQ_U8, .tile_r = LQ_FLAT, .tile_c = 64, .parent = LQ_F32, .span = 256}
#define E4M3 {.kind = LQ_GRID_E4M3, .bits = 8, .vec = 1}
#define F32_SCALES(r, c) {.dtype = LQ_F32, .tile_r = (r), .tile_c = (c)}
#define COMPUTED(form, r) {.dtype = LQ_F32, .sig = (form), .tile_r = (r)}
#define ROW_LUT(b) {.grid = TABLE(b, LQ_LUT_DATA), .extra = LQ_X_LUT_PER_ROW}
enum { G = LQ_TYPE_GROUP, GS = LQ_TYPE_GROUP | LQ_TYPE_SYM, GSA = GS | LQ_TYPE_ACT };
#define DYN .kind = LQ_ACT_DYNAMIC, .dtype

const lq_type lq_types[] = {
    {"keep", "as the input has it", 0, true, {{0}, 0, {0}, {0}, {0}, 0, 0, 0}},
    {"int2", "2-bit integers", GS, false, INT(2)},
    {"int3", "3-bit integers", GS, false, INT(3)},
    {"int4", "4-bit integers", GS, false, INT(4)},
    {"int5", "5-bit integers", GS, false, INT(5)},
    {"int6", "6-bit integers", GS, false, INT(6)},
    {"int8", "8-bit integers", GS, false, INT(8)},
    {"W2A16", "int2 under vLLM's naming", GS, false, INT(2)},
    {"W3A16", "int3 under vLLM's naming", GS, false, INT(3)},
    {"W4A16", "int4 under vLLM's naming", GS, false, INT(4)},
    {"W8A16", "int8 under vLLM's naming", GS, false, INT(8)},
    {"W8A8", "8-bit weights per row, 8-bit activations per token", GSA, false, INT_ROW_ACT(8, 0, DYN = LQ_I8)},
    {"W4A8", "4-bit weights, 8-bit activations per token", GSA, false, INT_ROW_ACT(4, 128, DYN = LQ_I8)},
    {"W4AFP8", "4-bit weights, E4M3 activations per token", G, false, INT_ROW_ACT(4, 128, DYN = LQ_E4M3)},
    {"mlx2", "2-bit integers of MLX: a scale and a bias per group", G, false, MLX(2)},
    {"mlx3", "3-bit integers of MLX: a scale and a bias per group", G, false, MLX(3)},
    {"mlx4", "4-bit integers of MLX: a scale and a bias per group", G, false, MLX(4)},
    {"mlx5", "5-bit integers of MLX: a scale and a bias per group", G, false, MLX(5)},
    {"mlx6", "6-bit integers of MLX: a scale and a bias per group", G, false, MLX(6)},
    {"mlx8", "8-bit integers of MLX: a scale and a bias per group", G, false, MLX(8)},
    {"INT8", "LLM.int8: W8A8 with outlier activations apart", 0, false,
     {.grid = {.kind = LQ_GRID_INT, .bits = 8, .vec = 1, .bias = 128}, .scale = COMPUTED(LQ_SIG_127TH, 1), .act = {DYN = LQ_I8, .outlier = 6, .scope = 1}}},
    {"NF4", "bitsandbytes NormalFloat, blocks of 64", G, false, {.grid = TABLE(4, LQ_LUT_NF4), .scale = FLAT64}},
    {"NF4-DQ", "NF4 with 8-bit block scales", G, false, {.grid = TABLE(4, LQ_LUT_NF4), .scale = FLAT64_DQ}},
    {"FP4", "bitsandbytes 4-bit floats, blocks of 64", G, false, {.grid = TABLE(4, LQ_LUT_FP4), .scale = FLAT64}},
    {"FP4-DQ", "FP4 with 8-bit block scales", G, false, {.grid = TABLE(4, LQ_LUT_FP4), .scale = FLAT64_DQ}},
    {"FP8", "E4M3 per row, E4M3 activations per token", LQ_TYPE_ACT, false, {.grid = E4M3, .scale = F32_SCALES(1, 0), .act = {DYN = LQ_E4M3}}},
    {"FP8-tensor", "E4M3, one scale; E4M3 activations per token", LQ_TYPE_ACT, false, {.grid = E4M3, .scale = F32_SCALES(0, 0), .act = {DYN = LQ_E4M3}}},
    {"FP8-block", "E4M3 in 128 x 128 blocks, activations in 128s", 0, false,
     {.grid = E4M3, .scale = F32_SCALES(128, 128), .act = {DYN = LQ_E4M3, .tile = 128}}},
    {"FP8-W", "E4M3 per row, weights only", 0, false, {.grid = E4M3, .scale = F32_SCALES(1, 0)}},
#define X(name, what, ...) {#name, what, 0, false, {__VA_ARGS__}},
    LQ_BLOCK_LIST(X)
#undef X
    {"ternary", "-1, 0, 1", G, false, {.grid = {.kind = LQ_GRID_INT, .bits = 2, .vec = 1, .bias = 1}, .scale = SCALES(128)}},
    {"b1.58", "BitNet: ternary, one scale; 8-bit activations per token", 0, false,
     {.grid = {.kind = LQ_GRID_INT, .bits = 2, .vec = 1, .bias = 1}, .scale = COMPUTED(LQ_SIG_INVERSE, 0), .act = {DYN = LQ_I8, .scope = LQ_ACT_BITNET}}},
    {"binary", "-1, 1", G, false, {.grid = TABLE(1, LQ_LUT_SIGN), .scale = SCALES(128)}},
    {"lut2", "4 values chosen for each row", 0, false, ROW_LUT(2)},
    {"lut3", "8 values chosen for each row", 0, false, ROW_LUT(3)},
    {"lut4", "16 values chosen for each row", 0, false, ROW_LUT(4)},
    {"float", "the input's own float type, changed by the method", LQ_TYPE_SOURCE, false, {.grid = {.kind = LQ_GRID_F32, .bits = 32, .vec = 1}}},
    {"f16", "F16, changed by the method", 0, false, {.grid = {.kind = LQ_GRID_F16, .bits = 16, .vec = 1}}},
    {"bf16", "BF16, changed by the method", 0, false, {.grid = {.kind = LQ_GRID_BF16, .bits = 16, .vec = 1}}},
    {"f32", "F32, changed by the method", 0, false, {.grid = {.kind = LQ_GRID_F32, .bits = 32, .vec = 1}}},
    {0}};

void lq_want_group(lq_want *w, int64_t group) {
    uint32_t tile = group > 0 ? (uint32_t)group : 0;
    w->open = false;
    if (!(w->knobs & LQ_TYPE_GROUP)) return;
    if (w->scheme.scale.tile_r == LQ_FLAT && !tile) w->scheme.scale.tile_r = 1;
    w->scheme.scale.tile_c = tile;
    if (w->scheme.zero_kind != LQ_ZERO_NONE) w->scheme.zero.tile_c = tile;
}

int64_t lq_scheme_group(const lq_scheme *s) {
    if (s->scale.dtype == LQ_NONE || s->scale.tile_r != 1) return 0;
    return s->scale.tile_c ? (int64_t)s->scale.tile_c : -1;
}

static void set_asym(lq_scheme *s, lq_dtype zero) {
    s->grid.bias = zero == LQ_NONE ? 1 << (s->grid.bits - 1) : 0;
    s->zero_kind = zero == LQ_NONE ? LQ_ZERO_NONE : LQ_ZERO_CODE;
    s->zero = (lq_plane_desc){0};
    if (zero != LQ_NONE) s->zero = (lq_plane_desc){.dtype = zero, .tile_r = s->scale.tile_r, .tile_c = s->scale.tile_c};
}

/* The longest name that is text or stands before a '-': "NF4-DQ-g128" is NF4-DQ. */
static const lq_type *named(const char *text) {
    const lq_type *best = NULL;
    for (const lq_type *t = lq_types; t->name; t++) {
        size_t n = strlen(t->name);
        if (!strncmp(text, t->name, n) && (!text[n] || text[n] == '-') && (!best || n > strlen(best->name))) best = t;
    }
    return best;
}

static bool suffix(lq_want *w, const char *part) {
    unsigned g;
    char tail;
    lq_scheme *s = &w->scheme;
    if (w->knobs & LQ_TYPE_SYM && !strcmp(part, "sym")) set_asym(s, LQ_NONE);
    else if (w->knobs & LQ_TYPE_SYM && !strcmp(part, "asym")) set_asym(s, LQ_U8);
    else if (w->knobs & LQ_TYPE_SYM && !strcmp(part, "fz")) set_asym(s, LQ_F16);
    else if (w->knobs & LQ_TYPE_ACT && !strcmp(part, "static")) s->act.kind = LQ_ACT_STATIC;
    else if (w->knobs & LQ_TYPE_GROUP && !strcmp(part, "row")) lq_want_group(w, -1);
    else if (w->knobs & LQ_TYPE_GROUP && !strcmp(part, "tensor")) s->scale.tile_r = s->scale.tile_c = 0, w->open = false;
    else if (w->knobs & LQ_TYPE_GROUP && sscanf(part, "g%u%c", &g, &tail) == 1 && g > 0) lq_want_group(w, g);
    else return false;
    return true;
}

lq_status lq_type_parse(lq_ctx *ctx, const char *text, const lq_type_defaults *d, lq_want *out) {
    const lq_type *t = named(text);
    if (!t) return lq_fail(ctx, LQ_ERR_USAGE, "unknown type '%s'; lquant list types prints the known ones", text);
    *out = (lq_want){.keep = t->keep, .knobs = t->knobs, .scheme = t->scheme};
    bool group_scales = t->scheme.scale.tile_r == 1 && t->scheme.scale.tile_c;
    if (t->knobs & LQ_TYPE_SYM && d->asym) set_asym(&out->scheme, LQ_U8);
    if (d->f16_scales && out->scheme.scale.dtype == LQ_F16) out->scheme.scale.sig = 0;
    if (t->knobs & LQ_TYPE_GROUP && d->group) lq_want_group(out, d->group);
    else out->open = t->knobs & LQ_TYPE_GROUP && group_scales;
    for (const char *p = text + strlen(t->name); *p;) {
        size_t len = strcspn(++p, "-");
        char part[16] = "";
        if (len < sizeof part) memcpy(part, p, len);
        if (!suffix(out, part)) return lq_fail(ctx, LQ_ERR_USAGE, "type '%s': %s takes no '%.*s'", text, t->name, (int)len, p);
        p += len;
    }
    return LQ_OK;
}
