/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Inside of the tokenizer, for tokenizer.c and tok_*.c only.
 *
 *   text -> (added tokens cut out) -> normalizers -> (added tokens in normalized text) -> pre-tokenizers -> BPE -> ids
 *
 * Every stage is a short list of steps read from JSON; a GGUF vocabulary brings the same JSON from a table. Behaviour
 * follows the `tokenizers` package (Hugging Face), where it was observed. */
#ifndef LQ_TOK_IMPL_H
#define LQ_TOK_IMPL_H
#include <string.h>

#include "calib/tokenizer.h"

enum {
    LQ_TOK_ID_MAX = 1 << 22,      /* ids above are no vocabulary, they are an attack on memory */
    LQ_TOK_STEPS = 32,            /* per stage, sequences flattened */
    LQ_TOK_DEPTH = 8,             /* of nested sequences */
    LQ_TOK_SPECIALS = 64,         /* ids a post-processor may add on one side */
    LQ_TOK_ADDED_BYTES = 1024,    /* of one added token */
    LQ_TOK_SPM_BYTES = 512        /* of one piece whose merges come from scores */
};
#define LQ_TOK_NONE UINT32_MAX

typedef struct lq_tok_str { const char *s; uint32_t n; } lq_tok_str; /* NUL-terminated too; s NULL: absent */

/* String -> index of an lq_tok_str array. Open addressing; a slot holds index + 1. */
typedef struct lq_tok_map { uint32_t *slot; uint32_t mask, n; } lq_tok_map;
lq_status lq_tok_map_init(lq_ctx *ctx, lq_tok_map *m, lq_arena *mem, size_t n);
/* LQ_TOK_NONE: absent */
uint32_t lq_tok_map_find(const lq_tok_map *m, const lq_tok_str *items, const char *s, size_t n);
/* Absent before, and within the n of init. */
void lq_tok_map_put(lq_tok_map *m, const lq_tok_str *items, uint32_t index);

/* (a, b) -> (x, y), for merges (left, right -> rank, result) and tries (node, byte -> node). Later puts replace earlier
 * ones. */
typedef struct lq_tok_pair { uint32_t a, b, x, y; } lq_tok_pair; /* y NONE: free slot */
typedef struct lq_tok_pairs { lq_tok_pair *v; uint32_t mask, n; } lq_tok_pairs;
lq_status lq_tok_pairs_init(lq_ctx *ctx, lq_tok_pairs *p, lq_arena *mem, size_t n);
const lq_tok_pair *lq_tok_pairs_find(const lq_tok_pairs *p, uint32_t a, uint32_t b);
void lq_tok_pairs_put(lq_tok_pairs *p, uint32_t a, uint32_t b, uint32_t x, uint32_t y);

typedef struct lq_tok_regex lq_tok_regex;
enum { LQ_TOK_ONIG, LQ_TOK_RUST }; /* whose \w is meant */
lq_status lq_tok_regex_new(lq_ctx *ctx, const char *pattern, int dialect, lq_tok_regex **out);
void lq_tok_regex_free(lq_tok_regex **re);
typedef struct lq_tok_run lq_tok_run;
void lq_tok_regex_end(lq_tok_run *r); /* frees the matching state of a run */

typedef enum lq_tok_kind {
    /* normalizers */
    LQ_TOK_NFC, LQ_TOK_NFD, LQ_TOK_NFKC, LQ_TOK_NFKD, LQ_TOK_PREPEND, LQ_TOK_LOWER, LQ_TOK_STRIP,
    /* normalizers and pre-tokenizers; REPLACE is a decoder too */
    LQ_TOK_REPLACE, LQ_TOK_BYTES,
    /* pre-tokenizers */
    LQ_TOK_SPLIT, LQ_TOK_PREFIX, LQ_TOK_META,
    /* decoders */
    LQ_TOK_UNBYTES, LQ_TOK_UNMETA, LQ_TOK_FALLBACK, LQ_TOK_FUSE, LQ_TOK_UNSTRIP
} lq_tok_kind;
typedef enum lq_tok_behavior {
    LQ_TOK_ISOLATED, LQ_TOK_REMOVED, LQ_TOK_WITH_PREVIOUS, LQ_TOK_WITH_NEXT, LQ_TOK_CONTIGUOUS
} lq_tok_behavior;
enum { LQ_TOK_ALWAYS, LQ_TOK_FIRST, LQ_TOK_NEVER }; /* prepend_scheme */

