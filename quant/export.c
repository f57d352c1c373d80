/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "quant/export.h"

#include "calib/rotate.h"
#include "quant/gguf_out.h"
#include "quant/manifest.h"
#include "quant/method.h"
#include "quant/nearest.h"
#include "quant/sidecars.h"

#include <math.h>
#include <string.h>

typedef struct target {
    const lq_format *format;
    char *dir, *path;
    lq_catalog cat;          /* the model's rows with this output's schemes and types */
    lq_sink *sink;
    lq_gguf_meta *gguf;      /* NULL: the format needs none */
    char (*digest)[65];      /* [cat.n] of what was put */
    lq_exported *told;
    lq_scheme fit_of, fit;   /* the last answer of lq_nearest_scheme */
    uint32_t fit_rows, fit_cols;
} target;

typedef struct job {
    lq_ctx *ctx;
    lq_source *src;
    lq_model *m;
    const lq_export_opts *o;
    target *t;
    size_t n;
    void *rtn;               /* options of rtn, defaults applied */
} job;

void lq_exported_free(lq_exported *e) {
    lq_free(e->kinds);
    *e = (lq_exported){0};
}

/* ---- what each row becomes ---- */

static bool in_codes(const lq_row *r) { return r->part == LQ_PART_WEIGHT && r->ndim == 2 && r->scheme.grid.bits != 0; }
static bool is_float(lq_dtype t) { return t == LQ_F32 || t == LQ_F16 || t == LQ_BF16; }

static lq_dtype float_type(const job *j, const target *t, const lq_row *r) {
    bool floats = !strcmp(t->format->name, "safetensors");
    if (r->dtype != LQ_NONE && !lq_dtype_is_weight(r->dtype)) return r->dtype;
    if (j->o->dtype) return j->o->dtype;
    return is_float(r->dtype) && !floats ? r->dtype : LQ_BF16;
}

static lq_status no_place(lq_ctx *ctx, const target *t, const lq_row *r, const lq_scheme *want) {
    char name[64], near[64], holds[200];
    lq_nearest_formats(&r->scheme, lq_row_rows(r), lq_row_cols(r), holds, sizeof holds);
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%s: %s has no exact place in format %s%s%s%s; formats that hold it as it is: %s", r->name,
                   lq_scheme_name(&r->scheme, name, sizeof name), t->format->name, want ? "; the nearest is " : "", want ? lq_scheme_name(want, near, sizeof near) : "",
                   want ? " (--lossy takes it)" : " (--dequantize gives floats)", *holds ? holds : "none");
}

static lq_status resolve_codes(const job *j, target *t, lq_row *r) {
    uint32_t rows = lq_row_rows(r), cols = lq_row_cols(r);
    bool again = t->fit_rows == rows && t->fit_cols == cols && lq_scheme_eq(&t->fit_of, &r->scheme);
    lq_nearness c = again ? LQ_NEAR_EXACT : lq_nearest_scheme(t->format, &r->scheme, rows, cols, &t->fit);
    if (c == LQ_NEAR_NONE) return no_place(j->ctx, t, r, NULL);
    if (c == LQ_NEAR_ANEW && !j->o->lossy) return no_place(j->ctx, t, r, &t->fit);
    if (!r->scheme.act.kind && t->fit.act.kind && !j->o->lossy) {
        char name[64];
        return lq_fail(j->ctx, LQ_ERR_UNSUPPORTED, "%s: format %s holds these weights as %s only, which also quantizes activations, and the input does not; --lossy takes it", r->name,
                       t->format->name, lq_scheme_name(&t->fit, name, sizeof name));
    }
    t->fit_of = r->scheme;
    t->fit_rows = rows;
    t->fit_cols = cols;
    r->scheme = t->fit;
    r->quantize = true;
    return LQ_OK;
}

/* Folders hold embeddings as floats. */
static bool may_be_codes(const target *t, const lq_row *r) {
    return strcmp(t->format->name, "safetensors") && (r->slot.role != LQ_R_EMBED || t->format->ext);
}

