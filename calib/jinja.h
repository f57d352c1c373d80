/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The subset of Jinja that published chat templates use, as data: no input or output, no code beyond the tables in
 * jinja_lib.c, and limits on steps, depth, memory and output. Whitespace rules as transformers sets them: trim_blocks and
 * lstrip_blocks on, one final newline of the template dropped. Private to calib/chat.c and calib/jinja_*.c.
 *
 * Values are json_t. Every value made while rendering belongs to a pool and lives until the end: functions return borrowed
 * pointers, NULL never. The first error is kept (sticky); after it every function returns quickly with `undefined`. */
#ifndef LQ_JINJA_H
#define LQ_JINJA_H
#include "core/json.h"

typedef enum jj_tok_kind { JJ_DATA, JJ_BLOCK, JJ_BLOCK_END, JJ_PRINT, JJ_PRINT_END, JJ_NAME, JJ_STRING, JJ_INT, JJ_FLOAT, JJ_OP, JJ_EOF } jj_tok_kind;

typedef struct jj_tok { jj_tok_kind kind; const char *s; size_t n; uint32_t line; } jj_tok; /* s: in the source, or in the arena */

typedef enum jj_kind {
    JJ_TEXT, JJ_OUTPUT, JJ_IF, JJ_FOR, JJ_SET, JJ_CAPTURE, JJ_BREAK, JJ_CONTINUE, JJ_BODY,                   /* statements */
    JJ_CONST, JJ_VAR, JJ_ATTR, JJ_INDEX, JJ_SLICE, JJ_CALL, JJ_FILTER, JJ_TEST, JJ_NOT, JJ_NEG, JJ_POS, JJ_BIN, /* expressions */
    JJ_AND, JJ_OR, JJ_CHOOSE, JJ_LIST, JJ_DICT, JJ_KWARG
} jj_kind;

typedef struct jj_node {
    jj_kind kind;
    uint32_t line;
    const char *s;              /* text, name, operator; NUL-terminated but for TEXT */
    size_t n;                   /* of TEXT */
    json_t *v;                  /* CONST */
    struct jj_node *a, *b, *c, *d;
    struct jj_node *list, *next; /* arguments, elements, targets, statements of a body; their chain */
} jj_node;

enum { JJ_STEPS = 500000, JJ_DEPTH = 100, JJ_RUN_DEPTH = 2000, JJ_SCOPES = 64, JJ_BYTES = 16 << 20, JJ_NAMESPACES = 32,
       JJ_CONTAINERS = 4000 /* bounds how deep a value can nest, and with it the recursion of jansson's dump */ };

typedef struct jj {
    lq_ctx *ctx;
    lq_status st;               /* sticky */
    lq_arena *mem;              /* tokens, nodes, names */
    json_t *pool, *undefined;   /* pool: array that owns values */
    jj_tok *tok;
    size_t n_tok, at;
    uint32_t depth, line;       /* nesting while parsing and running; line being run, for messages */
    uint64_t steps, bytes, containers;
    json_t *scope[JJ_SCOPES];   /* objects; [0] the template's variables */
    size_t n_scope;
    json_t *ns[JJ_NAMESPACES];  /* what namespace() made: the only values that may be changed */
    size_t n_ns;
    lq_buf *out;
} jj;

/* Sentence "chat template line N: ...". Returns undefined. */
json_t *jj_fail(jj *j, lq_status st, const char *fmt, ...) LQ_PRINTF(3, 4);
json_t *jj_own(jj *j, json_t *fresh);              /* new reference into the pool; NULL: out of memory */
json_t *jj_container(jj *j, json_t *fresh);        /* the same for a list or mapping the template builds; counted */
json_t *jj_str(jj *j, const char *s, size_t n);
json_t *jj_bool(bool b);
bool jj_step(jj *j);                               /* false: stop */

void jj_lex(jj *j, const char *text, size_t n);
jj_node *jj_parse(jj *j);                          /* BODY; NULL on error */
void jj_run(jj *j, const jj_node *body);
void jj_drop(jj *j);                               /* frees every value; cycles and long chains are taken apart first */
json_t *jj_eval(jj *j, const jj_node *e);

/* ---- jinja_lib.c: what values can do ---- */
bool jj_true(const jj *j, const json_t *v);
bool jj_equal(jj *j, const json_t *a, const json_t *b);
bool jj_text(jj *j, const json_t *v, lq_buf *out); /* str(v) */
json_t *jj_binary(jj *j, const char *op, json_t *a, json_t *b);
json_t *jj_in(jj *j, json_t *a, json_t *b);
json_t *jj_index(jj *j, json_t *v, json_t *key);
json_t *jj_slice(jj *j, json_t *v, json_t *lo, json_t *hi, json_t *step); /* undefined: left out */
json_t *jj_items(jj *j, json_t *v);                /* what a for loop walks: an array */
typedef struct jj_args { json_t *v[8]; size_t n; json_t *kw; } jj_args; /* kw: object */
json_t *jj_method(jj *j, json_t *self, const char *name, const jj_args *a);
json_t *jj_function(jj *j, const char *name, const jj_args *a);
json_t *jj_filter(jj *j, const char *name, json_t *v, const jj_args *a);
bool jj_test(jj *j, const char *name, json_t *v, const jj_args *a);
#endif
