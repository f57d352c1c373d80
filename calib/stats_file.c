/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "calib/stats_file.h"
#include "formats/nameset.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { TOKENS, SQUARES, ABS, MAX, GRAM, SAMPLED, SAMPLES, PARTS, IDENTITY_MAX = 16 << 20, PIECE = 1 << 16 };

static const struct { const char *suffix; lq_dtype dtype; } parts[PARTS] = {
    {".tokens", LQ_I64}, {".sum_x2", LQ_F64}, {".sum_abs", LQ_F64}, {".absmax", LQ_F32}, {".gram", LQ_F64}, {".sampled", LQ_I64}, {".samples", LQ_F32}};

static uint64_t part_length(int part, uint64_t k) {
    return part == TOKENS ? 2 : part == GRAM ? k * (k + 1) / 2 : part == SAMPLED ? 1 : part == SAMPLES ? LQ_SAMPLES * k : k;
}

static bool held(unsigned extra, int part) { return part < GRAM || extra & (part == GRAM ? LQ_NEED_GRAM : LQ_NEED_SAMPLES); }

static size_t parts_held(unsigned extra) {
    size_t n = 0;
    for (int p = 0; p < PARTS; p++) n += held(extra, p);
    return n;
}

/* ---- writing ---- */

struct lq_stats_writer {
    lq_st_writer *st;
    unsigned extra;
};

static void drop_tensors(lq_st_tensor *t, size_t n) {
    for (size_t i = 0; t && i < n; i++) lq_free((char *)t[i].name);
    lq_free(t);
}

static lq_status announce(lq_ctx *ctx, const char *dir, const lq_stats_item *items, size_t n, unsigned extra, size_t identity, lq_st_writer **out) {
    size_t all = n * parts_held(extra) + 1, at = 0;
    lq_st_tensor *t = LQ_NEWN(lq_st_tensor, all);
    lq_status st = t ? LQ_OK : lq_oom(ctx, all * sizeof *t);
    for (size_t i = 0; !st && i < n * PARTS; i++) {
        int part = (int)(i % PARTS);
        if (!held(extra, part)) continue;
        t[at] = (lq_st_tensor){.name = lq_strf("%s%s", items[i / PARTS].name, parts[part].suffix), .dtype = parts[part].dtype, .ndim = 1};
        t[at].shape[0] = part_length(part, items[i / PARTS].cols);
        if (!t[at++].name) st = lq_oom(ctx, 64);
    }
    if (!st) {
        t[all - 1] = (lq_st_tensor){.name = lq_strdup("identity"), .dtype = LQ_U8, .ndim = 1, .shape = {identity}};
        st = t[all - 1].name ? lq_st_create(ctx, dir, t, all, 0, out) : lq_oom(ctx, 64);
    }
    drop_tensors(t, all);
    return st;
}

lq_status lq_stats_create(lq_ctx *ctx, const char *dir, const lq_stats_item *items, size_t n, unsigned extra, const json_t *identity, lq_stats_writer **out) {
    lq_buf text = {0};
    lq_stats_writer *w = *out = LQ_NEW(lq_stats_writer);
    if (!w) return lq_oom(ctx, sizeof *w);
    w->extra = extra;
    lq_status st = lq_json_dump(ctx, identity, &text);
    if (!st) st = announce(ctx, dir, items, n, extra, text.n, &w->st);
    if (!st) st = lq_st_put(ctx, w->st, "identity", text.v, text.n);
    lq_buf_free(&text);
    if (st) lq_stats_abandon(out);
    return st;
}

static lq_status put_part(lq_ctx *ctx, lq_stats_writer *w, const char *item, int part, const void *data, size_t bytes) {
    char *name = lq_strf("%s%s", item, parts[part].suffix);
    lq_status st = name ? lq_st_put(ctx, w->st, name, data, bytes) : lq_oom(ctx, 64);
    lq_free(name);
    return st;
}

