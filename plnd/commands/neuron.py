"""`plnd neuron`: what single neurons are about, as a table, as JSON, and as a page to browse."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from plnd.commands.shared import (
    Command,
    add_corpus,
    add_fields,
    add_loading,
    add_model,
    by_language,
    from_flags,
    loading,
    model_source,
    open_corpus,
)
from plnd.errors import PLNDError
from plnd.inspection.config import InspectConfig

if TYPE_CHECKING:
    from plnd.neurons.neuron_set import NeuronSet


class Neuron(Command):
    """The subcommand."""

    help = "show what neurons are about: the tokens they fire on in each language, and the tokens they write"
    example = "plnd neuron zh.safetensors --corpus zh=zh.jsonl en=en.jsonl --html zh.html"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the subcommand's options, some of them the fields of `InspectConfig`."""
        parser.add_argument("neurons", nargs="?", help="neurons artifact; without one, name neurons and --model")
        parser.add_argument(
            "--neuron", nargs="+", metavar="NAME",
            help="only these, wherever they are from: block, projection and number, such as 5.down_proj.123",
        )  # fmt: skip
        add_model(parser, "folder or hub name (default: the model that the neurons were found in)", required=False)
        add_corpus(parser, "LANGUAGE=CORPUS for each language (again for further files of one): ")
        parser.add_argument(
            "--scores", nargs="+", default=[], metavar="LANGUAGE=SCORES",
            help="scores artifacts, to show importance for each language (default: mean |value| on the corpora)",
        )  # fmt: skip
        add_fields(parser, InspectConfig)
        add_loading(parser)
        parser.add_argument("--json", help="also write all of it as JSON (docs/neurons.md)")
        parser.add_argument("--html", help="also write a page to browse, one file that needs no other")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Refuses what does not fit together, reads each corpus once, and prints and writes what was found."""
        from plnd.inspection.choice import choose
        from plnd.inspection.page import neuron_page
        from plnd.inspection.run import check_origin, inspect_neurons
        from plnd.inspection.table import neuron_lines
        from plnd.io.files import check_writable, write_bytes
        from plnd.models.layout import Layout
        from plnd.models.loading import load_model, load_skeleton, load_tokenizer
        from plnd.neurons.neuron_set import NeuronSet
        from plnd.neurons.scores import Scores

        config = from_flags(InspectConfig, args)
        corpora, scores = by_language(args.corpus, "--corpus"), by_language(args.scores, "--scores")
        if again := next((language for language, files in scores.items() if len(files) > 1), None):
            raise PLNDError(f"--scores: {again} is there {len(scores[again])} times, expected once")
        for path in filter(None, (args.json, args.html)):
            check_writable(path)
        found = None if args.neurons is None else NeuronSet.load(args.neurons)
        name, source = _model(args, found)
        scored = {language: Scores.load(file) for language, (file,) in scores.items()}
        documents = {language: open_corpus(files, args) for language, files in corpora.items()}
        chosen: NeuronSet | Sequence[str] = args.neuron or found  # type: ignore[assignment]
        layout = Layout(load_skeleton(name, **source))
        for one in (found, chosen):
            check_origin(layout.description(), one or (), scored, corpora)
        choose(chosen, config.top, layout.widths)  # refused before the weights are loaded
        tokenizer = load_tokenizer(name, **source)
        model = load_model(name, **source, **loading(args))
        inspection = inspect_neurons(model, tokenizer, chosen, documents, scores=scored, config=config, progress=True)
        for line in neuron_lines(inspection):
            print(line)
        for path, write in ((args.json, inspection.to_json), (args.html, lambda: neuron_page(inspection))):
            if path:
                digest = write_bytes(write().encode(), path)
                print(f"{path}: {len(inspection.neurons)} neurons; sha256 {digest}")


def _model(args: argparse.Namespace, neurons: NeuronSet | None) -> tuple[str, dict[str, Any]]:
    """Which model, and how to load it."""
    from plnd.model_description import base_model

    source = model_source(args)
    if neurons is None and not (args.neuron and args.model):
        raise PLNDError("nothing to show: give a neurons artifact, or name neurons with --neuron, and --model")
    if args.model is not None:
        return args.model, source
    assert neurons is not None
    name, revision = base_model(neurons.model, args.neurons, "give --model")
    return name, source | {"revision": args.revision or revision}
