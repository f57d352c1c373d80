/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* lquant convert: a model in one format to an ordinary Hugging Face folder of one float type. */
#include "core/num.h"
#include "core/verb.h"
#include "calib/rotate.h"
#include "quant/gguf_out.h"
#include "quant/job.h"
#include "quant/manifest.h"
#include "quant/pipeline.h"
#include "quant/plan.h"
#include "quant/sidecars.h"

#include <math.h>
#include <string.h>

typedef struct args {
    lq_common common;
    int dtype, overwrite, rotate, dequantize;
    int64_t rotate_seed;
    uint64_t shard_size;
    const char *format, *pre;
    const lq_format *to;
} args;

static const lq_opt options[] = {
    {"dtype", NULL, LQ_OPT_CHOICE, offsetof(args, dtype), NULL, "bf16", LQ_FLOAT_CHOICES, 0, 0, 0, "type of every tensor in OUT"},
    {"format", NULL, LQ_OPT_STRING, offsetof(args, format), "NAME", NULL, NULL, 0, 0, 0, "safetensors or gguf; default: by OUT's suffix, else safetensors"},
    {"pre", NULL, LQ_OPT_STRING, offsetof(args, pre), "NAME", NULL, NULL, 0, 0, 0, "gguf: llama.cpp's pre-tokenizer when the tokenizer's is not recognised"},
    {"dequantize", NULL, LQ_OPT_CHOICE, offsetof(args, dequantize), NULL, NULL, "no|" LQ_FLOAT_CHOICES, 0, 0, 0, "the same for a quantized IN (GPTQ, lqt): every weight as its codes say"},
    {"rotate", NULL, LQ_OPT_CHOICE, offsetof(args, rotate), NULL, "none", LQ_ROTATION_FIXED, 0, 0, 0, "spread outliers over all channels; the function stays the same"},
    {"rotate-seed", NULL, LQ_OPT_INT, offsetof(args, rotate_seed), "N", "0", NULL, 0, 1e15, 0, "another random rotation"},
    {"shard-size", "max-shard-size,ss", LQ_OPT_SIZE, offsetof(args, shard_size), "SIZE", "5GB", NULL, 0, 0, 0, "largest file"},
    {"overwrite", NULL, LQ_OPT_SET, offsetof(args, overwrite), NULL, NULL, NULL, 0, 0, 1, "replace OUT once the new one is complete"},
    {0}};

typedef struct loss { double worst, square, energy; char where[256]; uint64_t rounded, n; } loss;

static void measure(loss *l, const lq_row *row, const float *x, const void *stored, float *again, uint64_t n) {
    lq_dtype_decode(row->out_dtype, stored, again, n);
    for (uint64_t i = 0; i < n; i++) {
        double e = fabs((double)x[i] - again[i]);
        l->square += e * e;
        l->energy += (double)x[i] * x[i];
        l->rounded += e > 0;
        if (e > l->worst) {
            l->worst = e;
            snprintf(l->where, sizeof l->where, "%s", row->name);
        }
    }
    l->n += n;
}

static lq_status put_row(lq_ctx *ctx, lq_model *m, lq_sink *sink, const lq_row *row, loss *l) {
    uint64_t n = lq_row_elems(row), bytes = n * lq_dtypes[row->out_dtype].bytes;
    float *x = lq_calloc(n, 4), *again = lq_calloc(n, 4);
    void *out = lq_alloc(bytes);
    lq_status st = x && again && out ? lq_model_read_f32(ctx, m, row, x) : lq_oom(ctx, bytes);
    if (!st) {
        lq_dtype_encode(row->out_dtype, x, out, n);
        measure(l, row, x, out, again, n);
        for (uint64_t i = 0; i < n && !st; i++)
            if (!isfinite(again[i])) st = lq_fail(ctx, LQ_ERR_UNSUPPORTED, "%s: %g is past the range of %s; use --dtype bf16 or f32", row->name, (double)x[i], lq_dtypes[row->out_dtype].name);
    }
    if (!st) st = lq_sink_put_fp(sink, row, out, bytes);
    lq_free(x);
    lq_free(again);
    lq_free(out);
    return st;
}

/* What it was made from, and which keys of config.json are not the source's. */
static lq_status put_manifest(lq_ctx *ctx, lq_source *src, const args *a, const json_t *changes, lq_sink *sink) {
    lq_buf text = {0};
    lq_status st;
    json_t *inputs = lq_manifest_inputs(ctx, src, &st), *list = json_array(), *v;
    const char *key;
    json_object_foreach((json_t *)changes, key, v) {
        json_array_append_new(list, json_string(key));
        lq_log(ctx, LQ_LOG_INFO, "config.json: '%s' %s", key, json_is_null(v) ? "is dropped" : "changes");
    }
    json_t *m = st ? NULL : json_pack("{s:i, s:s, s:s, s:O, s:s, s:O}", "schema", 1, "lquant", LQ_VERSION, "verb", "convert", "inputs", inputs, "dtype",
                                      lq_dtypes[lq_float_choice(a->dtype)].name, "config_changes", list);
    if (!st && !m) st = lq_oom(ctx, 256);
    if (!st && a->rotate) json_object_set_new(m, "rotation", json_pack("{s:s, s:I}", "kind", a->rotate == LQ_ROTATION_HEADS ? "heads" : "hadamard", "seed", (json_int_t)a->rotate_seed));
    if (!st) st = lq_json_dump(ctx, m, &text);
    if (!st) st = lq_sink_sidecar(sink, "lquant-manifest.json", text.v, text.n);
    lq_buf_free(&text);
    json_decref(inputs);
    json_decref(list);
    json_decref(m);
    return st;
}

