/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* MLX checkpoints (mlx-lm, lquant). A module of N outputs and K inputs in groups of g, b bits:
 *
 *     weight U32 [N][K*b/32], rows of codes as LE bitstreams; scales [N][K/g]
 *     affine:         biases [N][K/g] of the scales' type, F16, BF16 or F32;   w = scale * code + bias
 *     mxfp4, mxfp8:   scales U8 (E8M0), g 32;  nvfp4: scales U8 (E4M3), g 16;  w = scale * float of the code
 *
 * g, b and mode are in "quantization" of config.json, for single modules under their names; a module without scales is kept.
 * lquant's own files say in "lquant" that biases are -2^(b-1) scales ("sym"), how many significant bits scales have ("scale_sig") and that
 * they are F16 numbers stored as BF16 ("scale_dtype"); all three are checked. */
#include "formats/modules.h"
#include "formats/qcodec.h"

#include <string.h>

enum { WEIGHT, SCALES, BIASES };

typedef struct settings { int64_t bits, group; const char *mode; } settings;
typedef struct mlx {
    const json_t *q;             /* "quantization"; of s->config */
    settings base;
    lq_module_set sym;
    uint8_t sig;
    bool f16;                    /* BF16 scales are F16 numbers */
} mlx;

static const json_t *settings_of(const json_t *config) {
    static const char *const keys[] = {"quantization", "quantization_config"};
    for (int i = 0; i < 2; i++) {
        const json_t *q = json_object_get(config, keys[i]);
        if (json_object_get(q, "group_size") && json_object_get(q, "bits") && !json_object_get(q, "quant_method")) return q;
    }
    return NULL;
}

static bool mlx_probe(const char *path, const json_t *config) {
    (void)path;
    return settings_of(config) != NULL;
}

static lq_status read_settings(lq_ctx *ctx, const json_t *o, bool whole, settings *out) {
    const char *mode = NULL;
    LQ_TRY(lq_json_int(ctx, o, "bits", whole, out->bits, 1, 32, &out->bits));
    LQ_TRY(lq_json_int(ctx, o, "group_size", whole, out->group, 1, 1 << 20, &out->group));
    LQ_TRY(lq_json_string(ctx, o, "mode", false, &mode));
    if (mode) out->mode = mode;
    return LQ_OK;
}

static lq_status mlx_config(lq_ctx *ctx, lq_source *s) {
    mlx *f = lq_modules_priv(s);
    const json_t *own = json_object_get(s->config, "lquant");
    const char *type = NULL;
    int64_t sig;
    f->q = settings_of(s->config);
    f->base.mode = "affine";
    LQ_TRY(read_settings(ctx, f->q, true, &f->base));
    LQ_TRY(lq_json_int(ctx, own, "scale_sig", false, 0, 0, 11, &sig));
    LQ_TRY(lq_json_string(ctx, own, "scale_dtype", false, &type));
    f->sig = (uint8_t)sig;
    f->f16 = type && !strcmp(type, "F16") && sig;
    return lq_module_set_read(ctx, json_object_get(own, "sym"), &f->sym);
}

static void mlx_free(void *priv) { lq_module_set_free(&((mlx *)priv)->sym); }

/* -- modules --------------------------------------------------------------------------------------------------------- */

static lq_scheme affine(const mlx *f, const settings *set, const char *name, lq_dtype stored) {
    lq_scheme s = lq_scheme_int((int)set->bits, (int)set->group, true);
    s.scale.dtype = stored == LQ_BF16 && f->f16 ? LQ_F16 : stored;
    s.scale.sig = f->sig;
    if (lq_module_set_has(&f->sym, name)) return s;
    s.grid.bias = 0;
    s.zero_kind = LQ_ZERO_MIN;
    s.zero = s.scale;
    return s;
}

