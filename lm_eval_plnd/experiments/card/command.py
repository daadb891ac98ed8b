"""`plnd card`: a Hugging Face model card of a masked, exported or tuned model, from its results, ready to push.

The metadata, `model-index` among them, is made and checked by huggingface_hub's own classes.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plnd.commands.shared import Command
from plnd.errors import PLNDError

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

    from lm_eval_plnd.experiments.card.evaluations import Evaluation, Score
    from plnd.neurons.neuron_set import NeuronSet
    from plnd.neurons.regions import Regions

HARNESS = "https://github.com/EleutherAI/lm-evaluation-harness"
AGREEMENT = 1e-4
"""Scores of the same model that differ by more, relatively, are not of the same model."""


class CardCommand(Command):
    """The subcommand (entry point `plnd.commands: card`)."""

    help = "write a Hugging Face model card from lm-eval's results: model-index, provenance, commands, how to load"
    example = "plnd card results/ original/ --mask zh.safetensors --name gemma-3-270m-without-zh --output README.md"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds the subcommand's options."""
        add = parser.add_argument
        add("results", nargs="+", help="lm-eval's results files, folders of them, or folders of `plnd experiment`")
        add("--mask", help="neurons artifact that the card is about (default: the one in the results, if one alone)")
        add("--setting", help="which one: a setting of an experiment, or the name of a folder that was evaluated")
        add("--name", help="of the model (default: the base model's name and what was switched off)")
        add("--base-model", help="hub name of the base model, where the results have a folder")
        add("--license", help="as the hub writes it, such as apache-2.0; the base model's terms hold")
        add("--output", default="README.md", help="card to write (default: README.md)")
        add("--validate", action="store_true", help="also ask the hub, which must be reachable")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Writes the card and says what is in it."""
        from lm_eval_plnd.experiments.card.evaluations import read_evaluations
        from plnd.io.files import check_writable, write_bytes

        check_writable(args.output)
        evaluations = [evaluation for path in args.results for evaluation in read_evaluations(path)]
        card = make_card(
            evaluations,
            mask=args.mask,
            setting=args.setting,
            name=args.name,
            base_model=args.base_model,
            license=args.license,
        )
        if args.validate:
            ask_the_hub(card)
        write_bytes(str(card).encode(), args.output)
        print(f"{args.output}: {card.data.get('model_name')}, {len(card.data.get('eval_results'))} scores")


@dataclass(frozen=True)
class Subject:
    """The model that a card is about.

    Attributes:
        own: evaluations of it.
        original: of the base model.
        controls: with as many random neurons switched off.
        base: folder or hub name of the base model; None where nobody says.
        neurons: what was switched off or tuned; None where the artifact is not at hand.
    """

    own: list[Evaluation]
    original: list[Evaluation]
    controls: list[Evaluation]
    base: str | None
    neurons: NeuronSet | None

    def of_kind(self, kind: str) -> Evaluation | None:
        """The first of its evaluations as masked, exported, adapter or checkpoint."""
        return next((evaluation for evaluation in self.own if evaluation.kind == kind), None)


def make_card(
    evaluations: Sequence[Evaluation],
    *,
    mask: str | Path | None = None,
    setting: str | None = None,
    name: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
) -> ModelCard:
    """The card of one model.

    Args:
        evaluations: of the model; also of the original, and of random controls, to compare it with.
        mask: neurons artifact that the card is about; by default the one that the evaluations name.
        setting: name of an evaluation, where several could be meant.
        name: of the model.
        base_model: hub name of the base model.
        license: as the hub writes it.

    Returns:
        A card whose metadata hold every score of the model once.

    Raises:
        PLNDError: if none or several models could be meant, or two evaluations of it disagree.
    """
    from huggingface_hub import ModelCard, ModelCardData
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from plnd.version import __version__

    subject = choose(evaluations, mask, setting)
    scores = merged(subject.own)
    hub_name = base_model or (subject.base if _on_the_hub(subject.base) else None)
    shown = hub_name or (Path(subject.base).name if subject.base else None)
    title = name or _default_name(subject, hub_name)
    adapter, exported = subject.of_kind("adapter"), subject.of_kind("exported") or subject.of_kind("checkpoint")
    languages = [subject.neurons.metadata.language] if subject.neurons else []
    languages += [score.language for score in scores]
    data = ModelCardData(
        model_name=title,
        base_model=hub_name,
        base_model_relation=None if hub_name is None else "adapter" if adapter else "finetune" if exported else None,
        language=sorted({x for x in languages if x and re.fullmatch("[a-z]{2,3}", x)}) or None,
        license=license,
        library_name="peft" if adapter else "transformers" if exported else None,
        pipeline_tag="text-generation",
        tags=["plnd", "language-neurons", "lm-evaluation-harness"],
        eval_results=_by_dataset(eval_result(score) for score in scores),
    )
    shown_again = [*subject.own, *subject.original, *subject.controls[:1]]
    environment = Environment(
        loader=PackageLoader("lm_eval_plnd.experiments.card"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": in_markdown, "shell": in_shell, "python": in_python}
    body = environment.get_template("card.md.jinja").render(
        title=title,
        folder=re.sub(r"[^\w.-]+", "-", title),
        base=shown,
        provenance=provenance(subject),
        rows=table(subject, scores),
        controls=len({control.name for control in subject.controls}),
        commands=list(dict.fromkeys(chain.from_iterable(x.commands for x in shown_again))),
        mask=_mask_file(subject, mask),
        part=_part(subject) if mask is None else None,
        adapter=adapter,
        exported=exported,
        software=sorted({pair for evaluation in subject.own for pair in evaluation.software.items()}),
        version=__version__,
    )
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body.strip()}\n")
    assert card.data.get("eval_results") == data.eval_results, "huggingface_hub reads what it wrote"
    return card


def ask_the_hub(card: ModelCard) -> None:
    """The hub's own check of a card.

    Raises:
        PLNDError: with what the hub does not accept, or if it cannot be reached.
    """
    try:
        card.validate()
    except ValueError as error:
        raise PLNDError(f"the hub does not accept the card: {error}") from None
    except Exception as error:  # no network, or offline mode: each is an exception of its own
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise PLNDError(f"the hub cannot be asked ({reason.strip()}); leave --validate out") from None


# which model


def choose(evaluations: Sequence[Evaluation], mask: str | Path | None, setting: str | None) -> Subject:
    """The model that a card is about, and what it is compared with.

    Raises:
        PLNDError: if none or several could be meant.
    """
    from plnd.neurons.neuron_set import NeuronSet

    neurons = None if mask is None else NeuronSet.load(mask)
    named = neurons or _found_neurons(evaluations)
    base = named.model.name if named else next((x.base for x in evaluations if x.kind != "checkpoint"), None)
    changed = [x for x in evaluations if x.kind != "original" and not x.control and not _is_base(x, base)]
    own = [x for x in changed if setting is None or x.name == setting]
    if neurons is not None and setting is None:
        own = [x for x in changed if x.mask_sha256 in (neurons.digest, None) and not x.regions]
    if not own:
        wanted = (
            f"the setting {setting}" if setting else f"the neurons of {mask}" if mask else "a masked or tuned model"
        )
        there = ", ".join(dict.fromkeys(x.name for x in evaluations))
        raise PLNDError(f"no results of {wanted}, only of {there}")
    names: dict[tuple[str | None, str], str] = {}
    for x in own:
        if mask is None or x.kind != "checkpoint":  # which does not say what is in it
            names.setdefault(x.model, x.name)
    if len(names) > 1:
        advice = "--setting" if mask else "--setting or --mask"
        raise PLNDError(f"results of several models ({', '.join(names.values())}): say which with {advice}")
    if neurons is None:
        neurons = _found_neurons(own)
    controls = [x for x in evaluations if x.control and _same_neurons(x, own)]
    return Subject(own, [x for x in evaluations if x.kind == "original" or _is_base(x, base)], controls, base, neurons)


def _is_base(evaluation: Evaluation, base: str | None) -> bool:
    """Whether a plain checkpoint is the original model: the others' base, or a name on the hub if nobody has one."""
    if evaluation.kind != "checkpoint":
        return False
    return evaluation.folder == base if base else _on_the_hub(evaluation.folder)


