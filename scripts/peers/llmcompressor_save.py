#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""MODEL quantized by llm-compressor's oneshot (data-free) and saved compressed, for scripts/peers/check_ct.py to read.

    llmcompressor_save.py MODEL OUT --scheme W4A16|W4A16_ASYM|W8A8|FP8_DYNAMIC|FP8_BLOCK|NVFP4A16|MXFP4A16 [--dtype bfloat16]

--scheme A+B: B for down_proj, A for the rest. Tried with llmcompressor 0.14, compressed-tensors 0.20, transformers 5.23."""
import argparse
import os
import shutil

os.environ["CUDA_VISIBLE_DEVICES"] = ""


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("out")
    p.add_argument("--scheme", default="W4A16")
    p.add_argument("--dtype", default="float32")
    a = p.parse_args()
    import torch
    torch.set_num_threads(2)
    from compressed_tensors.quantization import preset_name_to_scheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=getattr(torch, a.dtype))
    names = a.scheme.split("+")
    groups = {"group_0": preset_name_to_scheme(names[-1], [r"re:.*down_proj$"])} if len(names) > 1 else {}
    groups["group_1"] = preset_name_to_scheme(names[0], ["Linear"] if len(names) == 1 else [r"re:.*(q|k|v|o|gate|up)_proj$"])
    oneshot(model=model, recipe=[QuantizationModifier(config_groups=groups, ignore=["lm_head"])], pipeline="datafree")
    model.save_pretrained(a.out, save_compressed=True)
    for f in ("tokenizer.json", "tokenizer_config.json"):
        if os.path.exists(os.path.join(a.model, f)):
            shutil.copy(os.path.join(a.model, f), a.out)


if __name__ == "__main__":
    main()
