/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "kernels/isa.h"
#include "kernels/ref/ref.h"

#include <pthread.h>

void lq_kernels_init(lq_kernels *k, unsigned mask) {
    *k = (lq_kernels){"c", 8, lq_dequant_c, lq_decode_c, lq_gemv_c, lq_gemv_fp_c, lq_rmsnorm_c, lq_rope_c, lq_rope_pairs_c,
                      lq_glu_c, lq_softmax_c, lq_logsumexp_c, lq_add_c, lq_layernorm_c, lq_kv8_c, lq_kv4_c, lq_dot_c, lq_attn_scores_c, lq_attn_mix_c,
                      lq_panel_sums_c, lq_packed_dequant_c, lq_packed_gemv_c, lq_packed_idot_c, lq_absmax_c, lq_round8_c, lq_narrow_c, lq_digits_c, lq_packed_digits_c};
    for (const lq_isa *i = lq_isas; i->bit; i++)
        if (mask & i->bit) i->override_(k);
}

static lq_kernels best; /* written once, before anyone can read it */
static void init_best(void) { lq_kernels_init(&best, lq_cpu_used()); }

const lq_kernels *lq_kernels_best(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, init_best);
    return &best;
}
