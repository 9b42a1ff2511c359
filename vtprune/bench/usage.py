"""What a row of the result table used and how it behaved: tokens, seconds, failures, answers that cannot be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vtprune.bench.sheet import Answers, Column

SHARES = ("kept_share", "layer_share", "flops_share")
PHASES = ("read", "inputs", "vision", "answer", "select")


def behaviour(column: Column) -> dict[str, Any]:
    """Failures, and the share of answers that could not be read; both count as wrong."""
    rows = column.rows
    failed = [row for row in rows if row["error"] is not None]
    unread = [row for row in rows if row["error"] is None and row["parsed"] is None]
    # the first words of a message, so that a hundred unreadable videos are one line
    reasons = Counter(str(row["error"]).partition(":")[0][:80] for row in failed)
    return {
        "answers": len(rows),
        "unparsed": len(unread) / len(rows),
        "failures": len(failed),
        "failures_by_error": dict(reasons.most_common(5)),
    }


def tokens(column: Column, full: Column | None) -> dict[str, Any]:
    """Visual tokens of a row, mean over its answers, and as shares of what the full model sees of the same questions.

    offered: before the first site. after: after the last. layers: that a decoder layer sees, mean over layers.
    flops_share: of what the decoder's layers cost, all tokens of the prompt counted; None where that is not known. The
    shares of a row that sees smaller pictures or fewer frames are of the full model's tokens too; without a full row
    they are of the row's own.
    """
    rows = [row for row in column.rows if row["error"] is None and row.get("before") is not None]
    if not rows:
        return dict.fromkeys(("offered", "after", "layers", *SHARES))
    found = {
        "offered": _mean(row["before"] for row in rows),
        "after": _mean(row["after"] for row in rows),
        "layers": _mean(row["layers"] for row in rows),
    }
    whole = {q: row for q, row in _answers(full).items() if row["error"] is None and row.get("before")}
    both = [(row, whole[row["question"]] if full else row) for row in rows if not full or row["question"] in whole]
    of = sum(other["before"] for _, other in both)
    shares = dict.fromkeys(SHARES)
    if both and all(row.get("flops") and other.get("flops") for row, other in both):
        shares["flops_share"] = sum(row["flops"] for row, _ in both) / sum(other["flops"] for _, other in both)
    if of:
        shares["kept_share"] = sum(row["after"] for row, _ in both) / of
        shares["layer_share"] = sum(row["layers"] for row, _ in both) / of
    return {**found, **shares}


def _answers(full: Column | None) -> Answers:
    return next(iter(full.answers.values())) if full else {}


def seconds(column: Column) -> dict[str, float]:
    """Mean seconds of one sample by phase, of what was answered; of a batch every sample has its share."""
    rows = [row["seconds"] for row in column.rows if row["error"] is None and row.get("seconds")]
    return {phase: _mean(row[phase] for row in rows) for phase in PHASES if rows and all(phase in r for r in rows)}


def rechecks(rows: Sequence[Mapping[str, Any]], task: str, column: Column) -> dict[str, Any]:
    """How often the same question, asked alone or again, kept the same tokens and got the same answer."""
    mine = [row for row in rows if row["task"] == task and row["condition"] in column.conditions]
    return {
        what: {
            "n": sum(row["what"] == what for row in mine),
            "same_kept": sum(row["what"] == what and row["same_kept"] for row in mine),
            "same_answer": sum(row["what"] == what and row["same_answer"] for row in mine),
        }
        for what in dict.fromkeys(row["what"] for row in mine)
    }


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
