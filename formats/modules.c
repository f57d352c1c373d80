/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "formats/modules.h"

#include "formats/nameset.h"
#include "formats/qcodec.h"

#include <stdio.h>
#include <string.h>

/* Length of the module name when `name` ends in one of the suffixes (the longest that fits), else 0. */
static size_t part_of(const lq_module_format *f, const char *name, size_t *part) {
    size_t n = strlen(name), best = 0;
    for (size_t i = 0; f->suffix[i]; i++) {
        size_t m = strlen(f->suffix[i]);
        if (m < n && m > best && !strcmp(name + n - m, f->suffix[i])) {
            best = m;
            *part = i;
        }
    }
    return best ? n - best : 0;
}

static lq_status find_part(lq_ctx *ctx, const lq_source *raw, const char *module, size_t n, const char *suffix, long *at) {
    char *full = lq_strf("%.*s%s", (int)n, module, suffix);
    if (!full) return lq_oom(ctx, n);
    *at = lq_source_find(raw, full);
    lq_free(full);
    return LQ_OK;
}

static lq_status find_parts(lq_ctx *ctx, const lq_modules *f, const char *name, lq_module *m) {
    for (size_t i = 0; f->format->suffix[i]; i++) {
        LQ_TRY(find_part(ctx, f->raw, name, strlen(name), f->format->suffix[i], &m->part[i]));
        if (m->part[i] < 0 && f->format->required >> i & 1) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' has no %s", name, f->format->suffix[i] + 1);
    }
    return LQ_OK;
}

static lq_status add_plain(lq_ctx *ctx, lq_source *s, size_t i) {
    lq_modules *f = s->priv;
    f->modules[s->n].part[0] = (long)i;
    return lq_source_add(ctx, s, &f->raw->entries[i]);
}

static lq_status add_module(lq_ctx *ctx, lq_source *s, size_t first, const char *name) {
    lq_modules *f = s->priv;
    lq_module *m = &f->modules[s->n];
    lq_entry e = {.dtype = LQ_NONE};
    bool plain = false;
    for (size_t i = 0; i < LQ_MODULE_PARTS; i++) m->part[i] = -1;
    lq_status st = find_parts(ctx, f, name, m);
    if (!st) st = f->format->describe(ctx, s, name, m, &e, &plain);
    if (st) return lq_note(ctx, st, "module '%s'", name);
    if (plain) return add_plain(ctx, s, first);
    for (size_t i = 0; f->format->suffix[i]; i++)
        if (m->part[i] >= 0) e.bytes += f->raw->entries[m->part[i]].bytes;
    char *full = lq_strf("%s.weight", name);
    if (!full) return lq_oom(ctx, strlen(name));
    e.name = full;
    st = lq_source_add(ctx, s, &e);
    lq_free(full);
    return st;
}

/* The first part stands for its module; the others are hidden beside it. */
static lq_status add_entry(lq_ctx *ctx, lq_source *s, size_t i) {
    lq_modules *f = s->priv;
    const char *full = f->raw->entries[i].name;
    size_t part = 0, n = part_of(f->format, full, &part);
    long first = (long)i;
    if (!n) return add_plain(ctx, s, i);
    if (part) LQ_TRY(find_part(ctx, f->raw, full, n, f->format->suffix[0], &first));
    if (part && first < 0)
        return f->format->common >> part & 1 ? add_plain(ctx, s, i)
                                             : lq_fail(ctx, LQ_ERR_FORMAT, "'%s' has no %s beside it", full, f->format->suffix[0] + 1);
    if (part) return LQ_OK;
    char *name = lq_strndup(full, n);
    if (!name) return lq_oom(ctx, n);
    lq_status st = add_module(ctx, s, i, name);
    lq_free(name);
    return st;
}

