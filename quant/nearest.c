/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Every candidate has a cost: below VALUES its values are sure to fit, below ANEW they may, from there the codes are others. Costs of grid,
 * zero, scale, tile, extras and activations add up, so that of two that fit the simpler change wins. */
#include "quant/nearest.h"

#include "core/blocks.h"
#include "quant/types.h"

#include <stdio.h>

enum { VALUES = 100, ANEW = 10000, NEVER = 1000000 };

typedef struct search {
    const lq_format *format;
    const lq_scheme *have;
    uint32_t rows, cols;
    int best;
    lq_scheme found;
} search;

/* ---- costs ---- */

static bool is_whole(const lq_grid *g) { return g->kind == LQ_GRID_LUT && (g->bias == LQ_LUT_SIGN || g->bias == LQ_LUT_QUAD); }

static int grid_cost(const lq_scheme *a, const lq_scheme *b) {
    const lq_grid *x = &a->grid, *y = &b->grid;
    int more = y->bits - x->bits;
    bool wider = a->zero_kind == LQ_ZERO_CODE && b->zero_kind == LQ_ZERO_NONE; /* q - z needs a bit more than q */
    if (x->kind == y->kind && x->bits == y->bits && x->bias == y->bias) return wider && x->kind == LQ_GRID_INT ? VALUES : 0;
    if (x->kind == LQ_GRID_INT && y->kind == LQ_GRID_INT) return more >= wider ? more + (x->bias != y->bias) : VALUES + 10 * (1 - more);
    if (is_whole(x) && y->kind == LQ_GRID_INT) return y->bits > x->bits ? more : VALUES;
    if (x->kind == LQ_GRID_INT && is_whole(y)) return VALUES;
    if (x->kind == LQ_GRID_E2M1 && y->kind == LQ_GRID_INT) return y->bits > 4 ? 10 + more : VALUES + 50;
    if (x->kind == LQ_GRID_INT && y->kind == LQ_GRID_E2M1) return x->bits < 4 && a->zero_kind == LQ_ZERO_NONE ? 10 : VALUES + 50;
    if ((x->kind == LQ_GRID_E2M1 || x->kind == LQ_GRID_INT) && y->kind == LQ_GRID_E4M3) return x->bits <= 4 ? 10 : VALUES + 50;
    if (y->kind == LQ_GRID_LUT && y->bias == LQ_LUT_DATA && b->extra & LQ_X_LUT_PER_ROW && more >= 0 && !a->scale.tile_c && a->scale.tile_r != LQ_FLAT) return VALUES + more;
    return ANEW + 100 * (more < 0 ? 1 - 4 * more : more) + (y->kind != LQ_GRID_INT);
}

static int zero_cost(const lq_scheme *a, const lq_scheme *b) {
    if (a->zero_kind == LQ_ZERO_NONE) return b->zero_kind == LQ_ZERO_NONE ? 0 : b->zero_kind == LQ_ZERO_CODE ? 2 : 3;
    bool whole = a->zero_kind == LQ_ZERO_CODE && a->zero.dtype == LQ_U8;
    if (b->zero_kind == LQ_ZERO_NONE) return whole ? 1 : VALUES + 200; /* the grid's cost says whether there is room */
    if (a->zero_kind == b->zero_kind) return a->zero.dtype == b->zero.dtype || b->zero.dtype == LQ_F32 ? 0 : VALUES + (b->zero.dtype == LQ_U8 ? 150 : 20);
    if (b->zero_kind == LQ_ZERO_MIN) return b->zero.dtype == LQ_F32 ? 4 : VALUES + 20;
    return VALUES + (b->zero.dtype == LQ_U8 ? 100 : 50);
}

/* a: where values come from. Ranges apart, how many of the bits are kept. */
static int scale_cost(const lq_plane_desc *a, const lq_plane_desc *b) {
    if (a->dtype == LQ_NONE || b->dtype == LQ_NONE) return a->dtype == b->dtype ? 0 : 5;
    if (a->dtype == b->dtype && a->parent == b->parent && a->span == b->span) return b->sig == a->sig || (!b->sig && b->dtype != LQ_U8 && b->dtype != LQ_I8) ? a->sig != b->sig : VALUES + 5;
    if (b->dtype == LQ_F32 && b->parent == LQ_NONE) return b->sig ? VALUES + 5 : 3;
    if (b->parent != LQ_NONE) return VALUES + 40;
    if (a->dtype == LQ_E8M0 && b->dtype == LQ_BF16) return 1;
    if (a->dtype == LQ_F16 && b->dtype == LQ_BF16 && a->sig && a->sig <= 8) return 1;
    if (a->dtype == LQ_BF16 && b->dtype == LQ_F16 && !b->sig) return VALUES;
    return VALUES + (b->sig ? 30 : b->dtype == LQ_F16 ? 10 : b->dtype == LQ_E8M0 ? 60 : 20);
}

static uint32_t whole(uint32_t tile, uint32_t size) { return tile && tile < size ? tile : size; }

