"""What detection costs over a plain forward pass of the model's body on the same documents.

    python scripts/bench_detect.py                # the Llama shape, 512 tokens, float32: a minute on two cores
    python scripts/bench_detect.py --model DIR --dtype bfloat16

Machines are noisy, so every figure is a ratio taken in one run: rounds of (forward, each setting) in turn, and the
median over rounds of each round's own ratio. Documents are random tokens of one length, in batches of `--batch-size`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from plnd import DetectConfig, detect, load_model
from plnd.families import Layout

SETTINGS = {"FFN + V + O": "off", "with first_order Q, K": "first_order", "with exact Q, K": "exact"}


def llama_shape(dtype: torch.dtype) -> LlamaForCausalLM:
    """Random weights: 8 blocks, hidden 1024, 16 heads on 4 key-value heads, FFN 2816."""
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype).eval()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub name; default: a random Llama of 8 blocks, hidden 1024")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    model = (
        load_model(args.model, dtype=args.dtype, device=args.device)
        if args.model
        else llama_shape(dtype).to(args.device)
    )
    layout = Layout(model)
    vocabulary = model.config.get_text_config().vocab_size
    documents = torch.randint(3, vocabulary, (args.documents, args.tokens))

    def forward() -> None:
        with torch.no_grad():
            for batch in documents.split(args.batch_size):
                batch = batch.to(model.device)
                layout.body(batch, attention_mask=torch.ones_like(batch), use_cache=False)
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    def scoring(qk: str) -> Callable[[], None]:
        config = DetectConfig(qk=qk, max_length=args.tokens, min_length=1, batch_size=args.batch_size)
        return lambda: None if detect(model, documents.tolist(), config) else None

    work = {"forward": forward, **{name: scoring(qk) for name, qk in SETTINGS.items()}}
    times: dict[str, list[float]] = {name: [] for name in work}
    for round_number in range(args.rounds + 1):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if round_number:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    shape = f"{args.documents} documents of {args.tokens} tokens, {args.dtype}, {torch.get_num_threads()} threads"
    print(f"{model.config.model_type}, {len(layout.blocks)} blocks, {shape}")
    print(f"{'':<24}{'seconds':>9}{'ratio':>8}   (ratio: median of {args.rounds} rounds, smallest to largest)")
    for name, seconds in times.items():
        ratios = [mine / plain for mine, plain in zip(seconds, times["forward"], strict=True)]
        spread = f"   {min(ratios):.2f} to {max(ratios):.2f}" if name != "forward" else ""
        print(f"{name:<24}{statistics.median(seconds):>9.2f}{statistics.median(ratios):>8.2f}{spread}")


if __name__ == "__main__":
    main()
