# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""A golden checkpoint folder for tests/format_folder.h: config.json, model.safetensors.zst, weights.safetensors.zst (needs the zstd command)."""
import json
import os
import subprocess

from safetensors.torch import save


def write(folder, config, stored, weights, beside={}):
    os.makedirs(folder, exist_ok=True)
    for name, text in ({"config.json": config} | beside).items():
        with open(os.path.join(folder, name), "w") as f:
            json.dump(text, f, indent=1)
    for file, tensors in (("model", stored), ("weights", weights)):
        data = save({k: v.contiguous() for k, v in tensors.items()}, {"format": "pt"})
        with open(os.path.join(folder, file + ".safetensors"), "wb") as f:
            f.write(data)
        subprocess.run(["zstd", "-19", "-q", "-f", "--rm", f.name], check=True)
        print(folder, file, len(data), "bytes")
