/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* lquant convert: a model in one format as another checkpoint, codes and all, or as floats. */
#include "core/verb.h"
#include "calib/rotate.h"
#include "quant/export.h"
#include "quant/plan.h"
#include "quant/rotate_choice.h"

#include <string.h>

typedef struct args {
    lq_common common;
    const char *format, *pre;
    lq_strlist target, override_kv;
    int lossy, dtype, overwrite, rotate, dequantize;
    int64_t rotate_seed;
    uint64_t shard_size;
} args;

static const lq_opt options[] = {
    {"format", NULL, LQ_OPT_STRING, offsetof(args, format), "F[,F...]", NULL, NULL, 0, 0, 0, "one of `lquant list formats`; several go to OUT/F each; default: OUT's suffix"},
    {"pre", NULL, LQ_OPT_STRING, offsetof(args, pre), "NAME", NULL, NULL, 0, 0, 0, "gguf: llama.cpp's pre-tokenizer when the tokenizer's is not recognised"},
    {"override-kv", NULL, LQ_OPT_LIST, offsetof(args, override_kv), "KEY=TYPE:VALUE", NULL, NULL, 0, 0, 0, "gguf: another value of a key; TYPE: int, float, bool, str; repeatable"},
    {"target", NULL, LQ_OPT_LIST, offsetof(args, target), "RUNTIME[,tp=N]", NULL, NULL, 0, 0, 0, "refuse what a runtime will not load (lquant list targets); repeatable"},
    {"lossy", NULL, LQ_OPT_SET, offsetof(args, lossy), NULL, NULL, NULL, 0, 0, 1, "go on where a weight has no exact place, and say what it costs"},
    {"dequantize", NULL, LQ_OPT_CHOICE, offsetof(args, dequantize), NULL, NULL, "no|" LQ_FLOAT_CHOICES, 0, 0, 0, "every weight as its codes say, an ordinary folder of this float type"},
    {"dtype", NULL, LQ_OPT_CHOICE, offsetof(args, dtype), NULL, "auto", "auto|" LQ_FLOAT_CHOICES, 0, 0, 0, "type of float tensors in OUT; auto: as stored, bf16 for decoded ones"},
    {"rotate", NULL, LQ_OPT_CHOICE, offsetof(args, rotate), NULL, "none", LQ_ROTATION_FIXED, 0, 0, 0, "spread outliers over all channels; the function stays the same (floats only)"},
    {"rotate-seed", NULL, LQ_OPT_INT, offsetof(args, rotate_seed), "N", "0", NULL, 0, 1e15, 0, "another random rotation"},
    {"shard-size", "max-shard-size,ss", LQ_OPT_SIZE, offsetof(args, shard_size), "SIZE", "5GB", NULL, 0, 0, 0, "largest file"},
    {"overwrite", NULL, LQ_OPT_SET, offsetof(args, overwrite), NULL, NULL, NULL, 0, 0, 1, "replace OUT once the new one is complete"},
    {0}};

/* ---- telling ---- */

static void print_kind(const lq_export_kind *k) {
    bool same = !strcmp(k->from, k->to);
    printf("  %5zu x %s%s%s", k->tensors, k->from, same ? "" : " -> ", same ? "" : k->to);
    if (!k->loss.changed) printf(": %s", k->loss.weights ? "exact" : "as it is");
    else
        printf(": %s%.2f %% of the weights differ, relative rms %.3g, largest %.3g", k->anew ? "codes chosen anew, " : "", 100.0 * (double)k->loss.changed / (double)k->loss.weights,
               lq_loss_rms(&k->loss), k->loss.max_abs);
    printf("%s%s\n", k->act && *k->act ? "; " : "", k->act ? k->act : "");
}

static void print_one(const lq_exported *e, const char *name) {
    const lq_loss *l = &e->loss;
    printf("%s: format %s, %llu weights, %.1f MB, %zu matrices on codes; ", name, e->format->name, (unsigned long long)l->weights, (double)e->bytes / 1e6, e->quantized);
    if (!l->changed) printf("every one exact\n");
    else
        printf("%.1f %% were rounded, relative rms error %.3g, largest %.3g in %s\n", 100.0 * (double)l->changed / (double)l->weights, lq_loss_rms(l), l->max_abs, e->worst);
    for (size_t i = 0; i < e->n_kinds; i++) print_kind(&e->kinds[i]);
}

static json_t *kind_json(const lq_export_kind *k) {
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:f, s:f, s:b}", "from", k->from, "to", k->to, "tensors", (json_int_t)k->tensors, "weights", (json_int_t)k->loss.weights, "changed",
                     (json_int_t)k->loss.changed, "relative_rms", lq_loss_rms(&k->loss), "max_error", k->loss.max_abs, "anew", (int)k->anew);
}

static json_t *one_json(const lq_exported *e, const char *name) {
    json_t *kinds = json_array();
    for (size_t i = 0; i < e->n_kinds; i++) json_array_append_new(kinds, kind_json(&e->kinds[i]));
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:b, s:I, s:f, s:f, s:s, s:o}", "format", e->format->name, "path", name, "bytes", (json_int_t)e->bytes, "quantized",
                     (json_int_t)e->quantized, "weights", (json_int_t)e->loss.weights, "exact", e->loss.changed == 0, "rounded", (json_int_t)e->loss.changed, "max_error",
                     e->loss.max_abs, "relative_rms", lq_loss_rms(&e->loss), "worst", e->worst, "kinds", kinds);
}

