#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# convert, verify, diff, inspect and --format a,b,c on the tiny model; every finding of verify is provoked once.
. "$2/tests/cli/lib.sh"

quantized() { ok "$lquant" rtn --bits 4 --group-size 32 -q --overwrite "$@" "$tiny" "$tmp/q"; }
sound() { ok "$lquant" verify "$1"; }
# finds CODE PATTERN PATH: verify says it and leaves with 3; warns: it says it and leaves with 0
finds() {
    "$lquant" verify "$3" >"$tmp/stdout" 2>"$tmp/stderr"
    got=$?
    [ $got = 3 ] || fail "verify left with $got: $(tail -n 1 "$tmp/stdout")"
    grep -E "^error +$1 " "$tmp/stdout" | grep -qE -- "$2" || fail "no error $1 '$2' in: $(cat "$tmp/stdout")"
}
warns() {
    "$lquant" verify "$3" >"$tmp/stdout" 2>"$tmp/stderr" || fail "verify left with $?: $(cat "$tmp/stdout")"
    grep -E "^(warning|note) +$1 " "$tmp/stdout" | grep -qE -- "$2" || fail "no warning $1 '$2' in: $(cat "$tmp/stdout")"
}
differ() {
    "$lquant" diff "$@" >"$tmp/stdout" 2>"$tmp/stderr"
    [ $? = 1 ] || fail "diff $* does not say that they differ: $(tail -n 1 "$tmp/stderr")"
}

several_formats_of_one_run_hold_the_same_model() { # test
    ok "$lquant" rtn --bits 4 --group-size 32 -q --format gptq,awq,lqt,gguf "$tiny" "$tmp/all"
    absent "$tmp/all.partial" "$tmp/all/lqt" "$tmp/all/gguf"
    for c in gptq awq lqt.lqt gguf.gguf; do
        sound "$tmp/all/$c"
        ok "$lquant" diff "$tmp/all/gptq" "$tmp/all/$c"
    done
    quantized --format gptq
    [ "$(digest "$tmp/q")" = "$(digest "$tmp/all/gptq")" ] || fail "alone it has other bytes"
}

a_format_that_cannot_hold_the_recipe_is_named_before_work() { # test
    expect 4 "format awq" "$lquant" rtn --bits 3 --format gptq,awq "$tiny" "$tmp/out"
    expect 2 "twice" "$lquant" rtn --format gptq,gptq "$tiny" "$tmp/out"
    expect 2 "unknown format" "$lquant" rtn --format gptq,gpq "$tiny" "$tmp/out"
    absent "$tmp/out" "$tmp/out.partial"
}

the_methods_own_format_is_the_default() { # test
    for pair in rtn:gptq nf4:bitsandbytes awq:awq; do
        ok "$lquant" ${pair%:*} $quick --overwrite "$tiny" "$tmp/out"
        ok "$lquant" inspect --summary "$tmp/out" --json
        grep -q "\"format\": \"${pair#*:}\"" "$tmp/stdout" || fail "$pair: $(grep '"format"' "$tmp/stdout")"
    done
}

codes_survive_every_conversion_and_come_back_to_the_same_bytes() { # test
    quantized --format gptq
    ok "$lquant" convert --format lqt,gptq_v2,awq,gguf "$tmp/q" "$tmp/all"
    [ "$(grep -c "every one exact" "$tmp/stdout")" = 4 ] || fail "$(cat "$tmp/stdout")"
    for c in lqt.lqt gptq_v2 awq gguf.gguf; do
        ok "$lquant" convert --overwrite --format gptq "$tmp/all/$c" "$tmp/back"
        ok "$lquant" diff "$tmp/q" "$tmp/back"
        [ $c = gguf.gguf ] || cmp -s "$tmp/q/model.safetensors" "$tmp/back/model.safetensors" || fail "$c: other tensors come back"
    done
    cmp -s "$tmp/q/tokenizer.json" "$tmp/back/tokenizer.json" || [ -s "$tmp/back/tokenizer.json" ] || fail "the tokenizer was lost"
}

