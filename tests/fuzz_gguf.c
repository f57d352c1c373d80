/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A GGUF head from arbitrary bytes; every value and the last byte of every tensor of an accepted file is read. */
#include "memfile.h"

#include "formats/gguf.h"

static void read_value(const lq_gguf_kv *kv) {
    for (uint64_t i = 0; i < lq_gguf_len(kv); i++) {
        size_t n;
        const char *s = lq_gguf_str(kv, i, &n);
        volatile double v = lq_gguf_num(kv, i);
        (void)v;
        if (s && s[n]) __builtin_trap();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n) {
    lq_ctx ctx = {0};
    lq_gguf *g;
    lq_file f = lq_memfile("fuzz.gguf", p, n);
    if (!lq_gguf_open(&ctx, &f, &g)) {
        for (size_t i = 0; i < lq_gguf_kv_count(g); i++) {
            const lq_gguf_kv *kv = lq_gguf_kv_at(g, i);
            if (lq_gguf_find(g, lq_gguf_kv_key(kv)) != kv) __builtin_trap();
            read_value(kv);
        }
        for (size_t i = 0; i < lq_gguf_count(g); i++) {
            const lq_gguf_tensor *t = lq_gguf_tensor_at(g, i);
            uint8_t last;
            if (!t->bytes || lq_file_read(&ctx, &f, t->offset + t->bytes - 1, &last, 1)) __builtin_trap();
        }
    }
    lq_gguf_free(&g);
    lq_file_close(&f);
    return 0;
}
