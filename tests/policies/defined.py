"""Writes where each policy is defined, by running it on every tiny model: ``python -m tests.policies.defined``."""

from __future__ import annotations

import re
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
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
and gave each sample what it gives it alone. "as published": nothing of the method is missing. A number points to what
stands in for what a model does not have, or what else differs there; `vtprune.report` says the same of a real model.
Written by `python -m tests.policies.defined`. "whole": such visual tokens are all kept, and the report says why.
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
    for status in ("whole", "refused"):
        if status in by_status:
            parts.append(f"{status}{_where(by_status[status], everyone, known)}")
    noted = set().union(*by_note.values()) if by_note else set()
    if set(by_status["pruned"]) - noted:
        parts.insert(0, f"as published{_where([f for f in by_status['pruned'] if f not in noted], everyone, known)}")
    for note, where in by_note.items():
        number = numbers.setdefault(note, len(numbers) + 1)
        parts.append(f"({number}){_where(where, everyone, known)}")
    return "; ".join(parts)


def _where(some: Sequence[str], everyone: Iterable[str], known: Mapping[str, frozenset[str]]) -> str:
    """The families in few words; nothing if it is all of them."""
    everyone = list(everyone)
    if len(some) == len(everyone):
        return ""
    for what, members in known.items():
        if set(some) == members & set(everyone):
            return f" {what}"
    rest = [family for family in everyone if family not in some]
    if len(rest) <= 3:
        return f" but for {', '.join(f'`{name}`' for name in rest)}"
    return f" on {', '.join(f'`{name}`' for name in some)}"


if __name__ == "__main__":
    PAGE.write_text(page(run()), encoding="utf-8")
    sys.exit(0)