static lq_status put_gram(lq_ctx *ctx, lq_stats_writer *w, const char *item, const lq_gram *g) {
    uint64_t n = part_length(GRAM, g->k), at = 0;
    double *v = lq_calloc(n, sizeof *v);
    if (!v) return lq_oom(ctx, n * sizeof *v);
    for (uint32_t i = 0; i < g->k; i++)
        for (uint32_t j = 0; j <= i; j++) v[at++] = lq_gram_at(g, i, j);
    lq_status st = put_part(ctx, w, item, GRAM, v, n * sizeof *v);
    lq_free(v);
    return st;
}

static lq_status put_samples(lq_ctx *ctx, lq_stats_writer *w, const char *item, const lq_stats *s) {
    int64_t n = s->n_samples;
    size_t all = (size_t)LQ_SAMPLES * s->cols, own = (size_t)s->n_samples * s->cols; /* room that was given up holds older tokens */
    memset(s->samples + own, 0, (all - own) * sizeof *s->samples);
    LQ_TRY(put_part(ctx, w, item, SAMPLED, &n, sizeof n));
    return put_part(ctx, w, item, SAMPLES, s->samples, all * sizeof *s->samples);
}

lq_status lq_stats_put(lq_ctx *ctx, lq_stats_writer *w, const char *name, const lq_stats *s) {
    unsigned want = LQ_NEED_ABSMAX | LQ_NEED_SQUARES | w->extra;
    if ((s->needs & want) != want) return lq_fail(ctx, LQ_ERR_INTERNAL, "%s: statistics of kind %u, %u are written", name, s->needs, want);
    int64_t tokens[2] = {(int64_t)s->n, (int64_t)s->routed};
    LQ_TRY(put_part(ctx, w, name, TOKENS, tokens, sizeof tokens));
    LQ_TRY(put_part(ctx, w, name, SQUARES, s->squares, s->cols * sizeof *s->squares));
    LQ_TRY(put_part(ctx, w, name, ABS, s->abssum, s->cols * sizeof *s->abssum));
    LQ_TRY(put_part(ctx, w, name, MAX, s->absmax, s->cols * sizeof *s->absmax));
    if (w->extra & LQ_NEED_GRAM) LQ_TRY(put_gram(ctx, w, name, &s->gram));
    return w->extra & LQ_NEED_SAMPLES ? put_samples(ctx, w, name, s) : LQ_OK;
}

lq_status lq_stats_finish(lq_ctx *ctx, lq_stats_writer **w) {
    lq_status st = lq_st_finish(ctx, &(*w)->st);
    lq_stats_abandon(w);
    return st;
}

void lq_stats_abandon(lq_stats_writer **w) {
    if (!*w) return;
    lq_st_abandon(&(*w)->st);
    lq_free(*w);
    *w = NULL;
}

/* ---- reading ---- */

static const lq_st_tensor *named(const lq_stats_file *f, const char *name) {
    long i = lq_nameset_find(f->tensors, name);
    return i < 0 ? NULL : &f->st.tensors[i];
}

static const lq_st_tensor *tensor(const lq_stats_file *f, const char *item, int part) {
    char name[1200];
    return snprintf(name, sizeof name, "%s%s", item, parts[part].suffix) < (int)sizeof name ? named(f, name) : NULL;
}

static lq_status read_identity(lq_ctx *ctx, lq_stats_file *f) {
    const lq_st_tensor *t = named(f, "identity");
    int64_t version;
    if (!t || t->dtype != LQ_U8 || t->bytes > IDENTITY_MAX) return lq_fail(ctx, LQ_ERR_FORMAT, "it has no 'identity': no statistics of lquant");
    char *text = lq_alloc(t->bytes + 1);
    lq_status st = text ? lq_file_read(ctx, &f->st.file, t->offset, text, t->bytes) : lq_oom(ctx, t->bytes);
    if (!st) st = lq_json_parse(ctx, "identity", text, t->bytes, &f->identity);
    lq_free(text);
    if (!st) st = lq_json_int(ctx, f->identity, "lquant_stats", true, 0, 1, 1, &version);
    if (!st && !json_is_object(json_object_get(f->identity, "model"))) st = lq_fail(ctx, LQ_ERR_FORMAT, "identity: 'model' is no object");
    if (!st && !json_is_array(json_object_get(f->identity, "calibration"))) st = lq_fail(ctx, LQ_ERR_FORMAT, "identity: 'calibration' is no list");
    return st;
}

