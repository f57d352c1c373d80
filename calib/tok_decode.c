/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Ids back to bytes. Bytes that are no UTF-8 come out as they are (`tokenizers` puts U+FFFD there), so that what a
 * prefix of the ids decodes to is a prefix of what all of them do. */
#include "calib/tok_impl.h"

/* Pieces of text side by side: piece i ends at end[i]. */
typedef struct pieces { lq_buf text; size_t *end, n, cap; } pieces;

static void pieces_free(pieces *p) {
    lq_buf_free(&p->text);
    lq_free(p->end);
    *p = (pieces){0};
}

static bool close_piece(pieces *p) {
    if (p->n == p->cap) {
        size_t cap = p->cap ? p->cap * 2 : 64;
        size_t *v = lq_realloc(p->end, p->cap * sizeof *v, cap * sizeof *v);
        if (!v) return false;
        p->end = v;
        p->cap = cap;
    }
    p->end[p->n++] = p->text.n;
    return true;
}

static bool add_piece(pieces *p, const char *s, size_t n) { return lq_buf_add(&p->text, s, n) && close_piece(p); }

/* Bytes of a token whose characters are all GPT-2 bytes; any other token stands for itself. */
static bool unbytes(const char *s, size_t n, pieces *out) {
    size_t from = out->text.n;
    for (size_t i = 0; i < n;) {
        int b = lq_tok_from_char(lq_utf8_get(s, n, &i));
        char c = (char)b;
        if (b < 0) {
            out->text.n = from;
            return lq_buf_add(&out->text, s, n);
        }
        if (!lq_buf_add(&out->text, &c, 1)) return false;
    }
    return true;
}

static bool fallback(const char *s, size_t n, pieces *out) {
    static const char hex[] = "0123456789abcdef";
    const char *hi, *lo;
    if (n == 6 && !memcmp(s, "<0x", 3) && s[5] == '>' && (hi = memchr(hex, s[3] | (s[3] > '9' ? 32 : 0), 16)) &&
        (lo = memchr(hex, s[4] | (s[4] > '9' ? 32 : 0), 16))) {
        char c = (char)((hi - hex) << 4 | (lo - hex));
        return add_piece(out, &c, 1);
    }
    return add_piece(out, s, n);
}

static bool unmeta(const lq_tok_step *st, const char *s, size_t n, bool first, pieces *out) {
    for (size_t i = 0, len; i < n; i += len) {
        len = lq_utf8_len(s[i]);
        if (len > n - i) len = n - i;
        bool mark = len == st->with.n && !memcmp(s + i, st->with.s, len);
        bool ok = !mark ? lq_buf_add(&out->text, s + i, len)
                        : (first && st->scheme != LQ_TOK_NEVER) || lq_buf_add(&out->text, " ", 1);
        if (!ok) return false;
    }
    return close_piece(out);
}

static bool unstrip(const lq_tok_step *st, const char *s, size_t n, pieces *out) {
    size_t a = 0, b = n, len = st->text.n;
    for (uint32_t i = 0; i < st->start && a + len <= b && !memcmp(s + a, st->text.s, len); i++) a += len;
    for (uint32_t i = 0; i < st->stop && b >= a + len && !memcmp(s + b - len, st->text.s, len); i++) b -= len;
    return add_piece(out, s + a, b - a);
}

static lq_status one_piece(lq_tok_run *r, const lq_tok_step *st, const char *s, size_t n, bool first, pieces *out) {
    bool ok = true;
    size_t bad;
    switch (st->kind) {
    case LQ_TOK_UNBYTES: ok = unbytes(s, n, out); break;
    case LQ_TOK_FUSE: ok = lq_buf_add(&out->text, s, n); break;
    case LQ_TOK_FALLBACK: ok = fallback(s, n, out); break;
    case LQ_TOK_UNMETA: ok = unmeta(st, s, n, first, out); break;
    case LQ_TOK_UNSTRIP: ok = unstrip(st, s, n, out); break;
    default:
        if (st->re && lq_utf8_valid(s, n, &bad) != n) { /* PCRE2 must not see it */
            ok = add_piece(out, s, n);
            break;
        }
        LQ_TRY(lq_tok_replace(r, st, s, n, &r->norm[0]));
        ok = add_piece(out, r->norm[0].v, r->norm[0].n);
    }
    return ok ? LQ_OK : lq_oom(r->ctx, out->text.n);
}

static lq_status one_step(lq_tok_run *r, const lq_tok_step *st, const pieces *in, pieces *out) {
    bool fuses = st->kind == LQ_TOK_UNBYTES || st->kind == LQ_TOK_FUSE;
    out->n = out->text.n = 0;
    for (size_t i = 0; i < in->n; i++) {
        size_t from = i ? in->end[i - 1] : 0;
        LQ_TRY(one_piece(r, st, in->text.v + from, in->end[i] - from, !i, out));
    }
    if (fuses && !close_piece(out)) return lq_oom(r->ctx, out->text.n);
    return LQ_OK;
}

/* Tokens as written, special ones left out on request, unknown ids always. Without a decoder they are joined by spaces.
 */
static lq_status gather(lq_tok_run *r, const int32_t *ids, size_t n, bool skip_special, pieces *out) {
    const lq_tokenizer *t = r->t;
    for (size_t i = 0; i < n; i++) {
        const char *s = lq_tokenizer_token(t, ids[i]);
        if (!s) continue;
        uint32_t added = t->by_id[ids[i]];
        if (skip_special && added != LQ_TOK_NONE && t->added[added].special) continue;
        bool ok = t->dec.n || !out->n || lq_buf_add(&out->text, " ", 1);
        if (!ok || !add_piece(out, s, added != LQ_TOK_NONE ? t->added_text[added].n : t->piece[ids[i]].n))
            return lq_oom(r->ctx, out->text.n);
    }
    return LQ_OK;
}

lq_status lq_tokenizer_decode(lq_ctx *ctx, const lq_tokenizer *t, const int32_t *ids, size_t n, bool skip_special,
                              lq_buf *out) {
    lq_tok_run r;
    pieces p[2] = {0};
    lq_status st = LQ_OK;
    size_t k = 0;
    LQ_GO(lq_tok_run_init(ctx, t, &r, 0));
    LQ_GO(gather(&r, ids, n, skip_special, &p[0]));
    for (size_t i = 0; i < t->dec.n; i++, k ^= 1) LQ_GO(one_step(&r, t->dec.v + i, &p[k], &p[k ^ 1]));
    if (!lq_buf_add(out, p[k].text.v ? p[k].text.v : "", p[k].text.n)) LQ_GO(lq_oom(ctx, p[k].text.n));
done:
    lq_tok_run_free(&r);
    pieces_free(&p[0]);
    pieces_free(&p[1]);
    return st;
}
