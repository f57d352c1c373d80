#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Files made by llama-quantize, read by lquant: every weight of every type equal to what gguf-py and ggml make of it.

  check_gguf_read.py LQUANT LLAMA_QUANTIZE LIBGGML MODEL-f16.gguf [TYPE ...]

For each type: llama-quantize --pure (IQ1, IQ2 and IQ3_XXS with an importance file made here), `lquant convert --dequantize f32`, and a
comparison of all matrices, q and k rows back in the order of the file. Ends with 1 when any weight differs.
"""
import ctypes, os, struct, subprocess, sys, tempfile
import numpy as np
import gguf
from safetensors.numpy import load_file

TYPES = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K_S Q4_K_S Q5_K_S Q6_K IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4_MOE Q1_0 Q2_0 IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_M IQ3_XXS IQ3_S".split()
NAMES = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}

def importance(path, reader):
    rng = np.random.default_rng(1)
    entries = [t for t in reader.tensors if len(t.shape) == 2]
    with open(path, "wb") as f:
        f.write(struct.pack("<i", len(entries)))
        for t in entries:
            name = t.name.encode()
            f.write(struct.pack("<i", len(name)) + name + struct.pack("<ii", 1, int(t.shape[0])))
            f.write(np.exp(rng.standard_normal(int(t.shape[0]))).astype(np.float32).tobytes())

def hf_name(name):
    if name == "token_embd.weight": return "model.embed_tokens.weight"
    if name == "output.weight": return "lm_head.weight"
    part = name.split(".")
    return f"model.layers.{part[1]}.{NAMES[part[2]]}.weight" if part[0] == "blk" and part[2] in NAMES else None

def permuted(w, heads):  # model order to the file's
    return w.reshape(heads, 2, w.shape[0] // heads // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)

class Traits(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("block", ctypes.c_int64), ("interleave", ctypes.c_int64), ("size", ctypes.c_size_t),
                ("quantized", ctypes.c_bool), ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64))]

def floats(ggml, t):
    y = np.empty(int(t.n_elements), np.float32)
    raw = np.ascontiguousarray(t.data).view(np.uint8)
    if t.tensor_type == gguf.GGMLQuantizationType.F32: return np.array(t.data, np.float32).reshape(t.shape[::-1])
    ggml.ggml_get_type_traits(int(t.tensor_type)).contents.to_float(raw.ctypes.data, y.ctypes.data, y.size)
    return y.reshape(t.shape[::-1])

def main():
    lquant, quantize, lib, model = sys.argv[1:5]
    ggml = ctypes.CDLL(lib)
    ggml.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    bad = 0
    with tempfile.TemporaryDirectory() as tmp:
        importance(f"{tmp}/imatrix", gguf.GGUFReader(model))
        for kind in sys.argv[5:] or TYPES:
            more = ["--imatrix", f"{tmp}/imatrix"] if kind.startswith(("IQ1", "IQ2", "IQ3_XXS")) else []
            made = subprocess.run([quantize, "--pure", *more, model, f"{tmp}/x.gguf", kind], capture_output=True, text=True)
            if made.returncode:
                print(f"{kind:8} llama-quantize: {made.stderr.strip().splitlines()[-1][:100]}")
                continue
            got = subprocess.run([lquant, "convert", "-q", "--overwrite", "--dequantize", "f32", f"{tmp}/x.gguf", f"{tmp}/out"], capture_output=True, text=True)
            if got.returncode:
                print(f"{kind:8} lquant: {got.stderr.strip()}")
                bad += 1
                continue
            try:
                r = gguf.GGUFReader(f"{tmp}/x.gguf")
            except ValueError as e:
                print(f"{kind:8} gguf-py: {e}")
                continue
            heads = [int(r.fields["llama.attention.head_count" + k].contents()) for k in ("", "_kv")]
            ours, n, wrong, used = load_file(f"{tmp}/out/model.safetensors"), 0, 0, set()
            for t in r.tensors:
                name = hf_name(t.name)
                if not name: continue
                w, want = ours[name], floats(ggml, t)
                if ".attn_q." in t.name: w = permuted(w, heads[0])
                if ".attn_k." in t.name: w = permuted(w, heads[1])
                used.add(t.tensor_type.name)
                n += w.size
                wrong += int((w != want).sum())
            print(f"{kind:8} {n} weights of {', '.join(sorted(used))}: {wrong} differ")
            bad += wrong > 0
    sys.exit(bad > 0)

main()
