"""`plnd tasks`: where the lm-evaluation-harness tasks are."""

from __future__ import annotations

import argparse

from lm_eval_plnd.task_folder import tasks_folder
from plnd.commands.shared import Command


class Tasks(Command):
    """The subcommand (entry point `plnd.commands: tasks`)."""

    help = "print the folder of plnd's lm-evaluation-harness tasks"
    example = 'lm_eval --model plnd --model_args mask=zh.safetensors --include_path "$(plnd tasks)" --tasks …'

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """It has no options."""

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Prints the folder."""
        print(tasks_folder())
