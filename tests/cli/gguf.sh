#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
. "$2/tests/cli/lib.sh"

a_folder_becomes_a_gguf_that_eval_runs_alike() { # test
    ok "$lquant" convert --dtype f32 "$tiny" "$tmp/a.gguf"
    grep -q "every one exact" "$tmp/stdout" || fail "not exact: $(cat "$tmp/stdout")"
    for m in "$tiny" "$tmp/a.gguf"; do
        ok "$lquant" eval "$m" -f "$text" --chunks 2 --json
        grep -o '"nll": [0-9.]*' "$tmp/stdout" >>"$tmp/nll"
    done
    [ "$(sort -u "$tmp/nll" | wc -l)" = 1 ] || fail "folder and GGUF differ: $(cat "$tmp/nll")"
    ok "$lquant" convert "$tmp/a.gguf" "$tmp/b.gguf"
    cmp -s "$tmp/a.gguf" "$tmp/b.gguf" || fail "a GGUF copied is another GGUF"
}

quantize_takes_llama_quantizes_arguments() { # test
    ok "$lquant" convert --dtype f32 "$tiny" "$tmp/a.gguf"
    ok "$lquant" quantize "$tmp/a.gguf" "$tmp/q.gguf" q8_0 2
    ok "$lquant" quantize -t 1 "$tiny" "$tmp/r.gguf" 7
    ok "$lquant" diff "$tmp/q.gguf" "$tmp/r.gguf"
    tail -c 100000 "$tmp/q.gguf" >"$tmp/q" && tail -c 100000 "$tmp/r.gguf" | cmp -s "$tmp/q" || fail "from a folder it is another file than from its GGUF" # but for what they say of their input
    ok "$lquant" eval "$tmp/q.gguf" -f "$text" --chunks 1
    expect 4 "allow-requantize" "$lquant" quantize "$tmp/q.gguf" "$tmp/s.gguf" Q4_0
    ok "$lquant" quantize --allow-requantize "$tmp/q.gguf" "$tmp/s.gguf" Q4_0
    ok "$lquant" quantize --pure --token-embedding-type f16 --tensor-type attn_q=q5_1 "$tiny" "$tmp/t.gguf" Q4_0
    ok "$lquant" inspect --json "$tmp/t.gguf"
    expect 2 "unknown type" "$lquant" quantize "$tmp/a.gguf" "$tmp/u.gguf" IQ2_XS
    expect 2 "arguments" "$lquant" quantize "$tmp/a.gguf"
    absent "$tmp/u.gguf"
}

a_gguf_says_how_it_was_made_and_verify_holds_it_to_that() { # test
    ok "$lquant" quantize --override-kv general.name=str:Other --override-kv llama.context_length=int:64 "$tiny" "$tmp/q.gguf" Q8_0
    ok "$lquant" inspect --json "$tmp/q.gguf"
    grep -q '"name": "model.safetensors"' "$tmp/stdout" || fail "no inputs in the manifest"
    grep -q '"method": "rtn"' "$tmp/stdout" || fail "no method in the manifest"
    grep -q 'general.name=str:Other' "$tmp/stdout" || fail "no settings in the manifest"
    grep -q Other "$tmp/q.gguf" || fail "general.name is not what was asked for"
    ok "$lquant" verify "$tmp/q.gguf"
    ok "$lquant" convert "$tmp/q.gguf" "$tmp/r.gguf"
    ok "$lquant" verify "$tmp/r.gguf"
    ok "$lquant" convert "$tmp/r.gguf" "$tmp/s.gguf"
    cmp -s "$tmp/r.gguf" "$tmp/s.gguf" || fail "a copy is another file"
    rm "$tmp/s.gguf"
    size=$(wc -c <"$tmp/q.gguf")
    poke "$tmp/q.gguf" $((size - 5)) '\021\022\023'
    "$lquant" verify "$tmp/q.gguf" >"$tmp/stdout" 2>&1
    [ $? = 3 ] || fail "a changed byte is not found"
    grep -q "not those lquant wrote" "$tmp/stdout" || fail "$(cat "$tmp/stdout")"
    expect 2 "override-kv" "$lquant" quantize --override-kv a=int:x "$tiny" "$tmp/s.gguf" Q8_0
    expect 4 "prune-layers" "$lquant" quantize --prune-layers 1 "$tiny" "$tmp/s.gguf" Q8_0
    absent "$tmp/s.gguf"
}

