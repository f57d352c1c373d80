# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""GPTQModel's own loader with its torch kernels (gptq, gptq_v2, awq)."""
import os

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
import torch
from runtime_transformers import dtype_of, longest, nlls, weights  # noqa: F401: the loaded model is an ordinary transformers one

NAME = "gptqmodel"


def version():
    import importlib.metadata
    return f"GPTQModel {importlib.metadata.version('gptqmodel')}, transformers {importlib.metadata.version('transformers')}, torch {torch.__version__}"


def load(folder, dtype, threads):
    torch.set_num_threads(threads)
    from common import config_of
    from gptqmodel import BACKEND, GPTQModel
    backend = BACKEND.AWQ_TORCH if config_of(folder)["quantization_config"]["quant_method"] == "awq" and hasattr(BACKEND, "AWQ_TORCH") else \
        BACKEND.TORCH_AWQ if config_of(folder)["quantization_config"]["quant_method"] == "awq" else BACKEND.GPTQ_TORCH
    return GPTQModel.load(folder, device="cpu", backend=backend, **({"dtype": getattr(torch, dtype)} if dtype else {})).model
