#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Small MLX checkpoints by mlx's own quantizer, and the weights by its own dequantizer in F32.

  gen_golden_mlx.py OUT_DIR        (tests/golden/mlx)

mixed: every width of integers, settings by module as mlx-lm writes them, scales F32, F16 and BF16; floats: mxfp4, nvfp4, mxfp8.
Made with mlx 0.32.4 (mlx-cpu), numpy, torch 2.13.0+cpu, safetensors 0.8.0 (scripts/requirements-mlx.txt).
"""
import os
import sys

import golden_folder
import mlx.core as mx
import numpy as np
import torch

ROWS, COLS = 24, 128
MIXED = [(2, 64, mx.float32), (3, 32, mx.float32), (4, 64, mx.bfloat16), (5, 32, mx.float16), (6, 128, mx.float32), (8, 32, mx.bfloat16)]
FLOATS = [(4, 32, "mxfp4"), (4, 16, "nvfp4"), (8, 32, "mxfp8")]


def as_torch(a):
    if a.dtype == mx.bfloat16:
        return torch.from_numpy(np.array(a.view(mx.uint16)).astype(np.int32)).to(torch.uint16).view(torch.bfloat16)
    return torch.from_numpy(np.array(a))


def main():
    mx.random.seed(7)
    for case, kinds in (("mixed", [(b, g, "affine", t) for b, g, t in MIXED]), ("floats", [(b, g, m, mx.float32) for b, g, m in FLOATS])):
        stored, weights, quantization = {}, {}, {"group_size": kinds[0][1], "bits": kinds[0][0], "mode": kinds[0][2]}
        for i, (bits, group, mode, dtype) in enumerate(kinds):
            name = f"model.layers.{i}.mlp.up_proj"
            w = (mx.random.normal((ROWS, COLS)) * 0.05).astype(dtype)
            parts = dict(zip(("weight", "scales", "biases"), mx.quantize(w, group_size=group, bits=bits, mode=mode)))
            stored |= {f"{name}.{k}": as_torch(v) for k, v in parts.items()}
            if mode == "affine":
                out = mx.dequantize(parts["weight"], parts["scales"].astype(mx.float32), parts["biases"].astype(mx.float32), group_size=group, bits=bits)
            else:
                out = mx.dequantize(parts["weight"], parts["scales"], group_size=group, bits=bits, mode=mode).astype(mx.float32)
            weights[f"{name}.weight"] = as_torch(out)
            if i:
                quantization[name] = {"group_size": group, "bits": bits, "mode": mode}
        stored["model.norm.weight"] = torch.ones(COLS)
        config = {"model_type": "llama", "quantization": quantization, "quantization_config": quantization}
        golden_folder.write(os.path.join(sys.argv[1], case), config, stored, weights)


if __name__ == "__main__":
    main()
