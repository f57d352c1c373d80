/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* tool_calibrate MODEL IDS LENGTH [gram]: ids (int32, raw file) cut into rows of LENGTH, through all blocks as calibration does
 * it; prints tokens per second of the blocks (loading not counted). gram: with the statistics GPTQ needs. */
#include "calib/forward.h"
#include "core/os.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static lq_status nothing(void *user, int32_t block, const lq_stage *stage, const lq_stats *stats) {
    (void)user, (void)block, (void)stage, (void)stats;
    return LQ_OK;
}

static lq_status run(lq_ctx *ctx, char **argv, bool gram) {
    lq_status st;
    lq_source *src = NULL;
    lq_model *m = NULL;
    lq_cache *c = NULL;
    lq_buf ids = {0};
    float *x = NULL;
    uint32_t *len = NULL, length = (uint32_t)atoi(argv[3]);
    double seconds = 0, cpu = 0;
    LQ_GO(lq_file_slurp(ctx, argv[2], 1 << 28, &ids));
    LQ_GO(lq_source_open(ctx, argv[1], &src));
    LQ_GO(lq_model_open(ctx, src, false, &m));
    LQ_GO(lq_model_load(ctx, m, -1, LQ_LOAD_STORED));
    uint32_t rows = (uint32_t)(ids.n / 4 / length), d = m->par.hidden;
    LQ_GO(lq_cache_new(ctx, rows, UINT64_MAX, NULL, &c));
    if (!(x = LQ_NEWN(float, (size_t)length * d)) || !(len = LQ_NEWN(uint32_t, rows))) LQ_GO(lq_oom(ctx, 0));
    for (uint32_t i = 0; i < rows; i++) {
        len[i] = length;
        int32_t *row = (int32_t *)(void *)ids.v + (size_t)i * length;
        for (uint32_t t = 0; t < length; t++) row[t] %= (int32_t)m->par.vocab;
        LQ_GO(lq_embed(ctx, m, row, length, 0, x));
        LQ_GO(lq_cache_put(ctx, c, i, x, (size_t)length * d));
    }
    for (uint32_t b = 0; b < m->par.n_layers; b++) {
        LQ_GO(lq_model_load(ctx, m, (int32_t)b, LQ_LOAD_F32));
        double t0 = lq_now();
        clock_t c0 = clock();
        LQ_GO(lq_block_calibrate(ctx, m, (int32_t)b, c, len, gram ? &(lq_stage_hook){LQ_NEED_GRAM, nothing, NULL, NULL, NULL} : NULL, UINT64_MAX, NULL));
        seconds += lq_now() - t0;
        cpu += (double)(clock() - c0) / CLOCKS_PER_SEC;
        lq_model_unload(m, (int32_t)b);
    }
    printf("%u tokens, %.2f s (%.2f of CPU), %.1f tokens/s, peak %.0f MB\n", rows * length, seconds, cpu, rows * length / seconds, (double)lq_peak_rss() / 1e6);
done:
    lq_cache_free(&c);
    lq_model_free(&m);
    lq_source_free(&src);
    lq_buf_free(&ids);
    lq_free(x);
    lq_free(len);
    return st;
}

int main(int argc, char **argv) {
    lq_ctx ctx = {0};
    if (argc < 4 || atoi(argv[3]) < 1) return fprintf(stderr, "tool_calibrate MODEL IDS LENGTH [gram]\n"), 2;
    lq_status st = run(&ctx, argv, argc > 4);
    if (st) fprintf(stderr, "%s: %s\n", lq_status_text(st), ctx.msg);
    return (int)st;
}
