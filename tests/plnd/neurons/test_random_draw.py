"""Random neurons: the same everywhere, another draw in every place."""

from __future__ import annotations

import numpy as np

from plnd.neurons.random_draw import draw


def test_the_draw_is_the_same_everywhere():
    """Numbers written down, so that another machine or version that draws others is noticed."""
    assert draw(16, 4, 0, "0.q_proj").tolist() == [0, 13, 14, 15]
    assert draw(16, 4, 0, 3, "0").tolist() == [5, 9, 11, 13]


def test_seed_and_every_part_of_the_address_count():
    """Each change of one of them draws others."""
    draws = [draw(1000, 20, *place) for place in ((0, 1, "2"), (1, 1, "2"), (0, 2, "2"), (0, 1, "3"), (0, "1.2"))]
    assert len({tuple(drawn) for drawn in draws}) == len(draws)


def test_larger_draws_hold_smaller_ones():
    """Distinct neurons in ascending order, all of them at last."""
    draws = [draw(50, count, 7, "0") for count in range(51)]
    for smaller, larger in zip(draws, draws[1:], strict=False):
        assert len(larger) == len(smaller) + 1 and set(smaller) < set(larger)
        assert (np.diff(larger) > 0).all()
    assert draws[50].tolist() == list(range(50))
