/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A safetensors header from arbitrary bytes; whatever is accepted is read to its last byte. */
#include "memfile.h"

#include "formats/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n) {
    lq_ctx ctx = {0};
    lq_st_file f;
    lq_file bytes = lq_memfile("fuzz.safetensors", p, n);
    if (lq_st_open_file(&ctx, &bytes, &f)) return 0;
    for (size_t i = 0; i < f.n; i++) {
        const lq_st_tensor *t = &f.tensors[i];
        uint8_t last;
        if (t->bytes && lq_file_read(&ctx, &f.file, t->offset + t->bytes - 1, &last, 1)) __builtin_trap();
    }
    lq_st_close(&f);
    return 0;
}
