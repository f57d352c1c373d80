#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Mixtures of experts (tests/golden/forward) through quantization, resumption and evaluation.
. "$2/tests/cli/lib.sh"

calib="-f $root/README.md --nsamples 8 --seqlen 48 -q"

lettered() { # variant
    rm -rf "$tmp/in" && mkdir "$tmp/in"
    cp "$root/tests/golden/forward/$1/config.json" "$root/tests/golden/forward/$1/model.safetensors" "$tmp/in" && chmod u+w "$tmp/in"/*
    cp "$root/tests/cli/letters.json" "$tmp/in/tokenizer.json"
}

token_counts_of_the_experts_are_in_the_manifest_and_sum_to_tokens_times_k() { # test
    lettered mixtral
    ok "$lquant" gptq --bits 4 --group-size -1 --format lqt $calib "$tmp/in" "$tmp/out.lqt" --report "$tmp/report.json"
    sums=$(awk -F'[":, ]+' '
        $2 == "name" { split($3, part, "."); name = part[3] " " part[length(part)] }
        $2 == "expert_tokens" { n[name] += $3; m[name]++ }
        END { for (k in n) print k, m[k], n[k] }' "$tmp/report.json" | LC_ALL=C sort | tr '\n' ';')
    [ "$sums" = "0 w1 8 768;0 w2 8 768;0 w3 8 768;1 w1 8 768;1 w2 8 768;1 w3 8 768;" ] || fail "not 8 experts of 8 x 48 x 2 tokens: $sums"
    grep -q '"fallback"' "$tmp/report.json" && fail "an expert fell back"
    grep -A 2 'block_sparse_moe.gate.weight' "$tmp/report.json" | grep -q '"kept by default"' || fail "the router is not kept"
}

transforms_by_statistics_choose_for_every_expert_as_with_the_model_run() { # test
    lettered qwen2_moe
    ok "$lquant" calibrate --hessians $calib "$tmp/in" -o "$tmp/in.stats"
    ok "$lquant" awq --awq-ratios 4 --bits 8 --group-size -1 --format lqt $calib --report "$tmp/run.json" "$tmp/in" "$tmp/run.lqt"
    ok "$lquant" awq --awq-ratios 4 --bits 8 --group-size -1 --format lqt -q --stats "$tmp/in.stats" --report "$tmp/file.json" "$tmp/in" "$tmp/file.lqt"
    for f in file run; do grep -A 6 '"block 0 ' "$tmp/$f.json" | grep -v '"groups\|cut"' >"$tmp/$f.sites"; done
    grep -q 'expert 3 .*"' "$tmp/run.sites" && grep -q '"ratio' "$tmp/run.sites" || fail "no site of an expert in the report"
    cmp -s "$tmp/run.sites" "$tmp/file.sites" || fail "block 0 chose otherwise"
    ok "$lquant" eval "$tmp/file.lqt" -f "$root/README.md" --chunks 2 --base "$tmp/in" --kld
    grep -q '^kld 0\.0[0-2]' "$tmp/stdout" || fail "8 bits are far from the model: $(grep kld "$tmp/stdout")"
}

an_interrupted_run_continues_to_the_same_bytes() { # test
    lettered qwen2_moe
    many="-f $root/texts/heldout.txt --nsamples 200 --seqlen 48 -q"
    ok "$lquant" gptq --bits 4 --group-size -1 --format lqt $many "$tmp/in" "$tmp/whole.lqt"
    "$lquant" gptq --bits 4 --group-size -1 --format lqt $many "$tmp/in" "$tmp/out.lqt" >/dev/null 2>"$tmp/stderr" &
    pid=$!
    while kill -0 $pid 2>/dev/null && [ ! -e "$tmp/out.lqt.partial/.journal/unit-00000" ]; do :; done
    kill -INT $pid 2>/dev/null
    wait $pid
    code=$?
    [ $code = 75 ] || [ $code = 0 ] || fail "interrupted run left with $code"
    if [ $code = 75 ]; then
        expect 7 "other inputs or options" "$lquant" gptq --bits 4 --group-size -1 --expert-prior 2 --format lqt $many "$tmp/in" "$tmp/out.lqt"
        ok "$lquant" gptq --bits 4 --group-size -1 --format lqt $many "$tmp/in" "$tmp/out.lqt"
    fi
    cmp -s "$tmp/whole.lqt" "$tmp/out.lqt" || fail "the resumed output differs"
}

threads_and_memory_change_no_byte() { # test
    lettered olmoe
    ok "$lquant" gptq --bits 3 --group-size -1 --format lqt -t 1 $calib "$tmp/in" "$tmp/a.lqt"
    ok "$lquant" gptq --bits 3 --group-size -1 --format lqt -t 3 --max-memory 90M $calib "$tmp/in" "$tmp/b.lqt"
    cmp -s "$tmp/a.lqt" "$tmp/b.lqt" || fail "the outputs differ"
}

stacked_experts_are_written_one_by_one() { # test
    lettered mixtral_stacked
    ok "$lquant" rtn --bits 8 --group-size -1 --format lqt -q "$tmp/in" "$tmp/out.lqt"
    ok "$lquant" inspect "$tmp/out.lqt" --json
    grep -q 'model.layers.1.block_sparse_moe.experts.3.w2.weight' "$tmp/stdout" || fail "no tensor of the last expert"
    ok "$lquant" eval "$tmp/out.lqt" --base "$tmp/in" -f "$text" --ctx 48 --chunks 2 --kld
}

missing_and_misshapen_experts_are_named() { # test
    lettered mixtral
    sed -i 's/"num_local_experts": 8/"num_local_experts": 9/' "$tmp/in/config.json"
    expect 3 "block_sparse_moe" "$lquant" rtn -q "$tmp/in" "$tmp/out"
    sed -i 's/"num_local_experts": 9/"num_local_experts": 4096/' "$tmp/in/config.json"
    expect 3 "block_sparse_moe" "$lquant" rtn -q "$tmp/in" "$tmp/out"
    sed -i 's/"num_local_experts": 4096/"num_local_experts": 1/' "$tmp/in/config.json"
    expect 3 "2 experts per token of 1" "$lquant" rtn -q "$tmp/in" "$tmp/out"
    lettered mixtral_stacked
    sed -i 's/"num_local_experts": 4/"num_local_experts": 3/' "$tmp/in/config.json"
    expect 3 "shape" "$lquant" rtn -q "$tmp/in" "$tmp/out"
}

run_all
