/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What writers of quantized safetensors folders share: a quantized row [rows][cols] named "<module>.weight" is stored as some tensors
 * "<module><suffix>", everything else under its own name. Such a writer is a layout, an accept and a quant_config:
 *
 *     typedef struct priv { lq_folder folder; ... } priv;     the folder is the first member of the format's priv
 *     static lq_status open(lq_sink *s) { ...; return lq_folder_open(s, &layout); }
 *     const lq_format lq_format_x = { .name = "x", .priv_size = sizeof(priv), .accept = accept, .check = lq_folder_check, .open = open, .quant_config = config, LQ_FOLDER_CALLS };
 */
#ifndef LQ_FOLDER_H
#define LQ_FOLDER_H
#include "formats/write.h"

enum { LQ_PARTS_MAX = 12 };
typedef struct lq_part_spec {
    const char *suffix;      /* static: ".qweight", ".weight.absmax" */
    lq_dtype dtype;
    uint32_t ndim;           /* 0: a scalar */
    uint64_t shape[LQ_DIMS];
} lq_part_spec;

typedef struct lq_layout {
    /* The parts of a quantized row, in order; their number. They follow from the catalog alone: r->scheme, shape, part. */
    size_t (*parts)(const lq_sink *s, const lq_row *r, lq_part_spec out[LQ_PARTS_MAX]);
    /* Part i of the row in its stored bytes (little-endian, row-major); out holds them all and is zeroed. */
    lq_status (*pack)(const lq_sink *s, const lq_row *r, const lq_qtensor *q, size_t i, void *out);
    /* Another name of a kept row in this format, in the arena; NULL: out of memory. NULL function: the row's own. */
    const char *(*kept_name)(lq_arena *mem, const lq_row *r);
} lq_layout;

typedef struct lq_folder { const lq_layout *layout; lq_st_writer *w; } lq_folder;

/* The last line of a folder format's check, or all of it: LQ_ERR_UNSUPPORTED for a quantized embedding, and for scales of a type that are not
 * all of one `sig`. */
lq_status lq_folder_check(lq_sink *s);
/* Every tensor of the folder laid out. */
lq_status lq_folder_open(lq_sink *s, const lq_layout *layout);
lq_status lq_folder_put(lq_sink *s, const lq_row *r, const lq_qtensor *q);
lq_status lq_folder_put_fp(lq_sink *s, const lq_row *r, const void *data, size_t bytes);
lq_status lq_folder_sync(lq_sink *s);
lq_status lq_folder_close(lq_sink *s);
void lq_folder_abandon(lq_sink *s);
#define LQ_FOLDER_CALLS                                                                                                     \
    .put = lq_folder_put, .put_fp = lq_folder_put_fp, .sidecar = lq_folder_sidecar, .sync = lq_folder_sync, .close = lq_folder_close, \
    .abandon = lq_folder_abandon

/* The row's module name, without ".weight" or ".bias", of any length; NULL: out of memory. In the arena. */
const char *lq_folder_module(lq_arena *mem, const lq_row *r);
/* The divisor of cols closest to the wish, the smaller one first. */
uint32_t lq_nearest_group(uint32_t cols, uint32_t group);
/* opts.meta with "quantizer" and, where all F16 scales have it, "scale_sig" (a reader announces a plane's significant bits only when the
 * file says that every plane obeys them). New reference; NULL: out of memory. */
json_t *lq_folder_meta(const lq_sink *s);
/* Module names of the matrices that are kept, embeddings left out: modules_to_not_convert. New reference; NULL: out of memory. */
json_t *lq_folder_kept(const lq_sink *s);
/* LQ_ERR_UNSUPPORTED when the name of a kept matrix is part of a quantized one's: runtimes that look for substrings would keep both. */
lq_status lq_folder_kept_apart(lq_sink *s);
bool lq_folder_has_head(const lq_sink *s); /* the head is quantized */
/* The codes row after row, without padding: rows * ceil(cols * bits / 8) bytes of the canonical bitstream. */
void lq_folder_codes(const lq_qtensor *q, void *out);
/* All quantized rows must be alike in what the config says once: LQ_ERR_UNSUPPORTED naming two that are not and `instead`, what to do then.
 * *first: the first quantized row; NULL: none. */
lq_status lq_folder_alike(lq_sink *s, bool (*alike)(const lq_scheme *, const lq_scheme *), const char *instead, const lq_row **first);
/* The same as transformers' own list: null, its default, when only the head is kept; a tied head, which has no row, is named "lm_head". */
json_t *lq_folder_skipped(const lq_sink *s);
/* The most common scheme of the quantized rows, of equally common ones the first; *out unchanged when there is none. */
void lq_folder_common(const lq_sink *s, bool (*alike)(const lq_scheme *, const lq_scheme *), lq_scheme *out);
/* Which quantized rows have no zero plane, for files that cannot show it: true: all, false: none, else the module names of those that have
 * none (lq_module_set reads it). New reference; NULL: out of memory. */
json_t *lq_folder_sym(const lq_sink *s);
static inline void lq_put_u32(uint8_t *at, uint32_t w) {
    for (int i = 0; i < 4; i++) at[i] = (uint8_t)(w >> 8 * i);
}
#endif