static lq_status write_all(lq_ctx *ctx, lq_source *src, lq_model *m, const args *a, const lq_job *job, loss *l) {
    lq_sink *sink = NULL;
    lq_gguf_meta *meta = NULL;
    json_t *changes = lq_sidecars_changes(m, lq_float_choice(a->dtype));
    lq_gguf_out_floats(a->to, &m->cat, lq_float_choice(a->dtype));
    lq_status st = !changes ? lq_oom(ctx, 64) : lq_gguf_out_make(ctx, a->to, m, &(lq_gguf_opts){.pre = a->pre}, &meta);
    lq_gguf_out_finish(meta, &m->cat, -1);
    lq_sink_opts so = {.shard_size = a->shard_size, .config = changes, .gguf = meta};
    if (!st) st = lq_sink_open(ctx, a->to, job->partial, &m->cat, &so, &sink);
    if (!st) st = lq_sidecars_write(ctx, src, m, sink);
    if (!st) st = put_manifest(ctx, src, a, changes, sink);
    for (size_t i = 0; i < m->cat.n && !st; i++) st = lq_check_cancel(ctx);
    for (size_t i = 0; i < m->cat.n && !st; i++) st = put_row(ctx, m, sink, &m->cat.rows[i], l);
    if (!st) st = lq_sink_close(&sink);
    lq_sink_abandon(&sink);
    lq_gguf_meta_free(&meta);
    json_decref(changes);
    return st;
}

static lq_status convert(lq_ctx *ctx, const args *a, const char *in, const char *out) {
    lq_source *src = NULL;
    lq_model *m = NULL;
    lq_job job = {0};
    loss l = {0};
    lq_status st;
    LQ_GO(lq_source_open(ctx, in, &src));
    LQ_GO(lq_model_open(ctx, src, false, &m));
    if (a->rotate) LQ_GO(lq_rotation_set(ctx, m, a->rotate, a->rotate_seed));
    LQ_GO(lq_job_open(ctx, &job, in, out, "convert", LQ_RESUME_NEVER, a->overwrite));
    st = write_all(ctx, src, m, a, &job, &l);
    if (!st) st = lq_job_finish(ctx, &job, a->to->ext ? "model.gguf" : NULL);
    if (st) {
        lq_ctx quiet = {0};
        lq_remove_tree(&quiet, job.partial); /* nothing worth resuming */
        goto done;
    }
    const char *type = lq_dtypes[lq_float_choice(a->dtype)].name;
    double rel = l.energy > 0 ? sqrt(l.square / l.energy) : 0;
    if (a->common.json)
        printf("{\"schema\": 1, \"out\": \"%s\", \"dtype\": \"%s\", \"weights\": %llu, \"rounded\": %llu, \"max_error\": %.9g, \"relative_rms\": %.9g}\n", lq_path_base(out),
               type, (unsigned long long)l.n, (unsigned long long)l.rounded, l.worst, rel);
    else if (!l.rounded) printf("%s: %llu weights as %s, every one exact\n", out, (unsigned long long)l.n, type);
    else
        printf("%s: %llu weights as %s; %.1f %% were rounded, relative rms error %.3g, largest %.3g in %s\n", out, (unsigned long long)l.n, type,
               100.0 * (double)l.rounded / (double)l.n, rel, l.worst, l.where);
done:
    lq_job_close(&job);
    lq_model_free(&m);
    lq_source_free(&src);
    return st;
}

static lq_status choose_format(lq_ctx *ctx, args *a, const char *out) {
    size_t n = strlen(out);
    bool suffix = n > 5 && !strcmp(out + n - 5, ".gguf");
    const char *name = a->format ? a->format : suffix ? "gguf" : "safetensors";
    if (strcmp(name, "gguf") && strcmp(name, "safetensors")) return lq_fail(ctx, LQ_ERR_USAGE, "--format %s: convert writes safetensors and gguf", name);
    a->to = lq_format_by_name(name);
    return LQ_OK;
}

static lq_status run_convert(lq_ctx *ctx, const char *name, int argc, char **argv) {
    args a = {0};
    const char *pos[2];
    size_t n;
    const lq_optset sets[] = {{options, &a, "convert"}, {lq_common_options, &a.common, NULL}, {0}};
    LQ_TRY(lq_opts_defaults(ctx, sets));
    LQ_TRY(lq_opts_parse(ctx, sets, argc, argv, pos, 2, &n));
    if (a.common.help) {
        printf("lquant %s [flags] IN OUT_DIR\n  an ordinary Hugging Face folder of floats from a GGUF file, a quantized checkpoint or another folder\n\n", name);
        lq_opts_help(stdout, sets);
        printf("\nexamples:\n  lquant convert model.gguf model-hf\n  lquant convert --dtype f32 model.gguf model-f32\n  lquant convert --dtype f16 model-bf16 model-f16\n  lquant convert --dequantize f32 model-4bit model-decoded\n  lquant convert --dtype f32 --rotate hadamard model model-rotated\n");
        return LQ_OK;
    }
    if (n < 2) return lq_fail(ctx, LQ_ERR_USAGE, "lquant convert IN OUT_DIR: %s is missing", n ? "OUT_DIR" : "IN");
    if (a.dequantize) a.dtype = a.dequantize - 1;
    LQ_TRY(choose_format(ctx, &a, pos[1]));
    LQ_TRY(lq_common_apply(ctx, &a.common));
    return convert(ctx, &a, pos[0], pos[1]);
}

const lq_verb lq_verb_convert = {"convert", NULL, "IN OUT_DIR", "GGUF or another folder to an ordinary Hugging Face folder", run_convert};