# tests/golden/gguf_split: `lquant convert --dtype f16 tests/golden/forward/llama`, cut by llama.cpp's llama-gguf-split --split-max-tensors 8
a_model_in_parts_stays_in_parts_when_asked() { # test
    parts=$root/tests/golden/gguf_split
    ok "$lquant" quantize --pure "$parts/s-00001-of-00003.gguf" "$tmp/one.gguf" Q4_0
    ok "$lquant" quantize --pure --keep-split "$parts/s-00001-of-00003.gguf" "$tmp/q.gguf" Q4_0
    absent "$tmp/q.gguf" "$tmp/q-00004-of-00003.gguf"
    for i in 1 2 3; do
        [ "$("$lquant" inspect --json "$tmp/q-0000$i-of-00003.gguf" | grep -c 'of-00003.gguf')" -ge 3 ] || fail "part $i does not name all three"
    done
    ok "$lquant" verify "$tmp/q-00001-of-00003.gguf"
    ok "$lquant" diff "$tmp/one.gguf" "$tmp/q-00001-of-00003.gguf"
    expect 8 "exists" "$lquant" quantize --pure --keep-split "$parts/s-00001-of-00003.gguf" "$tmp/q.gguf" Q4_0
    ok "$lquant" quantize --pure --keep-split --overwrite "$parts/s-00001-of-00003.gguf" "$tmp/q.gguf" Q8_0
    expect 0 "one part" "$lquant" quantize --keep-split "$tiny" "$tmp/r.gguf" Q8_0
    [ -f "$tmp/r.gguf" ] || fail "no $tmp/r.gguf"
    rm "$tmp/q-00002-of-00003.gguf"
    "$lquant" verify "$tmp/q-00001-of-00003.gguf" >"$tmp/stdout" 2>&1 && fail "a missing part is not found"
    grep -q "00002-of-00003" "$tmp/stdout" || fail "the missing part is not named: $(cat "$tmp/stdout")"
}

a_target_alone_chooses_format_and_group_size() { # test
    ok "$lquant" rtn --bits 4 --target llama.cpp -q "$tiny" "$tmp/model"
    ok "$lquant" inspect "$tmp/model"
    grep -q "GGUF" "$tmp/stdout" || fail "no GGUF: $(head -n 1 "$tmp/stdout")"
    expect 4 "nearest that loads: --format gguf --group-size 32" "$lquant" rtn --bits 4 --group-size 128 --target llama.cpp "$tiny" "$tmp/other"
    absent "$tmp/other"
}

an_importance_matrix_is_used_for_the_weights_that_are_named() { # test
    ok "$lquant" imatrix --nsamples 4 --seqlen 64 -q "$tiny" -f "$text" -o "$tmp/im.gguf"
    for how in "--include-weights attn_q" "--exclude-weights attn_q" ""; do
        ok "$lquant" quantize --imatrix "$tmp/im.gguf" $how --max-buffer-size 64 --pure "$tiny" "$tmp/q$(echo $how | cut -c3-4).gguf" Q4_0
    done
    ok "$lquant" quantize --pure "$tiny" "$tmp/plain.gguf" Q4_0
    "$lquant" diff "$tmp/plain.gguf" "$tmp/qin.gguf" >"$tmp/in" && fail "attn_q is as without"
    grep -q "q_proj" "$tmp/in" && ! grep -q "k_proj" "$tmp/in" || fail "other tensors than attn_q differ: $(cat "$tmp/in")"
    "$lquant" diff "$tmp/q.gguf" "$tmp/qex.gguf" >"$tmp/ex" && fail "attn_q is as with all"
    grep -q "q_proj" "$tmp/ex" && ! grep -q "k_proj" "$tmp/ex" || fail "other tensors than attn_q differ: $(cat "$tmp/ex")"
    expect 2 "one of them" "$lquant" quantize --imatrix "$tmp/im.gguf" --include-weights a --exclude-weights b "$tiny" "$tmp/s.gguf" Q4_0
    expect 2 "nothing" "$lquant" quantize --imatrix "$tmp/im.gguf" --include-weights nowhere "$tiny" "$tmp/s.gguf" Q4_0
    printf 'attn_q=q8_0 attn_k=q5_1\nffn_up=f16' >"$tmp/types"
    ok "$lquant" quantize --pure --tensor-type-file "$tmp/types" "$tiny" "$tmp/t.gguf" Q4_0
    ok "$lquant" inspect "$tmp/t.gguf"
    for t in Q8_0 Q5_1 F16 Q4_0; do grep -q "$t " "$tmp/stdout" || fail "no $t in $(cat "$tmp/stdout")"; done
}

