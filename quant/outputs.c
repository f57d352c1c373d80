/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "quant/outputs.h"

#include <string.h>

void lq_outputs_one(lq_outputs *o, const lq_format *f) { *o = (lq_outputs){.format = {f}, .n = 1}; }

static const lq_format *by_suffix(const char *out) {
    const char *dot = out ? strrchr(lq_path_base(out), '.') : NULL;
    for (const lq_format *const *f = lq_formats; *f && dot; f++)
        if ((*f)->ext && !strcmp((*f)->ext, dot)) return *f;
    return NULL;
}

lq_status lq_outputs_parse(lq_ctx *ctx, const char *list, const char *out, lq_outputs *o) {
    *o = (lq_outputs){.many = list && strchr(list, ',')};
    if (!list) {
        const lq_format *f = by_suffix(out);
        if (f) lq_outputs_one(o, f);
        return LQ_OK;
    }
    for (const char *p = list;; p++) {
        char name[64] = "";
        size_t n = strcspn(p, ",");
        if (n < sizeof name) memcpy(name, p, n);
        const lq_format *f = lq_format_by_name(name);
        if (!f) return lq_fail(ctx, LQ_ERR_USAGE, "unknown format '%.*s'; lquant list formats prints the known ones", (int)n, p);
        for (size_t i = 0; i < o->n; i++)
            if (o->format[i] == f) return lq_fail(ctx, LQ_ERR_USAGE, "--format %s: %s is there twice", list, name);
        if (o->n == LQ_OUTPUTS) return lq_fail(ctx, LQ_ERR_USAGE, "--format %s: at most %d formats in a run", list, LQ_OUTPUTS);
        o->format[o->n++] = f;
        if (!*(p += n)) return LQ_OK;
    }
}

char *lq_outputs_dir(const lq_outputs *o, size_t i, const lq_job *job) { return o->many ? lq_path_join(job->partial, o->format[i]->name) : lq_strdup(job->partial); }

char *lq_outputs_path(const lq_outputs *o, size_t i, const char *dir) { return o->format[i]->ext ? lq_strf("%s/model%s", dir, o->format[i]->ext) : lq_strdup(dir); }

char *lq_outputs_name(const lq_outputs *o, size_t i, const char *out) {
    return o->many ? lq_strf("%s/%s%s", out, o->format[i]->name, o->format[i]->ext ? o->format[i]->ext : "") : lq_strdup(out);
}

lq_status lq_outputs_begin(lq_ctx *ctx, const lq_outputs *o, lq_job *job) {
    LQ_TRY(lq_job_clean(ctx, job));
    for (size_t i = 0; i < o->n && o->many; i++) {
        char *dir = lq_outputs_dir(o, i, job);
        lq_status st = dir ? lq_remove_tree(ctx, dir) : lq_oom(ctx, 256);
        if (!st) st = lq_mkdir(ctx, dir);
        lq_free(dir);
        LQ_TRY(st);
    }
    return LQ_OK;
}

/* A file leaves its folder. */
static lq_status lift(lq_ctx *ctx, const lq_outputs *o, size_t i, const lq_job *job) {
    char *dir = lq_outputs_dir(o, i, job), *from = dir ? lq_outputs_path(o, i, dir) : NULL, *to = lq_outputs_name(o, i, job->partial);
    lq_status st = from && to ? lq_rename(ctx, from, to) : lq_oom(ctx, 256);
    if (!st) st = lq_remove_tree(ctx, dir);
    lq_free(dir);
    lq_free(from);
    lq_free(to);
    return st;
}

lq_status lq_outputs_finish(lq_ctx *ctx, const lq_outputs *o, lq_job *job) {
    for (size_t i = 0; i < o->n && o->many; i++)
        if (o->format[i]->ext) LQ_TRY(lift(ctx, o, i, job));
    if (o->many || !o->format[0]->ext) return lq_job_finish(ctx, job, NULL);
    char *file = lq_strf("model%s", o->format[0]->ext);
    lq_status st = file ? lq_job_finish(ctx, job, file) : lq_oom(ctx, 64);
    lq_free(file);
    return st;
}
