"""The numbers of single neurons as bytes that a browser reads as arrays: one piece a block, exact or rounded."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from plnd.explorer.contents import Contents, as_indices

STEPS = 65534
"""Of a rounded number, the largest but one that 16 bits hold: 0 stands for 0, and numbers are from 1 to 65535."""


@dataclass(frozen=True)
class Scale:
    """How positive numbers, or logarithms, are rounded to 16 bits: `low + step * (code - 1)`.

    Attributes:
        low: the logarithm that has the code 1.
        step: between codes.
    """

    low: float
    step: float

    @classmethod
    def of(cls, logs: Iterator[np.ndarray]) -> Scale:
        """The scale on which some logarithms lie; whatever, where there are none."""
        ends = [(float(one.min()), float(one.max())) for one in logs if len(one)] or [(0.0, 0.0)]
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        return cls(low, (high - low) / STEPS)

    @property
    def error(self) -> float:
        """The largest relative error of a number whose logarithm is rounded."""
        return float(np.expm1(self.step / 2))

    def codes(self, logs: np.ndarray) -> np.ndarray:
        """[numbers] uint16, from 1 on."""
        steps = np.zeros(len(logs)) if self.step == 0 else (logs - self.low) / self.step
        return (1 + np.rint(steps)).astype("<u2")


@dataclass(frozen=True)
class Scales:
    """Of one language: of its mean importances, and of its mean logs."""

    mean: Scale
    log: Scale


def scales(contents: Contents) -> dict[str, Scales]:
    """How each language's numbers are rounded."""
    return {
        name: Scales(
            Scale.of(_positive_logs(v) for a, v in one.mean.items() if a in contents.widths),
            Scale.of(v.astype(np.float64) for a, v in (one.mean_log or {}).items() if a in contents.widths),
        )
        for name, one in contents.scores.items()
    }


def pieces(contents: Contents, rounding: Mapping[str, Scales]) -> Iterator[tuple[str, str]]:
    """Block and, as base64, the numbers of its neurons.

    Little-endian, one after the other: for each projection, for each language the mean importance of every neuron and,
    where all scores have it, the mean log; then for each set its indices and their importances. Of float32 and int32;
    with `rounding`, means and logs are uint16 codes of `Scales`, filled up to four bytes.
    """
    for block in contents.blocks:
        addresses = [f"{block}.{projection}" for projection in contents.projections]
        found = [part for a in addresses if a in contents.widths for part in _projection(contents, a, rounding)]
        yield block, base64.b64encode(b"".join(found)).decode()


def size(contents: Contents, rounded: bool) -> int:
    """Bytes of all pieces."""
    scored = sum(width or 0 for address, width in contents.widths.items() if contents.scored(address))
    numbers = 2 if contents.relative else 1
    in_sets = sum(len(as_indices(contents, name, a)[0]) for name in contents.sets for a in contents.widths)
    return (scored * len(contents.scores) * numbers * (2 if rounded else 4) + in_sets * 8) * 4 // 3


def _projection(contents: Contents, address: str, rounding: Mapping[str, Scales]) -> Iterator[bytes]:
    for name, one in contents.scores.items():
        if not contents.scored(address):
            continue
        mean, logs = one.mean[address], one.mean_log
        if not rounding:
            yield mean.astype("<f4").tobytes()
        else:
            codes = np.zeros(len(mean), dtype="<u2")
            codes[mean > 0] = rounding[name].mean.codes(_positive_logs(mean))
            yield _padded(codes)
        if contents.relative and logs is not None:
            exact = logs[address].astype("<f4")
            yield _padded(rounding[name].log.codes(exact.astype(np.float64))) if rounding else exact.tobytes()
    for name in contents.sets:
        indices, importance = as_indices(contents, name, address)
        yield indices.astype("<i4").tobytes()
        yield importance.astype("<f4").tobytes()


def _positive_logs(values: np.ndarray) -> np.ndarray:
    return np.log(values[values > 0].astype(np.float64))


def _padded(codes: np.ndarray) -> bytes:
    return codes.tobytes() + bytes(2 * (len(codes) % 2))
