# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""mlx-lm on MLX's CPU backend. A quantized module's matrix is mx.dequantize of its own arrays in the type the model
computes in: with F16 arrays and F32 activations MLX's products promote them, while mx.dequantize alone would round every step to half."""
import numpy as np

NAME = "mlx"


def version():
    import importlib.metadata
    return ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("mlx", "mlx-lm"))


def longest(positions):
    return positions


def load(folder, dtype, threads):
    import mlx.core as mx
    from mlx_lm.utils import load_model
    from pathlib import Path
    mx.set_default_device(mx.cpu)
    model = load_model(Path(folder))[0]
    if dtype:
        model.set_dtype(getattr(mx, dtype))
    return model


def dtype_of(model):
    from mlx.utils import tree_flatten
    return str(next(v.dtype for k, v in tree_flatten(model.parameters()) if "norm" in k)).removeprefix("mlx.core.")


def nlls(model, chunks):
    import mlx.core as mx
    out = []
    for ids in chunks:
        logits = np.array(model(mx.array([ids]))[0].astype(mx.float32), dtype=np.float64)[:-1]
        top = logits.max(1)
        lse = top + np.log(np.exp(logits - top[:, None]).sum(1))
        out.append(float((lse - logits[np.arange(len(ids) - 1), ids[1:]]).mean()))
    return out


def weights(model, known):
    import mlx.core as mx
    computes = getattr(mx, dtype_of(model))
    for name, m in model.named_modules():
        if not hasattr(m, "weight") or m.weight.ndim < 2:
            continue
        w, dtype = m.weight, m.weight.dtype
        if hasattr(m, "scales"):
            biases = m.biases.astype(computes) if getattr(m, "biases", None) is not None else None
            w = mx.dequantize(m.weight, m.scales.astype(computes), biases, group_size=m.group_size, bits=m.bits, mode=m.mode)
            dtype = w.dtype
        w = np.array(w.astype(mx.float32))
        kind = f"{type(m).__name__}{getattr(m, 'bits', '')}"
        if w.ndim == 2:
            yield name, kind, str(dtype).removeprefix("mlx.core."), w
        for e in range(w.shape[0] if w.ndim == 3 else 0):
            yield name.replace("switch_mlp.", f"experts.{e}."), kind, str(dtype).removeprefix("mlx.core."), w[e]
