"""The command line: parses, calls, prints. Each subcommand is one Python call, and imports only what it needs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import fields
from functools import partial
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from plnd.errors import PLNDError
from plnd.version import __version__

if TYPE_CHECKING:
    from plnd.detection.processes import Processes
    from plnd.neurons.neuron_set import NeuronSet

COMMANDS_GROUP = "plnd.commands"
"""Entry points of this group add subcommands: objects with `help`, `example`, `add_arguments(parser)`, `run(args)`."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, 2 for bad input, 130 when interrupted."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    args = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            args.run(args)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        return _fail(args, "; ".join(filter(None, ("interrupted", args.advice(args)))), 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        line = _in_words(error)
        if line is None:
            raise
        return _fail(args, line, 2)


def _in_words(error: Exception) -> str | None:
    """What to print for an error; None for one that nobody expected."""
    if isinstance(error, PLNDError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch for it
        return "out of memory; try a smaller --batch-size or --max-length, or --dtype bfloat16"
    return None


def _print_warning(message: Warning | str, *details: Any, **more: Any) -> None:
    """A warning as one line, without the place in the code that gave it."""
    if os.environ.get("RANK", "0") == "0":  # of several processes, the first one speaks
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _fail(args: argparse.Namespace, message: str, status: int) -> int:
    print(f"plnd {args.command}: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="plnd",
        description="Find, deactivate (ablate) and tune the neurons of a language model that serve one language.",
        epilog="Each subcommand has its own --help with an example.",
    )
    parser.add_argument("--version", action="version", version=f"plnd {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(
        name: str, help: str, example: str, run: Callable[[argparse.Namespace], None]
    ) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(
            name,
            help=help,
            description=f"{help[0].upper()}{help[1:]}.",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run, advice=lambda args: "")  # what to do after an interruption
        return sub

    sub = command(
        "detect",
        "score every neuron of a model on a corpus of one language",
        "plnd detect --model google/gemma-3-270m --corpus zh.jsonl --language zh --output zh.scores.safetensors",
        _detect,
    )
    sub.add_argument("--model", required=True, help="folder or hub name of a causal language model")
    sub.add_argument("--revision", help="hub branch, tag or commit")
    trust_argument(sub)
    _add_corpus(sub, "one or several: ")
    sub.add_argument("--language", required=True, help="language code of the corpus, recorded in the artifact")
    sub.add_argument("--output", required=True, help="scores artifact to write")
    sub.add_argument("--max-documents", type=int, help="stop after this many documents (default: all)")
    sub.add_argument("--max-length", type=int, default=512, help="tokens kept of each document (default: 512)")
    sub.add_argument("--min-length", type=int, default=32, help="skip documents of fewer tokens (default: 32)")
    sub.add_argument("--batch-size", type=int, default=8, help="documents in one forward pass (default: 8)")
    sub.add_argument(
        "--qk", choices=("exact", "first_order", "off"), default="first_order",
        help="rows of q_proj and k_proj: eq. 10 exactly, to first order (default), or not at all",
    )  # fmt: skip
    sub.add_argument(
        "--method", choices=("plnd", "activation", "lape"), default="plnd",
        help="importance (default); or of feed-forward neurons mean |activation|, or how often active (for --against)",
    )  # fmt: skip
    sub.add_argument(
        "--scoring", choices=("paper", "official"), default="paper",
        help="the paper's formulas (default), or what its published code computes instead",
    )  # fmt: skip
    sub.add_argument(
        "--epsilon",
        type=float,
        help="the rule is known ahead: do not measure rows of q_proj and k_proj again that were below E in a document",
    )
    sub.add_argument("--dtype", default="auto", help="auto (the checkpoint's), float32, bfloat16, float16 or float64")
    sub.add_argument(
        "--device", help="cpu, cuda, cuda:1, auto (spread over accelerators); default: an accelerator if any"
    )
    sub.add_argument("--quantize", choices=("8bit", "4bit"), help="pack the weights with bitsandbytes while loading")
    sub.add_argument("--resume", action="store_true", help="continue a killed run; the result is the same bit for bit")
    sub.set_defaults(advice=lambda args: "--resume continues" if _checkpoint(args).exists() else "")

    sub = command(
        "select",
        "choose neurons from a scores artifact by one rule",
        "plnd select zh.scores.safetensors --fraction 0.01 --output zh.safetensors",
        _select,
    )
    sub.add_argument("scores", help="scores artifact")
    rule = sub.add_mutually_exclusive_group(required=True)
    rule.add_argument("--epsilon", type=float, help="importance at least this in every document (eq. 2)")
    rule.add_argument("--top-k", type=int, help="among the k most important of their projection in every document")
    rule.add_argument(
        "--fraction",
        type=float,
        help="the top-k rule with k the share of each width that gives this fraction of neurons; with --against,"
        " this fraction of neurons, those of lowest entropy",
    )
    rule.add_argument(
        "--top-rate", type=float, help="with --against: specific are this share of all neurons (LAPE's paper: 0.01)"
    )
    sub.add_argument(
        "--against", nargs="+", metavar="SCORES",
        help="scores of other languages, all with --method lape: neurons specific by activation probability entropy",
    )  # fmt: skip
    sub.add_argument("--output", required=True, help="neurons artifact to write")
    _add_restriction(sub)

    sub = command(
        "combine",
        "set algebra on neurons artifacts, from left to right",
        "plnd combine zh.safetensors --minus en.safetensors ru.safetensors --output zh_specific.safetensors",
        _combine,
    )
    sub.add_argument("neurons", help="neurons artifact")
    for flag, text in (
        ("--minus", "remove the neurons of these sets"),
        ("--union", "add the neurons of these sets"),
        ("--intersect", "keep only neurons that are in all of these sets too"),
        ("--minus-shared", "remove the neurons that all of these sets and the first one have in common"),
    ):
        sub.add_argument(flag, nargs="+", action=_Operation, default=[], metavar="FILE", help=text)
    sub.add_argument("--top", type=int, metavar="N", help="keep only the N most important neurons of the result")
    sub.add_argument("--output", required=True, help="neurons artifact to write")
    _add_restriction(sub)

    sub = command("show", "print what an artifact holds", "plnd show zh.safetensors --json", _show)
    sub.add_argument("file", help="scores, neurons or roles artifact")
    sub.add_argument("--json", action="store_true", help="all metadata and counts as JSON")

    sub = command(
        "verify",
        "check that an artifact is whole and was made for a model",
        "plnd verify zh.safetensors --model google/gemma-3-270m",
        _verify,
    )
    sub.add_argument("file", help="scores, neurons or roles artifact")
    sub.add_argument("--model", required=True, help="folder or hub name")
    sub.add_argument("--revision", help="hub branch, tag or commit")
    trust_argument(sub)

    sub = command(
        "overlap",
        "overlap(x, y) = |x and y| / |y| of every pair of neuron sets (eq. 11)",
        "plnd overlap en.safetensors de.safetensors zh.safetensors --plot overlap.png",
        _overlap,
    )
    sub.add_argument("files", nargs="+", help="neurons artifacts")
    sub.add_argument("--csv", help="also write the matrices as CSV")
    sub.add_argument("--plot", help="also draw them (.png, .svg, .pdf)")

    sub = command(
        "layers", "count neurons per block and projection", "plnd layers zh.safetensors --csv zh.layers.csv", _layers
    )
    sub.add_argument("files", nargs="+", help="neurons artifacts")
    sub.add_argument("--csv", help="also write the counts as CSV")
    sub.add_argument("--plot", help="also draw them (.png, .svg, .pdf)")

    sub = command(
        "lens",
        "decode the hidden states of every block to tokens, and count their languages (figures 1 and 7)",
        "plnd lens --model google/gemma-3-270m --corpus zh.jsonl ru.jsonl --language zh ru --max-documents 50"
        " --csv lens.csv --plot lens.png",
        _lens,
    )
    sub.add_argument("--model", required=True, help="folder or hub name of a language model")
    sub.add_argument("--revision", help="hub branch, tag or commit")
    trust_argument(sub)
    _add_corpus(sub, "one a language (of several files, a folder or a pattern in quotation marks): ")
    sub.add_argument("--language", nargs="+", required=True, help="language code of each corpus, in the same order")
    sub.add_argument("--max-documents", type=int, help="stop after this many of each corpus (default: all)")
    sub.add_argument("--max-length", type=int, default=128, help="tokens kept of each document (default: 128)")
    sub.add_argument("--top-k", type=int, default=10, help="tokens decoded at each position (default: 10)")
    sub.add_argument("--batch-size", type=int, default=8, help="documents in one forward pass (default: 8)")
    sub.add_argument(
        "--identifier", choices=("cld3", "script", "both"), default="cld3",
        help="what tells the languages: cld3 (default), the letters' script, or both, one after the other",
    )  # fmt: skip
    sub.add_argument("--dtype", default="auto", help="auto (the checkpoint's), float32, bfloat16, float16 or float64")
    sub.add_argument(
        "--device", help="cpu, cuda, cuda:1, auto (spread over accelerators); default: an accelerator if any"
    )
    sub.add_argument("--quantize", choices=("8bit", "4bit"), help="pack the weights with bitsandbytes while loading")
    sub.add_argument("--csv", help="also write the counts as CSV")
    sub.add_argument("--plot", help="also draw the shares (.png, .svg, .pdf)")

    sub = command(
        "export",
        "write an ordinary checkpoint with neurons zeroed, for vLLM, SGLang and everything else that loads one",
        "plnd export --model google/gemma-3-270m --mask zh.safetensors --output gemma-3-270m-without-zh",
        _export,
    )
    sub.add_argument("--mask", required=True, help="neurons artifact")
    sub.add_argument("--model", help="folder or hub name (default: the model that the mask was made for)")
    sub.add_argument("--revision", help="hub branch, tag or commit")
    trust_argument(sub)
    sub.add_argument("--output", required=True, help="folder to write, new or empty")
    sub.add_argument("--overwrite", action="store_true", help="replace an earlier export there")

    sub = command(
        "convert",
        "turn an old neuron file into a neurons artifact: the PLND paper's .txt, Abstract_Thought's JSON, LAPE's .pth",
        "plnd convert LLaMA-2-7B.neuron.pth --model meta-llama/Llama-2-7b-hf --language zh --output zh.safetensors",
        _convert,
    )
    sub.add_argument("old", help="file to read")
    sub.add_argument("--model", required=True, help="folder or hub name of the model that the neurons were found in")
    sub.add_argument("--revision", help="hub branch, tag or commit")
    trust_argument(sub)
    sub.add_argument("--language", help="recorded in the artifact; of LAPE's files also which one to take")
    sub.add_argument("--index", type=int, help="which language of LAPE's files to take, counted from 0")
    sub.add_argument("--output", required=True, help="neurons artifact to write")

    command("families", "print the table of model families", "plnd families", _families)
    for entry in sorted(entry_points(group=COMMANDS_GROUP), key=lambda e: e.name):
        try:
            plugin = entry.load()
        except Exception as error:  # somebody else's code, which must not take the other subcommands with it
            problem = f"cannot be loaded from {entry.value} ({type(error).__name__}: {error})"
            command(entry.name, problem.replace("%", "%%"), f"plnd {entry.name}", partial(_unavailable, problem))
        else:
            plugin.add_arguments(command(entry.name, plugin.help, plugin.example, plugin.run))
    return parser


def trust_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the one thing that lets a command run a model's own code; no file and no artifact can."""
    parser.add_argument(
        "--trust-remote-code", "--trust_remote_code", action="store_true",
        help="run the Python code that comes with the model, where transformers has none for it",
    )  # fmt: skip


def _unavailable(problem: str, args: argparse.Namespace) -> None:
    raise PLNDError(problem)


class _Operation(argparse.Action):
    """Keeps the order in which --minus, --union, … were given."""

    def __call__(self, parser, namespace, values, option_string=None):  # noqa: D102
        namespace.operations = [*getattr(namespace, "operations", []), (self.dest, values)]


def _add_corpus(parser: argparse.ArgumentParser, number: str) -> None:
    parser.add_argument(
        "--corpus", nargs="+", required=True, metavar="CORPUS",
        help=number + "text (a document a line), .jsonl, .json, .csv, .tsv, .parquet, .arrow, any of them compressed, a"
        " pipe, a folder of them, or data set NAME[:CONFIG[:SPLIT]]",
    )  # fmt: skip
    parser.add_argument("--text-field", default="text", help="field of a row, a.b for a nested one (default: text)")
    parser.add_argument(
        "--format", choices=("text", "json", "csv", "tsv", "parquet", "arrow"),
        help="what the files are, whatever their ending and first line say; for pipes and other endings",
    )  # fmt: skip


def _add_restriction(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--projections", help="only these, comma-separated: q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
    )
    parser.add_argument("--regions", help="only these, comma-separated: under, solve, solve_attn, solve_ffn, gen")
    parser.add_argument("--under", type=int, help="number of understanding blocks (N1)")
    parser.add_argument("--gen", type=int, help="number of generation blocks (N2)")


def _restriction(args: argparse.Namespace) -> dict[str, Any]:
    from plnd.neurons.regions import Regions

    regions = None if args.regions is None else Regions.parse(args.regions, args.under, args.gen)
    if regions is None and (args.under is not None or args.gen is not None):
        raise PLNDError("--under and --gen say how large the regions are: name some with --regions")
    projections = None if args.projections is None else [p.strip() for p in args.projections.split(",")]
    return {"projections": projections, "regions": regions}


def _detect(args: argparse.Namespace) -> None:
    from plnd.detection.processes import Processes

    processes = Processes.launched(args.device)
    with closing(processes):
        try:
            with processes.together():
                _detect_as(processes, args)
        except Exception as error:
            line = _in_words(error)
            if line is None or processes.count == 1:
                raise
            if processes.first:
                _fail(args, line, 2)
            processes.exchange()  # when one has left, its launcher ends the others: not before the line is out
            sys.exit(2)


def _detect_as(processes: Processes, args: argparse.Namespace) -> None:
    from plnd.detection.config import DetectConfig
    from plnd.detection.run import detect
    from plnd.io.corpus import pipes, read_documents
    from plnd.io.files import check_writable
    from plnd.models.layout import Layout
    from plnd.models.loading import disable_progress_bars, load_model, load_skeleton, load_tokenizer

    config = DetectConfig(**{field.name: getattr(args, field.name) for field in fields(DetectConfig)})
    checkpoint = _checkpoint(args)
    if processes.first:
        check_writable(args.output)
        if checkpoint.exists() and not args.resume:
            print(f"starting again; --resume would continue from {checkpoint}", file=sys.stderr)
    else:
        disable_progress_bars()
    if processes.count > 1 and (found := pipes(args.corpus)):
        raise PLNDError(f"{found[0]}: a pipe, which {processes.count} processes cannot all read; write a file")
    documents = read_documents(args.corpus, args.text_field, args.format)
    documents = chain(
        [next(documents)], documents
    )  # a corpus that cannot be read is refused before the model is loaded,
    Layout(load_skeleton(args.model, **_source(args)))  # and so is an unknown family
    tokenizer = load_tokenizer(args.model, **_source(args))
    device = args.device if processes.device is None else str(processes.device)
    model = load_model(args.model, **_source(args), dtype=args.dtype, device=device, quantize=args.quantize)
    scores = detect(
        model,
        documents,
        config,
        tokenizer=tokenizer,
        source=", ".join(args.corpus),
        checkpoint=checkpoint,
        resume=args.resume,
        progress=True,
        processes=processes,
    )
    if processes.first:
        digest = scores.save(args.output)
        checkpoint.unlink(missing_ok=True)  # not before the scores are safe
        print(f"{args.output}: {_describe_corpus(scores.metadata)}; sha256 {digest}")


def _source(args: argparse.Namespace) -> dict[str, Any]:
    """Which commit of a model to load, and whether its own code may run."""
    return {"revision": args.revision, "trust_remote_code": args.trust_remote_code}


def _checkpoint(args: argparse.Namespace) -> Path:
    """Where `plnd detect` keeps the state of an unfinished run; written from its first minute on."""
    return Path(f"{args.output}.checkpoint")


def _select(args: argparse.Namespace) -> None:
    from plnd.neurons.scores import Scores

    scores = Scores.load(args.scores)
    if args.against is not None:
        from plnd.neurons.lape import lape

        if args.fraction is None and args.top_rate is None:
            raise PLNDError("--against selects by entropy over languages: its rules are --fraction and --top-rate")
        every = [scores, *map(Scores.load, args.against)]
        _save(lape(every, top_rate=args.top_rate, fraction=args.fraction, **_restriction(args))[0], args.output)
        return
    if args.top_rate is not None:
        raise PLNDError("--top-rate is a rule over languages: name the scores of the others with --against")
    given = {"epsilon": args.epsilon, "top_k": args.top_k, "fraction": args.fraction}
    neurons = scores.select(**given, **_restriction(args))
    rule = neurons.metadata["rule"]
    _save(
        neurons,
        args.output,
        f": no neuron meets {rule['name']}={rule['value']:g}; it cannot be evaluated or exported",
    )


def _combine(args: argparse.Namespace) -> None:
    from plnd.model_description import check_model
    from plnd.neurons.neuron_set import NeuronSet

    result = NeuronSet.load(args.neurons)
    for operation, files in getattr(args, "operations", []):
        others = [NeuronSet.load(file) for file in files]
        for file, other in zip(files, others, strict=True):
            check_model(other.model, result.model, file)
        if operation == "minus_shared":
            result = result.minus_shared(others)
        for other in others if operation != "minus_shared" else ():
            result = {"minus": result.__sub__, "union": result.__or__, "intersect": result.__and__}[operation](other)
    restriction = _restriction(args)
    if any(restriction.values()):
        result = result.restrict(**restriction)
    if args.top is not None:
        if args.top < 1:
            raise PLNDError(f"--top {args.top}: expected 1 or more")
        result = result.top(args.top)
    _save(result, args.output)


def _save(neurons: NeuronSet, output: str, why_empty: str = "") -> None:
    digest = neurons.save(output)
    print(f"{output}: {_describe_neurons(neurons)}; sha256 {digest}")
    if not len(neurons):
        print(f"warning: the set is empty{why_empty}", file=sys.stderr)


def _show(args: argparse.Namespace) -> None:
    from plnd.any_artifact import load
    from plnd.io.files import file_digest
    from plnd.neurons.neuron_set import NeuronSet
    from plnd.roles.roles import Roles

    artifact = load(args.file)
    metadata = {**artifact.metadata, "sha256": file_digest(args.file)}
    if isinstance(artifact, NeuronSet):
        metadata |= {"neurons": len(artifact), "total": artifact.total, "counts": artifact.counts()}
    if args.json:
        print(json.dumps(metadata, indent=2, sort_keys=True, ensure_ascii=False))
        return
    model = metadata["model"]
    print(f"{metadata['format']} version {metadata['version']}, sha256 {metadata['sha256']}")
    print(f"model     {model['name']} ({model['model_type']}, {model['blocks']} blocks), dtype {metadata['dtype']}")
    if isinstance(artifact, Roles):
        print(f"languages {', '.join(artifact.languages)}")
        print(f"examples  {len(artifact):,} of {metadata['corpus']['source']}: {metadata['corpus']['tokens']:,} tokens")
        print(f"method    {_pairs(metadata['method'])}")
        for role, share in artifact.shares().items():
            print(f"          {role.replace('_', '-'):<15} {share:.2f}% of {artifact.total:,} neurons")
        return
    print(f"language  {metadata['language']}")
    print(f"corpus    {metadata['corpus']['source']}: {_describe_corpus(metadata)}")
    print(f"method    {_pairs(metadata['method'])}")
    if isinstance(artifact, NeuronSet):
        print(f"rule      {_pairs(metadata['rule'])}")
        for operand in metadata.get("operands", ()):
            facts = {name: value for name, value in operand.items() if name != "operation"}
            print(f"          {operand['operation']}: {_pairs(facts)}")
        print(f"neurons   {_describe_neurons(artifact)}")
        for projection, count in artifact.counts().items():
            print(f"          {projection:<10} {count:,}")


def _verify(args: argparse.Namespace) -> None:
    from plnd.any_artifact import load
    from plnd.model_description import check_model
    from plnd.models.layout import Layout
    from plnd.models.loading import load_skeleton

    artifact = load(args.file)
    description = Layout(load_skeleton(args.model, **_source(args))).description()
    check_model(artifact.metadata["model"], description, args.file)
    print(f"{args.file}: whole, and fits {args.model}")


def _export(args: argparse.Namespace) -> None:
    from plnd.exchange.export import export
    from plnd.model_description import base_model
    from plnd.neurons.neuron_set import NeuronSet

    neurons = NeuronSet.load(args.mask)
    model, source = args.model, _source(args)
    if model is None:
        model, revision = base_model(neurons.model, args.mask, "give --model")
        source["revision"] = args.revision or revision
    record = export(model, neurons, args.output, **source, overwrite=args.overwrite, progress=True)
    mask, tensors = record["mask"], record["tensors"]
    print(
        f"{args.output}: zeroed {_describe_neurons(neurons)}, in {tensors['edited']} of {tensors['all']} tensors;"
        f" mask sha256 {mask['sha256']}"
    )
    if record["left_out"]:
        print(f"warning: left out, as they still hold the neurons: {', '.join(record['left_out'])}", file=sys.stderr)


def _convert(args: argparse.Namespace) -> None:
    from plnd.exchange.convert import convert
    from plnd.io.files import check_writable

    check_writable(args.output)
    neurons = convert(args.old, args.model, **_source(args), language=args.language, index=args.index)
    _save(neurons, args.output)


def _overlap(args: argparse.Namespace) -> None:
    from plnd.io.files import write_csv
    from plnd.neurons.overlap import STRUCTURES, overlap

    sets = _load_named(args.files)
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
    if args.csv:
        write_csv(args.csv, ("structure", "x", "y", "overlap"), rows)
    if args.plot:
        from plnd.plots import plot_overlap

        plot_overlap(matrices, names, args.plot)


def _layers(args: argparse.Namespace) -> None:
    from plnd.addresses import block_names
    from plnd.io.files import write_csv
    from plnd.neurons.overlap import layers

    sets = _load_named(args.files)
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


def _lens(args: argparse.Namespace) -> None:
    from plnd.io.corpus import read_documents
    from plnd.io.files import check_writable
    from plnd.logit_lens.language_id import find_identifier
    from plnd.logit_lens.lens import LensConfig, decode_tokens, lens_panels, save_lens
    from plnd.models.layout import Layout
    from plnd.models.loading import load_model, load_skeleton, load_tokenizer

    if len(args.corpus) != len(args.language):
        raise PLNDError(f"{len(args.corpus)} corpora and {len(args.language)} languages: expected one for each")
    if len(set(args.language)) < len(args.language):
        raise PLNDError(f"languages {', '.join(args.language)}: expected each once")
    config = LensConfig(**{field.name: getattr(args, field.name) for field in fields(LensConfig)})
    for path in filter(None, (args.csv, args.plot)):
        check_writable(path)
    chosen = ("cld3", "script") if args.identifier == "both" else (args.identifier,)
    identifiers = [find_identifier(name) for name in chosen]
    corpora = [read_documents(corpus, args.text_field, args.format) for corpus in args.corpus]
    corpora = [chain([next(documents)], documents) for documents in corpora]  # what cannot be read is refused now
    Layout(load_skeleton(args.model, **_source(args)))
    tokenizer = load_tokenizer(args.model, **_source(args))
    model = load_model(args.model, **_source(args), dtype=args.dtype, device=args.device, quantize=args.quantize)
    counts = []
    for language, documents in zip(args.language, corpora, strict=True):
        decoded = decode_tokens(model, tokenizer, documents, config, progress=True)
        counts += [decoded.labelled(tokenizer, identifier, language) for identifier in identifiers]
        print(f"{language}: {decoded.documents:,} documents, {decoded.positions:,} tokens, top {decoded.top_k} decoded")
    panels = lens_panels(counts)
    for title, curves in panels.items():
        print(f"{title}, %\n{'block':>10}" + "".join(f"{name:>{max(10, len(name) + 2)}}" for name in curves))
        for block, values in zip(counts[0].blocks, zip(*curves.values(), strict=True), strict=True):
            cells = zip(curves, values, strict=True)
            print(f"{block:>10}" + "".join(f"{value:>{max(10, len(name) + 2)}.1f}" for name, value in cells))
    if args.csv:
        save_lens(counts, args.csv)
    if args.plot:
        from plnd.plots import plot_lines

        plot_lines(panels, args.plot, "share (%)", along="blocks passed")


def _families(args: argparse.Namespace) -> None:
    from plnd.models.families import FAMILIES

    for family in FAMILIES.values():
        others = [f"model_type {' or '.join(family.model_types)}"] if family.model_types != (family.name,) else []
        print(f"{family.name:<14}{', '.join([*others, *family.description()])}")


def _load_named(files: Sequence[str]) -> dict[str, NeuronSet]:
    from plnd.neurons.neuron_set import NeuronSet

    sets = {Path(file).stem: NeuronSet.load(file) for file in files}
    if len(sets) < len(files):
        raise PLNDError("two of the files have the same name, and sets are named after their files: rename one")
    return sets


def _describe_corpus(metadata: dict[str, Any]) -> str:
    corpus = metadata["corpus"]
    counts = {reason: len(numbers) for reason, numbers in corpus["skipped"].items()} | corpus.get("skipped_counts", {})
    skipped = "".join(f", {count:,} skipped ({reason})" for reason, count in counts.items())
    return f"{corpus['documents']:,} documents, {corpus['tokens']:,} tokens{skipped}"


def _describe_neurons(neurons: NeuronSet) -> str:
    return f"{len(neurons):,} of {neurons.total:,} neurons ({len(neurons) / neurons.total:.3%})"


def _pairs(record: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in record.items() if value is not None)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"({_pairs(value)})"
    return "+".join(map(_value, value)) if isinstance(value, list) else str(value)
