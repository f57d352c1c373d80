#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# quality.sh MODEL TEXT WORK: fp, RTN, GPTQ, and GPTQModel (defaults, best documented setting) from the same calibration tokens,
# evaluated by `lquant eval` (gptq-2048), with the paired difference in nats and its standard error. What WORK already holds is
# not made again, so a run may be interrupted, and extended.
#   LQUANT (build/lquant)  PYTHON (of peers_env.sh; empty: no peer)  BITS ("4 3")  GROUP_SIZES ("64 -1")  CHUNKS (0: all)
#   CALIBRATION (a text; empty: the built-in one)  NSAMPLES (128)  SEQLEN (512)  THREADS (2)  PEERS ("default best")
set -eu
[ $# = 3 ] || { echo "usage: quality.sh MODEL TEXT WORK" >&2; exit 2; }
model=$1 text=$2 work=$3
here=$(cd "$(dirname "$0")/../.." && pwd)
lquant=${LQUANT:-$here/build/lquant}
python=${PYTHON-python3}
threads=${THREADS:-2}
mkdir -p "$work"

calibration() { if [ -n "${CALIBRATION:-}" ]; then set -- -f "$CALIBRATION"; fi; echo "$@" --nsamples "${NSAMPLES:-128}" -l "${SEQLEN:-512}"; }
timed() { # FILE COMMAND...: wall seconds of the whole command
    file=$1 t0=$(date +%s.%N); shift
    "$@"
    echo "$t0 $(date +%s.%N)" | awk '{ printf "%.2f\n", $2 - $1 }' >"$file"
}
evaluate() { # NAME FOLDER
    [ -s "$work/$1.json" ] && return
    "$lquant" eval "$2" -f "$text" --chunks "${CHUNKS:-0}" -t "$threads" --json -q >"$work/$1.part"
    mv "$work/$1.part" "$work/$1.json"
}
ours() { # NAME METHOD BITS GROUP [FLAG...]
    name=$1 method=$2 bits=$3 group=$4; shift 4
    [ -d "$work/$name" ] || timed "$work/$name.seconds" "$lquant" "$method" --bits "$bits" --group-size "$group" -t "$threads" -q \
        $(calibration) "$@" "$model" "$work/$name"
    evaluate "$name" "$work/$name"
}
peer() { # NAME BITS GROUP [FLAG...]
    name=$1 bits=$2 group=$3; shift 3
    [ -s "$work/$name.peer" ] || {
        rm -rf "${work:?}/$name"
        "$python" "$here/scripts/peers/gptqmodel_gptq.py" "$model" "$work/rows.jsonl" "$work/$name" --bits "$bits" --group "$group" \
            --threads "$threads" "$@" 2>"$work/$name.log" | tail -n 1 >"$work/$name.part"
        mv "$work/$name.part" "$work/$name.peer"
    }
    evaluate "$name" "$work/$name"
}

evaluate fp "$model"
for group in ${GROUP_SIZES:-64 -1}; do
    for bits in ${BITS:-4 3}; do
        at=b$bits-g$group
        ours "rtn-$at" rtn "$bits" "$group"
        ours "gptq-$at" gptq "$bits" "$group" --save-tokens "$work/rows.jsonl.$at"
        mv -f "$work/rows.jsonl.$at" "$work/rows.jsonl" 2>/dev/null || true
        [ -n "$python" ] || continue
        for setting in ${PEERS:-default best}; do
            case $setting in default) flag= ;; *) flag=--$setting ;; esac
            peer "gptqmodel-$setting-$at" "$bits" "$group" $flag
        done
    done
done
exec "${python:-python3}" "$here/scripts/bench/table.py" "$work"
