/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Packed tiles times rounded activations in 256-bit vectors; the file that includes this has defined what differs between instruction
 * sets, above it:
 *
 *   lq_dot256(acc, w, x, form)   acc + the products of adjacent bytes of w (unsigned) and x (signed) over four pairs w[i], x[i]; form 0:
 *                                w up to 31, 1: up to 127, 2: any, LQ_DOT_SHIFT times x less
 *
 * Codes, or a table's whole numbers less the smallest, are such unsigned weights; the constant and the zero take their products with the
 * sum of x. Few tokens: codes are cut out of their fields once for up to four of them. Many: a part of a segment becomes bytes
 * in the order of eight-bit fields, in the cache. */
#include "kernels/spans.h"
#include "kernels/x86/packed_avx2.h"

enum { WHOLE_PIECE = 1024, WHOLE_FEW = 8 };

typedef struct whole { /* A(code) = table[code] + least, or code + least */
    __m256i table;
    int32_t least;
} whole;

typedef struct tokens { const int8_t *x; uint32_t ld; } tokens;

LQ_INLINE __m256i weights(const whole *a, lq_step s, int f0, int f1, bool table, int h, int q) {
    __m256i w = lq_quad256(s, f0, f1, h, q);
    return table ? _mm256_shuffle_epi8(a->table, w) : w;
}

/* acc[2 n] += the sums of columns [c, end) of n tokens */
LQ_INLINE void add_columns(const whole *a, const uint8_t *codes, uint32_t c, uint32_t end, tokens v, __m256i *acc, int f0, int f1, bool table, int form, int n) {
    for (; c < end; c += LQ_STEP) {
        lq_step s = lq_step_at(codes, c, f0, f1);
        __m256i w[2][4];
        for (int b = 0; b < 2 * (f0 + f1); b += 4) _mm_prefetch((const char *)s.lo + 4096 + 16 * b, _MM_HINT_T0);
        for (int q = 0; q < 4; q++)
            for (int h = 0; h < 2; h++) w[h][q] = weights(a, s, f0, f1, table, h, q);
        for (int t = 0; t < n; t++) {
            const int8_t *from = v.x + (size_t)t * v.ld + c;
            __m256i x[4];
            for (int q = 0; q < 4; q++) {
                int32_t four;
                memcpy(&four, from + 4 * q, 4);
                x[q] = _mm256_set1_epi32(four);
            }
            for (int h = 0; h < 2; h++) acc[2 * t + h] = lq_dot256(acc[2 * t + h], w[h], x, form);
        }
    }
}

/* The same columns as bytes, in the order of a tile of eight-bit codes. */
LQ_INLINE void widen(const whole *a, const uint8_t *codes, uint32_t c, uint32_t len, uint8_t *to, int f0, int f1, bool table) {
    for (uint32_t at = 0; at < len; at += LQ_STEP) {
        lq_step s = lq_step_at(codes, c + at, f0, f1);
        for (int q = 0; q < 4; q++)
            for (int h = 0; h < 2; h++) _mm256_storeu_si256((__m256i *)(void *)(to + at * LQ_TILE + 64 * q + 32 * h), weights(a, s, f0, f1, table, h, q));
    }
}

LQ_INLINE __m256d upper(__m256 v) { return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)); }
LQ_INLINE __m256d lower(__m256 v) { return _mm256_cvtps_pd(_mm256_castps256_ps128(v)); }

/* acc[0 .. 3] += step (s sum - z ones) */
LQ_INLINE void add_scaled(double *acc, __m128i sum, __m256d s, __m256d z, __m256d ones, __m256d step) {
    __m256d v = _mm256_sub_pd(_mm256_mul_pd(s, _mm256_cvtepi32_pd(sum)), _mm256_mul_pd(z, ones));
    _mm256_storeu_pd(acc, _mm256_add_pd(_mm256_loadu_pd(acc), _mm256_mul_pd(step, v)));
}

typedef struct segment { __m256d s[4], z[4]; } segment; /* of sixteen rows; z times s unless it is a MIN */

LQ_INLINE segment segment_at(const lq_packed *p, uint32_t tile, uint32_t g) {
    lq_scales256 k = lq_scales256_at(p, tile, g);
    segment v = {{lower(k.s[0]), upper(k.s[0]), lower(k.s[1]), upper(k.s[1])}, {lower(k.z[0]), upper(k.z[0]), lower(k.z[1]), upper(k.z[1])}};
    for (int i = 0; p->q.sch.zero_kind != LQ_ZERO_MIN && i < 4; i++) v.z[i] = _mm256_mul_pd(v.z[i], v.s[i]);
    return v;
}

