/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Binding: which architecture, which parameters, and one catalog row per stored tensor, each checked against both. */
#include "calib/gguf_form.h"
#include "calib/held.h"
#include "calib/master.h"
#include "calib/model.h"
#include "calib/rotate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct binder {
    lq_ctx *ctx;
    lq_model *m;
    bool gguf;
    uint8_t *taken;          /* [src->n] bound already */
    int32_t stage[LQ_R_N];   /* of each role's LINEAR; -1 */
    int32_t fuse[LQ_R_N];
    const uint32_t *rows[LQ_R_N]; /* how rows of a role lie in a GGUF, once asked; the same in every block */
    size_t missing, cap;     /* cap: of the catalog's rows */
    char first[160];         /* name of the first missing tensor */
} binder;

/* The name of a tensor of block b (and expert e); `as` respells its beginning (NULL: not). */
static char *block_name(lq_arena *mem, const char *pattern, const lq_respelled *as, int32_t b, int32_t e) {
    const char *head = "";
    if (as && !strncmp(pattern, as->from, strlen(as->from))) pattern += strlen(as->from), head = as->to;
    size_t room = strlen(head) + strlen(pattern) + 32;
    char *name = lq_arena_alloc(mem, room);
    const char *mark = strstr(pattern, "%d"), *expert = mark ? strstr(mark, "%e") : NULL;
    if (!name) return NULL;
    if (expert)
        snprintf(name, room, "%s%.*s%d%.*s%d%s", head, (int)(mark - pattern), pattern, b, (int)(expert - mark - 2), mark + 2, e, expert + 2);
    else if (mark) snprintf(name, room, "%s%.*s%d%s", head, (int)(mark - pattern), pattern, b, mark + 2);
    else snprintf(name, room, "%s%s", head, pattern);
    return name;
}

static char *copy_name(lq_arena *mem, const char *name) {
    char *copy = lq_arena_alloc(mem, strlen(name) + 1);
    return copy ? strcpy(copy, name) : NULL;
}

static bool has_some(const lq_gguf *g, const char *arch, const char *what) {
    char key[128];
    snprintf(key, sizeof key, "%s.%s", arch, what);
    const lq_gguf_kv *kv = lq_gguf_find(g, key);
    return kv && lq_gguf_elem(kv) != LQ_GGUF_STRING && lq_gguf_len(kv) && lq_gguf_num(kv, 0) > 0;
}

static lq_status find_arch(lq_ctx *ctx, lq_model *m) {
    const char *name = NULL;
    size_t len;
    if (m->src->config) {
        LQ_TRY(lq_text_config(ctx, m->src->config, &m->config, &name));
        m->arch = lq_arch_by_model_type(name);
    } else if (m->src->gguf) {
        const lq_gguf_kv *kv = lq_gguf_find(m->src->gguf, "general.architecture");
        name = kv ? lq_gguf_str(kv, 0, &len) : NULL;
        m->arch = name ? lq_arch_by_gguf(name, has_some(m->src->gguf, name, "expert_count"), has_some(m->src->gguf, name, "attention.sliding_window")) : NULL;
    }
    if (m->arch) return LQ_OK;
    if (!name) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%s: nothing says which architecture this is (no config.json)", m->src->path);
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "architecture '%s' is not supported; `lquant list archs` names those that are", name);
}

static lq_status read_params(lq_ctx *ctx, lq_model *m) {
    if (!m->src->config) return lq_params_from_gguf(ctx, m->arch, m->src, &m->par);
    lq_status st = m->arch->params_hf(ctx, m->arch, m->config, &m->par);
    if (!st) st = lq_master_find(ctx, m);
    return st ? lq_note(ctx, st, "config.json") : LQ_OK;
}

static void shape_text(char *buf, size_t n, uint32_t ndim, const uint64_t *shape) {
    size_t at = (size_t)snprintf(buf, n, "[");
    for (uint32_t i = 0; i < ndim && at < n; i++)
        at += (size_t)snprintf(buf + at, n - at, i ? ", %llu" : "%llu", (unsigned long long)shape[i]);
    if (at < n) snprintf(buf + at, n - at, "]");
}

/* A float tensor of a file with Hugging Face names that is stored [cols][rows]; codes never are. */
static bool is_turned(const binder *b, const lq_arch_name *t, const lq_entry *e) {
    return t->rows & LQ_TRANSPOSED && !b->gguf && e->dtype != LQ_NONE;
}

/* Where a role is in the source. of 0: a tensor of its own; else the at-th of `of` parts of each expert in a stack. */
typedef struct place { long i; uint8_t at, of; int32_t expert; } place;