typedef struct lq_tok_step {
    lq_tok_kind kind;
    lq_tok_behavior behavior;    /* SPLIT */
    bool invert, left, right;    /* SPLIT; STRIP */
    int scheme;                  /* META, UNMETA */
    uint32_t start, stop;        /* UNSTRIP: at most this many */
    lq_tok_regex *re;            /* SPLIT, REPLACE; NULL: the literal text */
    lq_tok_str text, with;       /* pattern or prefix; replacement */
} lq_tok_step;
typedef struct lq_tok_steps { lq_tok_step v[LQ_TOK_STEPS]; size_t n; } lq_tok_steps;

typedef struct lq_tok_added {
    int32_t id;
    bool special, lstrip, rstrip, single_word, normalized;
} lq_tok_added;
typedef struct lq_tok_trie {
    lq_tok_pairs next;
    uint32_t *token; /* [node] added index or NONE */
    uint32_t n;
} lq_tok_trie;

struct lq_tokenizer {
    lq_arena *mem;
    char *pool;                   /* tail of the current string chunk */
    size_t pool_left;
    lq_tok_str *piece;            /* [n] model vocabulary by id; gaps have s NULL */
    uint32_t n, n_real;           /* ids >= n_real are characters that only occur inside pieces (SPM): never emitted */
    lq_tok_map vocab;
    lq_tok_pairs merges;          /* x = rank, y = result */
    lq_tok_str *added_text;       /* [n_added] as written */
    lq_tok_added *added;
    uint32_t n_added, size;       /* size: largest id + 1, added ones included */
    uint32_t *by_id;              /* [size] added index of an id, NONE: none */
    lq_tok_map added_map;
    lq_tok_trie raw, normal;      /* matched before and after normalization */
    lq_tok_steps norm, pre, dec;
    lq_tok_regex *word;           /* \w, for single_word */
    bool byte_fallback, fuse_unk, ignore_merges, cut; /* cut: no merge crosses into a U+2581, words may be cut there */
    int32_t unk, byte_id[256], bos, eos;
    const char *unk_name;
    int32_t head[LQ_TOK_SPECIALS], tail[LQ_TOK_SPECIALS];
    size_t n_head, n_tail;
    json_t *parts; /* normalizer, pre_tokenizer, post_processor, decoder as written, for lq_tokenizer_json */
    const char *kind;
};

/* tok_vocab.c: building a tokenizer, in this order: new, reserve, pieces, merges, added, finish. */
lq_tokenizer *lq_tok_new(void);
/* A copy that lives as long as t. */
lq_status lq_tok_keep(lq_ctx *ctx, lq_tokenizer *t, const char *s, size_t n, lq_tok_str *out);
lq_status lq_tok_reserve(lq_ctx *ctx, lq_tokenizer *t, size_t ids, size_t strings);
lq_status lq_tok_add_piece(lq_ctx *ctx, lq_tokenizer *t, int64_t id, const char *s, size_t n);
int32_t lq_tok_find(const lq_tokenizer *t, const char *s, size_t n); /* in the model vocabulary; -1: absent */
/* Merge number rank of left and right; the result must be a piece. */
lq_status lq_tok_add_merge(lq_ctx *ctx, lq_tokenizer *t, size_t rank, const char *l, size_t nl, const char *r,
                           size_t nr);
lq_status lq_tok_reserve_added(lq_ctx *ctx, lq_tokenizer *t, size_t n);
/* id < 0: the piece's, or the next free one. limit: ids from there on are left out with a warning (0: none). */
lq_status lq_tok_add_added(lq_ctx *ctx, lq_tokenizer *t, const char *s, size_t n, lq_tok_added a, uint32_t limit);
lq_status lq_tok_finish(lq_ctx *ctx, lq_tokenizer *t);

