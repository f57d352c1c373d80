/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "formats/folder.h"

#include <string.h>

const char *lq_folder_module(lq_arena *mem, const lq_row *r) {
    size_t n = strlen(r->name) + 1;
    char *buf = lq_arena_alloc(mem, n);
    return buf ? lq_row_module(r, buf, n) : NULL;
}

uint32_t lq_nearest_group(uint32_t cols, uint32_t group) {
    if (group > cols) group = cols;
    for (uint32_t d = 0; d < cols; d++) {
        if (group > d && cols % (group - d) == 0) return group - d;
        if (group + d <= cols && cols % (group + d) == 0) return group + d;
    }
    return cols;
}

static const char *part_name(lq_arena *mem, const lq_row *r, const char *suffix) {
    const char *module = lq_folder_module(mem, r);
    size_t n = module ? strlen(module) : 0, m = strlen(suffix) + 1;
    char *name = module ? lq_arena_alloc(mem, n + m) : NULL;
    if (!name) return NULL;
    memcpy(name, module, n);
    memcpy(name + n, suffix, m);
    return name;
}

static size_t spec_bytes(const lq_part_spec *p) {
    uint64_t n = lq_dtypes[p->dtype].bytes;
    for (uint32_t i = 0; i < p->ndim; i++) n *= p->shape[i];
    return (size_t)n;
}

static lq_status describe(lq_sink *s, const lq_layout *l, const lq_row *r, lq_arena *mem, lq_st_tensor *t, size_t *n) {
    lq_part_spec specs[LQ_PARTS_MAX] = {0};
    if (r->ndim != 2) return lq_fail(s->ctx, LQ_ERR_INTERNAL, "'%s' has %u dimensions", r->name, r->ndim);
    size_t parts = l->parts(s, r, specs);
    for (size_t i = 0; i < parts; i++) {
        lq_st_tensor *out = &t[(*n)++];
        *out = (lq_st_tensor){.name = part_name(mem, r, specs[i].suffix), .dtype = specs[i].dtype, .ndim = specs[i].ndim};
        memcpy(out->shape, specs[i].shape, sizeof out->shape);
        if (!out->name) return lq_oom(s->ctx, 256);
    }
    return LQ_OK;
}

/* A file says of all planes of a type at once how many significant bits they have. */
static lq_status check_sig(lq_sink *s, const lq_row *r, const lq_row **of) {
    const lq_plane_desc *d = &r->scheme.scale;
    if (!of[d->dtype]) of[d->dtype] = r;
    uint8_t sig = of[d->dtype]->scheme.scale.sig;
    if (d->dtype == LQ_U8 || d->dtype == LQ_I8 || sig == d->sig) return LQ_OK;
    return lq_fail(s->ctx, LQ_ERR_UNSUPPORTED, "scales of '%s' and '%s' are both %s, but rounded in two ways (%u, %u), and a %s checkpoint says it once; --format lqt holds them", of[d->dtype]->name,
                   r->name, lq_dtypes[d->dtype].name, sig, d->sig, s->format->name);
}

lq_status lq_folder_check(lq_sink *s) {
    const lq_row *of[LQ_DTYPE_N] = {0};
    for (size_t i = 0; i < s->cat->n; i++) {
        const lq_row *r = &s->cat->rows[i];
        if (!r->quantize) continue;
        if (r->slot.role == LQ_R_EMBED)
            return lq_fail(s->ctx, LQ_ERR_UNSUPPORTED, "'%s': a %s checkpoint keeps embeddings; leave it out, or use --format lqt", r->name, s->format->name);
        LQ_TRY(check_sig(s, r, of));
    }
    return LQ_OK;
}

lq_status lq_folder_open(lq_sink *s, const lq_layout *layout) {
    lq_folder *f = s->priv;
    lq_status st = LQ_OK;
    size_t n = 0;
    lq_arena *mem = lq_arena_new();
    lq_st_tensor *t = LQ_NEWN(lq_st_tensor, s->cat->n * LQ_PARTS_MAX);
    f->layout = layout;
    if (!mem || !t) { st = lq_oom(s->ctx, s->cat->n * LQ_PARTS_MAX * sizeof *t); goto done; }
    for (size_t i = 0; i < s->cat->n; i++) {
        const lq_row *r = &s->cat->rows[i];
        if (r->quantize) LQ_GO(describe(s, layout, r, mem, t, &n));
        else {
            t[n++] = lq_st_tensor_of_row(r);
            if (layout->kept_name && !(t[n - 1].name = layout->kept_name(mem, r))) { st = lq_oom(s->ctx, 256); goto done; }
        }
    }
    st = lq_st_create(s->ctx, s->dir, t, n, s->opts.shard_size, &f->w);
done:
    lq_free(t);
    lq_arena_free(&mem);
    return st;
}

