#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Does GPTQModel read a GPTQ folder that lquant wrote, and does it mean the same weights?

usage: check_gptq.py FOLDER TOOL_DEQUANT [--transformers]

Loads FOLDER with gptqmodel on the CPU, compares every quantized matrix with ours (tool_dequant of the build): our f32 value
rounded once to their type must be their dequantized weight, bit for bit. With --transformers the model is also loaded through
AutoModelForCausalLM, and its matrices are compared too. Prints one line; exit status 1 on any difference."""
import os
import subprocess
import sys
import tempfile

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("OMP_NUM_THREADS", "2")
import numpy as np
import torch


def ours(tool, folder, name, shape):
    with tempfile.TemporaryDirectory() as tmp:
        path = os.path.join(tmp, "w")
        subprocess.run([tool, folder, name, path], check=True)
        return torch.from_numpy(np.fromfile(path, "<f4").reshape(shape))


def compare(model, tool, folder, listed, who):
    modules = {n: m for n, m in model.named_modules() if hasattr(m, "qweight")}
    theirs = {n.removeprefix("model.", ) if n + ".weight" not in listed and n.removeprefix("model.") + ".weight" in listed else n: m for n, m in modules.items()}
    missing = [n for n in listed if n.removesuffix(".weight") not in theirs]
    extra = [n for n in theirs if n + ".weight" not in listed]
    if missing or extra:
        sys.exit(f"{who}: not quantized there: {missing}; not quantized here: {extra}")
    bad = 0
    for n, m in theirs.items():
        w = m.dequantize_weight().T.detach()
        v = ours(tool, folder, n + ".weight", w.shape).to(w.dtype)
        if not torch.equal(w.contiguous().view(torch.int16) if w.element_size() == 2 else w, v.contiguous().view(torch.int16) if v.element_size() == 2 else v):
            close = (w.float() - v.float()).abs().max().item()
            print(f"{who}: {n} differs, at most {close}, {(w != v).sum().item()} of {w.numel()}")
            bad += 1
    kinds = sorted({type(m).__name__ + ":" + str(m.bits) for m in theirs.values()})
    print(f"{who}: {len(theirs)} matrices, {bad} differ; {w.dtype}; {' '.join(kinds)}")
    return bad


def main():
    folder, tool = sys.argv[1], os.path.abspath(sys.argv[2])
    from gptqmodel import BACKEND, GPTQModel
    listed = {line.split()[0] for line in subprocess.run([tool, folder], check=True, capture_output=True, text=True).stdout.splitlines()}
    q = GPTQModel.load(folder, device="cpu", backend=BACKEND.GPTQ_TORCH)
    bad = compare(q.model, tool, folder, listed, "gptqmodel")
    ids = torch.arange(1, 65).reshape(1, 64)
    with torch.no_grad():
        logits = q.model(input_ids=ids).logits
    if not torch.isfinite(logits).all():
        sys.exit("gptqmodel: the logits are not finite")
    if "--transformers" in sys.argv:
        from transformers import AutoModelForCausalLM, GPTQConfig
        config = GPTQConfig(bits=4, backend="gptq_torch")
        t = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", quantization_config=config)
        bad += compare(t, tool, folder, listed, "transformers")
        with torch.no_grad():
            print("max |logits| difference:", (t(input_ids=ids).logits.float() - logits.float()).abs().max().item())
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
