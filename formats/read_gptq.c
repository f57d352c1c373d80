/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* GPTQ checkpoints v1 and v2 (AutoGPTQ, GPTQModel, lquant): 2, 3, 4, 8 bits, act-order, per-module `dynamic` settings.
 * A module with K inputs, N outputs, G = ceil(K / group) groups is stored as
 *
 *     qweight I32 [K*b/32][N]: code k of output n at bits k*b.. of the bitstream that runs down column n
 *     qzeros  I32 [G][N*b/32]: zero of output n at bits n*b.. of row g; v1 stores z - 1
 *     scales  F16, BF16 or F32 [G][N]        g_idx I32 [K]: group of input k
 *
 *     w[n][k] = scales[g_idx[k]][n] * (code[k][n] - zero[g_idx[k]][n])
 *
 * Without act-order g_idx[k] must be k / group. With it, the inputs sorted by group (stably) are the stored columns: perm. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "core/num.h"
#include "core/pack.h"
#include "core/thread.h"
#include "formats/qcodec.h"
#include "formats/modules.h"

#include <pcre2.h>
#include <stdio.h>
#include <string.h>

enum { QWEIGHT, QZEROS, SCALES, G_IDX, PARTS, PATTERNS_MAX = 1 << 16, MATCH_STEPS = 100000, RULE_KEYS_MAX = 32 };

typedef struct settings { int64_t bits, group; bool sym, act_order; } settings;
typedef struct rule { pcre2_code *re; bool keep; const json_t *over; } rule; /* one entry of `dynamic`, in file order */
typedef struct gptq {
    json_t *config;              /* the quantization config; owned */
    settings base;
    bool v1, wraps;              /* wraps: GPTQModel's v1, in which z = 0 can be told */
    uint8_t sig;                 /* lquant says so of its own files; the values are checked against it */
    rule *rules;
    size_t n_rules;
    pcre2_match_data *match;
    pcre2_match_context *limits;
} gptq;

/* -- probe and config ------------------------------------------------------------------------------------------------ */

static const char legacy_name[] = "quantize_config.json"; /* AutoGPTQ's, before config.json had the key */

static bool gptq_probe(const char *path, const json_t *config) { return lq_modules_probe(path, config, "gptq", legacy_name); }

static lq_status read_settings(lq_ctx *ctx, const json_t *o, bool whole, settings *out) {
    LQ_TRY(lq_json_int(ctx, o, "bits", whole, out->bits, 1, 32, &out->bits));
    LQ_TRY(lq_json_int(ctx, o, "group_size", whole, out->group, -1, INT32_MAX, &out->group));
    LQ_TRY(lq_json_bool(ctx, o, "sym", out->sym, &out->sym));
    LQ_TRY(lq_json_bool(ctx, o, "desc_act", out->act_order, &out->act_order));
    if (out->bits != 2 && out->bits != 3 && out->bits != 4 && out->bits != 8)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%lld bits; 2, 3, 4 and 8 are read", (long long)out->bits);
    if (!out->group) return lq_fail(ctx, LQ_ERR_FORMAT, "'group_size' is 0");
    return LQ_OK;
}

static bool by_gptqmodel(const json_t *config) {
    const json_t *list = json_object_get(json_object_get(config, "meta"), "quantizer");
    size_t n = json_array_size(list);
    for (size_t i = 0; i < (json_is_string(list) ? 1 : n); i++) {
        const char *who = json_string_value(json_is_string(list) ? list : json_array_get(list, i));
        if (who && !strncmp(who, "gptqmodel:", 10)) return true;
    }
    return false;
}

