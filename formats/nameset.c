/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Open addressing, linear probing, at most half full; hash: SipHash-2-4 (Aumasson, Bernstein 2012) under a key drawn per set. */
#define _DEFAULT_SOURCE
#include "formats/nameset.h"

#include <string.h>
#include <sys/random.h>
#include <utf8proc.h>

typedef struct cell { const char *name; size_t value; } cell;
struct lq_nameset { cell *cells; size_t cap, n; uint64_t k0, k1; };

static uint64_t rotl(uint64_t x, int b) { return x << b | x >> (64 - b); }

static void sip_round(uint64_t v[4]) {
    v[0] += v[1]; v[1] = rotl(v[1], 13) ^ v[0]; v[0] = rotl(v[0], 32);
    v[2] += v[3]; v[3] = rotl(v[3], 16) ^ v[2];
    v[0] += v[3]; v[3] = rotl(v[3], 21) ^ v[0];
    v[2] += v[1]; v[1] = rotl(v[1], 17) ^ v[2]; v[2] = rotl(v[2], 32);
}

static uint64_t hash(const lq_nameset *s, const char *name) {
    uint64_t v[4] = {s->k0 ^ 0x736f6d6570736575u, s->k1 ^ 0x646f72616e646f6du, s->k0 ^ 0x6c7967656e657261u, s->k1 ^ 0x7465646279746573u};
    size_t n = strlen(name), left = n;
    for (bool last = false; !last; name += 8) {
        uint64_t m = 0;
        last = left < 8;
        memcpy(&m, name, last ? left : 8);
        if (last) m |= (uint64_t)n << 56;
        else left -= 8;
        v[3] ^= m;
        sip_round(v);
        sip_round(v);
        v[0] ^= m;
    }
    v[2] ^= 0xff;
    for (int i = 0; i < 4; i++) sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

static cell *seek(const lq_nameset *s, const char *name) {
    size_t i = (size_t)hash(s, name) & (s->cap - 1);
    while (s->cells[i].name && strcmp(s->cells[i].name, name)) i = (i + 1) & (s->cap - 1);
    return &s->cells[i];
}

lq_nameset *lq_nameset_new(void) {
    lq_nameset *s = LQ_NEW(lq_nameset);
    if (!s) return NULL;
    uint64_t key[2] = {(uint64_t)(uintptr_t)s, (uint64_t)(uintptr_t)&key};
    if (getentropy(key, sizeof key)) key[1] ^= key[0] << 17; /* no entropy device: the address layout must do */
    s->k0 = key[0];
    s->k1 = key[1];
    s->cap = 64;
    s->cells = LQ_NEWN(cell, s->cap);
    if (!s->cells) lq_nameset_free(&s);
    return s;
}

void lq_nameset_free(lq_nameset **s) {
    if (!*s) return;
    lq_free((*s)->cells);
    lq_free(*s);
    *s = NULL;
}

static bool grow(lq_nameset *s) {
    lq_nameset more = *s;
    more.cap = s->cap * 2;
    more.cells = LQ_NEWN(cell, more.cap);
    if (!more.cells) return false;
    for (size_t i = 0; i < s->cap; i++)
        if (s->cells[i].name) *seek(&more, s->cells[i].name) = s->cells[i];
    lq_free(s->cells);
    *s = more;
    return true;
}

lq_status lq_nameset_add(lq_nameset *s, const char *name, size_t value) {
    if (s->n * 2 >= s->cap && !grow(s)) return LQ_ERR_RESOURCE;
    cell *c = seek(s, name);
    if (c->name) return LQ_ERR_FORMAT;
    *c = (cell){name, value};
    s->n++;
    return LQ_OK;
}

long lq_nameset_find(const lq_nameset *s, const char *name) {
    if (!s) return -1;
    const cell *c = seek(s, name);
    return c->name ? (long)c->value : -1;
}

bool lq_name_is_sound(const char *name, size_t n, size_t max) {
    if (!n || n > max) return false;
    for (size_t i = 0; i < n;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t step = utf8proc_iterate((const utf8proc_uint8_t *)name + i, (utf8proc_ssize_t)(n - i), &c);
        if (step <= 0 || c < 32 || (c >= 127 && c < 160) || c == '/' || c == '\\') return false;
        i += (size_t)step;
    }
    return true;
}
