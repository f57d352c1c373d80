/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Writing a checkpoint. A writer never sees a float weight of a quantized linear and never decides a code. */
#ifndef LQ_SINK_H
#define LQ_SINK_H
#include "core/catalog.h"
#include "core/json.h"
#include "formats/qcodec.h" /* the frame of lqt and of the job journal */

typedef struct lq_sink lq_sink;
typedef struct lq_sink_opts {
    uint64_t shard_size;
    const json_t *meta;      /* "meta" of a quantization_config: quantizer, damp_percent ...; borrowed, may be NULL */
    bool act_order;          /* truth for desc_act style keys */
    const struct lq_gguf_meta *gguf; /* what a GGUF says of the model, made by calib; NULL: the format needs none. Borrowed */
    const json_t *config;    /* top-level keys of config.json that change: the new value, null: the key goes; borrowed, may be NULL */
} lq_sink_opts;

typedef struct lq_format {   /* one row per output format */
    const char *name, *ext, *what; /* "gptq", NULL for a folder or ".lqt" for one file, one line */
    size_t priv_size;
    /* LQ_OK or LQ_ERR_UNSUPPORTED with a sentence that names the nearest setting that would be accepted. */
    lq_status (*accept)(lq_ctx *, const lq_scheme *, uint32_t rows, uint32_t cols);
    bool kv_scales;          /* k_scale and v_scale rows have a place */
    bool gguf;               /* open needs opts.gguf, and every row arrives as [rows][cols] */
    lq_dtype (*kept)(const lq_row *, lq_dtype want); /* type a kept tensor gets in this format; NULL function: want */
    /* What the format refuses of a catalog as a whole, before work starts; what it notes in priv is there for open. Nothing is on the disk yet,
     * the sink has no dir. NULL function: nothing. */
    lq_status (*check)(lq_sink *);
    lq_status (*open)(lq_sink *);
    lq_status (*put)(lq_sink *, const lq_row *, const lq_qtensor *);
    lq_status (*put_fp)(lq_sink *, const lq_row *, const void *data, size_t bytes); /* data in row->out_dtype, a transposed row as it is stored */
    lq_status (*sidecar)(lq_sink *, const char *name, const void *data, size_t n);
    json_t *(*quant_config)(lq_sink *); /* new reference; NULL function: the format adds nothing to config.json */
    json_t *(*config)(lq_sink *);       /* further top-level keys of config.json: new reference; NULL function: none */
    lq_status (*sync)(lq_sink *);       /* what was put is on the disk */
    lq_status (*close)(lq_sink *);      /* index, fsync */
    void (*abandon)(lq_sink *);
} lq_format;
extern const lq_format *const lq_formats[]; /* order of `lquant list formats`; NULL ends */
const lq_format *lq_format_by_name(const char *name);

struct lq_sink {
    lq_ctx *ctx;
    const lq_format *format;
    const char *dir;         /* existing folder that receives every file; a one-file format writes "model<ext>" there */
    const lq_catalog *cat;   /* rows with quantize/scheme/out_dtype resolved: the layout is known before data comes */
    lq_sink_opts opts;
    void *priv;
    uint8_t *seen;           /* [cat->n]: put already */
};
/* out[cols][rows] of data[rows][cols], `unit` bytes each: a Conv1D matrix as it is stored, or back. */
void lq_transpose(const void *data, size_t rows, size_t cols, size_t unit, void *out);
/* What open would refuse of this catalog, without a file: asked at plan time. */
lq_status lq_sink_check(lq_ctx *ctx, const lq_format *f, const lq_catalog *cat, const lq_sink_opts *opts);
lq_status lq_sink_open(lq_ctx *ctx, const lq_format *f, const char *dir, const lq_catalog *cat, const lq_sink_opts *opts, lq_sink **out);
lq_status lq_sink_put(lq_sink *s, const lq_qtensor *q);                                     /* row found by slot; any order */
/* data: [rows][cols] in row->out_dtype, whatever the row's name wants in a file. */
lq_status lq_sink_put_fp(lq_sink *s, const lq_row *row, const void *data, size_t bytes);
lq_status lq_sink_sidecar(lq_sink *s, const char *name, const void *data, size_t n);        /* byte for byte */
/* config.json: the source's text with opts.config applied and quantization_config spliced in before its last brace, every other byte kept. */
lq_status lq_sink_config(lq_sink *s, const char *text, size_t n);
lq_status lq_sink_sync(lq_sink *s);     /* after each block: what was put is on the disk */
lq_status lq_sink_close(lq_sink **s);   /* every row must have been put: else LQ_ERR_QUALITY naming it */
void lq_sink_abandon(lq_sink **s);
#endif
