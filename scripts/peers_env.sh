#!/bin/sh
# Makes the peers' Python environment in DIR, outside the repository, by package name:  scripts/peers_env.sh DIR
# GPTQModel is run with GPTQMODEL_CPU_WORKERS=2 and CUDA_VISIBLE_DEVICES= on a machine with two cores and no GPU
# (BACKEND.GPTQ_TORCH); its first save compiles a small C++ part.
set -eu
DIR=${1:?usage: peers_env.sh DIR}
HERE=$(cd "$(dirname "$0")" && pwd)
case $(mkdir -p "$DIR" && cd "$DIR" && pwd)/ in "$(dirname "$HERE")"/*) echo "$DIR lies inside the repository" >&2; exit 2;; esac
[ -x "$DIR/bin/pip" ] || python3 -m venv "$DIR"
"$DIR/bin/pip" install -r "$HERE/requirements-peers.txt" setuptools wheel ninja
printf 'torch==2.13.0\n' > "$DIR/constraints.txt"  # whatever GPTQModel asks for, torch stays
BUILD_CUDA_EXT=0 CUDA_VISIBLE_DEVICES='' "$DIR/bin/pip" install -c "$DIR/constraints.txt" --no-build-isolation GPTQModel==7.6.0
"$DIR/bin/python" -c "import torch, transformers, tokenizers, gguf; print(torch.__version__, transformers.__version__, tokenizers.__version__)"