/* Stored there all the same, no runtime would read it: --lossy keeps it as a plain tensor (a GGUF has no name for it). */
static lq_status no_kv(lq_ctx *ctx, const target *t, const lq_row *r) {
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%s: format %s has no place for scales of keys and values; --format compressed-tensors, fp8, modelopt or lqt has, --lossy goes on without", r->name, t->format->name);
}

static lq_status resolve(const job *j, target *t) {
    const lq_catalog *from = &j->m->cat;
    t->cat = *from;
    t->cat.mem = NULL;
    t->cat.rows = LQ_NEWN(lq_row, from->n + 1);
    t->digest = lq_calloc(from->n + 1, sizeof *t->digest);
    if (!t->cat.rows || !t->digest) return lq_oom(j->ctx, from->n * sizeof(lq_row));
    memcpy(t->cat.rows, from->rows, from->n * sizeof(lq_row));
    for (size_t i = 0; i < from->n; i++) {
        lq_row *r = &t->cat.rows[i];
        r->quantize = false;
        if (lq_role_is_kv(r->slot.role) && !t->format->kv_scales && !j->o->lossy) return no_kv(j->ctx, t, r);
        r->out_dtype = lq_role_is_kv(r->slot.role) ? r->dtype : float_type(j, t, r);
        if (t->format->kept) r->out_dtype = t->format->kept(r, r->out_dtype);
        if (in_codes(r) && may_be_codes(t, r)) LQ_TRY(resolve_codes(j, t, r));
        t->told->quantized += r->quantize;
    }
    lq_legal_case c = {&t->cat, t->format->name, from->model_type ? from->model_type : "", j->m->par.n_heads, j->m->par.n_kv_heads, lq_params_short_window(&j->m->par)};
    LQ_TRY(lq_legal_check(j->ctx, &c, &j->o->targets));
    bool lists_codes = t->format->quant_config != NULL;
    if (!lists_codes || t->told->quantized) return LQ_OK;
    return lq_fail(j->ctx, LQ_ERR_UNSUPPORTED, "%s: no matrix of it is quantized; `lquant rtn --format %s` chooses codes, convert does not", j->src->path, t->format->name);
}

/* ---- telling ---- */

static const char *type_text(const lq_row *r, bool codes, lq_dtype dtype, char *buf, size_t n) {
    const char *side = r->slot.role == LQ_R_EMBED ? " embedding" : r->slot.role == LQ_R_HEAD ? " lm_head" : "";
    char name[64];
    snprintf(buf, n, "%s%s", codes ? lq_scheme_name(&r->scheme, name, sizeof name) : lq_dtypes[dtype].name, side);
    return buf;
}

static lq_export_kind *kind_of(lq_exported *e, const char *from, const char *to) {
    for (size_t i = 0; i < e->n_kinds; i++)
        if (!strcmp(e->kinds[i].from, from) && !strcmp(e->kinds[i].to, to)) return &e->kinds[i];
    lq_export_kind *more = lq_realloc(e->kinds, e->n_kinds * sizeof *more, (e->n_kinds + 1) * sizeof *more);
    if (!more) return NULL;
    e->kinds = more;
    lq_export_kind *k = &more[e->n_kinds++];
    snprintf(k->from, sizeof k->from, "%s", from);
    snprintf(k->to, sizeof k->to, "%s", to);
    return k;
}

static lq_status tell(const job *j, target *t, const lq_row *was, const lq_row *is, const lq_loss *l, bool anew) {
    char from[80], to[80];
    lq_export_kind *k = kind_of(t->told, type_text(was, in_codes(was), was->dtype, from, sizeof from), type_text(is, is->quantize, is->out_dtype, to, sizeof to));
    if (!k) return lq_oom(j->ctx, sizeof *k);
    k->tensors++;
    k->anew |= anew;
    if (in_codes(was) && is->quantize) k->act = !was->scheme.act.kind == !is->scheme.act.kind ? "" : is->scheme.act.kind ? "activations are quantized now" : "activations are quantized no longer";
    lq_loss_add(&k->loss, l);
    if (l->max_abs > t->told->loss.max_abs) snprintf(t->told->worst, sizeof t->told->worst, "%s", was->name);
    lq_loss_add(&t->told->loss, l);
    bool asked = j->o->lossy || (!is->quantize && (j->o->dtype || !strcmp(t->format->name, "safetensors")));
    if (!l->changed || asked) return LQ_OK;
    lq_status st = is->quantize ? no_place(j->ctx, t, was, &is->scheme)
                                : lq_fail(j->ctx, LQ_ERR_UNSUPPORTED, "%s: %s has no exact place in format %s as %s; --dtype says which floats to take", was->name, from, t->format->name, to);
    return lq_log(j->ctx, LQ_LOG_INFO, "%s: %llu of %llu weights would change, relative rms %.3g, largest %.3g", was->name, (unsigned long long)l->changed,
                  (unsigned long long)l->weights, lq_loss_rms(l), l->max_abs), st;
}

