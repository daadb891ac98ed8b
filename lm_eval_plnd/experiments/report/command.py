"""`plnd report`: one HTML page of an experiment's folder, with everything in it, that asks no one for anything.

The page is made of what lies in the folder, all of it optional: the files of `plnd experiment`; plots (`.png`, `.svg`)
and tables (`.csv`), which belong together where their names do, with the notes that say how they were made
(`.made.json`); artifacts; `commands.sh`, shown as it is. The same folder gives the same bytes.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import io
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_plnd.experiments import results
from lm_eval_plnd.experiments.report.answers import answers_section
from lm_eval_plnd.experiments.report.note import ENDING, command_of, script_of
from lm_eval_plnd.experiments.report.page import (
    Cell,
    Plot,
    Section,
    Table,
    breakable,
    digest_cell,
    share_cell,
    shown,
    signed,
)
from lm_eval_plnd.experiments.report.scores import look_of, score_sections
from lm_eval_plnd.experiments.report.words import figure_in_words, nothing_to_see, setting_in_words
from lm_eval_plnd.experiments.results import Row
from lm_eval_plnd.experiments.tables import read_markdown
from plnd.commands.shared import Command
from plnd.errors import PLNDError
from plnd.io.files import read_bounded
from plnd.secrets import published, without_secrets

if TYPE_CHECKING:
    from lm_eval_plnd.experiments.settings import Settings
    from plnd.any_artifact import Artifact
    from plnd.io.metadata import CorpusDescription, ParallelCorpus

PLOTS = {".png": "image/png", ".svg": "image/svg+xml"}
COMMANDS = "commands.sh"
OF_A_MODEL = ("config.json", "adapter_config.json")
"""Beside one of these, a safetensors file holds weights."""


class ReportCommand(Command):
    """The subcommand (entry point `plnd.commands: report`)."""

    help = "make one self-contained HTML page of an experiment's folder: tables, plots, settings, digests, commands"
    example = "plnd report experiment --output experiment.html"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the subcommand's options."""
        parser.add_argument("folder", metavar="DIR", help="what `plnd experiment` or the scripts of the figures wrote")
        parser.add_argument("--output", help="page to write (default: DIR/report.html)")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Writes the page and says where."""
        from plnd.io.files import check_writable, write_bytes

        folder = _folder(args.folder)
        output = Path(args.output) if args.output else folder / "report.html"
        check_writable(output)
        page = make_page(folder, progress=True).encode()
        write_bytes(page, output)
        print(f"{output}: {len(page):,} bytes; sha256 {hashlib.sha256(page).hexdigest()}")


def make_page(folder: str | Path, *, progress: bool = False) -> str:
    """The page of an experiment's folder.

    Args:
        folder: what `plnd experiment` or the scripts of the figures wrote.
        progress: show a bar over the statistics.

    Returns:
        HTML, complete in itself; the same for the same files.

    Raises:
        PLNDError: if the folder is missing, holds nothing to report, or a file in it is damaged.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from plnd.version import __version__

    folder = _folder(folder)
    rows = results.read_results(folder) if (folder / results.RESULTS).is_file() else []
    sections = _sections(folder, rows, progress)
    if not sections:
        raise PLNDError(
            f"{folder}: nothing to report there; expected {results.RESULTS} of `plnd experiment`, or the scripts' plots"
            " (.png, .svg), tables (.csv) and artifacts (.safetensors)"
        )
    environment = Environment(
        loader=PackageLoader("lm_eval_plnd.experiments.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    return environment.get_template("report.html").render(
        title=_title(folder), facts=_facts(folder, rows), sections=sections, version=__version__
    )


def _folder(path: str | Path) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "no such folder"
        raise PLNDError(f"{folder}: {found}; expected a folder that `plnd experiment` wrote")
    return folder


def _sections(folder: Path, rows: Sequence[Row], progress: bool) -> list[Section]:
    """What the folder has, in reading order."""
    from lm_eval_plnd.experiments.report.sets import sets_section
    from lm_eval_plnd.experiments.settings import load_settings
    from plnd.neurons.neuron_set import NeuronSet

    drawn, artifacts = _figures(folder), _read_artifacts(folder)
    sets = {path: one for path, one in artifacts.items() if isinstance(one, NeuronSet)}
    settings = load_settings(folder / results.SETTINGS) if (folder / results.SETTINGS).is_file() else None
    done = [sets_section(sets), _switched_off(rows, settings), _artifacts(folder, artifacts), _settings(folder)]
    if not any(s.tables or s.plots or s.code for s in (*drawn, *done)):
        return []
    done.append(_commands(folder, rows))
    scores = score_sections(folder, rows, settings, progress)  # the longest work after all that can be refused
    written = answers_section(folder, rows)
    return [s for s in (*scores, written, *drawn, *done) if s.tables or s.plots or s.code or s.warnings]


def _title(folder: Path) -> str:
    """The folder's name, and whose neurons an experiment in it is about."""
    from lm_eval_plnd.experiments.settings import load_settings

    name = folder.resolve().name
    if not (folder / results.SETTINGS).is_file():
        return name
    model = load_settings(folder / results.SETTINGS).model["pretrained"]
    return f"Neurons of {without_secrets(results.portable(model))}: {name}"


def _facts(folder: Path, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The line of facts under the title."""
    from plnd.io.files import file_digest

    if not rows:
        return []
    languages = dict.fromkeys(row.task_language for row in rows if row.task_language)
    documents = sorted({row.documents for row in rows})
    several = "" if len(documents) == 1 else f" to {documents[-1]:,}"
    return [
        ("settings", f"{len({row.setting for row in rows}):,}"),
        ("tasks", f"{len({row.task for row in rows}):,}"),
        ("languages", ", ".join(languages) or "–"),
        ("documents a task", f"{documents[0]:,}{several}"),
        ("SHA-256 of results.csv", file_digest(folder / results.RESULTS)),
    ]


# plots and tables of the scripts


def _figures(folder: Path) -> list[Section]:
    """A section per item: the plots and tables whose names begin with its name."""
    sections: dict[str, Section] = {}
    for path in _files(folder):
        if path.suffix not in (*PLOTS, ".csv") or path == folder / results.RESULTS:
            continue
        if path.suffix == ".png" and path.with_suffix(".svg").is_file():
            continue  # the same picture, as sharp at every size
        name = path.relative_to(folder).with_suffix("").as_posix()
        item = re.match(r"(.*(?:figure|table)\d+)_", name)
        title = item[1] if item else name
        section = sections.setdefault(title, Section(title, _words_of(path, item[1] if item else name, folder)))
        if path.suffix == ".csv":
            read, all_numbers = _read_tables(path), _csv_tables(path)
            section.tables += [*read, *(replace(t, folded=bool(read)) for t in all_numbers)]
            section.warnings = [*section.warnings, *nothing_to_see(*_csv(path))]
        else:
            data = base64.b64encode(_bytes(path)).decode()
            section.plots.append(Plot(path.name, f"data:{PLOTS[path.suffix]};base64,{data}"))
    for section in sections.values():
        section.tables = [
            replace(table, folded=table.folded or table.long or bool(section.plots and "table" not in section.name))
            for table in section.tables
        ]
    return [sections[name] for name in sorted(sections, key=results.in_order)]


def _files(folder: Path) -> list[Path]:
    """Files in the folder and below, but for hidden ones, in order."""
    found = (path for path in folder.rglob("*") if path.is_file())
    visible = (p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    return sorted(visible, key=lambda path: results.in_order(path.relative_to(folder).as_posix()))


def _bytes(path: Path) -> bytes:
    return read_bounded(path, results.MAX_BYTES)


def _words_of(path: Path, item: str, folder: Path) -> str:
    """What an item of a script shows, if a note beside it says which script that was."""
    note = folder / f"{item}{ENDING}"
    return figure_in_words(script_of(note), Path(item).name) if note.is_file() else ""


def _read_tables(path: Path) -> list[Table]:
    """The tables that a script prints of a CSV, from the Markdown beside it."""
    beside = path.with_suffix(".md")
    shown_tables = read_markdown(results.read_text(beside)) if beside.is_file() else []
    tables = []
    for one in shown_tables:
        kinds = ["" if place < one.words else "number" for place in range(len(one.header))]
        rows = [[Cell(text or "–", kind=kind) for text, kind in zip(row, kinds, strict=True)] for row in one.rows]
        if rows:
            tables.append(Table(one.title, one.header, rows))
    return tables


def _csv(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table."""
    try:
        lines = list(csv.reader(io.StringIO(results.read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise PLNDError(f"{path}: not a CSV file ({error})") from None
    if not lines:
        raise PLNDError(f"{path}: empty, expected a table with a header")
    header, *rows = lines
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise PLNDError(f"{path}: row {number} has {len(row)} values, expected {len(header)}")
    return header, rows


def _csv_tables(path: Path) -> list[Table]:
    header, rows = _csv(path)
    if not rows:
        return []
    if panels := _panels(header, rows):
        return panels
    columns = [_csv_column(column) for column in zip(*rows, strict=True)]
    return [Table(f"all numbers, {path.name}", header, [list(row) for row in zip(*columns, strict=True)])]


def _panels(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Table]:
    """A table per value of the first column, where rows hold one number for each pair of the next two; else none."""
    if len(header) != 4 or any(_float(row[3]) is None for row in rows):
        return []
    across, down = (1, 2) if header[2] == "block" else (2, 1)
    tables = []
    for panel in dict.fromkeys(row[0] for row in rows):
        chosen = [row for row in rows if row[0] == panel]
        values = {(row[down], row[across]): row[3] for row in chosen}
        downs, acrosses = (list(dict.fromkeys(row[place] for row in chosen)) for place in (down, across))
        if len(values) != len(chosen) or len(values) != len(downs) * len(acrosses):
            return []
        lines = [[Cell(y), *(_csv_cell(values[y, x]) for x in acrosses)] for y in downs]
        caption = panel if header[3] == "value" else f"{panel}: {header[3]}"
        tables.append(Table(caption, [header[down], *acrosses], lines))
    return tables


def _csv_column(texts: Sequence[str]) -> list[Cell]:
    """The cells of a column; where a number has a plus sign, those with a sign are changes."""
    changes = any(text.startswith("+") and _float(text) is not None for text in texts)
    cells = [_csv_cell(text, changes and text.startswith(("+", "-"))) for text in texts]
    if any(cell.kind == "number" for cell in cells):  # then a dash stands where a number would
        return [replace(cell, kind="number") if cell.text == "–" else cell for cell in cells]
    return cells


def _csv_cell(text: str, is_change: bool = False) -> Cell:
    number = _float(text)
    if number is None:
        return Cell(text or "–")
    if not math.isfinite(number):
        return Cell("–", kind="number")
    if is_change:
        return Cell(signed(number), text, "number")
    if text.lstrip("-").isdigit():
        return Cell(f"{int(text):,}".replace("-", "−"), text, "number")
    return Cell(shown(number), text, "number")


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


# what was done


def _switched_off(rows: Sequence[Row], settings: Settings | None) -> Section:
    """Every setting once: what was off in it."""
    section = Section("switched off", "What was switched off")
    if settings and settings.ablation == "mean":
        section.findings = ["Mean ablation: neurons are at their means over the documents of detection, not at zero."]
    lines, looks = [], []
    for row in results.first_of_each(rows):
        texts = (row.neurons, row.language, row.region, row.control, row.seed, row.sample)
        names = [Cell(row.setting), Cell(setting_in_words(row), kind="words")]
        numbers = [Cell(f"{row.deactivated:,}", kind="number"), share_cell(row.share)]
        lines.append([*names, *(Cell(text or "–") for text in texts), *numbers, digest_cell(row.mask_sha256)])
        looks.append(look_of(row))
    if lines:
        header = [
            "setting",
            "in words",
            "neurons",
            "language",
            "region",
            "control",
            "seed",
            "sample",
            "off",
            "of all",
            "SHA-256",
        ]
        section.tables.append(Table("settings, with the digest of the neurons", header, lines, looks))
    return section


def _read_artifacts(folder: Path) -> dict[Path, Artifact]:
    """Every artifact in the folder, in order."""
    from plnd.any_artifact import load

    found = [path for path in _files(folder) if path.suffix == ".safetensors"]
    return {path: load(path) for path in found if not any((path.parent / name).is_file() for name in OF_A_MODEL)}


def _artifacts(folder: Path, artifacts: Mapping[Path, Artifact]) -> Section:
    """Of every artifact what it holds, of which corpus, and its digests."""
    from plnd.neurons.history import rule_in_words
    from plnd.neurons.neuron_set import NeuronSet
    from plnd.references.direction import Direction
    from plnd.references.means import Means
    from plnd.references.routing import Routing
    from plnd.roles.roles import Roles

    section, lines = Section("artifacts", "Scores, neurons and roles"), []
    for path, artifact in artifacts.items():
        neurons = artifact if isinstance(artifact, NeuronSet) else None
        languages: Sequence[str | None]
        corpora: Sequence[CorpusDescription | ParallelCorpus]
        if isinstance(artifact, Means | Direction | Routing):
            languages, corpora = list(artifact.metadata.corpora), list(artifact.metadata.corpora.values())
            digest = Cell("–")  # of several corpora
        else:
            languages = artifact.languages if isinstance(artifact, Roles) else [artifact.metadata.language]
            corpora, digest = [artifact.metadata.corpus], digest_cell(artifact.metadata.corpus.sha256)
        lines.append(
            [
                Cell(path.relative_to(folder).as_posix()),
                Cell(artifact.metadata.form.removeprefix("plnd.")),
                Cell(", ".join(filter(None, languages)) or "–"),
                Cell("–" if neurons is None else f"{len(neurons):,}", kind="number"),
                Cell("–" if neurons is None else rule_in_words(neurons.metadata), kind="words"),
                Cell(f"{sum(corpus.documents for corpus in corpora):,}", kind="number"),
                Cell(f"{sum(corpus.tokens for corpus in corpora):,}", kind="number"),
                digest,
                digest_cell(artifact.digest or ""),
            ]
        )
    if lines:
        header = "file,kind,language,neurons,rule,documents,tokens,corpus SHA-256,file SHA-256".split(",")
        section.tables.append(Table("what they hold, and of which corpus", header, lines))
    return section


def _settings(folder: Path) -> Section:
    """The experiment's settings and the software that ran it."""
    section = Section("settings", "Settings and software")
    if (folder / results.SETTINGS).is_file():
        section.code.append((results.SETTINGS, without_secrets(_portable_settings(folder / results.SETTINGS))))
    if (folder / results.ENVIRONMENT).is_file():
        from plnd.neurons.history import plain

        found = results.read_json(folder / results.ENVIRONMENT)
        lines = [[Cell(name), Cell(plain(value))] for name, value in sorted(found.items())]
        section.tables.append(Table("versions", ["name", "version"], lines))
    return section


def _portable_settings(path: Path) -> str:
    """The text of the settings, with files and folders of this machine by their last names."""
    import yaml

    from lm_eval_plnd.experiments.yaml_text import read_fields

    return yaml.safe_dump(results.portable(read_fields(path)), sort_keys=False, allow_unicode=True)


def _commands(folder: Path, rows: Sequence[Row]) -> Section:
    """What to type to get all of it again, from the folder above this one."""
    section = Section("repeat", "To repeat it")
    name = shlex.quote(folder.resolve().name)
    lines = []
    if (folder / results.SETTINGS).is_file():
        lines.append(f"plnd experiment {name}/{results.SETTINGS} --output {name}-again")
    lines += [_roles_command(folder, path) for path in _files(folder) if _is_roles(path)]
    lines += [command_of(path, folder) for path in _files(folder) if path.name.endswith(ENDING)]
    lines.append(f"plnd report {name}")
    section.code.append(("all of it", "\n".join(lines) + "\n"))
    if rows and (folder / results.SETTINGS).is_file():
        from lm_eval_plnd.experiments.settings import load_settings

        settings = load_settings(folder / results.SETTINGS)
        commands = results.commands(settings, dict.fromkeys(row.item for row in rows), results.portable)
        section.code.append(("an evaluation with lm-eval alone", "\n".join(commands.values()) + "\n"))
        firsts = results.first_of_each(rows)
        here, shown = folder.resolve().name, results.portable
        models = [Cell(results.arguments(row, settings, here, shown), kind="code") for row in firsts]
        cells = [[Cell(row.setting), model] for row, model in zip(firsts, models, strict=True)]
        caption = "$MODEL in these commands, for each setting"
        looks = [look_of(row) for row in firsts]
        section.tables.append(Table(caption, ["setting", "$MODEL"], cells, looks, folded=True))
    if (folder / COMMANDS).is_file():
        section.code.append((COMMANDS, without_secrets(results.read_text(folder / COMMANDS))))
    return section


def _is_roles(path: Path) -> bool:
    return path.name.endswith(".roles.safetensors")


def _quoted(folder: Path, path: Path) -> str:
    return shlex.quote(path.relative_to(folder).as_posix())


def _roles_command(folder: Path, path: Path) -> str:
    """The command that made a roles artifact, from what it says of itself."""
    from plnd.roles.roles import Roles

    roles = Roles.load(path)
    model, method, corpus = roles.model, roles.metadata.method, roles.metadata.corpus
    options = ["--model", results.portable(model.name or "MODEL")]
    options += ["--revision", model.revision] if model.revision else []
    options += ["--tasks", ",".join(roles.tasks)] if roles.tasks else ["--parallel", published(corpus.source or "FILE")]
    options += ["--limit", str(corpus.documents), "--tokens", method.tokens]
    options += ["--thresholds", ",".join(f"{threshold:g}" for threshold in method.thresholds)]
    options += ["--num_fewshot", str(corpus.fewshot)] if corpus.fewshot else []
    name = shlex.quote(folder.resolve().name)
    return f"{shlex.join(['plnd', 'roles', *options])} --output {name}/{_quoted(folder, path)}"
