"""`plnd demo`: the whole story on the model inside the package, offline.

Detects the neurons of six languages, makes language-specific sets and equally large random ones, evaluates each through lm-eval's
own `simple_evaluate` with `model="plnd"`, and ends with a table: what happens to every language when one is switched off.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plnd.errors import PLNDError

if TYPE_CHECKING:
    from plnd.neurons import NeuronSet

LANGUAGES = ("en", "de", "fr", "es", "ru", "zh")
PROJECTIONS = ("down_proj",)
FRACTION = 0.05
OTHERS_FRACTION = 0.05
CONTROL_SEEDS = (0, 1, 2)

Changes = Mapping[str, float]
"""Change of bits per byte by language."""


class Demo:
    """The subcommand (entry point `plnd.commands: demo`)."""

    help = "the whole story on the model inside the package, offline, in under two minutes"
    example = "plnd demo --output plnd-demo"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the subcommand's options."""
        parser.add_argument("--output", default="plnd-demo", help="folder for artifacts and results (default: plnd-demo)")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Runs the demo and prints its table."""
        demo(Path(args.output))


def demo(output: Path) -> dict[str, Any]:
    """Runs the demo; returns what `results.json` in the folder `output` holds.

    Raises:
        PLNDError: if the folder cannot be written.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched, and nothing waits for a network that is not there
    started = time.monotonic()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PLNDError(f"{output}: cannot be made ({error.strerror}); choose another folder with --output") from None
    sets = detect_all(output)
    draw_overlap(sets, output)
    results = evaluate_all(output)
    results["seconds"] = round(time.monotonic() - started, 1)
    _write_json(results, output / "results.json")
    print(table(results))
    _say(f"done in {results['seconds']:.0f} s; artifacts, overlap.png, overlap.csv and results.json are in {output}/")
    return results


def detect_all(output: Path) -> dict[str, NeuronSet]:
    """Scores, language neurons and language-specific neurons of every language, saved; returns the language neurons."""
    from plnd.corpus import read_documents
    from plnd.detection import DetectConfig, detect
    from plnd.models import demo_corpus, demo_model, load_model, load_tokenizer

    path = str(demo_model())
    model, tokenizer = load_model(path, dtype="float32", device="cpu"), load_tokenizer(path)
    _say(f"model: {path} ({model.num_parameters() / 1e6:.0f} M parameters)")
    scores = {}
    for language in LANGUAGES:
        source = demo_corpus("detect") / "corpora" / f"{language}.jsonl"
        config = DetectConfig(language=language)
        scores[language] = detect(
            model, read_documents(source), config, tokenizer=tokenizer, source=source.name, progress=True
        )
        scores[language].save(output / f"{language}.scores.safetensors")
    neurons = {x: s.select(fraction=FRACTION, projections=PROJECTIONS) for x, s in scores.items()}
    taken = {x: s.select(fraction=OTHERS_FRACTION, projections=PROJECTIONS) for x, s in scores.items()}
    for language, own in neurons.items():
        own.save(output / f"{language}.safetensors")
        specific = own
        for other in LANGUAGES:
            if other != language:
                specific = specific - taken[other]
        specific.save(output / f"{language}_specific.safetensors")
        _say(f"{language}: {len(own):,} language neurons, {len(specific):,} specific ({len(specific) / own.total:.2%} of all)")
    return neurons


def draw_overlap(sets: Mapping[str, NeuronSet], output: Path) -> None:
    """The overlap matrix of the language neurons: printed, as CSV and, if matplotlib is installed, as PNG."""
    from plnd.cli import main

    files = [str(output / f"{language}.safetensors") for language in sets]
    plot = ["--plot", str(output / "overlap.png")]
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        plot = []
        _say("no overlap.png: pip install 'plnd[plots]'")
    main(["overlap", *files, "--csv", str(output / "overlap.csv"), *plot])


