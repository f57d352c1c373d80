/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* AWQ checkpoints in the gemm layout (AutoAWQ, llm-awq's conversions, GPTQModel, lquant), 4 bits. A module with K inputs, N outputs, G = K / group:
 *
 *     qweight I32 [K][N/8]: output 8 c + j of input k is in nibble {0,4,1,5,2,6,3,7}[j] of word c
 *     qzeros  I32 [G][N/8]: in the same order, as they are          scales F16, BF16 or F32 [G][N]
 *
 *     w[n][k] = scales[k / group][n] * (code[k][n] - zero[k / group][n]) */
#include "core/pack.h"
#include "core/thread.h"
#include "formats/modules.h"
#include "formats/qcodec.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

enum { QWEIGHT, QZEROS, SCALES };

typedef struct awq {
    json_t *config;              /* the quantization config; owned */
    int64_t group;               /* -1: all of K */
    uint8_t sig;                 /* lquant says of its own files how many bits the scales have ... */
    lq_module_set sym;           /* ... and which modules are symmetric */
} awq;

/* -- probe and config ------------------------------------------------------------------------------------------------ */

static const char legacy_name[] = "quant_config.json"; /* llm-awq's and early AutoAWQ's, before config.json had the key */

static bool awq_probe(const char *path, const json_t *config) { return lq_modules_probe(path, config, "awq", legacy_name); }

/* The other layouts have tensors of the same names. */
static lq_status check_version(lq_ctx *ctx, const awq *f) {
    const char *version = NULL;
    LQ_TRY(lq_json_string(ctx, f->config, "version", false, &version));
    if (!version) LQ_TRY(lq_json_string(ctx, f->config, "format", false, &version));
    if (version && strcasecmp(version, "gemm")) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "AWQ layout '%.64s' is not read; gemm is", version);
    return LQ_OK;
}

static lq_status read_meta(lq_ctx *ctx, awq *f) {
    const json_t *meta = json_object_get(f->config, "meta");
    int64_t sig;
    LQ_TRY(lq_json_int(ctx, meta, "scale_sig", false, 0, 0, 11, &sig));
    f->sig = (uint8_t)sig;
    return lq_module_set_read(ctx, json_object_get(meta, "sym"), &f->sym);
}

static lq_status awq_config(lq_ctx *ctx, lq_source *s) {
    awq *f = lq_modules_priv(s);
    bool zeros = true;
    int64_t bits;
    LQ_TRY(lq_modules_config(ctx, s, legacy_name, &f->config));
    LQ_TRY(check_version(ctx, f));
    bool old = json_object_get(f->config, "w_bit");
    LQ_TRY(lq_json_int(ctx, f->config, old ? "w_bit" : "bits", true, 0, 1, 32, &bits));
    LQ_TRY(lq_json_int(ctx, f->config, old ? "q_group_size" : "group_size", true, 0, -1, INT32_MAX, &f->group));
    LQ_TRY(lq_json_bool(ctx, f->config, "zero_point", zeros, &zeros));
    if (bits != 4) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "AWQ of %lld bits is not read; 4 bits are", (long long)bits);
    if (!f->group) return lq_fail(ctx, LQ_ERR_FORMAT, "'group_size' is 0");
    return read_meta(ctx, f);
}

static void awq_free(void *priv) {
    awq *f = priv;
    lq_module_set_free(&f->sym);
    json_decref(f->config);
}

/* -- modules --------------------------------------------------------------------------------------------------------- */