/* Older files say checkpoint_format, newer ones both, the oldest none (v1). */
static lq_status read_version(lq_ctx *ctx, gptq *f) {
    const char *format = NULL, *pack = NULL, *method = NULL;
    bool marlin = false;
    LQ_TRY(lq_json_string(ctx, f->config, "checkpoint_format", false, &format));
    if (!format) LQ_TRY(lq_json_string(ctx, f->config, "format", false, &format));
    LQ_TRY(lq_json_string(ctx, f->config, "quant_method", false, &method));
    LQ_TRY(lq_json_string(ctx, f->config, "pack_dtype", false, &pack));
    LQ_TRY(lq_json_bool(ctx, f->config, "is_marlin_format", false, &marlin));
    f->v1 = !format || !strcmp(format, "gptq");
    f->wraps = by_gptqmodel(f->config);
    if (method && strcmp(method, "gptq")) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "quant_method '%.64s' is not read", method);
    if (marlin || (!f->v1 && strcmp(format, "gptq_v2")))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "GPTQ checkpoint_format '%.64s' is not read; gptq and gptq_v2 are", marlin ? "marlin" : format);
    if (pack && strcmp(pack, "int32")) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "pack_dtype '%.64s' is not read; int32 is", pack);
    return LQ_OK;
}

/* -- dynamic --------------------------------------------------------------------------------------------------------- */

static lq_status compile(lq_ctx *ctx, const char *key, const json_t *over, rule *r) {
    bool signed_key = !strncmp(key, "-:", 2) || !strncmp(key, "+:", 2);
    const char *pattern = key + (signed_key ? 2 : 0);
    int error;
    PCRE2_SIZE at;
    r->keep = key[0] == '-' && signed_key;
    r->over = over;
    if (!json_is_object(over)) return lq_fail(ctx, LQ_ERR_FORMAT, "dynamic '%.200s': not an object", key);
    if (json_object_size(over) > RULE_KEYS_MAX) return lq_fail(ctx, LQ_ERR_FORMAT, "dynamic '%.200s': %zu keys", key, json_object_size(over));
    r->re = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_ANCHORED | PCRE2_UTF, &error, &at, NULL);
    return r->re ? LQ_OK : lq_fail(ctx, LQ_ERR_FORMAT, "dynamic '%.200s': no regular expression (at %zu)", key, (size_t)at);
}

static lq_status read_dynamic(lq_ctx *ctx, gptq *f) {
    json_t *d = json_object_get(f->config, "dynamic"), *over;
    const char *key;
    if (!d || json_is_null(d) || json_is_false(d)) return LQ_OK;
    if (!json_is_object(d) || json_object_size(d) > PATTERNS_MAX) return lq_fail(ctx, LQ_ERR_FORMAT, "'dynamic' is no object of at most %d patterns", PATTERNS_MAX);
    f->rules = LQ_NEWN(rule, json_object_size(d));
    f->match = pcre2_match_data_create(1, NULL);
    f->limits = pcre2_match_context_create(NULL);
    if (!f->rules || !f->match || !f->limits) return lq_oom(ctx, json_object_size(d) * sizeof *f->rules);
    pcre2_set_match_limit(f->limits, MATCH_STEPS);
    json_object_foreach(d, key, over) LQ_TRY(compile(ctx, key, over, &f->rules[f->n_rules++]));
    return LQ_OK;
}

/* The first pattern that matches from the start of the name decides. */
static lq_status settings_of(lq_ctx *ctx, const gptq *f, const char *name, settings *out, bool *keep) {
    *out = f->base;
    *keep = false;
    for (size_t i = 0; i < f->n_rules; i++) {
        int got = pcre2_match(f->rules[i].re, (PCRE2_SPTR)name, strlen(name), 0, 0, f->match, f->limits);
        if (got == PCRE2_ERROR_NOMATCH) continue;
        if (got < 0) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s': pattern %zu of 'dynamic' cannot be matched (error %d)", name, i, got);
        *keep = f->rules[i].keep;
        lq_status st = *keep ? LQ_OK : read_settings(ctx, f->rules[i].over, false, out);
        return st ? lq_note(ctx, st, "dynamic settings of '%s'", name) : LQ_OK;
    }
    return LQ_OK;
}

/* -- modules --------------------------------------------------------------------------------------------------------- */

