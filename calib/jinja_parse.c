/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Tokens to a tree; precedence as in Jinja: if-else, or, and, not, comparisons, + -, ~, * / // %, unary, then
 * attributes, subscripts, calls, filters and tests. */
#include "calib/jinja.h"

#include <stdlib.h>
#include <string.h>

static jj_node *expression(jj *j);
static jj_node *unary(jj *j);
static jj_node *body(jj *j, const char *const *ends);

static const jj_tok *peek(const jj *j) { return &j->tok[j->at < j->n_tok ? j->at : j->n_tok - 1]; }
static const jj_tok *take(jj *j) {
    const jj_tok *t = peek(j);
    j->line = t->line;
    if (j->at < j->n_tok) j->at++;
    return t;
}
static bool is(const jj_tok *t, jj_tok_kind k, const char *s) { return t->kind == k && t->n == strlen(s) && !memcmp(t->s, s, t->n); }
static bool see(const jj *j, const char *op) { return is(peek(j), JJ_OP, op); }
static bool see_word(const jj *j, const char *w) { return is(peek(j), JJ_NAME, w); }
static bool accept(jj *j, const char *op) { return see(j, op) ? take(j) != NULL : false; }
static bool accept_word(jj *j, const char *w) { return see_word(j, w) ? take(j) != NULL : false; }

static char *copy(jj *j, const char *s, size_t n) {
    char *c = lq_arena_alloc(j->mem, n + 1);
    if (!c) jj_fail(j, lq_oom(j->ctx, n + 1), "out of memory");
    else memcpy(c, s, n);
    return c;
}

static jj_node *node(jj *j, jj_kind kind) {
    jj_node *n = lq_arena_alloc(j->mem, sizeof *n);
    if (!n) {
        jj_fail(j, lq_oom(j->ctx, sizeof *n), "out of memory");
        return NULL;
    }
    n->kind = kind;
    n->line = peek(j)->line;
    return n;
}

static jj_node *bad(jj *j, const char *wanted) {
    const jj_tok *t = peek(j);
    j->line = t->line;
    jj_fail(j, LQ_ERR_FORMAT, "expected %s, found '%.*s'", wanted, (int)(t->n < 40 ? t->n : 40), t->s);
    return NULL;
}

static bool need(jj *j, const char *op) {
    if (accept(j, op)) return true;
    bad(j, op);
    return false;
}

static const char *name(jj *j) {
    if (peek(j)->kind != JJ_NAME) {
        bad(j, "a name");
        return NULL;
    }
    const jj_tok *t = take(j);
    return copy(j, t->s, t->n);
}

static jj_node *with(jj *j, jj_kind kind, const char *s, jj_node *a, jj_node *b) {
    jj_node *n = node(j, kind);
    if (n) {
        n->s = s;
        n->a = a;
        n->b = b;
    }
    return j->st ? NULL : n;
}

static void append(jj_node *to, jj_node **tail, jj_node *item) {
    if (*tail) (*tail)->next = item;
    else to->list = item;
    *tail = item;
}

/* ---- expressions ---- */

static jj_node *constant(jj *j, json_t *fresh) {
    jj_node *n = node(j, JJ_CONST);
    json_t *v = jj_own(j, fresh);
    if (n) n->v = v;
    return j->st ? NULL : n;
}

static jj_node *number(jj *j, const jj_tok *t) {
    char text[64];
    size_t n = 0;
    for (size_t i = 0; i < t->n && n < sizeof text - 1; i++)
        if (t->s[i] != '_') text[n++] = t->s[i];
    text[n] = 0;
    return constant(j, t->kind == JJ_INT ? json_integer(strtoll(text, NULL, 10)) : json_real(strtod(text, NULL)));
}

static jj_node *word(jj *j) {
    static const struct { const char *w; int v; } fixed[] = {{"true", 1}, {"True", 1}, {"false", 0}, {"False", 0}, {"none", 2}, {"None", 2}};
    for (size_t i = 0; i < 6; i++)
        if (accept_word(j, fixed[i].w)) return constant(j, fixed[i].v == 2 ? json_null() : json_boolean(fixed[i].v));
    const char *s = name(j);
    return s ? with(j, JJ_VAR, s, NULL, NULL) : NULL;
}

