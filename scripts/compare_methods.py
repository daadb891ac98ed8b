"""PLND, LAPE, mean activation and random neurons at matched counts: what each method's sets do to each language.

    python scripts/compare_methods.py                         # the demo's model and corpus: minutes on two cores
    python scripts/compare_methods.py --model google/gemma-3-270m --languages en,zh,ru,de --corpora CORPORA \
        --dtype bfloat16 --detect 100 --evaluate 50 --max-length 256 --output comparison   # hours on two cores

CORPORA is a folder with one LANGUAGE.jsonl each: neurons are detected on the first documents and evaluated on the last
ones. All sets are columns of `down_proj`, and all have the same number of neurons:

- plnd, activation: the smallest `--fraction` rule that leaves enough language neurons once those of the other languages
  are taken away; of these the most important.
- lape: those of lowest activation probability entropy that belong to the language.
- random: as many of each block as plnd's set has, mean over draws.

Bits per byte are taken here, in one pass over each document without and with the set, not through lm-eval: the whole
document up to `--max-length` tokens after the beginning-of-text token, over the bytes of its text.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from plnd import DetectConfig, NeuronSet, Scores, deactivated, detect, lape, load_model, read_documents
from plnd.demo_data import demo_corpus, demo_model
from plnd.models.batches import padded
from plnd.models.loading import load_tokenizer

METHODS = ("plnd", "lape", "activation")
PROJECTIONS = ("down_proj",)


def main() -> None:
    """Prints the table and writes the artifacts and `comparison.csv`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(demo_model()))
    parser.add_argument("--languages", default="en,de,fr,es,ru,zh")
    parser.add_argument("--corpora", help="folder with a LANGUAGE.jsonl for each; default: the demo's")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", help="default: an accelerator if any")
    parser.add_argument("--detect", type=int, default=24, help="documents for detection, the first ones")
    parser.add_argument("--evaluate", type=int, default=24, help="documents for evaluation, the last ones")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.01, help="of the neurons of down_proj, in each set")
    parser.add_argument("--draws", type=int, default=3, help="of random neurons")
    parser.add_argument("--output", default="comparison")
    args = parser.parse_args()
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    languages = args.languages.split(",")
    model = load_model(args.model, dtype=args.dtype, device=args.device)
    tokenizer = load_tokenizer(args.model)
    corpora = {language: _documents(args, language) for language in languages}
    sets = _sets(args, model, tokenizer, {language: first for language, (first, _) in corpora.items()}, output)
    encoded = {x: [_encode(tokenizer, text, args.max_length) for text in last] for x, (_, last) in corpora.items()}
    rows = []
    with open(output / "comparison.csv", "w", newline="", buffering=1) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("method", "set", "neurons", "draw", "language", "bits_per_byte", "change"))
        for row in _evaluated(model, sets, encoded, args):
            writer.writerow(row)
            rows.append(row)
    _print(rows, languages)


def _documents(args: argparse.Namespace, language: str) -> tuple[list[str], list[str]]:
    """The documents for detection and those for evaluation."""
    if args.corpora is None:
        halves = (demo_corpus(half) / "corpora" / f"{language}.jsonl" for half in ("detect", "evaluate"))
        first, last = (list(read_documents(half)) for half in halves)
        return first[: args.detect], last[-args.evaluate :]
    documents = list(read_documents(Path(args.corpora) / f"{language}.jsonl"))
    if len(documents) < args.detect + args.evaluate:
        raise SystemExit(f"{language}: {len(documents)} documents, fewer than --detect and --evaluate ask for")
    return documents[: args.detect], documents[-args.evaluate :]


# sets


def _sets(
    args: argparse.Namespace, model: Any, tokenizer: Any, documents: dict[str, list[str]], output: Path
) -> dict[str, dict[str, NeuronSet]]:
    """For each method and language a set of neurons, all of one size."""
    candidates: dict[str, dict[str, NeuronSet]] = {}
    for method in METHODS:
        scores: dict[str, Scores] = {}
        for language, texts in documents.items():
            config = DetectConfig(language, method=method, qk="off", max_length=args.max_length)  # type: ignore[arg-type]
            scores[language] = detect(model, texts, config, tokenizer=tokenizer, progress=True)
            scores[language].save(output / f"{method}.{language}.scores.safetensors")
        widths = scores[language].metadata.model.widths
        count = round(args.share * sum(width for address, width in widths.items() if address.endswith(PROJECTIONS)))
        if method == "lape":
            found = lape(list(scores.values()), fraction=args.share, projections=PROJECTIONS)
            candidates[method] = dict(zip(scores, found, strict=True))
        else:
            candidates[method] = _specific(scores, count)
    smallest = min(len(neurons) for of_method in candidates.values() for neurons in of_method.values())
    sets = {m: {x: neurons.top(min(count, smallest)) for x, neurons in of.items()} for m, of in candidates.items()}
    for method, of_method in sets.items():
        for language, neurons in of_method.items():
            neurons.save(output / f"{method}.{language}.safetensors")
    return sets


