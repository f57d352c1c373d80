/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* --fisher FILE: safetensors with one tensor per linear, named as its weight, of its shape: the mean over samples of the squared
 * gradient (scripts/peers/fisher.py computes one). Methods see numbers only. */
#include "quant/road.h"

#include <math.h>

lq_status lq_fisher_open(road *r) {
    const char *path = r->run->opts.fisher;
    const lq_method *m = r->run->recipe.method;
    if (!path) return LQ_OK;
    if (!m->takes_fisher) return lq_fail(r->ctx, LQ_ERR_USAGE, "--fisher: %s makes no use of it", m->name);
    r->needs = 0;
    return lq_source_open_as(r->ctx, &lq_reader_safetensors, path, &r->fisher);
}

lq_status lq_fisher_read(road *r, const lq_row *row, float **out) {
    *out = NULL;
    if (!r->fisher) return LQ_OK;
    long i = lq_source_find(r->fisher, row->name);
    const lq_entry *e = i < 0 ? NULL : &r->fisher->entries[i];
    if (!e) return lq_fail(r->ctx, LQ_ERR_FORMAT, "%s: holds no '%s'", r->run->opts.fisher, row->name);
    if (e->dtype != LQ_F32 || lq_entry_rows(e) != lq_row_rows(row) || lq_entry_cols(e) != lq_row_cols(row))
        return lq_fail(r->ctx, LQ_ERR_FORMAT, "%s: '%s' is %llu x %llu of %s, expected %u x %u of F32", r->run->opts.fisher, row->name,
                       (unsigned long long)lq_entry_rows(e), (unsigned long long)lq_entry_cols(e), lq_dtypes[e->dtype].name, lq_row_rows(row), lq_row_cols(row));
    size_t n = (size_t)lq_row_elems(row);
    if (!(*out = lq_calloc(n, sizeof **out))) return lq_oom(r->ctx, n * sizeof **out);
    LQ_TRY(lq_source_read(r->ctx, r->fisher, (size_t)i, 0, lq_row_rows(row), *out));
    for (size_t k = 0; k < n; k++)
        if (!((*out)[k] >= 0 && (*out)[k] < INFINITY)) return lq_fail(r->ctx, LQ_ERR_FORMAT, "%s: '%s' has a value of %g", r->run->opts.fisher, row->name, (double)(*out)[k]);
    return LQ_OK;
}
