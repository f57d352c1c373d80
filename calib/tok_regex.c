/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Regular expressions of tokenizers, which are written for Oniguruma (Ruby syntax), run by PCRE2.
 *
 * The pattern is rewritten where the two read the same text differently: \s is White_Space (PCRE2 adds U+180E), \w is
 * Alphabetic, marks, numbers and connectors (PCRE2: letters, numbers and '_'), \h is a hex digit, \uHHHH, nested sets,
 * (?m) means dot-all, and ^ $ stop at lines. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "calib/tok_impl.h"

#define SPACE "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define LETTERLIKE "\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}"
#define WORD "\\p{L}\\p{M}\\p{N}\\p{Pc}" LETTERLIKE
/* Rust: Nd and Nl only, and the joiners. */
#define WORD_RUST "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{200c}\\x{200d}" LETTERLIKE
#define HEX "0-9a-fA-F"

enum { MATCH_LIMIT = 200000000, STACK_MAX = 256 << 20, PATTERN_MAX = 1 << 16 };

struct lq_tok_regex { pcre2_code *code; };

static void *regex_alloc(size_t n, void *user) { (void)user; return lq_alloc(n); }
static void regex_free(void *p, void *user) { (void)user; lq_free(p); }

typedef struct rewriter { lq_ctx *ctx; const char *p; lq_buf out; int dialect; int depth; bool oom; } rewriter;

static void put(rewriter *w, const char *s, size_t n) { w->oom = !lq_buf_add(&w->out, s, n) || w->oom; }
static void puts_(rewriter *w, const char *s) { put(w, s, strlen(s)); }

/* An escape that stands for a set; inside a set only its positive form can be spelled out. */
static bool rewrite_set(rewriter *w, char c) {
    static const struct {
        char pos, neg;
        const char *set;
    } sets[] = {{'s', 'S', SPACE}, {'w', 'W', WORD}, {'h', 'H', HEX}};
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        if (c != sets[i].pos && c != sets[i].neg) continue;
        const char *set = c == 'w' || c == 'W' ? (w->dialect == LQ_TOK_RUST ? WORD_RUST : WORD) : sets[i].set;
        if (w->depth && c == sets[i].neg) return false;
        if (!w->depth) puts_(w, c == sets[i].neg ? "[^" : "[");
        puts_(w, set);
        if (!w->depth) puts_(w, "]");
        return true;
    }
    return false;
}

static void rewrite_escape(rewriter *w) {
    char c = w->p[1];
    if (rewrite_set(w, c)) w->p += 2;
    else if (c == 'u' && strspn(w->p + 2, "0123456789abcdefABCDEF") >= 4) {
        puts_(w, "\\x{");
        put(w, w->p + 2, 4);
        puts_(w, "}");
        w->p += 6;
    } else {
        size_t n = c ? 1 + lq_utf8_len(c) : 1;
        put(w, w->p, n);
        w->p += n;
    }
}

/* PCRE2 has no sets within sets; a positive one inside a set is simply part of it. */
static lq_status rewrite_in_set(rewriter *w) {
    if (w->p[0] == '[' && w->p[1] == ':') {
        const char *end = strstr(w->p, ":]");
        size_t n = end ? (size_t)(end - w->p) + 2 : 1;
        put(w, w->p, n);
        w->p += n;
        return LQ_OK;
    }
    if (w->p[0] == '[') {
        if (w->p[1] == '^')
            return lq_fail(w->ctx, LQ_ERR_UNSUPPORTED, "a regular expression has a negated set inside a set");
        w->depth++;
        w->p++;
        return LQ_OK;
    }
    if (w->p[0] == '&' && w->p[1] == '&')
        return lq_fail(w->ctx, LQ_ERR_UNSUPPORTED, "a regular expression intersects sets ('&&')");
    if (w->p[0] == ']' && --w->depth) {
        w->p++;
        return LQ_OK;
    }
    put(w, w->p++, 1);
    return LQ_OK;
}

static void open_set(rewriter *w) {
    put(w, w->p++, 1);
    if (*w->p == '^') put(w, w->p++, 1);
    if (*w->p == ']') put(w, w->p++, 1);
    w->depth = 1;
}

/* (?m) is Ruby's dot-all. */
static void open_group(rewriter *w) {
    size_t n = w->p[1] == '?' ? strspn(w->p + 2, "imx-") : 0;
    put(w, w->p, n ? 2 : 1);
    w->p += n ? 2 : 1;
    for (; n; n--, w->p++) put(w, *w->p == 'm' ? "s" : w->p, 1);
}

static lq_status rewrite(rewriter *w) {
    while (*w->p) {
        if (*w->p == '\\') rewrite_escape(w);
        else if (w->depth) LQ_TRY(rewrite_in_set(w));
        else if (*w->p == '[') open_set(w);
        else if (*w->p == '(') open_group(w);
        else put(w, w->p++, 1);
        if (w->oom) return lq_oom(w->ctx, w->out.n);
    }
    return LQ_OK;
}

