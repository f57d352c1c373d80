/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* GGUF v3, little-endian:
 *
 *   "GGUF" | u32 3 | u64 tensors | u64 keys | keys x KV | tensors x info | zeros to a multiple of 32 | data
 *   KV    string key, u32 type, value           string: u64 length, bytes     array: u32 element type, u64 count, elements
 *   info  string name, u32 ndim, u64 ne[ndim], u32 ggml type, u64 offset      from the start of the data, a multiple of 32
 *
 * Where asked for, the last two pairs are the size of the data and its SHA-256, which is filled in when the file is complete.
 * Tensors follow one another in the order of their infos, each padded to 32. general.alignment is absent: its default is 32. */
#include "formats/gguf_write.h"

#include "core/num.h"
#include "formats/nameset.h"

#include <string.h>

enum { ALIGN = 32, NAME_BYTES = 64 };

/* -- metadata ---------------------------------------------------------------------------------------------------------- */

static void le(lq_buf *b, uint64_t v, size_t n, bool *failed) {
    uint8_t bytes[8];
    for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)(v >> 8 * i);
    if (!lq_buf_add(b, bytes, n)) *failed = true;
}

static void add(lq_gguf_meta *m, uint64_t v, size_t n) { le(&m->kv, v, n, &m->failed); }

void lq_gguf_add_text(lq_gguf_meta *m, const char *s, size_t n) {
    add(m, n, 8);
    if (n && !lq_buf_add(&m->kv, s, n)) m->failed = true;
}
void lq_gguf_add_u32(lq_gguf_meta *m, uint32_t v) { add(m, v, 4); }
void lq_gguf_add_f32(lq_gguf_meta *m, float v) { add(m, lq_f32_bits(v), 4); }
void lq_gguf_add_bool(lq_gguf_meta *m, bool v) { add(m, v, 1); }

static void head(lq_gguf_meta *m, const char *key, lq_gguf_type type) {
    lq_gguf_add_text(m, key, strlen(key));
    add(m, type, 4);
    m->n_kv++;
}

void lq_gguf_put_u32(lq_gguf_meta *m, const char *key, uint32_t v) {
    head(m, key, LQ_GGUF_U32);
    lq_gguf_add_u32(m, v);
}

void lq_gguf_put_u16(lq_gguf_meta *m, const char *key, uint16_t v) {
    head(m, key, LQ_GGUF_U16);
    add(m, v, 2);
}

void lq_gguf_put_i32(lq_gguf_meta *m, const char *key, int32_t v) {
    head(m, key, LQ_GGUF_I32);
    lq_gguf_add_u32(m, (uint32_t)v);
}

void lq_gguf_put_f32(lq_gguf_meta *m, const char *key, float v) {
    head(m, key, LQ_GGUF_F32);
    lq_gguf_add_f32(m, v);
}

void lq_gguf_put_bool(lq_gguf_meta *m, const char *key, bool v) {
    head(m, key, LQ_GGUF_BOOL);
    lq_gguf_add_bool(m, v);
}

void lq_gguf_put_text(lq_gguf_meta *m, const char *key, const char *s, size_t n) {
    head(m, key, LQ_GGUF_STRING);
    lq_gguf_add_text(m, s, n);
}

void lq_gguf_put_str(lq_gguf_meta *m, const char *key, const char *s) { lq_gguf_put_text(m, key, s, strlen(s)); }

void lq_gguf_put_array(lq_gguf_meta *m, const char *key, lq_gguf_type elem, uint64_t n) {
    head(m, key, LQ_GGUF_ARRAY);
    add(m, elem, 4);
    add(m, n, 8);
}

static const uint8_t elem_size[LQ_GGUF_TYPE_N] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

static void add_elem(lq_gguf_meta *m, const lq_gguf_kv *kv, uint64_t i) {
    size_t n;
    lq_gguf_type t = lq_gguf_elem(kv);
    if (t == LQ_GGUF_STRING) {
        const char *s = lq_gguf_str(kv, i, &n);
        lq_gguf_add_text(m, s, n);
    } else {
        add(m, lq_gguf_bits(kv, i), elem_size[t]);
    }
}

void lq_gguf_put_copy(lq_gguf_meta *m, const lq_gguf_kv *kv) {
    if (lq_gguf_is_array(kv)) lq_gguf_put_array(m, lq_gguf_kv_key(kv), lq_gguf_elem(kv), lq_gguf_len(kv));
    else head(m, lq_gguf_kv_key(kv), lq_gguf_elem(kv));
    for (uint64_t i = 0; i < lq_gguf_len(kv); i++) add_elem(m, kv, i);
}

