/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Reading the head of a GGUF file: magic | version | n_tensors | n_kv | metadata | tensor table | padding | data.
 *
 * A sticky-error cursor walks the head through a window filled by pread; every count is compared with the bytes that are left before
 * anything is allocated, so memory stays a small multiple of the head. All strings and arrays land in one pool; pointers into it are
 * made when it has stopped moving. */
#include "formats/gguf.h"

#include <stdlib.h>
#include <string.h>

#include "formats/nameset.h"

enum { WINDOW = 1 << 16, NAME_BYTES = 63, KEY_BYTES = 65535, STRING_MAX = 64 << 20, POOL_MAX = 1 << 30 };
enum { TENSORS_MAX = 1 << 20, KVS_MAX = 1 << 20, KV_MIN = 8 + 1 + 4 + 1, INFO_MIN = 8 + 1 + 4 + 8 + 4 + 8 };

struct lq_gguf_kv {
    const char *key, *base; /* base: the pool, for at[] and raw */
    lq_gguf_type type;      /* of the elements */
    bool array;
    uint64_t n;
    size_t key_at, raw;     /* offsets in the pool; raw: numbers as stored */
    size_t *at;             /* [n + 1] strings: offset of each in the pool, NUL behind each */
};

struct lq_gguf {
    lq_gguf_kv *kv;
    lq_gguf_tensor *tensors;
    size_t *name_at; /* [n_tensors] offsets in the pool until the names are resolved */
    size_t n_kv, n_tensors;
    uint64_t alignment;
    lq_nameset *keys;
    lq_buf pool;
};

typedef struct cursor {
    lq_ctx *ctx;
    const lq_file *f;
    uint64_t pos, win_at;
    size_t win_n;
    lq_status err;
    uint8_t win[WINDOW];
} cursor;

static uint64_t left(const cursor *c) { return c->err ? 0 : c->f->size - c->pos; }

#define BAD(c, ...) (void)((c)->err || ((c)->err = lq_fail((c)->ctx, LQ_ERR_FORMAT, __VA_ARGS__)))
static void no_memory(cursor *c, size_t n) {
    if (!c->err) c->err = lq_oom(c->ctx, n);
}

static void take(cursor *c, void *out, uint64_t n) {
    memset(out, 0, n);
    if (n > left(c)) BAD(c, "byte %llu: %llu bytes wanted, the file ends at %llu", (unsigned long long)c->pos, (unsigned long long)n, (unsigned long long)c->f->size);
    if (c->err) return;
    if (n > WINDOW) c->err = lq_file_read(c->ctx, c->f, c->pos, out, n);
    else {
        if (c->pos < c->win_at || c->pos + n > c->win_at + c->win_n) {
            c->win_at = c->pos;
            c->win_n = c->f->size - c->pos < WINDOW ? (size_t)(c->f->size - c->pos) : WINDOW;
            c->err = lq_file_read(c->ctx, c->f, c->win_at, c->win, c->win_n);
        }
        if (!c->err) memcpy(out, c->win + (c->pos - c->win_at), n);
    }
    c->pos += n;
}

static uint64_t le(const uint8_t *p, size_t n) {
    uint64_t v = 0;
    while (n--) v = v << 8 | p[n];
    return v;
}
static uint32_t u32(cursor *c) { uint8_t b[4]; take(c, b, 4); return (uint32_t)le(b, 4); }
static uint64_t u64(cursor *c) { uint8_t b[8]; take(c, b, 8); return le(b, 8); }

