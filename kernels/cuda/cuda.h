/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The accelerator seam: C names only, no CUDA types. A build without CUDA links stub.c, whose answer is always no. */
#ifndef LQ_CUDA_H
#define LQ_CUDA_H
#include <stdbool.h>

bool lq_cuda_available(void);         /* a device this build has kernels for */
const char *lq_cuda_describe(void);   /* device and capability in words, or why there is none; never NULL */
#endif
