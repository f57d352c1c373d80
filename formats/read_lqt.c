/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* lqt in: head, foot and index are read and checked at open; a frame when it is asked for. Layout: lqt.h. */
#include "formats/lqt.h"
#include "formats/qcodec.h"
#include "formats/source.h"

#include <stdlib.h>
#include <string.h>
#include <zstd.h>

/* zstd cannot say more than a block of 128 KiB with 4 bytes: what claims to unpack further is a lie, refused before memory is asked for. */
enum { MAX_RATIO = 32768, TENSORS_MAX = 1 << 20, NAME_MAX_BYTES = 512 };
static const char manifest_name[] = "lquant-manifest.json";

typedef struct frame { uint64_t offset, bytes, raw; } frame;
typedef struct frame_run { size_t first, n; } frame_run; /* frames of one tensor or sidecar */
typedef struct lqt {
    lq_file file;
    ZSTD_DCtx *zstd;
    frame *frames;               /* of all tensors and sidecars, in index order */
    size_t n_frames, cap_frames;
    frame_run *tensors, *sidecars;   /* [entries], [sidecars] */
    frame_run manifest;          /* n 0: none */
    lq_buf packed, piece;        /* scratch: a compressed frame, the unpacked piece `held` */
    size_t held;                 /* frame number in `piece`; SIZE_MAX: none */
} lqt;

static bool lqt_probe(const char *path, const json_t *config) {
    (void)config;
    char magic[8];
    lq_file f;
    if (lq_path_is_dir(path) || lq_file_open(NULL, path, &f)) return false;
    bool mine = f.size >= sizeof magic && !lq_file_read(NULL, &f, 0, magic, sizeof magic) && !memcmp(magic, LQT_MAGIC, sizeof magic);
    lq_file_close(&f);
    return mine;
}

/* -- frames ---------------------------------------------------------------------------------------------------------- */

static lq_status reserve(lq_ctx *ctx, lq_buf *b, uint64_t n) {
    if (b->cap >= n + 1) return LQ_OK;
    lq_buf_free(b);
    if (!(b->v = lq_alloc((size_t)n + 1))) return lq_oom(ctx, (size_t)n);
    b->cap = (size_t)n + 1;
    return LQ_OK;
}

/* out has room for fr->raw bytes. */
static lq_status unpack(lq_ctx *ctx, lqt *f, const frame *fr, void *out) {
    LQ_TRY(reserve(ctx, &f->packed, fr->bytes));
    LQ_TRY(lq_file_read(ctx, &f->file, fr->offset, f->packed.v, (size_t)fr->bytes));
    size_t n = ZSTD_decompressDCtx(f->zstd, out, (size_t)fr->raw, f->packed.v, (size_t)fr->bytes);
    if (ZSTD_isError(n)) return lq_fail(ctx, LQ_ERR_FORMAT, "frame at byte %llu: %s", (unsigned long long)fr->offset, ZSTD_getErrorName(n));
    if (n != fr->raw)
        return lq_fail(ctx, LQ_ERR_FORMAT, "frame at byte %llu unpacks to %zu bytes, expected %llu", (unsigned long long)fr->offset, n, (unsigned long long)fr->raw);
    return LQ_OK;
}

static lq_status unpack_new(lq_ctx *ctx, lqt *f, const frame *fr, lq_buf *out) {
    *out = (lq_buf){0};
    LQ_TRY(reserve(ctx, out, fr->raw));
    lq_status st = unpack(ctx, f, fr, out->v);
    out->n = (size_t)fr->raw;
    if (st) lq_buf_free(out);
    return st;
}

/* -- foot and index -------------------------------------------------------------------------------------------------- */

static uint64_t get64(const uint8_t *p) {
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--) v = v << 8 | p[i];
    return v;
}

static lq_status frame_check(lq_ctx *ctx, const frame *fr, uint64_t end) {
    uint64_t stop;
    if (fr->offset < LQT_HEAD || !lq_add_ok(fr->offset, fr->bytes, &stop) || stop > end || fr->raw / MAX_RATIO > fr->bytes)
        return lq_fail(ctx, LQ_ERR_FORMAT, "frame of %llu bytes at byte %llu for %llu raw bytes, the frames end at byte %llu", (unsigned long long)fr->bytes,
                       (unsigned long long)fr->offset, (unsigned long long)fr->raw, (unsigned long long)end);
    return LQ_OK;
}

