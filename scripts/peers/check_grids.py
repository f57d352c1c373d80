#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Are the float formats those of the tools that define them?

usage: check_grids.py LQUANT TOOL_DEQUANT MODEL

Quantizes MODEL (a Hugging Face folder of a Llama) with nf4, fp4, fp8, mxfp4 and nvfp4 into one-file checkpoints and compares every
linear, decoded to floats, with bitsandbytes' CPU quantize_4bit / dequantize_4bit, torch's float8_e4m3fn under absmax / 448, and
torchao's MX (FLOOR) and NVFP4. Differences are counted; the exit status is 1 when there are more than the stated share.

Double quantization: bitsandbytes chooses codes by the block scale before it is rounded to 8 bits, lquant by the scale the reader
will see. Compared are the scales, and the codes that bitsandbytes' own rule gives under them."""
import os
import subprocess
import sys
import tempfile

os.environ["CUDA_VISIBLE_DEVICES"] = ""
import bitsandbytes.functional as bnb
import numpy as np
import torch
from safetensors import safe_open
from torchao.prototype.mx_formats.mx_tensor import MXTensor
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

FUSED = [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")]


def weights(folder):
    out = {}
    for file in sorted(os.listdir(folder)):
        if file.endswith(".safetensors"):
            with safe_open(os.path.join(folder, file), "pt") as f:
                out.update({k: f.get_tensor(k).float() for k in f.keys()})
    return out


def four_bits(kind):
    def peer(w, name, all_weights):
        q, state = bnb.quantize_4bit(w, quant_type=kind, compress_statistics=False)
        return bnb.dequantize_4bit(q, state).float()

    return peer


def double_quant(w, name, all_weights):
    q, state = bnb.quantize_4bit(w, quant_type="nf4", compress_statistics=True)
    scale = bnb.dequantize_blockwise(state.absmax, state.state2).float() + state.offset
    code = state.code.float()
    unit = (w.reshape(-1, 64) * (1.0 / scale).view(-1, 1)).reshape(-1)
    index = torch.bucketize(unit, (code[:-1] + code[1:]) / 2)
    return (code[index].view(-1, 64) * scale.view(-1, 1)).view(w.shape)


def fp8(rows, cols):
    def peer(w, name, all_weights):
        out = torch.empty_like(w)
        r, c = rows or w.shape[0], cols or w.shape[1]
        for i in range(0, w.shape[0], r):
            for j in range(0, w.shape[1], c):
                b = w[i : i + r, j : j + c]
                s = b.abs().max() / 448
                out[i : i + r, j : j + c] = (b / s).clamp(-448, 448).to(torch.float8_e4m3fn).float() * s
        return out

    return peer


def mxfp4(w, name, all_weights):
    return MXTensor.to_mx(w, torch.float4_e2m1fn_x2, 32).dequantize(torch.float32)


def nvfp4(w, name, all_weights):
    names = [name]
    for group in FUSED:
        for part in group:
            if part in name:
                names = [name.replace(part, p) for p in group]
    amax = max(all_weights[n].abs().max() for n in names)
    return NVFP4Tensor.to_nvfp4(w, per_tensor_scale=torch.exp2(torch.ceil(torch.log2(per_tensor_amax_to_scale(amax))))).dequantize(torch.float32)


# flags, peer, largest share of weights that may differ (torchao multiplies by reciprocals where the definition divides; bitsandbytes
# codes a few block scales that lie between two entries by the farther one, and its mean is summed in fp32: hence the last case's 1e-6)
CASES = [
    (["nf4"], four_bits("nf4"), 0),
    (["fp4"], four_bits("fp4"), 0),
    (["nf4", "--double-quant"], double_quant, 5e-3),
    (["fp8", "--scheme", "FP8-W"], fp8(1, 0), 0),
    (["fp8", "--scheme", "FP8-W", "--granularity", "tensor"], fp8(0, 0), 0),
    (["fp8", "--scheme", "FP8-W", "--granularity", "block"], fp8(128, 128), 0),
    (["mxfp4"], mxfp4, 0),
    (["nvfp4"], nvfp4, 1e-4),
]


def main():
    lquant, dequant, model = sys.argv[1:]
    have, failed = weights(model), False
    for flags, peer, allowed in CASES:
        with tempfile.TemporaryDirectory() as tmp:
            out, raw = os.path.join(tmp, "out.lqt"), os.path.join(tmp, "raw")
            subprocess.run([lquant, *flags, "-q", model, out], check=True, stdout=subprocess.DEVNULL)
            names = [line.split()[0] for line in subprocess.run([dequant, out], check=True, capture_output=True, text=True).stdout.splitlines()]
            differ = total = 0
            far = 0.0
            for name in names:
                subprocess.run([dequant, out, name, raw], check=True)
                ours = torch.from_numpy(np.fromfile(raw, dtype="<f4").reshape(have[name].shape))
                os.remove(raw)
                theirs = peer(have[name].contiguous(), name, have)
                differ += int(((ours - theirs).abs() > (1e-6 * theirs.abs().max() if "--double-quant" in flags else 0)).sum())
                total += ours.numel()
                far = max(far, float((ours - theirs).abs().max() / have[name].abs().max()))
            bad = differ > allowed * total
            failed |= bad
            print(f"{' '.join(flags):40} {len(names)} linears, {differ} of {total} weights differ, at most by {far:.2g} of the largest{'  FAILED' if bad else ''}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
