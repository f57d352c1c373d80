/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The stages of a tokenizer.json: normalizer, pre_tokenizer, decoder as flat lists of steps, post_processor as the ids
 * it puts around a text. One table row per kind that is read; any other kind is refused by its name. */
#include "calib/tok_impl.h"

typedef struct reader { lq_ctx *ctx; lq_tokenizer *t; const char *stage; lq_tok_steps *steps; int depth; } reader;
typedef lq_status read_fn(reader *r, const json_t *o, int arg);
typedef struct row { const char *type; read_fn *read; int arg; } row;

static lq_status text_of(reader *r, const json_t *o, const char *key, bool required, lq_tok_str *out) {
    const char *s;
    LQ_TRY(lq_json_string(r->ctx, o, key, required, &s));
    if (!s) s = "";
    return lq_tok_keep(r->ctx, r->t, s, strlen(s), out);
}

static lq_status push(reader *r, lq_tok_step s) {
    if (r->steps->n < LQ_TOK_STEPS) {
        r->steps->v[r->steps->n++] = s;
        return LQ_OK;
    }
    lq_tok_regex_free(&s.re);
    return lq_fail(r->ctx, LQ_ERR_UNSUPPORTED, "more than %d steps", LQ_TOK_STEPS);
}

static lq_status push_regex(reader *r, const char *pattern, int dialect, lq_tok_behavior b, bool invert) {
    lq_tok_step s = {.kind = LQ_TOK_SPLIT, .behavior = b, .invert = invert};
    LQ_TRY(lq_tok_regex_new(r->ctx, pattern, dialect, &s.re));
    return push(r, s);
}

static lq_status plain(reader *r, const json_t *o, int kind) {
    (void)o;
    return push(r, (lq_tok_step){.kind = (lq_tok_kind)kind});
}

static lq_status read_one(reader *r, const row *rows, const json_t *o);

static lq_status read_list(reader *r, const row *rows, const json_t *o, const char *key) {
    const json_t *list = json_object_get(o, key);
    if (!json_is_array(list)) return lq_fail(r->ctx, LQ_ERR_FORMAT, "'%s' is not a list", key);
    if (++r->depth > LQ_TOK_DEPTH)
        return lq_fail(r->ctx, LQ_ERR_FORMAT, "sequences nested more than %d deep", LQ_TOK_DEPTH);
    for (size_t i = 0; i < json_array_size(list); i++) LQ_TRY(read_one(r, rows, json_array_get(list, i)));
    r->depth--;
    return LQ_OK;
}

static lq_status read_one(reader *r, const row *rows, const json_t *o) {
    const char *type;
    if (!json_is_object(o)) return lq_fail(r->ctx, LQ_ERR_FORMAT, "an entry is not an object");
    LQ_TRY(lq_json_string(r->ctx, o, "type", true, &type));
    for (; rows->type; rows++)
        if (!strcmp(rows->type, type)) {
            lq_status st = rows->read(r, o, rows->arg);
            return st ? lq_note(r->ctx, st, "%s", type) : LQ_OK;
        }
    return lq_fail(r->ctx, LQ_ERR_UNSUPPORTED, "kind '%.64s' is not read", type);
}

/* {"String": s} or {"Regex": s} */
static lq_status pattern(reader *r, const json_t *o, lq_tok_step *s) {
    const json_t *p = json_object_get(o, "pattern"), *lit = json_object_get(p, "String"),
                 *re = json_object_get(p, "Regex");
    if (json_is_string(lit))
        return lq_tok_keep(r->ctx, r->t, json_string_value(lit), json_string_length(lit), &s->text);
    if (json_is_string(re)) return lq_tok_regex_new(r->ctx, json_string_value(re), LQ_TOK_ONIG, &s->re);
    return lq_fail(r->ctx, LQ_ERR_FORMAT, "'pattern' is neither a String nor a Regex");
}

static lq_status read_replace(reader *r, const json_t *o, int arg) {
    lq_tok_step s = {.kind = LQ_TOK_REPLACE};
    (void)arg;
    LQ_TRY(text_of(r, o, "content", true, &s.with));
    LQ_TRY(pattern(r, o, &s));
    return push(r, s);
}

static lq_status read_prepend(reader *r, const json_t *o, int arg) {
    lq_tok_step s = {.kind = LQ_TOK_PREPEND};
    (void)arg;
    LQ_TRY(text_of(r, o, "prepend", true, &s.text));
    return push(r, s);
}

