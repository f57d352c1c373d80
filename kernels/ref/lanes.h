/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The order in which every long sum is taken: element i goes to lane i mod 16, in fp64, and the lanes are added as a tree.
 * A variant that keeps this order gives the bits of the C code whatever its vector width. */
#ifndef LQ_LANES_H
#define LQ_LANES_H

enum { LQ_LANES = 16 };

static inline double lq_lanes_sum(double *lane) {
    for (int half = LQ_LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}
#endif
