#!/usr/bin/env python3
"""Very small tokenizers of the usual families, with gold encodings for the C tokenizer tests.

  gen_golden_tokenizer.py OUT_DIR      (the files in tests/golden/tokenizer)

Made with Python 3.11 and tokenizers 0.23.3. Per tokenizer: tokenizer.json and cases.json, a list of
{"text", "ids" (no special tokens added), "ids_special" (BOS added), "decoded" (of ids, special tokens kept)}.
"""
import json, os, sys
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = """The quick brown fox doesn't jump over the lazy dog; it's sleeping, and they're not amused.
We've counted 12345 sheep and 67 goats in 2024, I'll bet you'd have said 1000 or 999.
def quantize(weights, bits=4):\n    scale = max(abs(w) for w in weights) / (2 ** (bits - 1) - 1)\n    return [round(w / scale) for w in weights]
for (int i = 0; i < n; i++) {\n\tsum += a[i] * b[i];\n}\n\nreturn sum;
Les élèves français mangèrent des crêpes à l'été; où est le garçon? Übergröße, naïve café, jalapeño.
Быстрая коричневая лиса прыгает через ленивую собаку. Съешь же ещё этих мягких французских булок.
敏捷的棕色狐狸跳过了懒狗。我能吞下玻璃而不伤身体。東京都に住んでいます。こんにちは世界。
안녕하세요 세계. العربية لغة جميلة. नमस्ते दुनिया। שלום עולם. Γειά σου Κόσμε.
Smile 😀 and wave 👋🏽, family 👨‍👩‍👧‍👦, flag 🇩🇪, heart ❤️. Prices: $9.99, €5, 50% off!!! See (a+b)^2 == c_d?
the the the and and of of to in in is is that it was for on are as with his they at be this from have or by one had not
models quantized group size error matrix weights layers attention tokens calibration rounding nearest scale zero point
""".split("\n")
CORPUS = [s.replace("\\n", "\n").replace("\\t", "\t") for s in SENTENCES] * 3

TEXTS = ["", " ", "  ", "   ", "\n", "\n\n", "\t", " \n ", "a", " a", "a ", "  a  ", "Hello, world!", "Hello  world", "hello   world    and     more",
         "The quick brown fox doesn't jump.", "I'm we've they'll you'd he's can't DON'T IT'S We'Re", "it’s a “curly” quote", "1", "12", "123", "1234", "12345678",
         "3.14159 1,000,000 0xFF 1e-5", "x1y22z333", "year2024now", "¼ ² ³ Ⅷ ٣٤٥ १२३ ①", "snake_case camelCase __init__ a_b",
         "def f(x):\n    return x ** 2\n\n\nprint(f(3))\n", "if (a[i] != b->c) {\n\t\tx += 1;  // done\n\t}\n", "line one\r\nline two\r\n\r\nline four\r", "trailing newline\n",
         "trailing spaces   ", "tabs\t\t\tand   spaces \t mixed", "...!!!???", "a!b?c;d:e", "http://example.com/path?x=1&y=%20#frag", "user@example.com",
         "élève naïve Übergröße", "e\u0301le\u0300ve nai\u0308ve (combining)", "\u0041\u030a \u212b \u00c5 \ufb01 \u1e9b\u0323", "q\u0307\u0323 \u0344 a\u0316\u0300",
         "Съешь ещё этих мягких булок", "敏捷的棕色狐狸", "東京都に 住んで\u3000います。", "안녕하세요 \u1112\u1161\u11ab세계", "العربية لغة", "नमस्ते दुनिया", "שלום עולם",
         "😀", "👨‍👩‍👧‍👦 family", "👋🏽🇩🇪❤️", "a😀b 😀😀", "zero\u200bwidth\u00a0nbsp\u2028sep\u2003em", "\u0000nul\u0001\u007f", "\ufeffbom", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𠜎",
         "▁already▁marked ▁", "<0x41><unk>", "<|bos|>text<|eos|>", "a <|eos|> b", "x<mask>y x <mask> y x  <mask>  y", "x<rs>y x <rs> y x  <rs>  \n y",
         "whole wholeword awholeword wholeword. wholewords Wholeword é_wholeword", "<tool>call</tool> <TOOL> <tool", "<norm> x<norm>y Å<norm>", "<|bos|><|bos|><mask><mask> <rs> <rs>",
         "the weights of the model are rounded to the nearest point of the scale and the error is small " * 3]

