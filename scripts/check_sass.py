#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Machine code of the CUDA kernels against budgets, without a GPU: compiles kernels/cuda for each architecture and reads the cubins.

    scripts/check_sass.py [--build DIR] [--archs 75,80,...] [--table] [CUBIN ...]

  every kernel        no spills, no stack, no local loads or stores; registers within those its launch bounds leave; 9.0 and later: it lets the next one begin and
                      waits for the one in front before it ends, stores or loads (kernels of weights: those loads may come before)
  kernels of weights  (scripts/sass_budgets.json) the shortest way round the main loop that loads weights all the way: instructions per weight within the budget, weights
                      loaded by 128 bits at a time, as many products (mma) on the way as the weights need
  other hot kernels   instructions of the loop with the most products (mma; fused multiply-adds of kernels that have none) per product of it, registers, and
                      how many loads of 128 bits there are at least; --rows prints these rows as measured, with a small margin

Exit 0: all within; 1: something exceeds, one line each; 77: nothing to compile with.

A cubin is an ELF of 64 bits; the code of kernel K is section .text.K, its instructions 16 bytes (the CUDA binary utilities' documents name
them). What is read of one here, found by assembling and looking:

    bits 0-11    operation and kind of operands (the constants below)
    bits 12-15   predicate, 15 negates, 7 is true
    bits 73-75   size of a load: 4 = 32 bits, 5 = 64, 6 = 128
    bits 34-81   of a branch: bytes to go, from the next instruction, in fours; 9.0 and later: that times 256, plus bits 16-23
"""
import argparse
import concurrent.futures
import hashlib
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ARCHS = ["75", "80", "86", "89", "90", "100", "120"]
LDG = (0x381, 0x981)  # 7.5; later ones have a descriptor
LDL, STL, EXIT = 0x983, 0x387, 0x94d
STG = (0x386, 0x986)
ACQBULK, PREEXIT = 0x82e, 0x82d  # griddepcontrol.wait, .launch_dependents
BRA, BRA_UNIFORM = 0x947, 0x547
HMMA, IMMA = 0x23c, 0x237
TRUE = 7
OF_WEIGHTS = ("gemv::run", "idot::run")
HOT = ("gemv::run16", "idot::run16", "gemm::run", "idot_many::run", "attn::run", "attn::mma_run", "dense::few_run", "dense::pick_run", "dense::many_run")
EARLY = ("gemv::run", "gemv::run16", "idot::run", "idot::run16", "gemm::run", "idot_many::run")  # load weights and their parameters before they wait
FFMA = (0x223, 0x423, 0x823, 0xc23)
ISSUE = 6.9  # instructions of a thread per byte that an H200 reads: 132 x 4 x 32 x 1.755 GHz over 4.3 TB/s
PTX = {"75": "75", "80": "80", "86": "80", "89": "80"}  # later ones share that of 9.0: what nvcc's first half makes is the same for them


class Bad(Exception):
    pass


def sections(data):
    """name -> (bytes, sh_info)"""
    if data[:4] != b"\x7fELF" or data[4] != 2 or len(data) < 64:
        raise Bad("not an ELF of 64 bits")
    shoff, = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    if size != 64 or shoff + size * count > len(data) or names >= count:
        raise Bad("section headers end behind the file")
    heads = [struct.unpack_from("<IIQQQQIIQQ", data, shoff + i * size) for i in range(count)]
    text = data[heads[names][4]:heads[names][4] + heads[names][5]]
    out = {}
    for h in heads:
        if h[1] != 8 and h[4] + h[5] > len(data):
            raise Bad("a section ends behind the file")
        name = text[h[0]:text.index(b"\0", h[0])].decode()
        out[name] = (data[h[4]:h[4] + h[5]] if h[1] != 8 else b"", h[7])
    return out


def instructions(code):
    if len(code) % 16:
        raise Bad("code is no whole number of instructions")
    return [int.from_bytes(code[i:i + 16], "little") for i in range(0, len(code), 16)]


def op(word):
    return word & 0xfff


def target(word, at, arch):
    """Index of the instruction a branch at index `at` goes to."""
    off = word >> 34 & (1 << 48) - 1
    off -= (off >> 47) << 48
    if arch >= 90:
        off = off << 8 | word >> 16 & 255
    return at + 1 + off // 4


def is_branch(word):
    return op(word) in (BRA, BRA_UNIFORM)


def always(word):
    return word >> 12 & 15 == TRUE and word >> 87 & 15 in (TRUE, 0)


def mma(word):
    return op(word) in (HMMA, IMMA)


def wide_load(word):
    return op(word) in LDG and word >> 73 & 7 == 6


def main_loop(code, arch):
    """(first, last) of the smallest loop that has products and weight loads; None"""
    loops = [(target(w, i, arch), i) for i, w in enumerate(code) if is_branch(w) and 0 <= target(w, i, arch) <= i]
    loops = [(a, b) for a, b in loops if any(map(mma, code[a:b + 1])) and any(map(wide_load, code[a:b + 1]))]
    return min(loops, key=lambda l: l[1] - l[0], default=None)


def shortest(code, first, last, arch):
    """Indices of the fewest instructions from the loop's head to its branch back, of the ways that load the most weights."""
    best = {last: (0, 1, None)}  # weight loads (negative), instructions, the next one
    for i in range(last - 1, first - 1, -1):
        w = code[i]
        ways = []
        if not (op(w) in (BRA, EXIT) and always(w)):
            ways.append(i + 1)
        if is_branch(w) and i < target(w, i, arch) <= last:
            ways.append(target(w, i, arch))
        ways = [(best[n][0] - wide_load(w), best[n][1] + 1, n) for n in ways if n in best]
        if ways:
            best[i] = min(ways)
    path, at = [], first if first in best else None
    while at is not None:
        path.append(at)
        at = best[at][2]
    return path


