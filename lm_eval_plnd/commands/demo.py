"""`plnd demo`: the whole story on the model inside the package, offline.

Detects the neurons of six languages, makes language-specific sets and equally large random ones, evaluates each through
lm-eval's own `evaluate` on its model `plnd`, and ends with a table: what happens to every language when one is
switched off.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plnd.commands.shared import Command
from plnd.errors import PLNDError
from plnd.numbers import signed

if TYPE_CHECKING:
    from plnd.neurons.neuron_set import NeuronSet

LANGUAGES = ("en", "de", "fr", "es", "ru", "zh")
CONTROL_SEEDS = (0, 1, 2)

# Chosen on the detection half of the corpus. Language neurons, whose overlap is shown, are a fraction of those of two
# projections, one for each neuron of the feed-forward (gate_proj and up_proj would name it again) and one for
# attention. Specific ones are those that matter most of those that matter more here than in any other language: not as
# much more as by default, since in so small a model few neurons serve one language alone.
PROJECTIONS = ("down_proj", "o_proj")
FRACTION = 0.03
SHARE = 0.01
TIMES = 1.5

NEXT = (
    "plnd show {0}/zh_specific.safetensors",
    "plnd neuron {0}/zh_specific.safetensors --corpus zh={corpus}/zh.jsonl en={corpus}/en.jsonl --html {0}/zh.html",
)
"""What to type after the demo."""


class Demo(Command):
    """The subcommand (entry point `plnd.commands: demo`)."""

    help = "the whole story on the model inside the package, offline, in two minutes on two cores"
    example = "plnd demo --output plnd-demo"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the subcommand's options."""
        parser.add_argument(
            "--output", default="plnd-demo", help="folder for artifacts and results (default: plnd-demo)"
        )

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Runs the demo and prints its table."""
        demo(Path(args.output))


def demo(output: Path) -> dict[str, Any]:
    """Runs the demo; returns what `results.json` in the folder `output` holds.

    Raises:
        PLNDError: if the folder cannot be written.
    """
    from plnd.demo_data import demo_corpus

    # nothing is fetched, and nothing waits for a network that is not there
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    started = time.monotonic()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PLNDError(f"{output}: cannot be made ({error.strerror}); choose another folder with --output") from None
    sets = detect_all(output)
    results = evaluate_all(output)
    results["seconds"] = round(time.monotonic() - started, 1)
    _write_json(results, output / "results.json")
    draw_overlap(sets, output)
    draw_changes(results, output)
    print()
    print(table(results))
    _say(f"\n{results['seconds']:.0f} s; artifacts, pictures and results.json are in {output}/. Next:\n")
    for command in NEXT:
        _say(f"    {command.format(output, corpus=demo_corpus('evaluate') / 'corpora')}")
    return results


def detect_all(output: Path) -> dict[str, NeuronSet]:
    """Scores, language neurons and language-specific neurons of every language, saved; returns the language neurons."""
    from plnd.demo_data import demo_corpus, demo_model
    from plnd.detection.config import DetectConfig
    from plnd.detection.run import detect
    from plnd.io.corpus import read_documents
    from plnd.models.loading import load_model, load_tokenizer
    from plnd.neurons.contrast import contrast

    path = str(demo_model())
    model, tokenizer = load_model(path, dtype="float32", device="cpu"), load_tokenizer(path)
    _say(f"model: {path} ({model.num_parameters() / 1e6:.0f} M parameters)")
    scores = {}
    for language in LANGUAGES:
        source = demo_corpus("detect") / "corpora" / f"{language}.jsonl"
        config = DetectConfig(language=language, qk="off")
        scores[language] = detect(
            model, read_documents(source), config, tokenizer=tokenizer, source=source.name, progress=True
        )
        scores[language].save(output / f"{language}.scores.safetensors")
    neurons = {x: s.select(fraction=FRACTION, projections=PROJECTIONS) for x, s in scores.items()}
    for language, own in neurons.items():
        own.save(output / f"{language}.safetensors")
        others = [scores[x] for x in LANGUAGES if x != language]
        specific = contrast(scores[language], others, share=SHARE, times=TIMES)
        specific.save(output / f"{language}_specific.safetensors")
        share = f"{len(specific) / specific.total:.2%} of all neurons"
        _say(f"{language}: {len(own):,} language neurons; {len(specific):,} specific ones ({share})")
    return neurons


def draw_overlap(sets: Mapping[str, NeuronSet], output: Path) -> None:
    """The overlap matrix of the language neurons: printed, as CSV and, if matplotlib is installed, as PNG."""
    from plnd.commands.sets import show_overlap

    plot = output / "overlap.png" if find_spec("matplotlib") else None
    if plot is None:
        _say("no pictures: pip install 'plnd[plots]'")
    show_overlap(sets, csv=output / "overlap.csv", plot=plot)


def draw_changes(results: Mapping[str, Any], output: Path) -> None:
    """The table as a heat map, `changes.png`, if matplotlib is installed; random neurons are a mean over languages."""
    if not find_spec("matplotlib"):
        return
    from plnd.plots import plot_changes

    rows = {row["off"]: row for row in results["change"] if row["seed"] is None}
    controls = [row for row in results["change"] if row["seed"] is not None]
    rows["random"] = {x: sum(row[x] for row in controls) / len(controls) for x in LANGUAGES}
    plot_changes({name: {x: row[x] for x in LANGUAGES} for name, row in rows.items()}, output / "changes.png")


def evaluate_all(output: Path) -> dict[str, Any]:
    """Bits per byte of every language for the plain model, and with each language's specific or random neurons off.

    The evaluations are independent, so each CPU core runs one at a time, on one thread.
    """
    from tqdm import tqdm

    from plnd.demo_data import demo_model
    from plnd.neurons.neuron_set import NeuronSet

    common = {"dtype": _faster_dtype(), "softmax_dtype": "float32", "max_length": 512}
    rows: list[dict[str, Any]] = []
    settings: list[dict[str, Any]] = [common]
    for language in LANGUAGES:
        mask = output / f"{language}_specific.safetensors"
        for seed in (None, *CONTROL_SEEDS):
            control = {} if seed is None else {"control": "random", "seed": seed}
            settings.append({"mask": str(mask), **control, **common})
            rows.append({"off": language, "seed": seed, "neurons": len(NeuronSet.load(mask))})
    workers = min(len(settings), os.cpu_count() or 1)
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "4294967296"}  # glibc: keep memory
    with ProcessPoolExecutor(workers, get_context("spawn"), _single_threaded_and_silent) as pool:
        results = pool.map(bits_per_byte, settings)
        whole, *changed = tqdm(results, desc="evaluate", total=len(settings), unit=" evaluations")
    for row, off in zip(rows, changed, strict=True):
        row |= {language: off[language] - whole[language] for language in LANGUAGES}
    return {"model": demo_model().name, **common, "bits_per_byte": whole, "change": rows}


def bits_per_byte(setting: Mapping[str, Any]) -> dict[str, float]:
    """Every language's bits per byte on the evaluation half, by lm-eval with the model arguments of a setting.

    Not by lm-eval's `simple_evaluate`, which each time asks for the machine's hardware and installed packages, nor with
    a model and texts that are read each time: that took as long as the measurement.
    """
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    from lm_eval_plnd.model import PLNDLM

    arguments = dict(setting)
    model, tokenizer, tasks = _loaded(arguments.pop("dtype"))
    arguments |= {"tokenizer": tokenizer, "batch_size": 2}  # logits small enough to stay in memory that is there
    lm = (PLNDLM if "mask" in arguments else HFLM)(model, **arguments)
    results = evaluate(lm, {"tasks": tasks}, bootstrap_iters=0, log_samples=False)
    return {language: results["results"][f"plnd_text_{language}"]["bits_per_byte,none"] for language in LANGUAGES}


@cache
def _loaded(dtype: str) -> tuple[Any, Any, dict[str, Any]]:
    """The model, its tokenizer and the tasks with their texts, once a process."""
    from lm_eval.tasks import TaskManager

    from lm_eval_plnd.task_folder import tasks_folder
    from plnd.demo_data import demo_corpus, demo_model
    from plnd.models.loading import load_model, load_tokenizer

    path = str(demo_model())
    metadata = {"data_dir": str(demo_corpus("evaluate")), "text_documents": "all"}
    manager = TaskManager(include_path=str(tasks_folder() / "text"), include_defaults=False, metadata=metadata)
    tasks = manager.load([f"plnd_text_{language}" for language in LANGUAGES])["tasks"]
    for task in tasks.values():
        task.set_config(key="num_fewshot", value=0)
    return load_model(path, dtype=dtype, device="cpu"), load_tokenizer(path), tasks


def _single_threaded_and_silent() -> None:
    """For a worker process: what lm-eval and its libraries say is of no use here; exceptions still come through."""
    import torch

    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def table(results: Mapping[str, Any]) -> str:
    """The table of the results: change of bits per byte (columns) without a language's neurons (rows)."""
    lines = [
        "bits per byte: change in each language, on the half of the documents not used for detection",
        f"{'off':<10}{'neurons':>8}" + "".join(f"{x:>8}" for x in LANGUAGES) + f"{'own/others':>12}{'own/random':>12}",
        f"{'nothing':<18}" + "".join(f"{results['bits_per_byte'][x]:>8.3f}" for x in LANGUAGES),
    ]
    for language in LANGUAGES:
        mine = [row for row in results["change"] if row["off"] == language]
        (own,) = (row for row in mine if row["seed"] is None)
        controls = [row for row in mine if row["seed"] is not None]
        random = {x: sum(row[x] for row in controls) / len(controls) for x in LANGUAGES}
        others = sum(own[x] for x in LANGUAGES if x != language) / (len(LANGUAGES) - 1)
        ratios = f"{_ratio(own[language], others):>12}{_ratio(own[language], random[language]):>12}"
        for name, change, end in ((language, own, ratios), ("  random", random, "")):
            lines.append(
                f"{name:<10}{own['neurons']:>8,}" + "".join(f"{signed(change[x]):>8}" for x in LANGUAGES) + end
            )
    lines.append(f"random: as many neurons of each block and projection, mean of {len(CONTROL_SEEDS)} draws")
    return "\n".join(lines)


def _ratio(own: float, other: float) -> str:
    return f"{own / other:.1f}" if other > 0 else "no harm"


def _faster_dtype() -> str:
    """bfloat16 where this CPU multiplies it faster than float32, as those with AMX do several times."""
    import torch

    seconds = {}
    for name in ("float32", "bfloat16"):
        matrix = torch.ones(1024, 1024, dtype=getattr(torch, name))
        matrix @ matrix
        start = time.perf_counter()
        for _ in range(3):
            matrix @ matrix
        seconds[name] = time.perf_counter() - start
    return min(seconds, key=seconds.__getitem__)


def _write_json(value: Any, path: Path) -> None:
    from plnd.io.files import write_bytes

    write_bytes((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(), path)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
