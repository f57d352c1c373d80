#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Copyright the lquant authors
"""Tiny random models with SentencePiece vocabularies, to be written as GGUF and asked for token ids:

    spm_models.py WORK --text TEXT [--llama2 tokenizer.json]
    lquant convert WORK/gemma WORK/gemma.gguf
    check_llamacpp.py WORK/gemma.gguf --folder WORK/gemma -f TEXT --bin DIR --no-weights --no-nll

gemma: a vocabulary of 1500 pieces made from TEXT, spaces marked by a normalizer, no prefix, Gemma's special tokens. With --llama2 (Llama 2's published
vocabulary): llama2, and phi3 with Phi-3's added tokens behind it. Merges are all splits of a piece in the order of scores, as transformers' converter
lists them. Made with transformers 5.23, tokenizers 0.23."""
import argparse
import collections
import json
import os

BYTES = [f"<0x{i:02X}>" for i in range(256)]
PHI3 = ["<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|placeholder2|>", "<|system|>", "<|end|>", "<|user|>"]


def pieces(text, n):
    """The n - most frequent - runs of characters, shorter ones first where they are as frequent: what a unigram of counts would keep."""
    counts = collections.Counter()
    for word in text.replace(" ", " \u2581").split(" "):
        for i in range(len(word)):
            for k in range(2, min(9, len(word) - i + 1)):
                counts[word[i:i + k]] += 1
    chars = sorted(set(text.replace(" ", "\u2581")))
    whole = sorted(counts, key=lambda p: (-counts[p] * (len(p) - 1), p))[:n]
    have = set(chars)
    order = [p for p in sorted(whole, key=lambda p: (len(p) > 2, -counts[p], p))]
    out = []
    for p in order * 3:  # a piece needs a split into two others
        if p not in have and any(p[:k] in have and p[k:] in have for k in range(1, len(p))):
            have.add(p)
            out.append(p)
    return out, chars


def merges(vocab, ranked):
    return [(p[:k], p[k:]) for p in ranked for k in range(1, len(p)) if p[:k] in vocab and p[k:] in vocab]


def gemma(text):
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    ranked, chars = pieces(text, 1500)
    tokens = special + BYTES + ranked + chars
    vocab = {t: i for i, t in enumerate(tokens)}
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} for i, t in enumerate(special)]
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
            "post_processor": {"type": "TemplateProcessing", "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
                               "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                               "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}}},
            "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
            "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
                      "ignore_merges": False, "vocab": vocab, "merges": [list(m) for m in merges(vocab, ranked)]}}


def phi3(llama2):
    t = json.loads(json.dumps(llama2))
    at = len(t["model"]["vocab"])
    t["added_tokens"] += [{"id": at + i, "content": s, "single_word": False, "lstrip": False, "rstrip": i > 0, "normalized": False, "special": True} for i, s in enumerate(PHI3)]
    return t


def save(folder, tokenizer, settings):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    torch.manual_seed(1)
    size = max([*tokenizer["model"]["vocab"].values(), *(t["id"] for t in tokenizer["added_tokens"])]) + 1
    ids = {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    bos, eos = ids.get("<bos>", ids.get("<s>")), ids.get("<eos>", ids.get("</s>"))
    config = AutoConfig.for_model(**settings, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, vocab_size=size,
                                  max_position_embeddings=256, bos_token_id=bos, eos_token_id=eos, pad_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    json.dump(tokenizer, open(os.path.join(folder, "tokenizer.json"), "w"), ensure_ascii=False)
    names = {v: k for k, v in ids.items()}
    json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": names[bos], "eos_token": names[eos], "unk_token": "<unk>"}, open(os.path.join(folder, "tokenizer_config.json"), "w"))
    print(folder, size, "tokens", flush=True)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("work")
    a.add_argument("--text", required=True)
    a.add_argument("--llama2", default="")
    a = a.parse_args()
    text = open(a.text, encoding="utf-8", newline="").read()[:200000]
    save(os.path.join(a.work, "gemma"), gemma(text), {"model_type": "gemma", "head_dim": 32, "hidden_activation": "gelu_pytorch_tanh"})
    if a.llama2:
        llama2 = json.load(open(a.llama2))
        save(os.path.join(a.work, "llama2"), llama2, {"model_type": "llama"})
        save(os.path.join(a.work, "phi3"), phi3(llama2), {"model_type": "phi3"})


if __name__ == "__main__":
    main()
