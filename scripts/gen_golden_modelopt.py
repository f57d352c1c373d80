#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Small modelopt checkpoints by nvidia-modelopt's own packers, and the weights by its own dequantizers.

  gen_golden_modelopt.py OUT_DIR [--awq-pre | --nvfp4-awq]       (tests/golden/modelopt; that one alone)

fp8, fp8_kv (with scales of keys and values), nvfp4, awq_pre (AWQ with the factors it leaves before o_proj and down_proj) and nvfp4_awq: a tiny random Llama
quantized by mtq.quantize and exported by export_hf_checkpoint, as a user would; awq: two matrices packed by to_quantized_weight. Made with nvidia-modelopt 0.47.0, transformers 5.23.0, torch 2.13.0+cpu (scripts/requirements-modelopt.txt).
"""
import copy
import json
import os
import sys
import tempfile

import golden_folder
import torch
from safetensors.torch import load_file


def simulate_on_cpu():
    """What awq_lite searches with is a CUDA kernel; here modelopt's own packer, there and back."""
    from modelopt.torch.quantization import tensor_quant
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    def there_and_back(x, block, amax, *bits):
        q, scale, scale_2 = NVFP4QTensor.quantize(x, block, weights_scaling_factor_2=amax.amax().float() / (6 * 448))
        return q.dequantize(dtype=x.dtype, scale=scale, double_scale=scale_2, block_sizes={-1: block})
    tensor_quant.dynamic_block_quantize_op = there_and_back


def export(algo, hidden=64, ffn=96):
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(5)
    if algo == "nvfp4_awq":
        simulate_on_cpu()
    config = LlamaConfig(vocab_size=32, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                         max_position_embeddings=32, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    model = LlamaForCausalLM(config).bfloat16().eval()
    settings = copy.deepcopy({"fp8": mtq.FP8_DEFAULT_CFG, "fp8_kv": mtq.FP8_DEFAULT_CFG, "nvfp4": getattr(mtq, "W4A16_NVFP4_CFG", None), "awq_pre": mtq.INT4_AWQ_CFG,
                              "nvfp4_awq": getattr(mtq, "NVFP4_AWQ_LITE_CFG", None)}[algo])
    if algo == "fp8_kv":
        kv = mtq.FP8_KV_CFG["quant_cfg"]
        settings["quant_cfg"] = settings["quant_cfg"] + kv if isinstance(settings["quant_cfg"], list) else {**settings["quant_cfg"], **kv}
    model = mtq.quantize(model, settings, lambda m: m(torch.arange(32)[None]))
    with tempfile.TemporaryDirectory() as tmp:
        export_hf_checkpoint(model, export_dir=tmp)
        stored = load_file(os.path.join(tmp, "model.safetensors"))
        with open(os.path.join(tmp, "config.json")) as f, open(os.path.join(tmp, "hf_quant_config.json")) as h:
            return stored, json.load(f), json.load(h)


def fp8(stored, name):
    return stored[name].float() * stored[name + "_scale"]


def nvfp4(stored, name):
    table = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6])
    codes = torch.stack([stored[name] & 15, stored[name] >> 4], -1).reshape(stored[name].shape[0], -1).long()
    values = table[codes & 7] * torch.where(codes > 7, -1.0, 1.0)
    scale = stored[name + "_scale"].float() * stored[name + "_scale_2"]
    return values * scale.repeat_interleave(16, 1)


def awq():
    from modelopt.torch.export.quant_utils import to_quantized_weight
    g = torch.Generator().manual_seed(9)
    stored, weights = {"model.norm.weight": torch.rand(64, generator=g).bfloat16()}, {}
    for name, (n, k) in {"model.layers.0.self_attn.q_proj.weight": (48, 128), "model.layers.0.mlp.down_proj.weight": (34, 192)}.items():
        w = torch.randn(n, k, generator=g) * 0.05
        scale = w.reshape(n, k // 64, 64).abs().amax(-1) / 7
        stored |= {name: to_quantized_weight(w, scale, "int4_awq", block_size=64), name + "_scale": scale}
        packed = stored[name].T.reshape(k, n // 2, 1)
        pair = torch.cat([packed & 15, packed >> 4], -1).reshape(k, n).T.to(torch.int8)
        signed = torch.where(pair > 7, pair - 16, pair).float()
        weights[name] = signed * scale.repeat_interleave(64, 1)
    quant = {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ", "ignore": ["lm_head"],
             "config_groups": {"group_0": {"weights": {"dynamic": False, "num_bits": 4, "type": "int", "group_size": 64}, "targets": ["Linear"]}}}
    beside = {"producer": {"name": "modelopt", "version": "0.47.0"},
              "quantization": {"quant_algo": "W4A16_AWQ", "kv_cache_quant_algo": None, "group_size": 64, "has_zero_point": False, "pre_quant_scale": True, "exclude_modules": ["lm_head"]}}
    return stored, weights, {"model_type": "llama", "quantization_config": quant}, beside


def signed(packed):
    """[N/2][K] of pairs of outputs to [N][K]."""
    pair = torch.stack([packed & 15, packed >> 4], 1).reshape(-1, packed.shape[1]).to(torch.int8)
    return torch.where(pair > 7, pair - 16, pair).float()


def awq_pre(stored, name):
    scale = stored[name + "_scale"].float()
    codes = signed(stored[name])
    w = codes * scale.repeat_interleave(codes.shape[1] // scale.shape[1], 1)
    pre = stored.get(name.replace(".weight", ".pre_quant_scale"))
    return w if pre is None else w * pre.float()


def nvfp4_awq(stored, name):
    pre = stored.get(name.replace(".weight", ".pre_quant_scale"))
    return nvfp4(stored, name) if pre is None else nvfp4(stored, name) * pre.float()


def main():
    if "--nvfp4-awq" in sys.argv:
        stored, config, beside = export("nvfp4_awq", 128, 128)
        weights = {n: nvfp4_awq(stored, n) for n in stored if n + "_scale" in stored}
        return golden_folder.write(os.path.join(sys.argv[1], "nvfp4_awq"), config, stored, weights, {"hf_quant_config.json": beside})
    stored, config, beside = export("awq_pre", 128, 128)
    weights = {n: awq_pre(stored, n) for n in stored if n + "_scale" in stored}
    golden_folder.write(os.path.join(sys.argv[1], "awq_pre"), config, stored, weights, {"hf_quant_config.json": beside})
    if "--awq-pre" in sys.argv:
        return
    for algo, decode in (("fp8", fp8), ("fp8_kv", fp8), ("nvfp4", nvfp4)):
        stored, config, beside = export(algo)
        weights = {n: decode(stored, n).bfloat16() for n in stored if n + "_scale" in stored}
        golden_folder.write(os.path.join(sys.argv[1], algo), config, stored, weights, {"hf_quant_config.json": beside})
    stored, weights, config, beside = awq()
    golden_folder.write(os.path.join(sys.argv[1], "awq"), config, stored, weights, {"hf_quant_config.json": beside})


if __name__ == "__main__":
    main()
