/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "quant/statistics.h"

#include "calib/rotate.h"
#include "quant/manifest.h"

#include <string.h>

static bool is_read(const lq_row *r) {
    return r->linear && r->part == LQ_PART_WEIGHT && (r->slot.block < 0 ? r->slot.role == LQ_R_HEAD : r->stage >= 0);
}

const lq_row *lq_statistics_leader(const lq_catalog *cat, const lq_row *row) {
    if (!is_read(row) || row->slot.block < 0) return is_read(row) ? row : NULL;
    for (const lq_row *r = cat->rows; r < cat->rows + cat->n; r++)
        if (r->slot.block == row->slot.block && r->slot.expert == row->slot.expert && r->stage == row->stage && is_read(r)) return r;
    return row;
}

static json_t *digest(const lq_buf *text) {
    char hex[65];
    lq_sha *sha = text->v ? lq_sha_new() : NULL;
    if (!sha) return NULL;
    lq_sha_add(sha, text->v, text->n);
    lq_sha_end(&sha, hex);
    return json_string(hex);
}

static json_t *linears(const lq_model *m) {
    lq_buf b = {0};
    bool ok = true;
    for (size_t i = 0; i < m->cat.n && ok; i++) {
        const lq_row *r = &m->cat.rows[i];
        if (is_read(r)) ok = lq_buf_addf(&b, "%s %u %u\n", r->name, lq_row_rows(r), lq_row_cols(r));
    }
    json_t *v = ok ? digest(&b) : NULL;
    lq_buf_free(&b);
    return v;
}

/* What shapes do not say and the forward pass reads; a file and its GGUF agree. */
static json_t *parameters(const lq_model *m) {
    const lq_params *p = &m->par;
    lq_buf b = {0};
    bool ok = lq_buf_addf(&b, "layers %u heads %u kv %u head %u vocab %u eps %.6g act %d window %u rope %d %u %.7g %.7g scales %.6g %.6g %.6g", p->n_layers, p->n_heads,
                          p->n_kv_heads, p->head_dim, p->vocab, (double)p->norm_eps, (int)p->act, p->window, (int)p->rope.kind, p->rope.dim, p->rope.base, p->rope.factor,
                          (double)p->embed_scale, (double)p->attn_scale, (double)p->resid_scale);
    json_t *v = ok ? digest(&b) : NULL;
    lq_buf_free(&b);
    return v;
}

static json_t *rotation(const lq_model *m) {
    const lq_rotation *r = m->rotation;
    return r ? json_sprintf("%s%s seed %llu", r->what & LQ_ROTATE_STREAM ? "stream " : "", r->what & LQ_ROTATE_HEADS ? "heads" : "", (unsigned long long)r->seed)
             : json_string("none");
}

json_t *lq_statistics_model(const lq_model *m) {
    return json_pack("{s:s, s:o, s:o, s:o}", "architecture", m->arch ? m->arch->name : "", "rotation", rotation(m), "parameters", parameters(m), "linears", linears(m));
}

/* One digest of the weight files' digests, whatever their names. */
static json_t *weights(const json_t *inputs) {
    lq_buf b = {0};
    bool ok = lq_buf_addf(&b, "weights\n");
    size_t i;
    json_t *e;
    json_array_foreach((json_t *)inputs, i, e) {
        const char *name = json_string_value(json_object_get(e, "name")), *dot = name ? strrchr(name, '.') : NULL;
        if (dot && strcmp(dot, ".json") && strcmp(dot, ".txt") && strcmp(dot, ".jinja")) ok = ok && lq_buf_addf(&b, "%s\n", json_string_value(json_object_get(e, "sha256")));
    }
    json_t *v = ok ? digest(&b) : NULL;
    lq_buf_free(&b);
    return v;
}

json_t *lq_statistics_identity(const lq_model *m, const json_t *inputs, const lq_rows *rows, int64_t seed) {
    uint64_t tokens = 0;
    for (size_t i = 0; i < rows->n; i++) tokens += rows->len[i];
    json_t *cal = lq_manifest_calibration(rows, seed);
    if (cal) json_object_set_new(cal, "tokens", json_integer((json_int_t)tokens));
    return json_pack("{s:i, s:s, s:o, s:o, s:[o]}", "lquant_stats", 1, "lquant", LQ_VERSION, "model", lq_statistics_model(m), "weights", weights(inputs), "calibration", cal);
}

lq_status lq_statistics_fit(lq_ctx *ctx, const lq_stats_file *f, const lq_model *m, const json_t *inputs) {
    json_t *mine = lq_statistics_model(m), *its = json_object_get(f->identity, "model"), *v, *w = weights(inputs);
    const char *key;
    lq_status st = mine && w ? LQ_OK : lq_oom(ctx, 256);
    json_object_foreach(mine, key, v) {
        const char *other = json_string_value(json_object_get(its, key));
        if (!st && (!other || strcmp(other, json_string_value(v))))
            st = lq_fail(ctx, LQ_ERR_MISMATCH, "%s: statistics of another model: its %s is '%s', here it is '%s'", f->st.file.path, key, other ? other : "missing", json_string_value(v));
    }
    if (!st && !json_equal(w, json_object_get(f->identity, "weights")))
        lq_log(ctx, LQ_LOG_WARN, "%s: gathered on other weights of the same shapes", f->st.file.path);
    json_decref(mine);
    json_decref(w);
    return st;
}