what_has_no_exact_place_is_refused_by_name_or_costs_what_is_told() { # test
    ok "$lquant" nf4 -q "$tiny" "$tmp/nf4.lqt"
    expect 4 "q_proj.weight: nf4-block64 has no exact place in format gptq; the nearest is int" "$lquant" convert --format gptq "$tmp/nf4.lqt" "$tmp/out"
    expect 4 "bitsandbytes" "$lquant" convert --format gptq "$tmp/nf4.lqt" "$tmp/out"
    absent "$tmp/out" "$tmp/out.partial"
    ok "$lquant" convert --lossy --format gptq "$tmp/nf4.lqt" "$tmp/out" --json
    sed -n 's/^ *"relative_rms": \([0-9.e-]*\),$/\1/p' "$tmp/stdout" | head -n 1 >"$tmp/told"
    differ --json "$tmp/nf4.lqt" "$tmp/out"
    sed -n 's/^ *"relative_rms": \([0-9.e-]*\),$/\1/p' "$tmp/stdout" | head -n 1 | cmp -s - "$tmp/told" || fail "told $(cat "$tmp/told"), seen $(grep relative_rms "$tmp/stdout" | head -n 1)"
    ok "$lquant" rtn --bits 4 --asym -q "$tiny" "$tmp/asym"
    ok "$lquant" convert --format awq "$tmp/asym" "$tmp/awq"
    expect 2 "dequantize" "$lquant" convert --dequantize f32 --format lqt "$tmp/asym" "$tmp/b"
    expect 4 "no matrix of it is quantized" "$lquant" convert --format gptq "$tiny" "$tmp/b"
    absent "$tmp/b" "$tmp/b.partial"
}

scales_of_keys_and_values_go_where_a_runtime_reads_them() { # test
    ok "$lquant" rtn --bits 4 --kv-scales --calib random --nsamples 2 --seqlen 32 --format compressed-tensors -q "$tiny" "$tmp/kv"
    ok "$lquant" convert --format lqt "$tmp/kv" "$tmp/kv.lqt"
    ok "$lquant" convert --format modelopt --overwrite "$tmp/kv" "$tmp/out"
    rm -rf "$tmp/out"
    for f in gptq awq gguf mlx; do
        expect 4 "format $f has no place for scales of keys and values" "$lquant" convert --format $f "$tmp/kv" "$tmp/out"
        absent "$tmp/out" "$tmp/out.partial"
    done
    ok "$lquant" convert --lossy --format gptq "$tmp/kv" "$tmp/out"
}

diff_speaks_like_diff() { # test
    quantized
    differ "$tiny" "$tmp/q"
    grep -q "relative rms" "$tmp/stdout" || fail "$(tail -n 1 "$tmp/stdout")"
    ok "$lquant" diff "$tmp/q" "$tmp/q"
    ok "$lquant" convert --dequantize f32 "$tmp/q" "$tmp/f32"
    ok "$lquant" diff "$tmp/q" "$tmp/f32"
    differ --types "$tmp/q" "$tmp/f32"
    expect 3 "nowhere" "$lquant" diff "$tmp/q" "$tmp/nowhere"
    expect 2 "B is missing" "$lquant" diff "$tmp/q"
}

inspect_draws_the_scales() { # test
    quantized
    ok "$lquant" inspect --histogram "$tmp/q"
    grep -q "scales" "$tmp/stdout" || fail "$(tail -n 3 "$tmp/stdout")"
    ok "$lquant" inspect --histogram --json "$tmp/q"
    grep -q '"histogram"' "$tmp/stdout" || fail "no histogram in the JSON"
}

sound_checkpoints_have_no_errors() { # test
    sound "$tiny"
    for f in gptq gptq_v2 awq lqt gguf; do
        quantized --format $f
        sound "$tmp/q"
        rm -rf "$tmp/q"
    done
}

