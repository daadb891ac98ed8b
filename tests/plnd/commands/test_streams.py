"""Streams that are closed, full, left or of another encoding, and interruptions: one line, the right status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from handmade import make_neurons

pytestmark = pytest.mark.skipif(os.name != "posix", reason="descriptors and signals of POSIX")

UNHEARD = "standard output: cannot be written ({}); all else is done\n"
FULL, CLOSED = UNHEARD.format("No space left on device"), UNHEARD.format("Bad file descriptor")


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command of bash, in which `plnd` is this plnd."""
    lines = f'set -o pipefail\nplnd() {{ "{sys.executable}" -m plnd "$@"; }}\n{command}'
    # the shells of a container may have C as their locale, where Python 3 takes UTF-8
    environment = {**os.environ, "PYTHONUTF8": "1", **environment}
    return subprocess.run(["bash", "-c", lines], capture_output=True, env=environment, timeout=60)


@pytest.mark.parametrize(
    "command, status, said",
    [
        ("plnd overlap a b --csv t.csv > /dev/full", 2, f"plnd overlap: {FULL}"),
        pytest.param("plnd overlap a b --csv t.csv >&-", 2, f"plnd overlap: {CLOSED}", marks=pytest.mark.slow),
        pytest.param("plnd overlap a b --csv t.csv | true", 0, "", marks=pytest.mark.slow),
        pytest.param("plnd overlap a b --csv t.csv >&- 2>&- <&-", 2, "", marks=pytest.mark.slow),
        pytest.param("plnd overlap a b --csv t.csv > /dev/full 2>&1", 2, "", marks=pytest.mark.slow),
    ],
)
def test_what_is_not_heard(tmp_path, command, status, said):
    """Files are written, and where stdout is not what was printed, a line and the status say so; a reader may leave."""
    for name in "ab":
        make_neurons({"0.up_proj": [1, 2]}).save(tmp_path / name)
    done = shell(f"cd {tmp_path}; {command}")
    assert (done.returncode, done.stderr.decode()) == (status, said)
    assert (tmp_path / "t.csv").read_text().count("\n") == 13


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, status, said",
    [
        ("plnd --help > /dev/full", 2, f"plnd --help: {FULL}"),
        ("plnd show nothing 2> /dev/full", 2, ""),
        ("plnd show nothing 2>&-", 2, ""),
        ("plnd show nothing > /dev/full", 2, "plnd show: nothing: no such file, expected a plnd artifact\n"),
        ("plnd families 2>&- | head -1 > /dev/null", 0, ""),
    ],
)
def test_other_streams(tmp_path, command, status, said):
    """Help, errors and what is read in part."""
    done = shell(f"cd {tmp_path}; {command}")
    assert (done.returncode, done.stderr.decode()) == (status, said)


@pytest.mark.slow
def test_a_name_that_is_no_text():
    """A file's name that is not UTF-8 is one line, in which its bytes are numbers."""
    done = shell(r"plnd show $'a\xe9b'")
    line = "plnd show: argument 'a\\udce9b': its bytes are no text here, which no artifact can hold; rename it\n"
    assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", line)


@pytest.mark.parametrize(
    "form, expected",
    [
        pytest.param("", b"language  \\u4e2d\\xe9", marks=pytest.mark.slow),
        ("--json", b'"language": "\\u4e2d\\u00e9"'),
    ],
)
def test_letters_that_stdout_does_not_have(tmp_path, form, expected):
    """An ascii stdout gets their numbers, as JSON writes them where it is JSON."""
    make_neurons({"0.up_proj": [1]}, language="中é").save(tmp_path / "a")
    done = shell(f"plnd show {form} {tmp_path / 'a'}", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"") and expected in done.stdout


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_lines_stand_in_the_order_in_which_they_are_written(unbuffered):
    """What stderr is told before stdout comes before it, also where Python is unbuffered, as in many containers."""
    code = (
        "import sys; from plnd.commands.streams import session\n"
        "with session():\n"
        "    sys.stderr.write('bar'); sys.stderr.write('\\n'); print('result', flush=True)\n"
        "    sys.stderr.write('end\\n')"
    )
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    both = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    assert both.stdout == b"bar\nresult\nend\n"


WAITS = """
import signal, sys, time
from plnd.commands import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born deaf to it
class Forgotten:
    def __del__(self):
        print("begun", flush=True)
        time.sleep(60)
class Waits:
    help, example = "wait", ""
    def add_arguments(self, parser): parser.set_defaults(advice=lambda args: "so go on")
    def run(self, args):
        if sys.argv[1] == "within a finalizer":
            Forgotten()
            return time.sleep(60)
        try:
            print("begun", flush=True)
            time.sleep(60)
        except BaseException if sys.argv[1] == "swallowed" else ():
            return
        except KeyboardInterrupt:
            if sys.argv[1] == "twice":
                print("ending", flush=True)
                time.sleep(60)
            raise ImportError("half imported") if sys.argv[1] == "within a library" else KeyboardInterrupt
main.COMMANDS["show"] = Waits()
sys.exit(main.main(["show"]))
"""


NOT_TOLD = ("within a library", "within a finalizer", "swallowed")


@pytest.mark.parametrize("when", ["once", "twice", *(pytest.param(when, marks=pytest.mark.slow) for when in NOT_TOLD)])
def test_interruptions(when):
    """The first is a line and status 130, whatever a library or a finalizer makes of it; the second ends at once."""
    arguments = [sys.executable, "-c", WAITS, when]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for said in ("begun\n", *(("ending\n",) if when == "twice" else ())):
            assert process.stdout.readline() == said
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    ended = (-signal.SIGINT, "") if when == "twice" else (130, "plnd show: interrupted; so go on\n")
    assert (process.returncode, said) == ended


@pytest.mark.slow
def test_interrupted_before_it_has_begun(tmp_path):
    """While the program is still being imported, an interruption ends it without a word."""
    (tmp_path / "plnd_waits.py").write_text("print('begun', flush=True)\nimport time\ntime.sleep(60)\n")
    code = (
        "import sys, signal, importlib.abc, plnd.__main__\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Waits(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'plnd.commands.main': import plnd_waits\n"
        "sys.meta_path.insert(0, Waits())\n"
        "sys.exit(plnd.__main__.program())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", code, "families"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == (b"", b"") and process.returncode == -signal.SIGINT


@pytest.mark.slow
def test_a_process_that_ignores_interruptions_goes_on_ignoring_them(tmp_path):
    """As under nohup: the command runs to its end."""
    code = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); from plnd.commands import main\n"
        "class Interrupted:\n"
        "    help, example = 'stay', ''\n"
        "    def add_arguments(self, parser): pass\n"
        "    def run(self, args): os.kill(os.getpid(), signal.SIGINT)\n"
        "main.COMMANDS['show'] = Interrupted(); sys.exit(main.main(['show']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=Path(tmp_path))
    assert (done.returncode, done.stderr) == (0, b"")
