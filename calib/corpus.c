/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Files -> documents -> ids -> windows -> rows; the rule is stated in corpus.h. */
#include "calib/corpus.h"

#include "calib/chat.h"
#include "core/num.h"

#include <stdlib.h>
#include <string.h>

#define OFF(f) offsetof(lq_corpus_opts, f)
const lq_opt lq_corpus_option_table[] = {
    {"file", "f,dataset,calib", LQ_OPT_LIST, OFF(files), "FILE", NULL, NULL, 0, 0, 0, "sample text, plain or JSON, .zst, or `random` ids; repeatable [built-in text]"},
    {"nsamples", "calib-size,num-calibration-samples,chunks", LQ_OPT_INT, OFF(nsamples), "N", "128", NULL, 1, 1e6, 0, "rows of sample text"},
    {"seqlen", "ctx-size,max-seq-length,c,l", LQ_OPT_INT, OFF(seqlen), "N", "2048", NULL, 2, 1 << 20, 0, "tokens per row"},
    {"seed", NULL, LQ_OPT_INT, OFF(seed), "N", "0", NULL, 0, 9e15, 0, "~selects the rows when the text has more"},
    {"bos", NULL, LQ_OPT_CHOICE, OFF(bos), NULL, "auto", "auto|always|never", 0, 0, 0, "~rows begin with BOS"},
    {"chat-template", NULL, LQ_OPT_STRING, OFF(chat_template), "none|FILE", NULL, NULL, 0, 0, 0, "~for `messages` [the model's]"},
    {"parse-special", NULL, LQ_OPT_SET, OFF(parse_special), NULL, NULL, NULL, 0, 0, 1, "~read special tokens spelt out in the text"},
    {"no-concat", NULL, LQ_OPT_SET, OFF(no_concat), NULL, NULL, NULL, 0, 0, 1, "~do not join documents into one stream"},
    {"concat", NULL, LQ_OPT_SET, OFF(no_concat), NULL, NULL, NULL, 0, 0, 0, NULL},
    {"save-tokens", NULL, LQ_OPT_STRING, OFF(save_tokens), "FILE", NULL, NULL, 0, 0, 0, "~write the rows used as JSON lines"},
    {0}};

typedef struct span { size_t off, len; } span;
typedef struct spans { span *v; size_t n, cap; } spans;
typedef struct window { const int32_t *ids; uint32_t len; bool bos; } window;

typedef struct job {
    lq_ctx *ctx;
    const lq_tokenizer *tok;
    lq_source *src;
    const lq_corpus_opts *o;
    uint32_t vocab, seqlen;
    int32_t bos_id;        /* -1: rows do not begin with BOS */
    lq_ids text, fixed;    /* ids of text documents and of input_ids documents */
    spans docs, rows;      /* documents inside them */
    lq_buf tmpl;           /* chat template; v NULL until it is needed */
    window *win;
    size_t n_win, cap_win;
} job;

static lq_status spans_add(lq_ctx *ctx, spans *s, span v) {
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 64;
        span *more = lq_realloc(s->v, s->n * sizeof *s->v, cap * sizeof *s->v);
        if (!more) return lq_oom(ctx, cap * sizeof *s->v);
        s->v = more;
        s->cap = cap;
    }
    s->v[s->n++] = v;
    return LQ_OK;
}

/* ---- documents ---- */

static lq_status add_text(job *j, const char *text, size_t n, bool parse) {
    size_t from = j->text.n;
    LQ_TRY(lq_tokenizer_encode(j->ctx, j->tok, text, n, false, parse, &j->text));
    for (size_t i = from; i < j->text.n; i++)
        if (j->text.v[i] < 0 || (uint32_t)j->text.v[i] >= j->vocab)
            return lq_fail(j->ctx, LQ_ERR_FORMAT, "the tokenizer gives id %d, the model has %u", j->text.v[i], j->vocab);
    if (!j->o->no_concat && j->docs.n) {
        j->docs.v[0].len = j->text.n;
        return LQ_OK;
    }
    return j->text.n > from ? spans_add(j->ctx, &j->docs, (span){from, j->text.n - from}) : LQ_OK;
}

