"""`plnd experiment`: what it takes and prints."""

from __future__ import annotations

import argparse
import logging
import os

from plnd.commands.shared import Command, add_trust
from plnd.errors import PLNDError


class Experiment(Command):
    """The subcommand (entry point `plnd.commands: experiment`)."""

    help = "run the PLND paper's tables on one loaded model, from a settings file; continues and shares a run"
    example = "plnd experiment demo --output demo-experiment"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the subcommand's options."""
        add = parser.add_argument
        add(
            "settings",
            help="YAML file (docs/experiments.md), or the name of one that comes with plnd: demo, mistral-7b, …",
        )
        add("--output", help="folder for neurons, samples and results.csv")
        add("--limit", type=int, help="at most so many documents of each task")
        add(
            "--set",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="another value for a field of the file, such as model.pretrained=FOLDER or metadata.data_dir=FOLDER",
        )
        add("--dry-run", action="store_true", help="print settings, evaluations, tokens and an estimate of the cost")
        add_trust(parser)
        parser.set_defaults(advice=lambda args: "the same command continues")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Runs the experiment, or prints what it would do."""
        from lm_eval_plnd.experiments.settings import load_settings
        from lm_eval_plnd.experiments.yaml_text import parse_change

        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        trusted = {"model.trust_remote_code": True} if args.trust_remote_code else {}
        settings = load_settings(args.settings, {**dict(map(parse_change, args.set)), **trusted})
        if args.limit is not None:
            if args.limit < 1:
                raise PLNDError(f"--limit {args.limit}: expected 1 or more")
            settings = settings.limited(args.limit)
        if args.dry_run:
            from lm_eval_plnd.experiments.cost import estimate

            print(estimate(settings))
        elif args.output is None:
            raise PLNDError("--output is missing: name the folder for the results (or ask for --dry-run)")
        else:
            from lm_eval_plnd.experiments.run import experiment

            print(experiment(settings, args.output))
