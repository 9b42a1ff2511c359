"""The rows of the engine's benchmark as tables to read."""

from collections.abc import Callable, Iterable, Sequence

Column = tuple[str, Callable[[dict], str]]


def ranged(name: str, scale: float = 1, digits: int = 3) -> Callable[[dict], str]:
    """Median and extremes of a field: "0.98 (0.95-1.01)"; nothing where a row has no such field."""

    def cell(row: dict) -> str:
        if row.get(name) is None:
            return ""
        median, low, high = (scale * row[key] for key in (name, f"{name}_min", f"{name}_max"))
        return f"{median:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"

    return cell


def plain(name: str, form: str = "") -> Callable[[dict], str]:
    """A field as it is; nothing where a row has no such field."""
    return lambda row: "" if row.get(name) is None else format(row[name], form)


def hooks(row: dict) -> str:
    """The hooks' CPU time in a prefill as a share of its median, or the median of a layer's hook in decode steps."""
    if "hook_seconds" in row:
        return f"{100 * row['hook_seconds'] / row['seconds']:.2f} %"
    return f"{row['hook_us']:.1f} us" if "hook_us" in row else ""


WHO: list[Column] = [("", plain("runner")), ("kept", plain("kept"))]
JUDGED: list[Column] = [
    ("against", plain("against")),
    ("ratio", lambda row: ranged("speed")(row) or ranged("overhead")(row)),
    ("bound", plain("bound")),
    ("verdict", plain("verdict")),
]
TIMED: list[Column] = [("visual", plain("visual")), *WHO, ("speedup", ranged("speedup", digits=2))]
BYTES = ",d"

TABLES: dict[str, tuple[str, list[Column]]] = {
    "noise": (
        "Noise: the unpruned prefill over itself, one round earlier",
        [
            ("visual", plain("visual")),
            ("ratio", ranged("ratio")),
            ("scatter", plain("scatter", ".3f")),
            ("rounds", plain("runs")),
        ],
    ),
    "prefill": (
        "Prefill",
        [*TIMED, ("s", ranged("seconds", digits=2)), *JUDGED, ("x masked", ranged("over_masked")), ("in hooks", hooks)],
    ),
    "ragged prefill": (
        "Prefill of a batch whose samples keep different numbers of tokens",
        [("visual", plain("visual")), *WHO, ("by", plain("way")), ("s", ranged("seconds")), *JUDGED],
    ),
    "decode step": (
        "Decode step",
        [*TIMED, ("ms", ranged("seconds", 1000, 1)), *JUDGED, ("a layer's hook", hooks)],
    ),
    "kv bytes": (
        "Keys and values after the prefill",
        [
            *[("visual", plain("visual")), *WHO, ("bytes", plain("bytes", BYTES)), ("share", plain("share", ".4f"))],
            *[("short prompt's", plain("short_prompt", BYTES)), ("verdict", plain("verdict"))],
        ],
    ),
    "peak memory": (
        "Peak memory above the loaded model, fresh processes",
        [
            *[("visual", plain("visual")), *WHO[:1], ("bytes", plain("peak_bytes", BYTES))],
            *[("share", plain("share", ".3f")), ("verdict", plain("verdict")), ("error", plain("error"))],
        ],
    ),
    "hook": (
        "Hooks in a decode step, microseconds by layer, narrow model",
        [
            *[("", plain("case")), ("hook alone", ranged("hook_us", digits=1))],
            *[("all that hooks add", ranged("layer_us", digits=1)), ("bound", plain("bound"))],
            ("verdict", plain("verdict")),
        ],
    ),
    "selection": (
        "Selecting, signals included",
        [
            *[("policy", plain("policy")), ("visual", plain("visual")), ("ms", ranged("seconds", 1000, 1))],
            *[("exponent", plain("exponent", ".2f")), ("peak bytes", plain("peak_bytes", BYTES))],
            *[("N x N", plain("verdict")), ("error", plain("error"))],
        ],
    ),
}


def tables(rows: Sequence[dict], layout: dict[str, tuple[str, list[Column]]] = TABLES) -> str:
    """All tables that have rows, in the order of ``layout``: by ``what`` of the row, its title and columns."""
    parts = []
    for what, (title, columns) in layout.items():
        some = [row for row in rows if row["what"] == what]
        if some:
            parts.append(f"{title}\n{table(columns, some)}")
    return "\n\n".join(parts)


def table(columns: Sequence[Column], rows: Iterable[dict]) -> str:
    """Aligned text; columns that are empty in all rows are left out."""
    lines = [[cell(row) for _, cell in columns] for row in rows]
    shown = [i for i in range(len(columns)) if any(line[i] for line in lines)]
    lines = [[columns[i][0] for i in shown], *[[line[i] for i in shown] for line in lines]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(shown))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in lines)


def verdicts(rows: Sequence[dict]) -> str:
    """How many bounds were met, missed, or hidden by noise, and how many rows failed; then each that was not met."""
    judged = [row for row in rows if "verdict" in row]
    errors = [row for row in rows if "error" in row]
    met = sum(row["verdict"] == "met" for row in judged)
    lines = [f"{met} of {len(judged)} bounds met; {len(errors)} rows failed"]
    for row in judged:
        if row["verdict"] != "met":
            who = row.get("runner") or row.get("case") or row.get("policy")
            lines.append(
                f"  {row['what']}, {row.get('visual', 'narrow model')}, {who}: {row['verdict']} ({row['bound']})"
            )
    lines += [f"  {row['what']}, {row.get('visual')}, {row.get('policy')}: {row['error']}" for row in errors]
    return "\n".join(lines)
