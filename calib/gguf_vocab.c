/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* tokenizer.ggml.* of a tokenizer. llama.cpp runs two kinds of byte-pair merging:
 *
 *   "gpt2"    byte-level: merges as a list; how words are cut is known by a name (tok_pre.c)
 *   "llama"   SentencePiece: neighbours are joined when their text is a token, the highest score first, so a token's score is minus the
 *             rank of its first merge; no words
 *
 * Token types: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. Keys: ggml docs/gguf.md; types as llama.cpp's converter sets them. */
#include "calib/chat.h"
#include "calib/gguf_meta.h"
#include "calib/tok_impl.h"

#include <stdio.h>

enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER = 4, UNUSED = 5, BYTE = 6 };
static const char mark[] = "\xe2\x96\x81";

typedef struct maker {
    lq_ctx *ctx;
    const lq_tokenizer *t;
    lq_gguf_meta *out;
    uint32_t rows;
    bool spm, prefix;
    uint32_t *best;          /* [rows] SPM: rank of the first merge that gives it */
} maker;

#define REFUSE(ctx, ...) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "GGUF: tokenizer: " __VA_ARGS__)

/* -- tokens ------------------------------------------------------------------------------------------------------------ */

static const lq_tok_added *added_of(const maker *k, uint32_t id, lq_tok_str *text) {
    const lq_tokenizer *t = k->t;
    uint32_t i = id < t->size ? t->by_id[id] : LQ_TOK_NONE;
    if (i == LQ_TOK_NONE) return NULL;
    *text = t->added_text[i];
    return &t->added[i];
}

/* Added tokens that are not marked special, but stand for no text. */
static bool looks_special(lq_tok_str s) {
    static const char *const names[] = {"<pad>", "<mask>", "<2mass>", "[@BOS@]"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(s.s, names[i])) return true;
    if (s.n > 4 && !memcmp(s.s, "<|", 2) && !memcmp(s.s + s.n - 2, "|>", 2)) return true;
    return s.n > 8 && !memcmp(s.s, "<unused", 7) && s.s[s.n - 1] == '>';
}

static bool is_byte(lq_tok_str s) { return s.n == 6 && !memcmp(s.s, "<0x", 3) && s.s[5] == '>'; }

static int token(const maker *k, uint32_t id, lq_tok_str *text) {
    const lq_tok_added *a = added_of(k, id, text);
    if (k->spm && (int32_t)id == k->t->unk) {
        if (!a) *text = k->t->piece[id];
        return UNKNOWN;
    }
    if (a) return a->special || looks_special(*text) ? CONTROL : USER;
    if (id >= k->t->n_real || !k->t->piece[id].s) return UNUSED;
    *text = k->t->piece[id];
    return k->spm && k->t->byte_fallback && is_byte(*text) ? BYTE : NORMAL;
}

/* User-defined tokens are matched in the text itself, where a space is a space. */
static void add_unmarked(lq_gguf_meta *m, lq_tok_str s) {
    lq_buf b = {0};
    for (uint32_t i = 0; i < s.n && !m->failed;) {
        bool is = i + 3 <= s.n && !memcmp(s.s + i, mark, 3);
        if (!lq_buf_add(&b, is ? " " : s.s + i, 1)) m->failed = true;
        i += is ? 3 : 1;
    }
    lq_gguf_add_text(m, b.v ? b.v : "", b.n);
    lq_buf_free(&b);
}

static void put_tokens(maker *k) {
    lq_tok_str s;
    lq_gguf_put_array(k->out, "tokenizer.ggml.tokens", LQ_GGUF_STRING, k->rows);
    for (uint32_t i = 0; i < k->rows; i++) {
        char pad[32];
        int type = token(k, i, &s);
        if (type == USER) add_unmarked(k->out, s);
        else if (type != UNUSED) lq_gguf_add_text(k->out, s.s, s.n);
        else lq_gguf_add_text(k->out, pad, (size_t)snprintf(pad, sizeof pad, "[PAD%u]", i));
    }
    lq_gguf_put_array(k->out, "tokenizer.ggml.token_type", LQ_GGUF_I32, k->rows);
    for (uint32_t i = 0; i < k->rows; i++) lq_gguf_add_u32(k->out, (uint32_t)token(k, i, &s));
}

/* -- byte-level -------------------------------------------------------------------------------------------------------- */

