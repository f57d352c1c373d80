/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "eval/inspect.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- gather ---- */

static uint64_t entry_elems(const lq_entry *e) {
    uint64_t n = 1;
    for (uint32_t i = 0; i < e->ndim; i++) n *= e->shape[i];
    return n;
}

static double entry_bpw(const lq_entry *e) {
    uint64_t n = entry_elems(e);
    if (!n) return 0;
    if (e->dtype == LQ_NONE && e->ndim == 2) return 8.0 * (double)lq_entry_q_bytes(e) / (double)n;
    return 8.0 * (double)e->bytes / (double)n;
}

static json_t *tensor_json(const lq_source *src, size_t i, const lq_row *row) {
    const lq_entry *e = &src->entries[i];
    char type[64];
    if (e->dtype == LQ_NONE) lq_scheme_name(&e->scheme, type, sizeof type);
    else snprintf(type, sizeof type, "%s", lq_dtypes[e->dtype].name);
    json_t *shape = json_array();
    for (uint32_t d = 0; d < e->ndim; d++) json_array_append_new(shape, json_integer((json_int_t)e->shape[d]));
    json_t *v = json_pack("{s:s, s:s, s:o, s:I, s:f, s:b}", "name", e->name, "type", type, "shape", shape, "bytes", (json_int_t)e->bytes,
                          "bits_per_weight", entry_bpw(e), "quantized", e->dtype == LQ_NONE || lq_dtypes[e->dtype].block > 1);
    if (v && row && row->slot.role < LQ_R_N) json_object_set_new(v, "role", json_string(lq_role_names[row->slot.role]));
    if (v && row && row->slot.block >= 0) json_object_set_new(v, "block", json_integer(row->slot.block));
    return v;
}

/* Rows in model order where a model could be bound, else entries as stored. */
static json_t *tensors_json(const lq_source *src, const lq_model *m) {
    json_t *list = json_array();
    bool *done = LQ_NEWN(bool, src->n);
    if (!done) {
        json_decref(list);
        return NULL;
    }
    for (size_t i = 0; m && i < m->cat.n; i++) {
        int32_t at = m->cat.rows[i].source;
        if (at < 0 || (size_t)at >= src->n || done[at]) continue;
        done[at] = true;
        json_array_append_new(list, tensor_json(src, (size_t)at, &m->cat.rows[i]));
    }
    for (size_t i = 0; i < src->n; i++)
        if (!done[i]) json_array_append_new(list, tensor_json(src, i, NULL));
    lq_free(done);
    return list;
}

/* {"F32": {"tensors": 61, "bytes": ...}} in order of appearance */
static json_t *types_json(const json_t *tensors) {
    json_t *types = json_object(), *t;
    size_t i;
    json_array_foreach(tensors, i, t) {
        const char *name = json_string_value(json_object_get(t, "type"));
        const json_t *old = json_object_get(types, name);
        json_int_t n = json_integer_value(json_object_get(old, "tensors")), bytes = json_integer_value(json_object_get(old, "bytes"));
        json_object_set_new(types, name, json_pack("{s:I, s:I}", "tensors", n + 1, "bytes", bytes + json_integer_value(json_object_get(t, "bytes"))));
    }
    return types;
}

static json_t *model_json(const lq_model *m) {
    const lq_params *p = &m->par;
    return json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:b}", "architecture", m->arch->name, "model_type",
                     m->cat.model_type ? m->cat.model_type : m->arch->name, "blocks", (int)p->n_layers, "hidden", (int)p->hidden, "ffn",
                     (int)p->ffn, "heads", (int)p->n_heads, "kv_heads", (int)p->n_kv_heads, "head_dim", (int)p->head_dim, "vocab",
                     (int)p->vocab, "context", (int)p->max_ctx, "tied", (int)p->tied);
}

