# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Every architecture of tests/golden/forward as an F32 GGUF in llama.cpp (package xllamacpp, its C API by the given bindings): logits against those of
transformers. What lquant refuses is printed with its sentence.

  python check_gguf_archs.py LQUANT BINDINGS.py OUTDIR [VARIANT...]

BINDINGS.py: llama.cpp's C declarations made by cffi (`ffi`), as the package's build leaves them. The cache of keys and values is F32."""
import glob, json, os, subprocess, sys
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


failed = 0
for variant in sys.argv[4:] or sorted(os.listdir(root)):
    folder, path = f"{root}/{variant}", f"{outdir}/{variant}.gguf"
    r = subprocess.run([lquant, "convert", "--format", "gguf", "--dtype", "f32", "--overwrite", folder, path], capture_output=True, text=True)
    if r.returncode:
        print(f"{variant}: refused: {r.stderr.strip().splitlines()[-1]}", flush=True)
        failed += r.returncode != 4
        continue
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
        print(f"{variant}: {len(ids)} tokens, logits within {off:.2e} of the largest", flush=True)
        os._exit(off > 5e-3)
    failed += os.waitpid(pid, 0)[1] != 0
sys.exit(failed != 0)
