#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# memory_eval.sh TEXT WORK: peak resident memory of `lquant eval` on a 1B-shaped checkpoint of random weights (4 bits, g64).
# Allowed: packed bytes + activations + 64 MB. Packed bytes are those of the GPTQ folder, for lqt too: its frames are compressed in the
# file and lie unpacked in memory. Activations are
#   4 * (ctx * hidden          the residual stream
#      + ctx * 2 * kv          keys and values of one block
#      + ctx * head_dim        the rope tables
#      + ctx * 2               the ids and targets
#      + 256 * vocab)          the logits of 256 positions
# bytes; everything else (the tensors inside a block for a chunk of tokens, attention scores, dequantized panels) is in the 64 MB.
#   LQUANT  PYTHON (numpy)  LAYERS (16)  HIDDEN (2048)  FFN (8192)  HEADS (32)  KV (8)  VOCAB (32000)  CTX (2048)  CHUNKS (1)
set -eu
[ $# = 2 ] || { echo "usage: memory_eval.sh TEXT WORK" >&2; exit 2; }
text=$1 work=$2
here=$(cd "$(dirname "$0")/../.." && pwd)
lquant=${LQUANT:-$here/build/lquant}
layers=${LAYERS:-16} hidden=${HIDDEN:-2048} ffn=${FFN:-8192} heads=${HEADS:-32} kv=${KV:-8} vocab=${VOCAB:-32000} ctx=${CTX:-2048}
mkdir -p "$work"
[ -d "$work/1b" ] || "${PYTHON:-python3}" "$here/scripts/bench/random_llama.py" "$work/1b" --layers "$layers" --hidden "$hidden" --ffn "$ffn" \
    --heads "$heads" --kv "$kv" --vocab "$vocab" --dtype bf16
for format in gptq lqt; do
    out=$work/1b-$format
    [ "$format" = gptq ] || out=$out.lqt
    [ -e "$out" ] || "$lquant" rtn --bits 4 --group-size 64 --format "$format" -t 2 -q "$work/1b" "$out" >/dev/null
    "$lquant" eval "$out" -f "$text" --ctx "$ctx" --chunks "${CHUNKS:-1}" -t 2 --json -q >"$work/eval-$format.json"
    number() { sed -n "s/^  \"$1\": \([0-9.e+]*\),*\$/\1/p" "$work/eval-$format.json" | head -n 1; }
    [ "$format" = lqt ] || packed=$(number model_bytes)
    echo "$format $packed $(number peak_memory) $(number tokens_per_second)" |
        awk -v ctx="$ctx" -v hidden="$hidden" -v heads="$heads" -v kv="$kv" -v vocab="$vocab" '{
            d = hidden / heads
            act = 4 * (ctx * (hidden + 2 * kv * d + d + 2) + 256 * vocab)
            good = $3 <= $2 + act + 64e6
            printf "%s: packed %.1f MB, activations %.1f MB, peak %.1f MB, beyond both %.1f MB (64 allowed), %.1f tokens/s: %s\n", $1, $2 / 1e6,
                act / 1e6, $3 / 1e6, ($3 - $2 - act) / 1e6, $4, good ? "ok" : "FAILED"
            exit !good }'
done
