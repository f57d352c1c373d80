/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What a run leaves: one checkpoint, OUT, or with --format a,b,c several below it: OUT/a, OUT/b, OUT/c.gguf (a one-file format's name and its
 * suffix). Everything is written in the job's folder; OUT appears by one rename when all are complete. */
#ifndef LQ_OUTPUTS_H
#define LQ_OUTPUTS_H
#include "formats/sink.h"
#include "quant/job.h"

enum { LQ_OUTPUTS = 8 };
typedef struct lq_outputs {
    const lq_format *format[LQ_OUTPUTS];
    size_t n;
    bool many;               /* OUT is a folder of checkpoints */
} lq_outputs;

/* list: "gptq" or "gptq,lqt"; NULL: the format whose suffix OUT has, else none (n = 0). Unknown names, one twice: LQ_ERR_USAGE. */
lq_status lq_outputs_parse(lq_ctx *ctx, const char *list, const char *out, lq_outputs *o);
void lq_outputs_one(lq_outputs *o, const lq_format *f);
/* Folder that the sink of output i writes to, below or equal to the job's; made anew by begin. Caller frees; NULL: out of memory. */
char *lq_outputs_dir(const lq_outputs *o, size_t i, const lq_job *job);
char *lq_outputs_path(const lq_outputs *o, size_t i, const char *dir); /* the checkpoint in it: dir, or its file; caller frees */
char *lq_outputs_name(const lq_outputs *o, size_t i, const char *out); /* where it will be: OUT/gptq; caller frees */
lq_status lq_outputs_begin(lq_ctx *ctx, const lq_outputs *o, lq_job *job); /* what an interrupted assembly left is removed */
lq_status lq_outputs_finish(lq_ctx *ctx, const lq_outputs *o, lq_job *job);
#endif
