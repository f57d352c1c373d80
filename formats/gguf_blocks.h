/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* ggml's blocks as bytes. gguf_pack.c writes them and gguf_unpack.c reads them; each derives the layouts by itself. Which scheme a
 * block type is: core/blocks.h. Both directions are exact. */
#ifndef LQ_GGUF_BLOCKS_H
#define LQ_GGUF_BLOCKS_H
#include "core/blocks.h"

/* Row r of q as blocks: lq_dtype_row_bytes(t, q->cols) bytes at out. t is lq_gguf_fit of the scheme, or TQ2_0 for that of TQ1_0; columns are whole
 * blocks; neither is checked again. NVFP4's F32 is not part of the blocks. LQ_ERR_QUALITY naming row and column when a code is outside what
 * the blocks can say (a ternary code of 3): lq_qtensor_check has seen to scales and minima. */
lq_status lq_gguf_pack_row(lq_ctx *ctx, lq_dtype t, const lq_qtensor *q, uint32_t r, void *out);
/* Row r of q, made by lq_qtensor_init with t's scheme, from its blocks: codes, scales, minima, their parents; not NVFP4's F32. LQ_ERR_FORMAT
 * naming row and block when a scale or minimum is infinite or no number; every other byte pattern is a valid row. */
lq_status lq_gguf_unpack_row(lq_ctx *ctx, lq_dtype t, const void *in, lq_qtensor *q, uint32_t r);
#endif