/* The shapes of all parts against the settings; word counts are exact. */
static lq_status check_parts(lq_ctx *ctx, const lq_source *src, const lq_module *m, const settings *set, lq_entry *e) {
    const lq_entry *w = lq_modules_entry(src, m, QWEIGHT), *z = lq_modules_entry(src, m, QZEROS), *s = lq_modules_entry(src, m, SCALES);
    const lq_entry *g_idx = lq_modules_entry(src, m, G_IDX);
    uint64_t bits = (uint64_t)set->bits, words = w->shape[0], n = w->shape[1], k = words * 32 / bits;
    if (w->ndim != 2 || w->dtype != LQ_I32 || !words || !n || words > INT32_MAX || n > INT32_MAX || k * bits != words * 32 || k > INT32_MAX)
        return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' (%s, [%llu, %llu]) does not hold whole columns of %d-bit codes", w->name, lq_dtypes[w->dtype].name,
                       (unsigned long long)words, (unsigned long long)(w->ndim > 1 ? n : 0), (int)bits);
    uint64_t group = set->group > 0 && (uint64_t)set->group < k ? (uint64_t)set->group : k, groups = (k + group - 1) / group;
    LQ_TRY(lq_entry_expect(ctx, s, s->dtype == LQ_F16 || s->dtype == LQ_BF16 || s->dtype == LQ_F32, 2, groups, n));
    if (n * bits % 32) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s': the zero points of %llu outputs do not fill words", z->name, (unsigned long long)n);
    LQ_TRY(lq_entry_expect(ctx, z, z->dtype == LQ_I32, 2, groups, n * bits / 32));
    if (g_idx) LQ_TRY(lq_entry_expect(ctx, g_idx, g_idx->dtype == LQ_I32, 1, k, 0));
    else if (set->act_order) return lq_fail(ctx, LQ_ERR_FORMAT, "desc_act is true, but there is no g_idx");
    if (set->act_order && k % group) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "act-order with groups of %llu, which do not divide %llu inputs", (unsigned long long)group, (unsigned long long)k);
    e->ndim = 2;
    e->shape[0] = n;
    e->shape[1] = k;
    return LQ_OK;
}

static lq_scheme scheme_of(const gptq *f, const settings *set, lq_dtype scale, uint64_t k) {
    int group = set->group > 0 && (uint64_t)set->group <= k ? (int)set->group : -1;
    lq_scheme s = lq_scheme_int((int)set->bits, group, set->sym);
    s.scale.dtype = scale;
    s.scale.sig = scale == LQ_F16 ? f->sig : 0;
    if (set->act_order) s.extra |= LQ_X_PERM;
    return s;
}

static lq_status gptq_describe(lq_ctx *ctx, lq_source *s, const char *name, const lq_module *m, lq_entry *e, bool *plain) {
    const gptq *f = lq_modules_priv(s);
    settings set;
    bool keep;
    (void)plain;
    LQ_TRY(settings_of(ctx, f, name, &set, &keep));
    if (keep) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is stored quantized, but 'dynamic' says it is kept", name);
    LQ_TRY(check_parts(ctx, s, m, &set, e));
    e->scheme = scheme_of(f, &set, lq_modules_entry(s, m, SCALES)->dtype, e->shape[1]);
    return LQ_OK;
}

static lq_status gptq_config(lq_ctx *ctx, lq_source *s) {
    gptq *f = lq_modules_priv(s);
    f->base = (settings){.sym = true};
    LQ_TRY(lq_modules_config(ctx, s, legacy_name, &f->config));
    LQ_TRY(read_version(ctx, f));
    LQ_TRY(read_settings(ctx, f->config, true, &f->base));
    LQ_TRY(read_dynamic(ctx, f));
    int64_t sig;
    LQ_TRY(lq_json_int(ctx, json_object_get(f->config, "meta"), "scale_sig", false, 0, 0, 11, &sig));
    f->sig = (uint8_t)sig;
    return LQ_OK;
}

