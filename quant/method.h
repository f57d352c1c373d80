/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A quantization method: one file, one row. It sees floats and statistics, never a file. */
#ifndef LQ_METHOD_H
#define LQ_METHOD_H
#include "calib/stats.h"
#include "core/catalog.h"
#include "core/options.h"

typedef struct lq_weights {     /* a linear as a method sees it */
    lq_slot slot;
    const char *name;           /* for messages */
    uint32_t rows, cols;
    const float *w;             /* [rows][cols], finite */
    float fuse_absmax;          /* max |w| over all linears that runtimes fuse with this one, itself included; 0: only itself */
    const float *fisher;        /* [rows][cols] diagonal of the Fisher information, >= 0, for methods with takes_fisher when the run has
                                 * one; NULL: none */
} lq_weights;

typedef struct lq_outcome {     /* what happened to a linear: goes to the report, a fallback is never silent */
    const char *method;         /* method that made the codes: static text, "gptq", "rtn" */
    double err_h, err_h_rtn;    /* tr(dHd')/tr(WHW') of the result, and of RTN with the same scale search on the same H; -1: no H */
    double err_w;               /* |W-Q|^2/|W|^2 */
    double damp;                /* damping used, relative to the mean diagonal; -1: none */
    uint64_t tokens;            /* calibration tokens its input was seen with; set by the pipeline */
    int64_t expert_tokens;      /* of an expert: those routed to it, its prior not counted; -1: no expert, or no calibration; set by the pipeline */
    uint32_t dead_cols;         /* columns the calibration never touched */
    uint32_t guarded_rows;      /* rows kept from RTN because it was better */
    double zeros;               /* pruning: share of the weights that are 0; else 0 */
    uint64_t bytes_packed;      /* pruning: bytes of a store that leaves them out, which no format here does; else 0 */
    char fallback[160];         /* "" or why the method could not be used */
} lq_outcome;

typedef struct lq_method {
    const char *name, *what, *paper;  /* feed --help, `lquant list methods`, the docs */
    const char *type;                 /* default type (quant/types.h); '*' stands for --bits; NULL: "int*" */
    const char *format;               /* where its results go when nobody says: name of an lq_format; NULL: gptq where that holds the type */
    unsigned needs;                   /* LQ_NEED_*: calibration computes only these; 0: data-free */
    unsigned (*needs_of)(const void *opts); /* instead of needs where options decide; NULL */
    bool (*searches)(const void *opts); /* are its scales searched rather than min-max? NULL: yes, or something as good. What transforms reckon with */
    void (*refine)(const void *opts, lq_scheme *); /* what the options add to a linear's scheme (outliers, rank ...); NULL */
    bool tries_first;                 /* ruins most models and says so: the plan quantizes one linear, without statistics, and stops when it refuses */
    bool takes_fisher;                /* --fisher makes sense, and then takes the place of needs */
    const lq_opt *opts;               /* the method's own options; may be NULL */
    size_t opts_size;
    lq_status (*accept)(lq_ctx *, const void *opts, uint32_t rows, uint32_t cols, const lq_scheme *);
    /* stats: of this linear's input, NULL when needs == 0 and none were gathered. out is initialised here and owns itself.
     * Deterministic at any thread count; parallel inside. */
    lq_status (*quantize)(lq_ctx *, const void *opts, const lq_weights *, const lq_scheme *, const lq_stats *, lq_qtensor *out, lq_outcome *);
} lq_method;
extern const lq_method *const lq_methods[]; /* order of `lquant list methods`; NULL ends */
const lq_method *lq_method_by_name(const char *name);
unsigned lq_method_needs(const lq_method *m, const void *opts);
#endif
