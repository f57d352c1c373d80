#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Where does a checkpoint begin to differ from transformers? Each block alone, on the input that transformers had there.

    check_layers.py CHECKPOINT -f TEXT [--tool build/tests/tool_logits] [--ctx 512] [--layers 0,1,...]

For models named as Llama's, of one file. Of each block a model is made that is this block alone: its embeddings are the block's inputs, one a
position, its head the identity; so that an error cannot build up from block to block. Prints, for the residual stream behind the block's attention
and behind the whole block, the relative error of the normed rows: its median, its largest, and of how many tokens it exceeds 1e-5. Sums
in another order make 1e-7; a rounded activation that falls the other way makes 1e-4 and more in its token, and in later ones by attention.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import common
import runtime_transformers


def captured(model, ids):
    """(input, what attention adds, output) of every block."""
    blocks, seen = model.model.layers, {}

    def keep(key):
        def hook(_, args, kw, out):
            x = args[0] if args else kw["hidden_states"]
            seen[key] = x.detach()[0], (out[0] if isinstance(out, tuple) else out).detach().reshape(x.shape[1:])
        return hook

    for i, block in enumerate(blocks):
        block.register_forward_hook(keep((i, "block")), with_kwargs=True)
        block.self_attn.register_forward_hook(keep((i, "attention")), with_kwargs=True)
    with torch.no_grad():
        model(input_ids=torch.tensor(ids)[None], use_cache=False)
    return [(seen[i, "block"][0], seen[i, "attention"][1], seen[i, "block"][1]) for i in range(len(blocks))]


def alone(tensors, config, i, x, attention_only):
    """A model of block i alone: (config, tensors). Without its MLP: the norm before it gives zeros."""
    hidden, vocab = x.shape[1], max(x.shape)
    one = {k.replace(f"layers.{i}.", "layers.0."): v for k, v in tensors.items() if f"layers.{i}." in k}
    if attention_only:
        one["model.layers.0.post_attention_layernorm.weight"] = torch.zeros(hidden)
    one["model.embed_tokens.weight"] = torch.zeros(vocab, hidden)
    one["model.embed_tokens.weight"][:len(x)] = x
    one["lm_head.weight"] = torch.zeros(vocab, hidden)
    one["lm_head.weight"][:hidden] = torch.eye(hidden)
    one["model.norm.weight"] = torch.ones(hidden)
    ids = {k: 0 for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return dict(config, num_hidden_layers=1, vocab_size=vocab, tie_word_embeddings=False, **ids), {k: v.contiguous() for k, v in one.items()}


def ours(tool, config, tensors, n, hidden):
    with tempfile.TemporaryDirectory() as tmp:
        with open(f"{tmp}/config.json", "w") as f:
            json.dump(config, f)
        save_file(tensors, f"{tmp}/model.safetensors", metadata={"format": "pt"})
        np.arange(n, dtype=np.int32).tofile(f"{tmp}/ids")
        subprocess.run([tool, tmp, f"{tmp}/ids", f"{tmp}/out"], check=True, capture_output=True)
        return torch.from_numpy(np.fromfile(f"{tmp}/out", dtype=np.float32).reshape(n, -1)[:, :hidden].copy())


def error(got, want, eps):
    want = want.double()
    want = want * torch.rsqrt((want * want).mean(-1, keepdim=True) + eps)
    e = (got - want).norm(dim=-1) / want.norm(dim=-1)
    return f"median {e.median():.1e}, largest {e.max():.1e}, {int((e > 1e-5).sum())} of {len(e)} tokens beyond 1e-5"


def main():
    p = argparse.ArgumentParser()
    p.add_argument("checkpoint")
    p.add_argument("-f", "--text", required=True)
    p.add_argument("--tool", default="build/tests/tool_logits")
    p.add_argument("--ctx", type=int, default=512)
    p.add_argument("--layers", default="")
    a = p.parse_args()
    config, tensors = common.config_of(a.checkpoint), load_file(os.path.join(a.checkpoint, "model.safetensors"))
    model = runtime_transformers.load(a.checkpoint, "float32", 1)
    seen = captured(model, common.text_ids(a.checkpoint, a.text, a.ctx, 1)[0])
    for i in [int(s) for s in a.layers.split(",")] if a.layers else range(len(seen)):
        x, attention, out = seen[i]
        for what, only, want in (("attention", True, x + attention), ("block", False, out)):
            got = ours(a.tool, *alone(tensors, config, i, x, only), *x.shape)
            print(f"{i} {what}: {error(got, want, config['rms_norm_eps'])}", flush=True)


if __name__ == "__main__":
    main()
