"""``vtprune families``: the model types whose visual tokens can be pruned."""

from __future__ import annotations

import argparse

HELP = "list the model types that can be pruned"


def arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints the table: ``model_type`` of a config, the family that serves it, a line about it."""
    from vtprune import families  # noqa: F401 (importing registers them)
    from vtprune.cli.console import STDOUT, table, write_json
    from vtprune.cli.docs import first_line
    from vtprune.families.base import FAMILIES

    found = [
        {"model_type": name, "family": type(family).__name__, "summary": first_line(type(family).__module__)}
        for name, family in sorted(FAMILIES.items())
    ]
    if arguments.json:
        write_json(found, STDOUT)
    else:
        table(("model type", "family", "about"), [tuple(one.values()) for one in found])
    return 0
