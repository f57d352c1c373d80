/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A whole tokenizer.json: the BPE model (vocabulary and merges), the added tokens, the stages (tok_steps.c). */
#include "calib/tok_impl.h"

static lq_status read_vocab(lq_ctx *ctx, lq_tokenizer *t, const json_t *vocab) {
    const char *key;
    json_t *id;
    int64_t max = -1;
    if (!json_is_object(vocab) || !json_object_size(vocab))
        return lq_fail(ctx, LQ_ERR_FORMAT, "model.vocab is not an object with tokens");
    json_object_foreach((json_t *)vocab, key, id) {
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= LQ_TOK_ID_MAX)
            return lq_fail(ctx, LQ_ERR_FORMAT, "token '%.64s' has no id from 0 to %d", key, LQ_TOK_ID_MAX - 1);
        if (json_integer_value(id) > max) max = json_integer_value(id);
    }
    LQ_TRY(lq_tok_reserve(ctx, t, (size_t)max + 1, json_object_size(vocab)));
    json_object_foreach ((json_t *)vocab, key, id)
        LQ_TRY(lq_tok_add_piece(ctx, t, json_integer_value(id), key, strlen(key)));
    return LQ_OK;
}

/* "left right", or ["left", "right"] where a part has a space. */
static lq_status read_merge(lq_ctx *ctx, lq_tokenizer *t, const json_t *m, size_t rank) {
    if (json_is_string(m)) {
        const char *l = json_string_value(m), *space = strchr(l, ' ');
        if (!space || strchr(space + 1, ' '))
            return lq_fail(ctx, LQ_ERR_FORMAT, "merge %zu '%.64s' is not two tokens", rank, l);
        return lq_tok_add_merge(ctx, t, rank, l, (size_t)(space - l), space + 1, strlen(space + 1));
    }
    const json_t *l = json_array_get(m, 0), *r = json_array_get(m, 1);
    if (json_array_size(m) != 2 || !json_is_string(l) || !json_is_string(r))
        return lq_fail(ctx, LQ_ERR_FORMAT, "merge %zu is not two tokens", rank);
    return lq_tok_add_merge(ctx, t, rank, json_string_value(l), json_string_length(l), json_string_value(r),
                            json_string_length(r));
}

static lq_status read_merges(lq_ctx *ctx, lq_tokenizer *t, const json_t *merges) {
    if (!json_is_array(merges)) return lq_fail(ctx, LQ_ERR_FORMAT, "model.merges is not a list");
    size_t n = json_array_size(merges);
    LQ_TRY(lq_tok_pairs_init(ctx, &t->merges, t->mem, n));
    for (size_t i = 0; i < n; i++) LQ_TRY(read_merge(ctx, t, json_array_get(merges, i), i));
    return LQ_OK;
}

/* What would change ids but is not done here is refused by name. */
static lq_status refuse_extras(lq_ctx *ctx, const json_t *model) {
    static const char *const affix[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        const char *s;
        LQ_TRY(lq_json_string(ctx, model, affix[i], false, &s));
        if (s && *s) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "model.%s '%.64s' is not supported", affix[i], s);
    }
    double dropout;
    LQ_TRY(lq_json_real(ctx, model, "dropout", false, 0, &dropout));
    return dropout == 0 ? LQ_OK : lq_fail(ctx, LQ_ERR_UNSUPPORTED, "model.dropout %g is not supported", dropout);
}

static lq_status read_model(lq_ctx *ctx, lq_tokenizer *t, const json_t *model) {
    const char *type, *unk;
    lq_tok_str kept;
    if (!json_is_object(model)) return lq_fail(ctx, LQ_ERR_FORMAT, "'model' is not an object");
    LQ_TRY(lq_json_string(ctx, model, "type", false, &type));
    if (type ? strcmp(type, "BPE") : !json_object_get(model, "merges"))
        return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "a %.64s tokenizer, only BPE is read", type ? type : "nameless");
    LQ_TRY(refuse_extras(ctx, model));
    LQ_TRY(lq_json_bool(ctx, model, "byte_fallback", false, &t->byte_fallback));
    LQ_TRY(lq_json_bool(ctx, model, "fuse_unk", false, &t->fuse_unk));
    LQ_TRY(lq_json_bool(ctx, model, "ignore_merges", false, &t->ignore_merges));
    LQ_TRY(lq_json_string(ctx, model, "unk_token", false, &unk));
    LQ_TRY(read_vocab(ctx, t, json_object_get(model, "vocab")));
    LQ_TRY(read_merges(ctx, t, json_object_get(model, "merges")));
    if (!unk) return LQ_OK;
    LQ_TRY(lq_tok_keep(ctx, t, unk, strlen(unk), &kept));
    t->unk_name = kept.s;
    t->unk = lq_tok_find(t, unk, strlen(unk));
    return LQ_OK;
}