static lq_status awq_describe(lq_ctx *ctx, lq_source *s, const char *name, const lq_module *m, lq_entry *e, bool *plain) {
    const awq *f = lq_modules_priv(s);
    const lq_entry *w = lq_modules_entry(s, m, QWEIGHT), *z = lq_modules_entry(s, m, QZEROS), *sc = lq_modules_entry(s, m, SCALES);
    uint64_t k = w->shape[0], words = w->shape[1];
    (void)plain;
    if (w->ndim != 2 || w->dtype != LQ_I32 || !k || !words || k > INT32_MAX || words > INT32_MAX / 8)
        return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' (%s, %u dimensions) holds no rows of 8 codes a word", w->name, lq_dtypes[w->dtype].name, w->ndim);
    uint64_t group = f->group > 0 ? (uint64_t)f->group : k;
    if (group > k || k % group)
        return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' has %llu inputs, which groups of %llu do not divide", w->name, (unsigned long long)k, (unsigned long long)group);
    LQ_TRY(lq_entry_expect(ctx, z, z->dtype == LQ_I32, 2, k / group, words));
    LQ_TRY(lq_entry_expect(ctx, sc, sc->dtype == LQ_F16 || sc->dtype == LQ_BF16 || sc->dtype == LQ_F32, 2, k / group, 8 * words));
    e->ndim = 2;
    e->shape[0] = 8 * words;
    e->shape[1] = k;
    e->scheme = lq_scheme_int(4, f->group > 0 ? (int)group : -1, lq_module_set_has(&f->sym, name));
    e->scheme.scale.dtype = sc->dtype;
    e->scheme.scale.sig = sc->dtype == LQ_F16 ? f->sig : 0;
    return LQ_OK;
}

/* -- data ------------------------------------------------------------------------------------------------------------ */

/* Field of output n in a row of words. */
static uint32_t field(const uint32_t *words, uint32_t n) {
    static const uint8_t nibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    return words[n / 8] >> (4 * nibble[n % 8]) & 15;
}

typedef struct code_job { const uint32_t *words; lq_qtensor *q; } code_job;

static void eight_rows(void *arg, size_t block) {
    const code_job *j = arg;
    const lq_qtensor *q = j->q;
    uint32_t n_words = q->rows / 8;
    for (uint32_t k = 0; k < q->cols; k++)
        for (uint32_t n = (uint32_t)block * 8; n < (uint32_t)block * 8 + 8; n++)
            lq_code_put(q->codes + n * q->row_bytes, 4, k, field(j->words + (size_t)k * n_words, n));
}

static lq_status read_codes(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q) {
    void *data = NULL;
    lq_status st = lq_modules_part(ctx, s, i, QWEIGHT, &data);
    code_job job = {data, q};
    if (!st) lq_parallel_for(q->rows / 8, eight_rows, &job);
    lq_free(data);
    return st;
}

static lq_status read_scales(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q) {
    void *data = NULL;
    lq_status st = lq_modules_part(ctx, s, i, SCALES, &data);
    size_t size = lq_dtypes[q->sch.scale.dtype].bytes, groups = lq_plane_cols(&q->sch.scale, q->cols);
    for (size_t at = 0; !st && at < groups * q->rows; at++)
        memcpy((char *)q->scale.v + (at % q->rows * groups + at / q->rows) * size, (const char *)data + at * size, size);
    lq_free(data);
    return st;
}

static lq_status read_zeros(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q) {
    void *data = NULL;
    lq_status st = lq_modules_part(ctx, s, i, QZEROS, &data);
    uint32_t groups = lq_plane_cols(&q->sch.scale, q->cols);
    bool sym = q->sch.zero_kind == LQ_ZERO_NONE;
    for (uint32_t g = 0; !st && g < groups; g++)
        for (uint32_t n = 0; !st && n < q->rows; n++) {
            uint32_t z = field((const uint32_t *)data + (size_t)g * (q->rows / 8), n);
            if (!sym) ((uint8_t *)q->zero.v)[(size_t)n * groups + g] = (uint8_t)z;
            else if (z != 8) st = lq_fail(ctx, LQ_ERR_FORMAT, "qzeros: group %u of output %u has zero point %u, expected 8: the config says sym", g, n, z);
        }
    lq_free(data);
    return st;
}

static lq_status awq_fill(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *out) {
    LQ_TRY(read_codes(ctx, s, i, out));
    LQ_TRY(read_scales(ctx, s, i, out));
    return read_zeros(ctx, s, i, out);
}

static const lq_module_format parts = {
    .suffix = {".qweight", ".qzeros", ".scales"}, .required = 1u << QZEROS | 1u << SCALES, .common = 1u << SCALES,
    .priv_size = sizeof(awq), .config = awq_config, .free_priv = awq_free, .describe = awq_describe, .fill = awq_fill,
};

static lq_status awq_open(lq_ctx *ctx, lq_source *s) { return lq_modules_open(ctx, s, &parts); }

const lq_reader lq_reader_awq = {
    .name = "awq", .what = "AWQ checkpoint folder, gemm layout", .probe = awq_probe, .open = awq_open, LQ_MODULES_CALLS,
};
