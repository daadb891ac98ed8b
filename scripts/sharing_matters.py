"""Every table and figure of Sharing Matters (arXiv:2406.09265), each one command.

    python scripts/sharing_matters.py run scripts/settings/sharing-matters/demo.yaml --output sharing    # all of them
    python scripts/sharing_matters.py figure12 sharing --output figure12                                 # one again
    python scripts/sharing_matters.py figure3 xnli.roles.safetensors facts.roles.safetensors --output figure3

prints the numbers and writes `figure3.csv` and `figure3.svg`, tables also as `.md` and `.tex`. `plnd roles`, which
`run` calls, makes what they read: roles artifacts, and with `--attribution` the CSV of scores. Figures cost a read,
Table 2 an evaluation for each of its rows (its results are kept in `table2.json`, from which a run that was stopped
goes on). docs/papers.md has the command of each.
"""

from __future__ import annotations

import argparse
import csv
import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_plnd.experiments.report.note import write_note
from lm_eval_plnd.experiments.results import read_sealed
from lm_eval_plnd.experiments.role_experiment import (
    ITEMS,
    SETTINGS_FILE,
    XNLI,
    RoleSettings,
    inputs_of,
    load_role_settings,
    shown,
    steps,
)
from lm_eval_plnd.experiments.tables import Shown, write_tables
from lm_eval_plnd.experiments.yaml_text import parse_change
from plnd.commands.shared import print_warning
from plnd.demo_data import expand
from plnd.errors import PLNDError
from plnd.io.files import file_digest, write_bytes, write_csv
from plnd.io.inputs import INPUTS, check_inputs, path_digest, sealed
from plnd.models.source import source_digest, source_digests
from plnd.plot_style import check_plot, in_words
from plnd.plots import plot_bars, plot_lines
from plnd.roles.roles import ROLES, Roles

Panels = Mapping[str, Mapping[str, np.ndarray]]
Label = str | Mapping[str, str]
LABELS = [role.replace("_", "-") for role in ROLES]
SHARES = "0.05,0.15,0.25,0.75"


