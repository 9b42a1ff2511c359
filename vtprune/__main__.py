"""``python -m vtprune``: the command line."""

import sys

from vtprune.cli import main

if __name__ == "__main__":
    sys.exit(main())
