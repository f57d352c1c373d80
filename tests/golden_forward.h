/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A golden model of tests/golden/forward with its ids and the logits transformers gave, for tests of the forward pass. */
#ifndef LQ_TESTS_GOLDEN_FORWARD_H
#define LQ_TESTS_GOLDEN_FORWARD_H
#include "calib/forward.h"
#include "core/num.h"
#include "core/os.h"
#include "formats/safetensors.h"

#include <stdio.h>

#define GOLDEN LQ_SOURCE_ROOT "/tests/golden/forward/"
typedef struct fixture {
    lq_ctx ctx;
    lq_source *src;
    lq_model *m;
    int32_t ids[256];
    uint32_t n;
    float *want; /* [n][vocab] */
} fixture;

#define OK(f, x)                                                       \
    do {                                                               \
        lq_status ok_st_ = (x);                                        \
        if (ok_st_) fail_msg("%s: %s", lq_status_text(ok_st_), (f)->ctx.msg); \
    } while (0)

static inline void open_golden(fixture *f, const char *variant) {
    char path[512];
    lq_st_file st;
    *f = (fixture){.n = 0};
    snprintf(path, sizeof path, GOLDEN "%s", variant);
    OK(f, lq_source_open(&f->ctx, path, &f->src));
    OK(f, lq_model_open(&f->ctx, f->src, false, &f->m));
    OK(f, lq_model_load_all(&f->ctx, f->m, LQ_LOAD_STORED));
    snprintf(path, sizeof path, GOLDEN "%s/golden.safetensors", variant);
    OK(f, lq_st_open(&f->ctx, path, &st));
    for (size_t i = 0; i < st.n; i++) {
        const lq_st_tensor *t = &st.tensors[i];
        if (!strcmp(t->name, "input_ids")) {
            f->n = (uint32_t)(t->bytes / 4);
            assert_true(f->n <= 256);
            OK(f, lq_file_read(&f->ctx, &st.file, t->offset, f->ids, t->bytes));
        } else {
            f->want = lq_alloc(t->bytes);
            OK(f, lq_file_read(&f->ctx, &st.file, t->offset, f->want, t->bytes));
        }
    }
    lq_st_close(&st);
    assert_true(f->n && f->want);
}

static inline void close_golden(fixture *f) {
    lq_model_free(&f->m);
    lq_source_free(&f->src);
    lq_free(f->want);
}

/* hidden[n][d] by steps of `step` tokens */
static inline float *run_steps(fixture *f, uint32_t step, bool scoring) {
    lq_state *s;
    OK(f, (scoring ? lq_state_new_scoring : lq_state_new)(&f->ctx, f->m, f->n, &s));
    float *hidden = LQ_NEWN(float, (size_t)f->n * f->m->par.hidden);
    for (uint32_t i = 0; i < f->n; i += step)
        OK(f, lq_forward(&f->ctx, s, f->ids + i, f->n - i < step ? f->n - i : step, hidden + (size_t)i * f->m->par.hidden));
    assert_int_equal(lq_state_pos(s), f->n);
    lq_state_free(&s);
    return hidden;
}

static inline float *logits_of(fixture *f, uint32_t step) {
    float *hidden = run_steps(f, step, step == f->n), *logits = LQ_NEWN(float, (size_t)f->n * f->m->par.vocab);
    OK(f, lq_logits(&f->ctx, f->m, hidden, f->n, logits));
    lq_free(hidden);
    return logits;
}

/* max |a - b| / max |b|; NaN counts as infinite */
static inline double distance(const float *a, const float *b, size_t n) {
    double most = 0, scale = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - b[i]);
        most = d <= most ? most : isnan(d) ? INFINITY : d;
        scale = fabs(b[i]) > scale ? fabs(b[i]) : scale;
    }
    return most / scale;
}

static inline double off_golden(fixture *f, uint32_t step) {
    float *logits = logits_of(f, step);
    double d = distance(logits, f->want, (size_t)f->n * f->m->par.vocab);
    lq_free(logits);
    return d;
}


/* A field switched off (or a setting changed): the golden logits must then be missed by more than 1e-2. */
typedef struct off_switch { const char *variant; void (*off)(fixture *); const char *what; } off_switch;

static inline void try_switches(const off_switch *list, size_t n) {
    for (size_t i = 0; i < n; i++) {
        fixture f;
        open_golden(&f, list[i].variant);
        list[i].off(&f);
        double d = off_golden(&f, f.n);
        if (!(d > 1e-2)) fail_msg("%s without its %s: logits move by %g only", list[i].variant, list[i].what, d);
        close_golden(&f);
    }
}
#endif
