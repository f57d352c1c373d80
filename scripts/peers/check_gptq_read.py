#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Do we read what GPTQModel packs?

usage: check_gptq_read.py TOOL_DEQUANT

Packs random matrices with GPTQModel's own linear (v1 and v2, 2 to 8 bits, symmetric and not, act-order, F16 scales, zero points down to
0), saves each as a folder, and compares tool_dequant of it with GPTQModel's dequantized weight: bit for bit after rounding ours once to
F16. Exit status 1 on any difference."""
import json
import os
import subprocess
import sys
import tempfile

os.environ["CUDA_VISIBLE_DEVICES"] = ""
import numpy as np
import torch
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization import QuantizeConfig
from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module, convert_gptq_v2_to_v1_format_module
from safetensors.torch import save_file

K, N = 128, 96


def packed(bits, group, sym, act_order, seed):
    g = torch.Generator().manual_seed(seed)
    groups = K // (group if group > 0 else K)
    scales = (torch.rand(N, groups, generator=g) * 0.02 + 0.001).half()
    zeros = torch.full((N, groups), 2.0 ** (bits - 1)) if sym else torch.randint(0, 2**bits, (N, groups), generator=g).float()
    g_idx = torch.arange(K) // (K // groups)
    if act_order:
        g_idx = g_idx[torch.randperm(K, generator=g)]
    codes = torch.randint(0, 2**bits, (N, K), generator=g).float()
    linear = torch.nn.Linear(K, N, bias=True, dtype=torch.float16)
    linear.weight.data = (scales.float()[:, g_idx] * (codes - zeros[:, g_idx])).half()
    q = TorchLinear(bits=bits, group_size=group, sym=sym, desc_act=act_order, in_features=K, out_features=N, bias=True)
    q.pack_original(linear, scales, zeros, g_idx.int())
    return q


def main():
    tool, bad, n = os.path.abspath(sys.argv[1]), 0, 0
    for bits in (2, 3, 4, 8):
        for group in (32, -1):
            for sym in (True, False):
                for act_order in (False, True):
                    for v1 in (True, False):
                        config = QuantizeConfig(bits=bits, group_size=group, sym=sym, desc_act=act_order and group > 0)
                        q = packed(bits, group, sym, act_order and group > 0, n)
                        if v1:
                            convert_gptq_v2_to_v1_format_module(q, config)
                        with tempfile.TemporaryDirectory() as tmp:
                            save_file({"m." + k: v.contiguous() for k, v in q.state_dict().items()}, tmp + "/model.safetensors", metadata={"format": "pt"})
                            quant = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": sym, "desc_act": act_order and group > 0,
                                     "checkpoint_format": "gptq" if v1 else "gptq_v2", "meta": {"quantizer": ["gptqmodel:7.6.0"]}}
                            with open(tmp + "/config.json", "w") as f:
                                json.dump({"model_type": "llama", "quantization_config": quant}, f)
                            run = subprocess.run([tool, tmp, "m.weight", tmp + "/w"], capture_output=True, text=True)
                            ours = torch.from_numpy(np.fromfile(tmp + "/w", "<f4").reshape(N, K)) if run.returncode == 0 else None
                        if v1:
                            convert_gptq_v1_to_v2_format_module(q, bits, torch.int32)
                        q.post_init()
                        theirs = q.dequantize_weight().T.contiguous()
                        n += 1
                        if ours is None or not torch.equal(ours.to(theirs.dtype), theirs):
                            bad += 1
                            print("differs:", quant, run.stderr.strip())
    print(f"{n} matrices, {bad} differ")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