def _found_neurons(evaluations: Iterable[Evaluation]) -> NeuronSet | None:
    """The neurons that were switched off in the first evaluation whose artifact is there and still the same."""
    from plnd.neurons.neuron_set import NeuronSet

    for evaluation in evaluations:
        if evaluation.mask and Path(evaluation.mask).is_file():
            whole = NeuronSet.load(evaluation.mask)
            part = whole.restrict(regions=_regions(evaluation.regions)) if evaluation.regions else whole
            if evaluation.mask_sha256 in (whole.digest, part.digest):
                return part
    return None


def _regions(text: str) -> Regions:
    """From `under+gen,under=8,gen=2`."""
    from plnd.neurons.regions import Regions

    names, *numbers = text.split(",")
    blocks = {name: int(number) for name, number in (part.split("=") for part in numbers)}
    return Regions.parse(names, blocks.get("under"), blocks.get("gen"))


def _same_neurons(control: Evaluation, own: Iterable[Evaluation]) -> bool:
    """Whether a control was drawn like one of the model's own sets: from the same artifact, in the same regions."""
    return any(control.mask == x.mask and control.regions == x.regions for x in own)


def merged(own: Iterable[Evaluation]) -> list[Score]:
    """Every score of the model once.

    Raises:
        PLNDError: if two evaluations of it give the same score different values.
    """
    found: dict[tuple[Any, ...], tuple[Score, Evaluation]] = {}
    for evaluation in own:
        for score in evaluation.scores:
            here = found.setdefault((*score.key, score.fewshot, score.documents), (score, evaluation))
            a, b = here[0].value, score.value
            if abs(a - b) > AGREEMENT * max(abs(a), abs(b)):
                raise PLNDError(
                    f"{score.task}, {score.metric}: {a} in {here[1].source} and {b} in {evaluation.source},"
                    " which cannot be the same model"
                )
    return [score for score, _ in found.values()]


