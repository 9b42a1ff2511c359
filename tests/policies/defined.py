"""Writes where each policy is defined, by running it on every tiny model: ``python -m tests.policies.defined``."""

from __future__ import annotations

import re
import sys
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.policies.contract import NAMES, Outcome, families, model_of, outcome
from vtprune.cli.quiet import notes_instead_of_warnings
from vtprune.families.base import family_of
from vtprune.plan import facts_of

PAGE = Path(__file__).parents[2] / "vtprune" / "policies" / "DEFINED.md"
KINDS = {"image": "images", "video": "clips"}

HEAD = """\
# Where each policy is defined

Every policy was run on a tiny model of every family, with a batch of two prompts of unequal length, images or clips,
and gave each sample what it gives it alone. "as published": nothing of the method is missing where no number says
otherwise. A number points to what stands in for what a model does not have, or what else differs there, or why it is
refused; `vtprune.report` says the same of a real model. "whole": such visual tokens are all kept, and the report says
why. The decoders here have 4 to 6 layers, so what acts in later ones is refused where it is not in real models.
Written by `python -m tests.policies.defined`.
"""


def run() -> dict[tuple[str, str, str], Outcome]:
    """What became of each (policy, kind, family)."""
    found = {}
    with notes_instead_of_warnings():
        for kind in KINDS:
            for family in families(kind):
                for name in NAMES:
                    found[name, kind, family] = outcome(family, kind, name)
    return found


def groups() -> dict[str, frozenset[str]]:
    """Families that have something in common, by what it is."""
    facts = {name: facts_of(model_of(name), family_of(model_of(name))) for name in families("image")}
    return {
        "without a class token in the tower": frozenset(n for n, fact in facts.items() if not fact.class_token),
        "with a class token in the tower": frozenset(n for n, fact in facts.items() if fact.class_token),
        "with mRoPE": frozenset(name for name, fact in facts.items() if not fact.line_positions),
        "without mRoPE": frozenset(name for name, fact in facts.items() if fact.line_positions),
    }


def plain(note: str) -> str:
    """A note without the name of the model's class and without the site."""
    note = re.sub(r"^(before the LLM|(inside )?layer \d+): ", "", note)
    note = re.sub(r"^\w+\(.*\) acts at", "it acts at", note)
    return re.sub(r"\b[A-Z]\w*(Text)?Model\b", "the decoder", note)


def page(found: Mapping[tuple[str, str, str], Outcome]) -> str:
    """The whole page."""
    known, numbers = groups(), {}
    lines = ["| policy | images | clips |", "|---|---|---|"]
    for name in NAMES:
        cells = []
        for kind in KINDS:
            outcomes = {family: found[name, kind, family] for family in families(kind)}
            cells.append(_cell(outcomes, known, numbers))
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    notes = [textwrap.fill(f"{number}. {text}.", 120, subsequent_indent="   ") for text, number in numbers.items()]
    names = [
        textwrap.fill(f"* {kind}: {', '.join(f'`{name}`' for name in families(kind))}", 120, subsequent_indent="  ")
        for kind in KINDS
    ]
    return "\n".join([HEAD, *lines, "", *notes, "", "The families:", "", *names, ""])


def _cell(outcomes: Mapping[str, Outcome], known: Mapping[str, frozenset[str]], numbers: dict[str, int]) -> str:
    """All that is to be said of one policy and one kind of prompt."""
    by_status, by_note = defaultdict(list), defaultdict(list)
    for family, one in outcomes.items():
        by_status[one.status].append(family)
        for note in dict.fromkeys(map(plain, one.notes)):
            by_note[note].append(family)
    everyone, parts = list(outcomes), []
    noted = {family for where in by_note.values() for family in where}
    if set(by_status["pruned"]) - noted:
        parts.append("as published")
    for status in ("whole", "refused"):
        if status in by_status:
            parts.append(f"{status}{_where(by_status[status], everyone, known)}")
    served = [family for family in everyone if family not in by_status["refused"]]
    by_families = defaultdict(list)
    for note, where in by_note.items():
        by_families[tuple(where)].append(numbers.setdefault(note, len(numbers) + 1))
    for where, found in by_families.items():
        among = served if set(where) <= set(served) else everyone
        shown = "" if list(where) == by_status["refused"] else _where(where, among, known)
        parts.append(f"({', '.join(map(str, found))}){shown}")
    return "; ".join(parts)


def _where(some: Sequence[str], everyone: Sequence[str], known: Mapping[str, frozenset[str]]) -> str:
    """The families in few words; nothing if it is all of them."""
    if len(some) == len(everyone):
        return ""
    for what, members in known.items():
        if set(some) == members & set(everyone):
            return f" {what}"
    rest = [family for family in everyone if family not in some]
    if len(rest) < len(some):
        return f" but for {', '.join(f'`{name}`' for name in rest)}"
    return f" on {', '.join(f'`{name}`' for name in some)}"


if __name__ == "__main__":
    PAGE.write_text(page(run()), encoding="utf-8")
    sys.exit(0)
