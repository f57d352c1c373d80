/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* bitsandbytes folders: written and read back bit for bit, against files bitsandbytes saved, and damaged in every way we know. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "folder_test.h"
#include "core/thread.h"

static lq_scheme table(lq_lut_id id, uint32_t block, bool nested) {
    lq_scheme s = {.grid = {LQ_GRID_LUT, 4, 1, (int32_t)id}, .scale = {.dtype = LQ_F32, .tile_r = LQ_FLAT, .tile_c = block}};
    if (nested) s.scale.dtype = LQ_U8, s.scale.parent = LQ_F32, s.scale.span = 256;
    return s;
}

static lq_scheme int8(float outlier) {
    return (lq_scheme){.grid = {LQ_GRID_INT, 8, 1, 128}, .scale = {.dtype = LQ_F32, .tile_r = 1},
                       .act = {.kind = LQ_ACT_DYNAMIC, .dtype = LQ_I8, .outlier = outlier, .scope = outlier > 0}};
}

/* Any map will do for the 8-bit scales: it is stored. */
static void make(lq_qtensor *q, const lq_scheme *s, uint32_t rows, uint32_t cols) {
    lq_rng rng;
    lq_rng_seed(&rng, rows, cols);
    assert_int_equal(lq_qtensor_init(NULL, q, s, (lq_slot){0, LQ_R_UP, -1}, rows, cols), LQ_OK);
    random_codes(q, rows);
    size_t n = lq_plane_count(&s->scale, rows, cols);
    if (s->scale.dtype == LQ_U8) {
        float *lut = lq_arena_alloc(q->mem, 256 * sizeof *lut);
        for (int i = 0; i < 256; i++) lut[i] = ((float)i - 127) / 128;
        q->scale.lut = lut;
        q->scale.offset = 0.123456789f;
        for (size_t i = 0; i < (n + 255) / 256; i++) ((float *)q->scale.parent)[i] = 0.01f + 0.1f * lq_rng_unit(&rng);
        for (size_t i = 0; i < n; i++) ((uint8_t *)q->scale.v)[i] = (uint8_t)lq_rng_u32(&rng);
        return;
    }
    for (size_t i = 0; i < n; i++) ((float *)q->scale.v)[i] = s->grid.kind == LQ_GRID_INT ? (0.01f + lq_rng_unit(&rng)) / 127 : lq_rng_unit(&rng);
}

static void every_type_and_block_size_round_trips(void **state) {
    (void)state;
    static const uint32_t shapes[][2] = {{1, 1}, {3, 7}, {5, 64}, {9, 33}, {16, 128}, {96, 257}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        lq_qtensor q;
        for (uint32_t block = 32; block <= 4096; block *= 2)
            for (int kind = 0; kind < 4; kind++) {
                lq_scheme s = table(kind & 1 ? LQ_LUT_FP4 : LQ_LUT_NF4, block, kind > 1);
                make(&q, &s, shapes[i][0], shapes[i][1]);
                round_trip("bitsandbytes", &q, LQ_BF16);
                lq_qtensor_free(&q);
            }
        for (int k = 0; k < 3; k++) {
            lq_scheme s = int8((float)k * 3);
            make(&q, &s, shapes[i][0], shapes[i][1]);
            round_trip("bitsandbytes", &q, LQ_F32);
            lq_qtensor_free(&q);
        }
    }
}

int main(void) {
    lq_threads_set(1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_type_and_block_size_round_trips, fresh_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