lq_status lq_gguf_meta_new(lq_ctx *ctx, size_t n_places, lq_gguf_meta **out) {
    lq_gguf_meta *m = *out = LQ_NEW(lq_gguf_meta);
    if (m) m->mem = lq_arena_new();
    if (m && m->mem && n_places < SIZE_MAX / sizeof *m->places) m->places = lq_arena_alloc(m->mem, (n_places + 1) * sizeof *m->places);
    if (m && m->places) return m->n_places = n_places, LQ_OK;
    lq_gguf_meta_free(out);
    return lq_oom(ctx, n_places * sizeof *m->places);
}

void lq_gguf_meta_free(lq_gguf_meta **m) {
    if (!*m) return;
    lq_buf_free(&(*m)->kv);
    lq_arena_free(&(*m)->mem);
    lq_free(*m);
    *m = NULL;
}

lq_status lq_gguf_meta_check(lq_ctx *ctx, const lq_gguf_meta *m) { return m->failed ? lq_oom(ctx, m->kv.n) : LQ_OK; }

/* -- container --------------------------------------------------------------------------------------------------------- */

struct lq_gguf_writer {
    lq_out *out;
    char *path;
    uint64_t data, hash_at;  /* where the data begins; where its hash stands; 0: nowhere */
};

static lq_status size_info(lq_ctx *ctx, lq_gguf_info *t, lq_nameset *seen, size_t i) {
    const lq_dtype_info *d = &lq_dtypes[t->dtype];
    size_t len = strlen(t->name);
    if (!lq_name_is_sound(t->name, len, NAME_BYTES - 1)) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "'%.200s' cannot be a tensor's name in a GGUF (%zu bytes, at most %d)", t->name, len, NAME_BYTES - 1);
    if (d->gguf < 0) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "tensor '%s': GGUF has no type %s", t->name, d->name);
    if (t->ndim < 1 || t->ndim > 4 || t->ne[0] % d->block)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "tensor '%s': %u dimensions, rows of %llu; GGUF wants 1 to 4 and %s a multiple of %u", t->name, t->ndim,
                       (unsigned long long)t->ne[0], d->name, d->block);
    t->bytes = t->ne[0] / d->block * d->bytes;
    for (uint32_t k = 1; k < t->ndim; k++)
        if (!lq_mul_ok(t->bytes, t->ne[k], &t->bytes)) return lq_fail(ctx, LQ_ERR_FORMAT, "tensor '%s': the product of its shape overflows", t->name);
    lq_status st = lq_nameset_add(seen, t->name, i);
    if (st == LQ_ERR_FORMAT) return lq_fail(ctx, st, "tensor '%s' would be stored twice", t->name);
    return st ? lq_oom(ctx, 64) : LQ_OK;
}

static lq_status lay_out(lq_ctx *ctx, lq_gguf_info *infos, size_t n, uint64_t *total) {
    lq_nameset *seen = lq_nameset_new();
    lq_status st = seen ? LQ_OK : lq_oom(ctx, 64);
    *total = 0;
    for (size_t i = 0; i < n && !st; i++) {
        st = size_info(ctx, &infos[i], seen, i);
        infos[i].offset = *total;
        if (!st && (!lq_add_ok(*total, infos[i].bytes, total) || !lq_add_ok(*total, (ALIGN - *total % ALIGN) % ALIGN, total)))
            st = lq_fail(ctx, LQ_ERR_FORMAT, "tensor '%s': the sizes of the tensors overflow", infos[i].name);
    }
    lq_nameset_free(&seen);
    return st;
}

/* A key and the type of its value. */
static void key(lq_buf *b, const char *name, lq_gguf_type t, bool *failed) {
    le(b, strlen(name), 8, failed);
    if (!lq_buf_add(b, name, strlen(name))) *failed = true;
    le(b, t, 4, failed);
}

/* The size of the data and room for its hash; returns where that is. */
static uint64_t hash_keys(lq_buf *b, uint64_t bytes, bool *failed) {
    key(b, LQ_GGUF_KEY_BYTES, LQ_GGUF_U64, failed);
    le(b, bytes, 8, failed);
    key(b, LQ_GGUF_KEY_HASH, LQ_GGUF_STRING, failed);
    le(b, 64, 8, failed);
    uint64_t at = b->n;
    for (int i = 0; i < 8; i++) le(b, 0, 8, failed);
    return at;
}

