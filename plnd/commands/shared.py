"""What subcommands have in common: what one is, the flags that several take, and how they speak of neurons."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    Protocol,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

from plnd.errors import PLNDError
from plnd.inspection.text import visible
from plnd.models.free_memory import is_out_of_memory

if TYPE_CHECKING:
    from plnd.interventions import Intervention
    from plnd.io.metadata import CorpusDescription, UnitsDescription
    from plnd.models.layout import Layout
    from plnd.neurons.neuron_set import NeuronSet

Config = TypeVar("Config")


@runtime_checkable
class Command(Protocol):
    """A subcommand. Importing its module is cheap: what it computes with is imported when it runs.

    Any object with these four will do, a class with static methods or an instance. `add_arguments` may also set the
    parser's default `advice`, a function from the arguments to what an interrupted run should be told, if anything.

    Attributes:
        help: one line for `plnd --help`.
        example: a command line that parses, for the end of the subcommand's own help.
    """

    help: str
    example: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the subcommand's arguments."""

    def run(self, args: argparse.Namespace) -> None:
        """Does the work and prints what came of it.

        Raises:
            PLNDError: for bad input; `main` prints it as one line.
        """


# errors


def error_line(error: Exception) -> str | None:
    """What to print for an error; None for one that nobody expected."""
    if isinstance(error, PLNDError):
        return str(error)
    if is_out_of_memory(error):
        return (
            "out of memory; try a smaller --batch-size or --max-length, --dtype bfloat16, or, of plnd detect,"
            " --blockwise, which holds two blocks of the model at a time"
        )
    if isinstance(error, OSError):  # a disk that is full, a file that is gone, the network
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{error.strerror or ' '.join(str(error).split()) or type(error).__name__}"
    return None


def say(line: str) -> None:
    """Prints one line on stdout that may quote an artifact: what would steer a terminal is shown, not obeyed."""
    print(visible(line))


def json_text(value: Any) -> str:
    """JSON to print, letters of all scripts as they are, where stdout can write them; what would steer a terminal is
    escaped, as JSON can."""
    escaped = not (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=escaped, default=dict)
    lines = text.split("\n")  # those of the layout: within strings JSON has escaped them
    return "\n".join("".join(f"\\u{ord(x):04x}" if visible(x) != x else x for x in line) for line in lines)


def print_error(command: str, line: str) -> None:
    """Tells in one line on stderr why a subcommand failed."""
    print(f"plnd {command}: {visible(line)}", file=sys.stderr)


def print_warning(message: Warning | str, *details: Any, **more: Any) -> None:
    """A warning as one line, without the place in the code that gave it; stands in for `warnings.showwarning`."""
    if os.environ.get("RANK", "0") == "0":  # of several processes, the first one speaks
        print(f"warning: {visible(' '.join(str(message).split()))}", file=sys.stderr)


# flags from a configuration


def add_fields(parser: argparse.ArgumentParser, config: type, *, required: Collection[str] = ()) -> None:
    """Adds a flag for each field of a dataclass: `max_length: int = 512` is `--max-length`, an int, by default 512.

    The help is the field's `metadata["help"]`, followed by its default.
    """
    annotations = get_type_hints(config)
    for field in fields(config):
        default = "" if field.default is None else f" (default: {field.default})"
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            default=field.default,
            required=field.name in required,
            help=field.metadata["help"] + default,
            **_accepted(annotations[field.name]),
        )


def _accepted(annotation: Any) -> dict[str, Any]:
    """What argparse accepts for a field: a word of its `Literal`, or what reads as its type, None aside."""
    if get_origin(annotation) is Literal:
        return {"choices": get_args(annotation)}
    parts = {*(get_args(annotation) or (annotation,))} - {NoneType}
    words = {word for part in parts if get_origin(part) is Literal for word in get_args(part)}
    (kind,) = (part for part in parts if get_origin(part) is not Literal)
    if not words:
        return {"type": kind}

    def read(text: str) -> Any:
        return text if text in words else kind(text)

    read.__name__ = " or ".join((kind.__name__, *sorted(words)))  # argparse says it of what it cannot read
    return {"type": read}


def from_flags(config: type[Config], args: argparse.Namespace) -> Config:
    """The configuration that the flags of `add_fields` give."""
    return config(**{field.name: getattr(args, field.name) for field in fields(config)})  # type: ignore[arg-type]


# pictures


def add_plot(parser: argparse.ArgumentParser, what: str = "them") -> None:
    """Adds --plot and --columns."""
    parser.add_argument("--plot", help=f"also draw {what} (.png, .svg, .pdf)")
    parser.add_argument(
        "--columns", type=int, choices=(1, 2), default=2, help="of --plot: over one column of a paper's page, or two"
    )


# models


