"""The demo from a checkout: ``python demos/app.py``, the same as ``vtprune demo``."""

import sys

from vtprune.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
