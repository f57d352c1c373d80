/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* tool_calibrate MODEL IDS LENGTH [gram]: ids (int32, raw file) cut into rows of LENGTH, through all blocks as calibration does
 * it; prints tokens per second of the blocks (loading not counted). gram: with the statistics GPTQ needs. Between the blocks OpenBLAS's sgemm, with
 * threads of its own, multiplies matrices of the block's shapes with as many tokens as a chunk has: the flops of calibration per second (products,
 * attention's keys up to the query, triangles of Gram matrices) are printed as a share of its. */
#include "calib/forward.h"
#include "calib/run.h"
#include "core/os.h"

#include <cblas.h>

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static lq_status nothing(void *user, int32_t block, const lq_stage *stage, const lq_stats *stats) {
    (void)user, (void)block, (void)stage, (void)stats;
    return LQ_OK;
}

static double flops_of(const lq_model *m, const lq_layer *l, double tokens, uint32_t length, bool gram) {
    double n = 2.0 * (length + 1) * m->par.n_heads * m->par.head_dim;
    uint32_t stages[LQ_R_N] = {0};
    for (int i = 0; i < LQ_R_N; i++) {
        n += 2.0 * l->lin[i].rows * l->lin[i].cols;
        stages[i == LQ_R_K || i == LQ_R_V ? LQ_R_Q : i == LQ_R_UP ? LQ_R_GATE : i] = l->lin[i].cols; /* they share their input */
    }
    for (int i = 0; i < LQ_R_N && gram; i++) n += (double)stages[i] * (stages[i] + 1.0);
    return tokens * n;
}

/* Seconds of a chunk's products, the flops of which are added; a dry one of each first. */
static double sgemm(const lq_layer *l, float *x, float *y, uint32_t n, double *flops) {
    double seconds = 0;
    openblas_set_num_threads(lq_threads());
    for (int i = 0; i < LQ_R_N; i++) {
        const lq_linear *w = &l->lin[i];
        for (int again = 0; again < 2 && w->rows; again++) {
            double t0 = lq_now();
            cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)w->rows, (int)w->cols, 1, x, (int)w->cols, w->w, (int)w->cols, 0, y, (int)w->rows);
            if (again) seconds += lq_now() - t0, *flops += 2.0 * n * w->rows * w->cols;
        }
    }
    openblas_set_num_threads(1);
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL); /* its threads look for work for a while */
    return seconds;
}

static uint32_t widest(const lq_layer *l) {
    uint32_t most = 0;
    for (int i = 0; i < LQ_R_N; i++) {
        const lq_linear *w = &l->lin[i];
        most = w->rows > most ? w->rows : most;
        most = w->cols > most ? w->cols : most;
    }
    return most;
}

static lq_status run(lq_ctx *ctx, char **argv, bool gram) {
    lq_status st;
    lq_source *src = NULL;
    lq_model *m = NULL;
    lq_cache *c = NULL;
    lq_buf ids = {0};
    float *x = NULL;
    uint32_t *len = NULL, length = (uint32_t)atoi(argv[3]);
    double seconds = 0, cpu = 0, flops = 0, blas = 0, blas_flops = 0;
    float *a = NULL, *y = NULL;
    enum { CHUNK = 2048 };
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
        flops += flops_of(m, &m->layers[b], (double)rows * length, length, gram);
        size_t room = (size_t)CHUNK * widest(&m->layers[b]);
        if (!a && (!(a = lq_calloc(room, 4)) || !(y = lq_calloc(room, 4)))) LQ_GO(lq_oom(ctx, room * 4));
        for (size_t i = 0; b == 0 && i < room; i++) a[i] = (float)(i % 13) - 6;
        blas += sgemm(&m->layers[b], a, y, CHUNK, &blas_flops);
        lq_model_unload(m, (int32_t)b);
    }
    printf("%.1f GFLOP/s, sgemm %.1f: %.1f %%\n", flops / seconds * 1e-9, blas_flops / blas * 1e-9, 100 * (flops / seconds) / (blas_flops / blas));
    printf("%u tokens, %.2f s (%.2f of CPU), %.1f tokens/s, peak %.0f MB\n", rows * length, seconds, cpu, rows * length / seconds, (double)lq_peak_rss() / 1e6);
done:
    lq_cache_free(&c);
    lq_model_free(&m);
    lq_source_free(&src);
    lq_buf_free(&ids);
    lq_free(x);
    lq_free(a);
    lq_free(y);
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