static lq_status put_part(lq_sink *s, const lq_row *r, const lq_qtensor *q, const lq_part_spec *spec, size_t i) {
    lq_folder *f = s->priv;
    size_t n = spec_bytes(spec);
    lq_arena *mem = lq_arena_new();
    void *data = lq_alloc(n ? n : 1);
    const char *name = mem ? part_name(mem, r, spec->suffix) : NULL;
    lq_status st = name && data ? f->layout->pack(s, r, q, i, data) : lq_oom(s->ctx, n);
    if (!st) st = lq_st_put(s->ctx, f->w, name, data, n);
    lq_free(data);
    lq_arena_free(&mem);
    return st;
}

lq_status lq_folder_put(lq_sink *s, const lq_row *r, const lq_qtensor *q) {
    lq_part_spec specs[LQ_PARTS_MAX] = {0};
    if (q->bias) return lq_fail(s->ctx, LQ_ERR_INTERNAL, "the bias is a tensor of its own in this format");
    size_t n = ((lq_folder *)s->priv)->layout->parts(s, r, specs);
    for (size_t i = 0; i < n; i++) LQ_TRY(put_part(s, r, q, &specs[i], i));
    return LQ_OK;
}

lq_status lq_folder_put_fp(lq_sink *s, const lq_row *r, const void *data, size_t bytes) {
    const lq_folder *f = s->priv;
    if (!f->layout->kept_name) return lq_st_put(s->ctx, f->w, r->name, data, bytes);
    lq_arena *mem = lq_arena_new();
    const char *name = mem ? f->layout->kept_name(mem, r) : NULL;
    lq_status st = name ? lq_st_put(s->ctx, f->w, name, data, bytes) : lq_oom(s->ctx, 256);
    lq_arena_free(&mem);
    return st;
}

lq_status lq_folder_sidecar(lq_sink *s, const char *name, const void *data, size_t n) {
    char *path = lq_path_join(s->dir, name);
    if (!path) return lq_oom(s->ctx, strlen(name));
    lq_status st = lq_write_file(s->ctx, path, data, n);
    lq_free(path);
    return st;
}

lq_status lq_folder_sync(lq_sink *s) { return lq_st_sync(s->ctx, ((lq_folder *)s->priv)->w); }
lq_status lq_folder_close(lq_sink *s) { return lq_st_finish(s->ctx, &((lq_folder *)s->priv)->w); }
void lq_folder_abandon(lq_sink *s) { lq_st_abandon(&((lq_folder *)s->priv)->w); }

/* The reader announces a plane's significant bits only when the file says that every plane obeys them. */
static int common_sig(const lq_catalog *cat) {
    int sig = -1;
    for (size_t i = 0; i < cat->n; i++) {
        lq_dtype t = cat->rows[i].scheme.scale.dtype;
        if (!cat->rows[i].quantize || (t != LQ_F16 && t != LQ_BF16 && t != LQ_F32)) continue;
        if (sig >= 0 && sig != cat->rows[i].scheme.scale.sig) return 0;
        sig = cat->rows[i].scheme.scale.sig;
    }
    return sig < 0 ? 0 : sig;
}

json_t *lq_folder_meta(const lq_sink *s) {
    json_t *m = s->opts.meta ? json_deep_copy(s->opts.meta) : json_object();
    int sig = common_sig(s->cat);
    bool ok = m != NULL;
    if (ok && !json_object_get(m, "quantizer")) ok = !json_object_set_new(m, "quantizer", json_pack("[s]", "lquant:" LQ_VERSION));
    if (ok && sig) ok = !json_object_set_new(m, "scale_sig", json_integer(sig));
    if (ok) return m;
    json_decref(m);
    return NULL;
}

static bool is_kept_matrix(const lq_row *r) {
    size_t n = strlen(r->name);
    return !r->quantize && r->part == LQ_PART_WEIGHT && r->ndim == 2 && r->slot.role != LQ_R_EMBED && r->slot.role != LQ_R_POS_EMBED && n > 7 &&
           !strcmp(r->name + n - 7, ".weight");
}

static json_t *modules_where(const lq_sink *s, bool (*wanted)(const lq_row *)) {
    lq_arena *mem = lq_arena_new();
    json_t *names = mem ? json_array() : NULL;
    bool ok = names != NULL;
    for (size_t i = 0; ok && i < s->cat->n; i++) {
        if (!wanted(&s->cat->rows[i])) continue;
        const char *module = lq_folder_module(mem, &s->cat->rows[i]);
        ok = module && !json_array_append_new(names, json_string(module));
    }
    lq_arena_free(&mem);
    if (ok) return names;
    json_decref(names);
    return NULL;
}

