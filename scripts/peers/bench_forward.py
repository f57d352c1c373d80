#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Tokens per second of a full-precision forward pass: lquant against transformers fp32, same ids, same threads, interleaved.

    bench_forward.py MODEL [--tokens 2048] [--repeats 3] [--threads 2] [--tool build/tests/tool_logits]

Both run MODEL's blocks and final norm over one sequence of random ids (no logits). lquant is
timed by tool_logits inside its process; transformers with eager torch under no_grad, its default attention (sdpa). Prints the
minimum and the median of `repeats` runs of each, and their ratio.
"""
import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main():
    a = argparse.ArgumentParser()
    a.add_argument("model")
    a.add_argument("--tool", default="build/tests/tool_logits")
    a.add_argument("--tokens", type=int, default=2048)
    a.add_argument("--repeats", type=int, default=3)
    a.add_argument("--threads", type=int, default=2)
    a = a.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(a.threads)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import numpy as np
    import torch
    import transformers
    torch.set_num_threads(a.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32, local_files_only=True).eval()
    n = min(a.tokens, model.config.max_position_embeddings)
    ids = np.random.default_rng(1).integers(0, model.config.vocab_size, n)

    def theirs():
        with torch.no_grad():
            t0 = time.perf_counter()
            model.model(torch.tensor(ids)[None], use_cache=False)
            return time.perf_counter() - t0

    def ours(folder):
        Path(folder, "out").unlink(missing_ok=True)
        r = subprocess.run([a.tool, a.model, f"{folder}/ids", f"{folder}/out", "f32"], capture_output=True, text=True,
                           env=os.environ | {"OMP_NUM_THREADS": str(a.threads)})
        said = re.search(r"([0-9.]+) tokens/s", r.stderr)
        if r.returncode or not said:
            sys.exit(r.stderr)
        return n / float(said[1])

    seconds = {"lquant": [], "transformers": []}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "ids").write_bytes(ids.astype("<i4").tobytes())
        theirs()
        for _ in range(a.repeats):
            seconds["lquant"].append(ours(folder))
            seconds["transformers"].append(theirs())
    print(f"{n} tokens, {a.threads} threads, torch {torch.__version__}, transformers {transformers.__version__}")
    for who, s in seconds.items():
        print(f"{who}: best {n / min(s):.1f} tokens/s, median {n / statistics.median(s):.1f} tokens/s of {len(s)} runs")
    ratio = min(seconds["transformers"]) / min(seconds["lquant"])
    print(f"lquant / transformers: {ratio:.2f} (best), {statistics.median(seconds['transformers']) / statistics.median(seconds['lquant']):.2f} (median)")


if __name__ == "__main__":
    main()
