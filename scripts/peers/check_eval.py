#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""`lquant eval` against transformers in fp32: same ids, same chunks, same NLL.

    check_eval.py MODEL TEXT [--lquant BIN] [--chunks N] [--ctx N] [--protocol gptq-2048|llamacpp-512] [--tol 5e-4] [--device cpu]

MODEL: a Hugging Face folder, or a GGUF (transformers dequantizes it). Fails when the mean NLLs differ by more than --tol nats or
the token counts differ. Made with transformers 5, torch 2.13.
"""
import argparse
import json
import os
import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast


def load(path, device):
    if path.endswith(".gguf"):
        where = dict(pretrained_model_name_or_path=os.path.dirname(path) or ".", gguf_file=os.path.basename(path))
        tok = AutoTokenizer.from_pretrained(**where)
    else:
        where = dict(pretrained_model_name_or_path=path)
        try:
            tok = AutoTokenizer.from_pretrained(path)
        except Exception:
            tok = PreTrainedTokenizerFast(tokenizer_file=os.path.join(path, "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval().to(device)
    return model, tok


def chunk_nlls(model, ids, ctx, chunks, first, bos, device):
    out = []
    for c in range(chunks):
        x = ids[c * ctx:(c + 1) * ctx].clone()
        if bos is not None:
            x[0] = bos
        with torch.no_grad():
            h = model.model(input_ids=x[None].to(device), use_cache=False)[0][0]
            total = 0.0
            for p in range(first, ctx - 1, 256):
                q = min(p + 256, ctx - 1)
                logp = torch.log_softmax(model.lm_head(h[p:q]).double(), -1)
                total -= logp.gather(1, x[p + 1:q + 1, None].to(device)).sum().item()
        out.append(total / (ctx - 1 - first))
    return out


def main():
    a = argparse.ArgumentParser()
    a.add_argument("model")
    a.add_argument("text")
    a.add_argument("--lquant", default="build/lquant")
    a.add_argument("--chunks", type=int, default=0)
    a.add_argument("--ctx", type=int, default=0)
    a.add_argument("--protocol", default="gptq-2048")
    a.add_argument("--tol", type=float, default=5e-4)
    a.add_argument("--threads", type=int, default=1)
    a.add_argument("--device", default="cpu")
    a = a.parse_args()
    cmd = [a.lquant, "eval", a.model, "-f", a.text, "--json", "-q", "--protocol", a.protocol, "-t", str(a.threads)]
    cmd += ["--chunks", str(a.chunks)] if a.chunks else []
    cmd += ["--ctx", str(a.ctx)] if a.ctx else []
    ours = json.loads(subprocess.run(cmd, check=True, stdout=subprocess.PIPE).stdout)
    torch.set_num_threads(a.threads)
    model, tok = load(a.model, a.device)
    ids = torch.tensor(tok(open(a.text, encoding="utf-8", newline="").read(), verbose=False)["input_ids"])
    ctx, first, bos = ours["ctx"], 0, None
    if a.protocol.startswith("llamacpp"):
        first, bos = ctx // 2, int(ids[0]) if ours["bos_added"] else None
    chunks = min(len(ids) // ctx, a.chunks or len(ids))
    theirs = chunk_nlls(model, ids, ctx, chunks, first, bos, a.device)
    mean = sum(theirs) / len(theirs)
    worst = max(abs(x - y) for x, y in zip(theirs, ours["chunk_nll"]))
    good = chunks == ours["chunks"] and abs(mean - ours["nll"]) <= a.tol
    print(f"{ours['protocol']}: {len(ids)} ids, {chunks} chunks ({ours['chunks']} by lquant); nll {mean:.7f} transformers, "
          f"{ours['nll']:.7f} lquant, difference {ours['nll'] - mean:+.2e}, worst chunk {worst:.2e}: {'ok' if good else 'FAILED'}")
    sys.exit(not good)


if __name__ == "__main__":
    main()