/* `--calib random`: ids drawn alike from the whole vocabulary, as many as are asked for (ZeroQuant's data-free form). */
static lq_status add_random(job *j) {
    lq_rng rng;
    lq_rng_seed(&rng, (uint64_t)j->o->seed, 29);
    for (int64_t r = 0; r < j->o->nsamples; r++) {
        size_t from = j->fixed.n;
        if (j->bos_id >= 0 && !lq_ids_add(&j->fixed, j->bos_id)) return lq_oom(j->ctx, j->fixed.n);
        while (j->fixed.n - from < j->seqlen)
            if (!lq_ids_add(&j->fixed, (int32_t)lq_rng_below(&rng, j->vocab))) return lq_oom(j->ctx, j->fixed.n * sizeof(int32_t));
        LQ_TRY(spans_add(j->ctx, &j->rows, (span){from, j->fixed.n - from}));
    }
    return LQ_OK;
}

static lq_status add_ids(job *j, const json_t *ids) {
    size_t from = j->fixed.n;
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *v = json_array_get(ids, i);
        if (!json_is_integer(v)) return lq_fail(j->ctx, LQ_ERR_FORMAT, "input_ids[%zu] is no integer", i);
        long long id = json_integer_value(v);
        if (id < 0 || id >= j->vocab)
            return lq_fail(j->ctx, LQ_ERR_FORMAT, "input_ids[%zu] is %lld, the model has ids 0 to %u", i, id, j->vocab - 1);
        if (!lq_ids_add(&j->fixed, (int32_t)id)) return lq_oom(j->ctx, (j->fixed.n + 1) * sizeof(int32_t));
    }
    return j->fixed.n > from ? spans_add(j->ctx, &j->rows, (span){from, j->fixed.n - from}) : LQ_OK;
}

static lq_status plain_messages(job *j, const json_t *messages, lq_buf *out) {
    for (size_t i = 0; i < json_array_size(messages); i++) {
        const json_t *c = json_object_get(json_array_get(messages, i), "content");
        if (!json_is_string(c)) return lq_fail(j->ctx, LQ_ERR_FORMAT, "messages[%zu] has no content string", i);
        if ((i && !lq_buf_add(out, "\n", 1)) || !lq_buf_add(out, json_string_value(c), json_string_length(c)))
            return lq_oom(j->ctx, out->n);
    }
    return LQ_OK;
}

static lq_status need_template(job *j) {
    const char *which = j->o->chat_template;
    if (j->tmpl.v) return LQ_OK;
    if (which && strcmp(which, "auto")) return lq_file_slurp(j->ctx, which, 1 << 20, &j->tmpl);
    if (j->src) LQ_TRY(lq_chat_template(j->ctx, j->src, &j->tmpl));
    if (j->tmpl.v) return LQ_OK;
    return lq_fail(j->ctx, LQ_ERR_UNSUPPORTED, "the model has no chat template for `messages`; give --chat-template none or a file");
}

static lq_status add_messages(job *j, const json_t *messages) {
    lq_buf text = {0};
    lq_status st = LQ_OK;
    bool plain = j->o->chat_template && !strcmp(j->o->chat_template, "none");
    const char *bos = lq_tokenizer_token(j->tok, lq_tokenizer_bos(j->tok)), *eos = lq_tokenizer_token(j->tok, lq_tokenizer_eos(j->tok));
    if (plain) LQ_GO(plain_messages(j, messages, &text));
    else {
        LQ_GO(need_template(j));
        LQ_GO(lq_chat_render(j->ctx, j->tmpl.v, j->tmpl.n, messages, bos ? bos : "", eos ? eos : "", false, &text));
    }
    LQ_GO(add_text(j, text.v ? text.v : "", text.n, !plain || j->o->parse_special));
done:
    lq_buf_free(&text);
    return st;
}

static const json_t *document_of(const json_t *line, const char *field) {
    static const char *const fields[] = {"input_ids", "messages", "text"};
    if (field) return json_object_get(line, field);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (json_object_get(line, fields[i])) return json_object_get(line, fields[i]);
    return NULL;
}

static lq_status add_document(job *j, const json_t *doc, const char *field) {
    if (json_is_string(doc)) return add_text(j, json_string_value(doc), json_string_length(doc), j->o->parse_special);
    if (json_is_array(doc) && json_is_object(json_array_get(doc, 0))) return add_messages(j, doc);
    if (json_is_array(doc)) return add_ids(j, doc);
    if (!doc) return lq_fail(j->ctx, LQ_ERR_FORMAT, "no %s", field ? field : "text, messages or input_ids");
    return lq_fail(j->ctx, LQ_ERR_FORMAT, "%s is neither a string nor an array", field ? field : "the document");
}

/* ---- files ---- */

typedef struct spec { char *path, *field; long long num; } spec;

