#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Every golden model (tests/golden/forward), with a tokenizer of letters, through quantization and evaluation.
. "$2/tests/cli/lib.sh"

text=$root/texts/heldout.txt
calib="-f $root/README.md --nsamples 8 --seqlen 48 -q"

lettered() { # folder
    rm -rf "$tmp/in" "$tmp/out.lqt" && mkdir "$tmp/in"
    cp "$1/config.json" "$1/model.safetensors" "$tmp/in" && chmod u+w "$tmp/in"/*
    cp "$root/tests/cli/letters.json" "$tmp/in/tokenizer.json"
}

close_to_fp() { # nats
    ok "$lquant" eval "$tmp/out.lqt" --base "$tmp/in" -f "$text" --ctx 48 --chunks 4 --kld --json
    kld=$(sed -n 's/^ *"kld": *{* *"mean": *\([^,]*\),*$/\1/p; s/^ *"mean": *\([^,]*\),*$/\1/p' "$tmp/stdout" | head -n 1)
    awk "BEGIN { exit !(\"$kld\" != \"\" && $kld >= 0 && $kld < $1) }" || fail "$model: KL divergence '$kld' after $2"
}

every_architecture_is_quantized_and_evaluated() { # test
    for folder in "$root"/tests/golden/forward/*/; do
        model=$(basename "$folder")
        lettered "$folder"
        ok "$lquant" rtn --bits 8 --group-size -1 --format lqt -q "$tmp/in" "$tmp/out.lqt"
        close_to_fp 0.1 rtn
        ok rm "$tmp/out.lqt"
        ok "$lquant" gptq --bits 6 --group-size -1 --format lqt $calib "$tmp/in" "$tmp/out.lqt"
        close_to_fp 0.7 gptq
    done
}

others() { # names and shapes of the tensors that are not the tower's
    tr ',' '\n' <"$1/model.safetensors" | tr '{' '\n' | grep -aoE '"(model\.)?(vis[a-z_]*|multi_modal_projector)\.[^"]*"' | sort
}

everything_but_the_text_tower_is_copied_through() { # test
    for model in gemma3_mm llava qwen2_vl; do
        lettered "$root/tests/golden/forward/$model"
        echo '{"do_resize": true}' >"$tmp/in/preprocessor_config.json"
        ok "$lquant" gptq --bits 4 --group-size -1 --keep-unfit $calib "$tmp/in" "$tmp/out"
        cmp -s "$tmp/in/preprocessor_config.json" "$tmp/out/preprocessor_config.json" || fail "$model: preprocessor_config.json differs"
        others "$tmp/in" >"$tmp/before"
        others "$tmp/out" >"$tmp/after"
        [ "$(wc -l <"$tmp/before")" -gt 10 ] && cmp -s "$tmp/before" "$tmp/after" || fail "$model: other tensors are missing"
        ok "$lquant" eval "$tmp/out" -f "$text" --ctx 48 --chunks 1
        rm -rf "$tmp/out"
    done
}

# GPT-2's matrices lie [cols][rows] in its files: so they do after a conversion, and where they are kept beside quantized ones.
matrices_that_files_store_transposed_stay_so() { # test
    lettered "$root/tests/golden/forward/gpt2"
    ok "$lquant" convert --dtype f32 "$tmp/in" "$tmp/f32"
    ok "$lquant" inspect "$tmp/f32"
    grep -qE "h.0.mlp.c_fc.weight +F32 +32x128" "$tmp/stdout" || fail "$(grep c_fc "$tmp/stdout")"
    ok "$lquant" convert --dtype f32 "$tmp/f32" "$tmp/again"
    cmp -s "$tmp/f32/model.safetensors" "$tmp/again/model.safetensors" || fail "converting twice changes bytes"
    ok "$lquant" eval "$tmp/f32" --base "$tmp/in" -f "$text" --ctx 48 --chunks 2 --kld --json
    grep -q '"mean": 0.0,' "$tmp/stdout" || fail "the converted model is another one: $(grep mean "$tmp/stdout")"
    for format in lqt gptq; do
        rm -rf "$tmp/out.lqt"
        ok "$lquant" rtn --bits 8 --group-size 32 --ignore c_fc --ignore attn.c_proj --format $format -q "$tmp/in" "$tmp/out.lqt"
        model=gpt2 && close_to_fp 0.1 "rtn to $format with kept matrices"
    done
}

run_all
