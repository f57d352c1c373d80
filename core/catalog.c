/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "core/catalog.h"

#include <stdio.h>
#include <string.h>

const char *const lq_role_names[LQ_R_N] = {
#define X(name, text) text,
    LQ_ROLE_LIST(X)
#undef X
};

void lq_catalog_free(lq_catalog *c) {
    lq_arena_free(&c->mem);
    *c = (lq_catalog){0};
}

lq_row *lq_catalog_find(const lq_catalog *c, lq_slot slot, lq_part part) {
    for (size_t i = 0; i < c->n; i++) {
        const lq_slot *s = &c->rows[i].slot;
        if (s->block == slot.block && s->role == slot.role && s->expert == slot.expert && c->rows[i].part == part) return &c->rows[i];
    }
    return NULL;
}

uint64_t lq_row_elems(const lq_row *r) {
    uint64_t n = 1;
    for (uint32_t i = 0; i < r->ndim; i++) n *= r->shape[i];
    return n;
}

const char *lq_row_module(const lq_row *r, char *buf, size_t n) {
    snprintf(buf, n, "%s", r->name);
    char *dot = strrchr(buf, '.');
    if (dot && (!strcmp(dot, ".weight") || !strcmp(dot, ".bias"))) *dot = 0;
    return buf;
}
