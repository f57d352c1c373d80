/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "calib/imatrix.h"

#include "formats/gguf_write.h"
#include "formats/nameset.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_MAX_BYTES = 256, ENTRIES_MAX = 1 << 20, LEGACY_MAX = 1 << 30 };

static bool ends(const char *s, const char *with) {
    size_t n = strlen(s), k = strlen(with);
    return n > k && !strcmp(s + n - k, with);
}

bool lq_imatrix_is(const char *path) {
    lq_file f;
    char head[16] = {0};
    if (lq_file_open(NULL, path, &f)) return false;
    bool read = f.size >= sizeof head && !lq_file_read(NULL, &f, 0, head, sizeof head);
    lq_file_close(&f);
    return read && (!memcmp(head, "GGUF", 4) || head[8] != '{'); /* a safetensors header begins with its length, then '{' */
}

void lq_imatrix_free(lq_imatrix *m) {
    lq_nameset_free(&m->names);
    lq_free(m->entries);
    lq_arena_free(&m->mem);
    *m = (lq_imatrix){0};
}

static bool begin(lq_imatrix *m) {
    if (!m->mem) m->mem = lq_arena_new();
    if (!m->names) m->names = lq_nameset_new();
    return m->mem && m->names;
}

static char *copy(lq_arena *mem, const char *s, size_t n) {
    char *c = lq_arena_alloc(mem, n + 1);
    return c ? memcpy(c, s, n) : NULL;
}

const lq_importance *lq_imatrix_find(const lq_imatrix *m, const char *name) {
    long i = m->names && name ? lq_nameset_find(m->names, name) : -1;
    return i < 0 ? NULL : &m->entries[i];
}

static bool holds_one(const char *name, const char *const *texts, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (strstr(name, texts[i])) return true;
    return false;
}

lq_status lq_imatrix_keep(lq_ctx *ctx, lq_imatrix *m, const char *const *texts, size_t n, bool keep) {
    size_t kept = 0;
    lq_nameset *names = lq_nameset_new();
    lq_status st = names ? LQ_OK : lq_oom(ctx, 64);
    for (size_t i = 0; i < m->n && !st; i++) {
        if (holds_one(m->entries[i].name, texts, n) != keep) continue;
        m->entries[kept] = m->entries[i];
        if (lq_nameset_add(names, m->entries[kept].name, kept)) st = lq_oom(ctx, 64);
        kept++;
    }
    if (st) return lq_nameset_free(&names), st;
    lq_nameset_free(&m->names);
    m->names = names;
    m->n = kept;
    return LQ_OK;
}

lq_importance *lq_imatrix_add(lq_imatrix *m, const char *name, uint32_t cols, uint32_t mats) {
    lq_importance *old = (lq_importance *)lq_imatrix_find(m, name);
    if (old) return old->cols == cols && old->mats == mats ? old : NULL;
    lq_importance *more = begin(m) ? lq_realloc(m->entries, m->n * sizeof *more, (m->n + 1) * sizeof *more) : NULL;
    if (!more) return NULL;
    m->entries = more;
    lq_importance e = {copy(m->mem, name, strlen(name)), cols, mats, lq_arena_alloc(m->mem, (size_t)cols * mats * 4), lq_arena_alloc(m->mem, (size_t)mats * 4)};
    if (!e.name || !e.mean || !e.count || lq_nameset_add(m->names, e.name, m->n)) return NULL;
    m->entries[m->n] = e;
    return &m->entries[m->n++];
}

static lq_status check(lq_ctx *ctx, const lq_importance *e) {
    for (size_t i = 0; i < (size_t)e->cols * e->mats; i++)
        if (!(e->mean[i] >= 0) || !isfinite(e->mean[i]))
            return lq_fail(ctx, LQ_ERR_FORMAT, "entry '%s': value %zu is %g, expected a sum of squares", e->name, i, (double)e->mean[i]);
    return LQ_OK;
}

/* -- GGUF -------------------------------------------------------------------------------------------------------------- */

static uint32_t number(const lq_gguf *g, const char *key) {
    const lq_gguf_kv *kv = lq_gguf_find(g, key);
    double v = kv ? lq_gguf_num(kv, 0) : 0;
    return v > 0 && v < UINT32_MAX ? (uint32_t)v : 0;
}