static lq_status put_merges(maker *k) {
    const lq_tok_pairs *m = &k->t->merges;
    uint32_t top = 0, n = 0;
    for (uint32_t i = 0; i <= m->mask && m->v; i++)
        if (m->v[i].y != LQ_TOK_NONE && m->v[i].x >= top) top = m->v[i].x + 1;
    if (top > 1u << 24) REFUSE(k->ctx, "%u merges", top);
    const lq_tok_pair **by_rank = LQ_NEWN(const lq_tok_pair *, top + 1);
    if (!by_rank) return lq_oom(k->ctx, top * sizeof *by_rank);
    for (uint32_t i = 0; i <= m->mask && m->v; i++)
        if (m->v[i].y != LQ_TOK_NONE && !by_rank[m->v[i].x]) by_rank[m->v[i].x] = &m->v[i], n++;
    lq_gguf_put_array(k->out, "tokenizer.ggml.merges", LQ_GGUF_STRING, n);
    for (uint32_t i = 0; i < top; i++) {
        if (!by_rank[i]) continue;
        const lq_tok_str *a = &k->t->piece[by_rank[i]->a], *b = &k->t->piece[by_rank[i]->b];
        char *s = lq_strf("%s %s", a->s, b->s);
        if (s) lq_gguf_add_text(k->out, s, (size_t)a->n + 1 + b->n);
        else k->out->failed = true;
        lq_free(s);
    }
    lq_free(by_rank);
    return LQ_OK;
}

static lq_status put_bpe(maker *k, const char *pre) {
    const char *name = pre ? pre : lq_tok_pre_name(k->t);
    if (!name)
        REFUSE(k->ctx, "it cuts words in a way that llama.cpp has no name for; --pre NAME says which of its pre-tokenizers to use (llama-bpe, qwen2, gpt-2 ...)");
    lq_log(k->ctx, LQ_LOG_INFO, "GGUF: byte-level tokenizer, pre-tokenizer '%s'%s", name, pre ? " as told" : "");
    lq_gguf_put_str(k->out, "tokenizer.ggml.model", "gpt2");
    lq_gguf_put_str(k->out, "tokenizer.ggml.pre", name);
    put_tokens(k);
    return put_merges(k);
}

/* -- SentencePiece ----------------------------------------------------------------------------------------------------- */

static lq_status rank_tokens(maker *k) {
    const lq_tok_pairs *m = &k->t->merges;
    if (!(k->best = LQ_NEWN(uint32_t, k->rows + 1))) return lq_oom(k->ctx, k->rows * 4);
    for (uint32_t i = 0; i < k->rows; i++) k->best[i] = LQ_TOK_NONE;
    for (uint32_t i = 0; i <= m->mask && m->v; i++) {
        const lq_tok_pair *p = &m->v[i];
        if (p->y != LQ_TOK_NONE && p->y < k->rows && p->x < k->best[p->y]) k->best[p->y] = p->x;
    }
    return LQ_OK;
}

static lq_status spm_stages(maker *k) {
    const lq_tokenizer *t = k->t;
    bool spaces = false;
    for (size_t i = 0; i < t->norm.n; i++) {
        const lq_tok_step *s = &t->norm.v[i];
        if (s->kind == LQ_TOK_PREPEND) k->prefix = true;
        else if (s->kind == LQ_TOK_REPLACE && !s->re && s->text.n == 1 && s->text.s[0] == ' ') spaces = true;
        else REFUSE(k->ctx, "its normalizer does more than mark spaces, which llama.cpp's SentencePiece does not");
    }
    for (size_t i = 0; i < t->pre.n; i++) {
        const lq_tok_step *s = &t->pre.v[i];
        bool idle = s->kind == LQ_TOK_SPLIT && !s->re && s->text.n == 1 && s->text.s[0] == ' ' && spaces; /* Gemma: no space is left to split at */
        if (s->kind == LQ_TOK_META) k->prefix = s->scheme != LQ_TOK_NEVER, spaces = true;
        else if (!idle) REFUSE(k->ctx, "it cuts words, which llama.cpp's SentencePiece does not");
    }
    if (!spaces) REFUSE(k->ctx, "neither byte-level nor SentencePiece: spaces are not marked");
    for (int i = 0; i < 256; i++)
        if (t->byte_id[i] < 0) REFUSE(k->ctx, "SentencePiece in llama.cpp needs a token for every byte, 0x%02X has none", (unsigned)i);
    return LQ_OK;
}

static lq_status put_spm(maker *k) {
    LQ_TRY(spm_stages(k));
    LQ_TRY(rank_tokens(k));
    lq_gguf_put_str(k->out, "tokenizer.ggml.model", "llama");
    lq_gguf_put_str(k->out, "tokenizer.ggml.pre", "default");
    put_tokens(k);
    lq_gguf_put_array(k->out, "tokenizer.ggml.scores", LQ_GGUF_F32, k->rows);
    for (uint32_t i = 0; i < k->rows; i++) lq_gguf_add_f32(k->out, k->best[i] == LQ_TOK_NONE ? 0 : -(float)k->best[i]);
    lq_gguf_put_bool(k->out, "tokenizer.ggml.add_space_prefix", k->prefix);
    return LQ_OK;
}

