/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* lqt behind its checksums. First byte of the input: 0 = a whole file, 1 = the index (in a file with sound frames, foot and
 * checksum), 2 = the bytes of one quantized matrix. */
#include <nettle/sha2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#include "core/num.h"
#include "formats/lqt.h"
#include "formats/sink.h"
#include "formats/source.h"

static char dir[64];
static lq_buf good;          /* a sound file */
static uint64_t index_at;
static lq_buf index_text, matrix, extras;

static const char *in(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void remove_dir(void) {
    lq_buf_free(&good);
    lq_buf_free(&index_text);
    lq_buf_free(&matrix);
    lq_buf_free(&extras);
    lq_remove_tree(NULL, dir);
}

static void must(bool ok) {
    if (!ok) abort(); /* our own seed does not work: the test is wrong */
}

/* Two matrices with everything that is not a code, a scale or a zero. */
static void make_extras(uint32_t extra, uint16_t sparse) {
    lq_scheme s = lq_scheme_int(8, 8, true);
    lq_qtensor q;
    s.extra = extra | LQ_X_LOWRANK | LQ_X_PERM;
    s.rank = 2;
    s.sparse = sparse;
    s.act = (lq_act){.kind = LQ_ACT_STATIC, .dtype = LQ_I8};
    must(!lq_qtensor_init(NULL, &q, &s, (lq_slot){0, LQ_R_Q, -1}, 4, 16));
    for (uint32_t c = 0; c < 16; c++) q.perm[c] = c;
    memset(q.codes, 128, 4 * q.row_bytes);
    q.act_scale = 0.5f;
    if (extra == LQ_X_OUTLIERS) {
        must(!lq_qtensor_outliers(NULL, &q, 2));
        q.outliers.col[1] = 7;
        for (uint32_t r = 0; r < 4; r++) q.outliers.row[r + 1] = r < 2 ? 1 : 2;
    } else {
        must(!lq_qtensor_outlier_cols(NULL, &q, 2));
        q.outlier_cols.idx[1] = 9;
    }
    extras.n = 0;
    must(!lq_qtensor_encode(NULL, &q, &extras));
    lq_qtensor_free(&q);
}

static void make_seed(void) {
    lq_scheme s = lq_scheme_int(3, 8, false), lut = {.grid = {LQ_GRID_LUT, 4, 1, 0}, .scale = {.dtype = LQ_U8, .tile_r = LQ_FLAT, .tile_c = 16, .parent = LQ_F32, .span = 3}};
    lq_row rows[] = {{.slot = {0, LQ_R_Q, -1}, .name = "q.weight", .ndim = 2, .shape = {3, 24}, .quantize = true, .scheme = s},
                     {.slot = {0, LQ_R_K, -1}, .name = "k.weight", .ndim = 2, .shape = {2, 24}, .quantize = true, .scheme = lut},
                     {.slot = {-1, LQ_R_FINAL_NORM, -1}, .name = "n", .ndim = 1, .shape = {24}, .out_dtype = LQ_F16}};
    lq_catalog cat = {.rows = rows, .n = 3};
    uint8_t norm[48] = {0};
    lq_sink *sink;
    must(!lq_sink_open(NULL, lq_format_by_name("lqt"), dir, &cat, &(lq_sink_opts){0}, &sink));
    must(!lq_sink_config(sink, "{\"a\": 1}", 8));
    for (size_t i = 0; i < 2; i++) {
        lq_qtensor q;
        must(!lq_qtensor_init(NULL, &q, &rows[i].scheme, rows[i].slot, lq_row_rows(&rows[i]), 24));
        must(!lq_sink_put(sink, &q));
        if (!i) must(!lq_qtensor_encode(NULL, &q, &matrix));
        lq_qtensor_free(&q);
    }
    must(!lq_sink_put_fp(sink, &rows[2], norm, sizeof norm) && !lq_sink_close(&sink));
    must(!lq_file_slurp(NULL, in("model.lqt"), 1 << 20, &good));
    uint64_t foot[3];
    memcpy(foot, good.v + good.n - LQT_FOOT, sizeof foot);
    index_at = foot[0];
    index_text.v = lq_alloc(foot[2]);
    index_text.n = foot[2];
    must(index_text.v && ZSTD_decompress(index_text.v, foot[2], good.v + foot[0], foot[1]) == foot[2]);
}

static void start(void) {
    if (*dir) return;
    snprintf(dir, sizeof dir, "%s/lq_fuzz_XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    must(mkdtemp(dir) != NULL);
    make_seed();
    atexit(remove_dir);
}

static void read_all(lq_source *s) {
    for (size_t i = 0; i < s->n; i++) {
        const lq_entry *e = &s->entries[i];
        lq_qtensor q;
        if (e->dtype == LQ_NONE && !lq_source_read_q(NULL, s, i, &q)) {
            float *row = malloc(q.cols * sizeof *row);
            if (row) lq_qtensor_decode_row(&q, q.rows - 1, row);
            free(row);
            lq_qtensor_free(&q);
        } else if (e->dtype != LQ_NONE && e->bytes < 1 << 20) {
            void *data = malloc(e->bytes + 1);
            if (data) lq_source_read(NULL, s, i, 0, lq_entry_rows(e), data);
            free(data);
        }
    }
}

static void open_bytes(const void *v, size_t n) {
    lq_source *s;
    unlink(in("case.lqt"));
    FILE *f = fopen(in("case.lqt"), "wb");
    must(f && fwrite(v, 1, n, f) == n && !fclose(f));
    lq_ctx ctx = {0};
    if (lq_source_open(&ctx, in("case.lqt"), &s)) return;
    read_all(s);
    lq_source_free(&s);
}

/* A file whose only strange part is the index. */
static void open_index(const uint8_t *text, size_t n) {
    uint64_t foot[3] = {index_at, 0, n};
    lq_buf b = {0};
    uint8_t sum[32];
    struct sha256_ctx sha;
    size_t cap = ZSTD_compressBound(n);
    void *packed = malloc(cap);
    must(packed != NULL);
    foot[1] = ZSTD_compress(packed, cap, text, n, 1);
    sha256_init(&sha);
    sha256_update(&sha, LQT_HEAD, (const uint8_t *)good.v);
    sha256_update(&sha, foot[1], packed);
    sha256_update(&sha, sizeof foot, (const uint8_t *)foot);
    sha256_digest(&sha, sizeof sum, sum);
    must(lq_buf_add(&b, good.v, index_at) && lq_buf_add(&b, packed, foot[1]) && lq_buf_add(&b, foot, sizeof foot));
    for (size_t i = 0; i < sizeof sum; i++) must(lq_buf_addf(&b, "%02x", sum[i]));
    must(lq_buf_add(&b, LQT_END, sizeof LQT_END - 1));
    open_bytes(b.v, b.n);
    lq_buf_free(&b);
    free(packed);
}

static void decode_matrix(const uint8_t *data, size_t n) {
    lq_qtensor q;
    if (lq_qtensor_decode(NULL, data, n, &q)) return;
    lq_buf again = {0};
    float *row = malloc(q.cols * sizeof *row);
    if (row) lq_qtensor_decode_row(&q, q.rows - 1, row);
    free(row);
    must(!lq_qtensor_encode(NULL, &q, &again) && again.n == n && !memcmp(again.v, data, n));
    lq_buf_free(&again);
    lq_qtensor_free(&q);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
size_t fuzz_seed(size_t i, uint8_t *out, size_t cap);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    start();
    if (!n) return 0;
    switch (data[0]) {
    case 0: open_bytes(data + 1, n - 1); break;
    case 1: open_index(data + 1, n - 1); break;
    default: decode_matrix(data + 1, n - 1);
    }
    return 0;
}

size_t fuzz_seed(size_t i, uint8_t *out, size_t cap) {
    start();
    const lq_buf *from[] = {&good, &index_text, &matrix, &index_text, &extras, &extras}; /* the index twice: most is to be found there */
    if (i == 4) make_extras(LQ_X_OUTLIERS, 400);
    if (i == 5) make_extras(LQ_X_OUTLIER_COLS, 3);
    if (i >= 6 || from[i]->n + 1 > cap) return 0;
    out[0] = (uint8_t)(i == 3 ? 1 : i > 3 ? 2 : i);
    memcpy(out + 1, from[i]->v, from[i]->n);
    return from[i]->n + 1;
}