static const lq_gguf_tensor *tensor(const lq_gguf *g, const char *name) {
    for (size_t i = 0; i < lq_gguf_count(g); i++)
        if (!strcmp(lq_gguf_tensor_at(g, i)->name, name)) return lq_gguf_tensor_at(g, i);
    return NULL;
}

static lq_status read_entry(lq_ctx *ctx, const lq_file *f, const lq_gguf *g, const lq_gguf_tensor *t, lq_imatrix *m) {
    char name[NAME_MAX_BYTES], counts[NAME_MAX_BYTES + 16];
    snprintf(name, sizeof name, "%.*s", (int)(strlen(t->name) - strlen(".in_sum2")), t->name);
    snprintf(counts, sizeof counts, "%s.counts", name);
    const lq_gguf_tensor *c = tensor(g, counts);
    uint64_t mats = t->ne[1] * t->ne[2];
    if (!c || c->dtype != LQ_F32 || t->dtype != LQ_F32 || c->bytes != 4 * mats || t->ne[0] > UINT32_MAX || mats > UINT32_MAX)
        return lq_fail(ctx, LQ_ERR_FORMAT, "entry '%s': sums and counts do not belong together", name);
    lq_importance *e = lq_imatrix_add(m, name, (uint32_t)t->ne[0], (uint32_t)mats);
    if (!e) return lq_oom(ctx, t->bytes);
    LQ_TRY(lq_file_read(ctx, f, t->offset, e->mean, t->bytes));
    LQ_TRY(lq_file_read(ctx, f, c->offset, e->count, c->bytes));
    for (uint32_t k = 0; k < e->mats; k++)
        for (uint32_t i = 0; i < e->cols; i++) {
            float *v = &e->mean[(size_t)k * e->cols + i];
            *v = e->count[k] > 0 ? *v / e->count[k] : 1;
        }
    return check(ctx, e);
}

static lq_status read_gguf(lq_ctx *ctx, const lq_file *f, lq_imatrix *m) {
    lq_gguf *g = NULL;
    LQ_TRY(lq_gguf_open(ctx, f, &g));
    size_t len = 0, set_len = 0;
    const lq_gguf_kv *type = lq_gguf_find(g, "general.type"), *sets = lq_gguf_find(g, "imatrix.datasets");
    const char *is = type ? lq_gguf_str(type, 0, &len) : NULL, *set = sets ? lq_gguf_str(sets, 0, &set_len) : NULL;
    lq_status st = is && !strcmp(is, "imatrix") ? LQ_OK : lq_fail(ctx, LQ_ERR_FORMAT, "a GGUF, but no importance matrix (general.type is not 'imatrix')");
    m->chunks = number(g, "imatrix.chunk_count");
    m->chunk_size = number(g, "imatrix.chunk_size");
    if (!st && set && begin(m)) m->dataset = copy(m->mem, set, set_len);
    for (size_t i = 0; i < lq_gguf_count(g) && !st; i++)
        if (ends(lq_gguf_tensor_at(g, i)->name, ".in_sum2")) st = read_entry(ctx, f, g, lq_gguf_tensor_at(g, i), m);
    lq_gguf_free(&g);
    return st;
}

/* -- legacy ------------------------------------------------------------------------------------------------------------ */

typedef struct cursor { lq_ctx *ctx; const lq_buf *b; size_t at; } cursor;

static lq_status take(cursor *c, void *out, size_t n, const char *what) {
    if (n > c->b->n - c->at) return lq_fail(c->ctx, LQ_ERR_FORMAT, "byte %zu: %s of %zu bytes, the file ends at %zu", c->at, what, n, c->b->n);
    memcpy(out, c->b->v + c->at, n);
    c->at += n;
    return LQ_OK;
}

static lq_status i32(cursor *c, const char *what, int32_t lo, int32_t hi, int32_t *out) {
    *out = 0;
    LQ_TRY(take(c, out, 4, what));
    if (*out >= lo && *out <= hi) return LQ_OK;
    return lq_fail(c->ctx, LQ_ERR_FORMAT, "byte %zu: %s is %d, expected %d to %d", c->at - 4, what, *out, lo, hi);
}

