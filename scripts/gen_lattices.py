#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""core/lattices.h from the gguf package: the points that ggml's IQ1, IQ2 and IQ3 blocks name by number.

  gen_lattices.py > core/lattices.h

Made with gguf 0.19.0 (scripts/requirements-peers.txt). A point is one 16-bit number: the level of its element i is bits 2i, 2i + 1 (8
elements of 3 levels) or 3i .. 3i + 2 (4 elements of 8).
"""
import numpy as np
from gguf import quants as q

TABLES = [("iq1", q.IQ1_S, "IQ1_S and IQ1_M; levels -1, 0, 1"), ("iq2_xxs", q.IQ2_XXS, "levels 8, 25, 43"), ("iq2_xs", q.IQ2_XS, "the same"),
          ("iq2_s", q.IQ2_S, "the same"), ("iq3_xxs", q.IQ3_XXS, "levels 4, 12 .. 52, 62"), ("iq3_s", q.IQ3_S, "levels 1, 3 .. 15")]

print("""/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Points that ggml's IQ1, IQ2 and IQ3 blocks name by number (ggml-common.h): element i of a point is level bits 2i, 2i + 1 of its number, or
 * 3i .. 3i + 2 where there are four elements of eight levels. scripts/gen_lattices.py. */
#ifndef LQ_LATTICES_H
#define LQ_LATTICES_H
#include <stdint.h>""")
for name, kind, what in TABLES:
    kind.init_grid()
    grid = kind.grid.reshape(kind.grid_shape)
    levels = np.array(kind.grid_map, dtype=np.float32)
    width = 2 if len(levels) == 3 else 3
    index = np.searchsorted(levels, grid)
    assert (levels[index] == grid).all()
    points = (index.astype(np.int64) << (width * np.arange(grid.shape[1]))).sum(axis=1)
    print(f"\nstatic const uint16_t {name}_points[{len(points)}] = {{ /* {what} */")
    for i in range(0, len(points), 16):
        print("    " + " ".join(f"{p:#06x}," for p in points[i:i + 16]))
    print("};")
print("#endif")
