#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
. "$2/tests/cli/lib.sh"

value() { sed -n 's/^ *"'"$1"'": \([^,]*\),*$/\1/p' "$2" | head -n 1; }
near() { awk -v a="$1" -v b="$2" -v t="$3" 'BEGIN { d = a - b; exit !(d <= t && -d <= t) }' || fail "$1 is not $2 within $3"; }

the_result_line_names_protocol_text_and_bos() { # test
    ok "$lquant" eval "$tiny" -f "$text" --chunks 2 -q
    sha=$(sha256sum "$text" | cut -c1-8)
    grep -qE "^ppl [0-9.]+ \+- [0-9.]+ \[gptq-256/heldout/sha:$sha/bos:auto\(0\)\]$" "$tmp/stdout" || fail "$(cat "$tmp/stdout")"
    ok "$lquant" ppl "$tiny" -f "$text" --protocol llamacpp-512 --ctx 100 --chunks 2 -q
    grep -q "\[llamacpp-100/" "$tmp/stdout" || fail "$(cat "$tmp/stdout")"
}

json_has_every_field() { # test
    ok "$lquant" eval "$tiny" -f "$text" --chunks 2 --json -q
    for key in schema protocol perplexity stderr nll tokens ctx chunks seconds tokens_per_second model_bytes bits_per_weight peak_memory text_sha256 bos chunk_nll; do
        grep -q "\"$key\":" "$tmp/stdout" || fail "no $key"
    done
    [ "$(value tokens "$tmp/stdout")" = 510 ] || fail "tokens: $(value tokens "$tmp/stdout")"
    [ "$(value bits_per_weight "$tmp/stdout")" = 16.0 ] || fail "bits per weight: $(value bits_per_weight "$tmp/stdout")"
}

decoding_token_by_token_gives_the_same_perplexity() { # test
    while read -r out within recipe; do # sums in another order; rounded activations may fall on the other side of a half
        ok "$lquant" $recipe -q --overwrite "$tiny" "$tmp/$out"
        for how in "" --decode; do
            ok "$lquant" eval "$tmp/$out" -f "$text" --chunks 2 --json -q $how
            cp "$tmp/stdout" "$tmp/r$how.json"
        done
        near "$(value nll "$tmp/r.json")" "$(value nll "$tmp/r--decode.json")" $within
    done <<END
q 1e-5 rtn --bits 4
b 1e-5 rtn --scheme NF4 --format bitsandbytes
m.gguf 1e-5 rtn --scheme Q4_0 --format gguf
s.lqt 1e-5 rtn --scheme int3-asym --group-size 32 --format lqt
t 5e-3 rtn --scheme W8A8
END
}

one_changed_code_changes_the_perplexity() { # test
    for format in gptq lqt; do
        ok "$lquant" rtn --bits 4 -q --format $format "$tiny" "$tmp/q.$format"
    done
    ok "$lquant" eval "$tmp/q.gptq" -f "$text" --chunks 1 --json -q
    before=$(value nll "$tmp/stdout")
    ok "$lquant" eval "$tmp/q.lqt" -f "$text" --chunks 1 --json -q
    [ "$before" = "$(value nll "$tmp/stdout")" ] || fail "lqt and gptq of the same codes differ"
    file=$tmp/q.gptq/model.safetensors
    head=$(od -An -tu8 -N8 "$file" | tr -d ' ')
    at=$(dd if="$file" bs=1 skip=8 count="$head" 2>/dev/null | grep -oE '"model.layers.2.mlp.down_proj.qweight":\{[^}]*\}' | grep -oE 'data_offsets":\[[0-9]+' | grep -oE '[0-9]+$')
    byte=$(od -An -tu1 -j $((8 + head + at + 40)) -N1 "$file" | tr -d ' ')
    poke "$file" $((8 + head + at + 40)) "\\$(printf %o $((byte ^ 4)))"
    ok "$lquant" eval "$tmp/q.gptq" -f "$text" --chunks 1 --json -q
    [ "$before" != "$(value nll "$tmp/stdout")" ] || fail "a changed code changes nothing"
}

a_base_is_a_model_or_its_result() { # test
    ok "$lquant" rtn --bits 3 -q "$tiny" "$tmp/q"
    ok "$lquant" eval "$tiny" -f "$text" --chunks 4 --json -q
    cp "$tmp/stdout" "$tmp/base.json"
    ok "$lquant" eval "$tmp/q" -f "$text" --chunks 4 --base "$tmp/base.json" -q
    tail -n 1 "$tmp/stdout" >"$tmp/a"
    ok "$lquant" eval "$tmp/q" -f "$text" --chunks 4 --base "$tiny" -q
    tail -n 1 "$tmp/stdout" | cmp -s - "$tmp/a" || fail "$(cat "$tmp/a" "$tmp/stdout")"
    ok "$lquant" eval "$tmp/q" -f "$text" --chunks 4 --base "$tiny" --kld -q
    grep -q "^kld 0\.[0-9]* +- " "$tmp/stdout" || fail "$(cat "$tmp/stdout")"
    sed -n 2p "$tmp/stdout" | cmp -s - "$tmp/a" || fail "with --kld: $(cat "$tmp/a" "$tmp/stdout")"
}