def busiest_loop(code, arch, product):
    """(first, last) of the smallest loop with the most products; None"""
    loops = [(target(w, i, arch), i) for i, w in enumerate(code) if is_branch(w) and 0 <= target(w, i, arch) <= i]
    return max(loops, key=lambda l: (sum(map(product, code[l[0]:l[1] + 1])), l[0] - l[1]), default=None)


def template(name):
    """_ZN4gemv3runILi4ELi0ELNS_4kindE0ELb1EEE... -> ('gemv::run', [4, 0, 0, 1])"""
    rest, parts = name[3:] if name.startswith("_ZN") else name[2:] if name.startswith("_Z") else "", []
    while (m := re.match(r"\d+", rest)):
        n = int(m.group())
        parts.append(rest[len(m.group()):len(m.group()) + n])
        rest = rest[len(m.group()) + n:]
    args = []
    if rest.startswith("I"):
        rest = rest[1:]
        while (m := re.match(r"L(?:[a-z]|N\w*?E|\d+[A-Za-z_]+?)(n?\d+)E", rest)):
            args.append(int(m.group(1).replace("n", "-")))
            rest = rest[m.end():]
    return "::".join(parts) or name, args


def key_of(name):
    base, args = template(name)
    return base + ("<" + ",".join(map(str, args)) + ">" if args else "")


def weights_per_product(word, arch):
    """Of one lane. 7.5: m16n8k8 and m8n8k16."""
    return 4 if arch < 80 else 8 if op(word) == HMMA else 16


def too_early(base, ops):
    """What a kernel of 9.0 and later does, in the order of its code, before it waits for the one in front of it: a sentence, or None."""
    if PREEXIT not in ops:
        return "never lets the next kernel begin"
    if ACQBULK not in ops:
        return "never waits for the kernel in front"
    waits = [i for i, o in enumerate(ops) if o == ACQBULK]
    before = ops[:waits[-1] if base in EARLY else waits[0]]  # the earlier ones of kernels of weights are for what is picked
    what = [n for n, of in (("ends", (EXIT,)), ("stores", STG), ("loads", LDG)) if any(o in of for o in before) and not (n == "loads" and base in EARLY)]
    return " and ".join(what) + " before it has waited for the kernel in front" if what else None