/* ---- putting ---- */

static void sha_hex(lq_sha *sha, const void *p, size_t n, char hex[65]) {
    lq_sha_add(sha, p, n);
    lq_sha_end(&sha, hex);
}

static lq_status digest_bytes(lq_ctx *ctx, const void *p, size_t n, char hex[65]) {
    lq_sha *sha = lq_sha_new();
    if (!sha) return lq_oom(ctx, 128);
    sha_hex(sha, p, n, hex);
    return LQ_OK;
}

static lq_status digest_codes(lq_ctx *ctx, const lq_qtensor *q, char hex[65]) {
    lq_qtensor plain = *q; /* what no format but our own carries */
    lq_buf b = {0};
    plain.err_w = plain.err_h = -1;
    plain.bias = NULL;
    plain.slot = (lq_slot){0};
    lq_status st = lq_qtensor_encode(ctx, &plain, &b);
    if (!st) st = digest_bytes(ctx, b.v, b.n, hex);
    lq_buf_free(&b);
    return st;
}

/* Blocks are named by less than a scheme says. */
static lq_status digest_values(lq_ctx *ctx, const lq_qtensor *q, char hex[65]) {
    lq_sha *sha = lq_sha_new();
    float *row = lq_calloc(q->cols, sizeof *row);
    lq_status st = sha && row ? LQ_OK : lq_oom(ctx, q->cols * 4);
    for (uint32_t r = 0; r < q->rows && !st; r++) {
        lq_qtensor_decode_row(q, r, row);
        for (uint32_t c = 0; c < q->cols; c++) row[c] += 0; /* no -0 */
        lq_sha_add(sha, row, q->cols * sizeof *row);
    }
    if (sha) lq_sha_end(&sha, hex);
    lq_free(row);
    return st;
}

static float *decoded(lq_ctx *ctx, const lq_qtensor *q) {
    float *w = lq_calloc((size_t)q->rows * q->cols, sizeof *w);
    if (!w) lq_oom(ctx, (size_t)q->rows * q->cols * 4);
    for (uint32_t r = 0; w && r < q->rows; r++) lq_qtensor_decode_row(q, r, w + (size_t)r * q->cols);
    return w;
}

/* The nearest codes of a scheme that has nothing in common with the old one. */
static lq_status choose_anew(const job *j, const lq_row *r, const lq_qtensor *q, const lq_scheme *want, lq_qtensor *out, lq_loss *l) {
    const lq_method *rtn = lq_method_by_name("rtn");
    lq_outcome o = {0};
    float *w = decoded(j->ctx, q), *again = NULL;
    if (!w) return LQ_ERR_RESOURCE;
    lq_weights in = {.slot = q->slot, .name = r->name, .rows = q->rows, .cols = q->cols, .w = w};
    lq_status st = rtn->accept ? rtn->accept(j->ctx, j->rtn, q->rows, q->cols, want) : LQ_OK;
    if (!st) st = rtn->quantize(j->ctx, j->rtn, &in, want, NULL, out, &o);
    if (!st && !(again = decoded(j->ctx, out))) {
        lq_qtensor_free(out);
        st = LQ_ERR_RESOURCE;
    }
    *l = (lq_loss){0};
    if (!st) lq_loss_measure(l, w, again, (size_t)q->rows * q->cols);
    lq_free(w);
    lq_free(again);
    return st;
}