static lq_status header(lq_ctx *ctx, const lq_gguf_meta *m, const lq_gguf_info *infos, size_t n, uint64_t bytes, lq_buf *b, uint64_t *hash_at) {
    bool failed = !lq_buf_add(b, "GGUF", 4);
    le(b, 3, 4, &failed);
    le(b, n, 8, &failed);
    le(b, m->n_kv + (m->hashed ? 2 : 0), 8, &failed);
    if (m->kv.n && !lq_buf_add(b, m->kv.v, m->kv.n)) failed = true;
    *hash_at = m->hashed ? hash_keys(b, bytes, &failed) : 0;
    for (size_t i = 0; i < n; i++) {
        const lq_gguf_info *t = &infos[i];
        le(b, strlen(t->name), 8, &failed);
        if (!lq_buf_add(b, t->name, strlen(t->name))) failed = true;
        le(b, t->ndim, 4, &failed);
        for (uint32_t k = 0; k < t->ndim; k++) le(b, t->ne[k], 8, &failed);
        le(b, (uint32_t)lq_dtypes[t->dtype].gguf, 4, &failed);
        le(b, t->offset, 8, &failed);
    }
    static const char zeros[ALIGN];
    if (!failed && !lq_buf_add(b, zeros, (ALIGN - b->n % ALIGN) % ALIGN)) failed = true;
    return failed ? lq_oom(ctx, m->kv.n + 128 * n) : LQ_OK;
}

lq_status lq_gguf_create(lq_ctx *ctx, const char *path, const lq_gguf_meta *m, lq_gguf_info *infos, size_t n, lq_gguf_writer **out) {
    lq_buf b = {0};
    uint64_t total;
    lq_status st = lq_gguf_meta_check(ctx, m);
    lq_gguf_writer *w = *out = LQ_NEW(lq_gguf_writer);
    if (!w) return lq_oom(ctx, sizeof *w);
    LQ_GO(st);
    LQ_GO(lay_out(ctx, infos, n, &total));
    LQ_GO(header(ctx, m, infos, n, total, &b, &w->hash_at));
    if (!(w->path = lq_strdup(path))) LQ_GO(lq_oom(ctx, strlen(path)));
    w->data = b.n;
    LQ_GO(lq_out_create(ctx, path, &w->out));
    LQ_GO(lq_out_write(ctx, w->out, b.v, b.n));
    for (size_t i = 0; i < n; i++) infos[i].offset += b.n;
    if (total) st = lq_out_write_at(ctx, w->out, b.n + total - 1, "", 1); /* the padding of the last tensor belongs to the file */
done:
    lq_buf_free(&b);
    if (st) lq_gguf_write_abandon(out);
    return st;
}

lq_status lq_gguf_write(lq_ctx *ctx, lq_gguf_writer *w, uint64_t offset, const void *data, size_t n) { return lq_out_write_at(ctx, w->out, offset, data, n); }
lq_status lq_gguf_write_sync(lq_ctx *ctx, lq_gguf_writer *w) { return lq_out_sync(ctx, w->out); }

lq_status lq_gguf_hash(lq_ctx *ctx, const lq_file *f, uint64_t offset, char hex[65]) {
    enum { PIECE = 1 << 20 };
    lq_sha *sha = lq_sha_new();
    char *piece = lq_alloc(PIECE);
    lq_status st = sha && piece ? LQ_OK : lq_oom(ctx, PIECE);
    for (uint64_t at = offset; at < f->size && !st; at += PIECE) {
        size_t n = f->size - at < PIECE ? (size_t)(f->size - at) : PIECE;
        st = lq_file_read(ctx, f, at, piece, n);
        if (!st) lq_sha_add(sha, piece, n);
        if (!st) st = lq_check_cancel(ctx);
    }
    if (sha) lq_sha_end(&sha, hex);
    lq_free(piece);
    return st;
}

static lq_status note_hash(lq_ctx *ctx, lq_gguf_writer *w) {
    lq_file f;
    char hex[65];
    if (!w->hash_at) return LQ_OK;
    LQ_TRY(lq_file_open(ctx, w->path, &f));
    lq_status st = lq_gguf_hash(ctx, &f, w->data, hex);
    lq_file_close(&f);
    return st ? st : lq_out_write_at(ctx, w->out, w->hash_at, hex, 64);
}

lq_status lq_gguf_finish(lq_ctx *ctx, lq_gguf_writer **w) {
    lq_status st = note_hash(ctx, *w);
    if (!st) st = lq_out_close(ctx, &(*w)->out);
    lq_gguf_write_abandon(w);
    return st;
}

void lq_gguf_write_abandon(lq_gguf_writer **w) {
    if (!*w) return;
    lq_out_abandon(&(*w)->out);
    lq_free((*w)->path);
    lq_free(*w);
    *w = NULL;
}