/* FILE[:num=N][:field=NAME]: cut from the right, so that a path may hold colons. */
static lq_status parse_spec(lq_ctx *ctx, const char *arg, spec *s) {
    *s = (spec){.path = lq_strdup(arg), .num = -1};
    if (!s->path) return lq_oom(ctx, strlen(arg));
    for (char *colon; !lq_path_exists(s->path) && (colon = strrchr(s->path, ':'));) {
        char *end;
        if (!strncmp(colon, ":num=", 5)) {
            s->num = strtoll(colon + 5, &end, 10);
            if (*end || !colon[5] || s->num < 1) return lq_fail(ctx, LQ_ERR_USAGE, "--file %s: num= wants a positive number", arg);
        } else if (!strncmp(colon, ":field=", 7) && colon[7]) {
            lq_free(s->field);
            s->field = lq_strdup(colon + 7);
            if (!s->field) return lq_oom(ctx, strlen(colon));
        } else break;
        *colon = 0;
    }
    return LQ_OK;
}

static void skip_space(const char **p, const char *end) {
    while (*p < end && (**p == ' ' || **p == '\t' || **p == '\r' || **p == '\n')) ++*p;
}

static const char *line_end(const char *p, const char *end) {
    const char *nl = memchr(p, '\n', (size_t)(end - p));
    return nl ? nl : end;
}

/* JSON lines: the first line is a JSON object that has a document. */
static bool is_json_lines(const char *p, const char *end, const char *field) {
    skip_space(&p, end);
    if (p == end || *p != '{') return false;
    json_t *first;
    if (lq_json_parse(NULL, "", p, (size_t)(line_end(p, end) - p), &first)) return false;
    bool yes = document_of(first, field) != NULL;
    json_decref(first);
    return yes;
}

static lq_status add_json_lines(job *j, const char *path, const char *p, const char *end, const spec *s) {
    long long taken = 0;
    for (size_t line = 1; p < end; line++) {
        const char *stop = line_end(p, end), *from = p;
        p = stop < end ? stop + 1 : end;
        skip_space(&from, stop);
        if (from == stop) continue;
        if (s->num >= 0 && taken++ == s->num) return LQ_OK;
        json_t *v = NULL;
        lq_status st = lq_json_parse(j->ctx, "this line", from, (size_t)(stop - from), &v);
        if (!st) st = add_document(j, document_of(v, s->field), s->field);
        json_decref(v);
        if (st) return lq_note(j->ctx, st, "%s: line %zu", path, line);
        LQ_TRY(lq_check_cancel(j->ctx));
    }
    return LQ_OK;
}

/* A .json file: an array of documents, each an object as in JSON lines or the document itself. */
static lq_status add_json_array(job *j, const char *path, const lq_buf *text, const spec *s) {
    json_t *all = NULL, *v;
    size_t i;
    lq_status st = lq_json_parse(j->ctx, path, text->v, text->n, &all);
    json_array_foreach(all, i, v) {
        if (st || (s->num >= 0 && i >= (size_t)s->num)) break;
        st = add_document(j, json_is_object(v) ? document_of(v, s->field) : v, s->field);
        if (st) lq_note(j->ctx, st, "%s: element %zu", path, i);
        else st = lq_check_cancel(j->ctx);
    }
    json_decref(all);
    return st;
}

static bool has_suffix(const char *s, const char *suffix) {
    size_t n = strlen(s), k = strlen(suffix);
    return n >= k && !strcmp(s + n - k, suffix);
}

static bool is_json_array(const char *path, const lq_buf *text) {
    const char *p = text->v;
    skip_space(&p, text->v + text->n);
    return p < text->v + text->n && *p == '[' && (has_suffix(path, ".json") || has_suffix(path, ".json.zst"));
}

static lq_status add_file(job *j, const char *arg) {
    spec s;
    lq_buf text = {0};
    lq_status st = LQ_OK;
    LQ_GO(parse_spec(j->ctx, arg, &s));
    LQ_GO(lq_text_load(j->ctx, s.path, &text));
    bool lines = s.field || has_suffix(s.path, ".jsonl") || has_suffix(s.path, ".jsonl.zst") || has_suffix(s.path, ".ndjson");
    if (is_json_array(s.path, &text)) LQ_GO(add_json_array(j, s.path, &text, &s));
    else if (lines || is_json_lines(text.v, text.v + text.n, s.field)) LQ_GO(add_json_lines(j, s.path, text.v, text.v + text.n, &s));
    else {
        st = add_text(j, text.v, text.n, j->o->parse_special);
        if (st) lq_note(j->ctx, st, "%s", s.path);
    }
done:
    lq_buf_free(&text);
    lq_free(s.path);
    lq_free(s.field);
    return st;
}

