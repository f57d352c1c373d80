/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Vocabulary tables of a tokenizer: strings to ids, pairs to merges, tries of added tokens, and UTF-8. Every count is
 * bounded by what the caller has already read. */
#include "calib/tok_impl.h"

static uint32_t pow2_above(size_t n) {
    uint32_t p = 16;
    while (p < n) p *= 2;
    return p;
}

static uint64_t mix(uint64_t h) {
    h ^= h >> 32;
    h *= 0xd6e8feb86659fd93u;
    h ^= h >> 32;
    h *= 0xd6e8feb86659fd93u;
    return h ^ h >> 32;
}

static uint32_t hash_text(const char *s, size_t n) {
    uint64_t h = n * 0x9e3779b97f4a7c15u;
    for (; n >= 8; n -= 8, s += 8) {
        uint64_t v;
        memcpy(&v, s, 8);
        h = mix(h ^ v);
    }
    uint64_t v = 0;
    memcpy(&v, s, n);
    return (uint32_t)mix(h ^ v);
}

lq_status lq_tok_map_init(lq_ctx *ctx, lq_tok_map *m, lq_arena *mem, size_t n) {
    if (n > LQ_TOK_ID_MAX) return lq_fail(ctx, LQ_ERR_FORMAT, "%zu tokens, at most %d are read", n, LQ_TOK_ID_MAX);
    uint32_t cap = pow2_above(n * 2 + 1);
    m->slot = lq_arena_alloc(mem, cap * sizeof *m->slot);
    m->mask = cap - 1;
    m->n = 0;
    return m->slot ? LQ_OK : lq_oom(ctx, cap * sizeof *m->slot);
}

uint32_t lq_tok_map_find(const lq_tok_map *m, const lq_tok_str *items, const char *s, size_t n) {
    if (!m->slot) return LQ_TOK_NONE;
    for (uint32_t i = hash_text(s, n) & m->mask; m->slot[i]; i = (i + 1) & m->mask) {
        const lq_tok_str *it = items + m->slot[i] - 1;
        if (it->n == n && !memcmp(it->s, s, n)) return m->slot[i] - 1;
    }
    return LQ_TOK_NONE;
}

void lq_tok_map_put(lq_tok_map *m, const lq_tok_str *items, uint32_t index) {
    uint32_t i = hash_text(items[index].s, items[index].n) & m->mask;
    while (m->slot[i]) i = (i + 1) & m->mask;
    m->slot[i] = index + 1;
    m->n++;
}

lq_status lq_tok_pairs_init(lq_ctx *ctx, lq_tok_pairs *p, lq_arena *mem, size_t n) {
    if (n > (size_t)LQ_TOK_ID_MAX * 8) return lq_fail(ctx, LQ_ERR_FORMAT, "%zu merges are too many", n);
    uint32_t cap = pow2_above(n * 2 + 1);
    p->v = lq_arena_alloc(mem, cap * sizeof *p->v);
    p->mask = cap - 1;
    p->n = 0;
    if (!p->v) return lq_oom(ctx, cap * sizeof *p->v);
    for (uint32_t i = 0; i < cap; i++) p->v[i].y = LQ_TOK_NONE;
    return LQ_OK;
}

static lq_tok_pair *pair_slot(const lq_tok_pairs *p, uint32_t a, uint32_t b) {
    uint32_t i = (uint32_t)mix((uint64_t)a << 32 | b) & p->mask;
    while (p->v[i].y != LQ_TOK_NONE && (p->v[i].a != a || p->v[i].b != b)) i = (i + 1) & p->mask;
    return p->v + i;
}

const lq_tok_pair *lq_tok_pairs_find(const lq_tok_pairs *p, uint32_t a, uint32_t b) {
    if (!p->v) return NULL;
    const lq_tok_pair *e = pair_slot(p, a, b);
    return e->y == LQ_TOK_NONE ? NULL : e;
}

