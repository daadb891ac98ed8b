"""Every table and figure of the PLND paper (arXiv:2402.18815), each one command.

    plnd experiment demo --output demo-experiment
    python scripts/plnd_paper.py table2 demo-experiment --output table2

prints the table and writes `table2.csv`, `table2.md` and `table2.tex` and, where there is something to draw,
`table2.svg`, or --plot FILE.pdf or .png, as wide as one column of a paper's page or two (--columns). Tables read the
folder that `plnd experiment` left behind and cost a read; figures read its neurons, or neurons artifacts named one by
one. docs/papers.md has the command of each.
"""

from __future__ import annotations

from lm_eval_plnd.experiments.paper import command


def main() -> None:
    """Draws one figure or makes one table."""
    command.main(__doc__)


if __name__ == "__main__":
    main()
