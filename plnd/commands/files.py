"""What is in a file and what it was made for, files for other programs, and which models can be read at all.

`plnd show` and `verify` read artifacts, `export` writes a checkpoint, `convert` reads published neuron files, and
`families` prints the table of models.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from plnd.commands.shared import (
    Command,
    add_intervention,
    add_model,
    describe_corpus,
    describe_neurons,
    intervention,
    json_text,
    model_source,
    save_neurons,
    say,
)

if TYPE_CHECKING:
    from plnd.neurons.neuron_set import NeuronSet
    from plnd.neurons.scores import Scores
    from plnd.references.direction import Direction
    from plnd.references.means import Means
    from plnd.references.routing import Routing
    from plnd.roles.roles import Roles


class Show(Command):
    """The subcommand."""

    help = "print what an artifact holds"
    example = "plnd show zh.safetensors --json"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the file and the form."""
        parser.add_argument("file", help="scores, neurons, roles, means, direction or routing artifact")
        parser.add_argument("--json", action="store_true", help="all metadata and counts as JSON")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Prints where an artifact is from and what was done to it, in words or as JSON."""
        from plnd.any_artifact import load
        from plnd.neurons.neuron_set import NeuronSet
        from plnd.references.direction import Direction
        from plnd.references.means import Means
        from plnd.references.routing import Routing
        from plnd.roles.roles import Roles

        artifact = load(args.file)
        metadata, model, sha256 = artifact.metadata, artifact.metadata.model, artifact.digest
        if args.json:
            facts = metadata | {"sha256": sha256}
            if isinstance(artifact, NeuronSet):
                facts |= {"neurons": len(artifact), "total": artifact.total, "counts": artifact.counts()}
            print(json_text(facts))
            return
        say(f"{metadata.format} version {metadata.version}, sha256 {sha256}")
        say(f"model     {model.name} ({model.model_type}, {model.blocks} blocks), dtype {metadata.dtype}")
        if off := artifact.metadata.get("deactivated"):
            say(f"off       of the model that was measured: {_value(off)}")
        if isinstance(artifact, Roles):
            _print_roles(artifact)
            return
        if isinstance(artifact, Means | Direction | Routing):
            _print_reference(artifact)
            return
        scored = artifact.metadata
        say(f"language  {scored.language or 'not named'}")
        say(f"corpus    {scored.corpus.source or 'not named'}: {describe_corpus(scored.corpus)}")
        say(f"method    {_pairs(scored.method)}")
        if isinstance(artifact, NeuronSet):
            _print_neurons(artifact)
        else:
            _print_scores(artifact)


def _print_scores(scores: Scores) -> None:
    neurons = sum(map(len, scores.minimum.values()))
    numbers = "min, mean, worst_rank"
    logs = ", mean_log, std_log" if scores.mean_log is not None else "; no logs, which select --against reads"
    say(f"numbers   of {neurons:,} neurons: {numbers}{logs}")


def _print_roles(roles: Roles) -> None:
    corpus = roles.metadata.corpus
    say(f"languages {', '.join(roles.languages)}")
    say(f"examples  {len(roles):,} of {corpus.source or 'tasks not named'}: {corpus.tokens:,} tokens")
    say(f"method    {_pairs(roles.metadata.method)}")
    for role, share in roles.shares().items():
        say(f"          {role.replace('_', '-'):<15} {share:.2f}% of {roles.total:,} neurons")


def _print_reference(found: Means | Direction | Routing) -> None:
    from plnd.commands.routing import table
    from plnd.references.direction import Direction
    from plnd.references.routing import Routing

    for language, corpus in found.metadata.corpora.items():
        say(f"corpus    {language}, {corpus.source or 'not named'}: {describe_corpus(corpus)}")
    if isinstance(found, Routing):
        for line in table(found):
            say(line)
        return
    neurons = f"{sum(map(len, found.neurons.values())):,} neurons"
    if not isinstance(found, Direction):
        say(f"means     of the values of {neurons}")
        return
    say(f"direction {found.language}, less the mean of {', '.join(found.metadata.against)}")
    say(
        f"          of the values of {neurons}, and of what leaves blocks, {found.metadata.hidden} channels, of length:"
    )
    for name, vector in found.blocks.items():
        say(f"          {name:<10} {float((vector.astype(float) ** 2).sum() ** 0.5):.4g}")


def _print_neurons(neurons: NeuronSet) -> None:
    rule = neurons.metadata.rule
    languages = {name: value for name, value in rule.items() if _is_list_of_records(value)}
    say(f"rule      {_pairs({'name': rule.name, **{n: v for n, v in rule.items() if n not in languages}})}")
    for name, records in languages.items():
        for record in records:
            say(f"          {name}: {_pairs(record)}")
    for operand in neurons.metadata.operands:
        facts = {name: value for name, value in operand.items() if name != "operation"}
        say(f"          {operand.operation}: {_pairs(facts)}")
    say(f"neurons   {describe_neurons(neurons)}")
    if (units := neurons.metadata.units) is not None:
        for block, members in units.members.items():
            say(f"          {units.unit} {', '.join(map(str, members))} of block {block}")
    for projection, count in neurons.counts().items():
        say(f"          {projection:<10} {count:,}")


def _is_list_of_records(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(record, Mapping) for record in value)


def _pairs(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in record.items() if value is not None)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({_pairs(value)})"
    return "+".join(map(_value, value)) if isinstance(value, list) else str(value)


class Verify(Command):
    """The subcommand."""

    help = "check that an artifact is whole and was made for a model"
    example = "plnd verify zh.safetensors --model google/gemma-3-270m"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the file and the model."""
        parser.add_argument("file", help="scores, neurons, roles, means, direction or routing artifact")
        add_model(parser, "folder or hub name")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Reads the artifact whole, and compares its model's description with the model's own."""
        from plnd.any_artifact import load
        from plnd.model_description import check_model
        from plnd.models.layout import Layout
        from plnd.models.loading import load_skeleton

        artifact = load(args.file)
        description = Layout(load_skeleton(args.model, **model_source(args))).description()
        check_model(artifact.metadata.model, description, args.file)
        print(f"{args.file}: whole, and fits {args.model}")


_DONE = {"zero": "zeroed", "mean": "made constant", "scale": "scaled", "steer": "steered"}


class Export(Command):
    """The subcommand."""

    help = "write an ordinary checkpoint with neurons zeroed or scaled, for vLLM, SGLang and all else that loads one"
    example = "plnd export --model google/gemma-3-270m --mask zh.safetensors --output gemma-3-270m-without-zh"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the neurons, the model and the folder."""
        parser.add_argument("--mask", required=True, help="neurons artifact")
        add_model(parser, "folder or hub name (default: the model that the mask was made for)", required=False)
        parser.add_argument("--output", required=True, help="folder to write, new or empty")
        parser.add_argument("--overwrite", action="store_true", help="replace an earlier export there")
        add_intervention(parser, "; mean and steer go into biases, where there are some")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Writes the checkpoint and says what was zeroed in it."""
        from plnd.exchange.export import export
        from plnd.model_description import base_model
        from plnd.neurons.neuron_set import NeuronSet

        done, neurons = intervention(args), NeuronSet.load(args.mask)
        model, source = args.model, model_source(args)
        if model is None:
            model, revision = base_model(neurons.model, args.mask, "give --model")
            source["revision"] = args.revision or revision
        options = {"overwrite": args.overwrite, "progress": True, "intervention": done}
        record = export(model, neurons, args.output, **source, **options)
        mask, tensors = record["mask"], record["tensors"]
        print(
            f"{args.output}: {_DONE[args.intervene]} {describe_neurons(neurons)}, in {tensors['edited']} of"
            f" {tensors['all']} tensors; mask sha256 {mask['sha256']}"
        )
        if record["left_out"]:
            files = ", ".join(record["left_out"])
            print(f"warning: left out, as they still hold the neurons: {files}", file=sys.stderr)


class Convert(Command):
    """The subcommand."""

    help = (
        "turn an old neuron file into a neurons artifact: the PLND paper's .txt, Abstract_Thought's JSON, LAPE's .pth"
    )
    example = (
        "plnd convert LLaMA-2-7B.neuron.pth --model meta-llama/Llama-2-7b-hf --language zh --output zh.safetensors"
    )

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the file to read, what it does not say itself, and the file to write."""
        parser.add_argument("old", help="file to read")
        add_model(parser, "folder or hub name of the model that the neurons were found in")
        parser.add_argument("--language", help="recorded in the artifact; of LAPE's files also which one to take")
        parser.add_argument("--index", type=int, help="which language of LAPE's files to take, counted from 0")
        parser.add_argument("--output", required=True, help="neurons artifact to write")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Converts."""
        from plnd.exchange.convert import convert
        from plnd.io.files import check_writable

        check_writable(args.output)
        neurons = convert(args.old, args.model, **model_source(args), language=args.language, index=args.index)
        save_neurons(neurons, args.output)


class Families(Command):
    """The subcommand."""

    help = "print the table of model families, and why other causal types of transformers have no row"
    example = "plnd families"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """It has no options."""

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Prints a line a family, then what is said of every type without a row."""
        from plnd.model_description import TEXT_TWINS
        from plnd.models.families import FAMILIES
        from plnd.models.unlisted import LANGUAGE_MODELS, LIKE_LLAMA, unlisted

        width = max(map(len, FAMILIES)) + 2
        for family in FAMILIES.values():
            others = [f"model_type {' or '.join(family.model_types)}"] if family.model_types != (family.name,) else []
            print(f"{family.name:<{width}}{', '.join([*others, *family.description()])}")
        print(f"\nas Llama, with a warning: {', '.join(LIKE_LLAMA)}")
        print("by their language model:", ", ".join(f"{name} ({inner})" for name, inner in LANGUAGE_MODELS.items()))
        print("as their text-only twins:", ", ".join(f"{name} ({twin})" for name, twin in TEXT_TWINS.items()))
        print("\nno row (`plnd probe MODEL` says what of a model is exact, and drafts a row):")
        for reason, names in unlisted():
            print(f"  {reason}: {', '.join(names)}")
