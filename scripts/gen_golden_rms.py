#!/usr/bin/env python3
"""Golden logits of the RMS-norm families beyond Llama (Gemma, Granite, Phi-3/4, GLM, BitNet), of rope variants and of
multimodal wrappers, from transformers in fp32 (eager attention).

  gen_golden_rms.py OUT_DIR [VARIANT ...]        (folders in tests/golden/forward)

Made with Python 3.11, torch 2.13.0+cpu, transformers 5.23.0, safetensors 0.8.0.
Per variant: config.json, model.safetensors (F32), golden.safetensors with input_ids I32 [LEN] and logits F32 [LEN, vocab]. Gains
and biases are random. Each listed setting is then changed once, to see that the logits depend on it.
"""
import copy, json, os, shutil, sys
os.environ["TQDM_DISABLE"] = os.environ["TORCHDYNAMO_DISABLE"] = "1"
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

LEN, VOCAB = 48, 64
BASE = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0, dtype="float32", use_cache=False)
LONG = [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0]
SHORT = [1.0, 1.05, 1.1, 1.2, 1.25, 1.3, 1.4, 1.5]

def arch(name, model_type, **kw): return dict(BASE, architectures=[name], model_type=model_type, **{k: v for k, v in kw.items()})
def llama(**kw): return arch("LlamaForCausalLM", "llama", **dict(dict(rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False), **kw))
GEMMA = dict(head_dim=16, rms_norm_eps=1e-6, attention_bias=False)

