/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Rotations: orthogonal to fp64 rounding, and a rotated model computes what the model computed. */
#define _DEFAULT_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "calib/rotate.h"
#include "formats/config_splice.h"
#include "golden_forward.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>

static double worst_of_qqt(const lq_orthogonal *q, double *largest) {
    uint32_t n = q->n;
    double *rows = LQ_NEWN(double, (size_t)n * n), *scratch = LQ_NEWN(double, n), worst = 0;
    *largest = 0;
    for (uint32_t i = 0; i < n; i++) {
        rows[(size_t)i * n + i] = 1;
        lq_orthogonal_apply(q, rows + (size_t)i * n, scratch);
    }
    for (size_t i = 0; i < (size_t)n * n; i++) *largest = fmax(*largest, fabs(rows[i]));
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j <= i; j++) {
            double dot = 0;
            for (uint32_t c = 0; c < n; c++) dot += rows[(size_t)i * n + c] * rows[(size_t)j * n + c];
            worst = fmax(worst, fabs(dot - (i == j)));
        }
    lq_free(rows);
    lq_free(scratch);
    return worst;
}

static void q_times_its_transpose_is_the_identity(void **state) {
    (void)state;
    static const struct { uint32_t n; bool hadamard; } sizes[] = {{1, true},   {2, true},   {64, true},   {128, true}, {12, true},  {20, true},
                                                                  {24, true},  {28, true},  {36, true},   {576, true}, {60, true},  {76, true},
                                                                  {108, true}, {140, true}, {96, true},   {320, true}, {344, false}, {18, false},
                                                                  {37, false}, {7, false},  {592, true}, {74, false}, {1152, true}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        lq_orthogonal q;
        double largest;
        assert_int_equal(lq_orthogonal_init(NULL, &q, sizes[i].n, 3, 1), LQ_OK);
        double worst = worst_of_qqt(&q, &largest);
        if (worst > 1e-12) fail_msg("order %u: Q Q^T misses the identity by %g", sizes[i].n, worst);
        if (q.hadamard != sizes[i].hadamard) fail_msg("order %u: hadamard is %d", sizes[i].n, q.hadamard);
        if (q.hadamard && fabs(largest * sqrt(sizes[i].n) - 1) > 1e-12) fail_msg("order %u: its largest entry is %g", sizes[i].n, largest);
        lq_orthogonal_free(&q);
    }
}

static void what_was_turned_is_turned_back(void **state) {
    (void)state;
    lq_orthogonal q;
    double v[592], scratch[592];
    assert_int_equal(lq_orthogonal_init(NULL, &q, 592, 3, 1), LQ_OK);
    for (int i = 0; i < 592; i++) v[i] = i;
    lq_orthogonal_apply(&q, v, scratch);
    lq_orthogonal_undo(&q, v, scratch);
    for (int i = 0; i < 592; i++) assert_true(fabs(v[i] - i) < 1e-10);
    lq_orthogonal_free(&q);
    assert_int_equal(lq_orthogonal_init(NULL, &q, 5503, 3, 1), LQ_ERR_UNSUPPORTED);
}

static struct dirent **folders; /* of tests/golden/forward */
static int n_folders;
static int is_model(const struct dirent *d) { return d->d_name[0] != '.'; }

static int find_models(void **state) {
    (void)state;
    n_folders = scandir(GOLDEN, &folders, is_model, alphasort);
    return n_folders > 0 ? 0 : -1;
}

static int drop_models(void **state) {
    (void)state;
    for (int i = 0; i < n_folders; i++) free(folders[i]);
    free(folders);
    return 0;
}

static void open_rotated(fixture *f, const char *variant, unsigned what, uint64_t seed) {
    open_golden(f, variant);
    lq_model_free(&f->m);
    OK(f, lq_model_open(&f->ctx, f->src, false, &f->m));
    OK(f, lq_model_rotate(&f->ctx, f->m, what, seed));
    OK(f, lq_model_load_all(&f->ctx, f->m, LQ_LOAD_F32));
}

