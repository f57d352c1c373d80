#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Our tokenizer against the `tokenizers` package and against gold ids, token for token.

    check_tokenizer.py --tool build/tests/tool_tokenize --data DATA [--gguf FILE ...] [--quick]

DATA holds tokenizers/ (NAME/tokenizer.json, opt/, ggml-vocab/*.gguf with *.inp and *.out), models/*/tokenizer.json and
text/wiki.test.raw. Exit code 1 when anything differs that is not a code point of a Unicode table (those are listed and counted).
Needs: tokenizers, transformers.
"""
import argparse
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import tempfile

from tokenizers import Tokenizer

SEPARATOR = "\n__ggml_vocab_test__\n"


def ours(tool, path, texts, *flags):
    """Ids of each text (str or bytes) by our tokenizer; None where the tool failed."""
    with tempfile.NamedTemporaryFile() as f:
        for t in texts:
            raw = t if isinstance(t, bytes) else t.encode()
            f.write(struct.pack("<Q", len(raw)) + raw)
        f.flush()
        p = subprocess.run([tool, *flags, str(path), f.name], capture_output=True)
    if p.returncode:
        raise RuntimeError(f"{path}: {p.stderr.decode(errors='replace').strip()}")
    lines = p.stdout.decode().split("\n")[:-1]
    if "-d" in flags:
        return [(list(map(int, a.split())), bytes.fromhex(b)) for a, b in (x.split("|") for x in lines)]
    return [list(map(int, x.split())) for x in lines]


def stress(seed=1):
    """Texts meant to find a difference: every plane, emoji sequences, CJK, marks, spaces, contractions, digits."""
    rng = random.Random(seed)
    assigned = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    texts = []
    for plane in range(17):
        pool = [c for c in assigned if c >> 16 == plane]
        for _ in range(40 if plane < 3 else 6):
            texts.append("".join(chr(rng.choice(pool)) for _ in range(60)))
    blocks = [(0, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x8FF), (0x900, 0xDFF), (0xE00, 0x10FF), (0x1100, 0x11FF),
              (0x1E00, 0x20CF), (0x2100, 0x27BF), (0x2E80, 0x312F), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0xFE00, 0xFFEF),
              (0x1F300, 0x1FAFF), (0x1D400, 0x1D7FF)]
    for lo, hi in blocks:
        for _ in range(25):
            texts.append("".join(rng.choice([chr(rng.randint(lo, hi)), chr(rng.randint(lo, hi)), " ", chr(rng.randint(0x61, 0x7A))])
                                 for _ in range(rng.randint(1, 80))))
    emoji = ["👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪🇫🇷", "1️⃣", "❤️‍🔥", "🧑🏿‍🚀", "☺️", "🫠"]
    spaces = [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u200b", "\u180e", "\x85", "\u2028", "\x1c", "\x0b", "\x0c"]
    words = ["don't", "I'LL", "we'VE", "it's", "'s", "''", "x'ſ", "İstanbul", "ǅ", "ß", "ﬁ", "naïve", "e\u0301", "q\u0323\u0307", "한국어", "가",
             "日本語", "中文", "ไทย", "हिन्दी", "عربي", "12345678", "٣٤٥", "²³½", "Ⅷ", "ⓐ", "foo_bar", "C++", "a.b", "...", "!?", "<s>", "</s>", "<unk>",
             "<|endoftext|>", "<|im_start|>", "<0x41>", "▁", "Ġ", "\ufffd", "\ufeff", "\u0000", "\u200d", "\u202e"]
    for _ in range(400):
        texts.append("".join(rng.choice(rng.choice([emoji, spaces, words, spaces])) for _ in range(rng.randint(1, 30))))
    for n in (1, 2, 3, 5, 8, 17, 40, 129, 1000):
        texts += [" " * n, "a" * n, "\n" * n, " \n" * n, "ab" * n, "=" * n, "1" * n, "x" + " " * n + "y", "\u0301" * n, "一" * n]
        texts += ["".join(rng.choice("ab ") for _ in range(n * 5)), "".join(rng.choice("aA\u0301\u0323\u0307 ") for _ in range(n * 4))]
    return texts + ["", " ", "\n"]


def invalid(seed=2):
    """Byte strings that are not UTF-8. The rule is Python's (and Unicode's): each maximal subpart becomes U+FFFD."""
    rng = random.Random(seed)
    out = [b"\xff", b"a\xc3", b"\xe4\xb8", b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\xf5\x80\x80\x80", b"\xc0\x80", b"\xe0\x80\x80", b"ok\x80\x80ok"]
    for _ in range(300):
        base = bytearray("héllo 日本 👍 wörld".encode())
        for _ in range(rng.randint(1, 5)):
            base[rng.randrange(len(base))] = rng.randrange(256)
        out.append(bytes(base))
    return out


class Report:
    def __init__(self):
        self.bad = 0

    def line(self, name, what, n, wrong, note=""):
        self.bad += bool(wrong)
        print(f"{'FAIL' if wrong else 'ok  '} {name:34} {what:44} {n:7} texts, {wrong} differ {note}", flush=True)


def compare(report, name, what, texts, got, want):
    wrong = [i for i in range(len(texts)) if got[i] != want[i]]
    report.line(name, what, len(texts), len(wrong))
    for i in wrong[:3]:
        k = next((j for j in range(min(len(got[i]), len(want[i]))) if got[i][j] != want[i][j]), min(len(got[i]), len(want[i])))
        print(f"       text {str(texts[i])[:60]!r}...\n       from id {k}: ours {got[i][k:k + 8]} theirs {want[i][k:k + 8]}")


def codepoints(tool, name, path, peer):
    """Every code point, alone and in context; those that differ are Unicode table differences, listed."""
    all_cp = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    marks = "\u0316{0}\u0301{0}\u05b0{0}\u0345{0}"  # combining classes 220, 230, 10, 240 around it
    context = "a{0}b {0}{0}1{0}e" + marks + "\n"

    def unequal(groups):
        texts = ["".join(context.format(chr(c)) for c in g) for g in groups]
        bad, got = [], ours(tool, path, texts)
        for i in range(0, len(texts), 256):  # the peer's encodings are large
            want = peer.encode_batch_fast(texts[i:i + 256], add_special_tokens=False)
            bad += [groups[i + k] for k, w in enumerate(want) if got[i + k] != w.ids]
        return bad
    groups = unequal([all_cp[i:i + 64] for i in range(0, len(all_cp), 64)])
    diff = [g[0] for g in unequal([[c] for g in groups for c in g])]
    ranges, i = [], 0
    while i < len(diff):
        j = i
        while j + 1 < len(diff) and diff[j + 1] == diff[j] + 1:
            j += 1
        ranges.append(f"{diff[i]:04X}" if i == j else f"{diff[i]:04X}-{diff[j]:04X}")
        i = j + 1
    print(f"note {name:34} code points on which Unicode tables differ: {len(diff)} of {len(all_cp)}: {' '.join(ranges) or 'none'}", flush=True)
    return set(map(chr, diff))


def against_peer(report, tool, name, path, peer, texts, wiki, special_texts):
    def want(batch, special=False):
        return [e.ids for e in peer.encode_batch_fast(batch, add_special_tokens=special)]
    compare(report, name, "strings", texts, ours(tool, path, texts), want(texts))
    compare(report, name, "strings, post-processor", texts[:200], ours(tool, path, texts[:200], "-s"), want(texts[:200], True))
    bad = invalid()
    compare(report, name, "invalid UTF-8", bad, ours(tool, path, bad), want([b.decode(errors="replace") for b in bad]))
    compare(report, name, "added tokens in the text", special_texts, ours(tool, path, special_texts), want(special_texts))
    peer.encode_special_tokens = True
    compare(report, name, "added tokens as plain text", special_texts, ours(tool, path, special_texts, "-p"), want(special_texts))
    peer.encode_special_tokens = False
    back = ours(tool, path, texts, "-d")
    wrong = 0
    special = {i for i, t in peer.get_added_tokens_decoder().items() if t.special}  # the peer forgets to skip normalized ones
    for ids, raw in (x for x in back if not special & set(x[0])):
        theirs = peer.decode(ids, skip_special_tokens=True)
        wrong += "\ufffd" not in theirs and raw.decode(errors="replace") != theirs
    report.line(name, "decoded again", len(texts), wrong)
    compare(report, name, "wiki.test.raw", [wiki], ours(tool, path, [wiki]), want([wiki]))


def special_mix(peer, seed=3):
    rng = random.Random(seed)
    added = [t.content for t in peer.get_added_tokens_decoder().values()][:40] or ["<s>"]
    parts = added + [" ", "  ", "\n", "hello", " world", "x", "É", "e\u0301", "▁"]
    return ["".join(rng.choice(parts) for _ in range(rng.randint(1, 12))) for _ in range(300)]


def gold(report, tool, vocab_dir, stand_ins):
    for inp in sorted(vocab_dir.glob("*.inp")):
        name = inp.name[len("ggml-vocab-"):-len(".gguf.inp")]
        texts = inp.read_bytes().decode().split(SEPARATOR)
        want = [list(map(int, x.split())) for x in inp.with_suffix(".out").read_text().split("\n")[:len(texts)]]
        path = stand_ins.get(name) or inp.with_suffix("")
        if not path.exists():
            print(f"skip {name:34} gold ids, but no vocabulary here")
            continue
        try:
            got = ours(tool, path, texts)
        except RuntimeError as e:
            print(f"skip {name:34} {e}")
            continue
        compare(report, name, f"gold ids ({'GGUF' if path.suffix == '.gguf' else path.parent.name})", texts, got, want)


def written(report, tool, path, texts, wiki):
    """A GGUF's tokenizer.json as we write it, read by `tokenizers`, gives the ids of our own reading of the GGUF."""
    with tempfile.TemporaryDirectory() as d:
        out = os.path.join(d, "tokenizer.json")
        try:
            got = ours(tool, path, texts + [wiki], "-s", "-j", out)
        except RuntimeError as e:
            print(f"skip {path.stem:34} {e}")
            return
        peer = Tokenizer.from_file(out)
        compare(report, path.stem, "written tokenizer.json, read by tokenizers", texts + [wiki], got, [e.ids for e in peer.encode_batch_fast(texts + [wiki])])
        compare(report, path.stem, "written tokenizer.json, read by us", texts + [wiki], ours(tool, out, texts + [wiki], "-s"), got)


