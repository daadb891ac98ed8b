"""The enhancement experiment: train one language's neurons on 100 to 800 documents, and look at every language.

    python scripts/enhancement.py --model M --languages zh,ru --masks masks --corpora corpora --output enhancement

For every language and number of documents: the language's neurons (`masks/zh.safetensors`), as many random ones, and
for comparison LoRA and full fine-tuning, all of equal steps (arXiv:2402.18815, section 4, figure 4, where the controls
have 400 documents only; `--methods` chooses among them). Each run is `scripts/finetune.py` with its defaults, and
leaves its adapter and `results.json` in a folder of its own; runs that are there already are not repeated, so a killed
experiment goes on. `corpora/zh.jsonl` are the documents: training reads them from the start, the evaluation from the
end (`plnd_text_…`: bits per byte), and detection should have read other documents than the evaluation does.

At the end: bits per byte of the base model in every evaluated language, and the change that each run made, printed and
in `results.json` and `changes.csv`.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

from finetune import Settings, evaluate, run

from lm_eval_plnd.experiments.results import read_sealed
from plnd import PLNDError, load_model
from plnd.io.files import write_bytes, write_csv
from plnd.io.inputs import INPUTS, check_inputs, path_digest, sealed
from plnd.models.loading import load_tokenizer
from plnd.models.source import source_digest
from plnd.numbers import signed

METHODS: dict[str, dict[str, Any]] = {
    "neurons": {"method": "neurons"},
    "random": {"method": "neurons", "control": "random"},
    "lora": {"method": "lora"},
    "full": {"method": "full"},
}


def base_metrics(args: argparse.Namespace, tasks: list[str]) -> dict[str, Any]:
    """The base model's metrics, evaluated once and kept in the output folder."""
    path = Path(args.output) / "base.json"
    check_inputs(path.with_name(INPUTS), evaluated(args), "experiment", begun=path.exists())
    if not path.exists():
        model = load_model(args.model, dtype=args.dtype)
        metrics = evaluate(model, load_tokenizer(args.model), tasks, args.data_dir, args.limit)
        write_bytes(sealed(metrics).encode(), path)
    metrics = read_sealed(path)
    if not is_of_tasks(metrics):
        raise PLNDError(f"{path}: damaged; delete it, and the base model is evaluated again")
    if missing := set(tasks) - metrics.keys():
        raise PLNDError(f"{path}: without {', '.join(sorted(missing))}: give another --output, or delete the folder")
    return metrics


def evaluated(args: argparse.Namespace) -> dict[str, Any]:
    """What an evaluation depends on, by content."""
    data = "the hub's" if args.data_dir is None else path_digest(args.data_dir)
    return {"model's content": source_digest(args.model), "data": data, "dtype": args.dtype, "limit": args.limit}


def is_of_tasks(metrics: Any) -> bool:
    """Whether something is numbers by metric by task, as `evaluate` of finetune.py returns them."""
    return isinstance(metrics, dict) and all(
        isinstance(of, dict) and all(isinstance(value, int | float) for value in of.values()) for of in metrics.values()
    )


def one_run(
    args: argparse.Namespace, language: str, documents: int, method: str, base: dict[str, Any]
) -> dict[str, Any]:
    """One run's results, from its folder if it is there."""
    folder = Path(args.output) / f"{language}-{documents}-{method}"
    path, corpus, how = folder / "results.json", Path(args.corpora) / f"{language}.jsonl", METHODS[method]
    mask = str(Path(args.masks) / f"{language}.safetensors") if how["method"] == "neurons" else None
    inputs = evaluated(args) | {"corpus": path_digest(corpus), "mask": None if mask is None else path_digest(mask)}
    inputs |= {name: getattr(args, name) for name in ("max_length", "batch_size", "seed")}
    folder.mkdir(exist_ok=True)
    check_inputs(folder / INPUTS, inputs | {"rate": args.rates.get(method)}, "run", begun=path.exists())
    if not path.exists():
        settings = Settings(
            model=args.model,
            corpus=str(corpus),
            output=str(folder),
            mask=mask,
            documents=documents,
            max_length=args.max_length,
            batch_size=args.batch_size,
            learning_rate=args.rates.get(method),
            seed=args.seed,
            dtype=args.dtype,
            **how,
        )
        run(settings, list(base), data_dir=args.data_dir, limit=args.limit, before=base, resume=True)
    row = read_sealed(path)
    if "trained_parameters" not in row or not is_of_tasks(row.get("after")) or base.keys() - row["after"].keys():
        raise PLNDError(f"{path}: damaged, or without {', '.join(base)}; delete it, and the run is repeated")
    return row