VARIANTS = {  # name: (config, settings to change once: {name: changed keys, or the end of parameter names to neutralise})
    "gemma": (arch("GemmaForCausalLM", "gemma", hidden_act="gelu", rope_theta=10000.0, **GEMMA), {}),
    "gemma2": (arch("Gemma2ForCausalLM", "gemma2", rope_theta=10000.0, query_pre_attn_scalar=24, attn_logit_softcapping=3.0, final_logit_softcapping=6.0,
                    sliding_window=8, hidden_activation="gelu_pytorch_tanh", **GEMMA),
               {"query scale": dict(query_pre_attn_scalar=16), "score cap": dict(attn_logit_softcapping=None), "logit cap": dict(final_logit_softcapping=None),
                "window": dict(sliding_window=64), "post norm": "post_attention_layernorm.weight", "post mlp norm": "post_feedforward_layernorm.weight"}),
    "gemma3": (arch("Gemma3ForCausalLM", "gemma3_text", rope_theta=1000.0, rope_local_base_freq=100.0, rope_scaling=dict(rope_type="linear", factor=4.0),
                    sliding_window=8, sliding_window_pattern=2, query_pre_attn_scalar=16, hidden_activation="gelu_pytorch_tanh", **GEMMA),
               {"local base": dict(rope_local_base_freq=10000.0), "pattern": dict(sliding_window_pattern=3), "global scaling": dict(rope_scaling=None),
                "q norm": "q_norm.weight"}),
    "gemma3_kinds": (arch("Gemma3ForCausalLM", "gemma3_text", layer_types=["full_attention", "sliding_attention"], sliding_window=8, query_pre_attn_scalar=20,
                          rope_parameters=dict(full_attention=dict(rope_type="linear", factor=3.0, rope_theta=1000.0),
                                               sliding_attention=dict(rope_type="linear", factor=2.0, rope_theta=50.0)),
                          final_logit_softcapping=6.0, hidden_activation="gelu_pytorch_tanh", **dict(GEMMA, attention_bias=True)), {}),
    "granite": (arch("GraniteForCausalLM", "granite", rms_norm_eps=1e-5, rope_theta=10000.0, embedding_multiplier=3.0, attention_multiplier=0.2,
                     residual_multiplier=0.6, logits_scaling=2.5, attention_bias=False, mlp_bias=False, tie_word_embeddings=True, hidden_act="silu"),
                {"embedding": dict(embedding_multiplier=1.0), "attention": dict(attention_multiplier=1.0), "residual": dict(residual_multiplier=1.0),
                 "logits": dict(logits_scaling=1.0)}),
    "phi3": (arch("Phi3ForCausalLM", "phi3", rope_theta=10000.0, original_max_position_embeddings=16, rms_norm_eps=1e-5, hidden_act="silu",
                  rope_scaling=dict(type="su", long_factor=LONG[:4], short_factor=SHORT[:4], original_max_position_embeddings=16), sliding_window=10, num_key_value_heads=4, tie_word_embeddings=False),
             {"window": dict(sliding_window=None), "long factors": dict(original_max_position_embeddings=64, rope_scaling=dict(type="su", long_factor=LONG[:4], short_factor=SHORT[:4], original_max_position_embeddings=64))}),
    "phi4": (arch("Phi3ForCausalLM", "phi3", rope_theta=10000.0, original_max_position_embeddings=64, rms_norm_eps=1e-5, hidden_act="silu", hidden_size=64,
                  partial_rotary_factor=0.75, rope_scaling=dict(type="longrope", long_factor=LONG[:6], short_factor=SHORT[:6]), tie_word_embeddings=True),
             {"part": dict(partial_rotary_factor=0.5, rope_scaling=dict(type="longrope", long_factor=LONG[:4], short_factor=SHORT[:4])),
              "short factors": dict(rope_scaling=dict(type="longrope", long_factor=LONG[:6], short_factor=LONG[:6]))}),
    "glm": (arch("GlmForCausalLM", "glm", rope_theta=10000.0, head_dim=16, hidden_act="silu", attention_bias=True, partial_rotary_factor=0.5,
                 rms_norm_eps=1.5625e-07, tie_word_embeddings=False), {"part": dict(partial_rotary_factor=1.0), "bias": "k_proj.bias"}),
    "glm4": (arch("Glm4ForCausalLM", "glm4", head_dim=8, hidden_act="silu", attention_bias=True, rms_norm_eps=1e-5, tie_word_embeddings=False,
                  rope_parameters=dict(rope_type="default", rope_theta=100.0, partial_rotary_factor=0.5)),
             {"post norm": "post_self_attn_layernorm.weight", "post mlp norm": "post_mlp_layernorm.weight"}),
    "bitnet": (arch("BitNetForCausalLM", "bitnet", rms_norm_eps=1e-5, hidden_act="relu2", rope_theta=500000.0, tie_word_embeddings=True),
               {"attention norm": "attn_sub_norm.weight", "mlp norm": "ffn_sub_norm.weight", "activation": dict(hidden_act="relu")}),
    "bitnet_online": (arch("BitNetForCausalLM", "bitnet", rms_norm_eps=1e-5, hidden_act="relu2", rope_theta=10000.0, tie_word_embeddings=False,
                           quantization_config=dict(quant_method="bitnet", linear_class="autobitlinear", quantization_mode="online")),
                      {"quantization": dict(quantization_config=None)}),
    "gemma3_mm": (dict(model_type="gemma3", architectures=["Gemma3ForConditionalGeneration"], mm_tokens_per_image=1, image_token_index=63, dtype="float32",
                       text_config={k: v for k, v in arch("", "gemma3_text", sliding_window=8, query_pre_attn_scalar=16, layer_types=["sliding_attention", "full_attention"],
                                                          rope_scaling=dict(rope_type="linear", factor=8.0), head_dim=16).items() if k != "architectures"},
                       vision_config=dict(model_type="siglip_vision_model", hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                                          image_size=8, patch_size=4)), {}),
    "llava": (dict(model_type="llava", architectures=["LlavaForConditionalGeneration"], image_token_index=63, dtype="float32",
                   text_config={k: v for k, v in llama(head_dim=8).items() if k != "architectures"},
                   vision_config=dict(model_type="clip_vision_model", hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                                      image_size=8, patch_size=4, projection_dim=16, vocab_size=8)), {}),
    "qwen2_vl": (dict(arch("Qwen2VLForConditionalGeneration", "qwen2_vl", rms_norm_eps=1e-6, rope_theta=10000.0, hidden_act="silu", use_sliding_window=False,
                           rope_scaling=dict(type="mrope", mrope_section=[1, 1, 2]), tie_word_embeddings=False, image_token_id=60, video_token_id=61,
                           vision_start_token_id=62, vision_end_token_id=63),
                      vision_config=dict(depth=1, embed_dim=16, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=2, spatial_merge_size=2, in_channels=3)), {}),
    "llama_yarn": (llama(rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=1.0, beta_slow=0.25), head_dim=16, rope_theta=20.0),
                   {"scaling": dict(rope_scaling=None), "scale": dict(rope_scaling=dict(rope_type="yarn", factor=4.0, attention_factor=1.0, beta_fast=1.0, beta_slow=0.25,
                                                                                    original_max_position_embeddings=16))}),
    "llama_dynamic": (dict(llama(rope_scaling=dict(rope_type="dynamic", factor=4.0), head_dim=16), max_position_embeddings=16), {"scaling": dict(rope_scaling=None)}),
    "llama_longrope": (llama(rope_scaling=dict(rope_type="longrope", factor=8.0, original_max_position_embeddings=16, long_factor=LONG, short_factor=SHORT), head_dim=16),
                       {"long": dict(rope_scaling=dict(rope_type="longrope", factor=8.0, original_max_position_embeddings=64, long_factor=LONG, short_factor=SHORT)),
                        "scale": dict(rope_scaling=dict(rope_type="longrope", factor=8.0, attention_factor=1.0, original_max_position_embeddings=16, long_factor=LONG,
                                                        short_factor=SHORT))}),
}


