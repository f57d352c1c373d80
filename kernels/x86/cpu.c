/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/isa.h"
#include "kernels/x86/x86.h"

static void use_avx2(lq_kernels *k) {
    k->name = "avx2";
    k->few = UINT32_MAX;
    k->dequant = lq_dequant_avx2;
    k->decode = lq_decode_avx2;
    k->gemv = lq_gemv_avx2;
    k->gemv_fp = lq_gemv_fp_avx2;
    k->rmsnorm = lq_rmsnorm_avx2;
    k->glu = lq_glu_avx2;
    k->softmax = lq_softmax_avx2;
    k->logsumexp = lq_logsumexp_avx2;
    k->dot = lq_dot_avx2;
    k->attn_scores = lq_attn_scores_avx2;
    k->attn_mix = lq_attn_mix_avx2;
    k->panel_sums = lq_panel_sums_avx2;
    k->layernorm = lq_layernorm_avx2;
    k->add = lq_add_avx2;
    k->rope = lq_rope_avx2;
    k->rope_pairs = lq_rope_pairs_avx2;
    k->kv8 = lq_kv8_avx2;
    k->kv4 = lq_kv4_avx2;
    k->packed_dequant = lq_packed_dequant_avx2;
    k->packed_gemv = lq_packed_gemv_avx2;
    k->absmax = lq_absmax_avx2;
    k->round8 = lq_round8_avx2;
    k->narrow = lq_narrow_avx2;
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
    k->attn_scores = lq_attn_scores_avx512;
    k->attn_mix = lq_attn_mix_avx512;
    k->panel_sums = lq_panel_sums_avx512;
    k->logsumexp = lq_logsumexp_avx512;
    k->packed_gemv = lq_packed_gemv_avx512;
    k->absmax = lq_absmax_avx512;
    k->round8 = lq_round8_avx512;
    k->narrow = lq_narrow_avx512;
}

static void use_avx512vnni(lq_kernels *k) {
    k->name = "avx512vnni";
    k->packed_idot = lq_packed_idot_vnni;
    k->digits = lq_digits_avx512;
    k->packed_digits = lq_packed_digits_vnni;
}

const lq_isa lq_isas[] = {{LQ_ISA_AVX2, use_avx2}, {LQ_ISA_AVXVNNI, use_avxvnni}, {LQ_ISA_AVX512, use_avx512}, {LQ_ISA_AVX512VNNI, use_avx512vnni}, {0, NULL}};