static void gptq_free(void *priv) {
    gptq *f = priv;
    for (size_t i = 0; i < f->n_rules; i++) pcre2_code_free(f->rules[i].re);
    lq_free(f->rules);
    pcre2_match_data_free(f->match);
    pcre2_match_context_free(f->limits);
    json_decref(f->config);
}

/* -- data ------------------------------------------------------------------------------------------------------------ */

/* Field `i` of the bitstream made of words w[0], w[stride], w[2 * stride], ... */
static uint32_t field(const uint32_t *w, size_t stride, uint32_t bits, size_t i) {
    size_t bit = i * bits, word = bit / 32, shift = bit % 32;
    uint32_t v = w[word * stride] >> shift;
    if (shift + bits > 32) v |= w[(word + 1) * stride] << (32 - shift);
    return v & ((1u << bits) - 1);
}

static lq_status order_columns(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q, uint32_t *rank) {
    uint32_t group = q->sch.scale.tile_c ? q->sch.scale.tile_c : q->cols;
    void *data = NULL;
    for (uint32_t k = 0; k < q->cols; k++) rank[k] = k;
    lq_status st = lq_modules_part(ctx, s, i, G_IDX, &data);
    if (!st && !data) return LQ_OK;
    const int32_t *g_idx = data;
    if (!st && q->perm) st = lq_columns_by_group(ctx, g_idx, q, rank);
    for (uint32_t k = 0; !st && !q->perm && k < q->cols; k++)
        if (g_idx[k] != (int32_t)(k / group))
            st = lq_fail(ctx, LQ_ERR_FORMAT, "g_idx[%u] is %d, expected %u: desc_act is false, so groups are in order", k, (int)g_idx[k], k / group);
    lq_free(data);
    return st;
}

typedef struct code_job { const uint32_t *words; const uint32_t *rank; lq_qtensor *q; } code_job;
enum { BLOCK = 32, TILE = 16 }; /* 32 codes are `bits` whole words; outputs per job share the cache lines of words */

static void block_codes(const code_job *j, uint32_t n, uint32_t block) {
    const lq_qtensor *q = j->q;
    uint32_t bits = q->sch.grid.bits;
    const uint32_t *w = j->words + (size_t)block * bits * q->rows + n;
    uint8_t *row = q->codes + n * q->row_bytes;
    uint16_t codes[BLOCK];
    for (uint32_t i = 0; i < BLOCK; i++) codes[i] = (uint16_t)field(w, q->rows, bits, i);
    if (!q->perm) lq_codes_pack(row + (size_t)block * bits * 4, bits, BLOCK, codes);
    else
        for (uint32_t i = 0; i < BLOCK; i++) lq_code_put(row, bits, j->rank[block * BLOCK + i], codes[i]);
}

static void tile_codes(void *arg, size_t t) {
    const code_job *j = arg;
    uint32_t n0 = (uint32_t)t * TILE, n1 = j->q->rows - n0 < TILE ? j->q->rows : n0 + TILE;
    for (uint32_t block = 0; block < j->q->cols / BLOCK; block++)
        for (uint32_t n = n0; n < n1; n++) block_codes(j, n, block);
    for (uint32_t k = j->q->cols / BLOCK * BLOCK; k < j->q->cols; k++)
        for (uint32_t n = n0; n < n1; n++)
            lq_code_put(j->q->codes + n * j->q->row_bytes, j->q->sch.grid.bits, j->rank[k], field(j->words + n, j->q->rows, j->q->sch.grid.bits, k));
}

static lq_status read_codes(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q) {
    void *data = NULL;
    uint32_t *rank = LQ_NEWN(uint32_t, q->cols);
    lq_status st = rank ? order_columns(ctx, s, i, q, rank) : lq_oom(ctx, q->cols * sizeof *rank);
    if (!st) st = lq_modules_part(ctx, s, i, QWEIGHT, &data);
    code_job job = {data, rank, q};
    if (!st) lq_parallel_for(((size_t)q->rows + TILE - 1) / TILE, tile_codes, &job);
    lq_free(data);
    lq_free(rank);
    return st;
}

