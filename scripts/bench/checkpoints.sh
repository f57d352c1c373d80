#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# checkpoints.sh MODEL TEXT WORK: GPTQ folders of every kind lquant writes, each loaded by GPTQModel: weights bit for bit, NLL.
#   LQUANT  PYTHON (of peers_env.sh)  CTX (2048)  CHUNKS (2)  NSAMPLES (16)  SEQLEN (512)  THREADS (2)
set -eu
[ $# = 3 ] || { echo "usage: checkpoints.sh MODEL TEXT WORK" >&2; exit 2; }
model=$1 text=$2 work=$3 failed=0
here=$(cd "$(dirname "$0")/../.." && pwd)
lquant=${LQUANT:-$here/build/lquant}
mkdir -p "$work"
check() { # NAME FLAG...
    name=$1; shift
    [ -d "$work/$name" ] || "$lquant" gptq -q -t "${THREADS:-2}" --nsamples "${NSAMPLES:-16}" -l "${SEQLEN:-512}" "$@" "$model" "$work/$name" >/dev/null
    "${PYTHON:-python3}" "$here/scripts/peers/check_runtime.py" gptqmodel "$work/$name" -f "$text" --lquant "$lquant" --ctx "${CTX:-2048}" --chunks "${CHUNKS:-2}" \
        --threads "${THREADS:-2}" 2>"$work/$name.log" >"$work/$name.out" || { failed=1; tail -n 2 "$work/$name.log"; }
    echo "$name ($*)"
    grep -E 'differ|lquant, difference' "$work/$name.out" || true
}
check sym4-g64 --bits 4 --group-size 64
check sym3-g64 --bits 3 --group-size 64
check asym4-g64 --bits 4 --group-size 64 --asym
check sym4-row --bits 4 --group-size -1
check mixed --bits 4 --group-size 64 --tensor-type 'down_proj=int8-sym-g64' --ignore 'layers\.0\.'
exit $failed
