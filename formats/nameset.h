/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Name -> number, for tensor names and keys of hostile files: keyed hash, so that no chosen names can make it slow. */
#ifndef LQ_NAMESET_H
#define LQ_NAMESET_H
#include "core/mem.h"

typedef struct lq_nameset lq_nameset;
lq_nameset *lq_nameset_new(void); /* NULL: out of memory */
void lq_nameset_free(lq_nameset **s);
/* name is borrowed and must outlive the set. LQ_ERR_FORMAT (no sentence) when the name is there already. */
lq_status lq_nameset_add(lq_nameset *s, const char *name, size_t value);
long lq_nameset_find(const lq_nameset *s, const char *name); /* -1: absent; s may be NULL */

/* May this be the name of a tensor or the key of a metadata value? Non-empty, at most max bytes, valid UTF-8 without control
 * characters, '/' and '\'. */
bool lq_name_is_sound(const char *name, size_t n, size_t max);
#endif
