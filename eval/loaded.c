/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#include "eval/loaded.h"

#include "calib/held.h"
#include "kernels/ref/ref.h"

#include <string.h>

lq_status lq_loaded_open(lq_ctx *ctx, const char *path, bool tokenizer, lq_loaded *out) {
    lq_status st = LQ_OK;
    double start = lq_now();
    *out = (lq_loaded){0};
    LQ_GO(lq_source_open(ctx, path, &out->src));
    LQ_GO(lq_model_open(ctx, out->src, false, &out->m));
    if (tokenizer) LQ_GO(lq_tokenizer_open(ctx, out->src, &out->tok));
    out->seconds = lq_now() - start;
done:
    if (st) lq_loaded_close(out);
    return st;
}

/* Plain C reads codes where they lie: it is what the packed kernels are judged against. */
static lq_load best_load(const lq_kernels *k) {
    bool own = k->packed_dequant != lq_packed_dequant_c && k->packed_gemv != lq_packed_gemv_c && k->packed_idot != lq_packed_idot_c;
    return own ? LQ_LOAD_PACKED : LQ_LOAD_STORED;
}

#define AHEAD "+ahead" /* behind a name: kernels begin early */

static lq_status find_device(lq_ctx *ctx, const char *name, const lq_device **out, bool *ahead) {
    const lq_device *all[] = {lq_device_cuda(), lq_device_emu()};
    *out = NULL;
    *ahead = false;
    if (!name || !strcmp(name, "cpu")) return LQ_OK;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const size_t n = strlen(all[i]->name);
        if (strncmp(all[i]->name, name, n) || (name[n] && strcmp(name + n, AHEAD))) continue;
        *out = all[i];
        *ahead = name[n];
    }
    return *out ? LQ_OK : lq_fail(ctx, LQ_ERR_USAGE, "--device %s: expected cpu, cuda or emu, the latter two perhaps with " AHEAD " behind", name);
}

lq_status lq_loaded_device(lq_ctx *ctx, const char *name) {
    const lq_device *d;
    bool ahead;
    LQ_TRY(find_device(ctx, name, &d, &ahead));
    if (d && !d->available()) return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "device %s: %s", d->name, d->describe());
    return !ahead || d->ahead(false) ? LQ_OK : lq_fail(ctx, LQ_ERR_UNSUPPORTED, "--device %s: kernels begin early from compute capability 9.0 on; this is %s", name, d->describe());
}

lq_status lq_loaded_read(lq_ctx *ctx, lq_loaded *l, const char *device) {
    const lq_device *d;
    bool ahead;
    double start = lq_now();
    LQ_TRY(find_device(ctx, device, &d, &ahead));
    if (d) LQ_TRY(lq_model_hold(ctx, l->m, d));
    if (ahead) lq_held_ahead(l->m->held, true);
    if (!d) LQ_TRY(lq_model_load_all(ctx, l->m, best_load(l->m->k)));
    l->seconds += lq_now() - start;
    return LQ_OK;
}

void lq_loaded_close(lq_loaded *l) {
    lq_tokenizer_free(&l->tok);
    lq_model_free(&l->m);
    lq_source_free(&l->src);
}

uint64_t lq_weight_row_bytes(const lq_model *m, const lq_row *r) {
    if (r->source < 0 || (size_t)r->source >= m->src->n) return 0;
    const lq_entry *e = &m->src->entries[r->source];
    uint64_t rows = lq_entry_rows(e);
    return e->ndim == 3 && rows ? e->bytes / rows * lq_row_rows(r) : e->bytes; /* a stack of experts holds several */
}

lq_weight lq_weight_of(const lq_model *m) {
    lq_weight w = {0};
    double bits = 0, elems = 0, q_bits = 0, q_elems = 0;
    for (size_t i = 0; i < m->cat.n; i++) {
        const lq_row *r = &m->cat.rows[i];
        w.params += lq_row_elems(r);
        const lq_entry *e = &m->src->entries[r->source];
        bool blocks = lq_dtypes[e->dtype].block > 1;
        if (blocks || r->dtype == LQ_NONE) {
            w.quantized++;
            q_bits += 8.0 * (double)(blocks ? lq_weight_row_bytes(m, r) : lq_entry_q_bytes(e));
            q_elems += (double)lq_row_elems(r);
        }
        if (!r->linear || r->slot.block < 0) continue;
        w.linears++;
        bits += 8.0 * (double)lq_weight_row_bytes(m, r);
        elems += (double)lq_row_elems(r);
    }
    for (size_t i = 0; i < m->src->n; i++) w.bytes += m->src->entries[i].bytes;
    w.bpw = q_elems > 0 ? q_bits / q_elems : elems > 0 ? bits / elems : 0;
    w.bpw_all = w.params ? 8.0 * (double)w.bytes / (double)w.params : 0;
    return w;
}