json_t *lq_folder_kept(const lq_sink *s) { return modules_where(s, is_kept_matrix); }

static lq_status catches(lq_sink *s, const char *kept, const json_t *names) {
    size_t i;
    json_t *v;
    json_array_foreach(names, i, v) {
        const char *name = json_string_value(v);
        if (strstr(name, kept))
            return lq_fail(s->ctx, LQ_ERR_UNSUPPORTED, "'%s' is kept, but runtimes would then take '%s' for kept too, since its name holds the other's; keep both, or use --format lqt", kept, name);
    }
    return LQ_OK;
}

lq_status lq_folder_kept_apart(lq_sink *s) {
    lq_status st = LQ_OK;
    lq_arena *mem = lq_arena_new();
    json_t *kept = lq_folder_kept(s), *names = json_array(), *v;
    size_t i;
    if (!mem || !kept || !names) { st = lq_oom(s->ctx, 4096); goto done; }
    for (i = 0; i < s->cat->n; i++) {
        if (!s->cat->rows[i].quantize) continue;
        const char *module = lq_folder_module(mem, &s->cat->rows[i]);
        if (!module || json_array_append_new(names, json_string(module))) { st = lq_oom(s->ctx, 256); goto done; }
    }
    json_array_foreach(kept, i, v) LQ_GO(catches(s, json_string_value(v), names));
done:
    json_decref(kept);
    json_decref(names);
    lq_arena_free(&mem);
    return st;
}

bool lq_folder_has_head(const lq_sink *s) {
    for (size_t i = 0; i < s->cat->n; i++)
        if (s->cat->rows[i].quantize && s->cat->rows[i].slot.role == LQ_R_HEAD) return true;
    return false;
}

void lq_folder_codes(const lq_qtensor *q, void *out) {
    size_t n = ((size_t)q->cols * q->sch.grid.bits + 7) / 8;
    for (uint32_t r = 0; r < q->rows; r++) memcpy((char *)out + r * n, q->codes + r * q->row_bytes, n);
}

lq_status lq_folder_alike(lq_sink *s, bool (*alike)(const lq_scheme *, const lq_scheme *), const char *instead, const lq_row **first) {
    *first = NULL;
    for (size_t i = 0; i < s->cat->n; i++) {
        const lq_row *r = &s->cat->rows[i];
        char a[64], b[64];
        if (!r->quantize) continue;
        if (!*first) *first = r;
        if (!alike(&(*first)->scheme, &r->scheme))
            return lq_fail(s->ctx, LQ_ERR_UNSUPPORTED, "'%s' is %s, '%s' is %s, but one %s checkpoint has one such type; %s", (*first)->name,
                           lq_scheme_name(&(*first)->scheme, a, sizeof a), r->name, lq_scheme_name(&r->scheme, b, sizeof b), s->format->name, instead);
    }
    return LQ_OK;
}

json_t *lq_folder_skipped(const lq_sink *s) {
    bool head = false;
    json_t *kept = lq_folder_kept(s);
    for (size_t i = 0; i < s->cat->n; i++) head |= s->cat->rows[i].slot.role == LQ_R_HEAD && s->cat->rows[i].part == LQ_PART_WEIGHT;
    if (!kept || lq_folder_has_head(s)) return kept;
    if (json_array_size(kept) <= head) {
        json_decref(kept);
        return json_null();
    }
    if (head || !json_array_append_new(kept, json_string("lm_head"))) return kept;
    json_decref(kept);
    return NULL;
}

void lq_folder_common(const lq_sink *s, bool (*alike)(const lq_scheme *, const lq_scheme *), lq_scheme *out) {
    const lq_catalog *cat = s->cat;
    enum { KINDS = 32 };
    lq_scheme kinds[KINDS];
    size_t count[KINDS] = {0}, n = 0, best = 0;
    for (size_t i = 0; i < cat->n; i++) {
        if (!cat->rows[i].quantize) continue;
        size_t k = 0;
        while (k < n && !alike(&kinds[k], &cat->rows[i].scheme)) k++;
        if (k == KINDS) continue;
        if (k == n) kinds[n++] = cat->rows[i].scheme;
        count[k]++;
    }
    for (size_t k = 1; k < n; k++)
        if (count[k] > count[best]) best = k;
    if (n) *out = kinds[best];
}

static bool is_sym(const lq_row *r) { return r->quantize && r->scheme.zero_kind == LQ_ZERO_NONE; }

json_t *lq_folder_sym(const lq_sink *s) {
    size_t n = 0, sym = 0;
    for (size_t i = 0; i < s->cat->n; i++) {
        n += s->cat->rows[i].quantize;
        sym += is_sym(&s->cat->rows[i]);
    }
    return sym && sym < n ? modules_where(s, is_sym) : json_boolean(sym > 0);
}
