#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Logits of lquant against transformers fp32, and tokens per second of both.

check_forward.py [--tool build/tests/tool_logits] [--tokens N] [--modes stored,f32,decode] MODEL [MODEL ...]

MODEL: a Hugging Face folder or a GGUF file (transformers dequantizes it). Fails when max|d| > 1e-4 max|logit|.
"""
import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def load(path):
    p = Path(path)
    where = dict(pretrained_model_name_or_path=str(p.parent), gguf_file=p.name) if p.is_file() else dict(pretrained_model_name_or_path=str(p))
    return AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, local_files_only=True).eval()


def ours(tool, path, ids, mode):
    with tempfile.TemporaryDirectory() as d:
        Path(d, "ids").write_bytes(ids.astype("<i4").tobytes())
        r = subprocess.run([tool, path, f"{d}/ids", f"{d}/out", mode], capture_output=True, text=True)
        if r.returncode:
            sys.exit(r.stderr)
        return np.fromfile(f"{d}/out", "<f4").reshape(len(ids), -1), r.stderr.strip()


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--tool", default="build/tests/tool_logits")
    a.add_argument("--tokens", type=int, default=256)
    a.add_argument("--modes", default="stored,f32,decode")
    a.add_argument("models", nargs="+")
    o = a.parse_args()
    bad = False
    for path in o.models:
        model = load(path)
        n = min(o.tokens, model.config.max_position_embeddings)
        ids = np.random.default_rng(1).integers(0, model.config.vocab_size, n)
        with torch.no_grad():
            model(torch.tensor(ids)[None])
            t0 = time.time()
            hidden = model.base_model(torch.tensor(ids)[None]).last_hidden_state
            seconds = time.time() - t0
            want = model.lm_head(hidden)[0].numpy()
        for mode in o.modes.split(","):
            got, said = ours(o.tool, path, ids, mode)
            off = float(np.abs(got - want).max() / np.abs(want).max())
            bad |= not off <= 1e-4
            print(f"{path} {mode}: max|d|/max|logit| {off:.2e}, lquant {said}, transformers {n / seconds:.1f} tokens/s", flush=True)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
