/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Reading the header of a safetensors file: u64 N | N bytes of JSON | data to the end of the file.
 *
 * The JSON is read by a parser of exactly this grammar instead of a tree: its memory stays a small multiple of the header, whatever
 * the header holds, and floats, exponents, signs and nesting are errors by construction. Strings with escapes go through jansson.
 * Sorted by offset, the tensors must tile the data without hole or overlap: nothing can hide in the file. */
#include "formats/safetensors.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "formats/nameset.h"

enum { HEADER_MAX = 100000000, NAME_MAX_BYTES = 1024, TENSORS_MAX = 1 << 20 };

bool lq_st_dtype_ok(lq_dtype t) { return t > LQ_NONE && t < LQ_Q4_0; }

/* Sticky: after the first error every call fails and the sentence stays. */
typedef struct lex { lq_ctx *ctx; const char *text, *p, *end; lq_arena *mem; lq_buf tok; lq_status err; } lex;

static bool bad(lex *x, const char *what) {
    if (!x->err) x->err = lq_fail(x->ctx, LQ_ERR_FORMAT, "header byte %zu: %s", (size_t)(x->p - x->text), what);
    return false;
}
static bool no_memory(lex *x, size_t n) {
    if (!x->err) x->err = lq_oom(x->ctx, n);
    return false;
}

static char peek(lex *x) {
    while (x->p < x->end && (*x->p == ' ' || *x->p == '\t' || *x->p == '\n' || *x->p == '\r')) x->p++;
    return x->p < x->end && !x->err ? *x->p : 0;
}
static bool accept(lex *x, char c) {
    if (peek(x) != c || x->err) return false;
    x->p++;
    return true;
}
static bool expect(lex *x, char c) {
    static const char *const wanted[] = {"'{' expected", "'}' expected", "'[' expected", "']' expected", "':' expected", "',' expected", "'\"' expected"};
    static const char chars[] = "{}[]:,\"";
    if (accept(x, c)) return true;
    return bad(x, wanted[strchr(chars, c) - chars]);
}

static bool is_utf8(const char *p, size_t n) {
    for (size_t i = 0; i < n;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t step = utf8proc_iterate((const utf8proc_uint8_t *)p + i, (utf8proc_ssize_t)(n - i), &c);
        if (step <= 0) return false;
        i += (size_t)step;
    }
    return true;
}

/* The next string lands in x->tok and stays there until the one after it. */
static bool string(lex *x) {
    if (!expect(x, '"')) return false;
    const char *from = x->p;
    bool escaped = false;
    for (; x->p < x->end && *x->p != '"'; x->p++) {
        if ((unsigned char)*x->p < 32) return bad(x, "control character in a string");
        if (*x->p != '\\') continue;
        escaped = true;
        if (++x->p == x->end) break;
    }
    if (x->p >= x->end) return bad(x, "unfinished string");
    size_t n = (size_t)(x->p++ - from);
    if (!is_utf8(from, n)) return bad(x, "string is not UTF-8");
    json_t *decoded = NULL;
    if (escaped && !(decoded = json_loadb(from - 1, n + 2, JSON_DECODE_ANY, NULL))) return bad(x, "string is not JSON");
    x->tok.n = 0;
    bool ok = decoded ? lq_buf_add(&x->tok, json_string_value(decoded), json_string_length(decoded)) : lq_buf_add(&x->tok, from, n);
    json_decref(decoded);
    return ok ? true : no_memory(x, n);
}
static bool is(const lex *x, const char *word) { return !strcmp(x->tok.v, word); }

static const char *keep(lex *x) {
    char *copy = lq_arena_alloc(x->mem, x->tok.n + 1);
    if (copy) memcpy(copy, x->tok.v, x->tok.n);
    else no_memory(x, x->tok.n);
    return copy;
}

static bool integer(lex *x, uint64_t *out) {
    char c = peek(x);
    if (c < '0' || c > '9') return bad(x, "a whole number >= 0 expected");
    const char *from = x->p;
    for (*out = 0; x->p < x->end && *x->p >= '0' && *x->p <= '9'; x->p++)
        if (!lq_mul_ok(*out, 10, out) || !lq_add_ok(*out, (uint64_t)(*x->p - '0'), out)) return bad(x, "number too large");
    if (*from == '0' && x->p - from > 1) return bad(x, "number with a leading zero");
    if (x->p < x->end && (*x->p == '.' || *x->p == 'e' || *x->p == 'E')) return bad(x, "a whole number expected, found a fraction");
    return true;
}

static bool integers(lex *x, uint64_t *v, uint32_t max, uint32_t *n) {
    *n = 0;
    if (!expect(x, '[')) return false;
    if (accept(x, ']')) return true;
    do {
        if (*n == max) return bad(x, "too many numbers in the list");
        if (!integer(x, &v[(*n)++])) return false;
    } while (accept(x, ','));
    return expect(x, ']');
}