def _on_the_hub(name: str | None) -> bool:
    """Whether a name could be one on the hub, and is no folder here."""
    return bool(name and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists())


def _default_name(subject: Subject, hub_name: str | None) -> str:
    folder = subject.of_kind("adapter") or subject.of_kind("exported") or subject.of_kind("checkpoint")
    if folder:
        return folder.name
    base = Path(hub_name or subject.base or "model").name
    return f"{base}-without-{re.sub(r'[^A-Za-z0-9.-]+', '-', subject.own[0].name)}"


def _mask_file(subject: Subject, mask: str | Path | None) -> str | None:
    """Last name of the neurons artifact, where a model is masked with the whole of it."""
    if mask is not None:
        return Path(mask).name
    named = subject.of_kind("masked")
    return Path(named.mask).name if named and named.mask and subject.neurons is not None else None


def _part(subject: Subject) -> tuple[str, str] | None:
    """Where only regions of an artifact were switched off: options of `plnd combine`, and a name for the result."""
    masked = subject.of_kind("masked")
    if masked is None or not masked.regions:
        return None
    names, *numbers = masked.regions.split(",")
    options = [f"--regions {names.replace('+', ',')}", *(f"--{part.replace('=', ' ')}" for part in numbers)]
    return " ".join(options), f"{re.sub(r'[^A-Za-z0-9.-]+', '-', masked.name)}.safetensors"


# what is in the card


def eval_result(score: Score) -> EvalResult:
    """One entry of the model index; entries of one data set share all but their metric."""
    from huggingface_hub import EvalResult

    dataset, config = _dataset(score)
    details: dict[str, Any] = {"filter": score.filter or None, "num_fewshot": score.fewshot}
    details |= {"documents": score.documents, "stderr": score.stderr}
    return EvalResult(
        task_type="text-generation",
        dataset_type=dataset,
        dataset_name=dataset.rpartition("/")[2],
        dataset_config=config,
        dataset_split=score.split,
        metric_type=score.metric,
        metric_name=f"{score.task}: {score.metric}" + (f", {score.filter}" if score.filter else ""),
        metric_value=score.value,
        metric_args={key: value for key, value in details.items() if value is not None} or None,
        source_name="lm-evaluation-harness",
        source_url=HARNESS,
    )


