/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Packed tiles to floats: the codes of sixteen columns are turned round to rows, then scaled eight at a time. */
#include "kernels/x86/codes_avx2.h"
#include "kernels/x86/packed_avx2.h"

typedef struct rows { float s[LQ_TILE], z[LQ_TILE]; } rows;

LQ_INLINE void put2(uint8_t code[][LQ_STEP], int row, __m256i v) { /* rows r and r + 4 */
    _mm_storeu_si128((__m128i *)(void *)code[row], _mm256_castsi256_si128(v));
    _mm_storeu_si128((__m128i *)(void *)code[row + 4], _mm256_extracti128_si256(v, 1));
}

LQ_INLINE void turn(lq_step s, int f0, int f1, uint8_t code[LQ_TILE][LQ_STEP]) {
    for (int h = 0; h < 2; h++) {
        __m256i a = lq_quad256(s, f0, f1, h, 0), b = lq_quad256(s, f0, f1, h, 1), c = lq_quad256(s, f0, f1, h, 2), d = lq_quad256(s, f0, f1, h, 3);
        __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
        put2(code, 8 * h, _mm256_unpacklo_epi64(ab, cd));
        put2(code, 8 * h + 1, _mm256_unpackhi_epi64(ab, cd));
        ab = _mm256_unpackhi_epi32(a, b), cd = _mm256_unpackhi_epi32(c, d);
        put2(code, 8 * h + 2, _mm256_unpacklo_epi64(ab, cd));
        put2(code, 8 * h + 3, _mm256_unpackhi_epi64(ab, cd));
    }
}

LQ_INLINE __m256 meaning(const lq_grid256 *a, const uint8_t *code, int how) {
    __m256i c = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)code));
    if (how == LQ_A_E4M3) return lq_codes256_e4m3(code);
    if (how == LQ_A_S || how == LQ_A_U) return _mm256_sub_ps(_mm256_cvtepi32_ps(c), a->bias);
    __m256 low = _mm256_permutevar8x32_ps(a->low, c);
    return how != LQ_A_T4 ? low : _mm256_blendv_ps(low, _mm256_permutevar8x32_ps(a->high, c), _mm256_castsi256_ps(_mm256_slli_epi32(c, 28)));
}

/* Columns [c, c + n) of a row, n <= 16, to their places. */
LQ_INLINE void put(const lq_packed *p, const float *v, uint32_t c, uint32_t n, float *row) {
    if (!p->q.perm) memcpy(row + c, v, n * sizeof *v);
    for (uint32_t i = 0; p->q.perm && i < n; i++) row[p->q.perm[c + i]] = v[i];
}

LQ_INLINE void step(const lq_packed *p, const lq_grid256 *a, lq_step at, uint32_t tile, uint32_t c, const rows *k, float *out, int f0, int f1, int how) {
    uint8_t code[LQ_TILE][LQ_STEP];
    float v[LQ_STEP];
    uint32_t n = p->q.cols - c < LQ_STEP ? p->q.cols - c : LQ_STEP;
    bool min = p->q.sch.zero_kind == LQ_ZERO_MIN;
    turn(at, f0, f1, code);
    for (uint32_t i = 0; i < lq_tile_rows(p, tile); i++, out += p->q.cols) {
        __m256 s = _mm256_set1_ps(k->s[i]), z = _mm256_set1_ps(k->z[i]), w0 = meaning(a, code[i], how), w1 = meaning(a, code[i] + 8, how);
        w0 = min ? _mm256_sub_ps(_mm256_mul_ps(w0, s), z) : _mm256_mul_ps(_mm256_sub_ps(w0, z), s);
        w1 = min ? _mm256_sub_ps(_mm256_mul_ps(w1, s), z) : _mm256_mul_ps(_mm256_sub_ps(w1, z), s);
        float *to = n == LQ_STEP && !p->q.perm ? out + c : v;
        _mm256_storeu_ps(to, w0);
        _mm256_storeu_ps(to + 8, w1);
        if (to == v) put(p, v, c, n, out);
    }
}

LQ_INLINE void whole_tile(const lq_packed *p, const lq_grid256 *a, uint32_t tile, float *out, int f0, int f1, int how) {
    const uint8_t *codes = p->codes + (size_t)tile * p->tile_bytes;
    for (uint32_t g = 0; g < p->segs; g++) {
        lq_scales256 k = lq_scales256_at(p, tile, g);
        rows r;
        for (int h = 0; h < 2; h++) {
            _mm256_storeu_ps(r.s + 8 * h, k.s[h]);
            _mm256_storeu_ps(r.z + 8 * h, k.z[h]);
        }
        for (uint32_t c = g * p->seg; c < lq_seg_end(p, g); c += LQ_STEP) step(p, a, lq_step_at(codes, c, f0, f1), tile, c, &r, out, f0, f1, how);
    }
}

typedef void (*tile_fn)(const lq_packed *p, const lq_grid256 *a, uint32_t tile, float *out);

#define X(name, f0, f1, how) \
    static void name(const lq_packed *p, const lq_grid256 *a, uint32_t tile, float *out) { whole_tile(p, a, tile, out, f0, f1, how); }
LQ_PACKED_KINDS(X)
#undef X
#define X(name, f0, f1, how) name,
static const tile_fn by_kind[] = {LQ_PACKED_KINDS(X)};
#undef X

void lq_packed_dequant_avx2(const lq_packed *p, uint32_t t0, uint32_t nt, float *out) {
    int kind = lq_packed_kind(p);
    if (kind == LQ_KIND_NONE) {
        lq_packed_dequant_c(p, t0, nt, out);
        return;
    }
    lq_grid256 a = lq_grid256_make(p);
    for (uint32_t tile = t0; tile < t0 + nt; tile++) by_kind[kind](p, &a, tile, out + (size_t)(tile - t0) * LQ_TILE * p->q.cols);
}
