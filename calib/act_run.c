/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* y = x^ W^T with x^ the rounded activations of calib/act.h and W in codes, A(q) s - z per tile:
 *
 *   y[t][r] = sum over segments g of  step[t][g] * ( s[r][g] * sum_c code[t][c] A(q[r][c])  -  z' * sum_c code[t][c] ),
 *   z' = s z (zero CODE) or z (zero MIN);  a segment: columns that share a weight tile and an activation tile
 *
 * The inner sums of integer codes are exact: panels of at most lq_act_panel() columns through sgemm, where no partial sum
 * reaches 2^24, added in fp64. Everything outside them is fp64 in a fixed order, rounded once. FP8 and table grids: the inner
 * sum is fp32. Packed codes have a kernel for the integer sums and the formula around them, with the same bits
 * (K types are summed by whole spans there, kernels/spans.h: the same but for fp64's last bit). What is left out of the codes (outliers of
 * LLM.int8, kept columns, sparse values, low rank) multiplies the activations as they are. Sources: LLM.int8 (arXiv 2208.07339), ZeroQuant (2206.01861); algorithms.md 2, 3. */
#include "calib/act.h"
#include "calib/run.h"
#include "core/num.h"
#include "kernels/linalg.h"

#include <math.h>
#include <string.h>

enum { TOKENS = 64, ROWS = 128 };             /* of one product */
enum { FEW_TOKENS = 32, FEW_ROWS = 64, WORD = 64 }; /* of one product of packed codes; bits of a word */

typedef struct seg { uint32_t c0, n; } seg;

typedef struct call {
    const lq_kernels *k;
    const lq_work *work;
    const lq_linear *lin;
    const lq_qtensor *q;
    lq_qtensor bare;            /* its dequantization is A(code), or, when `whole`, the weight without the extras */
    const float *x, *seen;      /* [n][cols]; seen: what is rounded to codes, x itself but for bitsandbytes */
    float *half;                /* seen, where it is not x */
    float *y, *code, *step;     /* [n][rows]; [n][cols] in stored order; [n][tiles] */
    uint32_t n, panel, tiles, exact, words;
    bool whole, plain;          /* plain: packed, nothing left out, columns as they are */
    uint8_t *apart;             /* [cols] */
    const lq_packed *p;         /* NULL: these are not packed */
    char *packed;               /* what lq_packed_i_of reads; instead of code and step */
    uint64_t *out;              /* [n][words] bit c: column c of the token is an outlier; only where there may be some */
    uint32_t *used, n_used;     /* columns that hold an outlier in some token, ascending */
    uint32_t *place;            /* [cols] where in `used` */
    double *low;                /* [n][rank] b x */
    float *low_b;               /* [rank][cols] */
    uint32_t *bad;              /* [n] first column that is not finite, cols when none */
} call;

static uint32_t next_edge(uint32_t c, uint32_t tile, uint32_t cols) { return tile && cols - c > tile - c % tile ? c + tile - c % tile : cols; }

static uint32_t plane_tile(const lq_plane_desc *d) { return d->dtype == LQ_NONE ? 0 : d->tile_c; }

/* Are the tiles of a plane runs of columns that begin alike in every row? */
static bool regular(const lq_plane_desc *d, uint32_t cols) { return d->dtype == LQ_NONE || d->tile_r != LQ_FLAT || (d->tile_c && cols % d->tile_c == 0); }

/* From the one before; g = {0, 0} before the first. */
static bool next_seg(const call *a, seg *g) {
    const lq_scheme *s = &a->q->sch;
    uint32_t cols = a->q->cols, c = g->c0 + g->n, scale = a->whole ? 0 : plane_tile(&s->scale), zero = a->whole || s->zero_kind == LQ_ZERO_NONE ? 0 : plane_tile(&s->zero);
    if (c >= cols) return false;
    uint32_t end = next_edge(c, scale, cols);
    if (next_edge(c, zero, cols) < end) end = next_edge(c, zero, cols);
    if (next_edge(c, s->act.tile, cols) < end) end = next_edge(c, s->act.tile, cols);
    *g = (seg){c, end - c};
    return true;
}

static void make_bare(call *a) {
    const lq_scheme *s = &a->q->sch;
    a->whole = !regular(&s->scale, a->q->cols) || (s->zero_kind && !regular(&s->zero, a->q->cols)) || (a->q->perm && s->act.tile);
    a->exact = a->whole ? 0 : lq_act_panel(s);
    a->bare = *a->q;
    a->bare.sch.extra &= LQ_X_PERM | LQ_X_LUT_PER_ROW;
    if (a->whole) return;
    a->bare.sch.scale = (lq_plane_desc){0};
    a->bare.sch.zero = (lq_plane_desc){0};
    a->bare.sch.zero_kind = LQ_ZERO_NONE;
    a->bare.sch.extra &= ~(uint32_t)LQ_X_PERM;
    a->bare.perm = NULL;
}

static bool has_outliers(const call *a) { return a->q->sch.act.outlier > 0; }
static bool is_out(const call *a, float x, uint32_t c) { return !a->apart[c] && fabsf(x) >= a->q->sch.act.outlier; }

static bool bit(const uint64_t *set, uint32_t c) { return set[c / WORD] >> c % WORD & 1; }

/* The first member from c on; words * WORD when there is none. */
static uint32_t next_out(const call *a, const uint64_t *set, uint32_t c) {
    for (uint32_t w = c / WORD; w < a->words; w++, c = w * WORD) {
        uint64_t left = set[w] >> c % WORD;
        if (left) return c + (uint32_t)__builtin_ctzll(left);
    }
    return a->words * WORD;
}

static uint32_t stored_col(const call *a, uint32_t c) { /* outliers under a permutation are few */
    for (uint32_t i = 0; !a->whole && a->q->perm && i < a->q->cols; i++)
        if (a->q->perm[i] == c) return i;
    return c;
}

/* Columns that hold an outlier in any token belong to every token (bitsandbytes). */
static void find_outliers(call *a, uint64_t *any) {
    size_t row = a->words * sizeof *any;
    memset(any, 0, row);
    memset(a->out, 0, a->n * row);
    for (uint32_t t = 0; t < a->n; t++) {
        uint64_t *mine = a->out + (size_t)t * a->words;
        for (uint32_t c = 0; c < a->q->cols; c++)
            if (is_out(a, a->seen[(size_t)t * a->q->cols + c], c)) mine[c / WORD] |= (uint64_t)1 << c % WORD;
        for (uint32_t w = 0; w < a->words; w++) any[w] |= mine[w];
    }
    for (uint32_t t = 0; a->q->sch.act.scope == 1 && t < a->n; t++) memcpy(a->out + (size_t)t * a->words, any, row);
    for (uint32_t c = next_out(a, any, 0); c < a->q->cols; c = next_out(a, any, c + 1)) {
        a->place[c] = a->n_used;
        a->used[a->n_used++] = c;
    }
}

/* Through floats, in this worker's scratch where they are not kept. */
static uint32_t round_token(const call *a, size_t t) {
    const lq_qtensor *q = a->q;
    uint32_t cols = q->cols, bad;
    float *mine = lq_work_mine(a->work), *code = a->p ? mine + cols : a->code + t * cols, *step = a->p ? mine + 2 * (size_t)cols : a->step + t * a->tiles;
    if (a->bare.perm || !q->perm) mine = code;
    bad = lq_act_quantize(&q->sch.act, q->act_scale, a->apart, a->seen + t * cols, cols, mine, step);
    if (bad < cols) return bad;
    for (uint32_t c = 0; a->out && c < cols; c++)
        if (bit(a->out + t * a->words, c)) mine[c] = 0;
    for (uint32_t c = 0; mine != code && c < cols; c++) code[c] = mine[q->perm[c]];
    if (a->p) lq_packed_i_put(a->p, code, step, lq_packed_i_token(a->p, a->n, a->packed, (uint32_t)t));
    return cols;
}

static void quantize_token(void *arg, size_t t) {
    call *a = arg;
    uint32_t cols = a->q->cols, rank = a->q->sch.rank;
    const float *x = a->x + t * cols;
    a->bad[t] = a->plain ? lq_act_pack(a->k, a->p, x, lq_packed_i_token(a->p, a->n, a->packed, (uint32_t)t)) : round_token(a, t);
    for (uint32_t k = 0; a->low && k < rank; k++) a->low[t * rank + k] = a->k->dot(a->low_b + (size_t)k * cols, x, cols);
}

/* ---- products ---- */

typedef struct block { /* tokens [t0, t0 + n) times rows [r0, r0 + nr) */
    uint32_t t0, n, r0, nr;
    uint32_t ld;       /* of acc: nr, or whole tiles */
    float *w;          /* [nr][cols]; packed: unused */
    double *kept;      /* [n_used][nr] the weights that outliers multiply */
    double *sum, *acc; /* [n][nr] of a segment, [n][ld] of all */
    float *part;       /* [n][nr] */
} block;

/* sum[n][nr] = codes times A over the segment's columns. */
static void inner_sums(const call *a, const block *b, const seg *g) {
    uint32_t cols = a->q->cols, step = a->exact ? a->exact : g->n;
    memset(b->sum, 0, (size_t)b->n * b->nr * sizeof *b->sum);
    for (uint32_t c = g->c0; c < g->c0 + g->n; c += step) {
        uint32_t k = g->c0 + g->n - c < step ? g->c0 + g->n - c : step;
        lq_gemm_nt(a->code + (size_t)b->t0 * cols + c, cols, b->w + c, cols, b->part, b->nr, b->n, b->nr, k, false);
        for (size_t i = 0; i < (size_t)b->n * b->nr; i++) b->sum[i] += (double)b->part[i];
    }
}

static double code_sum(const call *a, uint32_t t, const seg *g) {
    double sum = 0;
    const float *code = a->code + (size_t)t * a->q->cols;
    for (uint32_t c = g->c0; c < g->c0 + g->n; c++) sum += (double)code[c];
    return sum;
}

static void add_segment(const call *a, const block *b, const seg *g) {
    const lq_qtensor *q = a->q;
    const lq_scheme *s = &q->sch;
    double scale[ROWS], zero[ROWS];
    bool has_zero = !a->whole && s->zero_kind != LQ_ZERO_NONE;
    inner_sums(a, b, g);
    for (uint32_t r = 0; r < b->nr; r++) {
        scale[r] = a->whole || s->scale.dtype == LQ_NONE ? 1 : (double)lq_plane_get(&s->scale, &q->scale, lq_plane_index(&s->scale, q->cols, b->r0 + r, g->c0));
        zero[r] = has_zero ? (double)lq_plane_get(&s->zero, &q->zero, lq_plane_index(&s->zero, q->cols, b->r0 + r, g->c0)) : 0;
        if (s->zero_kind == LQ_ZERO_CODE) zero[r] *= scale[r];
    }
    for (uint32_t t = 0; t < b->n; t++) {
        double step = (double)a->step[(size_t)(b->t0 + t) * a->tiles + (s->act.tile ? g->c0 / s->act.tile : 0)];
        double ones = has_zero ? code_sum(a, b->t0 + t, g) : 0, *acc = b->acc + (size_t)t * b->ld;
        const double *sum = b->sum + (size_t)t * b->nr;
        for (uint32_t r = 0; r < b->nr; r++) acc[r] += step * (scale[r] * sum[r] - zero[r] * ones);
    }
}

/* The weight of a code that bare holds as A(code). */
static double weight_of(const call *a, float v, uint32_t r, uint32_t c) {
    const lq_scheme *s = &a->q->sch;
    double scale = 1, zero = 0;
    if (a->whole) return (double)v;
    if (s->scale.dtype != LQ_NONE) scale = (double)lq_plane_get(&s->scale, &a->q->scale, lq_plane_index(&s->scale, a->q->cols, r, c));
    if (s->zero_kind != LQ_ZERO_NONE) zero = (double)lq_plane_get(&s->zero, &a->q->zero, lq_plane_index(&s->zero, a->q->cols, r, c));
    return s->zero_kind == LQ_ZERO_MIN ? scale * (double)v - zero : scale * ((double)v - zero);
}

/* A block's weights of the columns that outliers multiply, decoded once for all tokens. */
static void keep_used(const call *a, const block *b) {
    for (uint32_t i = 0; i < a->n_used; i++) {
        uint32_t c = stored_col(a, a->used[i]);
        for (uint32_t r = 0; r < b->nr; r++) {
            float v = a->p ? lq_grid_value(a->q, b->r0 + r, lq_packed_code(a->p, b->r0 + r, c)) : b->w[(size_t)r * a->q->cols + c];
            b->kept[(size_t)i * b->nr + r] = weight_of(a, v, b->r0 + r, c);
        }
    }
}

static void add_outliers(const call *a, const block *b) {
    uint32_t cols = a->q->cols;
    for (uint32_t t = 0; t < b->n; t++) {
        const uint64_t *set = a->out + (size_t)(b->t0 + t) * a->words;
        double *acc = b->acc + (size_t)t * b->ld;
        for (uint32_t c = next_out(a, set, 0); c < cols; c = next_out(a, set, c + 1)) {
            const double *w = b->kept + (size_t)a->place[c] * b->nr;
            double x = (double)a->x[(size_t)(b->t0 + t) * cols + c];
            for (uint32_t r = 0; r < b->nr; r++) acc[r] += x * w[r];
        }
    }
}

static void add_extras(const call *a, const block *b) {
    const lq_qtensor *q = a->q;
    uint32_t extra = q->sch.extra, rank = q->sch.rank;
    for (uint32_t t = 0; t < b->n; t++) {
        const float *x = a->x + (size_t)(b->t0 + t) * q->cols;
        for (uint32_t r = 0; r < b->nr; r++) {
            size_t row = b->r0 + r;
            double sum = 0;
            for (uint32_t i = 0; extra & LQ_X_OUTLIER_COLS && i < q->outlier_cols.n; i++)
                sum += (double)x[q->outlier_cols.idx[i]] * (double)lq_f16_f32(q->outlier_cols.v[row * q->outlier_cols.n + i]);
            bool sparse = extra & LQ_X_OUTLIERS && q->outliers.n;
            for (uint32_t i = sparse ? q->outliers.row[row] : 0; sparse && i < q->outliers.row[row + 1]; i++)
                if (!a->apart[q->outliers.col[i]]) sum += (double)x[q->outliers.col[i]] * (double)lq_f16_f32(q->outliers.v[i]);
            for (uint32_t k = 0; a->low && k < rank; k++) sum += a->low[(size_t)(b->t0 + t) * rank + k] * (double)lq_f16_f32(q->lr.a[row * rank + k]);
            b->acc[(size_t)t * b->ld + r] += sum;
        }
    }
}

static bool adds_extras(const call *a) { return a->q->sch.extra & (LQ_X_OUTLIERS | LQ_X_OUTLIER_COLS | LQ_X_LOWRANK); }

static void add_rest(const call *a, const block *b) {
    if (a->out) add_outliers(a, b);
    if (adds_extras(a)) add_extras(a, b);
}

/* Behind what dequant and rounding take of a worker's scratch (lq_linear_scratch). */
static double *kept_of(const call *a) { return (double *)(void *)(lq_work_mine(a->work) + (size_t)a->panel * a->q->cols); }

static void product_slice(void *arg, size_t i) {
    const call *a = arg;
    double sum[TOKENS * ROWS], acc[TOKENS * ROWS];
    float part[TOKENS * ROWS];
    block b = {.r0 = (uint32_t)i * a->panel, .w = lq_work_mine(a->work), .sum = sum, .acc = acc, .part = part, .kept = kept_of(a)};
    b.nr = b.ld = a->q->rows - b.r0 < a->panel ? a->q->rows - b.r0 : a->panel;
    a->k->dequant(&a->bare, b.r0, b.nr, b.w);
    if (a->out) keep_used(a, &b);
    for (b.t0 = 0; b.t0 < a->n; b.t0 += TOKENS) {
        b.n = a->n - b.t0 < TOKENS ? a->n - b.t0 : TOKENS;
        memset(acc, 0, (size_t)b.n * b.ld * sizeof *acc);
        for (seg g = {0}; next_seg(a, &g);) add_segment(a, &b, &g);
        add_rest(a, &b);
        for (uint32_t t = 0; t < b.n; t++) a->k->narrow(acc + (size_t)t * b.ld, a->y + (size_t)(b.t0 + t) * a->q->rows + b.r0, b.nr);
    }
}

static uint32_t packed_rows(const call *a) { return a->panel < FEW_ROWS ? a->panel : FEW_ROWS; }

static void packed_slice(void *arg, size_t i) {
    const call *a = arg;
    double acc[FEW_TOKENS * FEW_ROWS];
    block b = {.r0 = (uint32_t)i * packed_rows(a), .acc = acc, .kept = kept_of(a)};
    b.nr = a->q->rows - b.r0 < packed_rows(a) ? a->q->rows - b.r0 : packed_rows(a);
    b.ld = (b.nr + LQ_TILE - 1) / LQ_TILE * LQ_TILE;
    if (a->out) keep_used(a, &b);
    for (b.t0 = 0; b.t0 < a->n; b.t0 += FEW_TOKENS) {
        b.n = a->n - b.t0 < FEW_TOKENS ? a->n - b.t0 : FEW_TOKENS;
        lq_packed_i x = lq_packed_i_of(a->p, a->n, a->packed, b.t0, b.n);
        a->k->packed_idot(a->p, b.r0 / LQ_TILE, b.ld / LQ_TILE, &x, acc);
        add_rest(a, &b);
        for (uint32_t t = 0; t < b.n; t++) a->k->narrow(acc + (size_t)t * b.ld, a->y + (size_t)(b.t0 + t) * a->q->rows + b.r0, b.nr);
    }
}

/* ---- a call ---- */

/* bitsandbytes takes codes from the activations' F16; outliers multiply as they are. What F16 cannot hold is an outlier in any case. */
static void see_half(call *a) {
    size_t n = (size_t)a->n * a->q->cols;
    for (size_t i = 0; i < n; i++) {
        float h = lq_f16_f32(lq_f32_f16(a->x[i]));
        a->half[i] = isinf(h) ? a->x[i] : h;
    }
    a->seen = a->half;
}

typedef struct room { char *at; size_t used; } room; /* at NULL: only counted */

static void *take(room *m, size_t bytes) {
    void *v = m->at ? m->at + m->used : NULL;
    m->used += (bytes + 63) / 64 * 64;
    return v;
}

/* Everything but k, work, x and y. Returns a set of columns for find_outliers. */
static uint64_t *lay_out(call *a, const lq_linear *lin, uint32_t n, room *m) {
    const lq_qtensor *q = lin->q;
    const lq_scheme *s = &q->sch;
    size_t rank = s->extra & LQ_X_LOWRANK ? s->rank : 0;
    a->lin = lin, a->q = q, a->p = lin->packed, a->n = n;
    a->tiles = lq_act_tiles(&s->act, q->cols);
    a->words = (q->cols + WORD - 1) / WORD;
    make_bare(a);
    a->plain = a->p && s->act.dtype == LQ_I8 && s->act.scope != 1 && !(s->act.outlier > 0) && !q->perm && !(s->extra & LQ_X_OUTLIER_COLS);
    if (a->p) a->packed = take(m, lq_packed_i_bytes(a->p, n));
    else {
        a->code = take(m, (size_t)n * q->cols * sizeof *a->code);
        a->step = take(m, (size_t)n * a->tiles * sizeof *a->step);
    }
    a->bad = take(m, n * sizeof *a->bad);
    a->apart = take(m, q->cols);
    if (s->act.scope == 1) a->half = take(m, (size_t)n * q->cols * sizeof *a->half);
    if (rank) a->low = take(m, n * rank * sizeof *a->low);
    if (rank) a->low_b = take(m, rank * q->cols * sizeof *a->low_b);
    if (!has_outliers(a)) return NULL;
    a->used = take(m, q->cols * sizeof *a->used);
    a->place = take(m, q->cols * sizeof *a->place);
    a->out = take(m, (size_t)n * a->words * sizeof *a->out);
    return take(m, a->words * sizeof *a->out);
}

size_t lq_act_shared(const lq_linear *lin, uint32_t n) {
    call a = {0};
    room m = {0};
    lay_out(&a, lin, n, &m);
    return m.used;
}

static void prepare(call *a, uint64_t *any) {
    const lq_qtensor *q = a->q;
    memset(a->apart, 0, q->cols);
    for (uint32_t i = 0; q->sch.extra & LQ_X_OUTLIER_COLS && i < q->outlier_cols.n; i++) a->apart[q->outlier_cols.idx[i]] = 1;
    a->seen = a->x;
    if (a->half) see_half(a);
    if (a->out) find_outliers(a, any);
    for (size_t i = 0; a->low && i < (size_t)q->sch.rank * q->cols; i++) a->low_b[i] = a->apart[i % q->cols] ? 0 : lq_f16_f32(q->lr.b[i]); /* kept columns are the whole weight */
}

void lq_act_run(const lq_kernels *k, const lq_work *w, const lq_linear *lin, uint32_t panel, const float *x, uint32_t n, float *y) {
    call a = {.k = k, .work = w, .x = x, .y = y, .panel = panel < ROWS ? panel : ROWS};
    room m = {w->shared, 0};
    uint64_t *any = lay_out(&a, lin, n, &m), work = (uint64_t)lin->rows * lin->cols;
    lq_fault *fault = w->fault + lq_worker();
    prepare(&a, any);
    lq_spread(n, (uint64_t)n * lin->cols, quantize_token, &a);
    for (uint32_t t = 0; t < n && !fault->st; t++)
        if (a.bad[t] < lin->cols) *fault = (lq_fault){LQ_ERR_QUALITY, lin->row ? lin->row->name : NULL, a.bad[t]};
    if (fault->st) memset(y, 0, (size_t)n * lin->rows * sizeof *y);
    else if (a.p) lq_spread((lin->rows + packed_rows(&a) - 1) / packed_rows(&a), work * n, packed_slice, &a);
    else lq_spread((lin->rows + a.panel - 1) / a.panel, work * n, product_slice, &a);
}