static lq_status read_foot(lq_ctx *ctx, lqt *f, frame *index) {
    uint8_t foot[LQT_FOOT];
    uint64_t size = f->file.size;
    if (size < LQT_HEAD + LQT_FOOT) return lq_fail(ctx, LQ_ERR_FORMAT, "%llu bytes: too short for an lqt file", (unsigned long long)size);
    LQ_TRY(lq_file_read(ctx, &f->file, size - LQT_FOOT, foot, LQT_FOOT));
    if (memcmp(foot + LQT_FOOT_END, LQT_END, sizeof LQT_END - 1)) return lq_fail(ctx, LQ_ERR_FORMAT, "no foot at the end; the file is cut short or was never finished");
    *index = (frame){get64(foot), get64(foot + 8), get64(foot + 16)};
    LQ_TRY(frame_check(ctx, index, size - LQT_FOOT));
    if (index->offset + index->bytes != size - LQT_FOOT || index->raw > LQ_JSON_MAX)
        return lq_fail(ctx, LQ_ERR_FORMAT, "the index of %llu bytes at byte %llu does not end at the foot", (unsigned long long)index->bytes, (unsigned long long)index->offset);
    return LQ_OK;
}

static lq_status check_sha(lq_ctx *ctx, lqt *f, const frame *index) {
    uint8_t head[LQT_HEAD], foot[LQT_FOOT];
    char hex[65];
    LQ_TRY(lq_file_read(ctx, &f->file, 0, head, LQT_HEAD));
    LQ_TRY(lq_file_read(ctx, &f->file, f->file.size - LQT_FOOT, foot, LQT_FOOT));
    LQ_TRY(reserve(ctx, &f->packed, index->bytes));
    LQ_TRY(lq_file_read(ctx, &f->file, index->offset, f->packed.v, (size_t)index->bytes));
    lq_sha *sha = lq_sha_new();
    if (!sha) return lq_oom(ctx, 128);
    lq_sha_add(sha, head, sizeof head);
    lq_sha_add(sha, f->packed.v, (size_t)index->bytes);
    lq_sha_add(sha, foot, LQT_FOOT_SHA);
    lq_sha_end(&sha, hex);
    if (memcmp(hex, foot + LQT_FOOT_SHA, 64)) return lq_fail(ctx, LQ_ERR_FORMAT, "the checksum of the index is wrong; the file is damaged");
    return LQ_OK;
}

static lq_status add_frames(lq_ctx *ctx, lqt *f, const json_t *list, uint64_t end, frame_run *run) {
    size_t n = json_array_size(list);
    *run = (frame_run){f->n_frames, n};
    if (!json_is_array(list)) return lq_fail(ctx, LQ_ERR_FORMAT, "no list of frames");
    while (f->n_frames + n > f->cap_frames) {
        size_t cap = f->cap_frames * 2 + 64;
        frame *more = lq_realloc(f->frames, f->cap_frames * sizeof *more, cap * sizeof *more);
        if (!more) return lq_oom(ctx, cap * sizeof *more);
        f->frames = more;
        f->cap_frames = cap;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *t = json_array_get(list, i);
        uint64_t v[3];
        for (size_t k = 0; k < 3; k++) {
            const json_t *x = json_array_get(t, k);
            if (json_array_size(t) != 3 || !json_is_integer(x) || json_integer_value(x) < 0) return lq_fail(ctx, LQ_ERR_FORMAT, "frame %zu is not three numbers", i);
            v[k] = (uint64_t)json_integer_value(x);
        }
        frame fr = {v[0], v[1], v[2]};
        LQ_TRY(frame_check(ctx, &fr, end));
        f->frames[f->n_frames++] = fr;
    }
    return LQ_OK;
}

