/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* What a name in tokenizer.ggml.pre stands for: the regular expressions that cut a text into words, one after the
 * other, as the model families publish them in their tokenizer.json, and what else follows from the name. */
#include "calib/tok_impl.h"

#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define SHORT "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define REST " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define LLAMA3 SHORT "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|" REST
#define QWEN2 SHORT "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|" REST
#define QWEN35 \
    SHORT "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}|" \
    " ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED(suffix) \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" suffix "|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER "*" suffix
#define SLASH " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define ASCII_WORD \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|" \
    " ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define BLOOM " ?[^(\\s|.,!?\xe2\x80\xa6\xe3\x80\x82\xef\xbc\x8c\xe3\x80\x81\xe0\xa5\xa4\xdb\x94\xd8\x8c)]+"
/* Cased letters of Latin, Greek, Cyrillic, Armenian, Georgian, Cherokee, Glagolitic, Coptic, Deseret, Osage, Warang
 * Citi, Adlam. */
#define CASED_SCRIPTS \
    "\\s?[A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}\\x{1c4}-\\x{293}" \
    "\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}\\x{37f}\\x{386}\\x{388}-\\x{38a}\\x{38c}" \
    "\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}" \
    "\\x{13a0}-\\x{13f5}\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}\\x{1d00}-\\x{1d2b}" \
    "\\x{1d6b}-\\x{1d77}\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}" \
    "\\x{1f48}-\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}" \
    "\\x{1fb6}-\\x{1fbc}\\x{1fbe}\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}" \
    "\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}\\x{2102}\\x{2107}\\x{210a}-\\x{2113}\\x{2115}" \
    "\\x{2119}-\\x{211d}\\x{2124}\\x{2126}\\x{2128}\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}" \
    "\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}\\x{214e}\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}" \
    "\\x{2ceb}-\\x{2cee}\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}" \
    "\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}\\x{fb13}-\\x{fb17}" \
    "\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}" \
    "\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}]+"
#define WIDE_PUNCT "\\s?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3000}-\\x{3002}]+"
#define EAST "[\\x{4e00}-\\x{9fa5}\\x{0800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+"
#define HAN_KANA "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+"

typedef struct row { const char *names; const char *cut[6]; bool ignore_merges, add_bos, nfc; } row;

