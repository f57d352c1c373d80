/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What a change of a block's weights does to its output on a sample of the stream, by running it. Internal to quant/. */
#ifndef LQ_BLOCK_LOSS_H
#define LQ_BLOCK_LOSS_H
#include "quant/road.h"

typedef struct lq_block_loss lq_block_loss;
/* Of the loaded block b as it is now, over sequences of r->resid of about LQ_BLOCK_TOKENS tokens together, at least one. */
enum { LQ_BLOCK_TOKENS = 2048 };
lq_status lq_block_loss_new(road *r, uint32_t b, lq_block_loss **out);
/* Mean over tokens of the squared distance between the output now and then. The stream stays as it is. */
lq_status lq_block_loss_run(road *r, lq_block_loss *l, double *loss);
void lq_block_loss_free(lq_block_loss **l);
#endif
