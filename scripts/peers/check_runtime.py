#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Does a runtime load a checkpoint that lquant wrote, unmodified, and does it mean the same by it?

    check_runtime.py RUNTIME CHECKPOINT [CHECKPOINT ...] -f TEXT [--lquant BIN] [--ctx 256] [--chunks 4] [--dtype float32]
                     [--tol NATS] [--no-weights] [--kv fp8] [--jitter N] [--rename REGEX=NAME ...] [--threads 2] [--json FILE]

RUNTIME: transformers, gptqmodel, vllm or mlx, each run by the Python of its own environment (scripts/peers_env.sh DIR RUNTIME). GGUF:
check_llamacpp.py. Two things are compared: the NLL of the same ids cut into the same chunks (protocol gptq-N) against `lquant eval`,
within --tol (default 5e-4 nats where the runtime computes in fp32 on exact weights, else 5e-3); and every matrix the runtime can
show against `lquant convert --dequantize f32`, bit for bit after one rounding to the runtime's type. --dtype: the type it is asked to
compute in (default: its own choice). Prints one line for a checkpoint; exit status 1 when one fails, 2 when one does not load.
--rename: the runtime gets a copy whose tensors are
renamed; that checks the bytes where a runtime does not know the hub's names, and is said in the line. --kv fp8 (vllm): keys and values
in E4M3 by the checkpoint's own scales, which are compared as well, on both sides. --jitter N (transformers): how far the runtime's own NLL moves in N runs
whose embeddings are moved by one part in a million, and how far `lquant eval`'s does by the same moves, said beside: where activations are rounded
that is what a difference has to be judged by. --json adds one object a checkpoint to FILE.
"""
import argparse
import importlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import common


def arguments():
    a = argparse.ArgumentParser()
    a.add_argument("runtime", choices=["transformers", "gptqmodel", "vllm", "mlx"])
    a.add_argument("checkpoint", nargs="+")
    a.add_argument("-f", "--text", required=True)
    a.add_argument("--lquant", default="build/lquant")
    a.add_argument("--ctx", type=int, default=256)
    a.add_argument("--chunks", type=int, default=4)
    a.add_argument("--dtype", default="")
    a.add_argument("--tol", type=float, default=0)
    a.add_argument("--rename", action="append", default=[])
    a.add_argument("--no-weights", action="store_true")
    a.add_argument("--kv", choices=["", "fp8"], default="")
    a.add_argument("--jitter", type=int, default=0)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--json", default="")
    return a.parse_args()


def activations_rounded(folder):
    """Whether the checkpoint's config asks for quantized activations: then NLLs agree to 5e-3 only, whatever type computes."""
    q = common.config_of(folder).get("quantization_config", {})
    if q.get("quant_method") in ("fp8", "bitnet") or q.get("load_in_8bit"):
        return True
    return any(g.get("input_activations") for g in q.get("config_groups", {}).values())


def check(runtime, folder, a):
    positions = common.config_of(folder).get("max_position_embeddings", a.ctx + 1)
    ctx = min(a.ctx, runtime.longest(positions))
    ours = common.evaluated(a.lquant, folder, a.text, ctx, a.chunks, a.threads, more=["--kv", a.kv, "--kv-scales"] if a.kv else [])
    given = folder
    if a.rename:
        given = common.renamed(folder, [r.split("=", 1) for r in a.rename], a.scratch)
    model = runtime.load(given, a.dtype, a.threads, **({"kv": a.kv} if a.kv else {}))
    ids = common.text_ids(folder, a.text, ctx, a.chunks)
    theirs = runtime.nlls(model, ids)
    dtype = runtime.dtype_of(model)
    tol = a.tol or (5e-4 if dtype == "float32" and not activations_rounded(folder) else 5e-3)
    mean = sum(theirs) / len(theirs)
    out = {"checkpoint": folder, "runtime": runtime.version(), "dtype": dtype, "protocol": ours["protocol"], "chunks": len(theirs), "nll_lquant": ours["nll"],
           "nll_runtime": mean, "difference": ours["nll"] - mean, "bound": tol,
           "worst_chunk": max(abs(x - y) for x, y in zip(theirs, ours["chunk_nll"], strict=True)), "bits_per_weight": ours.get("bits_per_weight")}
    out["ok"] = abs(out["difference"]) <= tol
    said = "; tensors renamed" if a.rename else ""
    if a.kv:
        stored = common.kv_scales(folder)
        out["kv_scales"], out["kv_scales_differing"] = len(stored), sum(runtime.kv_scales(model).get(k) != v for k, v in stored.items())
        out["ok"] &= bool(stored) and not out["kv_scales_differing"]
        said += f"; {out['kv_scales_differing']} of {len(stored)} scales of keys and values differ"
    if a.jitter:
        means = [sum(x) / len(x) for x in (runtime.jittered(model, seed, ids) for seed in range(a.jitter))]
        here = [common.evaluated(a.lquant, common.jittered(folder, seed, a.scratch), a.text, ctx, a.chunks, a.threads)["nll"] for seed in range(a.jitter)]
        out["jitter"], out["jitter_lquant"] = means, here
        said += "".join(f"; under jitter {who} {statistics.mean(v):.6f}, standard deviation {statistics.stdev(v):.1e} ({min(v):.6f} to {max(v):.6f})"
                        for who, v in (("there", means), ("lquant", here)))
    if not a.no_weights:
        known = common.decoded(a.lquant, folder)
        w = common.matrices(runtime.weights(model, known), known)
        out |= w
        out["ok"] &= not w["bad_matrices"]
        kinds = ", ".join(f"{n} {k}" for k, n in sorted(w["kinds"].items()))
        said += f"; {w['weights_differing']} of {w['weights']} weights differ in {w['bad_matrices']} of {w['matrices']} matrices ({kinds}), {len(w['not_compared'])} not compared"
    print(f"{folder}: {runtime.version()}, {dtype}, {out['protocol']}, {len(theirs)} chunks: nll {mean:.6f} there, {ours['nll']:.6f} lquant, "
          f"difference {out['difference']:+.2e} (bound {tol:g}), worst chunk {out['worst_chunk']:.2e}{said}: {'ok' if out['ok'] else 'FAILED'}", flush=True)
    return out


def main():
    a = arguments()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["OMP_NUM_THREADS"] = str(a.threads)
    a.scratch = tempfile.mkdtemp()
    runtime, status = importlib.import_module(f"runtime_{a.runtime}"), 0
    for folder in a.checkpoint:
        try:
            out = check(runtime, folder, a)
            status = max(status, 0 if out["ok"] else 1)
        except Exception as e:
            traceback.print_exc()
            out, status = {"checkpoint": folder, "runtime": runtime.version(), "ok": False, "error": f"{type(e).__name__}: {e}"}, 2
            print(f"{folder}: {runtime.version()}: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}: FAILED", flush=True)
        if a.json:
            with open(a.json, "a") as f:
                f.write(json.dumps(out) + "\n")
    sys.stdout.flush()
    shutil.rmtree(a.scratch)
    os._exit(status)  # peers' threads outlive main


if __name__ == "__main__":
    main()
