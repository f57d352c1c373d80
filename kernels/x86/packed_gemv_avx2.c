/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* y = W x over packed tiles, activations as they are: A(code) x summed per row, times the scale every 256 columns; a zero takes its
 * product with the segment's sum of x at the end. Few tokens: each code becomes a float once for up to four of them. Many: 256 columns
 * become floats [column][row] in the cache, then six tokens at a time. A byte at the top of its dword is an int8 times 2^24: sums of
 * such products stay finite below 2^103. */
#include "kernels/x86/packed_avx2.h"

enum { PIECE = 256, FEW = 8, MANY = 48 };

typedef struct job { const lq_packed *p; lq_grid256 a; const float *x, *sum; uint32_t ld; } job; /* x and sum of the first token at hand */

/* Byte j of each dword: at the top, zeros below; or at the foot. */
LQ_INLINE __m256i byte_of(__m256i w, int j, bool top) {
    const int z = 0x80, b = j;
#define DWORD(i) (char)(top ? z : 4 * i + b), (char)z, (char)z, (char)(top ? 4 * i + b : z)
    return _mm256_shuffle_epi8(w, _mm256_setr_epi8(DWORD(0), DWORD(1), DWORD(2), DWORD(3), DWORD(0), DWORD(1), DWORD(2), DWORD(3)));
#undef DWORD
}

LQ_INLINE __m256 value(const lq_grid256 *a, __m256i w, int j, int how) {
    __m256i c = j ? _mm256_srli_epi32(w, 8 * j) : w;
    if (how == LQ_A_T2) return _mm256_permutevar_ps(a->low, c); /* in both halves the same four */
    if (how == LQ_A_T3) return _mm256_permutevar8x32_ps(a->low, c);
    if (how == LQ_A_T4)
        return _mm256_blendv_ps(_mm256_permutevar8x32_ps(a->low, c), _mm256_permutevar8x32_ps(a->high, c), _mm256_castsi256_ps(_mm256_slli_epi32(w, 28 - 8 * j)));
    if (how == LQ_A_S) return _mm256_cvtepi32_ps(byte_of(w, j, true));
    if (how == LQ_A_U) return _mm256_sub_ps(_mm256_cvtepi32_ps(byte_of(w, j, false)), a->bias);
    __m256i f = _mm256_and_si256(_mm256_srai_epi32(byte_of(w, j, true), 4), _mm256_set1_epi32((int)0x87f00000));
    return _mm256_mul_ps(_mm256_castsi256_ps(f), _mm256_set1_ps(0x1p120f)); /* E4M3 one field lower */
}

LQ_INLINE __m256i quad(const job *j, lq_step s, int f0, int f1, int how, int h, int q) {
    __m256i w = lq_quad256(s, f0, f1, h, q);
    return how == LQ_A_S ? _mm256_sub_epi8(w, j->a.byte) : w;
}

LQ_INLINE __m256i nans(__m256i w, __m256i seen) { /* E4M3: bytes that are NaN, which no product may hide */
    __m256i m = _mm256_set1_epi8(127);
    return _mm256_or_si256(seen, _mm256_cmpeq_epi8(_mm256_and_si256(w, m), m));
}
LQ_INLINE __m256 spoil(__m256 y, __m256i seen) {
    __m256i clean = _mm256_cmpeq_epi32(seen, _mm256_setzero_si256());
    return _mm256_or_ps(y, _mm256_castsi256_ps(_mm256_andnot_si256(clean, _mm256_set1_epi32(0x7fc00000))));
}

/* The end of a segment: its zeros times its sum. */
LQ_INLINE __m256 less_zero(const job *j, __m256 y, __m256 s, __m256 z, float sum) {
    return _mm256_fnmadd_ps(j->p->q.sch.zero_kind == LQ_ZERO_MIN ? z : _mm256_mul_ps(s, z), _mm256_set1_ps(sum), y);
}

