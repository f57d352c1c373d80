/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Vocabularies of GGUF files. "gpt2": byte-level BPE whose pre-tokenizer is known by the name in tokenizer.ggml.pre
 * only (tok_pre.c). "llama": SentencePiece BPE, which has scores instead of merges: neighbours may be joined when their
 * text is a piece, the best score first, then the leftmost. That is merging by rank, over all splits of every piece,
 * with the rank taken from the score. Keys and token types: ggml docs/gguf.md. */
#include <math.h>
#include <stdlib.h>

#include "calib/tok_impl.h"

enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER = 4, UNUSED = 5, BYTE = 6, LOOSE_MAX = 4096 };

typedef struct vocab {
    lq_ctx *ctx;
    const lq_gguf *g;
    lq_tokenizer *t;
    const lq_gguf_kv *tokens, *types;
    size_t n;
    json_t *parts;       /* stages, as in a tokenizer.json */
    uint32_t *rank;      /* [n] by score, SPM */
} vocab;

static const lq_gguf_kv *array_of(const vocab *v, const char *key, bool strings) {
    const lq_gguf_kv *kv = lq_gguf_find(v->g, key);
    bool fits = kv && lq_gguf_is_array(kv) && (lq_gguf_elem(kv) == LQ_GGUF_STRING) == strings &&
                lq_gguf_elem(kv) != LQ_GGUF_ARRAY;
    return fits ? kv : NULL;
}

static const char *string_of(const vocab *v, const char *key) {
    const lq_gguf_kv *kv = lq_gguf_find(v->g, key);
    size_t n;
    return kv && !lq_gguf_is_array(kv) && lq_gguf_elem(kv) == LQ_GGUF_STRING ? lq_gguf_str(kv, 0, &n) : NULL;
}

static bool flag_of(const vocab *v, const char *key, bool def) {
    const lq_gguf_kv *kv = lq_gguf_find(v->g, key);
    return kv && !lq_gguf_is_array(kv) && lq_gguf_elem(kv) != LQ_GGUF_STRING ? lq_gguf_num(kv, 0) != 0 : def;
}

static lq_status id_of(const vocab *v, const char *key, int32_t def, int32_t *id) {
    const lq_gguf_kv *kv = lq_gguf_find(v->g, key);
    *id = def >= 0 && (size_t)def < v->n ? def : -1;
    if (!kv) return LQ_OK;
    double x = lq_gguf_is_array(kv) || lq_gguf_elem(kv) == LQ_GGUF_STRING ? -1 : lq_gguf_num(kv, 0);
    if (x == UINT32_MAX) return LQ_OK; /* how some writers say "none" */
    if (!(x >= 0 && x < (double)v->n))
        return lq_fail(v->ctx, LQ_ERR_FORMAT, "%s is %g, expected an id below %zu", key, x, v->n);
    *id = (int32_t)x;
    return LQ_OK;
}

static int type_of(const vocab *v, size_t i) {
    int type = v->types ? (int)lq_gguf_num(v->types, i) : NORMAL;
    return type < NORMAL || type > BYTE ? NORMAL : type;
}

static lq_status read_pieces(vocab *v) {
    for (size_t i = 0; i < v->n; i++) {
        size_t n;
        const char *s = lq_gguf_str(v->tokens, i, &n);
        if (!n) continue;
        LQ_TRY(lq_tok_add_piece(v->ctx, v->t, (int64_t)i, s, n));
        bool hex = n == 6 && !memcmp(s, "<0x", 3) && s[5] == '>' && strspn(s + 3, "0123456789ABCDEFabcdef") == 2;
        if (type_of(v, i) == BYTE && !hex)
            return lq_fail(v->ctx, LQ_ERR_FORMAT, "byte token '%.64s' (id %zu) is not of the form <0xHH>", s, i);
        if (type_of(v, i) == BYTE) v->t->byte_fallback = true;
    }
    return LQ_OK;
}

static bool is_added(const vocab *v, size_t i) {
    int type = type_of(v, i);
    return type == UNKNOWN || type == CONTROL || type == USER ||
           (!v->types && ((int32_t)i == v->t->bos || (int32_t)i == v->t->eos));
}

