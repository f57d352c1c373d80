#!/usr/bin/env python3
"""Trains and checks models/tiny, the small Llama that this repository ships.

  train_tiny.py OUT_DIR TRAIN.txt... [--heldout texts/heldout.txt] [--steps N] [--seed N]
  train_tiny.py --check models/tiny texts/heldout.txt

The training text (documents set apart by <|endoftext|>) comes from scripts/make_texts.sh. About half an hour on two cores.
Made with Python 3.11, torch 2.13.0, transformers 5.23.0, tokenizers 0.23.3, safetensors 0.8.0.
Same seed, text, versions and thread count: same weights, up to the processor's rounding.
"""
import argparse, json, math, os, sys, time
import numpy as np, torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

EOT, VOCAB, CONTEXT, BATCH = "<|endoftext|>", 1280, 256, 16
CONFIG = dict(vocab_size=VOCAB, hidden_size=128, intermediate_size=384, num_hidden_layers=6, num_attention_heads=4,
              num_key_value_heads=2, head_dim=32, max_position_embeddings=CONTEXT, rms_norm_eps=1e-5, rope_theta=10000.0,
              tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, initializer_range=0.05)


def train_tokenizer(text):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(text.split(EOT), trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[EOT], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return tok


def windows_nll(model, ids, batch=16):
    """Mean negative log-likelihood per predicted token over non-overlapping windows."""
    n = len(ids) // CONTEXT
    win = torch.from_numpy(ids[:n * CONTEXT].astype(np.int64)).view(n, CONTEXT)
    total = 0.0
    with torch.no_grad():
        for b in win.split(batch):
            logits = model(input_ids=b).logits.float()
            total += F.cross_entropy(logits[:, :-1].flatten(0, 1), b[:, 1:].flatten(), reduction="sum").item()
    return total / (n * (CONTEXT - 1))


def fake_rtn(w, bits, group):
    """Asymmetric min-max rounding to nearest in groups along the input."""
    g = w.view(w.shape[0], -1, group)
    lo, hi = g.amin(-1, keepdim=True).clamp(max=0), g.amax(-1, keepdim=True).clamp(min=0)
    s = ((hi - lo) / (2 ** bits - 1)).clamp(min=1e-12)
    z = (-lo / s).round()
    return (((g / s).round() + z).clamp(0, 2 ** bits - 1) - z).mul(s).view_as(w)


def encode(tok, path):
    return np.array(tok.encode(open(path, encoding="utf-8").read()).ids, dtype=np.uint16)


def check(model_dir, text):
    tok = Tokenizer.from_file(os.path.join(model_dir, "tokenizer.json"))
    ids = encode(tok, text)
    print(f"{text}: {len(ids)} tokens, {os.path.getsize(text) / len(ids):.3f} bytes per token, windows of {CONTEXT}")
    for bits in (None, 8, 4, 3, 2):
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
        if bits:
            for name, m in model.named_modules():
                if isinstance(m, torch.nn.Linear) and ".layers." in name: m.weight.data = fake_rtn(m.weight.data, bits, 64)
        nll = windows_nll(model, ids)
        print(f"{'as stored' if not bits else f'RTN {bits} bits, groups of 64, min-max':36s} nll {nll:.4f}  ppl {math.exp(nll):.4f}")


def train(out, texts, heldout, steps, seed, init=None, peak=1.0, minutes=1e9):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    text = EOT.join(open(t, encoding="utf-8").read() for t in texts)
    tok = train_tokenizer(text)
    os.makedirs(out, exist_ok=True)
    tok.save(os.path.join(out, "tokenizer.json"))
    ids = np.concatenate([np.array([0] + e.ids, dtype=np.uint16) for e in tok.encode_batch(text.split(EOT))])
    held = encode(tok, heldout) if heldout else None
    model = LlamaForCausalLM(LlamaConfig(**CONFIG, attn_implementation="sdpa"))
    for name, p in model.named_parameters():  # smaller start for what writes into the residual stream
        if name.endswith(("o_proj.weight", "down_proj.weight")): p.data /= math.sqrt(2 * CONFIG["num_hidden_layers"])
    if init: model.load_state_dict(load_file(os.path.join(init, "model.safetensors")), strict=False)  # all but the tied head
    print(f"{len(ids)} training tokens, {sum(p.numel() for p in model.parameters())} parameters, {steps} steps", flush=True)
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]  # the linears: Muon; the rest: AdamW
    embed = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." not in n]
    norms = [p for p in model.parameters() if p.ndim == 1]
    opts = [torch.optim.Muon(inner, lr=0.02, weight_decay=0.1, momentum=0.95),
            torch.optim.AdamW([dict(params=embed), dict(params=norms, weight_decay=0.0)], lr=4e-3, weight_decay=0.05, betas=(0.9, 0.95))]
    peaks = [[g["lr"] for g in o.param_groups] for o in opts]
    warm, t0, mean = 50, time.time(), None
    for step in range(steps):
        done = max(step / steps, (time.time() - t0) / (60 * minutes))  # share of the schedule
        rate = peak * min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(done, 1.0))) + 1e-3)
        for o, pk in zip(opts, peaks):
            for g, p in zip(o.param_groups, pk): g["lr"] = p * rate
        at = rng.integers(0, len(ids) - CONTEXT, BATCH)
        b = np.stack([ids[i:i + CONTEXT + 1] for i in at]).astype(np.int64)
        b[rng.random(BATCH) < 0.25, 0] = 0  # a quarter of the windows starts with the BOS token
        b = torch.from_numpy(b)
        loss = F.cross_entropy(model(input_ids=b[:, :-1], use_cache=False).logits.flatten(0, 1), b[:, 1:].flatten())
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in opts: o.step()
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        last = step == steps - 1 or done >= 1
        if step % 50 == 0 or last:
            print(f"step {step:5d}  loss {mean:.4f}  rate {rate:.3f}  {time.time() - t0:.0f} s", flush=True)
        if step % 250 == 249 or last:
            save(model, out)
            if held is not None: print(f"step {step:5d}  held-out nll {windows_nll(model, held):.4f}", flush=True)
        if last: break


