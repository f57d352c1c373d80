#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
. "$2/tests/cli/lib.sh"

sample="--nsamples 8 --seqlen 64 -q"

calibrate_writes_the_same_bytes_on_any_threads() { # test
    for t in 1 2; do ok "$lquant" calibrate --hessians $sample -t $t "$tiny" -o "$tmp/$t.stats"; done
    cmp -s "$tmp/1.stats" "$tmp/2.stats" || fail "1 and 2 threads differ"
    ok "$lquant" imatrix $sample "$tiny" "$tmp/small.stats"
    [ $(wc -c <"$tmp/small.stats") -lt 200000 ] || fail "a file without Hessians is large"
    expect 2 "exists" "$lquant" calibrate $sample "$tiny" -o "$tmp/small.stats"
    expect 2 "STATS is missing" "$lquant" calibrate "$tiny"
    absent "$tmp/small.stats.partial"
}

methods_take_statistics_instead_of_text() { # test
    ok "$lquant" calibrate --hessians $sample "$tiny" -o "$tmp/h.stats"
    ok "$lquant" calibrate $sample "$tiny" -o "$tmp/d.stats"
    ok "$lquant" gptq --bits 4 --hessians "$tmp/h.stats" -q "$tiny" "$tmp/gptq"
    grep -q '"statistics": "h.stats"' "$tmp/gptq/lquant-manifest.json" || fail "the statistics are not in the manifest"
    ok "$lquant" eval "$tmp/gptq" -f "$text" --chunks 1
    expect 4 "diagonals only" "$lquant" gptq --bits 4 --stats "$tmp/d.stats" "$tiny" "$tmp/no"
    ok "$lquant" rtn --bits 3 --search -q "$tiny" "$tmp/plain"
    ok "$lquant" rtn --bits 3 --search --imatrix "$tmp/d.stats" -q "$tiny" "$tmp/weighted"
    cmp -s "$tmp/plain/model.safetensors" "$tmp/weighted/model.safetensors" && fail "the weights of --imatrix changed nothing"
    absent "$tmp/no" "$tmp/no.partial"
}

statistics_of_another_model_are_refused() { # test
    ok "$lquant" calibrate $sample "$tiny" -o "$tmp/d.stats"
    expect 7 "rotation" "$lquant" rtn --search --rotate hadamard --stats "$tmp/d.stats" "$tiny" "$tmp/out"
    copy_tiny && sed -i 's/"rms_norm_eps": 1e-05/"rms_norm_eps": 1e-06/' "$tmp/in/config.json"
    expect 7 "another model" "$lquant" rtn --search --stats "$tmp/d.stats" "$tmp/in" "$tmp/out"
    ok "$lquant" calibrate $sample "$tmp/in" -o "$tmp/other.stats"
    expect 7 "different models" "$lquant" merge "$tmp/d.stats" "$tmp/other.stats" -o "$tmp/sum.stats"
    expect 3 "" "$lquant" rtn --search --stats "$tiny/model.safetensors" "$tiny" "$tmp/out"
    absent "$tmp/out" "$tmp/out.partial" "$tmp/sum.stats" "$tmp/sum.stats.partial"
}

rotated_statistics_fit_the_rotated_model() { # test
    ok "$lquant" calibrate --hessians --rotate hadamard $sample "$tiny" -o "$tmp/r.stats"
    ok "$lquant" gptq --bits 4 --rotate hadamard --stats "$tmp/r.stats" -q "$tiny" "$tmp/out"
    expect 7 "rotation" "$lquant" gptq --bits 4 --stats "$tmp/r.stats" "$tiny" "$tmp/no"
}

