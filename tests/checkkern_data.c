/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Schemes, tensors and vectors to check kernels with. */
#include "checkkern.h"

#include "core/pack.h"
#include "quant/types.h"

#include <stdlib.h>
#include <string.h>

#define INT(bits_, group, dtype_, zk, zdtype, bias_) \
    {.grid = {LQ_GRID_INT, bits_, 1, bias_}, .zero_kind = zk, .scale = {.dtype = dtype_, .tile_r = 1, .tile_c = group}, \
     .zero = {.dtype = zdtype, .tile_r = 1, .tile_c = group}}
#define GRID(kind_, bits_, group, dtype_, extra_) \
    {.grid = {kind_, bits_, 1, 0}, .scale = {.dtype = dtype_, .tile_r = 1, .tile_c = group}, .extra = extra_}

const ck_scheme ck_schemes[] = {
    {"i4sym_g128", INT(4, 128, LQ_F16, LQ_ZERO_NONE, LQ_NONE, 8)},
    {"i4asym_g32", INT(4, 32, LQ_F16, LQ_ZERO_CODE, LQ_U8, 0)},
    {"i4asym_row", INT(4, 0, LQ_F16, LQ_ZERO_CODE, LQ_U8, 0)},
    {"i4real_g64", INT(4, 64, LQ_F16, LQ_ZERO_CODE, LQ_F16, 0)},
    {"i4min_g32", INT(4, 32, LQ_F16, LQ_ZERO_MIN, LQ_F16, 0)},
    {"i4min_f32_g16", INT(4, 16, LQ_F32, LQ_ZERO_MIN, LQ_F32, 0)},
    {"i4sym_g20", INT(4, 20, LQ_F16, LQ_ZERO_NONE, LQ_NONE, 8)},
    {"i4f32_g32", INT(4, 32, LQ_F32, LQ_ZERO_NONE, LQ_NONE, 8)},
    {"i3sym_g128", INT(3, 128, LQ_F16, LQ_ZERO_NONE, LQ_NONE, 4)},
    {"i3asym_g24", INT(3, 24, LQ_F16, LQ_ZERO_CODE, LQ_U8, 0)},
    {"i3asym_row", INT(3, 0, LQ_F16, LQ_ZERO_CODE, LQ_U8, 0)},
    {"i2sym_g64", INT(2, 64, LQ_F16, LQ_ZERO_NONE, LQ_NONE, 2)},
    {"i2asym_g16", INT(2, 16, LQ_F16, LQ_ZERO_CODE, LQ_U8, 0)},
    {"i8sym_g128", INT(8, 128, LQ_F16, LQ_ZERO_NONE, LQ_NONE, 128)},
    {"i8sym_row", INT(8, 0, LQ_F32, LQ_ZERO_NONE, LQ_NONE, 128)},
    {"i8asym_g40", INT(8, 40, LQ_F16, LQ_ZERO_CODE, LQ_U8, 0)},
    {"i8real_g64", INT(8, 64, LQ_F16, LQ_ZERO_CODE, LQ_F16, 0)},
    {"i5sym_g32", INT(5, 32, LQ_F16, LQ_ZERO_NONE, LQ_NONE, 16)},
    {"i1_row", INT(1, 0, LQ_BF16, LQ_ZERO_NONE, LQ_NONE, 0)},
    {"i4two_tiles", {.grid = {LQ_GRID_INT, 4, 1, 0}, .zero_kind = LQ_ZERO_CODE, .scale = {.dtype = LQ_F16, .tile_r = 1, .tile_c = 32},
                     .zero = {.dtype = LQ_U8, .tile_r = 1, .tile_c = 64}}},
    {"i4super", {.grid = {LQ_GRID_INT, 4, 1, 0}, .zero_kind = LQ_ZERO_MIN,
                 .scale = {.dtype = LQ_U8, .tile_r = 1, .tile_c = 32, .parent = LQ_F16, .span = 8},
                 .zero = {.dtype = LQ_U8, .tile_r = 1, .tile_c = 32, .parent = LQ_F16, .span = 8}}},
    {"i4flat64", {.grid = {LQ_GRID_INT, 4, 1, 8}, .scale = {.dtype = LQ_F32, .tile_r = LQ_FLAT, .tile_c = 64}}},
    {"mxfp4", GRID(LQ_GRID_E2M1, 4, 32, LQ_E8M0, 0)},
    {"fp8_row", GRID(LQ_GRID_E4M3, 8, 0, LQ_F32, 0)},
    {"fp8_128x128", {.grid = {LQ_GRID_E4M3, 8, 1, 0}, .scale = {.dtype = LQ_F32, .tile_r = 128, .tile_c = 128}}},
    {"lut4_g64", GRID(LQ_GRID_LUT, 4, 64, LQ_F16, 0)},
    {"mxfp8", GRID(LQ_GRID_E4M3, 8, 32, LQ_E8M0, 0)},
    {"e4m3_f16_g16", GRID(LQ_GRID_E4M3, 8, 16, LQ_F16, 0)},
    {"e2m1_e4m3_g16", GRID(LQ_GRID_E2M1, 4, 16, LQ_E4M3, 0)},
    {"e2m1_e4m3_spans", {.grid = {LQ_GRID_E2M1, 4, 1, 0}, .scale = {.dtype = LQ_E4M3, .tile_r = 1, .tile_c = 16, .parent = LQ_F32, .span = 3}}},
    {"lut4_bf16_g32", GRID(LQ_GRID_LUT, 4, 32, LQ_BF16, 0)},
    {"fp4_flat96", {.grid = {LQ_GRID_LUT, 4, 1, LQ_LUT_FP4}, .scale = {.dtype = LQ_F32, .tile_r = LQ_FLAT, .tile_c = 96}}},
    {"nf4_flat4096", {.grid = {LQ_GRID_LUT, 4, 1, LQ_LUT_NF4}, .scale = {.dtype = LQ_U8, .tile_r = LQ_FLAT, .tile_c = 4096, .parent = LQ_F32, .span = 4}}},
    {"nf4_flat64", {.grid = {LQ_GRID_LUT, 4, 1, LQ_LUT_NF4}, .scale = {.dtype = LQ_F32, .tile_r = LQ_FLAT, .tile_c = 64}}},
    {"f16", GRID(LQ_GRID_F16, 16, 0, LQ_NONE, 0)},
    {"bf16_sparse", {.grid = {LQ_GRID_BF16, 16, 1, 0}, .extra = LQ_X_OUTLIERS, .sparse = 300}},
    {"f32", GRID(LQ_GRID_F32, 32, 0, LQ_NONE, 0)},
    {"lut3_sparse", {.grid = {LQ_GRID_LUT, 3, 1, 0}, .extra = LQ_X_LUT_PER_ROW | LQ_X_OUTLIERS, .sparse = 300}},
    {"i4sym_g32_prescale", {.grid = {LQ_GRID_INT, 4, 1, 8}, .scale = {.dtype = LQ_F16, .tile_r = 1, .tile_c = 32}, .extra = LQ_X_PRESCALE}},
    {"i4sym_g32_rank1", {.grid = {LQ_GRID_INT, 4, 1, 8}, .scale = {.dtype = LQ_F16, .tile_r = 1, .tile_c = 32}, .extra = LQ_X_LOWRANK, .rank = 1}},
    {"i3min_rank70_sparse", {.grid = {LQ_GRID_INT, 3, 1, 0}, .zero_kind = LQ_ZERO_MIN, .scale = {.dtype = LQ_F16, .tile_r = 1}, .zero = {.dtype = LQ_F16, .tile_r = 1},
                             .extra = LQ_X_LOWRANK | LQ_X_OUTLIERS, .rank = 70, .sparse = 100}},
    {"i8sym_cols", {.grid = {LQ_GRID_INT, 8, 1, 128}, .scale = {.dtype = LQ_F32, .tile_r = 1}, .extra = LQ_X_OUTLIER_COLS, .sparse = 6}},
    {"i8sym_cols_rank3", {.grid = {LQ_GRID_INT, 8, 1, 128}, .scale = {.dtype = LQ_F32, .tile_r = 1}, .extra = LQ_X_OUTLIER_COLS | LQ_X_LOWRANK, .rank = 3, .sparse = 6}},
    {"lut3_per_row", {.grid = {LQ_GRID_LUT, 3, 1, 0}, .extra = LQ_X_LUT_PER_ROW}},
};
const size_t ck_n_schemes = sizeof ck_schemes / sizeof *ck_schemes;

