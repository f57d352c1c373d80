/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Element and block types a stored tensor may have, with their sizes and how a row of them becomes float.
 * Block layouts: ggml (formats.md of each writer restates the ones it writes). */
#ifndef LQ_DTYPE_H
#define LQ_DTYPE_H
#include <stddef.h>
#include <stdint.h>

/* enum, name as written in safetensors / GGUF, weights per block, bytes per block, GGUF type id (-1: none) */
#define LQ_DTYPE_LIST(X)        \
    X(NONE, "none", 1, 0, -1)   \
    X(F32, "F32", 1, 4, 0)      \
    X(F16, "F16", 1, 2, 1)      \
    X(BF16, "BF16", 1, 2, 30)   \
    X(F64, "F64", 1, 8, 28)     \
    X(I8, "I8", 1, 1, 24)       \
    X(U8, "U8", 1, 1, -1)       \
    X(I16, "I16", 1, 2, 25)     \
    X(U16, "U16", 1, 2, -1)     \
    X(I32, "I32", 1, 4, 26)     \
    X(U32, "U32", 1, 4, -1)     \
    X(I64, "I64", 1, 8, 27)     \
    X(U64, "U64", 1, 8, -1)     \
    X(BOOL, "BOOL", 1, 1, -1)   \
    X(E4M3, "F8_E4M3", 1, 1, -1) \
    X(E5M2, "F8_E5M2", 1, 1, -1) \
    X(E8M0, "F8_E8M0", 1, 1, -1) \
    X(Q4_0, "Q4_0", 32, 18, 2)  \
    X(Q4_1, "Q4_1", 32, 20, 3)  \
    X(Q5_0, "Q5_0", 32, 22, 6)  \
    X(Q5_1, "Q5_1", 32, 24, 7)  \
    X(Q8_0, "Q8_0", 32, 34, 8)  \
    X(Q2_K, "Q2_K", 256, 84, 10) \
    X(Q3_K, "Q3_K", 256, 110, 11) \
    X(Q4_K, "Q4_K", 256, 144, 12) \
    X(Q5_K, "Q5_K", 256, 176, 13) \
    X(Q6_K, "Q6_K", 256, 210, 14) \
    X(IQ4_NL, "IQ4_NL", 32, 18, 20) \
    X(IQ4_XS, "IQ4_XS", 256, 136, 23) \
    X(TQ1_0, "TQ1_0", 256, 54, 34) \
    X(TQ2_0, "TQ2_0", 256, 66, 35) \
    X(MXFP4, "MXFP4", 32, 17, 39) \
    X(NVFP4, "NVFP4", 64, 36, 40) \
    X(Q1_0, "Q1_0", 128, 18, 41) \
    X(Q2_0, "Q2_0", 64, 18, 42) \
    X(IQ1_S, "IQ1_S", 256, 50, 19) \
    X(IQ1_M, "IQ1_M", 256, 56, 29) \
    X(IQ2_XXS, "IQ2_XXS", 256, 66, 16) \
    X(IQ2_XS, "IQ2_XS", 256, 74, 17) \
    X(IQ2_S, "IQ2_S", 256, 82, 22) \
    X(IQ3_XXS, "IQ3_XXS", 256, 98, 18) \
    X(IQ3_S, "IQ3_S", 256, 110, 21)

enum { LQ_DIMS = 8 }; /* dimensions of a tensor, at most */

typedef enum lq_dtype {
#define X(name, text, elems, bytes, gguf) LQ_##name,
    LQ_DTYPE_LIST(X)
#undef X
    LQ_DTYPE_N
} lq_dtype;

typedef struct lq_dtype_info { const char *name; uint32_t block, bytes; int gguf; } lq_dtype_info;
extern const lq_dtype_info lq_dtypes[LQ_DTYPE_N];

lq_dtype lq_dtype_by_name(const char *name);   /* LQ_NONE when unknown */
lq_dtype lq_dtype_by_gguf(uint32_t id);        /* LQ_NONE when unknown */
/* Can lq_dtype_decode read it as weights? (F32 F16 BF16 F64 and the ggml blocks) */
int lq_dtype_is_weight(lq_dtype t);
/* Bytes of a row of `cols` weights; 0 when cols is no multiple of the block. */
size_t lq_dtype_row_bytes(lq_dtype t, uint64_t cols);
/* n weights (a multiple of the block) from src to dst: the definition of each type. */
void lq_dtype_decode(lq_dtype t, const void *src, float *dst, size_t n);
/* n floats to F32, F16 or BF16 (round to nearest even). */
void lq_dtype_encode(lq_dtype t, const float *src, void *dst, size_t n);
#endif