/* Elements up to `close`; comma-separated, a last comma is fine. */
static jj_node *elements(jj *j, jj_kind kind, const char *close) {
    jj_node *n = node(j, kind), *tail = NULL;
    while (n && !j->st && !accept(j, close)) {
        jj_node *e = expression(j);
        if (kind == JJ_DICT && e && need(j, ":")) e = with(j, JJ_KWARG, NULL, e, expression(j));
        if (!e || j->st) return NULL;
        append(n, &tail, e);
        if (!see(j, close) && !need(j, ",")) return NULL;
    }
    return j->st ? NULL : n;
}

static jj_node *parenthesis(jj *j) {
    if (accept(j, ")")) return node(j, JJ_LIST);
    jj_node *e = expression(j);
    if (!e || !see(j, ",")) return e && need(j, ")") ? e : NULL;
    jj_node *n = node(j, JJ_LIST), *tail = NULL; /* a tuple */
    if (!n) return NULL;
    append(n, &tail, e);
    while (accept(j, ",") && !see(j, ")")) {
        e = expression(j);
        if (!e) return NULL;
        append(n, &tail, e);
    }
    return need(j, ")") ? n : NULL;
}

static jj_node *primary(jj *j) {
    const jj_tok *t = peek(j);
    if (t->kind == JJ_NAME) return word(j);
    if (t->kind == JJ_INT || t->kind == JJ_FLOAT) return number(j, take(j));
    if (t->kind == JJ_STRING) {
        lq_buf s = {0};
        bool ok = true;
        while (ok && peek(j)->kind == JJ_STRING) { /* neighbours are one string */
            t = take(j);
            ok = lq_buf_add(&s, t->s, t->n);
        }
        jj_node *n = ok ? constant(j, json_stringn(s.v, s.n)) : NULL;
        lq_buf_free(&s);
        return n;
    }
    if (accept(j, "(")) return parenthesis(j);
    if (accept(j, "[")) return elements(j, JJ_LIST, "]");
    if (accept(j, "{")) return elements(j, JJ_DICT, "}");
    return bad(j, "a value");
}

/* Arguments behind "(" into n->list. */
static bool arguments(jj *j, jj_node *n) {
    jj_node *tail = NULL;
    while (!j->st && !accept(j, ")")) {
        jj_node *e;
        bool keyword = peek(j)->kind == JJ_NAME && j->at + 1 < j->n_tok && is(&j->tok[j->at + 1], JJ_OP, "=");
        if (keyword) {
            const char *key = name(j);
            need(j, "=");
            e = with(j, JJ_KWARG, key, expression(j), NULL);
        } else e = expression(j);
        if (!e || j->st) return false;
        append(n, &tail, e);
        if (!see(j, ")") && !need(j, ",")) return false;
    }
    return !j->st;
}

/* [i] or [lo:hi:step] behind "[". */
static jj_node *subscript(jj *j, jj_node *of) {
    jj_node *part[3] = {NULL, NULL, NULL};
    int colons = 0;
    while (!j->st && !see(j, "]")) {
        if (accept(j, ":")) {
            if (++colons > 2) return bad(j, "]");
        } else if (part[colons]) return bad(j, "]");
        else part[colons] = expression(j);
    }
    if (!need(j, "]")) return NULL;
    if (!colons) return part[0] ? with(j, JJ_INDEX, NULL, of, part[0]) : bad(j, "an index");
    jj_node *n = with(j, JJ_SLICE, NULL, of, part[0]);
    if (n) {
        n->c = part[1];
        n->d = part[2];
    }
    return n;
}

static jj_node *filter(jj *j, jj_node *of) {
    const char *s = name(j);
    jj_node *n = s ? with(j, JJ_FILTER, s, of, NULL) : NULL;
    if (n && accept(j, "(") && !arguments(j, n)) return NULL;
    return n;
}

