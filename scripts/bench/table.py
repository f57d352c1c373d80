#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""table.py WORK: the results that quality.sh left in WORK as a Markdown table.

Differences are paired over chunks, as `lquant eval --base` does it: mean of nll_a - nll_b and its standard error, in nats.
"""
import json
import math
import sys
from pathlib import Path


def paired(a, b):
    d = [x - y for x, y in zip(a["chunk_nll"], b["chunk_nll"], strict=True)]
    mean = sum(d) / len(d)
    return mean, math.sqrt(sum((x - mean) ** 2 for x in d) / max(len(d) - 1, 1) / len(d))


def seconds(work, name):
    if (work / f"{name}.peer").exists():
        return f"{json.loads((work / f'{name}.peer').read_text())['seconds']:.1f}"
    return f"{float((work / f'{name}.seconds').read_text()):.1f}" if (work / f"{name}.seconds").exists() else ""


def main():
    work = Path(sys.argv[1])
    results = {p.stem: json.loads(p.read_text()) for p in work.glob("*.json")}
    fp = results.pop("fp")
    print(f"{fp['protocol']}, {fp['chunks']} chunks of {fp['ctx']}, text {fp['text']}; quantize s: wall time, GPTQModel's without loading and saving\n")
    print("| model | bits/w | perplexity | over fp, nats | over lquant's GPTQ, nats | quantize s |")
    print("|---|---|---|---|---|---|")
    print(f"| fp | {fp['bits_per_weight']:.2f} | {fp['perplexity']:.4f} ± {fp['stderr']:.4f} | | | |")

    def order(name):
        method, _, at = name.rpartition("-b")
        bits, _, group = at.partition("-g")
        return group == "-1", -int(bits), ["rtn", "gptq", "gptqmodel-default"].index(method) if method in ("rtn", "gptq", "gptqmodel-default") else 9, name

    for name in sorted(results, key=order):
        r, at = results[name], name[name.rindex("-b"):]
        over = "{:+.4f} ± {:.4f}".format(*paired(r, fp))
        ours = results.get("gptq" + at)
        beside = "" if not ours or ours is r else "{:+.4f} ± {:.4f}".format(*paired(r, ours))
        print(f"| {name} | {r['bits_per_weight']:.3f} | {r['perplexity']:.4f} ± {r['stderr']:.4f} | {over} | {beside} | {seconds(work, name)} |")


if __name__ == "__main__":
    main()
