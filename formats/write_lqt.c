/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* lqt: quantize once, export many. Layout: lqt.h. The same puts give the same bytes: fixed zstd parameters, no time, no host. */
#include "formats/lqt.h"
#include "formats/write.h"

#include <string.h>
#include <zstd.h>

typedef struct lq_lqt {
    lq_out *out;
    ZSTD_CCtx *zstd;
    lq_buf packed, raw;          /* scratch: a compressed frame, an encoded matrix */
    json_t **frames;             /* [cat->n] "frames" of each row */
    uint64_t *holds;             /* [cat->n] lq_qtensor_bytes of each quantized row */
    json_t *sidecars;            /* array of {"name", "frames"} */
} lq_lqt;

static lq_status lqt_accept(lq_ctx *ctx, const lq_scheme *s, uint32_t rows, uint32_t cols) { return lq_scheme_check(ctx, s, rows, cols); }

static lq_status start_zstd(lq_sink *s, lq_lqt *f) {
    if (!(f->zstd = ZSTD_createCCtx())) return lq_oom(s->ctx, 1 << 20);
    size_t e = ZSTD_CCtx_setParameter(f->zstd, ZSTD_c_compressionLevel, LQT_LEVEL);
    if (!ZSTD_isError(e)) e = ZSTD_CCtx_setParameter(f->zstd, ZSTD_c_checksumFlag, 1);
    return ZSTD_isError(e) ? lq_fail(s->ctx, LQ_ERR_INTERNAL, "zstd: %s", ZSTD_getErrorName(e)) : LQ_OK;
}

static lq_status lqt_open(lq_sink *s) {
    static const uint8_t head[LQT_HEAD] = LQT_MAGIC;
    lq_lqt *f = s->priv;
    f->frames = LQ_NEWN(json_t *, s->cat->n);
    f->holds = LQ_NEWN(uint64_t, s->cat->n);
    f->sidecars = json_array();
    if (!f->frames || !f->holds || !f->sidecars) return lq_oom(s->ctx, s->cat->n * sizeof *f->frames);
    LQ_TRY(start_zstd(s, f));
    char *path = lq_path_join(s->dir, "model.lqt");
    if (!path) return lq_oom(s->ctx, strlen(s->dir));
    lq_status st = lq_out_create(s->ctx, path, &f->out);
    lq_free(path);
    return st ? st : lq_out_write(s->ctx, f->out, head, sizeof head);
}

static lq_status reserve(lq_ctx *ctx, lq_buf *b, size_t n) {
    if (b->cap >= n) return LQ_OK;
    lq_buf_free(b);
    if (!(b->v = lq_alloc(n))) return lq_oom(ctx, n);
    b->cap = n;
    return LQ_OK;
}

/* One frame behind the last one; its place goes to the end of `frames`. */
static lq_status put_frame(lq_sink *s, const void *data, size_t n, json_t *frames) {
    lq_lqt *f = s->priv;
    LQ_TRY(reserve(s->ctx, &f->packed, ZSTD_compressBound(n)));
    size_t got = ZSTD_compress2(f->zstd, f->packed.v, f->packed.cap, data, n);
    if (ZSTD_isError(got)) return lq_fail(s->ctx, LQ_ERR_RESOURCE, "zstd: %s", ZSTD_getErrorName(got));
    json_t *place = json_pack("[I, I, I]", (json_int_t)lq_out_pos(f->out), (json_int_t)got, (json_int_t)n);
    if (json_array_append_new(frames, place)) return lq_oom(s->ctx, 64);
    return lq_out_write(s->ctx, f->out, f->packed.v, got);
}

static lq_status frames_of(lq_sink *s, const lq_row *r, json_t **out) {
    json_t **slot = &((lq_lqt *)s->priv)->frames[r - s->cat->rows];
    *out = *slot = json_array();
    return *slot ? LQ_OK : lq_oom(s->ctx, 64);
}

static lq_status lqt_put(lq_sink *s, const lq_row *r, const lq_qtensor *q) {
    lq_lqt *f = s->priv;
    json_t *frames;
    LQ_TRY(frames_of(s, r, &frames));
    f->raw.n = 0;
    f->holds[r - s->cat->rows] = lq_qtensor_bytes(q);
    LQ_TRY(lq_qtensor_encode(s->ctx, q, &f->raw));
    return put_frame(s, f->raw.v, f->raw.n, frames);
}

static lq_status lqt_put_fp(lq_sink *s, const lq_row *r, const void *data, size_t bytes) {
    json_t *frames;
    LQ_TRY(frames_of(s, r, &frames));
    for (size_t at = 0; at < bytes; at += LQT_PIECE)
        LQ_TRY(put_frame(s, (const char *)data + at, bytes - at < LQT_PIECE ? bytes - at : LQT_PIECE, frames));
    return LQ_OK;
}

/* Where a new name goes in the sorted list; false when it is there already. */
static bool sidecar_place(const json_t *list, const char *name, size_t *at) {
    for (*at = 0; *at < json_array_size(list); ++*at) {
        int order = strcmp(name, json_string_value(json_object_get(json_array_get(list, *at), "name")));
        if (order <= 0) return order < 0;
    }
    return true;
}

