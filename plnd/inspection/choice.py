"""Which neurons are looked at, and where the value of each can be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plnd.addresses import address_order, split_address
from plnd.errors import PLNDError
from plnd.neurons.neuron_set import NeuronSet

FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
"""Whose neurons of one number are one feed-forward neuron (eq. 5 of arXiv:2402.18815)."""


@dataclass(frozen=True)
class Chosen:
    """A neuron to look at.

    Attributes:
        address, index: which.
        importance: in the set; None if it is in none.
        also: other addresses of the set where the same feed-forward neuron is.
    """

    address: str
    index: int
    importance: float | None
    also: tuple[str, ...] = ()

    @property
    def site(self) -> str:
        """The address where its value is read: of a row of `gate_proj` and `up_proj` the column of `down_proj`."""
        return site_of(self.address)


def site_of(address: str) -> str:
    """The address where the values of a projection's neurons are read."""
    block, projection = split_address(address)
    return f"{block}.down_proj" if projection in FEED_FORWARD else address


def choose(neurons: NeuronSet | Sequence[str], top: int, widths: Mapping[str, int]) -> list[Chosen]:
    """The most important neurons of a set, or those that are named, in order.

    Of a set's rows and columns that are one feed-forward neuron, the most important one stands for all.

    Args:
        neurons: a set, or names, `"{block}.{projection}.{index}"`.
        top: how many of a set.
        widths: number of neurons of every projection of the model.

    Raises:
        PLNDError: if a name is none of the model's, or there is nothing to choose from.
    """
    if not isinstance(neurons, NeuronSet):
        if isinstance(neurons, str):
            raise PLNDError(f"neurons={neurons!r}: expected a set of neurons, or a list of names")
        chosen = [Chosen(*parse_name(name, widths), None) for name in dict.fromkeys(neurons)]
        if not chosen:
            raise PLNDError("no neuron is named: expected names such as 5.down_proj.123")
        return chosen
    neurons.check_some("look at")
    named: dict[tuple[str, int], list[Chosen]] = {}
    for one in _by_importance(neurons):
        named.setdefault((one.site, one.index), []).append(one)
    groups = list(named.values())[:top]
    return [Chosen(one.address, one.index, one.importance, tuple(o.address for o in more)) for one, *more in groups]


def parse_name(name: str, widths: Mapping[str, int]) -> tuple[str, int]:
    """Address and index of `"{block}.{projection}.{index}"`.

    Raises:
        PLNDError: if the model has no such neuron.
    """
    address, _, number = name.rpartition(".")
    if address not in widths:
        raise PLNDError(
            f"{name!r}: the model has no such projection; expected block, projection and number, for example"
            f" {max(widths, key=address_order)}.0"
        )
    if not (number.isascii() and number.isdigit()) or int(number) >= widths[address]:
        raise PLNDError(f"{name!r}: expected a number from 0 to {widths[address] - 1} after {address}")
    return address, int(number)


def _by_importance(neurons: NeuronSet) -> list[Chosen]:
    """All neurons of a set, the most important first (ties: the first address, the lowest index)."""
    every = [
        Chosen(address, int(index), float(importance))
        for address, indices in neurons.items()
        for index, importance in zip(indices, neurons.importance[address], strict=True)
    ]
    return sorted(every, key=lambda one: (-(one.importance or 0.0), address_order(one.address), one.index))