what_cannot_be_compared_is_refused() { # test
    ok "$lquant" eval "$tiny" -f "$text" --chunks 4 --json -q
    cp "$tmp/stdout" "$tmp/base.json"
    expect 2 "chunks is 4, here it is 3" "$lquant" eval "$tiny" -f "$text" --chunks 3 --base "$tmp/base.json"
    expect 2 "protocol is gptq-256, here it is gptq-64" "$lquant" eval "$tiny" -f "$text" --chunks 4 --ctx 64 --base "$tmp/base.json"
    head -c 100000 "$text" >"$tmp/other.txt"
    expect 2 "text_sha256" "$lquant" eval "$tiny" -f "$tmp/other.txt" --chunks 4 --base "$tmp/base.json"
    expect 2 "is a result" "$lquant" eval "$tiny" -f "$text" --base "$tmp/base.json" --kld
    expect 2 "needs --base" "$lquant" eval "$tiny" -f "$text" --kld
    expect 2 "needs --kld" "$lquant" eval "$tiny" -f "$text" --base "$tiny" --kld-chunks 2
    echo "a few words" >"$tmp/short.txt"
    expect 3 "tokens, gptq-256 needs at least 256" "$lquant" eval "$tiny" -f "$tmp/short.txt"
    expect 2 "needs a text" "$lquant" eval "$tiny"
    expect 2 "expected gptq-2048" "$lquant" eval "$tiny" -f "$text" --protocol gptq
}

run_writes_the_same_text_each_time() { # test
    ok "$lquant" run "$tiny" -p "The value of" -n 12
    cp "$tmp/stdout" "$tmp/a"
    [ "$(wc -c <"$tmp/a")" -gt 10 ] || fail "only $(cat "$tmp/a")"
    ok "$lquant" run "$tiny" -p "The value of" -n 12 -t 1
    cmp -s "$tmp/stdout" "$tmp/a" || fail "one thread writes another text"
    for k in 1 2; do
        ok "$lquant" run "$tiny" -p "The value of" -n 12 --temp 1 --seed 5 --json -q
        grep -v seconds "$tmp/stdout" | grep -v per_second >"$tmp/s$k"
    done
    cmp -s "$tmp/s1" "$tmp/s2" || fail "the seed does not decide"
    expect 2 "needs a prompt" "$lquant" run "$tiny"
}

saved_tokens_give_the_same_checkpoint() { # test
    ok "$lquant" gptq --bits 4 $quick --save-tokens "$tmp/rows.jsonl" "$tiny" "$tmp/a"
    [ "$(wc -l <"$tmp/rows.jsonl")" = 8 ] || fail "$(wc -l <"$tmp/rows.jsonl") rows"
    ok "$lquant" gptq --bits 4 $quick -f "$tmp/rows.jsonl" "$tiny" "$tmp/b"
    cmp -s "$tmp/a/model.safetensors" "$tmp/b/model.safetensors" || fail "the weights differ"
    expect 8 "save-tokens" "$lquant" gptq --bits 4 $quick --save-tokens "$tmp/rows.jsonl" "$tiny" "$tmp/c"
    absent "$tmp/c"
}

inspect_tells_what_is_there() { # test
    ok "$lquant" gptq --bits 4 $quick "$tiny" "$tmp/q"
    ok "$lquant" inspect "$tmp/q"
    grep -qE "^linears +42 in the blocks, 42 quantized, 4\.125" "$tmp/stdout" || fail "$(head -n 12 "$tmp/stdout")"
    grep -q "int4-sym-g128" "$tmp/stdout" || fail "no type"
    grep -q "calibration" "$tmp/stdout" || fail "no provenance"
    ok "$lquant" show "$tmp/q" --json
    grep -q '"quantization_config"' "$tmp/stdout" || fail "no quantization_config"
    expect 3 "" "$lquant" inspect "$tmp/nowhere"
}

bench_tells_how_fast_it_is() { # test
    ok "$lquant" gptq --bits 4 $quick "$tiny" "$tmp/q"
    ok "$lquant" bench "$tmp/q" --ctx 24,40 --batch 1,3 -n 4 -r 2
    [ "$(grep -c "^prompt" "$tmp/stdout") $(grep -c "^decode" "$tmp/stdout")" = "2 4" ] || fail "$(cat "$tmp/stdout")"
    grep -q "^read bandwidth [0-9.]* GB/s" "$tmp/stdout" || fail "no bandwidth"
    ok "$lquant" bench "$tmp/q" --ctx 24 --batch 2 -n 4 -r 1 --json
    for key in first_token_seconds bytes_per_token bandwidth_share seconds_median seconds_p99 joules_per_token attention load_average; do
        grep -q "\"$key\"" "$tmp/stdout" || fail "no $key"
    done
    if "$lquant" bench "$tmp/q" --ctx 8 --batch 1 -n 1 -r 1 --device emu > "$tmp/emu" 2>&1; then # a build may be without the emulation
        grep -q "^decode .*kernels a step  *linear  *[0-9.]*%.*head" "$tmp/emu" && grep -q "^device emu reads [0-9.]* GB/s" "$tmp/emu" || fail "$(cat "$tmp/emu")"
    else grep -q "emu" "$tmp/emu" || fail "$(cat "$tmp/emu")"; fi
    expect 2 "numbers from 1" "$lquant" bench "$tmp/q" --batch 1,x
    expect 2 "needs a model" "$lquant" bench
}

run_all
