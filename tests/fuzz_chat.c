/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Any bytes as a chat template: text or one sentence, within the limits of calib/jinja.h. */
#include "calib/chat.h"
#include "core/num.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);
size_t fuzz_seed(size_t i, uint8_t *out, size_t cap);

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n) {
    json_t *messages = json_pack("[{s:s, s:s}, {s:s, s:s, s:[{s:{s:s}}]}]", "role", "system", "content", " a b ", "role", "user", "content",
                                 "<x>caf\xc3\xa9</x>", "tool_calls", "function", "name", "f");
    lq_buf out = {0};
    lq_ctx ctx = {0};
    lq_chat_render(&ctx, (const char *)p, n, messages, "<s>", "</s>", true, &out);
    lq_buf_free(&out);
    json_decref(messages);
    return 0;
}

static const char *const seeds[] = {
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|' + message['role'] + '|>\n' + message['content'] | trim %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{%- if add_generation_prompt -%}\n{{- 'x' }}\n{%- endif -%}",
    "{%- set ns = namespace(a=true, n=messages|length - 1) %}\n{%- for m in messages[::-1] %}\n {%- set i = (messages|length - 1) - loop.index0 %}\n"
    " {%- if ns.a and m.role == \"user\" and not(m.content.startswith('<x>') and m.content.endswith('</x>')) %}{%- set ns.a = false %}{%- set ns.n = i %}{%- endif %}\n"
    "{%- endfor %}{{ ns.n ~ messages[0].content.split('a')[-1].lstrip('\\n').rstrip() }}{{ messages | tojson(indent=2) }}",
    "{# c #}{% for k, v in messages[0].items() if v is string and k not in ['x'] %}{{ k|upper }}={{ v[1:-1:2] }};{% else %}none{% endfor %}"
    "{{ range(3) | list | join(',') }}{{ x | default('d') }}{{ 7 // 2 % 3 * 1.5 if tools is none else -1 }}{{ 'a,b'.replace(',', ' ') | title }}",
    "{% set t %}in{{ 1 < 2 <= 3 }}{% endset %}{% generation %}{{ t }}{% endgeneration %}{% for i in range(9) %}{% if i == 3 %}{% break %}{% elif i is odd %}"
    "{% continue %}{% endif %}{{ {'a': [i, (1, 2)], 'b': none} | tojson }}{% endfor %}{{ messages | map(attribute='role') | select('equalto', 'user') | first }}"};

/* Byte edits rarely stay a template, so most seeds are words put together at random. */
static const char *const words[] = {
    "{{ ", " }}", "{%- ", " %}", "{% if ", "{% endif %}", "{% for x in ", "{% endfor %}", "{% else %}", "{% set ns.x = ", "{% set x = ", "{% set ns = namespace(x=[]) %}",
    "messages", "ns.x", "ns", "x", "loop", ".items()", "[0]", "[::-1]", "[1:]", "['role']", ".content", "|length", "|tojson", "|join(',')", "|list", "|map('upper')",
    " + ", " ~ ", " - ", " * ", " // ", " % ", " == ", " < ", " in ", " and ", " not ", " is defined", " is string", "(", ")", "[", "]", "{'a': ", "}", ", ", "'ab'",
    "2", "9999999999", "1.5", "none", "true", ".split('a')", ".strip()", ".replace('a', 'bb')", "range(3)", "text \n", "{% break %}", "raise_exception('e')", " if x else 1"};

static size_t random_seed(size_t i, uint8_t *out, size_t cap) {
    lq_rng rng;
    size_t n = 0;
    lq_rng_seed(&rng, i, 2);
    for (uint32_t k = 4 + lq_rng_below(&rng, 60); k--;) {
        const char *w = words[lq_rng_below(&rng, sizeof words / sizeof *words)];
        if (n + strlen(w) > cap) break;
        memcpy(out + n, w, strlen(w));
        n += strlen(w);
    }
    return n;
}

enum { RANDOM_SEEDS = 200 };

size_t fuzz_seed(size_t i, uint8_t *out, size_t cap) {
    size_t fixed = sizeof seeds / sizeof *seeds;
    if (i >= fixed) return i < fixed + RANDOM_SEEDS ? random_seed(i, out, cap) : 0;
    if (strlen(seeds[i]) > cap) return 0;
    memcpy(out, seeds[i], strlen(seeds[i]));
    return strlen(seeds[i]);
}