static lq_status lqt_sidecar(lq_sink *s, const char *name, const void *data, size_t n) {
    lq_lqt *f = s->priv;
    size_t at;
    if (!sidecar_place(f->sidecars, name, &at)) return lq_fail(s->ctx, LQ_ERR_INTERNAL, "'%s' is written twice", name);
    json_t *frames = json_array(), *item = json_pack("{s:s, s:O}", "name", name, "frames", frames);
    lq_status st = item ? put_frame(s, data, n, frames) : lq_fail(s->ctx, LQ_ERR_FORMAT, "'%s' is no UTF-8 name", name);
    if (!st && json_array_insert(f->sidecars, at, item)) st = lq_oom(s->ctx, 64);
    json_decref(item);
    json_decref(frames);
    return st;
}

static json_t *row_index(const lq_row *r, json_t *frames, uint64_t holds) {
    json_t *shape = json_array();
    for (uint32_t i = 0; i < r->ndim && shape; i++)
        if (json_array_append_new(shape, json_integer((json_int_t)(r->quantize ? r->shape[i] : lq_row_stored(r, i))))) return json_decref(shape), NULL;
    if (!r->quantize) return json_pack("{s:s, s:s, s:o, s:O}", "name", r->name, "dtype", lq_dtypes[r->out_dtype].name, "shape", shape, "frames", frames);
    uint8_t bytes[LQ_SCHEME_BYTES];
    char hex[2 * LQ_SCHEME_BYTES + 1], type[64];
    lq_scheme_encode(&r->scheme, bytes);
    for (size_t i = 0; i < sizeof bytes; i++)
        for (size_t j = 0; j < 2; j++) hex[2 * i + j] = "0123456789abcdef"[bytes[i] >> (j ? 0 : 4) & 15];
    hex[sizeof hex - 1] = 0;
    return json_pack("{s:s, s:s, s:s, s:I, s:o, s:O}", "name", r->name, "type", lq_scheme_name(&r->scheme, type, sizeof type), "scheme", hex, "holds",
                     (json_int_t)holds, "shape", shape, "frames", frames);
}

static lq_status index_text(lq_sink *s, lq_buf *out) {
    lq_lqt *f = s->priv;
    json_t *tensors = json_array();
    bool ok = tensors;
    for (size_t i = 0; i < s->cat->n && ok; i++) ok = !json_array_append_new(tensors, row_index(&s->cat->rows[i], f->frames[i], f->holds[i]));
    json_t *doc = ok ? json_pack("{s:i, s:O, s:O}", "version", LQT_VERSION, "sidecars", f->sidecars, "tensors", tensors) : NULL;
    lq_status st = doc ? lq_json_dump(s->ctx, doc, out) : lq_oom(s->ctx, s->cat->n * 256);
    json_decref(doc);
    json_decref(tensors);
    return st;
}

static lq_status put_foot(lq_sink *s, const uint64_t place[3]) {
    static const uint8_t head[LQT_HEAD] = LQT_MAGIC;
    lq_lqt *f = s->priv;
    uint8_t foot[LQT_FOOT];
    char hex[65];
    lq_sha *sha = lq_sha_new();
    if (!sha) return lq_oom(s->ctx, 128);
    memcpy(foot, place, LQT_FOOT_SHA);
    lq_sha_add(sha, head, sizeof head);
    lq_sha_add(sha, f->packed.v, (size_t)place[1]);
    lq_sha_add(sha, foot, LQT_FOOT_SHA);
    lq_sha_end(&sha, hex);
    memcpy(foot + LQT_FOOT_SHA, hex, 64);
    memcpy(foot + LQT_FOOT_END, LQT_END, sizeof LQT_END - 1);
    return lq_out_write(s->ctx, f->out, foot, sizeof foot);
}

static lq_status lqt_close(lq_sink *s) {
    lq_lqt *f = s->priv;
    lq_buf text = {0};
    json_t *place = json_array();
    lq_status st = place ? index_text(s, &text) : lq_oom(s->ctx, 64);
    uint64_t at[3] = {lq_out_pos(f->out)};
    if (!st) st = put_frame(s, text.v, text.n, place);
    for (size_t i = 1; i < 3 && !st; i++) at[i] = (uint64_t)json_integer_value(json_array_get(json_array_get(place, 0), i));
    if (!st) st = put_foot(s, at);
    if (!st) st = lq_out_close(s->ctx, &f->out);
    json_decref(place);
    lq_buf_free(&text);
    return st;
}

static void lqt_abandon(lq_sink *s) {
    lq_lqt *f = s->priv;
    lq_out_abandon(&f->out);
    ZSTD_freeCCtx(f->zstd);
    lq_buf_free(&f->packed);
    lq_buf_free(&f->raw);
    for (size_t i = 0; f->frames && i < s->cat->n; i++) json_decref(f->frames[i]);
    lq_free(f->frames);
    lq_free(f->holds);
    json_decref(f->sidecars);
}

static lq_status lqt_sync(lq_sink *s) { return lq_out_sync(s->ctx, ((lq_lqt *)s->priv)->out); }

const lq_format lq_format_lqt = {
    .name = "lqt", .ext = ".lqt", .what = "lquant's own file: any scheme, lossless, zstd", .priv_size = sizeof(lq_lqt), .kv_scales = true,
    .accept = lqt_accept, .open = lqt_open, .put = lqt_put, .put_fp = lqt_put_fp, .sidecar = lqt_sidecar,
    .sync = lqt_sync, .close = lqt_close, .abandon = lqt_abandon,
};
