#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Products of quantized matrices, lquant's beside ggml's best (blocks as in the file, or repacked), over weights that lie in no cache:

    ggml_kernels.py --products build/tests/tool_products --include LLAMA/ggml/include --libraries DIR_OF_libggml [--threads 2]
                    [--rounds 9] [--shape 4096 4096] [--pairs q4_0=Q4_0@32,int4@128 ...]

Two programs, one round of each in turn; a round reads at least four times the last-level cache for one token, and multiplies one matrix with 64 and 512.
Both include what their activations need. Prints least and median time as weights per second, the share of the read bandwidth of the same rounds, and
the ratio to ggml's best. TYPE@N rounds activations to 8 bits per N columns, as ggml does; the row "exact" does not round them."""
import argparse
import collections
import os
import statistics
import subprocess
import tempfile
import time

PAIRS = ["q4_0=Q4_0@32,int4@128", "q4_K=Q4_K@256", "q8_0=Q8_0@32,int8@128", "q2_K=Q2_K@256,int2@128", "tq2_0=TQ2_0@256", "tq1_0=TQ1_0@256"]


class Program:
    def __init__(self, name, cmd):
        self.name = name
        self.child = subprocess.Popen(cmd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.title = self.child.stdout.readline().strip()
        self.rows = collections.defaultdict(list)
        self.sizes = {}

    def round(self):
        self.child.stdin.write("\n")
        self.child.stdin.flush()
        for line in iter(self.child.stdout.readline, "\n"):
            if not line:
                raise SystemExit(f"{self.name}: ended")
            what, tokens, weights, size, seconds = line.split("\t")
            self.rows[what, int(tokens)].append(float(seconds))
            self.sizes[what, int(tokens)] = float(weights), float(size)

    def close(self):
        self.child.stdin.close()
        self.child.wait()


def build(a, folder):
    here = os.path.dirname(os.path.abspath(__file__))
    out = os.path.join(folder, "ggml_kernels")
    subprocess.run(["cc", "-O2", "-I", a.include, os.path.join(here, "ggml_kernels.c"), "-o", out, "-L", a.libraries, "-lggml-cpu", "-lggml-base",
                    f"-Wl,-rpath,{os.path.abspath(a.libraries)}"], check=True)
    return out


def cache():
    with open("/sys/devices/system/cpu/cpu0/cache/index3/size") as f:
        return int(f.read().strip()[:-1]) << 10


def rate(p, key, pick):
    return p.sizes[key][0] / pick(p.rows[key]) * 1e-9


def show(ours, theirs):
    reads = [[size / t * 1e-9 for t in p.rows[k]] for p in ours for k, (_, size) in p.sizes.items() if k[1] == 0]
    best, middle = max(max(r) for r in reads), max(statistics.median(r) for r in reads)
    print(f"{theirs.title}, {'; '.join(p.title for p in ours)}; read {best:.1f} GB/s (median {middle:.1f})")
    for tokens in (1, 64, 512):
        peer = [k for k in theirs.rows if k[1] == tokens]
        peer = {pick: max(rate(theirs, k, pick) for k in peer) for pick in (min, statistics.median)}
        for p in [theirs] + ours:
            for key in [k for k in p.rows if k[1] == tokens]:
                r, m = rate(p, key, min), rate(p, key, statistics.median)
                byte = p.sizes[key][1] / p.sizes[key][0]
                share = f"{100 * r * byte / best:5.1f} % of read (medians {100 * m * byte / middle:5.1f})" if tokens == 1 else f"{2 * tokens * r:5.0f} GOP/s" + 23 * " "
                print(f"  {tokens:4} {p.name:8} {key[0]:9} {r:7.2f} Gw/s (median {m:7.2f})  {share}  x {r / peer[min]:5.2f} (medians {m / peer[statistics.median]:5.2f})")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--products", required=True)
    p.add_argument("--include", required=True)
    p.add_argument("--libraries", required=True)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--rounds", type=int, default=9)
    p.add_argument("--shape", type=int, nargs=2, default=[4096, 4096])
    p.add_argument("--pairs", nargs="+", default=PAIRS)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        driver, shape = build(a, folder), [str(n) for n in a.shape]
        for pair in a.pairs:
            theirs, ours = pair.split("=")
            peer = Program(theirs, [driver, theirs, str(a.threads), *shape, str(cache())])
            all_of = [peer] + [Program(t, [a.products, t, str(a.threads), *shape, str(cache())]) for t in ours.split(",")]
            for _ in range(a.rounds):
                for x in all_of:
                    x.round()
                    time.sleep(0.02)  # threads that wait by looking have gone to sleep
            show(all_of[1:], peer)
            for x in all_of:
                x.close()
    print(f"load {' '.join(f'{x:.2f}' for x in os.getloadavg())}, {a.threads} threads, {a.rounds} rounds", flush=True)


if __name__ == "__main__":
    main()