/* The parts of an item agree with the length of its sum_x2. */
static lq_status check_item(lq_ctx *ctx, const lq_stats_file *f, const lq_stats_item *item) {
    for (int p = 0; p < PARTS; p++) {
        if (!held(f->extra, p)) continue;
        const lq_st_tensor *t = tensor(f, item->name, p);
        if (!t) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s%s' is missing", item->name, parts[p].suffix);
        if (t->dtype != parts[p].dtype || t->ndim != 1 || t->shape[0] != part_length(p, item->cols))
            return lq_fail(ctx, LQ_ERR_FORMAT, "'%s': %s [%llu], expected %s [%llu]", t->name, lq_dtypes[t->dtype].name, (unsigned long long)t->shape[0],
                           lq_dtypes[parts[p].dtype].name, (unsigned long long)part_length(p, item->cols));
    }
    return LQ_OK;
}

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), k = strlen(end);
    return n > k && !strcmp(s + n - k, end);
}

static lq_status list_items(lq_ctx *ctx, lq_stats_file *f) {
    f->items = LQ_NEWN(lq_stats_item, f->st.n);
    if (!f->items) return lq_oom(ctx, f->st.n * sizeof *f->items);
    for (size_t i = 0; i < f->st.n; i++) {
        const lq_st_tensor *t = &f->st.tensors[i];
        if (ends_with(t->name, parts[GRAM].suffix)) f->extra |= LQ_NEED_GRAM;
        if (ends_with(t->name, parts[SAMPLES].suffix)) f->extra |= LQ_NEED_SAMPLES;
        if (!ends_with(t->name, parts[SQUARES].suffix)) continue;
        if (t->ndim != 1 || !t->shape[0] || t->shape[0] > 1u << 20)
            return lq_fail(ctx, LQ_ERR_FORMAT, "'%s': expected one dimension of 1 to 1048576", t->name);
        char *name = lq_arena_alloc(f->st.mem, strlen(t->name) + 1);
        if (!name) return lq_oom(ctx, 64);
        memcpy(name, t->name, strlen(t->name) - strlen(parts[SQUARES].suffix));
        f->items[f->n++] = (lq_stats_item){name, (uint32_t)t->shape[0]};
    }
    for (size_t i = 0; i < f->n; i++) LQ_TRY(check_item(ctx, f, &f->items[i]));
    size_t known = f->n * parts_held(f->extra) + 1;
    if (!f->n || known != f->st.n) return lq_fail(ctx, LQ_ERR_FORMAT, "%zu tensors, its %zu items have %zu", f->st.n, f->n, known);
    return LQ_OK;
}

lq_status lq_stats_open(lq_ctx *ctx, const char *path, lq_stats_file *out) {
    *out = (lq_stats_file){0};
    LQ_TRY(lq_st_open(ctx, path, &out->st));
    lq_status st = (out->tensors = lq_nameset_new()) && (out->names = lq_nameset_new()) ? LQ_OK : lq_oom(ctx, 64);
    for (size_t i = 0; i < out->st.n && !st; i++) /* the container refuses duplicates */
        if (lq_nameset_add(out->tensors, out->st.tensors[i].name, i)) st = lq_oom(ctx, 64);
    if (!st) st = read_identity(ctx, out);
    if (!st) st = list_items(ctx, out);
    for (size_t i = 0; i < out->n && !st; i++)
        if (lq_nameset_add(out->names, out->items[i].name, i)) st = lq_oom(ctx, 64);
    if (st) lq_stats_close(out);
    return st ? lq_note(ctx, st, "%s", path) : LQ_OK;
}