static bool dtype(lex *x, lq_dtype *out) {
    static const char *const known[] = {"C64", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4", "F6_E2M3", "F6_E3M2"};
    if (!string(x)) return false;
    *out = lq_dtype_by_name(x->tok.v);
    if (lq_st_dtype_ok(*out)) return true;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (is(x, known[i])) {
            x->err = lq_fail(x->ctx, LQ_ERR_UNSUPPORTED, "element type %s is not read", known[i]);
            return false;
        }
    x->err = lq_fail(x->ctx, LQ_ERR_FORMAT, "unknown element type '%.32s'", x->tok.v);
    return false;
}

static bool metadata(lex *x) {
    if (!expect(x, '{')) return false;
    if (accept(x, '}')) return true;
    lq_nameset *seen = lq_nameset_new();
    if (!seen) return no_memory(x, 64);
    do {
        const char *key = string(x) ? keep(x) : NULL;
        if (!key || !expect(x, ':')) break;
        if (peek(x) != '"') { bad(x, "__metadata__ holds strings only"); break; }
        if (!string(x)) break;
        lq_status st = lq_nameset_add(seen, key, 0);
        if (st == LQ_ERR_FORMAT) bad(x, "duplicate key in __metadata__");
        else if (st) no_memory(x, 64);
    } while (!x->err && accept(x, ','));
    lq_nameset_free(&seen);
    return !x->err && expect(x, '}');
}

/* {"dtype": .., "shape": [..], "data_offsets": [begin, end]} in any order; end is left in bytes. */
static bool fields(lex *x, lq_st_tensor *t) {
    unsigned seen = 0;
    uint32_t two;
    uint64_t span[2] = {0};
    if (!expect(x, '{')) return false;
    do {
        if (!string(x) || !expect(x, ':')) return false;
        unsigned bit = is(x, "dtype") ? 1 : is(x, "shape") ? 2 : is(x, "data_offsets") ? 4 : 0;
        if (!bit) return bad(x, "unknown key; dtype, shape and data_offsets expected");
        if (seen & bit) return bad(x, "duplicate key");
        seen |= bit;
        bool ok = bit == 1 ? dtype(x, &t->dtype) : bit == 2 ? integers(x, t->shape, LQ_DIMS, &t->ndim) : integers(x, span, 2, &two);
        if (!ok) return false;
        if (bit == 4 && two != 2) return bad(x, "data_offsets needs two numbers");
    } while (accept(x, ','));
    if (!expect(x, '}')) return false;
    if (seen != 7) return bad(x, "dtype, shape or data_offsets is missing");
    t->offset = span[0];
    t->bytes = span[1];
    return true;
}

/* Turns the relative [begin, end) of `fields` into an absolute offset and a size. */
static lq_status place(lq_ctx *ctx, lq_st_tensor *t, uint64_t start, uint64_t size) {
    uint64_t begin = t->offset, end = t->bytes, want = lq_dtypes[t->dtype].bytes;
    for (uint32_t i = 0; i < t->ndim; i++)
        if (!lq_mul_ok(want, t->shape[i], &want)) return lq_fail(ctx, LQ_ERR_FORMAT, "tensor '%s': the product of its shape overflows", t->name);
    if (begin > end || end > size)
        return lq_fail(ctx, LQ_ERR_FORMAT, "tensor '%s': data_offsets [%llu, %llu], the file holds %llu bytes of data", t->name,
                       (unsigned long long)begin, (unsigned long long)end, (unsigned long long)size);
    if (end - begin != want)
        return lq_fail(ctx, LQ_ERR_FORMAT, "tensor '%s': data_offsets span %llu bytes, shape and %s need %llu", t->name,
                       (unsigned long long)(end - begin), lq_dtypes[t->dtype].name, (unsigned long long)want);
    t->offset = start + begin;
    t->bytes = want;
    return LQ_OK;
}

static bool tensor(lex *x, lq_st_file *f, size_t *cap, lq_nameset *seen, const char *name, uint64_t start) {
    if (!lq_name_is_sound(name, strlen(name), NAME_MAX_BYTES)) return bad(x, "tensor name is empty, too long, no UTF-8 or has control or path characters");
    if (f->n == TENSORS_MAX) return bad(x, "more than a million tensors");
    if (f->n == *cap) {
        lq_st_tensor *more = lq_realloc(f->tensors, *cap * sizeof *more, (*cap * 2 + 64) * sizeof *more);
        if (!more) return no_memory(x, *cap * 2 * sizeof *more);
        f->tensors = more;
        *cap = *cap * 2 + 64;
    }
    lq_st_tensor *t = &f->tensors[f->n];
    *t = (lq_st_tensor){.name = name};
    if (!fields(x, t)) {
        lq_note(x->ctx, x->err, "tensor '%s'", name);
        return false;
    }
    lq_status st = lq_nameset_add(seen, name, f->n++);
    if (st == LQ_ERR_RESOURCE) return no_memory(x, 64);
    x->err = st ? lq_fail(x->ctx, LQ_ERR_FORMAT, "tensor '%s' is listed twice", name) : place(x->ctx, t, start, f->file.size - start);
    return !x->err;
}

static bool header(lex *x, lq_st_file *f, lq_nameset *seen, uint64_t start) {
    size_t cap = 0;
    bool meta = false;
    if (x->p == x->end || *x->p != '{') return bad(x, "the header must begin with '{'");
    expect(x, '{');
    if (!accept(x, '}')) {
        do {
            if (!string(x) || !expect(x, ':')) return false;
            if (!is(x, "__metadata__")) {
                const char *name = keep(x);
                if (!name || !tensor(x, f, &cap, seen, name, start)) return false;
            } else {
                if (meta) return bad(x, "__metadata__ is listed twice");
                meta = true;
                if (!metadata(x)) return false;
            }
        } while (accept(x, ','));
        if (!expect(x, '}')) return false;
    }
    for (; x->p < x->end; x->p++)
        if (*x->p != ' ') return bad(x, "only spaces may follow the closing brace");
    return true;
}

static int by_offset(const void *a, const void *b) {
    const lq_st_tensor *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

static lq_status check_tiling(lq_ctx *ctx, const lq_st_file *f, uint64_t start) {
    uint64_t at = start;
    for (size_t i = 0; i < f->n; i++) {
        const lq_st_tensor *t = &f->tensors[i];
        if (t->offset != at)
            return lq_fail(ctx, LQ_ERR_FORMAT, "tensor '%s': begins at byte %llu of the data, %s at %llu expected", t->name,
                           (unsigned long long)(t->offset - start), t->offset > at ? "there is a hole:" : "it overlaps another:", (unsigned long long)(at - start));
        at += t->bytes;
    }
    if (at != f->file.size)
        return lq_fail(ctx, LQ_ERR_FORMAT, "the tensors end at byte %llu, the file at %llu", (unsigned long long)at, (unsigned long long)f->file.size);
    return LQ_OK;
}

static lq_status read_header(lq_ctx *ctx, lq_st_file *f) {
    lq_status st;
    char *text = NULL;
    lq_nameset *seen = NULL;
    uint8_t le[8];
    uint64_t n = 0;
    if (f->file.size < 8) return lq_fail(ctx, LQ_ERR_FORMAT, "%llu bytes: too short for a safetensors file", (unsigned long long)f->file.size);
    LQ_TRY(lq_file_read(ctx, &f->file, 0, le, 8));
    for (int i = 7; i >= 0; i--) n = n << 8 | le[i];
    uint64_t most = f->file.size - 8 < HEADER_MAX ? f->file.size - 8 : HEADER_MAX;
    if (n < 2 || n > most)
        return lq_fail(ctx, LQ_ERR_FORMAT, "header length is %llu, expected 2 to %llu", (unsigned long long)n, (unsigned long long)most);
    if (!(f->mem = lq_arena_new()) || !(text = lq_alloc(n)) || !(seen = lq_nameset_new())) { st = lq_oom(ctx, n); goto done; }
    LQ_GO(lq_file_read(ctx, &f->file, 8, text, n));
    lex x = {.ctx = ctx, .text = text, .p = text, .end = text + n, .mem = f->mem};
    header(&x, f, seen, 8 + n);
    lq_buf_free(&x.tok);
    LQ_GO(x.err);
    if (f->n) qsort(f->tensors, f->n, sizeof *f->tensors, by_offset);
    st = check_tiling(ctx, f, 8 + n);
done:
    lq_nameset_free(&seen);
    lq_free(text);
    return st;
}

lq_status lq_st_open_file(lq_ctx *ctx, lq_file *file, lq_st_file *out) {
    *out = (lq_st_file){.file = *file};
    *file = (lq_file){.fd = -1};
    lq_status st = read_header(ctx, out);
    if (!st) return LQ_OK;
    lq_note(ctx, st, "%s", out->file.path);
    lq_st_close(out);
    return st;
}

lq_status lq_st_open(lq_ctx *ctx, const char *path, lq_st_file *out) {
    lq_file f;
    *out = (lq_st_file){.file.fd = -1};
    LQ_TRY(lq_file_open(ctx, path, &f));
    return lq_st_open_file(ctx, &f, out);
}

void lq_st_close(lq_st_file *f) {
    lq_free(f->tensors);
    lq_arena_free(&f->mem);
    lq_file_close(&f->file);
    *f = (lq_st_file){.file.fd = -1};
}
