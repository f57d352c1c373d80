#!/usr/bin/env python3
"""Seeds for the fuzz targets: one small file per known way to break a reader, and valid ones to start from.

  gen_fuzz_corpus.py OUT_DIR        (tests/golden/fuzz)

Needs nothing but Python. The cases are those of public reports on other readers: header length 2^63, shapes whose product wraps,
nested metadata, overlapping data, announced counts far beyond the file, nested arrays, dimension 0, nine dimensions.
"""
import os, struct, sys

def st(header, data=b"", length=None):
    h = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(h) if length is None else length) + h + data

def t(name, dtype, shape, a, b):
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{a},{b}]}}'

SAFETENSORS = {
    "valid": st('{"__metadata__":{"format":"pt"},' + t("a.weight", "F16", "[2,2]", 0, 8) + "," + t("b", "U8", "[]", 8, 9) + "}  ", bytes(9)),
    "escapes": st('{' + t("\\u0061\\\"", "F32", "[1]", 0, 4) + "}", bytes(4)),
    "empty": st("{}"),
    "length_2_63": st("{}", length=1 << 63),
    "wraps": st("{" + t("a", "F16", "[4294967296,4294967296]", 0, 0) + "}"),
    "overlap": st("{" + t("a", "U8", "[2]", 0, 2) + "," + t("b", "U8", "[2]", 1, 3) + "}", bytes(3)),
    "hole": st("{" + t("a", "U8", "[2]", 1, 3) + "}", bytes(3)),
    "nested_metadata": st('{"__metadata__":{"a":{"b":"c"}}}'),
    "deep": st('{"a":' + "[" * 500),
    "float_shape": st("{" + t("a", "U8", "[2.0]", 0, 2) + "}", bytes(2)),
    "twice": st("{" + t("a", "U8", "[1]", 0, 1) + "," + t("a", "U8", "[1]", 1, 2) + "}", bytes(2)),
}

def s(text):
    b = text.encode()
    return struct.pack("<Q", len(b)) + b

def head(tensors, kvs, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, kvs)

def info(name, ne, kind, offset):
    return s(name) + struct.pack("<I", len(ne)) + b"".join(struct.pack("<Q", n) for n in ne) + struct.pack("<IQ", kind, offset)

def u32(key, v):
    return s(key) + struct.pack("<II", 4, v)

def array(key, kind, n, body=b""):
    return s(key) + struct.pack("<IIQ", 9, kind, n) + body

def padded(b, data):
    return b + bytes(-len(b) % 32) + bytes(data)

GGUF = {
    "valid": padded(head(2, 3) + s("general.architecture") + struct.pack("<I", 8) + s("llama") + u32("general.alignment", 32)
                    + array("tokens", 8, 2, s("a") + s("")) + info("a", [5], 0, 0) + info("b", [32, 2], 8, 32), 100),
    "numbers": head(0, 4) + array("u8", 0, 3, b"abc") + array("bool", 7, 2, b"\0\1") + array("f64", 12, 1, bytes(8)) + array("i16", 3, 0),
    "version2": head(0, 0, 2),
    "many_tensors": head(1 << 63, 0),
    "many_keys": head(0, (1 << 42) + 1),
    "long_string": head(0, 1) + s("k") + struct.pack("<IQ", 8, 1 << 62) + b"x",
    "nested_array": head(0, 1) + array("k", 9, 1, struct.pack("<IQ", 4, 1)),
    "dimension_0": head(1, 0) + info("a", [0, 4], 0, 0),
    "nine_dimensions": head(1, 0) + info("a", [1] * 9, 0, 0),
    "wraps": head(1, 0) + info("a", [1 << 32, 1 << 32], 0, 0),
    "alignment_0": padded(head(1, 1) + u32("general.alignment", 0) + info("a", [4], 0, 0), 32),
    "unknown_type": head(1, 0) + info("a", [256], 4, 0),
}

for name, files in (("safetensors", SAFETENSORS), ("gguf", GGUF)):
    os.makedirs(f"{sys.argv[1]}/{name}", exist_ok=True)
    for key, data in files.items():
        with open(f"{sys.argv[1]}/{name}/{key}", "wb") as f:
            f.write(data)
