#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""MODEL quantized by AutoRound without tuning (its RTN) and saved by its packers, for lquant's readers.

    autoround_save.py MODEL OUT FORMAT:SCHEME ...         e.g. auto_gptq:W4A16 auto_awq:W4A16 llm_compressor:FP8_STATIC mlx:W4A16

One folder OUT/FORMAT-SCHEME each. Run by the Python of scripts/peers_env.sh DIR compressed-tensors. Tried with auto-round 0.16.1."""
import os
import sys
import traceback

os.environ["CUDA_VISIBLE_DEVICES"] = ""


def main(model, out, kinds):
    import torch
    torch.set_num_threads(2)
    from auto_round import AutoRound
    status = 0
    for kind in kinds:
        fmt, scheme = kind.split(":")
        folder = os.path.join(out, f"{fmt}-{scheme}")
        try:
            AutoRound(model, scheme=scheme, iters=0, disable_opt_rtn=True, low_cpu_mem_usage=False).quantize_and_save(folder, format=fmt)
            print(f"{folder}: saved", flush=True)
        except Exception as e:
            traceback.print_exc()
            print(f"{folder}: {type(e).__name__}: {e}", flush=True)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
