/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The vendor's products in the same run: cublasGemmEx of fp16, cublasLt's best of int8 and fp8. The libraries are opened at run time, so that nothing is needed
 * to build; what is declared here is what their documentation says (cuBLAS library, "cublasGemmEx", "cublasLtMatmul"), and a compiler that has the headers
 * compares. Weights lie as W[rows][cols], the A operand transposed; tokens are rounded up to 16 for int8 and fp8, whose kernels ask for that. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "device_bench.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { F16 = 2, F32 = 0, I8 = 3, I32 = 10, E4M3 = 28 };                  /* cudaDataType */
enum { OP_N = 0, OP_T = 1, BY_DEFAULT = -1, IN_F32 = 68, IN_I32 = 72 };  /* cublasOperation_t, cublasGemmAlgo_t, cublasComputeType_t */
enum { DESC_TRANSA = 3, PREF_WORKSPACE = 1 };                            /* cublasLtMatmulDescAttributes_t, cublasLtMatmulPreferenceAttributes_t */
enum { ROOM = 8 << 20 }; /* for each branch */

typedef struct found { uint64_t algo[8]; size_t workspace; int state; float waves; int reserved[4]; } found; /* cublasLtMatmulHeuristicResult_t */

#ifdef __has_include
#if __has_include(<cublasLt.h>) && __has_include(<cublas_v2.h>)
#include <cublasLt.h>
#include <cublas_v2.h>
_Static_assert(F16 == (int)CUDA_R_16F && F32 == (int)CUDA_R_32F && I8 == (int)CUDA_R_8I && I32 == (int)CUDA_R_32I && E4M3 == (int)CUDA_R_8F_E4M3, "types");
_Static_assert(OP_N == (int)CUBLAS_OP_N && OP_T == (int)CUBLAS_OP_T && BY_DEFAULT == (int)CUBLAS_GEMM_DEFAULT, "operations");
_Static_assert(IN_F32 == (int)CUBLAS_COMPUTE_32F && IN_I32 == (int)CUBLAS_COMPUTE_32I, "sums");
_Static_assert(DESC_TRANSA == (int)CUBLASLT_MATMUL_DESC_TRANSA && PREF_WORKSPACE == (int)CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, "attributes");
_Static_assert(sizeof(found) == sizeof(cublasLtMatmulHeuristicResult_t) && offsetof(found, state) == offsetof(cublasLtMatmulHeuristicResult_t, state), "a result");
_Static_assert(sizeof(cudaDataType) == sizeof(int) && sizeof(cublasComputeType_t) == sizeof(int) && sizeof(cublasStatus_t) == sizeof(int), "enums are ints");
#endif
#endif

typedef struct blas {
    void *lib, *lt_lib, *handle, *lt, *room;
    int (*create)(void **handle);
    int (*set_stream)(void *handle, void *stream);
    int (*set_workspace)(void *handle, void *room, size_t n);
    int (*gemm)(void *handle, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int a_type, int lda, const void *b, int b_type, int ldb, const void *beta, void *c, int c_type,
                int ldc, int compute, int algo);
    int (*lt_create)(void **handle);
    int (*desc)(void **desc, int compute, int scale_type);
    int (*desc_set)(void *desc, int attribute, const void *v, size_t n);
    int (*layout)(void **layout, int type, uint64_t rows, uint64_t cols, int64_t ld);
    int (*pref)(void **pref);
    int (*pref_set)(void *pref, int attribute, const void *v, size_t n);
    int (*best)(void *handle, void *desc, void *a, void *b, void *c, void *d, void *pref, int asked, found *out, int *n);
    int (*matmul)(void *handle, void *desc, const void *alpha, const void *a, void *la, const void *b, void *lb, const void *beta, const void *c, void *lc, void *d, void *ld, const void *algo,
                  void *room, size_t n, void *stream);
    int (*desc_drop)(void *desc), (*layout_drop)(void *layout), (*pref_drop)(void *pref);
} blas;

static void *open_any(const char *const *names) {
    void *lib = NULL;
    for (; *names && !lib; names++) lib = dlopen(*names, RTLD_NOW | RTLD_GLOBAL);
    return lib;
}

static bool symbol(void *lib, const char *name, void *fn) {
    void *p = lib ? dlsym(lib, name) : NULL;
    memcpy(fn, &p, sizeof p);
    return p;
}

