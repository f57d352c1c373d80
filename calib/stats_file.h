/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Statistics of a model's activations in a file: gathered once, merged, read by every method instead of running the model.
 *
 * A safetensors file. Linears that read one tensor share one item, named after the first of them ("model.layers.0.self_attn.q_proj"):
 *
 *   ITEM.tokens    I64 [2]          tokens seen; of an expert: tokens routed to it (else 0)
 *   ITEM.sum_x2    F64 [k]          sum of x^2 over tokens
 *   ITEM.sum_abs   F64 [k]          sum of |x|
 *   ITEM.absmax    F32 [k]          largest |x|
 *   ITEM.gram      F64 [k(k+1)/2]   sum of x x^T, lower triangle row by row; in files with Hessians
 *   ITEM.sampled   I64 [1]          m <= 1024, tokens sampled
 *   ITEM.samples   F32 [1024 k]     their x, one after the other, then zeros; both in files with samples
 *   identity       U8  [n]          JSON: {"lquant_stats": 1, "model": {...}, "weights": hex, "calibration": [{...}, ...]}
 *
 * Everything but absmax and the samples is a sum, so files of disjoint texts merge by adding; of sampled tokens each file gives a part
 * in proportion to its tokens, evenly spread. An expert's sum_x2 and gram are weighted and hold
 * their prior already (calib/experts.c), which adding does not undo. */
#ifndef LQ_STATS_FILE_H
#define LQ_STATS_FILE_H
#include "calib/stats.h"
#include "core/json.h"
#include "formats/safetensors.h"

typedef struct lq_stats_item { const char *name; uint32_t cols; } lq_stats_item;

/* Writing. extra: LQ_NEED_GRAM, LQ_NEED_SAMPLES: what the file holds besides. dir exists; the file is DIR/model.safetensors. Items in any order, each once; names are borrowed until finish. */
typedef struct lq_stats_writer lq_stats_writer;
lq_status lq_stats_create(lq_ctx *ctx, const char *dir, const lq_stats_item *items, size_t n, unsigned extra, const json_t *identity, lq_stats_writer **out);
lq_status lq_stats_put(lq_ctx *ctx, lq_stats_writer *w, const char *name, const lq_stats *s);
lq_status lq_stats_finish(lq_ctx *ctx, lq_stats_writer **w); /* LQ_ERR_QUALITY when an item is missing; *w = NULL always */
void lq_stats_abandon(lq_stats_writer **w);

/* Reading. The header is checked completely: every item whole, shapes agreeing, nothing else in the file. */
typedef struct lq_stats_file {
    lq_st_file st;
    json_t *identity;
    lq_stats_item *items;
    struct lq_nameset *tensors, *names; /* lookup: st.tensors, items */
    size_t n;
    unsigned extra; /* LQ_NEED_GRAM, LQ_NEED_SAMPLES */
} lq_stats_file;
lq_status lq_stats_open(lq_ctx *ctx, const char *path, lq_stats_file *out);
const lq_stats_item *lq_stats_find(const lq_stats_file *f, const char *name); /* NULL: absent */
/* One item; its values finite and possible (no negative sums, |g_ij| <= sqrt(g_ii g_jj)). want: LQ_NEED_GRAM, LQ_NEED_SAMPLES, where there. */
lq_status lq_stats_read(lq_ctx *ctx, const lq_stats_file *f, const char *name, unsigned want, lq_stats *out);
void lq_stats_close(lq_stats_file *f);
/* The sum of n >= 1 files of one model into DIR/model.safetensors; "model", "weights" and items must be the same (LQ_ERR_MISMATCH). */
lq_status lq_stats_merge(lq_ctx *ctx, const lq_stats_file *files, size_t n, const char *dir);
#endif
