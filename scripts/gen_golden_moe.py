#!/usr/bin/env python3
"""Golden logits of the mixtures of experts, from transformers in fp32 (eager attention, plain loop over experts).

  gen_golden_moe.py OUT_DIR [VARIANT ...]        (folders in tests/golden/forward)

Made with Python 3.11, torch 2.13.0+cpu, transformers 5.23.0, safetensors 0.8.0.
Per variant: config.json, model.safetensors (F32; one matrix per expert as on the hub, *_stacked: as transformers 5 keeps them),
golden.safetensors with input_ids I32 [48] and logits F32 [48, 64]. Routing must use every expert; each listed setting is then changed
once, to see that the logits depend on it. Last, what torch.topk does with equal probabilities is printed.
"""
import copy, json, os, re, shutil, sys
os.environ["TQDM_DISABLE"] = "1"
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

LEN, VOCAB = 48, 64
BASE = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=128, rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu", tie_word_embeddings=False,
            bos_token_id=1, eos_token_id=2, pad_token_id=0, dtype="float32", use_cache=False, num_experts_per_tok=2)
def arch(name, model_type, **kw): return dict(BASE, architectures=[name], model_type=model_type, **kw) if not set(kw) & set(BASE) else \
    dict(dict(BASE, **kw), architectures=[name], model_type=model_type)
TOP1 = {"one expert": dict(num_experts_per_tok=1)}

VARIANTS = {  # name: (config, settings to change once)
    "mixtral": (arch("MixtralForCausalLM", "mixtral", num_local_experts=8, sliding_window=None), TOP1),
    "mixtral_stacked": (arch("MixtralForCausalLM", "mixtral", num_local_experts=4, sliding_window=8), dict(TOP1, window=dict(sliding_window=None))),
    "qwen2_moe": (arch("Qwen2MoeForCausalLM", "qwen2_moe", num_experts=6, num_hidden_layers=3, intermediate_size=48, moe_intermediate_size=24,
                       shared_expert_intermediate_size=40, norm_topk_prob=False, mlp_only_layers=[1], decoder_sparse_step=1,
                       use_sliding_window=True, sliding_window=8, max_window_layers=2),
                  dict(TOP1, norm=dict(norm_topk_prob=True), window=dict(use_sliding_window=False), shared="shared_expert.down_proj.weight",
                       shared_gate="shared_expert_gate.weight")),
    "qwen3_moe": (arch("Qwen3MoeForCausalLM", "qwen3_moe", num_experts=8, num_experts_per_tok=3, num_hidden_layers=3, intermediate_size=40, head_dim=16,
                       moe_intermediate_size=24, norm_topk_prob=True, mlp_only_layers=[], decoder_sparse_step=2, attention_bias=False,
                       use_sliding_window=True, sliding_window=8), dict(TOP1, norm=dict(norm_topk_prob=False), window=dict(use_sliding_window=False))),
    "olmoe": (arch("OlmoeForCausalLM", "olmoe", num_experts=8, norm_topk_prob=False, clip_qkv=0.8, attention_bias=False),
              dict(TOP1, norm=dict(norm_topk_prob=True), clip=dict(clip_qkv=None), q_norm="q_norm.weight")),
}


def load(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager").eval()


def logits(model, ids):
    with torch.no_grad(): return model(input_ids=ids[None], use_cache=False).logits[0].contiguous()


def write_config(directory, config): json.dump(config, open(os.path.join(directory, "config.json"), "w"), indent=1)


def values(model, gen):
    state = {}
    for key, p in model.state_dict().items():
        if "norm" in key: state[key] = torch.rand(p.shape, generator=gen) + 0.5
        elif "embed" in key or "lm_head" in key: state[key] = torch.randn(p.shape, generator=gen) * 0.7
        elif "bias" in key: state[key] = torch.randn(p.shape, generator=gen) * 0.5
        else: state[key] = torch.randn(p.shape, generator=gen) * 0.3
    return state


def as_on_the_hub(state, model_type):
    """One matrix per expert, the names of the published checkpoints."""
    gate, up, down = ("w1", "w3", "w2") if model_type == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    out = {}
    for key, v in state.items():
        key = key.replace(".mlp.", ".block_sparse_moe.") if model_type == "mixtral" else key
        m = re.fullmatch(r"(.*\.experts)\.(gate_up_proj|down_proj)", key)
        for e in range(v.shape[0] if m else 0):
            if m[2] == "down_proj": out[f"{m[1]}.{e}.{down}.weight"] = v[e].contiguous()
            else: out[f"{m[1]}.{e}.{gate}.weight"], out[f"{m[1]}.{e}.{up}.weight"] = (h.contiguous() for h in v[e].chunk(2))
        if not m: out[key] = v
    return out


def changed(out, directory, config, change):
    if isinstance(change, dict):
        t = os.path.join(out, "tmp"); shutil.copytree(directory, t, dirs_exist_ok=True); write_config(t, dict(copy.deepcopy(config), **change))
        model = load(t); shutil.rmtree(t)
        return model
    model = load(directory)
    for key, p in model.named_parameters():
        if key.endswith(change): p.data.fill_(1.0 if "norm" in change else 0.0)
    return model


def experts_used(model, ids, config):
    seen = []
    for m in model.modules():
        if type(m).__name__.endswith("TopKRouter"): m.register_forward_hook(lambda _m, _i, o: seen.append(o[2]))
    logits(model, ids)
    return [torch.bincount(s.flatten(), minlength=config.get("num_experts", config.get("num_local_experts"))).tolist() for s in seen]


def make(out, name, seed):
    config, off = VARIANTS[name]
    d = os.path.join(out, name)
    shutil.rmtree(d, ignore_errors=True); os.makedirs(d)
    write_config(d, config)
    gen = torch.Generator().manual_seed(seed)
    state = values(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(d), attn_implementation="eager"), gen)
    save_file(state if name.endswith("stacked") else as_on_the_hub(state, config["model_type"]), os.path.join(d, "model.safetensors"), metadata={"format": "pt"})
    ids = torch.randint(0, VOCAB, (LEN,), generator=gen)
    ids[0] = 1
    model = load(d)
    for key, p in model.state_dict().items(): assert torch.equal(p, state[key]), key
    gold = logits(model, ids)
    assert torch.isfinite(gold).all()
    used = experts_used(model, ids, config)
    if min(min(u) for u in used) == 0: return make(out, name, seed + 1000)
    save_file({"input_ids": ids.to(torch.int32), "logits": gold}, os.path.join(d, "golden.safetensors"))
    exact = (logits(load(d).double(), ids).float() - gold).abs().max()
    print(f"{name:16s} |logits| up to {gold.abs().max():6.2f}, against float64 {exact:.1e}, tokens per expert {used}", end="")
    for what, change in off.items():
        diff = (logits(changed(out, d, config, change), ids) - gold).abs().max().item()
        print(f", other {what}: {diff:.2f}", end="")
        assert diff > 1e-2, what
    print()


def ties():
    for n, k in ((8, 2), (60, 4), (64, 8), (128, 8)):
        print(f"torch.topk of {n} equal probabilities takes {torch.topk(torch.full((1, n), 1 / n), k, dim=-1).indices[0].tolist()}")


def main(out, names):
    for i, name in enumerate(VARIANTS):
        if not names or name in names: make(out, name, 500 + i)
    ties()
    for r, _, fs in os.walk(out):
        for f in fs: os.chmod(os.path.join(r, f), 0o644)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2:])