activations_are_rounded_as_llama_cpp_does_when_asked_for() { # test
    ok "$lquant" quantize --pure "$tiny" "$tmp/q.gguf" Q4_0
    for how in as-stored ggml; do
        ok "$lquant" eval "$tmp/q.gguf" -f "$text" --chunks 2 --activations $how --json -q
        sed -n 's/^ *"nll": \([0-9.]*\).*/\1/p' "$tmp/stdout" >>"$tmp/nll"
    done
    grep -q '"activations": "ggml"' "$tmp/stdout" || fail "the result does not say it"
    awk 'NR == 1 { a = $1 } NR == 2 { d = $1 - a; exit !(d != 0 && d < 0.02 && d > -0.02) }' "$tmp/nll" || fail "nll $(tr '\n' ' ' <"$tmp/nll")"
}

a_mixture_falls_back_where_blocks_do_not_divide_or_refuses() { # test
    ok "$lquant" rtn --scheme Q4_K_M "$tiny" "$tmp/a.gguf"
    expect 4 "no multiple of the 256|no-fallback" "$lquant" quantize --no-fallback --tensor-type 'ffn_down=q4_k' "$root/tests/golden/forward/llama" "$tmp/b.gguf" Q4_K_M
    expect 2 "mixture of a GGUF" "$lquant" rtn --scheme Q4_K_M "$tiny" "$tmp/c"
    absent "$tmp/b.gguf" "$tmp/c"
}

gptq_writes_a_gguf_with_its_embedding_quantized() { # test
    ok "$lquant" gptq --scheme Q4_K_M $quick "$tiny" "$tmp/a.gguf"
    ok "$lquant" eval "$tmp/a.gguf" -f "$text" --chunks 1
    absent "$tmp/a.gguf.partial"
}

an_importance_matrix_is_written_in_both_forms_and_used() { # test
    for form in gguf dat; do
        ok "$lquant" imatrix --nsamples 4 --seqlen 64 -q "$tiny" -f "$text" -o "$tmp/im.$form"
        ok "$lquant" quantize --imatrix "$tmp/im.$form" "$tiny" "$tmp/$form.gguf" Q4_0
        expect 4 "diagonals" "$lquant" gptq --bits 4 --stats "$tmp/im.$form" "$tiny" "$tmp/no"
    done
    ok "$lquant" quantize "$tiny" "$tmp/plain.gguf" Q4_0
    "$lquant" diff "$tmp/gguf.gguf" "$tmp/plain.gguf" >"$tmp/stdout" && fail "the importance matrix changes no weight"
    absent "$tmp/no"
}

an_interrupted_file_is_continued_as_the_same_type_only() { # test
    ok "$lquant" quantize --pure "$tiny" "$tmp/whole.gguf" Q4_0
    (trap '' XFSZ && ulimit -f 300 && "$lquant" quantize --pure "$tiny" "$tmp/a.gguf" Q4_0 >/dev/null 2>&1) # the disk is full after some tensors
    [ $? = 8 ] && [ -d "$tmp/a.gguf.partial" ] || fail "nothing was interrupted"
    expect 7 "other inputs or options" "$lquant" quantize --pure "$tiny" "$tmp/a.gguf" Q8_0
    expect 7 "other inputs or options" "$lquant" quantize --pure --tensor-type ffn_down=q8_0 "$tiny" "$tmp/a.gguf" Q4_0
    ok "$lquant" quantize --pure "$tiny" "$tmp/a.gguf" Q4_0
    cmp -s "$tmp/whole.gguf" "$tmp/a.gguf" || fail "the continued file differs"
    absent "$tmp/a.gguf.partial"
}

what_llama_cpp_does_not_run_is_refused_before_work() { # test
    expect 4 "no architecture for 'opt'" "$lquant" convert "$root/tests/golden/forward/opt" "$tmp/o.gguf"
    expect 4 "silu" "$lquant" convert "$root/tests/golden/forward/bitnet" "$tmp/o.gguf"
    absent "$tmp/o.gguf" "$tmp/o.gguf.partial"
}

run_all
