#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# memory_depth.sh WORK: peak resident memory of `lquant gptq` on random models of one width with 8 and with 32 blocks.
# Passes when they differ by less than 5 % and the deep one's peak is at most 25 % of its bytes.
#   LQUANT  PYTHON (numpy)  HIDDEN (1280)  FFN (3584)  HEADS (20)  KV (4)  DTYPE (f32)  ROWS (4)  SEQLEN (128)  METHOD (gptq)
set -eu
[ $# = 1 ] || { echo "usage: memory_depth.sh WORK" >&2; exit 2; }
work=$1
here=$(cd "$(dirname "$0")/../.." && pwd)
lquant=${LQUANT:-$here/build/lquant}
mkdir -p "$work"
for depth in 8 32; do
    [ -d "$work/random-$depth" ] || "${PYTHON:-python3}" "$here/scripts/bench/random_llama.py" "$work/random-$depth" --layers $depth \
        --hidden "${HIDDEN:-1280}" --ffn "${FFN:-3584}" --heads "${HEADS:-20}" --kv "${KV:-4}" --dtype "${DTYPE:-f32}" >/dev/null
    bytes=$(cat "$work/random-$depth"/*.safetensors | wc -c)
    "$lquant" "${METHOD:-gptq}" --bits 4 --group-size 64 --nsamples "${ROWS:-4}" -l "${SEQLEN:-128}" -t 2 -q --overwrite \
        --report "$work/report-$depth.json" "$work/random-$depth" "$work/out-$depth" >/dev/null
    rm -rf "$work/out-$depth"
    number() { sed -n "s/^  \"$1\": \([0-9.e+]*\),*\$/\1/p" "$work/report-$depth.json" | head -n 1; }
    echo "$depth $bytes $(number peak_memory) $(number seconds)" | tee "$work/depth-$depth" |
        awk '{ printf "%d blocks: %.1f MB of weights, peak %.1f MB (%.1f %%), %.1f s\n", $1, $2 / 1e6, $3 / 1e6, 100 * $3 / $2, $4 }'
done
cat "$work/depth-8" "$work/depth-32" | awk '{ bytes[NR] = $2; peak[NR] = $3 } END {
    grown = peak[2] / peak[1] - 1; share = peak[2] / bytes[2]
    good = grown < 0.05 && grown > -0.05 && share <= 0.25
    printf "peak of 32 blocks over 8: %+.2f %%, %.1f %% of the deep model: %s\n", 100 * grown, 100 * share, good ? "ok" : "FAILED"
    exit !good }'