def save(model, out):
    state = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(state, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    config = dict(architectures=["LlamaForCausalLM"], model_type="llama", **CONFIG, hidden_act="silu", attention_bias=False,
                  mlp_bias=False, attention_dropout=0.0, rope_scaling=None, torch_dtype="bfloat16", use_cache=True)
    write = lambda name, d: open(os.path.join(out, name), "w").write(json.dumps(d, indent=2) + "\n")
    write("config.json", config)
    write("generation_config.json", dict(bos_token_id=0, eos_token_id=0, do_sample=True, temperature=0.8, top_p=0.95))
    write("tokenizer_config.json", dict(tokenizer_class="PreTrainedTokenizerFast", bos_token=EOT, eos_token=EOT, add_bos_token=False,
                                        model_max_length=CONTEXT, clean_up_tokenization_spaces=False))


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("paths", nargs="+")
    ap.add_argument("--check", action="store_true", help="perplexity of MODEL_DIR on TEXT, as stored and after plain rounding")
    ap.add_argument("--heldout")
    ap.add_argument("--steps", type=int, default=2600)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--init", help="go on from the weights in this directory (the optimizers start anew)")
    ap.add_argument("--peak", type=float, default=1.0, help="factor on both learning rates, for --init")
    ap.add_argument("--minutes", type=float, default=1e9, help="end by then at the latest, the learning rate falling in time")
    ap.add_argument("--threads", type=int, default=2)
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    if a.check: check(*a.paths)
    else: train(a.paths[0], a.paths[1:], a.heldout, a.steps, a.seed, a.init, a.peak, a.minutes)