def evaluate_all(output: Path) -> dict[str, Any]:
    """Bits per byte of every language for the plain model, and with each language's specific or random neurons off."""
    _quiet()
    import lm_eval.models  # noqa: F401  the registry must be filled before a name is added to it
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from lm_eval_plnd.bridge import register
    from plnd.models import demo_corpus, demo_model
    from plnd.neurons import NeuronSet
    from plnd.tasks import tasks_folder

    register()
    tasks = TaskManager(
        include_path=str(tasks_folder()),
        include_defaults=False,
        metadata={"data_dir": str(demo_corpus("evaluate")), "text_documents": "all"},
    )
    names = {language: f"plnd_text_{language}" for language in LANGUAGES}

    def bits_per_byte(model: str, **arguments: Any) -> dict[str, float]:
        results = simple_evaluate(
            model=model,
            model_args={"dtype": "float32", "max_length": 512, **arguments},
            tasks=list(names.values()),
            task_manager=tasks,
            batch_size=16,
            device="cpu",
            bootstrap_iters=0,
            log_samples=False,
        )
        return {language: results["results"][name]["bits_per_byte,none"] for language, name in names.items()}

    runs = len(LANGUAGES) * (1 + len(CONTROL_SEEDS)) + 1
    done = iter(range(1, runs + 1))
    _say(f"evaluating {next(done)}/{runs}: the whole model")
    whole = bits_per_byte("hf", pretrained=str(demo_model()))
    rows = []
    for language in LANGUAGES:
        mask = output / f"{language}_specific.safetensors"
        for control in ({}, *({"control": "random", "seed": seed} for seed in CONTROL_SEEDS)):
            _say(f"evaluating {next(done)}/{runs}: without {language}{' (random control)' if control else ''}")
            off = bits_per_byte("plnd", mask=str(mask), **control)
            change = {x: off[x] - whole[x] for x in LANGUAGES}
            rows.append({"language": language, "seed": control.get("seed"), "neurons": len(NeuronSet.load(mask)), **change})
    return {"model": str(demo_model().name), "bits_per_byte": whole, "change": rows}


def table(results: Mapping[str, Any]) -> str:
    """The table of the results: change of bits per byte (columns) without a language's neurons (rows)."""
    lines = [
        "change of bits per byte in each language, on documents not used for detection",
        f"{'off':<12}{'neurons':>8}" + "".join(f"{x:>8}" for x in LANGUAGES) + f"{'own/others':>12}{'own/random':>12}",
        f"{'(none: bpb)':<20}" + "".join(f"{results['bits_per_byte'][x]:>8.3f}" for x in LANGUAGES),
    ]
    for language in LANGUAGES:
        (own,) = (r for r in results["change"] if r["language"] == language and r["seed"] is None)
        controls = [r for r in results["change"] if r["language"] == language and r["seed"] is not None]
        random = {x: sum(r[x] for r in controls) / len(controls) for x in LANGUAGES}
        others = sum(own[x] for x in LANGUAGES if x != language) / (len(LANGUAGES) - 1)
        ratios = f"{_ratio(own[language], others):>12}{_ratio(own[language], random[language]):>12}"
        lines.append(f"{language:<12}{own['neurons']:>8,}" + "".join(f"{own[x]:>+8.3f}" for x in LANGUAGES) + ratios)
        lines.append(f"{'  random':<12}{own['neurons']:>8,}" + "".join(f"{random[x]:>+8.3f}" for x in LANGUAGES))
    lines.append(f"random: as many neurons per block and projection, mean of {len(CONTROL_SEEDS)} draws")
    return "\n".join(lines)


def _ratio(own: float, other: float) -> str:
    return f"{own / other:.1f}" if other > 0 else "no harm"


def _write_json(value: Any, path: Path) -> None:
    from plnd.artifacts import write_bytes

    write_bytes((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(), path)


def _quiet() -> None:
    """lm-eval and its libraries say much that is of no use here; errors still show."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    for name in ("lm_eval", "lm-eval", "datasets", "transformers", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