/* -- special tokens ---------------------------------------------------------------------------------------------------- */

static void put_id(maker *k, const char *key, int32_t id) {
    if (id >= 0 && (uint32_t)id < k->rows) lq_gguf_put_u32(k->out, key, (uint32_t)id);
}

static lq_status sidecar_id(maker *k, lq_source *src, const char *key, int32_t *id) {
    lq_buf b = {0};
    json_t *o = NULL;
    LQ_TRY(lq_source_sidecar(k->ctx, src, "tokenizer_config.json", &b));
    lq_status st = b.v ? lq_json_parse(k->ctx, "tokenizer_config.json", b.v, b.n, &o) : LQ_OK;
    const json_t *v = json_object_get(o, key);
    const char *s = json_string_value(json_is_object(v) ? json_object_get(v, "content") : v);
    if (s) *id = lq_tokenizer_id(k->t, s);
    json_decref(o);
    lq_buf_free(&b);
    return st;
}

static lq_status put_special(maker *k, lq_source *src) {
    const lq_tokenizer *t = k->t;
    const json_t *pad_id = json_object_get(src->config, "pad_token_id");
    int32_t pad = json_is_integer(pad_id) ? (int32_t)json_integer_value(pad_id) : -1, unk = t->unk;
    LQ_TRY(sidecar_id(k, src, "pad_token", &pad));
    LQ_TRY(sidecar_id(k, src, "unk_token", &unk));
    bool bos = t->n_head == 1 && t->head[0] == t->bos, eos = t->n_tail == 1 && t->tail[0] == t->eos;
    if ((t->n_head && !bos) || (t->n_tail && !eos))
        REFUSE(k->ctx, "its post-processor adds other tokens than one at the beginning (BOS) and one at the end (EOS) of a text");
    put_id(k, "tokenizer.ggml.bos_token_id", t->bos);
    put_id(k, "tokenizer.ggml.eos_token_id", t->eos);
    put_id(k, "tokenizer.ggml.unknown_token_id", unk);
    put_id(k, "tokenizer.ggml.padding_token_id", pad);
    lq_gguf_put_bool(k->out, "tokenizer.ggml.add_bos_token", bos);
    lq_gguf_put_bool(k->out, "tokenizer.ggml.add_eos_token", eos);
    lq_buf chat = {0};
    LQ_TRY(lq_chat_template(k->ctx, src, &chat));
    if (chat.v) lq_gguf_put_text(k->out, "tokenizer.chat_template", chat.v, chat.n);
    lq_buf_free(&chat);
    return LQ_OK;
}

static bool is_byte_level(const lq_tokenizer *t) {
    for (size_t i = 0; i < t->pre.n; i++)
        if (t->pre.v[i].kind == LQ_TOK_BYTES) return true;
    for (size_t i = 0; i < t->norm.n; i++)
        if (t->norm.v[i].kind == LQ_TOK_BYTES) return true;
    return false;
}

static bool has_tokenizer(const lq_source *src) {
    static const char *const names[] = {"tokenizer.json", "vocab.json"};
    for (size_t i = 0; i < src->n_sidecars; i++)
        for (size_t n = 0; n < sizeof names / sizeof *names; n++)
            if (!strcmp(src->sidecars[i], names[n])) return true;
    return false;
}

lq_status lq_gguf_vocab(lq_ctx *ctx, lq_source *src, uint32_t rows, const char *pre, lq_gguf_meta *m) {
    lq_tokenizer *t = NULL;
    maker k = {.ctx = ctx, .out = m, .rows = rows};
    if (!has_tokenizer(src)) {
        lq_log(ctx, LQ_LOG_WARN, "GGUF: %s has no tokenizer; the file will have none", src->path);
        lq_gguf_put_str(m, "tokenizer.ggml.model", "none");
        return LQ_OK;
    }
    LQ_TRY(lq_tokenizer_open(ctx, src, &t));
    k.t = t;
    lq_status st = LQ_OK;
    if (t->size > rows)
        LQ_GO(lq_fail(ctx, LQ_ERR_UNSUPPORTED, "GGUF: tokenizer: %u tokens, but the embedding has %u rows", t->size, rows));
    k.spm = !is_byte_level(t);
    LQ_GO(k.spm ? put_spm(&k) : put_bpe(&k, pre));
    st = put_special(&k, src);
done:
    lq_free(k.best);
    lq_tokenizer_free(&t);
    return st;
}
