#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""A bitsandbytes or BitNet folder in transformers on the CPU against lquant: every weight, and the NLL.

    check_bnb.py FOLDER TEXT [--lquant BIN] [--ctx N] [--chunks N] [--dtype float32] [--tol 5e-4] [--threads N]
    check_bnb.py --make nf4|nf4-dq|fp4|fp4-dq|int8 SOURCE FOLDER [--dtype ...]     transformers and bitsandbytes quantize and save SOURCE

The folder is loaded as it is; a missing or unexpected tensor is a failure. Each matrix as the runtime dequantizes it must be ours
(`lquant convert --dequantize f32`) rounded once to its type, bit for bit. For LLM.int8, whose runtime multiplies q SCB by the rounded constant
1/127 and never uses the product as a weight, the codes and SCB/127 are compared exactly and that product to 2^-22 relative. The NLL is that
of `lquant eval` on the same ids and chunks; a CPU with AVX512-BF16 is asked twice, without its BF16 kernel and with it (5e-3). Exit status 1 on any difference. Made with bitsandbytes 0.50.2, transformers 5.23, torch 2.13.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # BitLinear asks for torch.compile


def make(a):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    dtype = getattr(torch, a.dtype or "float32")
    if a.make == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=a.make[:3], bnb_4bit_use_double_quant=a.make.endswith("-dq"), bnb_4bit_compute_dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(a.folder, quantization_config=config, dtype=dtype)
    model.save_pretrained(a.text)
    for name in os.listdir(a.folder):
        if name.startswith("tokenizer"):
            with open(os.path.join(a.folder, name), "rb") as f, open(os.path.join(a.text, name), "wb") as g:
                g.write(f.read())
    print(f"{a.text}: made from {a.folder}, {a.make}, {dtype}")


def weights(model):
    """(name, what the runtime takes for the weight, what ours must be, exactly?)"""
    import torch
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind == "Linear4bit":
            import bitsandbytes as bnb
            w = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            yield name, w, 0.0
        elif kind == "Linear8bitLt":
            import bitsandbytes as bnb
            scb = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
            yield name, module.weight.data.float() * (scb / 127)[:, None], 0.0
            yield name, bnb.functional.int8_vectorwise_dequant(module.weight.data, scb), 2.0 ** -22
        elif kind in ("BitLinear", "AutoBitLinear"):
            from transformers.integrations.bitnet import unpack_weights
            w = unpack_weights(module.weight, dtype=torch.float32) if module.weight.dtype == torch.uint8 else module.weight.float()
            scale = module.weight_scale.float()
            yield name, w / scale if kind == "BitLinear" else w * scale, 0.0


def compare(model, a):
    import torch
    from safetensors.torch import load_file
    with tempfile.TemporaryDirectory() as tmp:
        out = os.path.join(tmp, "f32")
        subprocess.run([a.lquant, "convert", a.folder, out, "--dequantize", "f32", "-q"], check=True)
        ours = {}
        for f in os.listdir(out):
            if f.endswith(".safetensors"):
                ours.update(load_file(os.path.join(out, f)))
    bad = n = matrices = 0
    for name, w, tol in weights(model):
        mine = ours[name + ".weight"]
        if mine.shape != w.shape:  # Conv1D
            mine = mine.T
        if tol:
            bad += int(((mine - w).abs() > tol * mine.abs()).sum())
            continue
        bad += int((mine.to(w.dtype) != w).sum())
        n += w.numel()
        matrices += 1
    return bad, n, matrices


def compare_nll(model, ids, ours, tol, what):
    import torch
    ctx, theirs = ours["ctx"], []
    for c in range(ours["chunks"]):
        x = ids[c * ctx:(c + 1) * ctx]
        with torch.no_grad():
            logp = torch.log_softmax(model(input_ids=x[None], use_cache=False).logits[0, :-1].double(), -1)
        theirs.append(-logp.gather(1, x[1:, None]).mean().item())
    mean = sum(theirs) / len(theirs)
    worst = max(abs(x - y) for x, y in zip(theirs, ours["chunk_nll"], strict=True))
    good = abs(mean - ours["nll"]) <= tol
    print(f"  {len(theirs)} chunks of {ctx}, {model.dtype}{what}: nll {mean:.6f} transformers, {ours['nll']:.6f} lquant, difference {ours['nll'] - mean:+.2e}, "
          f"worst chunk {worst:.2e}: {'ok' if good else 'FAILED'}", flush=True)
    return good


def main():
    a = argparse.ArgumentParser()
    a.add_argument("folder")
    a.add_argument("text")
    a.add_argument("--make", default="")
    a.add_argument("--lquant", default="build/lquant")
    a.add_argument("--ctx", type=int, default=256)
    a.add_argument("--chunks", type=int, default=4)
    a.add_argument("--dtype", default="")
    a.add_argument("--tol", type=float, default=5e-4)
    a.add_argument("--threads", type=int, default=2)
    a = a.parse_args()
    import torch
    torch.set_num_threads(a.threads)
    if a.make:
        return make(a)
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    cmd = [a.lquant, "eval", a.folder, "-f", a.text, "--json", "-q", "--ctx", str(a.ctx), "--chunks", str(a.chunks), "-t", str(a.threads)]
    ours = json.loads(subprocess.run(cmd, check=True, stdout=subprocess.PIPE).stdout)
    model, info = AutoModelForCausalLM.from_pretrained(a.folder, output_loading_info=True, **({"dtype": getattr(torch, a.dtype)} if a.dtype else {}))
    model.eval()
    lost = [k for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for k in info[key]]
    bad, n, matrices = compare(model, a)
    tok = PreTrainedTokenizerFast(tokenizer_file=os.path.join(a.folder, "tokenizer.json"))
    ids = torch.tensor(tok(open(a.text, encoding="utf-8", newline="").read()[:4000000], verbose=False)["input_ids"])
    good = not bad and not lost and matrices
    print(f"{a.folder}: {matrices} matrices, {n} weights, {bad} differ{', keys: ' + str(lost[:5]) if lost else ''}: {'ok' if good else 'FAILED'}")
    bf16 = [m for m in model.modules() if getattr(m, "support_avx512bf16_for_cpu", False)]
    for m in bf16:
        m.support_avx512bf16_for_cpu = False
    good &= compare_nll(model, ids, ours, a.tol, "")
    for m in bf16:
        m.support_avx512bf16_for_cpu = True
    if bf16:
        good &= compare_nll(model, ids, ours, 5e-3, " (its BF16 kernel)")
    return not good


if __name__ == "__main__":
    sys.exit(main())
