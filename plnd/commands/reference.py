"""`plnd reference` and `plnd steered`: means and directions from corpora, and directions for lm-eval's own model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from plnd.commands.shared import (
    Command,
    add_corpus,
    add_fields,
    add_loading,
    add_model,
    by_language,
    from_flags,
    load_both,
    open_corpus,
    say,
)
from plnd.errors import PLNDError
from plnd.references.config import ReferenceConfig

if TYPE_CHECKING:
    from plnd.models.layout import Layout

Found = TypeVar("Found")


class Reference(Command):
    """The subcommand."""

    help = "record means of neurons' values, and directions between languages, in one pass (mean ablation, steering)"
    example = (
        "plnd reference --model google/gemma-3-270m --corpus de=de.jsonl en=en.jsonl zh=zh.jsonl --output reference"
    )

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the subcommand's options, some of them the fields of `ReferenceConfig`."""
        add_reading(parser, "language model")
        parser.add_argument(
            "--output", required=True,
            help="folder for means.safetensors and, of two languages or more, a LANGUAGE.direction.safetensors of each",
        )  # fmt: skip

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Reads each corpus once and writes the artifacts."""
        from plnd.io.files import check_outputs, check_writable
        from plnd.references.run import reference

        config = from_flags(ReferenceConfig, args)
        corpora, folder = by_language(args.corpus, "--corpus"), Path(args.output)
        if odd := next(
            (language for language in corpora if not language.replace("-", "").replace("_", "").isalnum()), None
        ):
            raise PLNDError(f"--corpus {odd}=…: a file is named after the language, expected a code such as zh")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PLNDError(f"{folder}: cannot be made ({error.strerror}); choose another folder") from None
        check_writable(folder / "means.safetensors")
        names = ["means", *(f"{language}.direction" for language in corpora)]
        read = {file: "corpus" for files in corpora.values() for file in files}
        check_outputs(read, {f"--output, {name}": str(folder / f"{name}.safetensors") for name in names})
        found = read_with(reference, args, corpora, config)
        tokens = ", ".join(f"{language} {sums.tokens:,}" for language, sums in found.languages.items())
        digest = found.means.save(folder / "means.safetensors")
        say(f"{folder / 'means.safetensors'}: means over tokens of {tokens}; sha256 {digest}")
        for language in corpora if len(corpora) > 1 else ():
            path = folder / f"{language}.direction.safetensors"
            digest = found.direction(language).save(path)
            say(f"{path}: {language} less the mean of the others; sha256 {digest}")


def add_reading(parser: argparse.ArgumentParser, model: str) -> None:
    """Adds what a pass over corpora of several languages takes, some of it the fields of `ReferenceConfig`."""
    add_model(parser, f"folder or hub name of a {model}")
    add_corpus(parser, "LANGUAGE=CORPUS for each language (again for further files of one): ")
    add_fields(parser, ReferenceConfig)
    add_loading(parser)


def read_with(
    measure: Callable[..., Found],
    args: argparse.Namespace,
    corpora: Mapping[str, Sequence[str]],
    config: ReferenceConfig,
    check: Callable[[Layout], object] | None = None,
) -> Found:
    """What `plnd.reference` or `plnd.routing` finds in the corpora; `check` may refuse the model before that."""
    documents = {language: open_corpus(files, args) for language, files in corpora.items()}
    model, tokenizer = load_both(args, check)
    sources = {language: ", ".join(files) for language, files in corpora.items()}
    return measure(model, documents, config, tokenizer=tokenizer, sources=sources, progress=True)


class Steered(Command):
    """The subcommand."""

    help = "write a direction as the file that lm-eval's own model `steered` reads (steer_path=)"
    example = "plnd steered de.direction.safetensors --strength 2 --blocks 8-15 --output de.pt"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the direction, where and how much it is added, and the file."""
        parser.add_argument("direction", help="direction artifact from plnd reference")
        parser.add_argument("--strength", type=float, default=1.0, help="how many times the direction (default: 1)")
        parser.add_argument("--blocks", help="at which blocks, 8-15 or joined by commas (default: all)")
        parser.add_argument("--output", required=True, help="file to write, whose name ends in .pt")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Writes the file."""
        from plnd.io.files import check_writable
        from plnd.references.direction import Direction, named_blocks

        check_writable(args.output)
        direction = Direction.load(args.direction)
        blocks = None if args.blocks is None else named_blocks(args.blocks)
        direction.save_steered(args.output, strength=args.strength, blocks=blocks)
        arguments = f"pretrained={direction.model.name},steer_path={args.output}"
        say(f"{args.output}: lm_eval --model steered --model_args {arguments}")
