/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Byte-pair encoding of one word: of all neighbouring pairs the one with the lowest rank, then the leftmost, is merged
 * until none is left. A heap over a linked list: O(n log n). SentencePiece's merge by score is the same with rank =
 * order of the score. */
#include "calib/tok_impl.h"

#define NIL UINT32_MAX

lq_status lq_tok_run_init(lq_ctx *ctx, const lq_tokenizer *t, lq_tok_run *r, size_t n) {
    *r = (lq_tok_run){.ctx = ctx, .t = t};
    if (n > UINT32_MAX / 8)
        return lq_fail(ctx, LQ_ERR_RESOURCE, "a text of %zu bytes is too long to tokenize in one go", n);
    uint32_t cells = 64;
    while (cells < n / 8 && cells < 1 << 15) cells *= 2;
    r->cache = n > 256 ? LQ_NEWN(lq_tok_word, cells) : NULL;
    r->cache_mask = cells - 1;
    return n <= 256 || r->cache ? LQ_OK : lq_oom(ctx, cells * sizeof *r->cache);
}

void lq_tok_run_free(lq_tok_run *r) {
    for (int i = 0; i < 2; i++) lq_buf_free(&r->norm[i]);
    for (int i = 0; i < LQ_TOK_STEPS; i++) lq_buf_free(&r->level[i]);
    lq_tok_regex_end(r);
    lq_free(r->sym);
    lq_free(r->heap);
    lq_free(r->cps);
    lq_free(r->cache);
}

static lq_status sym_add(lq_tok_run *r, size_t *k, int32_t id, size_t at, size_t len) {
    if (*k == r->sym_cap) {
        size_t cap = r->sym_cap ? r->sym_cap * 2 : 64;
        lq_tok_sym *v = lq_realloc(r->sym, r->sym_cap * sizeof *v, cap * sizeof *v);
        if (!v) return lq_oom(r->ctx, cap * sizeof *v);
        r->sym = v;
        r->sym_cap = cap;
    }
    r->sym[(*k)++] = (lq_tok_sym){.id = id, .at = (uint32_t)at, .len = (uint32_t)len, .next = NIL};
    return LQ_OK;
}

static bool has_bytes(const lq_tokenizer *t, const char *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (t->byte_id[(uint8_t)s[i]] < 0) return false;
    return true;
}

/* Characters as symbols. One that is no token becomes its bytes, or the unknown token (a run of them one, with
 * fuse_unk), or nothing. The unknown token waits until the next known character, so bytes overtake it, as in
 * `tokenizers`. */
static lq_status symbols(lq_tok_run *r, const char *s, size_t n, size_t *count) {
    const lq_tokenizer *t = r->t;
    size_t k = 0, unk_at = 0, unk_len = 0;
    for (size_t i = 0, len; i < n; i += len) {
        len = lq_utf8_len(s[i]);
        if (len > n - i) len = n - i;
        int32_t id = lq_tok_find(t, s + i, len);
        if (id >= 0) {
            if (unk_len) LQ_TRY(sym_add(r, &k, t->unk, unk_at, unk_len));
            unk_len = 0;
            LQ_TRY(sym_add(r, &k, id, i, len));
        } else if (t->byte_fallback && has_bytes(t, s + i, len)) {
            for (size_t b = 0; b < len; b++) LQ_TRY(sym_add(r, &k, t->byte_id[(uint8_t)s[i + b]], i + b, 1));
        } else if (t->unk_name) {
            if (t->unk < 0)
                return lq_fail(
                    r->ctx, LQ_ERR_FORMAT,
                    "the text has an unknown character, and the unknown token '%.64s' is not in the vocabulary",
                    t->unk_name);
            if (unk_len && !t->fuse_unk) {
                LQ_TRY(sym_add(r, &k, t->unk, unk_at, unk_len));
                unk_len = 0;
            }
            if (!unk_len) unk_at = i;
            unk_len += len;
        }
    }
    if (unk_len) LQ_TRY(sym_add(r, &k, t->unk, unk_at, unk_len));
    for (size_t i = 0; i < k; i++) {
        r->sym[i].prev = i ? (uint32_t)i - 1 : NIL;
        r->sym[i].next = i + 1 < k ? (uint32_t)i + 1 : NIL;
    }
    *count = k;
    return LQ_OK;
}

static lq_status heap_push(lq_tok_run *r, uint64_t key) {
    if (r->heap_n == r->heap_cap) {
        size_t cap = r->heap_cap ? r->heap_cap * 2 : 64;
        uint64_t *v = lq_realloc(r->heap, r->heap_cap * sizeof *v, cap * sizeof *v);
        if (!v) return lq_oom(r->ctx, cap * sizeof *v);
        r->heap = v;
        r->heap_cap = cap;
    }
    size_t i = r->heap_n++;
    for (; i && r->heap[(i - 1) / 2] > key; i = (i - 1) / 2) r->heap[i] = r->heap[(i - 1) / 2];
    r->heap[i] = key;
    return LQ_OK;
}

