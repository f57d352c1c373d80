#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Does llama.cpp mean the same by a GGUF as lquant?

    check_llamacpp.py GGUF [GGUF ...] -f TEXT --bin DIR [--lquant BIN] [--ctx 256] [--chunks 4] [--folder HF] [--plain] [--rounded] [--json FILE]

DIR: where llama-tokenize, llama-perplexity and llama-quantize lie. Compared are
  token ids   llama-tokenize's of TEXT and lquant's (tool_tokenize), one by one; with --folder, those of its tokenizer.json too;
  NLL         llama-perplexity -c CTX against `lquant eval --protocol llamacpp-512 --ctx CTX`: within its printed error and 5e-3 nats.
              llama.cpp rounds activations to 8 bits before it multiplies quantized weights; --plain lets llama-quantize decode the file
              to F32 first, and the bound is 5e-4 then; --rounded lets lquant round activations alike (`eval --activations ggml`);
  weights     every tensor as gguf-py's dequantize() decodes it, renamed and unpermuted, against `lquant convert --dequantize f32`:
              bit for bit. Types gguf-py cannot decode are decoded by llama-quantize itself.
Exit status 1 when something differs, 2 when a program fails. Made with llama.cpp of October 2026, gguf 0.19.
"""
import argparse
import json
import math
import os
import re
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import common
import numpy as np

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
NAMES = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
         "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "ffn_gate_inp": "mlp.gate", "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
         "ffn_gate_shexp": "mlp.shared_expert.gate_proj", "ffn_up_shexp": "mlp.shared_expert.up_proj", "ffn_down_shexp": "mlp.shared_expert.down_proj"}


def arguments():
    a = argparse.ArgumentParser()
    a.add_argument("gguf", nargs="+")
    a.add_argument("-f", "--text", required=True)
    a.add_argument("--bin", required=True)
    a.add_argument("--lquant", default="build/lquant")
    a.add_argument("--gguf-py", default="", help="its source's gguf-py, which knows newer types than the package")
    a.add_argument("--tokenize", default="", help="tool_tokenize [beside lquant]")
    a.add_argument("--folder", default="")
    a.add_argument("--ctx", type=int, default=256)
    a.add_argument("--chunks", type=int, default=4)
    a.add_argument("--characters", type=int, default=100000, help="of TEXT whose ids are compared")
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--plain", action="store_true")
    a.add_argument("--rounded", action="store_true")
    a.add_argument("--no-weights", action="store_true")
    a.add_argument("--no-nll", action="store_true")
    a.add_argument("--json", default="")
    return a.parse_args()


def token_ids(a, path):
    tool = a.tokenize or os.path.join(os.path.dirname(a.lquant), "tests/tool_tokenize")
    text = open(a.text, encoding="utf-8", newline="").read()[:a.characters]
    with tempfile.TemporaryDirectory() as tmp:
        part, case = os.path.join(tmp, "text"), os.path.join(tmp, "case")
        raw = text.encode()
        open(part, "wb").write(raw)
        open(case, "wb").write(struct.pack("<Q", len(raw)) + raw)
        theirs = json.loads(common.run([os.path.join(a.bin, "llama-tokenize"), "-m", path, "-f", part, "--ids", "--no-bos", "--no-parse-special", "--no-escape", "--log-disable"]))
        ours = [int(x) for x in common.run([tool, "-p", path, case]).split()]
        others = {"lquant": ours}
        if a.folder:
            from tokenizers import Tokenizer
            others["tokenizer.json"] = Tokenizer.from_file(os.path.join(a.folder, "tokenizer.json")).encode(text, add_special_tokens=False).ids
    return len(theirs), [who for who, ids in others.items() if ids != theirs]


def perplexity(a, path):
    # F32 keys and values: lquant's eval keeps them so
    cmd = [os.path.join(a.bin, "llama-perplexity"), "-m", path, "-f", a.text, "-c", str(a.ctx), "-b", str(a.ctx), "--chunks", str(a.chunks), "-t", str(a.threads), "-ctk", "f32", "-ctv", "f32", "-fa", "off"]
    for _ in range(12):  # its log is written by a thread that the exit sometimes overtakes
        r = subprocess.run(cmd, capture_output=True, text=True)
        said = re.search(r"Final estimate: PPL = ([0-9.]+) \+/- ([0-9.]+)", r.stdout + r.stderr)
        if r.returncode or said:
            break
    if r.returncode or not said:
        raise SystemExit(f"{' '.join(cmd)}: exit {r.returncode}: {(r.stdout + r.stderr)[-800:]}")
    return float(said[1]), float(said[2])


def unpermuted(w, heads):
    """llama.cpp's converter interleaves the two halves of every head of q and k of the Llama family; this undoes it."""
    return w.reshape(heads, w.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)


