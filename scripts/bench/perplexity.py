#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""lquant eval beside llama-perplexity: the same GGUF, text and chunks (protocol llamacpp-512), one after the other, again and again:

    perplexity.py --lquant build/lquant --llama-perplexity BIN -f TEXT MODEL.gguf ... [--chunks 1 5] [--rounds 3] [--threads 2]

Each is run with few chunks and with more; the difference is time per token without loading, and the perplexity of the longer run is printed beside it.
lquant multiplies activations as they are (exact) and rounded to 8 bits as llama.cpp rounds them (ggml). Best of the rounds and median."""
import argparse
import os
import re
import statistics
import subprocess
import time

CHUNK = 512


def timed(cmd):
    start = time.monotonic()
    done = subprocess.run(cmd, check=True, capture_output=True, text=True, env={**os.environ, "OMP_WAIT_POLICY": "active"})
    return time.monotonic() - start, done.stdout + done.stderr


def commands(a, model):
    def lquant(act):
        return lambda n: [a.lquant, "eval", model, "-f", a.text, "--protocol", "llamacpp-512", "--chunks", str(n), "-t", str(a.threads), "--activations", act, "--json", "-q"]
    return {
        "llama.cpp": lambda n: [a.llama_perplexity, "-m", model, "-f", a.text, "-c", str(CHUNK), "--chunks", str(n), "-t", str(a.threads), "-ngl", "0"],
        "lquant, exact": lquant("as-stored"),
        "lquant, ggml": lquant("ggml"),
    }


def perplexity(text):
    found = re.search(r'"perplexity":\s*([0-9.]+)', text) or re.search(r"Final estimate: PPL = ([0-9.]+)", text)
    return float(found.group(1)) if found else float("nan")


def one(a, model):
    few, many = a.chunks
    rates, ppl = {}, {}
    for _ in range(a.rounds):
        for name, make in commands(a, model).items():
            short, _ = timed(make(few))
            long, text = timed(make(many))
            rates.setdefault(name, []).append((many - few) * CHUNK / (long - short))
            ppl[name] = perplexity(text)
    print(f"{model}, load average {' '.join(f'{x:.2f}' for x in os.getloadavg())}")
    base = rates["llama.cpp"]
    for name, r in rates.items():
        print(f"  {name:14} {max(r):8.1f} tokens/s (median {statistics.median(r):8.1f})  x {max(r) / max(base):5.2f} (medians {statistics.median(r) / statistics.median(base):5.2f})"
              f"  perplexity {ppl[name]:.4f}", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="+")
    p.add_argument("--lquant", required=True)
    p.add_argument("--llama-perplexity", required=True)
    p.add_argument("-f", "--text", required=True)
    p.add_argument("--chunks", type=int, nargs=2, default=[1, 5])
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    a = p.parse_args()
    for m in a.models:
        one(a, m)


if __name__ == "__main__":
    main()
