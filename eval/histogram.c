/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "eval/histogram.h"

#include "core/pack.h"

#include <math.h>
#include <string.h>

enum { LOW = -150, BINS = 280, CODES = 256 };
typedef struct spread {
    char type[64];
    uint64_t tensors, scales, zero, bin[BINS], code[CODES], n_codes;
    uint32_t bits;
    double least, most;
} spread;

static spread *of_type(lq_ctx *ctx, spread **all, size_t *n, const char *type) {
    for (size_t i = 0; i < *n; i++)
        if (!strcmp((*all)[i].type, type)) return &(*all)[i];
    spread *more = lq_realloc(*all, *n * sizeof *more, (*n + 1) * sizeof *more);
    if (!more) return lq_oom(ctx, sizeof *more), NULL;
    *all = more;
    snprintf(more[*n].type, sizeof more->type, "%s", type);
    return &more[(*n)++];
}

static void add_scales(spread *s, const lq_qtensor *q) {
    size_t n = lq_plane_count(&q->sch.scale, q->rows, q->cols);
    for (size_t i = 0; i < n; i++) {
        double v = fabs((double)lq_plane_get(&q->sch.scale, &q->scale, i));
        int e;
        s->scales++;
        s->zero += v == 0;
        if (v == 0) continue;
        if (!s->least || v < s->least) s->least = v;
        if (v > s->most) s->most = v;
        frexp(v, &e);
        e -= 1 + LOW;
        s->bin[e < 0 ? 0 : e >= BINS ? BINS - 1 : e]++;
    }
}

static void add_codes(spread *s, const lq_qtensor *q) {
    s->bits = q->sch.grid.bits;
    if (s->bits > 8) return;
    for (uint32_t r = 0; r < q->rows; r++)
        for (uint32_t c = 0; c < q->cols; c++) s->code[lq_code_get(q->codes + r * q->row_bytes, s->bits, c)]++;
    s->n_codes += (uint64_t)q->rows * q->cols;
}

static double entropy(const spread *s) {
    double h = 0;
    for (int i = 0; i < CODES; i++)
        if (s->code[i]) h -= (double)s->code[i] / (double)s->n_codes * log2((double)s->code[i] / (double)s->n_codes);
    return h;
}

static json_t *one_json(const spread *s) {
    json_t *bins = json_array();
    for (int i = 0; bins && i < BINS; i++)
        if (s->bin[i]) json_array_append_new(bins, json_pack("[i, I]", i + LOW, (json_int_t)s->bin[i]));
    return json_pack("{s:s, s:I, s:I, s:I, s:f, s:f, s:f, s:i, s:o}", "type", s->type, "tensors", (json_int_t)s->tensors, "scales", (json_int_t)s->scales, "zero", (json_int_t)s->zero,
                     "least", s->least, "most", s->most, "code_bits", entropy(s), "codes", (int)s->bits, "bins", bins);
}

lq_status lq_histogram_json(lq_ctx *ctx, lq_source *src, json_t **out) {
    spread *all = NULL, *s;
    size_t n = 0;
    char type[64];
    lq_qtensor q = {0};
    lq_status st = LQ_OK;
    *out = NULL;
    for (size_t i = 0; i < src->n; i++) {
        const lq_entry *e = &src->entries[i];
        if (!e->scheme.grid.bits) continue;
        LQ_GO(lq_check_cancel(ctx));
        LQ_GO(lq_source_read_q(ctx, src, i, &q));
        if (!(s = of_type(ctx, &all, &n, e->dtype == LQ_NONE ? lq_scheme_name(&e->scheme, type, sizeof type) : lq_dtypes[e->dtype].name))) LQ_GO(LQ_ERR_RESOURCE);
        s->tensors++;
        add_scales(s, &q);
        add_codes(s, &q);
        lq_qtensor_free(&q);
    }
    *out = json_array();
    for (size_t i = 0; *out && i < n; i++) json_array_append_new(*out, one_json(&all[i]));
    if (!*out) st = lq_oom(ctx, 256);
done:
    lq_qtensor_free(&q);
    lq_free(all);
    return st;
}

static bool bars(const json_t *bins, lq_buf *out) {
    json_int_t most = 1;
    size_t i;
    json_t *b;
    bool ok = true;
    json_array_foreach(bins, i, b)
        if (json_integer_value(json_array_get(b, 1)) > most) most = json_integer_value(json_array_get(b, 1));
    json_array_foreach(bins, i, b) {
        json_int_t n = json_integer_value(json_array_get(b, 1));
        char bar[49];
        size_t len = (size_t)(48 * n / most);
        memset(bar, '#', len);
        bar[len] = 0;
        ok = ok && lq_buf_addf(out, "              2^%-5" JSON_INTEGER_FORMAT "%12" JSON_INTEGER_FORMAT "  %s\n", json_integer_value(json_array_get(b, 0)), n, bar);
    }
    return ok;
}

lq_status lq_histogram_text(lq_ctx *ctx, const json_t *v, lq_buf *out) {
    size_t i;
    json_t *s;
    bool ok = true;
    json_array_foreach(v, i, s) {
        json_int_t n = json_integer_value(json_object_get(s, "scales"));
        ok = ok && lq_buf_addf(out, "scales        %s: %" JSON_INTEGER_FORMAT " tensors, %" JSON_INTEGER_FORMAT " scales", json_string_value(json_object_get(s, "type")),
                               json_integer_value(json_object_get(s, "tensors")), n);
        if (n) ok = ok && lq_buf_addf(out, " from %.4g to %.4g, %" JSON_INTEGER_FORMAT " are 0", json_number_value(json_object_get(s, "least")),
                                      json_number_value(json_object_get(s, "most")), json_integer_value(json_object_get(s, "zero")));
        ok = ok && lq_buf_addf(out, "; codes hold %.3f of their %" JSON_INTEGER_FORMAT " bits\n", json_number_value(json_object_get(s, "code_bits")),
                               json_integer_value(json_object_get(s, "codes")));
        ok = ok && bars(json_object_get(s, "bins"), out);
    }
    return ok ? LQ_OK : lq_oom(ctx, out->n);
}