static lq_status read_strip(reader *r, const json_t *o, int arg) {
    lq_tok_step s = {.kind = LQ_TOK_STRIP};
    (void)arg;
    LQ_TRY(lq_json_bool(r->ctx, o, "strip_left", false, &s.left));
    LQ_TRY(lq_json_bool(r->ctx, o, "strip_right", false, &s.right));
    return push(r, s);
}

static lq_status behavior_of(reader *r, const json_t *o, lq_tok_behavior *out) {
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const char *s;
    *out = LQ_TOK_ISOLATED;
    LQ_TRY(lq_json_string(r->ctx, o, "behavior", false, &s));
    if (!s) return LQ_OK;
    for (int i = 0; i < 5; i++) {
        if (strcmp(names[i], s)) continue;
        *out = (lq_tok_behavior)i;
        return LQ_OK;
    }
    return lq_fail(r->ctx, LQ_ERR_UNSUPPORTED, "behavior '%.64s' is not known", s);
}

static lq_status read_split(reader *r, const json_t *o, int arg) {
    lq_tok_step s = {.kind = LQ_TOK_SPLIT};
    (void)arg;
    LQ_TRY(behavior_of(r, o, &s.behavior));
    LQ_TRY(lq_json_bool(r->ctx, o, "invert", false, &s.invert));
    LQ_TRY(pattern(r, o, &s));
    return push(r, s);
}

static lq_status read_digits(reader *r, const json_t *o, int arg) {
    bool single;
    (void)arg;
    LQ_TRY(lq_json_bool(r->ctx, o, "individual_digits", false, &single));
    return push_regex(r, "\\p{N}", LQ_TOK_RUST, single ? LQ_TOK_ISOLATED : LQ_TOK_CONTIGUOUS, false);
}

static lq_status read_punctuation(reader *r, const json_t *o, int arg) {
    lq_tok_behavior b;
    (void)arg;
    LQ_TRY(behavior_of(r, o, &b));
    return push_regex(r, "[!-/:-@\\[-`{-~\\p{P}]", LQ_TOK_RUST, b, false);
}

static lq_status read_space(reader *r, const json_t *o, int words) {
    (void)o;
    return push_regex(r, words ? "\\w+|[^\\w\\s]+" : "\\s", LQ_TOK_RUST, LQ_TOK_REMOVED, words);
}

static lq_status read_delimiter(reader *r, const json_t *o, int arg) {
    lq_tok_step s = {.kind = LQ_TOK_SPLIT, .behavior = LQ_TOK_REMOVED};
    (void)arg;
    LQ_TRY(text_of(r, o, "delimiter", true, &s.text));
    return push(r, s);
}

static lq_status read_bytes(reader *r, const json_t *o, int arg) {
    static const char gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    lq_tok_step s = {.kind = LQ_TOK_PREFIX};
    bool space, regex;
    (void)arg;
    LQ_TRY(lq_json_bool(r->ctx, o, "add_prefix_space", true, &space));
    LQ_TRY(lq_json_bool(r->ctx, o, "use_regex", true, &regex));
    LQ_TRY(lq_tok_keep(r->ctx, r->t, " ", 1, &s.text));
    if (space) LQ_TRY(push(r, s));
    if (regex) LQ_TRY(push_regex(r, gpt2, LQ_TOK_ONIG, LQ_TOK_ISOLATED, false));
    return push(r, (lq_tok_step){.kind = LQ_TOK_BYTES});
}

static lq_status meta_step(reader *r, const json_t *o, lq_tok_kind kind, lq_tok_step *s) {
    static const char *const names[] = {"always", "first", "never"};
    const char *scheme;
    bool prefix;
    *s = (lq_tok_step){.kind = kind};
    LQ_TRY(text_of(r, o, "replacement", true, &s->with));
    if (!s->with.n || s->with.n != lq_utf8_len(s->with.s[0]))
        return lq_fail(r->ctx, LQ_ERR_FORMAT, "'replacement' is not one character");
    LQ_TRY(lq_json_string(r->ctx, o, "prepend_scheme", false, &scheme));
    LQ_TRY(lq_json_bool(r->ctx, o, "add_prefix_space", true, &prefix));
    s->scheme = prefix ? LQ_TOK_ALWAYS : LQ_TOK_NEVER;
    if (!scheme) return LQ_OK;
    for (int i = 0; i < 3; i++) {
        if (strcmp(names[i], scheme)) continue;
        if (!prefix && i != LQ_TOK_NEVER)
            return lq_fail(r->ctx, LQ_ERR_FORMAT, "add_prefix_space is false, but prepend_scheme is '%s'", scheme);
        s->scheme = i;
        return LQ_OK;
    }
    return lq_fail(r->ctx, LQ_ERR_UNSUPPORTED, "prepend_scheme '%.64s' is not known", scheme);
}