static lq_status check(binder *b, const lq_arch_name *t, const place *at) {
    const lq_entry *e = &b->m->src->entries[at->i];
    bool turned = is_turned(b, t, e);
    uint64_t rows = lq_params_dim(&b->m->par, t->rows), cols = lq_params_dim(&b->m->par, t->cols);
    uint64_t want[3] = {turned ? cols : rows, turned ? rows : cols};
    uint32_t ndim = t->cols ? 2 : 1;
    if (t->cols && rows == 1 && e->ndim == 1 && b->gguf) want[0] = cols, ndim = 1; /* a GGUF has a single row as a vector */
    if (at->of) want[0] = b->m->par.n_experts, want[1] = at->of * rows, want[2] = cols, ndim = 3;
    bool fits = e->ndim == ndim;
    for (uint32_t i = 0; i < ndim && fits; i++) fits = e->shape[i] == want[i];
    if (!fits) {
        char has[96], expected[96];
        shape_text(has, sizeof has, e->ndim, e->shape);
        shape_text(expected, sizeof expected, ndim, want);
        return lq_fail(b->ctx, LQ_ERR_FORMAT, "tensor '%s': shape %s, the configuration says %s", e->name, has, expected);
    }
    if (e->dtype == LQ_NONE ? ndim == 2 : lq_dtype_is_weight(e->dtype) && ((ndim >= 2 && !turned) || lq_dtypes[e->dtype].block == 1)) return LQ_OK;
    return lq_fail(b->ctx, LQ_ERR_UNSUPPORTED, "tensor '%s': type %s is not a weight", e->name, lq_dtypes[e->dtype].name);
}

static lq_row *new_row(binder *b, size_t i) {
    lq_catalog *c = &b->m->cat;
    const lq_entry *e = &b->m->src->entries[i];
    if (c->n == b->cap) { /* experts of a stack are more rows than tensors */
        lq_row *more = b->cap < SIZE_MAX / 4 / sizeof *more ? lq_arena_alloc(c->mem, 2 * (b->cap + 1) * sizeof *more) : NULL;
        if (!more) return NULL;
        if (c->n) memcpy(more, c->rows, c->n * sizeof *more);
        c->rows = more;
        b->cap = 2 * (b->cap + 1);
    }
    lq_row *r = &c->rows[c->n++];
    *r = (lq_row){.source = (int32_t)i, .dtype = e->dtype, .ndim = e->ndim, .fuse = -1, .stage = -1, .scheme = e->scheme};
    if (e->block_scale) r->dtype = LQ_NONE; /* the blocks alone do not say its values */
    memcpy(r->shape, e->shape, sizeof r->shape);
    b->taken[i] = 1;
    return r;
}

/* Rows and values that a GGUF stores otherwise; matrices stored [cols][rows]. */
static lq_status set_view(binder *b, lq_row *r, const lq_arch_name *t) {
    lq_gguf_lay lay;
    r->transposed = t->rows & LQ_TRANSPOSED;
    if (is_turned(b, t, &b->m->src->entries[r->source])) {
        r->view = LQ_VIEW_TRANSPOSED;
        r->shape[0] = lq_params_dim(&b->m->par, t->rows);
        r->shape[1] = lq_params_dim(&b->m->par, t->cols);
    }
    if (!b->gguf) return LQ_OK;
    if (b->rows[t->role]) lay = (lq_gguf_lay){.rows = b->rows[t->role]};
    else LQ_TRY(lq_gguf_lay_of(b->ctx, b->m->arch, &b->m->par, t->role, t->part, t->cols ? 2 : 1, b->m->cat.mem, &lay));
    b->rows[t->role] = lay.rows;
    if (lay.rows) r->view = LQ_VIEW_ROWS, r->view_rows = lay.rows;
    r->view_add = lay.add;
    return LQ_OK;
}

/* Where a tensor is in the source, -1: nowhere. *spelled: its Hugging Face name as the source has it (the architecture's own when it
 * has it not or is a GGUF; NULL: no memory). */
static long find_name(binder *b, const char *hf, const char *gguf, int32_t block, int32_t expert, const char **spelled) {
    lq_arena *mem = b->m->cat.mem;
    *spelled = hf ? block_name(mem, hf, NULL, block, expert) : NULL;
    if (b->gguf) {
        const char *name = gguf ? block_name(mem, gguf, NULL, block, expert) : NULL;
        return name ? lq_source_find(b->m->src, name) : -1;
    }
    long i = *spelled ? lq_source_find(b->m->src, *spelled) : -1;
    const lq_respelled *lists[] = {b->m->arch->respelled, b->m->config != b->m->src->config ? lq_wrapper_names : NULL};
    for (int k = 0; k < 2 && hf; k++)
        for (const lq_respelled *as = lists[k]; i < 0 && as && as->from; as++) {
            const char *name = block_name(mem, hf, as, block, expert);
            i = name ? lq_source_find(b->m->src, name) : -1;
            if (i >= 0) *spelled = name;
        }
    return i;
}