/* NULL, or why not. */
static const char *open_blas(blas *l) {
    static const char *const names[] = {"libcublas.so.13", "libcublas.so.12", "libcublas.so", NULL};
    l->lib = open_any(names);
    if (!l->lib) return "no cuBLAS";
    bool ok = symbol(l->lib, "cublasCreate_v2", &l->create) && symbol(l->lib, "cublasSetStream_v2", &l->set_stream) && symbol(l->lib, "cublasSetWorkspace_v2", &l->set_workspace) &&
              symbol(l->lib, "cublasGemmEx", &l->gemm);
    return !ok ? "a cuBLAS without cublasGemmEx" : l->create(&l->handle) ? "cuBLAS cannot start here" : NULL;
}

static const char *open_lt(blas *l) {
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so", NULL};
    l->lt_lib = open_any(names);
    if (!l->lt_lib) return "no cuBLASLt";
    bool ok = symbol(l->lt_lib, "cublasLtCreate", &l->lt_create) && symbol(l->lt_lib, "cublasLtMatmulDescCreate", &l->desc) && symbol(l->lt_lib, "cublasLtMatmulDescSetAttribute", &l->desc_set) &&
              symbol(l->lt_lib, "cublasLtMatrixLayoutCreate", &l->layout) && symbol(l->lt_lib, "cublasLtMatmulPreferenceCreate", &l->pref) &&
              symbol(l->lt_lib, "cublasLtMatmulPreferenceSetAttribute", &l->pref_set) && symbol(l->lt_lib, "cublasLtMatmulAlgoGetHeuristic", &l->best) &&
              symbol(l->lt_lib, "cublasLtMatmul", &l->matmul) && symbol(l->lt_lib, "cublasLtMatmulDescDestroy", &l->desc_drop) &&
              symbol(l->lt_lib, "cublasLtMatrixLayoutDestroy", &l->layout_drop) && symbol(l->lt_lib, "cublasLtMatmulPreferenceDestroy", &l->pref_drop);
    return !ok ? "a cuBLASLt without cublasLtMatmul" : l->lt_create(&l->lt) ? "cuBLASLt cannot start here" : NULL;
}

typedef struct contender {
    const char *what;
    int type, out, compute, scale; /* of both operands; of the product; of its sums and their scale */
    bool lt;
} contender;

typedef struct rival { /* a contender at work */
    blas *l;
    const contender *c;
    uint32_t rows, cols;
    void *w[DB_COPIES], *x[2], *y;
    void *desc, *a, *b, *d, *pref;
    found algo;
} rival;

static const float one_f = 1, none_f;
static const int32_t one_i = 1, none_i;

static const char *launch(db *b, void *of, uint32_t i) {
    rival *r = of;
    const contender *c = r->c;
    const bool chain = b->mode == DB_CHAIN, whole = c->scale == I32;
    const void *w = r->w[i % b->copies], *x = r->x[chain ? i % 2 : 0], *one = whole ? (const void *)&one_i : &one_f, *none = whole ? (const void *)&none_i : &none_f;
    void *y = chain ? r->x[1 - i % 2] : r->y, *stream = b->d->stream(), *room = (char *)r->l->room + (chain ? 0 : i % LQ_DEVICE_BRANCHES * (size_t)ROOM); /* of this branch */
    if (c->lt) return r->l->matmul(r->l->lt, r->desc, one, w, r->a, x, r->b, none, y, r->d, y, r->d, r->algo.algo, room, ROOM, stream) ? "cublasLtMatmul failed" : NULL;
    if (r->l->set_stream(r->l->handle, stream) || r->l->set_workspace(r->l->handle, room, ROOM)) return "cuBLAS takes no stream";
    return r->l->gemm(r->l->handle, OP_T, OP_N, (int)r->rows, (int)b->tokens, (int)r->cols, one, w, c->type, (int)r->cols, x, c->type, (int)r->cols, none, y, c->out, (int)r->rows, c->compute, BY_DEFAULT)
               ? "cublasGemmEx failed"
               : NULL;
}

static void undescribe(rival *r) {
    if (r->pref) r->l->pref_drop(r->pref);
    if (r->a) r->l->layout_drop(r->a);
    if (r->b) r->l->layout_drop(r->b);
    if (r->d) r->l->layout_drop(r->d);
    if (r->desc) r->l->desc_drop(r->desc);
    r->pref = r->a = r->b = r->d = r->desc = NULL;
}

/* The library's best way for n tokens. */
static const char *describe(rival *r, uint32_t n) {
    blas *l = r->l;
    const contender *c = r->c;
    const int t = OP_T;
    const size_t room = ROOM;
    int got = 0;
    bool bad = l->desc(&r->desc, c->compute, c->scale) || l->desc_set(r->desc, DESC_TRANSA, &t, sizeof t) || l->layout(&r->a, c->type, r->cols, r->rows, r->cols) ||
               l->layout(&r->b, c->type, r->cols, n, r->cols) || l->layout(&r->d, c->out, r->rows, n, r->rows) || l->pref(&r->pref) || l->pref_set(r->pref, PREF_WORKSPACE, &room, sizeof room);
    bad = bad || l->best(l->lt, r->desc, r->a, r->b, r->d, r->d, r->pref, 1, &r->algo, &got) || !got || r->algo.state;
    return bad ? "cuBLASLt has no kernel for this here" : NULL;
}

