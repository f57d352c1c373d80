/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Which instruction sets this machine has and which of them may be used. */
#ifndef LQ_CPU_H
#define LQ_CPU_H
#include "core/status.h"

/* Before a function of loops over lanes: the compiler makes one of it for each width of vectors, the machine has its choice at start. The bits are
 * the same, every operation is rounded as written (-ffp-contract=off). Not by clang, whose name for such a function (14) other files do not find.
 * Sanitizers leave them alone: their checks of every lane keep the compiler from making vectors (the fit of a grid: 16 times as long), and what such a
 * function walks, its caller has filled element by element under their eyes. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define LQ_CLONES __attribute__((target_clones("avx512f", "avx2", "default"), no_sanitize("address", "undefined")))
#endif
#endif
#ifndef LQ_CLONES
#define LQ_CLONES
#endif
#if defined(__GNUC__)
#define LQ_LANE __attribute__((no_sanitize("address", "undefined"))) /* what such a loop calls: only then is it inlined there */
#else
#define LQ_LANE
#endif

/* Tiers in ascending order. AVX2 with FMA and F16C; AVXVNNI: dot products of bytes in 256 bits; AVX512 with F, DQ, BW, VL, VBMI (Ice Lake,
 * Zen 4 and later); DOTPROD: Arm's dot products of bytes. */
enum { LQ_ISA_AVX2 = 1, LQ_ISA_AVXVNNI = 2, LQ_ISA_AVX512 = 4, LQ_ISA_AVX512VNNI = 8, LQ_ISA_NEON = 16, LQ_ISA_DOTPROD = 32 };
typedef struct lq_tier { const char *name; unsigned bit; } lq_tier;
extern const lq_tier lq_tiers[];  /* "c" (bit 0), "avx2" ...; a NULL name ends */

unsigned lq_cpu_mask(void);       /* LQ_ISA_* this machine has */
unsigned lq_cpu_used(void);       /* and of these the ones lq_cpu_limit left: all, if it was not called */
/* From now on no tier above this one; "auto": every one. To be called before kernels are chosen. A name that is no tier or none of this
 * machine's: LQ_ERR_USAGE, with those it has. */
lq_status lq_cpu_limit(lq_ctx *ctx, const char *name);
#endif