static bool begins_value(const jj *j) {
    static const char *const no[] = {"else", "and", "or", "is", "if", "in", "not"};
    const jj_tok *t = peek(j);
    for (size_t i = 0; i < 7; i++)
        if (see_word(j, no[i])) return false;
    return t->kind == JJ_NAME || t->kind == JJ_INT || t->kind == JJ_FLOAT || t->kind == JJ_STRING || see(j, "[") || see(j, "{");
}

static jj_node *test(jj *j, jj_node *of) {
    bool negate = accept_word(j, "not");
    const char *s = name(j);
    jj_node *n = s ? with(j, JJ_TEST, s, of, NULL) : NULL;
    if (!n) return NULL;
    if (accept(j, "(")) {
        if (!arguments(j, n)) return NULL;
    } else if (begins_value(j)) {
        n->list = unary(j);
        if (!n->list) return NULL;
    }
    return negate ? with(j, JJ_NOT, NULL, n, NULL) : n;
}

static jj_node *postfix(jj *j, jj_node *n) {
    while (n && !j->st) {
        if (accept(j, ".")) {
            const char *s = name(j);
            n = s ? with(j, JJ_ATTR, s, n, NULL) : NULL;
        } else if (accept(j, "[")) n = subscript(j, n);
        else if (accept(j, "(")) {
            n = with(j, JJ_CALL, NULL, n, NULL);
            if (n && !arguments(j, n)) return NULL;
        } else if (accept(j, "|")) n = filter(j, n);
        else if (accept_word(j, "is")) n = test(j, n);
        else break;
    }
    return n;
}

static jj_node *unary(jj *j) {
    if (++j->depth > JJ_DEPTH) {
        jj_fail(j, LQ_ERR_UNSUPPORTED, "nested deeper than %d", JJ_DEPTH);
        return NULL;
    }
    jj_node *n;
    if (accept(j, "-")) n = with(j, JJ_NEG, NULL, unary(j), NULL);
    else if (accept(j, "+")) n = with(j, JJ_POS, NULL, unary(j), NULL);
    else n = postfix(j, primary(j));
    j->depth--;
    return j->st ? NULL : n;
}

static jj_node *binary(jj *j, int level) {
    static const char *const ops[3][4] = {{"+", "-"}, {"~"}, {"*", "/", "//", "%"}};
    jj_node *n = level < 3 ? binary(j, level + 1) : unary(j);
    while (n && level < 3) {
        int k = 0;
        while (k < 4 && ops[level][k] && !see(j, ops[level][k])) k++;
        if (k == 4 || !ops[level][k]) break;
        take(j);
        jj_node *right = binary(j, level + 1);
        n = right ? with(j, JJ_BIN, ops[level][k], n, right) : NULL;
    }
    return n;
}

/* a < b < c is (a < b) and (b < c), as in Python. */
static jj_node *comparison(jj *j) {
    static const char *const ops[] = {"==", "!=", "<=", ">=", "<", ">"};
    jj_node *left = binary(j, 0), *all = NULL;
    for (bool more = true; left && more;) {
        const char *op = NULL;
        for (size_t i = 0; i < 6 && !op; i++)
            if (accept(j, ops[i])) op = ops[i];
        if (!op && accept_word(j, "in")) op = "in";
        if (!op && see_word(j, "not") && is(&j->tok[j->at + 1 < j->n_tok ? j->at + 1 : j->at], JJ_NAME, "in")) {
            take(j);
            take(j);
            op = "not in";
        }
        more = op != NULL;
        if (!more) break;
        jj_node *right = binary(j, 0), *one = right ? with(j, JJ_BIN, op, left, right) : NULL;
        if (!one) return NULL;
        all = all ? with(j, JJ_AND, NULL, all, one) : one;
        left = right;
    }
    return all ? all : left;
}

