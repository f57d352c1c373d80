#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""llama.cpp's own converter on a folder whose tokenizer it has no fingerprint of, or that has none.

    hf_to_gguf.py LLAMA_CPP MODEL OUT.gguf [--outtype f32] [--pre gpt-2 | --no-vocab]

LLAMA_CPP: its source folder. --pre: the pre-tokenizer to name when the converter does not know the tokenizer (models/tiny and other
byte-level BPE of GPT-2's pattern: gpt-2). --no-vocab: the file says tokenizer.ggml.model "none".
"""
import json
import runpy
import sys
from pathlib import Path


def main():
    source, model, out, *rest = sys.argv[1:]
    pre = rest[rest.index("--pre") + 1] if "--pre" in rest else "gpt-2"
    kind = rest[rest.index("--outtype") + 1] if "--outtype" in rest else "f32"
    sys.path.insert(0, source)
    sys.path.insert(1, str(Path(source, "gguf-py")))
    from conversion.base import ModelBase, TextModel
    load = ModelBase.load_hparams

    def with_raw(folder, *rest, **more):  # transformers 5 moves keys that the converter asks for (rotary_pct)
        return {**load(folder, *rest, **more), **json.loads(Path(folder, "config.json").read_text())}

    ModelBase.load_hparams = staticmethod(with_raw)
    known = TextModel.get_vocab_base_pre

    def base_pre(self, tokenizer):
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            return pre

    TextModel.get_vocab_base_pre = base_pre
    if "--no-vocab" in rest:
        get = TextModel.__getattribute__
        TextModel.__getattribute__ = lambda self, name: self._set_vocab_none if name == "set_vocab" else get(self, name)
    sys.argv = [str(Path(source, "convert_hf_to_gguf.py")), model, "--outfile", out, "--outtype", kind]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
