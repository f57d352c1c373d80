#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Ternary matrices packed by transformers' own packer, of both linear classes, and the weights its linears multiply by.

    gen_golden_bitnet.py OUT_DIR        (tests/golden/bitnet)

Made with Python 3.11, transformers 5.23.0, torch 2.13.0, safetensors 0.8.0. bitlinear: F32 scales, the reciprocal of the mean magnitude of random
weights. autobitlinear: BF16 scales that multiply.
"""
import os
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TORCHDYNAMO_DISABLE"] = "1"
import golden_folder
import torch
from transformers.integrations.bitnet import pack_weights, unpack_weights

SHAPES = {"self_attn.q_proj": (32, 48), "mlp.up_proj": (12, 7), "mlp.down_proj": (4, 33)}


def main():
    g = torch.Generator().manual_seed(158)
    for kind, dtype in (("bitlinear", torch.float32), ("autobitlinear", torch.bfloat16)):
        stored, weights = {"model.norm.weight": torch.ones(8, dtype=dtype)}, {}
        for name, shape in SHAPES.items():
            module = "model.layers.0." + name
            w = torch.randn(shape, generator=g) * 0.1
            inverse = 1.0 / w.abs().mean().clamp(min=1e-5)
            packed = pack_weights((w * inverse).round().clamp(-1, 1))
            t = unpack_weights(packed, dtype=torch.float32)
            scale = (inverse if kind == "bitlinear" else 1 / inverse).to(dtype).view(1)
            stored |= {module + ".weight": packed, module + ".weight_scale": scale}
            weights[module + ".weight"] = t / scale if kind == "bitlinear" else t * scale.float()
        config = {"quant_method": "bitnet", "linear_class": kind, "quantization_mode": "offline", "modules_to_not_convert": None}
        golden_folder.write(os.path.join(sys.argv[1], kind), {"model_type": "llama", "quantization_config": config}, stored, weights)


if __name__ == "__main__":
    main()