/* tok_json.c, tok_steps.c */
lq_status lq_tok_from_json(lq_ctx *ctx, const json_t *root, uint32_t limit, lq_tokenizer **out);
/* Read normalizer, pre_tokenizer, post_processor and decoder of root into t, and keep them. */
lq_status lq_tok_read_steps(lq_ctx *ctx, lq_tokenizer *t, const json_t *root);
/* tok_gguf.c */
lq_status lq_tok_from_gguf(lq_ctx *ctx, const lq_gguf *g, lq_tokenizer **out);
/* tok_pre.c: what a pre-tokenizer's name in a GGUF means; its stages go into parts. */
typedef struct lq_tok_pre { bool ignore_merges, add_bos; } lq_tok_pre;
lq_status lq_tok_pre_find(lq_ctx *ctx, const char *name, lq_tok_pre *out, json_t *parts);
/* The other way round: a name for how a byte-level tokenizer cuts words and prefers whole ones; NULL: nobody has named it. */
const char *lq_tok_pre_name(const lq_tokenizer *t);
/* tok_files.c: vocab.json, merges.txt, special_tokens_map.json, tokenizer_config.json; out NULL when the first two lack. */
lq_status lq_tok_from_files(lq_ctx *ctx, lq_source *src, uint32_t limit, lq_tokenizer **out);
lq_status lq_tok_read_config(lq_ctx *ctx, lq_source *src, lq_tokenizer *t); /* bos and eos */

/* One call of encode: everything it scribbles on. */
typedef struct lq_tok_sym { int32_t id; uint32_t at, len, prev, next; } lq_tok_sym;
typedef struct lq_tok_word { uint8_t len, n; char key[38]; int32_t id[14]; } lq_tok_word;
struct lq_tok_run {
    lq_ctx *ctx;
    const lq_tokenizer *t;
    lq_ids *out;
    bool parse;
    void *match, *match_ctx, *jit_stack; /* PCRE2 */
    lq_buf norm[2], level[LQ_TOK_STEPS];
    lq_tok_sym *sym;
    uint64_t *heap;
    size_t sym_cap, heap_cap, heap_n;
    int32_t *cps;                /* code points of normalization */
    size_t cps_cap;
    lq_tok_word *cache;          /* direct-mapped, NULL: off */
    uint32_t cache_mask;
    uint32_t ticks;
};
lq_status lq_tok_run_init(lq_ctx *ctx, const lq_tokenizer *t, lq_tok_run *r, size_t n);
void lq_tok_run_free(lq_tok_run *r);

/* A stretch of text in work; first: it begins where the caller's text begins. */
typedef struct lq_tok_span { const char *s; size_t n; bool first; } lq_tok_span;
lq_status lq_tok_regex_find(lq_tok_run *r, const lq_tok_regex *re, const char *s, size_t n, size_t from, size_t *a,
                            size_t *b, bool *found);
/* Next match at or after *from as the `onig` iterator counts them; *from and *last carry the iteration (0 and SIZE_MAX
 * first). */
lq_status lq_tok_next(lq_tok_run *r, const lq_tok_step *st, const char *s, size_t n, size_t *from, size_t *last,
                      size_t *a, size_t *b, bool *found);
/* norm: result borrowed from the run until the next call. */
lq_status lq_tok_normalize(lq_tok_run *r, lq_tok_span in, lq_tok_span *out);
lq_status lq_tok_replace(lq_tok_run *r, const lq_tok_step *st, const char *s, size_t n, lq_buf *out);
lq_status lq_tok_to_bytes(lq_ctx *ctx, const char *s, size_t n, lq_buf *out); /* each byte as its GPT-2 character */
int lq_tok_from_char(uint32_t cp); /* the byte of a GPT-2 character, -1: none */
/* Pre-tokenizers from level on, then BPE of each word. */
lq_status lq_tok_pretok(lq_tok_run *r, size_t level, lq_tok_span p);
lq_status lq_tok_bpe(lq_tok_run *r, const char *s, size_t n);

/* UTF-8. Text inside the tokenizer is always valid. */
static inline uint32_t lq_utf8_len(char c) {
    return (uint8_t)c < 0x80 ? 1 : (uint8_t)c < 0xe0 ? 2 : (uint8_t)c < 0xf0 ? 3 : 4;
}
uint32_t lq_utf8_get(const char *s, size_t n, size_t *i); /* code point at i of valid text; advances */
bool lq_utf8_put(lq_buf *b, uint32_t cp);
/* Length of the valid prefix; *bad: bytes of the maximal ill-formed subsequence behind it (0 at the end). */
size_t lq_utf8_valid(const char *s, size_t n, size_t *bad);
bool lq_utf8_is_space(uint32_t cp); /* White_Space */
#endif