void lq_stats_close(lq_stats_file *f) {
    if (f->st.mem) lq_st_close(&f->st);
    lq_nameset_free(&f->tensors);
    lq_nameset_free(&f->names);
    json_decref(f->identity);
    lq_free(f->items);
    *f = (lq_stats_file){0};
}

const lq_stats_item *lq_stats_find(const lq_stats_file *f, const char *name) {
    long i = lq_nameset_find(f->names, name);
    return i < 0 ? NULL : &f->items[i];
}

static lq_status read_part(lq_ctx *ctx, const lq_stats_file *f, const char *item, int part, void *out) {
    const lq_st_tensor *t = tensor(f, item, part);
    return lq_file_read(ctx, &f->st.file, t->offset, out, t->bytes);
}

static lq_status possible(lq_ctx *ctx, const char *name, const lq_stats *s) {
    for (uint32_t c = 0; c < s->cols; c++) {
        double sq = s->squares[c], sum = s->abssum[c], most = (double)s->absmax[c];
        bool ok = isfinite(sq) && isfinite(sum) && isfinite(most) && sq >= 0 && sum >= 0 && most >= 0 && most <= sum * (1 + 1e-6) &&
                  sum <= most * (double)s->n * (1 + 1e-6) && (s->routed || sq <= most * sum * (1 + 1e-6)); /* an expert's squares are weighted and shrunk */
        if (!ok) return lq_fail(ctx, LQ_ERR_FORMAT, "%s: column %u has impossible statistics (sum of squares %g, of magnitudes %g, largest %g)", name, c, sq, sum, most);
    }
    return LQ_OK;
}

static lq_status read_gram(lq_ctx *ctx, const lq_stats_file *f, const char *name, lq_stats *s) {
    uint64_t n = part_length(GRAM, s->cols), at = 0;
    double *v = lq_calloc(n, sizeof *v), *diag = LQ_NEWN(double, s->cols);
    lq_status st = v && diag ? read_part(ctx, f, name, GRAM, v) : lq_oom(ctx, n * sizeof *v);
    for (uint32_t i = 0; !st && i < s->cols; i++) {
        diag[i] = v[at + i];
        for (uint32_t j = 0; j <= i && !st; j++, at++) {
            double bound = sqrt(diag[i]) * sqrt(diag[j]) * (1 + 1e-4); /* products were formed in fp32 */
            if (!(isfinite(v[at]) && diag[i] >= 0 && fabs(v[at]) <= bound + 1e-30))
                st = lq_fail(ctx, LQ_ERR_FORMAT, "%s: Gram matrix element %u, %u is %g, between columns of %g and %g", name, i, j, v[at], diag[i], diag[j]);
            else lq_gram_set(&s->gram, i, j, v[at]);
        }
    }
    s->gram.n = s->n;
    lq_free(v);
    lq_free(diag);
    return st;
}

/* No sampled token is larger than the largest. */
static lq_status read_samples(lq_ctx *ctx, const lq_stats_file *f, const char *name, lq_stats *s) {
    int64_t n;
    LQ_TRY(read_part(ctx, f, name, SAMPLED, &n));
    if (n < 0 || n > LQ_SAMPLES || (uint64_t)n > s->n || (!n && s->n)) return lq_fail(ctx, LQ_ERR_FORMAT, "%s: %lld samples of %llu tokens", name, (long long)n, (unsigned long long)s->n);
    LQ_TRY(read_part(ctx, f, name, SAMPLES, s->samples));
    s->n_samples = (uint32_t)n;
    for (uint32_t i = 0; i < s->n_samples; i++)
        for (uint32_t c = 0; c < s->cols; c++) {
            float v = s->samples[(size_t)i * s->cols + c];
            if (!(fabsf(v) <= s->absmax[c])) return lq_fail(ctx, LQ_ERR_FORMAT, "%s: sample %u has %g in column %u, whose largest is %g", name, i, (double)v, c, (double)s->absmax[c]);
        }
    return LQ_OK;
}

