"""What runs in a process of its own, with limits, and may be killed."""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Outcome:
    """What became of a forked process: its status as the shell counts, negative for a signal, and what it said."""

    status: int
    text: str
    seconds: float
    hung: bool


def forked(
    action: Callable[[], int], *, limit: float = 600, kill: Sequence[int] = (), after: float = 0, **limits: int
) -> Outcome:
    """Runs an action in a fork; its output comes through a pipe, which no full disk stops.

    Args:
        action: returns the status.
        limit: seconds; what takes longer is killed and has hung.
        kill: signals to send, a hundredth of a second apart.
        after: seconds until the first.
        limits: of resources, `AS` or `FSIZE` to bytes.
    """
    reading, writing = os.pipe()
    began = time.monotonic()
    # Before it is set up, a child that a signal reaches would raise in what libraries do after a fork, and go on as us.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    else:
        try:
            os.setsid()
            for stream in (1, 2):
                os.dup2(writing, stream)
            os.close(reading)
            sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)
            sys.stderr = sys.__stderr__ = open(2, "w", closefd=False)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # as the program does
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for name, most in limits.items():
                resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
            status = 70
            try:
                status = action()
            except SystemExit as stop:
                status = int(stop.code or 0)
            except BaseException:
                import traceback

                traceback.print_exc()
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
        finally:
            os._exit(71)
    os.close(writing)
    said, pending, hung, status = bytearray(), list(kill), False, None
    while status is None:
        now = time.monotonic() - began
        if pending and now >= after:
            with suppress(ProcessLookupError):
                os.kill(child, pending.pop(0))
            after += 0.01
        if now > limit:
            hung = True
            os.killpg(child, signal.SIGKILL)
        wait = after - now if pending else 0.5
        if select.select([reading], [], [], max(0, min(wait, 0.5)))[0]:
            part = os.read(reading, 2**16)
            said += part
            if part:
                continue
        done, code = os.waitpid(child, 0 if hung else os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
        elif not pending:
            time.sleep(0.002)
    while select.select([reading], [], [], 0)[0] and (part := os.read(reading, 2**16)):
        said += part
    os.close(reading)
    return Outcome(status, said.decode(errors="replace"), time.monotonic() - began, hung)


def command(*arguments: str) -> int:
    """The status of a command line; what killed processes left may be removed at once."""
    from plnd.commands.main import main
    from plnd.io import files

    files.FRESH_SECONDS = 0
    return main(arguments)


def address_space() -> int:
    """Bytes that this process has mapped."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
