#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""A Llama-shaped model folder with random weights: what a step costs depends on shapes alone, and so does memory.

    random_llama.py OUT --shape llama-3-8b [--dtype f32|bf16|f16]
    random_llama.py OUT --hidden 1024 --ffn 2816 --layers 32 --heads 16 --kv 4 [--vocab N] [--context N] [--untied]

A flag beside --shape changes that of the shape. The tokenizer is that of --tokenizer (default: models/tiny of this repository); the vocabulary is at
least as large as its. Written tensor by tensor, a shard per block, so that memory does not grow with depth. Needs numpy only.
"""
import argparse
import json
import shutil
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parents[2]
BYTES = {"f32": 4, "bf16": 2, "f16": 2}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "tokenizer.model")
SHAPES = {  # of the models' own config.json
    "small": {"hidden": 1024, "ffn": 2816, "layers": 8, "heads": 16, "kv": 4, "vocab": 0, "context": 2048, "untied": False},
    "llama-3-8b": {"hidden": 4096, "ffn": 14336, "layers": 32, "heads": 32, "kv": 8, "vocab": 128256, "context": 32768, "untied": True},
}


def encode(x, dtype):
    if dtype == "f32":
        return x.astype("<f4")
    if dtype == "f16":
        return x.astype("<f2")
    u = x.astype("<f4").view("<u4")
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype("<u2")


def write_shard(path, tensors, dtype, rng):
    header, at = {}, 0
    for name, shape in tensors:
        n = int(np.prod(shape)) * BYTES[dtype]
        header[name] = {"dtype": dtype.upper(), "shape": list(shape), "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name, shape in tensors:
            if len(shape) == 1:
                f.write(encode(1 + 0.1 * rng.standard_normal(shape, dtype=np.float32), dtype).tobytes())
                continue
            for r in range(0, shape[0], 4096):
                part = (min(4096, shape[0] - r), shape[1])
                f.write(encode(rng.standard_normal(part, dtype=np.float32) * np.float32(shape[1] ** -0.5), dtype).tobytes())
    return at


def arguments():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("out", type=Path)
    a.add_argument("--shape", choices=SHAPES, default="small")
    for name in ("hidden", "ffn", "layers", "heads", "kv", "vocab", "context"):
        a.add_argument(f"--{name}", type=int)
    a.add_argument("--untied", action="store_const", const=True, help="the head is a matrix of its own")
    a.add_argument("--dtype", choices=BYTES, default="bf16")
    a.add_argument("--tokenizer", type=Path, default=HERE / "models/tiny")
    a.add_argument("--seed", type=int, default=1)
    a = a.parse_args()
    for name, value in SHAPES[a.shape].items():
        if getattr(a, name) is None:
            setattr(a, name, value)
    return a


def main():
    a = arguments()
    base = json.loads((a.tokenizer / "config.json").read_text())
    vocab = max(a.vocab, base["vocab_size"])
    if a.hidden % a.heads or a.heads % a.kv:
        raise SystemExit("heads must divide hidden, kv must divide heads")
    a.out.mkdir(parents=True)
    for name in TOKENIZER:
        if (a.tokenizer / name).exists():
            shutil.copy(a.tokenizer / name, a.out / name)
    head = a.hidden // a.heads
    shards = [("embed", [("model.embed_tokens.weight", (vocab, a.hidden)), ("model.norm.weight", (a.hidden,))])]
    for b in range(a.layers):
        p = f"model.layers.{b}."
        shards.append((f"block{b}", [
            (p + "input_layernorm.weight", (a.hidden,)), (p + "post_attention_layernorm.weight", (a.hidden,)),
            (p + "self_attn.q_proj.weight", (a.hidden, a.hidden)), (p + "self_attn.k_proj.weight", (a.kv * head, a.hidden)),
            (p + "self_attn.v_proj.weight", (a.kv * head, a.hidden)), (p + "self_attn.o_proj.weight", (a.hidden, a.hidden)),
            (p + "mlp.gate_proj.weight", (a.ffn, a.hidden)), (p + "mlp.up_proj.weight", (a.ffn, a.hidden)),
            (p + "mlp.down_proj.weight", (a.hidden, a.ffn))]))
    if a.untied:
        shards.append(("head", [("lm_head.weight", (vocab, a.hidden))]))
    rng, total, where = np.random.default_rng(a.seed), 0, {}
    for i, (_, tensors) in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        total += write_shard(a.out / file, tensors, a.dtype, rng)
        where |= {name: file for name, _ in tensors}
    (a.out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=1))
    torch_name = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}[a.dtype]
    (a.out / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": a.hidden,
        "intermediate_size": a.ffn, "num_hidden_layers": a.layers, "num_attention_heads": a.heads, "num_key_value_heads": a.kv,
        "head_dim": head, "max_position_embeddings": a.context, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": not a.untied, "bos_token_id": base.get("bos_token_id", 0), "eos_token_id": base.get("eos_token_id", 0),
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "torch_dtype": torch_name}, indent=1))
    print(f"{a.out}: {total} bytes of tensors in {len(shards)} files")


if __name__ == "__main__":
    main()