/* Golden models that cannot be turned, and the word of the reason. */
static const struct { const char *prefix; unsigned what; const char *reason; } refused[] = {
    {"gemma2", LQ_ROTATE_STREAM, "post-norm"},
    {"gemma3", LQ_ROTATE_STREAM, "post-norm"},
    {"glm4", LQ_ROTATE_STREAM, "post-norm"},
    {"bitnet", LQ_ROTATE_HEADS, "between attention and the output projection"},
    {"bitnet_online", LQ_ROTATE_STREAM, "master weights"},
    {"opt_350m", LQ_ROTATE_STREAM, "norm"},
    {"opt", LQ_ROTATE_STREAM, "LayerNorm"},
    {"gpt2", LQ_ROTATE_STREAM, "LayerNorm"},
    {"gpt_neox", LQ_ROTATE_STREAM, "LayerNorm"},
    {"falcon", LQ_ROTATE_STREAM, "LayerNorm"},
    {"phi2", LQ_ROTATE_STREAM, "LayerNorm"},
    {"olmoe", LQ_ROTATE_HEADS, "between the value projection and attention"}, /* clip_qkv */
};

static const char *reason(const char *variant, unsigned what) {
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (!strncmp(variant, refused[i].prefix, strlen(refused[i].prefix)) && refused[i].what & what) return refused[i].reason;
    return NULL;
}

static void a_rotated_model_computes_the_same_logits(void **state) {
    (void)state;
    static const unsigned kinds[] = {LQ_ROTATE_STREAM, LQ_ROTATE_HEADS, LQ_ROTATE_STREAM | LQ_ROTATE_HEADS};
    for (int v = 0; v < n_folders; v++)
        for (int k = 0; k < 3; k++) {
            if (reason(folders[v]->d_name, kinds[k])) continue;
            fixture f;
            open_rotated(&f, folders[v]->d_name, kinds[k], (uint64_t)k);
            double d = off_golden(&f, f.n);
            if (!(d <= 1e-4)) fail_msg("%s, rotation %u: logits move by %g", folders[v]->d_name, kinds[k], d);
            close_golden(&f);
        }
}

static void what_cannot_be_rotated_is_refused_with_its_reason(void **state) {
    (void)state;
    for (int v = 0; v < n_folders; v++)
        for (unsigned what = 1; what <= 2; what++) {
            const char *why = reason(folders[v]->d_name, what);
            fixture f;
            open_golden(&f, folders[v]->d_name);
            lq_status st = lq_model_rotatable(&f.ctx, f.m, what);
            assert_int_equal(st, why ? LQ_ERR_UNSUPPORTED : LQ_OK);
            if (why && !strstr(f.ctx.msg, why)) fail_msg("%s: no '%s' in: %s", folders[v]->d_name, why, f.ctx.msg);
            close_golden(&f);
        }
}

static double spread_of(fixture *f, const char *name) { /* largest over rms of a tensor */
    for (size_t i = 0; i < f->m->cat.n; i++) {
        lq_row *row = &f->m->cat.rows[i];
        if (strcmp(row->name, name)) continue;
        float *w = LQ_NEWN(float, lq_row_elems(row));
        OK(f, lq_model_read_f32(&f->ctx, f->m, row, w));
        double sum = 0, most = 0;
        for (uint64_t k = 0; k < lq_row_elems(row); k++) {
            sum += (double)w[k] * w[k];
            most = fmax(most, fabs((double)w[k]));
        }
        double r = most / sqrt(sum / (double)lq_row_elems(row));
        lq_free(w);
        return r;
    }
    return -1;
}

static void tied_embeddings_are_untied_and_gains_become_one(void **state) {
    (void)state;
    fixture f;
    open_rotated(&f, "llama_tied", LQ_ROTATE_STREAM, 0);
    assert_false(f.m->par.tied || f.m->cat.tied);
    assert_true(f.m->rotation->untied);
    assert_true(spread_of(&f, "lm_head.weight") > 0);
    assert_true(spread_of(&f, "model.norm.weight") == 1);
    assert_true(spread_of(&f, "model.layers.0.input_layernorm.weight") == 1);
    close_golden(&f);
    open_rotated(&f, "llama_tied", LQ_ROTATE_HEADS, 0);
    assert_true(f.m->par.tied);
    close_golden(&f);
}

