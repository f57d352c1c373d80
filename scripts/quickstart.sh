#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# quickstart.sh [MODEL_DIR [TEXT]]: installs what is missing, builds, quantizes the model at 4 bits with RTN and with GPTQ,
# evaluates all three and prints one table. Without arguments: the small model of this repository and its held-out text.
# The checkpoints stay in build/quickstart.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
model=${1:-$root/models/tiny}
text=${2:-$root/texts/heldout.txt}
"$root/scripts/deps.sh"
"$root/scripts/build.sh" build
lquant=$root/build/lquant
out=$root/build/quickstart
rm -rf "$out"
mkdir -p "$out"

# number FILE INDENT KEY: a number of a --json result, by the indent of its line
number() { sed -n "s/^$2\"$3\": \([-0-9.e+]*\),*\$/\1/p" "$1" | head -n 1; }

row() { # NAME EVAL_JSON RUN_JSON
    size=$(number "$2" '  ' model_bytes)
    kld=$(number "$2" '    ' mean)
    took=$([ -n "$3" ] && number "$3" '  ' seconds || echo)
    awk -v name="$1" -v size="$size" -v bpw="$(number "$2" '  ' bits_per_weight)" -v ppl="$(number "$2" '  ' perplexity)" \
        -v err="$(number "$2" '  ' stderr)" -v kld="$kld" -v took="$took" -v evaled="$(number "$2" '  ' seconds)" 'BEGIN {
        printf "%-6s %10.2f %10.3f   %9.4f +- %-8.4f %10s %12s %10.1f\n", name, size / 1e6, bpw, ppl, err,
            kld == "" ? "-" : sprintf("%.5f", kld), took == "" ? "-" : sprintf("%.1f", took), evaled }'
}

echo "model: $model" >&2
"$lquant" eval "$model" -f "$text" --json >"$out/fp.json"
for method in rtn gptq; do
    "$lquant" $method --bits 4 --json "$model" "$out/$method-4bit" >"$out/$method-run.json"
    "$lquant" eval "$out/$method-4bit" --base "$model" -f "$text" --kld --json >"$out/$method.json"
done

protocol=$(sed -n 's/^  "protocol": "\(.*\)",*$/\1/p' "$out/fp.json")
echo
echo "4 bits, protocol $protocol, text $(basename "$text")"
printf '%-6s %10s %10s   %-21s %10s %12s %10s\n' "" "size MB" "bits/w" "perplexity" "KLD" "quantize s" "eval s"
row fp "$out/fp.json" ""
row RTN "$out/rtn.json" "$out/rtn-run.json"
row GPTQ "$out/gptq.json" "$out/gptq-run.json"