def add_model(parser: argparse.ArgumentParser, help: str, *, required: bool = True) -> None:
    """Adds the flags that say which model: --model, --revision, --trust-remote-code and --family."""
    parser.add_argument("--model", required=required, help=help)
    parser.add_argument("--revision", help="hub branch, tag or commit")
    add_trust(parser)
    parser.add_argument(
        "--family", metavar="FILE",
        help="row that plnd probe --output wrote, for a model outside the families table; it is held to brute force on"
        " the model's own twin before it is used",
    )  # fmt: skip


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds the one thing that lets a command run a model's own code; no file and no artifact can."""
    parser.add_argument(
        "--trust-remote-code", "--trust_remote_code", action="store_true",
        help="run the Python code that comes with the model, where transformers has none for it",
    )  # fmt: skip


def model_source(args: argparse.Namespace) -> dict[str, Any]:
    """The flags of `add_model` beside the name, as what loads a model takes them."""
    return {"revision": args.revision, "trust_remote_code": args.trust_remote_code}


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say how to load a model: --dtype, --device and --quantize."""
    parser.add_argument(
        "--dtype", default="auto", help="auto (the checkpoint's), float32, bfloat16, float16 or float64"
    )
    parser.add_argument(
        "--device", help="cpu, cuda, cuda:1, auto (spread over accelerators); default: an accelerator if any"
    )
    parser.add_argument("--quantize", choices=("8bit", "4bit"), help="pack the weights with bitsandbytes while loading")
    parser.add_argument(
        "--offload", action="store_true",
        help="let --device auto leave on disk what fits nowhere; it is read from there in every pass",
    )  # fmt: skip


def loading(args: argparse.Namespace) -> dict[str, Any]:
    """The flags of `add_loading`, as `plnd.load_model` takes them."""
    return {"dtype": args.dtype, "device": args.device, "quantize": args.quantize, "offload": args.offload}


def add_blockwise(parser: argparse.ArgumentParser) -> None:
    """Adds --blockwise, to what works on a model of which two blocks are in memory at a time."""
    parser.add_argument(
        "--blockwise", action="store_true",
        help="for a model larger than memory: read it from its files block by block, once for every 16 batches; the"
        " result is the same bit for bit",
    )  # fmt: skip


def load_any(args: argparse.Namespace, **changed: Any) -> Any:
    """The model that the flags name, whole or blockwise; `changed` replaces some of `loading`."""
    from plnd.models.blockwise import blockwise_model
    from plnd.models.loading import load_model

    options = model_source(args) | loading(args) | changed
    if not getattr(args, "blockwise", False):
        return load_model(args.model, **options)
    for flag in ("quantize", "offload", "tensor_parallel", "expert_parallel"):
        if options.pop(flag, None):
            name = flag.replace("_", "-")
            raise PLNDError(f"--{name} with --blockwise: weights are read as stored, by each process; leave one out")
    return blockwise_model(args.model, **options)


def load_both(args: argparse.Namespace, check: Callable[[Layout], object] | None = None) -> tuple[Any, Any]:
    """The model and the tokenizer that the flags name.

    Before its weights are loaded the model's family has to be known, and `check` may refuse it.
    """
    from plnd.models.layout import Layout
    from plnd.models.loading import load_skeleton, load_tokenizer

    layout = Layout(load_skeleton(args.model, **model_source(args)))
    if check is not None:
        check(layout)
    tokenizer = load_tokenizer(args.model, **model_source(args))
    return load_any(args), tokenizer


# corpora


def add_corpus(parser: argparse.ArgumentParser, number: str) -> None:
    """Adds --corpus, --text-field and --format; `number` says how many corpora there can be."""
    parser.add_argument(
        "--corpus", nargs="+", required=True, metavar="CORPUS",
        help=number + "text (a document a line), .jsonl, .json, .csv, .tsv, .parquet, .arrow, any of them compressed, a"
        " pipe, a folder of them (there each .txt is a document), or data set NAME[:CONFIG[:SPLIT]]",
    )  # fmt: skip
    parser.add_argument("--text-field", default="text", help="field of a row, a.b for a nested one (default: text)")
    parser.add_argument(
        "--format", choices=("text", "json", "csv", "tsv", "parquet", "arrow"),
        help="what the files are, whatever their ending and first line say; for pipes and other endings",
    )  # fmt: skip


def open_corpus(corpus: str | Sequence[str], args: argparse.Namespace) -> Iterator[str]:
    """Its documents, the first of them read now: what cannot be read is refused before a model is loaded."""
    from plnd.io.corpus import read_documents

    documents = read_documents(corpus, args.text_field, args.format)
    return chain([next(documents)], documents)


def by_language(pairs: Sequence[str], flag: str) -> dict[str, list[str]]:
    """Language to what was given for it, of `LANGUAGE=FILE` each.

    Raises:
        PLNDError: if a part is missing.
    """
    found: dict[str, list[str]] = {}
    for pair in pairs:
        language, _, file = pair.partition("=")
        if not (language and file):
            raise PLNDError(f"{flag} {pair}: expected LANGUAGE=FILE, such as zh={pair.strip('=') or 'zh.jsonl'}")
        found.setdefault(language, []).append(file)
    return found


# sets of neurons


def add_restriction(parser: argparse._ActionsContainer) -> None:
    """Adds the flags that keep only some projections and regions."""
    parser.add_argument(
        "--projections",
        help="only these, comma-separated: q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj; or paper, those of"
        " which the PLND paper has an importance (all but o_proj and gate_proj), or once, all but gate_proj and"
        " up_proj, whose neurons are those of down_proj",
    )
    parser.add_argument("--regions", help="only these, comma-separated: under, solve, solve_attn, solve_ffn, gen")
    parser.add_argument("--under", type=int, help="number of understanding blocks (N1)")
    parser.add_argument("--gen", type=int, help="number of generation blocks (N2)")


def restriction(args: argparse.Namespace) -> dict[str, Any]:
    """The flags of `add_restriction`, as `NeuronSet.restrict` and the rules take them."""
    from plnd.neurons.regions import Regions

    regions = None if args.regions is None else Regions.parse(args.regions, args.under, args.gen)
    if regions is None and (args.under is not None or args.gen is not None):
        raise PLNDError("--under and --gen say how large the regions are: name some with --regions")
    projections = None if args.projections is None else [p.strip() for p in args.projections.split(",")]
    return {"projections": projections, "regions": regions}


_NEEDED: dict[str, dict[str, str | None]] = {
    "mean": {"means": "a means artifact from `plnd reference`"},
    "scale": {"factor": "such as 0.5"},
    "steer": {"steer": "a direction artifact from `plnd reference`", "strength": None},
}
"""The flags of each kind of intervention, and what they name; None where there is a default."""


def add_intervention(parser: argparse._ActionsContainer, more: str) -> None:
    """Adds --intervene and the flags of its kinds; `more` is said behind the default."""
    parser.add_argument(
        "--intervene", choices=("zero", *_NEEDED), default="zero",
        help=f"what becomes of the neurons' values (default: zero){more}",
    )  # fmt: skip
    parser.add_argument("--factor", type=float, help="of scale, such as 0.5")
    parser.add_argument("--means", help="of mean, a means artifact from plnd reference")
    parser.add_argument("--steer", help="of steer, a direction artifact from plnd reference")
    parser.add_argument("--strength", type=float, help="of steer, how many times the direction (default: 1)")


def intervention(args: argparse.Namespace) -> Intervention:
    """The flags of `add_intervention`.

    Raises:
        PLNDError: naming a flag that the kind needs, or has no use for.
    """
    from plnd.interventions import Intervention
    from plnd.references.direction import Direction
    from plnd.references.means import Means

    for kind, flags in _NEEDED.items():
        for flag in flags:
            if kind != args.intervene and getattr(args, flag) is not None:
                raise PLNDError(f"--{flag} goes with --intervene {kind}, found --intervene {args.intervene}")
    for flag, what in _NEEDED.get(args.intervene, {}).items():
        if what and getattr(args, flag) is None:
            raise PLNDError(f"--intervene {args.intervene} needs --{flag}, {what}")
    means = None if args.means is None else Means.load(args.means)
    direction = None if args.steer is None else Direction.load(args.steer)
    return Intervention(args.intervene, args.factor, means, direction, args.strength)


def load_named(files: Sequence[str]) -> dict[str, NeuronSet]:
    """The sets of some neurons artifacts, by the files' names without their endings."""
    from plnd.neurons.neuron_set import NeuronSet

    sets = {Path(file).stem: NeuronSet.load(file) for file in files}
    if len(sets) < len(files):
        raise PLNDError("two of the files have the same name, and sets are named after their files: rename one")
    return sets


def save_neurons(neurons: NeuronSet, output: str, why_empty: str = "") -> None:
    """Writes a neurons artifact and says what is in it."""
    digest = neurons.save(output)
    say(f"{output}: {describe_neurons(neurons)}; sha256 {digest}")
    if not len(neurons):
        print(f"warning: the set is empty{why_empty}", file=sys.stderr)


def describe_neurons(neurons: NeuronSet) -> str:
    """How many of a model's neurons are in a set, and of how many whole units it is made."""
    units = neurons.metadata.units
    made_of = "" if units is None else f", {counted_units(units)}"
    return f"{len(neurons):,} of {neurons.total:,} neurons ({len(neurons) / neurons.total:.3%}){made_of}"


def counted_units(units: UnitsDescription) -> str:
    """How many of which units: «3 whole experts»."""
    return f"{units.number:,} whole {units.unit}{'' if units.number == 1 else 's'}"


def describe_corpus(corpus: CorpusDescription) -> str:
    """What was read of a corpus."""
    skipped = "".join(f", {count:,} skipped ({reason})" for reason, count in corpus.counts_skipped().items())
    return f"{corpus.documents:,} documents, {corpus.tokens:,} tokens{skipped}"
