#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""LLM.int8 weights of `lquant int8` against bitsandbytes' int8_vectorwise_quant: codes and row scales must be identical.

usage: check_int8.py LQUANT TOOL_DEQUANT WORK   (needs torch and bitsandbytes, CPU)

Random weights in the shapes of models/tiny, quantized with --compat bnb, read back as float and compared with
CB * SCB / 127 of bitsandbytes, then code by code.
"""
import json, os, subprocess, sys
import torch
import bitsandbytes.functional as F
from safetensors.torch import load_file, save_file


def main():
    lquant, tool, work = sys.argv[1:4]
    src = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../models/tiny")
    tensors = load_file(os.path.join(src, "model.safetensors"))
    gen = torch.Generator().manual_seed(1)
    names = [n for n in tensors if n.endswith("_proj.weight")]
    for i, n in enumerate(names):
        w = torch.randn(tensors[n].shape, generator=gen) * (0.02 + 0.01 * i)
        w[::7, ::5] *= 9
        tensors[n] = w.half() if i % 2 else w
    model = os.path.join(work, "int8_in")
    os.makedirs(model, exist_ok=True)
    for f in os.listdir(src):
        if f != "model.safetensors" and f != "README.md":
            with open(os.path.join(src, f), "rb") as a, open(os.path.join(model, f), "wb") as b:
                b.write(a.read())
    save_file(tensors, os.path.join(model, "model.safetensors"), metadata={"format": "pt"})
    out = os.path.join(work, "int8_out.lqt")
    subprocess.run([lquant, "int8", "--compat", "bnb", "--overwrite", "-q", model, out], check=True)
    bad = checked = 0
    for n in names:
        raw = os.path.join(work, "int8_weight.bin")
        if os.path.exists(raw):
            os.remove(raw)
        subprocess.run([tool, out, n, raw], check=True)
        with open(raw, "rb") as f:
            got = torch.frombuffer(bytearray(f.read()), dtype=torch.float32).view(tensors[n].shape)
        cb, scb, _ = F.int8_vectorwise_quant(tensors[n].half().clone())
        scale = scb.float() / 127
        want = cb.float() * scale[:, None]
        codes = torch.round(got / scale[:, None]).to(torch.int8)
        checked += cb.numel()
        bad += int((codes != cb).sum()) + int((got != want).sum())
    print(json.dumps({"matrices": len(names), "weights": checked, "different": bad}))
    return bad != 0


if __name__ == "__main__":
    sys.exit(main())
