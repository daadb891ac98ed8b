"""What the tables of the PLND paper switch off: the states of the model that an experiment compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lm_eval_plnd.experiments.results import TEXT
from lm_eval_plnd.experiments.settings import ORIGINAL, OVERLAPPING, SETS, Settings
from plnd.errors import PLNDError

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
        table: of the region's neurons only the most important ones, as many in every row of this table (`equal` in the
            settings); all of them if empty.
        seed: of as many random neurons of each block and projection instead; None for the neurons themselves.
        sample: number of the sample of documents that they were detected on.
    """

    items: tuple[str, ...]
    neurons: str = "none"
    language: str = ""
    region: str = ""
    table: str = ""
    seed: int | None = None
    sample: int = 0

    @property
    def name(self) -> str:
        """A readable name, unique in an experiment."""
        if self.neurons == "none":
            return "original"
        parts = [self.language, self.neurons, self.region, self.table]
        parts += ["" if self.seed is None else f"random{self.seed}", f"s{self.sample}" if self.sample else ""]
        return ".".join(filter(None, parts))

    def tasks(self, settings: Settings) -> dict[str, dict[str, str]]:
        """Item to language to task."""
        by_item = {}
        for item in self.items:
            languages = settings.languages_of(item)
            if self.neurons != "none" and self.language not in languages:
                continue
            if self.neurons == "none":
                languages = _compared(settings, item)
            elif settings.task_languages == "own":
                languages = [x for x in languages if x in (settings.english, self.language)]
            by_item[item] = {language: settings.tasks[item].task_of(language) for language in languages}
        return by_item


def _compared(settings: Settings, item: str) -> list[str]:
    """The languages in which the original is compared with on an item: those of Table 10 are two."""
    languages, search = settings.languages_of(item), settings.search
    tables = {table for table, items in settings.experiments.items() if item in (*items, TEXT)} - {*SETS}
    if tables != {"table10"} or search is None or settings.task_languages != "own":
        return languages
    return [x for x in languages if x in (settings.english, search.language)]


def detected(settings: Settings) -> list[str]:
    """The languages whose neurons are needed, in order: all, but where only `all` neurons of some are switched off."""
    planned = [setting for setting in plan(settings) if setting.neurons != "none"]
    alone = set(settings.experiments) <= {*REGIONS, "table10", ORIGINAL}
    if not alone or any(setting.neurons != "all" for setting in planned):
        return settings.languages
    return [x for x in settings.languages if x in {setting.language for setting in planned}]


def languages_read(settings: Settings) -> list[str]:
    """The languages whose corpora are read: means are of all."""
    return settings.languages if settings.ablation == "mean" else detected(settings)


def plan(settings: Settings) -> list[Setting]:
    """All settings of an experiment, in the order in which they are run; those of several tables once."""
    wanted: dict[Setting, list[str]] = {}
    evaluated = {table: items for table, items in settings.experiments.items() if table not in SETS}
    if not evaluated:
        return []
    for table, items in evaluated.items():
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
                    yield from _with_seeds(settings, by_region(settings, table, neurons, region, language))
                for region in REGIONS[table]["own"]:
                    yield from _with_samples(settings, by_region(settings, table, neurons, region, language))