static int ratio(uint32_t a, uint32_t b) {
    int n = 0;
    for (; b && a / b > 1; a /= 2) n++;
    return n;
}

/* Is every tile of b inside one of a? */
static int tile_cost(const search *s, const lq_plane_desc *a, const lq_plane_desc *b) {
    if (a->dtype == LQ_NONE || b->dtype == LQ_NONE) return 0;
    bool flat_a = a->tile_r == LQ_FLAT, flat_b = b->tile_r == LQ_FLAT;
    uint32_t cols = s->cols;
    if (flat_a && flat_b) return a->tile_c == b->tile_c ? 0 : a->tile_c % b->tile_c == 0 ? ratio(a->tile_c, b->tile_c) : VALUES + 30;
    if (flat_a || flat_b) { /* the same where rows are whole blocks */
        uint32_t ta = whole(a->tile_c, cols), tb = whole(b->tile_c, cols);
        bool rows = (flat_a || a->tile_r == 1 || !a->tile_r) && (flat_b || b->tile_r == 1) && cols % ta == 0 && ta % tb == 0;
        return rows ? 1 + ratio(ta, tb) : VALUES + 30;
    }
    uint32_t ra = whole(a->tile_r, s->rows), rb = whole(b->tile_r, s->rows), ta = whole(a->tile_c, cols), tb = whole(b->tile_c, cols);
    if (ra % rb == 0 && ta % tb == 0) return ratio(ra, rb) + ratio(ta, tb);
    return VALUES + 30 + ratio(rb, ra) + ratio(tb, ta);
}

static int extra_cost(const lq_scheme *a, const lq_scheme *b) {
    const uint32_t added = LQ_X_OUTLIERS | LQ_X_OUTLIER_COLS | LQ_X_LOWRANK | LQ_X_PRESCALE;
    if (b->extra & ~a->extra & added || (b->extra & LQ_X_LOWRANK && a->rank != b->rank)) return NEVER;
    if (a->extra & ~b->extra & added) return VALUES + 300;
    if (b->extra & ~a->extra & LQ_X_PERM) return 5;
    bool freed = a->extra & ~b->extra & LQ_X_PERM;
    return freed && a->scale.tile_c ? VALUES + 10 : 0;
}

static bool act_eq(const lq_act *a, const lq_act *b) {
    return a->kind == b->kind && a->dtype == b->dtype && a->tile == b->tile && a->outlier == b->outlier && a->scope == b->scope;
}

static int act_cost(const lq_act *a, const lq_act *b) {
    if (b->kind == LQ_ACT_NONE) return a->kind == LQ_ACT_NONE ? 0 : 20;
    if (b->kind == LQ_ACT_STATIC && a->kind != LQ_ACT_STATIC) return NEVER;
    return a->kind == LQ_ACT_NONE ? 60 : act_eq(a, b) ? 0 : 30;
}

static int cost(const search *s, const lq_scheme *b) {
    const lq_scheme *a = s->have;
    int plane = tile_cost(s, &a->scale, &b->scale);
    if (a->zero_kind != LQ_ZERO_NONE && b->zero_kind != LQ_ZERO_NONE) plane += tile_cost(s, &a->zero, &b->zero);
    int grid = grid_cost(a, b);
    if (grid >= ANEW && b->scale.tile_r == 1) plane += ratio(whole(b->scale.tile_c, s->cols), 128) + ratio(128, whole(b->scale.tile_c, s->cols)); /* a fair group */
    return grid + zero_cost(a, b) + scale_cost(&a->scale, &b->scale) + plane + extra_cost(a, b) + act_cost(&a->act, &b->act);
}

/* ---- candidates ---- */

static void offer(search *s, const lq_scheme *b) {
    int c = cost(s, b);
    if (c >= s->best || s->format->accept(NULL, b, s->rows, s->cols)) return;
    s->best = c;
    s->found = *b;
}

static void offer_extras(search *s, lq_scheme b) {
    b.extra = s->have->extra;
    offer(s, &b);
    b.extra &= ~(uint32_t)LQ_X_PERM;
    offer(s, &b);
    b.extra &= LQ_X_LUT_PER_ROW;
    b.rank = b.sparse = 0;
    offer(s, &b);
}

static void offer_acts(search *s, lq_scheme b) {
    static const lq_act dynamic[] = {{.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8}, {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_E4M3}, {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .outlier = 6},
                                     {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .scope = LQ_ACT_BITNET}};
    b.act = s->have->act;
    offer_extras(s, b);
    b.act = (lq_act){0};
    offer_extras(s, b);
    for (size_t i = 0; i < sizeof dynamic / sizeof *dynamic; i++) {
        b.act = dynamic[i];
        offer_extras(s, b);
    }
}

