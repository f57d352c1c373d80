/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* For scripts/peers/check_tokenizer.py, not a test: tool_tokenize [flags] TOKENIZER CASES prints one line of ids per
 * case. TOKENIZER: a tokenizer.json, a folder or a GGUF. CASES: repeated 8-byte little-endian length and that many
 * bytes of text. -s  add what the post-processor adds    -p  special tokens are plain text    -d  decode again, print
 * hex -j FILE  write lq_tokenizer_json there  -i  print bos, eos, size, kind       -t  print the seconds encoding took
 * to stderr */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "calib/tokenizer.h"

static lq_status open_any(lq_ctx *ctx, const char *path, lq_tokenizer **t) {
    size_t n = strlen(path);
    if (n < 5 || strcmp(path + n - 5, ".json")) {
        lq_source *src = NULL;
        LQ_TRY(lq_source_open(ctx, path, &src));
        lq_status st = lq_tokenizer_open(ctx, src, t);
        lq_source_free(&src);
        return st;
    }
    lq_buf text = {0};
    LQ_TRY(lq_file_slurp(ctx, path, LQ_JSON_MAX, &text));
    lq_status st = lq_tokenizer_from_json(ctx, path, text.v, text.n, t);
    lq_buf_free(&text);
    return st;
}

static lq_status one_case(lq_ctx *ctx, const lq_tokenizer *t, const char *s, size_t n, bool special, bool parse,
                          bool decode) {
    lq_ids ids = {0};
    lq_buf back = {0};
    lq_status st = lq_tokenizer_encode(ctx, t, s, n, special, parse, &ids);
    for (size_t i = 0; !st && i < ids.n; i++) printf(i ? " %d" : "%d", ids.v[i]);
    if (!st && decode) st = lq_tokenizer_decode(ctx, t, ids.v, ids.n, true, &back);
    if (!st && decode) printf(" |");
    for (size_t i = 0; i < back.n; i++) printf("%02x", (unsigned char)back.v[i]);
    puts("");
    lq_ids_free(&ids);
    lq_buf_free(&back);
    return st;
}

static lq_status all_cases(lq_ctx *ctx, const lq_tokenizer *t, const lq_buf *b, bool special, bool parse, bool decode) {
    lq_status st = LQ_OK;
    for (size_t i = 0; !st && i + 8 <= b->n;) {
        uint64_t n = 0;
        for (int k = 0; k < 8; k++) n |= (uint64_t)(uint8_t)b->v[i + (size_t)k] << 8 * k;
        i += 8;
        if (n > b->n - i) return lq_fail(ctx, LQ_ERR_FORMAT, "case runs past the file");
        st = one_case(ctx, t, b->v + i, n, special, parse, decode);
        i += n;
    }
    return st;
}

static lq_status write_json(lq_ctx *ctx, const lq_tokenizer *t, const char *path) {
    json_t *v = NULL;
    lq_buf text = {0};
    remove(path);
    LQ_TRY(lq_tokenizer_json(ctx, t, &v));
    lq_status st = lq_json_dump(ctx, v, &text);
    if (!st) st = lq_write_file(ctx, path, text.v, text.n);
    json_decref(v);
    lq_buf_free(&text);
    return st;
}

static void to_stderr(void *user, lq_level level, const char *line) {
    (void)user;
    (void)level;
    fprintf(stderr, "%s\n", line);
}

int main(int argc, char **argv) {
    bool special = false, parse = true, decode = false, info = false, timed = false;
    const char *json = NULL;
    lq_ctx ctx = {.log = to_stderr, .level = LQ_LOG_INFO};
    lq_tokenizer *t = NULL;
    lq_buf cases = {0};
    for (int c; (c = getopt(argc, argv, "spdj:it")) != -1;) {
        special |= c == 's';
        parse &= c != 'p';
        decode |= c == 'd';
        info |= c == 'i';
        timed |= c == 't';
        if (c == 'j') json = optarg;
    }
    if (argc - optind != 2) return 2;
    double start = lq_now();
    lq_status st = open_any(&ctx, argv[optind], &t);
    double loaded = lq_now();
    if (!st && info)
        printf("%d %d %zu %d %s\n", lq_tokenizer_bos(t), lq_tokenizer_eos(t), lq_tokenizer_size(t),
               lq_tokenizer_adds_bos(t), lq_tokenizer_kind(t));
    if (!st && json) st = write_json(&ctx, t, json);
    if (!st) st = lq_file_slurp(&ctx, argv[optind + 1], (size_t)1 << 30, &cases);
    double ready = lq_now();
    if (!st) st = all_cases(&ctx, t, &cases, special, parse, decode);
    if (timed) fprintf(stderr, "load %.3f s, encode %.3f s\n", loaded - start, lq_now() - ready);
    if (st) fprintf(stderr, "%s: %s\n", lq_status_text(st), ctx.msg);
    lq_tokenizer_free(&t);
    lq_buf_free(&cases);
    return st;
}
