#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""A small AWQ checkpoint by GPTQModel's own packer, and the weights by its own dequantizer.

  gen_golden_awq.py OUT_DIR        (tests/golden/awq)

Made with GPTQModel 7.6.0, torch 2.13.0+cpu, safetensors 0.8.0 (scripts/requirements-peers.txt). Codes and zero points are
random over all their values; the config is AutoAWQ's.
"""
import sys

import golden_folder
import torch
from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm, pack_awq

SHAPES = {"model.layers.0.self_attn.q_proj": (64, 128), "model.layers.0.mlp.down_proj": (40, 192)}
GROUP = 64


def main():
    g = torch.Generator().manual_seed(4)
    stored, weights = {}, {}
    for name, (n, k) in SHAPES.items():
        codes = torch.randint(0, 16, (k, n), generator=g, dtype=torch.int32)
        zeros = torch.randint(0, 16, (k // GROUP, n), generator=g, dtype=torch.int32)
        scales = (torch.rand(k // GROUP, n, generator=g) * 0.1 + 1e-3).half()
        qweight, qzeros = pack_awq(codes, zeros, 4)
        stored |= {f"{name}.qweight": qweight.contiguous(), f"{name}.qzeros": qzeros.contiguous(), f"{name}.scales": scales}
        weights[f"{name}.weight"] = dequantize_gemm(qweight, qzeros, scales, 4, GROUP).T.contiguous()
    stored["model.norm.weight"] = torch.rand(128, generator=g).half()
    config = {"model_type": "llama", "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm",
                                                              "modules_to_not_convert": None}}
    golden_folder.write(sys.argv[1], config, stored, weights)


if __name__ == "__main__":
    main()
