/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* The lqt container, version 2: every scheme lquant knows, lossless, in one file.
 *
 *     head    16  "LQT\r\n\x1a\n" 0x01, u64 0
 *     frames      zstd frames with content size and checksum, back to back: sidecars, kept tensors in pieces of LQT_PIECE raw
 *                 bytes (the last one shorter), one lq_qtensor_encode() per quantized matrix; in the order they were put
 *     index       one zstd frame of JSON (below)
 *     foot    96  u64 index offset, u64 index bytes, u64 index raw bytes, 64 hex digits = SHA-256 of head, index frame and the
 *                 24 bytes before, "LQT1END\n"
 *
 *     {"version": 2,
 *      "sidecars": [{"name": "config.json", "frames": [[offset, bytes, raw bytes]]}, ...]        by name
 *      "tensors": [{"name": "model.norm.weight", "dtype": "BF16", "shape": [576], "frames": [...]},
 *                  {"name": "...q_proj.weight", "type": "int4-sym-g64", "scheme": "<hex of lq_scheme_encode>",
 *                   "holds": <bytes as lq_qtensor_bytes counts them>, "shape": [576, 576], "frames": [[...]]}]}
 *
 * Frames tile the file from the head to the index without a gap. Foot and index answer everything but data. Integers little-endian. */
#ifndef LQ_LQT_H
#define LQ_LQT_H
#include <stdint.h>

#define LQT_MAGIC "LQT\r\n\x1a\n\x01"
#define LQT_END "LQT1END\n"
enum { LQT_HEAD = 16, LQT_FOOT = 96, LQT_FOOT_SHA = 24, LQT_FOOT_END = 88, LQT_VERSION = 2, LQT_PIECE = 4 << 20, LQT_LEVEL = 3 };
#endif