def measure(name, code, arch):
    """Of one kernel: what the budgets are about."""
    ops = list(map(op, code))
    got = {"kernel": key_of(name), "instructions": len(code), "local": ops.count(LDL) + ops.count(STL), "wide": sum(map(wide_load, code)), "products": sum(map(mma, code))}
    base, args = template(name)
    if arch >= 90:
        got["early"] = too_early(base, ops)
    product = mma if got["products"] else lambda w: op(w) in FFMA
    busy = busiest_loop(code, arch, product) if base in HOT else None
    if busy and (macs := sum(map(product, code[busy[0]:busy[1] + 1]))):
        got["per_mac"] = (busy[1] + 1 - busy[0]) / macs
    loop = main_loop(code, arch)
    if not loop or len(args) < 2 or base not in OF_WEIGHTS:
        return got
    first, last = loop
    path = shortest(code, first, last, arch)
    bits = args[0] + args[1]
    weights = sum(wide_load(code[i]) for i in path) * 128 / bits
    products = sum(weights_per_product(code[i], arch) for i in path if mma(code[i]))
    got.update(loop=last + 1 - first, way=len(path), weights=weights, done=products, per_weight=len(path) / max(weights, 1), issue=100 * len(path) / max(weights, 1) / (ISSUE * bits / 8))
    return got


def read_cubin(path, arch):
    with open(path, "rb") as f:
        found = sections(f.read())
    return {n[6:]: (measure(n[6:], instructions(code), arch), info >> 24) for n, (code, info) in found.items() if n.startswith(".text.")}


# ---- compiling ----

def resources(log):
    """ptxas -v: mangled name -> (registers, stack, spilled)"""
    out, name = {}, None
    for line in log.split("\n"):
        if (m := re.search(r"Compiling entry function '(\S+)'", line)):
            name, out[m.group(1)] = m.group(1), [0, 0, 0]
        elif name and (m := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line)):
            out[name][1], out[name][2] = int(m.group(1)), int(m.group(2)) + int(m.group(3))
        elif name and (m := re.search(r"Used (\d+) registers", line)):
            out[name][0] = int(m.group(1))
    return out


def sources():
    folder = os.path.join(ROOT, "kernels/cuda")
    return sorted(os.path.join(folder, f) for f in os.listdir(folder) if f.endswith((".cu", ".cuh", ".h"))) + [os.path.join(ROOT, "kernels/packed.h")]


def digest(*more):
    h = hashlib.sha256()
    for path in sources():
        h.update(os.path.basename(path).encode())
        h.update(open(path, "rb").read())
    for m in more:
        h.update(m.encode())
    return h.hexdigest()[:16]


def run(command, log):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with open(log, "w") as f:
        f.write(done.stdout)
    if done.returncode:
        sys.exit(f"check_sass: {' '.join(command)}\n{done.stdout}")
    return done.stdout


def keep(path, command, log=None):
    """Makes path by the command unless it is there."""
    if not os.path.exists(path):
        run(command + ["-o", path + ".part"], log or path + ".log")
        os.rename(path + ".part", path)


def compile_all(nvcc, build, archs):
    """[(arch, [cubin], ptxas' log)]; kept in the build folder under the sources' hash."""
    version = subprocess.run([nvcc, "--version"], stdout=subprocess.PIPE, text=True).stdout
    place = os.path.join(build, "sass", digest(version))
    os.makedirs(place, exist_ok=True)
    stems = [(os.path.join(place, os.path.basename(f)[:-3]), f) for f in sources() if f.endswith(".cu")]
    virtual = sorted({PTX.get(a, "90") for a in archs})
    made = [(arch, stem) for arch in archs for stem, _ in stems]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda j: keep(f"{j[1][0]}.{j[0]}.ptx", [nvcc, "-std=c++17", "-O3", "-I", ROOT, f"-arch=compute_{j[0]}", "-ptx", j[1][1]]), [(v, s) for v in virtual for s in stems]))
        list(pool.map(lambda j: keep(f"{j[1]}.{j[0]}.cubin", [nvcc, "-cubin", "-Xptxas", "-v", f"-arch=sm_{j[0]}", f"{j[1]}.{PTX.get(j[0], '90')}.ptx"], f"{j[1]}.{j[0]}.log"), made))
    return [(arch, [f"{s}.{arch}.cubin" for s, _ in stems], "".join(open(f"{s}.{arch}.log").read() for s, _ in stems)) for arch in archs]


# ---- judging ----