lq_status lq_stats_read(lq_ctx *ctx, const lq_stats_file *f, const char *name, unsigned want, lq_stats *out) {
    const lq_stats_item *item = lq_stats_find(f, name);
    int64_t tokens[2];
    *out = (lq_stats){0};
    if (!item) return lq_fail(ctx, LQ_ERR_MISMATCH, "%s: has no statistics of '%s'", f->st.file.path, name);
    LQ_TRY(lq_stats_init(ctx, out, LQ_NEED_ABSMAX | LQ_NEED_SQUARES | (want & f->extra), item->cols));
    lq_status st = read_part(ctx, f, name, TOKENS, tokens);
    if (!st && (tokens[0] < 0 || tokens[1] < 0 || tokens[1] > tokens[0])) st = lq_fail(ctx, LQ_ERR_FORMAT, "%s: %lld tokens, %lld routed", name, (long long)tokens[0], (long long)tokens[1]);
    if (!st) out->n = (uint64_t)tokens[0], out->routed = (uint64_t)tokens[1];
    if (!st) st = read_part(ctx, f, name, SQUARES, out->squares);
    if (!st) st = read_part(ctx, f, name, ABS, out->abssum);
    if (!st) st = read_part(ctx, f, name, MAX, out->absmax);
    if (!st) st = possible(ctx, name, out);
    if (!st && out->needs & LQ_NEED_GRAM) st = read_gram(ctx, f, name, out);
    if (!st && out->needs & LQ_NEED_SAMPLES) st = read_samples(ctx, f, name, out);
    if (st) lq_stats_free(out);
    return st ? lq_note(ctx, st, "%s", f->st.file.path) : LQ_OK;
}

/* ---- merging ---- */

static lq_status same_model(lq_ctx *ctx, const lq_stats_file *a, const lq_stats_file *b) {
    static const char *const keys[] = {"model", "weights"};
    for (int i = 0; i < 2; i++)
        if (!json_equal(json_object_get(a->identity, keys[i]), json_object_get(b->identity, keys[i])))
            return lq_fail(ctx, LQ_ERR_MISMATCH, "%s and %s are of different models (%s)", a->st.file.path, b->st.file.path, keys[i]);
    for (unsigned what = LQ_NEED_GRAM; what <= LQ_NEED_SAMPLES; what += LQ_NEED_SAMPLES - LQ_NEED_GRAM) {
        const char *has = a->extra & what ? a->st.file.path : b->st.file.path, *not = a->extra & what ? b->st.file.path : a->st.file.path;
        if ((a->extra ^ b->extra) & what) return lq_fail(ctx, LQ_ERR_MISMATCH, "%s has %s, %s has not", has, what == LQ_NEED_GRAM ? "Hessians" : "samples", not);
    }
    for (size_t i = 0; i < a->n; i++) {
        const lq_stats_item *other = lq_stats_find(b, a->items[i].name);
        if (a->n != b->n || !other || other->cols != a->items[i].cols)
            return lq_fail(ctx, LQ_ERR_MISMATCH, "%s and %s differ in '%s'", a->st.file.path, b->st.file.path, a->items[i].name);
    }
    return LQ_OK;
}

static lq_status joined(lq_ctx *ctx, const lq_stats_file *files, size_t n, json_t **out) {
    json_t *all = json_array();
    *out = json_copy(files[0].identity);
    for (size_t i = 0; all && i < n; i++)
        if (json_array_extend(all, json_object_get(files[i].identity, "calibration"))) return lq_oom(ctx, 64);
    return all && *out && !json_object_set_new(*out, "calibration", all) ? LQ_OK : lq_oom(ctx, 64);
}

static void add_piece(int part, void *sum, const void *more, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (part == TOKENS) ((int64_t *)sum)[i] += ((const int64_t *)more)[i];
        else if (part == MAX) ((float *)sum)[i] = fmaxf(((float *)sum)[i], ((const float *)more)[i]);
        else ((double *)sum)[i] += ((const double *)more)[i];
    }
}

