"""The gate that a pruned condition must pass before it has a score: proof that visual tokens were gone.

A policy that never pruned has the accuracy of the full model and looks best of all. So three things are asked of the
rows themselves: fewer visual tokens after the last site, a KV cache that is as much smaller as that promises, and
logits of the first new token that are not those of the full model. That token is the full model's where tokens leave
the cache when the prompt has been read; there the first two have to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vtprune.records import IN_CACHE

Row = Mapping[str, Any]

SHARES = ("kept", "logits", "answers")


@dataclass(frozen=True)
class Verdict:
    """Whether a condition may be scored, and why (not), in words.

    kept:    visual tokens after the last site, as a share of those offered.
    logits:  share of questions whose first new token has other logits than with every token; None if not compared.
    answers: share of questions answered in other words than with every token.
    """

    passed: bool
    reason: str
    kept: float | None = None
    logits: float | None = None
    answers: float | None = None

    def values(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def gate(rows: Mapping[str, Row], full: Mapping[str, Row]) -> Verdict:
    """The verdict on the rows of one condition that ``prunes``; both by question id. Failures prove nothing."""
    answered = {question: row for question, row in rows.items() if row["error"] is None}
    if not answered:
        return Verdict(False, "no question was answered")
    counted = [row for row in answered.values() if row["before"]]
    before, after = sum(row["before"] for row in counted), sum(row["after"] for row in counted)
    if not counted or after >= before:
        return Verdict(False, f"no visual token was dropped: {after:,} of {before:,} kept in {len(answered)} questions")
    kept = after / before
    wrong = _wrong_bytes(answered)
    if wrong:
        return Verdict(False, wrong, kept)
    return _compared(answered, {q: row for q, row in full.items() if row["error"] is None}, kept)


def _wrong_bytes(rows: Mapping[str, Row]) -> str:
    """What the bytes of the KV cache, which are those of the whole batch, give away; "" if nothing.

    What is predicted comes from the counts of all samples of the batch, pads included, so there is nothing to allow.
    """
    for question, row in rows.items():
        if not row["kv"] or None in row["kv"]:
            return f"the KV cache of question {question!r} was not measured, so nothing shows that it shrank"
        measured, predicted, unpruned = row["kv"]
        if measured != predicted:
            return (
                f"the KV cache of question {question!r} takes {measured:,} bytes; {predicted:,} were predicted for the "
                f"visual tokens kept, {unpruned:,} for all"
            )
        if row["after"] < row["before"] and measured >= unpruned:
            return (
                f"the KV cache of question {question!r} takes {measured:,} bytes, no less than the {unpruned:,} "
                "predicted without pruning"
            )
    return ""


def _compared(rows: Mapping[str, Row], full: Mapping[str, Row], kept: float) -> Verdict:
    both = [(row, full[question]) for question, row in rows.items() if question in full]
    if not both:
        return Verdict(False, "no question was also answered with every token, so nothing can be compared", kept)
    logits = _share([_changed(row, whole) for row, whole in both])
    answers = _share([row["raw"] != whole["raw"] for row, whole in both])
    if logits == 0 and not all(IN_CACHE in row["kept"] for row, _ in both if row["before"]):
        reason = f"the logits of the first new token are those with every token in all {len(both)} questions"
        return Verdict(False, reason, kept, logits, answers)
    words = (
        f"{kept:.1%} of visual tokens kept, KV cache as predicted, other logits in {logits:.0%} of questions, other "
        f"answers in {answers:.0%}"
    )
    return Verdict(True, words, kept, logits, answers)


def _changed(row: Row, whole: Row) -> bool:
    """Whether the first token's logits are others. ``change`` compares with the very same batch, where no rounding
    differs; without it digests of the logits are compared."""
    change = row.get("change")
    return row["first"] != whole["first"] if change is None else change > 0


def _share(found: Sequence[bool]) -> float:
    return sum(found) / len(found)