ADDED = [AddedToken("<mask>", lstrip=True, special=True, normalized=False), AddedToken("<rs>", rstrip=True, special=True, normalized=False),
         AddedToken("wholeword", single_word=True, special=False, normalized=False), AddedToken("<tool>", special=False, normalized=False),
         AddedToken("<norm>", special=False, normalized=True)]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
byte_level = lambda **kw: pre_tokenizers.ByteLevel(**{"add_prefix_space": False, "use_regex": True, **kw})
split = lambda regex: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), byte_level(use_regex=False)])


def bos(tok, token):
    return processors.TemplateProcessing(single=f"{token} $A", pair=f"{token} $A {token}:1 $B:1", special_tokens=[(token, tok.token_to_id(token))])


def bytes_bpe(pre, vocab, normalizer=None, ignore_merges=False, post_bytes=False):
    tok = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer: tok.normalizer = normalizer
    tok.pre_tokenizer, tok.decoder = pre, decoders.ByteLevel()
    tok.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    if ignore_merges:  # a few whole words with no merges leading to them: only ignore_merges finds these
        data = json.loads(tok.to_str())
        for w in ("Ġweights", "sheep", "Ġmodel", "<|"):
            if w not in data["model"]["vocab"]: data["model"]["vocab"][w] = len(data["model"]["vocab"])
        tok = Tokenizer.from_str(json.dumps(data))
    tok.add_special_tokens(["<|bos|>", "<|eos|>"])
    tok.add_tokens(ADDED)
    template = bos(tok, "<|bos|>")
    tok.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template]) if post_bytes else template
    return tok


def sentencepiece_bpe(vocab, metaspace):
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)
    # rare characters (CJK, emoji, Arabic, …) stay out of the vocabulary: they are written in bytes
    base.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=vocab - 259, limit_alphabet=110, show_progress=False))
    learned = json.loads(base.to_str())["model"]
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{b:02X}>": 3 + b for b in range(256)}}
    for t in sorted(learned["vocab"], key=learned["vocab"].get): ids[t] = len(ids)
    tok = Tokenizer(models.BPE(vocab=ids, merges=[tuple(m) for m in learned["merges"]], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if metaspace: tok.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else: tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tok.add_special_tokens(["<unk>", "<s>", "</s>", "<|bos|>", "<|eos|>"])
    tok.add_tokens(ADDED)
    tok.post_processor = bos(tok, "<s>")
    return tok


TOKENIZERS = {
    "gpt2": lambda: bytes_bpe(byte_level(), 480),
    "gpt2_prefix_space": lambda: bytes_bpe(byte_level(add_prefix_space=True), 400),
    "llama3": lambda: bytes_bpe(split(LLAMA3), 500, ignore_merges=True, post_bytes=True),
    "qwen2": lambda: bytes_bpe(split(QWEN2), 500, normalizer=normalizers.NFC()),
    "smollm": lambda: bytes_bpe(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()]), 450),
    "llama2": lambda: sentencepiece_bpe(600, metaspace=False),
    "mistral": lambda: sentencepiece_bpe(580, metaspace=True),
}
OLD_MERGES = ("gpt2", "llama2")  # written as "a b" like older files, the others as ["a", "b"]


def main(out):
    total = 0
    for name, make in TOKENIZERS.items():
        d = os.path.join(out, name)
        os.makedirs(d, exist_ok=True)
        data = json.loads(make().to_str())
        if name in OLD_MERGES: data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]
        path = os.path.join(d, "tokenizer.json")
        with open(path, "w", encoding="utf-8") as f: json.dump(data, f, ensure_ascii=False, separators=(",", ":"))
        tok = Tokenizer.from_file(path)
        cases = []
        for t in TEXTS:
            ids = tok.encode(t, add_special_tokens=False).ids
            cases.append(dict(text=t, ids=ids, ids_special=tok.encode(t).ids, decoded=tok.decode(ids, skip_special_tokens=False)))
        with open(os.path.join(d, "cases.json"), "w", encoding="utf-8") as f:
            f.write("[\n" + ",\n".join(json.dumps(c, ensure_ascii=i % 2 == 0, separators=(",", ":")) for i, c in enumerate(cases)) + "\n]\n")
        size = sum(os.path.getsize(os.path.join(d, f)) for f in os.listdir(d))
        total += size
        print(f"{name:18s} {tok.get_vocab_size():4d} tokens, {len(data['model']['merges']):4d} merges, {len(cases)} texts, {sum(len(c['ids']) for c in cases)} ids, {size} bytes")
    print(f"{total} bytes in all")


if __name__ == "__main__":
    main(sys.argv[1])
