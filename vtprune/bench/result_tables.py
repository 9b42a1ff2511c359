"""The tables of a report: scores with what they are compared with, what was used, behaviour, figures, kinds, times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vtprune.bench.break_even import break_even
from vtprune.bench.document import Cell, Table, Tone, between, p_value, per_cent, signed
from vtprune.bench.series import CONTROLS
from vtprune.bench.usage import PHASES, SHARES

Row = Mapping[str, Any]
TONES: Mapping[str, Tone] = {"better": "good", "worse": "bad"}
NONE = Cell("")


def parts(task: Row) -> tuple[list[tuple[str, Row]], list[tuple[int, str]]]:
    """Rows as tables show them, and the lines that stand above some: what no ratio belongs to, then ratio by ratio the
    best first, refused rows last."""
    flat = [(name, row) for name, row in task["rows"].items() if row["keep_ratio"] >= 1]
    ordered, lines = flat, []
    for ratio in sorted({row["keep_ratio"] for row in task["rows"].values() if row["keep_ratio"] < 1}, reverse=True):
        lines.append((len(ordered), f"{100 * ratio:g} % kept"))
        some = [(name, row) for name, row in task["rows"].items() if row["keep_ratio"] == ratio]
        ordered = ordered + sorted(some, key=lambda pair: -(pair[1].get("score") or -1.0))
    return ordered, lines


def _row_name(name: str, row: Row, task: Row) -> Cell:
    best = any(name == found["best"] for found in task["ratios"].values())
    return Cell(name, "strong" if best else "quiet" if row["kind"] in CONTROLS else "")


def score_table(task: Row) -> Table:
    """The result table: score, differences, McNemar, what is retained, the vision-dependent questions."""
    rows, lines = parts(task)
    full = f"{task.get('metric', 'score')}, %"
    columns = [
        "row",
        "n",
        "layers see, %",
        full,
        "to full",
        "lost / won",
        "p",
        "to random",
        "retained, %",
        "where seeing is needed, %",
    ]
    return Table([*columns, "best?"], [_scores(name, row, task) for name, row in rows], ("row",), lines)


def _scores(name: str, row: Row, task: Row) -> list[Cell]:
    head = [_row_name(name, row, task), Cell(f"{row['n']:,}"), Cell(per_cent(row["tokens"]["layer_share"]))]
    if row["refused"] or row.get("score") is None:
        why = f"refused: {row['refused']}" if row["refused"] else row.get("how", "")
        # in the column of names, which is the wide one
        return [Cell(f"{name} {why}", "bad"), *head[1:], *[NONE] * 8]
    test = (row["to_full"] or {}).get("test")
    changed = Cell(f"{test['right_to_wrong']} / {test['wrong_to_right']}") if test else NONE
    return [
        *head,
        Cell(f"{per_cent(row['score'])}{between(row['interval'])}"),
        _difference(row["to_full"]),
        changed,
        Cell(p_value(test["p"])) if test else NONE,
        _difference(row["to_random"]),
        _retained(row["retained"]),
        _subset(row["subset"]),
        Cell(_place(name, task)),
    ]


def _difference(pair: Row | None) -> Cell:
    if not pair or pair["difference"] is None:
        return NONE
    words = f"{signed(pair['difference'])}{between(pair['interval'], sign=True)}"
    return Cell(words, TONES.get(pair["verdict"], "quiet"))


def _retained(found: Row | None) -> Cell:
    if not found:
        return NONE
    if found["value"] is None:
        return Cell("undefined", "quiet")
    return Cell(f"{per_cent(found['value'], 0)}{between(found['interval'])}")


def _subset(found: Row | None) -> Cell:
    if not found or found["score"] is None:
        return NONE
    return Cell(f"{per_cent(found['score'])}{between(found['interval'])} of {found['questions']}")


def _place(name: str, task: Row) -> str:
    for found in task["ratios"].values():
        if name in (found["best"], *found["tied"]):
            return "best" if name == found["best"] else "tied"
    return ""


def use_table(task: Row) -> Table:
    """Visual tokens, seconds, and what shows that a row pruned."""
    rows, lines = parts(task)
    columns = ["row", "offered", "kept", "kept, %", "mean over layers, %", "decoder FLOPs, %", "read, s", "inputs, s"]
    return Table(
        [*columns, "vision, s", "answer, s", "select, s", "gate"],
        [_use(*pair, task) for pair in rows],
        ("row", "gate"),
        lines,
    )


def _use(name: str, row: Row, task: Row) -> list[Cell]:
    used, spent = row["tokens"], row["seconds"]
    tokens = [Cell("" if used[part] is None else f"{used[part]:,.1f}") for part in ("offered", "after")]
    shares = [Cell(per_cent(used.get(part))) for part in SHARES]
    times = [Cell(f"{spent[part]:.3f}" if part in spent else "") for part in PHASES]
    gate = row["gate"]
    words = Cell("") if gate is None else Cell(gate["reason"], "quiet" if gate["passed"] else "bad")
    return [_row_name(name, row, task), *tokens, *shares, *times, words]


def behaviour_table(task: Row) -> Table:
    """Unparsed answers, failures, and the re-checks where there were any."""
    rows, lines = parts(task)
    checks = list(dict.fromkeys(what for _, row in rows for what in row["recheck"]))
    columns = ["row", "answers", "cannot be read, %", "failed", "errors", *(f"same {what}" for what in checks)]
    cells = []
    for name, row in rows:
        errors = "; ".join(f"{n} x {words}" for words, n in row["failures_by_error"].items())
        found = [row["recheck"].get(what) for what in checks]
        again = [Cell(_again(one), "" if not one or one["same_kept"] == one["n"] else "bad") for one in found]
        shares = [Cell(f"{row['answers']:,}"), Cell(per_cent(row["unparsed"]))]
        failed = Cell(f"{row['failures']:,}", "bad" if row["failures"] else "")
        cells.append([_row_name(name, row, task), *shares, failed, Cell(errors), *again])
    return Table(columns, cells, ("row", "errors"), lines)


def _again(found: Row | None) -> str:
    if not found:
        return ""
    return f"tokens {found['same_kept']}/{found['n']}, answers {found['same_answer']}/{found['n']}"


def metric_table(task: Row) -> Table | None:
    """The task's published figures, if there is another than the score."""
    rows, lines = parts(task)
    columns = list(dict.fromkeys(name for _, row in rows for name in row.get("metrics", {})))
    if not columns or columns == [task.get("metric")]:
        return None
    cells = []
    for name, row in rows:
        found = row.get("metrics", {})
        cells.append([_row_name(name, row, task), *(Cell(_figure(found.get(column))) for column in columns)])
    return Table(["row", *columns], cells, ("row",), lines)


