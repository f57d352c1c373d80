#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Quantizes MODEL with GPTQModel on the CPU from the token rows that `lquant gptq --save-tokens ROWS` wrote.

    gptqmodel_gptq.py MODEL ROWS.jsonl OUT [--bits N] [--group N] [--asym] [--best] [--awq]
                      [--set KEY=VALUE ...] [--dtype float32] [--threads N]

Prints one JSON object: seconds of the quantize() call alone (without imports, reading the model, packing and writing), seconds of
loading and of save(), the settings. Without --best every setting but bits, group and symmetry is GPTQModel's default (7.6: group
aware reordering, damping 0.05, no scale search, the model in bf16 while it is calibrated). --best: what its documentation offers for accuracy within GPTQ, that is
activation order (desc_act) and the shrinking scale search (mse, exponent 2.4 as in GPTQ's code); group aware reordering excludes
desc_act and is off then. GPTAQ, FOEM and rotations are other methods and stay out. Made with GPTQModel 7.6.0, torch 2.13.
"""
import argparse
import ast
import json
import os
import time

BEST = {"desc_act": True, "act_group_aware": False, "mse": 2.4}


def arguments():
    a = argparse.ArgumentParser()
    a.add_argument("model")
    a.add_argument("rows")
    a.add_argument("out")
    a.add_argument("--bits", type=int, default=4)
    a.add_argument("--group", type=int, default=64)
    a.add_argument("--asym", action="store_true")
    a.add_argument("--best", action="store_true")
    a.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other field of its QuantizeConfig")
    a.add_argument("--awq", action="store_true", help="its AWQ, with the backend that runs on a CPU")
    a.add_argument("--dtype", choices=["default", "float32", "bfloat16"], default="default", help="of the model while it is calibrated")
    a.add_argument("--threads", type=int, default=2)
    return a.parse_args()


def main():
    a = arguments()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    os.environ["OMP_NUM_THREADS"] = str(a.threads)
    import torch
    torch.set_num_threads(a.threads)
    from gptqmodel import GPTQModel, QuantizeConfig
    try:
        from gptqmodel import __version__ as version
    except ImportError:
        from gptqmodel.version import __version__ as version

    settings = {"bits": a.bits, "group_size": a.group, "sym": not a.asym}
    settings |= {"format": "gptq_v2"} if a.asym else {}
    settings |= BEST if a.best else {}
    backend = {}
    if a.awq:
        from gptqmodel import BACKEND
        settings |= {"method": "awq", "format": "gemm"}
        backend["backend"] = BACKEND.AWQ_TORCH  # the one it chooses itself asks for CUDA
    for text in a.set:
        key, value = text.split("=", 1)
        settings[key] = ast.literal_eval(value)
    with open(a.rows) as f:
        rows = [json.loads(line)["input_ids"] for line in f if line.strip()]
    config = QuantizeConfig(**settings)
    t0 = time.time()
    model = GPTQModel.load(a.model, config, device="cpu", **({} if a.dtype == "default" else {"dtype": getattr(torch, a.dtype)}))
    t1 = time.time()
    model.quantize([{"input_ids": r, "attention_mask": [1] * len(r)} for r in rows], batch_size=1, **backend)
    t2 = time.time()
    model.save(a.out)
    t3 = time.time()
    used = {k: getattr(config, k) for k in ("bits", "group_size", "sym", "desc_act", "act_group_aware", "mse", "damp_percent", "true_sequential")}
    print(json.dumps({"peer": f"gptqmodel {version}", "torch": torch.__version__, "dtype": str(next(model.model.parameters()).dtype),
                      "rows": len(rows), "tokens": sum(map(len, rows)), "threads": a.threads, "seconds": round(t2 - t1, 2),
                      "load_seconds": round(t1 - t0, 2), "save_seconds": round(t3 - t2, 2), "settings": used}), flush=True)
    os._exit(0)  # its worker threads do not always end


if __name__ == "__main__":
    main()
