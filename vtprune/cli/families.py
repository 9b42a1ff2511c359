"""``vtprune families``: the model types whose visual tokens can be pruned, and those that are refused, and why."""

from __future__ import annotations

import argparse

HELP = "list the model types that can be pruned, and those that are refused"


def arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints a table of ``model_type`` of a config, the family that serves it, a line about it; and one of the refused.

    In JSON a refused type has no family, and its reason instead of the line.
    """
    from vtprune import families  # noqa: F401 (importing registers them)
    from vtprune.cli.console import STDOUT, say, table, write_json
    from vtprune.cli.docs import first_line
    from vtprune.families.base import FAMILIES
    from vtprune.refused import REFUSALS, REFUSED

    found = [
        {"model_type": name, "family": type(family).__name__, "summary": first_line(type(family).__module__)}
        for name, family in sorted(FAMILIES.items())
    ]
    if arguments.json:
        refused = [
            {"model_type": name, "family": None, "summary": f"{one.why}."} for name, one in sorted(REFUSED.items())
        ]
        write_json(found + refused, STDOUT)
    else:
        table(("model type", "family", "about"), [tuple(one.values()) for one in found])
        say("")
        table(("refused", "why"), [(", ".join(one.models), one.why) for one in REFUSALS])
    return 0
