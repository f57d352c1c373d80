/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Texts from files and from the binary, zstd undone. */
#include "calib/corpus.h"

#include <zstd.h>

const char lq_text_builtin_name[] = "built-in text (lquant calibration 1)";
extern const unsigned char lq_builtin_text_zst[], lq_builtin_text_zst_end[];

static bool is_zstd(const unsigned char *p, size_t n) {
    return n >= 4 && p[0] == 0x28 && p[1] == 0xb5 && p[2] == 0x2f && p[3] == 0xfd;
}

/* Frames one after the other, as zstd(1) writes and reads them. */
static lq_status inflate(lq_ctx *ctx, const char *name, const void *data, size_t n, lq_buf *out) {
    lq_status st = LQ_OK;
    size_t step = ZSTD_DStreamOutSize(), left = 1;
    char *chunk = lq_alloc(step);
    ZSTD_DStream *z = ZSTD_createDStream();
    ZSTD_inBuffer in = {data, n, 0};
    if (!chunk || !z) LQ_GO(lq_oom(ctx, step));
    while (in.pos < in.size) {
        ZSTD_outBuffer to = {chunk, step, 0};
        size_t before = in.pos;
        left = ZSTD_decompressStream(z, &to, &in);
        if (ZSTD_isError(left)) LQ_GO(lq_fail(ctx, LQ_ERR_FORMAT, "%s: zstd: %s", name, ZSTD_getErrorName(left)));
        if (out->n + to.pos > LQ_TEXT_MAX) LQ_GO(lq_fail(ctx, LQ_ERR_FORMAT, "%s: more than %d bytes of text", name, LQ_TEXT_MAX));
        if (!lq_buf_add(out, chunk, to.pos)) LQ_GO(lq_oom(ctx, out->n + to.pos));
        if (in.pos == before && !to.pos) break;
    }
    for (bool full = true; left && full;) { /* what the decoder still holds */
        ZSTD_outBuffer to = {chunk, step, 0};
        left = ZSTD_decompressStream(z, &to, &in);
        if (ZSTD_isError(left) || out->n + to.pos > LQ_TEXT_MAX) break;
        if (!lq_buf_add(out, chunk, to.pos)) LQ_GO(lq_oom(ctx, out->n + to.pos));
        full = to.pos > 0;
    }
    if (left) st = lq_fail(ctx, LQ_ERR_FORMAT, "%s: zstd: the data end inside a frame", name);
done:
    ZSTD_freeDStream(z);
    lq_free(chunk);
    return st;
}

lq_status lq_text_unpack(lq_ctx *ctx, const char *name, const void *data, size_t n, lq_buf *out) {
    *out = (lq_buf){0};
    lq_status st = LQ_OK;
    if (is_zstd(data, n)) st = inflate(ctx, name, data, n, out);
    else if (!lq_buf_add(out, data, n)) st = lq_oom(ctx, n);
    if (!st && !out->v && !lq_buf_add(out, "", 0)) st = lq_oom(ctx, 1);
    if (st) lq_buf_free(out);
    return st;
}

lq_status lq_text_load(lq_ctx *ctx, const char *path, lq_buf *out) {
    lq_buf raw;
    *out = (lq_buf){0};
    LQ_TRY(lq_file_slurp(ctx, path, LQ_TEXT_MAX, &raw));
    if (!is_zstd((const unsigned char *)raw.v, raw.n)) {
        *out = raw;
        return LQ_OK;
    }
    lq_status st = lq_text_unpack(ctx, path, raw.v, raw.n, out);
    lq_buf_free(&raw);
    return st;
}

lq_status lq_text_builtin(lq_ctx *ctx, lq_buf *out) {
    size_t n = (size_t)(lq_builtin_text_zst_end - lq_builtin_text_zst);
    return lq_text_unpack(ctx, lq_text_builtin_name, lq_builtin_text_zst, n, out);
}