def two_files(report, tool, folder, texts, wiki):
    """vocab.json + merges.txt through a stand-in model folder, against transformers' own reading."""
    from transformers import AutoTokenizer
    with tempfile.TemporaryDirectory() as d:
        for f in folder.iterdir():
            shutil.copy(f, d)
        pathlib.Path(d, "config.json").write_text(json.dumps({"model_type": "opt", "vocab_size": 50272}))
        header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        pathlib.Path(d, "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        peer = AutoTokenizer.from_pretrained(d)
        compare(report, folder.name, "vocab.json + merges.txt", texts + [wiki], ours(tool, d, texts + [wiki], "-s"),
                [peer(t)["input_ids"] for t in texts + [wiki]])


def pathological(report, tool, paths):
    mb = 1 << 20
    texts = {"a megabyte of one letter": "a" * mb, "a megabyte without a space": "".join(chr(97 + i * 7919 % 26) for i in range(mb)),
             "a megabyte of spaces": " " * mb + "x", "a megabyte of marks": "\u0301\u0323" * (mb // 4), "a megabyte of newlines": "\n" * mb,
             "a megabyte of spaces, then a digit": " " * mb + "1", "a megabyte of digits": "7" * mb, "a megabyte of ideographs": "一二" * (mb // 6)}
    for path in paths:
        for what, t in texts.items():
            with tempfile.NamedTemporaryFile() as f:
                raw = t.encode()
                f.write(struct.pack("<Q", len(raw)) + raw)
                f.flush()
                p = subprocess.run([tool, "-t", str(path), f.name], capture_output=True)
            last = p.stderr.decode().strip().split("\n")[-1]
            seconds = float(last.split()[-2]) if last.endswith(" s") else 1e9
            report.line(pathlib.Path(path).parent.name + "/" + pathlib.Path(path).name, what, 1, int(seconds > 10), last)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--tool", required=True)
    a.add_argument("--data", type=pathlib.Path, required=True)
    a.add_argument("--gguf", type=pathlib.Path, nargs="*", default=[])
    a.add_argument("--quick", action="store_true", help="without the scan of all code points and the slow texts")
    a = a.parse_args()
    report, tok = Report(), a.data / "tokenizers"
    wiki = (a.data / "text/wiki.test.raw").read_text()
    some = next(iter(sorted((tok / "ggml-vocab").glob("*.inp")))).read_bytes().decode().split(SEPARATOR)
    texts = some + stress()
    for path in sorted(tok.glob("*/tokenizer.json")) + sorted((a.data / "models").glob("*/tokenizer.json")):
        peer = Tokenizer.from_file(str(path))
        peer.no_padding()
        peer.no_truncation()
        differ = set() if a.quick else codepoints(a.tool, path.parent.name, path, peer)
        known = ["".join(c for c in t if c not in differ) for t in texts]
        against_peer(report, a.tool, path.parent.name, path, peer, known, wiki, special_mix(peer))
    stand_ins = {"llama-bpe": tok / "llama3/tokenizer.json", "qwen2": tok / "qwen3/tokenizer.json", "deepseek-r1-qwen": tok / "qwen3/tokenizer.json"}
    gold(report, a.tool, tok / "ggml-vocab", stand_ins)
    for path in sorted((tok / "ggml-vocab").glob("*.gguf")) + a.gguf:
        written(report, a.tool, path, texts, wiki)
    if (tok / "opt").exists():
        two_files(report, a.tool, tok / "opt", texts, wiki)
    if not a.quick:
        pathological(report, a.tool, [tok / n / "tokenizer.json" for n in ("llama2", "llama3", "qwen3", "gpt2")] +
                     sorted((tok / "ggml-vocab").glob("*deepseek*.gguf")) + sorted((tok / "ggml-vocab").glob("*spm.gguf")))
    print("all equal" if not report.bad else f"{report.bad} comparisons differ")
    sys.exit(report.bad > 0)


if __name__ == "__main__":
    main()
