/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The accelerator seam: C names only, no CUDA types. A device is a table of functions; a build without CUDA links stub.c, whose
 * device is none, and the same kernel sources compiled for the CPU are the device "emu" (kernels/cuda/emu/).
 *
 * Weights on a device lie in tiles of 512 bytes, one 16-byte load per lane of a warp: lane 4 g + q holds rows g and g + 8 of
 * sixteen, and of each step of 16 columns the four from 4 q on. For a field of f bits (kernels/packed.h) a tile covers 256 / f
 * columns:
 *
 *   bits of row g + 8 h, column 16 s + 4 q + b:   word P / (8 / f), from bit 8 b + f (P mod (8 / f)) on, P = 2 s + h
 *
 * so one word holds operands of mma for halves and for bytes alike. A chunk is the columns of a tile of the narrowest field: its
 * tiles of the first field, then that of the second. Chunks of a row tile follow each other. Scales and zeros are the packed layout's. */
#ifndef LQ_CUDA_H
#define LQ_CUDA_H
#include "kernels/packed.h"

enum { LQ_DEVICE_N = 8 }; /* tokens of one pass over the weights */

typedef struct lq_device_matrix { /* pointers are the device's */
    uint32_t rows, cols, tiles, chunks;
    uint32_t seg, segs;
    uint8_t fields[2], bits;
    uint8_t scale, zero;     /* lq_dtype of params */
    uint8_t grid, zero_kind; /* lq_grid_kind, lq_zero_kind */
    int32_t bias, times;     /* A(code) = times code - bias where that is so (times 1 for INT); times 0: it is not */
    float up, shift;         /* of E4M3 scales */
    uint32_t seg_bytes;
    uint16_t table[16];      /* halves: values of codes of up to 4 bits, where the grid is no INT */
    const void *codes;       /* [tiles][chunks] */
    const void *params;      /* [tiles][segs] */
    const uint32_t *perm;    /* [cols] or NULL */
} lq_device_matrix;

typedef struct lq_device {
    const char *name;                      /* "cuda", "emu" */
    bool (*available)(void);
    const char *(*describe)(void);         /* device and capability in words, or why there is none; never NULL */
    void *(*alloc)(size_t n);              /* device memory; NULL when out */
    void (*release)(void *p);
    bool (*put)(void *to, const void *from, size_t n);
    bool (*get)(void *to, const void *from, size_t n);
    /* y[n][rows] = codes of m times x[n][cols] (both fp32, weight-column order); activations are rounded to halves (beyond 65504:
     * infinite), sums are fp32 in a fixed order. NULL, or what went wrong. */
    const char *(*gemv)(const lq_device_matrix *m, const float *x, uint32_t n, float *y);
    /* For matrices whose `times` is not 0: y[n][rows] of rounded activations as lq_packed_i has them: x[n][ld] in stored order, step[n][segs], sum[n][segs]. One segment: the bits of
     * packed_idot rounded to fp32. Several: whole sums of at most 256 columns, scaled and added in fp32. */
    const char *(*idot)(const lq_device_matrix *m, const int8_t *x, const float *step, const int32_t *sum, uint32_t n, float *y);
} lq_device;

const lq_device *lq_device_cuda(void);     /* never NULL */
const lq_device *lq_device_emu(void);      /* never NULL */

/* The columns of a chunk, and the bytes of all codes on a device. */
uint32_t lq_device_chunk(const lq_packed *p);
size_t lq_device_bytes(const lq_packed *p);
/* Codes of p into out[lq_device_bytes] and back; exact inverses. */
void lq_pack_device(const lq_packed *p, uint8_t *out);
void lq_unpack_device(const uint8_t *in, lq_packed *p);
/* Has the device's gemv this matrix? A grid of whole numbers, E4M3, or a table that halves hold exactly or within their rounding. */
bool lq_device_fits(const lq_packed *p);
/* Everything of m but its pointers. */
lq_device_matrix lq_device_shape(const lq_packed *p);
/* Puts a matrix on the device; false: out of memory. drop releases it. */
bool lq_device_put(const lq_device *d, const lq_packed *p, lq_device_matrix *m);
void lq_device_drop(const lq_device *d, lq_device_matrix *m);
#endif
