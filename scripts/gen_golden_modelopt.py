#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Checkpoints of a tiny random Llama in NVIDIA Model Optimizer's unified export, for the reader and the writer to be measured against.

  gen_golden_modelopt.py OUT_DIR [fp8|nvfp4|w4a16_awq|fp8_kv8 ...]

Each folder holds config.json, hf_quant_config.json and model.safetensors as modelopt writes them, and decoded.safetensors: the weights
modelopt itself computes with (its own fake quantization, F32; not for NVFP4, which it computes on CUDA only). Calibrated on random ids of a fixed seed, on the CPU.
Made with Python 3.11, torch 2.13.0+cpu, transformers 5.23.0, nvidia-modelopt 0.47.0 (scripts/peers_env.sh DIR modelopt).
"""
import copy
import json
import os
import shutil
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = ""
import torch
from safetensors.torch import load_file, save_file

import modelopt.torch.quantization as mtq
from modelopt.torch.export import export_hf_checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = dict(vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
              max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, dtype="bfloat16", architectures=["LlamaForCausalLM"])


def with_kv(base):
    c = copy.deepcopy(base)
    kv = mtq.FP8_KV_CFG["quant_cfg"]
    c["quant_cfg"] = c["quant_cfg"] + kv if isinstance(c["quant_cfg"], list) else {**c["quant_cfg"], **kv}
    return c


KINDS = {"fp8": lambda: mtq.FP8_DEFAULT_CFG, "nvfp4": lambda: mtq.NVFP4_DEFAULT_CFG, "w4a16_awq": lambda: mtq.INT4_AWQ_CFG, "fp8_kv8": lambda: with_kv(mtq.FP8_DEFAULT_CFG)}


def model_of(seed):
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).to(torch.bfloat16).eval()
    for name, p in model.named_parameters():
        p.data = (torch.rand(p.shape) + 0.5 if "norm" in name else torch.randn(p.shape) * (0.3 if p.ndim == 2 else 1)).to(torch.bfloat16)
    return model


def decoded(model):
    """Every quantized linear's weight as modelopt's own quantizer rounds it."""
    out = {}
    for name, m in model.named_modules():
        q = getattr(m, "weight_quantizer", None)
        if q is not None and getattr(q, "is_enabled", False):
            try:
                with torch.no_grad():
                    out[name + ".weight"] = q(m.weight).float().contiguous()
            except AssertionError as e:  # its NVFP4 arithmetic is a CUDA kernel; the export itself is not
                print(f"no decoded.safetensors: {e}")
                return {}
    return out


def make(out, kind):
    folder = os.path.join(out, kind)
    shutil.rmtree(folder, ignore_errors=True)
    model = model_of(7)
    ids = [torch.randint(0, CONFIG["vocab_size"], (1, 32), generator=torch.Generator().manual_seed(i)) for i in range(4)]

    def calibrate(m):
        for x in ids:
            m(input_ids=x, use_cache=False)

    mtq.quantize(model, copy.deepcopy(KINDS[kind]()), forward_loop=calibrate)
    floats = decoded(model)
    export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=folder)
    if floats:
        save_file(floats, os.path.join(folder, "decoded.safetensors"), metadata={"format": "pt"})
    tensors = load_file(os.path.join(folder, "model.safetensors"))
    print(kind, sorted(os.listdir(folder)))
    print(json.dumps(json.load(open(os.path.join(folder, "hf_quant_config.json")))))
    for k, v in tensors.items():
        if "layers" not in k or "q_proj" in k or "k_proj" in k or "down_proj" in k or "norm" in k:
            print("  ", k, v.dtype, tuple(v.shape))


def main(out, kinds):
    torch.set_num_threads(1)
    for kind in kinds or KINDS:
        make(out, kind)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
