#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""lquant's hqq beside the hqq package's on the same matrices: sum |w - wq|^0.7 and |w - wq|^2, and how many codes' worth of weights differ.

usage: check_hqq.py MODEL OURS TOOL_DEQUANT [--bits 4] [--group 64] [--save DIR]

MODEL is the float folder, OURS what `lquant hqq --bits B --group-size G MODEL OURS` wrote. The package quantizes on the CPU, axis 1,
zero and scale in F16 as it stores them. --save: the float folder with what the package made of its linears, for `lquant eval`. Prints one line per kind of linear and a total; exit status 1 when ours is worse in the l_p
measure, hqq's own, on the whole."""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile

os.environ["CUDA_VISIBLE_DEVICES"] = ""
import numpy as np
import torch
from hqq.core.quantize import Quantizer
from safetensors.torch import load_file, save_file


def ours(tool, folder, name, shape):
    with tempfile.TemporaryDirectory() as tmp:
        path = os.path.join(tmp, "w")
        subprocess.run([tool, folder, name, path], check=True)
        return torch.from_numpy(np.fromfile(path, "<f4").reshape(shape))


def theirs(w, bits, group):
    q, meta = Quantizer.quantize(w.clone(), nbits=bits, group_size=group, optimize=True, round_zero=False, axis=1, bitpack=False, device="cpu", compute_dtype=torch.float16)
    scale, zero = meta["scale"].half().float(), meta["zero"].half().float()
    return ((q.float().reshape(-1, group) - zero.reshape(-1, 1)) * scale.reshape(-1, 1)).reshape(w.shape)


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("model"), p.add_argument("ours"), p.add_argument("tool")
    p.add_argument("--bits", type=int, default=4)
    p.add_argument("--group", type=int, default=64)
    p.add_argument("--save")
    a = p.parse_args()
    weights = {}
    index = os.path.join(a.model, "model.safetensors.index.json")
    for f in sorted(set(json.load(open(index))["weight_map"].values())) if os.path.exists(index) else ["model.safetensors"]:
        weights.update(load_file(os.path.join(a.model, f)))
    listed = [l.split()[0] for l in subprocess.run([a.tool, a.ours], check=True, capture_output=True, text=True).stdout.splitlines()]
    total = torch.zeros(4, dtype=torch.float64)
    kinds = {}
    for name in listed:
        w = weights[name].float()
        x, y = ours(a.tool, a.ours, name, w.shape), theirs(w, a.bits, a.group)
        row = torch.tensor([(w - v).abs().double().pow(e).sum() for v in (x, y) for e in (0.7, 2)])
        kinds[name.split(".")[-2]] = kinds.get(name.split(".")[-2], 0) + row
        total += row
        if a.save:
            weights[name] = y.contiguous()
    if a.save:
        os.makedirs(a.save, exist_ok=True)
        save_file(weights, os.path.join(a.save, "model.safetensors"))
        for f in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            if os.path.exists(os.path.join(a.model, f)):
                shutil.copy(os.path.join(a.model, f), a.save)
    for kind, row in sorted(kinds.items()) + [("all", total)]:
        print(f"{kind:12} l0.7 ours {row[0]:.6g} hqq {row[2]:.6g} ({row[0] / row[2]:.4f})   l2 ours {row[1]:.6g} hqq {row[3]:.6g} ({row[1] / row[3]:.4f})")
    return 1 if total[0] > total[2] else 0


if __name__ == "__main__":
    sys.exit(main())