/* Where values change, the old planes or fresh ones, whichever lose less. had: what lq_recast said. */
static lq_status choose_better(const job *j, const lq_row *r, const lq_qtensor *q, const lq_scheme *want, lq_status had, lq_qtensor *made, lq_loss *l, bool *anew) {
    lq_qtensor fresh;
    lq_loss loss;
    lq_ctx quiet = {0};
    job silent = *j;
    if (!had) silent.ctx = &quiet;
    lq_status st = choose_anew(&silent, r, q, want, &fresh, &loss);
    if (st && !had && st != LQ_ERR_RESOURCE) return LQ_OK; /* rtn does not make this type */
    if (st) return st;
    *anew = had || loss.square < l->square;
    if (!had) lq_qtensor_free(*anew ? made : &fresh);
    if (!*anew) return LQ_OK;
    *made = fresh;
    *l = loss;
    return LQ_OK;
}

/* The scheme it has: nothing to say again. */
static lq_status put_same(const job *j, target *t, size_t i, const lq_qtensor *q) {
    lq_loss l = {.weights = (uint64_t)q->rows * q->cols};
    LQ_TRY(tell(j, t, &j->m->cat.rows[i], &t->cat.rows[i], &l, false));
    LQ_TRY(t->format->gguf ? digest_values(j->ctx, q, t->digest[i]) : digest_codes(j->ctx, q, t->digest[i]));
    t->told->bytes += lq_qtensor_bytes(q);
    return lq_sink_put(t->sink, q);
}

static lq_status put_codes(const job *j, target *t, size_t i, const lq_qtensor *q) {
    const lq_row *was = &j->m->cat.rows[i], *is = &t->cat.rows[i];
    lq_qtensor made = {0};
    lq_loss l;
    bool anew = false;
    if (!j->o->lossy && lq_scheme_eq(&q->sch, &is->scheme)) return put_same(j, t, i, q); /* lossy: its energy counts */
    lq_status st = lq_recast(j->ctx, q, &is->scheme, &made, &l);
    if (st == LQ_ERR_UNSUPPORTED && !j->o->lossy) st = no_place(j->ctx, t, was, &is->scheme);
    else if (j->o->lossy && (st == LQ_ERR_UNSUPPORTED || (!st && l.changed))) st = choose_better(j, was, q, &is->scheme, st, &made, &l, &anew);
    if (st) return lq_note(j->ctx, st, "format %s", t->format->name);
    made.slot = is->slot;
    LQ_GO(tell(j, t, was, is, &l, anew));
    LQ_GO(t->format->gguf ? digest_values(j->ctx, &made, t->digest[i]) : digest_codes(j->ctx, &made, t->digest[i]));
    t->told->bytes += lq_qtensor_bytes(&made);
    st = lq_sink_put(t->sink, &made);
done:
    lq_qtensor_free(&made);
    return st;
}

/* What a kept tensor is after the trip: a GGUF may hold w as fl(w + 1). */
static lq_status digest_kept(const job *j, const target *t, size_t i, const void *data, size_t bytes, char hex[65]) {
    lq_dtype type = t->cat.rows[i].out_dtype;
    float add = t->gguf ? t->gguf->places[i].add : 0;
    char *x = add != 0 ? lq_alloc(bytes) : NULL;
    if (add == 0) return digest_bytes(j->ctx, data, bytes, hex);
    if (!x) return lq_oom(j->ctx, bytes);
    for (size_t at = 0; at < bytes; at += lq_dtypes[type].bytes) {
        float v;
        lq_dtype_decode(type, (const char *)data + at, &v, 1);
        v = (v + add) - add;
        lq_dtype_encode(type, &v, x + at, 1);
    }
    lq_status st = digest_bytes(j->ctx, x, bytes, hex);
    lq_free(x);
    return st;
}

