/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Option tables: one row drives the command line, recipes ("gptq:damp-percent=0.02"), --help and the generated docs. */
#ifndef LQ_OPTIONS_H
#define LQ_OPTIONS_H
#include "core/mem.h"
#include <jansson.h>
#include <stdio.h>

typedef enum lq_opt_kind {
    LQ_OPT_SET,    /* no argument: *(int *)(target + offset) = value */
    LQ_OPT_INT,    /* *(int64_t *) within [lo, hi] */
    LQ_OPT_REAL,   /* *(double *) within [lo, hi] */
    LQ_OPT_SIZE,   /* *(uint64_t *): 500M, 2G, 5GB, 1GiB; decimal suffixes are powers of 1000, ..iB of 1024 */
    LQ_OPT_CHOICE, /* *(int *) = index in choices */
    LQ_OPT_STRING, /* *(const char **), borrowed from argv */
    LQ_OPT_LIST,   /* *(lq_strlist *), repeatable */
} lq_opt_kind;

typedef struct lq_strlist { const char **v; size_t n; } lq_strlist;

typedef struct lq_opt {
    const char *name;    /* "group-size"; NULL ends the table */
    const char *aliases; /* "q-group-size,g": comma-separated; one letter means -g. NULL: none */
    lq_opt_kind kind;
    size_t offset;       /* in the target structure */
    const char *arg;     /* "N", shown by --help; NULL for SET */
    const char *def;     /* default as text: shown, and applied by lq_opts_defaults; NULL: left as is */
    const char *choices; /* "auto|always|never" */
    double lo, hi;
    int value;           /* SET */
    const char *help;    /* one line; NULL: not listed; "~...": listed by lq_opts_help alone, without the ~ */
} lq_opt;

/* A table and the structure it fills; an array of these ends with table NULL. */
typedef struct lq_optset { const lq_opt *table; void *target; const char *title; } lq_optset;

lq_status lq_opts_defaults(lq_ctx *ctx, const lq_optset *sets);
/* argv[0..argc): flags before or after positionals, --flag value or --flag=value, -x value or -xvalue, "--" ends flags.
 * A negative number is a value, not a flag. Positionals land in pos (at most max_pos). Unknown flag, missing or bad value:
 * LQ_ERR_USAGE with a sentence (and the nearest known flag). Lists grow in memory that lives until lq_opts_free. */
lq_status lq_opts_parse(lq_ctx *ctx, const lq_optset *sets, int argc, char **argv, const char **pos, size_t max_pos, size_t *n_pos);
/* One "key=value" (or "key" for SET) into the sets: recipes. */
lq_status lq_opts_set(lq_ctx *ctx, const lq_optset *sets, const char *key, const char *value);
/* {"name": value} of every option in the sets but those named in skip (comma-separated, may be NULL): what decides the bytes,
 * for manifests. New reference; NULL: out of memory. */
json_t *lq_opts_json(const lq_optset *sets, const char *skip);
void lq_opts_free(const lq_optset *sets);
void lq_opts_help(FILE *out, const lq_optset *sets); /* aligned, with defaults */
uint32_t lq_opts_help_short(FILE *out, const lq_optset *sets); /* the same without the rare ones, whose number it returns */
#endif
