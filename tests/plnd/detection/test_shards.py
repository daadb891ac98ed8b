"""Whose a batch is follows from numbers alone: every batch is somebody's, nobody's twice, and nobody has much more."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plnd.detection.shards import Shard
from plnd.errors import PLNDError


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 9), sections=st.integers(1, 12), processes=st.integers(1, 3))
def test_every_batch_is_one_process_of_one_shard(count, sections, processes):
    """Over shards, sections and processes, each batch has exactly one owner."""
    owners: Counter = Counter()
    for number in range(1, count + 1):
        for section in range(sections):
            share = Shard(number, count).within(section, sections)
            for window in range(3) if share else ():
                for batch in range(16):
                    for rank in range(processes):
                        owners[section, window, batch] += share.has(window, batch, rank, processes)
    assert len(owners) == sections * 3 * 16 and set(owners.values()) == {1}


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
def test_shares_are_equal(count):
    """In a corpus of one section no shard has more than one batch above another's, nor always a window's longest."""
    batches = [[(w, b) for w in range(16) for b in range(16) if Shard(n + 1, count).has(w, b)] for n in range(count)]
    sizes = [len(mine) for mine in batches]
    assert max(sizes) - min(sizes) <= 16 % count
    longest = [sum(batch == 0 for _, batch in mine) for mine in batches]
    assert max(longest) - min(longest) <= 1


def test_sections_are_read_by_as_few_as_can_be():
    """Of 15 files a shard of 64 reads one, a shard of 4 four; a whole corpus is read by all."""
    read = {count: [sum(Shard(n + 1, count).within(s, 15) is not None for s in range(15)) for n in range(count)]
            for count in (64, 4)}  # fmt: skip
    assert set(read[64]) == {1} and sorted(read[4]) == [3, 4, 4, 4]
    assert all(Shard(n + 1, 4).within(0, 1) == Shard(n + 1, 4) for n in range(4))


def test_as_it_is_written():
    """`3/64` is read and written; what is no shard of so many is refused in one line."""
    assert Shard.parse("3/64") == Shard(3, 64) and str(Shard(3, 64)) == "3/64"
    for text in ("0/4", "5/4", "1", "1/0", "a/b", "-1/4", "1/4/2", "", "1 / 4", "٣/٤"):
        with pytest.raises(PLNDError) as caught:
            Shard.parse(text)
        assert str(caught.value) == f"shard {text!r}: expected I/N with I from 1 to N, such as 3/64 for the third of 64"