void lq_tok_pairs_put(lq_tok_pairs *p, uint32_t a, uint32_t b, uint32_t x, uint32_t y) {
    lq_tok_pair *e = pair_slot(p, a, b);
    p->n += e->y == LQ_TOK_NONE;
    *e = (lq_tok_pair){a, b, x, y};
}

lq_tokenizer *lq_tok_new(void) {
    lq_tokenizer *t = LQ_NEW(lq_tokenizer);
    if (!t) return NULL;
    t->mem = lq_arena_new();
    t->unk = t->bos = t->eos = -1;
    t->kind = "byte-level BPE";
    for (int i = 0; i < 256; i++) t->byte_id[i] = -1;
    if (!t->mem) {
        lq_free(t);
        return NULL;
    }
    return t;
}

static void free_steps(lq_tok_steps *s) {
    for (size_t i = 0; i < s->n; i++) lq_tok_regex_free(&s->v[i].re);
}

void lq_tokenizer_free(lq_tokenizer **t) {
    if (!*t) return;
    free_steps(&(*t)->norm);
    free_steps(&(*t)->pre);
    free_steps(&(*t)->dec);
    lq_tok_regex_free(&(*t)->word);
    json_decref((*t)->parts);
    lq_arena_free(&(*t)->mem);
    lq_free(*t);
    *t = NULL;
}

lq_status lq_tok_keep(lq_ctx *ctx, lq_tokenizer *t, const char *s, size_t n, lq_tok_str *out) {
    enum { CHUNK = 1 << 16 };
    if (n >= UINT32_MAX) return lq_fail(ctx, LQ_ERR_FORMAT, "a token of %zu bytes", n);
    if (t->pool_left < n + 1) {
        size_t want = n + 1 > CHUNK ? n + 1 : CHUNK;
        t->pool = lq_arena_alloc(t->mem, want);
        t->pool_left = t->pool ? want : 0;
        if (!t->pool) return lq_oom(ctx, want);
    }
    memcpy(t->pool, s, n);
    *out = (lq_tok_str){t->pool, (uint32_t)n};
    t->pool += n + 1;
    t->pool_left -= n + 1;
    return LQ_OK;
}

lq_status lq_tok_reserve(lq_ctx *ctx, lq_tokenizer *t, size_t ids, size_t strings) {
    if (!ids || ids > LQ_TOK_ID_MAX)
        return lq_fail(ctx, LQ_ERR_FORMAT, "the vocabulary has ids up to %zu, expected 1 to %d of them", ids,
                       LQ_TOK_ID_MAX);
    t->piece = lq_arena_alloc(t->mem, ids * sizeof *t->piece);
    t->n = t->n_real = t->size = (uint32_t)ids;
    if (!t->piece) return lq_oom(ctx, ids * sizeof *t->piece);
    return lq_tok_map_init(ctx, &t->vocab, t->mem, strings);
}

lq_status lq_tok_add_piece(lq_ctx *ctx, lq_tokenizer *t, int64_t id, const char *s, size_t n) {
    size_t bad;
    if (id < 0 || id >= t->n)
        return lq_fail(ctx, LQ_ERR_FORMAT, "token '%.64s' has id %lld, expected 0 to %u", s, (long long)id, t->n - 1);
    if (t->piece[id].s)
        return lq_fail(ctx, LQ_ERR_FORMAT, "tokens '%.64s' and '%.64s' share id %lld", t->piece[id].s, s,
                       (long long)id);
    if (lq_utf8_valid(s, n, &bad) != n) return lq_fail(ctx, LQ_ERR_FORMAT, "token %lld is not UTF-8", (long long)id);
    LQ_TRY(lq_tok_keep(ctx, t, s, n, t->piece + id));
    if (lq_tok_find(t, s, n) < 0) lq_tok_map_put(&t->vocab, t->piece, (uint32_t)id);
    return LQ_OK;
}

int32_t lq_tok_find(const lq_tokenizer *t, const char *s, size_t n) {
    uint32_t i = lq_tok_map_find(&t->vocab, t->piece, s, n);
    return i == LQ_TOK_NONE ? -1 : (int32_t)i;
}

