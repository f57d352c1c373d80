#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""lquant bench beside llama-bench on the same GGUF, one after the other, again and again, so that what else the machine does hits both:

    decode.py --lquant build/lquant --llama-bench BIN MODEL.gguf ... [--prompt 512] [--n-gen 32] [--rounds 3] [--threads 2]
              [--activations ggml]

Prints tokens per second, least time and median over all repetitions of all rounds, the ratio of lquant to llama.cpp, and the load average
before each round. llama-bench decodes from an empty context, so decoding is compared at a short one: lquant after --context tokens."""
import argparse
import json
import os
import statistics
import subprocess


def lquant(a, model, ctx, steps, prompts):
    cmd = [a.lquant, "bench", model, "--json", "--ctx", str(ctx), "--batch", "1", "-n", str(steps), "-r", str(prompts), "-t", str(a.threads), "--activations", a.activations]
    return json.loads(subprocess.run(cmd, check=True, capture_output=True, text=True).stdout)


def llama(a, model):
    cmd = [a.llama_bench, "-m", model, "-p", str(a.prompt), "-n", str(a.n_gen), "-t", str(a.threads), "-r", "2", "-ngl", "0", "-o", "json"]
    done = subprocess.run(cmd, check=True, capture_output=True, text=True)
    info = [line for line in done.stderr.splitlines() if "system_info" in line]
    return json.loads(done.stdout), info


def rates(samples):
    return max(samples), statistics.median(samples)


def line(what, ours, theirs):
    a, b = rates(ours), rates(theirs)
    print(f"  {what:8} lquant {a[0]:9.2f} (median {a[1]:9.2f})  llama.cpp {b[0]:9.2f} (median {b[1]:9.2f})  ratio {a[0] / b[0]:5.2f} (medians {a[1] / b[1]:5.2f})")


def one(a, model):
    ours, theirs, share, info = {"prompt": [], "decode": []}, {"prompt": [], "decode": []}, [], None
    print(f"{model}: {os.path.getsize(model) / 1e6:.1f} MB")
    for i in range(a.rounds):
        print(f"  round {i + 1}: load average {' '.join(f'{x:.2f}' for x in os.getloadavg())}", flush=True)
        for ctx, kind in ((a.prompt, "prompt"), (a.context, "decode")):
            r = lquant(a, model, ctx, 1 if kind == "prompt" else a.n_gen, 2 if kind == "prompt" else 1)
            row = next(x for x in r["rows"] if x["kind"] == kind)
            ours[kind] += [row["tokens_per_second_best"], row["tokens_per_second_median"]]
            if kind == "decode":
                share.append((row["bandwidth_share"], r["read_bandwidth"], row["bytes_per_token"], r["kernels"]))
        rows, text = llama(a, model)
        info = rows[0]
        for row in rows:
            theirs["prompt" if row["n_prompt"] else "decode"] += row["samples_ts"]
        for text_line in text:
            print("  " + text_line)
    line("prompt", ours["prompt"], theirs["prompt"])
    line("decode", ours["decode"], theirs["decode"])
    best = max(share)
    print(f"  lquant kernels {best[3]}: {best[2] / 1e6:.1f} MB a token, {100 * best[0]:.0f}% of {best[1] / 1e9:.2f} GB/s read in the same run")
    print(f"  llama.cpp {info.get('build_commit')}, {info.get('cpu_info')}, {info.get('model_type')}, {info.get('backends')}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="+")
    p.add_argument("--lquant", required=True)
    p.add_argument("--llama-bench", required=True)
    p.add_argument("--prompt", type=int, default=512)
    p.add_argument("--context", type=int, default=16)
    p.add_argument("--n-gen", type=int, default=32)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--activations", default="as-stored", help="ggml: lquant rounds them as llama.cpp does")
    a = p.parse_args()
    for m in a.models:
        one(a, m)


if __name__ == "__main__":
    main()
