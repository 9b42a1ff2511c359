"""Accuracies of a video run, paired differences by clip, and tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from benchmarks.video_answers import FEW, SLICE_FRAMES, SLICE_TOKENS, UNPRUNED

Key = tuple[int, float, str]
MEANS = ("of", "kept", "layer_share", "flops_share", "idle")


Z = 1.96
"""Standard deviations of a 95 % interval."""


def mean_interval(values: Sequence[float], clusters: Sequence[int]) -> tuple[float, float]:
    """(mean, half width of its 95 % interval) when values of one cluster are not independent.

    The variance of a mean of clusters of unequal size: the sum of squares of what each cluster adds beyond the mean.
    """
    n, mean = len(values), sum(values) / len(values)
    beyond: dict[int, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        beyond[cluster] = beyond.get(cluster, 0.0) + value - mean
    many = len(beyond)
    if many < 2:
        return mean, math.nan
    variance = sum(b * b for b in beyond.values()) / n**2 * many / (many - 1)
    return mean, Z * math.sqrt(variance)


def key_of(row: Mapping) -> Key:
    """(frames, keep ratio, policy)."""
    return row["frames"], round(row["keep_ratio"], 9), row["policy"]


def gathered(clips: Sequence[Mapping]) -> tuple[list[dict], list[int], list[str]]:
    """The rows of all clips, condition by condition; the clip of every question, and its kind.

    A condition that failed for any clip has ``error``, how many ``failed``, and no ``right``.
    """
    rows: dict[Key, dict] = {}
    for clip in clips:
        for one in clip["rows"]:
            row = rows.setdefault(key_of(one), {**one, "right": "", "clips": 0, "failed": 0, "notes": []})
            if "error" in one:
                row |= {"failed": row["failed"] + 1, "error": one["error"]}
                continue
            n = row["clips"]
            for name in MEANS:
                if name in one:
                    row[name] = (one[name] + n * row[name]) / (n + 1) if n else one[name]
            row |= {"right": row["right"] + one["right"], "clips": n + 1}
            row["notes"] = list(dict.fromkeys([*row["notes"], *one.get("notes", ())]))
    for row in rows.values():
        if row["failed"]:
            del row["right"]
    owners = [clip["seed"] for clip in clips for _ in clip["kinds"]]
    return list(rows.values()), owners, [kind for clip in clips for kind in clip["kinds"]]


def judged(rows: Sequence[Mapping], owners: Sequence[int], kinds: Sequence[str]) -> list[dict]:
    """The rows with accuracy, that of each kind of question, and differences, question by question, each with interval.

    over_whole: from the same frames unpruned. over_few: from ``FEW`` frames unpruned. over_random, over_uniform: from
    those controls with as many frames and the same ratio. Clips are the units, questions about one not being
    independent.
    """
    hits = {key_of(row): list(map(int, row["right"])) for row in rows if "right" in row}
    found = []
    for row in rows:
        out, own = dict(row), hits.get(key_of(row))
        if own is None:
            found.append(out)
            continue
        out["accuracy"], out["interval"] = mean_interval(own, owners)
        out["kinds"] = {
            kind: _mean([hit for hit, one in zip(own, kinds, strict=True) if one == kind])
            for kind in sorted(set(kinds))
        }
        for name, other in rivals(row).items():
            if other != key_of(row) and other in hits:
                differences = [a - b for a, b in zip(own, hits[other], strict=True)]
                out[name], out[f"{name}_interval"] = mean_interval(differences, owners)
        found.append(out)
    return found


def rivals(row: Mapping) -> dict[str, Key]:
    """What a row is compared with."""
    frames, ratio, policy = key_of(row)
    found = {"over_whole": (frames, 1.0, UNPRUNED), "over_few": (FEW, 1.0, UNPRUNED)}
    if policy != UNPRUNED:
        found |= {f"over_{control}": (frames, ratio, control) for control in ("random", "uniform")}
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def difference(row: Mapping, name: str) -> str:
    """A difference in points with its interval, and whether it can be told from none."""
    if name not in row:
        return ""
    value, half = row[name], row[f"{name}_interval"]
    word = "better" if value > half else "worse" if value < -half else "not told apart"
    return f"{100 * value:+.1f} ± {100 * half:.1f}, {word}"


def accuracy(row: Mapping) -> str:
    """In per cent with its interval, and whether the policy pruned at all."""
    if "error" in row:
        return f"failed for {row['failed']} clips: {row['error']}"
    text = f"{100 * row['accuracy']:.1f} ± {100 * row['interval']:.1f}"
    idle = row.get("idle", 0) if row["keep_ratio"] < 1 else 0
    return text + (f" (nothing was pruned for {100 * idle:.0f} %, see `notes`)" if idle else "")


def paid(row: Mapping) -> str:
    """Visual tokens that a layer processes, the mean over layers."""
    whole = row["frames"] // SLICE_FRAMES * SLICE_TOKENS
    return f"{row.get('layer_share', 1.0) * row.get('of', whole):.0f}" if "error" not in row else ""


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


Column = tuple[str, Callable[[Mapping], str]]

WHO: list[Column] = [
    ("frames", lambda row: str(row["frames"])),
    ("kept", lambda row: "" if row["policy"] == UNPRUNED else f"{100 * row['keep_ratio']:.3g} %"),
    ("policy", lambda row: f"`{row['policy']}`"),
]
ANSWERS: list[Column] = [
    *WHO,
    ("tokens", paid),
    ("accuracy", accuracy),
    ("over all tokens of these frames", lambda row: difference(row, "over_whole")),
    (f"over {FEW} frames unpruned", lambda row: difference(row, "over_few")),
    ("over random", lambda row: difference(row, "over_random")),
]


def by_columns(rows: Sequence[Mapping], columns: Sequence[Column]) -> str:
    return markdown([name for name, _ in columns], [[cell(row) for _, cell in columns] for row in rows])


def answers_table(rows: Sequence[Mapping], frames: Sequence[int], ratios: Sequence[float]) -> str:
    """Every number of frames at every ratio, unpruned first, then best first."""
    wanted = [r for r in rows if r["frames"] in frames and r["keep_ratio"] in (1.0, *ratios)]
    return by_columns(sorted(wanted, key=lambda r: (r["frames"], -r["keep_ratio"], -r.get("accuracy", -1))), ANSWERS)


def budget_table(rows: Sequence[Mapping], times: Sequence[Mapping], budget: int) -> str:
    """Rows that keep ``budget`` visual tokens, and what all tokens of their frames give and cost."""
    seconds = {key_of(row): row for row in times}
    wanted = []
    for row in rows:
        tokens = row["frames"] // SLICE_FRAMES * SLICE_TOKENS
        if abs(tokens * row["keep_ratio"] - budget) < 1e-6:
            wanted.append(row)
        elif row["policy"] == UNPRUNED and row["frames"] % FEW == 0:
            wanted.append(row)
    wanted.sort(key=lambda r: (r["frames"], r["policy"] != UNPRUNED, -r.get("accuracy", -1)))

    def time_of(name: str, form: str) -> Callable[[Mapping], str]:
        return lambda row: format(seconds[key_of(row)][name], form) if key_of(row) in seconds else ""

    columns = [
        WHO[0],
        (f"times {FEW}", lambda row: f"{row['frames'] / FEW:g}"),
        *WHO[1:],
        *ANSWERS[3:5],
        *ANSWERS[6:],
        ("prefill s", time_of("prefill_seconds", ".3f")),
        ("KV bytes", time_of("kv_bytes", ",d")),
    ]
    return by_columns(wanted, columns)


def ranged(name: str, form: str = ".3f") -> Callable[[Mapping], str]:
    """Median and extremes of a field; nothing where a row has no such field."""

    def cell(row: Mapping) -> str:
        if name not in row:
            return ""
        return "{} ({}-{})".format(*(format(row[f"{name}{part}"], form) for part in ("", "_min", "_max")))

    return cell


def _idle(row: Mapping) -> str:
    """Says so where a policy was asked to prune and did not."""
    return " (nothing was pruned, see `notes`)" if row["keep_ratio"] < 1 and row["kept"] == row["of"] else ""


def times_table(rows: Sequence[Mapping]) -> str:
    """Seconds from the file to the first token, and the prefill beside its limits."""

    def plain(name: str, form: str) -> Callable[[Mapping], str]:
        return lambda row: format(row[name], form) if name in row else ""

    columns = [
        *WHO,
        ("tokens at the end", lambda row: f"{row['kept']}{_idle(row)}" if "kept" in row else ""),
        ("read s", plain("read_seconds", ".3f")),
        ("prepare s", plain("prepare_seconds", ".3f")),
        ("vision s", plain("vision_seconds", ".3f")),
        ("select s", plain("select_seconds", ".4f")),
        ("prefill s", ranged("prefill_seconds")),
        ("speedup", ranged("prefill_speedup", ".2f")),
        ("of what FLOPs allow", ranged("speed_over_flops", ".2f")),
        ("of a short prompt's", ranged("speed_over_short", ".2f")),
        ("first token s", ranged("first_token_seconds")),
        ("first token speedup", ranged("first_token_speedup", ".2f")),
        ("KV bytes", plain("kv_bytes", ",d")),
    ]
    return by_columns(rows, columns)
