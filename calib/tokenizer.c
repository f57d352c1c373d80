/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The tokenizer's public face: opening whatever a model carries, encoding with added tokens cut out, and look-ups. */
#include "calib/tok_impl.h"

void lq_ids_free(lq_ids *ids) {
    lq_free(ids->v);
    *ids = (lq_ids){0};
}

bool lq_ids_add(lq_ids *ids, int32_t id) {
    if (ids->n == ids->cap) {
        size_t cap = ids->cap ? ids->cap * 2 : 64;
        int32_t *v = lq_realloc(ids->v, ids->cap * sizeof *v, cap * sizeof *v);
        if (!v) return false;
        ids->v = v;
        ids->cap = cap;
    }
    ids->v[ids->n++] = id;
    return true;
}

/* One pass over s: added tokens of the trie become ids, the text between them goes to fn. */
typedef lq_status gap_fn(lq_tok_run *r, lq_tok_span gap);

/* Longest token that begins at i; added index or NONE. */
static uint32_t token_at(const lq_tok_trie *tr, const char *s, size_t n, size_t i, size_t *end) {
    uint32_t node = 0, best = LQ_TOK_NONE;
    for (size_t k = i; k < n; k++) {
        const lq_tok_pair *e = lq_tok_pairs_find(&tr->next, node, (uint8_t)s[k]);
        if (!e) break;
        node = e->y;
        if (tr->token[node] == LQ_TOK_NONE) continue;
        best = tr->token[node];
        *end = k + 1;
    }
    return best;
}

static size_t char_before(const char *s, size_t i) {
    do i--;
    while (i && ((uint8_t)s[i] & 0xc0) == 0x80);
    return i;
}

static lq_status is_word(lq_tok_run *r, const char *s, size_t a, size_t b, bool *yes) {
    size_t x, y;
    *yes = false;
    return a == b ? LQ_OK : lq_tok_regex_find(r, r->t->word, s + a, b - a, 0, &x, &y, yes);
}

/* Does the token at [a, b) count, by single_word and parse? */
static lq_status counts(lq_tok_run *r, const lq_tok_added *t, const char *s, size_t n, size_t a, size_t b, bool *yes) {
    bool left = false, right = false;
    *yes = r->parse || !t->special;
    if (!*yes || !t->single_word) return LQ_OK;
    LQ_TRY(is_word(r, s, a ? char_before(s, a) : 0, a, &left));
    LQ_TRY(is_word(r, s, b, b < n ? b + lq_utf8_len(s[b]) : b, &right));
    *yes = !left && !right;
    return LQ_OK;
}

static void stretch(const lq_tok_added *t, const char *s, size_t n, size_t floor, size_t *a, size_t *b) {
    while (t->lstrip && *a > floor) {
        size_t at = char_before(s, *a), next = at;
        if (!lq_utf8_is_space(lq_utf8_get(s, n, &next))) break;
        *a = at;
    }
    while (t->rstrip && *b < n) {
        size_t next = *b;
        if (!lq_utf8_is_space(lq_utf8_get(s, n, &next))) break;
        *b = next;
    }
}

static lq_status cut_added(lq_tok_run *r, const lq_tok_trie *tr, lq_tok_span in, gap_fn *fn) {
    size_t done = 0;
    for (size_t i = 0; tr->n && i < in.n;) {
        size_t a = i, b = 0;
        bool yes;
        uint32_t k = token_at(tr, in.s, in.n, i, &b);
        if (k == LQ_TOK_NONE) {
            i++;
            continue;
        }
        const lq_tok_added *t = r->t->added + k;
        LQ_TRY(counts(r, t, in.s, in.n, a, b, &yes));
        i = b;
        if (!yes) continue;
        stretch(t, in.s, in.n, done, &a, &b);
        if (a > done) LQ_TRY(fn(r, (lq_tok_span){in.s + done, a - done, in.first && !done}));
        if (!lq_ids_add(r->out, t->id)) return lq_oom(r->ctx, r->out->n);
        done = b;
    }
    if (done >= in.n) return LQ_OK;
    return fn(r, (lq_tok_span){in.s + done, in.n - done, in.first && !done});
}

static lq_status plain_gap(lq_tok_run *r, lq_tok_span gap) { return lq_tok_pretok(r, 0, gap); }

static lq_status raw_gap(lq_tok_run *r, lq_tok_span gap) {
    lq_tok_span normal;
    LQ_TRY(lq_tok_normalize(r, gap, &normal));
    return cut_added(r, &r->t->normal, normal, plain_gap);
}

static lq_status repair(lq_ctx *ctx, const char *text, size_t n, lq_buf *out) {
    size_t bad, good;
    for (size_t i = 0; i < n; i += good + bad) {
        good = lq_utf8_valid(text + i, n - i, &bad);
        if (!lq_buf_add(out, text + i, good) || (bad && !lq_buf_add(out, "\xef\xbf\xbd", 3))) return lq_oom(ctx, n);
    }
    return LQ_OK;
}

static lq_status add_all(lq_ctx *ctx, lq_ids *out, const int32_t *v, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!lq_ids_add(out, v[i])) return lq_oom(ctx, out->n);
    return LQ_OK;
}

lq_status lq_tokenizer_encode(lq_ctx *ctx, const lq_tokenizer *t, const char *text, size_t n, bool special, bool parse,
                              lq_ids *out) {
    lq_tok_run r;
    lq_buf fixed = {0};
    lq_status st = LQ_OK;
    size_t bad, before = out->n;
    LQ_GO(lq_tok_run_init(ctx, t, &r, n));
    r.out = out;
    r.parse = parse;
    if (lq_utf8_valid(text, n, &bad) != n) {
        LQ_GO(repair(ctx, text, n, &fixed));
        text = fixed.v;
        n = fixed.n;
    }
    if (special) LQ_GO(add_all(ctx, out, t->head, t->n_head));
    LQ_GO(cut_added(&r, &t->raw, (lq_tok_span){text, n, true}, raw_gap));
    if (special) LQ_GO(add_all(ctx, out, t->tail, t->n_tail));
done:
    if (st) out->n = before;
    lq_tok_run_free(&r);
    lq_buf_free(&fixed);
    return st;
}

int32_t lq_tokenizer_bos(const lq_tokenizer *t) { return t->bos; }
int32_t lq_tokenizer_eos(const lq_tokenizer *t) { return t->eos; }
bool lq_tokenizer_adds_bos(const lq_tokenizer *t) { return t->n_head && t->head[0] == t->bos; }

int32_t lq_tokenizer_id(const lq_tokenizer *t, const char *token) {
    uint32_t i = lq_tok_map_find(&t->added_map, t->added_text, token, strlen(token));
    return i != LQ_TOK_NONE ? t->added[i].id : lq_tok_find(t, token, strlen(token));
}

const char *lq_tokenizer_token(const lq_tokenizer *t, int32_t id) {
    if (id < 0 || (uint32_t)id >= t->size) return NULL;
    if (t->by_id[id] != LQ_TOK_NONE) return t->added_text[t->by_id[id]].s;
    return (uint32_t)id < t->n_real ? t->piece[id].s : NULL;
}

size_t lq_tokenizer_size(const lq_tokenizer *t) { return t->size; }
const char *lq_tokenizer_kind(const lq_tokenizer *t) { return t->kind; }
