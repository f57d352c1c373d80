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

# Folders of quantized safetensors, as tests/fuzz_modules.c takes them: config, tensors by line, data.
M = "model.layers.0.mlp.up_proj"

def folder(method, tensors, data=b"\x3c\x01", **keys):
    config = ", ".join([f'"quant_method": "{method}"'] + [f'"{k}": {v}' for k, v in keys.items()])
    lines = "".join(f"{M}{suffix} {dtype} {' '.join(map(str, shape))}".rstrip() + "\n" for suffix, dtype, *shape in tensors)
    return b"\0".join([('{"quantization_config": {' + config + "}}").encode(), lines.encode(), data])

def state(text):
    return [(".weight", "U8", 512, 1), (".weight.absmax", "F32", 16), (".weight.quant_map", "F32", 16),
            (".weight.quant_state.bitsandbytes__nf4", "U8", len(text))], text.encode() * 40

def groups(weights, **more):
    extra = "".join(f', "{k}": {v}' for k, v in more.items())
    return '{"group_0": {"targets": ["Linear"], "weights": {' + weights + "}" + extra + "}}"

INT4 = '"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": '
CT4 = [(".weight_packed", "I32", 32, 8), (".weight_scale", "BF16", 32, 2), (".weight_shape", "I64", 2)]
AWQ4 = [(".qweight", "I32", 64, 4), (".qzeros", "I32", 2, 4), (".scales", "F16", 2, 32)]
STATE = '{"quant_type": "nf4", "blocksize": %s, "dtype": "bfloat16", "shape": [%s, %s]}'

MODULES = {
    "awq_group_0": folder("awq", AWQ4, bits=4, group_size=0, version='"gemm"', zero_point="true"),
    "awq_group_huge": folder("awq", AWQ4, bits=4, group_size=1 << 62, version='"gemm"', zero_point="true"),
    "awq_no_columns": folder("awq", [(".qweight", "I32", 64, 0), (".qzeros", "I32", 2, 0), (".scales", "F16", 2, 0)], bits=4, group_size=32, version='"gemm"'),
    "ct_group_0": folder("compressed-tensors", CT4, format='"pack-quantized"', config_groups=groups(INT4 + "0")),
    "ct_shape_negative": folder("compressed-tensors", CT4, b"\xff", format='"pack-quantized"', config_groups=groups(INT4 + "32")),
    "ct_regex": folder("compressed-tensors", CT4, format='"pack-quantized"', config_groups=groups(INT4 + "32").replace("Linear", "re:(a+)+$" + "(" * 200)),
    "ct_actorder": folder("compressed-tensors", CT4 + [(".weight_g_idx", "I32", 64)], format='"pack-quantized"', config_groups=groups(INT4 + '32, "actorder": "group"')),
    "ct_block_0": folder("compressed-tensors", [(".weight", "F8_E4M3", 32, 64), (".weight_scale", "F32", 1, 1)], format='"float-quantized"',
                         config_groups=groups('"num_bits": 8, "type": "float", "symmetric": true, "strategy": "block", "block_structure": [0, 4294967296]')),
    "mlx_bits_33": folder("mlx", [(".weight", "U32", 32, 8), (".scales", "F16", 32, 2), (".biases", "F16", 32, 2)], bits=33, group_size=32).replace(
        b'"quant_method": "mlx", ', b"").replace(b"quantization_config", b"quantization"),
    "mlx_group_5": folder("mlx", [(".weight", "U32", 32, 8), (".scales", "F16", 32, 2), (".biases", "F16", 32, 2)], bits=4, group_size=5).replace(
        b'"quant_method": "mlx", ', b"").replace(b"quantization_config", b"quantization"),
    "fp8_block_0": folder("fp8", [(".weight", "F8_E4M3", 32, 64), (".weight_scale_inv", "F32", 1, 1)], weight_block_size="[0, 128]"),
    "fp8_block_three": folder("fp8", [(".weight", "F8_E4M3", 32, 64), (".weight_scale_inv", "F32", 1, 1)], weight_block_size="[128, 128, 128]"),
    "modelopt_group_3": folder("modelopt", [(".weight", "U8", 16, 64), (".weight_scale", "F32", 32, 2), (".pre_quant_scale", "F16", 64)], quant_algo='"W4A16_AWQ"', group_size=3),
    "modelopt_factors": folder("modelopt", [(".weight", "U8", 16, 64), (".weight_scale", "F32", 32, 1), (".pre_quant_scale", "BF16", 64)], quant_algo='"W4A16_AWQ"', group_size=64),
    "modelopt_nan": folder("modelopt", [(".weight", "U8", 32, 32), (".weight_scale", "F8_E4M3", 32, 4), (".weight_scale_2", "F32")], b"\x7f", quant_algo='"NVFP4"', group_size=16),
    "bnb_shape_wraps": folder("bitsandbytes", *state(STATE % (64, 1 << 32, 1 << 32)), load_in_4bit="true"),
    "bnb_block_0": folder("bitsandbytes", *state(STATE % (0, 32, 32)), load_in_4bit="true"),
    "bnb_block_huge": folder("bitsandbytes", *state(STATE % (1 << 40, 32, 32)), load_in_4bit="true"),
    "bnb_deep": folder("bitsandbytes", *state("[" * 600), load_in_4bit="true"),
    "bnb_scb_nan": folder("bitsandbytes", [(".weight", "I8", 32, 64), (".SCB", "F32", 32), (".weight_format", "U8")], b"\xff", load_in_8bit="true"),
    "bitnet_field_3": folder("bitnet", [(".weight", "U8", 8, 64), (".weight_scale", "F32", 1)], b"\xff", linear_class='"bitlinear"'),
    "bitnet_no_rows": folder("bitnet", [(".weight", "U8", 0, 64), (".weight_scale", "F32", 1)], linear_class='"bitlinear"'),
    "squeezellm_pointers": folder("squeezellm", [(".qweight", "I32", 8, 32), (".lookup_table", "F16", 32, 16), (".rows", "I32", 33), (".cols", "I32", 8), (".vals", "F16", 8)], b"\xff",
                                  wbits=4),
}

for name, files in (("safetensors", SAFETENSORS), ("gguf", GGUF), ("modules", MODULES)):
    os.makedirs(f"{sys.argv[1]}/{name}", exist_ok=True)
    for key, data in files.items():
        with open(f"{sys.argv[1]}/{name}/{key}", "wb") as f:
            f.write(data)
