/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Times ggml's product of a quantized matrix over weights that lie in no cache; ggml_kernels.py compiles it against somebody's llama.cpp.
 *
 *   ggml_kernels TYPE THREADS ROWS COLS CACHE     CACHE: bytes of the last-level cache
 *
 * A line on standard input begins a round, which prints, tab between, what, tokens, weights, bytes and seconds of each product, then an empty line.
 * "repacked" are the CPU backend's own buffers, where it has some for the type, "plain" the blocks of the file. */
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { KINDS = 2, COUNTS = 3, RANDOM_ROWS = 32 };
static const int counts[COUNTS] = {1, 64, 512};

typedef struct products {
    ggml_backend_t backend;
    struct ggml_cgraph *graph[KINDS][COUNTS]; /* plain, repacked; NULL: there is none */
    int copies;
    double weights, bytes; /* of a matrix */
} products;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float random_float(void) { /* about normal */
    float s = 0;
    for (int i = 0; i < 4; i++) s += (float)rand() / (float)RAND_MAX - 0.5f;
    return s;
}

static enum ggml_type type_of(const char *name) {
    for (int t = 0; t < GGML_TYPE_COUNT; t++)
        if (ggml_type_name((enum ggml_type)t) && !strcmp(ggml_type_name((enum ggml_type)t), name)) return (enum ggml_type)t;
    exit(2);
}

/* Some random rows, again and again. */
static void *make_rows(enum ggml_type type, int rows, int cols) {
    size_t row = ggml_row_size(type, cols);
    float *x = malloc(sizeof *x * (size_t)RANDOM_ROWS * (size_t)cols);
    char *out = malloc(row * (size_t)rows);
    if (!x || !out) exit(1);
    for (size_t i = 0; i < (size_t)RANDOM_ROWS * (size_t)cols; i++) x[i] = random_float();
    ggml_quantize_chunk(type, x, out, 0, RANDOM_ROWS, cols, NULL);
    for (int r = RANDOM_ROWS; r < rows; r++) memcpy(out + row * (size_t)r, out + row * (size_t)(r % RANDOM_ROWS), row);
    free(x);
    return out;
}

static struct ggml_context *context(size_t tensors) {
    struct ggml_init_params p = {.mem_size = tensors * ggml_tensor_overhead() + COUNTS * ggml_graph_overhead() + 65536, .no_alloc = true};
    return ggml_init(p);
}

static ggml_backend_buffer_type_t own_buffers(ggml_backend_dev_t dev) {
    ggml_backend_dev_get_extra_bufts_t get = (ggml_backend_dev_get_extra_bufts_t)ggml_backend_reg_get_proc_address(ggml_backend_cpu_reg(), "ggml_backend_dev_get_extra_bufts");
    ggml_backend_buffer_type_t *list = get ? get(dev) : NULL;
    for (; list && *list; list++)
        if (strstr(ggml_backend_buft_name(*list), "REPACK")) return *list;
    return NULL;
}

/* Weights in buffers of the kind, and a graph of all of them for each number of tokens. */
static void add_kind(products *b, int kind, enum ggml_type type, int rows, int cols, const void *data) {
    ggml_backend_dev_t dev = ggml_backend_get_device(b->backend);
    ggml_backend_buffer_type_t buft = kind ? own_buffers(dev) : ggml_backend_cpu_buffer_type();
    struct ggml_context *ctx = context((size_t)b->copies), *work = context(COUNTS * ((size_t)b->copies + 1));
    struct ggml_tensor *w = NULL;
    if (!buft || !ctx || !work) return;
    for (int i = 0; i < b->copies; i++) ggml_new_tensor_2d(ctx, type, cols, rows);
    if (!ggml_backend_alloc_ctx_tensors_from_buft(ctx, buft)) return;
    struct ggml_tensor *x[COUNTS];
    for (int k = 0; k < COUNTS; k++) {
        x[k] = ggml_new_tensor_2d(work, GGML_TYPE_F32, cols, counts[k]);
        b->graph[kind][k] = ggml_new_graph(work);
        w = ggml_get_first_tensor(ctx);
        if (!ggml_backend_dev_supports_op(dev, ggml_mul_mat(work, w, x[k]))) {
            b->graph[kind][k] = NULL;
            return;
        }
    }
    for (; w; w = ggml_get_next_tensor(ctx, w)) {
        ggml_backend_tensor_set(w, data, 0, ggml_nbytes(w));
        for (int k = 0; k < COUNTS; k++)
            if (k == 0 || w == ggml_get_first_tensor(ctx)) ggml_build_forward_expand(b->graph[kind][k], ggml_mul_mat(work, w, x[k])); /* a prompt is not bound by reading */
    }
    if (!ggml_backend_alloc_ctx_tensors(work, b->backend)) exit(1);
    for (int k = 0; k < COUNTS; k++)
        for (size_t i = 0; i < (size_t)cols * (size_t)counts[k]; i++) ((float *)x[k]->data)[i] = random_float();
}

static void round_of(products *b) {
    for (int kind = 0; kind < KINDS; kind++)
        for (int k = 0; k < COUNTS; k++) {
            if (!b->graph[kind][k]) continue;
            double t = now(), n = counts[k] > 1 ? 1 : b->copies;
            ggml_backend_graph_compute(b->backend, b->graph[kind][k]);
            t = now() - t;
            printf("%s\t%d\t%.0f\t%.0f\t%.9f\n", kind ? "repacked" : "plain", counts[k], n * b->weights, n * b->bytes, t);
        }
    printf("\n");
    fflush(stdout);
}

static void quiet(enum ggml_log_level level, const char *text, void *user) { (void)level, (void)text, (void)user; }

int main(int argc, char **argv) {
    products b = {0};
    char line[64];
    if (argc < 6) return 2;
    enum ggml_type type = type_of(argv[1]);
    int rows = atoi(argv[3]), cols = atoi(argv[4]);
    ggml_log_set(quiet, NULL);
    b.backend = ggml_backend_cpu_init();
    if (!b.backend) return 1;
    ggml_backend_cpu_set_n_threads(b.backend, atoi(argv[2]));
    b.weights = (double)rows * cols;
    b.bytes = (double)ggml_row_size(type, cols) * rows;
    b.copies = (int)(4 * atof(argv[5]) / b.bytes) + 1;
    void *data = make_rows(type, rows, cols);
    for (int kind = 0; kind < KINDS; kind++) add_kind(&b, kind, type, rows, cols, data);
    printf("%s\tggml\t%d copies of %d x %d\n", argv[1], b.copies, rows, cols);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) round_of(&b);
    return 0;
}
