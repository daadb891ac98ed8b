"""The bytes of a page hold every number: bit for bit, or rounded by no more than is said."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from exploring import scores
from plnd.explorer.arrays import STEPS, Scale, pieces, scales, size
from plnd.explorer.contents import as_indices, together


def unpacked(contents, rounding, block):
    """A block's numbers as docs/explore.md and the script read them: by address, [kind, name, values]."""
    data = base64.b64decode(dict(pieces(contents, rounding))[block], validate=True)
    offset, found = 0, {}

    def take(kind, length):
        nonlocal offset
        values = np.frombuffer(data, kind, length, offset)
        offset += -(-values.nbytes // 4) * 4
        return values

    for address in (f"{block}.{projection}" for projection in contents.projections):
        parts, width = [], contents.widths[address]
        for name in contents.scores:
            for kind in ("mean", "log"):
                parts.append((kind, name, take("<u2" if rounding else "<f4", width)))
        for name in contents.sets:
            length = len(as_indices(contents, name, address)[0])
            parts += [("indices", name, take("<i4", length)), ("importance", name, take("<f4", length))]
        found[address] = parts
    assert offset == len(data)
    return found


def test_exact_numbers_are_the_files_own_bit_for_bit(contents):
    """Means, logs, indices and importances of every neuron."""
    for block in contents.blocks:
        for address, parts in unpacked(contents, {}, block).items():
            for kind, name, values in parts:
                one = contents.scores[name]
                expected = {
                    "mean": one.mean[address],
                    "log": one.mean_log[address],
                    "indices": as_indices(contents, name, address)[0],
                    "importance": as_indices(contents, name, address)[1],
                }[kind]
                assert values.tobytes() == expected.tobytes()


def test_rounded_numbers_are_as_near_as_is_said():
    """Over eleven orders of magnitude; 0 stays 0."""
    one = scores("zh", 2)
    for address in list(one.mean):
        values = np.logspace(-8, 3, len(one.mean[address])).astype(np.float32)
        values[0] = 0
        one.mean[address][:] = values  # type: ignore[index]
    contents = together({"zh": one}, {}, {})
    rounding = scales(contents)
    scale = rounding["zh"].mean
    assert 0 < scale.error < 2.1e-4
    for address, parts in unpacked(contents, rounding, "0").items():
        codes = parts[0][2].astype(np.float64)
        decoded = np.where(codes == 0, 0, np.exp(scale.low + scale.step * (codes - 1)))
        exact = one.mean[address].astype(np.float64)
        assert (codes == 0).tolist() == (exact == 0).tolist()
        assert np.allclose(decoded[1:], exact[1:], rtol=scale.error * 1.001, atol=0)
        logs = rounding["zh"].log
        assert np.allclose(logs.low + logs.step * (parts[1][2] - 1.0), one.mean_log[address], atol=logs.step * 0.501)


def test_ends_of_the_scale():
    """The smallest has code 1, the largest the last one that 16 bits hold; one number alone is no division by 0."""
    logs = np.array([-3.0, 4.0])
    assert Scale.of(iter([logs])).codes(logs).tolist() == [1, STEPS + 1] and STEPS + 1 == 2**16 - 1
    assert Scale.of(iter([np.array([2.0])])).codes(np.array([2.0])).tolist() == [1]
    assert Scale.of(iter([])).error == 0


@pytest.mark.parametrize("rounded", [False, True])
def test_the_size_is_known_before(contents, rounded):
    """To the padding of base64 and of odd widths."""
    found = sum(len(text) for _, text in pieces(contents, scales(contents) if rounded else {}))
    assert abs(found - size(contents, rounded)) <= 4 * len(contents.widths) * len(contents.scores)
