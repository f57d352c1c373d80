/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* compressed-tensors checkpoints, of llm-compressor, vLLM's friends and lquant. A module with N outputs and K inputs has a weight_scale and
 *
 *     pack-quantized    weight_packed I32 [N][W], weight_shape I64 [2] = N, K; weight_zero_point I32 [Z][G] (older: I8 [N][G]); weight_g_idx I32 [K]
 *         dense:  W = ceil(K*b/32), code k at bits k*b.. of the row;    before 0.17.2: W = ceil(K/p), p = floor(32/b), code k in word k/p at (k%p)*b
 *         the zero point of output n likewise among the Z words of column g; codes and zero points carry + 2^(b-1)
 *     int-, naive-quantized (int)         weight I8 [N][K], weight_zero_point I8 like weight_scale
 *     float-, naive-quantized (float)     weight F8_E4M3 [N][K]
 *     mxfp8-quantized                     weight F8_E4M3 [N][K], weight_scale U8 [N][K/32] = exponent + 127
 *     mxfp4-pack-quantized                weight_packed U8 [N][K/2], low nibble first, weight_scale U8 [N][K/32]
 *     nvfp4-pack-quantized                the same, weight_scale F8_E4M3 [N][K/16], divided by weight_global_scale F32 [1]
 *
 *     w[n][k] = weight_scale * (q[n][k] - zero)    with input_scale [1]: the step of static activations
 *
 * weight_scale is [1], [N][1], [N][K/g] or one per block. Where W says whether codes run across words, W is believed before the version. */
#include "core/num.h"
#include "core/pack.h"
#include "core/thread.h"
#include "formats/ct_config.h"
#include "formats/modules.h"
#include "formats/qcodec.h"

#include <string.h>

enum { SCALE, WEIGHT, PACKED, SHAPE, ZERO, G_IDX, GLOBAL, IN_SCALE, IN_ZERO, IN_GLOBAL };
enum { NOTED_MAX = 8 };
typedef struct ct {
    lq_ct_config *config;
    uint8_t sig[LQ_DTYPE_N];     /* of scales of a type, as lquant says of its own files; the values are checked against it */
    const lq_ct_group *noted[NOTED_MAX]; /* groups whose activations were warned of */
} ct;
typedef struct module { const lq_entry *part[LQ_MODULE_PARTS]; const lq_ct_group *group; uint64_t rows, cols; } module;

/* -- config ---------------------------------------------------------------------------------------------------------- */

/* transformers once wrapped the dictionary, the first versions named it otherwise. */
static const json_t *dictionary(const json_t *config) {
    const json_t *q = json_object_get(config, "quantization_config");
    if (!json_is_object(q)) q = json_object_get(config, "compression_config");
    const json_t *inner = json_object_get(q, "quantization_config");
    return json_is_object(inner) ? inner : q;
}

static bool ct_probe(const char *path, const json_t *config) {
    (void)path;
    const json_t *outer = json_object_get(config, "quantization_config");
    const char *method = json_string_value(json_object_get(json_is_object(outer) ? outer : dictionary(config), "quant_method"));
    return method && !strcmp(method, "compressed-tensors");
}

static lq_status ct_config(lq_ctx *ctx, lq_source *s) {
    ct *f = lq_modules_priv(s);
    const json_t *q = dictionary(s->config);
    const json_t *sigs = json_object_get(json_object_get(q, "lquant"), "scale_sig");
    for (lq_dtype t = LQ_F32; t <= LQ_BF16; t++) {
        int64_t sig;
        LQ_TRY(lq_json_int(ctx, sigs, lq_dtypes[t].name, false, 0, 0, LQ_SIG_INVERSE, &sig));
        f->sig[t] = (uint8_t)sig;
    }
    return lq_ct_config_new(ctx, q, &f->config);
}

static void ct_free(void *priv) { lq_ct_config_free(&((ct *)priv)->config); }

/* -- describe -------------------------------------------------------------------------------------------------------- */

