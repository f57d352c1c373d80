#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""What scripts/check_sass.py reads, on a cubin made here of instruction words that ptxas 13.0 wrote (operands do not matter)."""
import importlib.util
import os
import struct
import sys
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
spec = importlib.util.spec_from_file_location("check_sass", os.path.join(ROOT, "scripts/check_sass.py"))
sass = importlib.util.module_from_spec(spec)
sys.dont_write_bytecode = True
spec.loader.exec_module(sass)

LDG128 = 0x000080082034B981 | 0x001EA8000C1E9D00 << 64
LDG32 = 0x000000080A0A7981 | 0x000164000C1E1900 << 64
HMMA = 0x000000242020723C | 0x000FE400000018FF << 64
FADD = 0x0000000105057221 | 0x000FE20000010000 << 64
LDL = 0x0000000001007983 | 0x000EA80000100800 << 64
EXIT = 0x000000000000794D | 0x000FEA0003800000 << 64
STG = 0x0000000502007986 | 0x0001E2000C101904 << 64
WAIT, NEXT = 0x000000000000782E | 0x000FE20000000000 << 64, 0x000000000000782D | 0x000FE20000000000 << 64
NAME = "_ZN4gemv3runILi4ELi0ELi0ELb1EEEv16lq_device_matrixPKfjN4tile6layoutEPf"


def bra(instructions, arch, predicate=0):
    """A branch that many instructions on from the next one."""
    off = instructions * 4 & (1 << 56) - 1
    word = 0x947 | predicate << 12 | 7 << 87
    return word | (off >> 8 & (1 << 48) - 1) << 34 | (off & 255) << 16 if arch >= 90 else word | (off & (1 << 48) - 1) << 34


def cubin(code):
    text = b"".join(w.to_bytes(16, "little") for w in code)
    names = b"\0.text." + NAME.encode() + b"\0.shstrtab\0"
    at, heads = 64, [struct.pack("<IIQQQQIIQQ", *[0] * 10)]
    heads.append(struct.pack("<IIQQQQIIQQ", 1, 1, 6, 0, at, len(text), 3, 62 << 24, 128, 0))
    heads.append(struct.pack("<IIQQQQIIQQ", len(names) - 10, 3, 0, 0, at + len(text), len(names), 0, 0, 1, 0))
    body = text + names
    head = b"\x7fELF\2\1" + bytes(10) + struct.pack("<HHIQQQIHHHHHH", 2, 190, 1, 0, 0, at + len(body), 0, 64, 0, 0, 64, 3, 2)
    return head + body + b"".join(heads)


def loop(arch):
    """A step that may be left out (two instructions), four products of one load of 32 weights, a way out."""
    return [NEXT, WAIT, FADD, bra(2, arch), FADD, FADD, HMMA, HMMA, LDG128, HMMA, HMMA, bra(2, arch, 1), FADD, bra(-12, arch), EXIT]


class Reader(unittest.TestCase):
    def read(self, code, arch):
        path = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"check_sass.{os.getpid()}.{arch}.cubin")
        with open(path, "wb") as f:
            f.write(cubin(code))
        try:
            return sass.read_cubin(path, arch)[NAME]
        finally:
            os.unlink(path)

    def test_the_shortest_way_round_the_loop_is_counted(self):
        for arch in (80, 90, 120):
            got, registers = self.read(loop(arch), arch)
            self.assertEqual((got["kernel"], registers), ("gemv::run<4,0,0,1>", 62))
            self.assertEqual((got["loop"], got["way"], got["weights"], got["done"]), (12, 10, 32, 32))
            self.assertAlmostEqual(got["per_weight"], 10 / 32)

    def test_a_way_that_skips_the_weights_does_not_count(self):
        code = [FADD, bra(4, 90), HMMA, HMMA, LDG128, HMMA, HMMA, bra(-8, 90), EXIT]
        self.assertEqual(self.read(code, 90)[0]["way"], 8)

    def test_other_loads_and_local_memory_are_told_apart(self):
        got, _ = self.read([LDG32, LDG128, LDL, EXIT], 90)
        self.assertEqual((got["wide"], got["local"]), (1, 1))
        self.assertNotIn("per_weight", got)

    def test_kernels_wait_before_they_touch_what_others_write(self):
        for code, said in (([NEXT, WAIT, LDG32, STG, EXIT], None), ([NEXT, LDG128, WAIT, STG, EXIT], None), ([NEXT, EXIT, WAIT, STG, EXIT], "ends before"), ([NEXT, WAIT, STG, WAIT, EXIT], "stores before"),
                           ([NEXT, STG, EXIT], "never waits"), ([WAIT, STG, EXIT], "never lets")):
            got = self.read(code, 90)[0]["early"]
            self.assertTrue(got is None if said is None else got and got.startswith(said), (code, got))
        self.assertTrue(sass.too_early("block::each_run", [0x82d, 0x981, 0x82e]).startswith("loads before"))
        self.assertNotIn("early", self.read([STG, EXIT], 89)[0])

    def test_what_exceeds_is_said(self):
        table = {"registers": {"others": 80}, "per_weight": {"gemv::run<4,0,0,1>": {"registers": 61, "all": 0.3}}}
        got, registers = self.read(loop(90) + [LDL], 90)
        said = sass.judge(table, "90", got, registers, [62, 8, 4])
        self.assertEqual(len(said), 4, said)
        table["per_weight"] = {"gemv::run<4,0,0,1>": {"registers": 62, "all": 0.32}}
        self.assertEqual(len(sass.judge(table, "90", self.read(loop(90), 90)[0], 62, [62, 0, 0])), 0)
        table["per_weight"] = {}
        self.assertIn("no budget", sass.judge(table, "90", got, 62, None)[1])

    def test_a_hot_kernel_needs_a_row_and_keeps_it(self):
        table = {"registers": {"others": 80}, "per_weight": {}, "per_mac": {"gemm::run<4,0,0,0>": {"registers": 64, "wide": 3, "all": 8.5}}}
        got = {"kernel": "gemm::run<4,0,0,0>", "local": 0, "wide": 2, "per_mac": 9.0}
        said = sass.judge(table, "90", got, 72, [72, 0, 0])
        self.assertEqual([s.split(": ", 1)[1] for s in said], ["72 registers, at most 64", "9.00 instructions per product, at most 8.50", "2 loads of 128 bits, at least 3"])
        self.assertIn("no budget", sass.judge({**table, "per_mac": {}}, "90", got, 72, [72, 0, 0])[0])
        code = [HMMA, HMMA, FADD, bra(-4, 90), EXIT]
        self.assertEqual(sass.busiest_loop(code, 90, sass.mma), (0, 3))

    def test_products_that_are_missing_are_said(self):
        code = [NEXT, WAIT, HMMA, LDG128, bra(-3, 90), EXIT]
        table = {"registers": {"others": 80}, "per_weight": {"gemv::run<4,0,0,1>": {"all": 9}}}
        self.assertIn("multiplies 8 of 32", sass.judge(table, "90", self.read(code, 90)[0], 62, None)[0])

    def test_a_damaged_file_is_refused(self):
        whole = cubin(loop(90))
        for n in range(0, len(whole), 7):
            with self.assertRaises((sass.Bad, struct.error)):
                sass.sections(whole[:n])


if __name__ == "__main__":
    unittest.main()