/* Weights so small that a chain of fp16 neither grows nor dies. */
static bool make(db *b, rival *r) {
    enum { PATTERN = 1 << 14 };
    uint8_t pattern[2 * PATTERN];
    float x[PATTERN];
    const size_t each = r->c->type == F16 ? 2 : 1, bytes = each * r->rows * r->cols, wide = r->rows > r->cols ? r->rows : r->cols;
    const uint32_t want = db_copies(b, (double)bytes);
    for (int i = 0; i < PATTERN; i++) x[i] = lq_rng_normal(&b->rng) / sqrtf((float)r->cols);
    for (int i = 0; i < PATTERN; i++) pattern[i] = r->c->type == E4M3 ? lq_f32_e4m3(lq_rng_normal(&b->rng)) : (uint8_t)lq_rng_u32(&b->rng);
    if (r->c->type == F16) lq_dtype_encode(LQ_F16, x, pattern, PATTERN);
    bool ok = true;
    for (b->copies = 0; ok && b->copies < want; b->copies++) ok = (r->w[b->copies] = db_filled(b, bytes, pattern, each * PATTERN));
    for (int i = 0; i < PATTERN && r->c->type == F16; i++) x[i] *= sqrtf((float)r->cols);
    if (r->c->type == F16) lq_dtype_encode(LQ_F16, x, pattern, PATTERN);
    for (int i = 0; i < 2; i++) r->x[i] = db_filled(b, each * DB_TOKENS * wide, pattern, each * PATTERN);
    r->y = b->d->alloc(4 * DB_TOKENS * (size_t)r->rows);
    return ok && r->x[0] && r->x[1] && r->y;
}

static void drop(db *b, rival *r) {
    for (uint32_t i = 0; i < b->copies; i++) b->d->release(r->w[i]);
    b->d->release(r->x[0]);
    b->d->release(r->x[1]);
    b->d->release(r->y);
    b->copies = 0;
}

static bool one(db *b, blas *l, const contender *c, uint32_t rows, uint32_t cols, const char *shape) {
    static const uint32_t tokens[] = {1, 8, 16};
    static rival r;
    r = (rival){.l = l, .c = c, .rows = rows, .cols = cols};
    bool ok = make(b, &r);
    if (!ok) db_missing(b, c->what, shape, "no room");
    for (size_t i = 0; ok && i < (c->lt ? 1 : sizeof tokens / sizeof *tokens); i++) {
        b->tokens = c->lt ? DB_TOKENS : tokens[i];
        const char *why = c->lt ? describe(&r, b->tokens) : NULL;
        if (why) db_missing(b, c->what, shape, why);
        for (int mode = 0; !why && mode < (c->lt ? DB_CHAIN : DB_AHEAD); mode++) { /* what comes out of int8 and fp8 is not what goes in */
            b->mode = (db_mode)mode;
            if (!db_measure(b, c->what, shape, (double)rows * cols * (c->type == F16 ? 2 : 1), launch, &r)) b->row[b->rows - 1].why = "it failed";
        }
        if (c->lt) undescribe(&r);
    }
    drop(b, &r);
    return true;
}

bool db_blas(db *b, uint32_t rows, uint32_t cols) {
    static const contender all[] = {{"cuBLAS fp16", F16, F16, IN_F32, F32, false}, {"cuBLASLt int8", I8, I32, IN_I32, I32, true}, {"cuBLASLt fp8", E4M3, F16, IN_F32, F32, true}};
    static blas l;
    static bool tried;
    static const char *why, *why_lt;
    char shape[32];
    bool ok = true;
    snprintf(shape, sizeof shape, "%u x %u", rows, cols);
    if (!tried && b->d->stream()) why = open_blas(&l), why_lt = open_lt(&l), l.room = b->d->alloc((size_t)ROOM * LQ_DEVICE_BRANCHES);
    if (!tried && !b->d->stream()) why = why_lt = "no cuBLAS on this device";
    tried = true;
    for (size_t i = 0; ok && i < sizeof all / sizeof *all; i++) {
        const char *missing = all[i].lt ? why_lt : why;
        if (missing || !l.room) db_missing(b, all[i].what, shape, missing ? missing : "no room");
        else ok = one(b, &l, &all[i], rows, cols, shape);
    }
    return ok;
}