def by_region(settings: Settings, table: str, neurons: str, region: str, language: str = "") -> Setting:
    """A row of Tables 2 to 5, of one language; with the settings' `equal` of as many neurons as the other rows."""
    return Setting((), neurons, language, region, table if settings.equal else "")


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

    For English, `without_english` is left out; where scores of some languages only are given, all kinds but `all`.
    """
    from plnd.neurons.contrast import contrast

    rule, sets = settings.rule, {}
    found = {
        x: s.select(**rule.of_one_language, projections=rule.projections)  # type: ignore[arg-type]
        for x, s in scores.items()
        if rule.of_one_language
    }
    for language, own in found.items():
        sets[language, "all"] = own
        if len(found) < len(settings.languages):
            continue  # the others are not needed (`detected`)
        specific = own
        others = [found[other] for other in settings.languages if other != language]
        for other in others:
            specific = specific - other
        sets[language, "specific"] = specific
        sets[language, "without_shared"] = own.minus_shared(others)
        if language != settings.english:
            sets[language, "without_english"] = own - found[settings.english]
    if settings.equal is not True and settings.equal:
        tables = [table for table in settings.experiments if table in REGIONS]
        regions = {region for table in tables for places in REGIONS[table].values() for region in places}
        for language in found:
            for region in sorted(regions):
                sets[language, _best_of(region)] = _best(scores[language], region, settings)
    if rule.contrast and len(scores) == len(settings.languages):
        for language in scores:
            rest = [scores[other] for other in settings.languages if other != language]
            numbers = rule.contrast.model_dump()
            sets[language, "specific"] = contrast(scores[language], rest, **numbers, projections=rule.projections)
    return sets


def _best_of(region: str) -> str:
    """Name of the set of a region's most important neurons, beside the kinds."""
    return f"best.{region or 'everywhere'}"


def _best(scores: Scores, region: str, settings: Settings) -> NeuronSet:
    """The most important neurons of a region, as many as the settings' `equal` says: eq. 2 with the region's epsilon.

    Raises:
        PLNDError: if it has not so many.
    """
    from plnd.neurons.selection import chosen_addresses

    place, projections = region_of(Setting((), region=region), settings), settings.rule.projections
    model = scores.metadata.model
    widths = {address: len(values) for address, values in scores.minimum.items()}
    total = sum(widths[address] for address in chosen_addresses(widths, model.blocks, projections, place))
    if settings.equal > total:
        where = region or "the whole model"
        raise PLNDError(f"equal: found {settings.equal}, and {where} has {total:,} neurons; give fewer")
    try:
        best = scores.select(epsilon_for=settings.equal / total, projections=projections, regions=place)
    except PLNDError as error:
        raise PLNDError(f"equal: {scores.metadata.language}, {region or 'the whole model'}: {error}") from None
    return best.top(settings.equal)


def switched_off(setting: Setting, settings: Settings, sets: Mapping[tuple[str, str], NeuronSet]) -> NeuronSet | None:
    """The neurons of a setting, out of those of its sample; None for the original model.

    Raises:
        PLNDError: if numbers are to be equal, and a region of the table has none.
    """
    if setting.neurons == "none":
        return None
    neurons = chosen(setting, settings, sets)
    return neurons if setting.seed is None else neurons.random_like(setting.seed)


def chosen(setting: Setting, settings: Settings, sets: Mapping[tuple[str, str], NeuronSet]) -> NeuronSet:
    """The language's own neurons that a setting switches off, or for which it draws random ones.

    Raises:
        PLNDError: if numbers are to be equal, and a region of the table has none.
    """
    neurons = sets[setting.language, setting.neurons]
    if not setting.table:
        return _within(neurons, setting, settings)
    if settings.equal is not True:
        found = sets.get((setting.language, _best_of(setting.region)))
        if setting.neurons != "all" or found is None:
            found = _within(neurons, setting, settings)
        if len(found) < settings.equal:
            where = setting.region or "the whole model"
            raise PLNDError(
                f"equal: {setting.language} has {len(found)} {setting.neurons} neurons in {where}, expected at least"
                f" {settings.equal}"
            )
        return found.top(settings.equal)
    regions = dict.fromkeys(region for rows in REGIONS[setting.table].values() for region in rows)
    sizes = {region: len(_within(neurons, replace(setting, region=region), settings)) for region in regions}
    fewest = min(sizes, key=sizes.__getitem__)
    if not sizes[fewest]:
        raise PLNDError(
            f"equal: {setting.language} has no {setting.neurons} neurons in {fewest}, so that all of {setting.table}"
            " would switch off none; choose more of them by rule, or give a number in place of true (in a new folder,"
            " whose neurons/ may be given the scores of this one)"
        )
    return _within(neurons, setting, settings).top(sizes[fewest])


def _within(neurons: NeuronSet, setting: Setting, settings: Settings) -> NeuronSet:
    region = region_of(setting, settings)
    return neurons.restrict(regions=region) if region else neurons