static lq_status legacy_entry(cursor *c, lq_imatrix *m) {
    int32_t len = 0, ncall = 0, nval = 0;
    char name[NAME_MAX_BYTES] = "";
    LQ_TRY(i32(c, "length of a name", 1, NAME_MAX_BYTES - 1, &len));
    LQ_TRY(take(c, name, (size_t)len, "a name"));
    LQ_TRY(i32(c, "number of calls", 0, INT32_MAX, &ncall));
    LQ_TRY(i32(c, "number of values", 1, INT32_MAX, &nval));
    if (!lq_name_is_sound(name, strlen(name), NAME_MAX_BYTES - 1) || strlen(name) != (size_t)len || lq_imatrix_find(m, name))
        return lq_fail(c->ctx, LQ_ERR_FORMAT, "byte %zu: an entry's name is unsound or comes twice", c->at);
    if ((size_t)nval > (c->b->n - c->at) / 4) return lq_fail(c->ctx, LQ_ERR_FORMAT, "entry '%s': %d values, the file ends before", name, nval);
    lq_importance *e = lq_imatrix_add(m, name, (uint32_t)nval, 1); /* the experts of a stack are told apart when a matrix asks */
    if (!e) return lq_oom(c->ctx, 4 * (size_t)nval);
    LQ_TRY(take(c, e->mean, 4 * (size_t)nval, "values"));
    e->count[0] = (float)ncall;
    for (int32_t i = 0; i < nval && ncall > 0; i++) e->mean[i] /= (float)ncall;
    return check(c->ctx, e);
}

static lq_status read_legacy(lq_ctx *ctx, const char *path, lq_imatrix *m) {
    lq_buf b = {0};
    int32_t n = 0, len = 0;
    lq_status st;
    LQ_TRY(lq_file_slurp(ctx, path, LEGACY_MAX, &b));
    cursor c = {ctx, &b, 0};
    LQ_GO(i32(&c, "number of entries", 1, ENTRIES_MAX, &n));
    for (int32_t i = 0; i < n; i++) LQ_GO(legacy_entry(&c, m));
    if (c.at == b.n) goto done; /* the first files end here */
    LQ_GO(i32(&c, "number of chunks", 0, INT32_MAX, &len));
    m->chunks = (uint32_t)len;
    LQ_GO(i32(&c, "length of the dataset's name", 0, 1 << 20, &len));
    if ((size_t)len > b.n - c.at) LQ_GO(lq_fail(ctx, LQ_ERR_FORMAT, "the dataset's name runs past the end"));
    if (!(m->dataset = copy(m->mem, b.v + c.at, (size_t)len))) st = lq_oom(ctx, (size_t)len);
done:
    lq_buf_free(&b);
    return st;
}

lq_status lq_imatrix_read(lq_ctx *ctx, const char *path, lq_imatrix *out) {
    lq_file f = {.fd = -1};
    char magic[4] = {0};
    *out = (lq_imatrix){0};
    lq_status st = lq_file_open(ctx, path, &f);
    if (!st && f.size >= 4) st = lq_file_read(ctx, &f, 0, magic, 4);
    if (!st) st = !memcmp(magic, "GGUF", 4) ? read_gguf(ctx, &f, out) : read_legacy(ctx, path, out);
    if (!st && !out->n) st = lq_fail(ctx, LQ_ERR_FORMAT, "an importance matrix without an entry");
    lq_file_close(&f);
    if (st) lq_imatrix_free(out);
    return st ? lq_note(ctx, st, "%s", path) : LQ_OK;
}

/* -- writing ----------------------------------------------------------------------------------------------------------- */