static lq_status read_added(vocab *v) {
    size_t n = 0;
    for (size_t i = 0; i < v->n; i++) n += is_added(v, i);
    LQ_TRY(lq_tok_reserve_added(v->ctx, v->t, n));
    for (size_t i = 0; i < v->n; i++) {
        const lq_tok_str *p = v->t->piece + i;
        lq_tok_added a = {.id = (int32_t)i, .special = type_of(v, i) != USER};
        if (is_added(v, i) && p->s && lq_tok_find(v->t, p->s, p->n) == a.id)
            LQ_TRY(lq_tok_add_added(v->ctx, v->t, p->s, p->n, a, 0));
    }
    return LQ_OK;
}

static lq_status read_merges(vocab *v) {
    const lq_gguf_kv *m = array_of(v, "tokenizer.ggml.merges", true);
    if (!m) return lq_fail(v->ctx, LQ_ERR_FORMAT, "tokenizer.ggml.merges is missing");
    size_t count = lq_gguf_len(m), n;
    LQ_TRY(lq_tok_pairs_init(v->ctx, &v->t->merges, v->t->mem, count));
    for (size_t i = 0; i < count; i++) {
        const char *s = lq_gguf_str(m, i, &n);
        const char *space = n > 1 ? memchr(s + 1, ' ', n - 1) : NULL; /* the left token may itself be a space */
        if (!space) return lq_fail(v->ctx, LQ_ERR_FORMAT, "merge %zu '%.64s' is not two tokens", i, s);
        LQ_TRY(lq_tok_add_merge(v->ctx, v->t, i, s, (size_t)(space - s), space + 1, n - (size_t)(space - s) - 1));
    }
    return LQ_OK;
}

/* Ranks of pieces by falling score; equal scores share one. */
typedef struct scored { double score; uint32_t id; } scored;
static int by_score(const void *a, const void *b) {
    const scored *p = a, *q = b;
    if (p->score != q->score) return p->score > q->score ? -1 : 1;
    return p->id < q->id ? -1 : p->id > q->id;
}

static lq_status read_ranks(vocab *v) {
    const lq_gguf_kv *scores = array_of(v, "tokenizer.ggml.scores", false);
    if (!scores || lq_gguf_len(scores) != v->n)
        return lq_fail(v->ctx, LQ_ERR_FORMAT, "tokenizer.ggml.scores has %zu numbers, expected %zu",
                       scores ? (size_t)lq_gguf_len(scores) : 0, v->n);
    scored *s = LQ_NEWN(scored, v->n);
    v->rank = LQ_NEWN(uint32_t, v->n);
    lq_status st = s && v->rank ? LQ_OK : lq_oom(v->ctx, v->n * sizeof *s);
    for (size_t i = 0; !st && i < v->n; i++) {
        s[i] = (scored){lq_gguf_num(scores, i), (uint32_t)i};
        if (!isfinite(s[i].score)) st = lq_fail(v->ctx, LQ_ERR_FORMAT, "score of token %zu is not finite", i);
    }
    if (!st) qsort(s, v->n, sizeof *s, by_score);
    uint32_t rank = 0;
    for (size_t i = 0; !st && i < v->n; i++) {
        rank += i && s[i].score != s[i - 1].score;
        v->rank[s[i].id] = rank;
    }
    lq_free(s);
    return st;
}

static bool merges_to(const vocab *v, uint32_t i) { return v->t->piece[i].s && type_of(v, i) == NORMAL; }

/* Characters that only occur inside pieces get ids of their own behind the vocabulary. */
static lq_status loose_characters(vocab *v) {
    lq_tokenizer *t = v->t;
    for (uint32_t i = 0; i < v->n; i++) {
        if (!merges_to(v, i)) continue;
        const lq_tok_str p = t->piece[i];
        if (p.n > LQ_TOK_SPM_BYTES)
            return lq_fail(v->ctx, LQ_ERR_UNSUPPORTED, "token %u has %u bytes, at most %d are read", i, p.n,
                           LQ_TOK_SPM_BYTES);
        for (uint32_t k = 0; k < p.n; k += lq_utf8_len(p.s[k])) {
            if (lq_tok_find(t, p.s + k, lq_utf8_len(p.s[k])) >= 0) continue;
            if (t->n == v->n + LOOSE_MAX)
                return lq_fail(v->ctx, LQ_ERR_UNSUPPORTED, "more than %d characters have no token", LOOSE_MAX);
            t->n++;
            LQ_TRY(lq_tok_add_piece(v->ctx, t, t->n - 1, p.s + k, lq_utf8_len(p.s[k])));
        }
    }
    return LQ_OK;
}

