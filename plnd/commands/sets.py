"""From scores to sets of neurons, and what one can ask of sets: `plnd select`, `combine`, `overlap` and `layers`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from plnd.commands.shared import Command, add_plot, add_restriction, load_named, restriction, save_neurons, say
from plnd.errors import PLNDError

if TYPE_CHECKING:
    from plnd.neurons.neuron_set import NeuronSet


class Select(Command):
    """The subcommand."""

    help = "choose neurons from scores: what is special to a language (--against), or what is important for it"
    example = (
        "plnd select zh.scores.safetensors --against en.scores.safetensors ru.scores.safetensors --output"
        " zh.safetensors"
    )

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the scores, the rules and what to choose from."""
        parser.add_argument(
            "scores", nargs="+",
            help="scores artifact of the language; with --against several: of each language of a group, for the neurons"
            " that serve all of them",
        )  # fmt: skip
        parser.add_argument("--output", required=True, help="neurons artifact to write")
        special = parser.add_argument_group(
            "what is special to the language",
            "Neurons that are at least twice as important for it as for any other language (contrast). With --against\n"
            "alone: the 0.1 % that matter most, among those that pass at an error rate of 5 %.",
        )
        special.add_argument(
            "--against", nargs="+", metavar="SCORES",
            help="scores artifacts of the other languages, of the same model and made with the same settings",
        )  # fmt: skip
        number = special.add_mutually_exclusive_group()
        number.add_argument("--count", type=int, metavar="N", help="the N neurons that matter most")
        number.add_argument("--share", type=float, metavar="S", help="this share of all neurons, 0.001 for 0.1 %%")
        special.add_argument(
            "--error-rate", type=float, metavar="Q",
            help="only neurons whose contrast is no accident of the documents; of these at most this share is expected"
            " to be wrong (alone: all of them)",
        )  # fmt: skip
        special.add_argument(
            "--times", type=float, metavar="T",
            help="at least so many times as important as in any other language (default: 2); less finds more neurons,"
            " which serve the others more",
        )  # fmt: skip
        special.add_argument(
            "--top-rate", type=float, metavar="R",
            help="LAPE's rule instead, for scores made with --method lape: specific is this share of all neurons, those"
            " of lowest entropy over languages (its paper: 0.01); or --fraction F, for each language so many of them",
        )  # fmt: skip
        important = parser.add_argument_group(
            "what is important for the language", "The PLND paper's rules; many of these neurons serve all languages."
        ).add_mutually_exclusive_group()
        important.add_argument("--epsilon", type=float, help="importance at least this in every document (eq. 2)")
        important.add_argument(
            "--epsilon-for", type=float, metavar="S",
            help="the largest epsilon that keeps at least this share of the neurons chosen from, 0.0013 for the paper's"
            " 0.13 %% (--projections says which are counted)",
        )  # fmt: skip
        important.add_argument(
            "--top-k", type=int, help="among the k most important of their projection in every document"
        )
        important.add_argument(
            "--fraction", type=float,
            help="the top-k rule with k the share of each width that gives this fraction of neurons",
        )  # fmt: skip
        whole = parser.add_argument_group(
            "whole units",
            "Experts or attention heads, by the importance of all their neurons together: --top-k of each block,\n"
            "--count of the whole model; with --against those whose part of their block's importance is at least\n"
            "twice as large as in any other language (--count, --share, --times). Of a routing artifact in the\n"
            "place of scores (plnd routing), experts whose share of the tokens of --language is at least twice as\n"
            "large as of any other (--count, --times). docs/units.md",
        )
        whole.add_argument(
            "--unit", choices=("expert", "head", "kv-head"),
            help="kv-head: keys and values of a group of query heads",
        )  # fmt: skip
        whole.add_argument(
            "--language", help="of a routing artifact, the language that the experts are to take most of"
        )
        whole.add_argument(
            "--pool", choices=("sum", "max"), help="of the importances of a unit's neurons (default: sum)"
        )
        add_restriction(parser.add_argument_group("choose only among some"))

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Selects by the rule that was given."""
        from plnd.neurons.scores import Scores

        if args.unit is not None:
            save_neurons(_units(args), args.output)
            return
        for name in ("pool", "language"):
            if getattr(args, name) is not None:
                raise PLNDError(f"--{name} is of whole units: say which with --unit")
        compared = _compared(args)
        own = [Scores.load(file) for file in args.scores]
        others = [Scores.load(file) for file in args.against or ()]
        if compared == "contrast":
            from plnd.neurons.contrast import contrast
            from plnd.neurons.stability import stability

            names = ("count", "share", "error_rate", "times")
            numbers = {name: value for name in names if (value := getattr(args, name)) is not None}
            neurons = contrast(own, others, **numbers, **restriction(args))
            save_neurons(neurons, args.output)
            _say_if_fewer(neurons)
            if min(each.metadata.corpus.documents for each in (*own, *others)) > 1:
                _say_how_stable(stability(own, others, **numbers, **restriction(args)))
        elif compared == "lape":
            from plnd.neurons.lape import lape

            neurons, *_ = lape([*own, *others], top_rate=args.top_rate, fraction=args.fraction, **restriction(args))
            save_neurons(neurons, args.output)
        else:
            given = {name: getattr(args, name) for name in ("epsilon", "epsilon_for", "top_k", "fraction")}
            neurons = own[0].select(**given, **restriction(args))
            rule = neurons.metadata.rule
            why_empty = f": no neuron meets {rule.name}={rule['value']:g}; it cannot be evaluated or exported"
            save_neurons(neurons, args.output, why_empty)
            if args.epsilon_for is not None:
                say(f"epsilon {rule['value']!r} keeps {_counted(neurons)}")


def _units(args: argparse.Namespace) -> NeuronSet:
    """What --unit chooses.

    Raises:
        PLNDError: if another rule is given, or what `plnd.select_units` refuses.
    """
    from plnd.neurons.scores import Scores
    from plnd.neurons.unit_selection import select_units

    for name in ("error_rate", "top_rate", "epsilon", "epsilon_for", "fraction"):
        if getattr(args, name) is not None:
            raise PLNDError(
                f"--{name.replace('_', '-')} is a rule of neurons: --unit takes --top-k or --count, or --against with"
                " --count, --share and --times"
            )
    if args.language is not None:
        return _routed(args)
    own, others = ([Scores.load(file) for file in files or ()] for files in (args.scores, args.against))
    rule = {name: getattr(args, name) for name in ("top_k", "count", "share", "times")}
    return select_units(own, others, unit=args.unit, pool=args.pool or "sum", **rule, **restriction(args))


def _routed(args: argparse.Namespace) -> NeuronSet:
    """The experts to which a language's tokens go, of a routing artifact.

    Raises:
        PLNDError: if there is more than that to choose by, or what `plnd.Routing.select` refuses.
    """
    from plnd.neurons.contrast import TIMES
    from plnd.references.routing import Routing

    for name in ("against", "share", "top_k", "pool", "projections", "regions"):
        if getattr(args, name) is not None:
            raise PLNDError(
                f"--{name.replace('_', '-')} is of scores: of routing, experts are chosen by --count and --times"
            )
    if args.unit != "expert" or len(args.scores) > 1:
        raise PLNDError("--language is of one routing artifact, whose units are experts: --unit expert")
    times = TIMES if args.times is None else args.times
    return Routing.load(args.scores[0]).select(args.language, times=times, count=args.count)


def _counted(neurons: NeuronSet) -> str:
    """How many of which neurons `--epsilon-for` kept, and how often one of the feed-forward is counted."""
    from plnd.neurons.selection import FEED_FORWARD

    rule = neurons.metadata.rule
    counted = rule["projections"] or neurons.metadata.method.projections
    names = [name for name in counted if name in FEED_FORWARD]
    often = f", each feed-forward neuron {len(names)} times: {', '.join(names)}" if len(names) > 1 else ""
    return f"{len(neurons):,} of {rule['chosen_from']:,} neurons of {', '.join(counted)} ({rule['share']:.3%}{often})"


def _compared(args: argparse.Namespace) -> str | None:
    """How languages are compared, `contrast` or `lape`; None for a rule of one language.

    Raises:
        PLNDError: if the flags do not go together.
    """

    def given(*names: str) -> list[str]:
        return [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]

    of_contrast, of_lape, of_one = (
        given("count", "share", "error_rate", "times"),
        given("top_rate", "fraction"),
        given("epsilon", "epsilon_for", "top_k"),
    )
    if args.against is None:
        if over := [*of_contrast, *given("top_rate")]:
            raise PLNDError(f"{over[0]} is a rule over languages: name the scores of the others with --against")
        if len(args.scores) > 1:
            raise PLNDError(
                f"{len(args.scores)} scores files: several are a group of languages, which is compared with others:"
                " name the scores of those with --against"
            )
        if not (of_one or of_lape):
            raise PLNDError(
                "no rule: name the scores of other languages with --against for what is special to this one, or give"
                " --fraction, --top-k, --epsilon or --epsilon-for for what is important for it"
            )
        return None
    if of_one:
        raise PLNDError(
            f"--against compares languages: its rules are --count, --share, --error-rate and --times (contrast), or"
            f" --top-rate and --fraction (LAPE); {of_one[0]} is one without --against"
        )
    if not of_lape:
        return "contrast"
    if of_contrast:
        raise PLNDError(f"{of_lape[0]} is LAPE's rule and {of_contrast[0]} that of contrast: give one of them")
    if len(args.scores) > 1:
        raise PLNDError(f"{of_lape[0]} is LAPE's rule, which has no groups of languages: give one scores file first")
    return "lape"


def _say_if_fewer(neurons: NeuronSet) -> None:
    """A line on stderr if a contrast kept fewer neurons than were asked for."""
    rule = neurons.metadata.rule
    if rule["asked"] is not None and rule["kept"] < rule["asked"]:
        passing = "" if rule["error_rate"] is None else f" and pass at an error rate of {rule['error_rate']:g}"
        print(
            f"note: {rule['kept']:,} neurons instead of {rule['asked']:,}: no others are {rule['times']:g} times as"
            f" important here as in any other language{passing}",
            file=sys.stderr,
        )


def _say_how_stable(share: float) -> None:
    """How much of the set other documents are expected to choose again, and what to do where that is little."""
    from plnd.neurons.stability import ENOUGH

    say(f"stability {share:.2f}: this share of them is expected to be chosen again on as many other documents")
    if share < ENOUGH:
        print(
            f"note: a stability below {ENOUGH:g} comes of too few documents, of too many neurons, or of a language"
            " without neurons of its own: detect on more documents, or ask for fewer neurons",
            file=sys.stderr,
        )


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
        parser.add_argument(
            "--whole", action="store_true",
            help="last, complete feed-forward neurons: the rows of gate and up and the column of down of each",
        )  # fmt: skip
        parser.add_argument("--output", required=True, help="neurons artifact to write")
        add_restriction(parser)

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Applies the operations from left to right, then the restriction, then --top, then --whole."""
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
        if args.whole:
            result = result.whole()
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
        add_plot(parser)

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Prints the matrices, and writes and draws them where asked."""
        show_overlap(load_named(args.files), csv=args.csv, plot=args.plot, columns=args.columns)


def show_overlap(
    sets: Mapping[str, NeuronSet], *, csv: str | Path | None, plot: str | Path | None, columns: int = 2
) -> None:
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

        plot_overlap(matrices, names, plot, columns=columns)


class Layers(Command):
    """The subcommand."""

    help = "count neurons per block and projection"
    example = "plnd layers zh.safetensors --csv zh.layers.csv"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the sets and the files to write."""
        parser.add_argument("files", nargs="+", help="neurons artifacts")
        parser.add_argument("--csv", help="also write the counts as CSV")
        add_plot(parser)

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

            plot_layers(counts, args.plot, columns=args.columns)