const ck_scheme *ck_all_schemes(void) {
    static ck_scheme all[256];
    size_t n = ck_n_schemes;
    if (all[0].name) return all;
    memcpy(all, ck_schemes, sizeof ck_schemes);
    for (const lq_type *t = lq_types; t->name && n < 255; t++)
        if (!t->keep) all[n++] = (ck_scheme){t->name, t->scheme};
    return all;
}

#ifdef CK_EVEX
void lq_packed_idot_evex(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_i *x, double *acc);

/* The body of the avxvnni tier by another encoding of its one instruction: a machine with AVX-512 need not have the tier. */
static size_t add_evex(ck_variant *v, size_t n) {
    if (!(lq_cpu_mask() & LQ_ISA_AVX512VNNI)) return n;
    lq_kernels_init(&v[n].below, LQ_ISA_AVX2);
    v[n].k = v[n].below;
    v[n].k.packed_idot = lq_packed_idot_evex;
    v[n].name = v[n].k.name = "avxvnni_by_evex";
    return n + 1;
}
#else
static size_t add_evex(ck_variant *v, size_t n) {
    (void)v;
    return n;
}
#endif

size_t ck_variants(ck_variant *v) {
    unsigned have = lq_cpu_mask(), mask = 0;
    size_t n = 1;
    lq_kernels_init(&v[0].k, 0);
    v[0].name = v[0].k.name;
    memset(&v[0].below, 0, sizeof v[0].below);
    for (unsigned bit = 1; bit && bit <= have; bit <<= 1)
        if (have & bit) {
            mask |= bit;
            lq_kernels_init(&v[n].k, mask);
            v[n].below = v[n - 1].k;
            v[n].name = v[n].k.name;
            n++;
        }
    return add_evex(v, n);
}