lq_status lq_tok_add_merge(lq_ctx *ctx, lq_tokenizer *t, size_t rank, const char *l, size_t nl, const char *r,
                           size_t nr) {
    char stack[512], *both = nl + nr <= sizeof stack ? stack : lq_alloc(nl + nr);
    if (!both) return lq_oom(ctx, nl + nr);
    memcpy(both, l, nl);
    memcpy(both + nl, r, nr);
    int32_t a = lq_tok_find(t, l, nl), b = lq_tok_find(t, r, nr), c = lq_tok_find(t, both, nl + nr);
    if (both != stack) lq_free(both);
    if (a < 0 || b < 0 || c < 0)
        return lq_fail(ctx, LQ_ERR_FORMAT, "merge %zu, '%.64s' + '%.64s': %s is not in the vocabulary", rank, l, r,
                       a < 0 ? "the left part" : b < 0 ? "the right part" : "the result");
    lq_tok_pairs_put(&t->merges, (uint32_t)a, (uint32_t)b, (uint32_t)rank, (uint32_t)c);
    return LQ_OK;
}

lq_status lq_tok_reserve_added(lq_ctx *ctx, lq_tokenizer *t, size_t n) {
    if (n > LQ_TOK_ID_MAX / 4) return lq_fail(ctx, LQ_ERR_FORMAT, "%zu added tokens are too many", n);
    t->added = lq_arena_alloc(t->mem, n * sizeof *t->added);
    t->added_text = lq_arena_alloc(t->mem, n * sizeof *t->added_text);
    if (!t->added || !t->added_text) return lq_oom(ctx, n * sizeof *t->added);
    return lq_tok_map_init(ctx, &t->added_map, t->mem, n);
}

static lq_status pick_id(lq_ctx *ctx, const lq_tokenizer *t, const char *s, size_t n, int32_t *id) {
    int32_t known = lq_tok_find(t, s, n), given = *id;
    if (known >= 0 && given >= 0 && known != given)
        lq_log(ctx, LQ_LOG_WARN, "added token '%.64s' has id %d, but the vocabulary says %d, which is used", s, given,
               known);
    *id = known >= 0 ? known : given >= 0 ? given : (int32_t)t->size;
    if (*id >= LQ_TOK_ID_MAX)
        return lq_fail(ctx, LQ_ERR_FORMAT, "added token '%.64s' has id %d, at most %d are read", s, *id, LQ_TOK_ID_MAX);
    if (known < 0 && *id < (int32_t)t->n && t->piece[*id].s)
        return lq_fail(ctx, LQ_ERR_FORMAT, "added token '%.64s' has id %d, which belongs to '%.64s'", s, *id,
                       t->piece[*id].s);
    return LQ_OK;
}

lq_status lq_tok_add_added(lq_ctx *ctx, lq_tokenizer *t, const char *s, size_t n, lq_tok_added a, uint32_t limit) {
    size_t bad;
    if (!n || lq_tok_map_find(&t->added_map, t->added_text, s, n) != LQ_TOK_NONE) return LQ_OK;
    if (n > LQ_TOK_ADDED_BYTES)
        return lq_fail(ctx, LQ_ERR_FORMAT, "an added token has %zu bytes, at most %d are read", n, LQ_TOK_ADDED_BYTES);
    if (lq_utf8_valid(s, n, &bad) != n) return lq_fail(ctx, LQ_ERR_FORMAT, "added token %d is not UTF-8", a.id);
    LQ_TRY(pick_id(ctx, t, s, n, &a.id));
    if (limit && (uint32_t)a.id >= limit) {
        lq_log(ctx, LQ_LOG_WARN, "added token '%.64s' has id %d but the model has %u tokens: left out", s, a.id, limit);
        return LQ_OK;
    }
    LQ_TRY(lq_tok_keep(ctx, t, s, n, t->added_text + t->n_added));
    t->added[t->n_added] = a;
    lq_tok_map_put(&t->added_map, t->added_text, t->n_added++);
    if ((uint32_t)a.id >= t->size) t->size = (uint32_t)a.id + 1;
    return LQ_OK;
}

