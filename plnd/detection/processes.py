"""The processes of one run, started by `torchrun` or `accelerate launch`: who they are, and how they stay together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from plnd.errors import PLNDError


class Processes:
    """This process among those of its run; by default there is no other.

    All that processes say to each other goes through `exchange`, `collect` and `broadcast`, which every one of them
    calls in the same order. A process that fails takes part in the next `exchange` with its error (see `together`), so
    the others never wait for one that has left.

    Attributes:
        rank: number of this process, from 0.
        count: how many there are.
        device: where tensors for `collect` and `broadcast` lie; None in a run of one process.
    """

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.count, self.device = rank, count, device
        self._failed = False

    @classmethod
    def launched(cls, device: str | None = None) -> Processes:
        """The processes that the launcher started, joined in torch's process group (gloo on the CPU, NCCL on GPUs).

        A process group that is there already, from an `Accelerator` for example, is used as it is.

        Args:
            device: `cpu`, or the name of an accelerator, of which each process takes its own; by default the
                accelerator, if there is one.
        Raises:
            PLNDError: if `device` is one that not every process can have, or there are more processes than devices.
        """
        names = {"WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "LOCAL_RANK": 0}
        count, here, local = (int(os.environ.get(name, default)) for name, default in names.items())
        if dist.is_initialized():
            count = dist.get_world_size()
        if count == 1:
            return cls()
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        kind = device or (accelerator.type if accelerator else "cpu")
        if kind != "cpu" and (accelerator is None or kind != accelerator.type):
            own = f"cpu or {accelerator.type}" if accelerator else "cpu"
            raise PLNDError(f"device {device!r}: {count} processes take one device each; give {own}")
        if kind == "cpu":
            own_device = torch.device("cpu")
        elif here > torch.accelerator.device_count():
            found = torch.accelerator.device_count()
            raise PLNDError(f"{here} processes on a machine with {found} {kind} devices; start one for each at most")
        else:
            own_device = torch.device(kind, local)
            torch.accelerator.set_device_index(local)
        if not dist.is_initialized():
            _join(dist.get_default_backend_for_device(own_device))
        return cls(dist.get_rank(), count, own_device)

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def exchange(self, value: Any = None) -> list[Any]:
        """What every process gave, in the order of ranks.

        Raises:
            PLNDError: in every process, if one of them has failed.
        """
        return self._exchange(value, None)

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """`tensor` as the process `source` has it; what the others gave, of one shape, is overwritten."""
        if self.count > 1:
            dist.broadcast(tensor, source)
        return tensor

    def collect(self, tensor: Tensor, source: int) -> Tensor:
        """`tensor` as the process `source` has it, in the first process; all others keep what they gave."""
        if self.rank == source != 0:
            dist.send(tensor, 0)
        elif self.first and source != 0:
            dist.recv(tensor, source)
        return tensor

    @contextmanager
    def together(self) -> Iterator[None]:
        """Left by all processes or, with an error, by none: what one raises in here, the others raise as one line.

        Contexts may be nested.
        """
        try:
            yield
        except Exception as error:
            if not self._failed and self.can_tell(error):
                named = isinstance(error, PLNDError)
                reason = str(error) if named else f"process {self.rank} failed: {type(error).__name__}: {error}"
                with suppress(PLNDError):  # others' errors of the same moment; this process has its own
                    self._exchange(None, reason)
            raise
        self.exchange()

    def can_tell(self, error: Exception) -> bool:
        """Whether the others are where they can be told of an error."""
        return True

    def close(self) -> None:
        """Leaves the process group."""
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def _exchange(self, value: Any, error: str | None) -> list[Any]:
        if self.count == 1:
            return [value]
        answers: list[Any] = [None] * self.count
        dist.all_gather_object(answers, (value, error))
        errors = [reason for _, reason in answers if reason is not None]
        if errors:
            self._failed = True
            raise PLNDError(errors[0])
        return [given for given, _ in answers]


def _join(backend: str) -> None:
    """Joins the process group of this attempt.

    `torchrun --max-restarts` keeps the store in which processes leave their addresses, and those of the ones that were
    killed: who is first in the next attempt would take them for the others'.
    """
    store, rank, count = next(rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(backend, store=dist.PrefixStore(f"attempt {attempt}", store), rank=rank, world_size=count)
