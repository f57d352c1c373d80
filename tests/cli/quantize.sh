#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
. "$2/tests/cli/lib.sh"

gptq_writes_a_checkpoint_that_eval_runs() { # test
    ok "$lquant" gptq --bits 4 $quick "$tiny" "$tmp/out"
    for f in config.json model.safetensors quantize_config.json lquant-manifest.json tokenizer.json; do [ -s "$tmp/out/$f" ] || fail "$f is missing"; done
    absent "$tmp/out.partial" "$tmp/out/.journal"
    cmp -s "$tiny/tokenizer.json" "$tmp/out/tokenizer.json" || fail "tokenizer.json was not copied byte for byte"
    ok "$lquant" eval "$tmp/out" -f "$text" --chunks 2 --json
    grep -q '"perplexity"' "$tmp/stdout" || fail "no perplexity in the JSON"
}

the_same_command_gives_the_same_bytes() { # test
    for t in 1 2; do
        ok "$lquant" gptq --bits 4 $quick -t $t "$tiny" "$tmp/out$t"
        ok "$lquant" rtn --bits 3 --asym -q -t $t "$tiny" "$tmp/rtn$t"
    done
    [ "$(digest "$tmp/out1")" = "$(digest "$tmp/out2")" ] || fail "gptq differs between 1 and 2 threads"
    [ "$(digest "$tmp/rtn1")" = "$(digest "$tmp/rtn2")" ] || fail "rtn differs between 1 and 2 threads"
}

the_activation_cache_on_disk_changes_no_byte() { # test
    ok "$lquant" gptq --bits 4 $quick "$tiny" "$tmp/a"
    ok "$lquant" gptq --bits 4 $quick --max-memory 90M --work-dir "$tmp" "$tiny" "$tmp/b"
    [ "$(digest "$tmp/a")" = "$(digest "$tmp/b")" ] || fail "--max-memory changed the output"
    expect 5 "max-memory" "$lquant" gptq --bits 4 $quick --max-memory 1M "$tiny" "$tmp/c"
    absent "$tmp/c" "$tmp/c.partial"
}

an_interrupted_run_continues_to_the_same_bytes() { # test
    ok "$lquant" gptq --bits 4 --nsamples 16 -q "$tiny" "$tmp/whole"
    "$lquant" gptq --bits 4 --nsamples 16 -q "$tiny" "$tmp/out" >/dev/null 2>"$tmp/stderr" &
    pid=$!
    while kill -0 $pid 2>/dev/null && [ ! -e "$tmp/out.partial/.journal/unit-00001" ]; do :; done
    kill -INT $pid 2>/dev/null
    wait $pid
    code=$?
    [ $code = 75 ] || [ $code = 0 ] || fail "interrupted run left with $code"
    if [ $code = 75 ]; then
        absent "$tmp/out"
        expect 7 "other inputs or options" "$lquant" gptq --bits 3 --nsamples 16 -q "$tiny" "$tmp/out"
        ok "$lquant" gptq --bits 4 --nsamples 16 -q "$tiny" "$tmp/out"
    fi
    [ "$(digest "$tmp/whole")" = "$(digest "$tmp/out")" ] || fail "the resumed output differs"
}

lqt_is_one_file_with_its_manifest_inside() { # test
    ok "$lquant" rtn --bits 4 -q "$tiny" "$tmp/out.lqt"
    [ -f "$tmp/out.lqt" ] || fail "out.lqt is no file"
    absent "$tmp/out.lqt.partial"
    ok "$lquant" eval "$tmp/out.lqt" -f "$text" --chunks 2
    ok "$lquant" inspect "$tmp/out.lqt"
}

float_types_are_verbs_and_schemes_of_any_method() { # test
    for verb in nf4 "nf4 --double-quant" fp4 fp8 "fp8 --granularity block" mxfp4 "nvfp4 --search" "gptq --scheme NF4 --nsamples 4 --seqlen 64" "gptq --scheme NVFP4 --nsamples 4 --seqlen 64"; do
        ok "$lquant" $verb -q --overwrite "$tiny" "$tmp/out.lqt"
        ok "$lquant" eval "$tmp/out.lqt" -f "$text" --chunks 1
    done
    expect 2 "granularity" "$lquant" fp8 --granularity group "$tiny" "$tmp/b.lqt"
    absent "$tmp/b.lqt"
}

dry_run_writes_nothing() { # test
    ok "$lquant" gptq --bits 4 --dry-run "$tiny" "$tmp/out"
    grep -q "bits per weight" "$tmp/stdout" || fail "no plan on stdout"
    absent "$tmp/out" "$tmp/out.partial"
}

