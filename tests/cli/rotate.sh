#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
. "$2/tests/cli/lib.sh"

nll() { sed -n 's/.*"nll": \([0-9.]*\).*/\1/p' "$tmp/stdout" | head -n 1; }
# near A B TOLERANCE
near() { awk -v a="$1" -v b="$2" -v t="$3" 'BEGIN { d = a - b; exit !(a != "" && b != "" && d < t && d > -t) }'; }

a_rotated_folder_computes_the_same_function() { # test
    ok "$lquant" eval "$tiny" -f "$text" --chunks 4 --json
    plain=$(nll)
    for how in hadamard heads; do
        ok "$lquant" convert --dtype f32 --rotate $how "$tiny" "$tmp/$how"
        ok "$lquant" eval "$tmp/$how" -f "$text" --chunks 4 --json
        near "$plain" "$(nll)" 0.00005 || fail "$how: nll $plain became $(nll)"
    done
    grep -q '"tie_word_embeddings": false' "$tmp/hadamard/config.json" || fail "config.json still ties the embeddings"
    grep -q '"tie_word_embeddings": true' "$tmp/heads/config.json" || fail "a rotation of heads untied the embeddings"
    cmp -s "$tiny/tokenizer.json" "$tmp/hadamard/tokenizer.json" || fail "tokenizer.json was not copied byte for byte"
}

methods_quantize_what_is_rotated() { # test
    for method in rtn gptq; do
        ok "$lquant" $method --bits 4 --group-size -1 --rotate hadamard $quick "$tiny" "$tmp/$method"
        grep -q '"tie_word_embeddings",' "$tmp/$method/lquant-manifest.json" || fail "the changed key is not in the manifest"
        grep -q '"rotate": "hadamard"' "$tmp/$method/lquant-manifest.json" || fail "the rotation is not in the manifest"
        ok "$lquant" eval "$tmp/$method" -f "$text" --chunks 1
    done
    ok "$lquant" gptq --bits 4 --group-size -1 --rotate hadamard $quick -t 1 "$tiny" "$tmp/again"
    [ "$(digest "$tmp/gptq")" = "$(digest "$tmp/again")" ] || fail "one thread gives other bytes"
    ok "$lquant" rtn --bits 4 --rotate hadamard -q --format lqt "$tiny" "$tmp/out.lqt"
    ok "$lquant" eval "$tmp/out.lqt" -f "$text" --chunks 1
}

what_cannot_be_rotated_is_refused_before_work_starts() { # test
    expect 4 "post-norm" "$lquant" rtn --bits 4 --rotate hadamard "$root/tests/golden/forward/gemma2" "$tmp/out"
    expect 2 "rotate" "$lquant" rtn --bits 4 --rotate spin "$tiny" "$tmp/out"
    copy_tiny && sed -i 's/"model_type": "llama"/"model_type": "llamoid"/' "$tmp/in/config.json"
    expect 4 "unknown architecture" "$lquant" rtn --bits 4 --rotate hadamard "$tmp/in" "$tmp/out"
    absent "$tmp/out" "$tmp/out.partial"
}

auto_says_what_it_weighed() { # test
    ok "$lquant" rtn --bits 4 --group-size -1 --rotate auto --nsamples 4 --seqlen 64 "$tiny" "$tmp/out"
    grep -q "sum of relative losses over 42 linears" "$tmp/stderr" || fail "no verdict in the log"
    grep -q '"loss_rotated"' "$tmp/out/lquant-manifest.json" || fail "no verdict in the manifest"
    expect 2 "say which" "$lquant" rtn --rotate auto --stats "$tiny/model.safetensors" "$tiny" "$tmp/no"
}

run_all
