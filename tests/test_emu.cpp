/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What the emulation makes of kernels that begin before those in front of them have run: right ones give what they always do, others are seen. */
#define LQ_EMU
#include "kernels/cuda/cu.h"
#include "kernels/cuda/launch.h"

#include <cstring>

extern "C" {
#include "kernels/cuda/cuda.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
}

enum { N = 64 };

__global__ void write(int *to, int from) {
    lq_begin();
    to[threadIdx.x] = from + (int)threadIdx.x;
}
__global__ void copy(int *to, const int *from) {
    lq_begin();
    to[threadIdx.x] = from[threadIdx.x];
}
__global__ void load_first(int *to, const int *from) {
    const int v = from[threadIdx.x];
    lq_wait_before();
    to[threadIdx.x] = v;
}
__global__ void store_first(int *to, int from) {
    to[threadIdx.x] = from + (int)threadIdx.x;
    lq_wait_before();
}
__global__ void some_wait(int *to) {
    if (threadIdx.x % 32 == 7) return;
    lq_wait_before();
    to[threadIdx.x] = 0;
}

struct memory { const lq_device *d; int *a, *b, *c; };

static memory memory_of(bool ahead) {
    const lq_device *d = lq_device_emu();
    const size_t n = N * sizeof(int);
    memory m = {d, (int *)d->alloc(n), (int *)d->alloc(n), (int *)d->alloc(n)};
    assert_true(m.a && m.b && m.c && d->ahead(ahead));
    return m;
}

static void drop(const memory &m) {
    m.d->release(m.a), m.d->release(m.b), m.d->release(m.c);
    m.d->ahead(false);
}

template <typename Kernel, typename... Args> static void queue(Kernel kernel, Args... args) {
    const char *why = lq_launch("kernel", kernel, dim3(1), dim3(N), 0, args...);
    if (why) fail_msg("%s", why);
}

static bool holds(const memory &m, const int *p, int from) {
    int got[N];
    bool all = true;
    assert_true(m.d->get(got, p, sizeof got));
    for (int i = 0; i < N; i++) all = all && got[i] == from + i;
    return all;
}

static void who_waits_sees_what_was_in_front(void **) {
    for (int ahead = 0; ahead < 2; ahead++) {
        const memory m = memory_of(ahead);
        for (int i = 0; i < 9; i++) {
            queue(write, m.a, 100 * i);
            queue(copy, m.b, (const int *)m.a);
            queue(copy, m.c, (const int *)m.b);
        }
        assert_true(holds(m, m.c, 800));
        drop(m);
    }
}

static void who_loads_before_waiting_sees_what_was_there_before(void **) {
    for (int ahead = 0; ahead < 2; ahead++) {
        const memory m = memory_of(ahead);
        queue(write, m.a, 100);
        queue(load_first, m.b, (const int *)m.a);
        assert_int_equal(holds(m, m.b, 100), !ahead);
        queue(write, m.a, 200); /* not the one right in front */
        queue(write, m.c, 300);
        queue(load_first, m.b, (const int *)m.a);
        assert_int_equal(holds(m, m.b, 200), !ahead);
        drop(m);
    }
}

static void who_stores_before_waiting_spoils_what_is_still_read(void **) {
    for (int ahead = 0; ahead < 2; ahead++) {
        const memory m = memory_of(ahead);
        queue(write, m.a, 100);
        queue(copy, m.b, (const int *)m.a);
        queue(write, m.c, 300);
        assert_true(holds(m, m.a, 100));
        queue(copy, m.b, (const int *)m.a);
        queue(store_first, m.a, 500);
        assert_int_equal(holds(m, m.b, 100), !ahead);
        drop(m);
    }
}

static void who_ends_without_waiting_is_said(void **) {
    for (int ahead = 0; ahead < 2; ahead++) {
        const memory m = memory_of(ahead);
        const char *why = lq_launch("some wait", some_wait, dim3(1), dim3(N), 0, m.a);
        if (!why) why = m.d->wait();
        assert_non_null(why);
        assert_non_null(strstr(why, "some wait, block 0,0,0, thread "));
        assert_non_null(strstr(why, "has not waited for the kernel in front"));
        drop(m);
    }
}

/* A recorded pass keeps what was said when it was recorded. */
static void a_recorded_pass_begins_early_again(void **) {
    const memory m = memory_of(true);
    void *pass = nullptr;
    assert_null(m.d->record());
    queue(write, m.a, 100);
    queue(load_first, m.b, (const int *)m.a);
    assert_null(m.d->end(&pass));
    m.d->ahead(false);
    assert_null(m.d->replay(pass));
    assert_false(holds(m, m.b, 100));
    assert_null(m.d->replay(pass));
    assert_true(holds(m, m.b, 100)); /* what the first one wrote */
    m.d->forget(pass);
    drop(m);
}

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(who_waits_sees_what_was_in_front),
        cmocka_unit_test(who_loads_before_waiting_sees_what_was_there_before),
        cmocka_unit_test(who_stores_before_waiting_spoils_what_is_still_read),
        cmocka_unit_test(who_ends_without_waiting_is_said),
        cmocka_unit_test(a_recorded_pass_begins_early_again),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