types_and_ignored_modules_are_honoured() { # test
    ok "$lquant" gptq --bits 4 $quick --tensor-type 'down_proj=int8-g64' --ignore 'layers\.0\.' "$tiny" "$tmp/out"
    grep -q '"why": "--ignore"' "$tmp/out/lquant-manifest.json" || fail "an ignored module is not in the manifest"
    grep -q 'int8-sym-g64' "$tmp/out/lquant-manifest.json" || fail "the other type is not in the manifest"
    grep -q '"dynamic"' "$tmp/out/config.json" || fail "config.json has no dynamic entries"
    ok "$lquant" eval "$tmp/out" -f "$text" --chunks 1
}

illegal_requests_are_refused_before_work_starts() { # test
    expect 4 "nearest that does" "$lquant" gptq --bits 4 --group-size 96 "$tiny" "$tmp/out"
    expect 4 "int5" "$lquant" gptq --bits 5 --format gptq "$tiny" "$tmp/out"
    expect 2 "did you mean --bits" "$lquant" gptq --bitz 4 "$tiny" "$tmp/out"
    expect 2 "OUT is missing" "$lquant" gptq "$tiny"
    expect 2 "unknown verb" "$lquant" gpqt "$tiny" "$tmp/out"
    expect 2 "unknown format" "$lquant" gptq --format gpq "$tiny" "$tmp/out"
    expect 2 "regular expression" "$lquant" rtn --ignore '(' "$tiny" "$tmp/out"
    expect 2 "unknown type" "$lquant" rtn --tensor-type 'x=int9' "$tiny" "$tmp/out"
    absent "$tmp/out" "$tmp/out.partial"
}

nothing_of_the_users_is_touched() { # test
    mkdir "$tmp/out" && echo mine >"$tmp/out/file"
    expect 2 "exists" "$lquant" rtn --bits 4 "$tiny" "$tmp/out"
    [ "$(cat "$tmp/out/file")" = mine ] || fail "the existing folder was changed"
    mkdir "$tmp/b.partial" && echo mine >"$tmp/b.partial/file"
    expect 2 "in the way" "$lquant" rtn --bits 4 --resume never "$tiny" "$tmp/b"
    [ "$(cat "$tmp/b.partial/file")" = mine ] || fail "the user's b.partial was changed"
    copy_tiny
    expect 2 "is the input" "$lquant" rtn --bits 4 --overwrite "$tmp/in" "$tmp/in"
    ok "$lquant" rtn --bits 4 -q --overwrite "$tiny" "$tmp/out"
    absent "$tmp/out/file" "$tmp/out.replaced"
}

a_full_disk_is_one_sentence_and_no_output() { # test
    (ulimit -f 300; exec "$lquant" rtn --bits 4 "$tiny" "$tmp/out") >"$tmp/stdout" 2>"$tmp/stderr"
    [ $? = 8 ] || fail "exit code is not 8: $(tail -n 1 "$tmp/stderr")"
    grep -q "cannot write" "$tmp/stderr" || fail "no sentence: $(tail -n 1 "$tmp/stderr")"
    absent "$tmp/out"
}

broken_inputs_are_rejected() { # test
    copy_tiny
    size=$(wc -c <"$tmp/in/model.safetensors")
    poke "$tmp/in/model.safetensors" $((size - 2)) '\300\177' # a BF16 NaN
    expect 3 "model.safetensors|weight" "$lquant" rtn --bits 4 "$tmp/in" "$tmp/out"
    copy_tiny && truncate -s -1 "$tmp/in/model.safetensors"
    expect 3 "model.safetensors" "$lquant" rtn --bits 4 "$tmp/in" "$tmp/out"
    copy_tiny && rm "$tmp/in/model.safetensors"
    expect 3 "safetensors" "$lquant" rtn --bits 4 "$tmp/in" "$tmp/out"
    copy_tiny && sed -i 's/"hidden_size": [0-9]*/"hidden_size": 100/' "$tmp/in/config.json"
    expect 3 "configuration says" "$lquant" gptq --bits 4 "$tmp/in" "$tmp/out"
    copy_tiny && sed -i 's/"model_type": "llama"/"model_type": "llamoid"/' "$tmp/in/config.json"
    expect 4 "llamoid" "$lquant" gptq --bits 4 "$tmp/in" "$tmp/out"
    expect 3 "" "$lquant" gptq --bits 4 "$tmp/nowhere" "$tmp/out"
    absent "$tmp/out" "$tmp/out.partial"
}