/* A whole small part; it is little-endian and exactly `bytes` long. */
static lq_status small_part(lq_ctx *ctx, lq_source *s, const lq_module *m, size_t part, void *out, size_t bytes) {
    const lq_source *raw = ((lq_modules *)s->priv)->raw;
    const lq_entry *e = &raw->entries[m->part[part]];
    if (e->bytes != bytes) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' has %llu bytes, expected %zu", e->name, (unsigned long long)e->bytes, bytes);
    return lq_source_read(ctx, ((lq_modules *)s->priv)->raw, (size_t)m->part[part], 0, lq_entry_rows(e), out);
}

static lq_status no_part(lq_ctx *ctx, const module *m, size_t part, const char *why) {
    return m->part[part] ? lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is stored, but %s", m->part[part]->name, why) : LQ_OK;
}

static lq_status matrix(lq_ctx *ctx, module *m, size_t part, bool dtype_ok, uint64_t per_byte) {
    static const char *const names[] = {"weight_scale", "weight", "weight_packed"};
    const lq_entry *e = m->part[part];
    if (!e) return lq_fail(ctx, LQ_ERR_FORMAT, "there is no %s, which its format stores", names[part]);
    if (!dtype_ok || e->ndim != 2 || !e->shape[0] || !e->shape[1] || e->shape[0] > INT32_MAX || e->shape[1] > INT32_MAX / per_byte)
        return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' (%s, %u dimensions) is no matrix of a type its format stores", e->name, lq_dtypes[e->dtype].name, e->ndim);
    m->rows = e->shape[0];
    m->cols = e->shape[1] * per_byte;
    return no_part(ctx, m, part == WEIGHT ? PACKED : WEIGHT, "its format has no such tensor");
}

static uint64_t up(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

/* Words that hold n codes. */
static uint64_t word_count(uint64_t n, uint64_t bits, bool dense) { return dense ? up(n * bits, 32) : up(n, 32 / bits); }

static bool dense_words(const lq_ct_config *c, uint64_t words, uint64_t n, uint64_t bits) {
    bool dense = words == word_count(n, bits, true), old = words == word_count(n, bits, false);
    return dense != old ? dense : lq_ct_config_is_dense(c);
}

static lq_status packed_matrix(lq_ctx *ctx, lq_source *s, const lq_module *raw, module *m) {
    uint64_t shape[2], bits = (uint64_t)m->group->weights.bits;
    LQ_TRY(matrix(ctx, m, PACKED, m->part[PACKED] && m->part[PACKED]->dtype == LQ_I32, 1));
    const lq_entry *w = m->part[PACKED], *e = m->part[SHAPE];
    if (!e) return lq_fail(ctx, LQ_ERR_FORMAT, "there is no weight_shape, which its format stores");
    LQ_TRY(lq_entry_expect(ctx, e, e->dtype == LQ_I64, 1, 2, 0));
    LQ_TRY(small_part(ctx, s, raw, SHAPE, shape, sizeof shape));
    if (shape[0] != m->rows || !shape[1] || shape[1] > INT32_MAX ||
        (w->shape[1] != word_count(shape[1], bits, true) && w->shape[1] != word_count(shape[1], bits, false)))
        return lq_fail(ctx, LQ_ERR_FORMAT, "weight_shape says [%lld, %lld], but '%s' is [%llu, %llu] words of %d-bit codes", (long long)shape[0], (long long)shape[1], w->name,
                       (unsigned long long)w->shape[0], (unsigned long long)w->shape[1], (int)bits);
    m->cols = shape[1];
    return LQ_OK;
}

/* Tiles of one scale; 0: the whole axis. */
static void tiles(const module *m, uint32_t *tile_r, uint32_t *tile_c) {
    const lq_ct_args *w = &m->group->weights;
    *tile_r = w->strategy == LQ_CT_S_TENSOR ? 0 : w->strategy == LQ_CT_S_BLOCK ? (uint32_t)w->block[0] : 1;
    *tile_c = w->strategy == LQ_CT_S_BLOCK ? (uint32_t)w->block[1] : (uint32_t)w->group;
}

/* [1] and [] are both written for one scale of a tensor, [N] for [N, 1] by the oldest. */
static lq_status scale_shape(lq_ctx *ctx, const module *m, const lq_entry *e, bool dtype_ok) {
    uint32_t tile_r, tile_c;
    tiles(m, &tile_r, &tile_c);
    if (tile_c && tile_r == 1 && m->cols % tile_c)
        return lq_fail(ctx, LQ_ERR_FORMAT, "groups of %u do not divide %llu inputs", tile_c, (unsigned long long)m->cols);
    uint64_t down = tile_r ? up(m->rows, tile_r) : 1, across = tile_c ? up(m->cols, tile_c) : 1;
    if (!tile_r && !e->ndim) return lq_entry_expect(ctx, e, dtype_ok, 0, 0, 0);
    if (!tile_r || (across == 1 && e->ndim == 1 && tile_r == 1)) return lq_entry_expect(ctx, e, dtype_ok, 1, down, 0);
    return lq_entry_expect(ctx, e, dtype_ok, 2, down, across);
}

static bool is_float(const lq_entry *e) { return e->dtype == LQ_F16 || e->dtype == LQ_BF16 || e->dtype == LQ_F32; }

static bool zeros_packed(const module *m) {
    return m->group->format == LQ_CT_PACK && m->part[ZERO]->dtype == LQ_I32;
}

static lq_status zero_shape(lq_ctx *ctx, const module *m) {
    const lq_entry *e = m->part[ZERO];
    uint64_t bits = (uint64_t)m->group->weights.bits;
    uint32_t tile_r, tile_c;
    if (m->group->weights.sym) return e && !m->group->weights.floats ? scale_shape(ctx, m, e, e->dtype == LQ_I8) : no_part(ctx, m, ZERO, "floats have none");
    if (!e) return lq_fail(ctx, LQ_ERR_FORMAT, "there is no weight_zero_point, but 'symmetric' is false");
    if (m->group->weights.strategy == LQ_CT_S_BLOCK) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "asymmetric integers in blocks of rows are not read");
    if (!zeros_packed(m)) return scale_shape(ctx, m, e, e->dtype == LQ_I8);
    tiles(m, &tile_r, &tile_c);
    if (!tile_r) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is packed, but there is one zero point", e->name);
    bool dense = e->ndim == 2 && e->shape[0] == word_count(m->rows, bits, true);
    return lq_entry_expect(ctx, e, true, 2, word_count(m->rows, bits, dense), tile_c ? up(m->cols, tile_c) : 1);
}

