/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Variants of the table for instruction sets, in ascending order; the machine folder (x86/, ref/) that the build picks
 * defines it. */
#ifndef LQ_ISA_H
#define LQ_ISA_H
#include "kernels/kernels.h"

typedef struct lq_isa {
    unsigned bit;                     /* LQ_ISA_*; 0 ends the table */
    void (*override_)(lq_kernels *k); /* puts its entries and its name into the table */
} lq_isa;
extern const lq_isa lq_isas[];
#endif