static lq_status manifest_json(lq_ctx *ctx, lq_source *src, json_t **out) {
    lq_buf text;
    *out = NULL;
    LQ_TRY(lq_source_manifest(ctx, src, &text));
    lq_status st = text.v ? lq_json_parse(ctx, "manifest", text.v, text.n, out) : LQ_OK;
    lq_buf_free(&text);
    return st;
}

lq_status lq_inspect_json(lq_ctx *ctx, lq_source *src, const lq_model *m, json_t **out) {
    uint64_t bytes = 0, params = 0;
    json_t *manifest = NULL, *files = json_array(), *sidecars = json_array();
    for (size_t i = 0; i < src->n; i++) {
        bytes += src->entries[i].bytes;
        params += entry_elems(&src->entries[i]);
    }
    for (size_t i = 0; i < src->n_sidecars; i++) json_array_append_new(sidecars, json_string(src->sidecars[i]));
    for (size_t i = 0; i < src->n_weight_files; i++) json_array_append_new(files, json_string(lq_path_base(src->weight_files[i])));
    *out = json_pack("{s:i, s:s, s:s, s:s, s:I, s:I, s:I, s:f, s:o, s:o}", "schema", 1, "path", src->path, "format", src->reader->name,
                     "format_text", src->reader->what, "tensors_n", (json_int_t)src->n, "params", (json_int_t)params, "bytes", (json_int_t)bytes,
                     "bits_per_weight_all", params ? 8.0 * (double)bytes / (double)params : 0.0, "files", files, "sidecars", sidecars);
    if (!*out) return lq_oom(ctx, 4096);
    if (m && m->arch) {
        lq_weight w = lq_weight_of(m);
        json_object_set_new(*out, "model", model_json(m));
        json_object_set_new(*out, "linears", json_integer((json_int_t)w.linears));
        json_object_set_new(*out, "quantized", json_integer((json_int_t)w.quantized));
        json_object_set_new(*out, "bits_per_weight", json_real(w.bpw));
    }
    json_t *qc = src->config ? json_object_get(src->config, "quantization_config") : NULL;
    if (qc) json_object_set(*out, "quantization_config", qc);
    lq_status st = manifest_json(ctx, src, &manifest);
    if (manifest) json_object_set_new(*out, "manifest", manifest);
    json_t *tensors = tensors_json(src, m);
    json_object_set_new(*out, "types", types_json(tensors));
    if (json_object_set_new(*out, "tensors", tensors) && !st) st = lq_oom(ctx, 4096);
    if (st) {
        json_decref(*out);
        *out = NULL;
    }
    return st;
}

/* ---- tell ---- */

static const char *str(const json_t *v, const char *key) {
    const char *s = json_string_value(json_object_get(v, key));
    return s ? s : "";
}
static int64_t num(const json_t *v, const char *key) { return json_integer_value(json_object_get(v, key)); }
static double real(const json_t *v, const char *key) { return json_number_value(json_object_get(v, key)); }

static bool model_text(const json_t *m, lq_buf *out) {
    return lq_buf_addf(out, "model         %s, %" PRId64 " blocks, hidden %" PRId64 ", ffn %" PRId64 ", heads %" PRId64 "/%" PRId64
                            " of %" PRId64 ", vocabulary %" PRId64 ", context %" PRId64 "%s\n",
                       str(m, "model_type"), num(m, "blocks"), num(m, "hidden"), num(m, "ffn"), num(m, "heads"), num(m, "kv_heads"),
                       num(m, "head_dim"), num(m, "vocab"), num(m, "context"), json_is_true(json_object_get(m, "tied")) ? ", tied" : "");
}

static bool types_text(const json_t *v, lq_buf *out) {
    const char *name;
    json_t *t;
    bool ok = true;
    json_object_foreach(json_object_get(v, "types"), name, t)
        ok = ok && lq_buf_addf(out, "              %-18s %6" PRId64 " tensors %12.3f MB\n", name, num(t, "tensors"), (double)num(t, "bytes") / 1e6);
    return ok;
}