static float hostile_value(lq_rng *rng) {
    static const float v[] = {0, -0.0f, 1e-40f, -3e-42f, 1.17549435e-38f, 1, -1, 65504, -3e4f, 1e-7f, 250, 1e20f};
    return v[lq_rng_below(rng, sizeof v / sizeof *v)];
}

void ck_floats(float *x, size_t n, lq_rng *rng, bool hostile) {
    for (size_t i = 0; i < n; i++) x[i] = hostile && lq_rng_below(rng, 3) == 0 ? hostile_value(rng) : lq_rng_normal(rng);
}

static void fill_parents(lq_qtensor *q, const lq_plane_desc *d, lq_plane *p, size_t n, lq_rng *rng) {
    for (size_t i = 0; i < (d->span ? (n + d->span - 1) / d->span : 1); i++) {
        float v = lq_rng_normal(rng) / 64;
        lq_dtype_encode(d->parent, &v, (uint8_t *)p->parent + i * lq_dtypes[d->parent].bytes, 1);
    }
    if (d->dtype != LQ_U8 || d->parent != LQ_F32) return;
    float *lut = lq_arena_alloc(q->mem, 256 * sizeof *lut);
    if (!lut) abort();
    for (int i = 0; i < 256; i++) lut[i] = lq_rng_normal(rng);
    p->lut = lut;
    p->offset = lq_rng_normal(rng) / 16;
}

/* Of the bits in use. */
static uint8_t random_byte(const lq_plane_desc *d, lq_rng *rng) {
    uint32_t v = lq_rng_u32(rng), n = d->sig && d->sig < 8 ? 1u << d->sig : 256;
    if (d->dtype == LQ_I8) return (uint8_t)(v % n - n / 2);
    return (uint8_t)(d->dtype == LQ_E4M3 ? v & 0xf7 : v % n);
}

static void fill_plane(lq_qtensor *q, const lq_plane_desc *d, lq_plane *p, uint32_t rows, uint32_t cols, lq_rng *rng, bool hostile) {
    size_t n = lq_plane_count(d, rows, cols), size = lq_dtypes[d->dtype].bytes;
    if (d->parent != LQ_NONE) fill_parents(q, d, p, n, rng);
    for (size_t i = 0; i < n; i++) {
        float v = hostile && lq_rng_below(rng, 2) ? hostile_value(rng) : lq_rng_normal(rng) / 16;
        if (fabsf(v) > 60000) v = 60000;
        if (size == 1) ((uint8_t *)p->v)[i] = (uint8_t)(d->dtype == LQ_E8M0 ? (hostile && i % 7 == 3 ? 0 : 100 + lq_rng_below(rng, 50)) : random_byte(d, rng));
        else lq_plane_set(d, p, i, v);
    }
}

static uint16_t half(lq_rng *rng) { return lq_f32_f16(lq_rng_normal(rng) / 16); }