static void offer_zeros(search *s, lq_scheme b) {
    static const lq_dtype dtypes[] = {LQ_U8, LQ_F16, LQ_BF16, LQ_F32};
    uint32_t half = b.grid.kind == LQ_GRID_INT ? 1u << (b.grid.bits - 1) : 0;
    b.zero_kind = LQ_ZERO_NONE;
    b.zero = (lq_plane_desc){0};
    if (b.grid.kind == LQ_GRID_INT && b.grid.bits == s->have->grid.bits && s->have->grid.kind == LQ_GRID_INT && s->have->zero_kind == LQ_ZERO_NONE) b.grid.bias = s->have->grid.bias;
    offer_acts(s, b);
    if (b.grid.kind != LQ_GRID_INT) return;
    b.grid.bias = (int32_t)half;
    offer_acts(s, b);
    b.grid.bias = 0;
    for (size_t i = 0; i < 4; i++) {
        b.zero = (lq_plane_desc){.dtype = dtypes[i], .tile_r = b.scale.tile_r, .tile_c = b.scale.tile_c};
        b.zero_kind = LQ_ZERO_CODE;
        offer_acts(s, b);
        b.zero_kind = LQ_ZERO_MIN;
        if (i) offer_acts(s, b);
    }
}

static void offer_scales(search *s, lq_scheme b) {
    static const lq_plane_desc kinds[] = {{.dtype = LQ_F16, .sig = 8}, {.dtype = LQ_F16}, {.dtype = LQ_BF16}, {.dtype = LQ_F32}, {.dtype = LQ_F32, .sig = LQ_SIG_127TH},
                                          {.dtype = LQ_F32, .sig = LQ_SIG_INVERSE}, {.dtype = LQ_E8M0}, {.dtype = LQ_E4M3, .parent = LQ_F32}};
    static const uint32_t tiles[] = {0, 256, 128, 64, 32, 16};
    if (s->have->scale.dtype == LQ_NONE) {
        offer_zeros(s, b);
        return;
    }
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        b.scale = kinds[k];
        b.scale.tile_r = s->have->scale.tile_r;
        b.scale.tile_c = s->have->scale.tile_c;
        offer_zeros(s, b);
        for (size_t t = 0; t < sizeof tiles / sizeof *tiles; t++) {
            b.scale.tile_c = tiles[t];
            if (tiles[t] > s->cols) continue;
            b.scale.tile_r = 1;
            offer_zeros(s, b);
            b.scale.tile_r = LQ_FLAT;
            if (tiles[t] && b.grid.kind == LQ_GRID_LUT) offer_zeros(s, b);
        }
        b.scale.tile_r = b.scale.tile_c = 0;
        offer_zeros(s, b);
        b.scale.tile_r = LQ_FLAT;
        b.scale.tile_c = s->have->scale.tile_c;
        if (b.scale.tile_c && b.grid.kind == LQ_GRID_LUT) offer_zeros(s, b);
    }
}

static void offer_grids(search *s) {
    lq_scheme b = *s->have;
    offer_scales(s, b);
    for (uint8_t bits = 2; bits <= 8; bits++) {
        b.grid = (lq_grid){.kind = LQ_GRID_INT, .bits = bits, .vec = 1, .bias = 1 << (bits - 1)};
        b.extra = s->have->extra & ~(uint32_t)LQ_X_LUT_PER_ROW;
        offer_scales(s, b);
    }
}

static void offer_named(search *s) {
    static const int64_t groups[] = {-1, 128, 64, 32};
    for (const lq_type *t = lq_types; t->name; t++)
        for (size_t g = 0; g < 4 && !t->keep; g++) {
            lq_want w = {.knobs = t->knobs, .scheme = t->scheme};
            lq_want_group(&w, groups[g]);
            offer(s, &w.scheme);
            w.scheme.act = s->have->act;
            offer(s, &w.scheme);
        }
    lq_scheme b;
    for (int t = 0; t < LQ_DTYPE_N; t++)
        if (lq_gguf_scheme((lq_dtype)t, &b)) offer(s, &b);
}

lq_nearness lq_nearest_scheme(const lq_format *f, const lq_scheme *have, uint32_t rows, uint32_t cols, lq_scheme *want) {
    search s = {f, have, rows, cols, NEVER, {{0}, 0, {0}, {0}, {0}, 0, 0, 0}};
    if (!f->accept(NULL, have, rows, cols)) {
        *want = *have;
        return LQ_NEAR_EXACT;
    }
    offer_grids(&s);
    offer_named(&s);
    *want = s.found;
    return s.best < VALUES ? LQ_NEAR_EXACT : s.best < ANEW ? LQ_NEAR_VALUES : s.best < NEVER ? LQ_NEAR_ANEW : LQ_NEAR_NONE;
}

const char *lq_nearest_formats(const lq_scheme *s, uint32_t rows, uint32_t cols, char *buf, size_t n) {
    size_t at = 0;
    buf[0] = 0;
    for (const lq_format *const *f = lq_formats; *f && at < n; f++)
        if (!(*f)->accept(NULL, s, rows, cols)) at += (size_t)snprintf(buf + at, n - at, "%s%s", at ? ", " : "", (*f)->name);
    return buf;
}