/* sum over rows of w of w G w^T */
static double energy(const float *w, const double *g, uint32_t rows, uint32_t k) {
    double sum = 0;
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t i = 0; i < k; i++)
            for (uint32_t j = 0; j < k; j++) sum += (double)w[(size_t)r * k + i] * g[(size_t)i * k + j] * (double)w[(size_t)r * k + j];
    return sum;
}

static void rotated_moments_give_rotated_weights_the_same_energy(void **state) {
    (void)state;
    fixture a, b;
    open_golden(&a, "llama_tied");
    open_rotated(&b, "llama_tied", LQ_ROTATE_STREAM | LQ_ROTATE_HEADS, 4);
    for (size_t n = 0; n < a.m->cat.n; n++) {
        const lq_row *row = &a.m->cat.rows[n], *turned = lq_catalog_find(&b.m->cat, row->slot, row->part);
        if (row->stage < 0 || lq_rotation_turn(b.m, turned).out_heads) continue; /* values are rescaled */
        uint32_t k = lq_row_cols(row);
        double *g = LQ_NEWN(double, (size_t)k * k);
        float *w = LQ_NEWN(float, lq_row_elems(row));
        lq_rng rng;
        lq_rng_seed(&rng, n, 1);
        for (uint32_t t = 0; t < 5; t++) {
            double x[512];
            for (uint32_t c = 0; c < k; c++) x[c] = (double)lq_rng_normal(&rng) * (c == 3 ? 30 : 1);
            for (uint32_t i = 0; i < k * k; i++) g[i] += x[i / k] * x[i % k];
        }
        OK(&a, lq_model_read_f32(&a.ctx, a.m, row, w));
        double before = energy(w, g, lq_row_rows(row), k);
        OK(&b, lq_model_read_f32(&b.ctx, b.m, turned, w));
        OK(&b, lq_rotation_moments(&b.ctx, b.m, turned, g));
        double after = energy(w, g, lq_row_rows(row), k);
        float x[2][512] = {{0}};
        for (uint32_t c = 0; c < k; c++) x[0][c] = x[1][c] = lq_rng_normal(&rng);
        OK(&b, lq_rotation_inputs(&b.ctx, b.m, turned, x[1], 1));
        double out[2] = {0};
        for (int side = 0; side < 2; side++) {
            OK(side ? &b : &a, lq_model_read_f32(&a.ctx, side ? b.m : a.m, side ? turned : row, w));
            for (uint32_t r = 0; r < lq_row_rows(row); r++) {
                double y = 0;
                for (uint32_t c = 0; c < k; c++) y += (double)w[(size_t)r * k + c] * (double)x[side][c];
                out[side] += y * y;
            }
        }
        if (!(fabs(out[1] / out[0] - 1) < 1e-5)) fail_msg("%s: |W x|^2 %g became %g", row->name, out[0], out[1]);
        if (!(fabs(after / before - 1) < 1e-5)) fail_msg("%s: energy %g became %g", row->name, before, after);
        lq_free(g);
        lq_free(w);
    }
    close_golden(&a);
    close_golden(&b);
}

static float *tensor(fixture *f, size_t i) {
    float *w = LQ_NEWN(float, lq_row_elems(&f->m->cat.rows[i]));
    OK(f, lq_model_read_f32(&f->ctx, f->m, &f->m->cat.rows[i], w));
    return w;
}

