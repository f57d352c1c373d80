#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""A checkpoint in DeepSeek's FP8 made by DeepSeek's own kernels, and whether lquant reads of it what they do.

    deepseek_fp8_save.py KERNEL.PY MODEL|deepseek-v3 OUT [--scales float32|bfloat16] [--lquant build/lquant]

KERNEL.PY: inference/kernel.py of the DeepSeek-V3 repository, run by triton's interpreter: no GPU. Every linear of the blocks goes through its
act_quant_kernel, a block of 128 x 128 at a time, into weight and weight_scale_inv, two files and an index beside them, with quantization_config as DeepSeek-V3's
config.json has it; then what `lquant convert --dequantize f32` makes of the folder is held, bit for bit, to the kernel's weight_dequant.
MODEL: a folder of one file; deepseek-v3: a random one of that architecture by transformers, whose sides (latents of 48 and 160 columns, 416
outputs) are no multiples of 128. --scales bfloat16: as Qwen's FP8 folders store them. Exit status 1 when a weight differs.
"""
import argparse
import importlib.util
import json
import os
import shutil
import sys

os.environ["TRITON_INTERPRET"] = "1"
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import common

B = 128
QUANT = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [B, B]}


def random_deepseek(out):
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
    torch.manual_seed(3)
    c = DeepseekV3Config(vocab_size=256, hidden_size=320, intermediate_size=416, moe_intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
                         n_shared_experts=1, n_routed_experts=4, kv_lora_rank=160, q_lora_rank=48, qk_rope_head_dim=16, v_head_dim=32, qk_nope_head_dim=32, n_group=2,
                         topk_group=1, num_experts_per_tok=2, first_k_dense_replace=1, max_position_embeddings=128)
    DeepseekV3ForCausalLM(c).float().save_pretrained(out)


def quantized(kernel, w):
    """Every block as one group of act_quant: by its largest over 448, which is how weights are made too; codes and scales."""
    (n, k), blocks = w.shape, [-(-side // B) for side in w.shape]
    x = torch.zeros(blocks[0] * B, blocks[1] * B)
    x[:n, :k] = w
    x = x.reshape(blocks[0], B, blocks[1], B).transpose(1, 2).reshape(-1, B * B).contiguous()
    y, s = torch.empty_like(x), x.new_empty(len(x))
    kernel.act_quant_kernel[(len(x),)](x, y, s, BLOCK_SIZE=B * B, scale_fmt=None)
    q = y.to(torch.float8_e4m3fn)  # torch's cast, to nearest as hardware's; the interpreter's own is two steps off near 448
    q = q.reshape(*blocks, B, B).transpose(1, 2).reshape(blocks[0] * B, blocks[1] * B)
    return q[:n, :k].contiguous(), s.reshape(blocks)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("kernel")
    a.add_argument("model")
    a.add_argument("out")
    a.add_argument("--scales", choices=["float32", "bfloat16"], default="float32")
    a.add_argument("--lquant", default="build/lquant")
    a = a.parse_args()
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("kernel", a.kernel)
    kernel = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernel)
    shutil.rmtree(a.out, ignore_errors=True)
    model = a.model
    if model == "deepseek-v3":
        model = a.out + ".float"
        random_deepseek(model)
    shutil.copytree(model, a.out, ignore=shutil.ignore_patterns("*.safetensors", "*.md"))
    files, want, place = [{}, {}], {}, {}
    for i, (name, w) in enumerate(load_file(os.path.join(model, "model.safetensors")).items()):
        parts = {name: w}
        if w.ndim == 2 and ".layers." in name and not name.endswith("gate.weight"):
            q, s = quantized(kernel, w.float())
            s = s.to(getattr(torch, a.scales))
            parts = {name: q, name + "_scale_inv": s}
            want[name.removesuffix(".weight")] = kernel.weight_dequant(q, s.float()).float()
        files[i % 2] |= parts
        place |= {k: f"model-0000{i % 2 + 1}-of-000002.safetensors" for k in parts}
    for i, tensors in enumerate(files):
        save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(a.out, f"model-0000{i + 1}-of-000002.safetensors"), metadata={"format": "pt"})
    with open(os.path.join(a.out, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {}, "weight_map": place}, f)
    with open(os.path.join(a.out, "config.json"), "w") as f:
        json.dump(common.config_of(model) | {"quantization_config": QUANT}, f, indent=1)
    got = common.decoded(a.lquant, a.out)
    differ = sum(int((torch.from_numpy(got[common.spelled(n)]) != w).sum()) for n, w in want.items())
    total = sum(w.numel() for w in want.values())
    moved = max(float((w - load_file(os.path.join(model, "model.safetensors"))[n + ".weight"].float()).abs().max() / w.abs().max()) for n, w in want.items())
    print(f"{a.out}: {len(want)} matrices, {differ} of {total} weights differ from weight_dequant's; from the float model's at most {moved:.3f} of a matrix's largest")
    return 1 if differ or moved > 0.04 else 0


if __name__ == "__main__":
    sys.exit(main())
