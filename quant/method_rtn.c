/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* RTN: every weight to the nearest point of its tile's grid. Data-free; the field's min-max range by default, a search for the
 * scales on request, weighted by the activations' second moments when calibration gathered them. algorithms.md 1.
 *
 * nf4, fp4 (Dettmers et al. 2023, arXiv 2305.14314: as bitsandbytes), fp8 (OCP FP8, as llm-compressor and vLLM), mxfp4 (OCP MX 1.0)
 * and nvfp4 (NVIDIA) are RTN with another type by default and an option or two; algorithms.md 9, 11. */
#include "quant/grid.h"
#include "quant/method.h"
#include "quant/proxy.h"

enum { GRANULARITY_TYPE, GRANULARITY_TENSOR, GRANULARITY_ROW, GRANULARITY_BLOCK };
typedef struct rtn_opts { int search, signed_scales, double_quant, granularity; } rtn_opts;

#define SEARCH {"search", NULL, LQ_OPT_SET, offsetof(rtn_opts, search), NULL, NULL, NULL, 0, 0, 1, "search the scales that lose least, not min-max; --stats: weighed by the inputs"}
#define SIGNED(grids) \
    {"signed-scales", NULL, LQ_OPT_SET, offsetof(rtn_opts, signed_scales), NULL, NULL, NULL, 0, 0, 1, "~let --search use negative scales" grids}

static const lq_opt options[] = {SEARCH, SIGNED(" (symmetric grids)"), {0}};
static const lq_opt table_options[] = {
    {"double-quant", "bnb-4bit-use-double-quant", LQ_OPT_SET, offsetof(rtn_opts, double_quant), NULL, NULL, NULL, 0, 0, 1, "8-bit block scales, bitsandbytes' way"},
    SEARCH, SIGNED(""), {0}};
static const lq_opt fp8_options[] = {
    {"granularity", NULL, LQ_OPT_CHOICE, offsetof(rtn_opts, granularity), NULL, "type", "type|tensor|row|block", 0, 0, 0,
     "scales: as the type says, one, of rows, of 128 x 128 (activations: 128)"},
    SEARCH, {0}};
static const lq_opt float_options[] = {SEARCH, {0}};

static lq_status accept(lq_ctx *ctx, const void *opts, uint32_t rows, uint32_t cols, const lq_scheme *s) {
    (void)opts, (void)rows;
    if (s->extra & ~(uint32_t)LQ_X_LUT_PER_ROW) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "rounding to nearest keeps nothing beside the codes");
    return lq_grid_accept(ctx, s, cols);
}

static lq_status second_moments(lq_ctx *ctx, const lq_stats *stats, float **out) {
    *out = lq_calloc(stats->cols, sizeof **out);
    if (!*out) return lq_oom(ctx, stats->cols * sizeof **out);
    double mean = 0;
    for (uint32_t c = 0; c < stats->cols; c++) mean += lq_stats_second(stats, c) / stats->cols;
    for (uint32_t c = 0; c < stats->cols; c++) /* the floor keeps columns the sample hardly touched */
        (*out)[c] = mean > 0 ? (float)(lq_stats_second(stats, c) / mean + 0.01) : 1;
    return LQ_OK;
}

