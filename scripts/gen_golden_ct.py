#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Small checkpoints packed by compressed-tensors' own compressors, and the weights they decompress to.

  gen_golden_ct.py OUT_DIR        (tests/golden/ct)

packed: 2 to 8 bits, symmetric and not, groups, channels, one scale; ragged shapes; scales in three types. ints, floats, w4afp8: with activations;
FP8, MXFP8, MXFP4, NVFP4. old (--old, with an old version on PYTHONPATH): what versions before 0.17.2 packed, fields that do not cross
words, and act-order with weight_g_idx. Made with compressed-tensors 0.20.0 and, for old, 0.9.4;
torch 2.13.0+cpu, safetensors 0.8.0.
"""
import os
import sys

import golden_folder
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def ints(bits, group=None, sym=True, **more):
    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    return strategy | {"num_bits": bits, "type": "int", "symmetric": sym} | more


def fp8(**more):
    return {"num_bits": 8, "type": "float", "symmetric": True} | more


MX = dict(strategy="group", group_size=32, scale_dtype=torch.uint8, zp_dtype=torch.uint8)
TOKEN = lambda t: {"num_bits": 8, "type": t, "strategy": "token", "dynamic": True}
STATIC = lambda t: {"num_bits": 8, "type": t, "strategy": "tensor", "dynamic": False}

# format, rows, cols, weights, input activations, type of weights and scales
CASES = {
    "packed": [("pack-quantized", 64, 96, ints(b, 32, sym), None, t) for b, sym, t in
               [(2, True, BF16), (3, False, BF16), (4, True, F16), (4, False, BF16), (5, True, F32), (6, False, F16), (7, True, BF16), (8, False, F32), (8, True, BF16)]]
    + [("pack-quantized", 37, 75, ints(3, None, False), None, BF16), ("pack-quantized", 33, 50, ints(5), None, F16), ("pack-quantized", 40, 72, ints(4, 24, False), None, F16),
       ("pack-quantized", 24, 40, ints(4, strategy="tensor"), None, F32)],
    "ints": [("int-quantized", 40, 64, ints(8), TOKEN("int"), BF16), ("int-quantized", 40, 64, ints(8, strategy="tensor"), STATIC("int"), F32),
             ("int-quantized", 24, 48, ints(8, None, False), TOKEN("int"), F16), ("int-quantized", 24, 64, ints(4, 32), TOKEN("int"), BF16)],
    "w4afp8": [("pack-quantized", 40, 256, ints(4, 128), TOKEN("float"), BF16), ("pack-quantized", 24, 96, ints(4, 32), TOKEN("float"), F16)],
    "floats": [("float-quantized", 40, 64, fp8(strategy="channel"), TOKEN("float"), BF16), ("float-quantized", 40, 64, fp8(strategy="tensor"), STATIC("float"), F32),
               ("float-quantized", 72, 96, fp8(strategy="block", block_structure=[32, 32]), {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32, "dynamic": True}, F32),
               ("float-quantized", 16, 64, fp8(strategy="group", group_size=32), None, F16),
               ("mxfp8-quantized", 16, 64, fp8(**MX), None, BF16), ("mxfp4-pack-quantized", 24, 96, fp8(**MX) | {"num_bits": 4}, None, BF16),
               ("nvfp4-pack-quantized", 24, 96, {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16, "scale_dtype": torch.float8_e4m3fn}, None, BF16)],
}


def extremes(w, a):
    if a.strategy == "tensor":
        return w.min().reshape(1), w.max().reshape(1)
    if a.strategy == "channel":
        return w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    if a.strategy == "block":
        h, c = a.block_structure
        pad = torch.nn.functional.pad(w, (0, -w.shape[1] % c, 0, -w.shape[0] % h))
        tiles = pad.reshape(pad.shape[0] // h, h, pad.shape[1] // c, c)
        return tiles.amin((1, 3)), tiles.amax((1, 3))
    groups = w.unflatten(-1, (-1, a.group_size))
    return groups.amin(-1), groups.amax(-1)


def pack(fmt, w, scheme):
    from compressed_tensors.compressors import BaseCompressor
    a = scheme.weights
    state = {"weight": w}
    if a.strategy == "tensor_group":
        state["weight_global_scale"] = (448.0 * 6.0 / w.float().abs().max()).reshape(1)
    scale, zero = calculate_qparams(*extremes(w, a), a, **({"global_scale": state["weight_global_scale"]} if a.strategy == "tensor_group" else {}))
    state["weight_scale"] = scale if a.scale_dtype == torch.float8_e4m3fn else scale.to(w.dtype)
    if not a.symmetric:
        state["weight_zero_point"] = zero.to(torch.int8)
    packer = BaseCompressor.get_value_from_registry(fmt)
    stored = packer.compress(state, scheme)
    return stored, packer.decompress(dict(stored), scheme)["weight"]


def plain(args):
    return {k: (str(v) if isinstance(v, torch.dtype) else v) for k, v in args.items()} if args else None


def new(out):
    for case, list_ in CASES.items():
        g = torch.Generator().manual_seed(5)
        stored, weights, groups = {}, {}, {}
        for i, (fmt, rows, cols, args, acts, dtype) in enumerate(list_):
            module = f"model.layers.{i}.mlp.up_proj"
            scheme = QuantizationScheme(targets=[module], weights=QuantizationArgs(**args), input_activations=QuantizationArgs(**acts) if acts else None)
            parts, weight = pack(fmt, (torch.randn(rows, cols, generator=g) * 0.05).to(dtype), scheme)
            if acts and acts["strategy"] == "tensor":
                parts["input_scale"] = torch.tensor([0.0125 * (i + 1)])
            stored |= {f"{module}.{k}": v for k, v in parts.items()}
            weights[f"{module}.weight"] = weight
            groups[f"group_{i}"] = {"targets": [module], "weights": plain(args), "input_activations": plain(acts), "output_activations": None, "format": fmt}
        stored["model.norm.weight"] = torch.rand(64, generator=g).bfloat16()
        q = {"quant_method": "compressed-tensors", "version": "0.20.0", "format": "mixed-precision", "quantization_status": "compressed", "config_groups": groups, "ignore": ["lm_head"]}
        golden_folder.write(os.path.join(out, case), {"model_type": "llama", "quantization_config": q}, stored, weights)


def old(out):
    """0.9.4: fields of 3, 5, 6, 7 bits stay in their words; act-order keeps its columns and stores g_idx."""
    from compressed_tensors.compressors.quantized_compressors.pack_quantized import PackedQuantizationCompressor, unpack_from_int32
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    g = torch.Generator().manual_seed(7)
    stored, weights, groups = {}, {}, {}
    packer = PackedQuantizationCompressor()
    for i, (bits, rows, cols, sym, order) in enumerate([(3, 40, 64, True, False), (5, 24, 96, True, False), (6, 40, 64, True, False), (7, 24, 45, True, False), (4, 40, 96, True, True), (8, 16, 64, False, True)]):
        module = f"model.layers.{i}.self_attn.q_proj"
        args = ints(bits, 32 if cols % 32 == 0 else None, sym) | ({"actorder": "group"} if order else {})
        a = QuantizationArgs(**args)
        w = torch.randn(rows, cols, generator=g) * 0.05
        g_idx = torch.arange(cols) // 32
        g_idx = g_idx[torch.randperm(cols, generator=g)].int() if order else None
        sorted_ = w[:, torch.argsort(g_idx, stable=True)] if order else w
        scale, zero = calculate_qparams(*extremes(sorted_, a), a)
        zero = zero.to(torch.int8)
        parts = packer.compress_weight(w, scale, a, zero_point=None if sym else zero, g_idx=g_idx) | {"weight_scale": scale}
        if order:
            parts["weight_g_idx"] = g_idx
        codes = unpack_from_int32(parts["weight_packed"], bits, torch.Size([rows, cols]))  # its own decompress_weight refuses packed zero points
        weights[f"{module}.weight"] = dequantize(x_q=codes, scale=scale, zero_point=None if sym else zero, args=a, g_idx=g_idx)
        stored |= {f"{module}.{k}": v for k, v in parts.items()}
        groups[f"group_{i}"] = {"targets": [f"re:.*layers\\.{i}\\..*q_proj$"], "weights": args, "input_activations": None, "output_activations": None}
    q = {"quant_method": "compressed-tensors", "version": "0.9.4", "format": "pack-quantized", "quantization_status": "compressed", "config_groups": groups, "ignore": ["re:.*lm_head"]}
    golden_folder.write(os.path.join(out, "old"), {"model_type": "llama", "quantization_config": q}, stored, weights)


if __name__ == "__main__":
    (old if "--old" in sys.argv else new)(sys.argv[1])