/* n bytes of the file to the end of the pool, a NUL behind them; returns where they begin. */
static size_t to_pool(cursor *c, lq_gguf *g, uint64_t n) {
    size_t at = g->pool.n;
    uint8_t piece[4096];
    if (n > left(c)) BAD(c, "byte %llu: %llu bytes wanted, the file ends at %llu", (unsigned long long)c->pos, (unsigned long long)n, (unsigned long long)c->f->size);
    if (at + n > POOL_MAX) BAD(c, "byte %llu: more than %d bytes of metadata", (unsigned long long)c->pos, POOL_MAX);
    for (uint64_t done = 0; done < n && !c->err;) {
        size_t step = n - done < sizeof piece ? (size_t)(n - done) : sizeof piece;
        take(c, piece, step);
        if (!lq_buf_add(&g->pool, piece, step)) no_memory(c, step);
        done += step;
    }
    if (!c->err && !lq_buf_add(&g->pool, "", 1)) no_memory(c, 1);
    return at;
}

static size_t string(cursor *c, lq_gguf *g, uint64_t max) {
    uint64_t n = u64(c);
    if (n > max || n > left(c))
        BAD(c, "byte %llu: a string of %llu bytes, at most %llu are accepted here", (unsigned long long)c->pos, (unsigned long long)n,
            (unsigned long long)(max < left(c) ? max : left(c)));
    return to_pool(c, g, n);
}

static size_t sound_name(cursor *c, lq_gguf *g, uint64_t max, const char *what) {
    uint64_t from = c->pos;
    size_t at = string(c, g, max);
    if (!c->err && !lq_name_is_sound(g->pool.v + at, g->pool.n - at - 1, max))
        BAD(c, "byte %llu: the %s is empty, no UTF-8 or has control or path characters", (unsigned long long)from, what);
    return at;
}

static const uint8_t elem_size[LQ_GGUF_TYPE_N] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 0, 8, 8, 8}; /* string: its length field */

static void check_bools(cursor *c, const lq_gguf *g, size_t at, uint64_t n) {
    for (uint64_t i = 0; !c->err && i < n; i++)
        if ((uint8_t)g->pool.v[at + i] > 1) BAD(c, "a truth value is %u, expected 0 or 1", (uint8_t)g->pool.v[at + i]);
}

static void values(cursor *c, lq_gguf *g, lq_gguf_kv *kv) {
    if (kv->n > left(c) / elem_size[kv->type])
        BAD(c, "%llu elements, the file has %llu bytes left", (unsigned long long)kv->n, (unsigned long long)left(c));
    if (c->err) return;
    if (kv->type != LQ_GGUF_STRING) {
        kv->raw = to_pool(c, g, kv->n * elem_size[kv->type]);
        if (kv->type == LQ_GGUF_BOOL) check_bools(c, g, kv->raw, kv->n);
        return;
    }
    if (kv->n > POOL_MAX / sizeof *kv->at) BAD(c, "%llu strings", (unsigned long long)kv->n);
    kv->at = c->err ? NULL : LQ_NEWN(size_t, kv->n + 1);
    if (!kv->at) { no_memory(c, kv->n * sizeof *kv->at); return; }
    for (uint64_t i = 0; i < kv->n && !c->err; i++) kv->at[i] = string(c, g, STRING_MAX);
    kv->at[kv->n] = g->pool.n;
}

static void read_kv(cursor *c, lq_gguf *g, lq_gguf_kv *kv) {
    kv->key_at = sound_name(c, g, KEY_BYTES, "key");
    if (c->err) return;
    kv->type = (lq_gguf_type)u32(c);
    kv->n = 1;
    if (kv->type == LQ_GGUF_ARRAY) {
        kv->array = true;
        kv->type = (lq_gguf_type)u32(c);
        kv->n = u64(c);
        if (kv->type == LQ_GGUF_ARRAY) BAD(c, "nested arrays are not accepted");
    }
    if ((uint32_t)kv->type >= LQ_GGUF_TYPE_N) BAD(c, "unknown value type %u", (unsigned)kv->type);
    if (!c->err) values(c, g, kv);
    if (c->err) lq_note(c->ctx, c->err, "key '%.200s'", g->pool.v + kv->key_at);
}

