/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Legality before work: which runtime loads a checkpoint of a format, decided from the plan alone. The rules are one table, legal_rules.c. */
#ifndef LQ_LEGAL_H
#define LQ_LEGAL_H
#include "quant/plan.h"

typedef enum lq_runtime { LQ_RT_VLLM, LQ_RT_TRANSFORMERS, LQ_RT_GPTQMODEL, LQ_RT_LLAMA_CPP, LQ_RT_TRTLLM, LQ_RT_MLX, LQ_RUNTIMES } lq_runtime;

typedef struct lq_runtime_info {
    const char *name;          /* of --target */
    const char *what;          /* the version whose source and behaviour the rules are from */
    const char *formats;       /* '|'-separated, the preferred first: what is written for --target without --format */
    bool tp;                   /* tensor parallelism splits its matrices */
} lq_runtime_info;
extern const lq_runtime_info lq_runtimes[LQ_RUNTIMES];

typedef struct lq_deploy { lq_runtime runtime; uint32_t tp; } lq_deploy; /* tp: devices a matrix is split over, at least 1 */
enum { LQ_TARGETS_MAX = 8 };
typedef struct lq_targets { lq_deploy v[LQ_TARGETS_MAX]; size_t n; } lq_targets;
/* "vllm", "vllm,tp=4", "vllm,tp=2,mlx": names and, behind one, its tp. Repeatable. LQ_ERR_USAGE names what is unknown. */
lq_status lq_targets_parse(lq_ctx *ctx, const lq_strlist *texts, lq_targets *out);

typedef struct lq_legal_case { /* what would be written */
    lq_catalog *cat;           /* quantize and scheme resolved; lq_legal_plan resolves them itself */
    const char *format;        /* name of an lq_format */
    const char *model_type;    /* as in config.json; "" when unknown */
    uint32_t n_heads, n_kv_heads; /* 0: unknown */
    uint32_t window;           /* a sliding window that is shorter than the context; 0: none */
} lq_legal_case;

typedef struct lq_piece {      /* a quantized linear as one device holds it */
    const lq_legal_case *c;
    const lq_row *row;
    const lq_scheme *s;
    uint32_t parts_r, parts_c; /* devices its outputs, its inputs are split over */
    uint32_t rows, cols;       /* of one of them; rounded down where they do not divide */
    uint32_t tp;
} lq_piece;

typedef enum lq_rule_scope {
    LQ_OF_FORMAT,              /* holds whatever is in it */
    LQ_OF_MODEL,               /* asked once, p->row NULL */
    LQ_OF_LINEAR,              /* asked for every quantized linear */
    LQ_OF_FUSED,               /* asked for every two linears that runtimes run as one, at least one of them quantized */
    LQ_OF_EXPERTS,             /* the same for the experts of a layer */
} lq_rule_scope;

typedef struct lq_rule {
    lq_runtime runtime;
    const char *formats;       /* '|'-separated; "*": all */
    const char *archs;         /* '|'-separated model types it speaks of; NULL: all */
    lq_rule_scope scope;
    bool (*breaks)(const lq_piece *p, const lq_piece *other); /* NULL: always. other: FUSED and EXPERTS only; its s NULL when kept */
    const char *says;          /* the constraint, as a table and a refusal print it */
    const char *source;        /* where it was read or seen */
} lq_rule;
extern const lq_rule lq_rules[]; /* says NULL ends */

typedef struct lq_breach { const lq_rule *rule; const lq_row *row, *other; } lq_breach; /* rows NULL: the whole checkpoint */
/* The first rule that keeps the runtime from loading it; false: none. */
bool lq_legal_breach(const lq_legal_case *c, lq_deploy d, lq_breach *out);
/* LQ_ERR_UNSUPPORTED naming linear, runtime and rule unless every target loads it. */
lq_status lq_legal_check(lq_ctx *ctx, const lq_legal_case *c, const lq_targets *t);
/* One INFO line per runtime that will not load it, and why. */
void lq_legal_notes(lq_ctx *ctx, const lq_legal_case *c);
/* Is the format, with linears of this scheme, loaded by every target as far as shapes do not decide? */
bool lq_legal_format(const char *format, const lq_scheme *s, const lq_targets *t);
/* The format for these targets: `natural` where it will do, else the first that takes the scheme and loads everywhere; NULL: none. */
const char *lq_legal_choose(const char *natural, const lq_scheme *s, const lq_targets *t);

typedef struct lq_legal_run { const lq_plan_opts *opts; const lq_method *method; const void *method_opts; const lq_format *format; const lq_targets *targets; } lq_legal_run;
/* The plan, made so that every target loads the result: an open group size is chosen for it, with --keep-unfit what breaks a rule is kept
 * (with all that is fused with it); otherwise refused with the nearest settings that load. c's catalog is planned. */
lq_status lq_legal_plan(lq_ctx *ctx, const lq_legal_run *run, const lq_legal_case *c, lq_plan *out);
/* The constraints of a format in a runtime beyond those of every format there, joined by "; " into buf, which is returned; "": none. NULL: it
 * does not load the format at all. */
const char *lq_legal_cell(lq_runtime rt, const char *format, char *buf, size_t n);
/* The table: `lquant list targets`. */
void lq_legal_print(FILE *out);
#endif
