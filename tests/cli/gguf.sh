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
    cmp -s "$tmp/q.gguf" "$tmp/r.gguf" || fail "from a folder it is another file than from its GGUF"
    ok "$lquant" eval "$tmp/q.gguf" -f "$text" --chunks 1
    expect 4 "allow-requantize" "$lquant" quantize "$tmp/q.gguf" "$tmp/s.gguf" Q4_0
    ok "$lquant" quantize --allow-requantize "$tmp/q.gguf" "$tmp/s.gguf" Q4_0
    ok "$lquant" quantize --pure --token-embedding-type f16 --tensor-type attn_q=q5_1 "$tiny" "$tmp/t.gguf" Q4_0
    ok "$lquant" inspect --json "$tmp/t.gguf"
    expect 2 "unknown type" "$lquant" quantize "$tmp/a.gguf" "$tmp/u.gguf" IQ2_XS
    expect 2 "arguments" "$lquant" quantize "$tmp/a.gguf"
    absent "$tmp/u.gguf"
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
    cmp -s "$tmp/gguf.gguf" "$tmp/plain.gguf" && fail "the importance matrix changes no byte"
    absent "$tmp/no"
}

what_llama_cpp_does_not_run_is_refused_before_work() { # test
    expect 4 "no architecture for 'opt'" "$lquant" convert "$root/tests/golden/forward/opt" "$tmp/o.gguf"
    expect 4 "silu" "$lquant" convert "$root/tests/golden/forward/bitnet" "$tmp/o.gguf"
    absent "$tmp/o.gguf" "$tmp/o.gguf.partial"
}

run_all
