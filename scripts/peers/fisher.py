#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Diagonal Fisher information of a model's linears, for `lquant squeezellm --fisher FILE`.

usage: fisher.py MODEL TEXT OUT.safetensors [--samples 100] [--seqlen 512] [--seed 0] [--threads 2]

MODEL is a Hugging Face folder, TEXT plain UTF-8, or the rows that `lquant ... --save-tokens ROWS.jsonl` wrote, all of which are
taken. OUT holds one F32 tensor per linear of the blocks, named as its weight and of its shape: the mean over samples of the squared
gradient of the summed next-token loss (SqueezeLLM, Kim et al. 2023, 4.1)."""
import argparse
import json
import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def samples(tokenizer, path, n, length, seed):
    if path.endswith(".jsonl"):
        with open(path) as f:
            yield from (torch.tensor([json.loads(line)["input_ids"]]) for line in f if line.strip())
        return
    ids = tokenizer(open(path, encoding="utf-8", errors="replace").read(), return_tensors="pt", add_special_tokens=False).input_ids[0]
    if ids.numel() < length:
        raise SystemExit(f"{path}: {ids.numel()} tokens, a sample takes {length}")
    g = torch.Generator().manual_seed(seed)
    for start in torch.randint(0, ids.numel() - length + 1, (n,), generator=g).tolist():
        yield ids[start:start + length][None]


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("model"), p.add_argument("text"), p.add_argument("out")
    p.add_argument("--samples", type=int, default=100)
    p.add_argument("--seqlen", type=int, default=512)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32).eval()
    linears = {n + ".weight": m.weight for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n}
    for w in model.parameters():
        w.requires_grad_(False)
    for w in linears.values():
        w.requires_grad_(True)
    fisher = {n: torch.zeros_like(w) for n, w in linears.items()}
    count = 0
    for ids in samples(AutoTokenizer.from_pretrained(a.model), a.text, a.samples, a.seqlen, a.seed):
        logits = model(ids).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").backward()
        for n, w in linears.items():
            fisher[n] += w.grad.square()
            w.grad = None
        count += 1
        print(f"\r{count}", end="", flush=True)
    save_file({n: (f / count).contiguous() for n, f in fisher.items()}, a.out)
    print(f"\r{len(fisher)} linears, {count} samples of {ids.shape[1]} tokens -> {a.out}")


if __name__ == "__main__":
    main()
