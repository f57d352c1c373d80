#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Small random models of several architectures that runtimes accept: every width a multiple of 128, a tokenizer beside them.

    tiny_models.py OUT_DIR [--tokenizer FOLDER] [--dtype bfloat16] [NAME ...]

NAME: mixtral, qwen2 (biases, untied head), qwen3 (norms of queries and keys, tied head), qwen2_moe (shared expert), llama. The weights
are scaled so that the predictions hang on every matrix, without making the NLL of a thousand tokens jump when one expert is swapped. Experts are written one matrix each, as on the hub.
TOKENIZER: any folder with tokenizer.json (default: models/tiny of this repository). Needs torch and transformers 5.
"""
import argparse
import json
import os
import re
import shutil
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).resolve().parents[2]
BASE = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
            max_position_embeddings=512, rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu", tie_word_embeddings=False)
MODELS = {
    "llama": dict(architectures=["LlamaForCausalLM"], model_type="llama", attention_bias=False, mlp_bias=False),
    "mixtral": dict(architectures=["MixtralForCausalLM"], model_type="mixtral", num_local_experts=8, num_experts_per_tok=2, sliding_window=None,
                    intermediate_size=256),
    "qwen2": dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", use_sliding_window=False),
    "qwen3": dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3", use_sliding_window=False, attention_bias=False, tie_word_embeddings=True,
                  head_dim=128),
    "qwen2_moe": dict(architectures=["Qwen2MoeForCausalLM"], model_type="qwen2_moe", num_experts=8, num_experts_per_tok=2, moe_intermediate_size=256,
                      shared_expert_intermediate_size=512, norm_topk_prob=False, decoder_sparse_step=1, mlp_only_layers=[], use_sliding_window=False),
}


def values(model, gen):
    state = {}
    for key, p in model.state_dict().items():
        if "norm" in key:
            state[key] = torch.rand(p.shape, generator=gen) + 0.5
        elif "bias" in key:
            state[key] = torch.randn(p.shape, generator=gen) * 0.3
        elif "embed" in key:
            state[key] = torch.randn(p.shape, generator=gen) * 0.15
        else:
            state[key] = torch.randn(p.shape, generator=gen) * (0.5 if "lm_head" in key else 1.0) * p.shape[-1] ** -0.5
    return state


def as_on_the_hub(state, model_type):
    gate, up, down = ("w1", "w3", "w2") if model_type == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    out = {}
    for key, v in state.items():
        key = key.replace(".mlp.", ".block_sparse_moe.") if model_type == "mixtral" else key
        m = re.fullmatch(r"(.*\.experts)\.(gate_up_proj|down_proj)", key)
        for e in range(v.shape[0] if m else 0):
            if m[2] == "down_proj":
                out[f"{m[1]}.{e}.{down}.weight"] = v[e].contiguous()
            else:
                out[f"{m[1]}.{e}.{gate}.weight"], out[f"{m[1]}.{e}.{up}.weight"] = (h.contiguous() for h in v[e].chunk(2))
        if not m:
            out[key] = v
    return out


def make(out, name, tokenizer, dtype, seed):
    folder = out / name
    folder.mkdir(parents=True)
    for f in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (tokenizer / f).exists():
            shutil.copyfile(tokenizer / f, folder / f)
    from_config = json.loads((tokenizer / "config.json").read_text())
    vocab = -(-from_config["vocab_size"] // 128) * 128
    config = BASE | MODELS[name] | {"vocab_size": vocab, "bos_token_id": from_config.get("bos_token_id"), "eos_token_id": from_config.get("eos_token_id"),
                                    "torch_dtype": dtype, "use_cache": True}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    gen = torch.Generator().manual_seed(seed)
    state = values(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)), gen)
    if config["tie_word_embeddings"]:
        state.pop("lm_head.weight", None)
    state = {k: v.to(getattr(torch, dtype)) for k, v in as_on_the_hub(state, config["model_type"]).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    os.chmod(folder / "model.safetensors", 0o644)
    print(f"{folder}: {sum(v.numel() for v in state.values())} weights in {len(state)} tensors")


def main():
    a = argparse.ArgumentParser()
    a.add_argument("out", type=Path)
    a.add_argument("names", nargs="*", metavar="NAME")
    a.add_argument("--tokenizer", type=Path, default=HERE / "models/tiny")
    a.add_argument("--dtype", default="bfloat16")
    a = a.parse_args()
    for i, name in enumerate(MODELS):
        if not a.names or name in a.names:
            make(a.out, name, a.tokenizer, a.dtype, 100 + i)


if __name__ == "__main__":
    main()
