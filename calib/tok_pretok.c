/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Pre-tokenizers: a text goes through the steps depth first, each cutting it into pieces or rewriting it, and every
 * final piece is a word for BPE. No list of pieces is ever built. */
#include "calib/tok_impl.h"

static size_t char_at(const char *s, size_t n, size_t i) { return i < n ? lq_utf8_len(s[i]) : 1; }

static bool find_literal(lq_tok_str what, const char *s, size_t n, size_t from, size_t *a, size_t *b) {
    if (!what.n || what.n > n) return false;
    for (size_t i = from; i + what.n <= n; i++) {
        const char *p = memchr(s + i, what.s[0], n - what.n + 1 - i);
        if (!p) return false;
        i = (size_t)(p - s);
        if (memcmp(p, what.s, what.n)) continue;
        *a = i;
        *b = i + what.n;
        return true;
    }
    return false;
}

lq_status lq_tok_next(lq_tok_run *r, const lq_tok_step *st, const char *s, size_t n, size_t *from, size_t *last,
                      size_t *a, size_t *b, bool *found) {
    *found = false;
    while (*from <= n && n) {
        if (st->re) LQ_TRY(lq_tok_regex_find(r, st->re, s, n, *from, a, b, found));
        else *found = find_literal(st->text, s, n, *from, a, b);
        if (!*found) return LQ_OK;
        if (*a == *b && *b == *last) { /* an empty match right behind a match does not count */
            *from += char_at(s, n, *from);
            *found = false;
            continue;
        }
        *from = *last = *b;
        return LQ_OK;
    }
    return LQ_OK;
}

/* Puts matches and the text between them together by the step's behaviour; pending is what the next one may still join.
 */
typedef struct splitter {
    lq_tok_run *r;
    size_t level;
    lq_tok_span whole;
    const lq_tok_step *st;
    bool have, prev;
    size_t a, b;
} splitter;

static lq_status emit(splitter *p, size_t a, size_t b) {
    if (a == b) return LQ_OK;
    return lq_tok_pretok(p->r, p->level + 1, (lq_tok_span){p->whole.s + a, b - a, p->whole.first && !a});
}

static lq_status flush(splitter *p) {
    if (!p->have) return LQ_OK;
    p->have = false;
    return emit(p, p->a, p->b);
}

static lq_status hold(splitter *p, size_t a, size_t b) {
    LQ_TRY(flush(p));
    p->have = true;
    p->a = a;
    p->b = b;
    return LQ_OK;
}

static lq_status feed(splitter *p, size_t a, size_t b, bool match) {
    bool prev = p->prev, join = false;
    match ^= p->st->invert;
    p->prev = match;
    switch (p->st->behavior) {
    case LQ_TOK_ISOLATED: return emit(p, a, b);
    case LQ_TOK_REMOVED: return match ? LQ_OK : emit(p, a, b);
    case LQ_TOK_WITH_PREVIOUS: join = p->have && match && !prev; break;
    case LQ_TOK_WITH_NEXT: join = p->have && !match && prev; break;
    case LQ_TOK_CONTIGUOUS: join = p->have && match == prev; break;
    }
    if (!join) return hold(p, a, b);
    p->b = b;
    return LQ_OK;
}

static lq_status split(lq_tok_run *r, size_t level, const lq_tok_step *st, lq_tok_span in) {
    splitter p = {.r = r, .level = level, .whole = in, .st = st};
    size_t from = 0, last = SIZE_MAX, done = 0, a, b;
    bool found;
    for (;;) {
        LQ_TRY(lq_tok_next(r, st, in.s, in.n, &from, &last, &a, &b, &found));
        if (!found) break;
        if (a > done) LQ_TRY(feed(&p, done, a, false));
        LQ_TRY(feed(&p, a, b, true));
        done = b;
    }
    if (done < in.n) LQ_TRY(feed(&p, done, in.n, false));
    return flush(&p);
}

static bool begins(lq_tok_span in, lq_tok_str with) { return in.n >= with.n && !memcmp(in.s, with.s, with.n); }

/* A space in front, unless there is one. */
static lq_status prefix(lq_tok_run *r, size_t level, const lq_tok_step *st, lq_tok_span in) {
    lq_buf *b = &r->level[level];
    if (begins(in, st->text)) return lq_tok_pretok(r, level + 1, in);
    b->n = 0;
    if (!lq_buf_add(b, st->text.s, st->text.n) || !lq_buf_add(b, in.s, in.n)) return lq_oom(r->ctx, in.n);
    return lq_tok_pretok(r, level + 1, (lq_tok_span){b->v, b->n, in.first});
}

/* Metaspace without its split: ' ' becomes the mark, and a mark goes in front by the scheme. */
static lq_status meta(lq_tok_run *r, size_t level, const lq_tok_step *st, lq_tok_span in) {
    lq_buf *b = &r->level[level];
    size_t i = 0;
    bool spaced = begins(in, st->with) || in.s[0] == ' ', ok = true;
    b->n = 0;
    if (!spaced && (st->scheme == LQ_TOK_ALWAYS || (st->scheme == LQ_TOK_FIRST && in.first)))
        ok = lq_buf_add(b, st->with.s, st->with.n);
    while (ok && i < in.n) {
        const char *space = memchr(in.s + i, ' ', in.n - i);
        size_t end = space ? (size_t)(space - in.s) : in.n;
        ok = lq_buf_add(b, in.s + i, end - i) && (!space || lq_buf_add(b, st->with.s, st->with.n));
        i = end + 1;
    }
    if (!ok) return lq_oom(r->ctx, in.n);
    return lq_tok_pretok(r, level + 1, (lq_tok_span){b->v, b->n, in.first});
}

static lq_status rewrite(lq_tok_run *r, size_t level, const lq_tok_step *st, lq_tok_span in) {
    lq_buf *b = &r->level[level];
    LQ_TRY(st->kind == LQ_TOK_BYTES ? lq_tok_to_bytes(r->ctx, in.s, in.n, b) : lq_tok_replace(r, st, in.s, in.n, b));
    return lq_tok_pretok(r, level + 1, (lq_tok_span){b->v, b->n, in.first});
}

lq_status lq_tok_pretok(lq_tok_run *r, size_t level, lq_tok_span p) {
    if (!p.n) return LQ_OK;
    if (level == r->t->pre.n) return lq_tok_bpe(r, p.s, p.n);
    const lq_tok_step *st = r->t->pre.v + level;
    switch (st->kind) {
    case LQ_TOK_SPLIT: return split(r, level, st, p);
    case LQ_TOK_PREFIX: return prefix(r, level, st, p);
    case LQ_TOK_META: return meta(r, level, st, p);
    default: return rewrite(r, level, st, p);
    }
}