static const row rows[] = {
    {"default", {"[\\p{P}\\$\\+<=>\\^\\~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}, false, false, false},
    {"gpt-2 phi-2 mpt olmo jais trillion granite-docling gigachat a.x-4.0 mellum modern-bert exaone4 "
     "jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe", {GPT2}, false, false, false},
    {"starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", {"\\p{N}", GPT2}, false, false, false},
    {"llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", {LLAMA3}, true, true, false},
    {"dbrx smaug-bpe glm4 chatglm-bpe", {LLAMA3}, false, false, false},
    {"qwen2 deepseek-r1-qwen megrez kormo f2llmv2", {QWEN2}, false, false, true},
    {"stablelm2 hunyuan solar-open grok-2", {QWEN2}, false, false, false},
    {"qwen35", {QWEN35}, false, false, true},
    {"tekken", {CASED("") "|\\p{N}|" SLASH}, true, true, false},
    {"gpt-4o llama4 kanana2 talkie minimax-m2", {CASED(SHORT "?") "|\\p{N}{1,3}|" SLASH}, false, false, false},
    {"falcon", {"[\\p{P}\\$\\+<=>\\^~\\|`]+", GPT2, "[0-9][0-9][0-9]"}, false, false, false},
    {"deepseek-llm", {"[\\r\\n]", CASED_SCRIPTS, WIDE_PUNCT, "\\s+$", EAST, "\\p{N}+"}, false, false, false},
    {"deepseek-coder", {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", EAST, "\\p{N}"}, false, false, false},
    {"deepseek-v3 hunyuan-dense joyai-llm hy_v4", {"\\p{N}{1,3}", HAN_KANA, ASCII_WORD}, false, false, false},
    {"bloom poro-chat gpt3-finnish", {BLOOM}, false, false, false},
    {"viking", {BLOOM, "\\p{N}"}, false, false, false},
    {"seed-coder",
     {SHORT "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\\r\\n]+|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
     false, false, false},
    {"bailingmoe bailingmoe2 llada-moe",
     {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}|"
      " ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"},
     false, false, false},
};

static bool listed(const char *names, const char *name) {
    size_t n = strlen(name);
    for (const char *p = names; n && (p = strstr(p, name)); p += n)
        if ((p == names || p[-1] == ' ') && (!p[n] || p[n] == ' ')) return true;
    return false;
}

static json_t *splits(const row *r) {
    json_t *list = json_array(), *bytes = json_pack("{sssbsbsb}", "type", "ByteLevel", "add_prefix_space", 0,
                                                    "trim_offsets", 0, "use_regex", 0);
    bool ok = list && bytes;
    for (size_t i = 0; ok && i < 6 && r->cut[i]; i++)
        ok = !json_array_append_new(list, json_pack("{sss{ss}sssb}", "type", "Split", "pattern", "Regex", r->cut[i],
                                                    "behavior", "Isolated", "invert", 0));
    ok = ok && !json_array_append(list, bytes);
    json_t *out = ok ? json_pack("{sssO}", "type", "Sequence", "pretokenizers", list) : NULL;
    json_decref(list);
    json_decref(bytes);
    return out;
}

lq_status lq_tok_pre_find(lq_ctx *ctx, const char *name, lq_tok_pre *out, json_t *parts) {
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (!listed(rows[i].names, name)) continue;
        *out = (lq_tok_pre){rows[i].ignore_merges, rows[i].add_bos};
        json_t *pre = splits(rows + i);
        bool ok = pre && !json_object_set_new(parts, "pre_tokenizer", pre) &&
                  (!rows[i].nfc || !json_object_set_new(parts, "normalizer", json_pack("{ss}", "type", "NFC")));
        return ok ? LQ_OK : lq_oom(ctx, 0);
    }
    return lq_fail(ctx, LQ_ERR_UNSUPPORTED, "tokenizer.ggml.pre '%.64s' is not known", name);
}

/* -- names of stages ----------------------------------------------------------------------------------------------------- */

typedef struct cuts { const char *re[8]; size_t n; bool known; } cuts;

static const char *text_of(const json_t *o, const char *key) {
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

static void add_cut(cuts *c, const char *re) {
    if (!re || c->n == sizeof c->re / sizeof *c->re) c->known = false;
    else c->re[c->n++] = re;
}

/* Every match is a word; where the expression matches everything, removing what does not match is the same. */
static const char *split_of(const json_t *o) {
    bool isolated = !strcmp(text_of(o, "behavior"), "Isolated") && !json_is_true(json_object_get(o, "invert"));
    bool kept = !strcmp(text_of(o, "behavior"), "Removed") && json_is_true(json_object_get(o, "invert"));
    return isolated || kept ? json_string_value(json_object_get(json_object_get(o, "pattern"), "Regex")) : NULL;
}

static void stage(cuts *c, const json_t *o) {
    const char *type = text_of(o, "type");
    bool regex = !json_is_false(json_object_get(o, "use_regex"));
    if (!strcmp(type, "Split")) add_cut(c, split_of(o));
    else if (!strcmp(type, "Digits")) add_cut(c, json_is_true(json_object_get(o, "individual_digits")) ? "\\p{N}" : "\\p{N}+");
    else if (!strcmp(type, "Punctuation") && !strcmp(text_of(o, "behavior"), "Contiguous")) add_cut(c, "[\\p{P}\\$\\+<=>\\^~\\|`]+");
    else if (!strcmp(type, "ByteLevel") && !json_is_true(json_object_get(o, "add_prefix_space"))) {
        if (regex) add_cut(c, GPT2);
    } else c->known = false;
}

static bool same_cuts(const cuts *c, const row *r) {
    for (size_t i = 0; i < c->n; i++)
        if (i >= 6 || !r->cut[i] || strcmp(r->cut[i], c->re[i])) return false;
    return c->n == 6 || !r->cut[c->n];
}

const char *lq_tok_pre_name(const lq_tokenizer *t) {
    const json_t *o = json_object_get(t->parts, "pre_tokenizer"), *list = json_object_get(o, "pretokenizers");
    bool nfc = t->norm.n == 1 && t->norm.v[0].kind == LQ_TOK_NFC;
    cuts c = {.known = t->norm.n == 0 || nfc}; /* the names say nothing of other normalizers */
    if (json_is_array(list))
        for (size_t i = 0; i < json_array_size(list); i++) stage(&c, json_array_get(list, i));
    else stage(&c, o);
    const row *found = NULL;
    for (size_t i = 0; i < sizeof rows / sizeof *rows && c.known; i++)
        if (same_cuts(&c, &rows[i]) && rows[i].ignore_merges == t->ignore_merges && (!found || (found->nfc != nfc && rows[i].nfc == nfc))) found = &rows[i];
    static const char *const first[] = {"default", "gpt-2", "starcoder", "llama-bpe", "dbrx", "qwen2", "stablelm2", "qwen35", "tekken", "gpt-4o", "falcon",
                                        "deepseek-llm", "deepseek-coder", "deepseek-v3", "bloom", "viking", "seed-coder", "bailingmoe"};
    for (size_t i = 0; found && i < sizeof first / sizeof *first; i++)
        if (listed(found->names, first[i])) return first[i];
    return NULL;
}
