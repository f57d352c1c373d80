/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What readers of quantized safetensors folders share: the raw folder is opened underneath, the tensors "<module><suffix>" of a module
 * become one entry "<module>.weight", everything else passes through. Such a reader is a config, a describe and a fill:
 *
 *     const lq_reader lq_reader_x = { .name = "x", .probe = probe, .open = open, LQ_MODULES_CALLS };
 *     static lq_status open(lq_ctx *ctx, lq_source *s) { return lq_modules_open(ctx, s, &parts); }
 */
#ifndef LQ_MODULES_H
#define LQ_MODULES_H
#include "formats/source.h"

enum { LQ_MODULE_PARTS = 12 };
typedef struct lq_module { long part[LQ_MODULE_PARTS]; } lq_module; /* entries of the raw folder; -1: absent */

typedef struct lq_module_format {
    const char *suffix[LQ_MODULE_PARTS + 1]; /* ".qweight" first: the tensor that makes a module; NULL ends */
    unsigned required;       /* bit per suffix: a module without it is broken */
    unsigned common;         /* bit per suffix that, without the first beside it, is anybody's name (".scales") and passes through; others are refused */
    size_t priv_size;        /* of lq_modules.priv, zeroed */
    lq_status (*config)(lq_ctx *ctx, lq_source *s);            /* reads s->config into priv; may be NULL */
    void (*free_priv)(void *priv);                             /* what config allocated; may be NULL */
    /* Module `name` with these parts (required ones present): sets e->ndim, shape and scheme (checked against the parts' types and shapes),
     * or *plain: the first part is an ordinary tensor, there are no others. e->name and bytes are set by the caller. */
    lq_status (*describe)(lq_ctx *ctx, lq_source *s, const char *name, const lq_module *m, lq_entry *e, bool *plain);
    /* Codes, planes and extras of entry i into q, which is initialized; what q then holds is checked by the caller. */
    lq_status (*fill)(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *q);
} lq_module_format;

typedef struct lq_modules {  /* s->priv of such a reader */
    const lq_module_format *format;
    lq_source *raw;
    lq_module *modules;      /* [entries]; a tensor that passes through: part[0] alone */
    void *priv;
} lq_modules;

lq_status lq_modules_open(lq_ctx *ctx, lq_source *s, const lq_module_format *f);
lq_status lq_modules_read(lq_ctx *ctx, lq_source *s, size_t i, uint64_t row0, uint64_t rows, void *out);
lq_status lq_modules_read_q(lq_ctx *ctx, lq_source *s, size_t i, lq_qtensor *out);
lq_status lq_modules_sidecar(lq_ctx *ctx, lq_source *s, size_t i, lq_buf *out);
void lq_modules_close(lq_source *s);
#define LQ_MODULES_CALLS .read = lq_modules_read, .read_q = lq_modules_read_q, .sidecar = lq_modules_sidecar, .close = lq_modules_close

static inline void *lq_modules_priv(const lq_source *s) { return ((lq_modules *)s->priv)->priv; }
/* The raw entry of a part; NULL: absent. */
static inline const lq_entry *lq_modules_entry(const lq_source *s, const lq_module *m, size_t part) {
    return m->part[part] < 0 ? NULL : &((lq_modules *)s->priv)->raw->entries[m->part[part]];
}
/* Does config.json's quantization_config name this quant_method? Without one: is there the file of older checkpoints, `legacy`, in the folder? */
bool lq_modules_probe(const char *path, const json_t *config, const char *method, const char *legacy);
/* That quantization_config, or what `legacy` holds: an object, a new reference (also after a failure, unless *out is NULL). */
lq_status lq_modules_config(lq_ctx *ctx, const lq_source *s, const char *legacy, json_t **out);
/* Part of entry i, whole, as stored; the caller frees *out (also after a failure). *out NULL: absent. */
lq_status lq_modules_part(lq_ctx *ctx, lq_source *s, size_t i, size_t part, void **out);
/* The codes of entry i, row after row without padding, from a part of exactly rows * ceil(cols * bits / 8) bytes. */
lq_status lq_modules_codes(lq_ctx *ctx, lq_source *s, size_t i, size_t part, lq_qtensor *q);
/* The first n elements of a part, F32, F16 or BF16, as floats; the first one. */
lq_status lq_modules_floats(lq_ctx *ctx, lq_source *s, size_t i, size_t part, size_t n, float *out);
lq_status lq_modules_scalar(lq_ctx *ctx, lq_source *s, size_t i, size_t part, float *out);
/* Modules named by lquant's own "sym" (lq_folder_sym): true, false or an array of names, which is borrowed. */
typedef struct lq_module_set { bool all; struct lq_nameset *names; } lq_module_set;
lq_status lq_module_set_read(lq_ctx *ctx, const json_t *v, lq_module_set *out); /* freed by the caller also after a failure */
bool lq_module_set_has(const lq_module_set *m, const char *name);
void lq_module_set_free(lq_module_set *m);
/* LQ_ERR_FORMAT unless e is one element of F32, F16 or BF16, whatever its dimensions. */
lq_status lq_entry_scalar(lq_ctx *ctx, const lq_entry *e);
/* LQ_ERR_FORMAT naming the tensor unless it has an allowed type and this shape. */
lq_status lq_entry_expect(lq_ctx *ctx, const lq_entry *e, bool dtype_ok, uint32_t ndim, uint64_t d0, uint64_t d1);
/* Act-order, g_idx[cols] the group of each input: rank[cols], where each input goes among the stored columns (sorted by group, stably), and
 * q->perm. LQ_ERR_FORMAT unless every group of q's scheme gets as many inputs as it holds. */
lq_status lq_columns_by_group(lq_ctx *ctx, const int32_t *g_idx, lq_qtensor *q, uint32_t *rank);
#endif
