# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""transformers with whatever quantizer the checkpoint's config names (GPTQModel, compressed-tensors, bitsandbytes, BitNet, FP8 ...).

A module's matrix is what it does to the identity: exact in its own type, whatever kernel it runs, because every output is one
product. Modules that round their input are asked for their dequantized weight instead.
"""
import re

import numpy as np
import torch
from common import config_of

NAME = "transformers"


def version():
    import transformers
    return f"transformers {transformers.__version__}, torch {torch.__version__}"


def longest(positions):
    return positions


def load(folder, dtype, threads):
    torch.set_num_threads(threads)
    from transformers import AutoModelForCausalLM
    settings = {"dtype": getattr(torch, dtype)} if dtype else {}
    q = config_of(folder).get("quantization_config", {})
    if q.get("quant_method") == "gptq":  # its default for CPUs is a fused kernel of torch whose sums are rounded another way
        from transformers import GPTQConfig
        settings["quantization_config"] = GPTQConfig(bits=q["bits"], backend="gptq_torch")
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", **settings).eval()
    for m in model.modules():
        if dtype == "float32" and hasattr(m, "support_avx512bf16_for_cpu"):  # bitsandbytes: its fused kernel computes in bfloat16 whatever is asked
            m.support_avx512bf16_for_cpu = False
    return model


def dtype_of(model):
    return str(next(p for n, p in model.named_parameters() if "norm" in n).dtype).removeprefix("torch.")


def nlls(model, chunks):
    out = []
    for ids in chunks:
        x = torch.tensor(ids)
        with torch.no_grad():
            logits = model(input_ids=x[None], use_cache=False).logits[0]
            total = 0.0
            for p in range(0, len(x) - 1, 256):
                q = min(p + 256, len(x) - 1)
                logp = torch.log_softmax(logits[p:q].double(), -1)
                total -= logp.gather(1, x[p + 1:q + 1, None]).sum().item()
        out.append(total / (len(x) - 1))
    return out


def jittered(model, seed, chunks):
    """nlls with the embeddings moved by at most one part in a million, drawn by the seed."""
    e = model.get_input_embeddings().weight
    kept, gen = e.data.clone(), torch.Generator().manual_seed(seed)
    e.data.mul_(1 + (torch.rand(e.shape, generator=gen) - 0.5).to(e.dtype) * 2e-6)
    out = nlls(model, chunks)
    e.data.copy_(kept)
    return out


def applied(module, columns, dtype):
    """The module's matrix from its products with unit vectors, 256 at a time, without its bias."""
    bias = getattr(module, "bias", None)
    with torch.no_grad():
        if bias is not None:
            kept = bias.data.clone()
            bias.data.zero_()
        eye = torch.eye(columns, dtype=dtype)
        parts = [module(eye[c:c + 256]) for c in range(0, columns, 256)]
        if bias is not None:
            bias.data.copy_(kept)
    return torch.cat(parts).T


def weights(model, known):
    """Every linear that `known` (lquant's matrices by name) could hold: (name, kind, dtype, F32 array)."""
    named = str(next(p for n, p in model.named_parameters() if "norm" in n).dtype).removeprefix("torch.")
    for name, m in model.named_modules():
        kind = type(m).__name__
        if isinstance(m, torch.nn.Embedding):
            yield name, kind, str(m.weight.dtype).removeprefix("torch."), m.weight.detach().float().numpy()
        elif kind == "Linear" and type(m) is torch.nn.Linear and m.weight.dtype.is_floating_point and m.weight.dtype.itemsize > 1 and not hasattr(m, "quantization_scheme"):
            yield name, kind, str(m.weight.dtype).removeprefix("torch."), m.weight.detach().float().numpy()
        elif hasattr(m, "in_features") and hasattr(m, "out_features"):
            yield name, kind, *quantized(m, named)
        elif getattr(getattr(m, "weight", None), "ndim", 0) == 2 and name in known:
            yield name, kind, str(m.weight.dtype).removeprefix("torch."), m.weight.detach().float().numpy()
    for name, p in model.named_parameters():
        fused = re.fullmatch(r"(.*\.experts)\.(gate_up_proj|down_proj)", name)
        if fused and p.dtype.is_floating_point and p.dtype.itemsize > 1:
            yield from experts(fused, p.detach())


def quantized(m, named):
    kind = type(m).__name__
    if hasattr(m, "quantization_scheme"):
        w = getattr(m, "weight", None)  # the first forward has decompressed it
        if w is None or not w.dtype.is_floating_point or w.dtype.itemsize == 1:
            from compressed_tensors.compressors import decompress_module
            decompress_module(m)
            w = m.weight
        return str(w.dtype).removeprefix("torch."), w.detach().float().numpy()
    if kind == "Linear8bitLt":  # codes and row maxima decide; its own products never form the weight
        scb = m.weight.SCB if m.weight.SCB is not None else m.state.SCB
        return "float32", (m.weight.data.float() * (scb.float() / 127)[:, None]).numpy()
    if kind == "BitLinear":  # divides its outputs by the scale
        from transformers.integrations.bitnet import unpack_weights
        return "float32", (unpack_weights(m.weight, dtype=torch.float32) / m.weight_scale.float()).numpy()
    if kind == "Linear4bit":
        import bitsandbytes.functional as F
        data, state = m.weight.data, m.weight.quant_state
        if getattr(state, "packing_format_for_cpu", False):
            data, state = F._convert_weight_packed_for_cpu_inverse(data, state)
        return str(state.dtype).removeprefix("torch."), F.dequantize_4bit(data, state).float().numpy()
    dtype = getattr(torch, named)
    return named, applied(m, m.in_features, dtype).float().numpy()


def experts(fused, p):
    dtype = str(p.dtype).removeprefix("torch.")
    for e in range(p.shape[0]):
        w = p[e].float().numpy()
        if fused[2] == "down_proj":
            yield f"{fused[1]}.{e}.down_proj", "experts", dtype, w
        else:
            for part, half in zip(("gate_proj", "up_proj"), np.split(w, 2)):
                yield f"{fused[1]}.{e}.{part}", "experts", dtype, half
