#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""AWQ, SmoothQuant and GPTQ of llm-compressor on the CPU, from the token rows that `lquant ... --save-tokens ROWS` wrote, and the
perplexity of what they make (the model as it stands in memory after oneshot, its quantization simulated by its own code).

    llmcompressor_methods.py MODEL ROWS.jsonl TEXT --recipe awq|gptq|smoothquant|smoothquant,gptq|rtn --scheme W4A16|W4A16_ASYM|W8A8
                             [--bits N] [--group N] [--alpha X] [--batch N] [--chunks 16] [--ctx 2048] [--threads 2] [--base] [--save DIR]

Prints one JSON object: chunk_nll as `lquant eval --json` has it (gptq-2048: chunks of the text tokenized once, every next token
scored, mean per chunk), seconds of oneshot. --base: the model unquantized. --save DIR: its own compressed checkpoint, for `lquant eval`;
with --chunks 0 nothing is evaluated here. --batch: rows its calibration runs at a time; the search's losses stay the same sums. Tried with llmcompressor 0.14, torch 2.13, fp32.
"""
import argparse
import json
import math
import os
import shutil
import time


def arguments():
    a = argparse.ArgumentParser()
    a.add_argument("model")
    a.add_argument("rows")
    a.add_argument("text")
    a.add_argument("--recipe", default="awq")
    a.add_argument("--scheme", default="W4A16")
    a.add_argument("--bits", type=int, help="other than the scheme's")
    a.add_argument("--group", type=int, default=128)
    a.add_argument("--alpha", type=float, default=0.5)
    a.add_argument("--chunks", type=int, default=16)
    a.add_argument("--ctx", type=int, default=2048)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--batch", type=int, default=1)
    a.add_argument("--save")
    a.add_argument("--base", action="store_true")
    a.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="any other field of the transform's or GPTQ's modifier")
    return a.parse_args()


def recipe(a):
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.smoothquant import SmoothQuantModifier
    from compressed_tensors.quantization import preset_name_to_scheme
    extra = {k: json.loads(v) for k, v in (s.split("=", 1) for s in a.set)}
    scheme = preset_name_to_scheme(a.scheme, ["Linear"])
    if scheme.weights.group_size:
        scheme.weights.group_size = a.group
    scheme.weights.num_bits = a.bits or scheme.weights.num_bits
    where = {"config_groups": {"group_0": scheme}, "ignore": ["lm_head"]}
    steps = []
    parts = a.recipe.split(",")
    for i, part in enumerate(parts):
        mine = extra if i == 0 else {}
        if part == "awq":
            steps += [AWQModifier(**mine)]
        elif part == "smoothquant":
            steps += [SmoothQuantModifier(smoothing_strength=a.alpha, **mine)]
        elif part == "gptq":
            steps += [GPTQModifier(**where, **mine)]
    if parts[-1] != "gptq":
        steps += [QuantizationModifier(**where)]
    return steps


def chunk_nll(torch, model, ids, ctx, chunks):
    out = []
    for i in range(min(chunks, len(ids) // ctx)):
        x = torch.tensor([ids[i * ctx:(i + 1) * ctx]])
        with torch.no_grad():
            logits = model(x).logits[0, :-1].float()
        out.append(torch.nn.functional.cross_entropy(logits, x[0, 1:]).item())
    return out


def main():
    a = arguments()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["OMP_NUM_THREADS"] = str(a.threads)
    import torch
    torch.set_num_threads(a.threads)
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    if not torch.accelerator.is_available():  # its AWQ pins its cache, which needs one
        torch.Tensor.pin_memory = lambda self, *rest: self
    seconds, version = 0, ""
    if not a.base:
        import llmcompressor
        from datasets import Dataset
        with open(a.rows) as f:
            rows = [json.loads(line)["input_ids"] for line in f if line.strip()]
        data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(r) for r in rows]})
        start, version = time.time(), llmcompressor.__version__
        llmcompressor.oneshot(model=model, dataset=data, recipe=recipe(a), max_seq_length=max(map(len, rows)), num_calibration_samples=len(rows),
                              shuffle_calibration_samples=False, batch_size=a.batch)
        seconds = time.time() - start
    out = {"peer": f"llmcompressor {version}", "recipe": "fp" if a.base else a.recipe, "scheme": a.scheme, "group": a.group, "set": a.set,
           "rows": 0 if a.base else len(rows), "seconds": round(seconds, 1)}
    if a.chunks:
        with open(a.text, encoding="utf-8") as f:
            ids = tokenizer(f.read(), verbose=False)["input_ids"]
        nll = chunk_nll(torch, model, ids, a.ctx, a.chunks)
        out |= {"perplexity": math.exp(sum(nll) / len(nll)), "chunks": len(nll), "ctx": a.ctx, "chunk_nll": nll}
    if a.save:
        model.save_pretrained(a.save, save_compressed=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if os.path.exists(os.path.join(a.model, name)):
                shutil.copy(os.path.join(a.model, name), a.save)
    print(json.dumps(out), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