def plain(a, path, out):
    common.run([os.path.join(a.bin, "llama-quantize"), "--allow-requantize", path, out, "F32", str(a.threads)])
    return out


def tensors(a, path, known, tmp):
    """(HF name, type, float32, matrix) of every tensor with two or three dimensions."""
    import gguf
    r = gguf.GGUFReader(path)
    arch = r.fields["general.architecture"].contents()
    heads = r.fields[f"{arch}.attention.head_count"].contents()
    kv = r.fields[f"{arch}.attention.head_count_kv"].contents() if f"{arch}.attention.head_count_kv" in r.fields else heads
    decoded = None
    for t in r.tensors:
        if len(t.shape) < 2:
            continue
        try:
            w = gguf.dequantize(t.data, t.tensor_type).reshape([int(d) for d in reversed(t.shape)])
        except NotImplementedError:
            decoded = decoded or {x.name: x for x in gguf.GGUFReader(plain(a, path, os.path.join(tmp, "plain.gguf"))).tensors}
            w = decoded[t.name].data.reshape([int(d) for d in reversed(t.shape)])
        yield from renamed(t.name, t.tensor_type.name, w, heads if arch == "llama" else 0, kv, known)


def renamed(name, kind, w, heads, kv, known):
    m = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if not m:
        yield {"token_embd.weight": "model.embed_tokens", "output.weight": "lm_head"}.get(name, name), kind, "float32", w
        return
    last = m[2]
    if heads and last in ("attn_q", "attn_k"):
        w = unpermuted(w, heads if last == "attn_q" else kv)
    if w.ndim == 3:
        for e in range(w.shape[0]):
            yield f"model.layers.{m[1]}.mlp.experts.{e}.{NAMES[last.removesuffix('_exps')].split('.')[-1]}", kind, "float32", w[e]
        return
    yield f"model.layers.{m[1]}.{NAMES.get(last, last)}", kind, "float32", w


def check(a, path):
    out, parts = {"checkpoint": path, "runtime": "llama.cpp", "ok": True}, []
    n, differ = token_ids(a, path)
    out |= {"ids": n, "ids_differ_from": differ}
    out["ok"] &= not differ
    parts.append(f"{n} ids " + (f"DIFFER from {', '.join(differ)}" if differ else "equal"))
    with tempfile.TemporaryDirectory() as tmp:
        if not a.no_nll:
            ours = common.evaluated(a.lquant, path, a.text, a.ctx, a.chunks, a.threads, "llamacpp-512", ["--activations", "ggml"] if a.rounded else [])
            ppl, err = perplexity(a, plain(a, path, os.path.join(tmp, "f32.gguf")) if a.plain else path)
            bound = 5e-4 if a.plain else min(5e-3, err / ppl)
            out |= {"rounded": a.rounded, "plain": a.plain, "nll_lquant": ours["nll"], "nll_runtime": math.log(ppl), "difference": ours["nll"] - math.log(ppl), "bound": bound, "chunks": a.chunks,
                    "protocol": ours["protocol"], "bits_per_weight": ours.get("bits_per_weight_all")}
            good = abs(out["difference"]) <= bound
            out["ok"] &= good
            parts.append(f"{ours['protocol']}{', activations rounded alike' if a.rounded else ', decoded' if a.plain else ''}, {a.chunks} chunks: PPL {ppl:.4f} +/- {err:.4f} there, {math.exp(ours['nll']):.4f} lquant, "
                         f"difference {out['difference']:+.2e} nats (bound {bound:.1e}){'' if good else ' TOO FAR'}")
        if not a.no_weights:
            known = common.decoded(a.lquant, path)
            w = common.matrices(tensors(a, path, known, tmp), known)
            out |= w
            out["ok"] &= not w["bad_matrices"] and not w["not_compared"]
            parts.append(f"{w['weights_differing']} of {w['weights']} weights differ in {w['bad_matrices']} of {w['matrices']} matrices "
                         f"({', '.join(f'{k} {t}' for t, k in sorted(w['kinds'].items()))}), {len(w['not_compared'])} not compared {' '.join(w['not_compared'][:3])}")
    print(f"{path}: llama.cpp: {'; '.join(parts)}: {'ok' if out['ok'] else 'FAILED'}", flush=True)
    return out


def main():
    a, status = arguments(), 0
    sys.path[:0] = [a.gguf_py] if a.gguf_py else []
    for path in a.gguf:
        try:
            out = check(a, path)
            status = max(status, 0 if out["ok"] else 1)
        except (SystemExit, Exception) as e:
            out, status = {"checkpoint": path, "runtime": "llama.cpp", "ok": False, "error": f"{type(e).__name__}: {e}"}, 2
            print(f"{path}: llama.cpp: {type(e).__name__}: {e}: FAILED", flush=True)
        if a.json:
            with open(a.json, "a") as f:
                f.write(json.dumps(out) + "\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