static lq_status trie_put(lq_ctx *ctx, lq_tok_trie *tr, uint32_t cap, lq_tok_str s, uint32_t token) {
    uint32_t at = 0;
    for (uint32_t i = 0; i < s.n; i++) {
        const lq_tok_pair *e = lq_tok_pairs_find(&tr->next, at, (uint8_t)s.s[i]);
        if (!e) {
            if (tr->n >= cap) return lq_fail(ctx, LQ_ERR_INTERNAL, "trie of added tokens is too small");
            lq_tok_pairs_put(&tr->next, at, (uint8_t)s.s[i], 0, tr->n);
            at = tr->n++;
        } else at = e->y;
    }
    if (tr->token[at] == LQ_TOK_NONE) tr->token[at] = token;
    return LQ_OK;
}

/* Added tokens marked `normalized` are matched in normalized text, in their own normalized form. */
static lq_status build_trie(lq_ctx *ctx, lq_tokenizer *t, bool normalized, lq_tok_trie *tr) {
    lq_status st = LQ_OK;
    lq_tok_run r;
    lq_tok_str *form = LQ_NEWN(lq_tok_str, t->n_added);
    uint64_t bytes = 1;
    LQ_TRY(form ? LQ_OK : lq_oom(ctx, t->n_added * sizeof *form));
    LQ_GO(lq_tok_run_init(ctx, t, &r, 0));
    for (uint32_t i = 0; i < t->n_added; i++) {
        if (t->added[i].normalized != normalized) continue;
        lq_tok_span in = {t->added_text[i].s, t->added_text[i].n, true}, out = in;
        if (normalized) LQ_GO(lq_tok_normalize(&r, in, &out));
        LQ_GO(lq_tok_keep(ctx, t, out.s, out.n, form + i));
        bytes += out.n;
    }
    if (bytes == 1) goto done;
    LQ_GO(lq_tok_pairs_init(ctx, &tr->next, t->mem, bytes));
    tr->token = lq_arena_alloc(t->mem, bytes * sizeof *tr->token);
    if (!tr->token) LQ_GO(lq_oom(ctx, bytes * sizeof *tr->token));
    memset(tr->token, 0xff, bytes * sizeof *tr->token);
    tr->n = 1;
    for (uint32_t i = 0; i < t->n_added; i++)
        if (form[i].n) LQ_GO(trie_put(ctx, tr, (uint32_t)bytes, form[i], i));
done:
    lq_tok_run_free(&r);
    lq_free(form);
    return st;
}

/* Words may be cut in front of a U+2581 when no merge joins something that ends otherwise with something that begins
 * with one. */
static bool cut_is_safe(const lq_tokenizer *t) {
    static const char mark[] = "\xe2\x96\x81";
    if (t->ignore_merges || lq_tok_find(t, mark, 3) < 0) return false;
    for (uint32_t i = 0; t->merges.v && i <= t->merges.mask; i++) {
        const lq_tok_pair *p = t->merges.v + i;
        if (p->y == LQ_TOK_NONE) continue;
        const lq_tok_str *l = t->piece + p->a, *r = t->piece + p->b;
        if (r->n >= 3 && !memcmp(r->s, mark, 3) && (l->n < 3 || memcmp(l->s + l->n - 3, mark, 3))) return false;
    }
    return true;
}

static lq_status find_bytes(lq_ctx *ctx, lq_tokenizer *t) {
    char name[8];
    for (unsigned b = 0; b < 256; b++) {
        static const char hex[] = "0123456789ABCDEF";
        memcpy(name, "<0x00>", 7);
        name[3] = hex[b >> 4];
        name[4] = hex[b & 15];
        t->byte_id[b] = lq_tok_find(t, name, 6);
    }
    for (uint32_t i = 0; i < t->n; i++) {
        const lq_tok_str *p = t->piece + i;
        if (p->n == 6 && !memcmp(p->s, "<0x", 3) && p->s[5] == '>' && strspn(p->s + 3, "0123456789abcdefABCDEF") != 2)
            return lq_fail(ctx, LQ_ERR_FORMAT, "byte token '%s' (id %u) has no two hex digits", p->s, i);
    }
    return LQ_OK;
}