static jj_node *negation(jj *j) {
    if (!accept_word(j, "not")) return comparison(j);
    if (++j->depth > JJ_DEPTH) {
        jj_fail(j, LQ_ERR_UNSUPPORTED, "nested deeper than %d", JJ_DEPTH);
        return NULL;
    }
    jj_node *n = negation(j);
    j->depth--;
    return n ? with(j, JJ_NOT, NULL, n, NULL) : NULL;
}

static jj_node *conjunction(jj *j) {
    jj_node *n = negation(j);
    while (n && accept_word(j, "and")) n = with(j, JJ_AND, NULL, n, negation(j));
    return j->st ? NULL : n;
}

static jj_node *disjunction(jj *j) {
    jj_node *n = conjunction(j);
    while (n && accept_word(j, "or")) n = with(j, JJ_OR, NULL, n, conjunction(j));
    return j->st ? NULL : n;
}

static jj_node *expression(jj *j) {
    if (++j->depth > JJ_DEPTH) {
        jj_fail(j, LQ_ERR_UNSUPPORTED, "nested deeper than %d", JJ_DEPTH);
        return NULL;
    }
    jj_node *n = disjunction(j);
    while (n && accept_word(j, "if")) {
        n = with(j, JJ_CHOOSE, NULL, disjunction(j), n);
        if (n && accept_word(j, "else")) n->c = expression(j);
    }
    j->depth--;
    return j->st ? NULL : n;
}

/* ---- statements ---- */

static bool block_end(jj *j) {
    if (peek(j)->kind != JJ_BLOCK_END) return bad(j, "%}") != NULL;
    take(j);
    return true;
}

/* {% word %} of a closing tag whose {% was taken */
static bool closing(jj *j, const char *w) {
    if (!accept_word(j, w)) return bad(j, w) != NULL;
    return block_end(j);
}

static jj_node *parse_if(jj *j) {
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    jj_node *n = node(j, JJ_IF);
    if (!n || !(n->a = expression(j)) || !block_end(j) || !(n->b = body(j, ends))) return NULL;
    if (accept_word(j, "elif")) {
        if (++j->depth > JJ_DEPTH) {
            jj_fail(j, LQ_ERR_UNSUPPORTED, "nested deeper than %d", JJ_DEPTH);
            return NULL;
        }
        n->c = parse_if(j);
        j->depth--;
        return n->c ? n : NULL;
    }
    if (accept_word(j, "else") && (!block_end(j) || !(n->c = body(j, (const char *const[]){"endif", NULL})))) return NULL;
    return closing(j, "endif") ? n : NULL;
}

static bool targets(jj *j, jj_node *n) {
    jj_node *tail = NULL;
    bool paren = accept(j, "(");
    do {
        const char *s = name(j);
        jj_node *t = s ? with(j, JJ_VAR, s, NULL, NULL) : NULL;
        if (!t) return false;
        append(n, &tail, t);
    } while (accept(j, ","));
    return !paren || need(j, ")");
}

static jj_node *parse_for(jj *j) {
    static const char *const ends[] = {"else", "endfor", NULL};
    jj_node *n = node(j, JJ_FOR);
    if (!n || !targets(j, n)) return NULL;
    if (!accept_word(j, "in")) return bad(j, "in");
    if (!(n->a = disjunction(j))) return NULL;
    if (accept_word(j, "if") && !(n->d = expression(j))) return NULL;
    if (see_word(j, "recursive")) {
        jj_fail(j, LQ_ERR_UNSUPPORTED, "'recursive' loops are not supported");
        return NULL;
    }
    if (!block_end(j) || !(n->b = body(j, ends))) return NULL;
    if (accept_word(j, "else") && (!block_end(j) || !(n->c = body(j, (const char *const[]){"endfor", NULL})))) return NULL;
    return closing(j, "endfor") ? n : NULL;
}

