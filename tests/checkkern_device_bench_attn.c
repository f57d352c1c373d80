/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Attention of one new token a sequence over a long context, by type of keys and values: 32 query heads of 8 kv heads of 128. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "device_bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEADS = 32, KV_HEADS = 8, DIM = 128, PATTERN = 1 << 12 };

typedef struct cache {
    lq_device_kv kv[DB_COPIES];
    float *q[2];
    uint32_t *pos, *seq;
    uint32_t room;
} cache;

static const char *attend(db *b, void *of, uint32_t i) {
    cache *c = of;
    const lq_device_attn a = {.heads = HEADS, .scale = 0.088f};
    const lq_device_tokens at = {.n = b->tokens, .pos = c->pos, .seq = b->tokens > 1 ? c->seq : NULL, .reach = c->room - 1};
    return b->d->ops->attn(&a, &c->kv[i % b->copies], c->q[i % 2], &at, c->q[1 - i % 2]);
}

static void drop(db *b, cache *c) {
    for (uint32_t i = 0; i < b->copies; i++) {
        void *held[] = {c->kv[i].keys, c->kv[i].values, c->kv[i].key_step, c->kv[i].value_step};
        for (size_t j = 0; j < sizeof held / sizeof *held; j++) b->d->release(held[j]);
    }
    void *held[] = {c->q[0], c->q[1], c->pos, c->seq};
    for (size_t j = 0; j < sizeof held / sizeof *held; j++) b->d->release(held[j]);
    b->copies = 0;
}

static bool make_kv(db *b, lq_dtype type, uint32_t room, const void *values, size_t length, lq_device_kv *kv) {
    const size_t steps = (size_t)b->tokens * room * KV_HEADS, bytes = steps * DIM * lq_dtypes[type].bytes;
    const float step = 0.01f;
    const bool stepped = lq_dtypes[type].bytes == 1;
    *kv = (lq_device_kv){.dtype = (uint8_t)type, .heads = KV_HEADS, .dim = DIM, .room = room, .keys = db_filled(b, bytes, values, length), .values = db_filled(b, bytes, values, length)};
    if (stepped) kv->key_step = db_filled(b, steps * 4, &step, 4), kv->value_step = db_filled(b, steps * 4, &step, 4);
    return kv->keys && kv->values && (!stepped || (kv->key_step && kv->value_step));
}

static bool make(db *b, lq_dtype type, uint32_t room, double bytes, cache *c) {
    uint8_t values[2 * PATTERN];
    float x[PATTERN];
    uint32_t pos[DB_TOKENS], seq[DB_TOKENS], want = db_copies(b, bytes);
    for (int i = 0; i < PATTERN; i++) x[i] = lq_rng_normal(&b->rng);
    for (uint32_t i = 0; i < DB_TOKENS; i++) pos[i] = room - 1, seq[i] = i;
    for (int i = 0; i < PATTERN; i++) values[i] = type == LQ_E4M3 ? lq_f32_e4m3(x[i] * 100) : (uint8_t)(int8_t)(x[i] * 30);
    if (type == LQ_F16) lq_dtype_encode(LQ_F16, x, values, PATTERN);
    c->room = room;
    bool ok = true;
    for (b->copies = 0; ok && b->copies < want; b->copies++) ok = make_kv(b, type, room, values, PATTERN * lq_dtypes[type].bytes, &c->kv[b->copies]);
    const size_t q = (size_t)DB_TOKENS * HEADS * DIM * 4;
    for (int i = 0; i < 2; i++) c->q[i] = db_filled(b, q, x, sizeof x);
    c->pos = db_filled(b, sizeof pos, pos, sizeof pos);
    c->seq = db_filled(b, sizeof seq, seq, sizeof seq);
    return ok && c->q[0] && c->q[1] && c->pos && c->seq;
}

bool db_attention(db *b) {
    static const struct { lq_dtype type; const char *what; } types[] = {{LQ_F16, "attention, fp16 KV"}, {LQ_I8, "attention, int8 KV"}, {LQ_E4M3, "attention, fp8 KV"}};
    static const uint32_t tokens[] = {1, 8, 16};
    static cache c;
    const uint32_t room = b->small ? 64 : 32768;
    char shape[32];
    bool ok = true;
    snprintf(shape, sizeof shape, "context %u", room);
    for (size_t i = 0; ok && i < sizeof tokens / sizeof *tokens; i++)
        for (size_t t = 0; ok && t < sizeof types / sizeof *types; t++) {
            const double each = DIM * lq_dtypes[types[t].type].bytes + (types[t].type == LQ_F16 ? 0 : 4), bytes = 2.0 * tokens[i] * room * KV_HEADS * each;
            c = (cache){.room = room};
            b->tokens = tokens[i];
            ok = make(b, types[t].type, room, bytes, &c);
            if (!ok) printf("checkkern: no memory for %s of %u sequences\n", types[t].what, tokens[i]);
            for (int mode = DB_CHAIN; ok && mode < DB_MODES && db_can(b, (db_mode)mode); mode++) { /* spans share scratch */
                b->mode = (db_mode)mode;
                ok = db_measure(b, types[t].what, shape, bytes, attend, &c);
            }
            drop(b, &c);
        }
    return ok;
}
