# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Token ids of a GGUF in llama.cpp against those of its tokenizer.json in `tokenizers`.

  python check_gguf_tokens.py LLAMA_TOKENIZE TOKENIZER.json MODEL.gguf TEXT..."""
import json, subprocess, sys
from tokenizers import Tokenizer

tool, tokenizer, model = sys.argv[1:4]
t = Tokenizer.from_file(tokenizer)
t.no_truncation()
bad = 0
for path in sys.argv[4:]:
    want = t.encode(open(path, encoding="utf-8", newline="").read(), add_special_tokens=False).ids
    out = subprocess.run([tool, "-m", model, "-f", path, "--ids", "--no-bos", "--no-escape", "--log-disable"], capture_output=True, text=True)
    got = json.loads([x for x in out.stdout.splitlines() if x.startswith("[")][-1])
    at = next((i for i, (x, y) in enumerate(zip(want, got)) if x != y), min(len(want), len(got)))
    bad += want != got
    print(f"{path}: {len(want)} ids", "equal" if want == got else f"differ from id {at}: {want[at:at + 5]} in tokenizers, {got[at:at + 5]} in llama.cpp ({t.decode(want[max(0, at - 3):at + 5])!r})")
sys.exit(bad != 0)
