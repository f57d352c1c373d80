/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* A prompt of random ids is run some times (time to its first token), then decoded on: one step after the other with one sequence, and
 * with several that share each pass over the weights. Memory is read for comparison before, between and after. */
#define _DEFAULT_SOURCE
#include "eval/bench.h"

#include "calib/held.h"
#include "core/num.h"
#include "core/os.h"
#include "eval/bandwidth.h"
#include "eval/divergence.h"

#include <stdlib.h>
#include <string.h>

typedef struct bench {
    const lq_model *m;
    const lq_bench_opts *o;
    lq_bench *out;
    lq_bandwidth bw;
    lq_state *state[LQ_BATCH];
    uint32_t most;             /* sequences at once */
    int32_t *ids;              /* [ctx] */
    float *hidden, *logits;    /* [ctx or batch][hidden]; [batch][vocab] */
    double *seconds;           /* [reps] */
    double clock[LQ_CLOCKS], head;
} bench;

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void shares(const bench *b, lq_bench_row *r, uint32_t reps) {
    for (int i = 0; i < LQ_CLOCKS; i++) r->clock[i] = b->clock[i] / reps;
    r->head = b->head / reps + r->clock[LQ_CLOCK_HEAD];
    r->clock[LQ_CLOCK_HEAD] = 0;
}

static void clock_from(bench *b) {
    memset(b->clock, 0, sizeof b->clock);
    b->head = 0;
}

static void summary(bench *b, lq_bench_row *r, uint32_t reps, double used) {
    double tokens = (double)reps * (r->decode ? r->batch : r->ctx);
    qsort(b->seconds, reps, sizeof *b->seconds, by_value);
    r->reps = reps;
    r->least = b->seconds[0];
    r->median = reps % 2 ? b->seconds[reps / 2] : (b->seconds[reps / 2 - 1] + b->seconds[reps / 2]) / 2;
    r->most = b->seconds[(99 * (size_t)reps + 99) / 100 - 1];
    r->joules = used < 0 ? -1 : used / tokens;
    if (!b->m->held) shares(b, r, reps);
    lq_bandwidth_try(&b->bw);
}

static double joules(const bench *b) { return !b->m->held ? lq_joules() : b->m->held->d->joules ? b->m->held->d->joules() : -1; }

static double used_since(const bench *b, double before) {
    double now = joules(b);
    return before < 0 || now < before ? -1 : now - before; /* it wraps */
}

static lq_status head(lq_ctx *ctx, bench *b, const float *hidden, uint32_t n, int32_t *next) {
    double start = lq_now();
    LQ_TRY(lq_logits(ctx, b->m, hidden, n, b->logits));
    for (uint32_t i = 0; i < n; i++) next[i] = (int32_t)lq_argmax(b->logits + (size_t)i * b->m->par.vocab, b->m->par.vocab);
    b->head += lq_now() - start;
    return LQ_OK;
}

static lq_status prompt(lq_ctx *ctx, bench *b, uint32_t n, int32_t *next) {
    lq_state_reset(b->state[0]);
    LQ_TRY(lq_forward(ctx, b->state[0], b->ids, n, b->hidden));
    return head(ctx, b, b->hidden + (size_t)(n - 1) * b->m->par.hidden, 1, next);
}

static lq_status bench_prompt(lq_ctx *ctx, bench *b, uint32_t n) {
    lq_bench_row *r = &b->out->row[b->out->n++];
    int32_t next;
    *r = (lq_bench_row){.ahead = b->m->held && b->m->held->ahead, .ctx = n, .batch = 1};
    LQ_TRY(prompt(ctx, b, n < 16 ? n : 16, &next)); /* scratch is sized, threads are awake */
    clock_from(b);
    double before = joules(b);
    for (uint32_t i = 0; i < b->o->prompts; i++) {
        double start = lq_now();
        LQ_TRY(prompt(ctx, b, n, &next));
        b->seconds[i] = lq_now() - start;
        LQ_TRY(lq_check_cancel(ctx));
    }
    summary(b, r, b->o->prompts, used_since(b, before));
    if (!b->m->held) return LQ_OK;
    clock_from(b);
    lq_state_clock(b->state[0], b->clock);
    lq_status st = prompt(ctx, b, n, &next);
    lq_state_clock(b->state[0], NULL);
    shares(b, r, 1);
    return st;
}

