#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Matrices quantized and saved by bitsandbytes, and what it dequantizes them to, for tests/test_bnb.c.

    gen_golden_bnb.py OUT_DIR        (tests/golden/bnb)

Made on a CPU with Python 3.11, bitsandbytes 0.50.2, transformers 5.23.0, torch 2.13.0, safetensors 0.8.0, zstandard 0.25.
OUT_DIR/KIND holds the quantization_config that transformers writes, the state_dict of each module and the weights dequantized in the type
of its quant_state. Sizes: more than one block of nested scales, blocks that cross rows, an odd number of weights, a block and a row of zeros,
other block sizes.
"""
import os
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = ""
import bitsandbytes as bnb
import golden_folder
import torch
from transformers import BitsAndBytesConfig

PREFIX = "model.layers.0.mlp."
SIZES = {"up_proj": (200, 90, 64), "gate_proj": (48, 40, 128), "down_proj": (5, 13, 64), "odd_proj": (3, 77, 32)}


def matrix(rows, cols, dtype, gen):
    w = torch.randn((rows, cols), generator=gen) * 0.05 * torch.rand((rows, 1), generator=gen)
    w[rows // 2] = 0
    return w.to(dtype)


def four_bits(kind, dtype, nested, gen):
    out, want = {}, {}
    for name, (rows, cols, block) in SIZES.items():
        param = bnb.nn.Params4bit(matrix(rows, cols, dtype, gen), requires_grad=False, quant_type=kind, compress_statistics=nested, blocksize=block, quant_storage=torch.uint8).to("cpu")
        module = PREFIX + name
        out[module + ".weight"] = param.data
        for key, value in param.quant_state.as_dict(packed=True).items():
            out[module + ".weight." + key] = value
        want[module + ".weight"] = bnb.functional.dequantize_4bit(param.data, param.quant_state)
        assert want[module + ".weight"].dtype == dtype
    return out, want


def eight_bits(dtype, gen):
    out, want = {}, {}
    for name, (rows, cols, _) in SIZES.items():
        layer = bnb.nn.Linear8bitLt(cols, rows, bias=False, has_fp16_weights=False, threshold=6.0)
        layer.weight = bnb.nn.Int8Params(matrix(rows, cols, dtype, gen), requires_grad=False, has_fp16_weights=False)
        layer = layer.to("cpu")
        module = PREFIX + name
        for key, value in layer.state_dict(prefix=module + ".").items():
            out[key] = value
        scb = out[module + ".SCB"]
        want[module + ".weight"] = layer.weight.data.float() * (scb / 127)[:, None]
        want[module + ".weight"][scb == 0] = 0
    return out, want


def store(folder, config, dtype, tensors):
    stored, want = tensors
    stored["model.norm.weight"] = torch.ones(8, dtype=dtype)
    golden_folder.write(folder, {"model_type": "llama", "quantization_config": config.to_dict() | {"quant_method": "bitsandbytes"}}, stored, want)


def main():
    out = sys.argv[1]
    for name, dtype, nested in (("nf4", torch.bfloat16, False), ("nf4_dq", torch.float16, True), ("fp4", torch.float32, False), ("fp4_dq", torch.bfloat16, True)):
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=name[:3], bnb_4bit_use_double_quant=nested, bnb_4bit_compute_dtype=dtype)
        store(os.path.join(out, name), config, dtype, four_bits(name[:3], dtype, nested, torch.Generator().manual_seed(1)))
    store(os.path.join(out, "int8"), BitsAndBytesConfig(load_in_8bit=True), torch.bfloat16, eight_bits(torch.bfloat16, torch.Generator().manual_seed(2)))


if __name__ == "__main__":
    main()
