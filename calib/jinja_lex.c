/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Template text to tokens. Whitespace: a '-' inside a tag eats all blanks on that side; without a sign, blanks between the start
 * of a line and a block or comment go (lstrip_blocks), and the newline behind a block or comment goes (trim_blocks). */
#include "calib/jinja.h"

#include <ctype.h>
#include <string.h>

typedef struct lexer {
    jj *j;
    const char *p, *end;
    size_t cap;
    uint32_t line;
    bool line_start;    /* the text before p ended in a newline eaten by a tag, or there is none */
} lexer;

static bool blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static void push(lexer *x, jj_tok_kind kind, const char *s, size_t n) {
    jj *j = x->j;
    if (j->n_tok == x->cap) {
        size_t cap = x->cap ? 2 * x->cap : 256;
        jj_tok *more = lq_arena_alloc(j->mem, cap * sizeof *more);
        if (!more) {
            jj_fail(j, lq_oom(j->ctx, cap * sizeof *more), "out of memory");
            return;
        }
        if (j->n_tok) memcpy(more, j->tok, j->n_tok * sizeof *more);
        j->tok = more;
        x->cap = cap;
    }
    j->tok[j->n_tok++] = (jj_tok){kind, s, n, x->line};
}

static void advance(lexer *x, const char *to) {
    for (; x->p < to; x->p++) x->line += *x->p == '\n';
}

static void lex_fail(lexer *x, const char *what) {
    x->j->line = x->line;
    jj_fail(x->j, LQ_ERR_FORMAT, "%s", what);
}

/* Where the next tag opens, or the end. */
static const char *next_tag(const char *p, const char *end) {
    for (; p + 1 < end; p++)
        if (*p == '{' && (p[1] == '{' || p[1] == '%' || p[1] == '#')) return p;
    return end;
}

static void data(lexer *x, const char *tag) {
    const char *stop = tag;
    if (tag < x->end) {
        char sign = tag + 2 < x->end ? tag[2] : 0;
        if (sign == '-')
            while (stop > x->p && blank(stop[-1])) stop--;
        else if (sign != '+' && tag[1] != '{') {
            const char *s = tag;
            while (s > x->p && blank(s[-1]) && s[-1] != '\n') s--;
            if (s == x->p ? x->line_start : s[-1] == '\n') stop = s;
        }
    }
    if (stop > x->p) push(x, JJ_DATA, x->p, (size_t)(stop - x->p));
    advance(x, tag);
}

/* p stands behind a closing tag whose sign was '-', '+' or none. */
static void after_tag(lexer *x, char sign, bool print) {
    const char *p = x->p;
    if (sign == '-')
        while (p < x->end && blank(*p)) p++;
    else if (sign != '+' && !print && p < x->end && *p == '\n') p++;
    x->line_start = p > x->p && p[-1] == '\n';
    advance(x, p);
}

static void comment(lexer *x) {
    const char *p = x->p + 2;
    while (p + 1 < x->end && !(p[0] == '#' && p[1] == '}')) p++;
    if (p + 1 >= x->end) {
        lex_fail(x, "a comment is not closed");
        return;
    }
    char sign = p > x->p + 2 ? p[-1] : 0;
    advance(x, p + 2);
    after_tag(x, sign, false);
}

static unsigned hex_digits(const char *p, const char *end, int n, const char **stop) {
    unsigned v = 0;
    for (; n-- && p < end && isxdigit((unsigned char)*p); p++)
        v = v * 16 + (unsigned)(isdigit((unsigned char)*p) ? *p - '0' : (*p | 32) - 'a' + 10);
    *stop = p;
    return v;
}

static size_t put_utf8(unsigned c, char *to) {
    if (c < 0x80) { to[0] = (char)c; return 1; }
    if (c < 0x800) { to[0] = (char)(0xC0 | c >> 6); to[1] = (char)(0x80 | (c & 63)); return 2; }
    if (c < 0x10000) {
        to[0] = (char)(0xE0 | c >> 12); to[1] = (char)(0x80 | (c >> 6 & 63)); to[2] = (char)(0x80 | (c & 63));
        return 3;
    }
    to[0] = (char)(0xF0 | c >> 18); to[1] = (char)(0x80 | (c >> 12 & 63)); to[2] = (char)(0x80 | (c >> 6 & 63)); to[3] = (char)(0x80 | (c & 63));
    return 4;
}

