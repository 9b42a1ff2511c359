"""Writes the README's tables of policies and families from the registries: ``python -m benchmarks.readme``."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import vtprune
from vtprune.cli.docs import policy_card
from vtprune.families.base import FAMILIES
from vtprune.policies.base import POLICIES
from vtprune.signals import parse
from vtprune.tokens import BEFORE_LLM, site_name

README = Path(__file__).parents[1] / "README.md"


def policies() -> str:
    """One row for each registered policy, as it is without options."""
    rows = ["| policy | what it does | acts | looks at | source |", "|---|---|---|---|---|"]
    for name, cls in sorted(POLICIES.items()):
        card, policy = policy_card(name, cls), cls()
        acts = ", ".join(places(policy.sites))
        needs = ", ".join(sorted({parse(need).name.replace("_", " ") for need in policy.needs})) or "-"
        cells = (f"`{name}`", card.title.rstrip("."), acts, needs, card.source.rstrip(".") or "control")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def places(sites: Sequence[float]) -> list[str]:
    """Sites in words; of more than three of a kind the first and the last."""
    found = [site_name(site) for site in sites if site == BEFORE_LLM]
    for kind, some in (
        ("layer", [site for site in sites if site >= 0 and site == int(site)]),
        ("inside layer", [site for site in sites if site != int(site)]),
    ):
        if len(some) > 3:
            found.append(f"{kind}s {int(some[0])} to {int(some[-1])}")
        else:
            found += [site_name(site) for site in some]
    return found


def families() -> str:
    """One row for each family file, with the model types it serves."""
    rows = ["| model types | what is special |", "|---|---|"]
    by_module: dict[str, list[str]] = {}
    for model_type, family in FAMILIES.items():
        by_module.setdefault(type(family).__module__, []).append(model_type)
    for module, types in sorted(by_module.items()):
        what = (sys.modules[module].__doc__ or "").strip().splitlines()[0].rstrip(".")
        rows.append(f"| {', '.join(f'`{t}`' for t in sorted(types))} | {what} |")
    return "\n".join(rows)


def filled(text: str) -> str:
    """The README with fresh tables between its markers."""
    for name, table in (("policies", policies()), ("families", families())):
        block = f"<!-- {name} -->\n{table}\n<!-- /{name} -->"
        text, found = re.subn(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, b=block: b, text, flags=re.DOTALL)
        if not found:
            raise ValueError(f"README.md has no <!-- {name} --> ... <!-- /{name} --> to fill; put both markers back")
    return text


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
    print(f"tables of vtprune {vtprune.__version__} written to {README.name}")