static lq_status scheme_of(lq_ctx *ctx, const mlx *f, const settings *set, const char *name, lq_dtype stored, lq_scheme *out) {
    static const struct { const char *mode; int bits, group; lq_grid_kind grid; lq_dtype scale; } modes[] = {
        {"mxfp4", 4, 32, LQ_GRID_E2M1, LQ_E8M0}, {"mxfp8", 8, 32, LQ_GRID_E4M3, LQ_E8M0}, {"nvfp4", 4, 16, LQ_GRID_E2M1, LQ_E4M3}};
    bool known = set->bits >= 2 && set->bits <= 8 && set->bits != 7 && (set->group == 32 || set->group == 64 || set->group == 128);
    if (!strcmp(set->mode, "affine")) {
        if (known) return *out = affine(f, set, name, stored), LQ_OK;
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%d bits in groups of %d; 2, 3, 4, 5, 6, 8 in 32, 64, 128 are read", (int)set->bits, (int)set->group);
    }
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        if (strcmp(set->mode, modes[i].mode)) continue;
        if (set->bits != modes[i].bits || set->group != modes[i].group)
            return lq_fail(ctx, LQ_ERR_FORMAT, "mode %s with %d bits in groups of %d, expected %d in %d", set->mode, (int)set->bits, (int)set->group, modes[i].bits, modes[i].group);
        *out = (lq_scheme){.grid = {modes[i].grid, (uint8_t)set->bits, 1, 0}, .scale = {.dtype = modes[i].scale, .tile_r = 1, .tile_c = (uint32_t)set->group}};
        return LQ_OK;
    }
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "mode '%.64s'; affine, mxfp4, mxfp8 and nvfp4 are read", set->mode);
}

static lq_status check_parts(lq_ctx *ctx, lq_source *s, const lq_module *m, const settings *set, lq_entry *e) {
    const lq_entry *w = lq_modules_entry(s, m, WEIGHT), *sc = lq_modules_entry(s, m, SCALES), *b = lq_modules_entry(s, m, BIASES);
    bool ints = !strcmp(set->mode, "affine");
    uint64_t n = w->shape[0], words = w->ndim == 2 ? w->shape[1] : 0, k = words * 32 / (uint64_t)set->bits;
    if (w->dtype != LQ_U32 || !n || !words || words > 1 << 27 || n > INT32_MAX || k * (uint64_t)set->bits != words * 32 || k % (uint64_t)set->group)
        return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' (%s, [%llu, %llu]) does not hold rows of %d-bit codes in groups of %d", w->name, lq_dtypes[w->dtype].name,
                       (unsigned long long)n, (unsigned long long)words, (int)set->bits, (int)set->group);
    LQ_TRY(lq_entry_expect(ctx, sc, ints ? sc->dtype == LQ_F16 || sc->dtype == LQ_BF16 || sc->dtype == LQ_F32 : sc->dtype == LQ_U8, 2, n, k / (uint64_t)set->group));
    if (ints != (b != NULL)) return lq_fail(ctx, LQ_ERR_FORMAT, "mode %s, but there are %sbiases", set->mode, b ? "" : "no ");
    if (ints) LQ_TRY(lq_entry_expect(ctx, b, b->dtype == sc->dtype, 2, n, k / (uint64_t)set->group));
    e->ndim = 2;
    e->shape[0] = n;
    e->shape[1] = k;
    return LQ_OK;
}

static lq_status mlx_describe(lq_ctx *ctx, lq_source *s, const char *name, const lq_module *m, lq_entry *e, bool *plain) {
    const mlx *f = lq_modules_priv(s);
    const json_t *own = json_object_get(f->q, name);
    settings set = f->base;
    if (m->part[SCALES] < 0 && m->part[BIASES] < 0) return *plain = true, LQ_OK;
    if (m->part[SCALES] < 0) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' has no scales", name);
    if (json_is_false(own)) return lq_fail(ctx, LQ_ERR_FORMAT, "'%s' is stored quantized, but 'quantization' says it is kept", name);
    if (json_is_object(own)) LQ_TRY(read_settings(ctx, own, false, &set));
    LQ_TRY(scheme_of(ctx, f, &set, name, lq_modules_entry(s, m, SCALES)->dtype, &e->scheme));
    return check_parts(ctx, s, m, &set, e);
}