def _specific(scores: dict[str, Scores], count: int) -> dict[str, NeuronSet]:
    """Language neurons minus those of the other languages, by the smallest fraction that leaves `count` of each."""
    best: dict[str, NeuronSet] = {}
    for percent in (1, 1.5, 2, 3, 4, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50):
        chosen = {x: s.select(fraction=percent / 100, projections=PROJECTIONS) for x, s in scores.items()}
        for language in scores:
            if len(best.get(language, ())) >= count:
                continue
            specific = chosen[language]
            for other in scores:
                specific = specific if other == language else specific - chosen[other]
            if len(specific) > len(best.get(language, ())):
                best[language] = specific
    missing = [language for language in scores if language not in best]
    if missing:
        raise SystemExit(f"no rule leaves neurons that are specific to {', '.join(missing)}")
    return best


# evaluation


def _encode(tokenizer: Any, text: str, max_length: int) -> tuple[list[int], int]:
    """Token ids after the beginning of the text, and the number of bytes that they stand for."""
    ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=max_length - 1)["input_ids"]
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [start, *ids], len(tokenizer.decode(ids).encode())


@torch.no_grad()
def bits_per_byte(model: Any, documents: list[tuple[list[int], int]], batch_size: int) -> float:
    """Of the documents' texts together, each on its own after the beginning-of-text token; scored in float32."""
    nats = 0.0
    ordered = sorted(documents, key=lambda document: -len(document[0]))
    for start in range(0, len(ordered), batch_size):
        batch = padded([ids for ids, _ in ordered[start : start + batch_size]])
        ids, mask = (tensor.to(model.device) for tensor in batch)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        nats += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
    return nats / math.log(2) / sum(size for _, size in documents)


def _evaluated(
    model: Any, sets: dict[str, dict[str, NeuronSet]], encoded: dict[str, Any], args: argparse.Namespace
) -> Iterator[tuple]:
    """Rows of the table: method, set, neurons, draw, language, bits per byte, change."""
    plain = {x: bits_per_byte(model, documents, args.batch_size) for x, documents in encoded.items()}
    for language, value in plain.items():
        yield "nothing", "", 0, 0, language, value, 0.0
    jobs = [(m, x, 0, neurons) for m, of_method in sets.items() for x, neurons in of_method.items()]
    for draw, name in itertools.product(range(args.draws), encoded):
        jobs.append(("random", name, draw, sets["plnd"][name].random_like(draw)))
    for method, name, draw, neurons in tqdm(jobs, unit=" sets"):
        with deactivated(model, neurons):
            for language, documents in encoded.items():
                value = bits_per_byte(model, documents, args.batch_size)
                yield method, name, len(neurons), draw, language, value, value - plain[language]


def _print(rows: list[tuple], languages: list[str]) -> None:
    change: dict[tuple[str, str, str], list[float]] = {}
    for method, name, _, _, language, _, difference in rows:
        change.setdefault((method, name, language), []).append(difference)
    plain = {language: value for method, _, _, _, language, value, _ in rows if method == "nothing"}
    print("bits per byte, and its change with each set switched off")
    print(f"{'off':<20}{'neurons':>8}" + "".join(f"{x:>9}" for x in languages) + f"{'own/others':>12}")
    print(f"{'nothing':<28}" + "".join(f"{plain[x]:>9.3f}" for x in languages))
    for method in (*METHODS, "random"):
        for name in languages:
            mean = {x: sum(v) / len(v) for x in languages if (v := change[method, name, x])}
            others = sum(value for x, value in mean.items() if x != name) / (len(languages) - 1)
            count = next(row[2] for row in rows if row[:2] == (method, name))
            values = "".join(f"{mean[x]:>+9.4f}" for x in languages)
            ratio = f"{mean[name] / others:>12.1f}" if others > 0 else f"{'':>12}"
            print(f"{method + ' ' + name:<20}{count:>8}{values}{ratio}")


if __name__ == "__main__":
    main()
