#!/usr/bin/env python3
"""Golden logits of the LayerNorm families (OPT, GPT-2, GPT-NeoX, Falcon, Phi), from transformers in fp32 (eager attention).

  gen_golden_classic.py OUT_DIR        (folders of tests/golden/forward)

Made with Python 3.11, torch 2.13.0+cpu, transformers 5.23.0, safetensors 0.8.0.
Per variant: config.json, model.safetensors (F32), golden.safetensors with input_ids I32 [48] and logits F32 [48, vocab]. Two blocks;
every weight, gain and bias random; weights rounded to bf16 so that the files compress. config.json has the keys of the published files.
"""
import json, os, shutil, sys
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

LEN, VOCAB = 48, 64
IDS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0, torch_dtype="float32", use_cache=False, vocab_size=VOCAB)
OPT = dict(IDS, model_type="opt", architectures=["OPTForCausalLM"], hidden_size=32, ffn_dim=40, num_hidden_layers=2, num_attention_heads=4,
           max_position_embeddings=48, word_embed_proj_dim=32, do_layer_norm_before=True, activation_function="relu", dropout=0.0)
GPT2 = dict(IDS, model_type="gpt2", architectures=["GPT2LMHeadModel"], n_embd=32, n_layer=2, n_head=4, n_positions=48, n_ctx=48,
            layer_norm_epsilon=1e-5, activation_function="gelu_new", attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
NEOX = dict(IDS, model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"], hidden_size=32, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=64, layer_norm_eps=1e-5, hidden_act="gelu", rotary_pct=0.25, rotary_emb_base=10000,
            tie_word_embeddings=False, use_parallel_residual=True)
FALCON = dict(IDS, model_type="falcon", architectures=["FalconForCausalLM"], hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
              max_position_embeddings=64, layer_norm_epsilon=1e-5, alibi=False, bias=False, multi_query=True, parallel_attn=True,
              new_decoder_architecture=False, attention_dropout=0.0, hidden_dropout=0.0)
PHI = dict(IDS, model_type="phi", architectures=["PhiForCausalLM"], hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
           num_key_value_heads=2, max_position_embeddings=64, layer_norm_eps=1e-5, hidden_act="gelu_new", partial_rotary_factor=0.5,
           rope_theta=10000.0, qk_layernorm=False, tie_word_embeddings=False, attention_dropout=0.0, embd_pdrop=0.0, resid_pdrop=0.0)

VARIANTS = {  # name: (config, how tensor names are changed in the file)
    "opt": (OPT, {}),
    "opt_350m": (dict(OPT, do_layer_norm_before=False, word_embed_proj_dim=24), {}),
    "opt_plain": (dict(OPT, enable_bias=False, layer_norm_elementwise_affine=False, activation_function="gelu", tie_word_embeddings=False), {}),
    "gpt2": (GPT2, {}),
    "gpt2_bare": (dict(GPT2, n_inner=40, scale_attn_weights=False, tie_word_embeddings=False), {"transformer.": ""}),
    "gpt_neox": (NEOX, {"lm_head.": "embed_out."}),
    "gpt_neox_serial": (dict(NEOX, use_parallel_residual=False, attention_bias=False, rotary_pct=0.5, rotary_emb_base=500), {}),
    "falcon_7b": (FALCON, {}),
    "falcon_40b": (dict(FALCON, new_decoder_architecture=True, num_kv_heads=2, ffn_hidden_size=40), {}),
    "falcon_11b": (dict(FALCON, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1, ffn_hidden_size=40, bias=True,
                        tie_word_embeddings=False, rope_theta=500042.0), {}),
    "falcon_serial": (dict(FALCON, parallel_attn=False, multi_query=False, bias=True, ffn_hidden_size=40), {}),
    "phi2": (PHI, {}),
    "phi2_qk": (dict(PHI, qk_layernorm=True, num_key_value_heads=4, partial_rotary_factor=0.75), {}),
}


def load(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def logits(model, ids):
    with torch.no_grad(): return model(input_ids=ids[None], use_cache=False).logits[0].contiguous()


def is_norm(key): return "norm" in key or ".ln_" in key


def random_state(model, gen):
    tied, state = model.config.tie_word_embeddings, {}
    for key, p in model.state_dict().items():
        if key == "lm_head.weight" and tied: continue
        r = torch.randn(p.shape, generator=gen)
        if is_norm(key) and key.endswith("weight"): v = torch.rand(p.shape, generator=gen) + 0.5
        elif key.endswith("bias"): v = r * 0.5
        elif "emb" in key or "wte" in key or "wpe" in key or "lm_head" in key: v = r * 0.7
        else: v = r * 0.3
        state[key] = v.bfloat16().float().contiguous()
    return state


def main(out, wanted):
    for i, (name, (config, renamed)) in enumerate(VARIANTS.items()):
        if wanted and name not in wanted: continue
        d = os.path.join(out, name)
        shutil.rmtree(d, ignore_errors=True); os.makedirs(d)
        json.dump(config, open(os.path.join(d, "config.json"), "w"), indent=1)
        gen = torch.Generator().manual_seed(700 + i)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(d), attn_implementation="eager").eval()
        state = random_state(model, gen)
        for a, b in renamed.items(): state = {(b + k[len(a):] if k.startswith(a) else k): v for k, v in state.items()}
        save_file(state, os.path.join(d, "model.safetensors"), metadata={"format": "pt"})
        model = load(d)
        loaded = model.state_dict()
        back = {b: a for a, b in renamed.items()}
        for k, v in state.items():
            names = [k] + [a + k[len(b):] for b, a in back.items() if k.startswith(b)]
            assert any(n in loaded and torch.equal(loaded[n], v) for n in names), k
        ids = torch.randint(0, VOCAB, (LEN,), generator=gen)
        gold = logits(model, ids)
        assert torch.isfinite(gold).all()
        save_file({"input_ids": ids.to(torch.int32), "logits": gold}, os.path.join(d, "golden.safetensors"))
        exact = (logits(load(d).double(), ids).float() - gold).abs().max()
        print(f"{name:16s} |logits| up to {gold.abs().max():6.2f}, against float64 {exact:.1e}, {len(state)} tensors")
    for r, _, fs in os.walk(out):
        for f in fs: os.chmod(os.path.join(r, f), 0o644)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2:])