lq_status lq_modules_open(lq_ctx *ctx, lq_source *s, const lq_module_format *format) {
    lq_modules *f = s->priv = LQ_NEW(lq_modules);
    if (!f) return lq_oom(ctx, sizeof *f);
    f->format = format;
    if (format->priv_size && !(f->priv = lq_alloc(format->priv_size))) return lq_oom(ctx, format->priv_size);
    if (format->config) LQ_TRY(format->config(ctx, s));
    LQ_TRY(lq_source_open_as(ctx, &lq_reader_safetensors, s->path, &f->raw));
    if (!(f->modules = LQ_NEWN(lq_module, f->raw->n))) return lq_oom(ctx, f->raw->n * sizeof *f->modules);
    for (size_t i = 0; i < f->raw->n; i++) LQ_TRY(add_entry(ctx, s, i));
    return lq_source_inherit(ctx, s, f->raw);
}

lq_status lq_modules_read(lq_ctx *ctx, lq_source *s, size_t i, uint64_t row0, uint64_t rows, void *out) {
    lq_modules *f = s->priv;
    return lq_source_read(ctx, f->raw, (size_t)f->modules[i].part[0], row0, rows, out);
}

lq_status lq_modules_read_q(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *out) {
    const lq_entry *e = &s->entries[i];
    LQ_TRY(lq_qtensor_init(ctx, out, &e->scheme, (lq_slot){0}, (uint32_t)e->shape[0], (uint32_t)e->shape[1]));
    lq_status st = ((lq_modules *)s->priv)->format->fill(ctx, s, i, out);
    if (!st) st = lq_qtensor_check(ctx, out, LQ_ERR_FORMAT);
    if (st) lq_qtensor_free(out);
    return st;
}

lq_status lq_modules_sidecar(lq_ctx *ctx, lq_source *s, size_t i, lq_buf *out) {
    return lq_source_sidecar(ctx, ((lq_modules *)s->priv)->raw, s->sidecars[i], out);
}

void lq_modules_close(lq_source *s) {
    lq_modules *f = s->priv;
    if (!f) return;
    lq_source_free(&f->raw);
    if (f->priv && f->format->free_priv) f->format->free_priv(f->priv);
    lq_free(f->priv);
    lq_free(f->modules);
    lq_free(f);
    s->priv = NULL;
}

bool lq_modules_probe(const char *path, const json_t *config, const char *method, const char *legacy) {
    const json_t *q = json_object_get(config, "quantization_config");
    const char *says = json_string_value(json_object_get(q, "quant_method"));
    if (q && !json_is_null(q)) return says && !strcmp(says, method);
    char file[4096]; /* nothing is allocated: a probe cannot say that memory ran out */
    int n = snprintf(file, sizeof file, "%s/%s", path, legacy);
    return config && n > 0 && (size_t)n < sizeof file && lq_path_exists(file);
}

lq_status lq_modules_config(lq_ctx *ctx, const lq_source *s, const char *legacy, json_t **out) {
    *out = json_incref(json_object_get(s->config, "quantization_config"));
    if (json_is_object(*out)) return LQ_OK;
    json_decref(*out);
    *out = NULL;
    char *path = lq_path_join(s->path, legacy);
    lq_status st = path ? lq_json_load(ctx, path, out) : lq_oom(ctx, strlen(s->path));
    lq_free(path);
    return st || json_is_object(*out) ? st : lq_fail(ctx, LQ_ERR_FORMAT, "%s: not a JSON object", legacy);
}

lq_status lq_modules_part(lq_ctx *ctx, lq_source *s, size_t i, size_t part, void **out) {
    lq_modules *f = s->priv;
    *out = NULL;
    if (f->modules[i].part[part] < 0) return LQ_OK;
    size_t at = (size_t)f->modules[i].part[part];
    const lq_entry *e = &f->raw->entries[at];
    *out = lq_alloc(e->bytes ? (size_t)e->bytes : 1);
    return *out ? lq_source_read(ctx, f->raw, at, 0, lq_entry_rows(e), *out) : lq_oom(ctx, (size_t)e->bytes);
}

lq_status lq_entry_expect(lq_ctx *ctx, const lq_entry *e, bool dtype_ok, uint32_t ndim, uint64_t d0, uint64_t d1) {
    if (!dtype_ok) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is of type %s", e->name, lq_dtypes[e->dtype].name);
    if (e->ndim != ndim || (ndim && e->shape[0] != d0) || (ndim > 1 && e->shape[1] != d1))
        return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is [%llu, %llu] (%u dimensions), expected [%llu, %llu]", e->name, (unsigned long long)e->shape[0],
                       (unsigned long long)(e->ndim > 1 ? e->shape[1] : 0), e->ndim, (unsigned long long)d0, (unsigned long long)(ndim > 1 ? d1 : 0));
    return LQ_OK;
}