/* Under its own name, or in one of the architecture's stacks; i < 0: nowhere. */
static place find_place(binder *b, const lq_arch_name *t, int32_t block, int32_t expert, const char **hf) {
    bool stack = expert >= 0 && b->gguf && t->gguf && !strstr(t->gguf, "%e");
    place p = {.i = find_name(b, t->hf, t->gguf, block, expert, hf), .of = stack, .expert = expert};
    for (const lq_arch_stack *s = b->m->arch->stacks; s && s->role && p.i < 0; s++) {
        const char *other;
        if (s->role == t->role && t->part == LQ_PART_WEIGHT) p = (place){find_name(b, s->hf, s->gguf, block, expert, &other), s->at, s->of, expert};
    }
    return p;
}

enum { MANY_MISSING = 1000 };
static lq_status missing(binder *b, const char *name) {
    if (!b->missing++) snprintf(b->first, sizeof b->first, "%s", name);
    if (b->missing < MANY_MISSING) return LQ_OK;
    return lq_fail(b->ctx, LQ_ERR_FORMAT, "tensor '%s' is missing (%zu and more missing)", b->first, b->missing);
}

static void set_shape(binder *b, lq_row *r, const lq_arch_name *t, const place *at) {
    uint64_t rows = lq_params_dim(&b->m->par, t->rows);
    if (at->of) r->row0 = ((uint64_t)at->expert * at->of + at->at) * rows;
    if (r->view != LQ_VIEW_TRANSPOSED && t->cols) {
        r->ndim = 2;
        r->shape[0] = rows;
        r->shape[1] = lq_params_dim(&b->m->par, t->cols);
    }
}

static lq_status bind_one(binder *b, const lq_arch_name *t, int32_t block, int32_t expert) {
    lq_model *m = b->m;
    const char *hf, *gguf = t->gguf ? block_name(m->cat.mem, t->gguf, NULL, block, expert) : NULL;
    place at = find_place(b, t, block, expert, &hf);
    if (!hf || (!gguf && t->gguf)) return lq_oom(b->ctx, 64);
    if (b->gguf && !gguf) return lq_fail(b->ctx, LQ_ERR_UNSUPPORTED, "'%s' has no name in GGUF files", hf);
    if (at.i < 0) return missing(b, b->gguf ? gguf : hf);
    LQ_TRY(check(b, t, &at));
    lq_row *r = new_row(b, (size_t)at.i);
    if (!r) return lq_oom(b->ctx, m->cat.n * sizeof *r);
    r->slot = (lq_slot){.block = block, .role = (uint16_t)t->role, .expert = (int16_t)expert};
    r->part = t->part;
    r->name = hf;
    r->gguf_name = gguf;
    r->linear = t->part == LQ_PART_WEIGHT && (b->stage[t->role] >= 0 || t->role == LQ_R_HEAD || t->role == LQ_R_EMBED);
    r->fuse = b->fuse[t->role] < 0 ? -1 : b->fuse[t->role] + LQ_MAX_OPS * (expert + 1);
    r->stage = t->part == LQ_PART_WEIGHT ? b->stage[t->role] : -1;
    LQ_TRY(set_view(b, r, t));
    set_shape(b, r, t, &at);
    return LQ_OK;
}

static lq_status bind(binder *b, const lq_arch_name *t, int32_t block) {
    const lq_params *p = &b->m->par;
    if (block < 0 ? !lq_params_has(p, t->only_if) : !lq_params_at(p, t->only_if, (uint32_t)block)) return LQ_OK;
    if (!lq_role_is_expert(t->role)) return bind_one(b, t, block, -1);
    for (uint32_t e = 0; e < p->n_experts; e++) LQ_TRY(bind_one(b, t, block, (int32_t)e));
    return LQ_OK;
}

/* Runtimes fuse q, k and v, and gate and up. */
static int family_of(lq_role r) {
    if (r == LQ_R_Q || r == LQ_R_K || r == LQ_R_V) return 0;
    return r == LQ_R_GATE || r == LQ_R_UP || r == LQ_R_EXPERT_GATE || r == LQ_R_EXPERT_UP || r == LQ_R_SHARED_GATE || r == LQ_R_SHARED_UP ? 1 : -1;
}