static lq_status put_floats(const job *j, target *t, size_t i, const float *x) {
    const lq_row *was = &j->m->cat.rows[i], *is = &t->cat.rows[i];
    size_t n = (size_t)lq_row_elems(is), bytes = n * lq_dtypes[is->out_dtype].bytes;
    void *out = lq_alloc(bytes);
    float *again = lq_calloc(n, 4);
    lq_loss l = {0};
    lq_status st = out && again ? LQ_OK : lq_oom(j->ctx, bytes);
    if (st) goto done;
    lq_dtype_encode(is->out_dtype, x, out, n);
    lq_dtype_decode(is->out_dtype, out, again, n);
    for (size_t k = 0; k < n; k++)
        if (!isfinite(again[k])) LQ_GO(lq_fail(j->ctx, LQ_ERR_UNSUPPORTED, "%s: %g is past the range of %s; use --dtype bf16 or f32", was->name, (double)x[k], lq_dtypes[is->out_dtype].name));
    lq_loss_measure(&l, x, again, n);
    LQ_GO(tell(j, t, was, is, &l, false));
    LQ_GO(digest_kept(j, t, i, out, bytes, t->digest[i]));
    t->told->bytes += bytes;
    st = lq_sink_put_fp(t->sink, is, out, bytes);
done:
    lq_free(out);
    lq_free(again);
    return st;
}

/* What is carried over counts among the energy that a loss is relative to. */
static lq_loss carried(const lq_row *is, const void *data) {
    enum { PIECE = 1024 };
    float x[PIECE];
    lq_loss l = {0};
    uint64_t n = lq_dtype_is_weight(is->out_dtype) && lq_dtypes[is->out_dtype].block == 1 ? lq_row_elems(is) : 0;
    for (uint64_t at = 0; at < n; at += PIECE) {
        uint64_t k = n - at < PIECE ? n - at : PIECE;
        lq_dtype_decode(is->out_dtype, (const char *)data + at * lq_dtypes[is->out_dtype].bytes, x, (size_t)k);
        lq_loss_measure(&l, x, x, (size_t)k);
    }
    return l;
}

static lq_status put_stored(const job *j, target *t, size_t i, const void *data, size_t bytes) {
    const lq_row *was = &j->m->cat.rows[i], *is = &t->cat.rows[i];
    lq_loss l = carried(is, data);
    LQ_TRY(tell(j, t, was, is, &l, false));
    LQ_TRY(digest_kept(j, t, i, data, bytes, t->digest[i]));
    t->told->bytes += bytes;
    return lq_sink_put_fp(t->sink, is, data, bytes);
}

/* The row in its stored bytes, its floats and its codes, as far as some output wants them. */
static lq_status put_row(const job *j, size_t i) {
    const lq_row *r = &j->m->cat.rows[i];
    size_t n = (size_t)lq_row_elems(r), bytes = n * lq_dtypes[r->dtype].bytes;
    bool codes = in_codes(r) && !j->m->rotation, floats = false, stored = false;
    lq_qtensor q = {0};
    float *x = NULL;
    void *data = NULL;
    lq_status st = LQ_OK;
    for (size_t k = 0; k < j->n; k++) {
        const lq_row *is = &j->t[k].cat.rows[i];
        bool same = is->out_dtype == r->dtype && (is_float(r->dtype) || !lq_dtype_is_weight(r->dtype));
        floats |= !is->quantize && !same;
        stored |= !is->quantize && same;
    }
    if (codes) LQ_GO(lq_model_read_q(j->ctx, j->m, r, &q));
    if (floats && !(x = codes ? decoded(j->ctx, &q) : lq_calloc(n, 4))) LQ_GO(lq_oom(j->ctx, n * 4));
    if (floats && !codes) LQ_GO(lq_model_read_f32(j->ctx, j->m, r, x));
    if (stored && !(data = lq_alloc(bytes))) LQ_GO(lq_oom(j->ctx, bytes));
    if (stored) LQ_GO(lq_model_read_stored(j->ctx, j->m, r, data));
    for (size_t k = 0; k < j->n; k++) {
        const lq_row *is = &j->t[k].cat.rows[i];
        if (is->quantize) LQ_GO(put_codes(j, &j->t[k], i, &q));
        else if (stored && is->out_dtype == r->dtype) LQ_GO(put_stored(j, &j->t[k], i, data, bytes));
        else LQ_GO(put_floats(j, &j->t[k], i, x));
    }
done:
    lq_qtensor_free(&q);
    lq_free(x);
    lq_free(data);
    return st;
}