# json_edit FILE SED-SCRIPT
json_edit() { chmod u+w "$1" && sed -i "$2" "$1"; }
fresh() { rm -rf "$tmp/q" && quantized --format gptq && rm -f "$tmp/q/lquant-manifest.json"; }

verify_checks_hashes() { # test
    quantized --format gptq
    echo >>"$tmp/q/tokenizer_config.json"
    finds hash "tokenizer_config.json: its bytes are not those" "$tmp/q"
    rm "$tmp/q/tokenizer_config.json"
    finds hash "it is not here" "$tmp/q"
}

verify_checks_configuration_against_tensors() { # test
    fresh && json_edit "$tmp/q/config.json" 's/"num_hidden_layers": [0-9]*/"num_hidden_layers": 4/'
    finds layers "4 layers, the tensors are of 6" "$tmp/q"
    fresh && json_edit "$tmp/q/config.json" 's/"num_hidden_layers": [0-9]*/"num_hidden_layers": 9/'
    finds model "missing" "$tmp/q"
    finds layers "9 layers" "$tmp/q"
    fresh && json_edit "$tmp/q/config.json" 's/"hidden_size": [0-9]*/"hidden_size": 96/'
    finds model "configuration says" "$tmp/q"
    fresh && json_edit "$tmp/q/config.json" 's/"vocab_size": [0-9]*/"vocab_size": 100/'
    finds model "configuration says" "$tmp/q"
    fresh && json_edit "$tmp/q/config.json" 's/"group_size": 32/"group_size": 64/'
    finds unreadable "expected .6, 128" "$tmp/q"
    fresh && json_edit "$tmp/q/config.json" 's/"bits": 4/"bits": 8/'
    finds unreadable "expected" "$tmp/q"
    fresh && json_edit "$tmp/q/config.json" 's/"eos_token_id": [0-9]*/"eos_token_id": 999999/'
    finds vocabulary "eos_token_id is 999999" "$tmp/q"
    fresh && json_edit "$tmp/q/config.json" 's/"model_type": "llama"/"model_type": "llamoid"/'
    warns model "llamoid" "$tmp/q"
    fresh && printf 'x' >"$tmp/q/config.json"
    finds config "config.json" "$tmp/q"
}

verify_checks_zero_points_and_values() { # test
    fresh && json_edit "$tmp/q/config.json" 's/"gptq"/"gptq_v2"/; s/"checkpoint_format": "gptq"/"checkpoint_format": "gptq_v2"/; s/"format": "gptq"/"format": "gptq_v2"/' && json_edit "$tmp/q/config.json" 's/"quant_method": "gptq_v2"/"quant_method": "gptq"/'
    finds codes "zero point 7, expected 8" "$tmp/q"
    quantized --format gptq_v2 --asym && rm "$tmp/q/lquant-manifest.json"
    json_edit "$tmp/q/config.json" 's/"checkpoint_format": "gptq_v2"/"checkpoint_format": "gptq"/; s/"format": "gptq_v2"/"format": "gptq"/'
    "$lquant" verify "$tmp/q" >"$tmp/stdout" 2>/dev/null
    grep -qE "^error +(zero-points|codes) .*(convention|v1 readers)" "$tmp/stdout" || fail "v2 zeros under v1's name pass: $(cat "$tmp/stdout")"
    fresh && size=$(wc -c <"$tmp/q/model.safetensors")
    for at in 4 3 2; do poke "$tmp/q/model.safetensors" $((size - at)) '\377'; done
    poke "$tmp/q/model.safetensors" $((size - 1)) '\177'
    "$lquant" verify "$tmp/q" >"$tmp/stdout" 2>/dev/null
    [ $? = 3 ] || fail "a broken last tensor passes: $(cat "$tmp/stdout")"
    copy_tiny && rm -f "$tmp/in/lquant-manifest.json" && size=$(wc -c <"$tmp/in/model.safetensors")
    poke "$tmp/in/model.safetensors" $((size - 2)) '\300\177' # a BF16 NaN
    finds nan "NaN or infinite" "$tmp/in"
}