/* Stage of each role, and its fuse group where more than one linear of its stage and family is there. */
static void number_roles(binder *b, uint32_t layer) {
    int32_t stage[LQ_MAX_OPS], size[LQ_MAX_OPS][2] = {{0}}, group[LQ_MAX_OPS][2], groups = 0;
    const lq_op *op = b->m->arch->block;
    for (int r = 0; r < LQ_R_N; r++) b->stage[r] = b->fuse[r] = -1;
    uint32_t n = lq_arch_stages(b->m->arch, &b->m->par, layer, stage);
    for (uint32_t i = 0; i < n; i++)
        if (stage[i] >= 0 && family_of(op[i].role) >= 0) size[stage[i]][family_of(op[i].role)]++;
    for (int s = 0; s < LQ_MAX_OPS; s++)
        for (int f = 0; f < 2; f++) group[s][f] = size[s][f] > 1 ? groups++ : -1;
    for (uint32_t i = 0; i < n; i++) {
        if (stage[i] < 0) continue;
        b->stage[op[i].role] = stage[i];
        if (family_of(op[i].role) >= 0) b->fuse[op[i].role] = group[stage[i]][family_of(op[i].role)];
    }
}

static bool in_block(const lq_arch_name *t) { return strstr(t->hf, "%d") != NULL; }

static lq_status bind_known(binder *b) {
    const lq_arch_name *t = b->m->arch->names;
    number_roles(b, 0);
    for (; t->role && !in_block(t); t++) LQ_TRY(bind(b, t, -1));
    const lq_arch_name *first = t;
    for (uint32_t l = 0; l < b->m->par.n_layers; l++) {
        number_roles(b, l);
        for (t = first; t->role && in_block(t); t++) LQ_TRY(bind(b, t, (int32_t)l));
    }
    for (; t->role; t++) LQ_TRY(bind(b, t, -1));
    if (!b->missing) return LQ_OK;
    return lq_fail(b->ctx, LQ_ERR_FORMAT, "tensor '%s' is missing (%zu missing in all)", b->first, b->missing);
}

static int by_name(const void *a, const void *b) { return strcmp(((const lq_row *)a)->name, ((const lq_row *)b)->name); }

/* Where no table says: every matrix that holds weights, but those with a row for each word (embedding and head). */
static bool is_unknown_linear(const lq_model *m, const lq_row *r) {
    json_int_t vocab = json_integer_value(json_object_get(m->src->config, "vocab_size"));
    if (r->ndim != 2 || r->shape[0] > UINT32_MAX || r->shape[1] > UINT32_MAX) return false;
    if (vocab > 0 && r->shape[0] == (uint64_t)vocab && r->shape[0] > r->shape[1]) return false;
    return r->dtype == LQ_NONE || lq_dtype_is_weight(r->dtype);
}

/* What no table knows: carried along, named, never run. */
static lq_status bind_rest(binder *b) {
    lq_model *m = b->m;
    size_t first = m->cat.n;
    for (size_t i = 0; i < m->src->n; i++) {
        if (b->taken[i] || (b->gguf && m->arch && lq_gguf_is_factor(m->arch, m->src->entries[i].name))) continue; /* the parameters have those */
        lq_row *r = new_row(b, i);
        if (!r || !(r->name = copy_name(m->cat.mem, m->src->entries[i].name))) return lq_oom(b->ctx, 64);
        r->linear = !m->arch && is_unknown_linear(m, r);
    }
    qsort(m->cat.rows + first, m->cat.n - first, sizeof *m->cat.rows, by_name);
    if (m->cat.n - first > INT16_MAX) return lq_fail(b->ctx, LQ_ERR_UNSUPPORTED, "%zu tensors of unknown names", m->cat.n - first);
    for (size_t i = first; i < m->cat.n; i++)
        m->cat.rows[i].slot = (lq_slot){.block = -1, .role = LQ_R_UNKNOWN, .expert = (int16_t)(i - first)};
    return LQ_OK;
}

/* As transformers 5 has it: a head that is stored beside a tied embedding is used. */
static void untie_stored_head(binder *b) {
    const lq_arch_name *t = lq_arch_tensor(b->m->arch, LQ_R_HEAD, LQ_PART_WEIGHT);
    const char *name;
    if (t && find_name(b, t->hf, t->gguf, -1, -1, &name) >= 0) b->m->par.tied = false;
    else if (t && b->m->config != b->m->src->config) b->m->par.tied = true; /* the whole model's configuration says so, with defaults of its own */
}