LQ_INLINE void close_segment(const whole *a, const segment *k, const __m256i *sum, int32_t ones, float step, double *acc) {
    const __m256i more = _mm256_set1_epi32((int32_t)((uint32_t)a->least * (uint32_t)ones));
    for (int h = 0; h < 2; h++) {
        __m256i v = _mm256_add_epi32(sum[h], more);
        add_scaled(acc + 8 * h, _mm256_castsi256_si128(v), k->s[2 * h], k->z[2 * h], _mm256_set1_pd(ones), _mm256_set1_pd((double)step));
        add_scaled(acc + 8 * h + 4, _mm256_extracti128_si256(v, 1), k->s[2 * h + 1], k->z[2 * h + 1], _mm256_set1_pd(ones), _mm256_set1_pd((double)step));
    }
}

/* n = 1, 2 or 4 tokens from t on; their acc lie `apart` doubles from each other. */
LQ_INLINE void few(const lq_packed *p, const whole *a, const lq_packed_i *x, uint32_t tile, uint32_t t, double *acc, size_t apart, int f0, int f1, bool table, int form, int n) {
    const tokens v = {x->x + (size_t)t * lq_packed_ld(p), lq_packed_ld(p)};
    for (uint32_t g = 0; g < p->segs; g++) {
        __m256i sum[8];
        segment k = segment_at(p, tile, g);
        for (int i = 0; i < 2 * n; i++) sum[i] = _mm256_setzero_si256();
        add_columns(a, p->codes + (size_t)tile * p->tile_bytes, g * p->seg, lq_seg_end(p, g), v, sum, f0, f1, table, form, n);
        for (uint32_t i = 0; i < (uint32_t)n; i++) {
            size_t at = (size_t)(t + i) * p->segs + g;
            close_segment(a, &k, sum + 2 * i, x->sum[at], x->step[at], acc + (t + i) * apart);
        }
    }
}

/* Bytes [len][16] of columns c .. times n tokens from t on, into sum[n][16]. */
LQ_INLINE void bytes_times(const whole *a, const uint8_t *bytes, uint32_t len, tokens v, int32_t *sum, int form, int n) {
    __m256i acc[8];
    for (int i = 0; i < 2 * n; i++) acc[i] = _mm256_loadu_si256((const __m256i *)(const void *)(sum + 8 * i));
    add_columns(a, bytes, 0, len, v, acc, 8, 0, false, form, n);
    for (int i = 0; i < 2 * n; i++) _mm256_storeu_si256((__m256i *)(void *)(sum + 8 * i), acc[i]);
}

enum { WHOLE_MANY = 64 };

LQ_INLINE void all_bytes_times(const whole *a, const uint8_t *bytes, uint32_t len, tokens v, int32_t *sum, int form, uint32_t n) {
    for (; n >= 4; n -= 4, v.x += (size_t)4 * v.ld, sum += 4 * LQ_TILE) bytes_times(a, bytes, len, v, sum, form, 4);
    for (; n; n--, v.x += v.ld, sum += LQ_TILE) bytes_times(a, bytes, len, v, sum, form, 1);
}

/* n <= WHOLE_MANY */
LQ_INLINE void many(const lq_packed *p, const whole *a, const lq_packed_i *x, uint32_t tile, uint32_t t, uint32_t n, double *acc, size_t apart, int f0, int f1, bool table, int form) {
    uint8_t bytes[WHOLE_PIECE * LQ_TILE];
    int32_t sum[WHOLE_MANY * LQ_TILE];
    uint32_t ld = lq_packed_ld(p);
    for (uint32_t g = 0; g < p->segs; g++) {
        segment k = segment_at(p, tile, g);
        memset(sum, 0, n * LQ_TILE * sizeof *sum);
        for (uint32_t c = g * p->seg, end = lq_seg_end(p, g), len; c < end; c += len) {
            len = end - c < WHOLE_PIECE ? end - c : WHOLE_PIECE;
            widen(a, p->codes + (size_t)tile * p->tile_bytes, c, len, bytes, f0, f1, table);
            all_bytes_times(a, bytes, len, (tokens){x->x + (size_t)t * ld + c, ld}, sum, form, n);
        }
        for (uint32_t i = 0; i < n; i++) {
            size_t at = (size_t)(t + i) * p->segs + g;
            __m256i two[2] = {_mm256_loadu_si256((const __m256i *)(const void *)(sum + i * LQ_TILE)), _mm256_loadu_si256((const __m256i *)(const void *)(sum + i * LQ_TILE + 8))};
            close_segment(a, &k, two, x->sum[at], x->step[at], acc + (t + i) * apart);
        }
    }
}

