#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Expected strings of chat templates, by transformers' own renderer (transformers.utils.chat_template_utils).

    gen_golden_chat.py OUT_DIR NAME=TEMPLATE_FILE...

TEMPLATE_FILE: a tokenizer_config.json, a GGUF, or the template itself. Writes OUT_DIR/NAME.jinja and OUT_DIR/cases.json:
[{"template": NAME, "messages": [...], "add_generation_prompt": bool, "bos": str, "eos": str, "want": str}].
Besides the given templates it writes small ones of its own that walk the constructs one by one (CONSTRUCTS).
"""
import json
import pathlib
import sys

from transformers.utils import chat_template_utils

U, S, A, T = "user", "system", "assistant", "tool"
CONVERSATIONS = [
    [{"role": U, "content": "Hello"}],
    [{"role": S, "content": " Be brief. "}, {"role": U, "content": "What is 2+2?\n"}, {"role": A, "content": "4"}, {"role": U, "content": "Why? é 日本 \U0001F600"}],
    [{"role": U, "content": "q"}, {"role": A, "content": "<think>\nlong thought\n</think>\n\nanswer"}],
    [{"role": U, "content": "weather?"},
     {"role": A, "content": "", "tool_calls": [{"function": {"name": "get", "arguments": {"city": "Köln", "n": [1, 2.5, True, None]}}}]},
     {"role": T, "content": "{\"t\": 3}"}, {"role": T, "content": "second"}, {"role": A, "content": "3 degrees"}],
]
CONSTRUCTS = {
    "slices": "{{ messages[0].content[1:3] }}|{{ messages[0].content[::-1] }}|{{ messages[-1].role }}|{% for m in messages[1:] %}{{ m.role }},{% endfor %}|{{ messages[0].content[-2:] }}|{{ [1,2,3,4,5][::-2] | join('.') }}",
    "numbers": "{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ 2 * 3 + 1 }} {{ 1.5 }} {{ (1 + 2) ~ 'a' }} {{ 1 < 2 < 3 }} {{ 1 == 1.0 }} {{ true and 0 }}",
    "white": "  {% if true %}\n   a\n  {% endif %}\n b {#- gone -#} c\n{#+ x #}\n  {%- set x = 1 -%}  \n{{- x }}\n\n{% raw_ is defined %}" .replace("{% raw_ is defined %}", "end\n"),
    "strings": "{{ '  a b '.strip() }}|{{ 'a,b,,c'.split(',') | join('-') }}|{{ 'a b  c'.split() | length }}|{{ 'xaybx'.strip('xy') }}|{{ 'grün'.upper() }}|{{ 'hELLO wORLD' | title }}|{{ 'hELLO' | capitalize }}|{{ 'aXbX'.replace('X', '--') }}|{{ 'a' in 'cat' }}|{{ 'é日' | length }}|{{ \"q'\\n\\u00e9\\x41\" }}|{{ 'abc'.startswith(('x', 'a')) }}|{{ 'a.b.c'.split('.', 1)[1] }}|{{ 'abc'.find('c') }}|{{ 'ab' * 2 }}",
    "loops": "{% for m in messages if m.role != 'system' %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% else %}none{% endfor %}|{% for k, v in {'a': 1, 'b': 'x'}.items() %}{{ k }}={{ v }};{% endfor %}|{% for x in [] %}{% else %}empty{% endfor %}|{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}|{% for c in 'ab' %}{{ c }}{{ loop.revindex }}{% endfor %}",
    "scopes": "{% set x = 1 %}{% for i in [1,2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}{% if true %}{% set x = 9 %}{% endif %}{{ x }}{% set ns = namespace(n=0, found=false) %}{% for i in [1,2,3] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}{% set a, b = 1, 2 %}{{ a + b }}{% set t %}in{{ x }}{% endset %}{{ t }}",
    "tests": "{{ x is defined }}{{ messages is defined }}{{ tools is none }}{{ 'a' is string }}{{ 1 is number }}{{ {} is mapping }}{{ [] is iterable }}{{ 3 is odd }}{{ 4 is divisibleby 2 }}{{ x is not defined and not y }}{{ 1 is integer }}{{ true is boolean }}{{ 2 in [1, 2] }}{{ 'b' not in {'a': 1} }}{{ 1 if false else 2 }}{{ x }}{{ tools is true }}{{ none is none }}",
    "filters": "{{ {'a': [1, 'é', none, true, 2.5], 'b': {}} | tojson }}|{{ {'a': [1, {'c': []}]} | tojson(indent=2) }}|{{ x | default('d') }}|{{ '' | default('e', true) }}|{{ messages | map(attribute='role') | join(' ') }}|{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|{{ [3,4] | first }}{{ [3,4] | last }}|{{ ['a', 'b'] | reject('equalto', 'a') | join }}|{{ '7' | int + 1 }}|{{ [1,2] + [3] | length }}".replace("[1,2] + [3] | length", "([1,2] + [3]) | length"),
    "special": "{{ bos_token }}{% for m in messages %}{% generation %}{{ m['content'] | trim }}{% endgeneration %}{{ eos_token }}{% endfor %}{{ unk_token is defined }}{{ 'tool_calls' in messages[0] }}{{ messages[0].nothing is defined }}",
}


def template_of(path):
    if path.endswith(".gguf"):
        from gguf import GGUFReader
        return bytes(GGUFReader(path).fields["tokenizer.chat_template"].parts[-1]).decode()
    text = pathlib.Path(path).read_text()
    return json.loads(text)["chat_template"] if path.endswith(".json") else text


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    templates = dict(CONSTRUCTS)
    for arg in sys.argv[2:]:
        name, path = arg.split("=", 1)
        templates[name] = template_of(path)
    cases = []
    for name, template in templates.items():
        (out / f"{name}.jinja").write_text(template)
        compiled = chat_template_utils._compile_jinja_template(template)
        for k, messages in enumerate(CONVERSATIONS):
            for add in (False, True):
                if name in CONSTRUCTS and add:
                    continue
                want = compiled.render(messages=messages, tools=None, documents=None, add_generation_prompt=add, bos_token="<s>", eos_token="</s>")
                cases.append({"template": name, "messages": messages, "add_generation_prompt": add, "bos": "<s>", "eos": "</s>", "want": want})
    (out / "cases.json").write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(cases)} cases")


if __name__ == "__main__":
    main()
