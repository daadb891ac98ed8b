"""`python -m plnd`: the command line."""

import sys

from plnd.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
