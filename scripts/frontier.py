"""What each way to train a model gains in one language, and what it costs the others, at equal numbers of parameters.

    python scripts/frontier.py scripts/settings/frontier/gemma-3-270m-small.yaml --output frontier     # 40 CPU minutes
    python scripts/frontier.py scripts/settings/frontier/gemma-3-270m-small.yaml --output frontier --dry-run
    python scripts/frontier.py scripts/settings/frontier/gemma-3-270m.yaml --output frontier-full      # the whole one

Methods (LoRA, rank-stabilised LoRA, DoRA, SHiRA, rows of largest norm, random rows, a language's neurons by rank, set
difference or contrast, full training) × budgets (shares of the parameters, the same for all) × rates × seeds, on one
model. Rates are chosen by successive halving on documents that are not reported; the best one is trained with every
seed and reported on held-out text of every language: bits per byte that the trained language gains, and those that the
others lose on average, with 95 % bootstrap intervals over documents and paired tests against one method. `tasks` in the
settings file evaluates by lm-eval, too.

The folder gets `runs.jsonl`, a line for each run that is done: the same command continues after a run was killed, and
several processes of it share the work. At the end `frontier.csv`, `.md`, `.tex`, `.png` and `changes.csv`. Further
methods and budgets may be added to the settings later. Corpora, one for each language, are `corpora/zh.jsonl` and so
on: --set 'corpus=FOLDER/{language}.jsonl' for another folder, --set model.pretrained=FOLDER for a model on the disk.
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path

from lm_eval_plnd.experiments.frontier.run import estimate, frontier
from lm_eval_plnd.experiments.frontier.settings import load_frontier_settings
from lm_eval_plnd.experiments.yaml_text import parse_change
from plnd.commands.shared import print_warning
from plnd.errors import PLNDError


def main() -> None:
    """Runs the script; bad input is one line and exit status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", help="YAML file")
    parser.add_argument("--output", help="folder for runs, tables and picture")
    change = "another value for a field of the file, such as model.pretrained=FOLDER"
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=change)
    parser.add_argument(
        "--dry-run", action="store_true", help="say the runs and the time, of which a little is measured"
    )
    args = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.showwarning = print_warning  # one line each
    try:
        settings = load_frontier_settings(args.settings, dict(map(parse_change, args.set)))
        if args.dry_run:
            print(estimate(settings, Path(args.output) if args.output else None))
        elif args.output is None:
            raise PLNDError("--output is missing: name the folder for the results (or ask for --dry-run)")
        else:
            path = frontier(settings, args.output)
            print(path.with_suffix(".md").read_text(encoding="utf-8"))
    except PLNDError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