static lq_status print_results(lq_ctx *ctx, const args *a, const lq_outputs *o, const char *out, const lq_exported *told) {
    json_t *list = json_array(), *v = json_pack("{s:i, s:s, s:o}", "schema", 1, "out", lq_path_base(out), "outputs", list);
    for (size_t i = 0; i < o->n; i++) {
        char *name = lq_outputs_name(o, i, out);
        if (name && !a->common.json) print_one(&told[i], name);
        if (name) json_array_append_new(list, one_json(&told[i], name));
        lq_free(name);
    }
    lq_buf text = {0};
    lq_status st = !a->common.json ? LQ_OK : v ? lq_json_dump(ctx, v, &text) : lq_oom(ctx, 512);
    if (text.v) printf("%s", text.v);
    lq_buf_free(&text);
    json_decref(v);
    return st;
}

/* ---- the road ---- */

static lq_status choose(lq_ctx *ctx, const args *a, const char *out, lq_outputs *o) {
    if (a->dequantize && a->format) return lq_fail(ctx, LQ_ERR_USAGE, "--dequantize is --format safetensors; --format %s asks for another", a->format);
    LQ_TRY(lq_outputs_parse(ctx, a->dequantize ? "safetensors" : a->format, out, o));
    if (!o->n) lq_outputs_one(o, lq_format_by_name("safetensors"));
    for (size_t i = 0; i < o->n && a->rotate; i++)
        if (strcmp(o->format[i]->name, "safetensors")) return lq_fail(ctx, LQ_ERR_USAGE, "--rotate turns floats; format %s would keep codes", o->format[i]->name);
    return LQ_OK;
}

static json_t *about(const args *a) {
    json_t *v = json_object();
    if (v && a->lossy) json_object_set_new(v, "lossy", json_true());
    if (v && a->dtype) json_object_set_new(v, "dtype", json_string(lq_dtypes[lq_float_choice(a->dtype - 1)].name));
    if (v && a->rotate) json_object_set_new(v, "rotation", json_pack("{s:s, s:I}", "kind", a->rotate == LQ_ROTATION_HEADS ? "heads" : "hadamard", "seed", (json_int_t)a->rotate_seed));
    return v;
}

static lq_status convert(lq_ctx *ctx, const args *a, const char *in, const char *out) {
    lq_source *src = NULL;
    lq_model *m = NULL;
    lq_job job = {0};
    lq_outputs outs;
    lq_exported told[LQ_OUTPUTS] = {0};
    json_t *keys = about(a);
    lq_status st;
    lq_targets targets;
    LQ_GO(lq_targets_parse(ctx, &a->target, &targets));
    LQ_GO(choose(ctx, a, out, &outs));
    LQ_GO(lq_source_open(ctx, in, &src));
    LQ_GO(lq_model_open(ctx, src, !a->rotate, &m));
    if (a->rotate) LQ_GO(lq_rotation_set(ctx, m, a->rotate, a->rotate_seed));
    LQ_GO(lq_job_open(ctx, &job, in, out, "convert", LQ_RESUME_NEVER, a->overwrite));
    lq_export_opts o = {.lossy = a->lossy, .dtype = a->dtype ? lq_float_choice(a->dtype - 1) : LQ_NONE, .shard_size = a->shard_size, .pre = a->pre, .override_kv = &a->override_kv, .targets = targets, .about = keys};
    st = lq_export(ctx, src, m, &outs, &job, &o, told);
    if (!st) st = lq_outputs_finish(ctx, &outs, &job);
    if (st) {
        lq_ctx quiet = {0};
        lq_remove_tree(&quiet, job.partial); /* nothing worth resuming */
        goto done;
    }
    st = print_results(ctx, a, &outs, out, told);
done:
    for (size_t i = 0; i < LQ_OUTPUTS; i++) lq_exported_free(&told[i]);
    json_decref(keys);
    lq_job_close(&job);
    lq_model_free(&m);
    lq_source_free(&src);
    return st;
}

static void help(const lq_optset *sets) {
    printf("lquant convert [flags] IN OUT\n"
           "  A checkpoint in another format, IN of any tool. Codes are carried over, never chosen again: every weight keeps its\n"
           "  value or the tensor is refused by name (exit 4); --lossy takes the nearest place and prints the loss.\n\n");
    lq_opts_help(stdout, sets);
    printf("\nexamples:\n"
           "  lquant convert --format gptq,lqt model-awq out\n"
           "  lquant convert --dequantize f32 model-4bit model-decoded\n"
           "  lquant convert --dtype f16 model.gguf model-hf\n");
}

static lq_status run_convert(lq_ctx *ctx, const char *name, int argc, char **argv) {
    args a = {0};
    const char *pos[2];
    size_t n = 0;
    const lq_optset sets[] = {{options, &a, "convert"}, {lq_common_options, &a.common, NULL}, {0}};
    (void)name;
    lq_status st = lq_verb_begin(ctx, sets, &a.common, argc, argv, pos, 2, &n, help);
    if (!st && !a.common.help && n < 2) st = lq_fail(ctx, LQ_ERR_USAGE, "lquant convert IN OUT: %s is missing", n ? "OUT" : "IN");
    if (a.dequantize) a.dtype = a.dequantize;
    if (!st && !a.common.help) st = convert(ctx, &a, pos[0], pos[1]);
    lq_opts_free(sets);
    return st;
}

const lq_verb lq_verb_convert = {"convert", NULL, "IN OUT", "a checkpoint in another format, or as floats, without quantizing again", run_convert};
