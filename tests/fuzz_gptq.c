/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* GPTQ folders. First byte of the input: 0 = the text of config.json beside sound tensors, else the bits of the four tensors of one
 * act-order module (2 bits, 32 x 32, two groups), as they lie in the file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/thread.h"
#include "formats/safetensors.h"
#include "formats/source.h"

enum { SIZE = 32, GROUPS = 2, WORDS = 2 };
typedef struct parts {
    uint32_t qweight[WORDS][SIZE], qzeros[GROUPS][WORDS];
    uint16_t scales[GROUPS][SIZE];
    int32_t g_idx[SIZE];
} parts;

static const char act_order[] = "{\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 2, \"group_size\": 16, \"desc_act\": true, \"sym\": false}}";
static const char dynamic[] = "{\"quantization_config\": {\"quant_method\": \"gptq\", \"checkpoint_format\": \"gptq\", \"bits\": 4, \"group_size\": -1, \"desc_act\": true, \"sym\": true, "
                              "\"dynamic\": {\"-:^x(a+)+$\": {}, \"+:.*\\\\.m$\": {\"bits\": 2, \"group_size\": 16, \"sym\": false}}, \"meta\": {\"scale_sig\": 8}}}";
static char dir[64];
static parts good;

static const char *in(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}
static void remove_dir(void) { lq_remove_tree(NULL, dir); }
static void must(bool ok) {
    if (!ok) abort(); /* our own seed does not work: the test is wrong */
}

static void write_tensors(const parts *p) {
    lq_st_tensor t[] = {
        {.name = "a.m.qweight", .dtype = LQ_I32, .ndim = 2, .shape = {WORDS, SIZE}},
        {.name = "a.m.qzeros", .dtype = LQ_I32, .ndim = 2, .shape = {GROUPS, WORDS}},
        {.name = "a.m.scales", .dtype = LQ_F16, .ndim = 2, .shape = {GROUPS, SIZE}},
        {.name = "a.m.g_idx", .dtype = LQ_I32, .ndim = 1, .shape = {SIZE}},
    };
    const void *data[] = {p->qweight, p->qzeros, p->scales, p->g_idx};
    const size_t bytes[] = {sizeof p->qweight, sizeof p->qzeros, sizeof p->scales, sizeof p->g_idx};
    lq_st_writer *w;
    unlink(in("model.safetensors"));
    must(!lq_st_create(NULL, dir, t, 4, 0, &w));
    for (size_t i = 0; i < 4; i++) must(!lq_st_put(NULL, w, t[i].name, data[i], bytes[i]));
    must(!lq_st_finish(NULL, &w));
}

static void write_config(const void *v, size_t n) {
    unlink(in("config.json"));
    must(!lq_write_file(NULL, in("config.json"), v, n));
}

static void start(void) {
    if (*dir) return;
    snprintf(dir, sizeof dir, "%s/lq_fuzz_XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    must(mkdtemp(dir) != NULL);
    atexit(remove_dir);
    lq_threads_set(1);
    for (size_t k = 0; k < SIZE; k++) {
        good.g_idx[k] = k % 3 == 0 || k > 26;
        for (size_t g = 0; g < GROUPS; g++) good.scales[g][k] = 0x3c00;
    }
    int ones = 0;
    for (size_t k = 0; k < SIZE; k++) ones += good.g_idx[k];
    for (size_t k = SIZE; k-- > 0 && ones != SIZE / 2;) { /* groups of equal size */
        if (ones < SIZE / 2 && !good.g_idx[k]) good.g_idx[k] = 1, ones++;
        else if (ones > SIZE / 2 && good.g_idx[k]) good.g_idx[k] = 0, ones--;
    }
}

static bool read_folder(void) {
    lq_source *s;
    lq_qtensor q;
    float row[SIZE];
    lq_ctx ctx = {0};
    if (lq_source_open(&ctx, dir, &s)) return false;
    bool ok = true;
    for (size_t i = 0; i < s->n; i++) {
        if (s->entries[i].dtype != LQ_NONE) continue;
        ok = !lq_source_read_q(&ctx, s, i, &q);
        if (ok && q.cols <= SIZE) lq_qtensor_decode_row(&q, q.rows - 1, row);
        lq_qtensor_free(&q);
    }
    lq_source_free(&s);
    return ok;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
size_t fuzz_seed(size_t i, uint8_t *out, size_t cap);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static bool tensors_are_good;
    start();
    if (!n) return 0;
    if (data[0] == 0) {
        if (!tensors_are_good) write_tensors(&good);
        tensors_are_good = true;
        write_config(data + 1, n - 1);
    } else {
        parts p = good;
        memcpy(&p, data + 1, n - 1 < sizeof p ? n - 1 : sizeof p);
        tensors_are_good = false;
        write_tensors(&p);
        write_config(act_order, sizeof act_order - 1);
    }
    read_folder();
    return 0;
}

size_t fuzz_seed(size_t i, uint8_t *out, size_t cap) {
    const void *from[] = {act_order, &good, dynamic};
    const size_t n[] = {sizeof act_order - 1, sizeof good, sizeof dynamic - 1};
    start();
    if (i >= 3 || n[i] + 1 > cap) return 0;
    out[0] = i == 1;
    memcpy(out + 1, from[i], n[i]);
    LLVMFuzzerTestOneInput(out, n[i] + 1);
    must(read_folder());
    return n[i] + 1;
}