static lq_status ints(lq_ctx *ctx, const module *m, lq_scheme *out) {
    const lq_ct_args *w = &m->group->weights;
    const lq_entry *s = m->part[SCALE], *g = m->part[G_IDX];
    LQ_TRY(scale_shape(ctx, m, s, is_float(s)));
    LQ_TRY(zero_shape(ctx, m));
    LQ_TRY(no_part(ctx, m, GLOBAL, "integers have none"));
    *out = (lq_scheme){.grid = {LQ_GRID_INT, (uint8_t)w->bits, 1, w->sym ? 1 << (w->bits - 1) : 0}, .zero_kind = w->sym ? LQ_ZERO_NONE : LQ_ZERO_CODE, .scale.dtype = s->dtype};
    tiles(m, &out->scale.tile_r, &out->scale.tile_c);
    if (!w->sym) out->zero = (lq_plane_desc){.dtype = LQ_U8, .tile_r = out->scale.tile_r, .tile_c = out->scale.tile_c};
    if (!g) return LQ_OK;
    if (w->strategy != LQ_CT_S_GROUP) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is stored, but there are no groups", g->name);
    out->extra = LQ_X_PERM;
    return lq_entry_expect(ctx, g, g->dtype == LQ_I32, 1, m->cols, 0);
}

static lq_status floats(lq_ctx *ctx, const module *m, lq_scheme *out) {
    const lq_entry *s = m->part[SCALE];
    bool mx = m->group->format == LQ_CT_MX8;
    if (mx && m->group->weights.group != 32) return lq_fail(ctx, LQ_ERR_FORMAT, "mxfp8-quantized with group_size %lld, expected 32", (long long)m->group->weights.group);
    LQ_TRY(scale_shape(ctx, m, s, mx ? s->dtype == LQ_U8 || s->dtype == LQ_E8M0 : is_float(s)));
    LQ_TRY(zero_shape(ctx, m));
    LQ_TRY(no_part(ctx, m, GLOBAL, "FP8 has none"));
    *out = (lq_scheme){.grid = {LQ_GRID_E4M3, 8, 1, 0}, .scale.dtype = mx ? LQ_E8M0 : s->dtype};
    tiles(m, &out->scale.tile_r, &out->scale.tile_c);
    return no_part(ctx, m, G_IDX, "FP8 has none");
}

