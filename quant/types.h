/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Named schemes: what --scheme, --tensor-type and a method's default may say. */
#ifndef LQ_TYPES_H
#define LQ_TYPES_H
#include "core/qtensor.h"

enum { LQ_TYPE_GROUP = 1, LQ_TYPE_SYM = 2, LQ_TYPE_ACT = 4, LQ_TYPE_SOURCE = 8 }; /* what -gN / -row, -sym / -asym / -fz, -static may change; SOURCE: the input's float type */

typedef struct lq_type {
    const char *name, *what;
    unsigned knobs;
    bool keep;               /* "keep": not quantized, no scheme */
    lq_scheme scheme;        /* with group size 128 where there is one */
} lq_type;
extern const lq_type lq_types[]; /* `lquant list types`; name NULL ends */

typedef struct lq_want {     /* what a linear is to become */
    bool keep;
    bool open;               /* the group size is still to be chosen: lq_want_group */
    unsigned knobs;
    lq_scheme scheme;
    lq_dtype as;             /* keep: the float type it is kept in; NONE: as the input has it */
} lq_want;

typedef struct lq_type_defaults { int64_t group; int asym; bool f16_scales; } lq_type_defaults; /* group 0: open, -1: one scale per row */

/* NAME[-sym|-asym|-fz][-gN|-row|-tensor][-static]: a row of lq_types with the defaults, then the suffixes, applied where the type
 * has such a knob; a suffix the type does not have is LQ_ERR_USAGE, a default it does not have is ignored. */
lq_status lq_type_parse(lq_ctx *ctx, const char *text, const lq_type_defaults *d, lq_want *out);
/* Sets the group size of a type that has one; -1: one scale per row. */
void lq_want_group(lq_want *w, int64_t group);
int64_t lq_scheme_group(const lq_scheme *s); /* -1: one scale per row, 0: another kind of tile */
#endif