/* ---- what goes beside the tensors ---- */

/* Provenance of codes that other hands chose; nothing a reader would act on. */
static json_t *meta_of(const lq_source *src) {
    json_t *meta = json_pack("{s:[s]}", "quantizer", "lquant:" LQ_VERSION);
    json_t *was = json_object_get(json_object_get(json_object_get(src->config, "quantization_config"), "meta"), "quantizer");
    if (meta && was) json_object_set(meta, "converted_from", was);
    return meta;
}

static json_t *kinds_json(const lq_exported *e) {
    json_t *list = json_array();
    for (size_t i = 0; list && i < e->n_kinds; i++) {
        const lq_export_kind *k = &e->kinds[i];
        json_t *v = json_pack("{s:s, s:s, s:I, s:I, s:I}", "from", k->from, "to", k->to, "tensors", (json_int_t)k->tensors, "weights", (json_int_t)k->loss.weights,
                              "changed", (json_int_t)k->loss.changed);
        if (v && k->loss.changed) json_object_set_new(v, "relative_rms", json_real(lq_loss_rms(&k->loss)));
        if (v && k->loss.changed) json_object_set_new(v, "max_error", json_real(k->loss.max_abs));
        if (json_array_append_new(list, v)) return json_decref(list), NULL;
    }
    return list;
}

static lq_status was_made(const job *j, json_t *manifest) { /* the manifest of the source, whose bytes it no longer describes */
    lq_buf text;
    json_t *v = NULL;
    LQ_TRY(lq_source_manifest(j->ctx, j->src, &text));
    if (text.v && !lq_json_parse(NULL, "manifest", text.v, text.n, &v)) json_object_set_new(manifest, "source_manifest", v);
    lq_buf_free(&text);
    return LQ_OK;
}

static lq_status manifest_of(const job *j, const target *t, const json_t *inputs, const json_t *changes, json_t **out) {
    json_t *list = json_array(), *v;
    const char *key;
    json_object_foreach((json_t *)changes, key, v) json_array_append_new(list, json_string(key));
    if (t->format->quant_config) json_array_append_new(list, json_string("quantization_config"));
    *out = json_pack("{s:i, s:s, s:s, s:s, s:O, s:o, s:o}", "schema", 1, "lquant", LQ_VERSION, "verb", "convert", "format", t->format->name, "inputs", inputs, "config_changes", list,
                     "tensors", kinds_json(t->told));
    if (!*out || (j->o->about && json_object_update(*out, (json_t *)j->o->about))) return lq_oom(j->ctx, 512);
    return was_made(j, *out);
}

/* A GGUF copied as it is keeps what it says of itself. */
static lq_status note_made(const job *j, target *t, json_t *inputs) {
    bool same = j->src->gguf != NULL;
    for (size_t i = 0; i < t->cat.n; i++) {
        const lq_row *was = &j->m->cat.rows[i], *is = &t->cat.rows[i];
        same &= is->quantize ? lq_scheme_eq(&is->scheme, &was->scheme) : is->out_dtype == was->dtype;
    }
    if (same) return LQ_OK;
    json_t *v = json_pack("{s:i, s:s, s:s, s:O}", "schema", 1, "lquant", LQ_VERSION, "verb", "convert", "inputs", inputs);
    if (v && j->o->about) json_object_update(v, (json_t *)j->o->about);
    return lq_gguf_out_manifest(j->ctx, t->gguf, v);
}

static lq_status begin(const job *j, target *t, json_t *inputs, json_t *changes, json_t *meta) {
    LQ_TRY(lq_gguf_out_make(j->ctx, t->format, j->m, &(lq_gguf_opts){.pre = j->o->pre, .override_kv = j->o->override_kv}, &t->gguf));
    LQ_TRY(note_made(j, t, inputs));
    lq_gguf_out_finish(t->gguf, &t->cat, -1);
    lq_sink_opts so = {.shard_size = j->o->shard_size, .config = changes, .meta = meta, .gguf = t->gguf};
    for (size_t i = 0; i < t->cat.n; i++) j->m->cat.rows[i].out_dtype = t->cat.rows[i].out_dtype; /* config.json of a GGUF says it */
    LQ_TRY(lq_sink_open(j->ctx, t->format, t->dir, &t->cat, &so, &t->sink));
    return lq_sidecars_write(j->ctx, j->src, j->m, t->sink);
}

