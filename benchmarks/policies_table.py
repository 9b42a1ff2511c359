"""The rows of the policies' benchmark as tables to read."""

from collections.abc import Callable, Sequence

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


SIZES = {"576": 1000, "2,880": 5000, "16k": 1 << 30}
"""Sizes as they are called in the table of selecting alone -> the most visual tokens that are called so."""


def at(size: str, cell: Callable[[dict], str]) -> Callable[[dict], str]:
    """A cell of the row of one size, among those that ``by_policy`` laid side by side; "-" where it was not run."""

    def found(row: dict) -> str:
        one = row["sizes"].get(size)
        return "" if one is None else "failed" if "error" in one else "-" if "skipped" in one else cell(one)

    return found


def by_policy(rows: Sequence[dict]) -> list[dict]:
    """Rows of selecting alone, those of one policy and setting as one."""
    found: dict[tuple, dict] = {}
    for row in rows:
        if row["what"] == "selection":
            head = {name: row.get(name) for name in ("what", "policy", "kind", "setting")}
            one = found.setdefault((row["policy"], row.get("setting")), {**head, "sizes": {}})
            size = next(size for size, most in SIZES.items() if row["visual"] <= most)
            one["sizes"][size] = row
            one["note"] = one.get("note") or row.get("note")
    return sorted(found.values(), key=lambda row: row["policy"])


def _sides(name: str, cell: Callable[[dict], str]) -> list[Column]:
    return [(f"{size}: {name}", at(size, cell)) for size in SIZES]


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
    "selection": (
        "Selecting alone, signals given: time, its share of the derived prefill, and the memory held meanwhile",
        [
            *[("policy", plain("policy")), ("of a", plain("kind")), ("setting", plain("setting"))],
            ("kept of 2,880", at("2,880", lambda row: str(row["kept"][-1]))),
            *_sides("ms", lambda row: f"{1000 * row['seconds']:.1f}"),
            *_sides("%", lambda row: f"{100 * row['share']:.3f}"),
            *_sides("MiB", lambda row: "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"),
            ("above the bound because", plain("note")),
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
    return engine_table.tables([row for row in rows if row["what"] != "selection"] + by_policy(rows), TABLES)


def summary(rows: Sequence[dict]) -> str:
    """How many bounds were met, how many answers agreed, what was not run; then each that is not as it should be."""
    judged, compared = [r for r in rows if "verdict" in r], [r for r in rows if "same" in r]
    left_out, errors = [r for r in rows if "skipped" in r], [r for r in rows if "error" in r]
    skipped, unrun = ([r for r in left_out if (r["what"] == "literal") is literal] for literal in (True, False))
    met, agreed = sum(r["verdict"] == "met" for r in judged), sum(r["same"] for r in compared)
    lines = [
        f"{met} of {len(judged)} bounds met; {agreed} of {len(compared)} literal forms gave the same; "
        f"{len(skipped)} literal forms were not run, nor {len(unrun)} selections; {len(errors)} rows failed"
    ]
    lines += [f"  {_who(r)}: {_missed(r)}" for r in judged if r["verdict"] != "met"]
    lines += [f"  {_who(r)}: not the same, {same(r)}" for r in compared if not r["same"]]
    lines += [f"  {_who(r)}: skipped, {r['skipped']}" for r in left_out]
    lines += [f"  {_who(r)}: {r['error']}" for r in errors]
    return "\n".join(lines)


def _missed(row: dict) -> str:
    note = f": {row['note']}" if row["what"] == "selection" and "note" in row else ""
    share = f", {100 * row['share']:.2f} %" if "share" in row else ""
    return f"{row['verdict']} ({row['bound']}{share}){note}"


def _who(row: dict) -> str:
    names = ("what", "policy", "features", "model", "visual", "setting", "keep_ratio")
    return ", ".join(str(row[name]) for name in names if row.get(name) is not None)
