"""What the tables of the PLND paper switch off: the states of the model that an experiment compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lm_eval_plnd.experiments.results import TEXT
from lm_eval_plnd.experiments.settings import OVERLAPPING, Settings

if TYPE_CHECKING:
    from plnd.neurons.neuron_set import NeuronSet
    from plnd.neurons.regions import Regions
    from plnd.neurons.scores import Scores

REGIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "table2": {"random": ("under", ""), "own": ("solve", "gen", "under")},
    "table3": {"random": ("solve_attn", "solve", ""), "own": ("solve", "under+gen", "under+solve_ffn+gen")},
    "table4": {"random": ("solve_ffn", "solve", ""), "own": ("solve_attn", "solve_ffn")},
    "table5": {"random": ("gen", ""), "own": ("gen",)},
}
"""What Tables 2 to 5 switch off: random neurons of these regions (`""`: of all blocks), then the language's own."""
BEST = "under+solve_ffn+gen"
"""The region that did best in Table 3, in which the later appendix compares sets."""


@dataclass(frozen=True)
class Setting:
    """One state of the model, and the items that it is evaluated on.

    Attributes:
        items: names among the settings' `tasks`.
        neurons: `none`, `all` of a language, `specific` (minus every other language's, or by contrast with them),
            `without_english` (minus those of English), `without_shared` (minus those that all languages share).
        language: whose.
        region: only there, as `plnd.Regions.parse` reads it with the experiment's N1 and N2, or `under=8` and `gen=2`
            with their own; the whole model if empty.
        seed: of as many random neurons of each block and projection instead; None for the neurons themselves.
        sample: number of the sample of documents that they were detected on.
    """

    items: tuple[str, ...]
    neurons: str = "none"
    language: str = ""
    region: str = ""
    seed: int | None = None
    sample: int = 0

    @property
    def name(self) -> str:
        """A readable name, unique in an experiment."""
        if self.neurons == "none":
            return "original"
        parts = [self.language, self.neurons, self.region, "" if self.seed is None else f"random{self.seed}"]
        return ".".join(filter(None, [*parts, f"s{self.sample}" if self.sample else ""]))

    def tasks(self, settings: Settings) -> dict[str, dict[str, str]]:
        """Item to language to task."""
        by_item = {}
        for item in self.items:
            languages = settings.languages_of(item)
            if self.neurons != "none" and self.language not in languages:
                continue
            if self.neurons != "none" and settings.task_languages == "own":
                languages = [x for x in languages if x in (settings.english, self.language)]
            by_item[item] = {language: settings.tasks[item].task_of(language) for language in languages}
        return by_item


def plan(settings: Settings) -> list[Setting]:
    """All settings of an experiment, in the order in which they are run; those of several tables once."""
    wanted: dict[Setting, list[str]] = {}
    for table, items in settings.experiments.items():
        for setting in _of_table(settings, table):
            known = wanted.setdefault(setting, [])
            known += [item for item in items if item not in known]
    original = wanted.setdefault(Setting(()), [])
    original += [item for items in settings.experiments.values() for item in items]
    if TEXT in settings.tasks:
        for items in wanted.values():
            items.append(TEXT)
    settled = [
        replace(setting, items=tuple(x for x in settings.tasks if x in items)) for setting, items in wanted.items()
    ]
    settled.sort(key=lambda setting: setting.neurons != "none")  # the original first
    return [setting for setting in settled if setting.tasks(settings)]


def _of_table(settings: Settings, table: str) -> Iterator[Setting]:
    """What one table switches off, the random controls of the first sample only."""
    if table == "table1":
        for language in settings.languages:
            for neurons in [kind for kind in settings.kinds if kind in ("specific", "all")][::-1]:
                yield from _with_samples(settings, Setting((), neurons, language))
                yield from _with_seeds(settings, Setting((), neurons, language))
    elif table == "table10":
        search = settings.search
        assert search is not None, "the settings were checked"
        for neurons in settings.neurons:
            for region in [f"under={n}" for n in search.under] + [f"gen={n}" for n in search.gen]:
                yield from _with_samples(settings, Setting((), neurons, search.language, region))
    elif table in OVERLAPPING:
        for language in settings.others:
            for neurons in ("all", OVERLAPPING[table]):
                yield from _with_samples(settings, Setting((), neurons, language, BEST))
    elif table in REGIONS:  # figure4 and table6 train; only the original is theirs
        for language in settings.others:
            for neurons in settings.neurons:
                for region in REGIONS[table]["random"]:
                    yield from _with_seeds(settings, Setting((), neurons, language, region))
                for region in REGIONS[table]["own"]:
                    yield from _with_samples(settings, Setting((), neurons, language, region))


def _with_samples(settings: Settings, setting: Setting) -> Iterator[Setting]:
    return (replace(setting, sample=sample) for sample in range(settings.samples))


def _with_seeds(settings: Settings, setting: Setting) -> Iterator[Setting]:
    return (replace(setting, seed=seed) for seed in settings.seeds)


def region_of(setting: Setting, settings: Settings) -> Regions | None:
    """The blocks and structures of a setting; None for the whole model."""
    from plnd.neurons.regions import Regions

    if not setting.region:
        return None
    name, _, number = setting.region.partition("=")
    if number:
        return Regions.parse(name, **{"under": None, "gen": None, name: int(number)})
    assert settings.regions is not None, "the settings were checked"
    return Regions.parse(name, settings.regions.under, settings.regions.gen)


# neurons


def neuron_sets(scores: Mapping[str, Scores], settings: Settings) -> dict[tuple[str, str], NeuronSet]:
    """(language, kind) to neurons, of one sample: each of the settings' `kinds` of every language.

    For English, `without_english` is left out.
    """
    from plnd.neurons.contrast import contrast

    rule, sets = settings.rule, {}
    chosen = {
        x: s.select(**rule.of_one_language, projections=rule.projections)  # type: ignore[arg-type]
        for x, s in scores.items()
        if rule.of_one_language
    }
    for language, own in chosen.items():
        specific = own
        others = [chosen[other] for other in settings.languages if other != language]
        for other in others:
            specific = specific - other
        sets[language, "all"], sets[language, "specific"] = own, specific
        sets[language, "without_shared"] = own.minus_shared(others)
        if language != settings.english:
            sets[language, "without_english"] = own - chosen[settings.english]
    if rule.contrast:
        for language in scores:
            rest = [scores[other] for other in settings.languages if other != language]
            numbers = rule.contrast.model_dump()
            sets[language, "specific"] = contrast(scores[language], rest, **numbers, projections=rule.projections)
    return sets


def switched_off(setting: Setting, settings: Settings, sets: Mapping[tuple[str, str], NeuronSet]) -> NeuronSet | None:
    """The neurons of a setting, out of those of its sample; None for the original model."""
    if setting.neurons == "none":
        return None
    neurons = sets[setting.language, setting.neurons]
    if region := region_of(setting, settings):
        neurons = neurons.restrict(regions=region)
    return neurons if setting.seed is None else neurons.random_like(setting.seed)
