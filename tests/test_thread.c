/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/thread.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

enum { MOST = 1000 };
typedef struct count { int hit[MOST]; int inner[MOST]; bool odd; } count;

static void add_inner(void *arg, size_t i) { ((int *)arg)[0] += i < 3; }
static void add(void *arg, size_t i) {
    count *c = arg;
    c->hit[i]++;
    if (lq_worker() < 0 || lq_worker() >= lq_threads()) c->odd = true;
    if (i % 64 == 0) lq_parallel_for(3, add_inner, &c->inner[i]); /* serial: the int needs no lock */
}

static bool runs_once_each(size_t n) {
    count c;
    memset(&c, 0, sizeof c);
    lq_parallel_for(n, add, &c);
    bool ok = !c.odd;
    for (size_t i = 0; i < MOST; i++) ok = ok && c.hit[i] == (i < n) && c.inner[i] == (i < n && i % 64 == 0 ? 3 : 0);
    return ok;
}

static void every_part_runs_once_at_any_thread_count(void **state) {
    (void)state;
    for (int round = 0; round < 2000; round++) {
        lq_threads_set(1 + round % 7);
        assert_true(runs_once_each((size_t)(round * 37 % MOST)));
    }
    lq_threads_set(0);
}

static void *caller(void *ok) {
    for (int round = 0; round < 500; round++) *(bool *)ok = *(bool *)ok && runs_once_each((size_t)(round * 11 % MOST));
    return NULL;
}

static void two_callers_do_not_meet(void **state) {
    (void)state;
    pthread_t t[3];
    bool ok[3] = {true, true, true};
    lq_threads_set(3);
    for (int i = 0; i < 3; i++) assert_int_equal(pthread_create(&t[i], NULL, caller, &ok[i]), 0);
    for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
    lq_threads_set(0);
    assert_true(ok[0] && ok[1] && ok[2]);
}

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void idle_workers_sleep_and_wake_again(void **state) {
    (void)state;
    lq_threads_set(2);
    for (int round = 0; round < 20; round++) {
        assert_true(runs_once_each(MOST - 1));
        double start = cpu_seconds();
        nanosleep(&(struct timespec){0, 10000000}, NULL);
        assert_true(cpu_seconds() - start < 2e-3);
    }
    lq_threads_set(0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_part_runs_once_at_any_thread_count), cmocka_unit_test(two_callers_do_not_meet),
                                       cmocka_unit_test(idle_workers_sleep_and_wake_again)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