convert_keeps_every_weight_in_f32() { # test
    ok "$lquant" convert --dtype f32 "$tiny" "$tmp/f32"
    grep -q "every one exact" "$tmp/stdout" || fail "$(cat "$tmp/stdout")"
    ok "$lquant" eval "$tiny" -f "$text" --chunks 2 --json
    sed -n 's/.*"perplexity": \([0-9.]*\).*/\1/p' "$tmp/stdout" >"$tmp/a"
    ok "$lquant" eval "$tmp/f32" -f "$text" --chunks 2 --json
    sed -n 's/.*"perplexity": \([0-9.]*\).*/\1/p' "$tmp/stdout" | cmp -s - "$tmp/a" || fail "perplexities differ"
}

dequantize_gives_the_decoded_weights_as_an_ordinary_folder() { # test
    ok "$lquant" rtn --bits 4 -q --format gptq "$tiny" "$tmp/gptq"
    ok "$lquant" rtn --bits 3 -q "$tiny" "$tmp/q.lqt"
    for q in gptq q.lqt; do
        ok "$lquant" eval "$tmp/$q" -f "$text" --chunks 2 --json
        sed -n 's/.*"perplexity": \([0-9.]*\).*/\1/p' "$tmp/stdout" >"$tmp/a"
        ok "$lquant" convert --dequantize f32 "$tmp/$q" "$tmp/f32-$q"
        grep -q "every one exact" "$tmp/stdout" || fail "$(cat "$tmp/stdout")"
        ok "$lquant" eval "$tmp/f32-$q" -f "$text" --chunks 2 --json
        sed -n 's/.*"perplexity": \([0-9.]*\).*/\1/p' "$tmp/stdout" >>"$tmp/a"
        awk '{ v[NR] = $1 } END { d = v[1] / v[2] - 1; exit !(NR == 2 && d < 1e-6 && d > -1e-6) }' "$tmp/a" || fail "$q: perplexities differ: $(tr '\n' ' ' <"$tmp/a")" # codes are summed in another order
        grep -q quantization_config "$tmp/f32-$q/config.json" && fail "$q: config.json still says quantized"
        grep -q '"torch_dtype": "float32"' "$tmp/f32-$q/config.json" || fail "$q: config.json does not say float32"
    done
    absent "$tmp/f32-gptq/quantize_config.json"
    grep -q '"quantization_config"' "$tmp/f32-gptq/lquant-manifest.json" || fail "the dropped key is not in the manifest"
}

perplexity() { sed -n 's/.*"perplexity": \([0-9.]*\).*/\1/p' "$tmp/stdout"; }

scales_of_keys_and_values_travel_as_tensors() { # test
    ok "$lquant" gptq --bits 4 --kv-scales $quick --format compressed-tensors "$tiny" "$tmp/ct"
    grep -q '"kv_cache_scheme": {' "$tmp/ct/config.json" || fail "config.json does not announce them"
    ok "$lquant" eval "$tmp/ct" -f "$text" --chunks 2 --json --kv fp8 --kv-scales
    perplexity >"$tmp/want"
    ok "$lquant" convert "$tmp/ct" "$tmp/back.lqt" --format lqt
    ok "$lquant" convert "$tmp/back.lqt" "$tmp/again" --format compressed-tensors
    ok "$lquant" convert --dequantize f32 "$tmp/again" "$tmp/f32"
    for q in back.lqt again f32; do
        ok "$lquant" eval "$tmp/$q" -f "$text" --chunks 2 --json --kv fp8 --kv-scales
        near=0
        [ $q = f32 ] && near=1e-4 # floats are summed in another order than codes: some keys are rounded the other way, by a sixteenth of themselves
        awk -v a="$(perplexity)" -v b="$(cat "$tmp/want")" -v t=$near 'BEGIN { d = a / b - 1; exit !(d <= t && -d <= t) }' || fail "$q: $(perplexity), expected $(cat "$tmp/want")"
    done
    cmp -s "$tmp/ct/model.safetensors" "$tmp/again/model.safetensors" || fail "there and back is not the same file"
    ok "$lquant" rtn --bits 4 -q --format compressed-tensors "$tiny" "$tmp/none"
    expect 2 "stores no scales" "$lquant" eval "$tmp/none" -f "$text" --chunks 1 --kv fp8 --kv-scales
    expect 4 "format gptq has no place" "$lquant" gptq --bits 4 --kv-scales $quick --format gptq "$tiny" "$tmp/gptq"
    absent "$tmp/gptq" "$tmp/gptq.partial"
}

run_all
