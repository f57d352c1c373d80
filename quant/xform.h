/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A transform: floats to floats before a method decides codes, the function kept. One file, one row. It chooses a scale per
 * channel of a fold site; carrying the fold out, its exactness and the journal belong to the pipeline. */
#ifndef LQ_XFORM_H
#define LQ_XFORM_H
#include "calib/sites.h"
#include "quant/grid.h"
#include "quant/method.h"

typedef struct lq_xreader {     /* a linear whose columns the scales multiply */
    const char *name;           /* for messages */
    const float *w;             /* [rows][cols of the site], as it is now */
    uint32_t rows;
    const lq_scheme *target;    /* what it will be stored as; NULL: kept, costs nothing */
    bool makes_scores;          /* q, k or a matrix that holds them */
} lq_xreader;

typedef struct lq_xsite {       /* a fold site, or (site NULL) a stage no scale can be folded into */
    const lq_site *site;
    char name[96];              /* "block 3 attn_norm -> q_proj k_proj v_proj" */
    uint32_t cols, scales;      /* channels of the readers' input; of the scales */
    const uint32_t *scale_of;   /* [cols] the scale of a column */
    const lq_xreader *reader;   /* [n] */
    uint32_t n;
    const lq_stats *stats;      /* of the readers' input */
    lq_fit fit;                 /* how the recipe's method chooses its scales: what a pseudo-quantized weight is scored with */
    /* Replaces s[scales] by what can be folded exactly: to be called on candidates before they are judged. */
    lq_status (*settle)(lq_ctx *, const struct lq_xsite *, bool pow2, float *s);
    /* The mean over a sample's tokens of the squared error of the block's output, the readers' weights rounded as s[cols] (NULL: all 1) makes
     * them: fit and moment[cols] as in lq_xform_pseudo. NULL where no stream is there to be run. */
    lq_status (*output_loss)(lq_ctx *, const struct lq_xsite *, const float *s, const float *moment, double *loss);
    void *user;
    int32_t expert;             /* whose site it is; -1 */
} lq_xsite;

typedef struct lq_xchoice {     /* goes to the manifest */
    char chose[96];             /* "alpha 0.55", "none" */
    double loss, loss_before;   /* of the transform's own objective: chosen, and with nothing done; negative: not scored */
    uint64_t groups, cut;       /* weight groups a clip looked at, and bounded */
} lq_xchoice;

typedef struct lq_xform {
    const char *name, *what, *paper;
    const char *type;           /* default type of recipes it stands in; a method's own comes first */
    const char *format;         /* default format of recipes it stands in; a method's own comes after it */
    unsigned needs;             /* LQ_NEED_*: what calibration must gather */
    unsigned (*needs_of)(const void *opts); /* instead; NULL */
    const lq_opt *opts;
    size_t opts_size;
    lq_status (*accept)(lq_ctx *, const void *opts); /* are the options sound? NULL: always */
    bool (*runs_block)(const void *opts); /* does it ask for output_loss? NULL: never */
    bool (*wants)(const void *opts, lq_site_kind kind); /* does it fold here? */
    /* s[scales], all 1 on entry. Deterministic at any thread count; parallel inside. */
    lq_status (*apply)(lq_ctx *, const void *opts, const lq_xsite *, float *s, lq_xchoice *);
    /* For a stage (site->n readers may be in others): a bound on |W diag(s)| for each row and group of reader i: limit[rows][cols / group], INFINITY where nothing is cut. NULL: none. */
    lq_status (*clip)(lq_ctx *, const void *opts, const lq_xsite *, uint32_t i, const float *s, uint32_t group, float *limit, lq_xchoice *);
} lq_xform;
extern const lq_xform *const lq_xforms[]; /* order of `lquant list methods`, before the methods; NULL ends */
unsigned lq_xform_needs(const lq_xform *x, const void *opts);

/* out[rows][cols] = Q(w diag(s)) diag(1/s), Q rounding to nearest on the target's grid with scales chosen by `fit`, weighted
 * with h[cols] (second moments of the unscaled input; NULL: all one). s NULL: all one. */
lq_status lq_xform_pseudo(lq_ctx *ctx, const lq_scheme *target, const float *w, uint32_t rows, uint32_t cols, const float *s, lq_fit fit,
                          const float *h, float *out);
#endif
