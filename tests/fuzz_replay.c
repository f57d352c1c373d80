/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Runs a fuzz target as an ordinary test: every file of the corpus folders given, then fixed pseudo-random mutations of each (a crash
 * is the failure). Under libFuzzer (meson -Dlibfuzzer=true) this file is left out. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/num.h"
#include "core/os.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

enum { MUTANTS = 1500, ROOM = 64 };

/* One to eight edits: a flipped bit, a byte, an interesting integer, a cut, a doubled stretch. */
static size_t mutate(lq_rng *rng, uint8_t *p, size_t n) {
    static const uint64_t values[] = {0, 1, 4, 9, 13, 31, 63, 255, 65535, 1u << 31, UINT32_MAX, 1ull << 32, 1ull << 62, 1ull << 63, UINT64_MAX};
    for (uint32_t edits = 1 + lq_rng_below(rng, 8); edits && n > 8; edits--) {
        size_t at = lq_rng_below(rng, (uint32_t)n - 8);
        uint64_t v = values[lq_rng_below(rng, sizeof values / sizeof *values)];
        switch (lq_rng_below(rng, 6)) {
        case 0: p[at] ^= (uint8_t)(1u << lq_rng_below(rng, 8)); break;
        case 1: p[at] = (uint8_t)lq_rng_u32(rng); break;
        case 2: memcpy(p + at, &v, 4); break;
        case 3: memcpy(p + at, &v, 8); break;
        case 4: p[at] = (uint8_t)"{}[]\":,0 \\"[lq_rng_below(rng, 10)]; break;
        default: n = lq_rng_below(rng, 8) ? n : at;
        }
    }
    return n;
}

static int replay(const char *path) {
    lq_buf b;
    lq_rng rng;
    if (lq_file_slurp(NULL, path, 1 << 20, &b)) return 1;
    uint8_t *copy = malloc(b.n + ROOM);
    if (!copy) return 1;
    LLVMFuzzerTestOneInput((const uint8_t *)b.v, b.n);
    lq_rng_seed(&rng, b.n, 1);
    for (int i = 0; i < MUTANTS; i++) {
        memcpy(copy, b.v, b.n);
        size_t n = mutate(&rng, copy, b.n);
        LLVMFuzzerTestOneInput(copy, n);
    }
    free(copy);
    lq_buf_free(&b);
    return 0;
}

int main(int argc, char **argv) {
    int files = 0, bad = 0;
    for (int i = 1; i < argc; i++) {
        char **names;
        size_t n;
        if (lq_dir_list(NULL, argv[i], &names, &n)) return 1;
        for (size_t k = 0; k < n; k++, files++) {
            char *path = lq_path_join(argv[i], names[k]);
            bad += !path || replay(path);
            lq_free(path);
        }
        lq_names_free(&names, n);
    }
    printf("%d files, %d mutants of each, %d unreadable\n", files, MUTANTS, bad);
    return bad || !files;
}
