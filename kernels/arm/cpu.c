/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/arm/arm.h"
#include "kernels/isa.h"

static void use_neon(lq_kernels *k) {
    k->name = "neon";
    k->packed_dequant = lq_packed_dequant_neon;
    k->packed_gemv = lq_packed_gemv_neon;
    k->packed_idot = lq_packed_idot_neon;
}

static void use_dotprod(lq_kernels *k) {
    k->name = "dotprod";
    k->packed_idot = lq_packed_idot_dotprod;
}

const lq_isa lq_isas[] = {{LQ_ISA_NEON, use_neon}, {LQ_ISA_DOTPROD, use_dotprod}, {0, NULL}};
