#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""The NLL of a GPTQ folder that lquant wrote: in transformers through GPTQModel (torch kernel, CPU) against `lquant eval`.

    check_checkpoint.py FOLDER TEXT [--lquant BIN] [--chunks N] [--dequant build/tests/tool_dequant] [--dtype float16] [--tol 5e-3] [--threads N]

Same ids, same chunks, protocol gptq-2048 (or the model's shorter context). With --dequant the matrices are compared first: our f32
value rounded once to their type must be their weight, bit for bit (what check_gptq.py does, in the same process). Exit status 1
when the NLLs differ by more than --tol nats, or any weight differs. Made with GPTQModel 7.6.0, torch 2.13.
"""
import argparse
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def main():
    a = argparse.ArgumentParser()
    a.add_argument("folder")
    a.add_argument("text")
    a.add_argument("--lquant", default="build/lquant")
    a.add_argument("--dequant", default="")
    a.add_argument("--chunks", type=int, default=2)
    a.add_argument("--dtype", default="")
    a.add_argument("--tol", type=float, default=5e-3)
    a.add_argument("--threads", type=int, default=2)
    a = a.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    os.environ["OMP_NUM_THREADS"] = str(a.threads)
    cmd = [a.lquant, "eval", a.folder, "-f", a.text, "--json", "-q", "--chunks", str(a.chunks), "-t", str(a.threads)]
    ours = json.loads(subprocess.run(cmd, check=True, stdout=subprocess.PIPE).stdout)

    import torch
    torch.set_num_threads(a.threads)
    sys.path.insert(0, HERE)
    from check_gptq import compare
    from gptqmodel import BACKEND, GPTQModel
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    loaded = GPTQModel.load(a.folder, device="cpu", backend=BACKEND.GPTQ_TORCH, **({"dtype": getattr(torch, a.dtype)} if a.dtype else {}))
    model = loaded.model
    bad = 0
    if a.dequant:
        listed = subprocess.run([a.dequant, a.folder], check=True, capture_output=True, text=True).stdout.splitlines()
        bad = compare(model, os.path.abspath(a.dequant), a.folder, {line.split()[0] for line in listed}, "gptqmodel")
    try:
        tok = AutoTokenizer.from_pretrained(a.folder)
    except Exception:
        tok = PreTrainedTokenizerFast(tokenizer_file=os.path.join(a.folder, "tokenizer.json"))
    ids = torch.tensor(tok(open(a.text, encoding="utf-8", newline="").read(), verbose=False)["input_ids"])
    ctx, theirs = ours["ctx"], []
    for c in range(ours["chunks"]):
        x = ids[c * ctx:(c + 1) * ctx]
        with torch.no_grad():
            logits = model(input_ids=x[None], use_cache=False).logits[0]
            total = 0.0
            for p in range(0, ctx - 1, 256):
                q = min(p + 256, ctx - 1)
                logp = torch.log_softmax(logits[p:q].double(), -1)
                total -= logp.gather(1, x[p + 1:q + 1, None]).sum().item()
        theirs.append(total / (ctx - 1))
    mean = sum(theirs) / len(theirs)
    worst = max(abs(x - y) for x, y in zip(theirs, ours["chunk_nll"], strict=True))
    good = abs(mean - ours["nll"]) <= a.tol and not bad
    print(f"{a.folder}: {ours['protocol']}, {len(theirs)} chunks, {next(model.parameters()).dtype}; nll {mean:.6f} GPTQModel, {ours['nll']:.6f} lquant, "
          f"difference {ours['nll'] - mean:+.2e}, worst chunk {worst:.2e}: {'ok' if good else 'FAILED'}", flush=True)
    os._exit(not good)


if __name__ == "__main__":
    main()
