/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* lquant: post-training quantization of large language models. The one public header. */
#ifndef LQUANT_H
#define LQUANT_H
#ifdef __cplusplus
extern "C" {
#endif
/* "0.1.0" */
const char *lquant_version(void);
#ifdef __cplusplus
}
#endif
#endif
