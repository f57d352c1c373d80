/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Products of bytes by vpdpbusd in 256 bits: four products added to 32 bits at once, nothing saturates. Compiled a second time for the
 * form of the instruction that AVX-512 machines have (LQ_EVEX), so that checkkern runs this code on them too. */
#include "kernels/x86/packed_avx2.h"

enum { LQ_DOT_SHIFT = 0 };

#ifdef LQ_EVEX
#define DPBUSD _mm256_dpbusd_epi32
#else
#define DPBUSD _mm256_dpbusd_avx_epi32
#endif

LQ_INLINE __m256i lq_dot256(__m256i acc, const __m256i w[4], const __m256i x[4], int form) {
    (void)form;
    __m256i a = DPBUSD(DPBUSD(_mm256_setzero_si256(), w[0], x[0]), w[1], x[1]), b = DPBUSD(DPBUSD(acc, w[2], x[2]), w[3], x[3]);
    return _mm256_add_epi32(a, b);
}

#include "kernels/x86/packed_idot256.h"

#ifdef LQ_EVEX
void lq_packed_idot_evex(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_i *x, double *acc);
void lq_packed_idot_evex(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_i *x, double *acc) { packed_idot256(p, t0, nt, x, acc); }
#else
void lq_packed_idot_avxvnni(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_i *x, double *acc) { packed_idot256(p, t0, nt, x, acc); }
#endif
