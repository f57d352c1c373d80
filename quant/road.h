/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* One run of the pipeline: what its parts (stream, unit, assemble) share. Internal to quant/. */
#ifndef LQ_ROAD_H
#define LQ_ROAD_H
#include "core/progress.h"
#include "calib/sites.h"
#include "calib/stats_file.h"
#include "quant/gguf_out.h"
#include "quant/importance.h"
#include "quant/outputs.h"
#include "quant/pipeline.h"

typedef struct road {
    lq_ctx *ctx;
    lq_run *run;
    lq_source *src;
    lq_model *model;
    lq_plan plan;
    lq_targets targets;        /* --target */
    unsigned needs;            /* LQ_NEED_* of the method with its options; 0: no calibration */
    lq_rows rows;
    lq_stats_file stats;       /* --stats: read instead of running the model; needs is then 0 */
    lq_imatrix imatrix;        /* the same from llama.cpp; n 0: none */
    unsigned stats_needs;      /* what the recipe wants of it */
    bool by_block;             /* units are blocks: calibrated runs, and transforms */
    float **divided;           /* [catalog rows] of the first linear of a stage of this block: what a fold divided its input by; NULL: nothing */
    lq_stats item;             /* statistics read last, of item_of */
    const lq_row *item_of;
    lq_job job;
    lq_outputs outs;           /* what is written; outs.format[0] is the plan's */
    lq_sink *sink;
    lq_gguf_meta *gguf;        /* what a GGUF says of the model; NULL: none is written */
    const lq_format *writing;  /* of the output being written or read back */
    lq_dtype *planned;         /* [catalog rows] out_dtype as planned, which the journal's kept tensors have */
    lq_source *back;           /* the written checkpoint, read again */
    lq_source *fisher;         /* --fisher, or NULL */
    float *kv_max;             /* [n_layers][2] of --kv-scales, or NULL */
    lq_cache *resid, *twin;    /* twin: of the unquantized model (CROSS) */
    uint64_t cache_budget;
    lq_buf unit;               /* the unit being built */
    json_t *inputs, *options, *modules, *rotation;
    json_t *transforms;        /* what each site chose; of finished units, filled by assemble */
    json_t *folded;            /* names of the kept tensors a transform changed; the same */
    uint8_t *changed;          /* [catalog rows] is it one of them? of this run's blocks first, then of all finished units */
    lq_progress bar;
    uint32_t fallbacks;
    float fuse_absmax;         /* of the linear that is quantized next (lq_weights) */
    const lq_row *fuse_of;     /* last group lq_fuse_read read, and what it found */
    float fuse_most;
    uint64_t bytes_packed;     /* pruning: what a store without the zeros would take */
    double zeros;              /* pruning: weights that are 0 */
    uint64_t bytes_held;       /* lq_qtensor_bytes of what was written */
    double start, err_sum;
    uint32_t err_n;
} road;

/* A unit of the journal is a block (calibrated methods; the head comes after the last block) or one linear (data-free methods). Its
 * bytes are frames of two parts, JSON and data, each behind its length: a linear's manifest entry and encoded qtensor; a kept tensor
 * that a transform changed ({"kept": name}) and its values in out_dtype; what a transform chose ({"site": ...}), no data. */
typedef lq_status (*lq_frame_fn)(road *r, json_t *entry, const void *p, size_t n);
typedef struct lq_unit_reader { lq_frame_fn linear, kept, choice; } lq_unit_reader; /* NULL: passed over */
lq_status lq_unit_add(road *r, const lq_row *row, const lq_qtensor *q, const lq_outcome *o); /* to the unit being built */
lq_status lq_unit_add_kept(road *r, const lq_row *row);                                     /* as the loaded block has it now */
lq_status lq_unit_add_choice(road *r, const json_t *entry);
lq_status lq_unit_finish(road *r, uint32_t unit);                                           /* journalled */
lq_status lq_unit_each(road *r, uint32_t unit, const lq_unit_reader *fn);                   /* every frame of a finished unit */
lq_status lq_unit_each_done(road *r, const lq_unit_reader *fn);                             /* of every finished unit, in order */
const lq_row *lq_unit_kept_row(road *r, const json_t *entry);                               /* the kept row it names; NULL: none */

lq_status lq_xforms_accept(road *r);             /* at plan time: has the architecture sites for the recipe's transforms? */
lq_status lq_xforms_check(road *r);              /* after the plan: can they score its schemes? */
lq_status lq_xforms_block(road *r, uint32_t b);  /* the loaded block folded; changed kept tensors and choices added to the unit */

/* --stats: what the file holds in place of what a run of the model would see. */
lq_status lq_stored_open(road *r);               /* refuses a file that lacks what the recipe needs, naming the command that makes it */
lq_status lq_stored_stats(road *r, const lq_row *row, const lq_stats **out); /* of a row's input, folds of this block counted; NULL: no file */
/* The hook of lq_block_calibrate for every stage of the loaded block, in its order, each expert's included. */
lq_status lq_stored_block(road *r, uint32_t b, const lq_stage_hook *hook);
lq_status lq_stored_divide(road *r, const lq_stage *stage, const lq_site *site, const float *s); /* s[site->scales] were folded into it */
void lq_stored_forget(road *r);                  /* the folds of a block that is done */

lq_status lq_fisher_open(road *r);   /* --fisher takes the place of calibration */
lq_status lq_fisher_read(road *r, const lq_row *row, float **out); /* *out NULL: none; the caller frees, after a failure too */
/* max |W| over the linears fused with linear i of a stage whose weights are still as they were; 0: its scheme does not ask. */
float lq_fuse_stage(const lq_stage *stage, uint32_t i);
/* The same read from the model. */
lq_status lq_fuse_read(road *r, const lq_row *row, float *out);
lq_status lq_stream_run(road *r);    /* decides the codes of every linear: all units finished */
/* Every output, written from the units into the job's folder, read by another code path and compared with the codes the method chose. */
lq_status lq_assemble_check(road *r); /* what the formats refuse of the plan as a whole */
lq_status lq_assemble(road *r);
/* A GGUF's rows have other names and places: does the one of this row decode to what the codes mean? */
lq_status lq_gguf_compare(road *r, const lq_row *row, const lq_qtensor *want, bool *same);
lq_status lq_gguf_compare_kept(road *r, const lq_row *row, const void *data, size_t n, bool *same);
#endif