/* A divisor that is a power of two is its reciprocal's, exactly: the form that formats which multiply have. */
static lq_status global_scale(lq_ctx *ctx, lq_source *s, const lq_module *raw, const module *m, lq_scheme *out) {
    const lq_entry *e = m->part[GLOBAL];
    float v;
    if (!e) return lq_fail(ctx, LQ_ERR_FORMAT, "there is no weight_global_scale, which its format stores");
    LQ_TRY(lq_entry_expect(ctx, e, e->dtype == LQ_F32, e->ndim ? 1 : 0, 1, 0));
    LQ_TRY(small_part(ctx, s, raw, GLOBAL, &v, sizeof v));
    if (!(v > 0) || !isfinite(v) || !isfinite(1 / v)) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is %g, expected a positive number", e->name, (double)v);
    out->scale.parent = LQ_F32;
    out->scale.divides = (lq_f32_bits(v) & 0x7fffff) != 0;
    return LQ_OK;
}

static lq_status fours(lq_ctx *ctx, lq_source *s, const lq_module *raw, const module *m, lq_scheme *out) {
    const lq_entry *e = m->part[SCALE];
    bool nv = m->group->format == LQ_CT_NV4;
    int64_t want = nv ? 16 : 32;
    if (m->group->weights.group != want) return lq_fail(ctx, LQ_ERR_FORMAT, "group_size %lld, expected %lld", (long long)m->group->weights.group, (long long)want);
    LQ_TRY(scale_shape(ctx, m, e, nv ? e->dtype == LQ_E4M3 : e->dtype == LQ_U8 || e->dtype == LQ_E8M0));
    LQ_TRY(zero_shape(ctx, m));
    LQ_TRY(no_part(ctx, m, G_IDX, "4-bit floats have none"));
    *out = (lq_scheme){.grid = {LQ_GRID_E2M1, 4, 1, 0}, .scale = {.dtype = nv ? LQ_E4M3 : LQ_E8M0, .tile_r = 1, .tile_c = (uint32_t)want}};
    return nv ? global_scale(ctx, s, raw, m, out) : no_part(ctx, m, GLOBAL, "mxfp4 has none");
}

static lq_status weights(lq_ctx *ctx, lq_source *s, const lq_module *raw, module *m, lq_scheme *out) {
    const lq_entry *w = m->part[WEIGHT], *p = m->part[PACKED];
    switch (m->group->format) {
    case LQ_CT_PACK: LQ_TRY(packed_matrix(ctx, s, raw, m)); return ints(ctx, m, out);
    case LQ_CT_MX4: case LQ_CT_NV4: LQ_TRY(matrix(ctx, m, PACKED, p && p->dtype == LQ_U8, 2)); return fours(ctx, s, raw, m, out);
    default: break;
    }
    if (w && is_float(w)) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "'%s' is %s: saved without compression, which is not read; save it compressed", w->name, lq_dtypes[w->dtype].name);
    LQ_TRY(matrix(ctx, m, WEIGHT, w && w->dtype == (m->group->weights.floats ? LQ_E4M3 : LQ_I8), 1));
    LQ_TRY(no_part(ctx, m, SHAPE, "its format has no such tensor"));
    return m->group->weights.floats ? floats(ctx, m, out) : ints(ctx, m, out);
}

/* Rounded activations of these kinds are simulated; the others are told of once. */
static bool known_act(const lq_ct_args *a, bool has_zero, lq_act *act) {
    bool fixed = a->strategy == LQ_CT_S_TENSOR && !a->dynamic, token = a->strategy == LQ_CT_S_TOKEN && a->dynamic == LQ_CT_DYNAMIC;
    bool block = a->strategy == LQ_CT_S_GROUP && a->dynamic == LQ_CT_DYNAMIC && a->floats && !a->byte_scale;
    if (a->bits != 8 || !a->sym || has_zero || (!fixed && !token && !block)) return false;
    *act = (lq_act){.kind = fixed ? LQ_ACT_STATIC : LQ_ACT_DYNAMIC, .dtype = a->floats ? LQ_E4M3 : LQ_I8, .tile = block ? (uint32_t)a->group : 0};
    return true;
}

