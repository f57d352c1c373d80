#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""F32 files made by llama.cpp's own converter, read by lquant: tensors and logits of the folder they were made of.

    check_gguf_converter.py LQUANT TOOL_LOGITS LLAMA_CPP OUTDIR [FOLDER ...]

FOLDER: models in F32 (default: tests/golden/forward); LLAMA_CPP: its source folder. For each: convert_hf_to_gguf.py (without vocabulary), then
logits by tests/tool_logits of both, and every tensor of `lquant convert --dtype f32` of the file against the folder's. Gains of Gemma may
come back rounded: the file holds 1 + w. Ends with 1 when something differs that the converter did not leave out."""
import glob, json, os, re, shutil, subprocess, sys
import numpy as np
from safetensors.numpy import load_file

lquant, tool, llama, out = sys.argv[1:5]
here = os.path.dirname(os.path.abspath(__file__))
folders = sys.argv[5:] or sorted(glob.glob(os.path.join(here, "../../tests/golden/forward/*")))
TOKENS = 24


def run(*args):
    return subprocess.run([str(a) for a in args], capture_output=True, text=True)


def logits(model, ids, path):
    if os.path.exists(path):
        os.remove(path)
    r = run(tool, model, ids, path)
    return (np.fromfile(path, np.float32), "") if not r.returncode else (None, r.stderr.strip().splitlines()[-1])


def prepared(folder, name):
    """A copy whose config.json is as transformers saves it (the converter wants all keys) and with the tensors alone beside it."""
    from transformers import AutoConfig
    copy = f"{out}/{name}.hf"
    shutil.rmtree(copy, ignore_errors=True)
    os.makedirs(copy)
    shutil.copy(f"{folder}/model.safetensors", copy)
    for beside in glob.glob(f"{folder}/tokenizer*"):
        shutil.copy(beside, copy)
    given = json.load(open(f"{folder}/config.json"))
    config = AutoConfig.from_pretrained(folder).to_dict()
    if given.get("multi_query") and not given.get("new_decoder_architecture"):
        given["num_kv_heads"] = 1  # as the published Falcon 7B has it by another name
    json.dump({**config, **given}, open(f"{copy}/config.json", "w"))
    return copy


def differing(folder, back):
    a = {}
    for f in glob.glob(f"{folder}/*.safetensors"):
        if not f.endswith("golden.safetensors"):
            a.update(load_file(f))
    b, odd = load_file(f"{back}/model.safetensors"), []
    tail = lambda n: re.sub(r"^(transformer|model|language_model\.model|model\.language_model)\.", "", n)
    named = {tail(k): v for k, v in b.items()}
    for k, v in a.items():
        w = named.get(tail(k))
        if w is None:
            odd.append(f"{k} is gone")
        elif w.shape != v.shape or not (np.array_equal(w, v) or (v.ndim == 1 and np.array_equal(w + np.float32(1), v + np.float32(1)))):
            odd.append(f"{k} differs")
    return odd


bad = 0
np.array([(i * 7 + 3) % 64 for i in range(TOKENS)], np.int32).tofile(f"{out}/ids")
for folder in folders:
    name = os.path.basename(folder.rstrip("/"))
    file = f"{out}/{name}.theirs.gguf"
    try:
        copy = prepared(folder, name)
    except Exception as e:
        print(f"{name}: transformers: {str(e).splitlines()[0][:150]}", flush=True)
        continue
    r = run(sys.executable, f"{here}/hf_to_gguf.py", llama, copy, file, "--no-vocab")
    if r.returncode or not os.path.exists(file):
        print(f"{name}: converter: {(r.stderr or r.stdout).strip().splitlines()[-1][:150]}", flush=True)
        continue
    want, _ = logits(folder, f"{out}/ids", f"{out}/a")
    got, why = logits(file, f"{out}/ids", f"{out}/b")
    if got is None:
        print(f"{name}: NOT READ: {why[:200]}", flush=True)
        bad += 1
        continue
    off = np.abs(got - want).max() / np.abs(want).max()
    r = run(lquant, "convert", "-q", "--overwrite", "--dtype", "f32", file, f"{out}/back")
    odd = differing(folder, f"{out}/back") if not r.returncode else [r.stderr.strip().splitlines()[-1]]
    bad += off > 1e-5
    print(f"{name}: logits within {off:.1e}; tensors: {'equal' if not odd else f'{len(odd)} not, ' + odd[0][:120]}", flush=True)
sys.exit(bad > 0)