/* Types of ggml that exist and are not read; naming them is kinder than a number. */
static const char *ggml_name(uint32_t id) {
    static const char *const names[] = {[9] = "Q8_1", [15] = "Q8_K"};
    return id < sizeof names / sizeof *names ? names[id] : NULL;
}

static void size_tensor(cursor *c, lq_gguf_tensor *t, uint32_t id) {
    t->dtype = lq_dtype_by_gguf(id);
    if (t->dtype == LQ_NONE && ggml_name(id)) {
        c->err = lq_fail(c->ctx, LQ_ERR_UNSUPPORTED, "ggml type %s is not read", ggml_name(id));
        return;
    }
    if (t->dtype == LQ_NONE) { BAD(c, "unknown ggml type %u", id); return; }
    const lq_dtype_info *d = &lq_dtypes[t->dtype];
    if (t->ne[0] % d->block)
        BAD(c, "rows of %llu weights, %s needs a multiple of %u", (unsigned long long)t->ne[0], d->name, d->block);
    t->bytes = t->ne[0] / d->block;
    bool ok = lq_mul_ok(t->bytes, d->bytes, &t->bytes);
    uint64_t elems = t->ne[0];
    for (uint32_t i = 1; i < 4; i++) ok = ok && lq_mul_ok(t->bytes, t->ne[i], &t->bytes) && lq_mul_ok(elems, t->ne[i], &elems);
    if (!ok || elems > INT64_MAX) BAD(c, "the product of its shape overflows");
}

static void read_tensor(cursor *c, lq_gguf *g, size_t i) {
    lq_gguf_tensor *t = &g->tensors[i];
    g->name_at[i] = sound_name(c, g, NAME_BYTES, "tensor name");
    if (c->err) return;
    t->ndim = u32(c);
    if (t->ndim < 1 || t->ndim > 4) BAD(c, "%u dimensions, expected 1 to 4", t->ndim);
    for (uint32_t k = 0; k < 4; k++) {
        t->ne[k] = k < t->ndim && !c->err ? u64(c) : 1;
        if (!t->ne[k] || t->ne[k] > INT64_MAX) BAD(c, "dimension %u is %lld", k, (long long)t->ne[k]);
    }
    uint32_t id = u32(c);
    t->offset = u64(c);
    if (!c->err) size_tensor(c, t, id);
    if (c->err) lq_note(c->ctx, c->err, "tensor '%s'", g->pool.v + g->name_at[i]);
}

static bool align_up(uint64_t v, uint64_t to, uint64_t *out) { return lq_add_ok(v, (to - v % to) % to, out); }

/* Offsets are what a writer that puts one tensor after the other gets; then they become absolute. */
static lq_status place(lq_ctx *ctx, lq_gguf *g, uint64_t head_end, uint64_t size) {
    uint64_t start, sum = 0, end;
    if (!align_up(head_end, g->alignment, &start)) start = UINT64_MAX;
    for (size_t i = 0; i < g->n_tensors; i++) {
        lq_gguf_tensor *t = &g->tensors[i];
        if (t->offset != sum)
            return lq_fail(ctx, LQ_ERR_FORMAT, "tensor '%s': offset %llu, expected %llu", t->name, (unsigned long long)t->offset, (unsigned long long)sum);
        if (!lq_add_ok(start, sum, &t->offset) || !lq_add_ok(t->offset, t->bytes, &end) || end > size || !align_up(sum + t->bytes, g->alignment, &sum))
            return lq_fail(ctx, LQ_ERR_FORMAT, "tensor '%s': %llu bytes at %llu do not fit into a file of %llu", t->name,
                           (unsigned long long)t->bytes, (unsigned long long)(start + sum), (unsigned long long)size);
    }
    return LQ_OK;
}