static int by_offset(const void *a, const void *b) {
    const frame *x = a, *y = b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Nothing hides between the frames. */
static lq_status check_tiling(lq_ctx *ctx, const lqt *f, uint64_t end) {
    frame *sorted = LQ_NEWN(frame, f->n_frames);
    if (!sorted) return lq_oom(ctx, f->n_frames * sizeof *sorted);
    uint64_t at = LQT_HEAD;
    lq_status st = LQ_OK;
    if (f->n_frames) {
        memcpy(sorted, f->frames, f->n_frames * sizeof *sorted);
        qsort(sorted, f->n_frames, sizeof *sorted, by_offset);
    }
    for (size_t i = 0; i <= f->n_frames && !st; i++) {
        uint64_t next = i < f->n_frames ? sorted[i].offset : end;
        if (next != at) st = lq_fail(ctx, LQ_ERR_FORMAT, "the frames leave a gap or overlap at byte %llu", (unsigned long long)at);
        else if (i < f->n_frames) at += sorted[i].bytes;
    }
    lq_free(sorted);
    return st;
}

/* -- entries --------------------------------------------------------------------------------------------------------- */

static lq_status read_shape(lq_ctx *ctx, const json_t *list, lq_entry *e) {
    uint64_t n = 1;
    if (!json_is_array(list) || json_array_size(list) > LQ_DIMS) return lq_fail(ctx, LQ_ERR_FORMAT, "its shape is no list of at most %d numbers", LQ_DIMS);
    e->ndim = (uint32_t)json_array_size(list);
    for (uint32_t i = 0; i < e->ndim; i++) {
        const json_t *v = json_array_get(list, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0) return lq_fail(ctx, LQ_ERR_FORMAT, "dimension %u is no size", i);
        e->shape[i] = (uint64_t)json_integer_value(v);
        if (!lq_mul_ok(n, e->shape[i], &n) || n >> 56) return lq_fail(ctx, LQ_ERR_FORMAT, "the product of its shape overflows");
    }
    return LQ_OK;
}

static lq_status plain_entry(lq_ctx *ctx, const lqt *f, const frame_run *run, const char *dtype, lq_entry *e) {
    e->dtype = lq_dtype_by_name(dtype);
    if (e->dtype == LQ_NONE) return lq_fail(ctx, LQ_ERR_FORMAT, "unknown type '%.32s'", dtype);
    uint64_t row = lq_dtype_row_bytes(e->dtype, lq_entry_cols(e)), rows = lq_entry_rows(e);
    if ((!row && lq_entry_cols(e)) || !lq_mul_ok(row, rows, &e->bytes)) return lq_fail(ctx, LQ_ERR_FORMAT, "its shape does not fit %s", dtype);
    if (run->n != e->bytes / LQT_PIECE + (e->bytes % LQT_PIECE != 0))
        return lq_fail(ctx, LQ_ERR_FORMAT, "%zu frames for %llu bytes", run->n, (unsigned long long)e->bytes);
    for (size_t i = 0; i < run->n; i++) {
        uint64_t want = i + 1 < run->n ? LQT_PIECE : e->bytes - (uint64_t)i * LQT_PIECE;
        if (f->frames[run->first + i].raw != want) return lq_fail(ctx, LQ_ERR_FORMAT, "frame %zu unpacks to another size", i);
    }
    return LQ_OK;
}

static bool from_hex(const char *hex, uint8_t *out, size_t n) {
    if (strlen(hex) != 2 * n) return false;
    for (size_t i = 0; i < 2 * n; i++) {
        const char *digit = strchr("0123456789abcdef", hex[i]);
        if (!digit) return false;
        out[i / 2] = (uint8_t)(out[i / 2] << 4 | (digit - "0123456789abcdef"));
    }
    return true;
}

static lq_status quantized_entry(lq_ctx *ctx, const lqt *f, const frame_run *run, const char *hex, const json_t *holds, lq_entry *e) {
    uint8_t bytes[LQ_SCHEME_BYTES] = {0};
    if (!from_hex(hex, bytes, sizeof bytes)) return lq_fail(ctx, LQ_ERR_FORMAT, "its scheme is no %zu bytes of hex", sizeof bytes);
    LQ_TRY(lq_scheme_decode(ctx, bytes, &e->scheme));
    if (e->ndim != 2 || e->shape[0] > UINT32_MAX || e->shape[1] > UINT32_MAX || run->n != 1)
        return lq_fail(ctx, LQ_ERR_FORMAT, "a quantized tensor with %u dimensions in %zu frames", e->ndim, run->n);
    if (lq_scheme_check(ctx, &e->scheme, (uint32_t)e->shape[0], (uint32_t)e->shape[1])) return LQ_ERR_FORMAT;
    uint64_t least = lq_qtensor_encoded_bytes(&e->scheme, (uint32_t)e->shape[0], (uint32_t)e->shape[1]);
    if (!least || f->frames[run->first].raw < least)
        return lq_fail(ctx, LQ_ERR_FORMAT, "%llu bytes, its scheme needs %llu", (unsigned long long)f->frames[run->first].raw, (unsigned long long)least);
    if (!json_is_integer(holds) || json_integer_value(holds) <= 0) return lq_fail(ctx, LQ_ERR_FORMAT, "its index does not say how much it holds");
    e->bytes = f->frames[run->first].bytes;
    e->q_bytes = (uint64_t)json_integer_value(holds);
    return LQ_OK;
}

static lq_status add_tensor(lq_ctx *ctx, lq_source *s, const json_t *t, uint64_t end) {
    lqt *f = s->priv;
    frame_run *run = &f->tensors[s->n];
    lq_entry e = {.name = json_string_value(json_object_get(t, "name"))};
    const char *dtype = json_string_value(json_object_get(t, "dtype")), *scheme = json_string_value(json_object_get(t, "scheme"));
    if (!e.name || !*e.name || strlen(e.name) > NAME_MAX_BYTES || !dtype == !scheme)
        return lq_fail(ctx, LQ_ERR_FORMAT, "tensor %zu of the index: no name, or not exactly one of dtype and scheme", s->n);
    lq_status st;
    LQ_GO(read_shape(ctx, json_object_get(t, "shape"), &e));
    LQ_GO(add_frames(ctx, f, json_object_get(t, "frames"), end, run));
    LQ_GO(dtype ? plain_entry(ctx, f, run, dtype, &e) : quantized_entry(ctx, f, run, scheme, json_object_get(t, "holds"), &e));
done:
    return st ? lq_note(ctx, st, "tensor '%s'", e.name) : lq_source_add(ctx, s, &e);
}

static lq_status add_sidecar(lq_ctx *ctx, lq_source *s, const json_t *item, uint64_t end, const char **last) {
    lqt *f = s->priv;
    frame_run run;
    const char *name = json_string_value(json_object_get(item, "name"));
    if (!name || !lq_name_is_plain(name) || (*last && strcmp(*last, name) >= 0)) return lq_fail(ctx, LQ_ERR_FORMAT, "sidecar names are not plain, sorted and distinct");
    *last = name;
    lq_status st = add_frames(ctx, f, json_object_get(item, "frames"), end, &run);
    if (st) return lq_note(ctx, st, "sidecar '%s'", name);
    if (run.n != 1) return lq_fail(ctx, LQ_ERR_FORMAT, "sidecar '%s' has %zu frames", name, run.n);
    if (!strcmp(name, manifest_name)) { /* describes this file, not a model made from it */
        f->manifest = run;
        return LQ_OK;
    }
    f->sidecars[s->n_sidecars] = run;
    return lq_source_add_file(ctx, s, false, name);
}

static lq_status add_all(lq_ctx *ctx, lq_source *s, const json_t *doc, uint64_t end) {
    lqt *f = s->priv;
    int64_t version;
    const json_t *tensors = json_object_get(doc, "tensors"), *sidecars = json_object_get(doc, "sidecars");
    const char *last = NULL;
    LQ_TRY(lq_json_int(ctx, doc, "version", true, 0, 0, INT32_MAX, &version));
    if (version != LQT_VERSION) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "lqt version %lld; this program reads %d", (long long)version, LQT_VERSION);
    if (!json_is_array(tensors) || !json_is_array(sidecars) || json_array_size(tensors) > TENSORS_MAX)
        return lq_fail(ctx, LQ_ERR_FORMAT, "the index lacks its lists of tensors and sidecars");
    f->tensors = LQ_NEWN(frame_run, json_array_size(tensors));
    f->sidecars = LQ_NEWN(frame_run, json_array_size(sidecars));
    if (!f->tensors || !f->sidecars) return lq_oom(ctx, json_array_size(tensors) * sizeof *f->tensors);
    for (size_t i = 0; i < json_array_size(sidecars); i++) LQ_TRY(add_sidecar(ctx, s, json_array_get(sidecars, i), end, &last));
    for (size_t i = 0; i < json_array_size(tensors); i++) LQ_TRY(add_tensor(ctx, s, json_array_get(tensors, i), end));
    return check_tiling(ctx, f, end);
}

