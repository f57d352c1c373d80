/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A few tokens times quantized matrices through ggml's own graph, on the first GPU it has (or "cpu"): scripts/bench/mmvq.py builds and runs this. Distinct
 * matrices, together at least 300 MB, in one graph of at least 64 products; the median of 20 runs over its products. What it prints per line: microseconds. */
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PRODUCTS = 64, RUNS = 20 };

static int by_value(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void fill(struct ggml_tensor *t) { /* any bytes but those of a half that is infinite or no number */
    size_t n = ggml_nbytes(t);
    unsigned char *v = malloc(n);
    unsigned long long s = 88172645463325252ull;
    for (size_t i = 0; v && i < n; i++) {
        s ^= s << 13, s ^= s >> 7, s ^= s << 17;
        v[i] = t->type == GGML_TYPE_F32 ? 0 : (unsigned char)(s & 0x3b);
    }
    if (v) ggml_backend_tensor_set(t, v, 0, n);
    free(v);
}

/* Microseconds of a product; negative: it cannot. */
static double measure(ggml_backend_t backend, enum ggml_type type, int64_t rows, int64_t cols, int64_t n, int small) {
    size_t each = ggml_row_size(type, cols) * (size_t)rows;
    int copies = small ? 2 : (int)(300e6 / (double)each) + 1, products = small ? 2 : copies > PRODUCTS ? copies : PRODUCTS, runs = small ? 3 : RUNS;
    struct ggml_init_params p = {ggml_tensor_overhead() * (size_t)(copies + products + 8) + ggml_graph_overhead_custom((size_t)products + 8, false), NULL, true};
    struct ggml_context *c = ggml_init(p);
    struct ggml_tensor **w = calloc((size_t)copies, sizeof *w), *x = ggml_new_tensor_2d(c, GGML_TYPE_F32, cols, n);
    struct ggml_cgraph *g = ggml_new_graph_custom(c, (size_t)products + 8, false);
    int64_t took[RUNS];
    for (int i = 0; i < copies; i++) w[i] = ggml_new_tensor_2d(c, type, cols, rows);
    for (int i = 0; i < products; i++) {
        struct ggml_tensor *y = ggml_mul_mat(c, w[i % copies], x);
        ggml_set_output(y);
        ggml_build_forward_expand(g, y);
    }
    ggml_backend_buffer_t room = ggml_backend_alloc_ctx_tensors(c, backend);
    double us = -1;
    if (room) {
        for (int i = 0; i < copies; i++) fill(w[i]);
        fill(x);
        int ok = 1;
        for (int r = -3; r < runs && ok; r++) {
            int64_t t = ggml_time_us();
            ok = ggml_backend_graph_compute(backend, g) == GGML_STATUS_SUCCESS;
            ggml_backend_synchronize(backend);
            if (r >= 0) took[r] = ggml_time_us() - t;
        }
        qsort(took, (size_t)runs, sizeof *took, by_value);
        if (ok) us = (double)took[runs / 2] / products;
        ggml_backend_buffer_free(room);
    }
    ggml_free(c);
    free(w);
    return us;
}

int main(int argc, char **argv) {
    const int cpu = argc > 1 && !strcmp(argv[1], "cpu");
    static const int64_t shapes[][2] = {{4096, 4096}, {4096, 14336}, {8192, 28672}}, few[][2] = {{64, 512}}, tokens[] = {1, 8, 16};
    static const struct { enum ggml_type type; const char *name; } types[] = {{GGML_TYPE_Q4_0, "Q4_0"}, {GGML_TYPE_Q8_0, "Q8_0"}, {GGML_TYPE_TQ2_0, "TQ2_0"}};
    ggml_time_init();
    ggml_backend_load_all();
    ggml_backend_t backend = ggml_backend_init_by_type(cpu ? GGML_BACKEND_DEVICE_TYPE_CPU : GGML_BACKEND_DEVICE_TYPE_GPU, NULL);
    if (!backend) return 77;
    printf("# %s\n", ggml_backend_dev_description(ggml_backend_get_device(backend)));
    for (size_t s = 0; s < (cpu ? sizeof few / sizeof *few : sizeof shapes / sizeof *shapes); s++)
        for (size_t t = 0; t < sizeof types / sizeof *types; t++)
            for (size_t n = 0; n < sizeof tokens / sizeof *tokens; n++) {
                const int64_t *at = cpu ? few[s] : shapes[s];
                double us = measure(backend, types[t].type, at[0], at[1], tokens[n], cpu);
                printf("%s %lld %lld %lld %.3f %.0f\n", types[t].name, (long long)at[0], (long long)at[1], (long long)tokens[n], us, (double)ggml_row_size(types[t].type, at[1]) * (double)at[0]);
                fflush(stdout);
            }
    ggml_backend_free(backend);
    return 0;
}