static lq_status add_files(job *j, lq_rows *out) {
    lq_buf names = {0}, text = {0};
    lq_status st = LQ_OK;
    const lq_strlist *f = &j->o->files;
    if (!f->n) {
        LQ_GO(lq_text_builtin(j->ctx, &text));
        LQ_GO(add_text(j, text.v, text.n, false));
        if (!lq_buf_addf(&names, "%s", lq_text_builtin_name)) LQ_GO(lq_oom(j->ctx, 64));
    }
    for (size_t i = 0; i < f->n; i++) {
        LQ_GO(strcmp(f->v[i], "random") ? add_file(j, f->v[i]) : add_random(j));
        if (!lq_buf_addf(&names, "%s%s", i ? ", " : "", lq_path_base(f->v[i]))) LQ_GO(lq_oom(j->ctx, names.n));
    }
    out->source = names.v;
    names = (lq_buf){0};
done:
    lq_buf_free(&names);
    lq_buf_free(&text);
    return st;
}

/* ---- windows ---- */

static lq_status add_window(job *j, window w) {
    if (j->n_win == j->cap_win) {
        size_t cap = j->cap_win ? 2 * j->cap_win : 256;
        window *more = lq_realloc(j->win, j->n_win * sizeof *more, cap * sizeof *more);
        if (!more) return lq_oom(j->ctx, cap * sizeof *more);
        j->win = more;
        j->cap_win = cap;
    }
    j->win[j->n_win++] = w;
    return LQ_OK;
}

/* A document's consecutive windows. Its shorter tail is kept where asked for, or where the document gives nothing else. */
static lq_status cut(job *j, const int32_t *ids, size_t n, int32_t bos, bool keep_tail) {
    for (size_t pos = 0; pos < n;) {
        bool add = bos >= 0 && ids[pos] != bos;
        size_t want = j->seqlen - add, len = n - pos < want ? n - pos : want;
        if (len < want && pos && !keep_tail) break;
        LQ_TRY(add_window(j, (window){ids + pos, (uint32_t)(len + add), add}));
        pos += len;
    }
    return LQ_OK;
}

static lq_status cut_all(job *j) {
    for (size_t i = 0; i < j->docs.n; i++)
        LQ_TRY(cut(j, j->text.v + j->docs.v[i].off, j->docs.v[i].len, j->bos_id, j->o->no_concat));
    for (size_t i = 0; i < j->rows.n; i++) LQ_TRY(cut(j, j->fixed.v + j->rows.v[i].off, j->rows.v[i].len, -1, false));
    if (!j->n_win) return lq_fail(j->ctx, LQ_ERR_FORMAT, "the sample text gives no token");
    return LQ_OK;
}

/* Knuth 3.4.2 algorithm S: each window is taken with probability (still wanted) / (still there). */
static void select_windows(job *j) {
    size_t want = (size_t)j->o->nsamples, kept = 0;
    if (j->n_win <= want) return;
    lq_rng rng;
    lq_rng_seed(&rng, (uint64_t)j->o->seed, 27);
    for (size_t i = 0, n = j->n_win; i < n; i++)
        if (lq_rng_below(&rng, (uint32_t)(n - i)) < want - kept) j->win[kept++] = j->win[i];
    j->n_win = kept;
}

static lq_status fill_rows(job *j, lq_rows *out) {
    out->n = out->used = j->n_win;
    for (size_t i = 0; i < j->n_win; i++)
        if (j->win[i].len > out->seqlen) out->seqlen = j->win[i].len;
    uint64_t cells;
    out->len = LQ_NEWN(uint32_t, out->n);
    if (!lq_mul_ok(out->n, out->seqlen, &cells) || !(out->ids = LQ_NEWN(int32_t, cells)) || !out->len) return lq_oom(j->ctx, out->n);
    for (size_t i = 0; i < j->n_win; i++) {
        const window *w = &j->win[i];
        int32_t *row = out->ids + i * out->seqlen;
        if (w->bos) *row++ = j->bos_id;
        memcpy(row, w->ids, (w->len - w->bos) * sizeof *row);
        out->len[i] = w->len;
    }
    return LQ_OK;
}