/* ---- whole spans (GGUF's K types): integers up to the span's end ---- */

LQ_INLINE __m256i bytes_at(lq_dtype t, const uint8_t *v) { /* of eight rows, in dwords */
    __m128i b = _mm_loadl_epi64((const __m128i *)(const void *)v);
    return t == LQ_I8 ? _mm256_cvtepi8_epi32(b) : _mm256_cvtepu8_epi32(b);
}

/* sum[2 n] = over the segments of a span whose bytes are at v, times the sum of x: two segments at once, 16 bits each. */
LQ_INLINE void ones_times(const lq_packed *p, lq_dtype type, const uint8_t *v, const int32_t *ones, __m256i *sum, int n) {
    for (int i = 0; i < 2 * n; i++) sum[i] = _mm256_setzero_si256();
    for (uint32_t g = 0; g < p->span; g += 2, v += 2 * p->seg_bytes)
        for (int h = 0; h < 2; h++) {
            __m256i w = _mm256_blend_epi16(bytes_at(type, v + 8 * h), _mm256_slli_epi32(bytes_at(type, v + p->seg_bytes + 8 * h), 16), 0xaa);
            for (int t = 0; t < n; t++) {
                const int32_t *x = ones + (size_t)t * p->segs + g;
                __m256i two = _mm256_set1_epi32((int32_t)((uint32_t)x[0] & 0xffff) | (int32_t)((uint32_t)x[1] << 16));
                sum[2 * t + h] = _mm256_add_epi32(sum[2 * t + h], _mm256_madd_epi16(w, two));
            }
        }
}

/* sum[2 n] = over span b, times its scale bytes: codes as they lie, or c0 columns further on. */
LQ_INLINE void span_products(const lq_packed *p, const whole *a, const uint8_t *codes, uint32_t c0, const uint8_t *params, uint32_t c, tokens v, __m256i *sum, int f0, int f1, bool table, int form, int n) {
    for (int i = 0; i < 2 * n; i++) sum[i] = _mm256_setzero_si256();
    v.x += c0;
    for (uint32_t g = 0; g < p->span; g++, c += p->seg, params += p->seg_bytes) {
        __m256i part[8], by[2] = {bytes_at(p->scale, params), bytes_at(p->scale, params + 8)};
        for (int i = 0; i < 2 * n; i++) part[i] = _mm256_setzero_si256();
        add_columns(a, codes, c - c0, c - c0 + p->seg, v, part, f0, f1, table, form, n);
        for (int i = 0; i < 2 * n; i++) sum[i] = _mm256_add_epi32(sum[i], _mm256_mullo_epi32(part[i], by[i & 1]));
    }
}

typedef struct ups { __m256d d[4], m[4]; } ups;

LQ_INLINE ups ups_at(const lq_packed *p, const uint8_t *at) {
    ups u;
    for (int h = 0; h < 2; h++) {
        __m256 d = lq_params256(LQ_F16, at + 16 * h, 1, 0), m = p->zero == LQ_NONE ? _mm256_setzero_ps() : lq_params256(LQ_F16, at + 2 * LQ_TILE + 16 * h, 1, 0);
        u.d[2 * h] = lower(d), u.d[2 * h + 1] = upper(d), u.m[2 * h] = lower(m), u.m[2 * h + 1] = upper(m);
    }
    return u;
}

/* acc[0 .. 3] += step (d sum - m zero) */
LQ_INLINE void add_span(double *acc, __m128i sum, __m128i zero, __m256d d, __m256d m, bool has_zero, __m256d step) {
    __m256d v = _mm256_mul_pd(d, _mm256_cvtepi32_pd(sum));
    if (has_zero) v = _mm256_sub_pd(v, _mm256_mul_pd(m, _mm256_cvtepi32_pd(zero)));
    _mm256_storeu_pd(acc, _mm256_add_pd(_mm256_loadu_pd(acc), _mm256_mul_pd(step, v)));
}