def by_role(values: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of [blocks, roles] by the roles' names."""
    return {label: values[:, code] for code, label in enumerate(LABELS)}


def opened(paths: Sequence[str]) -> dict[str, Roles]:
    """Roles artifacts by their files' names."""
    return {Path(path).name.partition(".")[0]: Roles.load(path) for path in paths}


def parts(roles: Roles, values: Mapping[str, np.ndarray], title: str) -> Panels:
    """One panel, or of an encoder and a decoder one each (Figures 13 and 14)."""
    found: dict[str, dict[str, np.ndarray]] = {}
    names = np.array([name.rpartition(".")[0] for name in roles.widths])
    for part in dict.fromkeys(names):
        panel = f"{title}, {part}" if part else title
        found[panel] = {label: column[names == part] for label, column in values.items()}
    return found


def figure3(args: argparse.Namespace) -> tuple[Panels, str]:
    """Ratio of each role by block (eq. 8), a panel per artifact: Figures 3, 4, 12, 13, 14, 18 and 19."""
    panels: dict[str, Mapping[str, np.ndarray]] = {}
    for name, roles in opened(args.inputs).items():
        panels |= parts(roles, by_role(roles.ratios()), name)
    return panels, "% of neurons"


def figure5(args: argparse.Namespace) -> tuple[Panels, str]:
    """Neurons that keep their role in every example, beside the average: Figures 5, 15 and 16."""
    panels: dict[str, Mapping[str, np.ndarray]] = {}
    for name, roles in opened(args.inputs).items():
        panels |= parts(roles, by_role(roles.kept()), f"{name}: overlap")
        panels |= parts(roles, by_role(roles.ratios()), f"{name}: average")
    return panels, "% of neurons"


def figure6(args: argparse.Namespace) -> tuple[Panels, str]:
    """Neurons that stay inactive at every token of an input, by language: Figure 6 (artifacts of `--tokens all`)."""
    panels: dict[str, Mapping[str, np.ndarray]] = {}
    for name, roles in opened(args.inputs).items():
        if roles.metadata.method.tokens != "all":
            raise PLNDError(f"{name}: roles of the last token; Figure 6 needs those of `plnd roles --tokens all`")
        inactive = 100 - roles.active()
        values = {language: inactive[:, p] for p, language in enumerate(roles.languages)}
        values["all languages"] = roles.ratios()[:, ROLES.index("non_activated")]
        panels |= parts(roles, values, name)
    return panels, "% of neurons"


def figure7(args: argparse.Namespace) -> tuple[Panels, str]:
    """Partial-shared neurons that a language shares with each other, and whose specific ones are: Figures 7 and 17."""
    panels: dict[str, Mapping[str, np.ndarray]] = {}
    for name, roles in opened(args.inputs).items():
        shared, specific = roles.shared_with(args.language), roles.specific_to()
        others = [(p, x) for p, x in enumerate(roles.languages) if x != args.language]
        panels |= parts(roles, {x: shared[:, p] for p, x in others}, f"{name}: shared with {args.language}")
        panels |= parts(roles, {x: specific[:, p] for p, x in enumerate(roles.languages)}, f"{name}: specific")
    return panels, "% of the role's neurons"


def figure8(args: argparse.Namespace) -> tuple[Panels, str]:
    """Ratio of each role with more and more languages, the artifact's first 3, 5, 7, …: Figure 8."""
    panels: dict[str, Mapping[str, np.ndarray]] = {}
    for name, roles in opened(args.inputs).items():
        for count in map(int, args.counts.split(",")):
            values = by_role(roles.ratios(roles.languages[:count]))
            panels |= parts(roles, values, f"{name}, {count} languages")
    return panels, "% of neurons"


def figure20(args: argparse.Namespace) -> tuple[Panels, str]:
    """Ratio of each role under each threshold: Figure 20 (an artifact of `--thresholds 0,0.1,…`)."""
    panels: dict[str, Mapping[str, np.ndarray]] = {}
    for name, roles in opened(args.inputs).items():
        for threshold in roles.thresholds:
            panels |= parts(roles, by_role(roles.ratios(threshold=threshold)), f"{name}, above {threshold:g}")
    return panels, "% of neurons"


Scores = dict[tuple[str, str], list[dict[str, Any]]]


def scores(path: str) -> Scores:
    """Rows of an attribution CSV by language and role, a row per block."""
    found: Scores = defaultdict(list)
    with open(path, newline="") as stream:
        for row in csv.DictReader(stream):
            values = {
                k: float(v) if v else float("nan") for k, v in row.items() if k not in ("language", "role", "block")
            }
            found[row["language"], row["role"]].append({**values, "block": row["block"]})
    if not found:
        raise PLNDError(f"{path}: no scores in it; `plnd roles --attribution` writes them")
    return found


def column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """One value per block."""
    return np.array([row[name] for row in rows])


def figure9(args: argparse.Namespace) -> tuple[Panels, str]:
    """Each role's share of the 5 % of neurons that contribute most, by language: Figures 9, 21, 22 and 23."""
    found = scores(args.inputs[0])
    languages = dict.fromkeys(language for language, _ in found)
    panels = {
        language: {label: column(found[language, role], "top_share") for role, label in zip(ROLES, LABELS, strict=True)}
        for language in languages
    }
    return panels, "% of the top 5 %"


def figure10(args: argparse.Namespace) -> tuple[Panels, Label]:
    """Mean and total contribution (eq. 9) of each role, mean over languages: Figures 10 and 24."""
    panels: dict[str, Mapping[str, np.ndarray]] = {}
    labels: dict[str, str] = {}
    for path in args.inputs:
        found = scores(path)
        languages = list(dict.fromkeys(language for language, _ in found))
        for kind in ("total", "mean"):
            values = {}
            for role, label in zip(ROLES, LABELS, strict=True):
                rows = [column(found[language, role], f"contribution_{kind}") for language in languages]
                values[label] = np.nanmean(rows, axis=0) * (100 if kind == "total" else 1e4)
            unit = "%" if kind == "total" else "10⁻⁴"
            title = f"{Path(path).name.partition('.')[0]}: {kind} ({unit})"
            panels[title], labels[title] = values, f"{kind} contribution ({unit})"
    return panels, labels


def figure11(args: argparse.Namespace) -> tuple[Panels, str]:
    """Highest effective score (eq. 10) by block, over all languages: Figures 11, 25, 26 and 27."""
    panels: dict[str, Mapping[str, np.ndarray]] = {}
    for path in args.inputs:
        found = scores(path)
        languages = list(dict.fromkeys(language for language, _ in found))
        panels[Path(path).name.partition(".")[0]] = {
            label: np.nanmax([column(found[language, role], f"{args.answer}_max") for language in languages], axis=0)
            for role, label in zip(ROLES, LABELS, strict=True)
        }
    return panels, "highest effective score"


def table1(args: argparse.Namespace) -> None:
    """Maximum, minimum, mean and variance of effective scores by language and role: Tables 1 and 3."""
    found = scores(args.inputs[0])
    rows = []
    for (language, role), blocks in found.items():
        neurons = column(blocks, "neurons")
        share = neurons / neurons.sum()
        means, variances = column(blocks, f"{args.answer}_mean"), column(blocks, f"{args.answer}_variance")
        mean = float(np.nansum(share * means))
        variance = float(np.nansum(share * (variances + means**2))) - mean**2
        extremes = [float(f(column(blocks, f"{args.answer}_{x}"))) for f, x in ((np.nanmax, "max"), (np.nanmin, "min"))]
        rows.append((language, role, *extremes, mean, variance))
    header = ("language", "role", "max", "min", "mean", "variance")
    texts = [
        [language, role.replace("_", "-"), f"{most:.3f}", f"{least:.3f}", f"{mean:.1e}", f"{variance:.1e}"]
        for language, role, most, least, mean, variance in rows
    ]
    write_tables(args.output, header, rows, [Shown("effective scores", header, texts, 2)])
    print(f"{'':<6}{'role':<16}{'max':>9}{'min':>9}{'mean':>11}{'variance':>11}")
    for language, role, *values in rows:
        most, least, mean, variance = values
        print(f"{language:<6}{role.replace('_', '-'):<16}{most:>9.3f}{least:>9.3f}{mean:>11.1e}{variance:>11.1e}")
    panels = {
        name: {
            label: np.array([row[place] for row in rows if row[1] == role])
            for role, label in zip(ROLES, LABELS, strict=True)
        }
        for name, place in (("maximum", 2), ("minimum", 3))
    }
    languages = list(dict.fromkeys(row[0] for row in rows))
    for name, bars in panels.items():
        path = picture(args, "" if name == "maximum" else name)
        plot_bars(bars, languages, path, f"{name} of effective scores", columns=args.columns)


def table2(args: argparse.Namespace) -> None:
    """Accuracy in each language without each role's neurons, document by document, and without random ones.

    Tables 2 and 4. With --controls, beside each role its own: as many random neurons of each block and document.
    """
    shares = [float(share) for share in args.shares.split(",")]
    settings: list[tuple[str, dict[str, Any]]] = [("baseline", {"deactivate": "random", "share": 0.0})]
    settings += [(f"w/o {label}", {"deactivate": role}) for role, label in zip(ROLES, LABELS, strict=True)]
    settings += [(f"w/o random {share:.0%}", {"deactivate": "random", "share": share}) for share in shares]
    if args.controls:
        settings += [
            (f"w/o random, as many as {label}", {"deactivate": role, "control": "random"})
            for role, label in zip(ROLES, LABELS, strict=True)
        ]
    roles = Roles.load(args.inputs[0])
    store = Path(f"{args.output}.json")
    done = read_done(store, roles)
    name, revision = source_of(args, roles)
    inputs = {"roles": file_digest(args.inputs[0]), "model's content": source_digest(name, revision)}
    inputs |= {"dtype": args.dtype, "seed": args.seed, "data": data_of(args.metadata or {})}
    check_inputs(Path(f"{args.output}.{INPUTS}"), inputs, "table", begun=bool(done))
    kept = {found["metric"] for found in done.values() if "metric" in found}
    metric = args.metric or next(iter(kept), None)
    if kept - {metric}:
        raise PLNDError(
            f"{store}: found scores in {', '.join(kept)}, expected {metric}; give that --metric, or another --output"
        )
    missing = [(name, options) for name, options in settings if name not in done]
    evaluate = None
    if missing:
        metric, evaluate = evaluator(args, roles, metric)
    for name, options in missing:
        assert evaluate is not None
        done[name] = evaluate(options)
        write_bytes(sealed(done).encode(), store)
        print(row_of(name, done[name]), flush=True)
    header = f"{'':<40}{'pct.':>7}" + "".join(f"{language:>7}" for language in roles.languages)
    print("\n".join([header, *(row_of(name, done[name]) for name, _ in settings)]))
    rows = [(name, done[name]["share"], *done[name]["score"]) for name, _ in settings]
    texts = [[name, f"{share:.2%}", *(f"{100 * score:.1f}" for score in scored)] for name, share, *scored in rows]
    beside = Shown(f"{metric or 'score'} (%) without neurons", ("setting", "pct.", *roles.languages), texts)
    write_tables(args.output, ("setting", "share", *roles.languages), rows, [beside])
    panels = {
        title: {name: 100 * np.array(done[name]["score"]) for name, _ in settings[:1] + settings[low:high]}
        for title, low, high in (("by role", 1, 5), ("random", 5, 5 + len(shares)))
    }
    for title, bars in panels.items():
        path = picture(args, "" if title == "by role" else "random")
        plot_bars(bars, list(roles.languages), path, f"{in_words(metric or 'score')} (%)", columns=args.columns)


def read_done(store: Path, roles: Roles) -> dict[str, dict[str, Any]]:
    """Setting to what was found, from a file, if it is there.

    Raises:
        PLNDError: if it is damaged.
    """
    done = read_sealed(store) if store.exists() else {}
    for found in done.values():
        scores = [found.get("share"), *(found.get("score") or [])] if isinstance(found, dict) else []
        if len(scores) != 1 + len(roles.languages) or not all(isinstance(x, int | float) for x in scores):
            raise PLNDError(f"{store}: damaged; delete it, and its settings are evaluated again")
    return done


def data_of(metadata: Mapping[str, Any]) -> str:
    """What the tasks' rows are, by content."""
    return path_digest(expand(metadata["data_dir"])) if "data_dir" in metadata else "the hub's"


def source_of(args: argparse.Namespace, roles: Roles) -> tuple[str, str | None]:
    """Name and revision of the model: by default the one that the roles are of."""
    from plnd.model_description import base_model

    return (args.model, None) if args.model else base_model(roles.model, args.inputs[0], "give --model")


def row_of(name: str, found: Mapping[str, Any]) -> str:
    """One line of the table."""
    return f"{name:<40}{found['share']:>7.2%}" + "".join(f"{100 * score:>7.1f}" for score in found["score"])


def metric_of(tasks: Mapping[str, Any], wanted: str | None) -> str:
    """The metric that is wanted, else the first one of the first task.

    Args:
        tasks: lm-eval's task objects by name.
        wanted: a metric's name.
    Raises:
        PLNDError: if a task does not have it.
    """
    listed = {name: list(task.aggregation()) for name, task in tasks.items()}
    metric = wanted or next(iter(listed.values()))[0]
    for name, metrics in listed.items():
        if metric not in metrics:
            raise PLNDError(
                f"{name}: found no metric {metric}, expected one of its own: --metric {' or '.join(metrics)}"
            )
    return metric


def evaluator(
    args: argparse.Namespace, roles: Roles, wanted: str | None
) -> tuple[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
    """The metric, and what evaluates one setting on the artifact's documents, with one copy of the model for all."""
    import lm_eval.models  # noqa: F401  before anything is registered
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from lm_eval_plnd.model import PLNDLM
    from lm_eval_plnd.task_folder import tasks_folder
    from plnd.models.loading import load_model, load_tokenizer

    tasks = roles.tasks
    if tasks is None:
        raise PLNDError(f"{args.inputs[0]}: its examples are not those of lm-eval tasks")
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata=args.metadata)
    metric = metric_of(manager.load(list(tasks))["tasks"], wanted)
    name, revision = source_of(args, roles)
    model = load_model(name, revision=revision, dtype=args.dtype, device=args.device)
    tokenizer = load_tokenizer(name, revision)
    numbers = list(zip(*roles.metadata.documents, strict=True))
    samples = {task: sorted(set(documents)) for task, documents in zip(tasks, numbers, strict=True)}

    def evaluate(options: Mapping[str, Any]) -> dict[str, Any]:
        given = {"roles": roles, "seed": args.seed, **options}
        lm = PLNDLM(pretrained=model, tokenizer=tokenizer, batch_size=args.batch_size, **given)
        found = simple_evaluate(
            lm,
            tasks=list(tasks),
            samples=samples,
            task_manager=manager,
            num_fewshot=roles.metadata.corpus.fewshot or None,
            bootstrap_iters=100,  # no more than a metric without a closed form of its error needs
            log_samples=False,
        )["results"]
        return {
            "share": lm.record()["share"],
            "metric": metric,
            "score": [found[task][f"{metric},none"] for task in tasks],
            "stderr": [found[task][f"{metric}_stderr,none"] for task in tasks],
            "seed": args.seed,
        }

    return metric, evaluate


def picture(args: argparse.Namespace, name: str = "") -> Path:
    """Where a picture goes: --plot, or beside the table; of several, the name is in it."""
    path = Path(args.plot or f"{args.output}.svg")
    return path.with_name(f"{path.stem}_{name}{path.suffix}") if name else path


def drawn(make: Callable[[argparse.Namespace], tuple[Panels, Label]]) -> Callable[[argparse.Namespace], None]:
    """A figure printed, written as CSV and drawn."""

    def run(args: argparse.Namespace) -> None:
        panels, label = make(args)
        rows = [
            (title, name, block, float(value))
            for title, curves in panels.items()
            for name, values in curves.items()
            for block, value in enumerate(values)
        ]
        for title, curves in panels.items():
            print(
                f"{title} ({label if isinstance(label, str) else label[title]})\n{'block':<6}"
                + "".join(f"{name:>16}" for name in curves)
            )
            for block, values in enumerate(zip(*curves.values(), strict=True)):
                print(f"{block:<6}" + "".join(f"{value:>16.3f}" for value in values))
        write_csv(f"{args.output}.csv", ("panel", "curve", "block", "value"), rows)
        plot_lines(panels, picture(args), label, stacked=make is figure9, columns=args.columns)

    return run


def each(make: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
    """A table of one input, made of each; of several, their names are in the files'."""

    def run(args: argparse.Namespace) -> None:
        inputs, output, plot = args.inputs, args.output, args.plot
        for path in inputs:
            args.inputs = [path]
            if len(inputs) > 1:
                name = Path(path).name.partition(".")[0]
                args.output = f"{output}_{name}"
                args.plot = plot and str(Path(plot).with_name(f"{Path(plot).stem}_{name}{Path(plot).suffix}"))
                print(name)
            make(args)
        args.inputs, args.output, args.plot = inputs, output, plot

    return run


MAKERS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "ratios": figure3,
    "kept": figure5,
    "inactive": figure6,
    "shared": figure7,
    "counts": figure8,
    "top": figure9,
    "contributions": figure10,
    "effective": figure11,
    "thresholds": figure20,
    "effects": table1,
    "deactivated": table2,
}
OTHER_MODELS = ("figure4", "figure12", "figure13", "figure14", "figure18", "table4")
"""What the paper shows of further models: the same of another folder, or of several."""


def experiment(args: argparse.Namespace) -> None:
    """All tables and figures from one settings file: roles of every task, then each item; again, it goes on.

    Leaves `NAME.roles.safetensors`, `NAME.attribution.csv`, and of each item its CSV and pictures.
    """
    from plnd.commands.main import main as plnd

    settings, folder = load_role_settings(args.settings, dict(map(parse_change, args.set))), Path(args.output)
    todo = [step for step in steps(settings) if not all(file.is_file() for file in step.files(folder))]
    if args.dry_run:
        print("\n".join(shown(step.command(folder)) for step in steps(settings)))
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PLNDError(f"{folder}: cannot be made ({error.strerror}); choose another --output") from None
    kept = folder / SETTINGS_FILE
    if kept.is_file() and load_role_settings(kept) != settings:
        raise PLNDError(f"{folder}: holds another experiment (its {SETTINGS_FILE} differs); choose another --output")
    inputs = {f"model's content ({name})": digest for name, digest in source_digests(settings.model).items()}
    inputs |= {"data": data_of(settings.metadata)}
    check_inputs(folder / INPUTS, inputs, "experiment", begun=kept.is_file())
    write_bytes(settings.text().encode(), kept)
    for step in todo:
        print(shown(step.command(folder)), flush=True)
        if status := plnd(step.command(folder)[1:]):
            raise SystemExit(status)
    for name, item in ITEMS.items():
        if name in OTHER_MODELS:
            continue
        if not any(step in {s.name for s in steps(settings)} for step in item.inputs):
            print(f"{name}: needs {' or '.join(item.inputs)}, which is not among the settings' tasks")
            continue
        words = [name, str(folder), "--output", str(folder / name), *options_of(name, settings)]
        made = make_parser().parse_args(words)
        print(f"\n{name}")
        made.run(made)
        write_note(made.output, made.inputs, ["sharing_matters.py", *words])
    print(f"\nof other models: {', '.join(OTHER_MODELS)}, each of a folder with --set model.pretrained=…")


def options_of(name: str, settings: RoleSettings) -> list[str]:
    """What an experiment says about one of its items."""
    maker = ITEMS[name].maker
    if maker == "shared":
        return ["--language", settings.language]
    if maker == "counts":
        most = len(settings.tasks[XNLI].languages or settings.languages)
        fitting = [count for count in settings.counts if count <= most] or [most]
        return ["--counts", ",".join(map(str, fitting))]
    if maker != "deactivated":
        return []
    options = ["--model", str(expand(settings.model["pretrained"])), "--shares", ",".join(map(str, settings.shares))]
    if settings.metadata:
        options += ["--metadata", json.dumps(expand(settings.metadata))]
    for option in ("dtype", "device", "batch_size"):
        if settings.model.get(option) is not None:
            options += [f"--{option.replace('_', '-')}", str(settings.model[option])]
    return options


def of_item(name: str) -> Callable[[argparse.Namespace], None]:
    """What makes an item, of files or of an experiment's folder."""
    make = MAKERS[ITEMS[name].maker]
    run = each(make) if make in (table1, table2) else drawn(make)

    def made(args: argparse.Namespace) -> None:
        args.inputs = inputs_of(ITEMS[name], args.inputs)
        run(args)

    return made


def make_parser() -> argparse.ArgumentParser:
    """The command line: `run`, and every table and figure by its name in the paper."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    whole = commands.add_parser(
        "run", help="all tables and figures, from a settings file", description=experiment.__doc__
    )
    whole.add_argument("settings", help="YAML file (docs/sharing-matters.md)")
    whole.add_argument("--output", required=True, help="folder")
    whole.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another value for a field")
    whole.add_argument("--dry-run", action="store_true", help="print the commands that would be run")
    whole.set_defaults(run=experiment, inputs=[], plot=None)
    for name in ITEMS:
        make = MAKERS[ITEMS[name].maker]
        command = commands.add_parser(
            name, help=str(make.__doc__).partition("\n")[0].replace("%", "%%"), description=make.__doc__
        )
        command.add_argument("inputs", nargs="+", help="folder of `run`, or what `plnd roles` wrote: roles or scores")
        command.add_argument("--output", required=True, help="beginning of the names of the files to write")
        command.add_argument("--plot", help="picture to write, .svg, .pdf or .png (default: OUTPUT.svg)")
        command.add_argument("--columns", type=int, choices=(1, 2), default=2, help="of a paper's page (default: 2)")
        command.set_defaults(run=of_item(name))
        if make is figure7:
            command.add_argument("--language", default="de", help="whose shared neurons are counted (default: de)")
        if make is figure8:
            command.add_argument("--counts", default="3,5,7,9", help="numbers of languages (default: 3,5,7,9)")
        if make in (figure11, table1):
            command.add_argument(
                "--answer",
                choices=("first", "mean"),
                default="first",
                help="answers of several tokens: which embedding",
            )
        if make is table2:
            command.add_argument("--model", help="folder or hub name (default: the artifact's)")
            command.add_argument("--shares", default=SHARES, help=f"shares of random neurons (default: {SHARES})")
            command.add_argument("--controls", action="store_true", help="also as many random neurons as of each role")
            command.add_argument("--metric", help="of the tasks (default: their first)")
            command.add_argument("--metadata", type=json.loads, help="as lm-eval's")
            command.add_argument("--batch-size", type=int, default=16)
            command.add_argument("--dtype", default="auto")
            command.add_argument("--device")
            command.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    """Draws one figure, makes one table, or runs an experiment with all of them."""
    parser = make_parser()
    args = parser.parse_args()
    warnings.showwarning = print_warning  # one line each
    try:
        if args.plot:
            check_plot(args.plot)
        args.run(args)
        if args.command != "run":
            write_note(args.output, args.inputs)
    except PLNDError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