static void fill_sparse(lq_qtensor *q, lq_rng *rng) {
    uint32_t most = (uint32_t)((uint64_t)q->rows * q->cols * q->sch.sparse / 10000), n = 0;
    if (lq_qtensor_outliers(NULL, q, most)) abort();
    for (uint32_t r = 0; r < q->rows; r++) {
        for (uint32_t c = lq_rng_below(rng, 20); c < q->cols && n < most; c += 1 + lq_rng_below(rng, 40), n++) {
            q->outliers.col[n] = c;
            q->outliers.v[n] = half(rng);
        }
        q->outliers.row[r + 1] = n;
    }
    q->outliers.n = n;
}

static void fill_kept(lq_qtensor *q, lq_rng *rng) {
    uint32_t n = q->sch.sparse < q->cols ? q->sch.sparse : q->cols;
    lq_cols *k = &q->outlier_cols;
    if (lq_qtensor_outlier_cols(NULL, q, n)) abort();
    for (uint32_t i = 0; i < n; i++) k->idx[i] = i * (q->cols / n);
    for (size_t i = 0; i < (size_t)n * q->rows; i++) k->v[i] = half(rng);
    for (uint32_t r = 0; r < q->rows; r++)
        for (uint32_t c = 0; c < q->cols; c++)
            for (uint32_t i = 0; i < n; i++)
                if ((q->perm ? q->perm[c] : c) == k->idx[i]) lq_code_put(q->codes + r * q->row_bytes, q->sch.grid.bits, c, (uint32_t)q->sch.grid.bias);
}

static void fill_extras(lq_qtensor *q, lq_rng *rng) {
    for (uint32_t c = 0; q->prescale && c < q->cols; c++) q->prescale[c] = 0.5f + fabsf(lq_rng_normal(rng));
    for (size_t i = 0; i < (size_t)q->sch.rank * q->rows; i++) q->lr.a[i] = half(rng);
    for (size_t i = 0; i < (size_t)q->sch.rank * q->cols; i++) q->lr.b[i] = half(rng);
    if (q->sch.extra & LQ_X_OUTLIERS) fill_sparse(q, rng);
    if (q->sch.extra & LQ_X_OUTLIER_COLS) fill_kept(q, rng);
}

static void fill_float_codes(lq_qtensor *q, lq_rng *rng) {
    static const lq_dtype of[] = {LQ_F16, LQ_BF16, LQ_F32};
    for (uint32_t r = 0; r < q->rows; r++)
        for (uint32_t c = 0; c < q->cols; c++) {
            float v = lq_rng_normal(rng) / 16;
            lq_dtype_encode(of[q->sch.grid.kind - LQ_GRID_F16], &v, q->codes + r * q->row_bytes + (size_t)c * q->sch.grid.bits / 8, 1);
        }
}

void ck_fill(lq_qtensor *q, const lq_scheme *s, uint32_t rows, uint32_t cols, lq_rng *rng, bool hostile) {
    if (lq_qtensor_init(NULL, q, s, (lq_slot){0}, rows, cols)) abort();
    for (uint32_t r = 0; r < rows; r++)
        for (size_t i = 0; i < ((size_t)cols * s->grid.bits + 7) / 8; i++)
            q->codes[r * q->row_bytes + i] = (uint8_t)(hostile && r % 2 ? 0xff : lq_rng_u32(rng));
    if (s->grid.kind == LQ_GRID_E4M3) /* no NaN */
        for (size_t i = 0; i < rows * q->row_bytes; i++) q->codes[i] &= 0xf7;
    if (s->grid.kind >= LQ_GRID_F16) fill_float_codes(q, rng);
    if (s->scale.dtype != LQ_NONE) fill_plane(q, &s->scale, &q->scale, rows, cols, rng, hostile);
    if (s->zero_kind != LQ_ZERO_NONE) fill_plane(q, &s->zero, &q->zero, rows, cols, rng, hostile);
    for (size_t i = 0; q->lut && i < (size_t)q->n_lut << s->grid.bits && s->grid.bias == LQ_LUT_DATA; i++) q->lut[i] = lq_rng_normal(rng);
    for (uint32_t c = 0; q->perm && c < cols; c++) { /* inside-out shuffle */
        uint32_t j = lq_rng_below(rng, c + 1);
        q->perm[c] = q->perm[j];
        q->perm[j] = c;
    }
    fill_extras(q, rng);
}
