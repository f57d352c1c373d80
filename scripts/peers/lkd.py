#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""ZeroQuant's layer-by-layer knowledge distillation (Yao et al. 2022, arXiv 2206.01861), the original form, with torch on the CPU: one
block after the other is trained with Adam and a straight-through estimator so that its quantized copy repeats the output of the
full-precision block; both read what the quantized blocks before left. Group-wise symmetric weights, token-wise int8 activations.

    lkd.py MODEL ROWS.jsonl TEXT [--bits 4] [--group 64] [--steps 100] [--lr 5e-6] [--batch 4] [--no-train] [--chunks 16] [--ctx 2048]

ROWS: what `lquant ... --save-tokens ROWS` wrote. Prints one JSON object with chunk_nll as `lquant eval --json` has it; --no-train is
the same quantization without distillation. Tried with torch 2.13 and transformers 5.23 on Llama-like models.
"""
import argparse
import json
import math
import os
import time


def arguments():
    a = argparse.ArgumentParser()
    a.add_argument("model")
    a.add_argument("rows")
    a.add_argument("text")
    a.add_argument("--bits", type=int, default=4)
    a.add_argument("--group", type=int, default=64)
    a.add_argument("--act-bits", type=int, default=8, help="0: activations stay as they are")
    a.add_argument("--steps", type=int, default=100, help="optimizer steps per block")
    a.add_argument("--lr", type=float, default=5e-6)
    a.add_argument("--batch", type=int, default=4, help="rows per step")
    a.add_argument("--no-train", action="store_true")
    a.add_argument("--chunks", type=int, default=16)
    a.add_argument("--ctx", type=int, default=2048)
    a.add_argument("--threads", type=int, default=2)
    return a.parse_args()


def quantized_linear(torch, bits, group, act_bits):
    """A Linear whose weight and input are rounded in the forward pass and passed through in the backward pass."""

    def rounded(x, step, lo, hi):
        q = torch.clamp(torch.round(x / step), lo, hi) * step
        return x + (q - x).detach()

    class Linear(torch.nn.Module):
        def __init__(self, old):
            super().__init__()
            self.weight = torch.nn.Parameter(old.weight.detach().clone())
            self.bias = old.bias

        def forward(self, x):
            rows, cols = self.weight.shape
            g = group if group > 0 else cols
            w = self.weight.view(rows, cols // g, g)
            top = 2 ** (bits - 1)
            step = w.detach().abs().amax(-1, keepdim=True).clamp(min=1e-12) / (top - 0.5)
            w = rounded(w, step, -top, top - 1).view(rows, cols)
            if act_bits:
                top = 2 ** (act_bits - 1) - 1
                x = rounded(x, x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-12) / top, -top, top)
            return torch.nn.functional.linear(x, w, self.bias)

    return Linear


def replace_linears(torch, block, make):
    for name, module in list(block.named_modules()):
        if isinstance(module, torch.nn.Linear):
            parent = block.get_submodule(name.rpartition(".")[0]) if "." in name else block
            setattr(parent, name.rpartition(".")[2], make(module))


def main():
    a = arguments()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import copy

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32).eval()
    for p in model.parameters():
        p.requires_grad_(False)
    with open(a.rows) as f:
        rows = [json.loads(line)["input_ids"] for line in f if line.strip()]
    rows = [r for r in rows if len(r) == len(rows[0])]
    ids = torch.tensor(rows)
    inner, start, losses = model.model, time.time(), []
    make = quantized_linear(torch, a.bits, a.group, a.act_bits)
    with torch.no_grad():
        hidden = inner.embed_tokens(ids)
    places = torch.arange(ids.shape[1])[None]
    rope = inner.rotary_emb(hidden[:1], places)

    def run(block, x):
        out = block(x, position_embeddings=rope, position_ids=places, attention_mask=None)
        return out[0] if isinstance(out, tuple) else out

    for i, block in enumerate(inner.layers):
        teacher = copy.deepcopy(block)
        replace_linears(torch, block, make)
        weights = [m.weight for m in block.modules() if type(m).__name__ == "Linear"]
        first = last = 0.0
        if not a.no_train:
            for w in weights:
                w.requires_grad_(True)
            adam = torch.optim.Adam(weights, lr=a.lr, betas=(0.9, 0.99))
            for step in range(a.steps):
                pick = torch.randint(len(ids), (a.batch,))
                with torch.no_grad():
                    want = run(teacher, hidden[pick])
                loss = torch.nn.functional.mse_loss(run(block, hidden[pick]), want)
                adam.zero_grad()
                loss.backward()
                adam.step()
                first, last = first or loss.item(), loss.item()
            for w in weights:
                w.requires_grad_(False)
        with torch.no_grad():
            hidden = torch.cat([run(block, x) for x in hidden.split(a.batch)])
        losses.append([first, last])
    seconds = time.time() - start
    with open(a.text, encoding="utf-8") as f:
        text = AutoTokenizer.from_pretrained(a.model)(f.read(), verbose=False)["input_ids"]
    nll = []
    for i in range(min(a.chunks, len(text) // a.ctx)):
        x = torch.tensor([text[i * a.ctx:(i + 1) * a.ctx]])
        with torch.no_grad():
            logits = model(x).logits[0, :-1].float()
        nll.append(torch.nn.functional.cross_entropy(logits, x[0, 1:]).item())
    print(json.dumps({"peer": "lkd" if not a.no_train else "zeroquant without lkd", "bits": a.bits, "group": a.group, "act_bits": a.act_bits,
                      "steps": a.steps, "lr": a.lr, "perplexity": math.exp(sum(nll) / len(nll)), "chunks": len(nll), "ctx": a.ctx,
                      "chunk_nll": nll, "block_loss_first_last": losses, "seconds": round(seconds, 1)}))


if __name__ == "__main__":
    main()