static void note_act(lq_ctx *ctx, ct *f, const lq_ct_group *g) {
    size_t i = 0;
    while (i < NOTED_MAX && f->noted[i] && f->noted[i] != g) i++;
    if (i == NOTED_MAX || f->noted[i] == g) return;
    f->noted[i] = g;
    lq_log(ctx, LQ_LOG_WARN, "compressed-tensors: input_activations of %d bits%s are not rounded here: the weights alone are read", (int)g->inputs.bits, g->inputs.sym ? "" : ", asymmetric");
}

static lq_status activations(lq_ctx *ctx, ct *f, const module *m, lq_scheme *out) {
    const lq_entry *e = m->part[IN_SCALE];
    if (!m->group->inputs.present) return no_part(ctx, m, IN_SCALE, "input_activations are not quantized");
    if (!known_act(&m->group->inputs, m->part[IN_ZERO] && !m->group->inputs.sym, &out->act)) {
        note_act(ctx, f, m->group);
        return LQ_OK;
    }
    if (out->act.kind == LQ_ACT_DYNAMIC) return no_part(ctx, m, IN_SCALE, "input_activations are dynamic");
    if (!e) return lq_fail(ctx, LQ_ERR_FORMAT, "there is no input_scale, but input_activations are static");
    return lq_entry_expect(ctx, e, is_float(e), e->ndim ? 1 : 0, 1, 0);
}

static void collect(const lq_source *s, const lq_module *raw, module *m) {
    for (size_t i = 0; i < LQ_MODULE_PARTS; i++) m->part[i] = raw->part[i] < 0 ? NULL : lq_modules_entry(s, raw, i);
}

static lq_status ct_describe(lq_ctx *ctx, lq_source *s, const char *name, const lq_module *raw, lq_entry *e, bool *plain) {
    ct *f = lq_modules_priv(s);
    module m = {0};
    bool ignored;
    (void)plain;
    LQ_TRY(lq_ct_config_find(ctx, f->config, name, &m.group, &ignored));
    if (!m.group) return lq_fail(ctx, LQ_ERR_FORMAT, "stored quantized, but %s", ignored ? "'ignore' lists it" : "no config group names it");
    collect(s, raw, &m);
    LQ_TRY(weights(ctx, s, raw, &m, &e->scheme));
    LQ_TRY(activations(ctx, f, &m, &e->scheme));
    e->scheme.scale.sig = f->sig[e->scheme.scale.dtype];
    e->ndim = 2;
    e->shape[0] = m.rows;
    e->shape[1] = m.cols;
    return lq_scheme_check(ctx, &e->scheme, (uint32_t)m.rows, (uint32_t)m.cols);
}

/* -- data ------------------------------------------------------------------------------------------------------------ */

typedef struct words { const uint32_t *v; size_t stride; uint32_t bits; bool dense; } words; /* word i at v[i * stride] */

static uint32_t field(const words *w, size_t i) {
    uint32_t mask = 0xffffffffu >> (32 - w->bits), per = 32 / w->bits;
    if (!w->dense) return w->v[i / per * w->stride] >> (i % per * w->bits) & mask;
    size_t bit = i * w->bits;
    uint32_t low = w->v[bit / 32 * w->stride] >> bit % 32, left = 32 - bit % 32;
    if (left < w->bits) low |= w->v[(bit / 32 + 1) * w->stride] << left;
    return low & mask;
}

typedef struct code_job { const void *data; size_t row; lq_qtensor *q; const uint32_t *rank; bool packed, dense; const lq_ct_group *group; uint8_t *bad; } code_job;
enum { CHUNK = 512 };

