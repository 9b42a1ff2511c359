"""What the intervals of a run allow to say of a task, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vtprune.bench.document import between, per_cent, signed
from vtprune.bench.series import scored

MOST = 8
"""Names in a sentence; more are counted."""


def conclusions(task: Mapping[str, Any]) -> list[str]:
    """Sentences: what seeing is worth; for each ratio who is best, tied with it, better than random; the refused."""
    said = _worth(task)
    for ratio, found in task["ratios"].items():
        said.append(_best(task, ratio, found))
        said += _against_random(task, float(ratio), found)
    refused = [name for name, row in task["rows"].items() if row["refused"]]
    if refused:
        said.append(f"Refused, because it was not shown that they prune: {names(refused)}.")
    failed = sum(row["failures"] for row in task["rows"].values())
    if failed:
        said.append(f"{failed:,} questions failed; they count as wrong and are told by row below.")
    return said


def names(found: Sequence[str]) -> str:
    """ "a, b and c", or of many the first few."""
    if len(found) > MOST:
        return f"{', '.join(found[:MOST])} and {len(found) - MOST} more"
    return " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)


def _worth(task: Mapping[str, Any]) -> list[str]:
    full, blind, other = (scored(task, kind) for kind in ("full", "blind", "other"))
    if full is None:
        return ["The full model was not asked, so nothing can be said of what pruning costs."]
    words = f"With every visual token: {per_cent(full['score'])} %{between(full['interval'])}"
    if blind is None:
        return [f"{words}."]
    words += f"; without any picture: {per_cent(blind['score'])} %{between(blind['interval'])}"
    if other is not None:
        words += f"; with another question's: {per_cent(other['score'])} %"
    pair = blind["to_full"]
    worth = f"Seeing is worth {per_cent(full['score'] - blind['score'])} points"
    if pair["verdict"] != "worse":
        worth = "It was not shown that seeing helps: this task says nothing of pruning"
    return [f"{words}.", f"{worth}."]


def _best(task: Mapping[str, Any], ratio: str, found: Mapping[str, Any]) -> str:
    best = task["rows"][found["best"]]
    words = f"{100 * float(ratio):g} % kept: the best is {found['best']}, {per_cent(best['score'])} %"
    words += between(best["interval"])
    if best.get("to_full"):
        pair = best["to_full"]
        words += f", {signed(pair['difference'])} points from full{between(pair['interval'], sign=True)}"
    if found["tied"]:
        return f"{words}. Not told apart from it: {names(found['tied'])}."
    return f"{words}. It can be told from all others." if found["behind"] else f"{words}."


def _against_random(task: Mapping[str, Any], ratio: float, found: Mapping[str, Any]) -> list[str]:
    rows = {
        name: row["to_random"]["verdict"]
        for name, row in task["rows"].items()
        if row["keep_ratio"] == ratio and row["kind"] == "policy" and row.get("to_random")
    }
    if not rows:
        return []
    groups = {word: [name for name, one in rows.items() if one == word] for word in ("better", "worse")}
    level = [name for name in rows if name not in groups["better"] + groups["worse"]]
    parts = [f"better than random tokens: {names(groups['better']) if groups['better'] else 'no policy'}"]
    parts += [f"worse: {names(groups['worse'])}"] if groups["worse"] else []
    parts += [f"not told apart: {names(level)}"] if level else []
    richer = [name for name in groups["better"] if _sees_more(task, name)]
    parts += [f"but layers see more tokens than random's with {names(richer)}"] if richer else []
    words = f"{100 * ratio:g} % kept, {'; '.join(parts)}."
    which = found["dependent"]
    return [words] + ([f"{100 * ratio:g} % kept: {_dependent(task, which)}"] if which else [])


def _sees_more(task: Mapping[str, Any], name: str) -> bool:
    """Whether a row's layers see at least a tenth more visual tokens than those of the random row beside it."""
    row = task["rows"][name]
    beside = task["rows"].get(row["to_random"]["row"])
    if beside is None:  # its twin, which has no row: as many tokens at the same sites
        return False
    share, other = (one["tokens"]["layer_share"] for one in (row, beside))
    return bool(share and other and share >= 1.1 * other)


def _dependent(task: Mapping[str, Any], which: Mapping[str, Any]) -> str:
    return f"{which['questions']:,} of {task['questions']:,} questions need the whole picture ({which['which']})."