static lq_status end(const job *j, target *t, const json_t *inputs, const json_t *changes) {
    json_t *m = NULL, *outputs = NULL;
    lq_buf text = {0};
    char *path = NULL;
    lq_status st;
    LQ_GO(manifest_of(j, t, inputs, changes, &m));
    if (!t->format->ext) { /* a folder: the manifest also lists what was written */
        LQ_GO(lq_sink_close(&t->sink));
        outputs = lq_manifest_outputs(j->ctx, t->dir, &st);
        if (st || json_object_set_new(m, "outputs", outputs)) LQ_GO(st ? st : lq_oom(j->ctx, 256));
    }
    LQ_GO(lq_json_dump(j->ctx, m, &text));
    if (t->sink) {
        LQ_GO(lq_sink_sidecar(t->sink, "lquant-manifest.json", text.v, text.n));
        st = lq_sink_close(&t->sink);
    } else {
        path = lq_path_join(t->dir, "lquant-manifest.json");
        st = path ? lq_write_file(j->ctx, path, text.v, text.n) : lq_oom(j->ctx, 256);
    }
done:
    lq_free(path);
    lq_buf_free(&text);
    json_decref(m);
    return st;
}

/* ---- reading back ---- */

static const lq_row *row_again(const lq_model *back, const lq_row *r) {
    if (r->slot.role != LQ_R_UNKNOWN) return lq_catalog_find(&back->cat, r->slot, r->part);
    for (size_t i = 0; i < back->cat.n; i++)
        if (!strcmp(back->cat.rows[i].name, r->name)) return &back->cat.rows[i];
    return NULL;
}

static lq_status again_codes(lq_ctx *ctx, lq_model *back, const lq_row *r, char hex[65]) {
    lq_qtensor q;
    LQ_TRY(lq_model_read_q(ctx, back, r, &q));
    lq_status st = digest_codes(ctx, &q, hex);
    lq_qtensor_free(&q);
    return st;
}

static lq_status again_values(lq_ctx *ctx, lq_model *back, const lq_row *r, char hex[65]) {
    size_t n = (size_t)lq_row_elems(r);
    float *x = lq_calloc(n, 4);
    lq_status st = x ? lq_model_read_f32(ctx, back, r, x) : lq_oom(ctx, 4 * n);
    for (size_t i = 0; i < n && !st; i++) x[i] += 0;
    if (!st) st = digest_bytes(ctx, x, 4 * n, hex);
    lq_free(x);
    return st;
}

static lq_status again_stored(lq_ctx *ctx, lq_model *back, const lq_row *r, char hex[65]) {
    size_t bytes = (size_t)lq_row_elems(r) * lq_dtypes[r->dtype].bytes;
    void *data = lq_alloc(bytes);
    lq_status st = data ? lq_model_read_stored(ctx, back, r, data) : lq_oom(ctx, bytes);
    if (!st) st = digest_bytes(ctx, data, bytes, hex);
    lq_free(data);
    return st;
}

static lq_status compare(lq_ctx *ctx, const target *t, lq_model *back) {
    for (size_t i = 0; i < t->cat.n; i++) {
        if (t->gguf && !t->gguf->places[i].name) continue; /* left out, and said so */
        const lq_row *want = &t->cat.rows[i], *r = row_again(back, want);
        char hex[65];
        if (!r) return lq_fail(ctx, LQ_ERR_QUALITY, "%s: '%s' is not in the written checkpoint", t->path, want->name);
        bool codes = want->quantize && lq_grid_dtype(want->scheme.grid.kind) == LQ_NONE;
        if (!codes && (want->quantize || r->dtype != want->out_dtype)) continue; /* a type of the format's own */
        if (codes && t->gguf) LQ_TRY(again_values(ctx, back, r, hex));
        else if (codes) LQ_TRY(again_codes(ctx, back, r, hex));
        else LQ_TRY(again_stored(ctx, back, r, hex));
        if (strcmp(hex, t->digest[i])) return lq_fail(ctx, LQ_ERR_QUALITY, "%s: reads back differently from what was written", want->name);
    }
    return LQ_OK;
}

