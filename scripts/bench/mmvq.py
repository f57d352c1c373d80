#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""llama.cpp's products of a few tokens on this machine's GPU, its quantizing of activations included, as rows of `checkkern --bench-device`'s table:

    LLAMA_CPP=DIR mmvq.py [--roof GB/s] [--peak GB/s] [--device cpu]

DIR is a checkout of llama.cpp built natively with CUDA (cmake -DGGML_CUDA=ON, shared libraries in DIR/build/bin); scripts/bench/mmvq.c is compiled
against it. Exit 77 and one sentence where there is none, or no GPU. --device cpu: two small products on the CPU, to try this script."""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))


def none(why):
    print(f"mmvq: {why}")
    sys.exit(77)


def row(what, shape, tokens, mode, us, size, a):
    rate = size / us / 1e3
    share = [f"{100 * rate / v:.0f}" if v else "-" for v in (a.roof, a.peak)]
    print(f"| {what} | {shape} | {tokens} | {mode} | {us:.2f} | {rate:.0f} | {share[0]} | {share[1]} | - |")


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--roof", type=float, default=0)
    p.add_argument("--peak", type=float, default=0)
    p.add_argument("--device", default="cuda")
    a = p.parse_args()
    root = os.environ.get("LLAMA_CPP", "")
    libs, cc = os.path.join(root, "build/bin"), os.environ.get("CC") or shutil.which("cc")
    if not root or not os.path.isfile(os.path.join(root, "ggml/include/ggml.h")):
        none("LLAMA_CPP names no checkout of llama.cpp")
    if not os.path.exists(os.path.join(libs, "libggml.so")):
        none(f"{libs} has no libggml.so: build it with shared libraries")
    if a.device == "cuda" and not os.path.exists(os.path.join(libs, "libggml-cuda.so")):
        none(f"{libs} has no libggml-cuda.so: no native CUDA build")
    if not cc:
        none("no C compiler")
    with tempfile.TemporaryDirectory() as tmp:
        exe = os.path.join(tmp, "mmvq")
        subprocess.run(cc.split() + ["-std=c11", "-O2", "-I", os.path.join(root, "ggml/include"), os.path.join(HERE, "mmvq.c"), "-o", exe, "-L", libs, f"-Wl,-rpath,{libs}",
                                     f"-Wl,-rpath-link,{libs}", "-lggml", "-lggml-base"], check=True)
        done = subprocess.run([exe, a.device], stdout=subprocess.PIPE, text=True)
    if done.returncode == 77:
        none("llama.cpp sees no GPU here")
    if done.returncode:
        sys.exit(f"mmvq: exit {done.returncode}")
    for line in done.stdout.splitlines():
        if line.startswith("#"):
            continue
        name, rows, cols, tokens, us, size = line.split()
        if float(us) > 0:
            row(f"llama.cpp {name}", f"{rows} x {cols}", tokens, "throughput", float(us), float(size), a)
        else:
            print(f"| llama.cpp {name} | {rows} x {cols} | {tokens} | - | not measured: it failed | - | - | - | - |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
