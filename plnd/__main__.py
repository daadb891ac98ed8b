"""`python -m plnd`, and the program `plnd`: the command line."""

import signal
import sys


def program() -> int:
    """The command line as a process of its own, which an interruption ends without a word until it has begun."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as under nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from plnd.commands.main import main

    return main()


if __name__ == "__main__":
    sys.exit(program())
