# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Which type llama-quantize gives each tensor: tests/golden/gguf/mixtures.txt, one line per model, mixture and tensor: types of block 0, 1, ... as runs.

  python gen_golden_mixtures.py LLAMA_QUANTIZE WORKDIR > tests/golden/gguf/mixtures.txt

Models of zeros: their sizes are in the line's first word, ARCH-BLOCKS-HEADS-KVHEADS-EXPERTS-WIDTH."""
import itertools, os, subprocess, sys
import gguf, numpy as np

quantize, work = sys.argv[1:3]
models = [("llama", 32, 8, 2, 0, 256), ("llama", 26, 4, 4, 0, 256), ("llama", 80, 8, 2, 0, 256), ("llama", 8, 4, 2, 8, 256), ("llama", 6, 4, 2, 4, 256),
          ("llama", 6, 4, 4, 0, 96), ("falcon", 32, 4, 1, 0, 256)]
mixtures = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4_MOE F16 BF16".split()


def tensors(arch, blocks, heads, kv, experts, d):
    h = d // heads
    yield "token_embd.weight", (32, d)
    yield "output_norm.weight", (d,)
    if experts or blocks == 26:
        yield "output.weight", (32, d)
    for b in range(blocks):
        p = f"blk.{b}."
        yield p + "attn_norm.weight", (d,)
        if arch == "falcon":
            yield p + "attn_qkv.weight", (d + 2 * kv * h, d)
        else:
            yield p + "ffn_norm.weight", (d,)
            yield p + "attn_q.weight", (d, d)
            yield p + "attn_k.weight", (kv * h, d)
            yield p + "attn_v.weight", (kv * h, d)
        yield p + "attn_output.weight", (d, d)
        if experts:
            yield p + "ffn_gate_inp.weight", (experts, d)
        e, s = ((experts,), "_exps") if experts else ((), "")
        if arch != "falcon":
            yield p + f"ffn_gate{s}.weight", e + (d, d)
        yield p + f"ffn_up{s}.weight", e + (d, d)
        yield p + f"ffn_down{s}.weight", e + (d, d)


def make(path, arch, blocks, heads, kv, experts, d):
    w = gguf.GGUFWriter(path, arch)
    w.add_context_length(32)
    w.add_embedding_length(d)
    w.add_block_count(blocks)
    w.add_feed_forward_length(d)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_layer_norm_eps(1e-5)
    w.add_vocab_size(32)
    if experts:
        w.add_expert_count(experts)
        w.add_expert_used_count(2)
    for name, shape in tensors(arch, blocks, heads, kv, experts, d):
        w.add_tensor(name, np.zeros(shape, np.float32 if len(shape) == 1 or "gate_inp" in name else np.float16))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def runs(types):
    return " ".join(f"{k}*{len(list(g))}" for k, g in itertools.groupby(types))


for m in models:
    src, out = f"{work}/in.gguf", f"{work}/out.gguf"
    make(src, *m)
    for mix in mixtures:
        if m[0] == "llama" and m[1] == 80 and mix not in ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M"):
            continue
        r = subprocess.run([quantize, src, out, mix, "1"], capture_output=True, text=True)
        if r.returncode:
            sys.exit(f"{m} {mix}: {r.stdout[-300:]} {r.stderr[-300:]}")
        by = {}
        for t in gguf.GGUFReader(out).tensors:
            name = t.name.split(".", 2)[2] if t.name.startswith("blk.") else t.name
            at = int(t.name.split(".")[1]) if t.name.startswith("blk.") else 0
            if len(t.shape) > 1 and "gate_inp" not in name:
                by.setdefault(name, []).append((at, t.tensor_type.name))
        for name, types in by.items():
            print("-".join(map(str, m)), mix, name.replace(".weight", ""), runs(x for _, x in sorted(types)))
    os.remove(src)
