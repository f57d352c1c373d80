#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""A Llama of any size with random F16 weights, for timings: what a step costs depends on shapes alone.

    random_llama.py OUT --tokenizer MODEL [--hidden 2048 --ffn 5632 --layers 22 --heads 32 --kv-heads 4]

The tokenizer's files and the size of the vocabulary are MODEL's, a folder. The defaults have the shapes of TinyLlama 1.1B. Needs numpy."""
import argparse
import json
import shutil
import struct
from pathlib import Path

import numpy as np


def tensors(a, vocab):
    d = a.hidden // a.heads
    yield "model.embed_tokens.weight", (vocab, a.hidden)
    for i in range(a.layers):
        p = f"model.layers.{i}."
        for name, shape in (("input_layernorm", (a.hidden,)), ("self_attn.q_proj", (a.heads * d, a.hidden)), ("self_attn.k_proj", (a.kv_heads * d, a.hidden)),
                            ("self_attn.v_proj", (a.kv_heads * d, a.hidden)), ("self_attn.o_proj", (a.hidden, a.heads * d)), ("post_attention_layernorm", (a.hidden,)),
                            ("mlp.gate_proj", (a.ffn, a.hidden)), ("mlp.up_proj", (a.ffn, a.hidden)), ("mlp.down_proj", (a.hidden, a.ffn))):
            yield f"{p}{name}.weight", shape
    yield "model.norm.weight", (a.hidden,)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=Path)
    p.add_argument("--tokenizer", type=Path, required=True)
    for name, value in (("hidden", 2048), ("ffn", 5632), ("layers", 22), ("heads", 32), ("kv-heads", 4)):
        p.add_argument(f"--{name}", type=int, default=value)
    a = p.parse_args()
    a.out.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "tokenizer.model"):
        if (a.tokenizer / name).exists():
            shutil.copy(a.tokenizer / name, a.out)
    theirs = json.loads((a.tokenizer / "config.json").read_text())
    keys = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": a.hidden, "intermediate_size": a.ffn,
              "num_hidden_layers": a.layers, "num_attention_heads": a.heads, "num_key_value_heads": a.kv_heads, "max_position_embeddings": 2048,
              "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True, "torch_dtype": "float16"}
    (a.out / "config.json").write_text(json.dumps(config | {k: theirs[k] for k in keys if k in theirs}, indent=1))
    header, at = {}, 0
    for name, shape in tensors(a, theirs["vocab_size"]):
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(1)
    with (a.out / "model.safetensors").open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, shape in tensors(a, theirs["vocab_size"]):
            f.write((np.ones(shape) if len(shape) == 1 else rng.standard_normal(shape, np.float32) / shape[1] ** 0.5).astype(np.float16).tobytes())


if __name__ == "__main__":
    main()