/* The model's own config.json, whatever lies beside the file. */
static lq_status own_config(lq_ctx *ctx, lq_source *s) {
    lq_buf text;
    json_decref(s->config);
    s->config = NULL;
    LQ_TRY(lq_source_sidecar(ctx, s, "config.json", &text));
    if (!text.v) return LQ_OK;
    lq_status st = lq_json_parse(ctx, "config.json", text.v, text.n, &s->config);
    if (!st && !json_is_object(s->config)) st = lq_fail(ctx, LQ_ERR_FORMAT, "config.json: not a JSON object");
    lq_buf_free(&text);
    return st;
}

static lq_status read_index(lq_ctx *ctx, lq_source *s) {
    lqt *f = s->priv;
    frame index;
    lq_buf text;
    json_t *doc = NULL;
    LQ_TRY(read_foot(ctx, f, &index));
    LQ_TRY(check_sha(ctx, f, &index));
    LQ_TRY(unpack_new(ctx, f, &index, &text));
    lq_status st = lq_json_parse(ctx, "index", text.v, text.n, &doc);
    if (!st) st = add_all(ctx, s, doc, index.offset);
    json_decref(doc);
    lq_buf_free(&text);
    return st ? st : own_config(ctx, s);
}

static lq_status lqt_open(lq_ctx *ctx, lq_source *s) {
    lqt *f = s->priv = LQ_NEW(lqt);
    if (!f) return lq_oom(ctx, sizeof *f);
    *f = (lqt){.file.fd = -1, .held = SIZE_MAX};
    LQ_TRY(lq_file_open(ctx, s->path, &f->file));
    if (!(f->zstd = ZSTD_createDCtx())) return lq_oom(ctx, 1 << 20);
    LQ_TRY(lq_source_add_file(ctx, s, true, s->path));
    return read_index(ctx, s);
}