static lq_status quantize(lq_ctx *ctx, const void *opts, const lq_weights *w, const lq_scheme *s, const lq_stats *stats, lq_qtensor *out,
                          lq_outcome *o) {
    const rtn_opts *opt = opts;
    bool measured = stats && (stats->needs & LQ_NEED_GRAM) && stats->n;
    lq_fit how = !opt->search ? LQ_FIT_MINMAX : opt->signed_scales ? LQ_FIT_SEARCH_SIGNED : LQ_FIT_SEARCH;
    float *h = NULL;
    lq_status st = LQ_OK;
    *o = (lq_outcome){.method = "rtn", .err_h = -1, .err_h_rtn = -1, .damp = -1};
    LQ_TRY(lq_qtensor_init(ctx, out, s, w->slot, w->rows, w->cols));
    if (stats && stats->n && stats->needs & (LQ_NEED_GRAM | LQ_NEED_SQUARES) && opt->search) LQ_GO(second_moments(ctx, stats, &h));
    lq_grid_fuse(out, w->fuse_absmax);
    LQ_GO(lq_grid_fit(ctx, out, w->w, h, how));
    lq_grid_round(out, w->w);
    LQ_GO(lq_weight_error(ctx, w->w, out, &o->err_w));
    if (measured) LQ_GO(lq_proxy_error(ctx, w->w, out, &stats->gram, &o->err_h));
    o->err_h_rtn = o->err_h;
done:
    lq_free(h);
    if (!st) return LQ_OK;
    lq_qtensor_free(out);
    return lq_note(ctx, st, "%s", w->name);
}

static bool searches(const void *opts) { return ((const rtn_opts *)opts)->search; }

static void double_quant(const void *opts, lq_scheme *s) {
    const rtn_opts *o = opts;
    if (!o->double_quant || s->grid.kind != LQ_GRID_LUT || s->scale.dtype != LQ_F32 || s->scale.parent != LQ_NONE) return;
    s->scale.dtype = LQ_U8;
    s->scale.parent = LQ_F32;
    s->scale.span = 256;
}

static void granularity(const void *opts, lq_scheme *s) {
    const rtn_opts *o = opts;
    if (o->granularity == GRANULARITY_TYPE || s->grid.kind != LQ_GRID_E4M3 || s->scale.dtype != LQ_F32) return;
    s->scale.tile_r = o->granularity == GRANULARITY_BLOCK ? 128 : o->granularity == GRANULARITY_ROW;
    s->scale.tile_c = o->granularity == GRANULARITY_BLOCK ? 128 : 0;
    s->act.tile = o->granularity == GRANULARITY_BLOCK && s->act.kind ? 128 : 0;
}

#define ROW .opts_size = sizeof(rtn_opts), .searches = searches, .accept = accept, .quantize = quantize

const lq_method lq_method_rtn = {.name = "rtn", .what = "round to nearest: no calibration data", .paper = "folklore; grids as in Frantar et al. 2022, arXiv 2210.17323",
                                 .opts = options, ROW};
const lq_method lq_method_nf4 = {.name = "nf4", .format = "bitsandbytes", .what = "NormalFloat in blocks of 64, as bitsandbytes: no calibration data",
                                 .paper = "Dettmers et al. 2023, arXiv 2305.14314", .type = "NF4", .opts = table_options, .refine = double_quant, ROW};
const lq_method lq_method_fp4 = {.name = "fp4", .format = "bitsandbytes", .what = "4-bit floats in blocks of 64, as bitsandbytes: no calibration data",
                                 .paper = "Dettmers et al. 2023, arXiv 2305.14314", .type = "FP4", .opts = table_options, .refine = double_quant, ROW};
const lq_method lq_method_fp8 = {.name = "fp8", .format = "compressed-tensors", .what = "E4M3 weights and activations: no calibration data", .paper = "Micikevicius et al. 2022, arXiv 2209.05433",
                                 .type = "FP8", .opts = fp8_options, .refine = granularity, ROW};
const lq_method lq_method_mxfp4 = {.name = "mxfp4", .format = "compressed-tensors", .what = "E2M1 with a power of two for 32 weights: no calibration data",
                                   .paper = "Rouhani et al. 2023, arXiv 2310.10537; OCP MX 1.0", .type = "MXFP4", .opts = float_options, ROW};
const lq_method lq_method_nvfp4 = {.name = "nvfp4", .format = "compressed-tensors", .what = "E2M1 with an E4M3 scale for 16 weights: no calibration data",
                                   .paper = "NVIDIA 2025, arXiv 2509.25149", .type = "NVFP4", .opts = float_options, ROW};
