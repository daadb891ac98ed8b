"""lm-eval's own command line, with the model `plnd` registered.

Use it as you would use lm_eval:

  python -m lm_eval_plnd --model plnd --model_args mask=zh.safetensors --tasks plnd_text_zh

It needs neither the start-up bridge nor plugin discovery (see `lm_eval_plnd.bridge`).
"""

import sys

import lm_eval.models  # noqa: F401  the registry must be filled before a name is added to it
from lm_eval.__main__ import cli_evaluate

from lm_eval_plnd.bridge import register


def main() -> None:
    """Register `plnd`, then hand over to lm-eval, whose help speaks of itself as `lm-eval`."""
    register()
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        print(__doc__)
    cli_evaluate()


if __name__ == "__main__":
    main()
