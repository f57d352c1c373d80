/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What the kernels of this folder are written in: a handful of device operations, each with a body for a GPU (PTX) and one for
 * the emulation (emu/emu.h). Halves travel as bits: half2 is a uint32_t, the lower half first.
 *
 * Fragments of mma.m16n8k16 and m16n8k32, lane = 4 g + q (PTX ISA, warp-level matrix instructions):
 *   A  a0 (row g, first k of the quarter) a1 (row g + 8) a2 (row g, second half of k) a3 (row g + 8); two halves or four bytes each
 *   B  b0 (first half of k, column g) b1 (second half)
 *   C  c0 c1 (row g, columns 2 q, 2 q + 1) c2 c3 (row g + 8) */
#ifndef LQ_CU_H
#define LQ_CU_H
#include <stdint.h>

#ifdef LQ_EMU
#include "kernels/cuda/emu/emu.h"
#include "kernels/cuda/emu/ops.h"
#else
#include "kernels/cuda/ops_gpu.h"
#endif

/* Bitwise function of three words by its truth table: a = 0xf0, b = 0xcc, c = 0xaa. */
#define LQ_AND_OR ((0xf0 & 0xcc) | 0xaa)

/* How a kernel begins that loads nothing ahead. */
static __device__ __forceinline__ void lq_begin() {
    lq_let_next();
    lq_wait_before();
}

static __device__ __forceinline__ uint32_t lq_pair(uint16_t lo, uint16_t hi) { return (uint32_t)lo | (uint32_t)hi << 16; }
#endif