static lq_status hash_rows(lq_ctx *ctx, lq_rows *r) {
    lq_sha *s = lq_sha_new();
    if (!s) return lq_oom(ctx, 256);
    for (size_t i = 0; i < r->n; i++)
        for (uint32_t k = 0; k < r->len[i]; k++) {
            uint32_t id = (uint32_t)r->ids[i * r->seqlen + k];
            uint8_t le[4] = {(uint8_t)id, (uint8_t)(id >> 8), (uint8_t)(id >> 16), (uint8_t)(id >> 24)};
            lq_sha_add(s, le, 4);
        }
    lq_sha_end(&s, r->hash);
    return LQ_OK;
}

static lq_status save_rows(lq_ctx *ctx, const lq_rows *r, const char *path) {
    lq_buf b = {0};
    bool ok = true;
    for (size_t i = 0; i < r->n && ok; i++) {
        for (uint32_t k = 0; k < r->len[i] && ok; k++)
            ok = lq_buf_addf(&b, "%s%d", k ? ", " : "{\"input_ids\": [", r->ids[i * r->seqlen + k]);
        ok = ok && lq_buf_add(&b, "]}\n", 3);
    }
    lq_status st = ok ? lq_write_file(ctx, path, b.v, b.n) : lq_oom(ctx, b.n);
    lq_buf_free(&b);
    return st ? lq_note(ctx, st, "--save-tokens") : LQ_OK;
}

/* ---- the whole ---- */

static lq_status settle_bos(job *j) {
    int32_t id = lq_tokenizer_bos(j->tok);
    bool adds = lq_tokenizer_adds_bos(j->tok);
    j->bos_id = j->o->bos == LQ_BOS_NEVER || (j->o->bos == LQ_BOS_AUTO && !adds) ? -1 : id;
    if (j->o->bos == LQ_BOS_ALWAYS && id < 0) return lq_fail(j->ctx, LQ_ERR_USAGE, "--bos always: the tokenizer has no BOS token");
    if (j->bos_id >= 0 && (uint32_t)j->bos_id >= j->vocab)
        return lq_fail(j->ctx, LQ_ERR_FORMAT, "BOS is %d, the model has ids 0 to %u", j->bos_id, j->vocab - 1);
    return LQ_OK;
}

static void say_rows(job *j, const lq_rows *r) {
    static const char *const rule[] = {"auto", "always", "never"};
    size_t asked = (size_t)j->o->nsamples;
    if (r->n < asked) lq_log(j->ctx, LQ_LOG_INFO, "calibration: the text gives %zu rows, %zu were asked for", r->n, asked);
    if (r->seqlen < j->seqlen) lq_log(j->ctx, LQ_LOG_INFO, "calibration: rows have %zu tokens, %u were asked for", r->seqlen, j->seqlen);
    lq_log(j->ctx, LQ_LOG_INFO, "calibration: %zu of %llu rows of %zu tokens from %s, bos %s (%s), sha256 %.16s", r->n,
           (unsigned long long)(r->used + r->dropped), r->seqlen, r->source, rule[j->o->bos], r->bos ? "each row" : "none", r->hash);
}

lq_status lq_corpus_build(lq_ctx *ctx, const lq_tokenizer *t, lq_source *src, const lq_corpus_opts *o, uint32_t max_ctx, uint32_t vocab, lq_rows *out) {
    job j = {.ctx = ctx, .tok = t, .src = src, .o = o, .vocab = vocab, .seqlen = (uint32_t)o->seqlen};
    lq_status st = LQ_OK;
    *out = (lq_rows){0};
    if (max_ctx && j.seqlen > max_ctx) {
        lq_log(ctx, LQ_LOG_INFO, "calibration: seqlen %u clipped to the model's context of %u", j.seqlen, max_ctx);
        j.seqlen = max_ctx;
    }
    LQ_GO(settle_bos(&j));
    LQ_GO(add_files(&j, out));
    LQ_GO(cut_all(&j));
    size_t all = j.n_win;
    select_windows(&j);
    LQ_GO(fill_rows(&j, out));
    out->dropped = all - out->n;
    out->bos = j.docs.n && j.bos_id >= 0;
    LQ_GO(hash_rows(ctx, out));
    if (o->save_tokens) LQ_GO(save_rows(ctx, out, o->save_tokens));
    say_rows(&j, out);
done:
    lq_ids_free(&j.text);
    lq_ids_free(&j.fixed);
    lq_free(j.docs.v);
    lq_free(j.rows.v);
    lq_free(j.win);
    lq_buf_free(&j.tmpl);
    if (st) lq_rows_free(out);
    return st;
}

void lq_rows_free(lq_rows *r) {
    lq_free(r->ids);
    lq_free(r->len);
    lq_free(r->source);
    *r = (lq_rows){0};
}
