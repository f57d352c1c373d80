/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Metadata that is made already: pairs taken out and said anew. The bytes are those of gguf_write.c: string key, u32 type, value. */
#include "formats/gguf_write.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static uint64_t le(const uint8_t *p, size_t n) {
    uint64_t v = 0;
    for (size_t i = 0; i < n; i++) v |= (uint64_t)p[i] << 8 * i;
    return v;
}

static size_t size_of(uint32_t type) {
    static const uint8_t sizes[LQ_GGUF_TYPE_N] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < LQ_GGUF_TYPE_N ? sizes[type] : 0;
}

/* Bytes of n values of a type: strings say theirs. */
static size_t values(const uint8_t *p, uint32_t type, uint64_t n) {
    size_t at = 0;
    if (type != LQ_GGUF_STRING) return (size_t)n * size_of(type);
    for (uint64_t i = 0; i < n; i++) at += 8 + (size_t)le(p + at, 8);
    return at;
}

/* Bytes of the pair at p; the key begins behind its length. */
static size_t pair(const uint8_t *p) {
    size_t at = 8 + (size_t)le(p, 8);
    uint32_t type = (uint32_t)le(p + at, 4);
    at += 4;
    if (type != LQ_GGUF_ARRAY) return at + values(p + at, type, 1);
    return at + 12 + values(p + at + 12, (uint32_t)le(p + at, 4), le(p + at + 4, 8));
}

bool lq_gguf_drop(lq_gguf_meta *m, const char *key) {
    size_t n = strlen(key);
    uint8_t *kv = (uint8_t *)m->kv.v;
    for (size_t at = 0, step; at < m->kv.n && !m->failed; at += step) {
        step = pair(kv + at);
        if (le(kv + at, 8) != n || memcmp(kv + at + 8, key, n)) continue;
        memmove(kv + at, kv + at + step, m->kv.n - at - step);
        m->kv.n -= step;
        m->n_kv--;
        return true;
    }
    return false;
}

static bool number(const char *s, double *v) {
    char *end;
    *v = strtod(s, &end);
    return *s && !*end && isfinite(*v);
}

lq_status lq_gguf_override(lq_ctx *ctx, lq_gguf_meta *m, const char *rule) {
    const char *eq = strchr(rule, '='), *value = eq ? strchr(eq, ':') : NULL;
    char key[128];
    double v = 0;
    size_t n = eq ? (size_t)(eq - rule) : 0, type = value ? (size_t)(value - eq - 1) : 0;
    if (!n || n >= sizeof key || !value) return lq_fail(ctx, LQ_ERR_USAGE, "--override-kv %s: expected KEY=int|float|bool|str:VALUE", rule);
    memcpy(key, rule, n);
    key[n] = 0;
    value++;
    bool is_int = type == 3 && !memcmp(eq + 1, "int", 3), is_float = type == 5 && !memcmp(eq + 1, "float", 5), is_str = type == 3 && !memcmp(eq + 1, "str", 3);
    bool is_bool = type == 4 && !memcmp(eq + 1, "bool", 4) && (!strcmp(value, "true") || !strcmp(value, "false"));
    if ((is_int || is_float) && !number(value, &v)) is_int = is_float = false;
    if (is_int && (fabs(v) > UINT32_MAX || v != floor(v))) is_int = false;
    if (!is_int && !is_float && !is_str && !is_bool) return lq_fail(ctx, LQ_ERR_USAGE, "--override-kv %s: '%s' is no value of such a type (int, float, bool or str)", rule, value);
    lq_gguf_drop(m, key);
    if (is_int) lq_gguf_put_u32(m, key, (uint32_t)fabs(v)); /* as llama-quantize: its integers are u32 */
    if (is_float) lq_gguf_put_f32(m, key, (float)v);
    if (is_bool) lq_gguf_put_bool(m, key, value[0] == 't');
    if (is_str) lq_gguf_put_str(m, key, value);
    return lq_gguf_meta_check(ctx, m);
}
