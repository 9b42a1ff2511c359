"""The rows of the policies' benchmark as tables to read."""

from collections.abc import Sequence

from benchmarks import engine_table
from benchmarks.engine_table import Column, plain, ranged

WHO: list[Column] = [("policy", plain("policy")), ("model", plain("model")), ("setting", plain("setting"))]


def percent(name: str) -> Column:
    return "share, %", ranged(name, 100)


def same(row: dict) -> str:
    """Whether two forms agree, and if not, by how much they do not."""
    if "same" not in row:
        return ""
    more = [f"{row['differing']} tokens"] if row.get("differing") else []
    more += [f"pick {row['part_at']}, by {row['gap']:.0e}"] if "gap" in row else []
    return "yes" if row["same"] else " ".join(["NO", *more])


TABLES: dict[str, tuple[str, list[Column]]] = {
    "rate": (
        "How fast this machine multiplies matrices of the decoders' shapes",
        [
            *[("decoder of", plain("model")), ("dtype", plain("dtype")), ("rows", plain("rows"))],
            *[("inner", plain("inner")), ("outer", plain("outer")), ("GFLOP/s", ranged("flops_per_second", 1e-9, 0))],
        ],
    ),
    "prefill": (
        "The unpruned prefill, derived (not run): the decoder's FLOPs at the best of these rates",
        [
            *[("model", plain("model")), ("visual", plain("visual")), ("text", plain("text"))],
            *[("FLOPs", plain("flops", ".4g")), ("s, derived", plain("derived_seconds", ".1f"))],
            ("from", plain("derived_from")),
        ],
    ),
    "share": (
        "Selecting and the signals it needs, as a share of the derived prefill",
        [
            *[*WHO, ("kept", lambda row: " ".join(map(str, row.get("kept", ())))), ("ms", ranged("seconds", 1000, 1))],
            *[percent("share"), ("bound", plain("bound")), ("verdict", plain("verdict")), ("note", plain("note"))],
            ("error", plain("error")),
        ],
    ),
    "literal": (
        "Against a literal form of the same method: how many times as fast",
        [
            *[*WHO, ("ms", ranged("seconds", 1000, 1)), ("literal, ms", ranged("literal_seconds", 1000, 1))],
            *[("times as fast", ranged("speedup", digits=2)), ("same", same), ("literal form", plain("literal"))],
            *[("skipped", plain("skipped")), ("error", plain("error"))],
        ],
    ),
    "mmr": (
        "Maximal marginal relevance against a matrix of all pairs: how many times as fast",
        [
            *[("features", plain("features")), ("tokens", plain("visual")), ("width", plain("width"))],
            *[("keep", plain("keep_ratio")), ("ms", ranged("seconds", 1000, 1))],
            *[("literal, ms", ranged("literal_seconds", 1000, 1)), ("times as fast", ranged("speedup", digits=2))],
            *[("same", same), ("bound", plain("bound")), ("verdict", plain("verdict")), ("error", plain("error"))],
        ],
    ),
}


def tables(rows: Sequence[dict]) -> str:
    """All tables that have rows, in the order of ``TABLES``."""
    return engine_table.tables(rows, TABLES)


def summary(rows: Sequence[dict]) -> str:
    """How many bounds were met, how many answers agreed, what was not run; then each that is not as it should be."""
    judged, compared = [r for r in rows if "verdict" in r], [r for r in rows if "same" in r]
    skipped, errors = [r for r in rows if "skipped" in r], [r for r in rows if "error" in r]
    met, agreed = sum(r["verdict"] == "met" for r in judged), sum(r["same"] for r in compared)
    lines = [
        f"{met} of {len(judged)} bounds met; {agreed} of {len(compared)} literal forms gave the same; "
        f"{len(skipped)} literal forms were not run; {len(errors)} rows failed"
    ]
    lines += [f"  {_who(r)}: {r['verdict']} ({r['bound']})" for r in judged if r["verdict"] != "met"]
    lines += [f"  {_who(r)}: not the same, {same(r)}" for r in compared if not r["same"]]
    lines += [f"  {_who(r)}: skipped, {r['skipped']}" for r in skipped]
    lines += [f"  {_who(r)}: {r['error']}" for r in errors]
    return "\n".join(lines)


def _who(row: dict) -> str:
    names = ("what", "policy", "features", "model", "visual", "setting", "keep_ratio")
    return ", ".join(str(row[name]) for name in names if row.get(name) is not None)