lq_status lq_modules_codes(lq_ctx *ctx, lq_source *s, size_t i, size_t part, lq_qtensor *q) {
    void *data;
    size_t n = ((size_t)q->cols * q->sch.grid.bits + 7) / 8;
    lq_status st = lq_modules_part(ctx, s, i, part, &data);
    for (uint32_t r = 0; !st && r < q->rows; r++) memcpy(q->codes + r * q->row_bytes, (const char *)data + r * n, n);
    lq_free(data);
    return st;
}

static bool is_float(lq_dtype t) { return t == LQ_F32 || t == LQ_F16 || t == LQ_BF16; }

lq_status lq_modules_floats(lq_ctx *ctx, lq_source *s, size_t i, size_t part, size_t n, float *out) {
    void *data;
    lq_status st = lq_modules_part(ctx, s, i, part, &data);
    if (!st) lq_dtype_decode(((lq_modules *)s->priv)->raw->entries[((lq_modules *)s->priv)->modules[i].part[part]].dtype, data, out, n);
    lq_free(data);
    return st;
}

lq_status lq_modules_scalar(lq_ctx *ctx, lq_source *s, size_t i, size_t part, float *out) { return lq_modules_floats(ctx, s, i, part, 1, out); }

lq_status lq_entry_scalar(lq_ctx *ctx, const lq_entry *e) {
    if (is_float(e->dtype) && e->bytes == lq_dtypes[e->dtype].bytes) return LQ_OK;
    return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is %s with %u dimensions and %llu bytes, expected one float", e->name, lq_dtypes[e->dtype].name, e->ndim,
                   (unsigned long long)e->bytes);
}

lq_status lq_columns_by_group(lq_ctx *ctx, const int32_t *g_idx, lq_qtensor *q, uint32_t *rank) {
    uint32_t group = q->sch.scale.tile_c ? q->sch.scale.tile_c : q->cols, n_groups = q->cols / group;
    uint32_t *fill = LQ_NEWN(uint32_t, n_groups);
    if (!fill) return lq_oom(ctx, n_groups * sizeof *fill);
    lq_status st = LQ_OK;
    for (uint32_t k = 0; k < q->cols && !st; k++) {
        if (g_idx[k] < 0 || (uint32_t)g_idx[k] >= n_groups) st = lq_fail(ctx, LQ_ERR_FORMAT, "g_idx[%u] is %d of %u groups", k, (int)g_idx[k], n_groups);
        else if (fill[g_idx[k]] == group) st = lq_fail(ctx, LQ_ERR_FORMAT, "g_idx puts more than %u inputs into group %d", group, (int)g_idx[k]);
        else {
            rank[k] = (uint32_t)g_idx[k] * group + fill[g_idx[k]]++;
            q->perm[rank[k]] = k;
        }
    }
    lq_free(fill);
    return st;
}

lq_status lq_module_set_read(lq_ctx *ctx, const json_t *v, lq_module_set *out) {
    size_t i;
    json_t *name;
    *out = (lq_module_set){.all = json_is_true(v)};
    if (!json_is_array(v)) return LQ_OK;
    if (!(out->names = lq_nameset_new())) return lq_oom(ctx, 256);
    json_array_foreach((json_t *)v, i, name) {
        lq_status st = json_is_string(name) ? lq_nameset_add(out->names, json_string_value(name), i) : LQ_ERR_FORMAT;
        if (st == LQ_ERR_RESOURCE) return lq_oom(ctx, 256);
        if (st) return lq_fail(ctx, st, "'sym': entry %zu is no name, or one that is there twice", i);
    }
    return LQ_OK;
}

bool lq_module_set_has(const lq_module_set *m, const char *name) { return m->all || lq_nameset_find(m->names, name) >= 0; }
void lq_module_set_free(lq_module_set *m) { lq_nameset_free(&m->names); }
