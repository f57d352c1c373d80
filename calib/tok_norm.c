/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Normalizers: Unicode forms (utf8proc's tables), Prepend, Replace, Lowercase, Strip, and the byte alphabet of GPT-2.
 *
 * The Unicode forms decompose character by character, sort each run of combining marks stably by class, then compose;
 * utf8proc's own decomposition sorts by exchange and would take quadratic time on a long run of marks. */
#include <utf8proc.h>

#include "calib/tok_impl.h"

/* GPT-2: printable bytes stand for themselves, the other 68 for U+0100 upwards in order. */
static bool byte_prints(unsigned b) { return (b >= '!' && b <= '~') || (b >= 0xa1 && b != 0xad); }

static unsigned byte_to_char(unsigned b) {
    if (byte_prints(b)) return b;
    return b <= 0x20 ? 0x100 + b : b <= 0xa0 ? 0x121 + (b - 0x7f) : 0x143;
}

int lq_tok_from_char(uint32_t cp) {
    if (cp < 0x100) return byte_prints(cp) ? (int)cp : -1;
    if (cp <= 0x120) return (int)cp - 0x100;
    if (cp <= 0x142) return (int)cp - 0x121 + 0x7f;
    return cp == 0x143 ? 0xad : -1;
}

lq_status lq_tok_to_bytes(lq_ctx *ctx, const char *s, size_t n, lq_buf *out) {
    char chunk[512];
    size_t k = 0;
    out->n = 0;
    if (!lq_buf_add(out, "", 0)) return lq_oom(ctx, n);
    for (size_t i = 0; i < n; i++) {
        unsigned c = byte_to_char((uint8_t)s[i]);
        if (c >= 0x80) {
            chunk[k++] = (char)(0xc0 | c >> 6);
            chunk[k++] = (char)(0x80 | (c & 0x3f));
        } else chunk[k++] = (char)c;
        if (k + 2 > sizeof chunk || i + 1 == n) {
            if (!lq_buf_add(out, chunk, k)) return lq_oom(ctx, n * 2);
            k = 0;
        }
    }
    return LQ_OK;
}

static lq_status room(lq_tok_run *r, size_t n) {
    if (n <= r->cps_cap) return LQ_OK;
    size_t cap = n + n / 2 + 64;
    int32_t *v = lq_realloc(r->cps, r->cps_cap * sizeof *v, cap * sizeof *v);
    if (!v) return lq_oom(r->ctx, cap * sizeof *v);
    r->cps = v;
    r->cps_cap = cap;
    return LQ_OK;
}

static unsigned class_of(int32_t cp) { return cp < 0x300 ? 0 : (unsigned)utf8proc_get_property(cp)->combining_class; }

/* Stable counting sort of marks[n] by combining class (1..254), through tmp. */
static void sort_marks(int32_t *marks, size_t n, int32_t *tmp) {
    size_t count[257] = {0};
    if (n < 2) return;
    if (n == 2) {
        if (class_of(marks[0]) > class_of(marks[1])) {
            int32_t t = marks[0];
            marks[0] = marks[1];
            marks[1] = t;
        }
        return;
    }
    for (size_t i = 0; i < n; i++) count[class_of(marks[i]) + 1]++;
    for (int c = 0; c < 256; c++) count[c + 1] += count[c];
    for (size_t i = 0; i < n; i++) tmp[count[class_of(marks[i])]++] = marks[i];
    memcpy(marks, tmp, n * sizeof *marks);
}

static lq_status reorder(lq_tok_run *r, size_t n) {
    LQ_TRY(room(r, 2 * n));
    for (size_t i = 0; i < n;) {
        size_t j = i;
        while (j < n && class_of(r->cps[j])) j++;
        sort_marks(r->cps + i, j - i, r->cps + n);
        i = j + (j == i);
    }
    return LQ_OK;
}

/* Every character below U+0300 is its own NFC; only ASCII is its own other form. */
static bool form_is_identity(lq_tok_kind k, const char *s, size_t n) {
    uint8_t limit = k == LQ_TOK_NFC ? 0xcc : 0x80;
    for (size_t i = 0; i < n; i++)
        if ((uint8_t)s[i] >= limit) return false;
    return true;
}

static lq_status unicode_form(lq_tok_run *r, lq_tok_kind k, const char *s, size_t n, lq_buf *out) {
    bool compat = k == LQ_TOK_NFKC || k == LQ_TOK_NFKD, compose = k == LQ_TOK_NFC || k == LQ_TOK_NFKC;
    utf8proc_option_t how =
        UTF8PROC_STABLE | (compat ? UTF8PROC_COMPAT : 0) | (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE);
    size_t m = 0;
    out->n = 0;
    if (form_is_identity(k, s, n)) return lq_buf_add(out, s, n) ? LQ_OK : lq_oom(r->ctx, n);
    for (size_t i = 0; i < n;) {
        int boundary = 0;
        LQ_TRY(room(r, m + 32));
        int32_t cp = (int32_t)lq_utf8_get(s, n, &i);
        utf8proc_ssize_t got = utf8proc_decompose_char(cp, r->cps + m, 32, how, &boundary);
        if (got < 0 || got > 32)
            return lq_fail(r->ctx, LQ_ERR_INTERNAL, "utf8proc: U+%04X: %s", (unsigned)cp, utf8proc_errmsg(got));
        m += (size_t)got;
    }
    LQ_TRY(reorder(r, m));
    utf8proc_ssize_t left = compose ? utf8proc_normalize_utf32(r->cps, (utf8proc_ssize_t)m, how) : (utf8proc_ssize_t)m;
    for (utf8proc_ssize_t i = 0; i < left; i++)
        if (!lq_utf8_put(out, (uint32_t)r->cps[i])) return lq_oom(r->ctx, n);
    return lq_buf_add(out, "", 0) ? LQ_OK : lq_oom(r->ctx, n);
}

static lq_status lower(lq_ctx *ctx, const char *s, size_t n, lq_buf *out) {
    out->n = 0;
    for (size_t i = 0; i < n;) {
        uint32_t cp = lq_utf8_get(s, n, &i);
        /* The one character whose full lower case is two characters in every language. */
        bool ok =
            cp == 0x130 ? lq_buf_add(out, "i\xcc\x87", 3) : lq_utf8_put(out, (uint32_t)utf8proc_tolower((int32_t)cp));
        if (!ok) return lq_oom(ctx, n);
    }
    return lq_buf_add(out, "", 0) ? LQ_OK : lq_oom(ctx, n);
}

static lq_status strip(lq_ctx *ctx, const lq_tok_step *st, const char *s, size_t n, lq_buf *out) {
    size_t a = 0, b = n;
    while (st->left && a < n) {
        size_t next = a;
        if (!lq_utf8_is_space(lq_utf8_get(s, n, &next))) break;
        a = next;
    }
    while (st->right && b > a) {
        size_t at = b - 1, end;
        while (at > a && ((uint8_t)s[at] & 0xc0) == 0x80) at--;
        end = at;
        if (!lq_utf8_is_space(lq_utf8_get(s, n, &end))) break;
        b = at;
    }
    out->n = 0;
    return lq_buf_add(out, s + a, b - a) ? LQ_OK : lq_oom(ctx, n);
}

lq_status lq_tok_replace(lq_tok_run *r, const lq_tok_step *st, const char *s, size_t n, lq_buf *out) {
    size_t from = 0, last = SIZE_MAX, done = 0, a, b;
    bool found, ok = true;
    out->n = 0;
    while (ok) {
        LQ_TRY(lq_tok_next(r, st, s, n, &from, &last, &a, &b, &found));
        if (!found) break;
        ok = lq_buf_add(out, s + done, a - done) && lq_buf_add(out, st->with.s, st->with.n);
        done = b;
    }
    return ok && lq_buf_add(out, s + done, n - done) ? LQ_OK : lq_oom(r->ctx, n);
}

static lq_status prepend(lq_ctx *ctx, const lq_tok_step *st, const char *s, size_t n, lq_buf *out) {
    out->n = 0;
    bool ok = (!n || lq_buf_add(out, st->text.s, st->text.n)) && lq_buf_add(out, s, n);
    return ok ? LQ_OK : lq_oom(ctx, n);
}

static lq_status one_step(lq_tok_run *r, const lq_tok_step *st, const char *s, size_t n, lq_buf *out) {
    switch (st->kind) {
    case LQ_TOK_PREPEND: return prepend(r->ctx, st, s, n, out);
    case LQ_TOK_REPLACE: return lq_tok_replace(r, st, s, n, out);
    case LQ_TOK_LOWER: return lower(r->ctx, s, n, out);
    case LQ_TOK_STRIP: return strip(r->ctx, st, s, n, out);
    case LQ_TOK_BYTES: return lq_tok_to_bytes(r->ctx, s, n, out);
    default: return unicode_form(r, st->kind, s, n, out);
    }
}

lq_status lq_tok_normalize(lq_tok_run *r, lq_tok_span in, lq_tok_span *out) {
    *out = in;
    for (size_t i = 0; i < r->t->norm.n; i++) {
        lq_buf *to = &r->norm[i & 1];
        LQ_TRY(one_step(r, r->t->norm.v + i, out->s, out->n, to));
        out->s = to->v;
        out->n = to->n;
    }
    return LQ_OK;
}
