"""The rows of the kernels' benchmark as tables to read."""

from collections.abc import Sequence

from benchmarks import engine_table
from benchmarks.engine_table import Column, plain, ranged

WHO: list[Column] = [("operation", plain("op")), ("N", plain("n")), ("D", plain("d")), ("shapes", plain("shapes"))]


def percent(row: dict) -> str:
    """How close to the limit, and which that is."""
    return f"{100 * row['of_limit']:.0f} % ({row['limited_by']})" if "of_limit" in row else ""


def agreement(row: dict) -> str:
    """Whether ours and plain torch say the same."""
    if "same" in row:
        return "same bits" if row["same"] else "NOT THE SAME"
    if "same_picks" in row:
        return f"{100 * row['same_picks']:.1f} % of picks"
    return f"{row['difference']:.0e}" if "difference" in row else ""


def not_run(row: dict) -> str:
    return "; ".join(f"{form}: {why}" for form, why in row.get("not_run", {}).items())


def micro(name: str, form: str) -> Column:
    return name, ranged(f"{form}_seconds", 1e6, 1)


TABLES: dict[str, tuple[str, list[Column]]] = {
    "limit": (
        "What this device does at best",
        [
            *[("", plain("of")), ("dtype", plain("dtype")), ("GB/s", ranged("bytes_per_second", 1e-9, 1))],
            *[("GFLOP/s", ranged("flops_per_second", 1e-9, 0)), ("runs", plain("runs"))],
        ],
    ),
    "kernel": (
        "Operations, microseconds: median (extremes)",
        [
            *[*WHO, ("dtype", plain("dtype")), ("Triton", lambda row: "yes" if row.get("kernel") else "")],
            *[micro("ours", "ours"), micro("reference", "reference"), micro("plain torch", "plain")],
            *[micro("literal", "literal"), ("runs", plain("runs")), ("of the limit", percent)],
            *[("x plain", ranged("over_plain", digits=2)), ("x reference", ranged("over_reference", digits=2))],
            *[("x literal", ranged("over_literal", digits=1)), micro("ours, back to back", "ours_call")],
            *[micro("plain, back to back", "plain_call"), ("agreement", agreement), ("not run", not_run)],
            *[("skipped", plain("skipped")), ("error", plain("error"))],
        ],
    ),
}


def tables(rows: Sequence[dict]) -> str:
    """All tables that have rows."""
    return engine_table.tables(rows, TABLES)


def summary(rows: Sequence[dict]) -> str:
    """How many rows there are, how many beat plain torch, and each that is not as it should be."""
    timed = [row for row in rows if "ours_seconds" in row]
    beaten = [row for row in timed if row.get("over_plain", 0) > 1]
    compared = [row for row in timed if "over_plain" in row]
    skipped, errors = [r for r in rows if "skipped" in r], [r for r in rows if "error" in r]
    lines = [
        f"{len(timed)} timed, {len(beaten)} of {len(compared)} faster than plain torch; {len(skipped)} skipped, "
        f"{len(errors)} failed"
    ]
    lines += [f"  {_who(row)}: not the same as plain torch" for row in timed if row.get("same") is False]
    lines += [f"  {_who(row)}: {row['error']}" for row in errors]
    return "\n".join(lines)


def _who(row: dict) -> str:
    return f"{row['op']}, {row['n']} x {row['d']}"
