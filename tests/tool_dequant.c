/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* tool_dequant MODEL            prints one line per quantized entry: name, scheme, rows, cols
 * tool_dequant MODEL NAME OUT   writes entry NAME as rows x cols little-endian f32 (what scripts/peers compare with) */
#include "core/num.h"
#include "formats/source.h"

#include <stdio.h>

static lq_status list(const lq_source *s) {
    char name[64];
    for (size_t i = 0; i < s->n; i++) {
        const lq_entry *e = &s->entries[i];
        if (e->dtype == LQ_NONE)
            printf("%s %s %llu %llu\n", e->name, lq_scheme_name(&e->scheme, name, sizeof name), (unsigned long long)e->shape[0], (unsigned long long)e->shape[1]);
    }
    return LQ_OK;
}

static lq_status dequant(lq_ctx *ctx, lq_source *s, const char *name, const char *path) {
    lq_out *out = NULL;
    lq_qtensor q;
    long i = lq_source_find(s, name);
    if (i < 0) return lq_fail(ctx, LQ_ERR_USAGE, "no entry '%s'", name);
    LQ_TRY(lq_source_read_q(ctx, s, (size_t)i, &q));
    lq_status st = LQ_OK;
    float *row = LQ_NEWN(float, q.cols);
    if (!row) { st = lq_oom(ctx, q.cols * sizeof *row); goto done; }
    LQ_GO(lq_out_create(ctx, path, &out));
    for (uint32_t r = 0; r < q.rows; r++) {
        lq_qtensor_decode_row(&q, r, row);
        LQ_GO(lq_out_write(ctx, out, row, q.cols * sizeof *row));
    }
    st = lq_out_close(ctx, &out);
done:
    lq_out_abandon(&out);
    lq_free(row);
    lq_qtensor_free(&q);
    return st;
}

int main(int argc, char **argv) {
    lq_ctx ctx = {0};
    lq_source *s = NULL;
    if (argc != 2 && argc != 4) return fprintf(stderr, "usage: tool_dequant MODEL [NAME OUT]\n"), LQ_ERR_USAGE;
    lq_status st = lq_source_open(&ctx, argv[1], &s);
    if (!st) st = argc == 2 ? list(s) : dequant(&ctx, s, argv[2], argv[3]);
    if (st) fprintf(stderr, "tool_dequant: %s\n", ctx.msg);
    lq_source_free(&s);
    return (int)st;
}
