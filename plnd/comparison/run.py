"""A comparison from documents to tables, step by step into a folder, from which a run that was killed goes on."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from plnd.comparison.config import REFERENCE, ArenaConfig
from plnd.comparison.detectors import Evidence, choose
from plnd.comparison.documents import Document, Documents, read_halves
from plnd.comparison.evaluation import document_nats, nats_without
from plnd.comparison.measures import (
    BINS,
    MEASURES,
    column_norms,
    histograms,
    measure,
    neuron_widths,
    pooled_mean,
    pooled_scale,
)
from plnd.comparison.summary import Comparison, Outcome, Point
from plnd.comparison.tables import write_tables
from plnd.detection.checkpoint import fingerprint
from plnd.errors import PLNDError
from plnd.io import strict_json
from plnd.io.files import whole_file, write_bytes
from plnd.io.inputs import check_inputs, sealed, unsealed
from plnd.models.layout import Layout
from plnd.neurons.neuron_set import NeuronSet
from plnd.version import __version__

FREE = ("detectors", "ablations", "curve", "batch_size")
"""Settings that may change from one run in a folder to the next: they change no number that is there."""


def arena(
    model: nn.Module,
    chosen: Mapping[str, Sequence[str]],
    held_out: Mapping[str, Sequence[str]],
    config: ArenaConfig | None = None,
    *,
    output: str | Path,
    tokenizer: Any = None,
    progress: bool = False,
) -> Comparison:
    """Compares detectors of language-specific neurons on the same documents, at the same number of neurons.

    Every set is columns of `down_proj`. docs/arena.md says what is compared, and what the numbers are.

    Args:
        model: a decoder with dense feed-forwards, of a known family.
        chosen: language to texts for detection: `config.samples` times `config.documents` of them, the first ones.
        held_out: the same languages to other texts, for evaluation: `config.held_out` of them, the last ones.
        config: how to compare.
        output: folder for everything: `settings.json` (documents included), `measures/`, `sets/`, `results/`,
            `comparison.csv`, `changes.csv`, `curves.csv`. Of a run that was killed, or had fewer detectors, what is
            there is taken.
        tokenizer: by default the one saved with the model.
        progress: whether to draw bars.

    Raises:
        FamilyError: if the model is another one.
        CorpusError: if there are too few documents.
        PLNDError: if the folder holds a comparison with other settings, or a text is on both sides.
    """
    run = _Run(model, chosen, held_out, config or ArenaConfig(), Path(output), tokenizer, progress)
    comparison = run.compare()
    write_tables(comparison, Path(output))
    return comparison


class _Run:
    """One comparison, and its folder."""

    def __init__(
        self,
        model: nn.Module,
        chosen: Mapping[str, Sequence[str]],
        held_out: Mapping[str, Sequence[str]],
        config: ArenaConfig,
        folder: Path,
        tokenizer: Any,
        progress: bool,
    ) -> None:
        self.model, self.config, self.folder, self.progress = model, config, folder, progress
        self.layout = Layout(model)
        self.widths = neuron_widths(self.layout)
        self.documents: Documents = read_halves(
            self.layout, tokenizer or _saved_tokenizer(self.layout), chosen, held_out, config
        )
        self.languages = self.documents.languages
        total = sum(self.widths.values())
        count = config.count or round(config.share * total)
        if not 0 < count <= total:
            raise PLNDError(f"{count} neurons in each set: expected 1 to {total}, as many as the feed-forwards have")
        self.main = Point(config.documents, count, len(self.languages) - 1)
        self.curves = {name: self._points(name, total) for name in config.listed("curve")}
        self.changed: dict[tuple[str, str], dict[str, np.ndarray]] = {}  # what a set did, by its digest and ablation
        self._prepare_folder()

    def _points(self, name: str, total: int) -> list[Point]:
        """Along one curve, in order; the point of the comparison itself is one of them."""
        main = self.main
        if name == "documents":
            return [replace(main, documents=n) for n in _prefixes(main.documents)]
        if name == "neurons":
            counts = {max(1, round(main.count * factor)) for factor in (1 / 4, 1 / 2, 1, 2, 4)}
            return [replace(main, count=n) for n in sorted(counts) if n <= total]
        return [replace(main, others=n) for n in range(1, main.others + 1)]

    def _prepare_folder(self) -> None:
        for part in ("measures", "sets", "results"):
            try:
                (self.folder / part).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise PLNDError(f"{self.folder}: cannot be made ({error.strerror}); choose another folder") from None
        model = self.layout.model
        settings = {
            "plnd": __version__,
            "model": {k: v for k, v in self.layout.description().items() if k not in ("widths", "units")},
            "weights": fingerprint(model, self.layout.group),
            "dtype": str(model.dtype).removeprefix("torch."),
            "neurons": self.main.count,
            **{name: value for name, value in asdict(self.config).items() if name not in (*FREE, "share", "count")},
            "documents": self.documents.description(),
        }
        check_inputs(self.folder / "settings.json", settings, "comparison")

    # steps

    def compare(self) -> Comparison:
        """Everything that is not in the folder yet, sample by sample and detector by detector."""
        config, detectors = self.config, self.config.listed("detectors")
        points = list(dict.fromkeys([self.main, *(p for of in self.curves.values() for p in of)]))
        self.plain = self._plain()
        for sample in range(config.samples):
            missing = [
                (point, detector, kind)
                for point in points
                for detector in detectors
                for kind in config.listed("ablations")
                if not self._result(sample, detector, kind, point).exists()
            ]
            if not missing:
                continue
            evidence = self._evidence(sample, any(detector == "overlap" for _, detector, _ in missing))
            title = f"sample {sample + 1} of {config.samples}"
            self.changed = {}
            for point, detector, kind in tqdm(missing, unit=" results", desc=title, disable=not self.progress):
                self._evaluate(sample, detector, kind, point, evidence)
        keys = [(detector, kind) for detector in detectors for kind in config.listed("ablations")]
        outcomes = {key: self._outcome(*key, self.main) for key in keys}
        curves = {
            name: {key: [(point, self._outcome(*key, point)) for point in of] for key in keys}
            for name, of in self.curves.items()
        }
        reference = REFERENCE if REFERENCE in detectors else detectors[0]
        return Comparison(self.languages, outcomes, curves, reference)

    def _plain(self) -> dict[str, np.ndarray]:
        path = self.folder / "results" / "plain.json"
        if not path.exists():
            nats = {x: document_nats(self.model, d, self.config.batch_size) for x, d in self.documents.held_out.items()}
            write_bytes(sealed({x: values.tolist() for x, values in nats.items()}).encode(), path)
        with _taken(path):
            found = unsealed(strict_json.read(path, finite=False))
            return {x: _numbers(found[x], len(of)) for x, of in self.documents.held_out.items()}

    def _evidence(self, sample: int, with_bins: bool) -> _Sample:
        """What was measured of a sample, from the folder where it is there."""
        documents = self.documents.samples[sample]
        measured = {x: dict(self._measured(sample, x, of)) for x, of in documents.items()}
        tokens = {x: np.array([len(d.ids) for d in of]) for x, of in documents.items()}
        binned = {}
        if with_bins:
            scale = pooled_scale(measured, tokens)
            binned = {x: self._binned(sample, x, of, scale) for x, of in documents.items()}
        means = pooled_mean(measured, tokens, "value")
        sizes = {x: np.array([d.size for d in of]) for x, of in documents.items()}
        return _Sample(sample, measured, tokens, sizes, binned, self._by_address(means), column_norms(self.layout))

    def _measured(self, sample: int, language: str, documents: Sequence[Document]) -> dict[str, np.ndarray]:
        path = self.folder / "measures" / f"{sample}.{language}.npz"
        if not path.exists():
            title = f"sample {sample + 1}, {language}" if self.progress else None
            _save_arrays(path, measure(self.model, documents, self.config.batch_size, progress=title))
        return _load_arrays(path, dict.fromkeys(MEASURES, (len(documents), sum(self.widths.values()))))

    def _binned(
        self, sample: int, language: str, documents: Sequence[Document], scale: np.ndarray
    ) -> dict[int, np.ndarray]:
        """Number of documents to counts [neurons, bins] in the first so many."""
        path, ends = self.folder / "measures" / f"{sample}.{language}.bins.npz", _prefixes(len(documents))
        if not path.exists():
            counts = histograms(self.model, documents, scale, ends, self.config.batch_size)
            _save_arrays(path, {"counts": counts})
        shape = (len(ends), sum(self.widths.values()), BINS)
        return dict(zip(ends, _load_arrays(path, {"counts": shape})["counts"], strict=True))

    def _evaluate(self, sample: int, detector: str, kind: str, point: Point, found: _Sample) -> None:
        """Every language's set of one detector: chosen, ablated, and the changes written down."""
        result: dict[str, Any] = {}
        for own in self.languages:
            evidence = self._view(own, point, found)
            neurons = choose(detector, evidence)
            if point == self.main:
                neurons.save(self.folder / "sets" / f"{sample}.{detector}.{own}.safetensors")
            nats = self._changes(neurons, kind, found.means, self.documents.held_out)
            controls = []
            for seed in range(self.config.draws if point == self.main else 0):
                drawn = neurons.random_like(1000 * sample + seed)
                own_documents = {own: self.documents.held_out[own]}
                controls.append(self._changes(drawn, kind, found.means, own_documents)[own].tolist())
            result[own] = {
                "neurons": len(neurons),
                "nats": {x: values.tolist() for x, values in nats.items()},
                "controls": controls,
            }
        write_bytes(sealed(result).encode(), self._result(sample, detector, kind, point))

    def _view(self, own: str, point: Point, found: _Sample) -> Evidence:
        """What a detector is given at one point, to find one language's neurons."""
        others = tuple(x for x in self.languages if x != own)[: point.others]
        evidence = Evidence(
            own,
            others,
            point.count,
            self.widths,
            found.measured,
            found.tokens,
            found.sizes,
            found.norms,
            {x: of[point.documents] for x, of in found.binned.items()} or None,
            found.number,
            self.layout.description(),
        )
        return evidence if point.documents == self.main.documents else evidence.first(point.documents)

    def _changes(
        self,
        neurons: NeuronSet,
        kind: str,
        means: Mapping[str, np.ndarray],
        documents: Mapping[str, Sequence[Document]],
    ) -> dict[str, np.ndarray]:
        """Nats of each document less the whole model's; a set that was evaluated before in this sample is not again."""
        key = (neurons_key(neurons), f"{kind} {','.join(documents)}")
        if key not in self.changed:
            nats = nats_without(self.model, neurons, kind, means, documents, self.config.batch_size)  # type: ignore[arg-type]
            self.changed[key] = {x: values - self.plain[x] for x, values in nats.items()}
        return self.changed[key]

    def _result(self, sample: int, detector: str, kind: str, point: Point) -> Path:
        at = "" if point == self.main else f".{point.documents}-{point.count}-{point.others}"
        return self.folder / "results" / f"{sample}.{detector}.{kind}{at}.json"

    def _outcome(self, detector: str, kind: str, point: Point) -> Outcome:
        """What the folder says of one detector, over all samples."""
        neurons, nats, controls = [], [], []
        size = self.config.held_out
        for sample in range(self.config.samples):
            path = self._result(sample, detector, kind, point)
            with _taken(path):
                found = unsealed(strict_json.read(path, finite=False))
                draws = self.config.draws if point == self.main else 0
                neurons.append([int(found[x]["neurons"]) for x in self.languages])
                nats.append([[_numbers(found[x]["nats"][y], size) for y in self.languages] for x in self.languages])
                controls.append([[_numbers(c, size) for c in found[x]["controls"]] for x in self.languages])
                if any(len(drawn) != draws for drawn in controls[-1]):
                    raise ValueError("another number of controls")
        sizes = np.array([[d.size for d in self.documents.held_out[x]] for x in self.languages])
        shape = (len(nats), len(self.languages), len(controls[0][0]), sizes.shape[1])
        drawn = np.array(controls, dtype=np.float64).reshape(shape)
        return Outcome(np.array(neurons), np.array(nats), drawn.swapaxes(1, 2), sizes)

    def _by_address(self, values: np.ndarray) -> dict[str, np.ndarray]:
        parts = np.split(values, np.cumsum(list(self.widths.values()))[:-1])
        return dict(zip(self.widths, parts, strict=True))


