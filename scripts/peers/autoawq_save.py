#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""MODEL as an AWQ folder by AutoAWQ's own quantizer and packer (its rounding without the search for factors), read by lquant and compared.

    autoawq_save.py MODEL OUT [--group 128] [--lquant BIN]

Every linear of the blocks goes through AwqQuantizer.pseudo_quantize_tensor and WQLinear_GEMM.from_linear, as AutoAWQ's own save does it; its dequantize_gemm
must give, in F16, what `lquant convert --dequantize f32` gives rounded once. Needs autoawq (pip install --no-deps autoawq==0.2.9 beside the peers; archived: its package
does not import beside transformers 5, so the modules are taken one by one). Exit status 1 when a weight differs."""
import argparse
import importlib.util
import json
import os
import shutil
import sys
import types

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import common


def autoawq():
    package = types.ModuleType("awq")
    package.__path__ = list(importlib.util.find_spec("awq").submodule_search_locations)
    quantize = types.ModuleType("awq.quantize")
    quantize.__path__ = [os.path.join(package.__path__[0], "quantize")]
    linear = types.ModuleType("awq.modules.linear")
    linear.__path__ = [os.path.join(package.__path__[0], "modules", "linear")]
    sys.modules |= {"awq": package, "awq.quantize": quantize, "awq.modules.linear": linear}
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm
    source = open(os.path.join(quantize.__path__[0], "quantizer.py")).read()
    start = source.index("    def pseudo_quantize_tensor(")
    scope = {"torch": torch}
    exec("class Quantizer:\n" + source[start:source.index("\n    def ", start + 8)], scope)  # the module imports models of transformers 4
    return WQLinear_GEMM, dequantize_gemm, scope["Quantizer"]


def main():
    a = argparse.ArgumentParser()
    a.add_argument("model")
    a.add_argument("out")
    a.add_argument("--group", type=int, default=128)
    a.add_argument("--lquant", default="build/lquant")
    a = a.parse_args()
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM
    Linear, dequantize, Quantizer = autoawq()
    q = Quantizer()
    q.group_size, q.zero_point, q.w_bit = a.group, True, 4
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float16)
    stored, theirs = {}, {}
    for name, m in model.named_modules():
        if not isinstance(m, torch.nn.Linear) or ".layers." not in name:
            continue
        m.weight.data, scales, zeros = q.pseudo_quantize_tensor(m.weight.data)
        packed = Linear.from_linear(m, 4, a.group, False, scales.t().contiguous(), zeros.t().contiguous())
        stored |= {f"{name}.{k}": v for k, v in packed.state_dict().items()}
        theirs[name] = dequantize(packed.qweight, packed.qzeros, packed.scales, 4, a.group).t().float().numpy()
    done = {f"{n}.{k}" for n in theirs for k in ("weight", "bias")}
    stored |= {k: v for k, v in model.state_dict().items() if k not in done and not (k.startswith("lm_head") and model.config.tie_word_embeddings)}
    shutil.rmtree(a.out, ignore_errors=True)
    os.makedirs(a.out)
    save_file({k: v.contiguous() for k, v in stored.items()}, os.path.join(a.out, "model.safetensors"), {"format": "pt"})
    config = common.config_of(a.model) | {"torch_dtype": "float16", "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": a.group, "zero_point": True, "version": "gemm",
                                                                                          "modules_to_not_convert": None}}
    json.dump(config, open(os.path.join(a.out, "config.json"), "w"), indent=1)
    for name in os.listdir(a.model):
        if name.startswith(("tokenizer", "special", "generation")):
            shutil.copy(os.path.join(a.model, name), a.out)
    ours = common.decoded(a.lquant, a.out)
    result = common.matrices(((n, "WQLinear_GEMM", "float16", w) for n, w in theirs.items()), {n: ours[n] for n in theirs})
    print(f"{a.out}: {result['weights_differing']} of {result['weights']} weights differ in {result['bad_matrices']} of {result['matrices']} matrices: {'FAILED' if result['bad_matrices'] else 'ok'}")
    return 1 if result["bad_matrices"] else 0


if __name__ == "__main__":
    sys.exit(main())