verify_checks_files() { # test
    fresh && cp "$tmp/q/model.safetensors" "$tmp/q/model-00002-of-00002.safetensors"
    json='{"metadata": {"total_size": 7}, "weight_map": {"model.norm.weight": "model.safetensors", "model.lost.weight": "model-00003-of-00003.safetensors"}}'
    echo "$json" >"$tmp/q/model.safetensors.index.json"
    finds index "is not in model.safetensors.index.json" "$tmp/q"
    finds index "the shard is missing" "$tmp/q"
    grep -q "stale-shard" "$tmp/stdout" || fail "the stale shard passes"
    grep -q "total_size is 7" "$tmp/stdout" || fail "the wrong size passes"
    fresh && rm "$tmp/q/tokenizer.json"
    warns sidecar "no tokenizer" "$tmp/q"
    fresh && rm "$tmp/q/generation_config.json"
    warns sidecar "generation_config.json: missing" "$tmp/q"
    fresh && rm "$tmp/q/config.json"
    finds sidecar "config.json: missing" "$tmp/q"
    fresh && truncate -s -3 "$tmp/q/model.safetensors"
    finds unreadable "model.safetensors" "$tmp/q"
    fresh && echo x >"$tmp/q/pytorch_model.bin"
    warns pickle "pytorch_model.bin" "$tmp/q"
    copy_tiny && json_edit "$tmp/in/model.safetensors" 's/"format":"pt"/"farmat":"pt"/'
    warns metadata "without" "$tmp/in"
    printf 'short' >"$tmp/s.safetensors"
    finds header "5 bytes" "$tmp/s.safetensors"
    expect 3 "no such file" "$lquant" verify "$tmp/nowhere"
}

sound_checkpoints_raise_no_alarm() { # test
    ok "$lquant" rtn --scheme Q2_0 -q "$tiny" "$tmp/m.gguf" # whole groups of it are zeros
    ok "$lquant" verify "$tmp/m.gguf"
    grep -q "0 errors, 0 warnings" "$tmp/stdout" || fail "$(grep warning "$tmp/stdout" | head -n 3)"
    fresh && rm -f "$tmp/q/tokenizer_config.json" "$tmp/q/generation_config.json"
    ok "$lquant" verify "$tmp/q"
    grep -q "0 errors, 0 warnings" "$tmp/stdout" || fail "$(grep warning "$tmp/stdout" | head -n 3)"
    fresh && rm "$tmp/q/tokenizer.json"
    ok "$lquant" verify "$tmp/q"
    grep -q "0 errors, 1 warnings" "$tmp/stdout" || fail "a missing tokenizer is told twice"
    json_edit "$tmp/q/config.json" 's/"model_type"/"vision_config": {"depth": 2}, "model_type"/'
    ok "$lquant" verify "$tmp/q"
}

verify_checks_a_gguf() { # test
    quantized --format gguf && mv "$tmp/q" "$tmp/m.gguf"
    sound "$tmp/m.gguf"
    cp "$tmp/m.gguf" "$tmp/n.gguf" && json_edit "$tmp/n.gguf" 's/tokenizer\.ggml\.pre/tokenizer.ggml.prx/'
    warns gguf "tokenizer.ggml.pre: missing" "$tmp/n.gguf"
    cp "$tmp/m.gguf" "$tmp/n.gguf" && json_edit "$tmp/n.gguf" 's/tokenizer\.ggml\.merges/tokenizer.ggml.nerges/'
    finds gguf "without its merges" "$tmp/n.gguf"
    cp "$tmp/m.gguf" "$tmp/n.gguf" && truncate -s -40 "$tmp/n.gguf"
    finds unreadable "n.gguf" "$tmp/n.gguf"
}

run_all
