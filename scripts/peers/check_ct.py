#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""A compressed-tensors folder in compressed-tensors and in transformers, against lquant.

    check_ct.py FOLDER TEXT [--lquant BIN] [--tool build/tests/tool_dequant] [--ctx 256] [--chunks N] [--dtype float32] [--tol 5e-4] [--no-model] [--dequantize]

First every module is decompressed by compressed-tensors' own compressor from the tensors of the file: our f32 value rounded once to their
type must be their weight, bit for bit. Then transformers loads the folder unmodified, its decompressed weights are compared in the same way, and the NLL of TEXT is
compared with `lquant eval` (--tol 5e-3 where activations are quantized: they divide by 127.5, vLLM and we by 127). --dequantize: what transformers
needs for asymmetric packed weights, whose zero points it expects unpacked, and for experts. --kv: keys and values in
E4M3 with the stored scales on both sides. Exit status 1 on a difference.
compressed-tensors 0.20, transformers 5.23, torch 2.13."""
import argparse
import json
import os
import subprocess
import sys
import tempfile

os.environ["CUDA_VISIBLE_DEVICES"] = ""


def ours(tool, folder, name, shape):
    import numpy as np
    import torch
    with tempfile.TemporaryDirectory() as tmp:
        path = os.path.join(tmp, "w")
        subprocess.run([tool, folder, name, path], check=True)
        return torch.from_numpy(np.fromfile(path, "<f4").reshape(tuple(shape)))


def differ(a, b):
    import torch
    same = a.to(torch.float32).view(torch.int32) == b.to(torch.float32).view(torch.int32)
    same |= (a == 0) & (b == 0)
    return (~same).sum().item()


def tensors(folder):
    from safetensors import safe_open
    out = {}
    for f in sorted(os.listdir(folder)):
        if f.endswith(".safetensors"):
            with safe_open(os.path.join(folder, f), framework="pt") as s:
                for k in s.keys():
                    out[k] = s.get_tensor(k)
    return out


def decompress(folder, config):
    """module -> weight as compressed-tensors has it"""
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils.match import match_targets
    q = QuantizationConfig.model_validate(config)
    targets = {t: s for s in q.config_groups.values() for t in s.targets}
    linear = torch.nn.Linear(1, 1)
    all_tensors = tensors(folder)
    for name in all_tensors:
        if not name.endswith(".weight_scale"):
            continue
        module = name.removesuffix(".weight_scale")
        state = {k.removeprefix(module + "."): v for k, v in all_tensors.items() if k.rpartition(".")[0] == module and not k.endswith(".bias")}
        scheme = targets[match_targets(module, linear, targets)[0]]
        fmt = scheme.format or infer_module_format(torch.nn.Linear, scheme)
        yield module, BaseCompressor.get_value_from_registry(getattr(fmt, "value", fmt)).decompress(state, scheme)["weight"]


def load(folder, a):
    import torch
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig
    extra = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if a.dequantize else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, a.dtype), device_map="cpu", **extra)


def tokenizer(folder):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception:
        return PreTrainedTokenizerFast(tokenizer_file=os.path.join(folder, "tokenizer.json"))


def chunk_nll(model, ids):
    import torch
    with torch.no_grad():
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
    logp = torch.log_softmax(logits[:-1].double(), -1)
    return -logp.gather(1, ids[1:, None]).mean().item()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("folder")
    p.add_argument("text")
    p.add_argument("--lquant", default="build/lquant")
    p.add_argument("--tool", default="build/tests/tool_dequant")
    p.add_argument("--ctx", type=int, default=256)
    p.add_argument("--chunks", type=int, default=2)
    p.add_argument("--dtype", default="float32")
    p.add_argument("--tol", type=float, default=5e-4)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--no-model", action="store_true")
    p.add_argument("--dequantize", action="store_true")
    p.add_argument("--kv", action="store_true")
    a = p.parse_args()
    import torch
    torch.set_num_threads(a.threads)
    config = json.load(open(os.path.join(a.folder, "config.json")))["quantization_config"]
    listed = {line.split()[0].removesuffix(".weight"): line.split()[1] for line in subprocess.run([a.tool, a.folder], check=True, capture_output=True, text=True).stdout.splitlines()}
    bad, seen = 0, {}
    for module, w in decompress(a.folder, config):
        v = ours(a.tool, a.folder, module + ".weight", w.shape)
        seen[module] = v.to(w.dtype) if a.dequantize else v  # dequantize=True rounds to the type of the scales, then to the model's
        n = differ(w, v.to(w.dtype))
        if n:
            print(f"compressed-tensors: {module}: {n} of {w.numel()} differ, at most {(w.float() - v.to(w.dtype).float()).abs().max().item():g}")
        bad += n > 0
    if set(seen) != set(listed):
        sys.exit(f"not quantized there: {set(listed) - set(seen)}; here: {set(seen) - set(listed)}")
    print(f"compressed-tensors: {len(seen)} matrices ({', '.join(sorted(set(listed.values())))}), {w.dtype}: {bad} differ", flush=True)
    if a.no_model:
        sys.exit(bad > 0)
    run = json.loads(subprocess.run([a.lquant, "eval", a.folder, "-f", a.text, "--ctx", str(a.ctx), "--json", "-q", "--chunks", str(a.chunks), "-t", str(a.threads)] + (["--kv", "fp8", "--kv-scales"] if a.kv else []),
                                    check=True, stdout=subprocess.PIPE).stdout)
    model = load(a.folder, a)
    ids = torch.tensor(tokenizer(a.folder)(open(a.text, encoding="utf-8", newline="").read(), verbose=False)["input_ids"])
    theirs = [chunk_nll(model, ids[c * run["ctx"]:(c + 1) * run["ctx"]]) for c in range(run["chunks"])]
    mods, off = dict(model.named_modules()), 0
    for n, v in seen.items():
        m = mods.get(n)
        if m is None or not hasattr(m, "weight"):
            continue
        off += differ(m.weight.detach(), v.to(m.weight.dtype)) > 0
    mean = sum(theirs) / len(theirs)
    good = abs(mean - run["nll"]) <= a.tol and not bad and not off
    print(f"transformers: {a.dtype}, {off} of {sum(n in mods for n in seen)} matrices differ; {len(theirs)} chunks of {run['ctx']}: nll {mean:.6f} there, {run['nll']:.6f} lquant, "
          f"difference {run['nll'] - mean:+.2e}: {'ok' if good else 'FAILED'}")
    sys.exit(not good)


if __name__ == "__main__":
    main()
