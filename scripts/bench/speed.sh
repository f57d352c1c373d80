#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# speed.sh MODEL WORK: wall time of `lquant gptq` (the whole command: reading, calibration, writing, reading back) against
# GPTQModel's quantize() (its imports, loading, packing and saving not counted), the same token rows, taken in turns.
#   LQUANT (build/lquant)  PYTHON (of peers_env.sh)  BITS (4)  GROUP_SIZE (64)  NSAMPLES (128)  SEQLEN (512)  CALIBRATION  THREADS (2)
#   REPEATS (1)  FLAGS (more of lquant's)  PEER_FLAGS (more of gptqmodel_gptq.py's)
set -eu
[ $# = 2 ] || { echo "usage: speed.sh MODEL WORK" >&2; exit 2; }
model=$1 work=$2
here=$(cd "$(dirname "$0")/../.." && pwd)
lquant=${LQUANT:-$here/build/lquant}
mkdir -p "$work"
for i in $(seq "${REPEATS:-1}"); do
    rm -rf "$work/ours" "$work/peer" "$work/rows.jsonl"
    t0=$(date +%s.%N)
    "$lquant" gptq --bits "${BITS:-4}" --group-size "${GROUP_SIZE:-64}" --nsamples "${NSAMPLES:-128}" -l "${SEQLEN:-512}" -t "${THREADS:-2}" -q \
        ${CALIBRATION:+-f "$CALIBRATION"} --save-tokens "$work/rows.jsonl" --report "$work/report.json" ${FLAGS:-} "$model" "$work/ours" >/dev/null
    echo "$t0 $(date +%s.%N)" | awk '{ printf "lquant: %.1f s, the whole command\n", $2 - $1 }'
    "${PYTHON:-python3}" "$here/scripts/peers/gptqmodel_gptq.py" "$model" "$work/rows.jsonl" "$work/peer" --bits "${BITS:-4}" \
        --group "${GROUP_SIZE:-64}" --threads "${THREADS:-2}" ${PEER_FLAGS:-} 2>"$work/peer.log" | tail -n 1
done
