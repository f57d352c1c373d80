#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Recipes: transforms before a method.
. "$2/tests/cli/lib.sh"

perplexity() { # model
    ok "$lquant" eval "$1" -f "$text" --chunks 2 --json
    sed -n 's/.*"perplexity": \([0-9.]*\).*/\1/p' "$tmp/stdout"
}

lettered() { # folder of tests/golden/forward
    rm -rf "$tmp/in" && mkdir "$tmp/in"
    cp "$root/tests/golden/forward/$1/config.json" "$root/tests/golden/forward/$1/model.safetensors" "$tmp/in" && chmod u+w "$tmp/in"/*
    cp "$root/tests/cli/letters.json" "$tmp/in/tokenizer.json"
}

a_folded_model_left_in_floats_computes_the_same_to_the_last_bit() { # test
    ok "$lquant" smoothquant:alpha=0.5 --smooth-sites all --scheme f32 $quick "$tiny" "$tmp/out"
    cmp -s "$tiny/model.safetensors" "$tmp/out/model.safetensors" && fail "nothing was changed"
    [ "$(perplexity "$tiny")" = "$(perplexity "$tmp/out")" ] || fail "perplexity $(perplexity "$tmp/out"), before $(perplexity "$tiny")"
    grep -q '"chose": "alpha 0.5"' "$tmp/out/lquant-manifest.json" || fail "the manifest does not say what was chosen"
    grep -q 'input_layernorm.weight' "$tmp/out/lquant-manifest.json" || fail "the manifest does not list the folded tensors"
}

an_interrupted_recipe_continues_to_the_same_bytes_at_any_thread_count() { # test
    for recipe in awq,gptq awq:awq-loss=block:awq-ratios=5 smoothquant; do
        rm -rf "$tmp"/*
        ok "$lquant" $recipe --nsamples 16 --seqlen 64 -q -t 1 --format lqt "$tiny" "$tmp/whole.lqt"
        "$lquant" $recipe --nsamples 16 --seqlen 64 -q -t 3 --format lqt "$tiny" "$tmp/out.lqt" >/dev/null 2>"$tmp/stderr" &
        pid=$!
        while kill -0 $pid 2>/dev/null && [ ! -e "$tmp/out.lqt.partial/.journal/unit-00001" ]; do sleep 0.05; done
        kill -INT $pid 2>/dev/null
        wait $pid
        code=$?
        [ $code = 75 ] || [ $code = 0 ] || fail "$recipe: the interrupted run left with $code"
        if [ $code = 75 ]; then ok "$lquant" $recipe --nsamples 16 --seqlen 64 -q -t 2 --format lqt "$tiny" "$tmp/out.lqt"; fi
        cmp -s "$tmp/whole.lqt" "$tmp/out.lqt" || fail "$recipe: the resumed output differs"
    done
}

recipes_stand_where_a_verb_does() { # test
    ok "$lquant" awq,gptq:damp-percent=0.02 --bits 4 --clip on --block-size 64 $quick "$tiny" "$tmp/out"
    grep -q '"clip": "on"' "$tmp/out/lquant-manifest.json" || fail "the transform's options are not in the manifest"
    grep -q 'int4-asym' "$tmp/out/lquant-manifest.json" || fail "awq did not make the type asymmetric"
    ok "$lquant" awq --sym --dry-run "$tiny"
    grep -q 'int4-sym' "$tmp/stdout" || fail "--sym is not heard"
    ok "$lquant" smoothquant --dry-run "$tiny"
    grep -q 'int8-sym-row' "$tmp/stdout" || fail "smoothquant is not W8A8: $(head -n 3 "$tmp/stdout")"
    ok "$lquant" list methods
    grep -q '^awq ' "$tmp/stdout" && grep -q '^gptq ' "$tmp/stdout" || fail "the list lacks transforms or methods"
    ok "$lquant" awq,gptq --help
    grep -q -- '--awq-ratios' "$tmp/stdout" && grep -q -- '--damp-percent' "$tmp/stdout" || fail "--help lacks an element's flags"
    ok "$lquant" calibrate --hessians $quick "$tiny" -o "$tmp/h.stats"
    expect 2 "by the block's output" "$lquant" awq --awq-loss block --stats "$tmp/h.stats" "$tiny" "$tmp/no"
    expect 2 "only transforms may stand before" "$lquant" gptq,awq "$tiny" "$tmp/no"
    expect 2 "expected auto or a number" "$lquant" smoothquant --alpha two "$tiny" "$tmp/no"
    expect 2 "unknown method 'nothing'" "$lquant" awq,nothing "$tiny" "$tmp/no"
    absent "$tmp/no" "$tmp/no.partial"
}

every_architecture_takes_transforms_or_says_why_not() { # test
    for folder in "$root"/tests/golden/forward/*/; do
        model=$(basename "$folder")
        lettered "$model"
        rm -f "$tmp/out.lqt"
        "$lquant" smoothquant,awq:clip=on,rtn --smooth-sites all -q --format lqt -f "$root/README.md" --nsamples 4 --seqlen 48 "$tmp/in" "$tmp/out.lqt" >"$tmp/stdout" 2>"$tmp/stderr"
        code=$?
        [ $code = 0 ] || { [ $code = 4 ] && grep -q "nothing to fold" "$tmp/stderr"; } || fail "$model: $code $(tail -n 1 "$tmp/stderr")"
    done
}

run_all