static lq_status read_back(lq_ctx *ctx, const target *t) {
    lq_source *src = NULL;
    lq_model *back = NULL;
    lq_ctx quiet = {.cancel = ctx->cancel};
    lq_status st;
    LQ_GO(lq_source_open(&quiet, t->path, &src));
    LQ_GO(lq_model_open(&quiet, src, true, &back));
    st = compare(&quiet, t, back);
done:
    lq_model_free(&back);
    lq_source_free(&src);
    return st ? lq_fail(ctx, st, "reading back %s: %s", t->format->name, quiet.msg) : LQ_OK;
}

/* ---- the whole ---- */

static lq_status rtn_opts(job *j) {
    const lq_method *rtn = lq_method_by_name("rtn");
    if (!(j->rtn = lq_alloc(rtn->opts_size + 1))) return lq_oom(j->ctx, rtn->opts_size);
    const lq_optset sets[] = {{rtn->opts, j->rtn, NULL}, {0}};
    return rtn->opts ? lq_opts_defaults(j->ctx, sets) : LQ_OK;
}

static lq_status write_all(job *j) {
    lq_status st;
    json_t *inputs = lq_manifest_inputs(j->ctx, j->src, &st), *meta = meta_of(j->src), *changes[LQ_OUTPUTS] = {0};
    if (!st && !meta) st = lq_oom(j->ctx, 128);
    for (size_t k = 0; k < j->n && !st; k++) {
        bool floats = j->o->dtype || !strcmp(j->t[k].format->name, "safetensors");
        changes[k] = lq_sidecars_changes(j->m, floats ? j->o->dtype ? j->o->dtype : LQ_BF16 : LQ_NONE);
        st = changes[k] ? begin(j, &j->t[k], inputs, changes[k], meta) : lq_oom(j->ctx, 64);
    }
    for (size_t i = 0; i < j->m->cat.n && !st; i++) {
        st = lq_check_cancel(j->ctx);
        if (!st) st = put_row(j, i);
    }
    for (size_t k = 0; k < j->n && !st; k++) st = end(j, &j->t[k], inputs, changes[k]);
    for (size_t k = 0; k < LQ_OUTPUTS; k++) json_decref(changes[k]);
    json_decref(inputs);
    json_decref(meta);
    return st;
}

lq_status lq_export(lq_ctx *ctx, lq_source *src, lq_model *m, const lq_outputs *outs, lq_job *where, const lq_export_opts *o, lq_exported *told) {
    target t[LQ_OUTPUTS] = {0};
    job j = {ctx, src, m, o, t, outs->n, NULL};
    lq_status st;
    LQ_GO(rtn_opts(&j));
    LQ_GO(lq_outputs_begin(ctx, outs, where));
    for (size_t k = 0; k < outs->n; k++) {
        told[k] = (lq_exported){.format = outs->format[k]};
        t[k].format = outs->format[k];
        t[k].told = &told[k];
        t[k].dir = lq_outputs_dir(outs, k, where);
        t[k].path = t[k].dir ? lq_outputs_path(outs, k, t[k].dir) : NULL;
        if (!t[k].path) LQ_GO(lq_oom(ctx, 256));
        LQ_GO(resolve(&j, &t[k]));
    }
    LQ_GO(write_all(&j));
    for (size_t k = 0; k < outs->n; k++) LQ_GO(read_back(ctx, &t[k]));
done:
    for (size_t k = 0; k < outs->n; k++) {
        lq_sink_abandon(&t[k].sink);
        lq_gguf_meta_free(&t[k].gguf);
        lq_free(t[k].cat.rows);
        lq_free(t[k].digest);
        lq_free(t[k].dir);
        lq_free(t[k].path);
    }
    lq_free(j.rtn);
    return st;
}
