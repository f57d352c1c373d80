/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Any bytes as a row of ggml blocks: byte 0 names the type. What unpacks is sound, decodes to what the blocks decode to, packs, and the
 * packed row is the same codes again. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "formats/gguf_blocks.h"
#include "formats/qcodec.h"

static void must(int ok) {
    if (!ok) abort();
}

static void same_values(lq_dtype t, const uint8_t *blocks, const lq_qtensor *q) {
    float *want = LQ_NEWN(float, q->cols), *got = LQ_NEWN(float, q->cols);
    must(want && got);
    lq_dtype_decode(t, blocks, want, q->cols);
    lq_qtensor_decode_row(q, 0, got);
    for (uint32_t c = 0; c < q->cols; c++) must(want[c] == got[c]);
    lq_free(want);
    lq_free(got);
}

static void same_again(lq_dtype t, const lq_scheme *s, const lq_qtensor *q) {
    uint8_t *row = lq_alloc(lq_dtype_row_bytes(t, q->cols));
    lq_qtensor again;
    must(row && !lq_gguf_pack_row(NULL, t, q, 0, row) && !lq_qtensor_init(NULL, &again, s, (lq_slot){0}, 1, q->cols));
    if (t == LQ_NVFP4) *(float *)again.scale.parent = 1;
    must(!lq_gguf_unpack_row(NULL, t, row, &again, 0) && lq_qtensor_eq(q, &again));
    lq_qtensor_free(&again);
    lq_free(row);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1) return 0;
    lq_dtype t = (lq_dtype)(LQ_Q4_0 + data[0] % (LQ_DTYPE_N - LQ_Q4_0));
    size_t blocks = (size - 1) / lq_dtypes[t].bytes;
    uint32_t cols = (uint32_t)(blocks * lq_dtypes[t].block);
    lq_scheme s;
    lq_qtensor q;
    if (!blocks || blocks > 4096) return 0;
    if (!lq_gguf_scheme(t, &s)) { /* a lattice type: floats only */
        float *y = LQ_NEWN(float, cols);
        must(y != NULL);
        lq_dtype_decode(t, data + 1, y, cols);
        lq_free(y);
        return 0;
    }
    must(!lq_qtensor_init(NULL, &q, &s, (lq_slot){0}, 1, cols));
    if (t == LQ_NVFP4) *(float *)q.scale.parent = 1;
    if (!lq_gguf_unpack_row(NULL, t, data + 1, &q, 0)) {
        must(!lq_scheme_check(NULL, &s, 1, cols) && !lq_qtensor_check(NULL, &q, LQ_ERR_FORMAT));
        same_values(t, data + 1, &q);
        same_again(t, &s, &q);
    }
    lq_qtensor_free(&q);
    return 0;
}

size_t fuzz_seed(size_t i, uint8_t *out, size_t cap);
size_t fuzz_seed(size_t i, uint8_t *out, size_t cap) {
    if (i >= LQ_DTYPE_N - LQ_Q4_0) return 0;
    size_t n = 1 + 2 * (size_t)lq_dtypes[LQ_Q4_0 + i].bytes;
    must(n <= cap);
    for (size_t k = 0; k < n; k++) out[k] = (uint8_t)(k * 37 & 0x3f); /* halves stay finite */
    out[0] = (uint8_t)i;
    return n;
}