def judge(table, arch, got, registers, used):
    """What is wrong with one kernel, in sentences."""
    key, wrong = got["kernel"], []
    row = table["per_weight"].get(key) or table.get("per_mac", {}).get(key, {})
    most, budget = row.get("registers", table["registers"].get(key.split("<")[0], table["registers"]["others"])), row.get(arch, row.get("all"))
    if registers > most:
        wrong.append(f"{registers} registers, at most {most}")
    if used and (used[1] or used[2]):
        wrong.append(f"{used[1]} bytes of stack, {used[2]} bytes spilled")
    if got.get("early"):
        wrong.append(got["early"])
    if got["local"]:
        wrong.append(f"{got['local']} loads and stores of local memory")
    if budget is None and key.split("<")[0] in OF_WEIGHTS + HOT:
        wrong.append("no budget in scripts/sass_budgets.json")
    elif key in table.get("per_mac", {}):
        if not got.get("per_mac", 1e9) <= budget:
            wrong.append(f"{got.get('per_mac', 0):.2f} instructions per product, at most {budget:.2f}")
        if got["wide"] < row.get("wide", 0):
            wrong.append(f"{got['wide']} loads of 128 bits, at least {row['wide']}")
    elif budget is not None and "per_weight" not in got:
        wrong.append("no loop with products and 128-bit loads")
    elif budget is not None:
        if got["done"] < got["weights"] or not got["weights"]:
            wrong.append(f"the shortest way multiplies {got['done']:g} of {got['weights']:g} weights")
        if got["per_weight"] > budget:
            wrong.append(f"{got['per_weight']:.2f} instructions per weight, at most {budget:.2f}")
    return [f"sm_{arch} {key}: {w}" for w in wrong]


def line(arch, got, registers):
    per = f"{got['per_mac']:6.2f} per product" if "per_mac" in got else f"{got['per_weight']:6.2f} ({got['issue']:3.0f} %) {got['way']:5d} of {got['loop']:5d} for {got['weights']:4g}" if "per_weight" in got else "     -"
    return f"sm_{arch:4s} {got['kernel']:28s} {registers:4d} registers {got['instructions']:6d} instructions  per weight {per}"


def rows(seen):
    """{kernel: [(arch, measured, registers)]} as lines of the table "per_mac"."""
    out = []
    for key, all_of in sorted(seen.items()):
        most = {a: max((math.ceil(g["per_mac"] * 103) / 100 for b, g, _ in all_of if (b == "75") == a), default=None) for a in (False, True)}
        row = {"registers": -8 * (-max(r for _, _, r in all_of) // 8), "wide": min(g["wide"] for _, g, _ in all_of), "all": most[False], "75": most[True]}
        out.append(f'    "{key}": ' + json.dumps({k: v for k, v in row.items() if v is not None}))
    return ",\n".join(out)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--build", default=os.path.join(ROOT, "build"))
    p.add_argument("--archs", default=",".join(ARCHS))
    p.add_argument("--table", action="store_true", help="every kernel, not only what is wrong")
    p.add_argument("--rows", action="store_true", help="the rows of per_mac as measured")
    p.add_argument("--budgets", default=os.path.join(ROOT, "scripts/sass_budgets.json"))
    p.add_argument("cubins", nargs="*", help="read these (sm_NN in the name) instead of compiling")
    a = p.parse_args()
    with open(a.budgets) as f:
        table = json.load(f)
    if a.cubins:
        todo = [(re.search(r"(?:sm_|\.)(\d+)\.cubin", c).group(1), [c], "") for c in a.cubins]
    else:
        nvcc = shutil.which("nvcc")
        if not nvcc:
            print("check_sass: no nvcc here, so no machine code to read")
            return 77
        todo = compile_all(nvcc, a.build, a.archs.split(","))
    wrong, kernels, archs, seen = [], 0, 0, {}
    for arch, cubins, log in todo:
        used, archs = resources(log), archs + 1
        for cubin in cubins:
            for name, (got, registers) in sorted(read_cubin(cubin, int(arch)).items()):
                registers = used[name][0] if name in used else registers
                kernels += 1
                wrong += judge(table, arch, got, registers, used.get(name))
                if "per_mac" in got:
                    seen.setdefault(got["kernel"], []).append((arch, got, registers))
                if a.table:
                    print(line(arch, got, registers))
    if a.rows:
        print(rows(seen))
        return 0
    for w in wrong:
        print(w)
    print(f"check_sass: {kernels} kernels of {archs} architectures, {len(wrong)} over budget")
    return 1 if wrong or not kernels else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Bad, struct.error, ValueError) as e:
        sys.exit(f"check_sass: {e}")
