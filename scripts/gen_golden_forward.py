#!/usr/bin/env python3
"""Golden logits for the C forward tests, from transformers in fp32 (eager attention).

  gen_golden_forward.py OUT_DIR        (the files in tests/golden/forward)

Made with Python 3.11, torch 2.13.0+cpu, transformers 5.23.0, safetensors 0.8.0.
Per variant: config.json, model.safetensors (F32), golden.safetensors with input_ids I32 [48] and logits F32 [48, vocab].
config.json has the classic keys (rope_theta, rope_scaling), for llama3 and qwen3 also read back from the newer
`rope_parameters`, which those two are written with. Every feature is then switched off once, to see that the logits depend on it.
"""
import json, os, shutil, sys
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

LEN, VOCAB = 48, 64
BASE = dict(model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=VOCAB, hidden_size=32, intermediate_size=48,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5,
            rope_theta=10000.0, rope_scaling=None, hidden_act="silu", attention_bias=False, mlp_bias=False, tie_word_embeddings=False,
            bos_token_id=1, eos_token_id=2, torch_dtype="float32", use_cache=False)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
LINEAR = dict(type="linear", factor=4.0)
def arch(name, model_type, **kw):
    c = dict(BASE, **dict(kw, model_type=model_type, architectures=[name]))
    for k in ("attention_bias", "mlp_bias") if model_type != "llama" else (): c.pop(k) if k not in kw else None
    return c

VARIANTS = {  # name: (config, features to switch off: {name: changed keys, or the end of parameter names to neutralise})
    "llama": (dict(BASE, hidden_size=64, num_attention_heads=4, num_key_value_heads=1), {"the right rope base": dict(rope_theta=100.0)}),
    "llama_tied": (dict(BASE, tie_word_embeddings=True), {}),
    "llama3": (dict(BASE, rope_theta=500000.0, rope_scaling=LLAMA3, head_dim=16, hidden_size=64, rope_new_style=True), {"rope scaling": dict(rope_scaling=None)}),
    "llama_linear": (dict(BASE, rope_scaling=LINEAR), {"rope scaling": dict(rope_scaling=None)}),
    "mistral": (arch("MistralForCausalLM", "mistral", sliding_window=8, head_dim=8), {"sliding window": dict(sliding_window=None)}),
    "qwen2": (arch("Qwen2ForCausalLM", "qwen2", use_sliding_window=False, sliding_window=None, max_window_layers=2, rms_norm_eps=1e-6),
              {"q bias": "q_proj.bias", "k bias": "k_proj.bias", "v bias": "v_proj.bias"}),
    "qwen3": (arch("Qwen3ForCausalLM", "qwen3", head_dim=16, use_sliding_window=False, sliding_window=None, max_window_layers=2, attention_bias=False,
                   tie_word_embeddings=True, rope_theta=1000000.0, rope_new_style=True), {"q norm": "q_norm.weight", "k norm": "k_norm.weight"}),
    "llama_biases": (dict(BASE, attention_bias=True, mlp_bias=True),
                     {f"{k} bias": f"{k}_proj.bias" for k in ("q", "k", "v", "o", "gate", "up", "down")}),
    "qwen2_window": (arch("Qwen2ForCausalLM", "qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1, hidden_act="gelu_pytorch_tanh"),
                     {"window": dict(use_sliding_window=False), "full layer": dict(max_window_layers=0), "activation": dict(hidden_act="silu")}),
}


def load(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def logits(model, ids):
    with torch.no_grad(): return model(input_ids=ids[None], use_cache=False).logits[0].contiguous()


def write_config(directory, config):
    """The classic keys, or `rope_parameters` as transformers 5 writes them."""
    c = dict(config)
    if c.pop("rope_new_style", False):
        c["rope_parameters"] = dict(c.pop("rope_scaling") or dict(rope_type="default"), rope_theta=c.pop("rope_theta"))
        c["dtype"] = c.pop("torch_dtype")
    json.dump(c, open(os.path.join(directory, "config.json"), "w"), indent=1)


def main(out):
    for i, (name, (config, off)) in enumerate(VARIANTS.items()):
        d = os.path.join(out, name)
        shutil.rmtree(d, ignore_errors=True); os.makedirs(d)
        write_config(d, config)
        gen = torch.Generator().manual_seed(100 + i)
        cfg = AutoConfig.from_pretrained(d)
        model = AutoModelForCausalLM.from_config(cfg, attn_implementation="eager").eval()
        state = {}
        for key, p in model.state_dict().items():
            if key == "lm_head.weight" and config["tie_word_embeddings"]: continue
            if "norm" in key: state[key] = torch.rand(p.shape, generator=gen) + 0.5
            elif "embed" in key or "lm_head" in key: state[key] = torch.randn(p.shape, generator=gen) * 0.7
            elif "bias" in key: state[key] = torch.randn(p.shape, generator=gen) * 0.5
            else: state[key] = torch.randn(p.shape, generator=gen) * 0.3
        save_file(state, os.path.join(d, "model.safetensors"), metadata={"format": "pt"})
        model = load(d)
        assert set(k for k in model.state_dict() if k != "lm_head.weight" or not config["tie_word_embeddings"]) == set(state)
        ids = torch.randint(0, VOCAB, (LEN,), generator=gen)
        ids[0] = 1
        gold = logits(model, ids)
        assert torch.isfinite(gold).all()
        save_file({"input_ids": ids.to(torch.int32), "logits": gold}, os.path.join(d, "golden.safetensors"))
        exact = (logits(load(d).double(), ids).float() - gold).abs().max()
        print(f"{name:14s} |logits| up to {gold.abs().max():6.2f}, against float64 {exact:.1e}", end="")
        for feature, change in off.items():
            if isinstance(change, dict):
                t = os.path.join(out, "tmp"); shutil.copytree(d, t, dirs_exist_ok=True); write_config(t, dict(config, **change))
                other = load(t); shutil.rmtree(t)
            else:
                other = load(d)
                for key, p in other.named_parameters():
                    if key.endswith(change): p.data.fill_(1.0 if "norm" in change else 0.0)
            diff = (logits(other, ids) - gold).abs().max().item()
            print(f", without {feature}: {diff:.2f}", end="")
            assert diff > 1e-2, feature
        # the same model under the other spelling of the rope keys gives the same logits
        t = os.path.join(out, "tmp"); shutil.copytree(d, t, dirs_exist_ok=True)
        write_config(t, dict(config, rope_new_style=not config.get("rope_new_style", False)))
        same = torch.equal(logits(load(t), ids), gold); shutil.rmtree(t)
        print(f", other spelling of the rope keys the same: {same}")
        assert same
    for r, _, fs in os.walk(out):
        for f in fs: os.chmod(os.path.join(r, f), 0o644)
    size = sum(os.path.getsize(os.path.join(r, f)) for r, _, fs in os.walk(out) for f in fs)
    print(f"{size} bytes in all")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