transforms_take_statistics_and_choose_as_on_the_first_block_of_a_run() { # test
    ok "$lquant" calibrate --hessians --samples $sample "$tiny" -o "$tmp/all.stats"
    for r in "smoothquant" "smoothquant:alpha=0.6,awq:awq-ratios=3,gptq --bits 4 --group-size 128"; do
        ok "$lquant" $r $sample --format lqt --report "$tmp/run.json" --overwrite "$tiny" "$tmp/run.lqt"
        ok "$lquant" $r --stats "$tmp/all.stats" -q --format lqt --report "$tmp/file.json" --overwrite "$tiny" "$tmp/file.lqt"
        for f in file run; do grep -A 6 '"block 0 ' "$tmp/$f.json" >"$tmp/$f.sites"; done
        grep -q '"loss":' "$tmp/run.sites" || fail "$r: no site of block 0 in the report"
        cmp -s "$tmp/run.sites" "$tmp/file.sites" || fail "$r: block 0 chose otherwise than with the model run"
        ok "$lquant" eval "$tmp/file.lqt" -f "$text" --chunks 1
    done
    ok "$lquant" $r --stats "$tmp/all.stats" -q -t 1 --format lqt "$tiny" "$tmp/one.lqt"
    cmp -s "$tmp/file.lqt" "$tmp/one.lqt" || fail "$r: 1 and 2 threads differ"
}

what_a_statistics_file_lacks_is_named_with_the_command_that_makes_it() { # test
    ok "$lquant" calibrate $sample "$tiny" -o "$tmp/d.stats"
    ok "$lquant" calibrate --hessians $sample "$tiny" -o "$tmp/h.stats"
    expect 4 "awq needs the Gram matrices.*lquant calibrate --hessians IN" "$lquant" awq --stats "$tmp/d.stats" "$tiny" "$tmp/no"
    expect 4 "smoothquant needs sampled activations.*lquant calibrate --samples IN" "$lquant" smoothquant --stats "$tmp/h.stats" "$tiny" "$tmp/no"
    expect 4 "calibrate --hessians --samples IN" "$lquant" smoothquant,gptq --bits 4 --stats "$tmp/h.stats" "$tiny" "$tmp/no"
    expect 4 "no-correction" "$lquant" zeroquant --stats "$tmp/h.stats" "$tiny" "$tmp/no"
    ok "$lquant" smoothquant --alpha 0.5 --stats "$tmp/d.stats" -q "$tiny" "$tmp/fixed"
    ok "$lquant" zeroquant --bits 4 --no-correction --stats "$tmp/h.stats" -q "$tiny" "$tmp/zq"
    absent "$tmp/no" "$tmp/no.partial"
}

an_interrupted_run_by_statistics_goes_on_to_the_same_bytes() { # test
    ok "$lquant" calibrate --hessians $sample "$tiny" -o "$tmp/h.stats"
    ok "$lquant" awq --stats "$tmp/h.stats" --awq-ratios 2 --bits 4 --group-size 32 -q "$tiny" "$tmp/whole"
    "$lquant" awq --stats "$tmp/h.stats" --awq-ratios 2 --bits 4 --group-size 32 -q "$tiny" "$tmp/halves" >/dev/null 2>&1 &
    pid=$!
    while kill -0 $pid 2>/dev/null && [ ! -e "$tmp/halves.partial/.journal/unit-00000" ]; do :; done
    kill -INT $pid 2>/dev/null
    wait $pid
    code=$?
    [ $code = 75 ] || [ $code = 0 ] || fail "interrupted run left with $code"
    [ $code = 0 ] || ok "$lquant" awq --stats "$tmp/h.stats" --awq-ratios 2 --bits 4 --group-size 32 -q "$tiny" "$tmp/halves"
    cmp -s "$tmp/whole/model.safetensors" "$tmp/halves/model.safetensors" || fail "the interrupted run wrote other bytes"
}

merged_files_count_every_text() { # test
    head -c 20000 "$text" >"$tmp/a.txt"
    tail -c 20000 "$text" >"$tmp/b.txt"
    for f in a b; do ok "$lquant" calibrate $sample -f "$tmp/$f.txt" "$tiny" -o "$tmp/$f.stats"; done
    ok "$lquant" merge "$tmp/a.stats" "$tmp/b.stats" -o "$tmp/sum.stats"
    ok "$lquant" rtn --search --stats "$tmp/sum.stats" -q "$tiny" "$tmp/out"
    grep -q '"text": "a.txt"' "$tmp/out/lquant-manifest.json" && grep -q '"text": "b.txt"' "$tmp/out/lquant-manifest.json" || fail "a text is missing in the manifest"
    expect 2 "is an input" "$lquant" merge "$tmp/a.stats" "$tmp/b.stats" -o "$tmp/a.stats" --overwrite
    expect 2 "OUT is missing" "$lquant" merge "$tmp/a.stats"
}

run_all