static lq_status read_scales(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q) {
    void *data = NULL;
    lq_status st = lq_modules_part(ctx, s, i, SCALES, &data);
    size_t size = lq_dtypes[q->sch.scale.dtype].bytes;
    uint32_t groups = lq_plane_cols(&q->sch.scale, q->cols);
    for (uint32_t n = 0; !st && n < q->rows; n++)
        for (uint32_t g = 0; g < groups; g++)
            memcpy((char *)q->scale.v + ((size_t)n * groups + g) * size, (const char *)data + ((size_t)g * q->rows + n) * size, size);
    lq_free(data);
    return st;
}

/* GPTQModel's v1 is v2 less one in every field, taken from whole words (3 bits: from each field, modulo 8): adding it back so is exact. */
static void undo_wrap(uint32_t *words, size_t n, uint32_t bits) {
    static const uint32_t ones[9] = {[2] = 0x55555555, [4] = 0x11111111, [8] = 0x01010101};
    for (size_t i = 0; i < n; i++) words[i] += ones[bits];
}

/* In other v1 files a field of 2^b - 1 is z = 2^b to some runtimes and z = 0 to others (and to their writers): no guess is right. */
static lq_status zero_value(lq_ctx *ctx, const gptq *f, uint32_t bits, uint32_t stored, uint32_t g, uint32_t n, uint32_t *z) {
    *z = stored + (f->v1 && (!f->wraps || bits == 3));
    if (*z >> bits && f->wraps) *z = 0;
    if (*z >> bits)
        return lq_fail(ctx, LQ_ERR_FORMAT, "qzeros: group %u of output %u stores %u, which v1 readers take for zero point %u or 0; convert the checkpoint to gptq_v2 with the tool that wrote it",
                       g, n, stored, *z);
    return LQ_OK;
}

static lq_status read_zeros(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q) {
    const gptq *f = lq_modules_priv(s);
    void *data = NULL;
    lq_status st = lq_modules_part(ctx, s, i, QZEROS, &data);
    uint32_t bits = q->sch.grid.bits, groups = lq_plane_cols(&q->sch.scale, q->cols);
    bool sym = q->sch.zero_kind == LQ_ZERO_NONE;
    if (!st && f->v1 && f->wraps) undo_wrap(data, (size_t)groups * q->rows / 32 * bits, bits);
    for (uint32_t g = 0; !st && g < groups; g++)
        for (uint32_t n = 0; !st && n < q->rows; n++) {
            uint32_t z, stored = field((const uint32_t *)data + (size_t)g * q->rows / 32 * bits, 1, bits, n);
            st = zero_value(ctx, f, bits, stored, g, n, &z);
            if (!st && sym && z != 1u << (bits - 1))
                st = lq_fail(ctx, LQ_ERR_FORMAT, "qzeros: group %u of output %u has zero point %u, expected %u: the config says sym", g, n, z, 1u << (bits - 1));
            if (!st && !sym) ((uint8_t *)q->zero.v)[(size_t)n * groups + g] = (uint8_t)z;
        }
    lq_free(data);
    return st;
}

static lq_status gptq_fill(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *out) {
    LQ_TRY(read_codes(ctx, s, i, out));
    LQ_TRY(read_scales(ctx, s, i, out));
    return read_zeros(ctx, s, i, out);
}

static const lq_module_format parts = {
    .suffix = {".qweight", ".qzeros", ".scales", ".g_idx"}, .required = 1u << QZEROS | 1u << SCALES, .common = 1u << SCALES,
    .priv_size = sizeof(gptq), .config = gptq_config, .free_priv = gptq_free, .describe = gptq_describe, .fill = gptq_fill,
};

static lq_status gptq_open(lq_ctx *ctx, lq_source *s) { return lq_modules_open(ctx, s, &parts); }

const lq_reader lq_reader_gptq = {
    .name = "gptq", .what = "GPTQ checkpoint folder, v1 and v2", .probe = gptq_probe, .open = gptq_open, LQ_MODULES_CALLS,
};