def _figure(value: float | None) -> str:
    """A share in per cent; a sum of points as it is."""
    return "" if value is None else per_cent(value) if abs(value) <= 1 else f"{value:,.1f}"


def label_table(task: Row, label: str) -> Table:
    """Scores by the values of a label, with intervals."""
    rows, lines = parts(task)
    values = list(dict.fromkeys(value for _, row in rows for value in row.get("labels", {}).get(label, {})))
    cells = []
    for name, row in rows:
        found = [row.get("labels", {}).get(label, {}).get(value) for value in values]
        line = [Cell(f"{per_cent(one['score'])}{between(one['interval'])}") if one else NONE for one in found]
        cells.append([_row_name(name, row, task), *line])
    return Table(["row", *values], cells, ("row",), lines)


def time_table(times: Sequence[Row]) -> Table:
    """Medians (and ninetieth percentiles), memory, cache and FLOPs of one batch size; of several seeds the first."""
    phases = {"vision": "vision_ms", "select": "selector_ms", "prefill": "prefill_ms", "first token": "ttft_ms"}
    phases |= {"each token": "token_ms", "all": "total_ms"}
    columns = ["row", *(f"{name}, ms" for name in phases), "peak, MB", "KV, MB", "GFLOPs", "FastV's formula, G"]
    rows = []
    for row in {row["row"]: row for row in reversed(times)}.values():
        if row.get("error"):
            rows.append([Cell(f"{row['row']} failed: {row['error']}", "bad"), *[NONE] * (len(columns) - 1)])
        else:
            rows.append([Cell(row["row"]), *(_spread(row.get(key)) for key in phases.values()), *_sizes(row)])
    return Table(columns, rows[::-1], ("row",))


def break_even_table(times: Sequence[Row]) -> Table | None:
    """From how many visual tokens on a row's first token comes sooner than the full model's; None if not measured."""
    # of several seeds the first
    names = {row["row"]: row["condition"] for row in reversed(times) if row["row"] != "full"}
    largest = max((row["tokens"][0][0] for row in times if row.get("tokens")), default=None)
    if largest is None or not names:
        return None
    rows = []
    for name, condition in names.items():
        found = break_even(times, condition)
        words = "never" if found is None else "always" if found == 0 else f"{found:,.0f}"
        rows.append([Cell(name), Cell(words, "quiet" if found is None else "")])
    return Table(["row", f"visual tokens, up to {largest:,}"], rows[::-1], ("row",))


def _spread(found: Row | None) -> Cell:
    return Cell(f"{found['median']:.1f} ({found['p90']:.1f})") if found else NONE


def _sizes(row: Row) -> list[Cell]:
    flops = row.get("flops") or {}
    exact = sum(flops.get(part, 0) for part in ("vision", "selector", "decoder")) if flops else None
    amounts = [(row.get("peak_bytes"), 1e6), (row.get("kv_bytes"), 1e6)]
    amounts += [(exact, 1e9), (flops.get("fastv_formula"), 1e9)]
    return [Cell("" if amount is None else _three(amount / unit)) for amount, unit in amounts]


def _three(value: float) -> str:
    """Three digits, all those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