static void a_seed_decides_the_rotation(void **state) {
    (void)state;
    fixture f[3];
    for (int i = 0; i < 3; i++) open_rotated(&f[i], "llama", LQ_ROTATE_STREAM, i == 2);
    float *a = tensor(&f[0], 0), *b = tensor(&f[1], 0), *c = tensor(&f[2], 0);
    size_t bytes = lq_row_elems(&f[0].m->cat.rows[0]) * sizeof *a;
    assert_memory_equal(a, b, bytes);
    assert_int_not_equal(memcmp(a, c, bytes), 0);
    lq_free(a), lq_free(b), lq_free(c);
    for (int i = 0; i < 3; i++) close_golden(&f[i]);
}

static void rotation_survives_every_failing_allocation(void **state) {
    (void)state;
    fixture f;
    lq_status st = LQ_ERR_RESOURCE;
    open_golden(&f, "llama_tied");
    for (long n = 0; st == LQ_ERR_RESOURCE; n++) {
        lq_model_free(&f.m);
        OK(&f, lq_model_open(&f.ctx, f.src, false, &f.m));
        lq_mem_fail_after(n);
        st = lq_model_rotate(&f.ctx, f.m, LQ_ROTATE_STREAM | LQ_ROTATE_HEADS, 0);
        if (!st) st = lq_model_load(&f.ctx, f.m, 0, LQ_LOAD_F32);
        lq_mem_fail_after(-1);
        assert_true(st == LQ_OK || st == LQ_ERR_RESOURCE);
    }
    close_golden(&f);
}

static void config_keys_change_and_every_other_byte_stays(void **state) {
    (void)state;
    static const struct { const char *text, *changes, *want; } cases[] = {
        {"{\n \"a\": 1,\n \"t\" : true ,\n \"b\": [1, {\"t\": 2}]\n}\n", "{\"t\": false}", "{\n \"a\": 1,\n \"t\" : false ,\n \"b\": [1, {\"t\": 2}]\n}\n"},
        {"{\"a\": \"} , \\\"t\\\": 1\", \"t\": {\"x\": \"}\"}, \"b\": 2}", "{\"t\": null}", "{\"a\": \"} , \\\"t\\\": 1\", \"b\": 2}"},
        {"{\"t\": 1, \"b\": 2}", "{\"t\": null}", "{\"b\": 2}"},
        {"{ \"t\": 1 }", "{\"t\": null}", "{ }"},
        {"{\"a\": 1}", "{\"t\": false}", "{\"a\": 1,\n  \"t\": false\n}"},
        {"{}", "{\"t\": [1], \"u\": 2}", "{\n  \"t\": [\n    1\n  ],\n  \"u\": 2\n}"},
        {"{\"a\": 1}  ", "{\"t\": null}", "{\"a\": 1}  "},
        {"{\"t\": -1.5e3,\"u\":null}", "{\"t\": 2}", "{\"t\": 2,\"u\":null}"},
        {"{\"\\u0074\": 1}", "{\"t\": 2}", "{\n  \"t\": 2\n}\n"}, /* spelt with an escape: written anew */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *doc = json_loads(cases[i].text, 0, NULL), *changes = json_loads(cases[i].changes, 0, NULL);
        lq_buf out;
        assert_true(doc && changes);
        assert_int_equal(lq_config_splice(NULL, cases[i].text, strlen(cases[i].text), doc, changes, &out), LQ_OK);
        assert_string_equal(out.v, cases[i].want);
        lq_buf_free(&out);
        json_decref(doc);
        json_decref(changes);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(q_times_its_transpose_is_the_identity),
        cmocka_unit_test(what_was_turned_is_turned_back),
        cmocka_unit_test(a_rotated_model_computes_the_same_logits),
        cmocka_unit_test(what_cannot_be_rotated_is_refused_with_its_reason),
        cmocka_unit_test(tied_embeddings_are_untied_and_gains_become_one),
        cmocka_unit_test(rotated_moments_give_rotated_weights_the_same_energy),
        cmocka_unit_test(a_seed_decides_the_rotation),
        cmocka_unit_test(rotation_survives_every_failing_allocation),
        cmocka_unit_test(config_keys_change_and_every_other_byte_stays),
    };
    return cmocka_run_group_tests(tests, find_models, drop_models);
}
