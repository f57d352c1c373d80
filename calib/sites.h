/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Fold sites: where a producer's output channels may be divided by s and its readers' columns multiplied by it without a change
 * of the block's function. Derived by walking the op table (algorithms.md 4, 7), never typed for an architecture. */
#ifndef LQ_SITES_H
#define LQ_SITES_H
#include "calib/arch.h"

typedef enum lq_site_kind {
    LQ_SITE_NORM,    /* gain (and bias) of a norm -> every linear that reads it: router, shared expert and all experts alike */
    LQ_SITE_VALUE,   /* v -> o through attention; under GQA one scale per channel of a kv head, for all its q heads */
    LQ_SITE_UP,      /* up -> down through the gated product, which is linear in up */
    LQ_SITE_RELU,    /* fc1 -> fc2: relu(x / s) = relu(x) / s for s > 0; no other activation has it */
    LQ_SITE_KINDS
} lq_site_kind;
extern const char *const lq_site_names[LQ_SITE_KINDS]; /* "norm", "v-o", "up-down", "fc1-fc2" */

enum { LQ_SITE_READERS = 16, LQ_MAX_SITES = 16 };
typedef struct lq_site {
    lq_site_kind kind;
    lq_role producer;                /* NORM: the norm. Else the part whose rows are divided; lq_arch_holder says where it is stored */
    lq_role reader[LQ_SITE_READERS]; /* linears whose columns are multiplied, in the order of the table; an expert's role: of all experts, */
    uint32_t n;                      /*   or, when the producer is an expert's too, of that expert (one set of scales for each) */
    int32_t stage;                   /* of the first reader; a norm before experts has readers in several */
    uint32_t cols;                   /* channels of the readers' input */
    uint32_t scales;                 /* channels of the producer: fewer than cols under GQA */
} lq_site;

/* Sites of the blocks of a layer, by stage; a stage belongs to at most one. Returns their number, at most LQ_MAX_SITES. */
uint32_t lq_arch_sites(const lq_arch *a, const lq_params *p, uint32_t layer, lq_site out[LQ_MAX_SITES]);
bool lq_site_reads(const lq_site *s, lq_role role); /* is it one of the readers? */
/* Scale that belongs to column c of the readers. */
static inline uint32_t lq_site_scale(const lq_params *p, const lq_site *s, uint32_t c) {
    uint32_t d = p->head_dim, per = s->scales ? s->cols / s->scales : 1;
    return per > 1 ? c / d / per * d + c % d : c;
}
/* Why no block has a site of this kind: a static sentence; NULL when one has. */
const char *lq_arch_no_site(const lq_arch *a, const lq_params *p, lq_site_kind kind);
/* Does this linear only decide attention scores (q, k, or a matrix that holds them)? AWQ does not clip those. */
bool lq_arch_makes_scores(const lq_arch *a, const lq_params *p, lq_role role);
#endif