static lq_status read_added(lq_ctx *ctx, lq_tokenizer *t, const json_t *list, uint32_t limit) {
    if (!list || json_is_null(list)) return LQ_OK;
    if (!json_is_array(list)) return lq_fail(ctx, LQ_ERR_FORMAT, "'added_tokens' is not a list");
    LQ_TRY(lq_tok_reserve_added(ctx, t, json_array_size(list)));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *o = json_array_get(list, i);
        const char *text;
        lq_tok_added a = {0};
        int64_t id;
        if (!json_is_object(o)) return lq_fail(ctx, LQ_ERR_FORMAT, "added token %zu is not an object", i);
        LQ_TRY(lq_json_string(ctx, o, "content", true, &text));
        LQ_TRY(lq_json_int(ctx, o, "id", true, 0, 0, LQ_TOK_ID_MAX - 1, &id));
        LQ_TRY(lq_json_bool(ctx, o, "special", false, &a.special));
        LQ_TRY(lq_json_bool(ctx, o, "lstrip", false, &a.lstrip));
        LQ_TRY(lq_json_bool(ctx, o, "rstrip", false, &a.rstrip));
        LQ_TRY(lq_json_bool(ctx, o, "single_word", false, &a.single_word));
        LQ_TRY(lq_json_bool(ctx, o, "normalized", true, &a.normalized));
        a.id = (int32_t)id;
        LQ_TRY(lq_tok_add_added(ctx, t, text, strlen(text), a, limit));
    }
    return LQ_OK;
}

/* A tokenizer.json does not say which token begins and ends a text; what the post-processor puts around it is the best
 * sign. */
static void guess_ends(lq_tokenizer *t) {
    static const char *const begin[] = {"<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>"};
    static const char *const end[] = {"</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "<|endoftext|>"};
    if (t->n_head) t->bos = t->head[0];
    if (t->n_tail) t->eos = t->tail[t->n_tail - 1];
    for (int i = 0; i < 4 && t->bos < 0; i++) t->bos = lq_tokenizer_id(t, begin[i]);
    for (int i = 0; i < 5 && t->eos < 0; i++) t->eos = lq_tokenizer_id(t, end[i]);
}

lq_status lq_tok_from_json(lq_ctx *ctx, const json_t *root, uint32_t limit, lq_tokenizer **out) {
    lq_status st = LQ_OK;
    lq_tokenizer *t = lq_tok_new();
    if (!t) return lq_oom(ctx, sizeof *t);
    if (!json_is_object(root)) LQ_GO(lq_fail(ctx, LQ_ERR_FORMAT, "not a JSON object"));
    LQ_GO(read_model(ctx, t, json_object_get(root, "model")));
    if (limit && t->n > limit)
        LQ_GO(lq_fail(ctx, LQ_ERR_FORMAT, "the vocabulary has ids up to %u, but the model has %u tokens", t->n - 1,
                      limit));
    LQ_GO(read_added(ctx, t, json_object_get(root, "added_tokens"), limit));
    LQ_GO(lq_tok_read_steps(ctx, t, root));
    LQ_GO(lq_tok_finish(ctx, t));
    if (t->byte_fallback) t->kind = "SentencePiece-style BPE with byte fallback";
    else if (!json_object_get(t->parts, "pre_tokenizer")) t->kind = "character BPE";
    guess_ends(t);
    *out = t;
    t = NULL;
done:
    lq_tokenizer_free(&t);
    return st;
}

lq_status lq_tokenizer_from_json(lq_ctx *ctx, const char *name, const char *text, size_t n, lq_tokenizer **out) {
    json_t *root = NULL;
    *out = NULL;
    LQ_TRY(lq_json_parse(ctx, name, text, n, &root));
    lq_status st = lq_tok_from_json(ctx, root, 0, out);
    json_decref(root);
    return st ? lq_note(ctx, st, "%s", name) : LQ_OK;
}