@dataclass(frozen=True, eq=False)
class _Sample:
    """What was measured of one sample: as in `Evidence`, `binned` by number of documents, `means` by address."""

    number: int
    measured: Mapping[str, Mapping[str, np.ndarray]]
    tokens: Mapping[str, np.ndarray]
    sizes: Mapping[str, np.ndarray]
    binned: Mapping[str, Mapping[int, np.ndarray]]
    means: Mapping[str, np.ndarray]
    norms: np.ndarray


def neurons_key(neurons: NeuronSet) -> str:
    """A name for the neurons of a set, whatever it says of itself."""
    return json.dumps({name: indices.tolist() for name, indices in neurons.items()})


def _prefixes(documents: int) -> list[int]:
    """An eighth, a quarter, half and all of some documents, at least one."""
    return sorted({max(1, documents // part) for part in (8, 4, 2, 1)})


def _saved_tokenizer(layout: Layout) -> Any:
    from plnd.models.loading import load_tokenizer

    description = layout.description()
    return load_tokenizer(description["name"] or "", description["revision"])


def _save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with whole_file(path) as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def _load_arrays(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Arrays of four bytes a number; what does not have these shapes is not unpacked."""
    with _taken(path), zipfile.ZipFile(path) as archive:
        for name, shape in shapes.items():
            with archive.open(f"{name}.npy") as stream:
                version = np.lib.format.read_magic(stream)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                found, _, dtype = read[version](stream)
            if found != shape or dtype not in (np.float32, np.int32):
                raise ValueError(f"{name} is {dtype} of shape {found}, expected {shape}")
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in shapes}


def _numbers(values: Any, count: int) -> np.ndarray:
    found = np.array(values, dtype=np.float64)
    if found.shape != (count,):
        raise ValueError(f"{found.size} numbers, expected {count}")
    return found


@contextmanager
def _taken(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file of the folder as one line."""
    try:
        yield
    except Exception as error:  # what a damaged file may raise
        problem = " ".join(str(error).removeprefix(f"{path}: ").split())
        raise PLNDError(f"{path}: damaged ({problem:.120}); delete it, and it is made again") from None
