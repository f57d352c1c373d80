/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "quant/manifest.h"

#include <string.h>

static json_t *file_entry(lq_ctx *ctx, const char *path, lq_status *st) {
    char hex[65];
    *st = lq_sha_file(ctx, path, hex);
    return *st ? NULL : json_pack("{s:s, s:s}", "name", lq_path_base(path), "sha256", hex);
}

static bool add_file(lq_ctx *ctx, json_t *list, const char *path, lq_status *st) {
    json_t *e = path ? file_entry(ctx, path, st) : NULL;
    if (!e || json_array_append_new(list, e)) {
        if (!*st) *st = lq_oom(ctx, 256);
        return false;
    }
    return true;
}

static bool add_sidecar(lq_ctx *ctx, json_t *list, lq_source *src, const char *name, lq_status *st) {
    lq_buf b;
    char hex[65];
    *st = lq_source_sidecar(ctx, src, name, &b);
    if (*st) return false;
    lq_sha *sha = lq_sha_new();
    if (sha) {
        lq_sha_add(sha, b.v, b.n);
        lq_sha_end(&sha, hex);
        json_t *e = json_pack("{s:s, s:s}", "name", name, "sha256", hex);
        if (!e || json_array_append_new(list, e)) *st = lq_oom(ctx, 256);
    } else {
        *st = lq_oom(ctx, 256);
    }
    lq_buf_free(&b);
    return !*st;
}

json_t *lq_manifest_inputs(lq_ctx *ctx, lq_source *src, lq_status *st) {
    json_t *list = json_array();
    *st = list ? LQ_OK : lq_oom(ctx, 64);
    for (size_t i = 0; !*st && i < src->n_weight_files; i++) add_file(ctx, list, src->weight_files[i], st);
    for (size_t i = 0; !*st && i < src->n_sidecars; i++) add_sidecar(ctx, list, src, src->sidecars[i], st);
    if (!*st) return list;
    json_decref(list);
    return NULL;
}

json_t *lq_manifest_outputs(lq_ctx *ctx, const char *dir, lq_status *st) {
    char **names = NULL;
    size_t n = 0;
    json_t *list = json_array();
    *st = list ? lq_dir_list(ctx, dir, &names, &n) : lq_oom(ctx, 64);
    for (size_t i = 0; !*st && i < n; i++) {
        char *path = lq_path_join(dir, names[i]);
        add_file(ctx, list, path, st);
        lq_free(path);
    }
    lq_names_free(&names, n);
    if (!*st) return list;
    json_decref(list);
    return NULL;
}

json_t *lq_manifest_calibration(const lq_rows *rows, int64_t seed) {
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:b, s:s}", "text", rows->source ? rows->source : "", "rows", (json_int_t)rows->n, "seqlen",
                     (json_int_t)rows->seqlen, "rows_available", (json_int_t)(rows->used + rows->dropped), "rows_dropped", (json_int_t)rows->dropped,
                     "seed", (json_int_t)seed, "bos", rows->bos, "sha256", rows->hash);
}

json_t *lq_manifest_module(const lq_row *row, const lq_qtensor *q, const lq_outcome *o) {
    char module[256], type[64];
    json_t *m = json_pack("{s:s, s:[I,I], s:s, s:I, s:s, s:f}", "name", lq_row_module(row, module, sizeof module), "shape", (json_int_t)lq_row_rows(row),
                          (json_int_t)lq_row_cols(row), "type", lq_scheme_name(&row->scheme, type, sizeof type), "bytes", (json_int_t)lq_qtensor_bytes(q), "method", o->method, "err_w", o->err_w);
    if (!m) return NULL;
    int bad = 0;
    if (o->err_h >= 0) bad |= json_object_set_new(m, "rel_err", json_real(o->err_h));
    if (o->err_h_rtn >= 0) bad |= json_object_set_new(m, "rel_err_rtn", json_real(o->err_h_rtn));
    if (o->damp >= 0) bad |= json_object_set_new(m, "damp", json_real(o->damp));
    if (o->tokens) bad |= json_object_set_new(m, "tokens", json_integer((json_int_t)o->tokens));
    if (row->slot.expert >= 0 && lq_role_is_expert((lq_role)row->slot.role)) bad |= json_object_set_new(m, "expert", json_integer(row->slot.expert));
    if (o->expert_tokens >= 0) bad |= json_object_set_new(m, "expert_tokens", json_integer((json_int_t)o->expert_tokens));
    if (o->dead_cols) bad |= json_object_set_new(m, "dead_columns", json_integer(o->dead_cols));
    if (o->guarded_rows) bad |= json_object_set_new(m, "guarded_rows", json_integer(o->guarded_rows));
    if (o->bytes_packed) bad |= json_object_set_new(m, "zeros", json_real(o->zeros)) | json_object_set_new(m, "bytes_packed", json_integer((json_int_t)o->bytes_packed));
    if (o->fallback[0]) bad |= json_object_set_new(m, "fallback", json_string(o->fallback));
    if (!bad) return m;
    json_decref(m);
    return NULL;
}

lq_outcome lq_manifest_outcome(const json_t *m) {
    lq_outcome o = {.method = json_string_value(json_object_get(m, "method")), .err_h = -1, .err_h_rtn = -1, .damp = -1};
    const json_t *v;
    if ((v = json_object_get(m, "rel_err"))) o.err_h = json_real_value(v);
    if ((v = json_object_get(m, "rel_err_rtn"))) o.err_h_rtn = json_real_value(v);
    if ((v = json_object_get(m, "damp"))) o.damp = json_real_value(v);
    o.err_w = json_real_value(json_object_get(m, "err_w"));
    if ((v = json_object_get(m, "zeros"))) o.zeros = json_real_value(v);
    o.bytes_packed = (uint64_t)json_integer_value(json_object_get(m, "bytes_packed"));
    const char *why = json_string_value(json_object_get(m, "fallback"));
    if (why) snprintf(o.fallback, sizeof o.fallback, "%s", why);
    return o;
}

json_t *lq_manifest_kept(const lq_catalog *cat) {
    json_t *list = json_array();
    for (size_t i = 0; list && i < cat->n; i++) {
        const lq_row *r = &cat->rows[i];
        if (r->quantize) continue;
        json_t *e = json_pack("{s:s, s:s}", "name", r->name, "type", lq_dtypes[r->out_dtype].name);
        if (e && r->out_dtype != r->dtype) json_object_set_new(e, "from", json_string(lq_dtypes[r->dtype].name));
        if (e && r->why_kept) json_object_set_new(e, "why", json_string(r->why_kept));
        if (!e || json_array_append_new(list, e)) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}