static lq_status step(lq_ctx *ctx, bench *b, uint32_t n, int32_t *next) {
    if (b->m->held) return lq_held_next(ctx, b->state, next, n, next);
    LQ_TRY(lq_forward_batch(ctx, b->state, next, n, b->hidden));
    return head(ctx, b, b->hidden, n, next);
}

static uint64_t cache_bytes(const bench *b, uint32_t ctx) { /* of one sequence; windows are not counted off */
    return lq_state_kv_bytes(b->state[0]) / lq_state_room(b->state[0]) * ctx;
}

static uint64_t kernels_so_far(const bench *b) { return b->m->held && b->m->held->d->launches ? b->m->held->d->launches() : 0; }

enum { WARM = 2, CLOCKED = 3 };

/* A device tells the time of its kernels in steps of their own, which are not what is timed: marks stand between them. */
static lq_status device_shares(lq_ctx *ctx, bench *b, uint32_t n, int32_t *next, lq_bench_row *r) {
    lq_status st = LQ_OK;
    lq_state_clock(b->state[0], b->clock);
    for (uint32_t i = 0; i < WARM + CLOCKED && !st; i++) {
        if (i == WARM) clock_from(b);
        st = step(ctx, b, n, next);
    }
    lq_state_clock(b->state[0], NULL);
    shares(b, r, CLOCKED);
    return st;
}

static lq_status bench_decode(lq_ctx *ctx, bench *b, uint32_t at, uint32_t n) {
    lq_bench_row *r = &b->out->row[b->out->n++];
    int32_t next[LQ_BATCH];
    *r = (lq_bench_row){.decode = true, .ahead = b->m->held && b->m->held->ahead, .ctx = at, .batch = n};
    for (uint32_t i = 0; i < n; i++) {
        next[i] = b->ids[i % at];
        if (i) LQ_TRY(lq_state_copy(ctx, b->state[i], b->state[0]));
    }
    for (uint32_t i = 0; i < WARM; i++) {
        uint64_t before = kernels_so_far(b);
        LQ_TRY(step(ctx, b, n, next));
        if (!i) r->kernels = (uint32_t)(kernels_so_far(b) - before); /* later ones may be recorded */
    }
    clock_from(b);
    double before = joules(b);
    for (uint32_t i = 0; i < b->o->steps; i++) {
        double start = lq_now();
        LQ_TRY(step(ctx, b, n, next));
        b->seconds[i] = lq_now() - start;
        LQ_TRY(lq_check_cancel(ctx));
    }
    r->bytes = b->out->weights + n * cache_bytes(b, at + WARM + b->o->steps / 2);
    summary(b, r, b->o->steps, used_since(b, before));
    if (b->m->held) LQ_TRY(device_shares(ctx, b, n, next, r));
    lq_state_rewind(b->state[0], at);
    return LQ_OK;
}

static lq_status room_for(lq_ctx *ctx, bench *b, uint32_t n) {
    const lq_model *m = b->m;
    uint32_t reps = b->o->steps > b->o->prompts ? b->o->steps : b->o->prompts, rows = n > b->most ? n : b->most;
    lq_rng rng;
    lq_rng_seed(&rng, b->o->seed, 3);
    b->ids = LQ_NEWN(int32_t, n);
    b->hidden = LQ_NEWN(float, (size_t)rows * m->par.hidden);
    b->logits = LQ_NEWN(float, (size_t)b->most * m->par.vocab);
    b->seconds = LQ_NEWN(double, reps);
    if (!b->ids || !b->hidden || !b->logits || !b->seconds) return lq_oom(ctx, (size_t)rows * m->par.hidden * sizeof(float));
    for (uint32_t i = 0; i < n; i++) b->ids[i] = (int32_t)lq_rng_below(&rng, m->par.vocab);
    return LQ_OK;
}

static void leave(bench *b) {
    for (uint32_t i = 0; i < b->most; i++) lq_state_free(&b->state[i]);
    lq_free(b->ids);
    lq_free(b->hidden);
    lq_free(b->logits);
    lq_free(b->seconds);
    b->ids = NULL;
    b->hidden = b->logits = NULL;
    b->seconds = NULL;
}

/* Can kernels begin early (or not)? Then they do from here on. */
static bool begins(bench *b, bool ahead) { return b->m->held ? lq_held_ahead(b->m->held, ahead) || !ahead : !ahead; }