static lq_status resolve_names(lq_ctx *ctx, lq_gguf *g) {
    lq_nameset *seen = lq_nameset_new();
    lq_status st = seen ? LQ_OK : lq_oom(ctx, 64);
    for (size_t i = 0; !st && i < g->n_tensors; i++) {
        g->tensors[i].name = g->pool.v + g->name_at[i];
        st = lq_nameset_add(seen, g->tensors[i].name, i);
        if (st == LQ_ERR_FORMAT) lq_fail(ctx, st, "tensor '%s' is listed twice", g->tensors[i].name);
        else if (st) lq_oom(ctx, 64);
    }
    lq_nameset_free(&seen);
    return st;
}

static lq_status resolve_keys(lq_ctx *ctx, lq_gguf *g) {
    if (!(g->keys = lq_nameset_new())) return lq_oom(ctx, 64);
    for (size_t i = 0; i < g->n_kv; i++) {
        g->kv[i].base = g->pool.v;
        g->kv[i].key = g->pool.v + g->kv[i].key_at;
        lq_status st = lq_nameset_add(g->keys, g->kv[i].key, i);
        if (st == LQ_ERR_FORMAT) return lq_fail(ctx, st, "key '%.200s' is listed twice", g->kv[i].key);
        if (st) return lq_oom(ctx, 64);
    }
    return LQ_OK;
}

static lq_status find_alignment(lq_ctx *ctx, lq_gguf *g) {
    const lq_gguf_kv *kv = lq_gguf_find(g, "general.alignment");
    g->alignment = 32;
    if (!kv) return LQ_OK;
    double v = lq_gguf_num(kv, 0);
    g->alignment = v >= 8 && v <= 65536 ? (uint64_t)v : 0;
    if (kv->array || kv->type != LQ_GGUF_U32 || !g->alignment || g->alignment & (g->alignment - 1))
        return lq_fail(ctx, LQ_ERR_FORMAT, "general.alignment is %.0f, expected a power of two (u32) from 8 to 65536", v);
    return LQ_OK;
}

static void check_magic(cursor *c) {
    uint8_t magic[4];
    take(c, magic, 4);
    if (!c->err && memcmp(magic, "GGUF", 4)) BAD(c, "the file does not begin with 'GGUF'");
    uint32_t version = u32(c);
    if (c->err || version == 2 || version == 3) return;
    if (version == 1) c->err = lq_fail(c->ctx, LQ_ERR_UNSUPPORTED, "GGUF version 1 is not read; 2 or 3 expected");
    else if (!(version & 0xffff) && version) c->err = lq_fail(c->ctx, LQ_ERR_UNSUPPORTED, "big-endian GGUF is not read");
    else BAD(c, "GGUF version %u, expected 2 or 3", version);
}

static lq_status parse(cursor *c, lq_gguf *g) {
    check_magic(c);
    uint64_t tensors = u64(c), kvs = u64(c);
    if (tensors > TENSORS_MAX || tensors > left(c) / INFO_MIN) BAD(c, "%llu tensors announced, %llu bytes left", (unsigned long long)tensors, (unsigned long long)left(c));
    if (kvs > KVS_MAX || kvs > left(c) / KV_MIN) BAD(c, "%llu keys announced, %llu bytes left", (unsigned long long)kvs, (unsigned long long)left(c));
    if (c->err) return c->err;
    g->kv = LQ_NEWN(lq_gguf_kv, kvs + 1);
    g->tensors = LQ_NEWN(lq_gguf_tensor, tensors + 1);
    g->name_at = LQ_NEWN(size_t, tensors + 1);
    if (!g->kv || !g->tensors || !g->name_at) return lq_oom(c->ctx, tensors * sizeof *g->tensors);
    for (; g->n_kv < kvs && !c->err; g->n_kv++) read_kv(c, g, &g->kv[g->n_kv]);
    for (; g->n_tensors < tensors && !c->err; g->n_tensors++) read_tensor(c, g, g->n_tensors);
    LQ_TRY(c->err);
    LQ_TRY(resolve_keys(c->ctx, g));
    LQ_TRY(resolve_names(c->ctx, g));
    LQ_TRY(find_alignment(c->ctx, g));
    return place(c->ctx, g, c->pos, c->f->size);
}

