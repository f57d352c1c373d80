#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""torch's _weight_int4pack_mm (tinygemm: 4 bits in groups of 128, bf16 activations) as rows of `checkkern --bench-device`'s table:

    tinygemm.py [--roof GB/s] [--peak GB/s]

Distinct matrices, together at least 300 MB, in turn in a CUDA graph of at least 64 launches; the median of 20 replays. Exit 77 and one sentence where
there is no torch with CUDA, or no GPU of 8.0 and later."""
import argparse
import statistics
import sys
import time

GROUP, LAUNCHES, REPLAYS = 128, 64, 20


def none(why):
    print(f"tinygemm: {why}")
    sys.exit(77)


def matrix(torch, rows, cols):
    """What the kernel takes: codes in its own order, [groups][rows][scale, zero]."""
    codes = torch.randint(0, 256, (rows, cols // 2), dtype=torch.uint8, device="cuda")
    packed = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
    return packed, torch.randn(cols // GROUP, rows, 2, dtype=torch.bfloat16, device="cuda") / cols


def measure(torch, rows, cols, n):
    size = rows * cols / 2 + rows * cols / GROUP * 4
    copies = max(4, int(300e6 / size) + 1)
    weights = [matrix(torch, rows, cols) for _ in range(copies)]
    x = torch.randn(n, cols, dtype=torch.bfloat16, device="cuda")
    launches = max(LAUNCHES, copies)
    out = [torch.ops.aten._weight_int4pack_mm(x, weights[0][0], GROUP, weights[0][1])]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(launches):
            out[0] = torch.ops.aten._weight_int4pack_mm(x, weights[i % copies][0], GROUP, weights[i % copies][1])
    took = []
    for r in range(-3, REPLAYS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        if r >= 0:
            took.append((time.perf_counter() - start) / launches)
    return statistics.median(took) * 1e6, size


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--roof", type=float, default=0)
    p.add_argument("--peak", type=float, default=0)
    a = p.parse_args()
    try:
        import torch
    except ImportError:
        none("no torch here")
    if not torch.cuda.is_available():
        none("torch sees no CUDA device")
    if torch.cuda.get_device_capability() < (8, 0):
        none("tinygemm wants compute capability 8.0 and later")
    for rows, cols in ((4096, 4096), (4096, 14336), (8192, 28672)):
        for n in (1, 8, 16):
            us, size = measure(torch, rows, cols, n)
            rate = size / us / 1e3
            share = [f"{100 * rate / v:.0f}" if v else "-" for v in (a.roof, a.peak)]
            print(f"| torch _weight_int4pack_mm | {rows} x {cols} | {n} | throughput | {us:.2f} | {rate:.0f} | {share[0]} | {share[1]} | - |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
