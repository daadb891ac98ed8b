"""Regions: which blocks and projections lie in which part of the model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plnd.addresses import ATTENTION_PROJECTIONS, PROJECTIONS
from plnd.errors import PLNDError
from plnd.neurons.regions import NAMES, Regions

BLOCKS = 6
EXPECTED = "expected some of under, solve, solve_attn, solve_ffn, gen"


def inside(*names: str, under: int = 2, gen: int = 1) -> set[tuple[int, str]]:
    """(block, projection) of a model of six blocks that lie in the regions."""
    regions = Regions(names, under, gen)
    regions.check(BLOCKS)
    return {(b, p) for b in range(BLOCKS) for p in PROJECTIONS if regions.contains(b, p, BLOCKS)}


def test_regions_by_hand():
    """The first N1 blocks, the last N2, and the two halves of what is between them."""
    assert inside("under") == {(b, p) for b in (0, 1) for p in PROJECTIONS}
    assert inside("gen") == {(5, p) for p in PROJECTIONS}
    assert inside("solve") == {(b, p) for b in (2, 3, 4) for p in PROJECTIONS}
    assert inside("solve_attn") == {(b, p) for b in (2, 3, 4) for p in ("q_proj", "k_proj", "v_proj", "o_proj")}
    assert inside("solve_ffn") == {(b, p) for b in (2, 3, 4) for p in ("gate_proj", "up_proj", "down_proj")}


@given(st.integers(0, 3), st.integers(0, 3))
def test_regions_divide_the_model(under, gen):
    """under, solve_attn, solve_ffn and gen are disjoint and together the whole model; solve is its two halves."""
    parts = [inside(name, under=under, gen=gen) for name in ("under", "solve_attn", "solve_ffn", "gen")]
    assert sum(map(len, parts)) == len(set().union(*parts)) == BLOCKS * len(PROJECTIONS)
    assert inside("solve", under=under, gen=gen) == parts[1] | parts[2]
    assert all(p in ATTENTION_PROJECTIONS for _, p in parts[1])


@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5))
def test_several_regions_are_their_union(names):
    """Naming several, in any order or twice, is naming what is in any of them."""
    assert inside(*names) == set().union(*(inside(name) for name in names))


def test_no_blocks_is_an_empty_region():
    """Zero understanding blocks are none, not all."""
    assert inside("under", under=0) == set() and inside("gen", gen=0) == set()
    assert len(inside("solve", under=0, gen=0)) == BLOCKS * len(PROJECTIONS)


@pytest.mark.parametrize("text", ["under+solve_ffn", "under,solve_ffn", " under , solve_ffn ", ["under", "solve_ffn"]])
def test_parse_takes_plus_comma_and_lists(text):
    """lm-eval's arguments are split at commas, so plus signs do as well."""
    assert Regions.parse(text, 2, 1) == Regions(("under", "solve_ffn"), 2, 1)


def test_parse_needs_only_the_numbers_in_question():
    """A region's own number is enough for it; what lies between needs both."""
    assert Regions.parse("under", 2, None) == Regions(("under",), 2, 0)
    assert Regions.parse("gen", None, 1) == Regions(("gen",), 0, 1)


@pytest.mark.parametrize(
    "names, under, gen, wording",
    [
        ("under", None, 1, "regions under need under=N, the number of blocks of that region"),
        ("gen", 1, None, "regions gen need gen=N, the number of blocks of that region"),
        ("solve", 1, None, "regions solve need gen=N, the number of blocks of that region"),
        ("gen+solve_attn", None, 1, "regions gen+solve_attn need under=N, the number of blocks of that region"),
        ("over", 1, 1, f"unknown region 'over': {EXPECTED}"),
        ("solve_atn", None, None, f"unknown region 'solve_atn': {EXPECTED}"),
        ("Under", 1, 1, f"unknown region 'Under': {EXPECTED}"),
        ("", 1, 1, f"no region named: {EXPECTED}"),
        (",", 1, 1, f"no region named: {EXPECTED}"),
        ("under", -1, 0, "under=-1, gen=0: expected numbers of blocks, 0 or more"),
        ("gen", 0, -3, "under=0, gen=-3: expected numbers of blocks, 0 or more"),
        ("under", "abc", 0, "under='abc', gen=0: expected numbers of blocks, 0 or more"),
        ("gen", 0, 2.5, "under=0, gen=2.5: expected numbers of blocks, 0 or more"),
    ],
)
def test_parse_refuses(names, under, gen, wording):
    """An unknown or missing name or number is one line that says what was expected."""
    with pytest.raises(PLNDError) as caught:
        Regions.parse(names, under, gen)
    assert str(caught.value) == wording


def test_regions_must_fit_the_model():
    """Regions that meet are allowed, regions that overlap are not."""
    Regions(("under",), 4, 2).check(6)
    with pytest.raises(PLNDError, match="under=4 and gen=3 overlap: the model has 6 blocks"):
        Regions(("under",), 4, 3).check(6)


def test_description_is_all_there_is():
    """What metadata records makes the same regions again."""
    regions = Regions(("under", "gen"), 2, 1)
    description = regions.description()
    assert Regions(tuple(description["names"]), description["under"], description["gen"]) == regions
