/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* tool_logits MODEL IDS OUT [decode | f32]: ids (int32, raw file) through the model; OUT: logits as raw f32 [n][vocab].
 * decode: one token at a time through the KV cache. f32: weights decoded at load. For scripts/peers/check_forward.py. */
#include "calib/forward.h"
#include "core/os.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

enum { BATCH = 32 };

static lq_status write_logits(lq_ctx *ctx, const lq_model *m, lq_state *s, const int32_t *ids, uint32_t n, bool decode, const char *path) {
    lq_status st = LQ_OK;
    lq_out *out = NULL;
    float *hidden = LQ_NEWN(float, (size_t)n * m->par.hidden), *logits = LQ_NEWN(float, (size_t)BATCH * m->par.vocab);
    if (!hidden || !logits) LQ_GO(lq_oom(ctx, n));
    double t0 = lq_now();
    clock_t c0 = clock();
    if (!decode) LQ_GO(lq_forward(ctx, s, ids, n, hidden));
    for (uint32_t i = 0; decode && i < n; i++) LQ_GO(lq_forward(ctx, s, ids + i, 1, hidden + (size_t)i * m->par.hidden));
    fprintf(stderr, "%u tokens, %.3f s (%.3f of CPU), %.1f tokens/s\n", n, lq_now() - t0, (double)(clock() - c0) / CLOCKS_PER_SEC,
            n / (lq_now() - t0));
    LQ_GO(lq_out_create(ctx, path, &out));
    for (uint32_t i = 0; i < n; i += BATCH) {
        uint32_t k = n - i < BATCH ? n - i : BATCH;
        LQ_GO(lq_logits(ctx, m, hidden + (size_t)i * m->par.hidden, k, logits));
        LQ_GO(lq_out_write(ctx, out, logits, (size_t)k * m->par.vocab * 4));
    }
    LQ_GO(lq_out_close(ctx, &out));
done:
    lq_out_abandon(&out);
    lq_free(hidden);
    lq_free(logits);
    return st;
}

static lq_status run(lq_ctx *ctx, char **argv, const char *mode) {
    lq_status st;
    lq_source *src = NULL;
    lq_model *m = NULL;
    lq_state *s = NULL;
    lq_buf ids = {0};
    LQ_GO(lq_file_slurp(ctx, argv[2], 1 << 28, &ids));
    LQ_GO(lq_source_open(ctx, argv[1], &src));
    LQ_GO(lq_model_open(ctx, src, false, &m));
    LQ_GO(lq_model_load_all(ctx, m, strcmp(mode, "f32") ? LQ_LOAD_STORED : LQ_LOAD_F32));
    LQ_GO(lq_state_new(ctx, m, (uint32_t)(ids.n / 4), &s));
    LQ_GO(write_logits(ctx, m, s, (const int32_t *)(const void *)ids.v, (uint32_t)(ids.n / 4), !strcmp(mode, "decode"), argv[3]));
done:
    lq_state_free(&s);
    lq_model_free(&m);
    lq_source_free(&src);
    lq_buf_free(&ids);
    return st;
}

int main(int argc, char **argv) {
    lq_ctx ctx = {0};
    if (argc < 4) return fprintf(stderr, "tool_logits MODEL IDS OUT [decode | f32]\n"), 2;
    lq_status st = run(&ctx, argv, argc > 4 ? argv[4] : "");
    if (st) fprintf(stderr, "%s: %s\n", lq_status_text(st), ctx.msg);
    return (int)st;
}