lq_status lq_gguf_open(lq_ctx *ctx, const lq_file *f, lq_gguf **out) {
    lq_gguf *g = LQ_NEW(lq_gguf);
    cursor *c = LQ_NEW(cursor);
    *out = NULL;
    if (!g || !c) {
        lq_free(g);
        lq_free(c);
        return lq_oom(ctx, sizeof *c);
    }
    c->ctx = ctx;
    c->f = f;
    lq_status st = parse(c, g);
    lq_free(c);
    if (st) {
        lq_note(ctx, st, "%s", f->path);
        lq_gguf_free(&g);
    }
    *out = g;
    return st;
}

void lq_gguf_free(lq_gguf **gp) {
    lq_gguf *g = *gp;
    if (!g) return;
    for (size_t i = 0; i < g->n_kv; i++) lq_free(g->kv[i].at);
    lq_nameset_free(&g->keys);
    lq_buf_free(&g->pool);
    lq_free(g->kv);
    lq_free(g->tensors);
    lq_free(g->name_at);
    lq_free(g);
    *gp = NULL;
}

size_t lq_gguf_count(const lq_gguf *g) { return g->n_tensors; }
const lq_gguf_tensor *lq_gguf_tensor_at(const lq_gguf *g, size_t i) { return &g->tensors[i]; }
size_t lq_gguf_kv_count(const lq_gguf *g) { return g->n_kv; }
const lq_gguf_kv *lq_gguf_kv_at(const lq_gguf *g, size_t i) { return &g->kv[i]; }
const char *lq_gguf_kv_key(const lq_gguf_kv *kv) { return kv->key; }

const lq_gguf_kv *lq_gguf_find(const lq_gguf *g, const char *key) {
    long i = lq_nameset_find(g->keys, key);
    return i < 0 ? NULL : &g->kv[i];
}

bool lq_gguf_is_array(const lq_gguf_kv *kv) { return kv && kv->array; }
lq_gguf_type lq_gguf_elem(const lq_gguf_kv *kv) { return kv ? kv->type : LQ_GGUF_TYPE_N; }
uint64_t lq_gguf_len(const lq_gguf_kv *kv) { return kv ? kv->n : 0; }

uint64_t lq_gguf_bits(const lq_gguf_kv *kv, uint64_t i) {
    if (!kv || i >= kv->n || kv->type == LQ_GGUF_STRING) return 0;
    size_t size = elem_size[kv->type];
    return le((const uint8_t *)kv->base + kv->raw + i * size, size);
}

double lq_gguf_num(const lq_gguf_kv *kv, uint64_t i) {
    if (!kv || i >= kv->n || kv->type == LQ_GGUF_STRING) return 0;
    uint64_t bits = lq_gguf_bits(kv, i);
    float f;
    double d;
    uint32_t low = (uint32_t)bits;
    switch (kv->type) {
    case LQ_GGUF_I8: return (int8_t)bits;
    case LQ_GGUF_I16: return (int16_t)bits;
    case LQ_GGUF_I32: return (int32_t)bits;
    case LQ_GGUF_I64: return (double)(int64_t)bits;
    case LQ_GGUF_F32: memcpy(&f, &low, 4); return (double)f;
    case LQ_GGUF_F64: memcpy(&d, &bits, 8); return d;
    default: return (double)bits;
    }
}

const char *lq_gguf_str(const lq_gguf_kv *kv, uint64_t i, size_t *n) {
    if (n) *n = 0;
    if (!kv || i >= kv->n || kv->type != LQ_GGUF_STRING) return NULL;
    if (n) *n = kv->at[i + 1] - kv->at[i] - 1;
    return kv->base + kv->at[i];
}
