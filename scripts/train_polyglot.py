"""Train the demo's model: a very small multilingual Llama, from scratch, on a CPU or a GPU.

    python scripts/train_polyglot.py --corpora CORPORA --output polyglot --minutes 70

CORPORA holds one `{language}.jsonl` a language, a JSON object with a `text` on each line. Writes an ordinary Hugging
Face checkpoint (config, tokenizer, bfloat16 safetensors) and `training.json` with the bits per byte of each language's
held-out documents, its last 2 %. The model inside the package took 62 minutes on two CPU cores (16 M tokens) with the
defaults.

Every batch holds the same number of sequences of every language, and the tokenizer is trained on as many documents of
each.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from plnd import read_documents

PAD, BOS, EOS = "<pad>", "<s>", "</s>"


def main() -> None:
    """Reads, tokenises, trains, measures and saves."""
    args = parse()
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    languages = args.languages.split(",")
    train, held_out = {}, {}
    for language in languages:
        documents = list(read_documents(args.corpora / f"{language}.jsonl"))
        cut = max(20, len(documents) // 50)
        train[language], held_out[language] = documents[:-cut], documents[-cut:]
    tokenizer = train_tokenizer(train, args.vocabulary)
    streams = {language: token_stream(tokenizer, documents) for language, documents in train.items()}
    model = make_model(args).to(device)
    print(f"{model.num_parameters() / 1e6:.2f} M parameters on {device}", flush=True)
    steps = optimise(model, batches(streams, args.batch, args.length, device), args, device)
    report = {
        "steps": steps,
        "tokens": steps * args.batch * args.length,
        "minutes": args.minutes,
        "device": device,
        "bits_per_byte": {x: round(bits_per_byte(model, tokenizer, held_out[x][:200]), 4) for x in languages},
    }
    print(report, flush=True)
    model.to(torch.bfloat16).save_pretrained(args.output)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS)
    fast.save_pretrained(args.output)
    (args.output / "training.json").write_text(json.dumps(report, indent=2) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--languages", default="en,de,fr,es,ru,zh")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--vocabulary", type=int, default=12288)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--ffn", type=int, default=704)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--length", type=int, default=256, help="tokens of a training sequence")
    parser.add_argument("--batch", type=int, default=32, help="sequences of a step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def train_tokenizer(train: dict[str, list[str]], vocabulary: int) -> Tokenizer:
    """Byte-level BPE over equally many documents of every language."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((d for group in zip(*train.values(), strict=False) for d in group), trainer)
    return tokenizer


def token_stream(tokenizer: Tokenizer, documents: list[str]) -> torch.Tensor:
    """All documents in one row, each after a BOS token, [tokens] int32."""
    bos = tokenizer.token_to_id(BOS)
    return torch.tensor([t for e in tokenizer.encode_batch(documents) for t in (bos, *e.ids)], dtype=torch.int32)


def make_model(args: argparse.Namespace) -> LlamaForCausalLM:
    """A Llama with heads of width 64, two query heads on a key-value head, and tied embeddings."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=args.vocabulary,
            hidden_size=args.hidden,
            intermediate_size=args.ffn,
            num_hidden_layers=args.blocks,
            num_attention_heads=args.hidden // 64,
            num_key_value_heads=max(1, args.hidden // 128),
            head_dim=64,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            rms_norm_eps=1e-5,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def batches(streams: dict[str, torch.Tensor], batch: int, length: int, device: str) -> Iterator[torch.Tensor]:
    """Random pieces of the streams, languages in turn, [batch, length + 1] int64."""
    languages = list(streams)
    while True:
        rows = []
        for i in range(batch):
            stream = streams[languages[i % len(languages)]]
            start = random.randrange(len(stream) - length - 1)
            rows.append(stream[start : start + length + 1])
        yield torch.stack(rows).long().to(device)


def optimise(model: LlamaForCausalLM, data: Iterator[torch.Tensor], args: argparse.Namespace, device: str) -> int:
    """AdamW with warm-up and a cosine over the time given; returns the number of steps."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim != 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True)
    start, step = time.time(), 0
    while (progress := (time.time() - start) / (args.minutes * 60)) < 1:
        lr = args.lr * min(1.0, (step + 1) / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        tokens = next(data)
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            speed = step * args.batch * args.length / (time.time() - start)
            print(f"step {step}, loss {loss.item():.3f}, lr {lr:.2e}, {speed:.0f} tokens/s", flush=True)
    return step


@torch.no_grad()
def bits_per_byte(model: LlamaForCausalLM, tokenizer: Tokenizer, documents: list[str]) -> float:
    """Over the first 511 tokens of each document."""
    model.eval()
    nats, size = 0.0, 0
    for text in documents:
        ids = [tokenizer.token_to_id(BOS), *tokenizer.encode(text).ids][:512]
        tokens = torch.tensor([ids], device=model.device)
        log_probabilities = model(tokens[:, :-1]).logits.float().log_softmax(-1)
        nats -= log_probabilities.gather(-1, tokens[:, 1:, None]).sum().item()
        size += len(tokenizer.decode(ids[1:]).encode())
    return nats / math.log(2) / size


if __name__ == "__main__":
    main()
