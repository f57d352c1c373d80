/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* OUT.partial/            the work folder, renamed to OUT at the end
 *   .journal/job          fingerprint of the job that owns the folder
 *   .journal/unit-00007   one finished unit (a block, or a linear of a data-free method) */
#include "quant/job.h"

#include <string.h>

static char *unit_path(const lq_job *j, uint32_t unit, const char *suffix) { return lq_strf("%s/unit-%05u%s", j->journal, unit, suffix); }

static lq_status begin(lq_ctx *ctx, lq_job *j, const char *fingerprint) {
    LQ_TRY(lq_mkdir(ctx, j->partial));
    LQ_TRY(lq_mkdir(ctx, j->journal));
    char *path = lq_path_join(j->journal, "job");
    lq_status st = path ? lq_write_file(ctx, path, fingerprint, strlen(fingerprint)) : lq_oom(ctx, 256);
    lq_free(path);
    return st;
}

/* Who owns OUT.partial: 0 nobody, 1 this job, -1 another. */
static int owner(const lq_job *j, const char *fingerprint) {
    if (!lq_path_exists(j->partial)) return 0;
    char *path = lq_path_join(j->journal, "job");
    lq_buf b = {0};
    int who = path && !lq_file_slurp(NULL, path, 256, &b) && !strcmp(b.v, fingerprint) ? 1 : -1;
    lq_buf_free(&b);
    lq_free(path);
    return who;
}

static lq_status check_out(lq_ctx *ctx, const lq_job *j, const char *in) {
    if (!lq_path_exists(j->out)) return LQ_OK;
    if (lq_path_same(in, j->out)) return lq_fail(ctx, LQ_ERR_USAGE, "%s: is the input; choose another output", j->out);
    size_t n = strlen(j->out);
    if (!strncmp(in, j->out, n) && in[n] == '/') return lq_fail(ctx, LQ_ERR_USAGE, "%s: holds the input; choose another output", j->out);
    if (!j->overwrite) return lq_fail(ctx, LQ_ERR_USAGE, "%s exists; --overwrite replaces it when the new one is complete", j->out);
    return LQ_OK;
}

lq_status lq_job_open(lq_ctx *ctx, lq_job *j, const char *in, const char *out, const char *fingerprint, lq_resume resume, bool overwrite) {
    *j = (lq_job){.out = lq_strdup(out), .overwrite = overwrite};
    for (size_t n = j->out ? strlen(j->out) : 0; n > 1 && j->out[n - 1] == '/'; n--) j->out[n - 1] = 0;
    j->partial = lq_strf("%s.partial", j->out ? j->out : "");
    j->journal = j->partial ? lq_path_join(j->partial, ".journal") : NULL;
    if (!j->out || !j->journal) return lq_oom(ctx, 256);
    LQ_TRY(check_out(ctx, j, in));
    int who = owner(j, fingerprint);
    if (who < 0 && !lq_path_exists(j->journal)) return lq_fail(ctx, LQ_ERR_USAGE, "%s exists and is no folder of a run; it is in the way", j->partial);
    if (who < 0 && resume != LQ_RESUME_NEVER)
        return lq_fail(ctx, LQ_ERR_MISMATCH, "%s belongs to a run with other inputs or options; --resume never starts anew", j->partial);
    if (who == 0 && resume == LQ_RESUME_ONLY) return lq_fail(ctx, LQ_ERR_MISMATCH, "%s: there is no run to resume", j->partial);
    if (who && resume == LQ_RESUME_NEVER) {
        LQ_TRY(lq_remove_tree(ctx, j->partial));
        who = 0;
    }
    j->resumed = who > 0;
    return who ? LQ_OK : begin(ctx, j, fingerprint);
}

bool lq_job_has(const lq_job *j, uint32_t unit) {
    char *path = unit_path(j, unit, "");
    bool has = path && lq_path_exists(path);
    lq_free(path);
    return has;
}

