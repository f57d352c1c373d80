/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* lquant: post-training quantization of large language models. The one public header.
 *
 * A session carries the error text, the log and the cancel flag; use one per thread. Functions that can fail return the exit
 * code of the command line: 0 ok, 2 usage, 3 input rejected, 4 unsupported, 5 resources, 6 quality gate, 7 job mismatch,
 * 8 output error, 75 stopped and resumable, 1 a fault of ours; lquant_error then holds one sentence. Strings and arrays given
 * to a function are borrowed for the call; what a function returns belongs to the caller where it says so. */
#ifndef LQUANT_H
#define LQUANT_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

const char *lquant_version(void); /* "0.1.0" */

typedef struct lquant lquant;
lquant *lquant_new(void);         /* NULL: out of memory */
void lquant_free(lquant **s);     /* NULL is fine; *s becomes NULL */
const char *lquant_error(const lquant *s);  /* of the last call that failed; borrowed */
/* level: 0 error, 1 warning, 2 information, 3 debug. fn gets one line without its newline, from the calling thread. */
void lquant_set_log(lquant *s, int level, void (*fn)(void *user, int level, const char *line), void *user);
void lquant_set_threads(int n);   /* of the whole process; 0: every core. Never changes a result. */
void lquant_cancel(lquant *s);    /* from any thread or a signal handler: the running call ends with 75 */

typedef struct lquant_setting { const char *key, *value; } lquant_setting; /* a flag without dashes, "bits" "3"; switches: value NULL */
/* Quantizes the model at `in` into `out` as `lquant RECIPE --key value ... in out` does. report: NULL, or receives a JSON
 * object as text that the caller frees with lquant_string_free. */
int lquant_quantize(lquant *s, const char *recipe, const lquant_setting *settings, size_t n, const char *in, const char *out, char **report);
void lquant_string_free(char **text);

/* A model in memory, quantized ones on their packed codes, with its tokenizer. */
typedef struct lquant_model lquant_model;
int lquant_model_open(lquant *s, const char *path, lquant_model **out);
void lquant_model_free(lquant_model **m);
uint32_t lquant_model_vocab(const lquant_model *m);
uint32_t lquant_model_context(const lquant_model *m); /* tokens */
/* Token ids of text[n bytes], with what the tokenizer adds (BOS). *count: how many there are; at most max are stored. */
int lquant_tokenize(lquant *s, const lquant_model *m, const char *text, size_t n, int32_t *ids, size_t max, size_t *count);
/* logits[n][vocab], fp32, of one sequence of n ids; row i predicts id i + 1. */
int lquant_logits(lquant *s, const lquant_model *m, const int32_t *ids, uint32_t n, float *logits);

typedef struct lquant_score {
    double nll, nll_stderr;       /* nats per token: mean over chunks, and its standard error */
    double perplexity;            /* exp(nll) */
    uint64_t tokens;              /* predictions scored */
    uint32_t ctx, chunks;         /* length used, in tokens, and how many */
} lquant_score;
/* Perplexity of m on a text file by a protocol of `lquant list protocols`. ctx, chunks: 0 for the protocol's own. */
int lquant_evaluate(lquant *s, const lquant_model *m, const char *text_path, const char *protocol, uint32_t ctx, uint32_t chunks, lquant_score *out);

#ifdef __cplusplus
}
#endif
#endif
