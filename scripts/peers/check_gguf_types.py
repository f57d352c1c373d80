#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Weighted error of lquant's block types beside that of ggml's own quantizer, on the matrices of a model.

  check_gguf_types.py BUILD LIBGGML MODEL.safetensors [MATRICES [TYPE ...]]

BUILD: the build folder (tests/tool_blocks); LIBGGML: libggml-base.so of a llama.cpp build. For every type: sum of h (w - q)^2 over
sum of h w^2 with h = 1 and with an importance of each column; q is what ggml's own to_float makes of both. Ends with 1 when
lquant's search is worse than ggml anywhere by more than 0.1 %.
"""
import ctypes, json, os, struct, subprocess, sys, tempfile
import numpy as np

TYPES = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20,
         "IQ4_XS": 23, "TQ1_0": 34, "TQ2_0": 35, "MXFP4": 39, "NVFP4": 40, "Q1_0": 41, "Q2_0": 42}
BLOCK = {"Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34), "Q2_K": (256, 84), "Q3_K": (256, 110),
         "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210), "IQ4_NL": (32, 18), "IQ4_XS": (256, 136), "TQ1_0": (256, 54),
         "TQ2_0": (256, 66), "MXFP4": (32, 17), "NVFP4": (64, 36), "Q1_0": (128, 18), "Q2_0": (64, 18)}

class Traits(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("blck_size", ctypes.c_int64), ("interleave", ctypes.c_int64), ("size", ctypes.c_size_t),
                ("quantized", ctypes.c_bool), ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
                ("from_float", ctypes.c_void_p)]

def matrices(path, most):
    with open(path, "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        head = json.loads(f.read(n))
        for name, t in sorted(head.items()):
            if name == "__metadata__" or len(t["shape"]) != 2 or most == 0: continue
            a, b = t["data_offsets"]
            f.seek(8 + n + a)
            raw = f.read(b - a)
            w = {"F32": lambda: np.frombuffer(raw, np.float32), "F16": lambda: np.frombuffer(raw, np.float16).astype(np.float32),
                 "BF16": lambda: (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)}[t["dtype"]]()
            w = w.reshape(t["shape"])[:512]
            most -= 1
            yield name, np.ascontiguousarray(w)

def main():
    build, lib, model = sys.argv[1:4]
    most = int(sys.argv[4]) if len(sys.argv) > 4 else 6
    types = sys.argv[5:] or list(TYPES)
    os.environ["LD_LIBRARY_PATH"] = os.path.dirname(lib)
    g = ctypes.CDLL(lib)
    g.ggml_quantize_chunk.restype = ctypes.c_size_t
    g.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    g.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    rng = np.random.default_rng(1)
    worst, rows = 0.0, {}
    with tempfile.TemporaryDirectory() as tmp:
        for name, full in matrices(model, most):
            for kind in types:
                block, size = BLOCK[kind]
                w = np.ascontiguousarray(full[:, :full.shape[1] // block * block])
                if w.shape[1] == 0: continue
                traits = g.ggml_get_type_traits(TYPES[kind]).contents
                assert (traits.blck_size, traits.size) == (block, size), (kind, traits.blck_size, traits.size)
                for weighted in (0, 1):
                    h = np.exp(rng.standard_normal(w.shape[1])).astype(np.float32) if weighted else np.ones(w.shape[1], np.float32)
                    out = np.zeros(w.size // block * size, np.uint8)
                    def error(blocks, times=1.0):
                        y = np.empty(w.size, np.float32)
                        traits.to_float(blocks.ctypes.data, y.ctypes.data, w.size)
                        y *= np.float32(times)
                        d = w.astype(np.float64) - y.reshape(w.shape)
                        return float((d * d * h).sum() / (w.astype(np.float64) ** 2 * h).sum())
                    g.ggml_quantize_chunk(TYPES[kind], w.ctypes.data, out.ctypes.data, 0, w.shape[0], w.shape[1], h.ctypes.data if weighted else None)
                    errs = [error(out)]
                    w.tofile(f"{tmp}/w"); h.tofile(f"{tmp}/h")
                    for how in ("minmax", "signed"):
                        told = subprocess.run([f"{build}/tests/tool_blocks", kind, how, str(w.shape[0]), str(w.shape[1]), f"{tmp}/w", f"{tmp}/h" if weighted else "-", f"{tmp}/o"], check=True, capture_output=True, text=True)
                        errs.append(error(np.fromfile(f"{tmp}/o", np.uint8), float(told.stdout or 1)))
                    rows.setdefault((kind, weighted), []).append(errs)
                    if errs[2] > errs[0] * 1.001 + 1e-7:
                        print(f"worse: {kind} weighted={weighted} {name}: lquant {errs[2]:.6g} ggml {errs[0]:.6g}")
                    worst = max(worst, errs[2] / (errs[0] + 1e-5))
    print(f"{'type':8} {'weighted':8} {'ggml':>11} {'min-max':>11} {'search':>11}  search/ggml")
    for (kind, weighted), e in rows.items():
        m = np.mean(np.array(e), axis=0)
        print(f"{kind:8} {weighted:8} {m[0]:11.5g} {m[1]:11.5g} {m[2]:11.5g}  {np.mean([x[2] / x[0] if x[0] else float(x[2] > 0) for x in e]):.4f}")
    sys.exit(worst > 1.001)

main()