/* The span from segment g on, n = 1, 2 or 4 tokens from t on; codes: the tile's, or made bytes from column c0 on. */
LQ_INLINE void one_span(const lq_packed *p, const whole *a, const lq_packed_i *x, const uint8_t *codes, uint32_t c0, uint32_t tile, uint32_t g, uint32_t t, double *acc, size_t apart, int f0, int f1, bool table, int form, int n) {
    const uint8_t *params = lq_packed_params(p, tile, g);
    const tokens v = {x->x + (size_t)t * lq_packed_ld(p), lq_packed_ld(p)};
    const int32_t *ones = x->sum + (size_t)t * p->segs + g;
    const bool has_zero = p->zero != LQ_NONE;
    const ups u = ups_at(p, lq_packed_ups(p, tile, g));
    __m256i sum[8], more[8], zero[8];
    span_products(p, a, codes, c0, params, g * p->seg, v, sum, f0, f1, table, form, n);
    for (int i = 0; i < 2 * n; i++) more[i] = zero[i] = _mm256_setzero_si256();
    if (a->least) ones_times(p, p->scale, params, ones, more, n);
    if (has_zero) ones_times(p, p->zero, params + LQ_TILE, ones, zero, n);
    for (int t1 = 0; t1 < n; t1++) {
        const __m256d step = _mm256_set1_pd((double)x->step[(size_t)(t + (uint32_t)t1) * p->segs + g]);
        double *to = acc + (t + (uint32_t)t1) * apart;
        for (int h = 0; h < 2; h++) {
            __m256i s = sum[2 * t1 + h], z = zero[2 * t1 + h];
            if (a->least) s = _mm256_add_epi32(s, _mm256_mullo_epi32(more[2 * t1 + h], _mm256_set1_epi32(a->least)));
            add_span(to + 8 * h, _mm256_castsi256_si128(s), _mm256_castsi256_si128(z), u.d[2 * h], u.m[2 * h], has_zero, step);
            add_span(to + 8 * h + 4, _mm256_extracti128_si256(s, 1), _mm256_extracti128_si256(z, 1), u.d[2 * h + 1], u.m[2 * h + 1], has_zero, step);
        }
    }
}

LQ_INLINE void few_spans(const lq_packed *p, const whole *a, const lq_packed_i *x, uint32_t tile, uint32_t t, double *acc, size_t apart, int f0, int f1, bool table, int form, int n) {
    for (uint32_t g = 0; g < p->segs; g += p->span) one_span(p, a, x, p->codes + (size_t)tile * p->tile_bytes, 0, tile, g, t, acc, apart, f0, f1, table, form, n);
}

LQ_INLINE void many_spans(const lq_packed *p, const whole *a, const lq_packed_i *x, uint32_t tile, uint32_t t, uint32_t n, double *acc, size_t apart, int f0, int f1, bool table, int form) {
    uint8_t bytes[WHOLE_PIECE * LQ_TILE]; /* a span has no more columns */
    for (uint32_t g = 0; g < p->segs; g += p->span) {
        uint32_t c = g * p->seg, i = 0;
        widen(a, p->codes + (size_t)tile * p->tile_bytes, c, p->span * p->seg, bytes, f0, f1, table);
        for (; i + 4 <= n; i += 4) one_span(p, a, x, bytes, c, tile, g, t + i, acc, apart, 8, 0, false, form, 4);
        for (; i < n; i++) one_span(p, a, x, bytes, c, tile, g, t + i, acc, apart, 8, 0, false, form, 1);
    }
}

/* name, the two fields, form of the product: what lq_spans_whole() lets be; LQ_LUT_IQ4 last */
#define SPAN_KINDS(X) X(s2, 2, 0, false, 0) X(s3, 2, 1, false, 0) X(s4, 4, 0, false, 0) X(s5, 4, 1, false, 0) X(s6, 4, 2, false, 1) X(st, 4, 0, true, 2)
enum {
#define X(name, f0, f1, table, form) SPAN_##name,
    SPAN_KINDS(X)
#undef X
};

/* name, the two fields, by table, form of the product */
#define WHOLE_KINDS(X)                                                                                                        \
    X(c1, 1, 0, false, 0) X(c2, 2, 0, false, 0) X(c3, 2, 1, false, 0) X(c4, 4, 0, false, 0) X(c5, 4, 1, false, 0)             \
    X(c6, 4, 2, false, 1) X(c7, 8, 0, false, 1) X(c8, 8, 0, false, 2) X(t1, 1, 0, true, 0) X(t2, 2, 0, true, 0) X(t4, 4, 0, true, 2)
enum {
#define X(name, f0, f1, table, form) WHOLE_##name,
    WHOLE_KINDS(X)
#undef X
};

