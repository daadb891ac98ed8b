"""`plnd roles`: the roles of neurons in parallel examples, from JSON lines or from lm-eval tasks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plnd.commands.shared import Command, add_loading, add_model, add_plot, loading, model_source
from plnd.errors import PLNDError

if TYPE_CHECKING:
    from plnd.roles.parallel import Parallel
    from plnd.roles.roles import Roles


class RolesCommand(Command):
    """The subcommand (entry point `plnd.commands: roles`)."""

    help = "sort feed-forward neurons into all-shared, partial-shared, specific and non-activated, example by example"
    example = (
        "plnd roles --model google/gemma-3-270m --tasks plnd_xnli_en,plnd_xnli_de,plnd_xnli_zh --limit 200"
        " --output xnli.roles.safetensors"
    )

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the subcommand's options."""
        add = parser.add_argument
        add_model(parser, "folder or hub name of a language model, encoder-decoder or decoder only")
        source = parser.add_mutually_exclusive_group(required=True)
        source.add_argument(
            "--tasks",
            help="lm-eval tasks, comma-separated, one per language: each document's prompt as lm-eval asks it",
        )
        source.add_argument("--parallel", help="JSON lines or a table with one field per language")
        add(
            "--answers", help="with --parallel: a second file with the same fields, with what should follow each prompt"
        )
        add("--languages", help="only these, comma-separated (default: all)")
        add("--limit", type=int, help="at most so many examples (default: all)")
        add("--align", help="with --tasks: column that says which documents belong together (default: their position)")
        add("--num_fewshot", "--num-fewshot", type=int, default=0, help="with --tasks: worked examples (default: 0)")
        add("--metadata", type=_json_object, help='with --tasks: as lm-eval\'s, such as \'{"data_dir": "…"}\'')
        add("--include_path", "--include-path", help="with --tasks: folder of further tasks, as lm-eval's")
        add("--output", required=True, help="roles artifact to write")
        add("--tokens", choices=("last", "all"), default="last", help="active at the last token (default), or at any")
        add(
            "--thresholds",
            default="0",
            help="a neuron is active above it; of several, comma-separated, the first gives each example's roles, the"
            " others ratios (default: 0)",
        )
        add("--attribution", help="also write contribution and effective scores (eq. 9 and 10) as CSV")
        add(
            "--weighting",
            choices=("product", "activation"),
            default="product",
            help="for --attribution, what weighs a neuron's value in a gated feed-forward: gate times up (default), or"
            " the gate's activation alone",
        )
        add("--csv", help="also write the ratios per block (eq. 8) as CSV")
        add_plot(parser)
        add("--batch-size", type=int, default=8, help="inputs in one forward pass (default: 8)")
        add_loading(parser)

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Finds the roles, writes the artifact and prints the ratios."""
        _run(args)


def _run(args: argparse.Namespace) -> None:
    from plnd.io.files import check_writable, file_digest, write_csv
    from plnd.models.loading import load_model, load_tokenizer
    from plnd.plot_style import check_plot
    from plnd.roles.attribution import COLUMNS, Attribution
    from plnd.roles.roles import ROLES, find_roles

    for path in (args.output, args.attribution, args.csv, args.plot):
        if path:
            check_writable(path)
    if args.plot:
        check_plot(args.plot)
    thresholds = _numbers(args.thresholds)
    if args.attribution and args.tokens != "last":
        raise PLNDError("--attribution is measured at the last token: leave --tokens all out")
    parallel = _parallel(args)
    tokenizer = load_tokenizer(args.model, **model_source(args))
    inputs = parallel.token_ids(tokenizer)
    model = load_model(args.model, **model_source(args), **loading(args))
    attribution = None
    if args.attribution:
        answers = None
        if parallel.answers is not None:
            answers = parallel.answer_ids(tokenizer, separate=model.config.is_encoder_decoder)
        attribution = Attribution(model, len(parallel.languages), answers, weighting=args.weighting)
    roles = find_roles(
        model,
        parallel,
        inputs,
        output=args.output,
        tokens=args.tokens,
        thresholds=thresholds,
        batch_size=args.batch_size,
        listener=attribution,
        progress=True,
    )
    ratios = roles.ratios()
    print(f"{'block':<12}" + "".join(f"{role.replace('_', '-'):>16}" for role in ROLES))
    for block, row in zip(roles.widths, ratios, strict=True):
        print(f"{block:<12}" + "".join(f"{value:>15.2f}%" for value in row))
    if attribution is not None:
        write_csv(args.attribution, COLUMNS, attribution.rows(parallel.languages))
    if args.csv:
        write_csv(args.csv, ("block", "threshold", *ROLES), ratio_rows(roles))
    if args.plot:
        from plnd.plots import plot_lines

        panel = {role.replace("_", "-"): ratios[:, code] for code, role in enumerate(ROLES)}
        plot_lines({Path(args.output).stem: panel}, args.plot, "% of neurons", columns=args.columns)
    examples = f"{len(roles):,} examples in {', '.join(parallel.languages)}, {roles.metadata.corpus.tokens:,} tokens"
    print(f"{args.output}: {examples}; sha256 {file_digest(args.output)}")


def ratio_rows(roles: Roles) -> list[tuple[Any, ...]]:
    """Block, threshold and the percentage of each role, for every block and threshold."""
    return [
        (block, threshold, *map(float, row))
        for threshold in roles.thresholds
        for block, row in zip(roles.widths, roles.ratios(threshold=threshold), strict=True)
    ]


def _parallel(args: argparse.Namespace) -> Parallel:
    from plnd.roles.parallel import read_parallel

    languages = None if args.languages is None else [name.strip() for name in args.languages.split(",")]
    if args.limit is not None and args.limit < 1:
        raise PLNDError(f"--limit {args.limit}: expected 1 or more")
    if args.parallel:
        for name in ("align", "metadata", "include_path", "num_fewshot"):
            if getattr(args, name):
                raise PLNDError(f"--{name.replace('_', '-')} goes with --tasks, not with --parallel")
        return read_parallel(args.parallel, languages=languages, answers=args.answers, limit=args.limit)
    if args.answers:
        raise PLNDError("--answers goes with --parallel: lm-eval tasks have their own")
    from lm_eval_plnd.parallel_tasks import named_tasks, parallel_tasks

    tasks = named_tasks([name.strip() for name in args.tasks.split(",")])
    if languages is not None:
        missing = [name for name in languages if name not in tasks]
        if missing:
            raise PLNDError(f"--languages {missing[0]}: the tasks are in {', '.join(tasks)}")
        tasks = {name: tasks[name] for name in languages}
    return parallel_tasks(
        tasks,
        limit=args.limit,
        fewshot=args.num_fewshot,
        align=args.align,
        metadata=args.metadata,
        include_path=args.include_path,
    )


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("expected a JSON object")
    return value


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise PLNDError(f"--thresholds {text}: expected numbers, comma-separated") from None