/* Codes [c0, c0 + n) of row r as our grid counts them; false: a byte outside the range of its bits. */
static bool row_codes(const code_job *j, uint32_t r, uint32_t c0, uint32_t n, uint16_t *out) {
    uint32_t bits = j->q->sch.grid.bits;
    const uint8_t *row = (const uint8_t *)j->data + r * j->row;
    if (j->group->format == LQ_CT_PACK) {
        words w = {(const uint32_t *)(const void *)row, 1, bits, j->dense};
        for (uint32_t i = 0; i < n; i++) out[i] = (uint16_t)field(&w, c0 + i);
        return true;
    }
    bool ok = true;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t c = c0 + i;
        int q = j->packed ? row[c / 2] >> (c % 2 * 4) & 15 : j->q->sch.grid.kind == LQ_GRID_INT ? (int8_t)row[c] + (1 << (bits - 1)) : row[c];
        ok &= q >= 0 && q >> bits == 0;
        out[i] = (uint16_t)q;
    }
    return ok;
}

static void read_row(void *arg, size_t r) {
    const code_job *j = arg;
    lq_qtensor *q = j->q;
    uint32_t bits = q->sch.grid.bits;
    uint8_t *to = q->codes + r * q->row_bytes;
    uint16_t codes[CHUNK];
    for (uint32_t c = 0; c < q->cols; c += CHUNK) {
        uint32_t n = q->cols - c < CHUNK ? q->cols - c : CHUNK;
        if (!row_codes(j, (uint32_t)r, c, n, codes)) j->bad[r] = 1;
        else if (!j->rank) lq_codes_pack(to + (size_t)c / 8 * bits, bits, n, codes);
        else
            for (uint32_t i = 0; i < n; i++) lq_code_put(to, bits, j->rank[c + i], codes[i]);
    }
}

static lq_status order(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q, uint32_t *rank) {
    void *g_idx = NULL;
    lq_status st = lq_modules_part(ctx, s, i, G_IDX, &g_idx);
    bool unset = !st; /* -1 everywhere: groups in order */
    for (uint32_t k = 0; k < q->cols && unset; k++) unset = ((const int32_t *)g_idx)[k] == -1;
    for (uint32_t k = 0; k < q->cols && unset; k++) ((int32_t *)g_idx)[k] = (int32_t)(k / q->sch.scale.tile_c);
    if (!st) st = lq_columns_by_group(ctx, g_idx, q, rank);
    lq_free(g_idx);
    return st;
}

static lq_status read_codes(lq_ctx *ctx, lq_source *s, size_t i, const module *m, lq_qtensor *q) {
    const ct *f = lq_modules_priv(s);
    void *data = NULL;
    lq_status st;
    bool packed = m->part[PACKED] != NULL;
    const lq_entry *e = m->part[packed ? PACKED : WEIGHT];
    uint32_t *rank = q->perm ? LQ_NEWN(uint32_t, q->cols) : NULL;
    uint8_t *bad = lq_alloc(q->rows);
    if (!bad || (q->perm && !rank)) { st = lq_oom(ctx, q->cols * sizeof *rank + q->rows); goto done; }
    if (q->perm) LQ_GO(order(ctx, s, i, q, rank));
    LQ_GO(lq_modules_part(ctx, s, i, packed ? PACKED : WEIGHT, &data));
    code_job j = {data, (size_t)(e->bytes / q->rows), q, rank, packed, dense_words(f->config, e->shape[1], q->cols, q->sch.grid.bits), m->group, bad};
    lq_parallel_for(q->rows, read_row, &j);
    for (uint32_t r = 0; r < q->rows && !st; r++)
        if (bad[r]) st = lq_fail(ctx, LQ_ERR_FORMAT, "'%s' row %u has a value outside %d bits", e->name, r, q->sch.grid.bits);
done:
    lq_free(data);
    lq_free(rank);
    lq_free(bad);
    return st;
}

static lq_status read_scales(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q) {
    void *data = NULL, *global = NULL;
    lq_status st;
    LQ_GO(lq_modules_part(ctx, s, i, SCALE, &data));
    memcpy(q->scale.v, data, lq_plane_count(&q->sch.scale, q->rows, q->cols) * lq_dtypes[q->sch.scale.dtype].bytes);
    if (q->sch.scale.parent == LQ_NONE) goto done;
    LQ_GO(lq_modules_part(ctx, s, i, GLOBAL, &global));
    float v = *(const float *)global;
    *(float *)q->scale.parent = q->sch.scale.divides ? v : 1 / v;
done:
    lq_free(global);
    lq_free(data);
    return st;
}

