"""`plnd push`: artifacts onto the Hugging Face hub, with a card."""

from __future__ import annotations

import argparse

from plnd.commands.shared import Command, say


class Push(Command):
    """The subcommand."""

    help = "upload artifacts to the Hugging Face hub, with a card that says what they are"
    example = "plnd push zh.safetensors zh.scores.safetensors user/gemma-3-270m-neurons --evaluation zh-off/ablation.md"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the files, the repository and what the card says beside them."""
        parser.add_argument("files", nargs="+", metavar="FILE", help="scores, neurons and roles of one model")
        parser.add_argument("repository", help="user/repo; it is made if it is not there")
        parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
        parser.add_argument("--revision", help="branch (default: main)")
        parser.add_argument("--evaluation", metavar="FILE", help="Markdown for the card: ablation.md of plnd ablate")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Uploads, and says where the files are now."""
        from plnd.exchange.push import push

        options = {"private": args.private, "revision": args.revision, "evaluation": args.evaluation}
        say(push(args.files, args.repository, **options))
