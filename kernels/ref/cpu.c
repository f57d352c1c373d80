/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A machine without variants of its own: the C kernels serve. */
#include "kernels/isa.h"

const lq_isa lq_isas[] = {{0, NULL}};