typedef void (*whole_fn)(const lq_packed *p, const whole *a, const lq_packed_i *x, uint32_t tile, uint32_t t, uint32_t n, double *acc, size_t apart);
#define X(name, f0, f1, table, form)                                                                                                           \
    static void name(const lq_packed *p, const whole *a, const lq_packed_i *x, uint32_t tile, uint32_t t, uint32_t n, double *acc, size_t apart) { \
        if (n == 1) few(p, a, x, tile, t, acc, apart, f0, f1, table, form, 1);                                                                 \
        else if (n == 2) few(p, a, x, tile, t, acc, apart, f0, f1, table, form, 2);                                                            \
        else if (n == 4) few(p, a, x, tile, t, acc, apart, f0, f1, table, form, 4);                                                            \
        else many(p, a, x, tile, t, n, acc, apart, f0, f1, table, form);                                                                       \
    }
WHOLE_KINDS(X)
#undef X
#define X(name, f0, f1, table, form) {name, form},
static const struct { whole_fn fn; int form; } by_whole_kind[] = {WHOLE_KINDS(X)};
#undef X

#define X(name, f0, f1, table, form)                                                                                                           \
    static void name(const lq_packed *p, const whole *a, const lq_packed_i *x, uint32_t tile, uint32_t t, uint32_t n, double *acc, size_t apart) { \
        if (n == 1) few_spans(p, a, x, tile, t, acc, apart, f0, f1, table, form, 1);                                                           \
        else if (n == 2) few_spans(p, a, x, tile, t, acc, apart, f0, f1, table, form, 2);                                                      \
        else if (n == 4) few_spans(p, a, x, tile, t, acc, apart, f0, f1, table, form, 4);                                                      \
        else many_spans(p, a, x, tile, t, n, acc, apart, f0, f1, table, form);                                                                 \
    }
SPAN_KINDS(X)
#undef X
#define X(name, f0, f1, table, form) name,
static const whole_fn by_span_kind[] = {SPAN_KINDS(X)};
#undef X

static int span_kind(const lq_grid *g) { return g->kind == LQ_GRID_LUT ? SPAN_st : SPAN_s2 + g->bits - 2; }

static int whole_kind(const lq_grid *g) {
    if (g->kind == LQ_GRID_LUT) return g->bits == 1 ? WHOLE_t1 : g->bits == 2 ? WHOLE_t2 : WHOLE_t4;
    return WHOLE_c1 + g->bits - 1;
}

static whole whole_make(const lq_packed *p, int kind) {
    const lq_grid *g = &p->q.sch.grid;
    whole a = {_mm256_setzero_si256(), -g->bias};
    uint8_t t[16];
    if (g->kind == LQ_GRID_LUT) {
        int32_t v[16];
        for (uint32_t i = 0; i < 16; i++) v[i] = (int32_t)lq_grid_value(&p->q, 0, i & ((1u << g->bits) - 1));
        a.least = v[0];
        for (int i = 1; i < 16; i++) a.least = v[i] < a.least ? v[i] : a.least;
        for (int i = 0; i < 16; i++) t[i] = (uint8_t)(v[i] - a.least);
        a.table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)t));
    }
    if (by_whole_kind[kind].form == 2) a.least += LQ_DOT_SHIFT;
    return a;
}

static uint32_t tokens_at_once(uint32_t left) { return left > WHOLE_FEW ? (left < WHOLE_MANY ? left : WHOLE_MANY) : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

/* The entry of the kernel table. */
static void packed_idot256(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_i *x, double *acc) {
    const size_t apart = (size_t)nt * LQ_TILE;
    int kind = whole_kind(&p->q.sch.grid);
    const whole_fn fn = lq_spans_whole(p) ? by_span_kind[span_kind(&p->q.sch.grid)] : by_whole_kind[kind].fn;
    whole a = whole_make(p, kind);
    memset(acc, 0, x->n * apart * sizeof *acc);
    for (uint32_t t = 0, n; t < x->n; t += n) {
        n = tokens_at_once(x->n - t);
        for (uint32_t tile = t0; tile < t0 + nt; tile++) fn(p, &a, x, tile, t, n, acc + (size_t)(tile - t0) * LQ_TILE, apart);
    }
    for (uint32_t t = 0, kept = lq_tile_rows(p, t0 + nt - 1); t < x->n && nt; t++) /* rows that are not there had scales all the same */
        for (uint32_t i = kept; i < LQ_TILE; i++) acc[(t + 1) * apart - LQ_TILE + i] = 0;
}
