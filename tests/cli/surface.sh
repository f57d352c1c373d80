#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
. "$2/tests/cli/lib.sh"

help_fits_a_screen_and_has_examples() { # test
    for verb in $("$lquant" list methods | awk '{ print $1 }') convert quantize calibrate merge eval run bench inspect verify diff plan list; do
        ok "$lquant" $verb --help
        awk 'length > 120 { exit 1 }' "$tmp/stdout" || fail "$verb --help: $(awk 'length > 120' "$tmp/stdout" | head -n 1)"
        [ "$(wc -l <"$tmp/stdout")" -le 48 ] || fail "$verb --help has $(wc -l <"$tmp/stdout") lines"
        [ "$(grep -cE "^  (printf .*)?lquant $verb( |$)" "$tmp/stdout")" -ge 3 ] || fail "$verb --help has fewer than three examples"
    done
    ok "$lquant" --help
    ok "$lquant" awq --help -v
    grep -q -- --save-tokens "$tmp/stdout" || fail "--help -v does not list every flag"
}

a_target_refuses_before_work_starts() { # test
    expect 4 "nearest that loads: --bits 4" "$lquant" gptq --bits 3 --target vllm --format gptq "$tiny" "$tmp/out"
    expect 4 "--group-size 64, or tp=1" "$lquant" rtn --bits 4 --group-size 128 --target vllm,tp=2 --format gptq "$tiny" "$tmp/out"
    expect 2 "unknown runtime" "$lquant" rtn --target vlm "$tiny" "$tmp/out"
    expect 2 "is for vllm and trtllm" "$lquant" rtn --target mlx,tp=2 "$tiny" "$tmp/out"
    [ ! -e "$tmp/out.partial" ] || fail "work was begun"
    ok "$lquant" rtn --bits 4 --target vllm,tp=2 --dry-run "$tiny" "$tmp/out"
    grep -q 'int4-sym-g64' "$tmp/stdout" || fail "no group size was chosen: $(cat "$tmp/stdout" "$tmp/stderr")"
    ok "$lquant" rtn --bits 3 -q "$tiny" "$tmp/three"
    expect 4 "4 or 8 bits, symmetric" "$lquant" convert --format gptq_v2 --target vllm "$tmp/three" "$tmp/out"
    ok "$lquant" convert --format gptq_v2 --target gptqmodel "$tmp/three" "$tmp/out"
    rm -rf "$tmp/out"
    ok "$lquant" plan rtn --bits 4 "$tiny" "$tmp/out"
    grep -q '^llama.cpp will not load it: reads GGUF alone' "$tmp/stderr" || fail "no note: $(cat "$tmp/stderr")"
}

kernels_of_an_instruction_set_can_be_asked_for() { # test
    expect 2 "this machine has: auto, c" "$lquant" eval --isa mmx -f "$root/README.md" "$tiny"
    ok "$lquant" list kernels
    [ "$(grep -c 'used$' "$tmp/stdout")" = 1 ] || fail "not one tier is used: $(cat "$tmp/stdout")"
    other=$(sed -n 's/ *no$//p' "$tmp/stdout" | head -n 1) # no machine has them all
    expect 2 "--isa $other: this machine has" "$lquant" rtn --isa "$other" "$tiny" "$tmp/out"
    ok "$lquant" rtn --bits 4 --isa c -q "$tiny" "$tmp/four_c"
    rm -rf "$tmp/four_c"
}

lists_come_from_the_registries() { # test
    for what in methods formats targets archs types protocols kernels; do
        ok "$lquant" list $what
        [ -s "$tmp/stdout" ] || fail "lquant list $what is empty"
    done
    ok "$lquant" list archs
    for arch in llama mistral qwen2 qwen3; do grep -qx $arch "$tmp/stdout" || fail "$arch is not listed"; done
    expect 2 "expected methods" "$lquant" list nothing
    for verb in list plan; do
        ok "$lquant" $verb --help
        [ "$(grep -c "^  lquant $verb " "$tmp/stdout")" = 3 ] || fail "lquant $verb --help has not three examples"
    done
    expect 2 "expected a method" "$lquant" plan
    expect 2 "expected a method" "$lquant" plan nothing
}

results_go_to_stdout_and_logs_to_stderr() { # test
    ok "$lquant" eval "$tiny" -f "$text" --chunks 1
    [ "$(wc -l <"$tmp/stdout")" = 1 ] || fail "eval prints $(wc -l <"$tmp/stdout") lines on stdout"
    grep -q '^ppl ' "$tmp/stdout" || fail "$(cat "$tmp/stdout")"
    ok "$lquant" rtn --bits 4 -q "$tiny" "$tmp/out"
    [ ! -s "$tmp/stderr" ] || fail "-q still logs: $(head -n 1 "$tmp/stderr")"
}

run_continues_a_prompt() { # test
    ok "$lquant" run "$tiny" -p "The" -n 8 -q
    [ -s "$tmp/stdout" ] || fail "nothing was generated"
    cp "$tmp/stdout" "$tmp/first"
    ok "$lquant" run "$tiny" -p "The" -n 8 -q -t 1
    cmp -s "$tmp/first" "$tmp/stdout" || fail "the continuation depends on the thread count"
}

changing_one_code_changes_the_perplexity() { # test
    ok "$lquant" rtn --bits 4 -q "$tiny" "$tmp/out"
    ok "$lquant" eval "$tmp/out" -f "$text" --chunks 1 --json
    sed -n 's/.*"perplexity": \([0-9.]*\).*/\1/p' "$tmp/stdout" >"$tmp/a"
    size=$(wc -c <"$tmp/out/model.safetensors")
    poke "$tmp/out/model.safetensors" $((size / 2)) '\000'
    poke "$tmp/out/model.safetensors" $((size / 2 + 1)) '\377'
    ok "$lquant" eval "$tmp/out" -f "$text" --chunks 1 --json
    sed -n 's/.*"perplexity": \([0-9.]*\).*/\1/p' "$tmp/stdout" >"$tmp/b"
    cmp -s "$tmp/a" "$tmp/b" && fail "the perplexity did not move"
    return 0
}

run_all
