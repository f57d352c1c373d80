#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Every method on the same model, the same calibration rows, the same text: one table.

    methods.py WORK --text TEXT --calibration TEXT NAME=MODEL [NAME=MODEL ...] [--only REGEX] [--table | --into FILE]

One JSON per cell in WORK/cells; what is there is not made again, so a run may be interrupted, extended by --only, and continued.
Several may run beside one another on the same WORK: a cell that another one has begun is left to it.
Checkpoints are deleted once measured (--keep leaves them). Difference to fp in nats per token is paired over chunks (mean and
its standard error); KLD is measured on the first --kld-chunks. A refused recipe is a cell too: its reason stands in the table.
bits/w counts everything a quantized linear stores. Seconds (of all threads together, so that other work on the machine does not count) and
peak memory are the quantizing command's own.
"""
import argparse
import fcntl
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

STATS = "STATS"  # stands for the statistics of the model at hand
GROUPS = {"g64": ["--group-size", "64"], "row": ["--group-size", "-1"]}


def cells():
    """(name, recipe, flags of the quantizer, flags of eval); recipe None: the model itself."""
    yield "fp", None, [], []
    for bits in (4, 3):
        for at, group in GROUPS.items():
            base = ["--bits", str(bits), *group]
            for recipe in ("rtn", "hqq", "gptq", "awq", "awq,gptq"):
                yield f"{recipe}-int{bits}-{at}", recipe, base, []
            yield f"rtn-search-int{bits}-{at}", "rtn", [*base, "--search"], []
            yield f"rtn-imatrix-int{bits}-{at}", "rtn", [*base, "--search", "--stats", STATS], []
            yield f"gptq-asym-int{bits}-{at}", "gptq", [*base, "--asym"], []
            yield f"gptq-rotated-int{bits}-{at}", "gptq", [*base, "--rotate", "hadamard"], []
            yield f"rtn-rotated-int{bits}-{at}", "rtn", [*base, "--rotate", "hadamard"], []
        yield f"squeezellm-lut{bits}", "squeezellm", ["--bits", str(bits)], []
        yield f"squeezellm-dense-lut{bits}", "squeezellm", ["--bits", str(bits), "--sparse", "0"], []
        yield f"gptq-random-calibration-int{bits}-g64", "gptq", ["--bits", str(bits), *GROUPS["g64"], "--calib", "random"], []
    for bits in (8, 2):
        for recipe in ("rtn", "gptq", "awq"):
            yield f"{recipe}-int{bits}-g64", recipe, ["--bits", str(bits), *GROUPS["g64"]], []
    for scheme in ("NF4", "FP4", "MXFP4", "NVFP4"):
        yield f"rtn-{scheme}", "rtn", ["--scheme", scheme], []
        yield f"gptq-{scheme}", "gptq", ["--scheme", scheme], []
    yield "nf4-double", "nf4", ["--scheme", "NF4-DQ"], []
    for scheme in ("FP8", "FP8-tensor", "FP8-block", "FP8-W"):
        yield f"fp8-{scheme}", "rtn", ["--scheme", scheme], []
    for recipe in ("rtn", "smoothquant,rtn", "gptq", "smoothquant,gptq"):
        yield f"{recipe}-W8A8", recipe, ["--scheme", "W8A8"], []
        yield f"{recipe}-W8A8-static", recipe, ["--scheme", "W8A8-static"], []
        yield f"{recipe}-W4A8", recipe, ["--scheme", "W4A8-g64"], []
    for recipe in ("rtn", "gptq"):
        yield f"{recipe}-rotated-W8A8", recipe, ["--scheme", "W8A8", "--rotate", "hadamard"], []
    yield "int8", "int8", [], []
    yield "int8-per-token", "int8", ["--compat", "none"], []
    yield "int8-static", "int8", ["--static"], []
    yield "zeroquant-W8A8", "zeroquant", ["--scheme", "W8A8"], []
    yield "zeroquant-W4A8", "zeroquant", ["--scheme", "W4A8-g64"], []
    yield "zeroquant-W4A8-lorc8", "zeroquant", ["--scheme", "W4A8-g64", "--lorc", "8"], []
    yield "ternary", "ternary", ["--force"], []  # BitNet's rule, one scale
    for fit in ("optimal", "gptq"):
        yield f"ternary-{fit}-g64", "ternary", ["--group-size", "64", "--force", "--fit", fit], []
    yield "binary-g64", "binary", ["--group-size", "64", "--force"], []
    yield "sparsegpt-2:4", "sparsegpt", ["--pattern", "2:4"], []
    yield "wanda-2:4", "wanda", ["--pattern", "2:4"], []
    yield "sparsegpt-0.5", "sparsegpt", ["--sparsity", "0.5"], []
    yield "wanda-0.5", "wanda", ["--sparsity", "0.5"], []
    yield "sparsegpt-2:4-int4-g64", "sparsegpt", ["--pattern", "2:4", "--scheme", "int4-g64"], []
    for kv in ("int8", "fp8", "int4"):
        yield f"kv-{kv}", None, [], ["--kv", kv]


def run(command, log):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    log.write_text(" ".join(command) + "\n" + done.stderr[-20000:])
    return done.returncode, done.stdout, (done.stderr.strip().splitlines() or [""])[-1], seconds


def paired(a, b):
    d = [x - y for x, y in zip(a["chunk_nll"], b["chunk_nll"], strict=True)]
    mean = sum(d) / len(d)
    return mean, math.sqrt(sum((x - mean) ** 2 for x in d) / max(len(d) - 1, 1) / len(d))


def evaluate(a, path, flags, log):
    command = [a.lquant, "eval", str(path), "-f", a.text, "--chunks", str(a.chunks), "-t", str(a.threads), "--json", "-q", *flags]
    if a.ctx:
        command += ["--ctx", str(a.ctx)]
    code, out, last, _ = run(command, log)
    return json.loads(out) if code == 0 else None, last


def statistics(a, model):
    """Of the calibration rows in the unquantized model, made once."""
    path = Path(a.work) / f"{Path(model).name}.stats"
    if not path.exists():
        own = f"{path}.{os.getpid()}"
        command = [a.lquant, "calibrate", model, "-o", own, "--nsamples", str(a.nsamples), "-l", str(a.seqlen), "-t", str(a.threads), "-q"]
        subprocess.run(command + (["-f", a.calibration] if a.calibration else []), check=True, stdout=subprocess.DEVNULL)
        os.replace(own, path)
    return str(path)


def measure(a, model, name, recipe, flags, eval_flags):
    flags = [statistics(a, model) if f == STATS else f for f in flags]
    work, cell, path = Path(a.work), {"name": name, "recipe": recipe, "flags": flags + eval_flags}, model
    log = work / "log" / re.sub(r"[^\w.-]", "_", f"{Path(model).name}-{name}")
    if recipe:
        home = log.with_suffix(".out")
        shutil.rmtree(home, ignore_errors=True)  # of a run that was killed
        home.mkdir()
        path, report = home / "out.lqt", home / "report.json"
        command = [a.lquant, recipe, *flags, "--nsamples", str(a.nsamples), "-l", str(a.seqlen), "-t", str(a.threads), "-q", "--report", str(report)]
        command += ["--format", "safetensors" if recipe in ("sparsegpt", "wanda") and "--scheme" not in flags else "lqt", "--max-fallback", "100"]
        if a.calibration and "--calib" not in flags and "--stats" not in flags:
            command += ["-f", a.calibration]
        code, _, last, cell["seconds"] = run([*command, model, str(path)], log.with_suffix(".quantize"))
        if code:
            return {**cell, "exit": code, "why": last}
        r = json.loads(report.read_text())
        cell |= {"peak_memory": r["peak_memory"], "fallbacks": r["fallbacks"]}
    extra = ["--kld", "--base", model, "--kld-chunks", str(a.kld_chunks)] if (recipe or eval_flags) and a.kld_chunks else []
    cell["eval"], last = evaluate(a, path, [*eval_flags, *extra], log.with_suffix(".eval"))
    if not cell["eval"]:
        return {**cell, "exit": 1, "why": last}
    cell["kld"] = cell["eval"].get("kld")
    if not a.keep:
        shutil.rmtree(log.with_suffix(".out"), ignore_errors=True)
    return {**cell, "exit": 0}


def save(path, make):
    """Makes the cell unless another process is at it: the lock is on the file the cell is written to, and ends with its process."""
    part = path.with_suffix(".part")
    with part.open("a") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        if not part.exists() or path.exists() and not json.loads(path.read_text())["exit"]:
            return None  # finished by another one between our look and our lock
        cell = make()
        f.truncate(0)
        f.write(json.dumps(cell, indent=1))
        f.flush()
        os.replace(part, path)
        return cell


HEAD = ["| cell | bits/w | perplexity | over fp, nats | KLD | quantize, CPU s | peak MB |", "|---|---|---|---|---|---|---|"]


def row(c, fp):
    if c["exit"]:
        return f"| {c['name']} | | refused ({c['exit']}): {c['why']} | | | | |"
    e, k = c["eval"], c.get("kld")
    over = "{:+.4f} ± {:.4f}".format(*paired(e, fp)) if fp and e is not fp else ""
    kld = f"{k['mean']:.4f}" if k else ""
    done = f"{c['seconds']:.0f} | {c['peak_memory'] / 1e6:.0f}" if "seconds" in c else "|"
    return f"| {c['name']} | {e['bits_per_weight']:.3f} | {e['perplexity']:.3f} | {over} | {kld} | {done} |"


def measured(a, title):
    """{cell: row} of what WORK holds of one model."""
    found = {c["name"]: c for c in (json.loads(p.read_text()) for p in sorted((Path(a.work) / "cells" / title).glob("*.json")))}
    fp = found.get("fp", {}).get("eval")
    return {name: row(c, fp) for name, c in found.items()}


def in_order(rows):
    return [rows[name] for name, *_ in cells() if name in rows]


def table(a, models):
    for title in models:
        rows = measured(a, title)
        if rows:
            print("\n".join(["", f"### {title}", "", *HEAD, *in_order(rows)]))


def into(a, models):
    """The rows of each model's section in a document; those of cells measured elsewhere, on a machine that is gone, say, stay."""
    lines, title, rows, out = Path(a.into).read_text().splitlines(), None, {}, []
    for line in [*lines, ""]:
        if title and not line.startswith("|") and rows:
            out += [*HEAD, *in_order(rows | measured(a, title))]
            title, rows = None, {}
        if title and line.startswith("|"):
            rows[line.split("|")[1].strip()] = line
            continue
        if line.startswith("### ") and line[4:] in models:
            title = line[4:]
        out.append(line)
    Path(a.into).write_text("\n".join(out[:-1]) + "\n")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("work")
    p.add_argument("models", nargs="+", metavar="NAME=MODEL")
    p.add_argument("--text", required=True)
    p.add_argument("--calibration")
    p.add_argument("--lquant", default=str(Path(__file__).resolve().parents[2] / "build" / "lquant"))
    p.add_argument("--chunks", type=int, default=16)
    p.add_argument("--kld-chunks", type=int, default=4)
    p.add_argument("--ctx", type=int, default=0)
    p.add_argument("--nsamples", type=int, default=32)
    p.add_argument("--seqlen", type=int, default=512)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--only", default="")
    p.add_argument("--retry", action="store_true", help="measure refused cells again")
    p.add_argument("--keep", action="store_true")
    p.add_argument("--table", action="store_true", help="print what is there and measure nothing")
    p.add_argument("--into", metavar="FILE", help="put what is there into the tables of a Markdown file and measure nothing")
    a = p.parse_args()
    models = dict(m.split("=", 1) for m in a.models)
    if a.into:
        return into(a, models)
    for title, model in models.items():
        home = Path(a.work) / "cells" / title
        home.mkdir(parents=True, exist_ok=True)
        (Path(a.work) / "log").mkdir(exist_ok=True)
        for name, recipe, flags, eval_flags in cells():
            path = home / (re.sub(r"[^\w.-]", "_", name) + ".json")
            refused = a.retry and path.exists() and json.loads(path.read_text())["exit"]
            if a.table or (path.exists() and not refused) or not re.search(a.only, name):
                continue
            cell = save(path, lambda: measure(a, model, name, recipe, flags, eval_flags))
            if not cell:
                continue
            print(f"{title} {name}: " + (cell["why"] if cell["exit"] else f"ppl {cell['eval']['perplexity']:.3f}"), file=sys.stderr, flush=True)
    table(a, models)


if __name__ == "__main__":
    main()
