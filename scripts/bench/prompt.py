#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""CPU seconds of a prompt on one thread, lquant bench beside llama-bench: what a busy machine leaves comparable.

    prompt.py --lquant build/lquant [--llama-bench BIN] MODEL ... [--prompt 64 512] [--activations as-stored ggml] [--rounds 2] [--seconds 2]

A run with one repetition is taken from one with several, so loading and warming cost nothing; the least of the rounds counts for each. Models that
are not GGUF are left out of llama.cpp's rows. Prints tokens per CPU second and the ratio to llama.cpp."""
import argparse
import resource
import subprocess


def cpu(cmd):
    a = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(cmd, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    b = resource.getrusage(resource.RUSAGE_CHILDREN)
    return b.ru_utime - a.ru_utime + b.ru_stime - a.ru_stime


def seconds(a, make, prompt):
    reps = max(2, int(a.seconds * 300 / prompt))
    one, many = [], []
    for _ in range(a.rounds):
        one.append(cpu(make(1)))
        many.append(cpu(make(1 + reps)))
    return (min(many) - min(one)) / reps


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="+")
    p.add_argument("--lquant", required=True)
    p.add_argument("--llama-bench")
    p.add_argument("--prompt", type=int, nargs="+", default=[64, 512])
    p.add_argument("--activations", nargs="+", default=["as-stored"])
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--seconds", type=float, default=2)
    a = p.parse_args()
    for m in a.models:
        for n in a.prompt:
            theirs = None
            if a.llama_bench and m.endswith(".gguf"):
                theirs = n / seconds(a, lambda r: [a.llama_bench, "-m", m, "-p", str(n), "-n", "0", "-t", "1", "-r", str(r), "-ngl", "0"], n)
                print(f"{m} prompt {n}: llama.cpp {theirs:.1f} tokens a CPU second", flush=True)
            for act in a.activations:
                ours = n / seconds(a, lambda r: [a.lquant, "bench", m, "-p", str(n), "-b", "1", "-n", "1", "-r", str(r), "-t", "1", "--activations", act], n)
                print(f"{m} prompt {n}: lquant, activations {act}: {ours:.1f}" + (f", ratio {ours / theirs:.2f}" if theirs else ""), flush=True)


if __name__ == "__main__":
    main()