static lq_status merge_part(lq_ctx *ctx, const lq_stats_file *files, size_t n, const lq_stats_item *item, int part, lq_st_writer *w, double *piece) {
    const lq_st_tensor *first = tensor(&files[0], item->name, part);
    size_t unit = lq_dtypes[parts[part].dtype].bytes;
    lq_status st = LQ_OK;
    for (uint64_t at = 0; at < first->shape[0] && !st; at += PIECE) {
        size_t len = first->shape[0] - at < PIECE ? (size_t)(first->shape[0] - at) : PIECE;
        for (size_t i = 0; i < n && !st; i++) {
            const lq_st_tensor *t = tensor(&files[i], item->name, part);
            st = lq_file_read(ctx, &files[i].st.file, t->offset + at * unit, i ? piece + PIECE : piece, len * unit);
            if (i && !st) add_piece(part, piece, piece + PIECE, len);
        }
        if (!st) st = lq_st_put_rows(ctx, w, first->name, at, len, piece, len * unit);
    }
    return st;
}

/* Of each file a part in proportion to its tokens, evenly spread. */
static lq_status merge_samples(lq_ctx *ctx, const lq_stats_file *files, size_t n, const lq_stats_item *item, lq_stats_writer *w) {
    lq_stats all, s;
    double tokens = 0;
    int64_t seen[2];
    lq_status st = lq_stats_init(ctx, &all, LQ_NEED_SAMPLES, item->cols);
    for (size_t i = 0; i < n && !st; i++)
        if (!(st = read_part(ctx, &files[i], item->name, TOKENS, seen))) tokens += (double)seen[0];
    for (size_t i = 0; i < n && !st; i++) {
        if ((st = lq_stats_read(ctx, &files[i], item->name, LQ_NEED_SAMPLES, &s))) break;
        uint32_t share = tokens > LQ_SAMPLES ? (uint32_t)(LQ_SAMPLES * ((double)s.n / tokens)) : s.n_samples;
        if (share > s.n_samples) share = s.n_samples;
        if (!share && s.n && all.n_samples < LQ_SAMPLES) share = 1;
        for (uint32_t k = 0; k < share && all.n_samples < LQ_SAMPLES; k++)
            memcpy(all.samples + (size_t)all.n_samples++ * s.cols, s.samples + (size_t)((uint64_t)k * s.n_samples / share) * s.cols, s.cols * sizeof *s.samples);
        lq_stats_free(&s);
    }
    if (!st) st = put_samples(ctx, w, item->name, &all);
    lq_stats_free(&all);
    return st;
}

static lq_status merge_item(lq_ctx *ctx, const lq_stats_file *files, size_t n, const lq_stats_item *item, lq_stats_writer *w, double *piece) {
    lq_stats s;
    for (size_t k = 0; k < n; k++) { /* an impossible file is not added to a sound one */
        LQ_TRY(lq_stats_read(ctx, &files[k], item->name, files[k].extra, &s));
        lq_stats_free(&s);
    }
    for (int p = 0; p < SAMPLED; p++)
        if (held(w->extra, p)) LQ_TRY(merge_part(ctx, files, n, item, p, w->st, piece));
    return held(w->extra, SAMPLES) ? merge_samples(ctx, files, n, item, w) : LQ_OK;
}

lq_status lq_stats_merge(lq_ctx *ctx, const lq_stats_file *files, size_t n, const char *dir) {
    json_t *identity = NULL;
    lq_stats_writer *w = NULL;
    double *piece = LQ_NEWN(double, 2 * PIECE);
    lq_status st = piece ? LQ_OK : lq_oom(ctx, 2 * PIECE * sizeof *piece);
    for (size_t i = 1; i < n && !st; i++) st = same_model(ctx, &files[0], &files[i]);
    if (!st) st = joined(ctx, files, n, &identity);
    if (!st) st = lq_stats_create(ctx, dir, files[0].items, files[0].n, files[0].extra, identity, &w);
    for (size_t i = 0; i < files[0].n && !st; i++) st = merge_item(ctx, files, n, &files[0].items[i], w, piece);
    if (!st) st = lq_stats_finish(ctx, &w);
    lq_stats_abandon(&w);
    json_decref(identity);
    lq_free(piece);
    return st;
}
