"""Where the processes over which one model is spread meet: before a pass over a batch, and after it.

In the pass they say no more to each other than the model itself does. Each measures the neurons that it has, and what
it refuses waits, since the others would wait for it in the middle of a layer. A rank and a median are of a whole
projection, so the importances of a batch are put together before they are summarised.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import wraps

import torch
from torch import Tensor

from plnd.detection.processes import Processes
from plnd.errors import PLNDError
from plnd.models.distributed import Group
from plnd.models.parts import Part


class Meeting:
    """What this process brings to the end of a pass.

    Args:
        group: the processes.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.brought: list[tuple[str, str, Tensor, Part]] = []
        self.partial: list[tuple[Tensor, Callable[[Tensor], None]]] = []
        self.refusal: str | None = None

    def begin(self, input_ids: Tensor) -> None:
        """A batch [batch, seq] is about to pass.

        Raises:
            PLNDError: if the processes have different ones.
        """
        self.brought, self.partial, self.refusal = [], [], None
        mine = (list(input_ids.shape), zlib.crc32(input_ids.cpu().numpy().tobytes()))
        if any(other != mine for other in self.group.exchange(mine)):
            raise PLNDError(
                "the processes of a tensor-parallel model read different documents: give each the same corpus"
            )

    def waiting(self, see: Callable[..., None]) -> Callable[..., None]:
        """`see`, which refuses nothing before the end."""

        @wraps(see)
        def told(*args: object) -> None:
            try:
                see(*args)
            except PLNDError as error:
                self.refusal = self.refusal or str(error)

        return told

    def bring(self, block: str, site: str, importance: Tensor, part: Part) -> None:
        """Importances of a site's neurons of which `part` says where they belong, [documents, own width]."""
        self.brought.append((block, site, importance, part))

    def add_up(self, partial: Tensor, see: Callable[[Tensor], None]) -> None:
        """Has `see` called at the end with the sum of what the processes give here, each a tensor of one shape."""
        self.partial.append((partial, see))

    def end(self) -> Iterator[tuple[str, str, Tensor]]:
        """Block, site and importances of the whole projection, [documents, width], of all that was brought, in order.

        Raises:
            PLNDError: in every process, what one of them was refused.
        """
        self.group.exchange(None, self.refusal)
        sums, pieces = self._gathered()
        for (_, see), total in zip(self.partial, sums, strict=True):
            see(total)
        if self.refusal is not None:  # of sums that all processes have, so all of them raise
            raise PLNDError(self.refusal)
        for block, site, importance, part in self.brought:
            yield block, site, importance if part.shares is None else part.joined(next(pieces)).to(importance)

    def _gathered(self) -> tuple[list[Tensor], Iterator[list[Tensor]]]:
        """The sums, and every process's pieces of what was brought in pieces: one exchange for all."""
        cut = [(importance, part) for _, _, importance, part in self.brought if part.shares is not None]
        mine = [partial.flatten() for partial, _ in self.partial] + [importance.flatten() for importance, _ in cut]
        if not mine:
            return [], iter(())
        lengths = [[len(partial.flatten())] * self.group.count for partial, _ in self.partial]
        lengths += [part.lengths(len(importance)) for importance, part in cut]
        each = self.group.gather(torch.cat(mine), [sum(of_process) for of_process in zip(*lengths, strict=True)])
        split = [x.split(list(sizes)) for x, sizes in zip(each, zip(*lengths, strict=True), strict=True)]
        found = list(zip(*split, strict=True))  # by tensor, then by process
        sums = [
            torch.stack(pieces).sum(0).view_as(partial)
            for pieces, (partial, _) in zip(found, self.partial, strict=False)
        ]
        rest = found[len(self.partial) :]
        return sums, iter(
            [piece.view(len(importance), -1) for piece in pieces]
            for pieces, (importance, _) in zip(rest, cut, strict=True)
        )


class OneModel(Processes):
    """Processes that have a part each of one model.

    One that fails in a way that nobody foresaw, for want of memory say, cannot tell the others, who wait for it in the
    middle of a layer. It has to end, and its launcher then ends them.
    """

    def can_tell(self, error: Exception) -> bool:
        """Whether it is a refusal, which comes between two passes."""
        return isinstance(error, PLNDError)


class OneReader(OneModel):
    """The same, as those who read a corpus: they count as one, since they read every batch together."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self._group = group

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self._group.rank == 0

    def _exchange(self, value: object, error: str | None) -> list[object]:
        """What the first one gave: all others have the same, or nothing."""
        try:
            return self._group.exchange(value, error)[:1]
        except PLNDError:
            self._failed = True
            raise


def readers(processes: Processes, group: Group | None) -> Processes:
    """Those of `processes` that read documents of their own.

    Raises:
        PLNDError: if they are others than those over which the model is spread.
    """
    if group is None:
        return processes
    if processes.count not in (1, group.count):
        raise PLNDError(
            f"the model is spread over {group.count} processes, and {processes.count} are to read: start"
            f" {group.count}, or shard the corpus"
        )
    return OneReader(group)
