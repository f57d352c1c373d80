/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Which scheme the values of each ggml block type are, so that quant/ can name it, formats/ write it and decode_row define it.
 * Source: ggml-common.h and the dequantize_row functions of ggml-quants.c (ggml, August 2026).
 *
 *   one level     F16 scales (MIN: the stored minimum with its sign turned); NVFP4's one F32 is a tensor of its own beside the blocks
 *   two levels    U8 or I8 scales under F16, `span` of them in a block of 256 weights; sig: bits a scale has in the block
 *
 * TQ1_0 stores three values; TQ2_0 and Q2_0 four, -1 0 1 2: two bits leave room for the fourth. The types that store points of a
 * lattice (IQ1_S ... IQ3_S) have no scheme: they are read as floats. */
#ifndef LQ_BLOCKS_H
#define LQ_BLOCKS_H
#include "core/qtensor.h"

#define LQ_B_INT(b, zero) {.kind = LQ_GRID_INT, .bits = (b), .vec = 1, .bias = (zero)}
#define LQ_B_LUT(b, id) {.kind = LQ_GRID_LUT, .bits = (b), .vec = 1, .bias = (id)}
#define LQ_B_E2M1 {.kind = LQ_GRID_E2M1, .bits = 4, .vec = 1}
#define LQ_B_ONE(type, tile) {.dtype = (type), .tile_r = 1, .tile_c = (tile)}
#define LQ_B_SUB(type, bits, tile, n) {.dtype = (type), .sig = (bits), .tile_r = 1, .tile_c = (tile), .parent = LQ_F16, .span = (n)}

/* name, what a list of types says, scheme */
#define LQ_BLOCK_LIST(X) \
    X(Q1_0, "-1, 1 in blocks of 128", .grid = LQ_B_LUT(1, LQ_LUT_SIGN), .scale = LQ_B_ONE(LQ_F16, 128)) \
    X(Q2_0, "-1, 0, 1, 2 in blocks of 64", .grid = LQ_B_LUT(2, LQ_LUT_QUAD), .scale = LQ_B_ONE(LQ_F16, 64)) \
    X(Q4_0, "4-bit integers in blocks of 32", .grid = LQ_B_INT(4, 8), .scale = LQ_B_ONE(LQ_F16, 32)) \
    X(Q4_1, "4-bit integers with a minimum in blocks of 32", .grid = LQ_B_INT(4, 0), .zero_kind = LQ_ZERO_MIN, .scale = LQ_B_ONE(LQ_F16, 32), \
      .zero = LQ_B_ONE(LQ_F16, 32)) \
    X(Q5_0, "5-bit integers in blocks of 32", .grid = LQ_B_INT(5, 16), .scale = LQ_B_ONE(LQ_F16, 32)) \
    X(Q5_1, "5-bit integers with a minimum in blocks of 32", .grid = LQ_B_INT(5, 0), .zero_kind = LQ_ZERO_MIN, .scale = LQ_B_ONE(LQ_F16, 32), \
      .zero = LQ_B_ONE(LQ_F16, 32)) \
    X(Q8_0, "8-bit integers in blocks of 32", .grid = LQ_B_INT(8, 128), .scale = LQ_B_ONE(LQ_F16, 32)) \
    X(Q2_K, "2-bit integers, 4-bit scales and minima for 16", .grid = LQ_B_INT(2, 0), .zero_kind = LQ_ZERO_MIN, .scale = LQ_B_SUB(LQ_U8, 4, 16, 16), \
      .zero = LQ_B_SUB(LQ_U8, 4, 16, 16)) \
    X(Q3_K, "3-bit integers, 6-bit scales for 16", .grid = LQ_B_INT(3, 4), .scale = LQ_B_SUB(LQ_I8, 6, 16, 16)) \
    X(Q4_K, "4-bit integers, 6-bit scales and minima for 32", .grid = LQ_B_INT(4, 0), .zero_kind = LQ_ZERO_MIN, .scale = LQ_B_SUB(LQ_U8, 6, 32, 8), \
      .zero = LQ_B_SUB(LQ_U8, 6, 32, 8)) \
    X(Q5_K, "5-bit integers, 6-bit scales and minima for 32", .grid = LQ_B_INT(5, 0), .zero_kind = LQ_ZERO_MIN, .scale = LQ_B_SUB(LQ_U8, 6, 32, 8), \
      .zero = LQ_B_SUB(LQ_U8, 6, 32, 8)) \
    X(Q6_K, "6-bit integers, 8-bit scales for 16", .grid = LQ_B_INT(6, 32), .scale = LQ_B_SUB(LQ_I8, 8, 16, 16)) \
    X(IQ4_NL, "16 uneven values in blocks of 32", .grid = LQ_B_LUT(4, LQ_LUT_IQ4), .scale = LQ_B_ONE(LQ_F16, 32)) \
    X(IQ4_XS, "16 uneven values, 6-bit scales for 32", .grid = LQ_B_LUT(4, LQ_LUT_IQ4), .scale = LQ_B_SUB(LQ_I8, 6, 32, 8)) \
    X(TQ1_0, "-1, 0, 1 in blocks of 256", .grid = LQ_B_INT(2, 1), .scale = LQ_B_ONE(LQ_F16, 256)) \
    X(TQ2_0, "-1, 0, 1, 2 in blocks of 256", .grid = LQ_B_LUT(2, LQ_LUT_QUAD), .scale = LQ_B_ONE(LQ_F16, 256)) \
    X(MXFP4, "OCP E2M1, 32 weights per power of two", .grid = LQ_B_E2M1, .scale = LQ_B_ONE(LQ_E8M0, 32)) \
    X(NVFP4, "E2M1, 16 weights per E4M3 scale, one F32 scale", .grid = LQ_B_E2M1, .scale = {.dtype = LQ_E4M3, .tile_r = 1, .tile_c = 16, .parent = LQ_F32})

/* The block type whose values are exactly this scheme's, LQ_NONE: none. */
lq_dtype lq_gguf_block_type(const lq_scheme *s);
/* Scheme of a block type; false: it has none. */
bool lq_gguf_scheme(lq_dtype t, lq_scheme *out);
/* The block type that holds a matrix of scheme s code for code and scale for scale: its own, or one with wider planes (int4-sym-g32 whose F16
 * scales have 8 significant bits is Q4_0; ternary-g256 is TQ1_0); *out, which may be NULL, is that type's scheme. LQ_NONE: none. */
lq_dtype lq_gguf_fit(const lq_scheme *s, lq_scheme *out);
#endif
