/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "core/cpu.h"

#include <string.h>

const lq_tier lq_tiers[] = {{"c", 0}, {"avx2", LQ_ISA_AVX2}, {"avxvnni", LQ_ISA_AVXVNNI}, {"avx512", LQ_ISA_AVX512}, {"avx512vnni", LQ_ISA_AVX512VNNI},
                            {"neon", LQ_ISA_NEON}, {"dotprod", LQ_ISA_DOTPROD}, {0}};

#if defined(__x86_64__)
#include <cpuid.h>

static unsigned xcr0(void) { /* which register files the operating system saves */
    unsigned eax, edx;
    __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    return eax;
}

static unsigned has_avxvnni(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) ? a >> 4 & 1 : 0;
}

unsigned lq_cpu_mask(void) {
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
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

unsigned lq_cpu_mask(void) { return LQ_ISA_NEON | (getauxval(AT_HWCAP) >> 20 & 1 /* ASIMDDP */ ? LQ_ISA_DOTPROD : 0); }
#elif defined(__aarch64__)
unsigned lq_cpu_mask(void) {
#ifdef __ARM_FEATURE_DOTPROD
    return LQ_ISA_NEON | LQ_ISA_DOTPROD;
#else
    return LQ_ISA_NEON;
#endif
}
#else
unsigned lq_cpu_mask(void) { return 0; }
#endif

static unsigned allowed = ~0u; /* as the number of threads: set once, by the flags */

unsigned lq_cpu_used(void) { return lq_cpu_mask() & allowed; }

static bool here(const lq_tier *t) { return (t->bit & lq_cpu_mask()) == t->bit; }

lq_status lq_cpu_limit(lq_ctx *ctx, const char *name) {
    char have[80] = "auto";
    allowed = ~0u;
    if (!strcmp(name, "auto")) return LQ_OK;
    for (const lq_tier *t = lq_tiers; t->name; t++) {
        if (!here(t)) continue;
        if (!strcmp(name, t->name)) {
            allowed = t->bit ? 2 * t->bit - 1 : 0;
            return LQ_OK;
        }
        strcat(strcat(have, ", "), t->name); /* 49 bytes with every tier */
    }
    return lq_fail(ctx, LQ_ERR_USAGE, "--isa %s: this machine has: %s", name, have);
}