def changes(
    base: dict[str, Any], rows: dict[tuple[str, int, str], dict[str, Any]]
) -> tuple[list[str], list[list[Any]]]:
    """The same as header and rows of a CSV, of every metric; changes have a sign, which scores have not."""
    header, lines = ["metric", "trained on", "documents", "method", "parameters", *base], []
    for metric in dict.fromkeys(metric for metrics in base.values() for metric in metrics):
        lines.append([metric, "nothing", "", "", "", *(base[task].get(metric, "") for task in base)])
        for (language, documents, method), row in rows.items():
            moved = [
                f"{row['after'][task][metric] - base[task][metric]:+}" if metric in base[task] else "" for task in base
            ]
            lines.append([metric, language, documents, method, row["trained_parameters"], *moved])
    return header, lines


def table(base: dict[str, Any], rows: dict[tuple[str, int, str], dict[str, Any]]) -> str:
    """Bits per byte of the base model, and the change of each run; negative is better."""
    metric = "bits_per_byte"
    names = [task.rpartition("_")[2] for task in base]
    lines = [f"{'trained on':10}{'documents':>10} {'method':8}{'parameters':>12}" + "".join(f"{n:>9}" for n in names)]
    lines.append(f"{'nothing':10}{'':10} {'':8}{'':12}" + "".join(f"{base[task][metric]:9.3f}" for task in base))
    for (language, documents, method), row in rows.items():
        change = "".join(f"{signed(row['after'][task][metric] - base[task][metric]):>9}" for task in base)
        lines.append(f"{language:10}{documents:10} {method:8}{row['trained_parameters']:12,}{change}")
    return "\n".join(lines)


def main() -> None:
    """Runs the experiment; bad input is one line and exit status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub name")
    parser.add_argument("--languages", required=True, help="to train, joined by commas")
    parser.add_argument("--masks", required=True, help="folder of neurons artifacts, LANGUAGE.safetensors")
    parser.add_argument("--corpora", required=True, help="folder of LANGUAGE.jsonl")
    parser.add_argument("--output", required=True, help="folder")
    parser.add_argument("--evaluate", default="en,de,fr,es,ru,zh", help="languages, default: en,de,fr,es,ru,zh")
    parser.add_argument("--documents", default="100,200,400,800", help="default: 100,200,400,800")
    parser.add_argument("--methods", default=",".join(METHODS), help=f"default: {','.join(METHODS)}")
    parser.add_argument("--rates", default="", help="peak learning rates, e.g. neurons=1e-3,lora=1e-4")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=Settings.batch_size, help=f"default: {Settings.batch_size}")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", help="folder that plnd's tasks read instead of the hub")
    parser.add_argument("--limit", type=int, help="documents of each evaluation")
    args = parser.parse_args()
    try:
        args.rates = {name: float(rate) for name, rate in (item.split("=") for item in args.rates.split(",") if item)}
        if unknown := {*args.methods.split(","), *args.rates} - METHODS.keys():
            raise PLNDError(f"unknown method {sorted(unknown)[0]!r}: expected some of {', '.join(METHODS)}")
        Path(args.output).mkdir(parents=True, exist_ok=True)
        base = base_metrics(args, [f"plnd_text_{language}" for language in args.evaluate.split(",")])
        rows: dict[tuple[str, int, str], dict[str, Any]] = {}
        for documents, language, method in product(
            map(int, args.documents.split(",")), args.languages.split(","), args.methods.split(",")
        ):
            rows[language, documents, method] = one_run(args, language, documents, method, base)
            print(table(base, rows), flush=True)
    except PLNDError as error:
        print(f"enhancement: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    report = {"-".join(map(str, key)): row for key, row in rows.items()}
    write_bytes(json.dumps({"base": base, "runs": report}, indent=2).encode(), Path(args.output) / "results.json")
    write_csv(Path(args.output) / "changes.csv", *changes(base, rows))


if __name__ == "__main__":
    main()
