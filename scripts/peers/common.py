# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""What the checks of one runtime share: lquant's own figures and weights, the ids of a text, and comparing matrices by name.

A runtime hands over (name, matrix) pairs under its own module names; `matrices` brings both sides to one spelling. Fused modules are
split by the runtime's file, because only it knows the order.
"""
import json
import os
import re
import subprocess
import tempfile

import numpy as np

SPELLINGS = [("block_sparse_moe.", "mlp."), (".w1", ".gate_proj"), (".w3", ".up_proj"), (".w2", ".down_proj")]


def spelled(name):
    name = re.sub(r"^(model\.)?language_model\.(model\.)?", "model.", name)
    for a, b in SPELLINGS:
        name = name.replace(a, b)
    return name


def run(cmd):
    r = subprocess.run(cmd, capture_output=True, text=True)
    if r.returncode:
        raise SystemExit(f"{' '.join(cmd)}: exit {r.returncode}: {r.stderr.strip()}")
    return r.stdout


def evaluated(lquant, checkpoint, text, ctx, chunks, threads, protocol="gptq-2048", more=()):
    """lquant's own NLL: the JSON object of `lquant eval --json`."""
    cmd = [lquant, "eval", checkpoint, "-f", text, "--json", "-q", "--protocol", protocol, "--ctx", str(ctx), "--chunks", str(chunks), "-t", str(threads), *more]
    return json.loads(run(cmd))


def config_of(folder):
    with open(os.path.join(folder, "config.json")) as f:
        return json.load(f)


def kv_scales(folder):
    """{"model.layers.0.self_attn.k_scale": 0.0090, ...} as stored."""
    from safetensors import safe_open
    out = {}
    for file in sorted(f for f in os.listdir(folder) if f.endswith(".safetensors")):
        with safe_open(os.path.join(folder, file), "np") as f:
            out |= {k: float(f.get_tensor(k).reshape(-1)[0]) for k in f.keys() if k.endswith((".k_scale", ".v_scale"))}
    return out


def text_ids(folder, text, ctx, chunks):
    """Ids of the first chunks of TEXT, by the `tokenizers` package from the checkpoint's own tokenizer.json. The whole text is
    encoded, as lquant does: where a prefix is cut its last ids may differ."""
    from tokenizers import Tokenizer
    ids = Tokenizer.from_file(os.path.join(folder, "tokenizer.json")).encode(open(text, encoding="utf-8", newline="").read()).ids
    have = min(chunks, len(ids) // ctx)
    return [ids[c * ctx:(c + 1) * ctx] for c in range(have)]


def renamed(folder, rules, scratch):
    """A copy of a folder of one file whose tensors are renamed by (regex, replacement) pairs."""
    import shutil
    from safetensors.torch import load_file, save_file
    out = tempfile.mkdtemp(dir=scratch)
    shutil.copytree(folder, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(os.path.join(folder, "model.safetensors"))
    for pattern, name in rules:
        tensors = {re.sub(pattern, name, k): v for k, v in tensors.items()}
    save_file(tensors, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    return out


def jittered(folder, seed, scratch):
    """The folder (of one file) with what runtime_transformers.jittered moves moved alike; the copy before it is gone."""
    import shutil
    import torch
    from safetensors.torch import load_file, save_file
    out, name = os.path.join(scratch, "jittered"), "model.embed_tokens.weight"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors", "lquant-manifest.json"))
    tensors = load_file(os.path.join(folder, "model.safetensors"))
    gen = torch.Generator().manual_seed(seed)
    e = tensors[name].float()
    tensors[name] = e * (1 + (torch.rand(e.shape, generator=gen) - 0.5) * 2e-6)
    save_file(tensors, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    return out


def decoded(lquant, checkpoint):
    """Every matrix of a checkpoint as lquant decodes it, F32, by its one spelling: {name without .weight: array [rows, cols]}."""
    from safetensors import safe_open
    out = {}
    with tempfile.TemporaryDirectory() as tmp:
        folder = os.path.join(tmp, "f32")
        run([lquant, "convert", "--dequantize", "f32", "-q", checkpoint, folder])
        for file in sorted(os.listdir(folder)):
            if file.endswith(".safetensors"):
                with safe_open(os.path.join(folder, file), "np") as f:
                    for k in f.keys():
                        if k.endswith(".weight") and len(f.get_slice(k).get_shape()) == 2:
                            out[spelled(k.removesuffix(".weight"))] = f.get_tensor(k)
    return out


def rounded(x, dtype):
    """x (F32) rounded once, to nearest even, to float32, float16 or bfloat16; given back as float32."""
    x = np.ascontiguousarray(x, dtype=np.float32)
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        u = x.view(np.uint32).astype(np.uint64)
        return ((u + 0x7FFF + ((u >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return x


def matrices(theirs, ours, say=print):
    """Compares (name, kind, dtype, matrix) of a runtime with ours; every matrix of ours must have been met. Returns a summary."""
    ours, met, differing, weights, bad_matrices, kinds = dict(ours), set(), 0, 0, 0, {}

    def complain(text):
        if bad_matrices <= 3:
            say(text)

    for name, kind, dtype, w in theirs:
        name = spelled(name)
        if name.endswith("lm_head") and name not in ours:  # tied: stored once
            name = next(n for n in ours if n.endswith("embed_tokens"))
        if name not in ours:
            bad_matrices += 1
            complain(f"  {name} ({kind}): lquant has no such matrix")
            continue
        met.add(name)
        v = rounded(ours[name], dtype)
        w = np.asarray(w, dtype=np.float32)
        if v.shape != w.shape:
            bad_matrices += 1
            complain(f"  {name} ({kind}): shape {w.shape} there, {v.shape} here")
            continue
        n = int((v != w).sum())
        if n:
            bad_matrices += 1
            complain(f"  {name} ({kind}, {dtype}): {n} of {w.size} weights differ, at most by {np.abs(v - w).max():.3g} (largest {np.abs(v).max():.3g})")
        differing, weights = differing + n, weights + w.size
        kinds[kind] = kinds.get(kind, 0) + 1
    missing = sorted(set(ours) - met)
    return {"matrices": len(met), "bad_matrices": bad_matrices, "weights": weights, "weights_differing": differing, "not_compared": missing, "kinds": kinds}