/* -- data ------------------------------------------------------------------------------------------------------------ */

static lq_status hold(lq_ctx *ctx, lqt *f, size_t i) {
    if (f->held == i) return LQ_OK;
    f->held = SIZE_MAX;
    LQ_TRY(reserve(ctx, &f->piece, LQT_PIECE));
    LQ_TRY(unpack(ctx, f, &f->frames[i], f->piece.v));
    f->held = i;
    return LQ_OK;
}

static lq_status lqt_read(lq_ctx *ctx, lq_source *s, size_t i, uint64_t row0, uint64_t rows, void *out) {
    lqt *f = s->priv;
    uint64_t row = lq_dtype_row_bytes(s->entries[i].dtype, lq_entry_cols(&s->entries[i]));
    char *to = out;
    for (uint64_t at = row0 * row, end = at + rows * row; at < end;) {
        uint64_t piece = at / LQT_PIECE, skip = at % LQT_PIECE, n = LQT_PIECE - skip < end - at ? LQT_PIECE - skip : end - at;
        LQ_TRY(hold(ctx, f, f->tensors[i].first + (size_t)piece));
        memcpy(to, f->piece.v + skip, (size_t)n);
        to += n;
        at += n;
    }
    return LQ_OK;
}

static lq_status lqt_read_q(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *out) {
    lqt *f = s->priv;
    const lq_entry *e = &s->entries[i];
    lq_buf raw;
    LQ_TRY(unpack_new(ctx, f, &f->frames[f->tensors[i].first], &raw));
    lq_status st = lq_qtensor_decode(ctx, raw.v, raw.n, out);
    lq_buf_free(&raw);
    if (!st && (!lq_scheme_eq(&out->sch, &e->scheme) || out->rows != e->shape[0] || out->cols != e->shape[1] || lq_qtensor_bytes(out) != e->q_bytes)) {
        lq_qtensor_free(out);
        st = lq_fail(ctx, LQ_ERR_FORMAT, "its frame holds another scheme, shape or size than the index says");
    }
    if (!st) out->slot = (lq_slot){0};
    return st;
}

static lq_status lqt_sidecar(lq_ctx *ctx, lq_source *s, size_t i, lq_buf *out) {
    lqt *f = s->priv;
    return unpack_new(ctx, f, &f->frames[f->sidecars[i].first], out);
}

static lq_status lqt_manifest(lq_ctx *ctx, lq_source *s, lq_buf *out) {
    lqt *f = s->priv;
    return f->manifest.n ? unpack_new(ctx, f, &f->frames[f->manifest.first], out) : LQ_OK;
}

static void lqt_close(lq_source *s) {
    lqt *f = s->priv;
    if (!f) return;
    lq_file_close(&f->file);
    ZSTD_freeDCtx(f->zstd);
    lq_free(f->frames);
    lq_free(f->tensors);
    lq_free(f->sidecars);
    lq_buf_free(&f->packed);
    lq_buf_free(&f->piece);
    lq_free(f);
    s->priv = NULL;
}

const lq_reader lq_reader_lqt = {
    .name = "lqt", .what = "lquant's own file", .probe = lqt_probe, .open = lqt_open, .read = lqt_read,
    .read_q = lqt_read_q, .sidecar = lqt_sidecar, .manifest = lqt_manifest, .close = lqt_close,
};