static bool may_join(const vocab *v, int32_t id) {
    return id >= 0 && ((size_t)id >= v->n || merges_to(v, (uint32_t)id));
}

/* All splits of every piece into two tokens; counts them when put is false. */
static size_t each_split(vocab *v, bool put) {
    size_t count = 0;
    for (uint32_t i = 0; i < v->n; i++) {
        const lq_tok_str *p = v->t->piece + i;
        if (!merges_to(v, i) || lq_tok_find(v->t, p->s, p->n) != (int32_t)i) continue;
        for (uint32_t k = lq_utf8_len(p->s[0]); k < p->n; k += lq_utf8_len(p->s[k])) {
            int32_t l = lq_tok_find(v->t, p->s, k), r = lq_tok_find(v->t, p->s + k, p->n - k);
            if (!may_join(v, l) || !may_join(v, r)) continue;
            count++;
            if (put) lq_tok_pairs_put(&v->t->merges, (uint32_t)l, (uint32_t)r, v->rank[i], i);
        }
    }
    return count;
}

static json_t *template_json(const lq_tokenizer *t, bool bos, bool eos) {
    json_t *single = json_array(), *pair = json_array(), *map = json_object();
    bool ok = single && pair && map;
    const int32_t ids[2] = {bos ? t->bos : -1, eos ? t->eos : -1};
    for (int side = 0; ok && side < 2; side++) {
        const char *s = ids[side] < 0 ? NULL : t->piece[ids[side]].s;
        for (int k = 0; ok && s && k < 2; k++)
            ok = !json_array_append_new(k ? pair : single,
                                        json_pack("{s{sssi}}", "SpecialToken", "id", s, "type_id", 0));
        if (ok && s)
            ok = !json_object_set_new(map, s, json_pack("{sss[i]s[s]}", "id", s, "ids", (int)ids[side], "tokens", s));
        if (ok && !side) {
            ok = !json_array_append_new(single, json_pack("{s{sssi}}", "Sequence", "id", "A", "type_id", 0)) &&
                 !json_array_append_new(pair, json_pack("{s{sssi}}", "Sequence", "id", "A", "type_id", 0)) &&
                 !json_array_append_new(pair, json_pack("{s{sssi}}", "Sequence", "id", "B", "type_id", 1));
        }
    }
    json_t *out = ok ? json_pack("{sssOsOsO}", "type", "TemplateProcessing", "single", single, "pair", pair,
                                 "special_tokens", map)
                     : NULL;
    json_decref(single);
    json_decref(pair);
    json_decref(map);
    return out;
}

static lq_status set_part(vocab *v, const char *name, json_t *o) {
    return o && !json_object_set_new(v->parts, name, o) ? LQ_OK : lq_oom(v->ctx, 0);
}

static lq_status read_ends(vocab *v, bool def_bos) {
    bool bos = flag_of(v, "tokenizer.ggml.add_bos_token", def_bos),
         eos = flag_of(v, "tokenizer.ggml.add_eos_token", false);
    bos = bos && v->t->bos >= 0 && v->t->piece[v->t->bos].s;
    eos = eos && v->t->eos >= 0 && v->t->piece[v->t->eos].s;
    return bos || eos ? set_part(v, "post_processor", template_json(v->t, bos, eos)) : LQ_OK;
}

static lq_status read_spm(vocab *v) {
    lq_tokenizer *t = v->t;
    const bool space = flag_of(v, "tokenizer.ggml.add_space_prefix", true);
    static const char mark[] = "\xe2\x96\x81";
    int32_t unk;
    t->kind = "SentencePiece BPE by score";
    t->fuse_unk = true;
    LQ_TRY(id_of(v, "tokenizer.ggml.bos_token_id", 1, &t->bos));
    LQ_TRY(id_of(v, "tokenizer.ggml.eos_token_id", 2, &t->eos));
    LQ_TRY(id_of(v, "tokenizer.ggml.unknown_token_id", 0, &unk));
    LQ_TRY(read_ranks(v));
    LQ_TRY(loose_characters(v));
    LQ_TRY(lq_tok_pairs_init(v->ctx, &t->merges, t->mem, each_split(v, false)));
    each_split(v, true);
    if (unk >= 0 && t->piece[unk].s) {
        t->unk = unk;
        t->unk_name = t->piece[unk].s;
    }
    json_t *norm = json_pack("{sss[{sssss{ss}}]}", "type", "Sequence", "normalizers", "type", "Replace", "content",
                             mark, "pattern", "String", " ");
    json_t *pre = space ? json_pack("{ssss}", "type", "Prepend", "prepend", mark) : NULL;
    if (pre && json_array_insert_new(json_object_get(norm, "normalizers"), 0, pre))
        return json_decref(norm), lq_oom(v->ctx, 0);
    LQ_TRY(set_part(v, "normalizer", norm));
    LQ_TRY(set_part(v, "decoder",
                    json_pack("{sss[{sss{ss}ss}{ss}{ss}{sssssisi}]}", "type", "Sequence", "decoders", "type", "Replace",
                              "pattern", "String", mark, "content", " ", "type", "ByteFallback", "type", "Fuse", "type",
                              "Strip", "content", " ", "start", (int)space, "stop", 0)));
    return read_ends(v, true);
}

