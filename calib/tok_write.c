/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The tokenizer as a tokenizer.json that `tokenizers` reads to the same ids. */
#include <stdlib.h>

#include "calib/tok_impl.h"

/* Steals v; false when memory is out. */
static bool put(json_t *o, const char *key, json_t *v) { return v && !json_object_set_new(o, key, v); }

static lq_status write_vocab(lq_ctx *ctx, const lq_tokenizer *t, json_t *model) {
    json_t *vocab = json_object();
    lq_status st = LQ_OK;
    for (uint32_t i = 0; vocab && i < t->n_real; i++) {
        const lq_tok_str *p = t->piece + i;
        if (!p->s || lq_tok_find(t, p->s, p->n) != (int32_t)i)
            continue; /* a second token of the same text can never be made */
        if (memchr(p->s, 0, p->n))
            LQ_GO(lq_fail(ctx, LQ_ERR_UNSUPPORTED, "token %u holds a NUL, which a tokenizer.json cannot", i));
        if (!put(vocab, p->s, json_integer(i))) LQ_GO(lq_oom(ctx, 0));
    }
    if (!vocab || json_object_set(model, "vocab", vocab)) st = lq_oom(ctx, 0);
done:
    json_decref(vocab);
    return st;
}

/* By rank; the splits of one piece share theirs when it comes from a score. */
static int by_rank(const void *a, const void *b) {
    const lq_tok_pair *p = a, *q = b;
    if (p->x != q->x) return p->x < q->x ? -1 : 1;
    if (p->y != q->y) return p->y < q->y ? -1 : 1;
    return p->a != q->a ? (p->a < q->a ? -1 : 1) : p->b < q->b ? -1 : p->b > q->b;
}

static json_t *merge_json(const lq_tokenizer *t, const lq_tok_pair *p) {
    const lq_tok_str *l = t->piece + p->a, *r = t->piece + p->b;
    return json_pack("[s%s%]", l->s, (size_t)l->n, r->s, (size_t)r->n);
}

static lq_status write_merges(lq_ctx *ctx, const lq_tokenizer *t, json_t *model) {
    lq_status st = LQ_OK;
    size_t n = 0;
    json_t *list = json_array();
    lq_tok_pair *v = LQ_NEWN(lq_tok_pair, t->merges.n);
    if (!list || !v) LQ_GO(lq_oom(ctx, t->merges.n * sizeof *v));
    for (uint32_t i = 0; t->merges.v && i <= t->merges.mask; i++) {
        const lq_tok_pair *p = t->merges.v + i;
        if (p->y != LQ_TOK_NONE && p->a < t->n_real && p->b < t->n_real) v[n++] = *p;
    }
    qsort(v, n, sizeof *v, by_rank);
    for (size_t i = 0; i < n; i++) {
        json_t *m = merge_json(t, v + i);
        if (!m || json_array_append_new(list, m)) LQ_GO(lq_oom(ctx, 0));
    }
    if (json_object_set(model, "merges", list)) st = lq_oom(ctx, 0);
done:
    json_decref(list);
    lq_free(v);
    return st;
}

static lq_status write_model(lq_ctx *ctx, const lq_tokenizer *t, json_t *root) {
    json_t *m = json_object();
    if (!put(root, "model", m)) return lq_oom(ctx, 0);
    bool ok = put(m, "type", json_string("BPE")) && put(m, "dropout", json_null()) &&
              put(m, "unk_token", t->unk_name ? json_string(t->unk_name) : json_null()) &&
              put(m, "continuing_subword_prefix", json_null()) && put(m, "end_of_word_suffix", json_null()) &&
              put(m, "fuse_unk", json_boolean(t->fuse_unk)) &&
              put(m, "byte_fallback", json_boolean(t->byte_fallback)) &&
              put(m, "ignore_merges", json_boolean(t->ignore_merges));
    if (!ok) return lq_oom(ctx, 0);
    LQ_TRY(write_vocab(ctx, t, m));
    return write_merges(ctx, t, m);
}

static json_t *added_json(const lq_tokenizer *t, uint32_t i) {
    const lq_tok_added *a = t->added + i;
    return json_pack("{sisssbsbsbsbsb}", "id", (int)a->id, "content", t->added_text[i].s, "single_word",
                     (int)a->single_word, "lstrip", (int)a->lstrip, "rstrip", (int)a->rstrip, "normalized",
                     (int)a->normalized, "special", (int)a->special);
}

/* In order of id: `tokenizers` numbers what is not in the vocabulary in the order it comes. */
static lq_status write_added(lq_ctx *ctx, const lq_tokenizer *t, json_t *root) {
    json_t *list = json_array();
    if (!put(root, "added_tokens", list)) return lq_oom(ctx, 0);
    for (uint32_t id = 0; id < t->size; id++) {
        if (t->by_id[id] == LQ_TOK_NONE) continue;
        json_t *a = added_json(t, t->by_id[id]);
        if (!a || json_array_append_new(list, a)) return lq_oom(ctx, 0);
    }
    return LQ_OK;
}

lq_status lq_tokenizer_json(lq_ctx *ctx, const lq_tokenizer *t, json_t **out) {
    static const char *const stages[] = {"normalizer", "pre_tokenizer", "post_processor", "decoder"};
    lq_status st = LQ_OK;
    json_t *root = json_object();
    *out = NULL;
    if (!put(root, "version", json_string("1.0")) || !put(root, "truncation", json_null()) ||
        !put(root, "padding", json_null()))
        LQ_GO(lq_oom(ctx, 0));
    LQ_GO(write_added(ctx, t, root));
    for (int i = 0; i < 4; i++) {
        const json_t *part = json_object_get(t->parts, stages[i]);
        if (!put(root, stages[i], part ? json_deep_copy(part) : json_null())) LQ_GO(lq_oom(ctx, 0));
    }
    LQ_GO(write_model(ctx, t, root));
    *out = root;
    root = NULL;
done:
    json_decref(root);
    return st;
}