/* -- data ------------------------------------------------------------------------------------------------------------ */

/* A stored element as plane element i: the same number, or an error. */
static lq_status take(lq_ctx *ctx, const char *what, const lq_plane_desc *d, lq_plane *p, size_t i, float v) {
    lq_plane_set(d, p, i, v);
    float is = lq_plane_get(d, p, i);
    return is == v || v != v ? LQ_OK : lq_fail(ctx, LQ_ERR_FORMAT, "%s %zu is %g, which is no %s number of %u significant bits, as the config says", what, i, (double)v, lq_dtypes[d->dtype].name, d->sig);
}

static lq_status read_plane(lq_ctx *ctx, lq_source *s, size_t i, size_t part, const lq_plane_desc *d, lq_plane *p, size_t n) {
    const lq_entry *e = lq_modules_entry(s, &((lq_modules *)s->priv)->modules[i], part);
    void *data;
    lq_status st = lq_modules_part(ctx, s, i, part, &data);
    for (size_t k = 0; !st && k < n; k++) {
        float v;
        lq_dtype_decode(e->dtype, (const char *)data + k * lq_dtypes[e->dtype].bytes, &v, 1);
        st = take(ctx, part == SCALES ? "scale" : "bias", d, p, k, part == SCALES ? v : -v);
    }
    lq_free(data);
    return st;
}

static lq_status check_sym(lq_ctx *ctx, lq_source *s, size_t i, const lq_qtensor *q, size_t n) {
    const lq_entry *e = lq_modules_entry(s, &((lq_modules *)s->priv)->modules[i], BIASES);
    void *data;
    lq_status st = lq_modules_part(ctx, s, i, BIASES, &data);
    for (size_t k = 0; !st && k < n; k++) {
        float v, want = -(float)q->sch.grid.bias * lq_plane_get(&q->sch.scale, &q->scale, k);
        lq_dtype_decode(e->dtype, (const char *)data + k * lq_dtypes[e->dtype].bytes, &v, 1);
        if (v != want) st = lq_fail(ctx, LQ_ERR_FORMAT, "bias %zu is %g, expected %g: the config says sym", k, (double)v, (double)want);
    }
    lq_free(data);
    return st;
}

static lq_status read_bytes(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q, size_t n) {
    void *data;
    lq_status st = lq_modules_part(ctx, s, i, SCALES, &data);
    if (!st) memcpy(q->scale.v, data, n);
    lq_free(data);
    return st;
}

static lq_status mlx_fill(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *out) {
    const lq_entry *e = &s->entries[i];
    size_t n = lq_plane_count(&e->scheme.scale, out->rows, out->cols);
    LQ_TRY(lq_modules_codes(ctx, s, i, WEIGHT, out));
    if (e->scheme.grid.kind != LQ_GRID_INT) LQ_TRY(read_bytes(ctx, s, i, out, n));
    else LQ_TRY(read_plane(ctx, s, i, SCALES, &e->scheme.scale, &out->scale, n));
    if (e->scheme.zero_kind == LQ_ZERO_MIN) LQ_TRY(read_plane(ctx, s, i, BIASES, &e->scheme.zero, &out->zero, n));
    return e->scheme.grid.kind == LQ_GRID_INT && e->scheme.zero_kind == LQ_ZERO_NONE ? check_sym(ctx, s, i, out, n) : LQ_OK;
}

static const lq_module_format parts = {
    .suffix = {".weight", ".scales", ".biases"}, .common = 1u << SCALES | 1u << BIASES, .priv_size = sizeof(mlx), .config = mlx_config, .free_priv = mlx_free,
    .describe = mlx_describe, .fill = mlx_fill,
};

static lq_status mlx_open(lq_ctx *ctx, lq_source *s) { return lq_modules_open(ctx, s, &parts); }

const lq_reader lq_reader_mlx = {
    .name = "mlx", .what = "MLX checkpoint folder", .probe = mlx_probe, .open = mlx_open, LQ_MODULES_CALLS,
};
