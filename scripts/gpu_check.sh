#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The CUDA kernels on the GPU of this machine: builds for it, checks every device kernel against the fp64 reference with fresh random data
# and poisoned outputs, looks for bad accesses and races where compute-sanitizer is, then measures. One table at the end.
#   scripts/gpu_check.sh [BUILD_DIR]     CHECK_DEVICE=emu: the same steps in the small on the emulation, to try this script
# Contenders: cuBLAS where the dynamic linker finds it; torch's tinygemm with PYTHON=a python that has torch with CUDA; llama.cpp's products with LLAMA_CPP=a checkout
# built natively with CUDA. What is not here is said in a row. MODEL=a checkpoint: its decoding as well, contexts of 1k, 8k and 32k, 1 to 16 at once.
# Exit 77: no GPU, no nvcc or no CUDA runtime to link. 1: a check failed, or the run is void (memory gives less than 85 % of what the vendor says).
set -eu
cd "$(dirname "$0")/.."
build=${1:-build-gpu}
device=${CHECK_DEVICE:-cuda}
began=$(date +%s)
step() { printf '\n== %s (%s s)\n' "$*" "$(($(date +%s) - began))"; }
none() { printf 'gpu_check: %s\n' "$*"; exit 77; }

if [ "$device" = cuda ]; then
    command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU || none "there is no GPU here"
    command -v nvcc >/dev/null || none "there is no nvcc here"
    arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d '. ')
    options="-Dcuda=enabled -Dgpu_archs=$arch"
else
    options="-Dcuda=disabled"
fi
log=$build/gpu_check
[ -f "$build/build.ninja" ] && again=--reconfigure || again=

step "build for $device"
# shellcheck disable=SC2086
meson setup "$build" $again $options > /dev/null || none "meson could not configure a build with CUDA (static runtime: -Dgpu_libdirs)"
mkdir -p "$log"
ninja -C "$build" tests/checkkern lquant > "$log/build.txt" || { tail -20 "$log/build.txt"; exit 1; }
checkkern=$build/tests/checkkern

how=
# shellcheck disable=SC2086
# checks PART_OF_A_NAME FILE [COMMAND...]: the sentences of failed ones, and how many passed; none run is a failure too
checks() {
    part=$1 file=$log/$2
    shift 2
    "$@" "$checkkern" --seed "$seed" $how --only "$part" > "$file" 2>&1 || { grep -E 'ERROR|=====|FAILED' "$file" | head -20; exit 1; }
    grep -qE '_(cuda)|_emu' "$file" || { echo "gpu_check: no check of a device ran"; exit 1; }
    grep -E 'PASSED|ERROR SUMMARY|RACECHECK SUMMARY' "$file" | tail -2
}

seed=$(date +%s)
step "every kernel against the reference, seed $seed"
checks "_$device" checks.txt

early=no
[ "$device" = emu ] || [ "$arch" -lt 90 ] || early=yes
if [ "$device" = emu ] || [ "$early" = yes ]; then
    step "kernels that begin early: the same checks, and the same nats token by token"
    how=--ahead
    for part in device_product device_gemv_i4sym_g128 device_gemm_i4sym_g128 device_idot_i4sym_g128 device_iproduct_i4sym_g128 device_round device_replay device_attn device_turn device_sparse device_route device_dense; do
        checks "$part" "ahead-$part.txt"
    done
    how=
    for on in "" +ahead; do
        "$build/lquant" eval models/tiny --device "$device$on" -f texts/heldout.txt --ctx 64 --chunks "$([ "$device" = cuda ] && echo 8 || echo 1)" --decode --json -q > "$log/eval$on.json"
        grep -E '"(nll|chunk_nll)"' -A 1 "$log/eval$on.json" | tee "$log/nats$on.txt"
    done
    cmp "$log/nats.txt" "$log/nats+ahead.txt" || { echo "gpu_check: kernels that begin early give other nats"; exit 1; }
else
    step "kernels cannot begin early before compute capability 9.0"
fi

if [ "$device" = cuda ] && command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck; do
        step "compute-sanitizer $tool"
        for part in device_gemv_i4sym_g128_cuda device_gemm_i4sym_g128_cuda device_gemv_nf4_cuda device_idot_i4sym_g128_cuda device_product_i4sym_g128_cuda device_attn device_turn device_sparse; do
            checks "$part" "$tool-$part.txt" timeout 60 compute-sanitizer --tool "$tool" --error-exitcode 1
        done
    done
else
    step "compute-sanitizer is not here: memcheck and racecheck not run"
fi

step "a model's decoding"
"$build/lquant" bench models/tiny --device "$device" --ctx 64 --batch 1,16 -n 4 -r 1 > "$log/model.txt" || { cat "$log/model.txt"; exit 1; }
if [ -n "${MODEL:-}" ]; then
    "$build/lquant" bench "$MODEL" --device "$device" --kv f16 --ctx 1024,8192,32768 --batch 1,2,4,8,16 -n 64 > "$log/model.txt" || { cat "$log/model.txt"; exit 1; }
fi

step "benchmark"
state() { [ "$device" = cuda ] && nvidia-smi --query-gpu=name,clocks.sm,clocks.mem,temperature.gpu --format=csv,noheader || true; }
state
void=0
timeout 200 "$checkkern" --bench-device "$device" > "$log/bench.txt" || void=$?
[ "$void" -le 1 ] || { cat "$log/bench.txt"; exit 1; }
state
roof=$(sed -n 's/^memory gives \([0-9]*\) GB.*/\1/p' "$log/bench.txt")
peak=$(sed -n "s/^memory gives.* of the vendor's \([0-9]*\) GB.*/\1/p" "$log/bench.txt")

# driver NAME COMMAND...: its rows, or one that says why there are none
driver() {
    name=$1 rc=0
    shift
    timeout 100 "$@" --roof "${roof:-0}" --peak "${peak:-0}" > "$log/$name.txt" 2> "$log/$name.err" || rc=$?
    [ "$rc" = 0 ] || printf '| %s | - | - | - | not measured: %s | - | - | - | - |\n' "$name" "$([ "$rc" = 77 ] && sed "s/^[a-z]*: //" "$log/$name.txt" | tail -1 || echo "exit $rc, $log/$name.err")" > "$log/$name.txt"
}
step "contenders by their own drivers"
driver tinygemm "${PYTHON:-python3}" scripts/bench/tinygemm.py
driver mmvq "${PYTHON:-python3}" scripts/bench/mmvq.py --device "$([ "$device" = cuda ] && echo cuda || echo cpu)"
step "done"
cat "$log/bench.txt" | grep -v -e '^memory gives' -e '^VOID'
cat "$log/tinygemm.txt" "$log/mmvq.txt"
cat "$log/model.txt"
grep -e '^memory gives' -e '^VOID' "$log/bench.txt" || true
exit "$void"