static lq_status bench_context(lq_ctx *ctx, bench *b, uint32_t want) {
    const bool before = b->m->held && b->m->held->ahead;
    uint32_t behind = b->o->steps + WARM + (b->m->held ? WARM + CLOCKED : 0), n = want;
    lq_status st = LQ_OK;
    if ((uint64_t)n + behind > b->m->par.max_ctx) {
        n = b->m->par.max_ctx > behind ? b->m->par.max_ctx - behind : 1;
        lq_log(ctx, LQ_LOG_INFO, "a context of %u, the model has room for no more (%u were asked for)", n, want);
    }
    LQ_GO(lq_states_new(ctx, b->m, n + behind, &b->o->kv, b->most, b->state));
    LQ_GO(room_for(ctx, b, n));
    if (!b->m->held) lq_state_clock(b->state[0], b->clock); /* a device is not done when an operation returns */
    LQ_GO(bench_prompt(ctx, b, n));
    for (uint32_t i = 0; i < b->o->n_batch; i++)
        for (int ahead = 0; ahead < 2; ahead++)
            if (begins(b, ahead)) LQ_GO(bench_decode(ctx, b, n, b->o->batch[i]));
done:
    begins(b, before);
    leave(b);
    return st;
}

/* ---- what a device's memory gives ---- */

static double moved(const lq_device *d, void *to, const void *from, uint64_t n) {
    if (d->wait()) return -1;
    double start = lq_now();
    return d->ops->move(to, from, n) || d->wait() ? -1 : lq_now() - start;
}

/* loop raised to what n bytes read, then copied, show; the seconds of the shorter, 0 where the device has no room or no such kernel. */
static double try_move(const lq_device *d, uint64_t n, double loop[2]) {
    enum { TRIES = 4 };
    void *from = d->alloc(n), *to = d->alloc(n);
    double best[2] = {1e9, 1e9};
    bool ok = from && to;
    for (int i = 0; ok && i < 2 * TRIES; i++) {
        double t = moved(d, i % 2 ? to : NULL, from, n);
        ok = t > 0;
        if (ok && t < best[i % 2]) best[i % 2] = t;
    }
    d->release(from);
    d->release(to);
    for (int i = 0; ok && i < 2; i++) loop[i] = (double)(i ? 2 * n : n) / best[i];
    return !ok ? 0 : best[0] < best[1] ? best[0] : best[1];
}

/* Sizes double until a move takes so long that its start does not count, far beyond any cache: the last one is what is kept. */
static void device_roof(const lq_device *d, double loop[2]) {
    const uint64_t most = (uint64_t)4 << 30;
    double got[2] = {0, 0}, t = 1e-9;
    for (uint64_t n = 4 << 20; n <= most && t > 0 && t < 2e-3; n *= 2) t = try_move(d, n, got);
    for (int i = 0; i < 2; i++) loop[i] = got[i] > loop[i] ? got[i] : loop[i];
}

static void read_speed(bench *b) {
    lq_bench *o = b->out;
    const lq_held *h = b->m->held;
    if (h && h->d->ops->move) device_roof(h->d, o->loop);
    if (!h) memcpy(o->loop, b->bw.loop, sizeof o->loop);
    o->read = o->loop[0] > o->loop[1] ? o->loop[0] : o->loop[1];
}

lq_status lq_bench_run(lq_ctx *ctx, const lq_model *m, const lq_bench_opts *o, lq_bench *out) {
    bench b = {.m = m, .o = o, .out = out, .most = 1};
    lq_status st = LQ_OK;
    *out = (lq_bench){.weights = lq_model_step_bytes(m), .load = {-1, -1, -1}};
    for (uint32_t i = 0; i < o->n_batch; i++) b.most = o->batch[i] > b.most ? o->batch[i] : b.most;
    if (b.most > LQ_BATCH || o->n_ctx > LQ_BENCH_MOST || o->n_batch > LQ_BENCH_MOST || !o->steps || !o->prompts)
        return lq_fail(ctx, LQ_ERR_INTERNAL, "a benchmark of %u sequences, %u contexts", b.most, o->n_ctx);
    LQ_GO(lq_bandwidth_init(ctx, &b.bw));
    lq_bandwidth_try(&b.bw);
    if (m->held) read_speed(&b);
    for (uint32_t i = 0; i < o->n_ctx; i++) LQ_GO(bench_context(ctx, &b, o->ctx[i]));
    read_speed(&b);
    for (uint32_t i = 0; i < out->n; i++) out->row[i].bandwidth = out->read <= 0 ? 0 : (double)out->row[i].bytes / out->row[i].least / out->read;
    if (getloadavg(out->load, 3) != 3) out->load[0] = -1;
done:
    lq_bandwidth_free(&b.bw);
    return st;
}