static jj_node *parse_set(jj *j) {
    jj_node *n = node(j, JJ_SET);
    if (!n || !targets(j, n)) return NULL;
    if (accept(j, ".")) { /* ns.x */
        n->s = name(j);
        if (!n->s) return NULL;
    }
    if (accept(j, "=")) {
        n->a = expression(j);
        if (n->a && see(j, ",")) { /* a tuple without brackets */
            jj_node *all = node(j, JJ_LIST), *tail = NULL;
            if (!all) return NULL;
            append(all, &tail, n->a);
            while (accept(j, ",")) {
                jj_node *e = expression(j);
                if (!e) return NULL;
                append(all, &tail, e);
            }
            n->a = all;
        }
        return n->a && block_end(j) ? n : NULL;
    }
    n->kind = JJ_CAPTURE;
    if (!block_end(j) || !(n->b = body(j, (const char *const[]){"endset", NULL}))) return NULL;
    return closing(j, "endset") ? n : NULL;
}

static jj_node *parse_generation(jj *j) { /* marks the assistant's tokens; the text is the same */
    jj_node *n = block_end(j) ? body(j, (const char *const[]){"endgeneration", NULL}) : NULL;
    return n && closing(j, "endgeneration") ? n : NULL;
}

static jj_node *statement(jj *j) {
    jj_node *n;
    if (accept_word(j, "if")) return parse_if(j);
    if (accept_word(j, "for")) return parse_for(j);
    if (accept_word(j, "set")) return parse_set(j);
    if (accept_word(j, "generation")) return parse_generation(j);
    if (see_word(j, "break") || see_word(j, "continue")) {
        n = node(j, see_word(j, "break") ? JJ_BREAK : JJ_CONTINUE);
        take(j);
        return n && block_end(j) ? n : NULL;
    }
    const jj_tok *t = peek(j);
    j->line = t->line;
    jj_fail(j, LQ_ERR_UNSUPPORTED, "statement '%.*s' is not supported", (int)(t->n < 40 ? t->n : 40), t->s);
    return NULL;
}

static jj_node *text(jj *j) {
    const jj_tok *t = take(j);
    jj_node *n = node(j, JJ_TEXT);
    if (n) {
        n->s = t->s;
        n->n = t->n;
    }
    return n;
}

static jj_node *output(jj *j) {
    take(j);
    jj_node *n = node(j, JJ_OUTPUT);
    if (!n || !(n->a = expression(j))) return NULL;
    if (peek(j)->kind != JJ_PRINT_END) return bad(j, "}}");
    take(j);
    return n;
}

/* Is the {% at hand one of the closing words? */
static bool at_end(const jj *j, const char *const *ends) {
    if (peek(j)->kind != JJ_BLOCK || j->at + 1 >= j->n_tok) return false;
    for (; *ends; ends++)
        if (is(&j->tok[j->at + 1], JJ_NAME, *ends)) return true;
    return false;
}

/* Statements up to one of `ends`, whose {% is taken and whose word is next; or, without ends, up to the end of the text. */
static jj_node *body(jj *j, const char *const *ends) {
    static const char *const nothing[] = {NULL};
    jj_node *n = node(j, JJ_BODY), *tail = NULL;
    if (++j->depth > JJ_DEPTH) jj_fail(j, LQ_ERR_UNSUPPORTED, "nested deeper than %d", JJ_DEPTH);
    while (n && !j->st && peek(j)->kind != JJ_EOF && !at_end(j, ends ? ends : nothing)) {
        jj_node *s;
        if (peek(j)->kind == JJ_DATA) s = text(j);
        else if (peek(j)->kind == JJ_PRINT) s = output(j);
        else if (peek(j)->kind == JJ_BLOCK) {
            take(j);
            s = statement(j);
        } else s = bad(j, "text or a tag");
        if (!s) return NULL;
        append(n, &tail, s);
    }
    j->depth--;
    if (ends && !j->st && peek(j)->kind == JJ_EOF) return bad(j, ends[0]);
    if (ends) take(j);
    return j->st ? NULL : n;
}

jj_node *jj_parse(jj *j) {
    jj_node *n = body(j, NULL);
    return j->st ? NULL : n;
}