static uint64_t heap_pop(lq_tok_run *r) {
    uint64_t top = r->heap[0], key = r->heap[--r->heap_n];
    size_t i = 0, n = r->heap_n;
    for (size_t c; (c = 2 * i + 1) < n; i = c) {
        c += c + 1 < n && r->heap[c + 1] < r->heap[c];
        if (r->heap[c] >= key) break;
        r->heap[i] = r->heap[c];
    }
    r->heap[i] = key;
    return top;
}

static const lq_tok_pair *pair_at(const lq_tok_run *r, uint32_t pos) {
    const lq_tok_sym *a = r->sym + pos;
    return a->next == NIL ? NULL : lq_tok_pairs_find(&r->t->merges, (uint32_t)a->id, (uint32_t)r->sym[a->next].id);
}

static lq_status offer(lq_tok_run *r, uint32_t pos) {
    const lq_tok_pair *p = pos == NIL ? NULL : pair_at(r, pos);
    return p ? heap_push(r, (uint64_t)p->x << 32 | pos) : LQ_OK;
}

static lq_status merge_all(lq_tok_run *r, size_t k) {
    r->heap_n = 0;
    for (size_t i = 0; i + 1 < k; i++) LQ_TRY(offer(r, (uint32_t)i));
    while (r->heap_n) {
        uint64_t top = heap_pop(r);
        uint32_t pos = (uint32_t)top;
        lq_tok_sym *a = r->sym + pos;
        if (!(++r->ticks & 0xffff)) LQ_TRY(lq_check_cancel(r->ctx));
        if (!a->len) continue;
        const lq_tok_pair *p = pair_at(r, pos);
        if (!p || p->x != top >> 32) continue; /* the pair has changed since it was queued */
        lq_tok_sym *b = r->sym + a->next;
        a->id = (int32_t)p->y;
        a->len += b->len;
        a->next = b->next;
        b->len = 0;
        if (a->next != NIL) r->sym[a->next].prev = pos;
        LQ_TRY(offer(r, a->prev));
        LQ_TRY(offer(r, pos));
    }
    return LQ_OK;
}

static lq_status push(lq_tok_run *r, int32_t id) {
    return lq_ids_add(r->out, id) ? LQ_OK : lq_oom(r->ctx, r->out->n * sizeof id);
}

/* A character that only occurs inside pieces ended up alone. */
static lq_status push_bytes(lq_tok_run *r, const char *s, size_t n) {
    const lq_tokenizer *t = r->t;
    if (!has_bytes(t, s, n)) return t->unk < 0 ? LQ_OK : push(r, t->unk);
    for (size_t i = 0; i < n; i++) LQ_TRY(push(r, t->byte_id[(uint8_t)s[i]]));
    return LQ_OK;
}

static uint32_t hash_word(const char *s, size_t n) {
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) h = (h ^ (uint8_t)s[i]) * 0x100000001b3u;
    return (uint32_t)(h ^ h >> 29);
}

static lq_tok_word *cache_cell(lq_tok_run *r, const char *s, size_t n) {
    if (!r->cache || n > sizeof r->cache->key) return NULL;
    return r->cache + (hash_word(s, n) & r->cache_mask);
}

static void remember(lq_tok_word *c, const char *s, size_t n, const int32_t *ids, size_t k) {
    if (k > sizeof c->id / sizeof *c->id) return;
    c->len = (uint8_t)n;
    c->n = (uint8_t)k;
    memcpy(c->key, s, n);
    memcpy(c->id, ids, k * sizeof *ids);
}

static lq_status word(lq_tok_run *r, const char *s, size_t n) {
    lq_tok_word *c = cache_cell(r, s, n);
    if (c && c->len == n && !memcmp(c->key, s, n)) {
        for (uint32_t i = 0; i < c->n; i++) LQ_TRY(push(r, c->id[i]));
        return LQ_OK;
    }
    size_t k = 0, from = r->out->n;
    if (!(++r->ticks & 0xffff)) LQ_TRY(lq_check_cancel(r->ctx));
    LQ_TRY(symbols(r, s, n, &k));
    LQ_TRY(merge_all(r, k));
    for (size_t i = 0; i < k; i++) {
        const lq_tok_sym *a = r->sym + i;
        if (a->len) LQ_TRY(a->id < (int32_t)r->t->n_real ? push(r, a->id) : push_bytes(r, s + a->at, a->len));
    }
    if (c) remember(c, s, n, r->out->v + from, r->out->n - from);
    return LQ_OK;
}

lq_status lq_tok_bpe(lq_tok_run *r, const char *s, size_t n) {
    int32_t whole = r->t->ignore_merges ? lq_tok_find(r->t, s, n) : -1;
    if (whole >= 0) return push(r, whole);
    if (!r->t->cut) return word(r, s, n);
    static const char mark[] = "\xe2\x96\x81";
    size_t from = 0;
    for (size_t i = 3; i + 3 <= n;) { /* in front of a mark whose predecessor is none */
        const char *p = memchr(s + i, mark[0], n - i);
        if (!p || (i = (size_t)(p - s)) + 3 > n) break;
        if (!memcmp(p, mark, 3) && memcmp(p - 3, mark, 3)) {
            LQ_TRY(word(r, s + from, i - from));
            from = i;
        }
        i++;
    }
    return word(r, s + from, n - from);
}
