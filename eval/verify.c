/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "eval/verify_impl.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *const lq_severities[] = {"error", "warning", "note"};
enum { SAME_MOST = 40 }; /* findings of one kind that are worth a line each */

static size_t of_kind(const lq_verified *o, const char *code, lq_severity s) {
    size_t n = 0;
    for (size_t i = 0; i < o->n; i++) n += o->v[i].severity == s && !strcmp(o->v[i].code, code);
    return n;
}

void lq_verify_find(verify *v, lq_severity s, const char *code, const char *where, const char *fmt, ...) {
    char text[1024];
    lq_verified *o = v->out;
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    size_t same = of_kind(o, code, s);
    o->count[s]++;
    if (same > SAME_MOST) return;
    if (same == SAME_MOST) snprintf(text, sizeof text, "more of the same; they are counted, not listed");
    lq_finding *more = lq_realloc(o->v, o->n * sizeof *more, (o->n + 1) * sizeof *more);
    if (more) o->v = more;
    lq_finding f = {s, code, more ? lq_strdup(where) : NULL, more ? lq_strdup(text) : NULL};
    if (f.where && f.text) {
        o->v[o->n++] = f;
        return;
    }
    lq_free(f.where);
    lq_free(f.text);
    v->st = lq_oom(v->ctx, sizeof f);
}

bool lq_verify_ok(verify *v, lq_status st, lq_severity s, const char *code, const char *where) {
    if (!st) return true;
    if (st == LQ_ERR_RESOURCE || st == LQ_STOPPED) v->st = lq_fail(v->ctx, st, "%s", v->quiet.msg);
    else lq_verify_find(v, s, code, where, "%s", v->quiet.msg);
    return false;
}

/* The reader's own sentence names the path first. */
static void open_source(verify *v) {
    lq_status st = lq_source_open(&v->quiet, v->path, &v->src);
    if (st) v->src = NULL;
    if (lq_verify_ok(v, st, st == LQ_ERR_UNSUPPORTED ? LQ_SEV_WARNING : LQ_SEV_ERROR, "unreadable", lq_path_base(v->path))) { /* lquant does not read it: others may */
        v->raw = v->src;
        snprintf(v->out->format, sizeof v->out->format, "%s", v->src->reader->name);
        return;
    }
    if (v->st || v->gguf) return;
    if (lq_source_open_as(&v->quiet, &lq_reader_safetensors, v->path, &v->raw)) v->raw = NULL;
    if (v->raw) lq_verify_find(v, LQ_SEV_NOTE, "unreadable", lq_path_base(v->path), "looked at as plain tensors from here on");
}

static void open_model(verify *v) {
    if (!v->src || v->st) return;
    lq_status st = lq_model_open(&v->quiet, v->src, false, &v->m);
    lq_verify_ok(v, st, st == LQ_ERR_UNSUPPORTED ? LQ_SEV_WARNING : LQ_SEV_ERROR, "model", "config.json");
    if (st) v->m = NULL;
    v->out->model = v->m != NULL;
}

static void count(verify *v) {
    for (size_t i = 0; v->raw && i < v->raw->n; i++) {
        v->out->tensors++;
        v->out->quantized += v->raw->entries[i].dtype == LQ_NONE || v->raw->entries[i].scheme.grid.bits;
        v->out->bytes += v->raw->entries[i].bytes;
    }
}

lq_status lq_verify(lq_ctx *ctx, const char *path, bool data, lq_verified *out) {
    verify v = {.ctx = ctx, .path = path, .out = out, .dir = lq_path_is_dir(path), .quiet = {.cancel = ctx ? ctx->cancel : NULL}};
    *out = (lq_verified){0};
    if (!lq_path_exists(path)) return lq_fail(ctx, LQ_ERR_FORMAT, "%s: no such file or folder", path);
    size_t n = strlen(path);
    v.gguf = !v.dir && n > 5 && !strcmp(path + n - 5, ".gguf");
    lq_verify_files(&v);
    if (!v.st) open_source(&v);
    open_model(&v);
    count(&v);
    if (data && !v.st) lq_verify_gguf(&v);
    if (!v.st) lq_verify_config(&v);
    if (!v.st && data) lq_verify_data(&v);
    lq_model_free(&v.m);
    if (v.raw != v.src) lq_source_free(&v.raw);
    lq_source_free(&v.src);
    json_decref(v.config);
    return v.st;
}

void lq_verified_free(lq_verified *v) {
    for (size_t i = 0; i < v->n; i++) {
        lq_free(v->v[i].where);
        lq_free(v->v[i].text);
    }
    lq_free(v->v);
    *v = (lq_verified){0};
}

/* Names in broken files may be no UTF-8, and long sentences are cut anywhere. */
static json_t *utf8(const char *text) {
    json_t *v = json_string(text);
    if (v) return v;
    char *ascii = lq_strdup(text);
    for (char *p = ascii; p && *p; p++)
        if ((unsigned char)*p >= 0x80) *p = '?';
    v = ascii ? json_string(ascii) : NULL;
    lq_free(ascii);
    return v;
}

json_t *lq_verified_json(const lq_verified *v, const char *path) {
    json_t *list = json_array();
    for (size_t i = 0; list && i < v->n; i++) {
        const lq_finding *f = &v->v[i];
        json_t *e = json_pack("{s:s, s:s, s:o, s:o}", "severity", lq_severities[f->severity], "code", f->code, "where", utf8(f->where), "text", utf8(f->text));
        if (json_array_append_new(list, e)) return json_decref(list), NULL;
    }
    return json_pack("{s:i, s:s, s:s, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "schema", 1, "path", path, "format", v->format, "model", (int)v->model, "tensors",
                     (json_int_t)v->tensors, "quantized", (json_int_t)v->quantized, "weights", (json_int_t)v->weights, "bytes", (json_int_t)v->bytes, "errors",
                     (json_int_t)v->count[0], "warnings", (json_int_t)v->count[1], "notes", (json_int_t)v->count[2], "findings", list);
}
