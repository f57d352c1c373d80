# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Every architecture of tests/golden/forward as an F32 GGUF in llama.cpp (package xllamacpp, its C API by the given bindings): logits against those of
transformers. What lquant refuses is printed with its sentence. VARIANT:JSON is the variant's config.json with other settings and random weights, made
and run by transformers. --changed: those of tests/test_gguf_archs.c.

  python check_gguf_archs.py LQUANT BINDINGS.py OUTDIR [--changed] [VARIANT[:JSON]...]

BINDINGS.py: llama.cpp's C declarations made by cffi (`ffi`), as the package's build leaves them. The cache of keys and values is F32."""
import glob, json, os, re, subprocess, sys
import numpy as np
from cffi import FFI
from safetensors.numpy import load_file
import xllamacpp

lquant, bindings, outdir = sys.argv[1:4]
ns = {"__file__": bindings, "__name__": "b"}
exec(open(bindings).read(), ns)
ffi = ns["ffi"]
lib = ffi.dlopen(glob.glob(os.path.dirname(xllamacpp.__file__) + "/*.abi3.so")[0])
quiet = ffi.callback("void(enum ggml_log_level, char *, void *)", lambda *a: None)
lib.llama_log_set(quiet, ffi.NULL)
lib.llama_backend_init()
root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tests/golden/forward")


def logits(path, ids, vocab):
    p = lib.llama_model_default_params()
    p.n_gpu_layers = 0
    m = lib.llama_model_load_from_file(path.encode(), p)
    if m == ffi.NULL:
        return None
    c = lib.llama_context_default_params()
    c.n_ctx = c.n_batch = c.n_ubatch = len(ids)
    c.n_threads = c.n_threads_batch = 1
    c.type_k = c.type_v = 0
    c.flash_attn_type = 0
    ctx = lib.llama_init_from_model(m, c)
    b = lib.llama_batch_init(len(ids), 0, 1)
    b.n_tokens = len(ids)
    for i, x in enumerate(ids):
        b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = int(x), i, 1, 1
        b.seq_id[i][0] = 0
    assert lib.llama_decode(ctx, b) == 0
    out = np.frombuffer(ffi.buffer(lib.llama_get_logits(ctx), 4 * vocab * len(ids)), dtype=np.float32).reshape(len(ids), vocab).copy()
    lib.llama_free(ctx)
    lib.llama_model_free(m)
    return out


def changed():
    """The table `changed` of tests/test_gguf_archs.c."""
    text = open(os.path.join(root, "../../test_gguf_archs.c")).read()
    table = text[text.index("} changed[] = {"):]
    table = table[:table.index("\n};")]
    for name, parts in re.findall(r'\{"(\w+)", ((?:"(?:[^"\\]|\\.)*"\s*)+)\}', table):
        yield name + ":" + "".join(json.loads(x) for x in re.findall(r'"(?:[^"\\]|\\.)*"', parts))


def made(name, changes, folder):
    """A model of these settings, its logits of the golden ids; None: transformers has no such model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    config = {**json.load(open(f"{root}/{name}/config.json")), **json.loads(changes)}
    os.makedirs(folder, exist_ok=True)
    json.dump(config, open(f"{folder}/config.json", "w"))
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), attn_implementation="eager").eval().float()
    with torch.no_grad():
        for k, v in model.named_parameters():
            v.normal_(0.5 if v.ndim == 1 and "bias" not in k else 0, 0.15)
        ids = load_file(f"{root}/{name}/golden.safetensors")["input_ids"].ravel()
        want = model(torch.tensor(ids[None].astype(np.int64))).logits[0].numpy()
    model.save_pretrained(folder)
    json.dump(config, open(f"{folder}/config.json", "w"))
    return ids, want


failed = 0
variants = [x for x in sys.argv[4:] if x != "--changed"] + (list(changed()) if "--changed" in sys.argv else [])
for variant in variants or sorted(os.listdir(root)):
    name, _, changes = variant.partition(":")
    folder, path = f"{root}/{name}", f"{outdir}/{name}.gguf"
    if changes:
        folder = f"{outdir}/{name}"
        try:
            ids, want = made(name, changes, folder)
        except Exception as e:
            print(f"{variant}: transformers: {type(e).__name__} {str(e)[:200]}", flush=True)
            continue
    r = subprocess.run([lquant, "convert", "--format", "gguf", "--dtype", "f32", "--overwrite", folder, path], capture_output=True, text=True)
    if r.returncode:
        print(f"{variant}: refused: {r.stderr.strip().splitlines()[-1]}", flush=True)
        failed += r.returncode != 4
        continue
    if not changes:
        golden = load_file(f"{folder}/golden.safetensors")
        ids = golden["input_ids"].ravel()
        want = next(v for k, v in golden.items() if k != "input_ids").reshape(len(ids), -1)
    pid = os.fork()  # a model that llama.cpp aborts on takes its process with it
    if not pid:
        got = logits(path, ids, want.shape[1])
        if got is None:
            print(f"{variant}: llama.cpp does not load it", flush=True)
            os._exit(1)
        off = np.abs(got - want).max() / np.abs(want).max()
        said = re.search("(no sliding window|no dynamic rope).*", r.stderr)
        print(f"{variant}: {len(ids)} tokens, logits within {off:.2e} of the largest" + (f" (warned of: {said.group(0)})" if said else ""), flush=True)
        os._exit(int(off > 5e-3 and not said))
    failed += os.waitpid(pid, 0)[1] != 0
sys.exit(failed != 0)
