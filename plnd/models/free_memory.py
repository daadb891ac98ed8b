"""How much memory is free, and whether a model fits, asked before it is loaded: the kernel kills without a word."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plnd.errors import PLNDError

if TYPE_CHECKING:
    import torch


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None where nobody says.

    Of the CPU's the least of what the machine has, what the control groups of the process (a container's, a job's)
    leave, and what its limits (`ulimit -v`) leave.
    """
    import torch

    if device.type == "cpu":
        import psutil

        groups = left_by_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
        return min(psutil.virtual_memory().available, *groups, *_in_limits())
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.mem_get_info(device)[0]
    return None


def check_fits(name: str, size: int, device: str, what: str = "its weights", *, blockwise: bool = True) -> None:
    """Refuses a model that is larger than what is free.

    Args:
        name: of the model.
        size: bytes that are needed.
        device: where; `auto` is on all accelerators and the CPU together.
        what: needs them.
        blockwise: whether to recommend it.

    Raises:
        PLNDError: saying how much is needed, how much is free, and what to do.
    """
    import torch

    try:
        devices = [torch.device("cpu"), *_accelerators()] if device == "auto" else [torch.device(device)]
    except RuntimeError:  # no device at all, as loading will say
        return
    free = [free_memory(each) for each in devices]
    known = [each for each in free if each is not None]
    if len(known) == len(free) and size > sum(known):
        advice = "plnd detect --blockwise (plnd.blockwise_model) holds two blocks at a time; or " if blockwise else ""
        raise PLNDError(
            f"{name}: {what} take {gibibytes(size)}, and {gibibytes(sum(known))} are free on"
            f" {' and '.join(map(str, devices))}: {advice}give a smaller --dtype, another --device or another machine"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no more memory, of a device or of the machine."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    words = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return named or (isinstance(error, RuntimeError) and any(x in str(error) for x in words))


def gibibytes(size: float) -> str:
    """A number of bytes in words."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**28 else f"{size / 2**20:,.1f} MiB"


def parameter_bytes(model: Any, dtype: torch.dtype | None) -> int:
    """What a model's parameters take, each once; floating-point ones in `dtype`, None being their own."""
    return sum(
        x.numel() * (dtype.itemsize if dtype is not None and x.is_floating_point() else x.element_size())
        for x in model.parameters()
    )


def _accelerators() -> list[torch.device]:
    import torch

    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return [] if kind is None else [torch.device(kind.type, n) for n in range(torch.accelerator.device_count())]


def left_by_groups(membership: Path, root: Path) -> Iterator[int]:
    """What the control groups of either version leave; each limits what is in the groups below it.

    Args:
        membership: the file that says which groups a process is in.
        root: where the groups are mounted.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _upwards(root, root / path.strip("/"), "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            home = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _upwards(home, home / path.strip("/"), *names)


def _upwards(root: Path, group: Path, limit: str, usage: str, idle: str) -> Iterator[int]:
    """From a group up to the root of those that this process sees (in a container, its own group is the root)."""
    for folder in (group, *group.parents):
        try:
            most = (folder / limit).read_text().strip()
            used = int((folder / usage).read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            most = "max"
        if most != "max":
            yield max(0, int(most) - used + int(statistics.get(idle, 0)))  # files' pages that are given up when needed
        if folder == root:
            return


def _in_limits() -> Iterator[int]:
    """What the limits of the process leave."""
    try:
        import resource
    except ImportError:  # Windows
        return
    import psutil

    for name, used in (("RLIMIT_AS", "vms"), ("RLIMIT_DATA", "data")):
        most = resource.getrlimit(getattr(resource, name))[0]
        if most not in (resource.RLIM_INFINITY, math.inf):
            yield max(0, most - getattr(psutil.Process().memory_info(), used, 0))