/* Zero point of row n, group g as the grid counts codes. */
static int zero_at(const module *m, const words *w, const int8_t *bytes, uint32_t groups, uint32_t n, uint32_t g) {
    if (!zeros_packed(m)) return bytes[(size_t)n * groups + g] + (1 << (m->group->weights.bits - 1));
    words column = *w;
    column.v += g;
    return (int)field(&column, n);
}

static lq_status read_zeros(lq_ctx *ctx, lq_source *s, size_t i, const module *m, lq_qtensor *q) {
    const ct *f = lq_modules_priv(s);
    void *data = NULL;
    lq_status st = lq_modules_part(ctx, s, i, ZERO, &data);
    if (st || !data) goto done;
    uint32_t bits = q->sch.grid.bits, groups = lq_plane_cols(&q->sch.scale, q->cols), rows = q->sch.scale.tile_r ? q->rows : 1;
    bool sym = q->sch.zero_kind == LQ_ZERO_NONE;
    words w = {data, groups, bits, m->part[ZERO]->ndim == 2 && dense_words(f->config, m->part[ZERO]->shape[0], q->rows, bits)};
    for (uint32_t n = 0; n < rows && !st; n++)
        for (uint32_t g = 0; g < groups && !st; g++) {
            int z = zero_at(m, &w, data, groups, n, g);
            if (z < 0 || z >> bits || (sym && z != 1 << (bits - 1)))
                st = lq_fail(ctx, LQ_ERR_FORMAT, "'%s': group %u of output %u has zero point %d%s", m->part[ZERO]->name, g, n, z - (1 << (bits - 1)),
                             sym ? ", but the config says symmetric" : ", which does not fit its bits");
            else if (!sym) ((uint8_t *)q->zero.v)[(size_t)n * groups + g] = (uint8_t)z;
        }
done:
    lq_free(data);
    return st;
}

static lq_status read_step(lq_ctx *ctx, lq_source *s, size_t i, const module *m, lq_qtensor *q) {
    void *data = NULL;
    lq_status st = lq_modules_part(ctx, s, i, IN_SCALE, &data);
    if (!st && q->sch.act.kind == LQ_ACT_STATIC) lq_dtype_decode(m->part[IN_SCALE]->dtype, data, &q->act_scale, 1);
    lq_free(data);
    return st;
}

static lq_status ct_fill(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *out) {
    const lq_modules *mods = s->priv;
    const ct *f = mods->priv;
    const lq_entry *e = &s->entries[i];
    module m = {.rows = e->shape[0], .cols = e->shape[1]};
    bool ignored;
    lq_status st;
    char *name = lq_strndup(e->name, strlen(e->name) - strlen(".weight"));
    if (!name) return lq_oom(ctx, strlen(e->name));
    st = lq_ct_config_find(ctx, f->config, name, &m.group, &ignored);
    lq_free(name);
    if (st) return st;
    collect(s, &mods->modules[i], &m);
    LQ_TRY(read_codes(ctx, s, i, &m, out));
    LQ_TRY(read_scales(ctx, s, i, out));
    LQ_TRY(read_zeros(ctx, s, i, &m, out));
    return read_step(ctx, s, i, &m, out);
}

static const lq_module_format parts = {
    .suffix = {".weight_scale", ".weight", ".weight_packed", ".weight_shape", ".weight_zero_point", ".weight_g_idx", ".weight_global_scale", ".input_scale",
               ".input_zero_point", ".input_global_scale"},
    .common = 1u << WEIGHT, .priv_size = sizeof(ct), .config = ct_config, .free_priv = ct_free, .describe = ct_describe, .fill = ct_fill,
};

static lq_status ct_open(lq_ctx *ctx, lq_source *s) { return lq_modules_open(ctx, s, &parts); }

const lq_reader lq_reader_ct = {
    .name = "compressed-tensors", .what = "compressed-tensors checkpoint folder", .probe = ct_probe, .open = ct_open, LQ_MODULES_CALLS,
};