static lq_status compile(lq_ctx *ctx, const char *pattern, const lq_buf *text, pcre2_code **out) {
    int code;
    size_t at;
    uint8_t why[128] = "";
    lq_status st = LQ_OK;
    pcre2_general_context *general = pcre2_general_context_create(regex_alloc, regex_free, NULL);
    pcre2_compile_context *cc = general ? pcre2_compile_context_create(general) : NULL;
    if (!cc) LQ_GO(lq_oom(ctx, text->n));
    pcre2_set_newline(cc, PCRE2_NEWLINE_LF);
    *out = pcre2_compile((PCRE2_SPTR)text->v, text->n,
                         PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code, &at, cc);
    if (!*out && code == PCRE2_ERROR_HEAP_FAILED) LQ_GO(lq_oom(ctx, text->n));
    if (!*out) {
        pcre2_get_error_message(code, why, sizeof why);
        LQ_GO(lq_fail(ctx, LQ_ERR_UNSUPPORTED, "regular expression '%.200s': %s", pattern, (char *)why));
    }
    pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE); /* without it the interpreter gives the same matches */
done:
    pcre2_compile_context_free(cc);
    pcre2_general_context_free(general);
    return st;
}

lq_status lq_tok_regex_new(lq_ctx *ctx, const char *pattern, int dialect, lq_tok_regex **out) {
    /* From every start inside a run of spaces this would scan the run again: quadratic. A match begins at the run's
     * start anyway. */
    const char *text = !strcmp(pattern, "\\s+$") ? "(?<!\\s)\\s+$" : pattern;
    rewriter w = {.ctx = ctx, .p = text, .dialect = dialect};
    lq_status st = LQ_OK;
    lq_tok_regex *re = NULL;
    if (strlen(pattern) > PATTERN_MAX)
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "a regular expression of %zu bytes, at most %d are read",
                       strlen(pattern), PATTERN_MAX);
    if (!lq_buf_add(&w.out, "", 0)) LQ_GO(lq_oom(ctx, 0));
    LQ_GO(rewrite(&w));
    re = LQ_NEW(lq_tok_regex);
    if (!re) LQ_GO(lq_oom(ctx, sizeof *re));
    LQ_GO(compile(ctx, pattern, &w.out, &re->code));
    *out = re;
    re = NULL;
done:
    lq_buf_free(&w.out);
    lq_tok_regex_free(&re);
    return st;
}

void lq_tok_regex_free(lq_tok_regex **re) {
    if (!*re) return;
    pcre2_code_free((*re)->code);
    lq_free(*re);
    *re = NULL;
}

static lq_status match_start(lq_tok_run *r) {
    pcre2_general_context *general = pcre2_general_context_create(regex_alloc, regex_free, NULL);
    if (!general) return lq_oom(r->ctx, 0);
    pcre2_match_context *mc = pcre2_match_context_create(general);
    r->match_ctx = mc;
    r->match = pcre2_match_data_create(1, general);
    pcre2_general_context_free(general);
    if (!mc || !r->match) return lq_oom(r->ctx, 0);
    pcre2_set_match_limit(mc, MATCH_LIMIT);
    return LQ_OK;
}

static int match(lq_tok_run *r, const lq_tok_regex *re, const char *s, size_t n, size_t from, uint32_t how) {
    return pcre2_match(re->code, (PCRE2_SPTR)s, n, from, PCRE2_NO_UTF_CHECK | how, r->match, r->match_ctx);
}

/* Code compiled by PCRE2 runs on 32 KB of our stack; what needs more gets its own (address space, touched as needed),
 * and what needs more than that is interpreted, on the heap. */
static int match_deep(lq_tok_run *r, const lq_tok_regex *re, const char *s, size_t n, size_t from) {
    int rc = PCRE2_ERROR_JIT_STACKLIMIT;
    if (!r->jit_stack) {
        r->jit_stack = pcre2_jit_stack_create(1 << 16, STACK_MAX, NULL);
        if (r->jit_stack) pcre2_jit_stack_assign(r->match_ctx, NULL, r->jit_stack);
        if (r->jit_stack) rc = match(r, re, s, n, from, 0);
    }
    return rc == PCRE2_ERROR_JIT_STACKLIMIT ? match(r, re, s, n, from, PCRE2_NO_JIT) : rc;
}

void lq_tok_regex_end(lq_tok_run *r) {
    if (r->jit_stack) pcre2_jit_stack_free(r->jit_stack);
    pcre2_match_data_free(r->match);
    pcre2_match_context_free(r->match_ctx);
}

lq_status lq_tok_regex_find(lq_tok_run *r, const lq_tok_regex *re, const char *s, size_t n, size_t from, size_t *a,
                            size_t *b, bool *found) {
    if (!r->match) LQ_TRY(match_start(r));
    int rc = match(r, re, s, n, from, 0);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) rc = match_deep(r, re, s, n, from);
    *found = rc >= 0;
    if (rc == PCRE2_ERROR_NOMATCH) return LQ_OK;
    if (rc < 0) {
        uint8_t why[128] = "";
        pcre2_get_error_message(rc, why, sizeof why);
        return lq_fail(r->ctx, LQ_ERR_RESOURCE, "a pre-tokenizer's regular expression gave up on %zu bytes of text: %s",
                       n, (char *)why);
    }
    const PCRE2_SIZE *o = pcre2_get_ovector_pointer(r->match);
    *a = o[0];
    *b = o[1] < o[0] ? o[0] : o[1]; /* \K in a lookahead */
    return LQ_OK;
}
