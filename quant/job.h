/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A run on disk: everything happens in OUT.partial, finished units are journalled there, OUT appears by one rename. */
#ifndef LQ_JOB_H
#define LQ_JOB_H
#include "core/os.h"

typedef enum lq_resume { LQ_RESUME_AUTO, LQ_RESUME_NEVER, LQ_RESUME_ONLY } lq_resume;

typedef struct lq_job {
    char *out, *partial, *journal; /* OUT, OUT.partial (the sink writes there), the journal in it */
    bool overwrite, resumed;
} lq_job;

/* Refuses when OUT exists (unless overwrite) or is IN, and, with LQ_ERR_MISMATCH, when OUT.partial belongs to another job.
 * fingerprint: hex digest of all that decides the bytes. */
lq_status lq_job_open(lq_ctx *ctx, lq_job *j, const char *in, const char *out, const char *fingerprint, lq_resume resume, bool overwrite);
bool lq_job_has(const lq_job *j, uint32_t unit);
lq_status lq_job_store(lq_ctx *ctx, lq_job *j, uint32_t unit, const lq_buf *data); /* atomic: fsync, then rename */
lq_status lq_job_load(lq_ctx *ctx, const lq_job *j, uint32_t unit, lq_buf *data);
/* Empties what an interrupted assembly left in the work folder (the journal stays). */
lq_status lq_job_clean(lq_ctx *ctx, lq_job *j);
/* file NULL: the work folder becomes OUT; else the file in it does. The journal goes. */
lq_status lq_job_finish(lq_ctx *ctx, lq_job *j, const char *file);
/* After a failure: a quality failure leaves OUT.failed; a stopped or starved job with finished units
 * stays for the next run; else (a rejected input) nothing stays. */
void lq_job_fail(lq_ctx *ctx, lq_job *j, lq_status why);
void lq_job_close(lq_job *j);
#endif
