/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* tool_blocks TYPE minmax|search|signed ROWS COLS WEIGHTS IMPORTANCE|- OUT: F32 weights [ROWS][COLS], fitted under F32 importance [COLS] and
 * rounded, as ggml blocks; NVFP4's one F32 is printed. For scripts/peers/check_gguf_types.py. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/os.h"
#include "formats/gguf_blocks.h"
#include "quant/grid.h"

static lq_status run(lq_ctx *ctx, char **arg) {
    lq_buf w = {0}, h = {0};
    lq_qtensor q = {0};
    lq_scheme s;
    lq_status st = LQ_OK;
    lq_dtype t = lq_dtype_by_name(arg[1]);
    lq_fit how = !strcmp(arg[2], "minmax") ? LQ_FIT_MINMAX : !strcmp(arg[2], "search") ? LQ_FIT_SEARCH : LQ_FIT_SEARCH_SIGNED;
    uint32_t rows = (uint32_t)strtoul(arg[3], NULL, 10), cols = (uint32_t)strtoul(arg[4], NULL, 10);
    size_t bytes = lq_dtype_row_bytes(t, cols);
    char *row = lq_alloc(bytes + 1);
    FILE *out = fopen(arg[7], "wb");
    if (!row || !out || !lq_gguf_scheme(t, &s)) LQ_GO(lq_fail(ctx, LQ_ERR_USAGE, "no blocks of type %s, or %s cannot be written", arg[1], arg[7]));
    LQ_GO(lq_file_slurp(ctx, arg[5], SIZE_MAX / 4, &w));
    if (strcmp(arg[6], "-")) LQ_GO(lq_file_slurp(ctx, arg[6], SIZE_MAX / 4, &h));
    if (w.n != (size_t)rows * cols * 4 || (h.n && h.n != (size_t)cols * 4)) LQ_GO(lq_fail(ctx, LQ_ERR_USAGE, "%zu and %zu bytes for %u x %u", w.n, h.n, rows, cols));
    LQ_GO(lq_qtensor_init(ctx, &q, &s, (lq_slot){0}, rows, cols));
    LQ_GO(lq_grid_fit(ctx, &q, (const float *)(const void *)w.v, h.n ? (const float *)(const void *)h.v : NULL, how));
    lq_grid_round(&q, (const float *)(const void *)w.v);
    if (t == LQ_NVFP4) printf("%.9g\n", (double)*(float *)q.scale.parent);
    for (uint32_t r = 0; r < rows; r++) {
        LQ_GO(lq_gguf_pack_row(ctx, t, &q, r, row));
        if (fwrite(row, 1, bytes, out) != bytes) LQ_GO(lq_fail(ctx, LQ_ERR_RESOURCE, "%s: not written", arg[7]));
    }
done:
    if (out && fclose(out) && !st) st = lq_fail(ctx, LQ_ERR_RESOURCE, "%s: not written", arg[7]);
    lq_qtensor_free(&q);
    lq_free(row);
    lq_buf_free(&w);
    lq_buf_free(&h);
    return st;
}

int main(int argc, char **argv) {
    lq_ctx ctx = {0};
    if (argc != 8) return 2;
    lq_status st = run(&ctx, argv);
    if (st) fprintf(stderr, "%s\n", ctx.msg);
    return st;
}