static bool compact(const json_t *v, lq_buf *out) { /* one line, at most 400 bytes */
    char *s = json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY);
    bool ok = s && lq_buf_addf(out, "%.400s%s", s, strlen(s) > 400 ? " ..." : "");
    free(s);
    return ok;
}

static bool provenance_text(const json_t *v, lq_buf *out) {
    json_t *qc = json_object_get(v, "quantization_config"), *m = json_object_get(v, "manifest"), *part;
    const char *key;
    bool ok = true;
    if (qc) ok = lq_buf_addf(out, "quantization  ") && compact(qc, out) && lq_buf_add(out, "\n", 1);
    if (m) ok = ok && lq_buf_addf(out, "manifest      ");
    if (m)
        json_object_foreach(m, key, part)
            if (!json_is_array(part)) ok = ok && lq_buf_addf(out, "%s ", key) && compact(part, out) && lq_buf_add(out, "\n              ", 15);
    if (m) ok = ok && lq_buf_addf(out, "(all of it: --json)\n");
    return ok;
}

static bool names_text(const json_t *list, const char *what, lq_buf *out) {
    bool ok = lq_buf_addf(out, "%-13s", what);
    size_t n = json_array_size(list);
    for (size_t i = 0; i < n && i < 12 && ok; i++) ok = lq_buf_addf(out, " %s", json_string_value(json_array_get(list, i)));
    if (n > 12) ok = ok && lq_buf_addf(out, " ... (%zu in all)", n);
    return ok && lq_buf_add(out, "\n", 1);
}

static bool tensors_text(const json_t *list, lq_buf *out) {
    bool ok = lq_buf_add(out, "\n", 1);
    size_t i;
    json_t *t;
    json_array_foreach(list, i, t) {
        char shape[96] = "";
        const json_t *s = json_object_get(t, "shape");
        for (size_t d = 0, n = 0; d < json_array_size(s) && n < sizeof shape - 24; d++)
            n += (size_t)snprintf(shape + n, sizeof shape - n, "%s%" JSON_INTEGER_FORMAT, d ? "x" : "", json_integer_value(json_array_get(s, d)));
        ok = ok && lq_buf_addf(out, "%-56s %-18s %-14s %8.3f bpw %12" PRId64 "\n", str(t, "name"), str(t, "type"), *shape ? shape : "scalar",
                               real(t, "bits_per_weight"), num(t, "bytes"));
    }
    return ok;
}

lq_status lq_inspect_text(lq_ctx *ctx, const json_t *v, bool tensors, lq_buf *out) {
    bool ok = lq_buf_addf(out, "path          %s (%s)\n", str(v, "path"), str(v, "format_text"));
    if (json_object_get(v, "model")) ok = ok && model_text(json_object_get(v, "model"), out);
    ok = ok && lq_buf_addf(out, "tensors       %" PRId64 ", %.3f M parameters, %.3f MB, %.3f bits each\n", num(v, "tensors_n"), (double)num(v, "params") / 1e6,
                           (double)num(v, "bytes") / 1e6, real(v, "bits_per_weight_all"));
    ok = ok && types_text(v, out);
    if (json_object_get(v, "linears"))
        ok = ok && lq_buf_addf(out, "linears       %" PRId64 " in the blocks, %" PRId64 " quantized, %.3f bits per weight\n", num(v, "linears"),
                               num(v, "quantized"), real(v, "bits_per_weight"));
    ok = ok && provenance_text(v, out) && names_text(json_object_get(v, "files"), "files", out);
    if (json_array_size(json_object_get(v, "sidecars"))) ok = ok && names_text(json_object_get(v, "sidecars"), "sidecars", out);
    if (tensors) ok = ok && tensors_text(json_object_get(v, "tensors"), out);
    return ok ? LQ_OK : lq_oom(ctx, out->n);
}
