"""`plnd ablate`: what switching a set off costs on any lm-eval tasks, in one command."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plnd.commands.shared import (
    Command,
    add_intervention,
    add_model,
    add_plot,
    add_restriction,
    intervention,
    restriction,
    say,
)
from plnd.errors import PLNDError

if TYPE_CHECKING:
    from lm_eval.api.task import Task


class Ablate(Command):
    """The subcommand (entry point `plnd.commands: ablate`)."""

    help = "what switching a set off costs, on any lm-eval tasks or text files, beside as many random neurons"
    example = "plnd ablate zh.safetensors --text zh=zh.jsonl en=en.jsonl --limit 50 --output zh-off"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the subcommand's options; those of lm-eval's own command line bear its names."""
        add = parser.add_argument
        add("mask", help="neurons artifact")
        add("--tasks", default="", help="lm-eval tasks or groups, comma-separated")
        add(
            "--text", nargs="+", default=[], metavar="NAME=FILE",
            help="bits per byte of the end of text files: the last 500 documents, at most the last half; a set that"
            " was detected on them is refused: detect on those before, with --max-documents",
        )  # fmt: skip
        add("--draws", type=int, default=3, help="random sets of as many neurons of each block and projection")
        add_model(parser, "folder or hub name (default: the model that the set was made for)", required=False)
        add("--model_args", "--model-args", default="", help="of lm-eval's hf: dtype=bfloat16,max_length=512,…")
        add("--batch_size", "--batch-size", default="1", help="number, or auto")
        add("--device", help="cpu, cuda, cuda:1, … (default: an accelerator if any)")
        add("--num_fewshot", "--num-fewshot", type=int, help="worked examples before each document")
        add("--gen_kwargs", "--gen-kwargs", default="", help="how answers are generated: max_gen_toks=64,…")
        add("--metadata", default="", help='of tasks, as JSON: \'{"data_dir": "FOLDER"}\'')
        add("--include_path", "--include-path", help="folder of further tasks; those of plnd are known")
        add("--limit", type=float, help="at most so many documents of each task; below 1 a share of them")
        add("--apply_chat_template", "--apply-chat-template", action="store_true", help="ask through the template")
        add("--output", "--output_path", "--output-path", help="folder for tables, picture and values by document")
        add_restriction(parser)
        add_intervention(parser, "")
        add_plot(parser, "the changes")
        parser.set_defaults(advice=lambda args: "the same command continues" if args.output else "")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Evaluates, prints the table and the sentence, and writes and draws them where asked."""
        from importlib.util import find_spec

        from lm_eval_plnd.experiments.ablation.run import ablation
        from lm_eval_plnd.experiments.ablation.summary import draw, text, write
        from lm_eval_plnd.experiments.ablation.unseen import check_unseen
        from lm_eval_plnd.experiments.evaluation import load_lm
        from plnd.neurons.neuron_set import NeuronSet

        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        if args.limit is not None and (args.limit <= 0 or (args.limit > 1 and not args.limit.is_integer())):
            raise PLNDError(f"--limit {args.limit:g}: expected a whole number above 0, or a share below 1")
        if args.plot:
            from plnd.plot_style import check_plot

            check_plot(args.plot)
        done, neurons, kept = intervention(args), NeuronSet.load(args.mask), restriction(args)
        neurons = neurons.restrict(**kept) if any(kept.values()) else neurons
        neurons.check_some("switch off")
        arguments = _model_arguments(args, neurons)
        texts = _texts(args.text)
        tasks = find_tasks(
            [name.strip() for name in args.tasks.split(",") if name.strip()], texts,
            include_path=args.include_path, num_fewshot=args.num_fewshot,
            gen_kwargs=_parsed("--gen_kwargs", args.gen_kwargs), metadata=_json(args.metadata),
        )  # fmt: skip
        asked = {"model": arguments, "num_fewshot": args.num_fewshot, "gen_kwargs": args.gen_kwargs}
        asked |= {"metadata": args.metadata}
        limit = int(args.limit) if args.limit is not None and args.limit >= 1 else args.limit
        lm = load_lm(arguments)
        for name, path in texts.items():
            check_unseen(neurons, lm.tokenizer, name, path)
        found = ablation(
            lm, neurons, tasks, draws=args.draws, limit=limit, folder=args.output, asked=asked,
            apply_chat_template=args.apply_chat_template, intervention=done,
        )  # fmt: skip
        say_lines(text(found))
        plots = [args.plot] if args.plot else []
        if args.output:
            write(found, Path(args.output))
            plots += [Path(args.output, "ablation.png")] if find_spec("matplotlib") else []
        for path in plots:
            draw(found, path, columns=args.columns)


def say_lines(text: str) -> None:
    """Prints lines that may quote an artifact."""
    for line in text.split("\n"):
        say(line)


def find_tasks(
    names: Sequence[str],
    texts: Mapping[str, str],
    *,
    include_path: str | None = None,
    num_fewshot: int | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Task]:
    """lm-eval's tasks, plnd's and those of `include_path`, of groups all that are in them; and text files.

    Args:
        names: of tasks and groups.
        texts: name of a task to be to a text file, whose bits per byte are scored.
        include_path, num_fewshot, gen_kwargs, metadata: as lm-eval's.

    Raises:
        PLNDError: if there is none, or one does not exist or cannot be read, or two have one name.
    """
    from lm_eval.tasks import TaskManager

    from lm_eval_plnd.experiments.evaluation import ask, read_tasks
    from lm_eval_plnd.task_folder import tasks_folder
    from plnd.demo_data import expand

    if not names and not texts:
        raise PLNDError("nothing to evaluate: name lm-eval tasks with --tasks, or text files with --text NAME=FILE")
    found: dict[str, Task] = {}
    if names:
        paths = [str(tasks_folder()), *([include_path] if include_path else [])]
        options: dict[str, Any] = {"include_path": paths, "metadata": expand(dict(metadata or {}))}
        manager = TaskManager(**options, include_defaults=False)
        if any(name not in manager.all_tasks for name in names):  # lm-eval's own, which take a while
            manager = TaskManager(**options)
        for name in names:
            if name not in manager.all_tasks:
                raise PLNDError(f"--tasks: no lm-eval task {name}; `lm_eval ls tasks` lists them")
            found |= read_tasks(manager, name, "--tasks")
        generating = [task for task in found.values() if task.get_config("output_type") == "generate_until"]
        if gen_kwargs and not generating:
            raise PLNDError("--gen_kwargs: none of the tasks generates anything")
        for task in found.values():
            ask(task, num_fewshot, gen_kwargs if gen_kwargs and task in generating else {}, "--gen_kwargs")
    for name, path in texts.items():
        if name in found:
            raise PLNDError(f"--text {name}={path}: a task has that name already; take another")
        found[name] = text_task(name, path)
    return found


def text_task(name: str, path: str) -> Task:
    """Bits per byte of the end of a text file, as the `plnd_text` tasks measure it."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    from lm_eval_plnd.rows.benchmarks import TEXTS, end_of_corpus
    from plnd.demo_data import expand

    rows = datasets.Dataset.from_dict({"text": end_of_corpus(expand(path))}, features=TEXTS)
    return ConfigurableTask(
        config={
            "task": name,
            "output_type": "loglikelihood_rolling",
            "custom_dataset": lambda **_: datasets.DatasetDict(test=rows),
            "test_split": "test",
            "doc_to_text": "",
            "doc_to_target": "text",
            "metric_list": [
                {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
            ],
        }
    )


def _model_arguments(args: argparse.Namespace, neurons: Any) -> dict[str, Any]:
    """Of lm-eval's hf; the model is by default the one that the set was made for."""
    from plnd.model_description import base_model

    given = _parsed("--model_args", args.model_args)
    name, revision = (args.model, args.revision)
    if name is None:
        name = given.pop("pretrained", None)
    if name is None:
        name, revision = base_model(neurons.model, f"mask {args.mask}", "give --model")
        revision = args.revision or revision
    named = {"pretrained": name, "batch_size": args.batch_size, "device": args.device, "revision": revision}
    for option, value in named.items():
        if option in given:
            raise PLNDError(f"{option}={given[option]} in --model_args: take --{option.replace('pretrained', 'model')}")
        if value is not None:
            given[option] = value
    return given | ({"trust_remote_code": True} if args.trust_remote_code else {})


def _texts(given: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in given:
        name, equals, path = one.partition("=")
        if not (name and equals and path):
            raise PLNDError(f"--text {one}: expected NAME=FILE, such as zh=zh.jsonl")
        if name in found:
            raise PLNDError(f"--text {one}: {name} is named twice")
        found[name] = path
    return found


def _parsed(flag: str, text: str) -> dict[str, Any]:
    from lm_eval.utils import simple_parse_args_string

    try:
        return simple_parse_args_string(text)
    except ValueError:
        raise PLNDError(f"{flag} {text}: expected name=value,name=value") from None


def _json(text: str) -> dict[str, Any]:
    from plnd.io import strict_json

    try:
        found = strict_json.parse(text) if text else {}
    except ValueError as error:
        raise PLNDError(f"--metadata {text:.60}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise PLNDError(f"--metadata {text:.60}: expected an object")
    return found