static lq_status read_bpe(vocab *v) {
    const char *name = string_of(v, "tokenizer.ggml.pre");
    lq_tok_pre pre;
    LQ_TRY(id_of(v, "tokenizer.ggml.bos_token_id", -1, &v->t->bos));
    LQ_TRY(id_of(v, "tokenizer.ggml.eos_token_id", -1, &v->t->eos));
    if (!name)
        lq_log(v->ctx, LQ_LOG_WARN,
               "tokenizer.ggml.pre is missing: words are split by the default rule, which is a guess");
    LQ_TRY(lq_tok_pre_find(v->ctx, name ? name : "default", &pre, v->parts));
    v->t->ignore_merges = pre.ignore_merges;
    v->t->byte_fallback = false;
    LQ_TRY(read_merges(v));
    LQ_TRY(set_part(v, "decoder",
                    json_pack("{sssbsbsb}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 0, "use_regex",
                              0)));
    return read_ends(v, pre.add_bos);
}

static lq_status read_all(vocab *v) {
    const char *model = string_of(v, "tokenizer.ggml.model");
    bool spm = model && !strcmp(model, "llama");
    if (!model) return lq_fail(v->ctx, LQ_ERR_FORMAT, "tokenizer.ggml.model is missing");
    if (!spm && strcmp(model, "gpt2"))
        return lq_fail(v->ctx, LQ_ERR_UNSUPPORTED, "a '%.64s' tokenizer, only 'llama' and 'gpt2' are read", model);
    v->tokens = array_of(v, "tokenizer.ggml.tokens", true);
    v->types = array_of(v, "tokenizer.ggml.token_type", false);
    if (!v->tokens) return lq_fail(v->ctx, LQ_ERR_FORMAT, "tokenizer.ggml.tokens is missing");
    v->n = lq_gguf_len(v->tokens);
    if (v->types && lq_gguf_len(v->types) != v->n)
        return lq_fail(v->ctx, LQ_ERR_FORMAT, "tokenizer.ggml.token_type has %zu numbers, expected %zu",
                       (size_t)lq_gguf_len(v->types), v->n);
    if (v->n > LQ_TOK_ID_MAX - LOOSE_MAX)
        return lq_fail(v->ctx, LQ_ERR_FORMAT, "%zu tokens, at most %d are read", v->n, LQ_TOK_ID_MAX - LOOSE_MAX);
    LQ_TRY(lq_tok_reserve(v->ctx, v->t, v->n ? v->n + LOOSE_MAX : 0, v->n + LOOSE_MAX));
    v->t->n = v->t->n_real = v->t->size = (uint32_t)v->n;
    LQ_TRY(read_pieces(v));
    LQ_TRY(spm ? read_spm(v) : read_bpe(v));
    LQ_TRY(read_added(v));
    LQ_TRY(lq_tok_read_steps(v->ctx, v->t, v->parts));
    return lq_tok_finish(v->ctx, v->t);
}

lq_status lq_tok_from_gguf(lq_ctx *ctx, const lq_gguf *g, lq_tokenizer **out) {
    vocab v = {.ctx = ctx, .g = g, .t = lq_tok_new(), .parts = json_object()};
    lq_status st = v.t && v.parts ? read_all(&v) : lq_oom(ctx, sizeof *v.t);
    if (!st) {
        *out = v.t;
        v.t = NULL;
    }
    lq_tokenizer_free(&v.t);
    json_decref(v.parts);
    lq_free(v.rank);
    return st;
}