static lq_status read_meta(reader *r, const json_t *o, int arg) {
    lq_tok_step s, cut = {.kind = LQ_TOK_SPLIT, .behavior = LQ_TOK_WITH_NEXT};
    bool split;
    (void)arg;
    LQ_TRY(meta_step(r, o, LQ_TOK_META, &s));
    LQ_TRY(lq_json_bool(r->ctx, o, "split", true, &split));
    LQ_TRY(push(r, s));
    cut.text = s.with;
    return split ? push(r, cut) : LQ_OK;
}

static lq_status read_unmeta(reader *r, const json_t *o, int arg) {
    lq_tok_step s;
    (void)arg;
    LQ_TRY(meta_step(r, o, LQ_TOK_UNMETA, &s));
    return push(r, s);
}

static lq_status read_unstrip(reader *r, const json_t *o, int arg) {
    lq_tok_step s = {.kind = LQ_TOK_UNSTRIP};
    int64_t start, stop;
    (void)arg;
    LQ_TRY(text_of(r, o, "content", true, &s.text));
    if (!s.text.n || s.text.n != lq_utf8_len(s.text.s[0]))
        return lq_fail(r->ctx, LQ_ERR_FORMAT, "'content' is not one character");
    LQ_TRY(lq_json_int(r->ctx, o, "start", true, 0, 0, 1 << 20, &start));
    LQ_TRY(lq_json_int(r->ctx, o, "stop", true, 0, 0, 1 << 20, &stop));
    s.start = (uint32_t)start;
    s.stop = (uint32_t)stop;
    return push(r, s);
}

static read_fn norm_list, pre_list, dec_list, post_list;

static const row normalizers[] = {
    {"NFC", plain, LQ_TOK_NFC}, {"NFD", plain, LQ_TOK_NFD}, {"NFKC", plain, LQ_TOK_NFKC}, {"NFKD", plain, LQ_TOK_NFKD},
    {"Lowercase", plain, LQ_TOK_LOWER}, {"ByteLevel", plain, LQ_TOK_BYTES}, {"Prepend", read_prepend, 0},
    {"Replace", read_replace, 0}, {"Strip", read_strip, 0}, {"Sequence", norm_list, 0}, {0}};
static const row pre_tokenizers[] = {
    {"Split", read_split, 0}, {"ByteLevel", read_bytes, 0}, {"Metaspace", read_meta, 0}, {"Digits", read_digits, 0},
    {"Punctuation", read_punctuation, 0}, {"Whitespace", read_space, 1}, {"WhitespaceSplit", read_space, 0},
    {"CharDelimiterSplit", read_delimiter, 0}, {"Sequence", pre_list, 0}, {0}};
static const row decoders[] = {{"ByteLevel", plain, LQ_TOK_UNBYTES},
                               {"Metaspace", read_unmeta, 0},
                               {"ByteFallback", plain, LQ_TOK_FALLBACK},
                               {"Fuse", plain, LQ_TOK_FUSE},
                               {"Strip", read_unstrip, 0},
                               {"Replace", read_replace, 0},
                               {"Sequence", dec_list, 0},
                               {0}};

static lq_status norm_list(reader *r, const json_t *o, int arg) {
    (void)arg;
    return read_list(r, normalizers, o, "normalizers");
}
static lq_status pre_list(reader *r, const json_t *o, int arg) {
    (void)arg;
    return read_list(r, pre_tokenizers, o, "pretokenizers");
}
static lq_status dec_list(reader *r, const json_t *o, int arg) {
    (void)arg;
    return read_list(r, decoders, o, "decoders");
}

/* Later processors wrap what earlier ones made. */
static lq_status wrap(reader *r, const int32_t *head, size_t n_head, const int32_t *tail, size_t n_tail) {
    lq_tokenizer *t = r->t;
    if (t->n_head + n_head > LQ_TOK_SPECIALS || t->n_tail + n_tail > LQ_TOK_SPECIALS)
        return lq_fail(r->ctx, LQ_ERR_UNSUPPORTED, "more than %d special tokens around a text", LQ_TOK_SPECIALS);
    memmove(t->head + n_head, t->head, t->n_head * sizeof *t->head);
    memcpy(t->head, head, n_head * sizeof *head);
    memcpy(t->tail + t->n_tail, tail, n_tail * sizeof *tail);
    t->n_head += n_head;
    t->n_tail += n_tail;
    return LQ_OK;
}