/* Python's escapes; an unknown one stays as it is written. */
static const char *escape(const char *p, const char *end, char *to, size_t *n) {
    static const char from[] = "nrtabfv\\'\"", plain[] = "\n\r\t\a\b\f\v\\'\"";
    const char *at = strchr(from, *p), *stop;
    if (*p && at) { to[(*n)++] = plain[at - from]; return p + 1; }
    if (*p == '\n') return p + 1;
    if (*p == 'x' || *p == 'u' || *p == 'U') {
        unsigned c = hex_digits(p + 1, end, *p == 'x' ? 2 : *p == 'u' ? 4 : 8, &stop);
        if (stop > p + 1 && c <= 0x10FFFF) { *n += put_utf8(c, to + *n); return stop; }
    }
    to[(*n)++] = '\\';
    to[(*n)++] = *p;
    return p + 1;
}

static void string(lexer *x) {
    char quote = *x->p;
    const char *p = x->p + 1;
    char *s = lq_arena_alloc(x->j->mem, 2 * (size_t)(x->end - p) + 8 < 65536 ? 2 * (size_t)(x->end - p) + 8 : 65536);
    size_t n = 0;
    if (!s) {
        jj_fail(x->j, lq_oom(x->j->ctx, 65536), "out of memory");
        return;
    }
    while (p < x->end && *p != quote && n < 65000) {
        if (*p == '\\' && p + 1 < x->end) p = escape(p + 1, x->end, s, &n);
        else s[n++] = *p++;
    }
    if (p >= x->end || *p != quote) {
        lex_fail(x, "a string is not closed");
        return;
    }
    push(x, JJ_STRING, s, n);
    advance(x, p + 1);
}

static void word_or_number(lexer *x) {
    const char *p = x->p;
    jj_tok_kind kind = JJ_NAME;
    if (isdigit((unsigned char)*p)) {
        kind = JJ_INT;
        while (p < x->end && (isdigit((unsigned char)*p) || *p == '_')) p++;
        if (p + 1 < x->end && *p == '.' && isdigit((unsigned char)p[1])) {
            kind = JJ_FLOAT;
            for (p++; p < x->end && isdigit((unsigned char)*p);) p++;
        }
    } else
        while (p < x->end && (isalnum((unsigned char)*p) || *p == '_')) p++;
    push(x, kind, x->p, (size_t)(p - x->p));
    advance(x, p);
}

static bool operator(lexer *x, int *open) {
    static const char *const two[] = {"==", "!=", "<=", ">=", "//", "**"};
    size_t n = 0;
    for (size_t i = 0; i < 6; i++)
        if (x->p + 1 < x->end && !memcmp(x->p, two[i], 2)) n = 2;
    if (!n && strchr("+-*/%~|()[]{}<>=.,:", *x->p)) n = 1;
    if (!n || !*x->p) return false;
    if (n == 1) *open += strchr("([{", *x->p) ? 1 : strchr(")]}", *x->p) ? -1 : 0;
    push(x, JJ_OP, x->p, n);
    advance(x, x->p + n);
    return true;
}

/* The inside of {{ }} or {% %}. */
static void tag(lexer *x) {
    bool print = x->p[1] == '{';
    const char *close = print ? "}}" : "%}";
    int open = 0;
    push(x, print ? JJ_PRINT : JJ_BLOCK, x->p, 2);
    advance(x, x->p + 2);
    if (x->p < x->end && (*x->p == '-' || *x->p == '+')) advance(x, x->p + 1);
    while (!x->j->st) {
        while (x->p < x->end && blank(*x->p)) advance(x, x->p + 1);
        if (x->p >= x->end) {
            lex_fail(x, "a tag is not closed");
            return;
        }
        char sign = (*x->p == '-' || *x->p == '+') && open <= 0 ? *x->p : 0;
        const char *c = x->p + (sign != 0);
        if (open <= 0 && c + 1 < x->end && !memcmp(c, close, 2)) {
            push(x, print ? JJ_PRINT_END : JJ_BLOCK_END, c, 2);
            advance(x, c + 2);
            after_tag(x, sign, print);
            return;
        }
        if (*x->p == '\'' || *x->p == '"') string(x);
        else if (isalnum((unsigned char)*x->p) || *x->p == '_') word_or_number(x);
        else if (!operator(x, &open)) lex_fail(x, "a character that no expression has");
    }
}

void jj_lex(jj *j, const char *text, size_t n) {
    if (n && text[n - 1] == '\n') n--;
    lexer x = {.j = j, .p = text, .end = text + n, .line = 1, .line_start = true};
    while (x.p < x.end && !j->st) {
        const char *t = next_tag(x.p, x.end);
        data(&x, t);
        if (t == x.end) break;
        x.line_start = false;
        if (t[1] == '#') comment(&x);
        else tag(&x);
    }
    push(&x, JJ_EOF, x.end, 0);
}
