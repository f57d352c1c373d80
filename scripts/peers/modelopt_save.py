#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""A model quantized and exported by nvidia-modelopt itself, as a user would, and its own NLL of a text, to be compared with `lquant eval` of the folder.

    modelopt_save.py MODEL OUT awq|fp8 -f TEXT [--ctx 256] [--chunks 4] [--calibration TEXT] [--lquant BIN]

Runs in the environment of scripts/peers_env.sh DIR modelopt; the figure is of the quantized model as modelopt simulates it, in F32 (the weights and
activations its quantizers give, the factors of AWQ before o_proj and down_proj). Exit status 1 beyond 5e-4 nats (awq), 5e-3 (fp8: activations are rounded)."""
import argparse
import copy
import os
import shutil
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import common
import runtime_transformers


def main():
    a = argparse.ArgumentParser()
    a.add_argument("model")
    a.add_argument("out")
    a.add_argument("algo", choices=["awq", "fp8"])
    a.add_argument("-f", "--text", required=True)
    a.add_argument("--calibration", default="")
    a.add_argument("--ctx", type=int, default=256)
    a.add_argument("--chunks", type=int, default=4)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--lquant", default="build/lquant")
    a = a.parse_args()
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint
    from modelopt.torch.export.unified_export_hf import requantize_resmooth_fused_llm_layers
    model = runtime_transformers.load(a.model, "float32", a.threads)
    rows = common.text_ids(a.model, a.calibration or a.text, 128, 16)

    def calibrate(m):
        with torch.no_grad():
            for ids in rows:
                m(torch.tensor(ids)[None])

    model = mtq.quantize(model, copy.deepcopy({"awq": mtq.INT4_AWQ_CFG, "fp8": mtq.FP8_DEFAULT_CFG}[a.algo]), calibrate)
    requantize_resmooth_fused_llm_layers(model)  # its export gives q, k and v (gate, up) one factor and chooses their codes again
    theirs = runtime_transformers.nlls(model, common.text_ids(a.model, a.text, a.ctx, a.chunks))
    shutil.rmtree(a.out, ignore_errors=True)
    export_hf_checkpoint(model, export_dir=a.out)
    for name in os.listdir(a.model):
        if name.startswith(("tokenizer", "special")) and not os.path.exists(os.path.join(a.out, name)):
            shutil.copy(os.path.join(a.model, name), a.out)
    ours = common.evaluated(a.lquant, a.out, a.text, a.ctx, a.chunks, a.threads)
    mean, bound = sum(theirs) / len(theirs), 5e-4 if a.algo == "awq" else 5e-3
    good = abs(ours["nll"] - mean) <= bound
    print(f"{a.out}: {ours['protocol']}, {len(theirs)} chunks: nll {mean:.6f} in modelopt, {ours['nll']:.6f} lquant, difference {ours['nll'] - mean:+.2e} (bound {bound:g}): {'ok' if good else 'FAILED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
