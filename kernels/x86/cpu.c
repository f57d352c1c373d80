/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/isa.h"
#include "kernels/x86/x86.h"

#include <cpuid.h>

static void use_avx2(lq_kernels *k) {
    k->name = "avx2";
    k->dequant = lq_dequant_avx2;
    k->decode = lq_decode_avx2;
    k->gemv = lq_gemv_avx2;
    k->gemv_fp = lq_gemv_fp_avx2;
    k->rmsnorm = lq_rmsnorm_avx2;
    k->glu = lq_glu_avx2;
    k->softmax = lq_softmax_avx2;
    k->logsumexp = lq_logsumexp_avx2;
    k->dot = lq_dot_avx2;
    k->packed_dequant = lq_packed_dequant_avx2;
    k->packed_gemv = lq_packed_gemv_avx2;
    k->packed_idot = lq_packed_idot_avx2;
}

static void use_avxvnni(lq_kernels *k) {
    k->name = "avxvnni";
    k->packed_idot = lq_packed_idot_avxvnni;
}

static void use_avx512(lq_kernels *k) {
    k->name = "avx512";
    k->dequant = lq_dequant_avx512;
    k->gemv = lq_gemv_avx512;
    k->gemv_fp = lq_gemv_fp_avx512;
    k->glu = lq_glu_avx512;
    k->softmax = lq_softmax_avx512;
    k->logsumexp = lq_logsumexp_avx512;
    k->packed_gemv = lq_packed_gemv_avx512;
}

static void use_avx512vnni(lq_kernels *k) {
    k->name = "avx512vnni";
    k->packed_idot = lq_packed_idot_vnni;
}

const lq_isa lq_isas[] = {{LQ_ISA_AVX2, use_avx2}, {LQ_ISA_AVXVNNI, use_avxvnni}, {LQ_ISA_AVX512, use_avx512}, {LQ_ISA_AVX512VNNI, use_avx512vnni}, {0, NULL}};

static unsigned xcr0(void) { /* which register files the operating system saves */
    unsigned eax, edx;
    __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    return eax;
}

static unsigned has_avxvnni(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) ? a >> 4 & 1 : 0;
}

unsigned lq_cpu_detect(void) {
    enum { FMA = 1 << 12, OSXSAVE = 1 << 27, AVX = 1 << 28, F16C = 1 << 29, AVX2 = 1 << 5 };
    enum { AVX512F = 1 << 16, AVX512DQ = 1 << 17, AVX512BW = 1 << 30, AVX512VBMI = 1 << 1, AVX512VNNI = 1 << 11 };
    const unsigned wide = AVX512F | AVX512DQ | AVX512BW | 1u << 31 /* AVX512VL */;
    unsigned a, b, c, d, mask = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    const unsigned base = (unsigned)FMA | OSXSAVE | AVX | F16C;
    if ((c & base) != base || (xcr0() & 6) != 6) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & AVX2)) return 0;
    mask = LQ_ISA_AVX2 | (has_avxvnni() ? LQ_ISA_AVXVNNI : 0);
    if ((b & wide) == wide && (c & AVX512VBMI) && (xcr0() & 0xe6) == 0xe6) mask |= LQ_ISA_AVX512 | (c & AVX512VNNI ? LQ_ISA_AVX512VNNI : 0);
    return mask;
}