static lq_status write_legacy(lq_ctx *ctx, const char *path, const lq_imatrix *m) {
    lq_buf b = {0};
    int32_t n = (int32_t)m->n, calls = (int32_t)m->chunks, len;
    bool ok = lq_buf_add(&b, &n, 4);
    for (size_t i = 0; i < m->n && ok; i++) {
        const lq_importance *e = &m->entries[i];
        int32_t nval = (int32_t)(e->cols * e->mats);
        len = (int32_t)strlen(e->name);
        ok = lq_buf_add(&b, &len, 4) && lq_buf_add(&b, e->name, (size_t)len) && lq_buf_add(&b, &calls, 4) && lq_buf_add(&b, &nval, 4);
        for (int32_t k = 0; k < nval && ok; k++) {
            float v = e->mean[k] * (float)calls;
            ok = lq_buf_add(&b, &v, 4);
        }
    }
    len = m->dataset ? (int32_t)strlen(m->dataset) : 0;
    ok = ok && lq_buf_add(&b, &calls, 4) && lq_buf_add(&b, &len, 4) && (!len || lq_buf_add(&b, m->dataset, (size_t)len));
    lq_status st = ok ? lq_write_file(ctx, path, b.v, b.n) : lq_oom(ctx, b.n);
    lq_buf_free(&b);
    return st;
}

static int by_name(const void *a, const void *b) { return strcmp(((const lq_gguf_info *)a)->name, ((const lq_gguf_info *)b)->name); }

static lq_gguf_info *infos_of(const lq_imatrix *m, lq_arena *mem) {
    lq_gguf_info *infos = lq_arena_alloc(mem, 2 * m->n * sizeof *infos);
    for (size_t i = 0; infos && i < 2 * m->n; i++) {
        const lq_importance *e = &m->entries[i / 2];
        char *name = lq_arena_alloc(mem, strlen(e->name) + 16);
        if (!name) return NULL;
        sprintf(name, "%s.%s", e->name, i & 1 ? "counts" : "in_sum2");
        infos[i] = (lq_gguf_info){.name = name, .dtype = LQ_F32, .ndim = 2, .ne = {i & 1 ? 1 : e->cols, e->mats, 1, 1}};
    }
    if (infos) qsort(infos, 2 * m->n, sizeof *infos, by_name);
    return infos;
}

static lq_status put_info(lq_ctx *ctx, lq_gguf_writer *w, const lq_imatrix *m, const lq_gguf_info *t) {
    char name[NAME_MAX_BYTES];
    snprintf(name, sizeof name, "%.*s", (int)(strrchr(t->name, '.') - t->name), t->name);
    const lq_importance *e = lq_imatrix_find(m, name);
    if (t->ne[0] == 1 && ends(t->name, ".counts")) return lq_gguf_write(ctx, w, t->offset, e->count, 4 * (size_t)e->mats);
    size_t n = (size_t)e->cols * e->mats;
    float *sum = lq_calloc(n, 4);
    if (!sum) return lq_oom(ctx, 4 * n);
    for (size_t i = 0; i < n; i++) sum[i] = e->mean[i] * e->count[i / e->cols];
    lq_status st = lq_gguf_write(ctx, w, t->offset, sum, 4 * n);
    lq_free(sum);
    return st;
}

static lq_status write_gguf(lq_ctx *ctx, const char *path, const lq_imatrix *m) {
    lq_gguf_meta *meta = NULL;
    lq_gguf_writer *w = NULL;
    lq_status st;
    LQ_TRY(lq_gguf_meta_new(ctx, 0, &meta));
    lq_gguf_put_str(meta, "general.type", "imatrix");
    lq_gguf_put_array(meta, "imatrix.datasets", LQ_GGUF_STRING, m->dataset ? 1 : 0);
    if (m->dataset) lq_gguf_add_text(meta, m->dataset, strlen(m->dataset));
    lq_gguf_put_u32(meta, "imatrix.chunk_count", m->chunks);
    lq_gguf_put_u32(meta, "imatrix.chunk_size", m->chunk_size);
    lq_gguf_info *infos = infos_of(m, meta->mem);
    LQ_GO(infos ? LQ_OK : lq_oom(ctx, m->n * sizeof *infos));
    LQ_GO(lq_gguf_create(ctx, path, meta, infos, 2 * m->n, &w));
    for (size_t i = 0; i < 2 * m->n; i++) LQ_GO(put_info(ctx, w, m, &infos[i]));
    st = lq_gguf_finish(ctx, &w);
done:
    lq_gguf_write_abandon(&w);
    lq_gguf_meta_free(&meta);
    return st;
}

lq_status lq_imatrix_write(lq_ctx *ctx, const char *path, const lq_imatrix *m) {
    return ends(path, ".gguf") ? write_gguf(ctx, path, m) : write_legacy(ctx, path, m);
}