static lq_status special_ids(reader *r, const json_t *o, const json_t *special, int32_t *v, size_t *n) {
    const json_t *id = json_object_get(special, "id");
    const json_t *ids =
        json_is_string(id)
            ? json_object_get(json_object_get(json_object_get(o, "special_tokens"), json_string_value(id)), "ids")
            : NULL;
    if (!json_is_array(ids)) return lq_fail(r->ctx, LQ_ERR_FORMAT, "a special token of the template has no ids");
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *x = json_array_get(ids, i);
        if (!json_is_integer(x) || json_integer_value(x) < 0 || json_integer_value(x) > LQ_TOK_ID_MAX)
            return lq_fail(r->ctx, LQ_ERR_FORMAT, "special token '%.64s' has an id that is none",
                           json_string_value(id));
        if (*n == LQ_TOK_SPECIALS)
            return lq_fail(r->ctx, LQ_ERR_UNSUPPORTED, "more than %d special tokens around a text", LQ_TOK_SPECIALS);
        v[(*n)++] = (int32_t)json_integer_value(x);
    }
    return LQ_OK;
}

static lq_status read_template(reader *r, const json_t *o, int arg) {
    const json_t *single = json_object_get(o, "single");
    int32_t v[2][LQ_TOK_SPECIALS];
    size_t n[2] = {0, 0}, seen = 0;
    (void)arg;
    if (!json_is_array(single)) return lq_fail(r->ctx, LQ_ERR_FORMAT, "'single' is not a list");
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *e = json_array_get(single, i), *special = json_object_get(e, "SpecialToken");
        if (special) LQ_TRY(special_ids(r, o, special, v[seen > 0], &n[seen > 0]));
        else if (json_object_get(e, "Sequence")) seen++;
        else return lq_fail(r->ctx, LQ_ERR_FORMAT, "entry %zu of 'single' is neither a SpecialToken nor a Sequence", i);
    }
    if (seen != 1) return lq_fail(r->ctx, LQ_ERR_UNSUPPORTED, "'single' has the text %zu times, expected once", seen);
    return wrap(r, v[0], n[0], v[1], n[1]);
}

static lq_status named_id(reader *r, const json_t *o, const char *key, int32_t *id) {
    const json_t *x = json_array_get(json_object_get(o, key), 1);
    if (!json_is_integer(x) || json_integer_value(x) < 0 || json_integer_value(x) > LQ_TOK_ID_MAX)
        return lq_fail(r->ctx, LQ_ERR_FORMAT, "'%s' is not a pair of token and id", key);
    *id = (int32_t)json_integer_value(x);
    return LQ_OK;
}

static lq_status read_pair(reader *r, const json_t *o, int arg) {
    int32_t cls, sep;
    (void)arg;
    LQ_TRY(named_id(r, o, "cls", &cls));
    LQ_TRY(named_id(r, o, "sep", &sep));
    return wrap(r, &cls, 1, &sep, 1);
}

static lq_status nothing(reader *r, const json_t *o, int arg) { (void)r; (void)o; (void)arg; return LQ_OK; }

static const row post_processors[] = {
    {"ByteLevel", nothing, 0}, {"TemplateProcessing", read_template, 0}, {"RobertaProcessing", read_pair, 0},
    {"BertProcessing", read_pair, 0}, {"Sequence", post_list, 0}, {0}};
static lq_status post_list(reader *r, const json_t *o, int arg) {
    (void)arg;
    return read_list(r, post_processors, o, "processors");
}

lq_status lq_tok_read_steps(lq_ctx *ctx, lq_tokenizer *t, const json_t *root) {
    const struct { const char *name; const row *rows; lq_tok_steps *steps; } stages[] = {
        {"normalizer", normalizers, &t->norm}, {"pre_tokenizer", pre_tokenizers, &t->pre},
        {"post_processor", post_processors, NULL}, {"decoder", decoders, &t->dec}};
    t->parts = json_object();
    if (!t->parts) return lq_oom(ctx, 0);
    for (size_t i = 0; i < 4; i++) {
        const json_t *o = json_object_get(root, stages[i].name);
        reader r = {.ctx = ctx, .t = t, .stage = stages[i].name, .steps = stages[i].steps};
        if (!o || json_is_null(o)) continue;
        lq_status st = read_one(&r, stages[i].rows, o);
        if (st) return lq_note(ctx, st, "%s", r.stage);
        json_t *copy = json_deep_copy(o);
        if (!copy || json_object_set_new(t->parts, stages[i].name, copy)) return lq_oom(ctx, 0);
    }
    return LQ_OK;
}