def _dataset(score: Score) -> tuple[str, str | None]:
    """The hub's data set of a task and its configuration; the task's own name where the documents are local."""
    from lm_eval_plnd.rows.sources import hub_dataset

    if _on_the_hub(score.dataset):
        return str(score.dataset), score.config
    dataset = hub_dataset(score.task)
    if dataset is None:
        return score.task, None
    return dataset.name, dataset.config_of(score.language) if score.language else None


def _by_dataset(found: Iterable[EvalResult]) -> list[EvalResult]:
    """In the order of a model index, which puts those of one data set together."""
    groups: dict[tuple[Any, ...], list[EvalResult]] = {}
    for result in found:
        groups.setdefault(result.unique_identifier, []).append(result)
    return [result for group in groups.values() for result in group]


def table(subject: Subject, scores: Iterable[Score]) -> list[list[str]]:
    """Rows of the card's table: task, metric, documents, original, this model, its error, mean of the controls."""
    originals = {score.key: score for evaluation in subject.original for score in evaluation.scores}
    controls: dict[tuple[str, str, str], list[float]] = {}
    for evaluation in subject.controls:
        for score in evaluation.scores:
            controls.setdefault(score.key, []).append(score.value)
    rows = []
    for score in scores:
        old, drawn = originals.get(score.key), controls.get(score.key, [])
        shown = f"{score.value:.4f}" + (f" ± {score.stderr:.4f}" if score.stderr is not None else "")
        metric = score.metric + (f", {score.filter}" if score.filter else "")
        row = [score.task, metric, "" if score.documents is None else f"{score.documents:,}"]
        row += [f"{old.value:.4f}" if old else "–", shown]
        rows.append([*row, f"{sum(drawn) / len(drawn):.4f}" if drawn else "–"])
    return rows


def provenance(subject: Subject) -> list[tuple[str, str]]:
    """Where the neurons come from, line by line."""
    from plnd.neurons.history import rule_in_words

    neurons = subject.neurons
    digest = neurons.digest if neurons else next((x.mask_sha256 for x in subject.own if x.mask_sha256), None)
    lines = [("SHA-256 of the neurons", digest or "not known")]
    if neurons is None:
        counts = next((x.counts for x in subject.own if x.counts), {})
        return [*lines, ("neurons", _counts(sum(counts.values()), None, counts))] if counts else lines
    metadata = neurons.metadata
    corpus = metadata.corpus
    lines += [
        ("language", str(metadata.language or "not known")),
        ("neurons", _counts(len(neurons), neurons.total, neurons.counts())),
        ("rule", rule_in_words(metadata)),
        ("corpus", f"{corpus.documents:,} documents, {corpus.tokens:,} tokens" + _named(corpus.source)),
        ("SHA-256 of the corpus's tokens", corpus.sha256 or "not known"),
        ("measured by", f"{metadata.method.name} in {metadata.dtype}, plnd {metadata.plnd}"),
    ]
    revision = metadata.model.revision
    lines += [("revision of the base model", revision)] if revision else []
    return lines


def _counts(number: int, total: int | None, counts: Mapping[str, int]) -> str:
    parts = ", ".join(f"{count:,} {projection}" for projection, count in counts.items() if count)
    share = f" of {total:,} ({100 * number / total:.3f} %)" if total else ""
    return f"{number:,}{share}" + (f": {parts}" if parts else "")


def _named(source: str | None) -> str:
    return f", {Path(source).name if Path(source).is_absolute() else source}" if source else ""


def in_shell(text: str) -> str:
    """One word of a shell command, on one line."""
    return shlex.quote(" ".join(text.split()))


def in_python(text: str) -> str:
    """A string of Python, on one line."""
    return json.dumps(text, ensure_ascii=False)


def in_markdown(text: str) -> str:
    """Text that means itself in a Markdown table: on one line, no HTML, no bars and no emphasis."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text)