/* n = 1, 2 or 4 tokens; y[n][16]. */
LQ_INLINE void direct(const job *j, uint32_t tile, float *out, int f0, int f1, int how, int n) {
    const lq_packed *p = j->p;
    const uint8_t *codes = p->codes + (size_t)tile * p->tile_bytes;
    const __m256 unit = _mm256_set1_ps(how == LQ_A_S ? 0x1p-24f : 1);
    const int part = 4 / n; /* sums per token and half */
    __m256 y[8];
    __m256i seen[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int i = 0; i < 2 * n; i++) y[i] = _mm256_setzero_ps();
    for (uint32_t g = 0; g < p->segs; g++) {
        lq_scales256 k = lq_scales256_at(p, tile, g);
        for (uint32_t c = g * p->seg, end = lq_seg_end(p, g), stop; c < end;) {
            __m256 acc[8];
            for (int i = 0; i < 8; i++) acc[i] = _mm256_setzero_ps();
            for (stop = end - c < PIECE ? end : c + PIECE; c < stop; c += LQ_STEP) {
                lq_step s = lq_step_at(codes, c, f0, f1);
                for (int b = 0; b < 2 * (f0 + f1); b += 4) _mm_prefetch((const char *)s.lo + 4096 + 16 * b, _MM_HINT_T0);
                for (int q = 0; q < 4; q++) {
                    __m256i w[2] = {quad(j, s, f0, f1, how, 0, q), quad(j, s, f0, f1, how, 1, q)};
                    for (int h = 0; how == LQ_A_E4M3 && h < 2; h++) seen[h] = nans(w[h], seen[h]);
                    for (int i = 0; i < 4; i++) {
                        __m256 v[2] = {value(&j->a, w[0], i, how), value(&j->a, w[1], i, how)};
                        for (int t = 0; t < n; t++) {
                            __m256 x = _mm256_broadcast_ss(j->x + (size_t)t * j->ld + c + 4 * (uint32_t)q + (uint32_t)i);
                            for (int h = 0; h < 2; h++) acc[(2 * t + h) * part + i % part] = _mm256_fmadd_ps(v[h], x, acc[(2 * t + h) * part + i % part]);
                        }
                    }
                }
            }
            for (int i = 0; i < 2 * n; i++) {
                __m256 sum = acc[i * part];
                if (n < 4) sum = _mm256_add_ps(sum, acc[i * part + 1]);
                if (n < 2) sum = _mm256_add_ps(sum, _mm256_add_ps(acc[i * part + 2], acc[i * part + 3]));
                y[i] = _mm256_fmadd_ps(_mm256_mul_ps(sum, unit), k.s[i % 2], y[i]);
            }
        }
        for (int i = 0; p->zero != LQ_NONE && i < 2 * n; i++) y[i] = less_zero(j, y[i], k.s[i % 2], k.z[i % 2], j->sum[(size_t)(i / 2) * p->segs + g]);
    }
    for (int i = 0; i < 2 * n; i++) _mm256_storeu_ps(out + 8 * i, how == LQ_A_E4M3 ? spoil(y[i], seen[i % 2]) : y[i]);
}

/* A(code) of columns [c, c + len) as floats [len][16]. */
LQ_INLINE void spread(const job *j, uint32_t tile, uint32_t c, uint32_t len, float *w, int f0, int f1, int how) {
    const uint8_t *codes = j->p->codes + (size_t)tile * j->p->tile_bytes;
    const __m256 unit = _mm256_set1_ps(how == LQ_A_S ? 0x1p-24f : 1);
    for (uint32_t at = 0; at < len; at += LQ_STEP) {
        lq_step s = lq_step_at(codes, c + at, f0, f1);
        for (int q = 0; q < 4; q++)
            for (int h = 0; h < 2; h++) {
                __m256i v = quad(j, s, f0, f1, how, h, q), m = _mm256_and_si256(v, _mm256_set1_epi8(127));
                if (how == LQ_A_E4M3) m = _mm256_cmpeq_epi8(m, _mm256_set1_epi8(127));
                for (int i = 0; i < 4; i++) {
                    __m256 f = _mm256_mul_ps(value(&j->a, v, i, how), unit);
                    if (how == LQ_A_E4M3) f = _mm256_or_ps(f, _mm256_castsi256_ps(_mm256_and_si256(_mm256_srai_epi32(byte_of(m, i, true), 8), _mm256_set1_epi32(0x7fc00000))));
                    _mm256_storeu_ps(w + (at + 4 * (uint32_t)q + (uint32_t)i) * LQ_TILE + 8 * h, f);
                }
            }
    }
}