lq_status lq_job_store(lq_ctx *ctx, lq_job *j, uint32_t unit, const lq_buf *data) {
    char *path = unit_path(j, unit, ""), *temp = unit_path(j, unit, ".new");
    lq_status st = LQ_OK;
    if (!path || !temp) { st = lq_oom(ctx, 256); goto done; }
    LQ_GO(lq_remove_tree(ctx, temp));
    LQ_GO(lq_write_file(ctx, temp, data->v, data->n));
    st = lq_rename(ctx, temp, path);
done:
    lq_free(path);
    lq_free(temp);
    return st;
}

lq_status lq_job_load(lq_ctx *ctx, const lq_job *j, uint32_t unit, lq_buf *data) {
    char *path = unit_path(j, unit, "");
    *data = (lq_buf){0};
    lq_status st = path ? lq_file_slurp(ctx, path, SIZE_MAX / 4, data) : lq_oom(ctx, 256);
    lq_free(path);
    return st;
}

lq_status lq_job_clean(lq_ctx *ctx, lq_job *j) {
    char **names;
    size_t n;
    LQ_TRY(lq_dir_list(ctx, j->partial, &names, &n));
    lq_status st = LQ_OK;
    for (size_t i = 0; i < n && !st; i++) {
        char *path = lq_path_join(j->partial, names[i]);
        st = path ? lq_remove_tree(ctx, path) : lq_oom(ctx, 256);
        lq_free(path);
    }
    lq_names_free(&names, n);
    return st;
}

lq_status lq_job_finish(lq_ctx *ctx, lq_job *j, const char *file) {
    char *old = NULL, *from = file ? lq_path_join(j->partial, file) : lq_strdup(j->partial);
    lq_status st = LQ_OK;
    if (!from) return lq_oom(ctx, 256);
    if (!file) {
        LQ_GO(lq_remove_tree(ctx, j->journal));
        LQ_GO(lq_dir_sync(ctx, j->partial));
    }
    if (lq_path_exists(j->out)) {
        if (!j->overwrite) { st = lq_fail(ctx, LQ_ERR_USAGE, "%s appeared while the run was going; the result is in %s", j->out, j->partial); goto done; }
        old = lq_strf("%s.replaced", j->out);
        if (!old) { st = lq_oom(ctx, 256); goto done; }
        LQ_GO(lq_remove_tree(ctx, old));
        LQ_GO(lq_rename(ctx, j->out, old));
    }
    LQ_GO(lq_rename(ctx, from, j->out));
    if (old) LQ_GO(lq_remove_tree(ctx, old));
    if (file) st = lq_remove_tree(ctx, j->partial);
done:
    lq_free(old);
    lq_free(from);
    return st;
}

static bool has_units(const lq_job *j) {
    char **names;
    size_t n, units = 0;
    if (lq_dir_list(NULL, j->journal, &names, &n)) return false;
    for (size_t i = 0; i < n; i++) units += !strncmp(names[i], "unit-", 5) && !strstr(names[i], ".new");
    lq_names_free(&names, n);
    return units > 0;
}

void lq_job_fail(lq_ctx *ctx, lq_job *j, lq_status why) {
    lq_ctx quiet = {0}; /* the first failure's sentence stays in ctx */
    if (!j->journal || !lq_path_exists(j->partial) || why == LQ_ERR_MISMATCH || why == LQ_ERR_USAGE) return;
    if (why == LQ_ERR_QUALITY) {
        char *failed = lq_strf("%s.failed", j->out);
        if (failed && !lq_remove_tree(&quiet, failed) && !lq_rename(&quiet, j->partial, failed)) lq_log(ctx, LQ_LOG_WARN, "what there is lies in %s", failed);
        lq_free(failed);
    } else if (why != LQ_ERR_FORMAT && why != LQ_ERR_UNSUPPORTED && has_units(j)) {
        lq_log(ctx, LQ_LOG_WARN, "finished parts stay in %s; the same command continues from there", j->partial);
    } else {
        lq_remove_tree(&quiet, j->partial);
    }
}

void lq_job_close(lq_job *j) {
    lq_free(j->out);
    lq_free(j->partial);
    lq_free(j->journal);
    *j = (lq_job){0};
}