static lq_status make_catalog(lq_ctx *ctx, lq_model *m) {
    binder b = {.ctx = ctx, .m = m, .gguf = !m->src->config && m->src->gguf};
    lq_status st;
    m->cat.n_blocks = m->arch ? m->par.n_layers : 0;
    m->cat.model_type = "";
    bool ok = (m->cat.mem = lq_arena_new()) && (b.taken = lq_alloc(m->src->n)) && m->src->n < SIZE_MAX / sizeof(lq_row) &&
              (m->cat.rows = lq_arena_alloc(m->cat.mem, m->src->n * sizeof(lq_row)));
    b.cap = m->src->n;
    if (!ok) LQ_GO(lq_oom(ctx, m->src->n * sizeof(lq_row)));
    const char *type = m->src->config ? json_string_value(json_object_get(m->src->config, "model_type")) : m->arch ? m->arch->model_types[0] : NULL;
    if (type && !(m->cat.model_type = copy_name(m->cat.mem, type))) LQ_GO(lq_oom(ctx, strlen(type)));
    if (m->arch) {
        untie_stored_head(&b);
        m->cat.tied = m->par.tied;
        LQ_GO(bind_known(&b));
    }
    LQ_GO(bind_rest(&b));
done:
    lq_free(b.taken);
    return st;
}

/* A model that cannot be run is still a list of matrices; but where files store some transposed, only a table tells which. */
static bool may_be_unknown(const lq_model *m, lq_status why) {
    for (const lq_arch_name *t = m->arch ? m->arch->names : NULL; t && t->role; t++)
        if (t->rows & LQ_TRANSPOSED && m->src->config) return false;
    return why == LQ_ERR_UNSUPPORTED;
}

static void become_unknown(lq_ctx *ctx, lq_model *m) {
    lq_log(ctx, LQ_LOG_WARN, "%s; data-free methods take every matrix without a row for each word for a linear (--ignore REGEX leaves some out)", ctx->msg);
    lq_params_free(&m->par);
    m->arch = NULL;
}

lq_status lq_model_open(lq_ctx *ctx, lq_source *src, bool any_arch, lq_model **out) {
    lq_status st;
    lq_model *m = *out = LQ_NEW(lq_model);
    if (!m) return lq_oom(ctx, sizeof *m);
    m->src = src;
    m->k = lq_kernels_best();
    m->expert_opts.prior = 1;
    st = find_arch(ctx, m);
    if (!st) st = read_params(ctx, m);
    if (st && !(any_arch && may_be_unknown(m, st))) goto done;
    if (st) become_unknown(ctx, m);
    LQ_GO(make_catalog(ctx, m));
    if (m->arch) LQ_GO(lq_model_bind_kv(ctx, m));
    if (m->arch && !(m->layers = LQ_NEWN(lq_layer, m->par.n_layers))) LQ_GO(lq_oom(ctx, m->par.n_layers * sizeof(lq_layer)));
done:
    if (st) lq_model_free(out);
    return st;
}

void lq_model_free(lq_model **m) {
    if (!*m) return;
    lq_held_free(&(*m)->held);
    lq_model_unload(*m, -1);
    for (uint32_t b = 0; (*m)->layers && b < (*m)->par.n_layers; b++) lq_model_unload(*m, (int32_t)b);
    lq_free((*m)->layers);
    lq_catalog_free(&(*m)->cat);
    lq_rotation_free(&(*m)->rotation);
    lq_params_free(&(*m)->par);
    lq_free((*m)->kv_steps);
    lq_free(*m);
    *m = NULL;
}

static void special_id(const lq_gguf *g, const char *key, json_t *c, const char *name) {
    const lq_gguf_kv *kv = g ? lq_gguf_find(g, key) : NULL;
    if (kv && !lq_gguf_is_array(kv) && lq_gguf_elem(kv) != LQ_GGUF_STRING) json_object_set_new(c, name, json_integer((json_int_t)lq_gguf_num(kv, 0)));
}

lq_status lq_model_config(lq_ctx *ctx, const lq_model *m, json_t **out) {
    *out = NULL;
    if (!m->arch) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "a configuration can be made for a known architecture only");
    if (m->src->config) return (*out = json_deep_copy(m->src->config)) ? LQ_OK : lq_oom(ctx, 0);
    LQ_TRY(m->arch->config(ctx, m->arch, &m->par, out));
    special_id(m->src->gguf, "tokenizer.ggml.bos_token_id", *out, "bos_token_id");
    special_id(m->src->gguf, "tokenizer.ggml.eos_token_id", *out, "eos_token_id");
    special_id(m->src->gguf, "tokenizer.ggml.padding_token_id", *out, "pad_token_id");
    return LQ_OK;
}