/* y[n][16] += s (w[len][16] x) */
LQ_INLINE void columns(const float *w, const lq_scales256 *k, const float *x, uint32_t ld, uint32_t len, float *y, int n) {
    __m256 acc[12];
    for (int i = 0; i < 2 * n; i++) acc[i] = _mm256_setzero_ps();
    for (uint32_t c = 0; c < len; c++) {
        __m256 a = _mm256_loadu_ps(w + c * LQ_TILE), b = _mm256_loadu_ps(w + c * LQ_TILE + 8);
        for (int t = 0; t < n; t++) {
            __m256 v = _mm256_broadcast_ss(x + (size_t)t * ld + c);
            acc[2 * t] = _mm256_fmadd_ps(a, v, acc[2 * t]);
            acc[2 * t + 1] = _mm256_fmadd_ps(b, v, acc[2 * t + 1]);
        }
    }
    for (int i = 0; i < 2 * n; i++) _mm256_storeu_ps(y + 8 * i, _mm256_fmadd_ps(acc[i], k->s[i % 2], _mm256_loadu_ps(y + 8 * i)));
}

static void times(const float *w, const lq_scales256 *k, const float *x, uint32_t ld, uint32_t len, float *y, uint32_t n) {
    for (; n >= 6; n -= 6, x += (size_t)6 * ld, y += 6 * LQ_TILE) columns(w, k, x, ld, len, y, 6);
    for (; n >= 2; n -= 2, x += (size_t)2 * ld, y += 2 * LQ_TILE) columns(w, k, x, ld, len, y, 2);
    if (n) columns(w, k, x, ld, len, y, 1);
}

/* n <= MANY tokens; y[n][16] */
LQ_INLINE void through_cache(const job *j, uint32_t tile, float *y, uint32_t n, int f0, int f1, int how) {
    float w[PIECE * LQ_TILE];
    memset(y, 0, n * LQ_TILE * sizeof *y);
    for (uint32_t g = 0; g < j->p->segs; g++) {
        lq_scales256 k = lq_scales256_at(j->p, tile, g);
        for (uint32_t c = g * j->p->seg, end = lq_seg_end(j->p, g), len; c < end; c += len) {
            len = end - c < PIECE ? end - c : PIECE;
            spread(j, tile, c, len, w, f0, f1, how);
            times(w, &k, j->x + c, j->ld, len, y, n);
        }
        for (uint32_t i = 0; j->p->zero != LQ_NONE && i < 2 * n; i++)
            _mm256_storeu_ps(y + 8 * i, less_zero(j, _mm256_loadu_ps(y + 8 * i), k.s[i % 2], k.z[i % 2], j->sum[(size_t)(i / 2) * j->p->segs + g]));
    }
}

typedef void (*tile_fn)(const job *j, uint32_t tile, float *y, uint32_t n);

#define X(name, f0, f1, how)                                                    \
    static void name(const job *j, uint32_t tile, float *y, uint32_t n) {       \
        if (n == 1) direct(j, tile, y, f0, f1, how, 1);                         \
        else if (n == 2) direct(j, tile, y, f0, f1, how, 2);                    \
        else if (n == 4) direct(j, tile, y, f0, f1, how, 4);                    \
        else through_cache(j, tile, y, n, f0, f1, how);                         \
    }
LQ_PACKED_KINDS(X)
#undef X
#define X(name, f0, f1, how) name,
static const tile_fn by_kind[] = {LQ_PACKED_KINDS(X)};
#undef X

static uint32_t tokens_at_once(uint32_t left) { return left > FEW ? (left < MANY ? left : MANY) : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

void lq_packed_gemv_avx2(const lq_packed *p, uint32_t t0, uint32_t nt, const lq_packed_x *x, float *y, size_t ldy) {
    float out[MANY * LQ_TILE];
    int kind = lq_packed_kind(p);
    if (kind == LQ_KIND_NONE) {
        lq_packed_gemv_c(p, t0, nt, x, y, ldy);
        return;
    }
    job j = {.p = p, .a = lq_grid256_make(p), .ld = lq_packed_ld(p)};
    for (uint32_t t = 0, n; t < x->n; t += n) {
        n = tokens_at_once(x->n - t);
        j.x = x->x + (size_t)t * j.ld;
        j.sum = x->sum ? x->sum + (size_t)t * p->segs : NULL;
        for (uint32_t tile = t0; tile < t0 + nt; tile++) {
            by_kind[kind](&j, tile, out, n);
            for (uint32_t i = 0; i < n; i++) memcpy(y + (t + i) * ldy + (size_t)tile * LQ_TILE, out + i * LQ_TILE, lq_tile_rows(p, tile) * sizeof *y);
        }
    }
}
