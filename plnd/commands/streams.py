"""The streams of a program and its interruption: closed, full or left pipes, other encodings, Ctrl-C once and twice."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from plnd.errors import PLNDError


class Patient(io.TextIOWrapper):
    """A stream whose reader may leave and whose disk may be full: then nothing more is written, and the work goes on.

    Characters that its encoding does not have are written as their numbers.

    Attributes:
        failure: what went wrong, the first time.
    """

    failure: OSError | None = None

    def write(self, text: str) -> int:
        """Writes, at once where Python is unbuffered, or drops it all."""
        try:
            written = super().write(text)
            if self.write_through:
                super().flush()
            return written
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Writes what is waiting, or drops it."""
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)
            super().flush()

    def _give_up(self, error: OSError) -> None:
        self.failure = self.failure or error
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())


AGAIN = 0.02
"""Seconds after which an interruption comes again that nobody could be told of."""


class Session:
    """One run of a command line.

    Attributes:
        interrupted: whether Ctrl-C was pressed.
    """

    def __init__(self, output: Patient | None = None) -> None:
        self.interrupted = False
        self._output = output
        self._unraisable = sys.unraisablehook

    def check_output(self) -> None:
        """Refuses to end well when stdout is not what the command printed; a reader that has left has read enough.

        Raises:
            PLNDError: if something could not be written.
        """
        sys.stdout.flush()
        error = self._output.failure if self._output else None
        if error is not None and not isinstance(error, BrokenPipeError):
            raise PLNDError(f"standard output: cannot be written ({error.strerror}); all else is done")

    def interrupt(self, *signalled: Any) -> None:
        """Stops the run in an orderly way the first time, and ends the process at the second, whatever it is at.

        Raises:
            KeyboardInterrupt: always.
        """
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    def unraisable(self, caught: Any) -> None:
        """An interruption within a finalizer, of which Python only tells on stderr, comes again a moment later.

        Where there is no such timer (Windows), the run goes on to its end, which then is that of an interrupted one.
        """
        if not (self.interrupted and issubclass(caught.exc_type, KeyboardInterrupt)):
            self._unraisable(caught)
        elif hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, self.interrupt)
            signal.setitimer(signal.ITIMER_REAL, AGAIN)


@contextmanager
def session() -> Iterator[Session]:
    """Streams that always can be written to, while a command runs in a process of its own.

    Streams that somebody put in the place of the process's own are left alone.
    """
    before = sys.stdout, sys.stderr
    output = _patient(1, sys.stdout) if sys.stdout is sys.__stdout__ else None
    errors = _patient(2, sys.stderr) if sys.stderr is sys.__stderr__ else None
    sys.stdout, sys.stderr = output or sys.stdout, errors or sys.stderr
    run = Session(output)
    handler = signal.getsignal(signal.SIGINT)
    ours = threading.current_thread() is threading.main_thread() and (
        handler in (signal.default_int_handler, signal.SIG_DFL)  # not where it is ignored, as under nohup
    )
    if ours:
        signal.signal(signal.SIGINT, run.interrupt)
    hook, sys.unraisablehook = sys.unraisablehook, run.unraisable
    try:
        yield run
    finally:
        sys.unraisablehook = hook
        if ours and not run.interrupted:
            signal.signal(signal.SIGINT, handler)
        for stream in filter(None, (output, errors)):
            stream.flush()
        sys.stdout, sys.stderr = before


def _patient(descriptor: int, stream: TextIO | None) -> Patient:
    """A patient stream in the place of another. One that was closed takes nothing, and no file gets its number."""
    encoding, lines, at_once = "utf-8", descriptor == 2, False
    if stream is None:
        nowhere = os.open(os.devnull, os.O_RDONLY)
        if nowhere != descriptor:
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
    else:
        stream.flush()
        encoding, lines = stream.encoding, bool(stream.line_buffering)
        at_once = bool(getattr(stream, "write_through", False))  # python -u, PYTHONUNBUFFERED, as containers set it
    target = open(descriptor, "wb", closefd=False)
    return Patient(target, encoding, "backslashreplace", line_buffering=lines, write_through=at_once)
