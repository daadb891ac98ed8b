"""Which neurons are looked at: names and sets."""

from __future__ import annotations

import pytest

from handmade import MODEL, make_neurons
from plnd.errors import PLNDError
from plnd.inspection.choice import choose, site_of

WIDTHS = MODEL["widths"]


def test_names_are_taken_once_in_order():
    """A name that is there twice is one neuron."""
    chosen = choose(["1.q_proj.5", "0.down_proj.7", "1.q_proj.5"], 1, WIDTHS)
    assert [(one.address, one.index, one.importance, one.also) for one in chosen] == [
        ("1.q_proj", 5, None, ()),
        ("0.down_proj", 7, None, ()),
    ]


def test_ties_of_a_set_go_by_address_and_index():
    """As in `NeuronSet.top`."""
    neurons = make_neurons({"1.o_proj": [0, 3], "0.q_proj": [2]}, {"1.o_proj": [4, 4], "0.q_proj": [4]})
    names = [(one.address, one.index) for one in choose(neurons, 3, WIDTHS)]
    assert names == [("0.q_proj", 2), ("1.o_proj", 0), ("1.o_proj", 3)]


def test_values_of_gate_and_up_are_read_at_down():
    """All others where they are."""
    assert {site_of(f"3.{name}") for name in ("gate_proj", "up_proj", "down_proj")} == {"3.down_proj"}
    assert [site_of(f"decoder.1.cross.{name}_proj") for name in "qkvo"] == [
        f"decoder.1.cross.{name}_proj" for name in "qkvo"
    ]


@pytest.mark.parametrize(
    "name", ["", "5", "down_proj", "0.down_proj", "0.down_proj.", "0.down_proj.8", "0.down_proj.²"]
)
def test_names_of_no_neuron_are_refused(name):
    """With what a name looks like."""
    with pytest.raises(PLNDError, match="expected"):
        choose([name], 1, WIDTHS)


def test_an_empty_set_is_refused():
    """There is nothing to look at."""
    with pytest.raises(PLNDError, match="nothing to look at"):
        choose(make_neurons({}), 5, WIDTHS)