PUBLISHED = {  # multimodal: how the published files name what transformers 5 calls otherwise
    "gemma3_mm": [("model.language_model.", "language_model.model."), ("model.vision_tower.", "vision_tower."), ("model.multi_modal_projector.", "multi_modal_projector.")],
    "qwen2_vl": [("model.language_model.", "model."), ("model.visual.", "visual.")],
}


def auto(config): return AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM


def published(name, key):
    for new, old in PUBLISHED.get(name, []):
        if key.startswith(new): return old + key[len(new):]
    return key


def load(directory):
    return auto(json.load(open(os.path.join(directory, "config.json")))).from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def logits(model, ids):
    with torch.no_grad(): return model(input_ids=ids[None], use_cache=False).logits[0].contiguous()


def write_config(directory, config): json.dump({k: v for k, v in config.items() if k != "quantization_config" or v}, open(os.path.join(directory, "config.json"), "w"), indent=1)


def values(model, gen):
    """Random weights of at least 0.3; gains in 0.5..1.5 (Gemma stores them less one)."""
    state, tied = {}, model.config.tie_word_embeddings
    less_one = "gemma" in model.config.model_type
    for key, p in model.state_dict().items():
        if key == "lm_head.weight" and tied: continue
        if key.endswith("position_ids"): state[key] = p.clone(); continue
        if "norm" in key: state[key] = torch.rand(p.shape, generator=gen) + (-0.5 if less_one else 0.5)
        elif "embed" in key or "lm_head" in key: state[key] = torch.randn(p.shape, generator=gen) * 0.7
        elif "bias" in key: state[key] = torch.randn(p.shape, generator=gen) * 0.5
        else: state[key] = torch.randn(p.shape, generator=gen) * 0.3
    return state


def changed(out, directory, config, change):
    if isinstance(change, dict):
        t = os.path.join(out, "tmp"); shutil.copytree(directory, t, dirs_exist_ok=True); write_config(t, dict(copy.deepcopy(config), **change))
        model = load(t); shutil.rmtree(t)
        return model
    model = load(directory)
    for key, p in model.named_parameters():
        if key.endswith(change): p.data.fill_(0.0 if "norm" not in change or "gemma" in config["model_type"] else 1.0)
    return model


def make(out, name, seed):
    config, off = VARIANTS[name]
    d = os.path.join(out, name)
    shutil.rmtree(d, ignore_errors=True); os.makedirs(d)
    write_config(d, config)
    gen = torch.Generator().manual_seed(seed)
    state = values(auto(config).from_config(AutoConfig.from_pretrained(d), attn_implementation="eager"), gen)
    save_file({published(name, k): v for k, v in state.items()}, os.path.join(d, "model.safetensors"), metadata={"format": "pt"})
    ids = torch.randint(0, VOCAB, (LEN,), generator=gen)
    ids[0] = 1
    if "vision_config" in config: ids %= 60 # no token of an image
    gold = logits(load(d), ids)
    assert torch.isfinite(gold).all()
    save_file({"input_ids": ids.to(torch.int32), "logits": gold}, os.path.join(d, "golden.safetensors"))
    exact = (logits(load(d).double(), ids).float() - gold).abs().max()
    print(f"{name:14s} |logits| up to {gold.abs().max():6.2f}, against float64 {exact:.1e}", end="")
    for what, change in off.items():
        diff = (logits(changed(out, d, config, change), ids) - gold).abs().max().item()
        print(f", other {what}: {diff:.2f}", end="")
        assert diff > 1e-2, what
    print()


def main(out, names):
    for i, name in enumerate(VARIANTS):
        if not names or name in names: make(out, name, 300 + i)
    for r, _, fs in os.walk(out):
        for f in fs: os.chmod(os.path.join(r, f), 0o644)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2:])
