"""From scores to sets of neurons, and what one can ask of sets: `plnd select`, `combine`, `overlap` and `layers`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from plnd.commands.shared import Command, add_restriction, load_named, restriction, save_neurons
from plnd.errors import PLNDError

if TYPE_CHECKING:
    from plnd.neurons.neuron_set import NeuronSet


class Select(Command):
    """The subcommand."""

    help = "choose neurons from a scores artifact by one rule"
    example = "plnd select zh.scores.safetensors --fraction 0.01 --output zh.safetensors"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the scores, the rules and what to choose from."""
        parser.add_argument("scores", help="scores artifact")
        rule = parser.add_mutually_exclusive_group(required=True)
        rule.add_argument("--epsilon", type=float, help="importance at least this in every document (eq. 2)")
        rule.add_argument("--top-k", type=int, help="among the k most important of their projection in every document")
        rule.add_argument(
            "--fraction",
            type=float,
            help="the top-k rule with k the share of each width that gives this fraction of neurons; with --against,"
            " this fraction of neurons, those of lowest entropy",
        )
        rule.add_argument(
            "--top-rate",
            type=float,
            help="with --against: specific are this share of all neurons (LAPE's paper: 0.01)",
        )
        parser.add_argument(
            "--against", nargs="+", metavar="SCORES",
            help="scores of other languages, all with --method lape: neurons specific by activation probability"
            " entropy",
        )  # fmt: skip
        parser.add_argument("--output", required=True, help="neurons artifact to write")
        add_restriction(parser)

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Selects by the rule that was given."""
        from plnd.neurons.scores import Scores

        scores = Scores.load(args.scores)
        if args.against is not None:
            from plnd.neurons.lape import lape

            if args.fraction is None and args.top_rate is None:
                raise PLNDError("--against selects by entropy over languages: its rules are --fraction and --top-rate")
            languages = [scores, *map(Scores.load, args.against)]
            own, *_ = lape(languages, top_rate=args.top_rate, fraction=args.fraction, **restriction(args))
            save_neurons(own, args.output)
            return
        if args.top_rate is not None:
            raise PLNDError("--top-rate is a rule over languages: name the scores of the others with --against")
        given = {"epsilon": args.epsilon, "top_k": args.top_k, "fraction": args.fraction}
        neurons = scores.select(**given, **restriction(args))
        rule = neurons.metadata.rule
        why_empty = f": no neuron meets {rule.name}={rule['value']:g}; it cannot be evaluated or exported"
        save_neurons(neurons, args.output, why_empty)


class _Operation(argparse.Action):
    """Keeps the order in which --minus, --union, … were given."""

    def __call__(self, parser, namespace, values, option_string=None):  # noqa: D102
        namespace.operations = [*getattr(namespace, "operations", []), (self.dest, values)]


class Combine(Command):
    """The subcommand."""

    help = "set algebra on neurons artifacts, from left to right"
    example = "plnd combine zh.safetensors --minus en.safetensors ru.safetensors --output zh_specific.safetensors"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the sets, the operations and the restriction."""
        parser.add_argument("neurons", help="neurons artifact")
        for flag, text in (
            ("--minus", "remove the neurons of these sets"),
            ("--union", "add the neurons of these sets"),
            ("--intersect", "keep only neurons that are in all of these sets too"),
            ("--minus-shared", "remove the neurons that all of these sets and the first one have in common"),
        ):
            parser.add_argument(flag, nargs="+", action=_Operation, default=[], metavar="FILE", help=text)
        parser.add_argument("--top", type=int, metavar="N", help="keep only the N most important neurons of the result")
        parser.add_argument("--output", required=True, help="neurons artifact to write")
        add_restriction(parser)

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Applies the operations from left to right, then the restriction, then --top."""
        from plnd.model_description import check_model
        from plnd.neurons.neuron_set import NeuronSet

        result = NeuronSet.load(args.neurons)
        for operation, files in getattr(args, "operations", []):
            others = [NeuronSet.load(file) for file in files]
            for file, other in zip(files, others, strict=True):
                check_model(other.model, result.model, file)
            result = _combined(result, operation, others)
        kept = restriction(args)
        if any(kept.values()):
            result = result.restrict(**kept)
        if args.top is not None:
            if args.top < 1:
                raise PLNDError(f"--top {args.top}: expected 1 or more")
            result = result.top(args.top)
        save_neurons(result, args.output)


def _combined(neurons: NeuronSet, operation: str, others: list[NeuronSet]) -> NeuronSet:
    if operation == "minus_shared":
        return neurons.minus_shared(others)
    for other in others:
        if operation == "minus":
            neurons = neurons - other
        elif operation == "union":
            neurons = neurons | other
        else:
            neurons = neurons & other
    return neurons


class Overlap(Command):
    """The subcommand."""

    help = "overlap(x, y) = |x and y| / |y| of every pair of neuron sets (eq. 11)"
    example = "plnd overlap en.safetensors de.safetensors zh.safetensors --plot overlap.png"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the sets and the files to write."""
        parser.add_argument("files", nargs="+", help="neurons artifacts")
        parser.add_argument("--csv", help="also write the matrices as CSV")
        parser.add_argument("--plot", help="also draw them (.png, .svg, .pdf)")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Prints the matrices, and writes and draws them where asked."""
        show_overlap(load_named(args.files), csv=args.csv, plot=args.plot)


def show_overlap(sets: Mapping[str, NeuronSet], *, csv: str | Path | None, plot: str | Path | None) -> None:
    """Prints the overlap of every pair of sets, over all, attention and feed-forward neurons; writes and draws it."""
    from plnd.io.files import write_csv
    from plnd.neurons.overlap import STRUCTURES, overlap

    matrices = {structure: overlap(sets, structure) for structure in STRUCTURES}
    names = list(sets)
    width = max(7, *(len(name) + 1 for name in names))
    rows = []
    for structure, matrix in matrices.items():
        print(f"{structure}: |x and y| / |y|, x down, y across")
        print(" " * width + "".join(f"{name:>{width}}" for name in names))
        for name, values in zip(names, matrix, strict=True):
            print(f"{name:<{width}}" + "".join(f"{value:>{width}.3f}" for value in values))
            rows += [(structure, name, other, value) for other, value in zip(names, values, strict=True)]
    if csv:
        write_csv(csv, ("structure", "x", "y", "overlap"), rows)
    if plot:
        from plnd.plots import plot_overlap

        plot_overlap(matrices, names, plot)


class Layers(Command):
    """The subcommand."""

    help = "count neurons per block and projection"
    example = "plnd layers zh.safetensors --csv zh.layers.csv"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the sets and the files to write."""
        parser.add_argument("files", nargs="+", help="neurons artifacts")
        parser.add_argument("--csv", help="also write the counts as CSV")
        parser.add_argument("--plot", help="also draw them (.png, .svg, .pdf)")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Prints the counts, and writes and draws them where asked."""
        from plnd.addresses import block_names
        from plnd.io.files import write_csv
        from plnd.neurons.overlap import layers

        sets = load_named(args.files)
        counts = {name: layers(neurons) for name, neurons in sets.items()}
        rows = []
        for name, by_projection in counts.items():
            blocks = block_names(sets[name].widths)
            width = max(map(len, ("block", *blocks)))
            print(f"{name}\n{'block':>{width}}" + "".join(f"{p:>11}" for p in by_projection))
            for block, values in zip(blocks, zip(*by_projection.values(), strict=True), strict=True):
                print(f"{block:>{width}}" + "".join(f"{value:>11,}" for value in values))
                rows += [(name, block, p, int(value)) for p, value in zip(by_projection, values, strict=True)]
        if args.csv:
            write_csv(args.csv, ("set", "block", "projection", "neurons"), rows)
        if args.plot:
            from plnd.plots import plot_layers

            plot_layers(counts, args.plot)
