#!/usr/bin/env python3
"""Golden blocks of every ggml type lquant reads, and two container files made by the reference writers.

  gen_golden_blocks.py OUT_DIR        (OUT_DIR/blocks and OUT_DIR/containers, the folders in tests/golden)

Made with Python 3.11, gguf 0.19.0, safetensors 0.8.0, torch 2.13.0+cpu (scripts/requirements-peers.txt).
blocks/TYPE.bin: N random blocks as stored, then their weights as the gguf package dequantizes them (F32). Every field is random
over all its bit patterns, but half-precision scales are finite: normal, subnormal, zero and of both signs.
"""
import os, sys
import numpy as np
import gguf, torch
from gguf import GGMLQuantizationType as T
from safetensors.torch import save_file

# byte offsets of the half-precision fields in a block
HALVES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108],
          T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.IQ4_NL: [0], T.IQ4_XS: [0], T.TQ1_0: [52], T.TQ2_0: [64], T.MXFP4: [], T.NVFP4: [],
          T.IQ1_S: [0], T.IQ1_M: [], T.IQ2_XXS: [0], T.IQ2_XS: [0], T.IQ2_S: [0], T.IQ3_XXS: [0], T.IQ3_S: [0]}

def blocks(folder):
    rng = np.random.default_rng(20)
    for kind, halves in HALVES.items():
        weights, size = gguf.GGML_QUANT_SIZES[kind]
        n = 6 if weights == 256 else 24
        b = rng.integers(0, 256, (n, size), dtype=np.uint8)
        for at in halves:
            h = rng.integers(0, 0x7c00, n, dtype=np.uint16) | (rng.integers(0, 2, n, dtype=np.uint16) << 15)
            h[0], h[1] = 0x3c00, 0x0001
            b[:, at:at + 2] = h[:, None].view(np.uint8)
        if kind == T.IQ1_M:
            b[:, 55] &= 0x7f  # its F16 is the upper nibbles of four little-endian words: this is its sign and the top of its exponent
            b[:, 55] &= 0xbf
        y = gguf.quants.dequantize(b.reshape(1, -1), kind).astype(np.float32).reshape(-1)
        assert y.size == n * weights and np.isfinite(y).all()
        with open(f"{folder}/{kind.name}.bin", "wb") as f:
            f.write(b.tobytes() + y.tobytes())
        print(kind.name, n, "blocks")

def containers(folder):
    torch.manual_seed(20)
    kinds = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.int8, torch.bool, torch.float64,
             torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64, torch.int16]
    shapes = [(3, 5), (2,), (2, 3, 2), (), (0, 4)]
    tensors = {f"layer.{i * 7 % 16}.{'é' if i == 2 else ''}weight": (torch.rand(shapes[i % 5]) * 10).to(k) for i, k in enumerate(kinds)}
    save_file(tensors, f"{folder}/every_type.safetensors", metadata={"format": "pt"})

    w = gguf.GGUFWriter(f"{folder}/small.gguf", "llama")
    w.add_name("small")
    w.add_context_length(64)
    w.add_float32("a.float", 0.25)
    w.add_bool("a.bool", True)
    w.add_int64("an.int64", -5)
    w.add_float64("a.float64", 1e300)
    w.add_token_list([b"<s>", b"</s>", "\u2581the".encode(), b"\xff\x00z", b""])
    w.add_token_scores([0.0, -1.0, -2.5, 3.0, 4.0])
    w.add_array("an.array", [1, -2, 3])
    rng = np.random.default_rng(3)
    w.add_tensor("blk.0.attn_q.weight", rng.standard_normal((4, 8)).astype(np.float32))
    w.add_tensor("output_norm.weight", rng.standard_normal(8).astype(np.float32))
    w.add_tensor("token_embd.weight", rng.standard_normal((3, 32)).astype(np.float16))
    q = gguf.quants.quantize(rng.standard_normal((2, 64)).astype(np.float32), T.Q8_0)
    w.add_tensor("blk.0.ffn_up.weight", q, raw_dtype=T.Q8_0)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()

if __name__ == "__main__":
    for name in ("blocks", "containers"):
        os.makedirs(f"{sys.argv[1]}/{name}", exist_ok=True)
    blocks(f"{sys.argv[1]}/blocks")
    containers(f"{sys.argv[1]}/containers")
