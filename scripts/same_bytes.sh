#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# same_bytes.sh MODEL LQUANT [LQUANT...]: quantizes MODEL with every given binary, with 1 and 2 threads, twice, and fails unless
# all output folders are identical byte for byte.
set -eu
model=$1
shift
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT INT TERM
first=
for lquant in "$@"; do
    for threads in 1 2 2; do
        out="$tmp/out"
        rm -rf "$out"
        "$lquant" gptq --bits 4 -q -t "$threads" "$model" "$out" >/dev/null
        sum=$(cd "$out" && find . -type f | LC_ALL=C sort | xargs sha256sum | sha256sum)
        echo "$lquant, $threads threads: $sum"
        [ -n "$first" ] || first=$sum
        [ "$sum" = "$first" ] || { echo "same_bytes.sh: outputs differ" >&2; exit 1; }
    done
done