lq_status lq_tok_finish(lq_ctx *ctx, lq_tokenizer *t) {
    if (t->byte_fallback) LQ_TRY(find_bytes(ctx, t));
    t->by_id = lq_arena_alloc(t->mem, t->size * sizeof *t->by_id);
    if (!t->by_id) return lq_oom(ctx, t->size * sizeof *t->by_id);
    memset(t->by_id, 0xff, t->size * sizeof *t->by_id);
    for (uint32_t i = 0; i < t->n_added; i++) t->by_id[t->added[i].id] = i;
    bool words = false;
    for (uint32_t i = 0; i < t->n_added; i++) words = words || t->added[i].single_word;
    if (words) LQ_TRY(lq_tok_regex_new(ctx, "\\w", LQ_TOK_RUST, &t->word));
    LQ_TRY(build_trie(ctx, t, false, &t->raw));
    LQ_TRY(build_trie(ctx, t, true, &t->normal));
    for (size_t i = 0; i < t->n_head + t->n_tail; i++) {
        int32_t id = i < t->n_head ? t->head[i] : t->tail[i - t->n_head];
        if (id < 0 || id >= (int32_t)t->size)
            return lq_fail(ctx, LQ_ERR_FORMAT, "the post-processor adds id %d of %u", id, t->size);
    }
    t->cut = cut_is_safe(t);
    return LQ_OK;
}

uint32_t lq_utf8_get(const char *s, size_t n, size_t *i) {
    const uint8_t *p = (const uint8_t *)s + *i;
    uint32_t len = lq_utf8_len(s[*i]);
    if (*i + len > n) len = (uint32_t)(n - *i); /* never on valid text */
    *i += len;
    switch (len) {
    case 1: return p[0];
    case 2: return (p[0] & 0x1fu) << 6 | (p[1] & 0x3f);
    case 3: return (p[0] & 0x0fu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3f);
    default: return (p[0] & 0x07u) << 18 | (p[1] & 0x3fu) << 12 | (p[2] & 0x3fu) << 6 | (p[3] & 0x3f);
    }
}

bool lq_utf8_put(lq_buf *b, uint32_t cp) {
    char s[4];
    size_t n = cp < 0x80 ? 1 : cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    if (n == 1) s[0] = (char)cp;
    else s[0] = (char)((0xf00 >> n & 0xff) | cp >> 6 * (n - 1));
    for (size_t i = 1; i < n; i++) s[i] = (char)(0x80 | (cp >> 6 * (n - 1 - i) & 0x3f));
    return lq_buf_add(b, s, n);
}

/* Table 3-7 of the Unicode standard: the second byte's range depends on the first. */
static size_t one_char(const uint8_t *p, size_t n, size_t *bad) {
    uint8_t c = p[0];
    *bad = 0;
    if (c < 0x80) return 1;
    *bad = 1;
    if (c < 0xc2 || c > 0xf4) return 0;
    size_t len = c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
    uint8_t lo = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80, hi = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    for (size_t i = 1; i < len; i++, lo = 0x80, hi = 0xbf) {
        *bad = i;
        if (i >= n || p[i] < lo || p[i] > hi) return 0;
    }
    *bad = 0;
    return len;
}

size_t lq_utf8_valid(const char *s, size_t n, size_t *bad) {
    const uint8_t *p = (const uint8_t *)s;
    size_t i = 0;
    *bad = 0;
    while (i < n) {
        size_t len = one_char(p + i, n - i, bad);
        if (!len) break;
        i += len;
    }
    return i;
}

bool lq_utf8_is_space(uint32_t cp) {
    return (cp >= 9 && cp <= 13) || cp == 0x20 || cp == 0x85 || cp == 0xa0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 || cp == 0x2029 || cp == 0x202f || cp == 0x205f ||
           cp == 0x3000;
}
