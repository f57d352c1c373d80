#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Small FP8 checkpoints by transformers' own quantizer, and the weights by its own dequantizer.

  gen_golden_fp8.py OUT_DIR        (tests/golden/fp8)

block: F32 scales, ue8m0: powers of two, tensor: one scale of shape [1, 1]. Made with transformers 5.23.0, torch 2.13.0+cpu,
safetensors 0.8.0 (scripts/requirements-peers.txt).
"""
import os
import sys
import types

import golden_folder
import torch
from transformers import FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

SHAPES = {"model.layers.0.self_attn.q_proj.weight": (64, 96), "model.layers.0.mlp.down_proj.weight": (32, 64)}
CASES = {"block": dict(weight_block_size=[32, 32]), "ue8m0": dict(weight_block_size=[32, 32], scale_fmt="ue8m0"), "tensor": dict(weight_block_size=None)}


def main():
    for case, settings in CASES.items():
        g = torch.Generator().manual_seed(11)
        config = FineGrainedFP8Config(modules_to_not_convert=["lm_head"], **settings)
        quantizer = types.SimpleNamespace(quantization_config=config)
        stored, weights = {}, {}
        for name, shape in SHAPES.items():
            out = Fp8Quantize(quantizer).convert({name: torch.randn(shape, generator=g) * 0.05})
            stored |= out
            weights[name] = Fp8Dequantize(quantizer)._dequantize_one(out[name], out[name + "_scale_inv"], output_dtype=torch.float32)
        stored["model.norm.weight"] = torch.rand(64, generator=g).bfloat16()
        golden_folder.write(os.path.join(sys.argv[1], case), {"model_type": "llama", "quantization_config": config.to_dict()}, stored, weights)


if __name__ == "__main__":
    main()
