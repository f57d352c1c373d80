/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Runs a fuzz target as an ordinary test: every file of the corpus folders given and every seed the target makes itself, then fixed
 * pseudo-random mutations of each (a crash is the failure). Under libFuzzer (meson -Dlibfuzzer=true) this file is left out; --write DIR
 * gives it the seeds that targets make themselves. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/num.h"
#include "core/os.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);
/* A target may make its seeds itself (they hold compressed bytes, say): seed i in out, its length, 0 behind the last one. */
__attribute__((weak)) size_t fuzz_seed(size_t i, uint8_t *out, size_t cap);
/* How many mutants of each seed, where the usual number would take too long. */
extern const int fuzz_mutants __attribute__((weak));

enum { MUTANTS = 1500, ROOM = 64, SEED_MAX = 1 << 16 };

/* The first decimal number at or behind `at` becomes another one of any length. */
static size_t renumber(lq_rng *rng, uint8_t *p, size_t n, size_t at) {
    static const char *const values[] = {"0", "-1", "1", "2", "3", "31", "33", "4294967295", "4294967296", "9223372036854775807", "1e3"};
    const char *to = values[lq_rng_below(rng, sizeof values / sizeof *values)];
    size_t len = 0, grown = strlen(to);
    while (at < n && !isdigit(p[at])) at++;
    while (at + len < n && isdigit(p[at + len])) len++;
    if (!len || grown > len + ROOM / 8) return n;
    memmove(p + at + grown, p + at + len, n - at - len);
    memcpy(p + at, to, grown);
    return n - len + grown;
}

/* One to eight edits: a flipped bit, a byte, an interesting integer, a cut, a doubled stretch. */
static size_t mutate(lq_rng *rng, uint8_t *p, size_t n) {
    static const uint64_t values[] = {0, 1, 4, 9, 13, 31, 63, 255, 65535, 1u << 31, UINT32_MAX, 1ull << 32, 1ull << 62, 1ull << 63, UINT64_MAX};
    for (uint32_t edits = 1 + lq_rng_below(rng, 8); edits && n > 8; edits--) {
        size_t at = lq_rng_below(rng, (uint32_t)n - 8);
        uint64_t v = values[lq_rng_below(rng, sizeof values / sizeof *values)];
        switch (lq_rng_below(rng, 7)) {
        case 0: p[at] ^= (uint8_t)(1u << lq_rng_below(rng, 8)); break;
        case 1: p[at] = (uint8_t)lq_rng_u32(rng); break;
        case 2: memcpy(p + at, &v, 4); break;
        case 3: memcpy(p + at, &v, 8); break;
        case 4: p[at] = (uint8_t)"{}[]\":,0 \\"[lq_rng_below(rng, 10)]; break;
        case 5: n = renumber(rng, p, n, at); break; /* at most 8 edits of ROOM / 8 more bytes */
        default: n = lq_rng_below(rng, 8) ? n : at;
        }
    }
    return n;
}

static int mutants(void) { return &fuzz_mutants ? fuzz_mutants : MUTANTS; }

static int replay(const uint8_t *p, size_t size) {
    lq_rng rng;
    uint8_t *copy = malloc(size + ROOM);
    if (!copy) return 1;
    LLVMFuzzerTestOneInput(p, size);
    lq_rng_seed(&rng, size, 1);
    for (int i = 0; i < mutants(); i++) {
        memcpy(copy, p, size);
        size_t n = mutate(&rng, copy, size);
        LLVMFuzzerTestOneInput(copy, n);
    }
    free(copy);
    return 0;
}

static int replay_file(const char *path) {
    lq_buf b;
    if (lq_file_slurp(NULL, path, 1 << 20, &b)) return 1;
    int bad = replay((const uint8_t *)b.v, b.n);
    lq_buf_free(&b);
    return bad;
}

static int replay_seeds(int *count) {
    uint8_t *seed = malloc(SEED_MAX);
    int bad = !seed;
    for (size_t n; seed && fuzz_seed && (n = fuzz_seed((size_t)*count, seed, SEED_MAX)); ++*count) bad += replay(seed, n);
    free(seed);
    return bad;
}

static int write_seeds(const char *folder) {
    uint8_t *seed = malloc(SEED_MAX);
    char name[32];
    int bad = !seed;
    for (size_t i = 0, n; !bad && fuzz_seed && (n = fuzz_seed(i, seed, SEED_MAX)); i++) {
        snprintf(name, sizeof name, "seed_%03zu", i);
        char *path = lq_path_join(folder, name);
        bad = !path || lq_write_file(NULL, path, seed, n);
        lq_free(path);
    }
    free(seed);
    return bad;
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "--write")) return write_seeds(argv[2]);
    int files = 0, bad = replay_seeds(&files);
    for (int i = 1; i < argc; i++) {
        char **names;
        size_t n;
        if (lq_dir_list(NULL, argv[i], &names, &n)) return 1;
        for (size_t k = 0; k < n; k++, files++) {
            char *path = lq_path_join(argv[i], names[k]);
            bad += !path || replay_file(path);
            lq_free(path);
        }
        lq_names_free(&names, n);
    }
    printf("%d seeds, %d mutants of each, %d unreadable\n", files, mutants(), bad);
    return bad || !files;
}
